//go:build integration

package netlab

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// The reference deployment: 4 + 2 + 2 hosts on three LANs whose routers share an underlay.
//
//	lan10 (lb, master01-03) ── gw10 ──┐
//	lan20 (node01-02) ──────── gw20 ──┼── underlay
//	lan30 (node03-04) ──────── gw30 ──┘
func TestReferenceHostsReachOnlyTheirLAN(t *testing.T) {
	for _, c := range []struct {
		name     string
		topology Topology
		ipv6     bool
	}{
		{"IPv4", Reference(), false}, {"IPv6", Reference6(), true},
		{"dual stack IPv4", ReferenceDual(), false}, {"dual stack IPv6", ReferenceDual(), true},
	} {
		t.Run(c.name, func(t *testing.T) {
			began := time.Now()
			w := mustStart(t, c.topology)
			started := time.Since(began)
			began = time.Now()
			m, err := w.PingAll(t.Context(), PingOptions{IPv6: c.ipv6})
			if err != nil {
				t.Fatal(err)
			}
			pinged := time.Since(began)
			t.Logf("started in %v, pinged in %v\n%v", started, pinged, m)
			checkOwnLANOnly(t, m)
			if started > 2*time.Second || pinged > 2*time.Second {
				t.Errorf("started in %v, pinged in %v; want at most 2s each", started, pinged)
			}
		})
	}
}

func checkOwnLANOnly(t *testing.T, m *Matrix) {
	t.Helper()
	if m.Reached() != 16 || m.Total() != 56 {
		t.Errorf("%d/%d pairs answer, want 16/56", m.Reached(), m.Total())
	}
	lan := map[string]int{"lb": 10, "master01": 10, "master02": 10, "master03": 10, "node01": 20, "node02": 20, "node03": 30, "node04": 30}
	for i, from := range m.Hosts {
		for j, to := range m.Hosts {
			if answered := m.RTT[i][j] >= 0; answered != (lan[from] == lan[to]) {
				t.Errorf("%s→%s: answered %v", from, to, answered)
			}
		}
	}
}

// routed joins the sites of a reference deployment by static routes on forwarding routers.
func routed(t Topology) Topology {
	for _, router := range t.Routers() {
		h := t.Host(router)
		h.Forward = true
		for _, other := range t.Routers() {
			if other == router {
				continue
			}
			o := t.Host(other)
			for _, a := range o.Interfaces[1].Addrs {
				h.Routes = append(h.Routes, Route{Dst: a.Masked(), Via: o.Addr(a.Addr().Is6())})
			}
		}
	}
	return t
}

func TestStaticRoutesJoinTheSites(t *testing.T) {
	topology := ReferenceDual()
	topology.AddSite(Site{Number: 40, LAN: DualStack, Underlay: DualStack, Hosts: []SiteHost{{"node05", 101}, {"node06", 102}}})
	w := mustStart(t, routed(topology))
	for _, ipv6 := range []bool{false, true} {
		began := time.Now()
		m, err := w.PingAll(t.Context(), PingOptions{IPv6: ipv6, Timeout: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v\n%v", time.Since(began), m)
		if m.Reached() != 90 || m.Total() != 90 {
			t.Errorf("IPv6 %v: %d/%d pairs answer, want 90/90", ipv6, m.Reached(), m.Total())
		}
	}
}

func TestStaticRoutesFillTheReferenceTable(t *testing.T) {
	w := mustStart(t, routed(Reference()))
	m, err := w.PingAll(t.Context(), PingOptions{Timeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if m.Reached() != 56 || m.Total() != 56 {
		t.Errorf("%d/%d pairs answer, want 56/56\n%v", m.Reached(), m.Total(), m)
	}
}

func TestPingAllNeedsAddresses(t *testing.T) {
	w := mustStart(t, Reference())
	_, err := w.PingAll(t.Context(), PingOptions{IPv6: true})
	if want := "ping: host lb has no address of that family"; err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestPingGivesUpWithItsContext(t *testing.T) {
	w := mustStart(t, Reference())
	if _, err := w.Host("lb").Ping(t.Context(), w.Host("master01").Addr()); err != nil {
		t.Error(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := w.Host("lb").Ping(ctx, w.Host("node01").Addr()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
}

func TestTrafficFlowsBothWays(t *testing.T) {
	w := mustStart(t, routed(Reference()))
	for _, o := range []ThroughputOptions{
		{From: "master01", To: "node01", Streams: 4, Duration: 200 * time.Millisecond},
		{From: "master01", To: "node01", Duration: 200 * time.Millisecond, Reverse: true},
	} {
		got, err := w.Throughput(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Log(got)
		if got.Bytes < 1e6 || got.Streams != max(o.Streams, 1) || got.Duration < o.Duration {
			t.Errorf("got %+v for %+v", got, o)
		}
	}
	if err := w.CheckTCP(t.Context(), "master01", "node01", netip.Addr{}, 1<<20); err != nil {
		t.Error(err)
	}
}

func TestTrafficWithoutRouteIsAnError(t *testing.T) {
	w := mustStart(t, Reference())
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	err := w.CheckTCP(ctx, "master01", "node01", netip.Addr{}, 1)
	if err == nil || !strings.HasPrefix(err.Error(), "check TCP from master01 to node01: ") {
		t.Errorf("got %v, want an error that names both hosts", err)
	}
	if _, err := w.Throughput(ctx, ThroughputOptions{From: "master01", To: "node01"}); err == nil {
		t.Error("throughput without a route is no error")
	}
}

// natWorld is a home network behind a router with NAT, and two servers outside, one of which has a route
// to the home network through the router:
//
//	inside 192.168.1.10 ── .1 home 203.0.113.7 ──┬── server 203.0.113.20
//	                                             └── intruder 203.0.113.66 (192.168.1.0/24 via .7)
func natWorld(ports PortMapping) Topology {
	return Topology{
		Nets: []Net{
			{Name: "home", Prefixes: prefixes("192.168.1.0/24", "fd01::/64")},
			{Name: "internet", Prefixes: prefixes("203.0.113.0/24", "2001:db8:1::/64")},
		},
		Hosts: []HostSpec{
			{Name: "inside", Interfaces: []Iface{{Net: "home", Name: "eth0", Addrs: prefixes("192.168.1.10/24", "fd01::10/64")}},
				Gateways: []netip.Addr{netip.MustParseAddr("192.168.1.1"), netip.MustParseAddr("fd01::1")}},
			{Name: "home", Forward: true, NAT: []NAT{{Out: "wan0", Ports: ports}}, Interfaces: []Iface{
				{Net: "home", Name: "lan0", Addrs: prefixes("192.168.1.1/24", "fd01::1/64")},
				{Net: "internet", Name: "wan0", Addrs: prefixes("203.0.113.7/24", "2001:db8:1::7/64")}}},
			{Name: "server", Interfaces: []Iface{{Net: "internet", Name: "eth0", Addrs: prefixes("203.0.113.20/24", "2001:db8:1::20/64")}},
				Routes: []Route{{netip.MustParsePrefix("fd01::/64"), netip.MustParseAddr("2001:db8:1::7")}}},
			{Name: "intruder", Interfaces: []Iface{{Net: "internet", Name: "eth0", Addrs: prefixes("203.0.113.66/24", "2001:db8:1::66/64")}},
				Routes: []Route{
					{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParseAddr("203.0.113.7")},
					{netip.MustParsePrefix("fd01::/64"), netip.MustParseAddr("2001:db8:1::7")},
				}},
		},
	}
}

func TestNATLetsOutAndNotIn(t *testing.T) {
	w := mustStart(t, natWorld(KeepPorts))
	if err := w.CheckTCP(t.Context(), "inside", "server", netip.Addr{}, 100<<10); err != nil {
		t.Error(err)
	}
	for _, to := range []netip.Addr{w.Host("server").Addr(), w.Host("server").Addr6()} {
		if _, err := w.Host("inside").Ping(t.Context(), to); err != nil {
			t.Error(err)
		}
	}
	if _, err := w.Host("intruder").Ping(t.Context(), netip.MustParseAddr("203.0.113.7")); err != nil {
		t.Errorf("the router itself: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	rtts, err := w.Host("intruder").pingMany(ctx, []netip.Addr{w.Host("inside").Addr()})
	if err != nil || rtts[0] >= 0 {
		t.Errorf("intruder reaches inside over IPv4: %v, %v", rtts, err)
	}
	ctx, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	rtts, err = w.Host("intruder").pingMany(ctx, []netip.Addr{w.Host("inside").Addr6()})
	if err != nil || rtts[0] >= 0 {
		t.Errorf("intruder reaches inside over IPv6: %v, %v", rtts, err)
	}
}

func TestNATMapsPortsAsDeclared(t *testing.T) {
	for _, ports := range []PortMapping{KeepPorts, RandomPorts} {
		t.Run(ports.String(), func(t *testing.T) {
			w := mustStart(t, natWorld(ports))
			var seen []netip.AddrPort
			client, err := w.Host("inside").ListenPacket(t.Context(), "udp4", "192.168.1.10:4000")
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			for _, name := range []string{"server", "intruder", "server"} {
				seen = append(seen, mustReceiveFrom(t, w.Host(name), client.WriteTo))
			}
			for _, s := range seen {
				if s.Addr() != netip.MustParseAddr("203.0.113.7") {
					t.Errorf("seen from %v, want the address of the router", s)
				}
			}
			changed := slices.ContainsFunc(seen, func(s netip.AddrPort) bool { return s.Port() != 4000 })
			if changed != (ports == RandomPorts) {
				t.Errorf("seen from %v with %v", seen, ports)
			}
			if one := seen[0] == seen[1] && seen[1] == seen[2]; one != (ports == KeepPorts) {
				t.Errorf("seen from %v with %v", seen, ports)
			}
		})
	}
}

// mustReceiveFrom lets a new socket on the host receive one datagram and returns where it came from.
func mustReceiveFrom(t *testing.T, h *Host, send func([]byte, net.Addr) (int, error)) netip.AddrPort {
	t.Helper()
	server, err := h.ListenPacket(t.Context(), "udp4", netip.AddrPortFrom(h.Addr(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	if _, err := send([]byte("hello"), server.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	if err := server.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	_, from, err := server.ReadFrom(make([]byte, 100))
	if err != nil {
		t.Fatal(err)
	}
	return from.(*net.UDPAddr).AddrPort()
}

func TestFirewallTextIsApplied(t *testing.T) {
	topology := Reference()
	topology.Host("master01").Firewall = "table inet guard {\n chain input {\n  type filter hook input priority 0; policy accept;\n" +
		"  ip saddr 192.168.10.253 icmp type echo-request drop\n }\n}\n"
	w := mustStart(t, topology)
	m, err := w.PingAll(t.Context(), PingOptions{Hosts: []string{"lb", "master01", "master02"}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"lb→master01"}, m.Missing()); diff != "" {
		t.Errorf("pairs without answer (-want +got):\n%s", diff)
	}
}

func TestBrokenFirewallFailsTheStartAndLeavesNothing(t *testing.T) {
	topology := Reference()
	topology.Host("gw20").Firewall = "table inet x { nonsense }"
	w, err := Start(t.Context(), topology)
	if err == nil {
		w.Close()
		t.Fatal("started")
	}
	if !strings.Contains(err.Error(), "host gw20: nft -f -: ") || !strings.Contains(err.Error(), "syntax error") {
		t.Errorf("got %v, want what nft said on gw20", err)
	}
	if strings.Contains(err.Error(), "left over") {
		t.Errorf("leftovers: %v", err)
	}
}

func TestMTUOfAnInterfaceHolds(t *testing.T) {
	topology := Reference()
	topology.Host("lb").Interfaces[0].MTU = 1300
	w := mustStart(t, topology)
	ping := func(size string) error {
		_, err := w.Host("master01").Run(t.Context(), "ping", "-c1", "-W1", "-Mdo", "-s", size, "192.168.10.253")
		return err
	}
	if err := ping("1272"); err != nil { // 1272 + 8 (ICMP) + 20 (IPv4) = 1300
		t.Error(err)
	}
	if err := ping("1273"); err == nil {
		t.Error("1301 bytes reach a host with MTU 1300")
	}
}
