package hostnet

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// gatewayFacts is a gateway with an uplink, a LAN with a second network behind
// a router, a VPN of somebody else, and the overlay.
func gatewayFacts() Facts {
	a := func(s string) Address { return Address{Prefix: netip.MustParsePrefix(s)} }
	marked := func(s string, mark func(*Address)) Address {
		x := a(s)
		mark(&x)
		return x
	}
	return Facts{
		IPv6: true,
		Interfaces: []Interface{
			{Name: "lo", Index: 1, Up: true, Loopback: true, Addresses: []Address{a("127.0.0.1/8"), a("::1/128"), a("10.99.0.1/32")}},
			{Name: "wan0", Index: 2, Up: true, Addresses: []Address{
				a("203.0.113.9/24"),
				marked("2001:db8:1::aaaa/64", func(a *Address) { a.Temporary = true }),
				a("2001:db8:1::9/64"), a("fe80::1/64"),
				marked("2001:db8:1::dead/64", func(a *Address) { a.Deprecated = true }),
				marked("2001:db8:1::beef/64", func(a *Address) { a.Tentative = true }),
			}},
			{Name: "lan0", Index: 3, Up: true, Addresses: []Address{a("192.168.10.1/24"), a("fd10::1/64")}},
			{Name: "off0", Index: 4, Addresses: []Address{a("172.20.0.1/16")}},
			{Name: "pm0", Index: 5, Up: true, Ours: true, Addresses: []Address{a("fd5e::1/128"), a("fe80::2/64")}},
			{Name: "wg0", Index: 6, Up: true, Addresses: []Address{a("10.77.0.2/32")}},
		},
		Routes: []HostRoute{
			{Prefix: netip.MustParsePrefix("0.0.0.0/0"), Interface: "wan0", NextHop: netip.MustParseAddr("203.0.113.1")},
			{Prefix: netip.MustParsePrefix("::/0"), Interface: "wan0", NextHop: netip.MustParseAddr("fe80::ff")},
			{Prefix: netip.MustParsePrefix("192.168.10.0/24"), Interface: "lan0", Protocol: ProtocolKernel, Scope: ScopeLink},
			{Prefix: netip.MustParsePrefix("192.168.50.0/24"), Interface: "lan0", NextHop: netip.MustParseAddr("192.168.10.254"), Protocol: 4},
			{Prefix: netip.MustParsePrefix("10.0.0.0/8"), Interface: "wg0", Protocol: 3, Scope: ScopeLink},
			{Prefix: netip.MustParsePrefix("10.77.0.1/32"), Interface: "wg0", Protocol: ProtocolKernel, Scope: ScopeLink},
			{Prefix: netip.MustParsePrefix("192.0.2.0/24"), Interface: "wan0", NextHop: netip.MustParseAddr("198.51.100.7"), Protocol: 4},
			{Prefix: netip.MustParsePrefix("fd5e::1/128"), Interface: "pm0", Protocol: ProtocolKernel},
			{Prefix: netip.MustParsePrefix("fe80::/64"), Interface: "lan0", Protocol: ProtocolKernel},
		},
	}
}

func TestCollision(t *testing.T) {
	tests := []struct{ name, prefix, with string }{
		{"free prefix", "192.168.20.0/24", ""},
		{"the LAN itself", "192.168.10.0/24", "192.168.10.0/24 dev lan0 proto kernel"},
		{"covers the LAN", "192.168.0.0/16", "192.168.10.0/24 dev lan0 proto kernel"},
		{"inside the LAN, without our address", "192.168.10.128/25", "192.168.10.0/24 dev lan0 proto kernel"},
		{"IPv6 LAN", "fd10::/48", "fd10::/64 dev lan0 proto kernel"},
		{"address on loopback", "10.99.0.0/24", "10.99.0.1/32 dev lo proto kernel"},
		{"loopback network", "127.1.0.0/16", "127.0.0.0/8 dev lo proto kernel"},
		{"address of an interface that is off", "172.20.0.0/24", "172.20.0.0/16 dev off0 proto kernel"},
		{"network of an interface that is off", "172.20.5.0/24", ""},
		{"identical route", "192.168.50.0/24", "192.168.50.0/24 via 192.168.10.254 dev lan0 proto static"},
		{"inside a foreign route", "192.168.50.0/25", ""},
		{"inside the route of a VPN", "10.20.0.0/16", ""},
		{"covers the other end of the VPN", "10.77.0.0/31", "10.77.0.1/32 dev wg0 proto kernel"},
		{"covers a next hop that is not on a LAN", "198.51.100.0/24", "192.0.2.0/24 via 198.51.100.7 dev wan0 proto static"},
		{"covers the default gateway", "203.0.0.0/16", "203.0.113.0/24 dev wan0 proto kernel"},
		{"our own overlay address", "fd5e::1/128", ""},
		{"overlay block", "fd5e::/16", ""},
		{"not masked", "192.168.10.77/24", "192.168.10.0/24 dev lan0 proto kernel"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			r, ok := gatewayFacts().Collision(netip.MustParsePrefix(tt.prefix))
			got := ""
			if ok {
				got = r.String()
			}
			if got != tt.with {
				t.Errorf("Collision(%s) = %q, want %q", tt.prefix, got, tt.with)
			}
		})
	}
	if _, ok := gatewayFacts().Collision(netip.Prefix{}); ok {
		t.Error("the invalid prefix collides")
	}
}

func TestLocalIsWhatEveryRouteCollidesWith(t *testing.T) {
	f := gatewayFacts()
	var got []string
	for _, p := range f.Local() {
		got = append(got, p.String())
		if _, ok := f.Collision(p); !ok {
			t.Errorf("%v is local, but does not collide", p)
		}
	}
	want := []string{
		"10.77.0.1/32", "10.77.0.2/32", "10.99.0.1/32", "127.0.0.0/8", "172.20.0.1/32",
		"192.168.10.0/24", "192.168.10.254/32", "198.51.100.7/32", "203.0.113.0/24", "203.0.113.1/32",
		"::1/128", "2001:db8:1::/64", "fd10::/64",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Local() (-want +got):\n%s", diff)
	}
}

func TestInterfaceForFindsWhereAPrefixIs(t *testing.T) {
	tests := []struct {
		name, prefix string
		want         []string
	}{
		{"the LAN", "192.168.10.0/24", []string{"lan0"}},
		{"half of the LAN without our address", "192.168.10.128/25", []string{"lan0"}},
		{"network behind a router of the LAN", "192.168.50.0/24", []string{"lan0"}},
		{"part of it", "192.168.50.7/32", []string{"lan0"}},
		{"everything of the site", "192.168.0.0/16", []string{"lan0"}},
		{"several", "0.0.0.0/1", []string{"wg0"}},
		{"best covering route", "10.77.0.1/32", []string{"wg0"}},
		{"only the default route leads there", "8.8.8.0/24", nil},
		{"loopback address", "10.99.0.1/32", []string{"wg0"}}, // by its route for 10.0.0.0/8
		{"overlay", "fd5e::1/128", nil},
		{"two LANs", "128.0.0.0/1", []string{"wan0", "lan0", "off0"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var got []string
			for _, i := range gatewayFacts().InterfaceFor(netip.MustParsePrefix(tt.prefix)) {
				got = append(got, i.Name)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("InterfaceFor(%s) (-want +got):\n%s", tt.prefix, diff)
			}
		})
	}
	if got := gatewayFacts().InterfaceFor(netip.Prefix{}); got != nil {
		t.Errorf("InterfaceFor(invalid) = %v", got)
	}
}

func TestSourceForIsInsideAnAnnouncedPrefix(t *testing.T) {
	tests := []struct {
		name     string
		prefixes []string
		v4, v6   string
	}{
		{"both families", []string{"192.168.10.0/24", "fd10::/64"}, "192.168.10.1", "fd10::1"},
		{"first prefix wins", []string{"203.0.113.0/24", "192.168.10.0/24"}, "203.0.113.9", "invalid IP"},
		{"stable before temporary", []string{"2001:db8:1::/64"}, "invalid IP", "2001:db8:1::9"},
		{"no address inside", []string{"192.168.10.128/25"}, "invalid IP", "invalid IP"},
		{"interface that is off", []string{"172.20.0.0/16"}, "invalid IP", "invalid IP"},
		{"never ours", []string{"fd5e::/16"}, "invalid IP", "invalid IP"},
		{"service address on loopback", []string{"10.99.0.0/16"}, "10.99.0.1", "invalid IP"},
		{"none", nil, "invalid IP", "invalid IP"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var prefixes []netip.Prefix
			for _, p := range tt.prefixes {
				prefixes = append(prefixes, netip.MustParsePrefix(p))
			}
			v4, v6 := gatewayFacts().SourceFor(prefixes)
			if v4.String() != tt.v4 || v6.String() != tt.v6 {
				t.Errorf("SourceFor(%v) = %v, %v, want %v, %v", prefixes, v4, v6, tt.v4, tt.v6)
			}
		})
	}
}

func TestCandidatesAreWhatOthersCanReach(t *testing.T) {
	var got []string
	for _, a := range gatewayFacts().Candidates() {
		got = append(got, a.String())
	}
	want := []string{"10.99.0.1", "203.0.113.9", "2001:db8:1::9", "192.168.10.1", "fd10::1", "10.77.0.2", "2001:db8:1::aaaa"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("Candidates() (-want +got):\n%s", diff)
	}
}

func TestLANRoutesNeedANeighbour(t *testing.T) {
	r := func(prefix, via string) LANRoute {
		return LANRoute{netip.MustParsePrefix(prefix), netip.MustParseAddr(via)}
	}
	tests := []struct {
		name  string
		route LANRoute
		want  string // interface, or the error
	}{
		{"host of the LAN", r("10.128.1.0/24", "192.168.10.101"), "lan0"},
		{"IPv6 host of the LAN", r("fd00:128::/64", "fd10::101"), "lan0"},
		{"host on the uplink", r("10.128.1.0/24", "203.0.113.77"), "wan0"},
		{"far away", r("10.128.1.0/24", "192.168.50.7"), "not in a network that this host is plugged into"},
		{"this host", r("10.128.1.0/24", "192.168.10.1"), "that is an address of this host"},
		{"this host on the loopback", r("10.128.1.0/24", "10.99.0.1"), "that is an address of this host"},
		{"network of an interface that is off", r("10.128.1.0/24", "172.20.0.9"), "not in a network that this host is plugged into"},
		{"loopback network", r("10.128.1.0/24", "127.0.0.9"), "not in a network that this host is plugged into"},
		{"the LAN itself", r("192.168.10.128/25", "192.168.10.101"), "collides with 192.168.10.0/24 dev lan0 proto kernel"},
		{"foreign route", r("192.168.50.0/24", "192.168.10.101"), "collides with 192.168.50.0/24 via 192.168.10.254"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			i, err := gatewayFacts().CheckLAN(tt.route)
			got := i.Name
			if err != nil {
				got = err.Error()
			}
			if err == nil && got != tt.want || err != nil && !strings.HasSuffix(got, tt.want) && !strings.Contains(got, tt.want) {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
}

func TestOwnLANRoutesCollideWithNothing(t *testing.T) {
	f := gatewayFacts()
	p := netip.MustParsePrefix("10.128.1.0/24")
	f.LAN = []HostRoute{{Prefix: p, Interface: "lan0", NextHop: netip.MustParseAddr("192.168.10.101"), Protocol: RouteProtocol, Metric: RouteMetric}}
	for _, q := range []string{"10.128.1.0/24", "10.128.0.0/18"} {
		if with, collides := f.Collision(netip.MustParsePrefix(q)); collides {
			t.Errorf("%s collides with %v", q, with)
		}
	}
	if got := f.InterfaceFor(netip.MustParsePrefix("10.128.0.0/18")); len(got) != 2 || got[0].Name != "lan0" {
		t.Errorf("pod block is behind %v, want lan0 and wg0, which has all of 10.0.0.0/8", got)
	}
}
