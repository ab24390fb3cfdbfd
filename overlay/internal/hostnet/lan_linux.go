package hostnet

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// ownsLAN reports whether a route is one of ours through a host of a LAN: it
// carries our mark, and the journal has a route for its prefix. Another gateway
// on this host has the same mark and a journal of its own.
func (h *Host) ownsLAN(r HostRoute) bool {
	return r.Protocol == RouteProtocol && r.Metric == RouteMetric && r.Interface != h.cfg.Link &&
		slices.ContainsFunc(h.journal.lan, func(o lanRoute) bool { return o.prefix == r.Prefix })
}

// applyLAN makes the routes through hosts of LANs as wanted: those that cannot
// be are left out, those that are not wanted go, missing ones are added and
// those that others have bent are bent back.
func (h *Host) applyLAN(d Desired) error {
	if len(d.LAN)+len(h.journal.lan) == 0 {
		return nil
	}
	facts, err := h.facts()
	if err != nil {
		return err
	}
	var errs []error
	var want []lanRoute
	links := make(map[string]int)
	for _, r := range d.LAN {
		if slices.ContainsFunc(d.Routes, func(o Route) bool { return o.Prefix == r.Prefix }) {
			errs = append(errs, fmt.Errorf("route %v via %v: the prefix is reached through the mesh", r.Prefix, r.Via))
			continue
		}
		i, err := facts.CheckLAN(r)
		if err != nil && !h.adopts(err, r, facts) {
			errs = append(errs, err)
			continue
		}
		if err != nil {
			i, _ = facts.OnLink(r.Via) // adopts has looked
		}
		want, links[i.Name] = append(want, lanRoute{r.Prefix, r.Via, i.Name}), i.Index
	}
	if err := h.dropLAN(want); err != nil {
		errs = append(errs, err)
	}
	next := h.journal.clone()
	for _, r := range want {
		if !slices.Contains(next.lan, r) {
			next.lan = append(next.lan, r)
		}
	}
	if err := h.keep(next); err != nil {
		return errors.Join(append(errs, err)...)
	}
	for _, r := range want {
		errs = append(errs, h.ensureLAN(r, links[r.link]))
	}
	// The old form of a route that was changed is in nobody's way any more.
	next = h.journal.clone()
	next.lan = slices.DeleteFunc(next.lan, func(r lanRoute) bool {
		return !slices.Contains(want, r) && slices.ContainsFunc(want, func(w lanRoute) bool { return w.prefix == r.prefix })
	})
	return errors.Join(append(errs, h.keep(next))...)
}

// adopts reports whether what a route collides with is that route itself: left
// by a run whose journal somebody removed.
func (h *Host) adopts(err error, r LANRoute, facts Facts) bool {
	c, ok := errors.AsType[*CollisionError](err)
	if !ok || c.With.Protocol != RouteProtocol || c.With.Metric != RouteMetric || c.With.Prefix != r.Prefix || c.With.NextHop != r.Via {
		return false
	}
	i, err := facts.OnLink(r.Via)
	return err == nil && i.Name == c.With.Interface
}

// dropLAN removes the routes whose prefixes are not wanted any more.
func (h *Host) dropLAN(want []lanRoute) error {
	var gone, rest []lanRoute
	for _, r := range h.journal.lan {
		if slices.ContainsFunc(want, func(w lanRoute) bool { return w.prefix == r.prefix }) {
			rest = append(rest, r)
		} else {
			gone = append(gone, r)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	left, err := h.removeLAN(gone)
	next := h.journal.clone()
	next.lan = append(rest, left...)
	return errors.Join(err, h.keep(next))
}

// ensureLAN adds a route, or bends ours back in one step, so that no packet
// goes elsewhere meanwhile. The journal has the route already.
func (h *Host) ensureLAN(r lanRoute, link int) error {
	have, err := h.lanRoutes(r.prefix)
	if err != nil {
		return err
	}
	next := kernelLANRoute(r, link)
	switch {
	case len(have) == 1 && sameLANRoute(have[0], next):
		return nil
	case len(have) > 0:
		if err := h.nl.RouteReplace(&next); err != nil {
			return fmt.Errorf("change route %v via %v: %w", r.prefix, r.via, err)
		}
		h.log.Info("route changed", "route", r.prefix, "via", r.via, "interface", r.link)
		return nil
	}
	if err := h.nl.RouteAdd(&next); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("add route %v via %v: somebody else has one with metric %d: %w", r.prefix, r.via, RouteMetric, err)
		}
		return fmt.Errorf("add route %v via %v: %w", r.prefix, r.via, err)
	}
	h.log.Info("route added", "route", r.prefix, "via", r.via, "interface", r.link)
	return nil
}

// lanRoutes returns the routes for exactly p with our mark and metric on other
// interfaces than that of the overlay.
func (h *Host) lanRoutes(p netip.Prefix) ([]netlink.Route, error) {
	family := netlink.FAMILY_V4
	if p.Addr().Is6() {
		family = netlink.FAMILY_V6
	}
	filter := &netlink.Route{Protocol: RouteProtocol, Dst: ipNet(p)}
	routes, err := retry(func() ([]netlink.Route, error) {
		return h.nl.RouteListFiltered(family, filter, netlink.RT_FILTER_PROTOCOL|netlink.RT_FILTER_DST)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes: %w", err)
	}
	own := -1
	if l, err := h.link(h.cfg.Link); err == nil {
		own = l.Attrs().Index
	}
	return slices.DeleteFunc(routes, func(r netlink.Route) bool { return r.Priority != RouteMetric || r.LinkIndex == own }), nil
}

func kernelLANRoute(r lanRoute, link int) netlink.Route {
	return netlink.Route{
		LinkIndex: link,
		Dst:       ipNet(r.prefix),
		Gw:        r.via.AsSlice(),
		Protocol:  RouteProtocol,
		Priority:  RouteMetric,
		Table:     unix.RT_TABLE_MAIN,
		Type:      unix.RTN_UNICAST,
	}
}

// sameLANRoute compares what we set; prefix, mark and metric are known to be equal.
func sameLANRoute(a, b netlink.Route) bool {
	return a.LinkIndex == b.LinkIndex && a.Gw.Equal(b.Gw) && a.Type == b.Type && a.Src == nil && a.MTU == 0 &&
		a.Via == nil && len(a.MultiPath) == 0
}

// removeLAN removes routes in reverse order and returns those that could not be
// removed. One that is not there, or not exactly so, counts as removed.
func (h *Host) removeLAN(routes []lanRoute) (left []lanRoute, err error) {
	var errs []error
	for _, r := range slices.Backward(routes) {
		l, err := h.link(r.link)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err == nil {
			k := kernelLANRoute(r, l.Attrs().Index)
			if err = h.nl.RouteDel(&k); errors.Is(err, unix.ESRCH) {
				continue
			}
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("remove route %v via %v: %w", r.prefix, r.via, err))
			left = append(left, r)
			continue
		}
		h.log.Info("route removed", "route", r.prefix, "via", r.via)
	}
	slices.Reverse(left)
	return left, errors.Join(errs...)
}
