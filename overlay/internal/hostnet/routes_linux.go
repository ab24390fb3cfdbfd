package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// applyRoutes makes our routes as wanted, prefix by prefix: first those go that
// are not wanted or must not be, then missing ones are added.
func (h *Host) applyRoutes(l netlink.Link, wanted []Route) error {
	have, err := h.ourRoutes(l)
	if err != nil {
		return err
	}
	facts, err := h.facts()
	if err != nil {
		return err
	}
	var errs []error
	want := make(map[netip.Prefix]Route, len(wanted))
	for _, r := range wanted {
		if with, ok := facts.Collision(r.Prefix); ok {
			errs = append(errs, &CollisionError{Prefix: r.Prefix, With: with})
			continue
		}
		want[r.Prefix] = r
	}
	present := make(map[netip.Prefix]netlink.Route, len(have))
	for _, r := range have {
		p := prefixOf(r.Dst, r.Family)
		_, twice := present[p]
		if _, ok := want[p]; ok && r.Priority == RouteMetric && !twice {
			present[p] = r
			continue
		}
		errs = append(errs, h.removeRoute(r))
	}
	for _, r := range wanted {
		if want[r.Prefix] != r {
			continue // collides
		}
		old, exists := present[r.Prefix]
		errs = append(errs, h.ensureRoute(l, r, old, exists))
	}
	return errors.Join(errs...)
}

// ensureRoute adds a route, or changes ours. Adding never replaces: a route
// that somebody else made in the meantime makes it fail. Changing replaces the
// route in one step, so that no packet goes elsewhere.
func (h *Host) ensureRoute(l netlink.Link, r Route, old netlink.Route, exists bool) error {
	next := kernelRoute(l, r)
	if exists {
		if sameRoute(old, next) {
			return nil
		}
		if err := h.nl.RouteReplace(&next); err != nil {
			return routeError("change", r, err)
		}
		h.log.Info("route changed", "route", r.Prefix, "source", r.Source, "mtu", r.MTU)
		return nil
	}
	if err := h.nl.RouteAdd(&next); err != nil {
		return routeError("add", r, err)
	}
	h.log.Info("route added", "route", r.Prefix, "source", r.Source, "mtu", r.MTU)
	return nil
}

func routeError(act string, r Route, err error) error {
	switch {
	case errors.Is(err, unix.EINVAL) && r.Source.IsValid():
		return fmt.Errorf("%s route %v: %v is not a usable address of this host: %w", act, r.Prefix, r.Source, err)
	case errors.Is(err, fs.ErrExist):
		return fmt.Errorf("%s route %v: somebody else has one with metric %d: %w", act, r.Prefix, RouteMetric, err)
	}
	return fmt.Errorf("%s route %v: %w", act, r.Prefix, err)
}

func kernelRoute(l netlink.Link, r Route) netlink.Route {
	k := netlink.Route{
		LinkIndex: l.Attrs().Index,
		Dst:       ipNet(r.Prefix),
		Protocol:  RouteProtocol,
		Priority:  RouteMetric,
		Table:     unix.RT_TABLE_MAIN,
		Type:      unix.RTN_UNICAST,
		MTU:       r.MTU,
	}
	if r.Prefix.Addr().Is4() {
		k.Scope = netlink.SCOPE_LINK // as for every route without a next hop
	}
	if r.Source.IsValid() {
		k.Src = r.Source.AsSlice()
	}
	return k
}

// sameRoute compares what we set; the link and the metric are known to be equal.
func sameRoute(a, b netlink.Route) bool {
	return a.Src.Equal(b.Src) && a.MTU == b.MTU && a.Type == b.Type && a.Scope == b.Scope &&
		a.Gw == nil && a.Via == nil && len(a.MultiPath) == 0
}

func (h *Host) removeRoutes(l netlink.Link) error {
	routes, err := h.ourRoutes(l)
	if err != nil {
		return err
	}
	var errs []error
	for _, r := range routes {
		errs = append(errs, h.removeRoute(r))
	}
	return errors.Join(errs...)
}

func (h *Host) removeRoute(r netlink.Route) error {
	p := prefixOf(r.Dst, r.Family)
	if err := h.nl.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("remove route %v: %w", p, err)
	}
	h.log.Info("route removed", "route", p)
	return nil
}

// ourRoutes returns the routes with our protocol on the given interface.
func (h *Host) ourRoutes(l netlink.Link) ([]netlink.Route, error) {
	filter := &netlink.Route{Protocol: RouteProtocol, LinkIndex: l.Attrs().Index}
	routes, err := retry(func() ([]netlink.Route, error) {
		return h.nl.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_OIF)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	return routes, nil
}

// applyAddresses adds what is missing and removes what we added and is no
// longer wanted. The journal has an address before the interface does.
func (h *Host) applyAddresses(l netlink.Link, wanted []netip.Prefix) error {
	have, err := h.addressesOf(l)
	if err != nil {
		return err
	}
	var errs []error
	next := h.journal.clone()
	stale := slices.DeleteFunc(slices.Clone(next.addresses), func(p netip.Prefix) bool { return slices.Contains(wanted, p) })
	left, err := h.removeAddresses(h.cfg.Link, stale)
	errs = append(errs, err)
	next.addresses = slices.DeleteFunc(next.addresses, func(p netip.Prefix) bool {
		return slices.Contains(stale, p) && !slices.Contains(left, p)
	})
	missing := slices.DeleteFunc(slices.Clone(wanted), func(p netip.Prefix) bool { return slices.Contains(have, p) })
	for _, p := range missing {
		if !slices.Contains(next.addresses, p) {
			next.addresses = append(next.addresses, p)
		}
	}
	if err := h.keep(next); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, p := range missing {
		// The address is computed to be unique: duplicate detection would
		// only delay it.
		a := &netlink.Addr{IPNet: ipNetHost(p)}
		if p.Addr().Is6() {
			a.Flags = unix.IFA_F_NODAD
		}
		if err := h.nl.AddrAdd(l, a); err != nil && !errors.Is(err, fs.ErrExist) {
			errs = append(errs, fmt.Errorf("add address %v to %s: %w", p, h.cfg.Link, err))
		}
	}
	return errors.Join(errs...)
}

func (h *Host) addressesOf(l netlink.Link) ([]netip.Prefix, error) {
	addrs, err := retry(func() ([]netlink.Addr, error) { return h.nl.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses of %s: %w", l.Attrs().Name, err)
	}
	var found []netip.Prefix
	for _, a := range addrs {
		found = append(found, prefixOf(a.IPNet, netlink.FAMILY_ALL))
	}
	return found, nil
}

// removeAddresses removes addresses from the named interface in reverse order
// and returns those that could not be removed. One that is not there counts as
// removed.
func (h *Host) removeAddresses(name string, addresses []netip.Prefix) (left []netip.Prefix, err error) {
	if len(addresses) == 0 {
		return nil, nil
	}
	l, err := h.link(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return addresses, err
	}
	var errs []error
	for _, p := range slices.Backward(addresses) {
		err := h.nl.AddrDel(l, &netlink.Addr{IPNet: ipNetHost(p)})
		if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			errs = append(errs, fmt.Errorf("remove address %v from %s: %w", p, name, err))
			left = append(left, p)
		}
	}
	slices.Reverse(left)
	return left, errors.Join(errs...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	p = p.Masked()
	return ipNetHost(p)
}

func ipNetHost(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

// prefixOf converts from the library's type; nil is the default route of the
// family.
func prefixOf(n *net.IPNet, family int) netip.Prefix {
	if n == nil {
		if family == netlink.FAMILY_V4 {
			return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		}
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
	bits, size := n.Mask.Size()
	addr, _ := netip.AddrFromSlice(n.IP)
	if size == 32 {
		addr = addr.Unmap()
	}
	return netip.PrefixFrom(addr, bits)
}
