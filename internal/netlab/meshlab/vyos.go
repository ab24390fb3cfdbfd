package meshlab

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// vyosConfig is what the commands of a router with VyOS 1.4 say about its tunnels: enough of the language for what
// "meshd vyos" prints, and an error for everything else, as on the router itself.
//
// The files that come of it have the options that the generator of VyOS 1.4 (OpenVPN 2.6) writes for mode site-to-site:
//
//	always             verb 3, dev-type tun, dev, persist-key, ping, ping-restart, disable-dco, providers legacy default
//	protocol           proto udp, tcp-server (tcp-passive) or tcp-client (tcp-active)
//	local-, remote-port, remote-host    lport, rport, remote; OpenVPN's own 1194 without
//	local-, remote-address              ifconfig LOCAL REMOTE, and ifconfig-ipv6 for the pair of that family
//	persistent-tunnel  persist-tun
//	shared-secret-key  secret FILE, never with a direction; the file has the key's 512 digits in one line
//	encryption cipher  cipher, in upper case; without it OpenVPN takes BF-CBC
//	hash               auth; without it OpenVPN takes SHA1
//	keep-alive         interval is ping, failure-count is ping-restart, in seconds and not a multiple; 10 and 60 without
//	use-lzo-compression                 compress lzo
//
// It never writes fragment, mssfix, float, explicit-exit-notify or replay-window.
type vyosConfig struct {
	tunnels []*vyosTunnel
	secrets map[string]string // digits by name
	routes  []vyosRoute
	task    vyosTask
}

// vyosTunnel is one interface openvpn vtunN.
type vyosTunnel struct {
	name         string
	mode         string
	protocol     string
	localPort    string
	remotePort   string
	remoteHosts  []string
	persistent   bool
	locals       []netip.Addr
	remotes      []netip.Addr
	secret       string // name in pki
	cipher, hash string
	interval     string
	failureCount string
	lzo          bool
	description  string // description
	digits       string // of the key, found by check
}

// vyosRoute is a static route to an interface.
type vyosRoute struct {
	prefix   netip.Prefix
	device   string
	distance int
}

// vyosTask is the entry of the task scheduler.
type vyosTask struct {
	interval, path, arguments string
}

// parseVyOS reads commands of configuration mode; empty lines and comments are passed over.
func parseVyOS(commands string) (*vyosConfig, error) {
	c := &vyosConfig{secrets: make(map[string]string)}
	number := 0
	for line := range strings.Lines(commands) {
		number++
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		words, err := vyosWords(line)
		if err == nil {
			err = c.set(words)
		}
		if err != nil {
			return nil, fmt.Errorf("line %d: %w: %s", number, err, line)
		}
	}
	return c, c.check()
}

// vyosWords splits a command at spaces outside of single quotes.
func vyosWords(line string) ([]string, error) {
	var words []string
	var word strings.Builder
	quoted, started := false, false
	for _, r := range line {
		switch {
		case r == '\'':
			quoted, started = !quoted, true
		case r == ' ' && !quoted:
			if started {
				words = append(words, word.String())
				word.Reset()
				started = false
			}
		default:
			word.WriteRune(r)
			started = true
		}
	}
	if quoted {
		return nil, fmt.Errorf("a quote is open")
	}
	if started {
		words = append(words, word.String())
	}
	return words, nil
}

// match reports whether words are those of the pattern, in which * is any one word, and returns these.
func match(words []string, pattern string) (values []string, ok bool) {
	want := strings.Fields(pattern)
	if len(words) != len(want) {
		return nil, false
	}
	for i, w := range want {
		switch {
		case w == "*":
			values = append(values, words[i])
		case w != words[i]:
			return nil, false
		}
	}
	return values, true
}

// set does one command.
func (c *vyosConfig) set(words []string) error {
	for _, command := range []struct {
		pattern string
		do      func(v []string) error
	}{
		{"set pki openvpn shared-secret * key *", func(v []string) error { c.secrets[v[0]] = v[1]; return nil }},
		{"set pki openvpn shared-secret * version 1", func([]string) error { return nil }},
		{"set protocols static route * interface *", func(v []string) error { return c.route(v[0], v[1], "1") }},
		{"set protocols static route * interface * distance *", func(v []string) error { return c.route(v[0], v[1], v[2]) }},
		{"set system task-scheduler task * interval *", func(v []string) error { c.task.interval = v[1]; return nil }},
		{"set system task-scheduler task * executable path *", func(v []string) error { c.task.path = v[1]; return nil }},
		{"set system task-scheduler task * executable arguments *", func(v []string) error { c.task.arguments = v[1]; return nil }},
	} {
		if v, ok := match(words, command.pattern); ok {
			return command.do(v)
		}
	}
	if len(words) > 4 && slices.Equal(words[:3], []string{"set", "interfaces", "openvpn"}) {
		return c.tunnel(words[3]).set(words[4:])
	}
	return fmt.Errorf("not a command of this router")
}

func (c *vyosConfig) route(prefix, device, distance string) error {
	p, err := netip.ParsePrefix(prefix)
	if err != nil {
		return err
	}
	d, err := strconv.ParseUint(distance, 10, 8)
	if err != nil || d == 0 {
		return fmt.Errorf("distance %q", distance)
	}
	c.routes = append(c.routes, vyosRoute{p, device, int(d)})
	return nil
}

// tunnel is the interface of that name.
func (c *vyosConfig) tunnel(name string) *vyosTunnel {
	for _, t := range c.tunnels {
		if t.name == name {
			return t
		}
	}
	t := &vyosTunnel{name: name, protocol: "udp", interval: "10", failureCount: "60"}
	c.tunnels = append(c.tunnels, t)
	return t
}

// set does what is left of a command behind the name of the interface.
func (t *vyosTunnel) set(words []string) error {
	for pattern, value := range map[string]*string{
		"description *": &t.description, "mode *": &t.mode, "protocol *": &t.protocol, "local-port *": &t.localPort,
		"remote-port *": &t.remotePort, "shared-secret-key *": &t.secret, "encryption cipher *": &t.cipher, "hash *": &t.hash,
		"keep-alive interval *": &t.interval, "keep-alive failure-count *": &t.failureCount,
	} {
		if v, ok := match(words, pattern); ok {
			*value = v[0]
			return nil
		}
	}
	for pattern, flag := range map[string]*bool{"persistent-tunnel": &t.persistent, "use-lzo-compression": &t.lzo} {
		if _, ok := match(words, pattern); ok {
			*flag = true
			return nil
		}
	}
	if v, ok := match(words, "remote-host *"); ok {
		t.remoteHosts = append(t.remoteHosts, v[0])
		return nil
	}
	for pattern, list := range map[string]*[]netip.Addr{"local-address *": &t.locals, "remote-address *": &t.remotes} {
		if v, ok := match(words, pattern); ok {
			addr, err := netip.ParseAddr(v[0])
			*list = append(*list, addr)
			return err
		}
	}
	return fmt.Errorf("not a command of this interface")
}

// Values that VyOS 1.4 knows, and what it writes for them.
var (
	vyosProtocols = map[string]string{"udp": "udp", "tcp-passive": "tcp-server", "tcp-active": "tcp-client"}
	vyosCiphers   = map[string]string{
		"": "", "none": "none", "3des": "DES-EDE3-CBC", "aes128": "AES-128-CBC", "aes192": "AES-192-CBC", "aes256": "AES-256-CBC",
	}
	vyosHashes = []string{"", "md5", "sha1", "sha256", "sha384", "sha512"}
)

// check is what the router says at commit.
func (c *vyosConfig) check() error {
	for _, t := range c.tunnels {
		digits, ok := c.secrets[t.secret]
		_, protocol := vyosProtocols[t.protocol]
		_, cipher := vyosCiphers[t.cipher]
		switch {
		case t.mode != "site-to-site":
			return fmt.Errorf("%s: mode %q", t.name, t.mode)
		case !ok || len(digits) != 512 || strings.Trim(digits, "0123456789abcdef") != "":
			return fmt.Errorf("%s: no shared secret %q of 512 digits", t.name, t.secret)
		case !protocol:
			return fmt.Errorf("%s: protocol %q", t.name, t.protocol)
		case t.protocol == "tcp-active" && t.remoteHosts == nil:
			return fmt.Errorf("%s: tcp-active without remote-host", t.name)
		case !cipher || !slices.Contains(vyosHashes, t.hash):
			return fmt.Errorf("%s: cipher %q or hash %q", t.name, t.cipher, t.hash)
		case len(t.locals) == 0 || len(t.locals) != len(t.remotes):
			return fmt.Errorf("%s: %d local and %d remote addresses", t.name, len(t.locals), len(t.remotes))
		}
		t.digits = digits
	}
	return nil
}

// secretFile is where VyOS writes the key of a tunnel.
func (t *vyosTunnel) secretFile() string { return "/run/openvpn/" + t.name + "_shared.key" }

// secretText is the content of that file.
func (t *vyosTunnel) secretText() string {
	return "-----BEGIN OpenVPN Static key V1-----\n" + t.digits + "\n-----END OpenVPN Static key V1-----\n"
}

// optionFile is where VyOS writes the options of a tunnel.
func (t *vyosTunnel) optionFile() string { return "/run/openvpn/" + t.name + ".conf" }

// options is the content of that file.
func (t *vyosTunnel) options() string {
	var b strings.Builder
	line := func(option string, values ...string) {
		if strings.Join(values, "") != "" || len(values) == 0 {
			fmt.Fprintln(&b, strings.Join(append([]string{option}, values...), " "))
		}
	}
	line("verb", "3")
	line("dev-type", "tun")
	line("dev", t.name)
	line("persist-key")
	line("proto", vyosProtocols[t.protocol])
	line("lport", t.localPort)
	line("rport", t.remotePort)
	for _, h := range t.remoteHosts {
		line("remote", h)
	}
	line("secret", t.secretFile())
	if t.persistent {
		line("persist-tun")
	}
	if t.lzo {
		line("compress", "lzo")
	}
	line("disable-dco")
	line("ping", t.interval)
	line("ping-restart", t.failureCount)
	for _, l := range t.locals {
		for _, r := range t.remotes {
			switch {
			case l.Is4() && r.Is4():
				line("ifconfig", l.String(), r.String())
			case l.Is6() && r.Is6():
				line("ifconfig-ipv6", l.String(), r.String())
			}
		}
	}
	line("cipher", vyosCiphers[t.cipher])
	line("providers", "legacy", "default")
	line("auth", t.hash)
	return b.String()
}

// bestRoutes are the static routes that the router gives to the kernel: of each prefix the one with the lowest distance.
func (c *vyosConfig) bestRoutes() []vyosRoute {
	best := make(map[netip.Prefix]vyosRoute)
	for _, r := range c.routes {
		if b, ok := best[r.prefix]; !ok || r.distance < b.distance {
			best[r.prefix] = r
		}
	}
	var routes []vyosRoute
	for _, r := range best {
		routes = append(routes, r)
	}
	slices.SortFunc(routes, func(a, b vyosRoute) int { return cmp.Compare(a.prefix.String(), b.prefix.String()) })
	return routes
}
