//go:build integration

package meshlab_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
	"github.com/planetmesh/planetmesh/overlay"
)

// The world of these tests, unless one says otherwise:
//
//	          underlay 10.4.0.0/16
//	   ┌────────────┼────────────┐
//	 gw10 .90     gw20 .91     gw30 .92       meshd runs here
//	   │            │            │
//	192.168.10/24 192.168.20/24 192.168.30/24
//	lb, master01…  node01, 02   node03, 04    eight hosts

func TestThreeSitesBecomeOneNetwork(t *testing.T) {
	for _, c := range []struct {
		name     string
		topology netlab.Topology
		pings    []netlab.PingOptions
	}{
		{"ipv4", netlab.Reference(), []netlab.PingOptions{{}}},
		{"ipv6", netlab.Reference6(), []netlab.PingOptions{{IPv6: true}}},
		{"both", netlab.ReferenceDual(), []netlab.PingOptions{{}, {IPv6: true}}},
		{"ipv6 over ipv4", netlab.ReferenceOver(netlab.IPv6, netlab.IPv4), []netlab.PingOptions{{IPv6: true}}},
		{"ipv4 over ipv6", netlab.ReferenceOver(netlab.IPv4, netlab.IPv6), []netlab.PingOptions{{}}},
	} {
		t.Run(c.name, func(t *testing.T) {
			lab := newLab(t, c.topology)
			before := mustSnapshot(t, lab)
			for _, o := range c.pings {
				m, err := lab.World().PingAll(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				if got, want := m.Reached(), 16; got != want {
					t.Errorf("pairs before: got %d, want %d\n%v", got, want, m)
				}
			}
			gateways := meshlab.ReferenceGateways(c.topology)
			if err := lab.Up(within(t, 30*time.Second), "planet", gateways); err != nil {
				t.Fatal(err)
			}
			for _, o := range c.pings {
				mustBeFull(t, lab, o, 15*time.Second)
			}
			for _, pair := range [][2]string{{"master01", "node01"}, {"node03", "lb"}} {
				to := lab.World().Host(pair[1])
				addr := to.Addr()
				if !addr.IsValid() {
					addr = to.Addr6()
				}
				if err := lab.World().CheckTCP(within(t, 10*time.Second), pair[0], pair[1], addr, 1<<20); err != nil {
					t.Errorf("tcp %v: %v", pair, err)
				}
			}
			for _, g := range gateways {
				if err := lab.Stop(within(t, 10*time.Second), g.Host); err != nil {
					t.Errorf("stop %s: %v", g.Host, err)
				}
			}
			for host, text := range mustSnapshot(t, lab) {
				if diff := netlab.DiffSnapshots(before[host], text); diff != nil {
					t.Errorf("left on %s:\n%s", host, strings.Join(diff, "\n"))
				}
			}
		})
	}
}

func mustSnapshot(t *testing.T, lab *meshlab.Lab) map[string]string {
	t.Helper()
	out := make(map[string]string)
	for _, router := range lab.World().Topology().Routers() {
		text, err := lab.World().Host(router).Snapshot(within(t, 10*time.Second))
		if err != nil {
			t.Fatal(err)
		}
		out[router] = text
	}
	return out
}

func TestKilledGatewayComesBackWithinTenSeconds(t *testing.T) {
	topology := netlab.Reference()
	lab := newMesh(t, topology)
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
	for _, router := range topology.Routers() {
		if err := lab.Kill(router); err != nil {
			t.Fatal(err)
		}
		if err := lab.Run(within(t, 10*time.Second), router); err != nil {
			t.Fatal(err)
		}
		mustBeFull(t, lab, netlab.PingOptions{}, 10*time.Second)
	}
}

func TestKillLeavesNothingThatTheNextStartDoesNotHeal(t *testing.T) {
	topology := netlab.Reference()
	lab := newLab(t, topology)
	before := mustSnapshot(t, lab)
	if err := lab.Up(within(t, 30*time.Second), "planet", meshlab.ReferenceGateways(topology)); err != nil {
		t.Fatal(err)
	}
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
	for _, router := range topology.Routers() {
		if err := lab.Kill(router); err != nil {
			t.Fatal(err)
		}
	}
	for _, router := range topology.Routers() {
		if err := lab.Run(within(t, 10*time.Second), router); err != nil {
			t.Fatal(err)
		}
	}
	mustBeFull(t, lab, netlab.PingOptions{}, 10*time.Second)
	for _, router := range topology.Routers() {
		if err := lab.Stop(within(t, 10*time.Second), router); err != nil {
			t.Fatal(err)
		}
	}
	for host, text := range mustSnapshot(t, lab) {
		if diff := netlab.DiffSnapshots(before[host], text); diff != nil {
			t.Errorf("left on %s:\n%s", host, strings.Join(diff, "\n"))
		}
	}
}

func TestMeshReformsWithoutItsSeed(t *testing.T) {
	topology := netlab.Reference()
	lab := newMesh(t, topology)
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
	for _, router := range []string{"gw10", "gw20", "gw30"} {
		if err := lab.Stop(within(t, 10*time.Second), router); err != nil {
			t.Fatal(err)
		}
	}
	for _, router := range []string{"gw20", "gw30"} {
		if err := lab.Run(within(t, 10*time.Second), router); err != nil {
			t.Fatal(err)
		}
	}
	mustBeFull(t, lab, netlab.PingOptions{Hosts: []string{"node01", "node02", "node03", "node04"}}, 10*time.Second)
}

func TestFourthSiteNeedsNoChangeElsewhere(t *testing.T) {
	topology := netlab.Reference()
	topology.AddSite(netlab.Site{Number: 40, Hosts: []netlab.SiteHost{{Name: "node05", Number: 101}, {Name: "node06", Number: 102}}})
	lab := newLab(t, topology)
	gateways := meshlab.ReferenceGateways(topology)
	if err := lab.Up(within(t, 30*time.Second), "planet", gateways[:3]); err != nil {
		t.Fatal(err)
	}
	old := []string{"lb", "master01", "master02", "master03", "node01", "node02", "node03", "node04"}
	mustBeFull(t, lab, netlab.PingOptions{Hosts: old}, 15*time.Second)
	if err := lab.Add(within(t, 15*time.Second), "gw10", gateways[3]); err != nil {
		t.Fatal(err)
	}
	mustBeFull(t, lab, netlab.PingOptions{}, 10*time.Second)
}

func TestWithdrawnPrefixLeavesEveryRoutingTable(t *testing.T) {
	topology := netlab.Reference()
	lab := newLab(t, topology)
	gateways := meshlab.ReferenceGateways(topology)
	if err := lab.Up(within(t, 30*time.Second), "planet", gateways[:2]); err != nil {
		t.Fatal(err)
	}
	g := gateways[2]
	ticket, err := lab.Ticket(within(t, 10*time.Second), "gw10", g)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Join(within(t, 10*time.Second), g.Host, ticket); err != nil {
		t.Fatal(err)
	}
	host := lab.World().Host(g.Host)
	config := func(announce string) {
		if err := host.WriteFile("meshd.yaml", []byte("announce: ["+announce+"]\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config("192.168.30.0/24")
	if err := lab.Run(within(t, 10*time.Second), g.Host, "--config", host.Dir()+"/meshd.yaml"); err != nil {
		t.Fatal(err)
	}
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
	config("")
	if err := lab.Reload(g.Host); err != nil {
		t.Fatal(err)
	}
	for _, other := range []string{"gw10", "gw20"} {
		eventually(t, 10*time.Second, func() string {
			if routes := routesTo(t, lab, other); strings.Contains(routes, "192.168.30.0/24") {
				return fmt.Sprintf("%s still has 192.168.30.0/24:\n%s", other, routes)
			}
			return ""
		})
		if routes := routesTo(t, lab, other); !strings.Contains(routes, "192.168.") {
			t.Errorf("%s lost the other routes too:\n%s", other, routes)
		}
	}
	config("192.168.30.0/24")
	if err := lab.Reload(g.Host); err != nil {
		t.Fatal(err)
	}
	mustBeFull(t, lab, netlab.PingOptions{}, 10*time.Second)
	if err := host.WriteFile("meshd.yaml", []byte("announce: [10.9.0.0/16]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := lab.Reload(g.Host); err != nil {
		t.Fatal(err)
	}
	if err := lab.Process(g.Host).WaitLog(within(t, 10*time.Second), "10.9.0.0/16"); err != nil {
		t.Fatal(err)
	}
	mustBeFull(t, lab, netlab.PingOptions{}, 5*time.Second)
}

func TestWgShowReadsTheRunningDevice(t *testing.T) {
	topology := netlab.Reference()
	lab := newMesh(t, topology)
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
	out := mustRun(t, lab, "gw10", "wg", "show", overlay.DefaultInterface)
	for _, want := range []string{"10.4.0.91:", "10.4.0.92:", "192.168.20.0/24", "192.168.30.0/24", "latest handshake"} {
		if !strings.Contains(out, want) {
			t.Errorf("wg show lacks %q:\n%s", want, out)
		}
	}
	if _, err := lab.World().Host("gw10").Run(t.Context(), "wg", "set", overlay.DefaultInterface, "listen-port", "999"); err == nil {
		t.Error("wg set was accepted: the records would lie")
	}
}

func TestMatrixShowsGatewaysAndHosts(t *testing.T) {
	topology := netlab.Reference()
	lab := newMesh(t, topology)
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
	host := lab.World().Host("gw20")
	if err := host.WriteFile("hosts", []byte("192.168.10.101\n192.168.20.101\n192.168.30.77 # nobody\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out, err := lab.Meshd(within(t, 20*time.Second), "gw20", "matrix", "--hosts", host.Dir()+"/hosts")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"gw-10", "gw-20", "gw-30", "192.168.10.101", "192.168.30.77"} {
		if !strings.Contains(out, want) {
			t.Errorf("matrix lacks %q:\n%s", want, out)
		}
	}
	t.Log(out)
}
