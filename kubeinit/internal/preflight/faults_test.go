package preflight

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// reference is the inventory of the reference deployment: a load balancer and three
// control planes in site s10, two workers each in s20 and s30, and a gateway in
// each site.
func reference() *inventory.Inventory {
	inv := &inventory.Inventory{Cluster: inventory.Cluster{
		Name: "planet", Version: "1.37", Endpoint: inventory.EndpointProxy, Source: inventory.SourcePreinstalled,
		PodSupernet: netip.MustParsePrefix("10.128.0.0/14"), ServiceSubnet: netip.MustParsePrefix("10.96.0.0/16"),
		Containerd: inventory.Containerd{Mode: inventory.ContainerdManaged}, KubeProxy: inventory.KubeProxy{Mode: inventory.KubeProxyNFTables},
		CNI: inventory.CNI{Mode: inventory.CNIRoutes},
	}}
	for i, n := range []int{10, 20, 30} {
		site := fmt.Sprintf("s%d", n)
		inv.Sites = append(inv.Sites, inventory.Site{
			Name: site, Prefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("192.168.%d.0/24", n))},
			Gateways: []string{fmt.Sprintf("gw%d", n)}, Mesh: inventory.MeshMeshd,
			PodBlock: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 128, byte(64 * i), 0}), 18),
		})
	}
	add := func(name, site string, last byte, roles ...inventory.Role) {
		addr := netip.MustParseAddr(fmt.Sprintf("192.168.%s.%d", site[1:], last))
		inv.Hosts = append(inv.Hosts, inventory.Host{Name: name, Site: site, NodeIP: addr, Roles: roles})
	}
	for _, n := range []int{10, 20, 30} {
		add(fmt.Sprintf("gw%d", n), fmt.Sprintf("s%d", n), 1, inventory.Gateway)
	}
	add("lb", "s10", 253, inventory.LoadBalancer)
	for i := range 3 {
		add(fmt.Sprintf("master%02d", i+1), "s10", byte(101+i), inventory.ControlPlane)
	}
	for i := range 4 {
		add(fmt.Sprintf("node%02d", i+1), fmt.Sprintf("s%d", 20+10*(i/2)), byte(101+i%2), inventory.Worker)
	}
	return inv
}

// cleanReport is what the reference deployment measures when all is well.
func cleanReport(inv *inventory.Inventory) *Report {
	r := &Report{Version: ReportVersion, Cluster: inv.Cluster.Name, Began: time.Unix(1.8e9, 0).UTC(), Took: 4 * time.Second}
	for i := range inv.Hosts {
		h := &inv.Hosts[i]
		facts, faults := parseFacts(cleanFacts(h))
		if len(faults) > 0 {
			panic(faults)
		}
		hr := HostReport{Name: h.Name, Site: h.Site, Facts: facts}
		if h.Is(inventory.Gateway) {
			facts.Mesh = cleanMesh(inv, h)
		} else {
			hr.Agent = &AgentReport{ProbePort: DefaultProbePort, Listening: listenPorts(inv, h), Fsync: 2 * time.Millisecond, FsyncCount: 128}
		}
		r.Hosts = append(r.Hosts, hr)
	}
	for a := range inv.Hosts {
		for b := range inv.Hosts {
			if a != b && joins(&inv.Hosts[a]) && joins(&inv.Hosts[b]) {
				r.Pairs = append(r.Pairs, cleanPair(inv, &inv.Hosts[a], &inv.Hosts[b]))
			}
		}
	}
	return r
}

func cleanMesh(inv *inventory.Inventory, h *inventory.Host) *Mesh {
	m := &Mesh{Site: h.Site, Gateway: h.Name, MTU: 1420}
	for _, s := range inv.Sites {
		if s.Name == h.Site {
			m.Announced = s.Prefixes
			continue
		}
		m.Routes = append(m.Routes, MeshRoute{Prefix: s.Prefixes[0], Site: s.Name})
		m.Peers = append(m.Peers, MeshPeer{Gateway: s.Gateways[0], Site: s.Name, State: "up", RTT: 20 * time.Millisecond})
	}
	return m
}

func cleanPair(inv *inventory.Inventory, a, b *inventory.Host) Pair {
	rtt, mtu, hops := 400*time.Microsecond, 1500, 0
	if a.Site != b.Site {
		rtt, mtu, hops = 20*time.Millisecond, 1420, 2
	}
	offset := 3 * time.Millisecond
	if inv.Hosts[0].Name > a.Name {
		offset = -offset
	}
	p := Pair{
		From: a.Name, To: b.Name, Sent: 200, Received: 200, Answered: 200,
		RTT: &RTT{Min: rtt, P50: rtt, P90: rtt * 11 / 10, P99: rtt * 12 / 10, Max: rtt * 2},
		MTU: mtu, Assumed: mtu, Link: 1500, Hops: hops, Offset: &offset, OffsetError: rtt / 2, SeenAs: a.NodeIP,
	}
	for _, port := range dialPorts(inv, a, b) {
		p.Ports = append(p.Ports, PortCheck{Port: port, State: PortOpen, Agent: true, SeenAs: a.NodeIP})
	}
	return p
}

func TestCleanReportHasNoFaults(t *testing.T) {
	inv := reference()
	if got := Faults(cleanReport(inv), inv); len(got) != 0 {
		t.Errorf("faults of a clean report: %+v", got)
	}
	inv.Cluster.Endpoint = inventory.EndpointHAProxy
	if got := Faults(cleanReport(inv), inv); len(got) != 0 {
		t.Errorf("faults of a clean report with haproxy: %+v", got)
	}
}

// faulty is what a row changes.
type faulty struct {
	inv *inventory.Inventory
	r   *Report
}

func (x *faulty) facts(host string) *Facts { return x.r.Host(host).Facts }

// pairs calls f for the directions that match, "*" being any host and "s10" any of a site.
func (x *faulty) pairs(from, to string, f func(*Pair)) {
	match := func(pattern, host string) bool {
		return pattern == "*" || pattern == host || pattern == x.inv.Host(host).Site
	}
	for i := range x.r.Pairs {
		if p := &x.r.Pairs[i]; match(from, p.From) && match(to, p.To) {
			f(p)
		}
	}
}

func (x *faulty) both(a, b string, f func(*Pair)) {
	x.pairs(a, b, f)
	if a != b {
		x.pairs(b, a, f)
	}
}

func setPort(port uint16, s PortState) func(*Pair) {
	return func(p *Pair) {
		for i := range p.Ports {
			if p.Ports[i].Port == port {
				p.Ports[i] = PortCheck{Port: port, State: s, Agent: true}
			}
		}
	}
}

func setLoss(received int) func(*Pair) { return func(p *Pair) { p.Received = received } }

func cut(p *Pair) {
	p.Sent, p.Received, p.Answered, p.RTT, p.MTU, p.Assumed, p.Link, p.Hops, p.Offset = 20, 0, 0, nil, 0, 0, 0, -1, nil
	for i := range p.Ports {
		p.Ports[i] = PortCheck{Port: p.Ports[i].Port, State: PortFiltered, Agent: true}
	}
}

func skew(by time.Duration) func(x *faulty) {
	return func(x *faulty) {
		x.pairs("*", "node03", func(p *Pair) { d := *p.Offset + by; p.Offset = &d })
		x.pairs("node03", "*", func(p *Pair) { d := *p.Offset - by; p.Offset = &d })
	}
}

func TestFaults(t *testing.T) {
	const (
		fault, warning, note = SeverityFault, SeverityWarning, SeverityNote
	)
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	for _, tt := range []struct {
		name     string
		inject   func(x *faulty)
		id       string
		severity Severity
		hosts    string // comma separated; empty: not compared
		text     string // part of the text
		cure     string // part of the cure
	}{
		{"host not reached", func(x *faulty) { *x.r.Host("node01") = HostReport{Name: "node01", Site: "s20", Error: "dial: timeout"} },
			"host-unreachable", fault, "node01", "dial: timeout", "ssh 192.168.20.101"},
		{"host missing in the report", func(x *faulty) { x.r.Hosts = x.r.Hosts[:len(x.r.Hosts)-1] }, "host-unreachable", fault, "node04", "not looked at", "ssh"},
		{"agent does not come up", func(x *faulty) {
			x.r.Host("lb").Agent, x.r.Host("lb").AgentError = nil, "exec format error"
			x.both("lb", "*", func(p *Pair) { *p = Pair{From: p.From, To: p.To, Hops: -1, Error: "no agent runs on lb"} })
		}, "agent-failed", fault, "lb", "exec format error", "agent probe"},
		{"address missing, so no agent", func(x *faulty) {
			x.facts("node01").Addresses = nil
			x.r.Host("node01").Agent, x.r.Host("node01").AgentError = nil, "cannot assign requested address"
			x.both("node01", "*", func(p *Pair) { *p = Pair{From: p.From, To: p.To, Hops: -1, Error: "no agent runs on node01"} })
		}, "address-missing", fault, "node01", "192.168.20.101", "ip -brief"},
		{"facts not understood", func(x *faulty) { x.r.Host("lb").FactsError = "line 3: cpus" }, "facts-unreadable", warning, "lb", "line 3", "iproute2"},
		{"port refused", func(x *faulty) { x.pairs("master01", "master02", setPort(2380, PortRefused)) },
			"port-refused", fault, "master01,master02", "TCP port 2380 is refused from master01 to master02", "on master02: nft insert rule inet filter input ip saddr { 192.168.10.101 } tcp dport 2380 accept"},
		{"port filtered", func(x *faulty) { x.pairs("master03", "node04", setPort(10250, PortFiltered)) },
			"port-filtered", fault, "master03,node04", "from master03 to node04", "tcp dport 10250"},
		{"port filtered on one host", func(x *faulty) { x.pairs("*", "master02", setPort(6443, PortFiltered)) },
			"port-filtered", fault, "master02", "from all other hosts to master02", "on master02"},
		{"port filtered between sites", func(x *faulty) { x.pairs("s20", "s10", setPort(6443, PortFiltered)) },
			"port-filtered", fault, "master01,master02,master03,node01,node02", "from site s20 to site s10", "on master01, master02 and master03: nft"},
		{"port filtered at a site", func(x *faulty) {
			x.pairs("s20", "s10", setPort(6443, PortFiltered))
			x.pairs("s30", "s10", setPort(6443, PortFiltered))
		},
			"port-filtered", fault, "", "from all other sites to site s10", "{ 192.168.20.101, 192.168.20.102, 192.168.30.101, 192.168.30.102 }"},
		{"port filtered everywhere", func(x *faulty) { x.pairs("*", "*", setPort(10250, PortFiltered)) }, "port-filtered", fault, "", "between all hosts", "dport 10250"},
		{"nothing passes in a site", func(x *faulty) { x.both("s20", "s20", cut) }, "path-missing", fault, "node01,node02", "between node01 and node02", "ping"},
		{"loss in a site", func(x *faulty) { x.pairs("s10", "s10", setLoss(100)) }, "loss-both-ways", fault, "lb,master01,master02,master03", "between the hosts of site s10", "mtr"},
		{"port unreachable", func(x *faulty) { x.pairs("node01", "master01", setPort(6443, PortUnreachable)) }, "port-unreachable", fault, "master01,node01", "6443", "on master01"},
		{"port answered by others", func(x *faulty) { x.pairs("node01", "master01", setPort(6443, PortForeign)) }, "port-foreign", fault, "master01,node01", "somebody else", "traceroute"},
		{"port in use", func(x *faulty) {
			x.facts("master01").Listening = append(x.facts("master01").Listening, Listener{Addr: netip.IPv4Unspecified(), Port: 6443, Process: "nginx"})
		}, "port-in-use", fault, "master01", "port 6443, which the API server needs, in use by nginx", "ss -Htlnp sport = :6443"},
		{"port in use by something hidden", func(x *faulty) { x.r.Host("node02").Agent.Busy = []uint16{10250} }, "port-in-use", fault, "node02", "10250", "ss"},
		{"local port in use", func(x *faulty) {
			x.facts("node01").Listening = append(x.facts("node01").Listening, Listener{Addr: addr("127.0.0.1"), Port: 7443, Process: "java"})
		}, "port-in-use", fault, "node01", "7443", "ss"},
		{"loss one way", func(x *faulty) { x.pairs("node01", "node03", setLoss(150)) }, "loss-one-way", fault, "node01,node03", "up to 25 % of the packets are lost one way, from node01 to node03, and not back", "mtr"},
		{"a bit of loss one way", func(x *faulty) { x.pairs("node01", "node03", setLoss(190)) }, "loss-one-way", warning, "node01,node03", "up to 5 %", "mtr"},
		{"loss both ways", func(x *faulty) { x.both("node01", "node03", setLoss(150)) }, "loss-both-ways", fault, "node01,node03", "both ways, between node01 and node03", "mtr"},
		{"a bit of loss both ways between sites", func(x *faulty) { x.both("s20", "s30", setLoss(190)) }, "loss-both-ways", warning, "node01,node02,node03,node04", "between site s20 and site s30", "mtr"},
		{"much loss one way, a bit back", func(x *faulty) { x.pairs("node01", "node03", setLoss(100)); x.pairs("node03", "node01", setLoss(190)) },
			"loss-both-ways", fault, "node01,node03", "up to 50 %", "mtr"},
		{"loss of everything one way", func(x *faulty) {
			x.both("node01", "node03", cut)
			x.pairs("node03", "node01", func(p *Pair) { p.Received = 20 })
		}, "loss-one-way", fault, "node01,node03", "all packets are lost one way, from node01 to node03", "mtr"},
		{"nothing passes", func(x *faulty) { x.both("node01", "node03", cut) }, "path-missing", fault, "node01,node03", "nothing passes between node01 and node03", "ip route get 192.168.30.101"},
		{"nothing passes between sites", func(x *faulty) { x.both("s20", "s30", cut) }, "path-missing", fault, "node01,node02,node03,node04", "nothing passes between site s20 and site s30", "ip route get"},
		{"a site is cut off", func(x *faulty) { x.both("s20", "s30", cut); x.both("s10", "s30", cut) }, "path-missing", fault, "", "nothing passes between site s30 and all other sites", "ip route get"},
		{"a host is cut off", func(x *faulty) {
			x.both("node04", "*", cut)
			x.pairs("node04", "*", func(p *Pair) { p.SendError = "network is unreachable" })
		}, "path-missing", fault, "node04", "between node04 and all other hosts", "ip route get"},
		{"datagrams filtered", func(x *faulty) {
			x.pairs("master01", "node01", func(p *Pair) { ports := p.Ports; cut(p); p.Ports = ports; p.Ports[0].State = PortOpen })
		}, "probe-filtered", warning, "master01,node01", "UDP port 7443", "udp dport 7443"},
		{"pair not measured", func(x *faulty) {
			x.both("node01", "node03", func(p *Pair) { *p = Pair{From: p.From, To: p.To, Hops: -1, Error: "100% silent"} })
		},
			"pair-unmeasured", warning, "node01,node03", "100% silent", "kubeinit check"},
		{"reordering", func(x *faulty) { x.pairs("node01", "node03", func(p *Pair) { p.Reordered = 20 }) }, "reordering", warning, "node01,node03", "overtake", "ECMP"},
		{"slow for etcd", func(x *faulty) { x.both("master01", "master02", func(p *Pair) { p.RTT.P50 = 60 * time.Millisecond }) },
			"etcd-rtt-high", warning, "master01,master02", "60ms between master01 and master02", "acceptSlow"},
		{"too slow for etcd", func(x *faulty) { x.both("s10", "s10", func(p *Pair) { p.RTT.P50 = 130 * time.Millisecond }) },
			"etcd-rtt-high", fault, "master01,master02,master03", "130ms between all hosts", "acceptSlow"},
		{"too slow for etcd and accepted", func(x *faulty) {
			x.inv.Cluster.Etcd.AcceptSlow = true
			x.both("master01", "master02", func(p *Pair) { p.RTT.P50 = 130 * time.Millisecond })
		}, "etcd-rtt-high", warning, "master01,master02", "130ms", "one site"},
		{"MTU too small one way", func(x *faulty) { x.pairs("s20", "s30", func(p *Pair) { p.MTU = 1300 }) },
			"mtu-one-way", fault, "node01,node02,node03,node04", "longer than 1300 bytes vanish without an error from site s20 to site s30, and not back", "mtu 1300"},
		{"MTU black hole", func(x *faulty) { x.both("node01", "node03", func(p *Pair) { p.MTU = 1300 }) },
			"mtu-black-hole", fault, "node01,node03", "between node01 and node03", "fragmentation needed"},
		{"MTU small", func(x *faulty) { x.pairs("node01", "node03", func(p *Pair) { p.MTU, p.Assumed = 1000, 1000 }) },
			"mtu-small", fault, "node01,node03", "longer than 1000", "mtu 1000"},
		{"clock ahead", skew(5 * time.Second), "clock-skew", fault, "node03", "5s ahead of", "on node03: timedatectl"},
		{"clock behind", skew(-time.Hour), "clock-skew", fault, "node03", "1h0m0s behind", "date -s"},
		{"clock unknown", func(x *faulty) { x.r.Host("lb").Agent.ClockError = "run date" }, "clock-unknown", warning, "lb", "run date", "date"},
		{"duplicate address", func(x *faulty) { x.r.Host("node01").Agent.Duplicates = []string{"02:00:00:00:00:99"} },
			"address-duplicate", fault, "node01", "192.168.20.101 with another machine on its LAN, 02:00:00:00:00:99", "ip neigh"},
		{"duplicate address of IPv6", func(x *faulty) {
			f := x.facts("node01")
			for i := range f.Addresses {
				f.Addresses[i].Refused = f.Addresses[i].Prefix.Addr() == addr("192.168.20.101")
			}
		}, "address-duplicate", fault, "node01", "refused", "eth0"},
		{"address missing", func(x *faulty) { x.facts("node01").Addresses = x.facts("node01").Addresses[:1] }, "address-missing", fault, "node01", "no interface with its nodeIP 192.168.20.101", "ip -brief address"},
		{"address not announced", func(x *faulty) { x.facts("gw20").Mesh.Announced = []netip.Prefix{prefix("192.168.20.0/26")} },
			"address-not-announced", fault, "node01,node02", "no gateway announces a route to 192.168.20.101", "announce:"},
		{"source rewritten", func(x *faulty) { x.pairs("s20", "s10", func(p *Pair) { p.SeenAs = addr("192.168.10.1") }) },
			"source-rewritten", fault, "", "from site s20 to site s10 arrive with the source address 192.168.10.1 instead of 192.168.20.101", "masquerad"},
		{"source rewritten for TCP", func(x *faulty) {
			x.pairs("node01", "master01", func(p *Pair) { p.Ports[0].SeenAs = addr("192.168.10.1") })
		},
			"source-rewritten", fault, "master01,node01", "NAT", "192.168.10.1"},
		{"asymmetric route", func(x *faulty) { x.pairs("node01", "node03", func(p *Pair) { p.Hops = 4 }) },
			"route-asymmetric", warning, "node01,node03", "routers from node01 to node03: 4, back: 2", "traceroute"},
		{"swap", func(x *faulty) { x.facts("node01").Swap = []string{"/dev/sda2 1000"} }, "swap-on", fault, "node01", "/dev/sda2", "swapoff -a"},
		{"cgroup v1", func(x *faulty) { x.facts("node01").CgroupVersion = 1 }, "cgroup-v1", fault, "node01", "cgroup v1", "unified_cgroup_hierarchy"},
		{"cgroup v1 allowed", func(x *faulty) { x.facts("node01").CgroupVersion = 1; x.inv.Cluster.AllowCgroupV1 = true }, "cgroup-v1", note, "node01", "accepts", "cgroup2fs"},
		{"controller missing", func(x *faulty) { x.facts("node01").Controllers = []string{"cpu", "cpuset", "pids"} }, "cgroup-controller-missing", fault, "node01", "memory", "cgroup_disable=memory"},
		{"module missing", func(x *faulty) { x.facts("node01").Modules["overlay"] = "missing" }, "module-missing", fault, "node01", "overlay", "modprobe overlay"},
		{"package missing", func(x *faulty) { delete(x.facts("node01").Versions, "conntrack") }, "package-missing", fault, "node01", "no conntrack", "apt-get install conntrack"},
		{"ethtool missing", func(x *faulty) { delete(x.facts("node01").Versions, "ethtool") }, "package-missing", warning, "node01", "ethtool", "apt-get install ethtool"},
		{"package of another version", func(x *faulty) { x.facts("node01").Versions["kubelet"] = "1.36.4" }, "package-version", fault, "node01", "kubelet 1.36.4, and the inventory says 1.37", "kubelet=1.37"},
		{"old containerd", func(x *faulty) { x.facts("node01").Versions["containerd"] = "1.7.28" }, "containerd-old", fault, "node01", "1.7.28", "containerd 2"},
		{"leftovers", func(x *faulty) { x.facts("node01").Leftovers = []string{"/etc/kubernetes/kubelet.conf"} }, "leftovers", fault, "node01", "/etc/kubernetes/kubelet.conf", "kubeadm reset"},
		{"same host name", func(x *faulty) { x.facts("node01").Hostname = "node02" }, "hostname-duplicate", fault, "node01,node02", "call themselves node02", "set-hostname"},
		{"same machine ID", func(x *faulty) { x.facts("node01").MachineID = x.facts("node04").MachineID }, "machine-id-duplicate", fault, "node01,node04", "machine ID", "systemd-machine-id-setup"},
		{"same hardware UUID", func(x *faulty) { x.facts("node01").UUID = x.facts("node04").UUID }, "uuid-duplicate", warning, "node01,node04", "UUID", "virtual machines"},
		{"same hardware address", func(x *faulty) { x.facts("node01").MACs["eth0"] = x.facts("node02").MACs["eth0"] }, "mac-duplicate", warning, "node01,node02", "hardware address", "virtual machines"},
		{"foreign forward drop", func(x *faulty) { x.facts("gw20").ForwardDrops = []Chain{{"ip", "filter", "FORWARD"}} },
			"firewall-forward-drop", fault, "gw20", "chain FORWARD of table ip filter has the policy drop", "nft insert rule ip filter FORWARD ip saddr 10.128.0.0/14 accept"},
		{"firewalld", func(x *faulty) { x.facts("node01").Firewalls = []string{"firewalld"} }, "firewall-active", warning, "node01", "firewalld", "systemctl disable --now firewalld"},
		{"little memory", func(x *faulty) { x.facts("master01").Memory = 1 << 30 }, "memory-small", fault, "master01", "1024 MiB of memory, and its roles need 1700", "free -m"},
		{"one processor", func(x *faulty) { x.facts("master01").CPUs = 1 }, "cpu-few", fault, "master01", "1 processor", "nproc"},
		{"full disk", func(x *faulty) { x.facts("node01").DiskFree = 3 << 30 }, "disk-full", fault, "node01", "3.0 GiB free", "df -h"},
		{"slow disk", func(x *faulty) { x.r.Host("master01").Agent.Fsync = 40 * time.Millisecond }, "fsync-slow", warning, "master01", "40ms", "fio"},
		{"no default route", func(x *faulty) { x.facts("node01").Routes = x.facts("node01").Routes[1:] }, "route-default-missing", fault, "node01", "no default route", "ip -4 route add default"},
		{"no name server", func(x *faulty) { x.facts("node01").Nameservers = nil }, "resolv-empty", fault, "node01", "CoreDNS does not start", "resolv.conf"},
		{"loopback name server", func(x *faulty) { x.facts("node01").Nameservers = []string{"127.0.0.1"} }, "resolv-loopback", fault, "node01", "CoreDNS would ask itself", "resolvectl"},
		{"two sites", func(x *faulty) { x.inv.Host("node01").Roles = []inventory.Role{inventory.ControlPlane} }, "quorum-two-sites", fault, "", "two sites, s10 and s20", "third site"},
		{"pods overlap a route", func(x *faulty) {
			x.facts("node01").Routes = append(x.facts("node01").Routes, HostRoute{Prefix: prefix("10.129.0.0/16"), Device: "tun0"})
		}, "range-overlap", fault, "node01", "podSupernet 10.128.0.0/14 overlaps the route to 10.129.0.0/16", "ip route show 10.129.0.0/16"},
		{"services overlap the mesh", func(x *faulty) {
			x.facts("gw10").Mesh.Routes = append(x.facts("gw10").Mesh.Routes, MeshRoute{prefix("10.96.4.0/24"), "s40"})
		}, "range-overlap", fault, "gw10", "serviceSubnet 10.96.0.0/16", "10.96.4.0/24"},
		{"LAN like that of another site", func(x *faulty) {
			x.facts("node01").Routes = append(x.facts("node01").Routes, HostRoute{Prefix: prefix("192.168.30.0/24"), Device: "docker0", Protocol: "kernel"})
		}, "range-overlap", fault, "node01", "the LAN 192.168.30.0/24 of site s30", "ip route show"},
		{"no systemd", func(x *faulty) { x.facts("node01").PID1 = "init" }, "systemd-missing", fault, "node01", "runs init", "systemd"},
		{"meshd does not run", func(x *faulty) { x.facts("gw20").Mesh = nil }, "mesh-down", fault, "gw20", "meshd does not run", "systemctl start meshd"},
		{"no route to a site", func(x *faulty) { x.facts("gw10").Mesh.Routes = x.facts("gw10").Mesh.Routes[:1] }, "mesh-no-route", fault, "gw10", "site s10 does not reach site s30", "meshd ping s30"},
		{"silent site", func(x *faulty) { x.facts("gw10").Mesh.Peers[1].State = "unreachable" }, "mesh-no-route", fault, "gw10", "no gateway there answers", "meshd status"},
		{"relayed", func(x *faulty) { x.facts("gw10").Mesh.Peers[0].Relayed = true }, "mesh-relayed", note, "gw10", "gw10 reaches gw20 of site s20 through a third gateway", "meshd doctor"},
		{"no time service", func(x *faulty) { x.facts("node01").Units = nil }, "time-sync-missing", note, "node01", "clock", "timedatectl"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inv := reference()
			x := &faulty{inv, cleanReport(inv)}
			tt.inject(x)
			if tt.id == "quorum-two-sites" {
				x.r = cleanReport(inv)
			}
			got := Faults(x.r, inv)
			if len(got) != 1 {
				t.Fatalf("%d faults, want 1: %s", len(got), mustJSON(t, got))
			}
			f := got[0]
			if f.ID != tt.id || f.Severity != tt.severity || !strings.Contains(f.Text, tt.text) || !strings.Contains(f.Cure, tt.cure) {
				t.Errorf("got %s\nwant %s %s with %q and cure %q", mustJSON(t, f), tt.id, tt.severity, tt.text, tt.cure)
			}
			if tt.hosts != "" && strings.Join(f.Hosts, ",") != tt.hosts {
				t.Errorf("hosts %v, want %s", f.Hosts, tt.hosts)
			}
			if strings.Contains(f.Text+f.Cure, "%!") || strings.ContainsAny(f.Text, "\n") {
				t.Errorf("text %q, cure %q", f.Text, f.Cure)
			}
		})
	}
}

func mustJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestWhatKubeinitMadeIsNoFault(t *testing.T) {
	inv := reference()
	x := &faulty{inv, cleanReport(inv)}
	for i := range x.r.Hosts {
		f := x.r.Hosts[i].Facts
		f.Ours = true
		f.Leftovers = []string{"/etc/kubernetes/kubelet.conf"}
		f.Routes = append(f.Routes, HostRoute{Prefix: netip.MustParsePrefix("10.128.0.0/14"), Via: netip.MustParseAddr("192.168.10.1")})
		if x.r.Hosts[i].Agent != nil {
			x.r.Hosts[i].Agent.Busy, x.r.Hosts[i].Agent.Listening = x.r.Hosts[i].Agent.Listening, nil
		}
	}
	x.facts("master01").Listening = append(x.facts("master01").Listening,
		Listener{netip.MustParseAddr("127.0.0.1"), 7443, "kubeinit-012345"},
		Listener{netip.IPv6Unspecified(), 6443, "kube-apiserver"}, Listener{netip.MustParseAddr("192.168.10.101"), 2379, "etcd"})
	x.facts("gw10").Mesh.Announced = append(slices.Clone(x.facts("gw10").Mesh.Announced), inv.Sites[0].PodBlock)
	if got := Faults(x.r, inv); len(got) != 0 {
		t.Errorf("faults: %s", mustJSON(t, got))
	}
}

func TestFaultsComeWorstFirstAndAlwaysTheSame(t *testing.T) {
	inv := reference()
	x := &faulty{inv, cleanReport(inv)}
	x.facts("node01").Units = nil
	x.facts("node02").Firewalls = []string{"ufw"}
	x.both("s20", "s30", cut)
	x.facts("node04").Swap = []string{"/swap"}
	first := Faults(x.r, inv)
	var ids []string
	for _, f := range first {
		ids = append(ids, f.ID)
	}
	if want := []string{"path-missing", "swap-on", "firewall-active", "time-sync-missing"}; !slices.Equal(ids, want) {
		t.Errorf("got %v, want %v", ids, want)
	}
	for range 20 {
		if diff := cmp.Diff(first, Faults(x.r, inv)); diff != "" {
			t.Fatal(diff)
		}
	}
}

func TestFaultsBearReportsThatDoNotFitTheInventory(t *testing.T) {
	inv := reference()
	r := cleanReport(inv)
	r.Hosts = append(r.Hosts, HostReport{Name: "stranger", Facts: &Facts{}})
	r.Pairs = append(r.Pairs, Pair{From: "stranger", To: "master01"}, Pair{From: "node01", To: "ghost"})
	if got := Faults(r, inv); len(got) != 0 {
		t.Errorf("faults: %s", mustJSON(t, got))
	}
	if got := Faults(&Report{}, inv); len(got) != len(inv.Hosts) {
		t.Errorf("%d faults of an empty report, want one for each of %d hosts", len(got), len(inv.Hosts))
	}
}
