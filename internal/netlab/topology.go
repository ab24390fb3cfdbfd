package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// Topology is the declaration of a world. The zero value is an empty world. It is plain data: copying and changing
// it is free until it is given to [Start].
type Topology struct {
	// Nets are the Ethernet segments.
	Nets []Net
	// Hosts are the machines, leaves and routers alike.
	Hosts []HostSpec
}

// Net is one Ethernet segment; in the kernel it is a bridge in a namespace that holds nothing else.
type Net struct {
	// Name is unique among the networks.
	Name string
	// Prefixes are the IPv4 and IPv6 prefixes in use on the segment, in masked form. Every address of an interface
	// on it must lie within one of them.
	Prefixes []netip.Prefix
}

// HostSpec declares one host.
type HostSpec struct {
	// Name is unique among the hosts and becomes the host name: letters, digits and hyphens, at most 63.
	Name string
	// Interfaces are in the order in which they are made.
	Interfaces []Iface
	// Gateways are the next hops of the default routes, at most one for each address family, each within the
	// prefix of an address of this host. Empty means no default route.
	Gateways []netip.Addr
	// Routes are further static routes.
	Routes []Route
	// Forward makes the kernel forward packets (net.ipv4.ip_forward and net.ipv6.conf.all.forwarding). False is
	// the kernel's default: whoever wants to forward has to switch it on.
	Forward bool
	// NAT masquerades what leaves by the named interfaces. It implies nothing about Forward.
	NAT []NAT
	// Firewall is nftables text as "nft -f" reads it, applied after NAT. Empty means no rules.
	Firewall string
	// Sysctls are kernel settings below net, for example "net.ipv4.conf.all.rp_filter": "1". They are written
	// last, so that they win over Forward and NoIPv6. A key that contains a slash is taken as a path
	// below /proc/sys, for interface names with a dot.
	Sysctls map[string]string
	// NoIPv6 switches IPv6 off on all interfaces, as with disable_ipv6.
	NoIPv6 bool
}

// Iface is an interface of a host: one end of a veth pair whose other end is a port of the network's bridge.
type Iface struct {
	// Net is the name of the network.
	Net string
	// Name is what the host calls the interface, at most 15 characters (IFNAMSIZ less the final zero).
	Name string
	// Addrs are the addresses with the prefix length of the link. Empty means that the link is up without address.
	Addrs []netip.Prefix
	// MTU in bytes, 68 to 65535; 0 means 1500. Below 1280 the kernel gives the interface no IPv6.
	MTU int
	// Out and In are the link to the network at the start, from the host and to it. [Host.SetLink] changes them.
	Out, In Link
}

// Route is a static route.
type Route struct {
	// Dst is the destination in masked form.
	Dst netip.Prefix
	// Via is the next hop, within the prefix of an address of the host.
	Via netip.Addr
}

// NAT makes a host what home and office routers are for IPv4: packets that leave by Out carry the address of Out, and
// what arrives on Out to be forwarded is dropped unless it belongs to a connection from inside. IPv6 is filtered in
// the same way but its addresses stay. Packets for the router itself are not filtered.
type NAT struct {
	// Out is the name of the interface towards the outside.
	Out string
	// Ports is how source ports are chosen.
	Ports PortMapping
}

// PortMapping is how a NAT chooses the source port of what it masquerades.
type PortMapping int

const (
	// KeepPorts keeps the source port while it is free, so that one inner socket looks the same to all
	// destinations. Hole punching works with it. It is the zero value.
	KeepPorts PortMapping = iota
	// RandomPorts chooses a new port for every destination ("symmetric" NAT). Hole punching towards another NAT of
	// this kind does not work.
	RandomPorts
)

// String is "ports kept" or "ports random".
func (p PortMapping) String() string {
	if p == RandomPorts {
		return "ports random"
	}
	return "ports kept"
}

// Leaves are the names of the hosts with exactly one interface, in order of declaration.
func (t Topology) Leaves() []string {
	return t.names(func(h HostSpec) bool { return len(h.Interfaces) == 1 })
}

// Routers are the names of the hosts with more than one interface, in order of declaration.
func (t Topology) Routers() []string {
	return t.names(func(h HostSpec) bool { return len(h.Interfaces) > 1 })
}

func (t Topology) names(want func(HostSpec) bool) []string {
	var names []string
	for _, h := range t.Hosts {
		if want(h) {
			names = append(names, h.Name)
		}
	}
	return names
}

// Host returns the declaration of a host to be changed in place, or nil if there is none of that name. Adding hosts to
// the topology invalidates it.
func (t *Topology) Host(name string) *HostSpec {
	for i := range t.Hosts {
		if t.Hosts[i].Name == name {
			return &t.Hosts[i]
		}
	}
	return nil
}

// Addr is the first address of the host, in order of declaration, that is IPv6 or is not. The zero Addr means none.
func (h HostSpec) Addr(ipv6 bool) netip.Addr {
	for _, i := range h.Interfaces {
		for _, a := range i.Addrs {
			if a.Addr().Is6() == ipv6 {
				return a.Addr()
			}
		}
	}
	return netip.Addr{}
}

// ifaceNameMax is IFNAMSIZ (16, linux/if.h) less the final zero.
const ifaceNameMax = 15

var (
	hostName  = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?$`) // one label of RFC 1123
	sysctlKey = regexp.MustCompile(`^net[./][a-zA-Z0-9_./-]+$`)
)

// Validate reports everything that is wrong with the topology at once, joined; each error is a [*TopologyError].
func (t Topology) Validate() error {
	v := validation{nets: make(map[string]Net), addrs: make(map[string]string)}
	for _, n := range t.Nets {
		v.net(n)
	}
	seen := make(map[string]bool)
	for _, h := range t.Hosts {
		if seen[h.Name] {
			v.fault("host "+h.Name, "Name", "used twice")
		}
		seen[h.Name] = true
		v.host(h)
	}
	return errors.Join(v.faults...)
}

// TopologyError is one fault of a topology.
type TopologyError struct {
	// Object is what is wrong: "host gw10", "host gw10 interface eth0" or "net lan10".
	Object string
	// Field is the name of the field in the Go type.
	Field string
	// Reason says what is wrong with its value.
	Reason string
}

// Error is "host gw10 interface eth0: Addrs: 10.5.0.1/16 is outside of net underlay (10.4.0.0/16)".
func (e *TopologyError) Error() string {
	return e.Object + ": " + e.Field + ": " + e.Reason
}

// validation collects faults; nets and addrs are what was seen so far.
type validation struct {
	nets   map[string]Net
	addrs  map[string]string // "net address" -> host that has it
	faults []error
}

func (v *validation) fault(object, field, format string, args ...any) {
	v.faults = append(v.faults, &TopologyError{Object: object, Field: field, Reason: fmt.Sprintf(format, args...)})
}

func (v *validation) net(n Net) {
	object := "net " + n.Name
	if n.Name == "" {
		v.fault("net", "Name", "empty")
	}
	if _, ok := v.nets[n.Name]; ok {
		v.fault(object, "Name", "used twice")
	}
	for _, p := range n.Prefixes {
		if !p.IsValid() || p != p.Masked() {
			v.fault(object, "Prefixes", "%v is not a prefix in masked form", p)
		}
	}
	v.nets[n.Name] = n
}

func (v *validation) host(h HostSpec) {
	object := "host " + h.Name
	if !hostName.MatchString(h.Name) {
		v.fault(object, "Name", "want letters, digits and hyphens, at most 63")
	}
	ifaces := map[string]bool{"lo": true}
	var links []netip.Prefix
	for _, i := range h.Interfaces {
		v.iface(h, i)
		if ifaces[i.Name] {
			v.fault(object+" interface "+i.Name, "Name", "used twice on this host")
		}
		ifaces[i.Name] = true
		links = append(links, i.Addrs...)
	}
	v.nextHops(object, h, links)
	for _, n := range h.NAT {
		if n.Out == "lo" || !ifaces[n.Out] {
			v.fault(object, "NAT", "no interface %q", n.Out)
		}
		if n.Ports != KeepPorts && n.Ports != RandomPorts {
			v.fault(object, "NAT", "no port mapping %d", int(n.Ports))
		}
	}
	for key := range h.Sysctls {
		if !sysctlKey.MatchString(key) || strings.Contains(key, "..") {
			v.fault(object, "Sysctls", "%q is not a setting below net", key)
		}
	}
}

func (v *validation) iface(h HostSpec, i Iface) {
	object := "host " + h.Name + " interface " + i.Name
	switch {
	case i.Name == "" || i.Name == "." || i.Name == ".." || strings.ContainsAny(i.Name, "/: \t\n%"):
		v.fault(object, "Name", "%q is not an interface name", i.Name)
	case len(i.Name) > ifaceNameMax:
		v.fault(object, "Name", "has %d characters, at most %d are allowed", len(i.Name), ifaceNameMax)
	}
	if i.MTU != 0 && (i.MTU < 68 || i.MTU > 65535) {
		v.fault(object, "MTU", "%d is not within 68 to 65535", i.MTU)
	}
	for _, fault := range i.Out.faults() {
		v.fault(object, "Out", "%s", fault)
	}
	for _, fault := range i.In.faults() {
		v.fault(object, "In", "%s", fault)
	}
	n, ok := v.nets[i.Net]
	if !ok {
		v.fault(object, "Net", "no net %q", i.Net)
		return
	}
	for _, a := range i.Addrs {
		v.address(object, h, n, a)
	}
}

func (v *validation) address(object string, h HostSpec, n Net, a netip.Prefix) {
	if !a.IsValid() || a.Addr().Is4In6() {
		v.fault(object, "Addrs", "%v is not an address with prefix length", a)
		return
	}
	inside := false
	for _, p := range n.Prefixes {
		inside = inside || p.Contains(a.Addr()) && p.Bits() <= a.Bits()
	}
	if !inside {
		v.fault(object, "Addrs", "%v is outside of net %s (%s)", a, n.Name, joinPrefixes(n.Prefixes))
	}
	if a.Addr().Is6() && h.NoIPv6 {
		v.fault(object, "Addrs", "%v on a host with NoIPv6", a)
	}
	key := n.Name + " " + a.Addr().String()
	if other, ok := v.addrs[key]; ok {
		v.fault(object, "Addrs", "%v is already the address of host %s", a.Addr(), other)
	}
	v.addrs[key] = h.Name
}

func (v *validation) nextHops(object string, h HostSpec, links []netip.Prefix) {
	families := make(map[bool]bool)
	for _, g := range h.Gateways {
		if !onLink(links, g) {
			v.fault(object, "Gateways", "%v is on no link of this host", g)
		}
		if families[g.Is6()] {
			v.fault(object, "Gateways", "%v is the second default route of its address family", g)
		}
		families[g.Is6()] = true
	}
	for _, r := range h.Routes {
		switch {
		case !r.Dst.IsValid() || r.Dst != r.Dst.Masked():
			v.fault(object, "Routes", "%v is not a prefix in masked form", r.Dst)
		case r.Dst.Addr().Is6() != r.Via.Is6():
			v.fault(object, "Routes", "%v via %v mixes address families", r.Dst, r.Via)
		case !onLink(links, r.Via):
			v.fault(object, "Routes", "%v via %v: the next hop is on no link of this host", r.Dst, r.Via)
		}
	}
}

func onLink(links []netip.Prefix, a netip.Addr) bool {
	for _, l := range links {
		if l.Contains(a) && l.Addr() != a {
			return true
		}
	}
	return false
}

func joinPrefixes(ps []netip.Prefix) string {
	var s []string
	for _, p := range ps {
		s = append(s, p.String())
	}
	return strings.Join(s, ", ")
}
