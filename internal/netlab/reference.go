package netlab

import (
	"fmt"
	"net/netip"
	"slices"
)

// Stack is a set of IP versions.
type Stack int

const (
	// IPv4 only.
	IPv4 Stack = 1 << iota
	// IPv6 only.
	IPv6
	// DualStack is IPv4 and IPv6.
	DualStack = IPv4 | IPv6
)

// Names and numbers of the reference deployment. Its hosts' numbers are the last part of their addresses, written in
// the same digits in IPv4 and IPv6: site 10's master01 is 192.168.10.101 and fd10:0:0:10::101.
const (
	underlayName  = "underlay"
	routerOnLAN   = 1
	firstRouterNo = 90
)

// Underlay4 and Underlay6 are the prefixes between the routers of the reference deployment. The IPv6 one is out of the
// documentation prefix (RFC 3849): to a program inside it looks like the open internet.
var (
	Underlay4 = netip.MustParsePrefix("10.4.0.0/16")
	Underlay6 = netip.MustParsePrefix("2001:db8:4::/64")
)

// Reference is the reference deployment over IPv4: the underlay 10.4.0.0/16 with the routers gw10, gw20 and gw30
// (.90, .91, .92), a LAN behind each, and eight hosts on the LANs that reach only their own LAN, 16 of 56 ordered
// pairs. Routers have the underlay on eth0 and the LAN on eth1 and do not forward; the hosts' default route is their router.
func Reference() Topology { return ReferenceOver(IPv4, IPv4) }

// Reference6 is [Reference] with IPv6 alone, on the LANs (fd10:0:0:SITE::/64) and on the underlay (2001:db8:4::/64).
func Reference6() Topology { return ReferenceOver(IPv6, IPv6) }

// ReferenceDual is [Reference] with IPv4 and IPv6 on the LANs and on the underlay.
func ReferenceDual() Topology { return ReferenceOver(DualStack, DualStack) }

// ReferenceOver is [Reference] with the given IP versions on the LANs and on the underlay.
func ReferenceOver(lans, underlay Stack) Topology {
	t := Topology{Nets: []Net{{Name: underlayName, Prefixes: underlay.pick(Underlay4, Underlay6)}}}
	t.AddSite(Site{Number: 10, LAN: lans, Underlay: underlay, Hosts: []SiteHost{
		{"lb", 253}, {"master01", 101}, {"master02", 102}, {"master03", 103},
	}})
	t.AddSite(Site{Number: 20, LAN: lans, Underlay: underlay, Hosts: []SiteHost{{"node01", 101}, {"node02", 102}}})
	t.AddSite(Site{Number: 30, LAN: lans, Underlay: underlay, Hosts: []SiteHost{{"node03", 101}, {"node04", 102}}})
	return t
}

// MixedGateways are the hosts that [ReferenceMixed] has besides those of [Reference].
var MixedGateways = []string{"gw30a", "gw30b"}

// ReferenceMixed is [Reference] where the router of site 30 is one that cannot run meshd: it forwards, as routers do, and two
// machines of their own stand in the underlay to take it into a mesh, gw30a (.93) and gw30b (.94). They are nobody's
// router, and Leaves counts them, so a table of the eight hosts is asked for with [ReferenceHosts].
func ReferenceMixed() Topology {
	t := Reference()
	t.Host("gw30").Forward = true
	for _, name := range MixedGateways {
		t.Hosts = append(t.Hosts, HostSpec{Name: name, Interfaces: []Iface{
			{Net: underlayName, Name: "eth0", Addrs: numbered(IPv4, Underlay4, Underlay6, t.nextRouter())},
		}})
	}
	return t
}

// ReferenceHosts are the names of the eight hosts on the LANs of the reference deployment.
func ReferenceHosts() []string {
	t := Reference()
	return t.Leaves()
}

// Site declares a site in the manner of the reference deployment: the net lanN with 192.168.N.0/24 or
// fd10:0:0:N::/64, the router gwN with number 1 on it, and hosts.
type Site struct {
	// Number is N, 1 to 254.
	Number int
	// LAN and Underlay are the IP versions of the LAN and of the router's side towards the underlay; 0 means IPv4.
	LAN, Underlay Stack
	// Hosts are the hosts on the LAN.
	Hosts []SiteHost
}

// SiteHost is a host on a site's LAN.
type SiteHost struct {
	// Name is the host's name.
	Name string
	// Number is the last part of its addresses, 2 to 254.
	Number int
}

// AddSite adds a site. Its router gets the number 90 plus the count of hosts that are there already on the
// underlay: the fourth site of the reference deployment has 10.4.0.93. Faults show in [Topology.Validate].
func (t *Topology) AddSite(s Site) {
	if s.LAN == 0 {
		s.LAN = IPv4
	}
	if s.Underlay == 0 {
		s.Underlay = IPv4
	}
	lan := fmt.Sprintf("lan%d", s.Number)
	t.Nets = append(t.Nets, Net{Name: lan, Prefixes: s.LAN.pick(s.prefix4(), s.prefix6())})
	t.Hosts = append(t.Hosts, HostSpec{
		Name: fmt.Sprintf("gw%d", s.Number),
		Interfaces: []Iface{
			{Net: underlayName, Name: "eth0", Addrs: numbered(s.Underlay, Underlay4, Underlay6, t.nextRouter())},
			{Net: lan, Name: "eth1", Addrs: numbered(s.LAN, s.prefix4(), s.prefix6(), routerOnLAN)},
		},
	})
	var gateways []netip.Addr
	for _, a := range numbered(s.LAN, s.prefix4(), s.prefix6(), routerOnLAN) {
		gateways = append(gateways, a.Addr())
	}
	for _, h := range s.Hosts {
		t.Hosts = append(t.Hosts, HostSpec{
			Name:       h.Name,
			Interfaces: []Iface{{Net: lan, Name: "eth0", Addrs: numbered(s.LAN, s.prefix4(), s.prefix6(), h.Number)}},
			Gateways:   gateways,
		})
	}
}

// nextRouter is the number of the router that comes next to those on the underlay.
func (t *Topology) nextRouter() int {
	n := firstRouterNo
	for _, h := range t.Hosts {
		if slices.ContainsFunc(h.Interfaces, func(i Iface) bool { return i.Net == underlayName }) {
			n++
		}
	}
	return n
}

func (s Site) prefix4() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, byte(s.Number), 0}), 24)
}

func (s Site) prefix6() netip.Prefix {
	a := [16]byte{0: 0xfd, 1: 0x10}
	a[6], a[7] = decimalAsHex(s.Number)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

// pick is the prefixes out of which a network of this stack is made.
func (s Stack) pick(v4, v6 netip.Prefix) []netip.Prefix {
	var p []netip.Prefix
	if s&IPv4 != 0 {
		p = append(p, v4)
	}
	if s&IPv6 != 0 {
		p = append(p, v6)
	}
	return p
}

// numbered is the address with the number n out of each prefix that the stack has.
func numbered(s Stack, v4, v6 netip.Prefix, n int) []netip.Prefix {
	b4 := v4.Addr().As4()
	b4[3] = byte(n)
	b6 := v6.Addr().As16()
	b6[14], b6[15] = decimalAsHex(n)
	return s.pick(netip.PrefixFrom(netip.AddrFrom4(b4), v4.Bits()), netip.PrefixFrom(netip.AddrFrom16(b6), v6.Bits()))
}

// decimalAsHex is the 16-bit group of an IPv6 address that reads, in hexadecimal, as the decimal number n: 101 is 0x0101.
func decimalAsHex(n int) (hi, lo byte) {
	return byte(n / 100 % 10), byte(n/10%10<<4 | n%10)
}
