package engine

import (
	"cmp"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// rounds of each property; every round is a mesh of its own.
const rounds = 400

// randomInputs draws a small mesh in a small address space, so that grants
// overlap, and everything that can be wrong is wrong now and then.
func randomInputs(r *rand.Rand) Inputs {
	in := Inputs{Overlay: testBlock, Proven: make(map[trust.GatewayID]bool), Alive: make(map[trust.GatewayID]bool)}
	sites := 2 + r.IntN(5)
	for i := range 2 + r.IntN(9) {
		site := r.IntN(sites)
		a := Announcement{
			ID:        trust.GatewayID{byte(r.IntN(256)), byte(i)},
			Name:      string(rune('a' + i)),
			Site:      "site" + string(rune('0'+site)),
			WireGuard: trust.ExchangeKey{1, byte(i)},
			Overlay:   netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 0, 2, 15: byte(i + 1)}),
			Left:      r.IntN(12) == 0,
		}
		if r.IntN(8) == 0 {
			a.Org = "org"
		}
		for range r.IntN(4) {
			g := Grant{Prefix: randomPrefix(r), Claim: trust.Claim{Delegation: r.Uint64N(3), Grant: r.Uint64N(3), Hash: [32]byte{byte(r.IntN(3)), byte(i)}}}
			a.Grants = append(a.Grants, g)
			for range r.IntN(3) {
				a.Routes = append(a.Routes, AnnouncedRoute{narrower(r, g.Prefix), uint16(r.IntN(3))})
			}
		}
		if r.IntN(6) == 0 { // somebody announces what is not granted
			a.Routes = append(a.Routes, AnnouncedRoute{Prefix: randomPrefix(r)})
		}
		slices.SortFunc(a.Routes, func(x, y AnnouncedRoute) int { return x.Prefix.Compare(y.Prefix) })
		a.Routes = slices.CompactFunc(a.Routes, func(x, y AnnouncedRoute) bool { return x.Prefix == y.Prefix })
		in.Announcements = append(in.Announcements, a)
		in.Proven[a.ID], in.Alive[a.ID] = r.IntN(5) > 0, r.IntN(3) > 0
	}
	if r.IntN(3) == 0 {
		p := randomPrefix(r)
		in.Local = append(in.Local, Local{netip.PrefixFrom(p.Addr(), p.Bits()+2), "local"})
	}
	if r.IntN(4) == 0 {
		in.Accept = append(in.Accept, netip.PrefixFrom(netip.AddrFrom4([4]byte{}), r.IntN(6)), randomPrefix(r))
	}
	return seenBy(in, in.Announcements[r.IntN(len(in.Announcements))])
}

func randomPrefix(r *rand.Rand) netip.Prefix {
	if r.IntN(4) == 0 {
		a := netip.AddrFrom16([16]byte{0xfd, 0x10, byte(r.IntN(8)) << 5})
		return netip.PrefixFrom(a, 16+r.IntN(4)).Masked()
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(r.IntN(16)) << 4}), 9+r.IntN(5)).Masked()
}

func narrower(r *rand.Rand, p netip.Prefix) netip.Prefix {
	return netip.PrefixFrom(p.Addr(), p.Bits()+r.IntN(2))
}

// seenBy returns the inputs of another gateway that measures the same.
func seenBy(in Inputs, a Announcement) Inputs {
	in.Self, in.Site = a.ID, a.Site
	in.Proven = maps.Clone(in.Proven)
	delete(in.Proven, a.ID)
	return in
}

// mayAnnounce decides by looking at every grant: does a's site own p, and is p
// granted to a?
func mayAnnounce(in Inputs, a Announcement, p netip.Prefix) bool {
	contains := func(g netip.Prefix) bool { return g.Bits() <= p.Bits() && g.Overlaps(p) }
	if !slices.ContainsFunc(a.Grants, func(g Grant) bool { return contains(g.Prefix) }) {
		return false
	}
	var best *trust.Claim
	for _, b := range in.Announcements {
		for _, g := range b.Grants {
			if b.Site == a.Site && b.Org == a.Org && contains(g.Prefix) && (best == nil || g.Claim.Before(*best)) {
				best = &g.Claim
			}
		}
	}
	for _, b := range in.Announcements {
		for _, g := range b.Grants {
			if (b.Site != a.Site || b.Org != a.Org) && g.Prefix.Overlaps(p) && g.Claim.Before(*best) {
				return false
			}
		}
	}
	return true
}

// expected decides by trying every route of every gateway: which prefixes are
// installed, and by which gateways they could be carried.
func expected(in Inputs) map[netip.Prefix][]Announcement {
	out := make(map[netip.Prefix][]Announcement)
	self := in.Announcements[slices.IndexFunc(in.Announcements, func(a Announcement) bool { return a.ID == in.Self })]
	for _, a := range in.Announcements {
		if a.Left || !in.Proven[a.ID] || a.Site == self.Site && a.Org == self.Org {
			continue
		}
		for _, r := range a.Routes {
			if mayAnnounce(in, a, r.Prefix) && possible(in, self, r.Prefix) {
				out[r.Prefix] = append(out[r.Prefix], a)
			}
		}
	}
	return out
}

func possible(in Inputs, self Announcement, p netip.Prefix) bool {
	for _, l := range in.Local {
		if l.Prefix.Overlaps(p) {
			return false
		}
	}
	for _, a := range in.Announcements {
		for _, r := range a.Routes {
			granted := slices.ContainsFunc(a.Grants, func(g Grant) bool { return g.Prefix.Bits() <= r.Prefix.Bits() && g.Prefix.Overlaps(r.Prefix) })
			if !a.Left && a.Site == self.Site && a.Org == self.Org && granted && r.Prefix.Overlaps(p) {
				return false
			}
		}
	}
	return len(in.Accept) == 0 || slices.ContainsFunc(in.Accept, func(q netip.Prefix) bool { return q.Bits() <= p.Bits() && q.Overlaps(p) })
}

func TestExactlyTheAuthorisedPrefixesAreInstalled(t *testing.T) {
	installed := 0
	for seed := range uint64(rounds) {
		in := randomInputs(rand.New(rand.NewPCG(seed, 1)))
		d := Compute(in)
		want := expected(in)
		for _, r := range d.Routes {
			carriers := want[r.Prefix]
			if !slices.ContainsFunc(carriers, func(a Announcement) bool { return a.ID == r.Peer }) {
				t.Errorf("seed %d: %v is installed for %s", seed, r.Prefix, r.Name)
			}
			delete(want, r.Prefix)
			installed++
		}
		for p := range want {
			t.Errorf("seed %d: %v is not installed", seed, p)
		}
	}
	if installed < rounds {
		t.Errorf("%d routes in %d rounds: the inputs say too little", installed, rounds)
	}
}

func TestNoPrefixHasTwoOwners(t *testing.T) {
	for seed := range uint64(rounds) {
		in := randomInputs(rand.New(rand.NewPCG(seed, 2)))
		d := Compute(in)
		owner := make(map[netip.Prefix]trust.GatewayID)
		for _, p := range d.Peers {
			if !in.Proven[p.ID] {
				t.Errorf("seed %d: peer %s is not proven", seed, p.Name)
			}
			for _, q := range p.Allowed {
				if other, taken := owner[q]; taken {
					t.Errorf("seed %d: %v belongs to %s and %s", seed, q, other.Short(), p.ID.Short())
				}
				owner[q] = p.ID
			}
		}
		for i, a := range d.Routes {
			if owner[a.Prefix] != a.Peer {
				t.Errorf("seed %d: %v goes to %s and is allowed for %s", seed, a.Prefix, a.Name, owner[a.Prefix].Short())
			}
			for _, b := range d.Routes[:i] {
				if a.Prefix == b.Prefix || a.Prefix.Overlaps(b.Prefix) && siteOf(in, a.Peer) != siteOf(in, b.Peer) {
					t.Errorf("seed %d: %v of %s overlaps %v of %s", seed, a.Prefix, a.Name, b.Prefix, b.Name)
				}
			}
		}
	}
}

func siteOf(in Inputs, id trust.GatewayID) [2]string {
	i := slices.IndexFunc(in.Announcements, func(a Announcement) bool { return a.ID == id })
	return [2]string{in.Announcements[i].Org, in.Announcements[i].Site}
}

// Observers that measure the same agree on conflicts, and on who carries what
// both of them install.
func TestAllObserversAgree(t *testing.T) {
	compared := 0
	for seed := range uint64(rounds) {
		in := randomInputs(rand.New(rand.NewPCG(seed, 3)))
		in.Local, in.Accept = nil, nil
		for id := range in.Proven {
			in.Proven[id] = true
		}
		var conflicts []Conflict
		carrier := make(map[netip.Prefix]trust.GatewayID)
		for i, a := range in.Announcements {
			own := seenBy(in, a)
			for _, b := range in.Announcements {
				own.Proven[b.ID] = b.ID != a.ID
			}
			d := Compute(own)
			if i == 0 {
				conflicts = d.Conflicts
			}
			if !slices.Equal(conflicts, d.Conflicts) {
				t.Errorf("seed %d: %s sees conflicts %v, %s sees %v", seed, in.Announcements[0].Name, conflicts, a.Name, d.Conflicts)
			}
			for _, r := range d.Routes {
				if other, known := carrier[r.Prefix]; known {
					compared++
					if other != r.Peer {
						t.Errorf("seed %d: %v goes to %s or, as %s sees it, to %s", seed, r.Prefix, other.Short(), a.Name, r.Name)
					}
				}
				carrier[r.Prefix] = r.Peer
			}
		}
	}
	if compared < rounds {
		t.Errorf("%d comparisons in %d rounds: the inputs say too little", compared, rounds)
	}
}

func TestMeasurementsNeverMoveAPrefixToAnotherSite(t *testing.T) {
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 4))
		in := randomInputs(r)
		site := make(map[netip.Prefix][2]string)
		for range 5 {
			for _, route := range Compute(in).Routes {
				s := siteOf(in, route.Peer)
				if before, known := site[route.Prefix]; known && before != s {
					t.Errorf("seed %d: %v moved from %v to %v", seed, route.Prefix, before, s)
				}
				site[route.Prefix] = s
			}
			for _, a := range in.Announcements {
				in.Proven[a.ID], in.Alive[a.ID] = a.ID != in.Self && r.IntN(2) == 0, r.IntN(2) == 0
			}
		}
	}
}

func TestOrderOfAnnouncementsDoesNotMatter(t *testing.T) {
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 5))
		in := randomInputs(r)
		want := Compute(in)
		in.Announcements = slices.Clone(in.Announcements)
		r.Shuffle(len(in.Announcements), func(i, j int) {
			in.Announcements[i], in.Announcements[j] = in.Announcements[j], in.Announcements[i]
		})
		if diff := gocmp.Diff(want, Compute(in), sameAddr, samePrefix); diff != "" {
			t.Errorf("seed %d: -before +after shuffling:\n%s", seed, diff)
		}
	}
}

var (
	sameAddr   = gocmp.Comparer(func(a, b netip.Addr) bool { return a == b })
	samePrefix = gocmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
)

// device is what a WireGuard device does with changes.
type device struct {
	peers map[trust.ExchangeKey]trust.GatewayID
	owner map[netip.Prefix]trust.ExchangeKey
}

func deviceWith(d Desired) device {
	dev := device{make(map[trust.ExchangeKey]trust.GatewayID), make(map[netip.Prefix]trust.ExchangeKey)}
	for _, p := range d.Peers {
		dev.peers[p.WireGuard] = p.ID
		for _, q := range p.Allowed {
			dev.owner[q] = p.WireGuard
		}
	}
	return dev
}

// apply makes a change and reports whether it had an effect.
func (d device) apply(c Change) bool {
	id, known := d.peers[c.Key]
	owner, owned := d.owner[c.Prefix]
	switch c.Op {
	case AddPeer:
		d.peers[c.Key] = c.Peer
		return !known
	case RemovePeer:
		delete(d.peers, c.Key)
		maps.DeleteFunc(d.owner, func(_ netip.Prefix, k trust.ExchangeKey) bool { return k == c.Key })
		return known && id == c.Peer
	case AddPrefix:
		d.owner[c.Prefix] = c.Key
		return known && id == c.Peer && (!owned || owner != c.Key)
	case RemovePrefix:
		delete(d.owner, c.Prefix)
		return owned && owner == c.Key
	}
	return false
}

func TestDiffLeadsFromOneStateToTheOtherWithoutGaps(t *testing.T) {
	changed := 0
	for seed := range uint64(rounds) {
		r := rand.New(rand.NewPCG(seed, 6))
		in := randomInputs(r)
		before := Compute(in)
		after := Compute(mutated(r, in))
		start, goal, dev := deviceWith(before), deviceWith(after), deviceWith(before)
		changes := Diff(before, after)
		changed += len(changes)
		if !slices.Equal(changes, Diff(before, after)) {
			t.Errorf("seed %d: the order of changes is not always the same", seed)
		}
		reused := false
		for key, id := range start.peers {
			reused = reused || cmp.Or(goal.peers[key], id) != id
		}
		for _, c := range changes {
			if !dev.apply(c) {
				t.Errorf("seed %d: %v of %s %v changes nothing", seed, c.Op, c.Peer.Short(), c.Prefix)
			}
			for q := range goal.owner {
				_, had := start.owner[q]
				if _, has := dev.owner[q]; had && !has && !reused {
					t.Errorf("seed %d: %v has no owner after %v of %s", seed, q, c.Op, c.Peer.Short())
				}
			}
			if untouched(c, before, after) {
				t.Errorf("seed %d: %v of %s %v touches what does not change", seed, c.Op, c.Peer.Short(), c.Prefix)
			}
		}
		if !maps.Equal(dev.peers, goal.peers) || !maps.Equal(dev.owner, goal.owner) {
			t.Errorf("seed %d: after %v\ngot  %v\nwant %v", seed, changes, dev, goal)
		}
	}
	if changed < 3*rounds {
		t.Errorf("%d changes in %d rounds: the inputs say too little", changed, rounds)
	}
}

// untouched reports whether c is about a peer that both states have, with the
// same prefixes.
func untouched(c Change, before, after Desired) bool {
	for _, p := range before.Peers {
		for _, q := range after.Peers {
			if p.ID == c.Peer && q.ID == c.Peer && p.WireGuard == q.WireGuard && slices.Equal(p.Allowed, q.Allowed) {
				return true
			}
		}
	}
	return false
}

// mutated changes some of everything: measurements, routes, keys, membership.
func mutated(r *rand.Rand, in Inputs) Inputs {
	in.Announcements = slices.Clone(in.Announcements)
	in.Proven, in.Alive = maps.Clone(in.Proven), maps.Clone(in.Alive)
	for i := range in.Announcements {
		a := &in.Announcements[i]
		switch r.IntN(8) {
		case 0:
			in.Proven[a.ID] = !in.Proven[a.ID]
		case 1:
			in.Alive[a.ID] = !in.Alive[a.ID]
		case 2:
			a.Routes = a.Routes[:r.IntN(len(a.Routes)+1)]
		case 3:
			a.WireGuard[2]++ // a new key
		case 4:
			other := &in.Announcements[r.IntN(len(in.Announcements))]
			a.WireGuard, other.WireGuard = other.WireGuard, a.WireGuard
		case 5:
			a.Left = !a.Left
		}
	}
	in.Proven[in.Self] = false
	return in
}

func TestDiffOfOneStateIsNothing(t *testing.T) {
	in := randomInputs(rand.New(rand.NewPCG(1, 7)))
	if changes := Diff(Compute(in), Compute(in)); changes != nil {
		t.Errorf("got %v, want nil", changes)
	}
}

func TestDiffMovesAPrefixInOneStep(t *testing.T) {
	in := observed(gateway(1, "a", "10.1.0.0/16"), gateway(2, "a", "10.1.0.0/16"))
	before := Compute(in)
	in.Alive[trust.GatewayID{1}] = false
	got := Diff(before, Compute(in))
	want := Changes{{AddPrefix, trust.GatewayID{2}, trust.ExchangeKey{2}, prefix("10.1.0.0/16")}}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestDiffRemovesAPeerBeforeItsKeyGoesToAnother(t *testing.T) {
	in := observed(gateway(1, "a"))
	before := Compute(in)
	heir := gateway(2, "b")
	heir.WireGuard = trust.ExchangeKey{1}
	got := Diff(before, Compute(observed(heir)))
	want := Changes{
		{RemovePeer, trust.GatewayID{1}, trust.ExchangeKey{1}, netip.Prefix{}},
		{AddPeer, trust.GatewayID{2}, trust.ExchangeKey{1}, netip.Prefix{}},
		{AddPrefix, trust.GatewayID{2}, trust.ExchangeKey{1}, prefix("fd00:1:2::2/128")},
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

// large is a mesh of 400 gateways in 200 sites with 4 routes each.
func large() Inputs {
	in := Inputs{Proven: make(map[trust.GatewayID]bool), Alive: make(map[trust.GatewayID]bool), Overlay: testBlock}
	for i := range 400 {
		site := i / 2
		a := Announcement{
			ID:        trust.GatewayID{byte(i >> 8), byte(i)},
			Name:      "gateway" + string(rune('A'+i)),
			Site:      "site" + string(rune('A'+site)),
			WireGuard: trust.ExchangeKey{1, byte(i >> 8), byte(i)},
			Overlay:   netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 0, 2, 14: byte(i >> 8), 15: byte(i)}),
		}
		for j := range 4 {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(site), byte(j * 16)}), 20)
			a.Grants = append(a.Grants, Grant{p, trust.Claim{Delegation: 1, Grant: uint64(i*4 + j)}})
			a.Routes = append(a.Routes, AnnouncedRoute{p, uint16(i % 2)})
		}
		in.Announcements = append(in.Announcements, a)
		in.Proven[a.ID], in.Alive[a.ID] = i > 0, true
		in.Local = append(in.Local, Local{netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 32), "endpoint"})
	}
	in.Self, in.Site = in.Announcements[0].ID, in.Announcements[0].Site
	return in
}

func BenchmarkCompute400x4(b *testing.B) {
	in := large()
	if n := len(Compute(in).Routes); n != 199*4 {
		b.Fatalf("%d routes, want %d", n, 199*4)
	}
	b.ReportAllocs()
	for b.Loop() {
		Compute(in)
	}
}

func BenchmarkDiff400x4(b *testing.B) {
	in := large()
	before := Compute(in)
	in.Alive[in.Announcements[100].ID] = false
	after := Compute(in)
	if n := len(Diff(before, after)); n != 4 {
		b.Fatalf("%d changes, want 4", n)
	}
	b.ReportAllocs()
	for b.Loop() {
		Diff(before, after)
	}
}
