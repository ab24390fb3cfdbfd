package hostnet

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Facts is what the host has, as seen at one moment. It is a value that nobody
// changes; its methods are pure functions of it.
type Facts struct {
	// Interfaces in the order of their index.
	Interfaces []Interface
	// Routes of the main table that are not ours, of both families.
	Routes []HostRoute
	// LAN are our routes through hosts of LANs. They collide with nothing.
	LAN []HostRoute
	// IPv6 is false if the host has no IPv6 or has it switched off, for all
	// interfaces or for the overlay interface.
	IPv6 bool
}

// Interface is a network interface of the host.
type Interface struct {
	Name  string
	Index int
	// Up says that the interface is switched on; it may still lack a carrier.
	Up bool
	// MTU in bytes.
	MTU int
	// Loopback and Ours mark the loopback and the overlay interface.
	Loopback, Ours bool
	// Addresses in the kernel's order.
	Addresses []Address
}

// Address is an address of an interface.
type Address struct {
	// Prefix is the address with the length of its network.
	Prefix netip.Prefix
	// Tentative addresses are not usable yet, or never because another host
	// has them; Deprecated ones should start nothing new; Temporary ones
	// change every few hours (RFC 8981).
	Tentative, Deprecated, Temporary bool
}

// usable reports whether other hosts can be told this address.
func (a Address) usable() bool {
	ip := a.Prefix.Addr()
	return ip.IsGlobalUnicast() && !a.Tentative && !a.Deprecated
}

// Kernel constants of rtnetlink.h that matter to readers of a HostRoute.
const (
	// ProtocolKernel is RTPROT_KERNEL: the kernel made the route itself, as
	// it does for the network of an address.
	ProtocolKernel = 2
	// ScopeUniverse is RT_SCOPE_UNIVERSE, which IPv6 routes always have.
	ScopeUniverse = 0
	// ScopeLink is RT_SCOPE_LINK: on a network that the host is plugged into.
	ScopeLink = 253
	// ScopeHost is RT_SCOPE_HOST: the host itself.
	ScopeHost = 254
)

// HostRoute is a route of the main table that is not ours.
type HostRoute struct {
	// Prefix is the destination; length 0 is a default route.
	Prefix netip.Prefix
	// Interface is the outgoing interface, "" if the route has none, or the
	// first of several.
	Interface string
	// NextHop is the gateway, the zero value if the route has none.
	NextHop netip.Addr
	// Metric, Protocol and Scope are the kernel's numbers.
	Metric, Protocol, Scope int
}

// String is like a line of `ip route`.
func (r HostRoute) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%v", r.Prefix)
	if r.NextHop.IsValid() {
		fmt.Fprintf(&b, " via %v", r.NextHop)
	}
	if r.Interface != "" {
		fmt.Fprintf(&b, " dev %s", r.Interface)
	}
	fmt.Fprintf(&b, " proto %s", protocolName(r.Protocol))
	return b.String()
}

func protocolName(p int) string {
	switch p {
	case 1:
		return "redirect"
	case ProtocolKernel:
		return "kernel"
	case 3:
		return "boot"
	case 4:
		return "static"
	case 9:
		return "ra"
	case 12:
		return "bird"
	case 16:
		return "dhcp"
	case RouteProtocol:
		return "planetmesh"
	case 186:
		return "bgp"
	case 188:
		return "ospf"
	}
	return fmt.Sprint(p)
}

// Collision returns what on this host a route for p through the overlay would
// collide with: the network of an address of this host (equal to p, or one
// inside the other), an address or a next hop inside p, or another route for
// exactly p. Default routes, and longer or shorter routes of others that lead
// elsewhere, do not collide. The overlay's own addresses never do.
func (f Facts) Collision(p netip.Prefix) (HostRoute, bool) {
	if !p.IsValid() {
		return HostRoute{}, false
	}
	p = p.Masked()
	for _, i := range f.Interfaces {
		if i.Ours {
			continue
		}
		for _, a := range i.Addresses {
			if a.collides(p, i.Up) {
				return HostRoute{Prefix: a.Prefix.Masked(), Interface: i.Name, Protocol: ProtocolKernel, Scope: ScopeLink}, true
			}
		}
	}
	for _, r := range f.Routes {
		if f.routeCollides(r, p) {
			return r, true
		}
	}
	return HostRoute{}, false
}

func (a Address) collides(p netip.Prefix, up bool) bool {
	if a.Prefix.Addr().IsLinkLocalUnicast() {
		return false
	}
	return p.Contains(a.Prefix.Addr()) || up && p.Overlaps(a.Prefix.Masked())
}

func (f Facts) routeCollides(r HostRoute, p netip.Prefix) bool {
	ours := f.ours(r.Interface)
	switch {
	case r.NextHop.IsValid() && p.Contains(r.NextHop) && !ours:
		return true
	case r.Prefix.Bits() == 0 || r.Prefix.Addr().IsLinkLocalUnicast() || r.Prefix.Addr().IsMulticast():
		return false
	case r.Protocol == ProtocolKernel:
		return !ours && p.Overlaps(r.Prefix)
	}
	return r.Prefix == p
}

func (f Facts) ours(name string) bool {
	i, ok := f.Interface(name)
	return ok && i.Ours
}

// Interface returns the interface of that name.
func (f Facts) Interface(name string) (Interface, bool) {
	i := slices.IndexFunc(f.Interfaces, func(i Interface) bool { return i.Name == name })
	if i < 0 {
		return Interface{}, false
	}
	return f.Interfaces[i], true
}

// Local returns what no route of the overlay may overlap: the networks and
// addresses of this host except those of the overlay interface, and the next
// hops of its routes, sorted and without duplicates. Link-local ones are left
// out. Collision looks at more: at routes for exactly the same prefix.
func (f Facts) Local() []netip.Prefix {
	var found []netip.Prefix
	for _, i := range f.Interfaces {
		for _, a := range i.Addresses {
			switch ip := a.Prefix.Addr(); {
			case i.Ours || ip.IsLinkLocalUnicast():
			case i.Up:
				found = append(found, a.Prefix.Masked())
			default:
				found = append(found, netip.PrefixFrom(ip, ip.BitLen()))
			}
		}
	}
	for _, r := range f.Routes {
		switch hop := r.NextHop; {
		case f.ours(r.Interface):
		case hop.IsValid() && !hop.IsLinkLocalUnicast():
			found = append(found, netip.PrefixFrom(hop, hop.BitLen()))
		case r.Protocol == ProtocolKernel && !r.Prefix.Addr().IsLinkLocalUnicast() && !r.Prefix.Addr().IsMulticast():
			found = append(found, r.Prefix)
		}
	}
	slices.SortFunc(found, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.Compact(found)
}

// InterfaceFor returns the interfaces behind which the addresses of p are, in
// the order of their index: those with a network that overlaps p, and the one
// that the best route to all of p, or a route to a part of it, leads to.
// Default routes do not count, nor do the loopback and the overlay interface.
func (f Facts) InterfaceFor(p netip.Prefix) []Interface {
	if !p.IsValid() {
		return nil
	}
	p = p.Masked()
	names := make(map[string]bool)
	for _, i := range f.Interfaces {
		if slices.ContainsFunc(i.Addresses, func(a Address) bool {
			return !a.Prefix.Addr().IsLinkLocalUnicast() && p.Overlaps(a.Prefix.Masked())
		}) {
			names[i.Name] = true
		}
	}
	covering := -1
	routes := slices.Concat(f.Routes, f.LAN)
	for _, r := range routes {
		switch bits := r.Prefix.Bits(); {
		case bits == 0 || !p.Overlaps(r.Prefix):
		case bits > p.Bits():
			names[r.Interface] = true
		default:
			covering = max(covering, bits)
		}
	}
	for _, r := range routes {
		if r.Prefix.Bits() == covering && p.Overlaps(r.Prefix) {
			names[r.Interface] = true
		}
	}
	var found []Interface
	for _, i := range f.Interfaces {
		if names[i.Name] && !i.Ours && !i.Loopback {
			found = append(found, i)
		}
	}
	return found
}

// OnLink returns the interface with the smallest network that has addr in it,
// of those that are up; the loopback and the overlay interface do not count.
// It is an *OnLinkError, without a prefix, if there is none or if addr is an
// address of this host itself.
func (f Facts) OnLink(addr netip.Addr) (Interface, error) {
	var found Interface
	bits := -1
	for _, i := range f.Interfaces {
		for _, a := range i.Addresses {
			switch {
			case a.Prefix.Addr() == addr:
				return Interface{}, &OnLinkError{LANRoute: LANRoute{Via: addr}, Own: true}
			case i.Ours || i.Loopback || !i.Up || !a.Prefix.Masked().Contains(addr):
			case a.Prefix.Bits() > bits:
				found, bits = i, a.Prefix.Bits()
			}
		}
	}
	if bits < 0 {
		return Interface{}, &OnLinkError{LANRoute: LANRoute{Via: addr}}
	}
	return found, nil
}

// CheckLAN reports whether a route through a host of a LAN can be made on this
// host: a *CollisionError or an *OnLinkError if not.
func (f Facts) CheckLAN(r LANRoute) (Interface, error) {
	if with, collides := f.Collision(r.Prefix); collides {
		return Interface{}, &CollisionError{Prefix: r.Prefix, With: with}
	}
	i, err := f.OnLink(r.Via)
	if e, ok := errors.AsType[*OnLinkError](err); ok {
		e.LANRoute = r
	}
	return i, err
}

// SourceFor returns addresses of this host inside the given prefixes, one for
// each family: what routes into the overlay carry as preferred source. Earlier
// prefixes and lower interface indexes win; stable addresses win over temporary
// ones. The zero address means that there is none.
func (f Facts) SourceFor(prefixes []netip.Prefix) (v4, v6 netip.Addr) {
	for _, p := range prefixes {
		for _, a := range f.usable() {
			ip := a.Prefix.Addr()
			switch {
			case !p.Contains(ip):
			case ip.Is4() && !v4.IsValid():
				v4 = ip
			case ip.Is6() && !v6.IsValid():
				v6 = ip
			}
		}
	}
	return v4, v6
}

// Candidates returns the local addresses at which other gateways may reach this
// host: those of interfaces that are up, without loopback, link-local,
// tentative and deprecated ones and without those of the overlay interface.
// Temporary addresses come last.
func (f Facts) Candidates() []netip.Addr {
	var found []netip.Addr
	for _, a := range f.usable() {
		if !slices.Contains(found, a.Prefix.Addr()) {
			found = append(found, a.Prefix.Addr())
		}
	}
	return found
}

// usable returns the usable addresses of all interfaces that are up, except the
// overlay interface; temporary ones last.
func (f Facts) usable() []Address {
	var found []Address
	for _, i := range f.Interfaces {
		if i.Ours || !i.Up {
			continue
		}
		for _, a := range i.Addresses {
			if a.usable() {
				found = append(found, a)
			}
		}
	}
	slices.SortStableFunc(found, func(a, b Address) int { return cmp.Compare(btoi(a.Temporary), btoi(b.Temporary)) })
	return found
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}
