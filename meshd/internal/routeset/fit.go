package routeset

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/planetmesh/planetmesh/overlay"
)

// Around is what sets have to go with.
type Around struct {
	Granted   []netip.Prefix
	Announced []netip.Prefix // without any set, and without attached routers
	Attached  []Attached
	// NoLAN says why this gateway routes nothing through hosts of LANs; empty
	// means that it does.
	NoLAN string
}

// Attached is what lies behind an attached router.
type Attached struct {
	Name     string
	Prefixes []netip.Prefix
}

// Fit returns the sets that go with what is around them and with each other,
// and an *Error for each of the rest, by name. Where two do not go together the
// earlier one stays.
func Fit(sets []Set, a Around) (fitting []Set, problems map[string]error) {
	fitting, problems = slices.Clone(sets), make(map[string]error)
	for {
		i, err := a.misfit(fitting)
		if err == nil {
			return fitting, problems
		}
		problems[fitting[i].Name] = &Error{fitting[i].Name, err}
		fitting = slices.Delete(fitting, i, i+1) // others may have counted on it
	}
}

// misfit returns the first set that does not fit, and why.
func (a Around) misfit(sets []Set) (int, error) {
	announced := slices.Clone(a.Announced)
	lan := 0
	for i, s := range sets {
		if err := a.checkAnnounce(s); err != nil {
			return i, err
		}
		announced = append(announced, s.Announce...)
		if lan += len(s.LAN); i >= MaxSets || lan > MaxAllLAN {
			return i, fmt.Errorf("want at most %d sets with at most %d routes in all", MaxSets, MaxAllLAN)
		}
	}
	for i, s := range sets {
		for _, r := range s.LAN {
			if err := a.checkLAN(r, announced, sets[:i]); err != nil {
				return i, err
			}
		}
	}
	return 0, nil
}

func (a Around) checkAnnounce(s Set) error {
	for _, p := range s.Announce {
		if !covered(p, a.Granted) {
			return &overlay.GrantError{Prefix: p, Granted: a.Granted}
		}
		if err := a.checkAttached(p); err != nil {
			return err
		}
		for _, q := range a.Announced {
			if q != p && covers(p, q) {
				return fmt.Errorf("announce %v: the configuration announces %v, which is a part of it", p, q)
			}
		}
	}
	return nil
}

func (a Around) checkLAN(r overlay.LANRoute, announced []netip.Prefix, before []Set) error {
	if a.NoLAN != "" {
		return fmt.Errorf("lan %v via %v: %s", r.Prefix, r.Via, a.NoLAN)
	}
	if !covered(r.Prefix, a.Granted) {
		return &overlay.GrantError{Prefix: r.Prefix, Granted: a.Granted}
	}
	if err := a.checkAttached(r.Prefix); err != nil {
		return err
	}
	if !covered(r.Prefix, announced) {
		return fmt.Errorf("lan %v: not within anything that this gateway announces", r.Prefix)
	}
	for _, s := range before {
		for _, o := range s.LAN {
			if o.Prefix == r.Prefix && o.Via != r.Via {
				return fmt.Errorf("lan %v via %v: route set %s has it via %v", r.Prefix, r.Via, s.Name, o.Via)
			}
		}
	}
	return nil
}

// checkAttached refuses what lies behind a router: it is announced while the
// router is there, and routed to it.
func (a Around) checkAttached(p netip.Prefix) error {
	for _, o := range a.Attached {
		for _, q := range o.Prefixes {
			if p.Overlaps(q) {
				return fmt.Errorf("%v: overlaps %v of the attached router %s", p, q, o.Name)
			}
		}
	}
	return nil
}

// Merge adds what sets announce to routes, without what is covered already.
func Merge(routes []overlay.Route, sets []Set) []overlay.Route {
	var more []netip.Prefix
	for _, s := range sets {
		more = append(more, s.Announce...)
	}
	// The shortest first: it may cover others.
	slices.SortStableFunc(more, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	out := slices.Clone(routes)
	for _, p := range more {
		if !slices.ContainsFunc(out, func(r overlay.Route) bool { return covers(r.Prefix, p) }) {
			out = append(out, overlay.Route{Prefix: p})
		}
	}
	return out
}

// LAN returns the routes of all sets, each prefix once.
func LAN(sets []Set) []overlay.LANRoute {
	var out []overlay.LANRoute
	for _, s := range sets {
		for _, r := range s.LAN {
			if !slices.Contains(out, r) {
				out = append(out, r)
			}
		}
	}
	return out
}

func covered(p netip.Prefix, by []netip.Prefix) bool {
	return slices.ContainsFunc(by, func(q netip.Prefix) bool { return covers(q, p) })
}

// covers reports whether p lies within q.
func covers(q, p netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }
