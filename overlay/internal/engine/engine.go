// Package engine decides what a gateway wants: which peers, which prefixes on
// which peer, which routes. It is a pure function of announcements,
// configuration and measurements; others apply the difference.
package engine

import (
	"bytes"
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Inputs is everything that the decision depends on.
type Inputs struct {
	Self          trust.GatewayID
	Site          string
	Announcements []Announcement // of unexpired, unrevoked gateways, this one included
	Proven        map[trust.GatewayID]bool
	Alive         map[trust.GatewayID]bool
	Accept        []netip.Prefix // routes must lie within one; empty: all
	Local         []Local
	Overlay       netip.Prefix // the overlay block
}

// Announcement is what the engine needs of a gateway's record.
type Announcement struct {
	ID        trust.GatewayID
	Name      string
	Site      string
	WireGuard trust.ExchangeKey
	Overlay   netip.Addr
	Grants    []Grant
	Routes    []AnnouncedRoute
	Left      bool
}

// Grant is the right to a prefix, with what orders it against others.
type Grant struct {
	Prefix netip.Prefix
	Claim  trust.Claim
}

// AnnouncedRoute is a prefix that a gateway offers.
type AnnouncedRoute struct {
	Prefix   netip.Prefix
	Priority uint16 // lower is preferred
}

// Local is a prefix that no route from others may overlap, with the reason.
type Local struct {
	Prefix netip.Prefix
	Reason string
}

// Desired is the decision. All lists are in a fixed order, so equal inputs give
// equal values.
type Desired struct {
	Peers     []Peer     // ascending by ID
	Routes    []Route    // ascending by prefix
	Conflicts []Conflict // ascending by prefix
	Refused   []Refused  // ascending by prefix
}

// Peer is a gateway that the device has a session with.
type Peer struct {
	ID        trust.GatewayID
	WireGuard trust.ExchangeKey
	Overlay   netip.Addr
	Allowed   []netip.Prefix // ascending: the overlay address and the routes
}

// Route is a prefix that is reached through a peer.
type Route struct {
	Prefix  netip.Prefix
	Peer    trust.GatewayID
	Name    string
	Site    string
	Standby []string // other gateways of the site, best first
	Why     string
}

// Conflict is a pair of overlapping grants of different sites.
type Conflict struct {
	Prefix netip.Prefix // of the loser
	Winner string       // gateway names
	Loser  string
	Reason string
}

// Refused is a route that another gateway announces and that is not installed.
type Refused struct {
	Prefix netip.Prefix
	Name   string
	Reason string
}

// Compute decides.
func Compute(in Inputs) Desired {
	d := decision{in: &in}
	d.settleOwnership()
	d.chooseRoutes()
	d.choosePeers()
	return d.out
}

type decision struct {
	in  *Inputs
	out Desired
	// lost holds, for each gateway, the grants that another site's win over.
	lost map[trust.GatewayID][]netip.Prefix
}

// settleOwnership finds overlapping grants of different sites. It looks at
// grants alone: announcements and liveness do not count.
func (d *decision) settleOwnership() {
	d.lost = make(map[trust.GatewayID][]netip.Prefix)
	type held struct {
		*Announcement
		Grant
	}
	var all []held
	for i := range d.in.Announcements {
		a := &d.in.Announcements[i]
		for _, g := range a.Grants {
			all = append(all, held{a, g})
		}
	}
	slices.SortFunc(all, func(a, b held) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), bytes.Compare(a.ID[:], b.ID[:]))
	})
	// Sorted by address, a prefix overlaps only with those that follow it until
	// one begins behind its end: nested ones come after what contains them.
	for i, a := range all {
		for _, b := range all[i+1:] {
			if !a.Prefix.Overlaps(b.Prefix) {
				break
			}
			if a.Site == b.Site {
				continue
			}
			winner, loser := a, b
			if b.Claim.Before(a.Claim) {
				winner, loser = b, a
			}
			d.lost[loser.ID] = append(d.lost[loser.ID], winner.Prefix)
			d.out.Conflicts = append(d.out.Conflicts, Conflict{
				Prefix: loser.Prefix, Winner: winner.Name, Loser: loser.Name,
				Reason: fmt.Sprintf("%v of site %s overlaps %v of site %s, which was granted first", loser.Prefix, loser.Site, winner.Prefix, winner.Site),
			})
		}
	}
	slices.SortFunc(d.out.Conflicts, func(a, b Conflict) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Loser, b.Loser), cmp.Compare(a.Winner, b.Winner))
	})
}

// offer is one gateway's offer of one prefix.
type offer struct {
	*Announcement
	AnnouncedRoute
	alive bool
}

// better orders offers of one prefix: configured priority, then health, then ID.
func (a offer) better(b offer) int {
	return cmp.Or(
		cmp.Compare(btoi(b.alive), btoi(a.alive)),
		cmp.Compare(a.Priority, b.Priority),
		bytes.Compare(a.ID[:], b.ID[:]),
	)
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// chooseRoutes collects the offers of other sites and chooses one gateway for
// each prefix.
func (d *decision) chooseRoutes() {
	offers := make(map[netip.Prefix][]offer)
	for i := range d.in.Announcements {
		a := &d.in.Announcements[i]
		if a.ID == d.in.Self || a.Left || a.Site == d.in.Site || !d.in.Proven[a.ID] {
			continue
		}
		for _, r := range a.Routes {
			if reason := d.refuse(a, r.Prefix); reason != "" {
				d.out.Refused = append(d.out.Refused, Refused{Prefix: r.Prefix, Name: a.Name, Reason: reason})
				continue
			}
			offers[r.Prefix] = append(offers[r.Prefix], offer{a, r, d.in.Alive[a.ID]})
		}
	}
	for prefix, list := range offers {
		slices.SortFunc(list, offer.better)
		route := Route{Prefix: prefix, Peer: list[0].ID, Name: list[0].Name, Site: list[0].Site, Why: why(list)}
		for _, o := range list[1:] {
			route.Standby = append(route.Standby, o.Name)
		}
		d.out.Routes = append(d.out.Routes, route)
	}
	slices.SortFunc(d.out.Routes, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortFunc(d.out.Refused, func(a, b Refused) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Name, b.Name))
	})
}

// why says for people what decided between the offers, best first.
func why(list []offer) string {
	if len(list) == 1 {
		if !list[0].alive {
			return "only gateway; unreachable at present"
		}
		return "only gateway"
	}
	a, b := list[0], list[1]
	switch {
	case a.alive != b.alive:
		return fmt.Sprintf("%s does not answer", b.Name)
	case a.Priority != b.Priority:
		return fmt.Sprintf("priority %d before %d", a.Priority, b.Priority)
	}
	return "equal priority; lower gateway id"
}

// refuse returns why a prefix of a is not installed here, or "".
func (d *decision) refuse(a *Announcement, p netip.Prefix) string {
	if !slices.ContainsFunc(a.Grants, func(g Grant) bool { return contains(g.Prefix, p) }) {
		return "not granted to it"
	}
	for _, lost := range d.lost[a.ID] {
		if lost.Overlaps(p) {
			return fmt.Sprintf("another site was granted %v first", lost)
		}
	}
	if p.Overlaps(d.in.Overlay) {
		return fmt.Sprintf("overlaps the overlay block %v", d.in.Overlay)
	}
	if len(d.in.Accept) > 0 && !slices.ContainsFunc(d.in.Accept, func(q netip.Prefix) bool { return contains(q, p) }) {
		return "not within the accept list of this gateway"
	}
	for _, l := range d.in.Local {
		if l.Prefix.Overlaps(p) {
			return l.Reason
		}
	}
	return ""
}

// contains reports whether p lies within q.
func contains(q, p netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }

// choosePeers lists every proven gateway with what it may send.
func (d *decision) choosePeers() {
	allowed := make(map[trust.GatewayID][]netip.Prefix)
	for _, r := range d.out.Routes {
		allowed[r.Peer] = append(allowed[r.Peer], r.Prefix)
	}
	keys := make(map[trust.ExchangeKey]bool)
	for _, a := range d.in.Announcements {
		if a.ID == d.in.Self || a.Left || !d.in.Proven[a.ID] || keys[a.WireGuard] {
			continue
		}
		keys[a.WireGuard] = true
		p := Peer{ID: a.ID, WireGuard: a.WireGuard, Overlay: a.Overlay, Allowed: allowed[a.ID]}
		p.Allowed = append(p.Allowed, netip.PrefixFrom(a.Overlay, 128))
		slices.SortFunc(p.Allowed, netip.Prefix.Compare)
		d.out.Peers = append(d.out.Peers, p)
	}
	slices.SortFunc(d.out.Peers, func(a, b Peer) int { return bytes.Compare(a.ID[:], b.ID[:]) })
}

// PeerChange is one step from one desired state to another.
type PeerChange struct {
	ID        trust.GatewayID
	WireGuard trust.ExchangeKey
	Remove    bool           // the peer, with all it has
	Drop      []netip.Prefix // take these from it
	Add       []netip.Prefix // give it these; it is created if it is not there
}

// Diff lists the steps from old to new. A session that did not change is not
// touched. Prefixes are taken away before they are given to another peer, so
// that each has one owner at every moment.
func Diff(old, next Desired) []PeerChange {
	had := make(map[trust.ExchangeKey]Peer)
	for _, p := range old.Peers {
		had[p.WireGuard] = p
	}
	var take, give []PeerChange
	for _, p := range next.Peers {
		before, existed := had[p.WireGuard]
		if existed && before.ID != p.ID {
			// The key went to another identity: nothing of the old session stays.
			existed, before = false, Peer{}
		} else {
			delete(had, p.WireGuard)
		}
		if drop := without(before.Allowed, p.Allowed); len(drop) > 0 {
			take = append(take, PeerChange{ID: p.ID, WireGuard: p.WireGuard, Drop: drop})
		}
		if add := without(p.Allowed, before.Allowed); len(add) > 0 || !existed {
			give = append(give, PeerChange{ID: p.ID, WireGuard: p.WireGuard, Add: add})
		}
	}
	var gone []PeerChange
	for _, p := range old.Peers {
		if _, still := had[p.WireGuard]; still {
			gone = append(gone, PeerChange{ID: p.ID, WireGuard: p.WireGuard, Remove: true})
		}
	}
	return slices.Concat(gone, take, give)
}

// without returns the elements of a that are not in b; both are ascending.
func without(a, b []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range a {
		if _, found := slices.BinarySearchFunc(b, p, netip.Prefix.Compare); !found {
			out = append(out, p)
		}
	}
	return out
}
