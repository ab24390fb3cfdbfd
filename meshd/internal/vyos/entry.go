package vyos

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// entry is one tunnel of a router while it is read: the settings of the
// gateway's end as text of meshd.yaml.
type entry struct {
	im    *importer
	node  *node
	iface string

	name      string
	mode      conf.Mode
	transport string
	listen    uint16
	remote    string // empty means to learn it
	local     netip.Addr
	peer      netip.Addr
	local6    netip.Addr
	peer6     netip.Addr
	mtu       int
	cipher    openvpn.Cipher
	auth      openvpn.Digest
	framing   openvpn.Framing
	fragment  int
	ping      int // seconds
	restart   int

	tlsMin       string
	wrapKey      string
	ca           bool
	fingerprints []string

	files   []File
	missing []Missing
	failed  bool
}

func (e *entry) warn(line int, cure, format string, args ...any) {
	if line == 0 {
		line = e.node.line
	}
	e.im.warn(line, cure, "%s: %s", e.iface, fmt.Sprintf(format, args...))
}

// refuse says why the tunnel cannot be taken over.
func (e *entry) refuse(line int, cure, format string, args ...any) {
	e.failed = true
	e.warn(line, cure, format+"; not taken over", args...)
}

// read reports whether the tunnel can be taken over.
func (e *entry) read() bool {
	mode, line := e.node.value("mode")
	switch {
	case !isInterface(e.iface):
		e.warn(0, "", "is no name of an interface; passed over")
		return false
	case mode != "site-to-site":
		e.warn(line, "", "mode %q is not site-to-site; passed over", mode)
		return false
	case e.node.get("disable") != nil:
		e.warn(e.node.at("disable"), "", "is disabled; passed over")
		return false
	}
	if device, line := e.node.value("device-type"); device == "tap" {
		e.refuse(line, "device-type tun on both ends", "a tap device carries Ethernet, the mesh carries IP")
		return false
	}
	e.identity()
	e.addresses()
	e.transports()
	e.secrets()
	e.ciphers()
	e.keepalive()
	e.options()
	e.surroundings()
	if len(e.im.prefixes) == 0 {
		e.refuse(0, "--prefix CIDR", "nothing says what is behind the router")
	}
	if e.failed {
		return false
	}
	if faults := e.faults(); len(faults) > 0 {
		for _, f := range faults {
			e.refuse(0, f.Want, "%s: %s", f.Field, f.Problem)
		}
		return false
	}
	return true
}

// identity is the name: that in the description if Commands wrote it.
func (e *entry) identity() {
	e.name = e.iface
	text, _ := e.node.value("description")
	name, ours := strings.CutPrefix(text, descriptionPrefix)
	if ours && isName(name) {
		e.name = name
	}
}

// isName reports whether s can be the name of an attachment.
func isName(s string) bool {
	foreign := func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("._-", r)
	}
	return s != "" && len(s) <= 15 && !strings.ContainsFunc(s, foreign) && s != "." && s != ".."
}

// addresses are those inside the tunnel: the router's local ones are the
// gateway's peers.
func (e *entry) addresses() {
	pick := func(word string, four, six *netip.Addr) {
		for _, text := range e.node.get(word).values() {
			addr, err := netip.ParseAddr(text)
			switch {
			case err != nil || addr.Zone() != "":
				e.refuse(e.node.at(word, text), "", "%s %q is no address", word, text)
			case addr.Is4():
				*four = addr
			default:
				*six = addr
			}
		}
	}
	pick("local-address", &e.peer, &e.peer6)
	pick("remote-address", &e.local, &e.local6)
	if e.peer6.IsValid() && e.im.out.Version == V12 {
		e.warn(e.node.at("local-address"), "", "vyos 1.2 has no ipv6 addresses in a tunnel")
	}
}

func (e *entry) transports() {
	e.transport = "udp"
	protocol, line := e.node.value("protocol")
	switch protocol {
	case "", "udp":
	case "tcp-active":
		e.transport = "tcp-listen"
	case "tcp-passive":
		e.transport = "tcp-connect"
	default:
		e.refuse(line, "", "protocol %q is unknown", protocol)
	}
	local := e.port("local-port")
	e.listen = e.port("remote-port")
	host, hostLine := e.im.options.Router, 0
	if host == "" {
		host, hostLine = e.node.value("local-host")
	}
	hosts := e.node.get("remote-host").values()
	switch {
	case e.transport == "tcp-listen":
		return // the port of a router that connects is a free one
	case host != "":
		e.remote = host
		if addr, err := netip.ParseAddr(host); err == nil && addr.Is6() {
			e.remote = "[" + host + "]"
		}
		e.remote += ":" + strconv.Itoa(int(local))
		if addr, err := netip.ParseAddr(host); hostLine > 0 && err == nil && addr.IsPrivate() {
			e.warn(hostLine, "--router with its outer address, or take \"remote:\" out so that the gateway learns it", "the router's own address %s is private; behind NAT the gateway sees another one and drops all of it", host)
		}
	case e.transport == "tcp-connect":
		e.refuse(line, "--router ADDRESS", "the router listens for the gateway, and nothing here says under which address")
	case len(hosts) == 0:
		e.refuse(0, "remote-host with the gateway's address on the router, or --router ADDRESS here", "without remote-host the router waits for the gateway, and nothing here says where the router is: neither would speak")
	}
}

// port is a setting with a default.
func (e *entry) port(word string) uint16 {
	text, line := e.node.value(word)
	if text == "" {
		return defaultPort
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil || n == 0 {
		e.refuse(line, "", "%s %q is no port", word, text)
		return defaultPort
	}
	return uint16(n)
}

// secrets reads static key or TLS.
func (e *entry) secrets() {
	file, _ := e.node.value("shared-secret-key-file")
	object, line := e.node.value("shared-secret-key")
	tls := e.node.get("tls")
	switch {
	case file != "":
		e.mode = conf.ModeStatic
		e.missing = append(e.missing, Missing{e.keyName(), "the router has it in " + file})
	case object != "":
		e.mode = conf.ModeStatic
		e.sharedSecret(object, line, e.keyName())
	case tls != nil:
		e.tls(tls)
	default:
		e.refuse(0, "", "has neither a shared secret nor tls")
	}
	if e.mode == conf.ModeStatic && e.im.out.Version == V15 {
		e.warn(0, "docs/openvpn.md says how to move to TLS with fingerprints", "openvpn 2.7 starts with static keys only if told so (--allow-deprecated-insecure-static-crypto), and 2.8 will not have them")
	}
}

func (e *entry) keyName() string { return e.name + ".key" }

// sharedSecret makes a file out of a key in the configuration.
func (e *entry) sharedSecret(object string, line int, file string) {
	text, keyLine := e.im.root.value("pki", "openvpn", "shared-secret", object, "key")
	if text == "" {
		e.missing = append(e.missing, Missing{file, "pki openvpn shared-secret " + object + " of the router"})
		e.warn(line, "", "pki openvpn shared-secret %s key is not in the file", object)
		return
	}
	key, err := openvpn.ParseStaticKey([]byte("-----BEGIN OpenVPN Static key V1-----\n" + text + "\n-----END OpenVPN Static key V1-----\n"))
	if err != nil { // the error could quote the secret
		e.refuse(keyLine, "512 hexadecimal digits, in one line", "pki openvpn shared-secret %s is no static key", object)
		return
	}
	e.files = append(e.files, File{file, key.Encode()})
}

// tls reads the settings of TLS: the gateway has the other role.
func (e *entry) tls(n *node) {
	role, line := n.value("role")
	switch role {
	case "active":
		e.mode = conf.ModeTLSServer
	case "passive":
		e.mode = conf.ModeTLSClient
	default:
		e.refuse(line, "tls role active on the router", "tls without a role; one end must be active and the other one passive")
		return
	}
	for _, word := range []string{"auth-key", "auth-file"} {
		if n.get(word) != nil {
			e.warn(n.at(word), "tls crypt-key (or crypt-file) on both ends", "tls %s is not used in site-to-site mode: the control channel is not protected, and neither will it be here", word)
		}
	}
	if file, _ := n.value("crypt-file"); file != "" {
		e.wrapKey = e.name + "-crypt.key"
		e.missing = append(e.missing, Missing{e.wrapKey, "the router has it in " + file})
	}
	if object, line := n.value("crypt-key"); object != "" {
		e.wrapKey = e.name + "-crypt.key"
		e.sharedSecret(object, line, e.wrapKey)
	}
	if least, _ := n.value("tls-version-min"); least == "1.3" {
		e.tlsMin = least
	} else if least == "1.0" || least == "1.1" {
		e.warn(n.at("tls-version-min"), "", "tls %s is permitted on the router; the gateway wants 1.2 at least", least)
	}
	e.certificates(n)
}

// certificates decides how the gateway knows the router: by the authority, or
// by the fingerprint of the certificate.
func (e *entry) certificates(n *node) {
	own := e.name + ".crt and " + e.name + ".pem"
	if file, _ := n.value("ca-cert-file"); file != "" {
		e.ca = true
		e.missing = append(e.missing,
			Missing{e.name + "-ca.crt", "the router has it in " + file},
			Missing{own, "certificate and key of the gateway: those of the router's peer until now, or new ones from that authority"})
		return
	}
	router := e.routerCertificate(n)
	authorities := n.get("ca-certificate").values()
	var bundle []byte
	for _, name := range authorities {
		if der := e.certificate(n.at("ca-certificate", name), "ca", name); der != nil {
			bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})...)
		}
	}
	prints := n.get("peer-fingerprint").values()
	switch {
	case len(bundle) > 0:
		e.ca = true
		e.files = append(e.files, File{e.name + "-ca.crt", bundle})
		e.missing = append(e.missing, Missing{own, "certificate and key of the gateway: those of the router's peer until now, or new ones from that authority"})
		if len(prints) > 0 {
			e.warn(n.at("peer-fingerprint"), "set … tls peer-fingerprint with the gateway's", "the router also wants the fingerprint of its peer's certificate; a new certificate of the gateway has another one")
		}
	case router != nil && len(authorities) == 0:
		sum := sha256.Sum256(router)
		e.fingerprints = []string{openvpn.Fingerprint(sum).String()}
		e.missing = append(e.missing, Missing{own, "certificate and key of the gateway: those of the router's peer until now, or new ones whose fingerprint the router gets (openssl x509 -in " + e.name + ".crt -noout -fingerprint -sha256)"})
	default:
		e.refuse(0, "the output with its pki lines (show configuration commands, not the part about openvpn alone)", "neither an authority nor the router's certificate is in the file, so that the gateway could not know the router")
	}
}

// routerCertificate is the router's own in DER form, and warns if it is over.
func (e *entry) routerCertificate(n *node) []byte {
	name, line := n.value("certificate")
	if name == "" {
		return nil
	}
	der := e.certificate(line, "certificate", name)
	if der == nil || e.im.options.Now.IsZero() {
		return der
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil || !e.im.options.Now.After(cert.NotAfter) {
		return der
	}
	end := cert.NotAfter.UTC().Format(time.DateOnly)
	if n.get("ca-certificate") != nil {
		e.warn(line, "a new certificate for the router", "certificate %s ended on %s; the gateway refuses it, because it judges by the authority", name, end)
	} else {
		e.warn(line, "a new certificate when convenient", "certificate %s ended on %s; with fingerprints that does not matter", name, end)
	}
	return der
}

// certificate is pki KIND NAME certificate in DER form.
func (e *entry) certificate(line int, kind, name string) []byte {
	text, at := e.im.root.value("pki", kind, name, "certificate")
	if text == "" {
		e.warn(line, "", "pki %s %s certificate is not in the file", kind, name)
		return nil
	}
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(text), ""))
	if err == nil {
		_, err = x509.ParseCertificate(der)
	}
	if err != nil {
		e.warn(at, "", "pki %s %s certificate is not one", kind, name)
		return nil
	}
	return der
}

// ciphers reads cipher and digest with the defaults of the version.
func (e *entry) ciphers() {
	e.auth = openvpn.DigestSHA1
	if word, line := e.node.value("hash"); word != "" {
		digest, known := digestNamed(word)
		if !known {
			e.refuse(line, "", "hash %q is unknown", word)
			return
		}
		e.auth = digest
	}
	word, line := e.cipherWord()
	version := e.im.out.Version
	blowfish := word == "bf128" || word == "bf256"
	switch {
	case word == "" && e.mode == conf.ModeStatic:
		e.defaultCipher()
	case word == "" && version <= V13:
		e.cipher = openvpn.CipherBlowfishCBC
		e.warn(0, "a cipher on both ends, such as aes256", "without a cipher it is BF-CBC, which is breakable after some gigabytes")
	case word == "": // negotiated
	case word == "des":
		e.refuse(line, "aes256", "cipher des is broken, and the gateway does not have it")
	case blowfish && version == V14:
		e.refuse(line, "encryption cipher aes256 on the router", "openvpn of vyos 1.4 does not start with cipher %s", word)
	case word == "bf256" && version == V13:
		e.refuse(line, "encryption cipher aes256 on the router", "vyos 1.3 makes a key of 24 bits out of bf256")
	case word == "bf256":
		e.refuse(line, "another cipher on the router, such as aes256", "the gateway has Blowfish with keys of 128 bits only")
	case e.mode == conf.ModeStatic && strings.HasSuffix(word, "gcm"):
		e.refuse(line, "aes256", "cipher %s does not work with a static key", word)
	default:
		e.namedCipher(word, line)
	}
}

// cipherWord is the word for the cipher, which has a place of its own in
// almost every version.
func (e *entry) cipherWord() (string, int) {
	for _, node := range []string{"cipher", "data-ciphers-fallback"} {
		if word, line := e.node.value("encryption", node); word != "" {
			return word, line
		}
	}
	for _, word := range e.node.get("encryption").values() {
		if _, known := cipherNamed(word); known || word == "des" || word == "bf256" {
			return word, e.node.at("encryption", word)
		}
	}
	return "", 0
}

// defaultCipher is what a static key goes with if nothing is said.
func (e *entry) defaultCipher() {
	if e.im.out.Version == V15 {
		e.refuse(0, "encryption cipher aes256 on the router", "vyos 1.5 does not start a static key without a cipher")
		return
	}
	e.cipher = openvpn.CipherBlowfishCBC
	e.warn(0, "a cipher on both ends, such as aes256", "without a cipher it is BF-CBC, which is breakable after some gigabytes")
}

func (e *entry) namedCipher(word string, line int) {
	cipher, known := cipherNamed(word)
	if !known {
		e.refuse(line, "", "cipher %q is unknown", word)
		return
	}
	e.cipher = cipher
	switch {
	case cipher == openvpn.CipherBlowfishCBC && e.im.out.Version == V15:
		e.refuse(line, "encryption cipher aes256 on the router", "vyos 1.5 has no cipher %s", word)
	case cipher == openvpn.CipherBlowfishCBC, cipher == openvpn.CipherTripleDESCBC:
		e.warn(line, "aes256 on both ends", "cipher %s is breakable after some gigabytes", word)
	case cipher == openvpn.CipherNone:
		e.warn(line, "aes256 on both ends", "cipher none sends everything in clear")
	case e.mode != conf.ModeStatic && e.im.out.Version >= V14 && !isGCM(cipher):
		e.warn(line, "", "with tls this version negotiates: the data goes with AES-256-GCM, and %s is for old peers", word)
	}
}

// Keepalive of VyOS if nothing is said: 10 s, and a restart after 60 s.
const (
	defaultInterval     = 10
	defaultRestart      = 60
	defaultFailureCount = 6 // of 1.2
)

// keepalive finds after how many seconds of silence the router restarts, and
// pings well within.
func (e *entry) keepalive() {
	interval, _ := e.number("interval", defaultInterval)
	e.restart = defaultRestart
	count, line := e.number("failure-count", 0)
	switch {
	case e.im.out.Version == V12 && line > 0:
		e.restart = interval * count
	case e.im.out.Version == V12:
		e.restart = interval * defaultFailureCount
	case line > 0:
		e.restart = count
	}
	if e.im.out.Version >= V13 && line > 0 && e.restart < 2*interval {
		e.warn(line, fmt.Sprintf("keep-alive failure-count %d on the router", max(defaultRestart, 3*interval)),
			"failure-count is in seconds since vyos 1.3: the router restarts after %d s without a packet and pings every %d s, so that a tunnel at rest flaps; the gateway pings more often to keep it up", e.restart, interval)
	}
	if interval == 0 || e.restart == 0 {
		e.warn(line, "keep-alive interval 10 and failure-count 60 (6 on 1.2)", "keepalive is off; a dead gateway is not noticed")
		e.restart = defaultRestart
	}
	// The gateway has the router's times, but pings three times within those of
	// a router that would flap.
	e.restart = max(e.restart, 2)
	e.ping = interval
	if interval == 0 || e.restart < 2*interval {
		e.ping = max(1, min(defaultInterval, e.restart/3))
	}
}

func (e *entry) number(word string, otherwise int) (value, line int) {
	text, line := e.node.value("keep-alive", word)
	if text == "" {
		return otherwise, 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > maxFailureCount {
		e.refuse(line, "", "keep-alive %s %q is no number from 0 to %d", word, text, maxFailureCount)
		return otherwise, 0
	}
	return n, line
}

// surroundings warns about what is around the tunnel.
func (e *entry) surroundings() {
	for _, host := range e.node.get("remote-host").values() {
		if _, err := netip.ParseAddr(host); err != nil {
			e.warn(e.node.at("remote-host", host), "the address, if it does not change", "the name %s is looked up at a restart only", host)
		}
	}
	if e.node.get("persistent-tunnel") == nil {
		e.warn(0, "set interfaces openvpn "+e.iface+" persistent-tunnel", "without persistent-tunnel the interface disappears at every restart, and its routes with it")
	}
	if e.node.get("firewall") != nil {
		e.warn(e.node.at("firewall"), "let the prefixes of the mesh pass", "a firewall is bound to the interface")
	}
}

// options reads what goes to openvpn as it is.
func (e *entry) options() {
	if e.node.get("use-lzo-compression") != nil {
		e.framing = openvpn.FramingLZO
		e.warn(e.node.at("use-lzo-compression"), "", "compression lzo: the gateway understands it and sends nothing compressed; take it out on both ends at once, or neither")
	}
	for _, text := range e.node.get("openvpn-option").values() {
		line := e.node.at("openvpn-option", text)
		if e.im.out.Version <= V13 {
			e.warn(line, "reset openvpn interface "+e.iface, "a changed openvpn-option may need a restart by hand on this version")
		}
		for option := range strings.SplitSeq(" "+strings.TrimSpace(text), " --") {
			if words := strings.Fields(option); len(words) > 0 {
				e.option(strings.TrimLeft(words[0], "-"), words[1:], line)
			}
		}
	}
}

func (e *entry) option(name string, args []string, line int) {
	first := ""
	if len(args) > 0 {
		first = args[0]
	}
	switch name {
	case "fragment", "tun-mtu":
		n, err := strconv.Atoi(first)
		if err != nil || n < 1 || n > maxInner {
			e.refuse(line, "", "openvpn-option %s %q is no number", name, first)
		} else if name == "fragment" {
			e.fragment = n
		} else {
			e.mtu = n
			e.warn(line, "", "tun-mtu %d: both ends must have it, or only warn", n)
		}
	case "compress", "comp-lzo":
		e.compress(name, first, line)
	case "mssfix", "verb", "mute", "nobind", "persist-key", "persist-tun", "log", "log-append", "status", "sndbuf", "rcvbuf",
		"explicit-exit-notify", "passtos", "nice", "fast-io", "txqueuelen", "float", "reneg-sec", "allow-compression", "resolv-retry",
		"tls-version-min", "tls-cipher", "remote-cert-tls", "allow-deprecated-insecure-static-crypto":
		// They do not have to be alike on both ends.
	default:
		e.warn(line, "compare with what meshd.yaml has", "openvpn-option %s is not known here; it may have to be alike on both ends", name)
	}
}

// maxInner is the largest MTU that conf takes.
const maxInner = 65000

func (e *entry) compress(name, kind string, line int) {
	switch {
	case name == "comp-lzo", kind == "lzo":
		e.framing = openvpn.FramingLZO
	case kind == "stub-v2":
		e.framing = openvpn.FramingStubV2
	case kind == "", kind == "stub", kind == "migrate":
		e.framing = openvpn.FramingStub
	default:
		e.refuse(line, "take the option out on both ends", "compression %s is not supported", kind)
		return
	}
	e.warn(line, "", "compression framing %v: take it out on both ends at once, or neither", e.framing)
}

// yaml is the entry as text of meshd.yaml, indented below openvpn.
func (e *entry) yaml() string {
	var b strings.Builder
	line := func(key string, value any) { fmt.Fprintf(&b, "    %s: %v\n", key, value) }
	fmt.Fprintf(&b, "  - name: %s\n", quote(e.name))
	line("mode", e.mode)
	line("transport", e.transport)
	if e.transport != "tcp-connect" {
		line("listen", quote(":"+strconv.Itoa(int(e.listen))))
	}
	if e.remote != "" {
		line("remote", quote(e.remote))
	}
	b.WriteString("    tunnel:\n")
	for _, pair := range []struct {
		key  string
		addr netip.Addr
	}{{"local", e.local}, {"peer", e.peer}, {"local6", e.local6}, {"peer6", e.peer6}} {
		if pair.addr.IsValid() {
			line("  "+pair.key, quote(pair.addr.String()))
		}
	}
	if e.mtu != 0 {
		line("  mtu", e.mtu)
	}
	e.yamlKeys(line, &b)
	if e.framing != openvpn.FramingNone {
		line("compression", e.framing)
	}
	if e.fragment != 0 {
		line("fragment", e.fragment)
	}
	line("ping", fmt.Sprintf("%ds", e.ping))
	line("pingRestart", fmt.Sprintf("%ds", e.restart))
	b.WriteString("    prefixes:\n")
	for _, p := range e.im.prefixes {
		fmt.Fprintf(&b, "      - %s\n", quote(p.String()))
	}
	return b.String()
}

func (e *entry) yamlKeys(line func(string, any), b *strings.Builder) {
	if e.mode == conf.ModeStatic {
		line("key", quote(e.keyName()))
	}
	if e.cipher != "" {
		line("cipher", e.cipher)
	}
	line("auth", e.auth)
	if e.mode == conf.ModeStatic {
		return
	}
	b.WriteString("    tls:\n")
	line("  cert", quote(e.name+".crt"))
	line("  key", quote(e.name+".pem"))
	if e.ca {
		line("  ca", quote(e.name+"-ca.crt"))
	}
	if len(e.fingerprints) > 0 {
		b.WriteString("      peerFingerprints:\n")
		for _, f := range e.fingerprints {
			fmt.Fprintf(b, "        - %s\n", quote(f))
		}
	}
	if e.wrapKey != "" {
		line("  wrap", openvpn.WrapCrypt)
		line("  wrapKey", quote(e.wrapKey))
	}
	if e.tlsMin != "" {
		line("  minVersion", quote(e.tlsMin))
	}
}

// quote is a YAML scalar. Words that could be read as something else, or that
// come from elsewhere, are quoted; Go's escapes of printable text are YAML's.
func quote(s string) string {
	plain := func(r rune) bool {
		return r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || strings.ContainsRune("._/-", r)
	}
	letter := s != "" && (s[0] >= 'a' && s[0] <= 'z' || s[0] >= 'A' && s[0] <= 'Z')
	digitsAndDots := s != "" && strings.Count(s, ".") == 3 && strings.Trim(s, "0123456789./") == ""
	if !strings.ContainsFunc(s, func(r rune) bool { return !plain(r) }) && (letter && !isReserved(s) || digitsAndDots) {
		return s
	}
	return strconv.QuoteToASCII(s)
}

// isReserved reports whether YAML 1.1 reads the word as something other than
// text.
func isReserved(s string) bool {
	switch strings.ToLower(s) {
	case "y", "n", "yes", "no", "true", "false", "on", "off", "null":
		return true
	}
	return false
}
