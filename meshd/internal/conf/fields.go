package conf

import (
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/planetmesh/planetmesh/overlay"
)

// Bounds of values. Those of lists are the limits of a record
// (docs/protocol.md, section 2), the others those of Linux and package overlay.
const (
	minMTU       = 1280 // RFC 8200, section 5
	maxMTU       = 65455
	maxName      = 15 // of an interface: IFNAMSIZ − 1
	maxEndpoints = 8
	maxRoutes    = 64
	maxSeeds     = 64
	maxAccept    = 1024
)

const (
	wantEndpoint = "ADDRESS:PORT, such as 203.0.113.7:17946 or [2001:db8::7]:17946"
	wantPrefix   = "a prefix, such as 192.168.10.0/24 or 2001:db8:10::/64"
	wantAnnounce = "a list of prefixes; [] announces none, and without this line all granted ones are announced"
)

// config reads the whole file into c.
func (p *parser) config(c *Config, root *yaml.Node) {
	var announce *yaml.Node
	var attachments []*attachment
	p.mapping(root, "", []field{
		{"state", func(n *yaml.Node, f string) { p.state(n, f, &c.State) }},
		{"interface", func(n *yaml.Node, f string) { p.interfaceName(n, f, &c.Interface) }},
		{"port", func(n *yaml.Node, f string) {
			if v, ok := p.number(n, f, 1, 65535); ok {
				c.Port = uint16(v)
			}
		}},
		{"mtu", func(n *yaml.Node, f string) {
			if v, ok := p.number(n, f, minMTU, maxMTU); ok {
				c.MTU = v
			}
		}},
		{"device", func(n *yaml.Node, f string) {
			if v, ok := p.word(n, f, "tun", "netstack", "none"); ok {
				c.Device = overlay.DeviceKind(v)
			}
		}},
		{"endpoints", func(n *yaml.Node, f string) { c.Endpoints = p.addrPorts(n, f, maxEndpoints) }},
		{"seeds", func(n *yaml.Node, f string) { c.Seeds = p.addrPorts(n, f, maxSeeds) }},
		{"announce", func(n *yaml.Node, f string) { c.Announce, announce = p.routes(n, f), n }},
		{"accept", func(n *yaml.Node, f string) { c.Accept = p.prefixes(n, f, maxAccept) }},
		{"openvpn", func(n *yaml.Node, f string) { attachments = p.openvpn(n, f) }},
		{"keepHost", func(n *yaml.Node, f string) { p.boolean(n, f, &c.KeepHost) }},
		{"log", func(n *yaml.Node, f string) { p.log(n, f, &c.Log) }},
	})
	p.checkAnnounced(c, announce, attachments)
	p.checkDevices(c, attachments)
	for _, a := range attachments {
		p.keys(p, a)
		c.OpenVPN = append(c.OpenVPN, a.OpenVPN)
	}
}

func (p *parser) log(n *yaml.Node, name string, out *Log) {
	if n.Kind != yaml.MappingNode {
		p.fault(n, name, describe(n), "\"level:\" and \"format:\" below it")
		return
	}
	p.mapping(n, name+".", []field{
		{"level", func(n *yaml.Node, f string) {
			if v, ok := p.word(n, f, "debug", "info", "warn", "error"); ok {
				out.Level, _ = ParseLevel(v)
			}
		}},
		{"format", func(n *yaml.Node, f string) {
			if v, ok := p.word(n, f, string(LogText), string(LogJSON)); ok {
				out.Format = LogFormat(v)
			}
		}},
	})
}

// ParseLevel reads debug, info, warn or error.
func ParseLevel(word string) (slog.Level, error) {
	switch word {
	case "debug":
		return slog.LevelDebug, nil
	case "info":
		return slog.LevelInfo, nil
	case "warn":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	}
	return 0, fmt.Errorf("log level %q; want debug, info, warn or error", word)
}

func (p *parser) state(n *yaml.Node, name string, out *string) {
	const want = "the absolute path of a directory, such as " + DefaultState
	dir, ok := p.scalar(n, name, want)
	if !ok {
		return
	}
	if !filepath.IsAbs(dir) || strings.ContainsRune(dir, 0) {
		p.fault(n, name, strconv.Quote(short(dir)), want)
		return
	}
	*out = filepath.Clean(dir)
}

// interfaceName checks what Linux demands of a name (dev_valid_name in
// net/core/dev.c), and refuses "%", which would make a pattern of it.
func (p *parser) interfaceName(n *yaml.Node, name string, out *string) {
	want := fmt.Sprintf("1 to %d letters, digits, \".\", \"_\" or \"-\", such as %s", maxName, overlay.DefaultInterface)
	text, ok := p.scalar(n, name, want)
	if !ok {
		return
	}
	foreign := strings.ContainsFunc(text, func(r rune) bool {
		return (r < '0' || r > '9') && (r < 'A' || r > 'Z') && (r < 'a' || r > 'z') && !strings.ContainsRune("._-", r)
	})
	if len(text) > maxName || foreign || text == "." || text == ".." {
		p.fault(n, name, strconv.Quote(short(text)), want)
		return
	}
	*out = text
}

func (p *parser) number(n *yaml.Node, name string, low, high int) (int, bool) {
	want := fmt.Sprintf("a number from %d to %d", low, high)
	text, ok := p.scalar(n, name, want)
	if !ok {
		return 0, false
	}
	v, err := strconv.Atoi(text)
	if err != nil || v < low || v > high {
		p.fault(n, name, short(text), want)
		return 0, false
	}
	return v, true
}

func (p *parser) word(n *yaml.Node, name string, words ...string) (string, bool) {
	want := strings.Join(words[:len(words)-1], ", ") + " or " + words[len(words)-1]
	text, ok := p.scalar(n, name, want)
	if !ok {
		return "", false
	}
	if !slices.Contains(words, text) {
		if near := nearest(text, words); near != "" {
			want = near
		}
		p.fault(n, name, strconv.Quote(short(text)), want)
		return "", false
	}
	return text, true
}

// lined is a value and the line that it stands in.
type lined[T any] struct {
	value T
	line  int
}

func (p *parser) addrPorts(n *yaml.Node, name string, most int) []netip.AddrPort {
	var seen []lined[netip.AddrPort]
	p.list(n, name, "a list of "+wantEndpoint, func(n *yaml.Node, name string) {
		text, ok := p.scalar(n, name, wantEndpoint)
		if !ok {
			return
		}
		addr, problem := endpoint(text)
		if problem != "" {
			p.fault(n, name, problem, wantEndpoint)
			return
		}
		if i := slices.IndexFunc(seen, func(l lined[netip.AddrPort]) bool { return l.value == addr }); i >= 0 {
			p.fault(n, name, fmt.Sprintf("%v stands in line %d already", addr, seen[i].line), "each address once")
			return
		}
		seen = append(seen, lined[netip.AddrPort]{addr, n.Line})
	})
	p.atMost(n, name, most)
	return values(seen)
}

// endpoint reads the underlay address of one host, or says what is wrong.
func endpoint(text string) (netip.AddrPort, string) {
	addr, err := netip.ParseAddrPort(text)
	if err != nil {
		if _, err := netip.ParseAddr(text); err == nil {
			return addr, short(text) + " has no port"
		}
		return addr, strconv.Quote(short(text)) + " is no address with a port (names are not looked up)"
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	switch ip := addr.Addr(); {
	case addr.Port() == 0:
		return addr, text + " has port 0"
	case ip.IsUnspecified(), ip.IsMulticast(), ip == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return addr, text + " is not the address of one host"
	}
	return addr, ""
}

// routes reads the prefixes to announce: text, or a mapping with a priority.
// The result is not nil, because nil would announce everything.
func (p *parser) routes(n *yaml.Node, name string) []overlay.Route {
	seen := []lined[netip.Prefix]{}
	out := []overlay.Route{}
	p.list(n, name, wantAnnounce, func(n *yaml.Node, name string) {
		route, ok := p.route(n, name)
		if !ok || !p.announceable(n, name, route.Prefix) {
			return
		}
		for _, other := range seen {
			if other.value.Overlaps(route.Prefix) {
				p.fault(n, name, fmt.Sprintf("%v overlaps %v in line %d", route.Prefix, other.value, other.line), "prefixes that do not overlap")
				return
			}
		}
		seen = append(seen, lined[netip.Prefix]{route.Prefix, n.Line})
		out = append(out, route)
	})
	p.atMost(n, name, maxRoutes)
	return out
}

func (p *parser) route(n *yaml.Node, name string) (r overlay.Route, ok bool) {
	if n.Kind != yaml.MappingNode {
		r.Prefix, ok = p.prefix(n, name)
		return r, ok
	}
	present := false
	p.mapping(n, name+".", []field{
		{"prefix", func(n *yaml.Node, f string) {
			present = true
			r.Prefix, ok = p.prefix(n, f)
		}},
		{"priority", func(n *yaml.Node, f string) {
			if v, ok := p.number(n, f, 0, 65535); ok {
				r.Priority = uint16(v)
			}
		}},
	})
	if !present {
		p.fault(n, name, "has no prefix", "\"prefix:\" with "+wantPrefix)
	}
	return r, ok
}

// announceable notes prefixes that no certificate can grant (docs/protocol.md,
// section 2, Gateway certificate). The certificate itself is not known here.
func (p *parser) announceable(n *yaml.Node, name string, prefix netip.Prefix) bool {
	least := 8
	if prefix.Addr().Is6() {
		least = 16
	}
	addr, problem := prefix.Addr(), ""
	switch {
	case prefix.Bits() < least:
		problem = fmt.Sprintf("%v is too wide to announce", prefix)
	case addr.IsLoopback(), addr.IsLinkLocalUnicast(), addr.IsMulticast():
		problem = fmt.Sprintf("%v never leaves its host or link", prefix)
	default:
		return true
	}
	p.fault(n, name, problem, fmt.Sprintf("the prefix of a LAN, /%d or longer", least))
	return false
}

func (p *parser) prefixes(n *yaml.Node, name string, most int) []netip.Prefix {
	var seen []lined[netip.Prefix]
	p.list(n, name, "a list of prefixes", func(n *yaml.Node, name string) {
		prefix, ok := p.prefix(n, name)
		if !ok {
			return
		}
		if i := slices.IndexFunc(seen, func(l lined[netip.Prefix]) bool { return l.value == prefix }); i >= 0 {
			p.fault(n, name, fmt.Sprintf("%v stands in line %d already", prefix, seen[i].line), "each prefix once")
			return
		}
		seen = append(seen, lined[netip.Prefix]{prefix, n.Line})
	})
	if n.Kind == yaml.SequenceNode && len(n.Content) == 0 {
		// Empty means "all" to package overlay, and nobody writes [] to say that.
		p.fault(n, name, "an empty list", "prefixes that may be installed; without this line all authorised ones may")
	}
	p.atMost(n, name, most)
	return values(seen)
}

// prefix reads one prefix without host bits.
func (p *parser) prefix(n *yaml.Node, name string) (netip.Prefix, bool) {
	text, ok := p.scalar(n, name, wantPrefix)
	if !ok {
		return netip.Prefix{}, false
	}
	prefix, err := netip.ParsePrefix(text)
	switch addr, addrErr := netip.ParseAddr(text); {
	case err != nil && addrErr == nil:
		p.fault(n, name, short(text)+" has no length", netip.PrefixFrom(addr.WithZone(""), addr.BitLen()).String()+" for one host, or the prefix of its LAN")
	case err != nil:
		p.fault(n, name, strconv.Quote(short(text)), wantPrefix)
	case prefix.Addr().Is4In6():
		p.fault(n, name, text+" is an IPv4 address in IPv6 form", "the IPv4 prefix")
	case prefix != prefix.Masked():
		p.fault(n, name, text+" has host bits", prefix.Masked().String())
	default:
		return prefix, true
	}
	return netip.Prefix{}, false
}

func (p *parser) atMost(n *yaml.Node, name string, most int) {
	if n.Kind == yaml.SequenceNode && len(n.Content) > most {
		p.fault(n, name, fmt.Sprintf("%d entries", len(n.Content)), fmt.Sprintf("at most %d", most))
	}
}

func values[T any](list []lined[T]) []T {
	out := make([]T, len(list))
	for i, l := range list {
		out[i] = l.value
	}
	return out
}
