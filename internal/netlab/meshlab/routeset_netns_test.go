//go:build integration

package meshlab_test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
)

// The world of these tests: the reference deployment with a second gateway of
// site 10, and pods on two of its hosts.
//
//	         underlay 10.4.0.0/16
//	  ┌────────────┬──────────┬────────────┐
//	gw10 .90    gw10b .99   gw20 .91     gw30 .92
//	  │ .1         │ .2       │            │
//	  └──── 192.168.10/24   192.168.20/24 192.168.30/24
//	     master01 .101  master02 .102
//	     10.128.1.7     10.128.2.7           pods, on the loopback
const (
	podBlock = "10.128.0.0/18"
	podSet   = `{
  "announce": ["10.128.0.0/18"],
  "lan": [
    {"prefix": "10.128.1.0/24", "via": "192.168.10.101"},
    {"prefix": "10.128.2.0/24", "via": "192.168.10.102"}
  ]
}`
	podRoutes = "10.128.1.0/24 via 192.168.10.101 dev eth1 metric 2048\n10.128.2.0/24 via 192.168.10.102 dev eth1 metric 2048"
)

// newPods starts the mesh without gw10b; gw10 announces the LAN of its site alone.
func newPods(t *testing.T) *meshlab.Lab {
	t.Helper()
	topology := netlab.Reference()
	topology.Hosts = append(topology.Hosts, netlab.HostSpec{Name: "gw10b", Interfaces: []netlab.Iface{
		{Net: "underlay", Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.4.0.99/16")}},
		{Net: "lan10", Name: "eth1", Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.10.2/24")}},
	}})
	lab := newLab(t, topology)
	for _, host := range []string{"gw10", "gw10b"} {
		if err := lab.World().Host(host).WriteFile(configOf(lab, host), []byte("announce: [192.168.10.0/24]\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 2 {
		mustRun(t, lab, fmt.Sprint("master0", i+1), "ip", "addr", "add", fmt.Sprintf("10.128.%d.7/32", i+1), "dev", "lo")
	}
	ctx := within(t, 30*time.Second)
	gateways := meshlab.ReferenceGateways(topology)
	if _, err := lab.Init(ctx, "planet", gateways[0]); err != nil {
		t.Fatal(err)
	}
	mustStart(t, lab, "gw10")
	for _, g := range gateways[1:] {
		if err := lab.Add(ctx, "gw10", g); err != nil {
			t.Fatal(err)
		}
	}
	return lab
}

// addSecond makes gw10b a gateway of site 10 as well.
func addSecond(t *testing.T, lab *meshlab.Lab) {
	t.Helper()
	ctx := within(t, 15*time.Second)
	g := gateway(t, netlab.Reference(), "gw10")
	g.Host = "gw10b"
	ticket, err := lab.Ticket(ctx, "gw10", g)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lab.Join(ctx, "gw10b", ticket); err != nil {
		t.Fatal(err)
	}
	mustStart(t, lab, "gw10b")
}

func configOf(lab *meshlab.Lab, host string) string {
	return filepath.Join(lab.World().Host(host).Dir(), "meshd.yaml")
}

func mustStart(t *testing.T, lab *meshlab.Lab, host string) {
	t.Helper()
	if err := lab.Run(within(t, 15*time.Second), host, "--config", configOf(lab, host)); err != nil {
		t.Fatal(err)
	}
}

// meshdOn runs a command of meshd on a host with an input.
func meshdOn(t *testing.T, lab *meshlab.Lab, host, input string, args ...string) (string, error) {
	t.Helper()
	cmd := lab.World().Host(host).Command(within(t, 20*time.Second), meshd, args...)
	cmd.Stdin = strings.NewReader(input)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func mustMeshd(t *testing.T, lab *meshlab.Lab, host, input string, args ...string) string {
	t.Helper()
	out, err := meshdOn(t, lab, host, input, args...)
	if err != nil {
		t.Fatalf("meshd %v on %s: %v: %s", args, host, err, out)
	}
	return out
}

// lanRoutes are the routes of a host with our mark through hosts of its LANs.
func lanRoutes(t *testing.T, lab *meshlab.Lab, host string) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(mustRun(t, lab, host, "ip", "route", "show", "proto", "109")) {
		if strings.Contains(line, " via ") {
			lines = append(lines, strings.Join(strings.Fields(line), " "))
		}
	}
	return strings.Join(lines, "\n")
}

// mustHaveLANRoutes waits until a host has exactly the routes that are wanted.
func mustHaveLANRoutes(t *testing.T, lab *meshlab.Lab, host, want string) {
	t.Helper()
	eventually(t, 10*time.Second, func() string {
		if got := lanRoutes(t, lab, host); got != want {
			return fmt.Sprintf("routes of %s:\n%s\nwant:\n%s", host, got, want)
		}
		return ""
	})
}

// reach reports what keeps a host from reaching the pods, "" if nothing does.
func reach(t *testing.T, lab *meshlab.Lab, from string) string {
	t.Helper()
	for _, pod := range []string{"10.128.1.7", "10.128.2.7"} {
		if _, err := lab.World().Host(from).Ping(within(t, 2*time.Second), netip.MustParseAddr(pod)); err != nil {
			return fmt.Sprintf("%s does not reach %s: %v", from, pod, err)
		}
	}
	return ""
}

func mustReachPods(t *testing.T, lab *meshlab.Lab) {
	t.Helper()
	for _, from := range []string{"node01", "node03"} {
		eventually(t, 15*time.Second, func() string { return reach(t, lab, from) })
	}
}

func TestPodsBehindHostsOfALANAreReachedFromEverySite(t *testing.T) {
	lab := newPods(t)
	bare := lanRoutes(t, lab, "gw10")

	// Not granted yet, so nothing of it is done.
	out, err := meshdOn(t, lab, "gw10", podSet, "routeset", "put", "pods")
	if err == nil || !strings.Contains(out, "prefix 10.128.0.0/18 is not granted to this gateway") {
		t.Errorf("put before it is granted: %v: %s", err, out)
	}
	if got := lanRoutes(t, lab, "gw10"); got != bare {
		t.Errorf("a refused set left routes:\n%s", got)
	}
	// Issuer and member are widened without joining again, and without a break.
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
	ping, err := lab.World().Host("node01").Start(t.Context(), "ping", "-q", "-i", "0.02", "-c", "150", "-W", "5", "192.168.10.101")
	if err != nil {
		t.Fatal(err)
	}
	for gateway, block := range map[string]string{"gw-10": podBlock, "gw-20": "10.128.64.0/18"} {
		out := mustMeshd(t, lab, "gw10", "", "ticket", "--state", lab.StateDir("gw10"), "--gateway", gateway, "--prefix", block)
		if !strings.Contains(out, "granted "+block+" to gateway "+gateway) || !strings.Contains(out, "has its certificate") {
			t.Errorf("widen %s: %s", gateway, out)
		}
	}
	select {
	case <-ping.Done():
		if got := ping.Log(); !strings.Contains(got, " 0% packet loss") {
			t.Errorf("pings while grants were widened:\n%s", got)
		}
	case <-time.After(30 * time.Second):
		t.Error("ping does not end")
	}
	out = mustMeshd(t, lab, "gw10", podSet, "routeset", "put", "pods")
	if !strings.Contains(out, "route set pods is in effect: announces 10.128.0.0/18, routes 2 prefixes") {
		t.Errorf("put: %s", out)
	}
	mustHaveLANRoutes(t, lab, "gw10", podRoutes)
	mustReachPods(t, lab)
	if _, err := lab.World().Host("master01").Run(within(t, 5*time.Second), "ping", "-c", "1", "-W", "2", "-I", "10.128.1.7", "192.168.20.101"); err != nil {
		t.Errorf("a pod does not reach another site: %v", err)
	}
	if got := mustMeshd(t, lab, "gw10", podSet, "routeset", "put", "pods", "--json"); !strings.Contains(got, `"changed": false`) {
		t.Errorf("the same again: %s", got)
	}
	eventually(t, 10*time.Second, func() string { // gw20 announces all that it is granted
		if got := routesTo(t, lab, "gw30"); !strings.Contains(got, "10.128.64.0/18") {
			return "gw30 has no route to what was granted to gw20:\n" + got
		}
		return ""
	})
	if got := mustMeshd(t, lab, "gw10", "", "routes"); !strings.Contains(got, "announced here (route set pods)") {
		t.Errorf("routes do not say where the block comes from:\n%s", got)
	}
	for _, warning := range mustStatus(t, lab, "gw10").Warnings {
		t.Errorf("gw10 warns: %s", warning)
	}

	t.Run("refused", func(t *testing.T) { refusedSets(t, lab) })

	// What others break is repaired.
	mustRun(t, lab, "gw10", "ip", "route", "del", "10.128.1.0/24")
	mustHaveLANRoutes(t, lab, "gw10", podRoutes)
	mustRun(t, lab, "gw10", "ip", "route", "change", "10.128.2.0/24", "via", "192.168.10.103", "proto", "109", "metric", "2048")
	mustHaveLANRoutes(t, lab, "gw10", podRoutes)

	// A reload leaves it alone.
	if err := lab.Reload("gw10"); err != nil {
		t.Fatal(err)
	}
	mustReachPods(t, lab)

	// Killed, its routes stay, and the next start has the same set; stopped,
	// nothing stays.
	if err := lab.Kill("gw10"); err != nil {
		t.Fatal(err)
	}
	if got := lanRoutes(t, lab, "gw10"); got != podRoutes {
		t.Errorf("routes of a killed gateway:\n%s", got)
	}
	mustStart(t, lab, "gw10")
	mustHaveLANRoutes(t, lab, "gw10", podRoutes)
	mustReachPods(t, lab)
	if err := lab.Stop(within(t, 10*time.Second), "gw10"); err != nil {
		t.Fatal(err)
	}
	if got := lanRoutes(t, lab, "gw10"); got != "" {
		t.Errorf("routes of a stopped gateway:\n%s", got)
	}
	mustStart(t, lab, "gw10")
	mustHaveLANRoutes(t, lab, "gw10", podRoutes)
	mustReachPods(t, lab)

	// Deleted, killed at once, and started again: gone for good.
	mustMeshd(t, lab, "gw10", "", "routeset", "delete", "pods")
	if err := lab.Kill("gw10"); err != nil {
		t.Fatal(err)
	}
	mustStart(t, lab, "gw10")
	mustHaveLANRoutes(t, lab, "gw10", "")
	eventually(t, 15*time.Second, func() string {
		if got := routesTo(t, lab, "gw20"); strings.Contains(got, podBlock) {
			return "gw20 still has a route to the pods:\n" + got
		}
		return ""
	})
	if reach(t, lab, "node01") == "" {
		t.Error("the pods are reached without the set")
	}
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
}

// refusedSets puts sets that the host cannot have, and finds all as before.
func refusedSets(t *testing.T, lab *meshlab.Lab) {
	mustRun(t, lab, "gw10", "ip", "route", "add", "10.128.9.0/24", "via", "192.168.10.103")
	before := mustMeshd(t, lab, "gw10", "", "routeset", "list", "--json")
	for _, tt := range []struct{ name, routes, want string }{
		{"host of another site", `{"prefix": "10.128.3.0/24", "via": "192.168.20.101"}`, "via 192.168.20.101: not in a network that this host is plugged into"},
		{"the gateway itself", `{"prefix": "10.128.3.0/24", "via": "192.168.10.1"}`, "via 192.168.10.1: that is an address of this host"},
		{"the LAN", `{"prefix": "192.168.10.0/25", "via": "192.168.10.253"}`, "collides with 192.168.10.0/24 dev eth1"},
		{"a route of the operator", `{"prefix": "10.128.9.0/24", "via": "192.168.10.101"}`, "collides with 10.128.9.0/24 via 192.168.10.103 dev eth1"},
		{"another set's prefix", `{"prefix": "10.128.1.0/24", "via": "192.168.10.103"}`, "route set pods has it via 192.168.10.101"},
		{"not announced", `{"prefix": "10.128.64.0/24", "via": "192.168.10.101"}`, "prefix 10.128.64.0/24 is not granted"},
		{"one good, one bad", `{"prefix": "10.128.3.0/24", "via": "192.168.10.103"}, {"prefix": "10.128.4.0/24", "via": "172.16.0.1"}`, "via 172.16.0.1: not in a network"},
	} {
		out, err := meshdOn(t, lab, "gw10", `{"lan": [`+tt.routes+`]}`, "routeset", "put", "more")
		if err == nil || !strings.Contains(out, tt.want) || !strings.Contains(out, "route set more: ") {
			t.Errorf("%s: %v: %s, want %q", tt.name, err, out, tt.want)
		}
	}
	if got := mustMeshd(t, lab, "gw10", "", "routeset", "list", "--json"); got != before {
		t.Errorf("sets after refusals: %s, want %s", got, before)
	}
	mustRun(t, lab, "gw10", "ip", "route", "del", "10.128.9.0/24", "via", "192.168.10.103")
	mustHaveLANRoutes(t, lab, "gw10", podRoutes)
}

func TestTwoGatewaysOfASiteHoldTheSameSet(t *testing.T) {
	lab := newPods(t)
	addSecond(t, lab)
	for i, host := range []string{"gw10", "gw10b"} {
		mustMeshd(t, lab, "gw10", "", "ticket", "--state", lab.StateDir("gw10"), "--gateway", []string{"gw-10", "gw-10-2"}[i], "--prefix", podBlock)
		mustMeshd(t, lab, host, podSet, "routeset", "put", "pods")
		mustHaveLANRoutes(t, lab, host, podRoutes)
	}
	mustReachPods(t, lab)
	carrier := func() (via string, standby []string) {
		var routes struct {
			Routes []struct {
				Prefix, Gateway string
				Standby         []string
			}
		}
		out := mustMeshd(t, lab, "gw20", "", "routes", "--json")
		if err := json.Unmarshal([]byte(out), &routes); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, r := range routes.Routes {
			if r.Prefix == podBlock {
				return r.Gateway, r.Standby
			}
		}
		return "", nil
	}
	eventually(t, 10*time.Second, func() string {
		if via, standby := carrier(); via == "" || len(standby) != 1 || slices.Contains(standby, via) {
			return fmt.Sprintf("the block is carried by %q with %v in reserve, want one of each", via, standby)
		}
		return ""
	})
	for _, host := range []string{"gw10", "gw10b"} {
		for _, warning := range mustStatus(t, lab, host).Warnings {
			t.Errorf("%s warns: %s", host, warning)
		}
	}
	// One goes; the other one carries on. The pods' answers go through it too.
	for _, master := range []string{"master01", "master02"} {
		for _, site := range []string{"192.168.20.0/24", "192.168.30.0/24"} {
			mustRun(t, lab, master, "ip", "route", "add", site, "via", "192.168.10.2")
		}
	}
	mustMeshd(t, lab, "gw10", "", "routeset", "delete", "pods")
	eventually(t, 10*time.Second, func() string {
		if via, standby := carrier(); via != "gw-10-2" || len(standby) != 0 {
			return fmt.Sprintf("the block is carried by %q with %v in reserve, want gw-10-2 alone", via, standby)
		}
		return ""
	})
	mustHaveLANRoutes(t, lab, "gw10b", podRoutes)
	mustReachPods(t, lab)
}
