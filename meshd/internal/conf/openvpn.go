package conf

import (
	"crypto/tls"
	"fmt"
	"math"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// OpenVPN is one entry of the list openvpn: a router that is attached to this
// gateway over its own OpenVPN configuration. Every default is filled in. What
// stands in key files is in Keys, and only Load reads them.
type OpenVPN struct {
	Name      string
	Mode      Mode
	Transport openvpn.Transport
	Listen    netip.AddrPort // an invalid address means every address; port 0 only with TCPConnect
	Remote    string         // HOST or HOST:PORT; empty means to learn it from the first authentic packet
	Float     bool
	Device    string // name of the interface
	Tunnel    Tunnel

	Key          string // static: path of the key file
	KeyDirection openvpn.Direction
	Cipher       openvpn.Cipher   // static: the cipher; tls: that for peers that do not negotiate, empty means none
	DataCiphers  []openvpn.Cipher // tls: nil means the default of package openvpn
	Auth         openvpn.Digest
	Compression  openvpn.Framing
	Fragment     int  // bytes; 0 means off
	TLS          *TLS // nil in mode static

	Ping        time.Duration
	PingRestart time.Duration
	Renegotiate time.Duration // 0 means never
	ExitNotify  bool

	Prefixes []netip.Prefix // behind the router
	Priority uint16         // of their routes

	Keys Keys
}

// Mode is how the two ends of an attachment know each other.
type Mode string

// The modes.
const (
	ModeStatic    Mode = "static"     // one shared key
	ModeTLSServer Mode = "tls-server" // the router is tls-client
	ModeTLSClient Mode = "tls-client" // the router is tls-server
)

// Tunnel is the point-to-point link between gateway and router. At least one
// of the two pairs of addresses is valid.
type Tunnel struct {
	Local, Peer   netip.Addr // IPv4
	Local6, Peer6 netip.Addr // IPv6
	MTU           int
}

// TLS is what the TLS modes need besides.
type TLS struct {
	Cert, Key        string // paths
	CA               string // path; empty with fingerprints alone
	PeerFingerprints []openvpn.Fingerprint
	Subject          string // CN=NAME alone is compared with the common name, anything else with the whole subject
	Wrap             openvpn.Wrap
	WrapKey          string // path
	WrapDirection    openvpn.Direction
	MinVersion       uint16 // as in crypto/tls
}

// Defaults of an attachment.
const (
	defaultTunnelMTU   = 1500
	defaultPing        = 10 * time.Second
	defaultPingRestart = time.Minute
	defaultRenegotiate = time.Hour
	devicePrefix       = "ov-"
)

// Bounds of an attachment.
const (
	maxAttachments  = 32
	minTunnelMTU    = 576   // RFC 791, section 3.1
	maxTunnelMTU    = 65000 // of package openvpn
	minFragmentSize = 200   // of package openvpn
	maxCiphers      = 16
	maxFingerprints = 16
	maxSubject      = 256
	maxHost         = 253 // RFC 1035, section 2.3.4, without the length bytes at both ends
)

// attachment is an entry while it is read: nodes are kept, so that faults that
// show only later have their line.
type attachment struct {
	OpenVPN
	entry *yaml.Node
	path  string                // such as openvpn[1]
	nodes map[string]*yaml.Node // values by key
}

// at returns the node of a key, or of the whole entry if it is not there.
func (a *attachment) at(key string) *yaml.Node {
	if n := a.nodes[key]; n != nil {
		return n
	}
	return a.entry
}

func (a *attachment) has(key string) bool { return a.nodes[key] != nil }

// openvpn reads the list.
func (p *parser) openvpn(n *yaml.Node, name string) []*attachment {
	var list []*attachment
	p.list(n, name, "a list of attachments, each with \"name:\" and \"mode:\"", func(n *yaml.Node, name string) {
		if n.Kind != yaml.MappingNode {
			p.fault(n, name, describe(n), "the keys of an attachment, such as \"name: r30a\"")
			return
		}
		a := &attachment{entry: n, path: name, nodes: make(map[string]*yaml.Node)}
		a.Tunnel.MTU, a.Auth = defaultTunnelMTU, openvpn.DigestSHA1
		a.Ping, a.PingRestart, a.Renegotiate = defaultPing, defaultPingRestart, defaultRenegotiate
		p.attachment(a)
		p.checkAttachment(a)
		list = append(list, a)
	})
	p.atMost(n, name, maxAttachments)
	p.checkTogether(list)
	return list
}

// attachment reads the keys of one entry, each for itself.
func (p *parser) attachment(a *attachment) {
	keep := func(key string, read func(n *yaml.Node, f string)) field {
		return field{key, func(n *yaml.Node, f string) {
			a.nodes[key] = n
			read(n, f)
		}}
	}
	p.mapping(a.entry, a.path+".", []field{
		keep("name", func(n *yaml.Node, f string) { p.interfaceName(n, f, &a.Name) }),
		keep("mode", func(n *yaml.Node, f string) {
			if v, ok := p.word(n, f, string(ModeStatic), string(ModeTLSServer), string(ModeTLSClient)); ok {
				a.Mode = Mode(v)
			}
		}),
		keep("transport", func(n *yaml.Node, f string) {
			choose(p, n, f, &a.Transport, openvpn.UDP, openvpn.TCPListen, openvpn.TCPConnect)
		}),
		keep("listen", func(n *yaml.Node, f string) { p.listen(n, f, &a.Listen) }),
		keep("remote", func(n *yaml.Node, f string) { p.remote(n, f, &a.Remote) }),
		keep("float", func(n *yaml.Node, f string) { p.boolean(n, f, &a.Float) }),
		keep("device", func(n *yaml.Node, f string) { p.interfaceName(n, f, &a.Device) }),
		keep("tunnel", func(n *yaml.Node, f string) { p.tunnel(a, n, f) }),
		keep("key", func(n *yaml.Node, f string) { a.Key = p.keyPath(n, f) }),
		keep("keyDirection", func(n *yaml.Node, f string) { p.direction(n, f, &a.KeyDirection) }),
		keep("cipher", func(n *yaml.Node, f string) { a.Cipher, _ = p.cipher(n, f) }),
		keep("dataCiphers", func(n *yaml.Node, f string) { a.DataCiphers = p.ciphers(n, f) }),
		keep("auth", func(n *yaml.Node, f string) { p.digest(n, f, &a.Auth) }),
		keep("compression", func(n *yaml.Node, f string) {
			choose(p, n, f, &a.Compression, openvpn.FramingNone, openvpn.FramingLZO, openvpn.FramingStub, openvpn.FramingStubV2)
		}),
		keep("fragment", func(n *yaml.Node, f string) { p.fragment(n, f, &a.Fragment) }),
		keep("tls", func(n *yaml.Node, f string) { p.tls(a, n, f) }),
		keep("ping", func(n *yaml.Node, f string) { p.duration(n, f, time.Second, time.Hour, &a.Ping) }),
		keep("pingRestart", func(n *yaml.Node, f string) { p.duration(n, f, 2*time.Second, 24*time.Hour, &a.PingRestart) }),
		keep("renegotiate", func(n *yaml.Node, f string) { p.duration(n, f, 0, 7*24*time.Hour, &a.Renegotiate) }),
		keep("exitNotify", func(n *yaml.Node, f string) { p.boolean(n, f, &a.ExitNotify) }),
		keep("prefixes", func(n *yaml.Node, f string) { p.attachedPrefixes(a, n, f) }),
		keep("priority", func(n *yaml.Node, f string) {
			if v, ok := p.number(n, f, 0, math.MaxUint16); ok {
				a.Priority = uint16(v)
			}
		}),
	})
}

// checkAttachment notes what is missing in an entry and what does not fit
// together in it.
func (p *parser) checkAttachment(a *attachment) {
	need := func(key, want string) {
		if !a.has(key) {
			p.fault(a.entry, a.path, "has no "+key, want)
		}
	}
	need("name", "\"name:\" with 1 to 15 letters, digits, \".\", \"_\" or \"-\", such as r30a")
	need("mode", "\"mode:\" with static, tls-server or tls-client")
	need("tunnel", "\"tunnel:\" with the addresses of both ends, such as local: 10.90.0.1 and peer: 10.90.0.2")
	need("prefixes", "\"prefixes:\" with what is behind the router, such as 192.168.30.0/24")
	if a.Transport == openvpn.TCPConnect {
		need("remote", "\"remote:\" with the address of the router, such as 203.0.113.7:1195")
	} else {
		need("listen", "\"listen:\" with ADDRESS:PORT or :PORT, such as :1195")
	}
	if a.Device == "" && a.Name != "" {
		device := devicePrefix + a.Name
		a.Device = device[:min(len(device), maxName)]
	}
	if a.Fragment > 0 && a.Transport != openvpn.UDP {
		p.fault(a.at("fragment"), a.path+".fragment", "does not work over tcp", "0, or transport: udp")
	}
	if a.Ping > a.PingRestart {
		p.fault(a.at("ping"), a.path+".ping", fmt.Sprintf("%v is longer than pingRestart, %v", a.Ping, a.PingRestart), "a few pings within pingRestart")
	}
	switch a.Mode {
	case ModeStatic:
		p.checkStatic(a, need)
	case ModeTLSServer, ModeTLSClient:
		p.checkTLS(a, need)
	}
}

func (p *parser) checkStatic(a *attachment, need func(key, want string)) {
	need("key", "\"key:\" with the path of the static key file")
	need("cipher", "\"cipher:\" as the router has it, such as AES-256-CBC")
	for _, key := range []string{"dataCiphers", "tls", "renegotiate"} {
		if a.has(key) {
			p.fault(a.at(key), a.path+"."+key, "is not for mode static", "mode: tls-server or tls-client, or a file without it")
		}
	}
	if strings.HasSuffix(string(a.Cipher), "-GCM") || a.Cipher == openvpn.CipherChaCha20Poly1305 {
		p.fault(a.at("cipher"), a.path+".cipher", string(a.Cipher)+" is not for mode static", "a CBC cipher, such as AES-256-CBC")
	}
}

func (p *parser) checkTLS(a *attachment, need func(key, want string)) {
	need("tls", "\"tls:\" with cert, key, and ca or peerFingerprints")
	for _, key := range []string{"key", "keyDirection"} {
		if a.has(key) {
			p.fault(a.at(key), a.path+"."+key, "is for mode static", "keys of the tls modes below \"tls:\"")
		}
	}
}

// checkTogether notes what two entries cannot both have.
func (p *parser) checkTogether(list []*attachment) {
	for i, a := range list {
		for _, b := range list[:i] {
			p.checkPair(a, b)
		}
	}
}

func (p *parser) checkPair(a, b *attachment) {
	twice := func(key, value string) {
		p.fault(a.at(key), a.path+"."+key, fmt.Sprintf("%s stands in line %d already", value, b.at(key).Line), "each "+key+" once")
	}
	switch {
	case a.Name != "" && a.Name == b.Name:
		twice("name", a.Name)
	case a.Device != "" && a.Device == b.Device:
		p.fault(a.at("device"), a.path+".device", fmt.Sprintf("%s is the interface of %s too", a.Device, b.path), "\"device:\" with another name")
	}
	if a.has("listen") && b.has("listen") && clash(a, b) {
		twice("listen", a.nodes["listen"].Value)
	}
	for _, pair := range [][2]netip.Addr{{a.Tunnel.Peer, b.Tunnel.Peer}, {a.Tunnel.Peer6, b.Tunnel.Peer6}} {
		if pair[0].IsValid() && pair[0] == pair[1] {
			p.fault(a.at("tunnel"), a.path+".tunnel", fmt.Sprintf("%v is the peer of %s too", pair[0], b.path), "addresses of its own for each tunnel")
		}
	}
	for _, x := range a.Prefixes {
		for _, y := range b.Prefixes {
			if x.Overlaps(y) {
				p.fault(a.at("prefixes"), a.path+".prefixes", fmt.Sprintf("%v overlaps %v in line %d", x, y, b.at("prefixes").Line), "prefixes that do not overlap")
			}
		}
	}
}

// clash reports whether two entries ask for the same socket.
func clash(a, b *attachment) bool {
	x, y := a.Listen, b.Listen
	if (a.Transport == openvpn.UDP) != (b.Transport == openvpn.UDP) || x.Port() == 0 || x.Port() != y.Port() {
		return false
	}
	everywhere := func(addr netip.Addr) bool { return !addr.IsValid() || addr.IsUnspecified() }
	return x.Addr() == y.Addr() || everywhere(x.Addr()) || everywhere(y.Addr())
}

// checkAnnounced notes prefixes that stand in announce and behind a router.
func (p *parser) checkAnnounced(c *Config, announce *yaml.Node, list []*attachment) {
	routes := len(c.Announce)
	for _, a := range list {
		routes += len(a.Prefixes)
		for _, prefix := range a.Prefixes {
			for _, r := range c.Announce {
				if r.Prefix.Overlaps(prefix) {
					p.fault(a.at("prefixes"), a.path+".prefixes", fmt.Sprintf("%v overlaps %v of announce in line %d", prefix, r.Prefix, announce.Line),
						"it here alone, and announced only while the router is there")
				}
			}
		}
	}
	if len(list) > 0 && routes > maxRoutes {
		p.fault(list[0].entry, "openvpn", fmt.Sprintf("%d prefixes together with announce", routes), fmt.Sprintf("at most %d", maxRoutes))
	}
}

// checkDevices notes what an attachment needs of the gateway.
func (p *parser) checkDevices(c *Config, list []*attachment) {
	for _, a := range list {
		if a.Device == c.Interface {
			p.fault(a.at("device"), a.path+".device", a.Device+" is the interface of the mesh", "another name")
		}
	}
	if len(list) > 0 && c.Device != "tun" {
		p.fault(list[0].entry, "openvpn", fmt.Sprintf("does not work with device: %s", c.Device), "device: tun, or no attachments")
	}
}

// choose reads one of the values that have their text from String.
func choose[T fmt.Stringer](p *parser, n *yaml.Node, name string, out *T, values ...T) {
	words := make([]string, len(values))
	for i, v := range values {
		words[i] = v.String()
	}
	if word, ok := p.word(n, name, words...); ok {
		*out = values[slices.Index(words, word)]
	}
}

func (p *parser) boolean(n *yaml.Node, name string, out *bool) {
	if v, ok := p.word(n, name, "true", "false"); ok {
		*out = v == "true"
	}
}

func (p *parser) direction(n *yaml.Node, name string, out *openvpn.Direction) {
	choose(p, n, name, out, openvpn.DirectionNone, openvpn.Direction0, openvpn.Direction1)
}

func (p *parser) listen(n *yaml.Node, name string, out *netip.AddrPort) {
	const want = "ADDRESS:PORT or :PORT, such as 203.0.113.7:1195, [2001:db8::7]:1195 or :1195"
	text, ok := p.scalar(n, name, want)
	if !ok {
		return
	}
	if port, every := strings.CutPrefix(text, ":"); every {
		v, err := strconv.ParseUint(port, 10, 16)
		if err != nil || v == 0 {
			p.fault(n, name, strconv.Quote(short(text)), want)
			return
		}
		*out = netip.AddrPortFrom(netip.Addr{}, uint16(v))
		return
	}
	addr, err := netip.ParseAddrPort(text)
	if err != nil || addr.Port() == 0 || addr.Addr().IsMulticast() {
		p.fault(n, name, strconv.Quote(short(text)), want)
		return
	}
	*out = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
}

// remote checks the form of HOST, HOST:PORT or an address with or without port.
func (p *parser) remote(n *yaml.Node, name string, out *string) {
	const want = "HOST:PORT, such as 203.0.113.7:1195 or router30.example.org:1195"
	text, ok := p.scalar(n, name, want)
	if !ok {
		return
	}
	host := text
	if _, err := netip.ParseAddr(strings.Trim(text, "[]")); err != nil && strings.Contains(text, ":") {
		var port string
		host, port, err = net.SplitHostPort(text)
		if v, portErr := strconv.ParseUint(port, 10, 16); err != nil || portErr != nil || v == 0 {
			p.fault(n, name, strconv.Quote(short(text)), want)
			return
		}
	}
	foreign := strings.ContainsFunc(host, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune(`/\@,;"'`, r) })
	addr, err := netip.ParseAddr(host)
	if host == "" || len(host) > maxHost || foreign || err == nil && (addr.IsUnspecified() || addr.IsMulticast()) {
		p.fault(n, name, strconv.Quote(short(text)), want)
		return
	}
	*out = text
}

func (p *parser) tunnel(a *attachment, n *yaml.Node, name string) {
	if n.Kind != yaml.MappingNode {
		p.fault(n, name, describe(n), "\"local:\" and \"peer:\" below it")
		return
	}
	before := len(p.faults)
	t := &a.Tunnel
	var mtu *yaml.Node
	p.mapping(n, name+".", []field{
		{"local", func(n *yaml.Node, f string) { p.hostAddr(n, f, false, &t.Local) }},
		{"peer", func(n *yaml.Node, f string) { p.hostAddr(n, f, false, &t.Peer) }},
		{"local6", func(n *yaml.Node, f string) { p.hostAddr(n, f, true, &t.Local6) }},
		{"peer6", func(n *yaml.Node, f string) { p.hostAddr(n, f, true, &t.Peer6) }},
		{"mtu", func(n *yaml.Node, f string) {
			if v, ok := p.number(n, f, minTunnelMTU, maxTunnelMTU); ok {
				t.MTU, mtu = v, n
			}
		}},
	})
	if len(p.faults) > before {
		return
	}
	if !t.Local.IsValid() && !t.Peer.IsValid() && !t.Local6.IsValid() && !t.Peer6.IsValid() {
		p.fault(n, name, "has no addresses", "those of both ends, such as local: 10.90.0.1 and peer: 10.90.0.2")
	}
	p.addrPair(n, name, "local", "peer", t.Local, t.Peer)
	p.addrPair(n, name, "local6", "peer6", t.Local6, t.Peer6)
	if t.Local6.IsValid() && t.MTU < minMTU {
		p.fault(mtu, name+".mtu", strconv.Itoa(t.MTU), fmt.Sprintf("at least %d with IPv6 addresses", minMTU))
	}
}

func (p *parser) addrPair(n *yaml.Node, name, localKey, peerKey string, local, peer netip.Addr) {
	switch {
	case local.IsValid() && !peer.IsValid():
		p.fault(n, name, "has "+localKey+" without "+peerKey, "both or none")
	case peer.IsValid() && !local.IsValid():
		p.fault(n, name, "has "+peerKey+" without "+localKey, "both or none")
	case local.IsValid() && local == peer:
		p.fault(n, name+"."+peerKey, peer.String()+" is "+localKey+" too", "an address of its own for each end")
	}
}

func (p *parser) hostAddr(n *yaml.Node, name string, six bool, out *netip.Addr) {
	want := "an IPv4 address, such as 10.90.0.1"
	if six {
		want = "an IPv6 address, such as fd90::1"
	}
	text, ok := p.scalar(n, name, want)
	if !ok {
		return
	}
	addr, err := netip.ParseAddr(text)
	usable := err == nil && addr.Zone() == "" && addr.Is4() != six && !addr.Is4In6() &&
		!addr.IsUnspecified() && !addr.IsMulticast() && !addr.IsLoopback() && !addr.IsLinkLocalUnicast()
	if !usable {
		p.fault(n, name, strconv.Quote(short(text)), want)
		return
	}
	*out = addr
}

// keyPath reads the path of a file; one that is not absolute begins in the
// directory of the configuration.
func (p *parser) keyPath(n *yaml.Node, name string) string {
	const want = "the path of a file"
	path, ok := p.scalar(n, name, want)
	if !ok {
		return ""
	}
	if strings.ContainsRune(path, 0) {
		p.fault(n, name, strconv.Quote(short(path)), want)
		return ""
	}
	if !filepath.IsAbs(path) {
		path = filepath.Join(filepath.Dir(p.file), path)
	}
	return filepath.Clean(path)
}

func (p *parser) cipher(n *yaml.Node, name string) (openvpn.Cipher, bool) {
	const want = "a cipher, such as AES-256-GCM or AES-256-CBC"
	text, ok := p.scalar(n, name, want)
	if !ok {
		return "", false
	}
	c, err := openvpn.ParseCipher(text)
	if err != nil {
		p.fault(n, name, strconv.Quote(short(text)), want)
		return "", false
	}
	return c, true
}

func (p *parser) ciphers(n *yaml.Node, name string) []openvpn.Cipher {
	var out []openvpn.Cipher
	p.list(n, name, "a list of ciphers, best first", func(n *yaml.Node, name string) {
		c, ok := p.cipher(n, name)
		switch {
		case !ok:
		case slices.Contains(out, c):
			p.fault(n, name, string(c)+" stands in the list already", "each cipher once")
		default:
			out = append(out, c)
		}
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		p.fault(n, name, "an empty list", "ciphers; without this line AES-256-GCM, AES-128-GCM and CHACHA20-POLY1305")
	}
	p.atMost(n, name, maxCiphers)
	return out
}

func (p *parser) digest(n *yaml.Node, name string, out *openvpn.Digest) {
	const want = "MD5, SHA1, SHA256, SHA384, SHA512 or none"
	text, ok := p.scalar(n, name, want)
	if !ok {
		return
	}
	d, err := openvpn.ParseDigest(text)
	if err != nil {
		p.fault(n, name, strconv.Quote(short(text)), want)
		return
	}
	*out = d
}

func (p *parser) fragment(n *yaml.Node, name string, out *int) {
	want := fmt.Sprintf("0 for none, or a number from %d to %d", minFragmentSize, maxTunnelMTU)
	text, ok := p.scalar(n, name, want)
	if !ok {
		return
	}
	v, err := strconv.Atoi(text)
	if err != nil || v != 0 && (v < minFragmentSize || v > maxTunnelMTU) {
		p.fault(n, name, short(text), want)
		return
	}
	*out = v
}

// duration reads whole seconds, such as 10s or 1h30m.
func (p *parser) duration(n *yaml.Node, name string, low, high time.Duration, out *time.Duration) {
	want := fmt.Sprintf("a duration of whole seconds from %v to %v, such as 10s", low, high)
	text, ok := p.scalar(n, name, want)
	if !ok {
		return
	}
	v, err := time.ParseDuration(text)
	if err != nil || v < low || v > high || v%time.Second != 0 {
		p.fault(n, name, strconv.Quote(short(text)), want)
		return
	}
	*out = v
}

func (p *parser) attachedPrefixes(a *attachment, n *yaml.Node, name string) {
	const want = "what is behind the router, such as 192.168.30.0/24"
	var seen []lined[netip.Prefix]
	p.list(n, name, "a list of prefixes: "+want, func(n *yaml.Node, name string) {
		prefix, ok := p.prefix(n, name)
		if !ok || !p.announceable(n, name, prefix) {
			return
		}
		for _, other := range seen {
			if other.value.Overlaps(prefix) {
				p.fault(n, name, fmt.Sprintf("%v overlaps %v in line %d", prefix, other.value, other.line), "prefixes that do not overlap")
				return
			}
		}
		seen = append(seen, lined[netip.Prefix]{prefix, n.Line})
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		p.fault(n, name, "an empty list", want)
	}
	p.atMost(n, name, maxRoutes)
	a.Prefixes = values(seen)
}

func (p *parser) tls(a *attachment, n *yaml.Node, name string) {
	if n.Kind != yaml.MappingNode {
		p.fault(n, name, describe(n), "\"cert:\", \"key:\" and \"ca:\" or \"peerFingerprints:\" below it")
		return
	}
	t := &TLS{MinVersion: tls.VersionTLS12}
	a.TLS = t
	nodes := make(map[string]*yaml.Node)
	keep := func(key string, read func(n *yaml.Node, f string)) field {
		return field{key, func(n *yaml.Node, f string) {
			nodes[key], a.nodes["tls."+key] = n, n
			read(n, f)
		}}
	}
	p.mapping(n, name+".", []field{
		keep("cert", func(n *yaml.Node, f string) { t.Cert = p.keyPath(n, f) }),
		keep("key", func(n *yaml.Node, f string) { t.Key = p.keyPath(n, f) }),
		keep("ca", func(n *yaml.Node, f string) { t.CA = p.keyPath(n, f) }),
		keep("peerFingerprints", func(n *yaml.Node, f string) { t.PeerFingerprints = p.fingerprints(n, f) }),
		keep("subject", func(n *yaml.Node, f string) { p.subject(n, f, &t.Subject) }),
		keep("wrap", func(n *yaml.Node, f string) {
			choose(p, n, f, &t.Wrap, openvpn.WrapNone, openvpn.WrapAuth, openvpn.WrapCrypt)
		}),
		keep("wrapKey", func(n *yaml.Node, f string) { t.WrapKey = p.keyPath(n, f) }),
		keep("wrapDirection", func(n *yaml.Node, f string) { p.direction(n, f, &t.WrapDirection) }),
		keep("minVersion", func(n *yaml.Node, f string) {
			if v, ok := p.word(n, f, "1.2", "1.3"); ok && v == "1.3" {
				t.MinVersion = tls.VersionTLS13
			}
		}),
	})
	need := func(key, want string) {
		if nodes[key] == nil {
			p.fault(n, name, "has no "+key, want)
		}
	}
	need("cert", "\"cert:\" with the path of this gateway's certificate for the router")
	need("key", "\"key:\" with the path of its private key")
	if nodes["ca"] == nil {
		need("peerFingerprints", "\"ca:\" or \"peerFingerprints:\" to know the router by")
	}
	switch {
	case t.Wrap != openvpn.WrapNone:
		need("wrapKey", fmt.Sprintf("\"wrapKey:\" with the path of the %v key", t.Wrap))
	case nodes["wrapKey"] != nil && nodes["wrap"] == nil:
		p.fault(nodes["wrapKey"], name+".wrapKey", "is not used without wrap", "\"wrap:\" with tls-auth or tls-crypt")
	}
	if t.Wrap != openvpn.WrapAuth && t.WrapDirection != openvpn.DirectionNone {
		p.fault(nodes["wrapDirection"], name+".wrapDirection", "is for tls-auth", "none, or wrap: tls-auth")
	}
}

func (p *parser) fingerprints(n *yaml.Node, name string) []openvpn.Fingerprint {
	const want = "the SHA-256 of a certificate, 32 bytes in hexadecimal"
	var out []openvpn.Fingerprint
	p.list(n, name, "a list of fingerprints", func(n *yaml.Node, name string) {
		text, ok := p.scalar(n, name, want)
		if !ok {
			return
		}
		f, err := openvpn.ParseFingerprint(text)
		if err != nil {
			p.fault(n, name, strconv.Quote(short(text)), want)
			return
		}
		out = append(out, f)
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		p.fault(n, name, "an empty list", want)
	}
	p.atMost(n, name, maxFingerprints)
	return out
}

func (p *parser) subject(n *yaml.Node, name string, out *string) {
	const want = "CN=NAME, or the whole subject, such as CN=router30,O=Example"
	text, ok := p.scalar(n, name, want)
	if !ok {
		return
	}
	if len(text) > maxSubject || !strings.Contains(text, "=") {
		p.fault(n, name, strconv.Quote(short(text)), want)
		return
	}
	*out = text
}
