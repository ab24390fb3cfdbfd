package engine

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

var testBlock = prefix("fd00:1:2::/48")

// gateway is an announcement with number n for everything that must differ.
// Each of the prefixes is granted, with n as delegation, and announced.
func gateway(n byte, site string, prefixes ...string) Announcement {
	a := Announcement{
		ID:        trust.GatewayID{n},
		Name:      site + "-" + string('a'+rune(n)),
		Site:      site,
		WireGuard: trust.ExchangeKey{n},
		Overlay:   netip.AddrFrom16([16]byte{0xfd, 0, 0, 1, 0, 2, 15: n}),
	}
	for i, p := range prefixes {
		a.Grants = append(a.Grants, Grant{prefix(p), trust.Claim{Delegation: uint64(n), Grant: uint64(i), Hash: [32]byte{n}}})
		a.Routes = append(a.Routes, AnnouncedRoute{Prefix: prefix(p)})
	}
	return a
}

// observed is what gateway 0 of site "self" sees of others that all answer.
func observed(others ...Announcement) Inputs {
	in := Inputs{
		Self:          trust.GatewayID{0},
		Site:          "self",
		Announcements: append([]Announcement{gateway(0, "self", "192.168.0.0/24")}, others...),
		Proven:        make(map[trust.GatewayID]bool),
		Alive:         make(map[trust.GatewayID]bool),
		Overlay:       testBlock,
	}
	for _, a := range others {
		in.Proven[a.ID], in.Alive[a.ID] = true, true
	}
	return in
}

// brief is a Desired in few words.
type brief struct {
	Routes, Standby, Conflicts, Refused []string
}

func inBrief(d Desired) brief {
	var b brief
	for _, r := range d.Routes {
		b.Routes = append(b.Routes, r.Prefix.String()+" "+r.Name+": "+r.Why)
	}
	for _, s := range d.Standby {
		b.Standby = append(b.Standby, s.Prefix.String()+" "+s.Name+": "+s.Why)
	}
	for _, c := range d.Conflicts {
		b.Conflicts = append(b.Conflicts, c.Prefix.String()+" "+c.Winner+" over "+c.Loser+": "+c.Reason)
	}
	for _, r := range d.Refused {
		b.Refused = append(b.Refused, r.Prefix.String()+" "+r.Name+": "+r.Reason)
	}
	return b
}

const only = ": only gateway that announces it"

func TestCompute(t *testing.T) {
	with := func(a Announcement, f func(*Announcement)) Announcement {
		f(&a)
		return a
	}
	change := func(in Inputs, f func(*Inputs)) Inputs {
		f(&in)
		return in
	}
	claim := func(delegation, grant uint64, hash byte) func(*Announcement) {
		return func(a *Announcement) {
			for i := range a.Grants {
				a.Grants[i].Claim = trust.Claim{Delegation: delegation, Grant: grant, Hash: [32]byte{hash}}
			}
		}
	}
	priority := func(p uint16) func(*Announcement) {
		return func(a *Announcement) { a.Routes[0].Priority = p }
	}
	announces := func(prefixes ...string) func(*Announcement) {
		return func(a *Announcement) {
			a.Routes = nil
			for _, p := range prefixes {
				a.Routes = append(a.Routes, AnnouncedRoute{Prefix: prefix(p)})
			}
		}
	}
	noon := time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC)

	for _, test := range []struct {
		name string
		in   Inputs
		want brief
	}{
		{
			name: "nothing known",
			in:   Inputs{},
		},
		{
			name: "routes of other sites are installed",
			in:   observed(gateway(2, "b", "10.2.0.0/16", "fd20::/32"), gateway(1, "a", "10.1.0.0/16")),
			want: brief{Routes: []string{"10.1.0.0/16 a-b" + only, "10.2.0.0/16 b-c" + only, "fd20::/32 b-c" + only}},
		},
		{
			name: "nothing of a peer whose path is not proven",
			in:   change(observed(gateway(1, "a", "10.1.0.0/16")), func(in *Inputs) { in.Proven = nil }),
			want: brief{Standby: []string{"10.1.0.0/16 a-b: no path to it is proven"}},
		},
		{
			name: "an unreachable peer keeps its routes",
			in:   change(observed(gateway(1, "a", "10.1.0.0/16")), func(in *Inputs) { in.Alive = nil }),
			want: brief{Routes: []string{"10.1.0.0/16 a-b: only gateway that announces it; does not answer, kept so that nothing leaks"}},
		},

		// Ownership.
		{
			name: "the lower delegation owns an equal prefix",
			in:   observed(gateway(2, "b", "10.1.0.0/16"), gateway(1, "a", "10.1.0.0/16")),
			want: brief{
				Routes:    []string{"10.1.0.0/16 a-b" + only},
				Conflicts: []string{"10.1.0.0/16 a-b over b-c: overlaps the grant 10.1.0.0/16 of a: delegation 1 before 2"},
			},
		},
		{
			name: "the lower delegation owns what lies inside of its grant",
			in:   observed(gateway(2, "b", "10.1.2.0/24"), gateway(1, "a", "10.1.0.0/16")),
			want: brief{
				Routes:    []string{"10.1.0.0/16 a-b" + only},
				Conflicts: []string{"10.1.2.0/24 a-b over b-c: overlaps the grant 10.1.0.0/16 of a: delegation 1 before 2"},
			},
		},
		{
			name: "a route around a better grant is not installed at all",
			in:   observed(gateway(2, "b", "10.0.0.0/8"), gateway(1, "a", "10.1.0.0/16")),
			want: brief{
				Routes:    []string{"10.1.0.0/16 a-b" + only},
				Conflicts: []string{"10.0.0.0/8 a-b over b-c: overlaps the grant 10.1.0.0/16 of a: delegation 1 before 2"},
			},
		},
		{
			name: "a loser keeps what does not overlap",
			in: observed(
				with(gateway(2, "b", "10.0.0.0/8"), announces("10.1.3.0/24", "10.2.0.0/16")),
				gateway(1, "a", "10.1.0.0/16")),
			want: brief{
				Routes:    []string{"10.1.0.0/16 a-b" + only, "10.2.0.0/16 b-c" + only},
				Conflicts: []string{"10.1.3.0/24 a-b over b-c: overlaps the grant 10.1.0.0/16 of a: delegation 1 before 2"},
			},
		},
		{
			name: "of one delegation the lower grant number owns",
			in: observed(
				with(gateway(1, "a", "10.1.0.0/16"), claim(7, 9, 1)),
				with(gateway(2, "b", "10.1.0.0/16"), claim(7, 8, 2))),
			want: brief{
				Routes:    []string{"10.1.0.0/16 b-c" + only},
				Conflicts: []string{"10.1.0.0/16 b-c over a-b: overlaps the grant 10.1.0.0/16 of b: grant 8 before 9"},
			},
		},
		{
			name: "of one grant number the smaller certificate hash owns",
			in: observed(
				with(gateway(1, "a", "10.1.0.0/16"), claim(7, 8, 2)),
				with(gateway(2, "b", "10.1.0.0/16"), claim(7, 8, 1))),
			want: brief{
				Routes:    []string{"10.1.0.0/16 b-c" + only},
				Conflicts: []string{"10.1.0.0/16 b-c over a-b: overlaps the grant 10.1.0.0/16 of b: smaller certificate hash"},
			},
		},
		{
			name: "the owner need neither announce nor answer",
			in: change(observed(
				with(gateway(1, "a", "10.1.0.0/16"), announces()),
				gateway(2, "b", "10.1.0.0/16")), func(in *Inputs) {
				delete(in.Proven, trust.GatewayID{1})
				delete(in.Alive, trust.GatewayID{1})
			}),
			want: brief{Conflicts: []string{"10.1.0.0/16 a-b over b-c: overlaps the grant 10.1.0.0/16 of a: delegation 1 before 2"}},
		},
		{
			name: "a gateway that left owns until its certificate ends, and has no routes",
			in: observed(
				with(gateway(1, "a", "10.1.0.0/16"), func(a *Announcement) { a.Left = true }),
				gateway(2, "b", "10.1.0.0/16")),
			want: brief{Conflicts: []string{"10.1.0.0/16 a-b over b-c: overlaps the grant 10.1.0.0/16 of a: delegation 1 before 2"}},
		},
		{
			name: "an expired grant owns nothing and its routes go",
			in: change(observed(
				with(gateway(1, "a", "10.1.0.0/16"), func(a *Announcement) { a.NotAfter = noon.Add(-time.Second) }),
				with(gateway(2, "b", "10.1.0.0/16"), func(a *Announcement) { a.NotAfter = noon })), func(in *Inputs) { in.Now = noon }),
			want: brief{Routes: []string{"10.1.0.0/16 b-c" + only}},
		},
		{
			name: "the claim of a site is the best of its gateways",
			in: observed(
				with(gateway(1, "a", "10.1.0.0/16"), claim(1, 3, 1)),
				with(gateway(2, "b", "10.1.0.0/16"), claim(1, 5, 2)),
				with(gateway(3, "a", "10.1.0.0/16"), claim(1, 9, 3))),
			want: brief{
				Routes:    []string{"10.1.0.0/16 a-b: lowest id of equal priority"},
				Standby:   []string{"10.1.0.0/16 a-d: higher id of equal priority"},
				Conflicts: []string{"10.1.0.0/16 a-b over b-c: overlaps the grant 10.1.0.0/16 of a: grant 3 before 5"},
			},
		},
		{
			name: "nested prefixes of one site are all installed",
			in:   observed(gateway(1, "a", "10.1.0.0/16", "10.1.2.0/24"), gateway(2, "a", "10.1.3.0/24")),
			want: brief{Routes: []string{"10.1.0.0/16 a-b" + only, "10.1.2.0/24 a-b" + only, "10.1.3.0/24 a-c" + only}},
		},

		// Attackers with valid certificates.
		{
			name: "a route outside of the grants is refused",
			in: observed(
				gateway(1, "a", "10.1.0.0/16"),
				with(gateway(2, "b", "10.2.0.0/16"), announces("10.1.9.0/24", "10.0.0.0/8", "10.2.0.0/16"))),
			want: brief{
				Routes:  []string{"10.1.0.0/16 a-b" + only, "10.2.0.0/16 b-c" + only},
				Refused: []string{"10.0.0.0/8 b-c: outside of its grants", "10.1.9.0/24 b-c: outside of its grants"},
			},
		},
		{
			name: "the site name of another organisation shares nothing with it",
			in: observed(
				with(gateway(1, "a", "10.1.0.0/16"), priority(9)),
				with(gateway(2, "a", "10.1.0.0/16"), func(a *Announcement) { a.Org = "mallory" })),
			want: brief{
				Routes:    []string{"10.1.0.0/16 a-b" + only},
				Conflicts: []string{"10.1.0.0/16 a-b over a-c: overlaps the grant 10.1.0.0/16 of a: delegation 1 before 2"},
			},
		},
		{
			name: "a wireguard key of another peer is refused",
			in: observed(
				gateway(1, "a", "10.1.0.0/16"),
				with(gateway(2, "b", "10.2.0.0/16"), func(a *Announcement) { a.WireGuard = trust.ExchangeKey{1} })),
			want: brief{
				Routes:  []string{"10.1.0.0/16 a-b" + only},
				Standby: []string{"10.2.0.0/16 b-c: no path to it is proven"},
				Refused: []string{"fd00:1:2::2/128 b-c: its wireguard key is also that of a-b"},
			},
		},
		{
			name: "the overlay address of another peer is refused",
			in: observed(
				gateway(1, "a"),
				with(gateway(2, "b", "10.2.0.0/16"), func(a *Announcement) { a.Overlay = gateway(1, "a").Overlay })),
			want: brief{
				Routes:  []string{"10.2.0.0/16 b-c" + only},
				Refused: []string{"fd00:1:2::1/128 b-c: its overlay address is also that of another gateway"},
			},
		},
		{
			name: "our own overlay address is refused",
			in:   observed(with(gateway(2, "b", "10.2.0.0/16"), func(a *Announcement) { a.Overlay = gateway(0, "self").Overlay })),
			want: brief{
				Routes:  []string{"10.2.0.0/16 b-c" + only},
				Refused: []string{"fd00:1:2::/128 b-c: its overlay address is also that of another gateway"},
			},
		},
		{
			name: "an overlay address outside of the block is refused",
			in: observed(with(gateway(2, "b", "10.2.0.0/16"), func(a *Announcement) {
				a.Overlay = netip.MustParseAddr("2001:db8::1")
			})),
			want: brief{
				Routes:  []string{"10.2.0.0/16 b-c" + only},
				Refused: []string{"2001:db8::1/128 b-c: its overlay address lies outside of fd00:1:2::/48"},
			},
		},
		{
			name: "a route into the overlay block is refused",
			in:   observed(gateway(1, "a", "fd00:1:2::/64", "fd00::/16")),
			want: brief{Refused: []string{
				"fd00::/16 a-b: overlaps the overlay block fd00:1:2::/48",
				"fd00:1:2::/64 a-b: overlaps the overlay block fd00:1:2::/48",
			}},
		},
		{
			name: "malformed prefixes are refused",
			in: observed(with(gateway(1, "a", "10.1.0.0/16"), func(a *Announcement) {
				mapped := netip.PrefixFrom(netip.MustParseAddr("::ffff:10.1.0.0"), 112)
				a.Routes = []AnnouncedRoute{{Prefix: netip.PrefixFrom(netip.MustParseAddr("10.1.0.1"), 16)}, {Prefix: mapped}, {}}
				a.Grants = append(a.Grants, Grant{Prefix: mapped}, Grant{})
			})),
			want: brief{Refused: []string{"invalid Prefix a-b: not a prefix", "10.1.0.1/16 a-b: not a prefix", "::ffff:10.1.0.0/112 a-b: not a prefix"}},
		},

		// Several gateways of one site.
		{
			name: "the lower priority value carries",
			in: observed(
				with(gateway(1, "a", "10.1.0.0/16"), priority(20)),
				with(gateway(2, "a", "10.1.0.0/16"), priority(10)),
				with(gateway(3, "a", "10.1.0.0/16"), priority(30))),
			want: brief{
				Routes:  []string{"10.1.0.0/16 a-c: priority 10 before 20"},
				Standby: []string{"10.1.0.0/16 a-b: priority 20 after 10", "10.1.0.0/16 a-d: priority 30 after 10"},
			},
		},
		{
			name: "a living standby takes over from a dead primary",
			in: change(observed(
				with(gateway(1, "a", "10.1.0.0/16"), priority(10)),
				with(gateway(2, "a", "10.1.0.0/16"), priority(20))), func(in *Inputs) { in.Alive[trust.GatewayID{1}] = false }),
			want: brief{
				Routes:  []string{"10.1.0.0/16 a-c: answers, others do not"},
				Standby: []string{"10.1.0.0/16 a-b: does not answer"},
			},
		},
		{
			name: "if none answers the best is kept",
			in: change(observed(
				with(gateway(1, "a", "10.1.0.0/16"), priority(20)),
				with(gateway(2, "a", "10.1.0.0/16"), priority(10))), func(in *Inputs) { clear(in.Alive) }),
			want: brief{
				Routes:  []string{"10.1.0.0/16 a-c: priority 10 before 20; does not answer, kept so that nothing leaks"},
				Standby: []string{"10.1.0.0/16 a-b: priority 20 after 10"},
			},
		},
		{
			name: "a gateway without a proven path is standby whatever its priority",
			in: change(observed(
				with(gateway(1, "a", "10.1.0.0/16"), priority(10)),
				with(gateway(2, "a", "10.1.0.0/16"), priority(20))), func(in *Inputs) { in.Proven[trust.GatewayID{1}] = false }),
			want: brief{
				Routes:  []string{"10.1.0.0/16 a-c: only gateway with a proven path"},
				Standby: []string{"10.1.0.0/16 a-b: no path to it is proven"},
			},
		},
		{
			name: "the own site is not routed into the overlay",
			in:   observed(gateway(1, "self", "192.168.0.0/24", "192.168.5.0/24")),
			want: brief{Standby: []string{
				"192.168.0.0/24 self-b: of this site: its networks are not routed into the overlay",
				"192.168.5.0/24 self-b: of this site: its networks are not routed into the overlay",
			}},
		},
		{
			name: "without an own announcement the site's name decides",
			in: change(observed(gateway(1, "self", "192.168.0.0/24")), func(in *Inputs) {
				in.Announcements = in.Announcements[1:]
			}),
			want: brief{Standby: []string{"192.168.0.0/24 self-b: of this site: its networks are not routed into the overlay"}},
		},

		// What this host cannot have.
		{
			name: "what the own site announces is not routed elsewhere, whoever owns it",
			in: observed(
				gateway(1, "self", "192.168.5.0/24"),
				with(gateway(2, "b", "192.168.0.0/16"), claim(0, 0, 0))),
			want: brief{
				Conflicts: []string{
					"192.168.0.0/24 b-c over self-a: overlaps the grant 192.168.0.0/16 of b: smaller certificate hash",
					"192.168.5.0/24 b-c over self-b: overlaps the grant 192.168.0.0/16 of b: delegation 0 before 1",
				},
				Refused: []string{"192.168.0.0/16 b-c: overlaps what self-a of this site announces"},
			},
		},
		{
			name: "local networks, next hops and endpoints stay where they are",
			in: change(observed(gateway(1, "a", "10.0.0.0/16", "10.1.5.0/24", "10.2.0.0/16", "10.3.0.0/16", "10.4.0.0/16", "10.5.0.0/16")), func(in *Inputs) {
				in.Local = []Local{
					{prefix("10.0.7.0/24"), "covers the network 10.0.7.0/24 of eth0"},
					{prefix("10.1.0.0/16"), "lies in the network 10.1.0.0/16 of eth1"},
					{prefix("10.2.0.1/32"), "covers the next hop 10.2.0.1"},
					{prefix("::ffff:10.3.0.9/128"), "covers the endpoint of a-b"},
					{netip.MustParsePrefix("10.4.0.9/24"), ""},
					{},
				}
			}),
			want: brief{
				Routes: []string{"10.5.0.0/16 a-b" + only},
				Refused: []string{
					"10.0.0.0/16 a-b: covers the network 10.0.7.0/24 of eth0",
					"10.1.5.0/24 a-b: lies in the network 10.1.0.0/16 of eth1",
					"10.2.0.0/16 a-b: covers the next hop 10.2.0.1",
					"10.3.0.0/16 a-b: covers the endpoint of a-b",
					"10.4.0.0/16 a-b: overlaps 10.4.0.0/24 of this host",
				},
			},
		},
		{
			name: "the accept list narrows",
			in: change(observed(gateway(1, "a", "10.1.0.0/16", "10.2.0.0/16", "fd20::/32")), func(in *Inputs) {
				in.Accept = []netip.Prefix{prefix("10.1.0.0/15"), prefix("10.2.0.0/17")}
			}),
			want: brief{
				Routes: []string{"10.1.0.0/16 a-b" + only},
				Refused: []string{
					"10.2.0.0/16 a-b: not within the accept list",
					"fd20::/32 a-b: not within the accept list",
				},
			},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := Compute(test.in)
			if diff := cmp.Diff(test.want, inBrief(got), cmpopts.EquateEmpty()); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

func TestPeersCarryTheirRoutesAndOverlayAddress(t *testing.T) {
	left := gateway(3, "c", "10.3.0.0/16")
	left.Left = true
	own := gateway(4, "self", "192.168.5.0/24")
	twin := gateway(5, "d")
	twin.WireGuard = gateway(0, "self").WireGuard // gateway 0 has the zero key
	in := observed(gateway(2, "b", "10.2.0.0/16", "10.0.0.0/24"), gateway(1, "a", "10.1.0.0/16"), left, own, twin)
	in.Announcements[0].WireGuard = trust.ExchangeKey{77}
	stranger := gateway(6, "e", "10.6.0.0/16")
	stranger.WireGuard = trust.ExchangeKey{77} // ours
	in.Announcements = append(in.Announcements, stranger)
	in.Proven[stranger.ID] = true

	got := Compute(in)
	want := []Peer{
		{
			ID: trust.GatewayID{1}, Name: "a-b", Site: "a", WireGuard: trust.ExchangeKey{1}, Overlay: gateway(1, "").Overlay,
			Allowed: []netip.Prefix{prefix("10.1.0.0/16"), prefix("fd00:1:2::1/128")},
		},
		{
			ID: trust.GatewayID{2}, Name: "b-c", Site: "b", WireGuard: trust.ExchangeKey{2}, Overlay: gateway(2, "").Overlay,
			Allowed: []netip.Prefix{prefix("10.0.0.0/24"), prefix("10.2.0.0/16"), prefix("fd00:1:2::2/128")},
		},
		{
			ID: trust.GatewayID{4}, Name: "self-e", Site: "self", WireGuard: trust.ExchangeKey{4}, Overlay: gateway(4, "").Overlay,
			Allowed: []netip.Prefix{prefix("fd00:1:2::4/128")},
		},
	}
	if diff := cmp.Diff(want, got.Peers, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if len(got.Refused) != 1 || !strings.Contains(got.Refused[0].Reason, "its wireguard key is also that of self-a") {
		t.Errorf("refused %v, want the gateway with our key", got.Refused)
	}
}

func TestStandbyNamesTheOthersBestFirst(t *testing.T) {
	a, b, c := gateway(1, "a", "10.1.0.0/16"), gateway(2, "a", "10.1.0.0/16"), gateway(3, "a", "10.1.0.0/16")
	a.Routes[0].Priority, b.Routes[0].Priority, c.Routes[0].Priority = 30, 10, 20
	got := Compute(observed(a, b, c)).Routes
	if len(got) != 1 || got[0].Name != "a-c" || !cmp.Equal(got[0].Standby, []string{"a-d", "a-b"}) {
		t.Errorf("got %+v, want a-c before a-d before a-b", got)
	}
}

func TestComputeDoesNotChangeItsInputs(t *testing.T) {
	in := observed(gateway(2, "b", "10.2.0.0/16", "10.1.0.0/24"), gateway(1, "a", "10.1.0.0/16"))
	in.Local = []Local{{netip.MustParsePrefix("10.9.0.1/24"), ""}, {prefix("10.8.0.0/24"), ""}}
	before := observed(gateway(2, "b", "10.2.0.0/16", "10.1.0.0/24"), gateway(1, "a", "10.1.0.0/16"))
	before.Local = []Local{{netip.MustParsePrefix("10.9.0.1/24"), ""}, {prefix("10.8.0.0/24"), ""}}
	Compute(in)
	if diff := cmp.Diff(before, in, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("-before +after:\n%s", diff)
	}
}
