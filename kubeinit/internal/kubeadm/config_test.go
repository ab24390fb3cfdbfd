package kubeadm

import (
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.yaml.in/yaml/v3"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

var update = flag.Bool("update", false, "write golden files anew")

// golden compares got with a file of testdata, which -update writes.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}

const caHash = "sha256:b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9"

var (
	token = Token{"abcdef.0123456789abcdef"}
	key   = CertificateKey{strings.Repeat("0", 63) + "1"}
)

// cluster is as plain as one over three sites gets.
func cluster(v Version) Cluster {
	return Cluster{
		Name: "planet", Version: v, Endpoint: "api.planet:7443",
		CertSANs:  []string{"api.planet", "127.0.0.1", "::1", "192.168.10.101", "192.168.10.102", "192.168.10.103", "api.planet", "203.0.113.7"},
		PodSubnet: netip.MustParsePrefix("10.128.0.0/12"), ServiceSubnet: netip.MustParsePrefix("10.96.0.0/16"),
		Heartbeat: 120 * time.Millisecond, Election: 1200 * time.Millisecond,
		EtcdSANs: []string{"192.168.10.101", "192.168.10.102", "192.168.10.103"},
		RTT:      80 * time.Millisecond,
	}
}

// laboratory is one on hosts with cgroup v1, with everything set that can be.
func laboratory(v Version) Cluster {
	c := cluster(v)
	zero := 0
	c.DNSDomain, c.ImageRepository = "cluster.test", "registry.test/k8s"
	c.AllowCgroupV1, c.WorkerLatency, c.ResolvConf = true, LatencyMedium, "/run/systemd/resolve/resolv.conf"
	c.KubeProxy = inventory.KubeProxy{Mode: "iptables", ConntrackMaxPerCore: &zero, ConntrackMin: &zero}
	return c
}

func controlPlane() Node {
	return Node{
		Name: "master01", Address: netip.MustParseAddr("192.168.10.101"), ControlPlane: true,
		Labels: map[string]string{RegionLabel: "s10", ZoneLabel: "s10"},
	}
}

func worker() Node {
	return Node{
		Name: "node01", Address: netip.MustParseAddr("192.168.20.101"), Worker: true,
		Labels: map[string]string{ZoneLabel: "s20", RegionLabel: "s20", "disk": "ssd"},
		Taints: []inventory.Taint{{Key: "gpu", Value: "yes", Effect: "NoSchedule"}},
	}
}

var versions = []Version{{Minor: 34, Patch: 4}, {Minor: 35}, {Minor: 36}, {Minor: 37, Patch: 2}}

func TestConfigurationsByMinor(t *testing.T) {
	for _, v := range versions {
		both := controlPlane()
		both.Worker = true
		for _, tt := range []struct {
			name string
			make func() ([]byte, error)
		}{
			{"init", func() ([]byte, error) { return Init(cluster(v), controlPlane(), token, key) }},
			{"init-laboratory", func() ([]byte, error) { return Init(laboratory(v), both, token, key) }},
			{"join-control-plane", func() ([]byte, error) { return Join(cluster(v), controlPlane(), Discovery{token, caHash, key}) }},
			{"join-worker", func() ([]byte, error) { return Join(cluster(v), worker(), Discovery{Token: token, CAHash: caHash}) }},
			{"join-laboratory", func() ([]byte, error) { return Join(laboratory(v), worker(), Discovery{Token: token, CAHash: caHash}) }},
		} {
			got, err := tt.make()
			if err != nil {
				t.Fatal(err)
			}
			again, _ := tt.make()
			if string(got) != string(again) {
				t.Errorf("%s for %s is another one the second time", tt.name, v)
			}
			golden(t, fmt.Sprintf("%s-1.%d.yaml", tt.name, v.Minor), got)
		}
	}
}

func TestResetConfiguration(t *testing.T) {
	got, err := Reset(80 * time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "reset.yaml", got)
}

// minimal is the least that is accepted.
func minimal() Cluster {
	return Cluster{
		Name: "p", Version: versions[3], Endpoint: "api.p:6443",
		PodSubnet: netip.MustParsePrefix("fd00:1::/48"), ServiceSubnet: netip.MustParsePrefix("fd00:2::/112"),
	}
}

func TestMinimalClusterHasNoEtcdSection(t *testing.T) {
	got, err := Init(minimal(), Node{Name: "m", Address: netip.MustParseAddr("2001:db8::1"), ControlPlane: true}, token, key)
	if err != nil {
		t.Fatal(err)
	}
	for _, word := range []string{"etcd:", "node-labels", "resolvConf", "failCgroupV1", "imageRepository", "maxPerCore", "ignorePreflightErrors"} {
		if strings.Contains(string(got), word) {
			t.Errorf("%s is set:\n%s", word, got)
		}
	}
}

func TestFaultsAreReportedAtOnce(t *testing.T) {
	for _, tt := range []struct {
		name    string
		cluster func(*Cluster)
		node    func(*Node)
		want    []string
	}{
		{"version", func(c *Cluster) { c.Version.Minor = 33 }, nil, []string{"1.34 to 1.37"}},
		{"future version", func(c *Cluster) { c.Version.Minor = 38 }, nil, []string{"1.34 to 1.37"}},
		{"endpoint without port", func(c *Cluster) { c.Endpoint = "api.p" }, nil, []string{"name:port"}},
		{"endpoint is an address", func(c *Cluster) { c.Endpoint = "10.0.0.1:6443" }, nil, []string{"could never change"}},
		{"endpoint is an IPv6 address", func(c *Cluster) { c.Endpoint = "[::1]:6443" }, nil, []string{"could never change"}},
		{"port 0", func(c *Cluster) { c.Endpoint = "api.p:0" }, nil, []string{"name:port"}},
		{"names", func(c *Cluster) { c.Name, c.CertSANs, c.DNSDomain = "A b", []string{"a_b", "x\ny"}, "*.x" }, nil,
			[]string{"cluster name", `"a_b"`, `"x\ny"`, "dns domain"}},
		{"overlap", func(c *Cluster) { c.ServiceSubnet = netip.MustParsePrefix("fd00:1::/112") }, nil, []string{"overlap"}},
		{"host bits", func(c *Cluster) { c.PodSubnet = netip.MustParsePrefix("10.1.2.3/8") }, nil, []string{"pod subnet"}},
		{"no subnets", func(c *Cluster) { c.PodSubnet, c.ServiceSubnet = netip.Prefix{}, netip.Prefix{} }, nil, []string{"pod subnet", "service subnet"}},
		{"timers", func(c *Cluster) { c.Heartbeat, c.Election = time.Nanosecond, -time.Second }, nil, []string{"heartbeat", "election"}},
		{"profile", func(c *Cluster) { c.WorkerLatency, c.ResolvConf, c.KubeProxy.Mode = "high", "resolv.conf", "ipvs" }, nil, []string{"latency", "absolute", "nftables or iptables"}},
		{"node name", nil, func(n *Node) { n.Name = "Node_1" }, []string{"DNS name"}},
		{"no address", nil, func(n *Node) { n.Address = netip.Addr{} }, []string{"others can reach"}},
		{"loopback", nil, func(n *Node) { n.Address = netip.MustParseAddr("127.0.0.2") }, []string{"others can reach"}},
		{"a pod's address", nil, func(n *Node) { n.Address = netip.MustParseAddr("fd00:1::5") }, []string{"lies in fd00:1::/48"}},
		{"taint", nil, func(n *Node) { n.Taints = []inventory.Taint{{Key: "a", Effect: "No"}} }, []string{`"No"`}},
		{"label of the administrator", nil, func(n *Node) { n.Labels = map[string]string{"node-role.kubernetes.io/worker": ""} }, []string{"may not set node-role.kubernetes.io/worker="}},
		{"label that is two", nil, func(n *Node) { n.Labels = map[string]string{"a": "b,node-role.kubernetes.io/x=y"} }, []string{"cannot have"}},
		{"no control plane", nil, func(n *Node) { n.ControlPlane = false }, []string{"wants a control plane"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c, n := minimal(), Node{Name: "m", Address: netip.MustParseAddr("2001:db8::1"), ControlPlane: true}
			if tt.cluster != nil {
				tt.cluster(&c)
			}
			if tt.node != nil {
				tt.node(&n)
			}
			_, err := Init(c, n, token, key)
			for _, w := range tt.want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("got %v, want %q", err, w)
				}
			}
		})
	}
}

func TestSecretsAreChecked(t *testing.T) {
	n := Node{Name: "m", Address: netip.MustParseAddr("2001:db8::1"), ControlPlane: true}
	if _, err := Init(minimal(), n, Token{}, CertificateKey{}); err == nil || !strings.Contains(err.Error(), "bootstrap token") || !strings.Contains(err.Error(), "certificate key") {
		t.Errorf("init without secrets: %v", err)
	}
	if _, err := Join(minimal(), n, Discovery{Token: token, CAHash: "sha256:00"}); err == nil || !strings.Contains(err.Error(), "sha256:00") || !strings.Contains(err.Error(), "certificate key") {
		t.Errorf("join: %v", err)
	}
	n.ControlPlane, n.Worker = false, true
	if _, err := Join(minimal(), n, Discovery{Token: token, CAHash: caHash}); err != nil {
		t.Errorf("a worker wants no certificate key: %v", err)
	}
}

// Text from outside must not become structure.
func TestValuesStayScalars(t *testing.T) {
	c := minimal()
	c.ResolvConf = "/x\nfailSwapOn: false\n---\n# "
	c.ImageRepository = "yes"
	got, err := Init(c, Node{Name: "m", Address: netip.MustParseAddr("2001:db8::1"), ControlPlane: true}, token, CertificateKey{strings.Repeat("1", 64)})
	if err != nil {
		t.Fatal(err)
	}
	docs := map[string]map[string]any{}
	for d := yaml.NewDecoder(strings.NewReader(string(got))); ; {
		var doc map[string]any
		if d.Decode(&doc) != nil {
			break
		}
		docs[doc["kind"].(string)] = doc
	}
	if len(docs) != 4 || docs["KubeletConfiguration"]["resolvConf"] != c.ResolvConf || len(docs["KubeletConfiguration"]) != 4 {
		t.Errorf("documents: %v", docs)
	}
	if docs["InitConfiguration"]["certificateKey"] != strings.Repeat("1", 64) || docs["ClusterConfiguration"]["imageRepository"] != "yes" {
		t.Errorf("scalars became something else:\n%s", got)
	}
}

func TestTimeoutsGrowWithRoundTrips(t *testing.T) {
	for _, tt := range []struct {
		rtt            time.Duration
		api, bootstrap string
	}{
		{-time.Second, "1m0s", "5m0s"},
		{0, "1m0s", "5m0s"},
		{time.Millisecond, "1m10s", "5m10s"},
		{80 * time.Millisecond, "1m50s", "9m0s"},
		{100 * time.Millisecond, "2m0s", "10m0s"},
		{time.Hour, "4m0s", "20m0s"},
	} {
		got := scaledTimeouts(tt.rtt)
		if got.KubernetesAPICall != tt.api || got.TLSBootstrap != tt.bootstrap {
			t.Errorf("%v: %+v, want %s and %s", tt.rtt, got, tt.api, tt.bootstrap)
		}
	}
}

func TestKubeletLabels(t *testing.T) {
	kubelet, administrator := KubeletLabels(map[string]string{
		"disk": "ssd", "example.com/x": "1", RegionLabel: "r", ZoneLabel: "z", "node.kubernetes.io/pool": "a",
		"a.node.kubernetes.io/pool": "b", "node-role.kubernetes.io/worker": "", "kubernetes.io/role": "x", "x.k8s.io/y": "1", "notkubernetes.io/a": "1",
	})
	want := map[string]string{"node-role.kubernetes.io/worker": "", "kubernetes.io/role": "x", "x.k8s.io/y": "1"}
	if diff := cmp.Diff(want, administrator); diff != "" {
		t.Error(diff)
	}
	if len(kubelet) != 7 {
		t.Errorf("kubelet: %v", kubelet)
	}
}
