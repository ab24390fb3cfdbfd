package vyos

import (
	"crypto/tls"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// Router is the router's side of one attachment, or of two attachments on two
// gateways.
type Router struct {
	Version  Version
	Tunnels  []Tunnel       // the preferred one first
	Prefixes []netip.Prefix // of the mesh, without those behind the router
	// BFD asks for routes that a BFD session watches (1.4 and 1.5) in place of
	// the check script. The gateways need a BFD daemon for it; meshd has none.
	BFD bool
}

// Tunnel is an attachment with what the router must know besides.
type Tunnel struct {
	conf.OpenVPN
	// Gateway is the address or name under which the router reaches the gateway.
	// With TCPConnect it may be empty.
	Gateway string
	// Interface is vtunN.
	Interface string
	// Fingerprint is that of the gateway's certificate, CA the authority that
	// both certificates come from, in PEM form. Empty means that they are not at
	// hand: the commands then name what to fill in. TLS modes only.
	Fingerprint string
	CA          []byte
	// Secrets are printed in full. Without them the commands name what to fill in.
	Secrets *Secrets
}

// Secrets are keys that router and gateway share.
type Secrets struct {
	Static openvpn.StaticKey // of mode static
	Wrap   openvpn.StaticKey // of tls-crypt
}

// Format writes [redacted] for every verb.
func (s Secrets) Format(f fmt.State, _ rune) { fmt.Fprint(f, "[redacted]") }

// Bounds of VyOS, from its interface definitions.
const (
	maxInterval     = 600 * time.Second // keep-alive interval
	maxFailureCount = 1000              // keep-alive failure-count
)

// defaultPort is that of OpenVPN, which VyOS does not set either.
const defaultPort = 1194

// validate finds everything that the router cannot do or that cannot work.
func (r *Router) validate() Refusals {
	var all Refusals
	if r.BFD && r.Version < V14 {
		all = append(all, &Refusal{"", fmt.Sprintf("vyos %v has no static routes with bfd", r.Version), "leave --bfd out: the check script does the same everywhere"})
	}
	for i := range r.Tunnels {
		c := check{r: r, t: &r.Tunnels[i]}
		c.tunnel()
		all = append(all, c.found...)
	}
	return append(all, r.choice()...)
}

// choice finds what keeps a router from having all its tunnels.
func (r *Router) choice() Refusals {
	var all Refusals
	for i := range r.Tunnels {
		t := &r.Tunnels[i]
		if !isInterface(t.Interface) {
			all = append(all, &Refusal{t.Name, fmt.Sprintf("%q is no name of an openvpn interface on vyos", t.Interface), "--interface vtun1 or another number"})
		}
		for j := range i {
			all = append(all, r.together(j, i)...)
		}
		for _, own := range t.Prefixes {
			for _, p := range r.Prefixes {
				if own.Bits() <= p.Bits() && own.Contains(p.Addr()) {
					all = append(all, &Refusal{t.Name, fmt.Sprintf("%v is behind the router itself (%v), and is to be sent to the mesh", p, own), "take it out of --prefix"})
				}
			}
		}
	}
	return all
}

// check collects what is wrong with one tunnel.
type check struct {
	r     *Router
	t     *Tunnel
	found Refusals
}

func (c *check) refuse(cure, format string, args ...any) {
	c.found = append(c.found, &Refusal{c.t.Name, fmt.Sprintf(format, args...), cure})
}

func (c *check) tunnel() {
	t, v := c.t, c.r.Version
	if _, problem, cure := digestWord(v, t.Auth); problem != "" {
		c.refuse(cure, "%s", problem)
	}
	if t.Tunnel.Local6.IsValid() && v == V12 {
		c.refuse("take local6 and peer6 out, or bring the router to vyos 1.3", "vyos 1.2 has no ipv6 addresses in a tunnel")
	}
	if v == V12 && (t.Compression == openvpn.FramingStub || t.Compression == openvpn.FramingStubV2) {
		c.refuse("\"compression: none\", or \"compression: lzo\"", "openvpn of vyos 1.2 may be older than compression %v", t.Compression)
	}
	c.gateway()
	c.keepalive()
	if t.Mode == conf.ModeStatic {
		c.static()
	} else {
		c.tls()
	}
}

// isInterface reports whether name is vtun and a number, at most as long as
// Linux has names of interfaces (IFNAMSIZ).
func isInterface(name string) bool {
	number, ok := strings.CutPrefix(name, "vtun")
	return ok && number != "" && len(name) <= 15 && strings.Trim(number, "0123456789") == ""
}

// gateway checks the address that the router sends to.
func (c *check) gateway() {
	t := c.t
	if t.Gateway == "" {
		if t.Transport != openvpn.TCPConnect {
			c.refuse("--gateway ADDRESS, as the router reaches this gateway", "the configuration does not say under which address the router reaches the gateway (listen: %s)", listenText(t.Listen))
		}
		return
	}
	addr, err := netip.ParseAddr(t.Gateway)
	if err != nil {
		return // a name
	}
	if addr.Is6() && c.r.Version == V12 {
		c.refuse("--gateway with the ipv4 address", "vyos 1.2 has no tunnel over ipv6")
	}
	if addr == t.Tunnel.Local || addr == t.Tunnel.Local6 {
		c.refuse("--gateway with the address outside of the tunnel", "%v is the address inside the tunnel", addr)
	}
	for _, p := range c.r.Prefixes {
		if p.Contains(addr) {
			c.refuse("another --gateway address, or take that prefix out (--prefix)", "the gateway's address %v lies in %v, which the router would send into the tunnel: a tunnel in itself", addr, p)
		}
	}
}

func (c *check) keepalive() {
	t := c.t
	if t.Ping > maxInterval {
		c.refuse("\"ping: 10s\"", "ping %v is longer than vyos can have it (%v)", t.Ping, maxInterval)
	}
	if t.PingRestart < 2*t.Ping {
		c.refuse(fmt.Sprintf("\"pingRestart: %v\" or more", max(time.Minute, 3*t.Ping)), "pingRestart %v leaves no room for a lost ping (ping: %v): the tunnel would restart again and again", t.PingRestart, t.Ping)
	}
	if t.failureCount(c.r.Version) > maxFailureCount {
		c.refuse("a shorter pingRestart", "pingRestart %v is longer than vyos %v can have it", t.PingRestart, c.r.Version)
	}
}

// failureCount is "keep-alive failure-count": 1.2 multiplies it with the
// interval, all others take it as seconds.
func (t *Tunnel) failureCount(v Version) int {
	if v == V12 {
		return int(math.Ceil(t.PingRestart.Seconds() / t.Ping.Seconds()))
	}
	return int(t.PingRestart.Seconds())
}

func (c *check) static() {
	if c.t.KeyDirection != openvpn.DirectionNone {
		c.refuse("\"keyDirection: none\"", "vyos uses static keys without direction, and this end has direction %v: neither would understand the other", c.t.KeyDirection)
	}
	if c.t.Cipher == openvpn.CipherBlowfishCBC && c.r.Version == V14 {
		return // what 1.4 does if the cipher is left out
	}
	if _, problem, cure := cipherWord(c.r.Version, c.t.Cipher); problem != "" {
		c.refuse(cure, "%s", problem)
	}
}

func (c *check) tls() {
	t, v := c.t, c.r.Version
	switch {
	case t.Mode == conf.ModeTLSServer && t.Transport == openvpn.TCPConnect:
		c.refuse("\"transport: tcp-listen\", or \"mode: tls-client\"", "vyos takes \"tls role active\" over tcp only if the router connects")
	case t.Mode == conf.ModeTLSClient && t.Transport == openvpn.TCPListen:
		c.refuse("\"transport: tcp-connect\", or \"mode: tls-server\"", "vyos takes \"tls role passive\" over tcp only if the router listens")
	}
	switch {
	case t.TLS.Wrap == openvpn.WrapAuth:
		cure := "\"wrap: tls-crypt\""
		if v == V12 {
			cure = "\"wrap: none\""
		}
		c.refuse(cure, "vyos takes a tls-auth key for a site-to-site tunnel and then does not use it; this end would wait for ever")
	case t.TLS.Wrap == openvpn.WrapCrypt && v == V12:
		c.refuse("\"wrap: none\"", "vyos 1.2 has no tls-crypt")
	}
	if t.TLS.MinVersion >= tls.VersionTLS13 && v == V12 {
		c.refuse("\"minVersion: 1.2\"", "vyos 1.2 has no tls 1.3")
	}
	c.tlsCipher()
}

func (c *check) tlsCipher() {
	t, v := c.t, c.r.Version
	if t.Cipher != "" {
		if _, problem, cure := cipherWord(v, t.Cipher); problem != "" {
			c.refuse(cure, "%s", problem)
		}
		return
	}
	if v <= V13 {
		c.refuse("\"cipher: AES-256-CBC\", which is for peers that do not negotiate", "openvpn of vyos %v does not negotiate a cipher between two ends, and this end has no \"cipher:\"", v)
		return
	}
	if t.DataCiphers != nil && !slices.ContainsFunc(t.DataCiphers, func(d openvpn.Cipher) bool { return slices.Contains(negotiated, d) }) {
		c.refuse("AES-256-GCM in dataCiphers, or \"cipher:\" as well", "the router offers %s, and dataCiphers has none of them", joinCiphers(negotiated))
	}
}

// together finds what two tunnels on one router cannot both have.
func (r *Router) together(i, j int) Refusals {
	var all Refusals
	a, b := &r.Tunnels[i], &r.Tunnels[j]
	add := func(cure, format string, args ...any) {
		all = append(all, &Refusal{b.Name, fmt.Sprintf(format, args...), cure})
	}
	if a.Interface == b.Interface {
		add("--interface vtunN for each", "both tunnels are %s on the router", a.Interface)
	}
	if p := r.localPort(i); p != 0 && p == r.localPort(j) && (a.Transport == openvpn.UDP) == (b.Transport == openvpn.UDP) {
		add("another port in \"remote:\" of one of them", "both tunnels use port %d of the router; each needs its own", p)
	}
	if a.Tunnel.Peer.IsValid() && a.Tunnel.Peer == b.Tunnel.Peer || a.Tunnel.Peer6.IsValid() && a.Tunnel.Peer6 == b.Tunnel.Peer6 {
		add("other addresses in \"tunnel:\" of one of them", "both tunnels have the same address on the router")
	}
	if a.Tunnel.Local.IsValid() && a.Tunnel.Local == b.Tunnel.Local || a.Tunnel.Local6.IsValid() && a.Tunnel.Local6 == b.Tunnel.Local6 {
		add("other addresses in \"tunnel:\" of one of them", "both tunnels have the same far address, so that no check can tell them apart")
	}
	if a.Secrets != nil && b.Secrets != nil && !a.Secrets.Static.IsZero() && a.Secrets.Static == b.Secrets.Static {
		add("openvpn --genkey secret FILE makes another one", "both tunnels have the same static key; each needs its own")
	}
	return all
}

// localPort is the port of the router in a tunnel, or 0 if it takes any. A
// gateway that learns its peer takes every port: then it is the gateway's own,
// or the next one that no tunnel before has.
func (r *Router) localPort(i int) uint16 {
	t := &r.Tunnels[i]
	switch {
	case t.Transport == openvpn.TCPListen:
		return 0 // vyos refuses a local port with tcp-active
	case t.Remote != "":
		_, port := splitHost(t.Remote)
		return port
	}
	port := t.Listen.Port()
	for j := range i {
		if r.localPort(j) == port {
			port++
		}
	}
	return port
}

// splitHost cuts what conf has checked already: HOST, HOST:PORT, ADDRESS.
func splitHost(remote string) (host string, port uint16) {
	if addr, err := netip.ParseAddr(strings.Trim(remote, "[]")); err == nil {
		return addr.String(), defaultPort
	}
	host, text, found := cutLast(remote, ":")
	if !found {
		return remote, defaultPort
	}
	n, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return remote, defaultPort
	}
	return strings.Trim(host, "[]"), uint16(n)
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return s, "", false
	}
	return s[:i], s[i+len(sep):], true
}

func listenText(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return ":" + strconv.Itoa(int(a.Port()))
	}
	return a.String()
}

func joinCiphers(list []openvpn.Cipher) string {
	words := make([]string, len(list))
	for i, c := range list {
		words[i] = string(c)
	}
	return strings.Join(words, ", ")
}

// Warnings is what works but should not stay, or may surprise.
func (r *Router) Warnings() []string {
	var all []string
	for _, t := range r.Tunnels {
		add := func(format string, args ...any) { all = append(all, t.Name+": "+fmt.Sprintf(format, args...)) }
		if t.Mode == conf.ModeStatic {
			add("static keys have no forward secrecy and end with openvpn 2.8; docs/openvpn.md says how to move to TLS")
		}
		if t.Cipher == openvpn.CipherBlowfishCBC || t.Cipher == openvpn.CipherTripleDESCBC {
			add("cipher %s is breakable after some gigabytes; AES-256-CBC costs nothing on both ends", t.Cipher)
		}
		if t.Cipher == openvpn.CipherNone {
			add("cipher none sends everything in clear")
		}
		if t.Auth == openvpn.DigestMD5 {
			add("digest MD5 is obsolete")
		}
		if r.Version >= V14 && t.Mode != conf.ModeStatic && t.Cipher != "" && !isGCM(t.Cipher) {
			add("the router negotiates, so that the data goes with one of %s and not with %s", joinCiphers(negotiated), t.Cipher)
		}
	}
	if len(r.Tunnels) == 2 {
		all = append(all, pairWarnings(&r.Tunnels[0], &r.Tunnels[1])...)
	}
	return all
}

func pairWarnings(a, b *Tunnel) []string {
	var all []string
	switch {
	case a.Priority == b.Priority:
		all = append(all, fmt.Sprintf("%s and %s have the same priority %d, so that the mesh may use the one while the router uses the other; want a lower priority for the preferred one", a.Name, b.Name, a.Priority))
	case a.Priority > b.Priority:
		all = append(all, fmt.Sprintf("the mesh prefers %s (priority %d) and the router %s (priority %d); want the preferred one first", b.Name, b.Priority, a.Name, a.Priority))
	}
	if !sameSet(a.Prefixes, b.Prefixes) {
		all = append(all, fmt.Sprintf("%s and %s do not announce the same prefixes; only what both announce survives the loss of one", a.Name, b.Name))
	}
	return all
}

func sameSet(a, b []netip.Prefix) bool {
	order := func(list []netip.Prefix) []netip.Prefix {
		return slices.SortedFunc(slices.Values(list), netip.Prefix.Compare)
	}
	return slices.Equal(order(a), order(b))
}

// routed are the prefixes that go through the tunnels, and those that cannot
// because the router or a tunnel does not have their IP version.
func (r *Router) routed() (through, not []netip.Prefix) {
	for _, p := range r.Prefixes {
		able := true
		for _, t := range r.Tunnels {
			has := t.Tunnel.Local.IsValid()
			if p.Addr().Is6() {
				has = t.Tunnel.Local6.IsValid()
			}
			able = able && has
		}
		if able {
			through = append(through, p)
		} else {
			not = append(not, p)
		}
	}
	return through, not
}
