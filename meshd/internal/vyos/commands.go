package vyos

import (
	"bytes"
	"crypto/tls"
	"encoding/pem"
	"fmt"
	"net/netip"
	"strings"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// Distances of the static routes of two tunnels. 1 is what VyOS has without
// one; the other is below every routing protocol's.
const (
	preferredDistance = 1
	standbyDistance   = 10
)

// Where the check script and key files are on the router. What is below
// /config survives an update of the image.
const (
	scriptPath = "/config/scripts/meshd-check"
	authDir    = "/config/auth/"
	taskName   = "meshd-check"
	bfdProfile = "meshd"
)

// descriptionPrefix stands before the name of the attachment in the
// description of its interface, where Import finds it again.
const descriptionPrefix = "meshd "

// Commands are the commands for the router's configuration mode, with
// comments. A router with two tunnels gets the task for the check script too,
// unless BFD is set. The error is a Refusals.
func (r *Router) Commands() (string, error) {
	if found := r.validate(); len(found) > 0 {
		return "", found
	}
	p := &printer{r: r}
	p.note("VyOS %v, the router's end of %s.", r.Version, r.names())
	p.note("To be pasted in configuration mode (configure); then: compare, commit-confirm 10, confirm, save.")
	for i := range r.Tunnels {
		p.tunnel(i)
	}
	p.routes()
	if len(r.Tunnels) > 1 && !r.BFD {
		p.task()
	}
	p.hints()
	return p.b.String(), nil
}

func (r *Router) names() string {
	words := make([]string, len(r.Tunnels))
	for i, t := range r.Tunnels {
		words[i] = t.Name
	}
	return strings.Join(words, " and ")
}

// printer writes commands.
type printer struct {
	r *Router
	b strings.Builder
}

func (p *printer) note(format string, args ...any) { fmt.Fprintf(&p.b, "# "+format+"\n", args...) }

func (p *printer) head(format string, args ...any) {
	p.b.WriteByte('\n')
	p.note(format, args...)
}

// set writes a command; the last word is a value and quoted as the router
// itself does, unless it is empty.
func (p *printer) set(path, value string) {
	if value == "" {
		fmt.Fprintf(&p.b, "set %s\n", path)
		return
	}
	fmt.Fprintf(&p.b, "set %s '%s'\n", path, strings.ReplaceAll(value, "'", `'\''`))
}

// tunnel writes the interface.
func (p *printer) tunnel(i int) {
	t := &p.r.Tunnels[i]
	base := "interfaces openvpn " + t.Interface
	p.head("%s: %s", t.Name, p.what(t))
	p.keys(t)
	p.set(base+" description", descriptionPrefix+t.Name)
	p.set(base+" mode", "site-to-site")
	p.transport(i, base)
	p.set(base+" persistent-tunnel", "")
	for _, pair := range [][2]netip.Addr{{t.Tunnel.Peer, t.Tunnel.Local}, {t.Tunnel.Peer6, t.Tunnel.Local6}} {
		if pair[0].IsValid() {
			p.set(fmt.Sprintf("%s local-address %v", base, pair[0]), "")
			p.set(base+" remote-address", pair[1].String())
		}
	}
	p.encryption(t, base)
	if t.Mode != conf.ModeStatic {
		p.tls(t, base)
	}
	p.set(base+" keep-alive interval", fmt.Sprint(int(t.Ping.Seconds())))
	p.set(base+" keep-alive failure-count", fmt.Sprint(t.failureCount(p.r.Version)))
	p.options(t, base)
}

func (p *printer) what(t *Tunnel) string {
	kind := map[conf.Mode]string{conf.ModeStatic: "static key", conf.ModeTLSServer: "TLS, the router is client", conf.ModeTLSClient: "TLS, the router is server"}[t.Mode]
	where := "gateway " + t.Gateway
	if t.Gateway == "" {
		where = "the gateway connects"
	}
	return kind + ", " + where
}

func (p *printer) transport(i int, base string) {
	t := &p.r.Tunnels[i]
	port, remotePort := p.r.localPort(i), t.Listen.Port()
	protocol := "udp"
	switch t.Transport {
	case openvpn.TCPListen:
		protocol = "tcp-active"
	case openvpn.TCPConnect:
		protocol, remotePort = "tcp-passive", 0 // the gateway's port is a free one
	}
	p.set(base+" protocol", protocol)
	if port != 0 {
		p.set(base+" local-port", fmt.Sprint(port))
	}
	if t.Transport == openvpn.TCPConnect {
		return // every source may connect; the key decides
	}
	p.set(base+" remote-host", t.Gateway)
	p.set(base+" remote-port", fmt.Sprint(remotePort))
}

// encryption writes cipher and digest. Their places differ most between the
// versions.
func (p *printer) encryption(t *Tunnel, base string) {
	v := p.r.Version
	word, _, _ := cipherWord(v, t.Cipher) // validated
	node := base + " encryption cipher"
	switch {
	case v == V12:
		node = base + " encryption"
	case v == V15 && t.Mode != conf.ModeStatic:
		node = base + " encryption data-ciphers-fallback"
		if t.Cipher == "" {
			word = "aes256gcm"
		}
		p.note("Builds of 1.5 before December 2025 do not know the next line and do without it.")
	}
	switch {
	case t.Mode == conf.ModeStatic && word == "":
		p.note("No cipher: that is BF-CBC. \"encryption cipher bf128\" would keep OpenVPN of 1.4 from starting.")
	case word != "":
		p.set(node, word)
	}
	digest, _, _ := digestWord(v, t.Auth)
	p.set(base+" hash", digest)
}

// options writes what has no command of its own.
func (p *printer) options(t *Tunnel, base string) {
	switch t.Compression {
	case openvpn.FramingLZO:
		p.set(base+" use-lzo-compression", "")
	case openvpn.FramingStub:
		p.set(base+" openvpn-option", "--compress stub")
	case openvpn.FramingStubV2:
		p.set(base+" openvpn-option", "--compress stub-v2")
	}
	if t.Fragment > 0 {
		p.set(base+" openvpn-option", fmt.Sprintf("--fragment %d", t.Fragment))
	}
	if t.Tunnel.MTU != defaultMTU {
		p.set(base+" openvpn-option", fmt.Sprintf("--tun-mtu %d", t.Tunnel.MTU))
	}
}

// defaultMTU is the tun-mtu of OpenVPN.
const defaultMTU = 1500

// object is what keys of a tunnel are called on the router.
func (t *Tunnel) object(suffix string) string { return "meshd-" + t.Interface + suffix }

// keys says how shared keys get on the router. A secret is printed only if
// Secrets has it.
func (p *printer) keys(t *Tunnel) {
	if t.Mode == conf.ModeStatic {
		var key openvpn.StaticKey
		if t.Secrets != nil {
			key = t.Secrets.Static
		}
		p.sharedKey(t, key, t.Key, "")
		base := "interfaces openvpn " + t.Interface
		if p.r.Version.hasPKI() {
			p.set(base+" shared-secret-key", t.object(""))
		} else {
			p.set(base+" shared-secret-key-file", authDir+t.object(".key"))
		}
	}
	if t.TLS != nil && t.TLS.Wrap == openvpn.WrapCrypt {
		var key openvpn.StaticKey
		if t.Secrets != nil {
			key = t.Secrets.Wrap
		}
		p.sharedKey(t, key, t.TLS.WrapKey, "-crypt")
	}
}

func (p *printer) sharedKey(t *Tunnel, key openvpn.StaticKey, path, suffix string) {
	name := t.object(suffix)
	switch {
	case p.r.Version.hasPKI() && key.IsZero():
		p.note("The key is not shown. --show-key prints it in the next command, in place of KEY; the gateway has it in %s.", path)
		p.note("set pki openvpn shared-secret %s key 'KEY'", name)
		p.set("pki openvpn shared-secret "+name+" version", "1")
	case p.r.Version.hasPKI():
		p.set("pki openvpn shared-secret "+name+" key", digits(key))
		p.set("pki openvpn shared-secret "+name+" version", "1")
	case key.IsZero():
		p.note("The key is not shown. Copy %s of the gateway to the router as %s%s.key:", path, authDir, name)
		p.note("  scp %s vyos@ROUTER:/tmp/%s.key", path, name)
		p.note("  sudo install -m 600 /tmp/%s.key %s%s.key && rm /tmp/%s.key    (on the router)", name, authDir, name, name)
	default:
		p.note("The next command writes the key to %s%s.key.", authDir, name)
		fmt.Fprintf(&p.b, "sudo sh -c 'umask 077; cat >%s%s.key' <<'END'\n%sEND\n", authDir, name, key.Encode())
	}
}

// digits are the 512 digits of a key without its frame.
func digits(key openvpn.StaticKey) string {
	var b strings.Builder
	for line := range strings.Lines(string(key.Encode())) {
		if line = strings.TrimSpace(line); line != "" && !strings.ContainsAny(line[:1], "-#") {
			b.WriteString(line)
		}
	}
	return b.String()
}

func (p *printer) tls(t *Tunnel, base string) {
	role := "active"
	if t.Mode == conf.ModeTLSClient {
		role = "passive"
	}
	p.set(base+" tls role", role)
	if p.r.Version.hasPKI() {
		p.tlsObjects(t, base)
	} else {
		p.tlsFiles(t, base, role)
	}
}

// tlsObjects is for versions with certificates in the configuration.
func (p *printer) tlsObjects(t *Tunnel, base string) {
	name := t.object("")
	p.note("The router's certificate. If it has none yet (type ec; not encrypted):")
	if t.TLS.CA != "" {
		p.note("  run generate pki certificate sign CA install %s    (or import one that the gateway's authority signed)", name)
	} else {
		p.note("  run generate pki certificate self-signed install %s", name)
	}
	if len(t.TLS.PeerFingerprints) > 0 {
		p.note("The gateway knows it by its fingerprint (peerFingerprints: in meshd.yaml):")
		p.note("  run show pki certificate %s fingerprint sha256", name)
	}
	p.set(base+" tls certificate", name)
	if t.TLS.CA != "" {
		p.authority(t, name+"-ca")
		p.set(base+" tls ca-certificate", name+"-ca")
	} else {
		p.fingerprint(t, base)
	}
	if t.TLS.Wrap == openvpn.WrapCrypt {
		p.set(base+" tls crypt-key", t.object("-crypt"))
	}
	if t.TLS.MinVersion >= tls.VersionTLS13 {
		p.set(base+" tls tls-version-min", "1.3")
	}
}

func (p *printer) fingerprint(t *Tunnel, base string) {
	if t.Fingerprint != "" {
		p.set(base+" tls peer-fingerprint", t.Fingerprint)
		return
	}
	p.note("The gateway's certificate could not be read. This prints what belongs in place of FINGERPRINT:")
	p.note("  openssl x509 -in %s -noout -fingerprint -sha256", t.TLS.Cert)
	p.note("set %s tls peer-fingerprint FINGERPRINT", base)
}

// authority writes the certificates that the gateway's comes from: one in an
// object, as VyOS has them.
func (p *printer) authority(t *Tunnel, name string) {
	block, _ := pem.Decode(t.CA)
	if block == nil {
		p.note("The authority could not be read. The lines of %s between BEGIN and END, joined, belong in place of CERTIFICATE:", t.TLS.CA)
		p.note("set pki ca %s certificate CERTIFICATE", name)
		return
	}
	if certificates(t.CA) > 1 {
		p.note("%s has more than one certificate; this is the first. It must be the one that signed the gateway's.", t.TLS.CA)
	}
	p.set("pki ca "+name+" certificate", base64Of(block.Bytes))
}

func base64Of(der []byte) string {
	var b strings.Builder
	for line := range strings.Lines(string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))) {
		if !strings.HasPrefix(line, "-----") {
			b.WriteString(strings.TrimSpace(line))
		}
	}
	return b.String()
}

// tlsFiles is for versions with certificates in files. They cannot know a peer
// by its fingerprint: a certificate that signed itself is its own authority.
func (p *printer) tlsFiles(t *Tunnel, base, role string) {
	file := authDir + t.object("")
	authority, what := t.TLS.CA, "the authority of the gateway's certificate"
	if authority == "" {
		authority, what = t.TLS.Cert, "the gateway's certificate if it signed itself, else that of its authority"
	}
	p.note("Files on the router (scp, then sudo install -m 600):")
	p.note("  %s-ca.crt  %s (%s of the gateway)", file, what, authority)
	p.note("  %s.crt, %s.pem  the router's own certificate and key", file, file)
	if len(t.TLS.PeerFingerprints) > 0 {
		p.note("  The gateway knows it by its fingerprint: openssl x509 -in %s.crt -noout -fingerprint -sha256", file)
	}
	p.set(base+" tls ca-cert-file", file+"-ca.crt")
	p.set(base+" tls cert-file", file+".crt")
	p.set(base+" tls key-file", file+".pem")
	if role == "passive" {
		p.note("  %s-dh.pem  openssl dhparam -out %s-dh.pem 2048", file, file)
		p.set(base+" tls dh-file", file+"-dh.pem")
	}
	if t.TLS.Wrap == openvpn.WrapCrypt {
		p.set(base+" tls crypt-file", authDir+t.object("-crypt.key"))
	}
}

// routes writes the static routes. With two tunnels those of the second one
// are worse; they matter until the check script ran, and if it is taken away.
func (p *printer) routes() {
	through, not := p.r.routed()
	p.head("Routes to the mesh.")
	for _, prefix := range not {
		p.note("%v is left out: the tunnel has no %s addresses.", prefix, ipVersion(prefix))
	}
	if p.r.BFD {
		p.set("protocols bfd profile "+bfdProfile+" interval receive", "1000")
		p.set("protocols bfd profile "+bfdProfile+" interval transmit", "1000")
		p.set("protocols bfd profile "+bfdProfile+" interval multiplier", "3")
	}
	for i := range p.r.Tunnels {
		for _, prefix := range through {
			p.route(i, prefix)
		}
	}
}

func ipVersion(p netip.Prefix) string {
	if p.Addr().Is6() {
		return "IPv6"
	}
	return "IPv4"
}

func (p *printer) route(i int, prefix netip.Prefix) {
	t := &p.r.Tunnels[i]
	six, hop := "", t.Tunnel.Local
	if prefix.Addr().Is6() {
		six, hop = "6", t.Tunnel.Local6
	}
	var path string
	switch {
	case p.r.BFD:
		path = fmt.Sprintf("protocols static route%s %v next-hop %v", six, prefix, hop)
		p.set(path+" bfd profile", bfdProfile)
	case p.r.Version.hasPKI():
		path = fmt.Sprintf("protocols static route%s %v interface %s", six, prefix, t.Interface)
	default:
		path = fmt.Sprintf("protocols static interface-route%s %v next-hop-interface %s", six, prefix, t.Interface)
	}
	switch {
	case i > 0:
		p.set(path+" distance", fmt.Sprint(standbyDistance))
	case len(p.r.Tunnels) > 1:
		p.set(path+" distance", fmt.Sprint(preferredDistance))
	case !p.r.BFD:
		p.set(path, "")
	}
}

// task writes the schedule of the check script.
func (p *printer) task() {
	p.head("Static routes alone stay on a dead tunnel, whose interface remains. A script tests both and moves the routes.")
	p.note("It must be on the router before the commit. The command that printed this prints it with --check-script in addition:")
	p.note("  meshd vyos %s (the same flags) --check-script >meshd-check", strings.ReplaceAll(p.r.names(), " and ", " "))
	p.note("  scp meshd-check vyos@ROUTER:/tmp/")
	p.note("  sudo install -m 755 /tmp/meshd-check %s    (on the router)", scriptPath)
	base := "system task-scheduler task " + taskName
	p.set(base+" interval", "1m")
	p.set(base+" executable path", scriptPath)
	p.set(base+" executable arguments", scheduledArguments)
}

// scheduledArguments make a run of the script last most of the minute that is
// the shortest interval of the scheduler, and end before the next one: the
// last check begins within 50 s and takes 6 s at most (two dead tunnels).
const scheduledArguments = "-t 50 -s 3"

// hints are comments about what this package cannot know.
func (p *printer) hints() {
	v := p.r.Version
	p.head("Hints.")
	for i := range p.r.Tunnels {
		p.firewall(i)
	}
	p.note("TCP adapts its segments by itself (mssfix of OpenVPN). If large transfers hang all the same:")
	for _, t := range p.r.Tunnels {
		if v.hasPKI() {
			p.note("  set interfaces openvpn %s ip adjust-mss 1300", t.Interface)
		} else {
			p.note("  set firewall options interface %s adjust-mss 1300", t.Interface)
		}
	}
	if p.r.BFD {
		p.bfd()
	}
}

func (p *printer) firewall(i int) {
	t := &p.r.Tunnels[i]
	port := p.r.localPort(i)
	if port == 0 {
		return // the router connects
	}
	protocol := "udp"
	if t.Transport == openvpn.TCPConnect {
		protocol = "tcp"
	}
	base := fmt.Sprintf("set firewall name WAN-LOCAL rule %d", 100+i)
	if p.r.Version.hasPKI() {
		base = fmt.Sprintf("set firewall ipv4 input filter rule %d", 100+i)
	}
	source, err := netip.ParseAddr(t.Gateway)
	if err == nil && source.Is6() {
		base = strings.NewReplacer("firewall name", "firewall ipv6-name", "firewall ipv4", "firewall ipv6").Replace(base)
	}
	p.note("If a firewall guards the router itself, let %s in (names and numbers are yours):", t.Name)
	p.note("  %s action accept", base)
	p.note("  %s protocol %s", base, protocol)
	p.note("  %s destination port %d", base, port)
	if err == nil {
		p.note("  %s source address %v", base, source)
	}
}

// bfd says what the far ends need.
func (p *printer) bfd() {
	p.note("BFD needs a peer on each gateway, which meshd is not: without it these routes never appear. With FRR's bfdd there:")
	for _, t := range p.r.Tunnels {
		for _, pair := range [][2]netip.Addr{{t.Tunnel.Peer, t.Tunnel.Local}, {t.Tunnel.Peer6, t.Tunnel.Local6}} {
			if pair[0].IsValid() {
				p.note("  %s: bfd, peer %v local-address %v interface %s", t.Name, pair[0], pair[1], t.Device)
			}
		}
	}
}

// certificates counts the certificates of a PEM text.
func certificates(text []byte) int {
	return bytes.Count(text, []byte("-----BEGIN CERTIFICATE-----"))
}
