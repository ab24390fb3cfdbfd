package plan

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/kubeinit/internal/etcdtune"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

var equal = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func mustParse(t testing.TB, text string) *inventory.Inventory {
	t.Helper()
	inv, err := inventory.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

func reference(t testing.TB) *inventory.Inventory {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "inventory", "testdata", "reference.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	return mustParse(t, string(b))
}

// three has a control plane and a worker in each of three sites.
func three(t testing.TB, more ...string) *inventory.Inventory {
	t.Helper()
	text := `cluster: {name: lab}
sites:
- {name: a, prefixes: [192.168.10.0/24], mesh: none}
- {name: b, prefixes: [192.168.20.0/24], mesh: none}
- {name: c, prefixes: [192.168.30.0/24], mesh: none, zone: c1}
hosts:
- {name: m1, site: a, nodeIP: 192.168.10.101, roles: [control-plane]}
- {name: m2, site: b, nodeIP: 192.168.20.101, roles: [control-plane]}
- {name: m3, site: c, nodeIP: 192.168.30.101, roles: [control-plane]}
- {name: n1, site: a, nodeIP: 192.168.10.1, roles: [worker], labels: {disk: ssd}}
`
	return mustParse(t, text+strings.Join(more, ""))
}

const ms = time.Millisecond

// measured is a full matrix between the nodes of an inventory: 1 ms within a
// site and between otherwise.
func measured(inv *inventory.Inventory, between time.Duration, mtu int) Observed {
	o := Observed{Hosts: map[string]HostFacts{}}
	for _, h := range inv.Nodes() {
		o.Hosts[h.Name] = HostFacts{Kubernetes: "1.37.2", Fsync: 2 * ms, LinkMTU: 1500}
		for _, other := range inv.Nodes() {
			p := Pair{From: h.Name, To: other.Name, P50: ms, P99: 2 * ms, Probes: 200, MTU: 1500}
			if h.Site != other.Site {
				p.P50, p.P99, p.MTU = between, between+between/4, mtu
			}
			if h != other {
				o.Pairs = append(o.Pairs, p)
			}
		}
	}
	return o
}

// worse returns the verdicts above Good, one a line.
func worse(verdicts []Verdict) string {
	var b strings.Builder
	for _, v := range verdicts {
		if v.Level > etcdtune.Good {
			fmt.Fprintf(&b, "%s: %s\n", v.Level, v.Reason)
		}
	}
	return b.String()
}

func mustDecide(t testing.TB, inv *inventory.Inventory, o Observed, earlier *Decisions) Decisions {
	t.Helper()
	d, verdicts := Decide(inv, o, earlier, Options{})
	if w := worse(verdicts); w != "" {
		t.Fatalf("verdicts:\n%s", w)
	}
	return d
}

func prefixes(pairs ...string) map[string]netip.Prefix {
	out := map[string]netip.Prefix{}
	for i := 0; i < len(pairs); i += 2 {
		out[pairs[i]] = netip.MustParsePrefix(pairs[i+1])
	}
	return out
}

func TestReferenceDeploymentIsDecided(t *testing.T) {
	inv := reference(t)
	got := mustDecide(t, inv, measured(inv, 40*ms, 1420), nil)
	region := func(zone string, more ...string) map[string]string {
		m := map[string]string{"topology.kubernetes.io/region": "planet", "topology.kubernetes.io/zone": zone}
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	want := Decisions{
		Format: 1, Cluster: "planet", InventoryHash: Hash(inv), Versions: Versions{Kubernetes: "1.37.2"},
		First: "master01", Leader: "master01", ControlPlanes: []string{"master01", "master02", "master03"},
		EtcdHeartbeat: 100 * ms, EtcdElection: time.Second, RTT: 40 * ms, MTU: 1420,
		Endpoint: Endpoint{"api.planet", 6443},
		CertSANs: []string{
			"api.planet", "localhost", "127.0.0.1", "::1", "lb", "192.168.10.253", "master01", "192.168.10.101",
			"master02", "192.168.10.102", "master03", "192.168.10.103", "api.planet.example.org",
		},
		PodSupernet: netip.MustParsePrefix("10.128.0.0/14"),
		PodBlocks:   prefixes("site10", "10.128.0.0/18", "site20", "10.128.64.0/18", "site30", "10.128.128.0/18"),
		NodeRanges: prefixes("master01", "10.128.0.0/24", "master02", "10.128.1.0/24", "master03", "10.128.2.0/24",
			"node01", "10.128.64.0/24", "node02", "10.128.65.0/24", "node03", "10.128.128.0/24", "node04", "10.128.129.0/24"),
		ServiceSubnet: netip.MustParsePrefix("10.96.0.0/16"), DNSService: netip.MustParseAddr("10.96.0.10"), DNSDomain: "cluster.local",
		Labels: map[string]map[string]string{
			"master01": region("site10"), "master02": region("site10"), "master03": region("site10"),
			"node01": region("site20", "example.org/disk", "ssd"), "node02": region("site20"), "node03": region("site30"), "node04": region("site30"),
		},
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("decisions (-want +got):\n%s", diff)
	}
}

func TestMeasurementDecidesTimersFirstHostAndMTU(t *testing.T) {
	inv := three(t)
	o := measured(inv, 80*ms, 1420)
	for i, p := range o.Pairs {
		if p.From == "m2" || p.To == "m2" {
			o.Pairs[i].P50 = 30 * ms // m2 is in the middle
		}
		if p.From == "m3" && p.To == "n1" {
			o.Pairs[i].MTU = 1380 // one way only
		}
	}
	d, verdicts := Decide(inv, o, nil, Options{})
	if d.First != "m2" || d.Leader != "m2" {
		t.Errorf("first %s, leader %s; want m2 with the least sum of round trips", d.First, d.Leader)
	}
	if d.EtcdHeartbeat != 120*ms || d.EtcdElection != 1200*ms {
		t.Errorf("timers %s and %s, want 120ms and 1.2s", d.EtcdHeartbeat, d.EtcdElection)
	}
	if d.MTU != 1380 || d.RTT != 80*ms {
		t.Errorf("MTU %d, round trip %s; want the worst of all", d.MTU, d.RTT)
	}
	if got, want := worse(verdicts), "warn: the round trip between m1 and m3 is 80ms: every write of the API waits for it\n"; got != want {
		t.Errorf("verdicts %q, want %q", got, want)
	}
	if d.Endpoint.Port != 7443 {
		t.Errorf("endpoint %s, want the port of the proxy", d.Endpoint)
	}
}

func TestEarlierDecisionsStayWhenTheInventoryGrows(t *testing.T) {
	inv := three(t)
	old := mustDecide(t, inv, measured(inv, 40*ms, 1420), nil)
	before, err := old.Encode()
	if err != nil {
		t.Fatal(err)
	}
	// A new worker stands first in the file, and a new site among the others.
	text := `cluster: {name: lab}
sites:
- {name: z, prefixes: [192.168.40.0/24], mesh: none}
- {name: a, prefixes: [192.168.10.0/24], mesh: none}
- {name: b, prefixes: [192.168.20.0/24], mesh: none}
- {name: c, prefixes: [192.168.30.0/24], mesh: none, zone: c1}
hosts:
- {name: z1, site: z, nodeIP: 192.168.40.1, roles: [worker]}
- {name: n0, site: a, nodeIP: 192.168.10.2, roles: [worker]}
- {name: m3, site: c, nodeIP: 192.168.30.101, roles: [control-plane]}
- {name: m2, site: b, nodeIP: 192.168.20.101, roles: [control-plane]}
- {name: m1, site: a, nodeIP: 192.168.10.101, roles: [control-plane]}
`
	grown := mustParse(t, text)
	got := mustDecide(t, grown, measured(grown, 45*ms, 1420), &old)
	wantBlocks := prefixes("a", "10.128.0.0/18", "b", "10.128.64.0/18", "c", "10.128.128.0/18", "z", "10.128.192.0/18")
	if diff := cmp.Diff(wantBlocks, got.PodBlocks, equal); diff != "" {
		t.Errorf("blocks (-want +got):\n%s", diff)
	}
	// n1 is not in the inventory, and its range is still its own.
	wantRanges := prefixes("m1", "10.128.0.0/24", "n1", "10.128.1.0/24", "n0", "10.128.2.0/24", "m2", "10.128.64.0/24", "m3", "10.128.128.0/24", "z1", "10.128.192.0/24")
	if diff := cmp.Diff(wantRanges, got.NodeRanges, equal); diff != "" {
		t.Errorf("ranges (-want +got):\n%s", diff)
	}
	if got.First != old.First || got.EtcdHeartbeat != old.EtcdHeartbeat || got.RTT != old.RTT || got.MTU != old.MTU {
		t.Errorf("decisions %+v, want those of before", got)
	}
	if after, err := old.Encode(); err != nil || string(after) != string(before) {
		t.Errorf("the earlier decisions were changed (%v):\n%s", err, after)
	}
	got.Forget("n1", grown)
	later := mustParse(t, text+"- {name: n9, site: a, nodeIP: 192.168.10.9, roles: [worker]}\n")
	last := mustDecide(t, later, measured(later, 45*ms, 1420), &got)
	if r := last.NodeRanges["n9"]; r != netip.MustParsePrefix("10.128.1.0/24") {
		t.Errorf("range %s for n9, want the one that was forgotten", r)
	}
}

func TestSecondDecisionIsTheFirst(t *testing.T) {
	for _, inv := range []*inventory.Inventory{reference(t), three(t)} {
		first := mustDecide(t, inv, measured(inv, 40*ms, 1420), nil)
		for name, o := range map[string]Observed{"measured again": measured(inv, 44*ms, 1420), "not measured": {}} {
			if diff := cmp.Diff(first, mustDecide(t, inv, o, &first), equal); diff != "" {
				t.Errorf("%s (-first +second):\n%s", name, diff)
			}
		}
	}
}

func TestMeasurementThatLeftTheToleranceIsAWarning(t *testing.T) {
	inv := three(t)
	old := mustDecide(t, inv, measured(inv, 40*ms, 1420), nil)
	slow := measured(inv, 150*ms, 1400)
	d, verdicts := Decide(inv, slow, &old, Options{})
	if d.EtcdHeartbeat != old.EtcdHeartbeat || d.MTU != 1420 || d.First != old.First {
		t.Errorf("decisions changed without being asked: %+v", d)
	}
	want := `warn: the round trip between m1 and m2 is 150ms, and etcd should not be stretched over more than 100ms
warn: etcd has a heartbeat of 100ms and an election timeout of 1s, and now 230ms and 2.3s would be chosen
warn: pods send packets of 1420 bytes, and only 1400 get from m1 to m2: longer ones can vanish
`
	if diff := cmp.Diff(want, worse(verdicts)); diff != "" {
		t.Errorf("verdicts (-want +got):\n%s", diff)
	}
	d, verdicts = Decide(inv, slow, &old, Options{Redecide: true})
	if d.EtcdHeartbeat != 230*ms || d.EtcdElection != 2300*ms || d.MTU != 1400 || d.RTT != 150*ms {
		t.Errorf("decisions %+v, want those of the new measurement", d)
	}
	if !strings.HasPrefix(worse(verdicts), "refuse: the round trip") {
		t.Errorf("verdicts %q, want a refusal as for a new cluster", worse(verdicts))
	}
}

func TestSlowNewControlPlaneIsRefused(t *testing.T) {
	inv := mustParse(t, `cluster: {name: lab}
sites: [{name: a, prefixes: [192.168.10.0/24], mesh: none}, {name: b, prefixes: [192.168.20.0/24], mesh: none}, {name: c, prefixes: [192.168.30.0/24], mesh: none}]
hosts: [{name: m1, site: a, nodeIP: 192.168.10.101, roles: [control-plane]}]
`)
	old := mustDecide(t, inv, measured(inv, 0, 0), nil)
	grown := three(t)
	_, verdicts := Decide(grown, measured(grown, 150*ms, 1500), &old, Options{})
	if !strings.HasPrefix(worse(verdicts), "refuse: the round trip between") {
		t.Errorf("verdicts %q, want the new members refused", worse(verdicts))
	}
	_, verdicts = Decide(grown, Observed{}, &old, Options{})
	if !strings.HasPrefix(worse(verdicts), "refuse: no round trip was measured") {
		t.Errorf("verdicts %q, want a measurement demanded", worse(verdicts))
	}
}

func TestWhatClustersCannotChangeIsRefused(t *testing.T) {
	base := three(t)
	old := mustDecide(t, base, measured(base, 40*ms, 1420), nil)
	tests := []struct {
		name   string
		change func(*inventory.Inventory)
		want   string // in the first verdict
	}{
		{"name", func(i *inventory.Inventory) { i.Cluster.Name = "other" }, "the name of the cluster is lab"},
		{"endpoint", func(i *inventory.Inventory) { i.Cluster.Endpoint = inventory.EndpointHAProxy }, "the endpoint of the cluster is api.lab:7443, which cannot be changed, and the inventory wants api.lab:6443"},
		{"pods", func(i *inventory.Inventory) { i.Cluster.PodSupernet = netip.MustParsePrefix("10.64.0.0/12") }, "podSupernet of the cluster is 10.128.0.0/14"},
		{"services", func(i *inventory.Inventory) { i.Cluster.ServiceSubnet = netip.MustParsePrefix("10.97.0.0/16") }, "serviceSubnet of the cluster is 10.96.0.0/16"},
		{"DNS domain", func(i *inventory.Inventory) { i.Cluster.DNSDomain = "k8s.lan" }, "dnsDomain of the cluster is cluster.local"},
		{"version", func(i *inventory.Inventory) { i.Cluster.Version = "1.36" }, "wants 1.36"},
		{"block", func(i *inventory.Inventory) { i.Sites[0].PodBlock = netip.MustParsePrefix("10.129.0.0/18") }, "the pod block of site a is 10.128.0.0/18"},
		{"block of another site", func(i *inventory.Inventory) { i.Sites[0].PodBlock = netip.MustParsePrefix("10.128.0.0/16") }, "overlaps 10.128.64.0/18, which was chosen for site b"},
		{"moved host", func(i *inventory.Inventory) { i.Hosts[3].Site = "b" }, "n1 has the pod range 10.128.1.0/24, which is no part of 10.128.64.0/18 of site b"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inv := three(t)
			tt.change(inv)
			for _, opt := range []Options{{}, {Redecide: true}} {
				if opt.Redecide && tt.name == "version" {
					continue // that is how kubeinit hears of an upgrade
				}
				d, verdicts := Decide(inv, measured(inv, 40*ms, 1420), &old, opt)
				if len(verdicts) == 0 || verdicts[0].Level != etcdtune.Refuse || !strings.Contains(worse(verdicts), tt.want) || verdicts[0].Cure == "" {
					t.Errorf("verdicts %q, want a refusal with %q and a cure", worse(verdicts), tt.want)
				}
				if diff := cmp.Diff(old.PodBlocks, d.PodBlocks, equal); diff != "" || d.Endpoint != old.Endpoint {
					t.Errorf("decisions changed:\n%s", diff)
				}
			}
		})
	}
}

func TestBlockMayGrowAroundItsRanges(t *testing.T) {
	inv := three(t)
	inv.Sites[2].PodBlock = netip.MustParsePrefix("10.131.0.0/24")
	old := mustDecide(t, inv, measured(inv, 40*ms, 1420), nil)
	if old.NodeRanges["m3"] != inv.Sites[2].PodBlock {
		t.Fatalf("ranges %v", old.NodeRanges)
	}
	inv.Sites[2].PodBlock = netip.MustParsePrefix("10.131.0.0/20")
	d := mustDecide(t, inv, measured(inv, 40*ms, 1420), &old)
	if d.PodBlocks["c"] != inv.Sites[2].PodBlock || d.NodeRanges["m3"] != old.NodeRanges["m3"] {
		t.Errorf("blocks %v, ranges %v", d.PodBlocks, d.NodeRanges)
	}
}

func TestBlocksFitTheSupernet(t *testing.T) {
	tests := []struct {
		name, supernet string
		nodes          int // in site a, beside one each in b and c
		want           map[string]netip.Prefix
		verdict        string
	}{
		{"default", "10.128.0.0/14", 2, prefixes("a", "10.128.0.0/18", "b", "10.128.64.0/18", "c", "10.128.128.0/18"), ""},
		{"wide", "10.0.0.0/9", 2, prefixes("a", "10.0.0.0/13", "b", "10.8.0.0/13", "c", "10.16.0.0/13"), ""},
		{"many nodes", "10.128.0.0/14", 40, prefixes("a", "10.128.0.0/17", "b", "10.128.128.0/18", "c", "10.128.192.0/18"), ""},
		{"small", "10.128.0.0/20", 6, prefixes("a", "10.128.0.0/20"), "refuse: pod supernet 10.128.0.0/20 has no room for the 1 nodes of site b beside 1 other blocks\nrefuse: pod supernet 10.128.0.0/20 has no room for the 1 nodes of site c beside 1 other blocks\n"},
		{"narrow", "10.128.0.0/22", 2, prefixes("a", "10.128.0.0/22"), "refuse: pod supernet 10.128.0.0/22 has no room for the 1 nodes of site b beside 1 other blocks\nrefuse: pod supernet 10.128.0.0/22 has no room for the 1 nodes of site c beside 1 other blocks\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var more []string
			for i := range tt.nodes - 2 {
				more = append(more, fmt.Sprintf("- {name: w%d, site: a, nodeIP: 192.168.10.%d, roles: [worker]}\n", i, 110+i))
			}
			inv := three(t, more...)
			inv.Cluster.PodSupernet, inv.Cluster.ServiceSubnet = netip.MustParsePrefix(tt.supernet), netip.MustParsePrefix("172.16.0.0/16")
			d, verdicts := Decide(inv, measured(inv, 40*ms, 1420), nil, Options{})
			if got := worse(verdicts); got != tt.verdict {
				t.Errorf("verdicts %q, want %q", got, tt.verdict)
			}
			if diff := cmp.Diff(tt.want, d.PodBlocks, equal); diff != "" {
				t.Errorf("blocks (-want +got):\n%s", diff)
			}
		})
	}
}

func TestIPv6IsDivided(t *testing.T) {
	inv := mustParse(t, `cluster: {name: six, podSupernet: "fd00:10::/48", serviceSubnet: "fd00:96::/112"}
sites: [{name: a, prefixes: ["2001:db8:a::/64"]}]
hosts: [{name: m1, site: a, nodeIP: "2001:db8:a::1", roles: [control-plane]}, {name: n1, site: a, nodeIP: "2001:db8:a::2", roles: [worker]}]
`)
	d := mustDecide(t, inv, measured(inv, ms, 1420), nil)
	if diff := cmp.Diff(prefixes("m1", "fd00:10::/64", "n1", "fd00:10:0:1::/64"), d.NodeRanges, equal); diff != "" || d.DNSService.String() != "fd00:96::a" {
		t.Errorf("DNS %s, ranges (-want +got):\n%s", d.DNSService, diff)
	}
}

func TestVersionsThatDoNotFitAreRefused(t *testing.T) {
	tests := []struct {
		name     string
		wanted   string
		versions map[string]string
		decided  string
		want     string
	}{
		{"all the same", "1.37", nil, "1.37.2", ""},
		{"patch as wanted", "1.37.2", nil, "1.37.2", ""},
		{"other patch", "1.37.1", nil, "1.37.1", "refuse: m1 has Kubernetes 1.37.2, and the inventory wants 1.37.1\n"},
		{"other minor", "1.36", nil, "1.36", "refuse: m1 has Kubernetes 1.37.2, and the inventory wants 1.36\n"},
		{"different control planes", "1.37", map[string]string{"m2": "1.37.1"}, "1.37.2", "refuse: m2 has Kubernetes 1.37.1, and m1 has 1.37.2: control planes need one and the same\n"},
		{"newer worker", "1.37", map[string]string{"n1": "1.37.10"}, "1.37.2", "refuse: n1 has Kubernetes 1.37.10, and no node may be newer than the control planes with 1.37.2\n"},
		{"older worker", "1.37", map[string]string{"n1": "1.37.1"}, "1.37.2", "warn: n1 has Kubernetes 1.37.1, and the control planes have 1.37.2\n"},
		{"none on a worker", "1.37", map[string]string{"n1": ""}, "1.37.2", "refuse: n1 has no kubeadm, and source is preinstalled\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inv := three(t)
			inv.Cluster.Version = tt.wanted
			o := measured(inv, 40*ms, 1420)
			for name, v := range tt.versions {
				f := o.Hosts[name]
				f.Kubernetes = v
				o.Hosts[name] = f
			}
			d, verdicts := Decide(inv, o, nil, Options{})
			got := worse(verdicts)
			if tt.want != "" {
				got = got[:min(len(got), len(tt.want))]
			}
			if d.Versions.Kubernetes != tt.decided || got != tt.want {
				t.Errorf("version %s, verdicts %q; want %s and %q", d.Versions.Kubernetes, worse(verdicts), tt.decided, tt.want)
			}
		})
	}
	inv := three(t)
	inv.Cluster.Source = inventory.SourceAPT
	o := measured(inv, 40*ms, 1420)
	o.Offered = "1.37.5"
	if d := mustDecide(t, inv, o, nil); d.Versions.Kubernetes != "1.37.5" {
		t.Errorf("version %s, want the one that is offered", d.Versions.Kubernetes)
	}
	o.Offered = "1.36.1"
	if _, verdicts := Decide(inv, o, nil, Options{}); !strings.HasPrefix(worse(verdicts), "refuse: source apt has Kubernetes 1.36.1") {
		t.Errorf("verdicts %q", worse(verdicts))
	}
}

func TestMTUIsNotGuessed(t *testing.T) {
	inv := three(t)
	o := measured(inv, 40*ms, 0)
	for i := range o.Pairs {
		o.Pairs[i].MTU = 0
	}
	if _, verdicts := Decide(inv, o, nil, Options{}); worse(verdicts) != "refuse: no path MTU was measured between nodes\n" {
		t.Errorf("verdicts %q", worse(verdicts))
	}
	d, verdicts := Decide(inv, measured(inv, 40*ms, 1200), nil, Options{})
	if worse(verdicts) != "refuse: only packets of 1200 bytes get from m1 to m2, and IPv6 needs 1280\n" || d.MTU != MinMTU {
		t.Errorf("MTU %d, verdicts %q", d.MTU, worse(verdicts))
	}
	one := mustParse(t, "cluster: {name: one}\nsites: [{name: a, prefixes: [192.168.10.0/24]}]\nhosts: [{name: m1, site: a, nodeIP: 192.168.10.101, roles: [control-plane, worker]}]\n")
	if d := mustDecide(t, one, measured(one, 0, 0), nil); d.MTU != 1500 || d.RTT != 0 {
		t.Errorf("one node: MTU %d, round trip %s", d.MTU, d.RTT)
	}
}

func TestHashKnowsWhatCounts(t *testing.T) {
	a, b := three(t), three(t)
	b.Hosts[0].Line, b.Warnings = 99, inventory.Faults{{}}
	if Hash(a) != Hash(b) {
		t.Error("line numbers count")
	}
	b.Hosts[0].Roles = append(slices.Clone(b.Hosts[0].Roles), inventory.Worker)
	if Hash(a) == Hash(b) {
		t.Error("a role does not count")
	}
}

func TestDecisionsComeBackAsTheyWere(t *testing.T) {
	inv := reference(t)
	d := mustDecide(t, inv, measured(inv, 40*ms, 1420), nil)
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeDecisions(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&d, got, equal); diff != "" {
		t.Errorf("decisions (-want +got):\n%s", diff)
	}
	again, err := got.Encode()
	if err != nil || string(again) != string(b) || b[len(b)-1] != '\n' {
		t.Errorf("the form is not stable: %v\n%s", err, again)
	}
}

func TestDamagedDecisionsAreRefused(t *testing.T) {
	inv := three(t)
	d := mustDecide(t, inv, measured(inv, 40*ms, 1420), nil)
	b, err := d.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string][2]string{
		"later format":      {`"format": 1`, `"format": 2`},
		"unknown field":     {`"mtu": 1420`, `"mtu": 1420, "mtv": 1`},
		"MTU":               {`"mtu": 1420`, `"mtu": 20`},
		"range elsewhere":   {`"10.128.1.0/24"`, `"10.1.1.0/24"`},
		"range of others":   {`"10.128.1.0/24"`, `"10.128.0.0/24"`},
		"range of a block":  {`"10.128.1.0/24"`, `"10.128.0.0/23"`},
		"overlapping block": {`"10.128.64.0/18"`, `"10.128.0.0/17"`},
		"no first":          {`"first": "m1"`, `"first": ""`},
		"DNS elsewhere":     {`"10.96.0.10"`, `"10.97.0.10"`},
		"negative timer":    {`"etcdHeartbeatNanos": 100000000`, `"etcdHeartbeatNanos": -1`},
		"more behind it":    {"\n}\n", "\n}\n{}"},
		"not JSON":          {"{", ""},
	} {
		text := strings.Replace(string(b), change[0], change[1], 1)
		if text == string(b) {
			t.Fatalf("%s: %q is not in the decisions:\n%s", name, change[0], b)
		}
		if _, err := DecodeDecisions([]byte(text)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func newFile(t testing.TB) *File {
	inv := three(t)
	d := mustDecide(t, inv, measured(inv, 40*ms, 1420), nil)
	return NewFile(d, []Step{
		{ID: "prepare/m1/hosts", Changes: []Change{{What: "file /etc/hosts", To: "127.0.0.1 api.lab"}}},
		{ID: "prepare/m1/sysctl"},
		{ID: "init/m1/kubeadm", Changes: []Change{{What: "kubeadm init", To: "done"}, {What: "token", To: "(secret)"}}},
	})
}

func TestPlanFileComesBackAndEqualsItself(t *testing.T) {
	f := newFile(t)
	b, err := f.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeFile(b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(f, got, equal); diff != "" {
		t.Errorf("plan (-want +got):\n%s", diff)
	}
	if diff := Compare(f, got); len(diff) > 0 {
		t.Errorf("differences to itself: %v", diff)
	}
	if f.Changes() != 3 {
		t.Errorf("%d changes, want 3", f.Changes())
	}
	for name, change := range map[string][2]string{
		"step twice": {"prepare/m1/sysctl", "prepare/m1/hosts"}, "step without a name": {"prepare/m1/sysctl", ""}, "another inventory": {"sha256:", "sha256:0"},
	} {
		if _, err := DecodeFile([]byte(strings.Replace(string(b), change[0], change[1], 1))); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestDifferencesOfPlansAreNamed(t *testing.T) {
	tests := []struct {
		name   string
		change func(*File)
		want   []string
	}{
		{"nothing", func(*File) {}, nil},
		{"a step without changes more", func(f *File) { f.Steps = append(f.Steps, Step{ID: "x"}) }, nil},
		{"a step without changes less", func(f *File) { f.Steps = slices.Delete(f.Steps, 1, 2) }, nil},
		{"inventory", func(f *File) { f.InventoryHash, f.Decisions.InventoryHash = "h", "h" }, []string{"inventory: the plan has " + newFile(t).InventoryHash + ", now it is h"}},
		{"decision", func(f *File) { f.Decisions.MTU = 1400 }, []string{"decisions.mtu: the plan has 1420, now it is 1400"}},
		{"another value", func(f *File) { f.Steps[0].Changes[0].To = "x" }, []string{`prepare/m1/hosts: the plan has file /etc/hosts: "" to "127.0.0.1 api.lab", now it is file /etc/hosts: "" to "x"`}},
		{"done meanwhile", func(f *File) { f.Steps[2].Changes = f.Steps[2].Changes[1:] }, []string{`init/m1/kubeadm: in the plan, and not to be done any more: kubeadm init: "" to "done"`}},
		{"a change more", func(f *File) { f.Steps[1].Changes = []Change{{What: "sysctl a", From: "0", To: "1"}} }, []string{`prepare/m1/sysctl: not in the plan: sysctl a: "0" to "1"`}},
		{"a step more", func(f *File) { f.Steps = append(f.Steps, Step{"join/n1/x", []Change{{What: "x"}}}) }, []string{`join/n1/x: not in the plan: x: "" to ""`}},
		{"a step less", func(f *File) { f.Steps = f.Steps[1:] }, []string{`prepare/m1/hosts: in the plan, and not to be done any more: file /etc/hosts: "" to "127.0.0.1 api.lab"`}},
		{"another order", func(f *File) { slices.Reverse(f.Steps) }, []string{"init/m1/kubeadm: the plan has after prepare/m1/hosts, now it is before it"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			now := newFile(t)
			tt.change(now)
			var got []string
			for _, d := range Compare(newFile(t), now) {
				got = append(got, d.String())
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("differences (-want +got):\n%s", diff)
			}
		})
	}
}

// Every field of Decisions is compared: one that is forgotten would be applied
// unseen.
func TestEveryDecisionIsCompared(t *testing.T) {
	typ := reflect.TypeFor[Decisions]()
	if got, want := len((&Decisions{}).fields()), typ.NumField()-1; got != want { // all but the format
		t.Errorf("%d fields are compared, and Decisions has %d beside its format", got, want)
	}
}

func FuzzDecode(f *testing.F) {
	file := newFile(f)
	b, err := file.Encode()
	if err != nil {
		f.Fatal(err)
	}
	d, err := file.Decisions.Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(d)
	f.Add([]byte(`{"format":1,"podBlocks":{"a":"::ffff:1.2.3.0/120"}}`))
	f.Add([]byte(`{"format":1}`))
	inv := three(f)
	f.Fuzz(func(t *testing.T, b []byte) {
		if file, err := DecodeFile(b); err == nil {
			if diff := Compare(file, file); len(diff) > 0 {
				t.Errorf("differences to itself: %v", diff)
			}
		}
		d, err := DecodeDecisions(b)
		if err != nil {
			return
		}
		// What was accepted can be built on, and comes back.
		next, _ := Decide(inv, Observed{}, d, Options{})
		for _, r := range next.NodeRanges {
			if !within(r, next.PodSupernet) {
				t.Errorf("range %s outside of %s", r, next.PodSupernet)
			}
		}
		if err := distinct(next.NodeRanges); err != nil {
			t.Error(err)
		}
		if _, err := json.Marshal(next); err != nil {
			t.Error(err)
		}
	})
}

// Whatever the inventory grows by, no two nodes share addresses and nobody moves.
func TestGrowthNeverMovesAnybody(t *testing.T) {
	var more []string
	inv := three(t)
	d := mustDecide(t, inv, measured(inv, 40*ms, 1420), nil)
	for i := range 60 {
		more = append(more, fmt.Sprintf("- {name: w%d, site: %c, nodeIP: 192.168.%d.%d, roles: [worker]}\n", i, 'a'+i%3, 10*(i%3+1), 110+i))
		slices.Reverse(more)
		inv = three(t, more...)
		next := mustDecide(t, inv, Observed{}, &d)
		for name, r := range d.NodeRanges {
			if next.NodeRanges[name] != r {
				t.Fatalf("%s moved from %s to %s", name, r, next.NodeRanges[name])
			}
		}
		if err := next.check(); err != nil {
			t.Fatal(err)
		}
		d = next
	}
	if len(d.NodeRanges) != 64 {
		t.Errorf("%d ranges, want 64", len(d.NodeRanges))
	}
}
