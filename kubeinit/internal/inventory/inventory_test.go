package inventory

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
)

var update = flag.Bool("update", false, "rewrite golden files")

// equal compares inventories; netip types have unexported fields.
var equal = cmp.Options{cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})}

func mustRead(t testing.TB, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustParse(t testing.TB, text string) *Inventory {
	t.Helper()
	inv, err := Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	return inv
}

// small is a valid inventory without any default written down.
const small = `cluster:
  name: lab
sites:
- name: a
  prefixes: [192.168.10.0/24]
hosts:
- name: m1
  site: a
  nodeIP: 192.168.10.101
  roles: [control-plane, worker]
`

func TestReferenceDeploymentIsRead(t *testing.T) {
	inv, err := Parse("reference.yaml", mustRead(t, "reference.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	if len(inv.Warnings) > 0 {
		t.Errorf("warnings: %v", inv.Warnings)
	}
	if got := len(inv.Nodes()); got != 7 {
		t.Errorf("%d nodes, want 7", got)
	}
	var gateways []string
	for _, h := range inv.With(Gateway) {
		gateways = append(gateways, h.Name+" "+h.NodeIP.String())
	}
	want := []string{"gw10 192.168.10.1", "gw20 192.168.20.1", "gw30 192.168.30.1"}
	if diff := cmp.Diff(want, gateways); diff != "" {
		t.Errorf("gateways (-want +got):\n%s", diff)
	}
	if inv.MinorVersion() != 37 || inv.Cluster.EndpointName() != "api.planet" {
		t.Errorf("minor version %d, endpoint %s", inv.MinorVersion(), inv.Cluster.EndpointName())
	}
	if s := inv.Site("site20"); s.Region != "planet" || s.Zone != "site20" || s.Mesh != MeshMeshd {
		t.Errorf("site20: %+v", s)
	}
	if inv.Host("nobody") != nil || inv.Site("nowhere") != nil {
		t.Error("found a host or site that is not there")
	}
}

func TestEverySettingIsRead(t *testing.T) {
	got, err := Parse("dir/full.yaml", mustRead(t, "full.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	zero, low := 0, 1024
	want := &Inventory{
		Cluster: Cluster{
			Name: "lab", Version: "1.34.4", Endpoint: EndpointHAProxy,
			ExternalNames: []string{"*.example.org", "203.0.113.7", "2001:db8::1"},
			PodSupernet:   netip.MustParsePrefix("10.64.0.0/12"), ServiceSubnet: netip.MustParsePrefix("10.32.0.0/20"),
			DNSDomain: "lab.example", Source: SourceBundle, Bundle: "dir/bundle.tar", ImageRepository: "registry.example.org:5000/k8s",
			Containerd: Containerd{Mode: ContainerdManaged, ExtraTOML: "[debug]\nlevel = \"info\"\n"},
			CNI:        CNI{Mode: CNIManifest, Manifest: "/etc/cilium.yaml"},
			Etcd:       Etcd{Heartbeat: 120 * time.Millisecond, Election: 1200 * time.Millisecond, AcceptSlow: true}, AllowCgroupV1: true,
			KubeProxy: KubeProxy{Mode: KubeProxyIPTables, ConntrackMaxPerCore: &zero, ConntrackMin: &low}, WorkerLatency: "medium",
		},
		Sites: []Site{
			{Name: "a", Region: "eu", Zone: "eu-1", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.10.0/24"), netip.MustParsePrefix("2001:db8:10::/64")},
				PodBlock: netip.MustParsePrefix("10.64.0.0/20"), Gateways: []string{"gw"}, Mesh: MeshMeshd, Line: 31},
			{Name: "b", Region: "b", Zone: "b", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.20.0/24")}, Mesh: MeshOpenVPN, Line: 38},
		},
		Hosts: []Host{
			{Name: "gw", Site: "a", NodeIP: netip.MustParseAddr("192.168.10.1"), Roles: []Role{Gateway, LoadBalancer},
				SSH: SSH{Address: "gw.example.org", Port: 2222, User: "admin", Key: "/root/key", Jump: "op@[2001:db8::2]:222", Sudo: true, KnownHosts: "dir/known"}, Line: 42},
			{Name: "m1", Site: "a", NodeIP: netip.MustParseAddr("192.168.10.101"), Roles: []Role{ControlPlane, Worker},
				SSH:    SSH{Address: "192.168.10.101", Port: 22, User: "root", Key: "~/.ssh/lab", Jump: "gw"},
				Labels: map[string]string{"disk": "ssd", "example.org/empty": ""}, Line: 47,
				Taints: []Taint{{"gpu", "yes", "NoSchedule"}, {"example.org/slow", "", "NoExecute"}}},
		},
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("inventory (-want +got):\n%s", diff)
	}
}

func TestNothingWrittenMeansDefaults(t *testing.T) {
	inv := mustParse(t, small)
	want := Cluster{
		Name: "lab", Version: "1.37", Endpoint: EndpointProxy, PodSupernet: DefaultPodSupernet(), ServiceSubnet: DefaultServiceSubnet(),
		DNSDomain: "cluster.local", Source: SourcePreinstalled, Containerd: Containerd{Mode: "managed"}, CNI: CNI{Mode: "routes"}, KubeProxy: KubeProxy{Mode: "nftables"},
	}
	if diff := cmp.Diff(want, inv.Cluster, equal); diff != "" {
		t.Errorf("cluster (-want +got):\n%s", diff)
	}
	if want := (SSH{Address: "192.168.10.101", Port: 22, User: "root"}); inv.Hosts[0].SSH != want {
		t.Errorf("ssh %+v, want %+v", inv.Hosts[0].SSH, want)
	}
	if s := inv.Sites[0]; s.Region != "a" || s.Zone != "a" || s.Mesh != "meshd" {
		t.Errorf("site %+v", s)
	}
}

func TestAllFaultsOfAFileAreReportedInOrder(t *testing.T) {
	_, err := Parse("faults.yaml", mustRead(t, "faults.yaml"))
	faults, ok := errors.AsType[Faults](err)
	if !ok {
		t.Fatalf("error %v, want faults", err)
	}
	if *update {
		if err := os.WriteFile(filepath.Join("testdata", "faults.golden"), []byte(faults.Error()+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if diff := cmp.Diff(string(mustRead(t, "faults.golden")), faults.Error()+"\n"); diff != "" {
		t.Errorf("faults (-want +got):\n%s", diff)
	}
	if !slices.IsSortedFunc(faults, func(a, b Fault) int { return a.Line - b.Line }) {
		t.Error("faults are not in the order of lines")
	}
}

// variant replaces one piece of small.
func variant(t testing.TB, old, other string) string {
	t.Helper()
	if !strings.Contains(small, old) {
		t.Fatalf("the inventory has no %q", old)
	}
	return strings.Replace(small, old, other, 1)
}

// three is an inventory with control planes in three sites; %s of a site's
// place is replaced in tests.
const three = `cluster: {name: lab}
sites:
- {name: a, prefixes: [192.168.10.0/24], mesh: none}
- {name: b, prefixes: [192.168.20.0/24], mesh: none}
- {name: c, prefixes: [192.168.30.0/24], mesh: none}
hosts:
- {name: m1, site: a, nodeIP: 192.168.10.101, roles: [control-plane]}
- {name: m2, site: b, nodeIP: 192.168.20.101, roles: [control-plane]}
- {name: m3, site: c, nodeIP: 192.168.30.101, roles: [control-plane]}
`

func TestFaultsAreNamedWithLineFieldAndCure(t *testing.T) {
	host := func(rest string) string { return small + "- {name: n1, site: a, nodeIP: 192.168.10.5" + rest + "}\n" }
	cluster := func(rest string) string { return variant(t, "  name: lab\n", "  name: lab\n  "+rest+"\n") }
	site := func(rest string) string { return variant(t, "hosts:\n", "- {"+rest+"}\nhosts:\n") }
	tests := []struct{ name, text, want string }{
		{"empty file", "", `f: the file is empty; want "cluster:", "sites:" and "hosts:"`},
		{"comments only", "# x\n", `f: the file is empty; want "cluster:", "sites:" and "hosts:"`},
		{"list", "- a\n", `f:1: the file is a list; want "cluster:", "sites:" and "hosts:"`},
		{"tab", "cluster:\n\tname: x\n", "f:2: a tab in the indentation; want spaces"},
		{"two documents", small + "---\na: b\n", "f:11: a second document begins here; want one document in a file"},
		{"huge", strings.Repeat("# padding\n", MaxSize/10+1), "f: larger than 524288 bytes; want an inventory of some kilobytes"},
		{"nothing in it", "{}", "f: has no cluster; want \"cluster:\" with at least a name\nf: has no sites; want a list of sites\nf: has no hosts; want a list of hosts"},
		{"empty lists", "cluster: {name: x}\nsites: []\nhosts: []\n", "f:2: sites: empty; want at least one site\nf:3: hosts: empty; want at least one host"},
		{"unknown key", cluster("podCIDR: 10.0.0.0/8"), "f:3: cluster.podCIDR: unknown key; want podSupernet"},
		{"unknown key of a host", host(", roles: [worker], nodeip: 1"), "f:11: hosts[1].nodeip: unknown key; want nodeIP"},
		{"key twice", cluster("name: other"), "f:3: cluster.name: stands in line 2 already; want each key once"},
		{"alias", variant(t, "[192.168.10.0/24]", "*x"), "f: not YAML: unknown anchor 'x' referenced"},

		{"cluster name", variant(t, "name: lab", "name: Lab_1"), `f:2: cluster.name: "Lab_1"; want ` + wantName},
		{"version too old", cluster("version: 1.33"), "f:3: cluster.version: Kubernetes 1.33 is not supported; want " + wantVersion},
		{"version too new", cluster("version: 1.38.0"), "f:3: cluster.version: Kubernetes 1.38.0 is not supported; want " + wantVersion},
		{"version with a letter", cluster("version: v1.37"), `f:3: cluster.version: "v1.37"; want ` + wantVersion},
		{"endpoint", cluster("endpoint: keepalived"), `f:3: cluster.endpoint: "keepalived"; want proxy or haproxy`},
		{"haproxy without a host", cluster("endpoint: haproxy"), "f:3: cluster.endpoint: haproxy, and no host has the role loadbalancer; want a host with roles: [loadbalancer], or endpoint: proxy"},
		{
			"haproxy with two hosts", cluster("endpoint: haproxy") + "- {name: l1, site: a, nodeIP: 192.168.10.5, roles: [loadbalancer]}\n- {name: l2, site: a, nodeIP: 192.168.10.6, roles: [loadbalancer]}\n",
			"f:3: cluster.endpoint: haproxy, and 2 hosts have the role loadbalancer: the name of the endpoint can lead to one only; want one of them, or endpoint: proxy",
		},
		{"external name with a port", cluster("externalNames: ['a.example:6443']"), `f:3: cluster.externalNames[0]: "a.example:6443"; want DNS names or addresses, such as api.example.org or 203.0.113.7`},
		{"external name twice", cluster("externalNames: ['::1', '0:0::1']"), "f:3: cluster.externalNames[1]: ::1 stands in line 3 already; want each name once"},
		{"bundle without file", cluster("source: bundle"), `f:3: cluster.source: bundle without its file; want "bundle: FILE", made by kubeinit bundle create`},
		{"file without bundle", cluster("bundle: x.tar"), "f:3: cluster.bundle: a bundle that is not used, because source is preinstalled; want source: bundle, or no bundle"},
		{"manifest without file", cluster("cni: manifest"), `f:3: cluster.cni: "manifest" without its file; want cni: {manifest: FILE}`},
		{"manifest with nothing", cluster("cni: {}"), "f:3: cluster.cni: has no manifest; want the file of a manifest"},
		{"other pod network", cluster("cni: flannel"), `f:3: cluster.cni: "flannel"; want routes or none`},
		{"image repository with scheme", cluster("imageRepository: https://x.org"), `f:3: cluster.imageRepository: "https://x.org"; want a registry with a path and without https://, such as registry.example.org/k8s`},
		{"unused toml", cluster("containerd: {mode: existing, extraToml: x}"), "f:3: cluster.containerd.extraToml: is not used, because mode existing leaves containerd's configuration alone; want mode: managed, or no extraToml"},
		{"ipvs", cluster("kubeProxy: {mode: ipvs}"), `f:3: cluster.kubeProxy.mode: "ipvs"; want nftables or iptables`},
		{"conntrack", cluster("kubeProxy: {conntrackMin: -1}"), "f:3: cluster.kubeProxy.conntrackMin: -1; want a number from 0 to 1073741824"},
		{"worker latency", cluster("workerLatency: high"), `f:3: cluster.workerLatency: "high"; want medium or low`},

		{"heartbeat without unit", cluster("etcd: {heartbeat: 120}"), "f:3: cluster.etcd.heartbeat: 120 has no unit; want a duration with its unit, such as 120ms"},
		{"heartbeat in microseconds", cluster("etcd: {heartbeat: 1500us}"), "f:3: cluster.etcd.heartbeat: 1500us is not a whole number of milliseconds; want a duration with its unit, such as 120ms"},
		{"heartbeat too short", cluster("etcd: {heartbeat: 5ms}"), "f:3: cluster.etcd.heartbeat: 5ms is no interval that etcd can keep; want 10ms to 10s, or no heartbeat: it follows the measured round trips"},
		{"election too short", cluster("etcd: {heartbeat: 300ms, election: 1s}"), "f:3: cluster.etcd.election: 1s is less than five heartbeats of 300ms; want at least 1500ms"},
		{"election too short for any heartbeat", cluster("etcd: {election: 400ms}"), "f:3: cluster.etcd.election: 400ms is less than five heartbeats of 100ms; want at least 500ms"},
		{"election too long", cluster("etcd: {election: 51s}"), "f:3: cluster.etcd.election: 51s is more than etcd takes; want at most 50s"},
		{"negative election", cluster("etcd: {election: -1s}"), `f:3: cluster.etcd.election: "-1s"; want a duration with its unit, such as 1200ms`},

		{"services in the LAN", cluster("serviceSubnet: 192.168.0.0/16"), "f:6: sites[0].prefixes[0]: 192.168.10.0/24 overlaps 192.168.0.0/16, serviceSubnet in line 3; want prefixes that share no address"},
		{"services in the pods", cluster("serviceSubnet: 10.130.0.0/16"), "f:3: cluster.serviceSubnet: 10.130.0.0/16 overlaps 10.128.0.0/14, podSupernet, the default; want prefixes that share no address"},
		{"LAN in the default pods", variant(t, "[192.168.10.0/24]", "[192.168.10.0/24, 10.129.3.0/24]"), "f:5: sites[0].prefixes[1]: 10.129.3.0/24 overlaps 10.128.0.0/14, podSupernet, the default; want prefixes that share no address"},
		{"LANs of two sites", site("name: b, prefixes: [192.168.0.0/16], mesh: none") + "", "f:4: sites[0]: site a has no gateways, and its mesh is meshd; want \"gateways:\" with a host of role gateway, or mesh: openvpn or none\nf:6: sites[1].prefixes[0]: 192.168.0.0/16 overlaps 192.168.10.0/24, a LAN of site a in line 5; want prefixes that share no address"},
		{"families", cluster("podSupernet: 'fd00::/48'"), "f:3: cluster.podSupernet: 10.96.0.0/16 is IPv4 and podSupernet fd00::/48 is IPv6; want both of one family"},
		{"wide LAN", variant(t, "192.168.10.0/24", "0.0.0.0/0"), "f:5: sites[0].prefixes[0]: 0.0.0.0/0 is too wide; want a prefix, such as 192.168.10.0/24 or 2001:db8:10::/64"},
		{"host bits", variant(t, "192.168.10.0/24", "192.168.10.1/24"), "f:5: sites[0].prefixes[0]: 192.168.10.1/24 has host bits; want 192.168.10.0/24"},
		{"service prefix", cluster("serviceSubnet: 172.16.0.0/25"), "f:3: cluster.serviceSubnet: 172.16.0.0/25 is no prefix that API servers take; want a length from /12 to /24"},
		{"pod prefix", cluster("podSupernet: 172.16.0.0/25"), "f:3: cluster.podSupernet: 172.16.0.0/25 is smaller than the range of one node; want /20 or shorter"},
		{"no LAN", variant(t, "[192.168.10.0/24]", "[]"), "f:5: sites[0].prefixes: empty; want at least one prefix"},
		{"block outside", variant(t, "/24]\n", "/24]\n  podBlock: 10.200.0.0/20\n"), "f:6: sites[0].podBlock: 10.200.0.0/20 is no part of podSupernet 10.128.0.0/14; want a block in it, or none: it is chosen then"},
		{"block too small", variant(t, "/24]\n", "/24]\n  podBlock: 10.128.0.0/24\n") + "- {name: n1, site: a, nodeIP: 192.168.10.5, roles: [worker]}\n- {name: n2, site: a, nodeIP: 192.168.10.6, roles: [worker]}\n", "f:6: sites[0].podBlock: 10.128.0.0/24 holds 1 ranges of /24, and site a has 3 nodes; want /22 or shorter"},
		{"blocks overlap", variant(t, "hosts:", "  podBlock: 10.128.0.0/18\n  mesh: none\n- {name: b, prefixes: [10.1.0.0/16], podBlock: 10.128.32.0/20, mesh: none}\nhosts:"), "f:8: sites[1].podBlock: 10.128.32.0/20 overlaps 10.128.0.0/18, podBlock of site a in line 6; want prefixes that share no address"},

		{"site twice", site("name: a, prefixes: [10.1.0.0/16], mesh: none"), "f:4: sites[0]: site a has no gateways, and its mesh is meshd; want \"gateways:\" with a host of role gateway, or mesh: openvpn or none\nf:6: sites[1].name: a stands in line 4 already; want each name once"},
		{"no such site", variant(t, "site: a", "site: b"), "f:8: hosts[0].site: there is no site b; want a"},
		{"no such gateway", variant(t, "hosts:", "  gateways: [m2]\nhosts:"), "f:6: sites[0].gateways[0]: there is no host m2; want m1"},
		{"gateway without role", variant(t, "hosts:", "  gateways: [m1]\nhosts:"), "f:6: sites[0].gateways[0]: m1 does not have the role gateway (line 8); want roles: [gateway] at that host"},
		{"gateway that the site does not name", host(", roles: [gateway]"), "f:11: hosts[1].roles: n1 has the role gateway, and site a (line 4) does not name it; want gateways: [n1] at that site"},
		{"gateway of another site", strings.Replace(three, "mesh: none}\n- {name: b", "mesh: none, gateways: [g]}\n- {name: b", 1) + "- {name: g, site: b, nodeIP: 192.168.20.1, roles: [gateway]}\n", "f:3: sites[0].gateways[0]: g is in site b (line 10); want a gateway in site a"},

		{"host twice", small + "- {name: m1, site: a, nodeIP: 192.168.10.5, roles: [worker]}\n", "f:11: hosts[1].name: m1 stands in line 7 already; want each name once"},
		{"host name", variant(t, "m1", "m1.example.org"), `f:7: hosts[0].name: "m1.example.org"; want ` + wantName},
		{"missing keys", small + "- {name: n1}\n", "f:11: hosts[1]: has no site; want the name of a site\nf:11: hosts[1]: has no nodeIP; want the address that the other hosts reach it by\nf:11: hosts[1]: has no roles; want control-plane, worker, loadbalancer or gateway"},
		{"nodeIP elsewhere", variant(t, "192.168.10.101", "10.8.0.2"), "f:9: hosts[0].nodeIP: 10.8.0.2 is in no prefix of site a; want an address in 192.168.10.0/24"},
		{"nodeIP of the network", variant(t, "192.168.10.101", "192.168.10.255"), "f:9: hosts[0].nodeIP: 192.168.10.255 is the first or last address of 192.168.10.0/24, which no host can have; want one between them"},
		{"nodeIP twice", small + "- {name: n1, site: a, nodeIP: 192.168.10.101, roles: [worker]}\n", "f:11: hosts[1].nodeIP: 192.168.10.101 stands in line 9 already; want an address of its own for each host"},
		{"nodeIP as a name", variant(t, "192.168.10.101", "m1.lan"), `f:9: hosts[0].nodeIP: "m1.lan" is no address (names are not looked up); want ` + wantAddress},
		{"nodeIP as a prefix", variant(t, "192.168.10.101", "192.168.10.101/24"), "f:9: hosts[0].nodeIP: 192.168.10.101/24 is a prefix; want 192.168.10.101"},
		{"nodeIP of the host itself", variant(t, "192.168.10.101", "127.0.0.1"), "f:9: hosts[0].nodeIP: 127.0.0.1 is not the address of one host; want " + wantAddress},
		{"nodeIP on the link", variant(t, "192.168.10.101", "fe80::1"), "f:9: hosts[0].nodeIP: fe80::1 is not reachable from another LAN; want " + wantAddress},
		{"nodeIP of another family", strings.Replace(variant(t, "192.168.10.101", "2001:db8::1"), "192.168.10.0/24", "'2001:db8::/64'", 1), "f:9: hosts[0].nodeIP: 2001:db8::1 is IPv6, and podSupernet 10.128.0.0/14 is IPv4; want both of one family"},
		{"services in pods, both default and not", cluster("podSupernet: 10.96.0.0/12"), "f:3: cluster.podSupernet: 10.96.0.0/12 overlaps 10.96.0.0/16, serviceSubnet, the default; want prefixes that share no address"},
		{"role", host(", roles: [master]"), `f:11: hosts[1].roles[0]: "master"; want control-plane`},
		{"role twice", host(", roles: [worker, worker]"), "f:11: hosts[1].roles[1]: worker stands in line 11 already; want each role once"},
		{"no role", host(", roles: []"), "f:11: hosts[1].roles: empty; want control-plane, worker, loadbalancer or gateway"},
		{"load balancer on a control plane", host(", roles: [control-plane, loadbalancer]"), "f:11: hosts[1].roles: a control plane cannot be the load balancer as well: both want port 6443; want a host of its own for the load balancer"},
		{"no control plane", variant(t, "[control-plane, worker]", "[worker]"), "f:6: hosts: no host has the role control-plane; want at least one, better three"},
		{"two sites", strings.Replace(three, "site: c, nodeIP: 192.168.30.101", "site: b, nodeIP: 192.168.20.102", 1), "f:6: hosts: control planes in exactly two sites, a and b: etcd stops as soon as the one with the majority is cut off; want a control plane in a third site, or all of them in one"},

		{"user without sudo", host(", roles: [worker], ssh: {user: admin}"), "f:11: hosts[1].ssh: user admin is not root, and sudo is not on; want sudo: true"},
		{"ssh address with port", host(", roles: [worker], ssh: {address: '10.0.0.1:22'}"), `f:11: hosts[1].ssh.address: "10.0.0.1:22"; want a name or an address without port, such as 192.168.10.101 (the port has a key of its own)`},
		{"ssh port", host(", roles: [worker], ssh: {port: 0}"), "f:11: hosts[1].ssh.port: 0; want a number from 1 to 65535"},
		{"ssh address twice", host(", roles: [worker], ssh: {address: 192.168.10.101}"), "f:11: hosts[1].ssh: 192.168.10.101 port 22 is the host in line 7 already; want an address or port of its own for each host"},
		{"no such jump host", host(", roles: [worker], ssh: {jump: m2}"), "f:11: hosts[1].ssh.jump: there is no host m2; want one of m1, n1"},
		{"jump over itself", host(", roles: [worker], ssh: {jump: n1}"), "f:11: hosts[1].ssh.jump: goes round in a circle: n1, n1; want a chain of hosts that begins with one that is reached directly"},
		{"jump without user", host(", roles: [worker], ssh: {jump: '10.0.0.1:22'}"), `f:11: hosts[1].ssh.jump: "10.0.0.1:22"; want ` + wantJump},
		{
			"jump circle", small + "- {name: n1, site: a, nodeIP: 192.168.10.5, roles: [worker], ssh: {jump: n2}}\n- {name: n2, site: a, nodeIP: 192.168.10.6, roles: [worker], ssh: {jump: n1}}\n- {name: n3, site: a, nodeIP: 192.168.10.7, roles: [worker], ssh: {jump: n1}}\n",
			"f:11: hosts[1].ssh.jump: goes round in a circle: n1, n2, n1; want a chain of hosts that begins with one that is reached directly\nf:12: hosts[2].ssh.jump: goes round in a circle: n2, n1, n2; want a chain of hosts that begins with one that is reached directly",
		},

		{"label name", host(", roles: [worker], labels: {-x: y}"), `f:11: hosts[1].labels[-x]: no name of a label; want letters, digits, "-", "_" or ".", at most 63, with or without a DNS name and "/" before it, such as example.org/disk`},
		{"label value", host(", roles: [worker], labels: {x: a b}"), `f:11: hosts[1].labels[x]: "a b"; want at most 63 letters, digits, "-", "_" or "."`},
		{"label of the site", host(", roles: [worker], labels: {topology.kubernetes.io/zone: z}"), `f:11: hosts[1].labels[topology.kubernetes.io/zone]: this label is not the host's to choose; want "zone:" at the site`},
		{"labels of no node", host(", roles: [loadbalancer], labels: {x: y}"), "f:11: hosts[1]: n1 has labels or taints, and is no node; want them at control planes and workers only"},
		{"taint effect", host(", roles: [worker], taints: ['a=b:No']"), `f:11: hosts[1].taints[0]: "a=b:No"; want ` + wantTaint},
		{"taint without effect", host(", roles: [worker], taints: [gpu]"), `f:11: hosts[1].taints[0]: "gpu"; want ` + wantTaint},
		{"taint twice", host(", roles: [worker], taints: ['a=b:NoExecute', 'a=c:NoExecute']"), "f:11: hosts[1].taints[1]: a:NoExecute stands in line 11 already; want each key and effect once"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			inv, err := Parse("f", []byte(tt.text))
			if _, ok := errors.AsType[Faults](err); !ok {
				t.Fatalf("inventory\n%s\ngave %+v and error %v, want faults", tt.text, inv, err)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("faults of\n%s\n(-want +got):\n%s", tt.text, diff)
			}
		})
	}
}

func TestEvenControlPlanesAreAWarning(t *testing.T) {
	inv := mustParse(t, small+"- {name: m2, site: a, nodeIP: 192.168.10.102, roles: [control-plane]}\n")
	want := "f:6: hosts: 2 control planes bear the loss of 0, just as 1 would; want an odd number"
	if diff := cmp.Diff(want, inv.Warnings.Error()); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestShortElectionIsAWarning(t *testing.T) {
	inv := mustParse(t, variant(t, "  name: lab\n", "  name: lab\n  etcd: {heartbeat: 200ms, election: 1s}\n"))
	want := "f:3: cluster.etcd.election: 1s is less than ten heartbeats of 200ms: a lost packet can cost a leader; want 2000ms or more"
	if diff := cmp.Diff(want, inv.Warnings.Error()); diff != "" {
		t.Errorf("warnings (-want +got):\n%s", diff)
	}
}

func TestControlPlanesInThreeSitesAreFine(t *testing.T) {
	if inv := mustParse(t, three); len(inv.Warnings) > 0 {
		t.Errorf("warnings: %v", inv.Warnings)
	}
}

func TestIPv6OnlyIsFine(t *testing.T) {
	inv := mustParse(t, `cluster: {name: six, podSupernet: "fd00:10::/48", serviceSubnet: "fd00:96::/112"}
sites: [{name: a, prefixes: ["2001:db8:a::/64"], podBlock: "fd00:10:0:100::/56"}]
hosts: [{name: m1, site: a, nodeIP: "2001:db8:a::1", roles: [control-plane]}]
`)
	if inv.Hosts[0].SSH.Address != "2001:db8:a::1" {
		t.Errorf("ssh address %s", inv.Hosts[0].SSH.Address)
	}
}

func TestValidateFindsWhatWasChangedAfterwards(t *testing.T) {
	inv := mustParse(t, three)
	if err := inv.Validate(); err != nil {
		t.Fatal(err)
	}
	inv.Hosts[2].NodeIP = inv.Hosts[1].NodeIP
	err := inv.Validate()
	want := "inventory:9: hosts[2].nodeIP: 192.168.20.101 is in no prefix of site c; want an address in 192.168.30.0/24"
	if err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"reference.yaml", "full.yaml", "faults.yaml"} {
		f.Add(mustRead(f, name))
	}
	f.Add([]byte(small))
	f.Add([]byte(three))
	f.Add([]byte("cluster: &a {name: x, cni: *a}\n<<: *a\n"))
	f.Add([]byte("hosts:\n- ? [a]\n  : b\n- labels: {'a.b[c': d, ~: e}\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		inv, err := Parse("f", b)
		if err == nil {
			if err := inv.Validate(); err != nil {
				t.Errorf("what Parse accepts, Validate refuses: %v", err)
			}
			if len(inv.With(ControlPlane)) == 0 || inv.MinorVersion() < MinMinor || inv.MinorVersion() > MaxMinor {
				t.Errorf("accepted without control plane or with version %q", inv.Cluster.Version)
			}
			for _, h := range inv.Hosts {
				if inv.Site(h.Site) == nil || !h.NodeIP.IsValid() || inv.Host(h.Name).Line != h.Line {
					t.Errorf("accepted host %+v", h)
				}
			}
			return
		}
		faults, ok := errors.AsType[Faults](err)
		if !ok || len(faults) == 0 {
			t.Fatalf("error %v, want faults", err)
		}
		lines := 1 // YAML 1.1 breaks lines at more than "\n"
		for _, end := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029"} {
			lines += strings.Count(string(b), end)
		}
		for _, fault := range faults {
			if fault.Line < 0 || fault.Line > lines+1 {
				t.Errorf("fault %q has a line that the file of %d lines has not", fault, lines)
			}
		}
	})
}
