package preflight

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

func testFacts() string {
	return cleanFacts(&inventory.Host{Name: "node01", NodeIP: netip.MustParseAddr("198.51.100.7")})
}

func TestFactsAreParsed(t *testing.T) {
	prefix := netip.MustParsePrefix
	text := strings.Replace(testFacts(), "end\t1\n", `swap	/dev/sda2 1000
route	10.9.0.0/16 proto static metric 20
route		nexthop via 10.0.0.1 dev eth0 weight 1
route	blackhole 10.8.0.0/16
route	192.0.2.9 via inet6 fe80::1 dev eth1 proto bird
route6	default via fe80::1 dev eth0 proto ra metric 1024
listen	LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=3,fd=14))
listen	LISTEN 0 4096 *:6443 *:* users:(("kube-apiserver",pid=9,fd=3))
listen	LISTEN 0 4096 [::1]:631 [::]:*
nft	table ip filter {
nft		chain FORWARD {
nft			type filter hook forward priority filter; policy drop;
nft		}
nft		chain INPUT {
nft			type filter hook input priority filter; policy drop;
nft		}
nft	}
legacy	-P FORWARD DROP
upstream	nameserver 198.51.100.1
unit	firewalld active enabled
ufw	enabled
leftover	/etc/kubernetes/admin.conf
ours	journal
address	3: eth1    inet6 2001:db8::1/64 scope global dadfailed tentative \       valid_lft forever
address	4: tun0    inet 10.7.0.1 peer 10.7.0.2/32 scope global tun0\       valid_lft forever
mesh	{"version":1,"self":{"gateway":"gw","site":"s","mtu":1420,"routes":[{"prefix":"10.0.0.0/24"}]},"peers":[{"gateway":"g2","site":"t","state":"up","relayed":true,"rttNanos":5}],"routes":[{"prefix":"10.0.0.0/24","site":"s","local":true},{"prefix":"10.0.1.0/24","site":"t"}]}
end	1
`, 1)
	got, faults := parseFacts(text)
	if len(faults) > 0 {
		t.Fatal(faults)
	}
	want := &Facts{
		Hostname: "node01", OS: "Debian GNU/Linux 13 (trixie)", Kernel: "6.12.0", Arch: "x86_64", PID1: "systemd", MachineID: "0000node01", UUID: "uuid-node01",
		CgroupVersion: 2, Controllers: []string{"cpuset", "cpu", "io", "memory", "hugetlb", "pids"}, Swap: []string{"/dev/sda2 1000"},
		Memory: 8100000 << 10, MemoryAvailable: 7000000 << 10, Disk: 100000000 << 10, DiskFree: 80000000 << 10, CPUs: 4,
		Addresses: []Address{
			{"lo", prefix("127.0.0.1/8"), false}, {"eth0", prefix("198.51.100.7/24"), false}, {"eth0", prefix("fe80::1/64"), false},
			{"eth1", prefix("2001:db8::1/64"), true}, {"tun0", prefix("10.7.0.1/32"), false},
		},
		MACs: map[string]string{"eth0": "02:00:node01"},
		Routes: []HostRoute{
			{prefix("0.0.0.0/0"), netip.MustParseAddr("198.51.100.1"), "eth0", "static"},
			{prefix("198.51.100.0/24"), netip.Addr{}, "eth0", "kernel"},
			{prefix("10.9.0.0/16"), netip.Addr{}, "", "static"},
			{prefix("192.0.2.9/32"), netip.MustParseAddr("fe80::1"), "eth1", "bird"},
			{prefix("::/0"), netip.MustParseAddr("fe80::1"), "eth0", "ra"},
		},
		Forwarding: true, Nameservers: []string{"198.51.100.53"}, Upstreams: []string{"198.51.100.1"},
		Listening: []Listener{
			{netip.MustParseAddr("0.0.0.0"), 22, "sshd"}, {netip.MustParseAddr("127.0.0.53"), 53, "systemd-resolve"},
			{netip.IPv6Unspecified(), 6443, "kube-apiserver"}, {netip.MustParseAddr("::1"), 631, ""},
		},
		ForwardDrops: []Chain{{"ip", "filter", "FORWARD"}, {"ip", "filter", "FORWARD"}},
		Firewalls:    []string{"ufw", "firewalld"},
		Versions: map[string]string{
			"containerd": "2.1.4", "runc": "1.3.0", "kubelet": "1.37.2", "kubeadm": "1.37.2", "kubectl": "1.37.2", "conntrack": "1.4.7", "ethtool": "6.1",
		},
		Modules:   map[string]string{"overlay": "present", "br_netfilter": "loadable", "nf_tables": "present", "nf_conntrack": "present"},
		Units:     map[string]Unit{"containerd": {"active", "enabled"}, "kubelet": {"inactive", "enabled"}, "systemd-timesyncd": {"active", "enabled"}, "firewalld": {"active", "enabled"}},
		Leftovers: []string{"/etc/kubernetes/admin.conf"}, Ours: true,
		Mesh: &Mesh{
			Site: "s", Gateway: "gw", MTU: 1420, Announced: []netip.Prefix{prefix("10.0.0.0/24")}, Routes: []MeshRoute{{prefix("10.0.1.0/24"), "t"}},
			Peers: []MeshPeer{{"g2", "t", "up", true, 5}},
		},
	}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Addr) bool { return a == b }), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
}

func TestFactsThatAreNotUnderstoodAreNamed(t *testing.T) {
	for name, tt := range map[string]struct{ line, want string }{
		"unknown key":   {"colour\tred", "unknown key"},
		"no key":        {"Last login: yesterday", "no key"},
		"long value":    {"hostname\t" + strings.Repeat("x", 5000), "no key, or a value"},
		"cpus":          {"cpus\tmany", `"many" has no such form`},
		"memory":        {"memory\tMemTotal: -1 kB", "no such form"},
		"address":       {"address\t2: eth0    inet 300.0.0.1/24 scope", "is no address"},
		"hostile name":  {"address\t2: $(reboot)    inet 10.0.0.1/24 scope global", "names no interface"},
		"route":         {"route\tnowhere via 10.0.0.1", "is no route"},
		"next hop":      {"route\t10.0.0.0/8 via nobody", "is no route"},
		"listener":      {"listen\tLISTEN 0 128 0.0.0.0:99999 0.0.0.0:*", "has no port"},
		"nameserver":    {"resolv\tnameserver", "names no server"},
		"mesh":          {"mesh\t{", "status of meshd"},
		"mesh version":  {`mesh` + "\t" + `{"version":9}`, "has version 9"},
		"missing tools": {"missing\tss", "not installed"},
	} {
		_, faults := parseFacts(strings.Replace(testFacts(), "end\t1\n", tt.line+"\nend\t1\n", 1))
		if len(faults) != 1 || !strings.Contains(faults[0], tt.want) {
			t.Errorf("%s: %q, want one with %q", name, faults, tt.want)
		}
	}
	if _, faults := parseFacts(strings.TrimSuffix(testFacts(), "end\t1\n")); len(faults) != 1 || faults[0] != "the end is missing" {
		t.Errorf("cut off: %q", faults)
	}
	if _, faults := parseFacts(strings.Repeat("x\n", 200_000)); len(faults) > maxFaults+1 {
		t.Errorf("%d faults", len(faults))
	}
	hostile := strings.Replace(testFacts(), "end\t1\n", "nft\ttable ip $(reboot) {\nnft\t\tchain ;x {\nnft\t\t\ttype filter hook forward priority filter; policy drop;\nend\t1\n", 1)
	if f, _ := parseFacts(hostile); len(f.ForwardDrops) != 1 || f.ForwardDrops[0].Chain != "" {
		t.Errorf("chains %v", f.ForwardDrops)
	}
}

func BenchmarkJudge(b *testing.B) {
	inv := reference()
	for b.Loop() {
		Faults(cleanReport(inv), inv)
	}
}

func FuzzParseFacts(f *testing.F) {
	f.Add(testFacts())
	f.Add("facts\t1\nlisten\tLISTEN 0 1 [fe80::1]%eth0:1 [::]:* users:((\"x\nend\t1\n")
	f.Add("facts\t1\nnft\ttable inet x {\nnft\tchain y {\nnft\ttype filter hook forward priority 0; policy drop;\nversion\tkubelet v.\nend\t1\n")
	f.Add("facts\t1\nroute\tunicast\nroute\tdefault via\naddress\t1: a inet 1.2.3.4 peer 1.2.3.5/32 x\nmesh\t{}\nend\t1\n")
	inv := reference()
	r := cleanReport(inv)
	f.Fuzz(func(t *testing.T, text string) {
		facts, faults := parseFacts(text)
		if facts == nil || len(faults) > maxFaults+1 {
			t.Fatalf("%v, %d faults", facts, len(faults))
		}
		r.Hosts[len(r.Hosts)-1].Facts = facts
		for _, fault := range Faults(r, inv) {
			if fault.ID == "" || fault.Text == "" || fault.Cure == "" || strings.ContainsAny(fault.Text+fault.Cure, "\x1b\n") {
				t.Errorf("%+v", fault)
			}
		}
	})
}
