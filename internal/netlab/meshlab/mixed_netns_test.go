//go:build integration

package meshlab_test

import (
	"context"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
)

// checkPause is the time between two runs of the router's check script.
const checkPause = time.Second

// prefix30 is what is behind the router.
var prefix30 = netip.MustParsePrefix("192.168.30.0/24")

// newMixed starts the mixed reference deployment (see [meshlab.Mixed]) with a configured router. At the end nothing of it may
// be left on any gateway or router.
func newMixed(t *testing.T) *meshlab.Mixed {
	t.Helper()
	m, err := meshlab.StartMixed(t.Context(), meshd)
	if err != nil {
		t.Fatal(err)
	}
	m.RunArgs = []string{"--log-level", "debug"}
	before := mixedSnapshots(t, m)
	t.Cleanup(func() { endMixed(t, m, before) })
	if err := m.Up(within(t, 60*time.Second), "planet"); err != nil {
		t.Fatal(err)
	}
	setup, err := m.RouterSetup(within(t, 20*time.Second))
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Router.Commit(within(t, 20*time.Second), setup.Commands); err != nil {
		t.Fatal(err)
	}
	if err := m.Router.Schedule(within(t, 20*time.Second), setup.Script, checkPause); err != nil {
		t.Fatal(err)
	}
	mustBeFull(t, m.Lab, meshlab.Pings(), 30*time.Second)
	return m
}

// mixedHosts are the gateways and the router.
var mixedHosts = []string{"gw10", "gw20", "gw30", "gw30a", "gw30b"}

func mixedSnapshots(t *testing.T, m *meshlab.Mixed) map[string]string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	out := make(map[string]string)
	for _, host := range mixedHosts {
		text, err := m.World().Host(host).Snapshot(ctx)
		if err != nil {
			t.Fatal(err)
		}
		out[host] = text
	}
	return out
}

func endMixed(t *testing.T, m *meshlab.Mixed, before map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	if err := m.Down(ctx); err != nil {
		t.Errorf("down: %v", err)
	}
	if t.Failed() {
		t.Logf("the router's check script said:\n%s", m.Router.TaskLog())
		for _, g := range meshlab.MixedGateways() {
			if p := m.Process(g.Host); p != nil {
				t.Logf("log of %s:\n%s", g.Host, p.Log())
			}
		}
	}
	for host, text := range mixedSnapshots(t, m) {
		if diff := netlab.DiffSnapshots(before[host], text); diff != nil {
			t.Errorf("left on %s:\n%s", host, strings.Join(diff, "\n"))
		}
	}
	if err := m.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
}

// announced reports whether the gateway announces the router's prefix.
func announced(t *testing.T, m *meshlab.Mixed, host string) bool {
	t.Helper()
	for _, r := range mustStatus(t, m.Lab, host).Self.Routes {
		if r.Prefix == prefix30 {
			return true
		}
	}
	return false
}

// carrier is the gateway that gw10 sends packets for the router's prefix to, empty if it has no route.
func carrier(t *testing.T, m *meshlab.Mixed) string {
	t.Helper()
	for _, r := range mustStatus(t, m.Lab, "gw10").Routes {
		if r.Prefix == prefix30 {
			return r.Gateway
		}
	}
	return ""
}

// nameOf is what the mesh calls the gateway on a host.
func nameOf(t *testing.T, m *meshlab.Mixed, host string) string {
	t.Helper()
	return mustStatus(t, m.Lab, host).Self.Gateway
}

// mustCarry waits until gw10 sends by the gateway on the host, and the router too.
func mustCarry(t *testing.T, m *meshlab.Mixed, host string) {
	t.Helper()
	name := nameOf(t, m, host)
	start := time.Now()
	eventually(t, 60*time.Second, func() string {
		if got := carrier(t, m); got != name {
			return fmt.Sprintf("gw10 sends to %q, want %s", got, name)
		}
		return ""
	})
	device := meshlab.AttachmentOf(host).Interface
	eventually(t, 60*time.Second, func() string {
		route := mustRun(t, m.Lab, "gw30", "ip", "route", "get", "192.168.10.101")
		if !strings.Contains(route, "dev "+device+" ") {
			return fmt.Sprintf("the router sends by %q, want %s", route, device)
		}
		return ""
	})
	t.Logf("both directions go by %s after %v", host, time.Since(start).Round(10*time.Millisecond))
}

// mustTransfer sends a megabyte between site 30 and the others, both ways.
func mustTransfer(t *testing.T, m *meshlab.Mixed) {
	t.Helper()
	for _, pair := range [][2]string{{"master01", "node03"}, {"node04", "node01"}} {
		if err := m.World().CheckTCP(within(t, 30*time.Second), pair[0], pair[1], netip.Addr{}, 1<<20); err != nil {
			t.Error(err)
		}
	}
}

func TestMixedDeploymentBecomesOneNetwork(t *testing.T) {
	m, err := meshlab.StartMixed(t.Context(), meshd)
	if err != nil {
		t.Fatal(err)
	}
	table, err := m.World().PingAll(t.Context(), meshlab.Pings())
	if err != nil {
		t.Fatal(err)
	}
	if table.Reached() != 16 || table.Total() != 56 {
		t.Errorf("before: %d/%d pairs answer, want 16/56\n%v", table.Reached(), table.Total(), table)
	}
	if err := m.Close(); err != nil {
		t.Error(err)
	}

	m = newMixed(t)
	mustCarry(t, m, "gw30a")
	mustTransfer(t, m)
	for _, host := range netlab.MixedGateways {
		a := meshlab.AttachmentOf(host)
		if !announced(t, m, host) {
			t.Errorf("%s does not announce %v", host, prefix30)
		}
		file, err := m.Router.OptionFile(a.Interface)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{
			fmt.Sprintf("remote %v\n", a.Gateway), fmt.Sprintf("ifconfig %v %v\n", a.Peer, a.Local), "secret /run/openvpn/",
			"cipher AES-256-CBC\n", "auth sha256\n", "persist-tun\n", "proto udp\n", "disable-dco\n", "providers legacy default\n",
		} {
			if !strings.Contains(file, want) {
				t.Errorf("the router's file lacks %q:\n%s", want, file)
			}
		}
		// What the two ends tell each other about their options fits: no warnings.
		if log := m.Router.Tunnel(a.Interface).Log(); strings.Contains(log, "WARNING") || strings.Contains(log, "inconsistent") {
			t.Errorf("the router's openvpn warns:\n%s", log)
		}
	}
}

func TestMixedDeploymentBearsAPoorLine(t *testing.T) {
	m := newMixed(t)
	poor := netlab.Link{Delay: 15 * time.Millisecond, Jitter: 3 * time.Millisecond, Loss: 0.01, Reorder: 0.01}
	if err := m.World().Host("gw30").SetLink(t.Context(), "eth0", poor, poor); err != nil {
		t.Fatal(err)
	}
	mustBeFull(t, m.Lab, meshlab.Pings(), 30*time.Second)
	mustTransfer(t, m)
	if err := m.World().Host("gw30").SetLink(t.Context(), "eth0", netlab.Link{}, netlab.Link{}); err != nil {
		t.Fatal(err)
	}
}

func TestRestartedRouterIsBackAtOnce(t *testing.T) {
	m := newMixed(t)
	for _, how := range []string{"stopped", "killed"} {
		if how == "killed" {
			for _, host := range netlab.MixedGateways {
				if err := m.Router.Tunnel(meshlab.AttachmentOf(host).Interface).Kill(); err != nil {
					t.Fatal(err)
				}
			}
		} else if err := m.Router.StopTunnels(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		cut, err := m.World().PingAll(t.Context(), netlab.PingOptions{Hosts: []string{"node03", "master01"}})
		if err != nil {
			t.Fatal(err)
		}
		if cut.Reached() != 0 {
			t.Errorf("router %s, and pairs answer:\n%v", how, cut)
		}
		if err := m.Router.Start(within(t, 10*time.Second)); err != nil {
			t.Fatal(err)
		}
		_, took, err := m.WaitFull(within(t, 40*time.Second), meshlab.Pings(), nil)
		t.Logf("router %s and started: complete after %v", how, took.Round(10*time.Millisecond))
		if err != nil {
			t.Fatal(err)
		}
	}
}

func TestKilledGatewayOfARouterIsReplaced(t *testing.T) {
	m := newMixed(t)
	mustCarry(t, m, "gw30a")
	if err := m.Kill("gw30a"); err != nil {
		t.Fatal(err)
	}
	table, took, err := m.WaitFull(within(t, 60*time.Second), meshlab.Pings(), nil)
	t.Logf("gw30a killed: complete again after %v", took.Round(10*time.Millisecond))
	if err != nil {
		t.Fatalf("%v\n%v", err, table)
	}
	mustCarry(t, m, "gw30b")
	mustTransfer(t, m)
	// It comes back, heals what it left, and takes over again.
	if err := m.RunAttached(within(t, 10*time.Second), "gw30a"); err != nil {
		t.Fatal(err)
	}
	mustCarry(t, m, "gw30a")
	mustBeFull(t, m.Lab, meshlab.Pings(), 30*time.Second)
}

func TestSilentRouterLosesItsPrefix(t *testing.T) {
	m := newMixed(t)
	mustCarry(t, m, "gw30a")
	// The first tunnel is blocked between router and gateway; gw30a itself stays in the mesh.
	mustRun(t, m.Lab, "gw30", "nft", "add table inet block; add chain inet block in { type filter hook input priority 0; }; add rule inet block in ip saddr 10.4.0.93 udp sport 1195 drop")
	mustRun(t, m.Lab, "gw30", "nft", "add chain inet block out { type filter hook output priority 0; }; add rule inet block out ip daddr 10.4.0.93 udp dport 1195 drop")
	start := time.Now()
	eventually(t, 60*time.Second, func() string {
		if announced(t, m, "gw30a") {
			return "gw30a still announces the prefix"
		}
		return ""
	})
	t.Logf("withdrawn after %v", time.Since(start).Round(10*time.Millisecond))
	mustCarry(t, m, "gw30b")
	mustBeFull(t, m.Lab, meshlab.Pings(), 30*time.Second)
	// Without any tunnel nobody announces it.
	if err := m.Router.Tunnel("vtun2").Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 60*time.Second, func() string {
		if name := carrier(t, m); name != "" {
			return "gw10 still has a route to " + name
		}
		return ""
	})
	if routes := routesTo(t, m.Lab, "gw10"); strings.Contains(routes, prefix30.String()) {
		t.Errorf("the kernel of gw10 still has a route:\n%s", routes)
	}
	// Both come back.
	mustRun(t, m.Lab, "gw30", "nft", "delete", "table", "inet", "block")
	if err := m.Router.StopTunnels(within(t, 10*time.Second)); err != nil {
		t.Log(err) // one was killed
	}
	if err := m.Router.Start(within(t, 10*time.Second)); err != nil {
		t.Fatal(err)
	}
	mustBeFull(t, m.Lab, meshlab.Pings(), 40*time.Second)
	mustCarry(t, m, "gw30a")
}

func TestRouterCannotSendForOthers(t *testing.T) {
	m := newMixed(t)
	mustCarry(t, m, "gw30a")
	const count = 20
	for _, foreign := range []string{"192.168.20.77", "10.4.0.91", "203.0.113.9"} {
		before, refused := echoes(t, m), sourceDrops(t, m, "gw30a")
		script := fmt.Sprintf("ip address add %[1]s/32 dev lo; ping -q -c %[2]d -i 0.02 -W 1 -I %[1]s 192.168.10.101 || true; ip address del %[1]s/32 dev lo", foreign, count)
		mustRun(t, m.Lab, "gw30", "sh", "-euc", script)
		if n := echoes(t, m) - before; n != 0 {
			t.Errorf("master01 got %d echo requests from %s", n, foreign)
		}
		if n := sourceDrops(t, m, "gw30a") - refused; n != count {
			t.Errorf("gw30a counts %d packets from %s, want %d", n, foreign, count)
		}
	}
	before := echoes(t, m)
	mustRun(t, m.Lab, "node03", "ping", "-q", "-c", strconv.Itoa(count), "-i", "0.02", "192.168.10.101")
	if n := echoes(t, m) - before; n != count {
		t.Errorf("master01 got %d echo requests from node03, want %d", n, count)
	}
}

// echoes is how many ICMP echo requests master01 has got.
func echoes(t *testing.T, m *meshlab.Mixed) int {
	t.Helper()
	text, err := m.World().Host("master01").ReadFile("/proc/thread-self/net/snmp")
	if err != nil {
		t.Fatal(err)
	}
	var rows [][]string
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "Icmp:") {
			rows = append(rows, strings.Fields(line))
		}
	}
	n, err := strconv.Atoi(rows[1][slices.Index(rows[0], "InEchos")])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

var sourceCount = regexp.MustCompile(`"source":\s*(\d+)`)

// sourceDrops is how many packets of the router the gateway dropped for their source.
func sourceDrops(t *testing.T, m *meshlab.Mixed, host string) int {
	t.Helper()
	out, err := m.Meshd(within(t, 10*time.Second), host, "status", "--json")
	if err != nil {
		t.Fatal(err)
	}
	found := sourceCount.FindStringSubmatch(out)
	if found == nil {
		return 0
	}
	n, err := strconv.Atoi(found[1])
	if err != nil {
		t.Fatal(err)
	}
	return n
}
