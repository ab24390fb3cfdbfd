package engine

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Compute decides what this gateway should have. Equal inputs give equal
// outputs, whatever the order of the announcements. Malformed prefixes are
// refused, nothing panics. Safe for concurrent use.
func Compute(in Inputs) Desired {
	c := newComputation(in)
	c.choosePeers()
	for _, a := range c.known {
		for _, r := range a.Routes {
			c.consider(a, r)
		}
	}
	c.chooseRoutes()
	c.finish()
	return c.out
}

// computation is one run of Compute.
type computation struct {
	in      Inputs
	known   []*Announcement // not expired, ascending by ID
	self    *Announcement   // nil if it is not among them
	claims  *index[claim]
	local   *index[Local]
	own     *index[*Announcement] // what the own site announces
	peers   map[trust.GatewayID]int
	offers  map[netip.Prefix][]offer
	out     Desired
	overlay map[netip.Addr]bool // taken
}

// claim is a grant of somebody.
type claim struct {
	claim  trust.Claim
	prefix netip.Prefix
	holder *Announcement
}

// offer is a route that may be installed, if a path to its gateway is proven.
type offer struct {
	from     *Announcement
	priority uint16
	usable   bool // the gateway is a peer of the device
	alive    bool
}

func newComputation(in Inputs) *computation {
	c := &computation{
		in:      in,
		peers:   make(map[trust.GatewayID]int),
		offers:  make(map[netip.Prefix][]offer),
		overlay: make(map[netip.Addr]bool),
	}
	for i := range in.Announcements {
		a := &in.Announcements[i]
		if in.Now.IsZero() || a.NotAfter.IsZero() || !in.Now.After(a.NotAfter) {
			c.known = append(c.known, a)
		}
	}
	slices.SortFunc(c.known, func(a, b *Announcement) int { return compareID(a.ID, b.ID) })
	if i := slices.IndexFunc(c.known, func(a *Announcement) bool { return a.ID == in.Self }); i >= 0 {
		c.self = c.known[i]
	}
	var claims []entry[claim]
	var own []entry[*Announcement]
	for _, a := range c.known {
		for _, g := range a.Grants {
			if wellFormed(g.Prefix) {
				claims = append(claims, entry[claim]{g.Prefix, claim{g.Claim, g.Prefix, a}})
			}
		}
		for _, r := range a.Routes {
			if wellFormed(r.Prefix) && c.ofOwnSite(a) && granted(a, r.Prefix) && !a.Left {
				own = append(own, entry[*Announcement]{r.Prefix, a})
			}
		}
	}
	var local []entry[Local]
	for _, l := range in.Local {
		if l.Prefix.IsValid() {
			l.Prefix = unmapped(l.Prefix).Masked()
			local = append(local, entry[Local]{l.Prefix, l})
		}
	}
	c.claims, c.own, c.local = newIndex(claims), newIndex(own), newIndex(local)
	return c
}

// choosePeers makes a peer of every gateway with a proven path. Two peers with
// one key would be one peer to WireGuard: the lower ID keeps it.
func (c *computation) choosePeers() {
	keys := make(map[trust.ExchangeKey]*Announcement)
	if c.self != nil {
		keys[c.self.WireGuard] = c.self
	}
	for _, a := range c.known {
		if a.Left || a.ID == c.in.Self || !c.in.Proven[a.ID] || a.WireGuard == (trust.ExchangeKey{}) {
			continue
		}
		if other := keys[a.WireGuard]; other != nil {
			c.refuse(a, hostPrefix(a.Overlay), fmt.Sprintf("its wireguard key is also that of %s", other.Name))
			continue
		}
		keys[a.WireGuard] = a
		p := Peer{ID: a.ID, Name: a.Name, Site: a.Site, WireGuard: a.WireGuard}
		if reason := c.overlayFault(a.Overlay); reason != "" {
			c.refuse(a, hostPrefix(a.Overlay), reason)
		} else {
			c.overlay[a.Overlay] = true
			p.Overlay = a.Overlay
			p.Allowed = append(p.Allowed, hostPrefix(a.Overlay))
		}
		c.peers[a.ID] = len(c.out.Peers)
		c.out.Peers = append(c.out.Peers, p)
	}
}

// overlayFault says why an overlay address cannot be used, or nothing.
func (c *computation) overlayFault(addr netip.Addr) string {
	switch {
	case !addr.Is6() || addr.Is4In6() || addr.Zone() != "":
		return "its overlay address is not an ipv6 address"
	case c.in.Overlay.IsValid() && !c.in.Overlay.Contains(addr):
		return fmt.Sprintf("its overlay address lies outside of %v", c.in.Overlay)
	case c.overlay[addr], c.self != nil && c.self.Overlay == addr:
		return "its overlay address is also that of another gateway"
	}
	return ""
}

// consider sorts one announced route into what it is: an offer, or one of the
// reasons not to install it.
func (c *computation) consider(a *Announcement, r AnnouncedRoute) {
	if a.Left {
		return
	}
	if !wellFormed(r.Prefix) {
		c.refuse(a, r.Prefix, "not a prefix")
		return
	}
	if !granted(a, r.Prefix) {
		c.refuse(a, r.Prefix, "outside of its grants")
		return
	}
	if winner, mine := c.betterClaim(a, r.Prefix); winner != nil {
		c.out.Conflicts = append(c.out.Conflicts, Conflict{
			Prefix: r.Prefix,
			Winner: winner.holder.Name, WinnerSite: winner.holder.Site,
			Loser: a.Name, LoserSite: a.Site,
			Reason: conflictReason(winner, mine),
		})
		return
	}
	switch {
	case a.ID == c.in.Self:
		return
	case c.ofOwnSite(a):
		c.standby(a, r.Prefix, "of this site: its networks are not routed into the overlay")
		return
	}
	if reason := c.fault(r.Prefix); reason != "" {
		c.refuse(a, r.Prefix, reason)
		return
	}
	_, usable := c.peers[a.ID]
	c.offers[r.Prefix] = append(c.offers[r.Prefix], offer{a, r.Priority, usable, c.in.Alive[a.ID]})
}

// betterClaim returns the best claim of another site that overlaps p and beats
// that of a's site, and the claim of a's site.
func (c *computation) betterClaim(a *Announcement, p netip.Prefix) (winner, mine *claim) {
	for cl := range c.claims.covering(p) {
		if sameSite(cl.holder, a) && (mine == nil || cl.before(*mine)) {
			mine = &cl
		}
	}
	for cl := range c.claims.overlapping(p) {
		if !sameSite(cl.holder, a) && cl.before(*mine) && (winner == nil || cl.before(*winner)) {
			winner = &cl
		}
	}
	return winner, mine
}

// before is a total order over the claims of different sites. Hashes differ, so
// the names only matter for inputs that no signature ever covered.
func (cl claim) before(other claim) bool {
	switch {
	case cl.claim.Before(other.claim):
		return true
	case other.claim.Before(cl.claim):
		return false
	}
	return siteOrder(cl.holder, other.holder) < 0
}

func conflictReason(winner, loser *claim) string {
	w, l := winner.claim, loser.claim
	switch {
	case w.Delegation != l.Delegation:
		return fmt.Sprintf("overlaps the grant %v of %s: delegation %d before %d", winner.prefix, winner.holder.Site, w.Delegation, l.Delegation)
	case w.Grant != l.Grant:
		return fmt.Sprintf("overlaps the grant %v of %s: grant %d before %d", winner.prefix, winner.holder.Site, w.Grant, l.Grant)
	}
	return fmt.Sprintf("overlaps the grant %v of %s: smaller certificate hash", winner.prefix, winner.holder.Site)
}

// fault says why a route of another site cannot be installed on this gateway,
// or nothing.
func (c *computation) fault(p netip.Prefix) string {
	if c.in.Overlay.IsValid() && c.in.Overlay.Overlaps(p) {
		return fmt.Sprintf("overlaps the overlay block %v", c.in.Overlay)
	}
	if a, overlaps := c.own.overlap(p); overlaps {
		return fmt.Sprintf("overlaps what %s of this site announces", a.Name)
	}
	if l, overlaps := c.local.overlap(p); overlaps {
		return cmp.Or(l.Reason, fmt.Sprintf("overlaps %v of this host", l.Prefix))
	}
	if len(c.in.Accept) > 0 && !slices.ContainsFunc(c.in.Accept, func(q netip.Prefix) bool { return within(p, q) }) {
		return "not within the accept list"
	}
	return ""
}

// chooseRoutes picks a gateway for every prefix that is on offer.
func (c *computation) chooseRoutes() {
	for p, offers := range c.offers {
		slices.SortFunc(offers, compareOffers)
		best := offers[0]
		if !best.usable {
			for _, o := range offers {
				c.standby(o.from, p, o.unlike(best))
			}
			continue
		}
		r := Route{Prefix: p, Peer: best.from.ID, Name: best.from.Name, Site: best.from.Site, Why: best.why(offers[1:])}
		for _, o := range offers[1:] {
			r.Standby = append(r.Standby, o.from.Name)
			c.standby(o.from, p, o.unlike(best))
		}
		c.out.Routes = append(c.out.Routes, r)
		peer := &c.out.Peers[c.peers[r.Peer]]
		peer.Allowed = append(peer.Allowed, p)
	}
}

// compareOffers orders the best first.
func compareOffers(a, b offer) int {
	return cmp.Or(
		first(a.usable, b.usable),
		first(a.alive, b.alive),
		cmp.Compare(a.priority, b.priority),
		compareID(a.from.ID, b.from.ID),
	)
}

// why says what made o the best; others is the rest, best first.
func (o offer) why(others []offer) string {
	kept := ""
	if !o.alive {
		kept = "; does not answer, kept so that nothing leaks"
	}
	switch {
	case len(others) == 0:
		return "only gateway that announces it" + kept
	case !others[0].usable:
		return "only gateway with a proven path" + kept
	case o.alive && !others[0].alive:
		return "answers, others do not"
	case o.priority != others[0].priority:
		return fmt.Sprintf("priority %d before %d", o.priority, others[0].priority) + kept
	}
	return "lowest id of equal priority" + kept
}

// unlike says why o stands behind best.
func (o offer) unlike(best offer) string {
	switch {
	case !o.usable:
		return "no path to it is proven"
	case best.alive && !o.alive:
		return "does not answer"
	case o.priority != best.priority:
		return fmt.Sprintf("priority %d after %d", o.priority, best.priority)
	}
	return "higher id of equal priority"
}

// finish puts everything in order.
func (c *computation) finish() {
	for i := range c.out.Peers {
		slices.SortFunc(c.out.Peers[i].Allowed, netip.Prefix.Compare)
	}
	slices.SortFunc(c.out.Routes, func(a, b Route) int { return a.Prefix.Compare(b.Prefix) })
	// Stable: of one prefix, the order of the offers.
	slices.SortStableFunc(c.out.Standby, func(a, b Standby) int { return a.Prefix.Compare(b.Prefix) })
	slices.SortStableFunc(c.out.Conflicts, func(a, b Conflict) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), strings.Compare(a.Loser, b.Loser))
	})
	slices.SortStableFunc(c.out.Refused, func(a, b Refused) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), strings.Compare(a.Name, b.Name))
	})
}

func (c *computation) refuse(a *Announcement, p netip.Prefix, reason string) {
	if a.ID != c.in.Self {
		c.out.Refused = append(c.out.Refused, Refused{p, a.ID, a.Name, a.Site, reason})
	}
}

func (c *computation) standby(a *Announcement, p netip.Prefix, why string) {
	c.out.Standby = append(c.out.Standby, Standby{p, a.ID, a.Name, a.Site, why})
}

// ofOwnSite reports whether a is a gateway of this gateway's site, itself
// included. Without an own announcement the name decides alone.
func (c *computation) ofOwnSite(a *Announcement) bool {
	if c.self != nil {
		return sameSite(a, c.self)
	}
	return a.ID == c.in.Self || a.Site == c.in.Site
}

func sameSite(a, b *Announcement) bool { return siteOrder(a, b) == 0 }

func siteOrder(a, b *Announcement) int {
	return cmp.Or(strings.Compare(a.Org, b.Org), strings.Compare(a.Site, b.Site))
}

// granted reports whether p lies within a grant of a.
func granted(a *Announcement, p netip.Prefix) bool {
	return slices.ContainsFunc(a.Grants, func(g Grant) bool { return wellFormed(g.Prefix) && within(p, g.Prefix) })
}

// within reports whether q contains all of p.
func within(p, q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Contains(p.Addr()) }

// first orders true before false.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func compareID(a, b trust.GatewayID) int { return slices.Compare(a[:], b[:]) }

func hostPrefix(addr netip.Addr) netip.Prefix { return netip.PrefixFrom(addr, addr.BitLen()) }

// unmapped turns an IPv4-mapped IPv6 prefix into what it means.
func unmapped(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		return netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p
}
