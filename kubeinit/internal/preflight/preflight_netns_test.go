//go:build integration

package preflight

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/netlabtest"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// agentEnv makes this program an agent.
const agentEnv = "PREFLIGHT_TEST_AGENT"

func TestMain(m *testing.M) {
	if os.Getenv(agentEnv) != "" {
		if err := Serve(context.Background(), os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := netlab.Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// labHost is a host of the laboratory, on which the agent is a process of its own.
type labHost struct {
	testHost
	h    *netlab.Host
	path string // before PATH
	real bool   // facts are read, not given
}

func (l *labHost) Run(ctx context.Context, c host.Command) (host.Output, error) {
	if c.Args[0] == "sh" && !l.real {
		return l.testHost.Run(ctx, c)
	}
	args := c.Args
	if args[0] == agentCommand[0] {
		args = []string{os.Args[0]}
	}
	cmd := l.h.Command(ctx, args[0], args[1:]...)
	cmd.Env = append(os.Environ(), agentEnv+"=1")
	if l.path != "" {
		cmd.Env = append(cmd.Env, "PATH="+l.path+":"+os.Getenv("PATH"))
	}
	in, err := cmd.StdinPipe()
	if err != nil {
		return host.Output{}, err
	}
	r, w := io.Pipe()
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = w, &stderr
	if c.Output == nil {
		cmd.Stdout = &stdout
	}
	if err := cmd.Start(); err != nil {
		return host.Output{}, err
	}
	go func() { // ends with the command, or with its input
		io.Copy(in, c.Stdin) //nolint:errcheck // the command may have ended
		in.Close()
	}()
	done := make(chan struct{})
	go func() { // ends when w is closed
		defer close(done)
		lines(r, c.Output)
	}()
	err = cmd.Wait()
	w.Close()
	<-done
	if _, ok := errors.AsType[*exec.ExitError](err); ok {
		err = fmt.Errorf("%w: %s", err, stderr.String())
	}
	return host.Output{Stdout: stdout.String()}, err
}

// The laboratory of these tests:
//
//	m1 10.1.0.11 ─┐                        ┌─ w1 10.2.0.21
//	m2 10.1.0.12 ─┼─ 10.1.0.1  r  10.2.0.1 ┤
//	m3 10.1.0.13 ─┘                        └─ w2 10.2.0.22
//	site s1                                   site s2
type lab struct {
	t     *testing.T
	w     *netlab.World
	inv   *inventory.Inventory
	hosts map[string]host.Host
	o     Options
}

func newLab(t *testing.T) *lab {
	t.Helper()
	prefix, addr := netip.MustParsePrefix, netip.MustParseAddr
	inv := &inventory.Inventory{
		Cluster: inventory.Cluster{
			Name: "test", Version: "1.37", Source: inventory.SourcePreinstalled,
			PodSupernet: prefix("10.128.0.0/14"), ServiceSubnet: prefix("10.96.0.0/16"),
		},
		Sites: []inventory.Site{
			{Name: "s1", Prefixes: []netip.Prefix{prefix("10.1.0.0/24")}, Mesh: inventory.MeshNone},
			{Name: "s2", Prefixes: []netip.Prefix{prefix("10.2.0.0/24")}, Mesh: inventory.MeshNone},
		},
	}
	topology := netlab.Topology{Nets: []netlab.Net{
		{Name: "lan1", Prefixes: []netip.Prefix{prefix("10.1.0.0/24")}}, {Name: "lan2", Prefixes: []netip.Prefix{prefix("10.2.0.0/24")}},
	}}
	topology.Hosts = append(topology.Hosts, netlab.HostSpec{Name: "r", Forward: true, Interfaces: []netlab.Iface{
		{Net: "lan1", Name: "eth1", Addrs: []netip.Prefix{prefix("10.1.0.1/24")}}, {Net: "lan2", Name: "eth2", Addrs: []netip.Prefix{prefix("10.2.0.1/24")}},
	}})
	for _, h := range []inventory.Host{
		{Name: "m1", Site: "s1", NodeIP: addr("10.1.0.11"), Roles: []inventory.Role{inventory.ControlPlane}},
		{Name: "m2", Site: "s1", NodeIP: addr("10.1.0.12"), Roles: []inventory.Role{inventory.ControlPlane}},
		{Name: "m3", Site: "s1", NodeIP: addr("10.1.0.13"), Roles: []inventory.Role{inventory.ControlPlane}},
		{Name: "w1", Site: "s2", NodeIP: addr("10.2.0.21"), Roles: []inventory.Role{inventory.Worker}},
		{Name: "w2", Site: "s2", NodeIP: addr("10.2.0.22"), Roles: []inventory.Role{inventory.Worker}},
	} {
		inv.Hosts = append(inv.Hosts, h)
		lan, router := "lan1", addr("10.1.0.1")
		if h.Site == "s2" {
			lan, router = "lan2", addr("10.2.0.1")
		}
		topology.Hosts = append(topology.Hosts, netlab.HostSpec{Name: h.Name, Gateways: []netip.Addr{router}, Interfaces: []netlab.Iface{
			{Net: lan, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(h.NodeIP, 24)}},
		}})
	}
	l := &lab{t: t, w: netlabtest.Start(t, topology), inv: inv, hosts: make(map[string]host.Host)}
	for i := range inv.Hosts {
		h := &inv.Hosts[i]
		l.hosts[h.Name] = &labHost{testHost: testHost{name: h.Name, facts: cleanFacts(h)}, h: l.w.Host(h.Name)}
	}
	l.o = Options{Agent: agentCommand, FsyncDir: t.TempDir(), ConnectWait: 4 * time.Second}
	// The forwarders of a laboratory on a busy machine hold packets for seconds; late is not lost.
	l.o.Linger, l.o.Timeout = 8*time.Second, 2*time.Minute
	return l
}

// toIPv6 gives hosts and router addresses of IPv6 and the inventory those as nodeIP.
func (l *lab) toIPv6() {
	l.t.Helper()
	for i := range l.inv.Hosts {
		h := &l.inv.Hosts[i]
		b := h.NodeIP.As4()
		h.NodeIP = netip.MustParseAddr(fmt.Sprintf("fd00:%d::%d", b[1], b[3]))
		l.run(h.Name, "ip", "address", "add", h.NodeIP.String()+"/64", "dev", "eth0", "nodad")
		facts := strings.Replace(cleanFacts(h), "route\tdefault via 198.51.100.1 dev eth0 proto static\n", "route6\tdefault via fd00::1 dev eth0 proto static\n", 1)
		l.hosts[h.Name].(*labHost).facts = strings.Replace(facts, " inet "+h.NodeIP.String()+"/24 brd 10.0.0.255", " inet6 "+h.NodeIP.String()+"/64", 1)
	}
	for _, n := range []string{"1", "2"} {
		l.run("r", "ip", "address", "add", "fd00:"+n+"::1/64", "dev", "eth"+n, "nodad")
	}
	l.run("r", "sysctl", "-qw", "net.ipv6.conf.all.forwarding=1")
	for i := range l.inv.Hosts {
		h := &l.inv.Hosts[i]
		l.run(h.Name, "ip", "-6", "route", "add", "default", "via", "fd00:"+strings.TrimPrefix(h.Site, "s")+"::1")
	}
}

func (l *lab) link(host string, out, in netlab.Link) {
	l.t.Helper()
	if err := l.w.Host(host).SetLink(l.t.Context(), "eth0", out, in); err != nil {
		l.t.Fatal(err)
	}
}

// run runs a command on a host.
func (l *lab) run(host string, args ...string) {
	l.t.Helper()
	if _, err := l.w.Host(host).Run(l.t.Context(), args[0], args[1:]...); err != nil {
		l.t.Fatal(err)
	}
}

// check measures and returns the faults that are not about slow disks or a busy machine.
func (l *lab) check() (Report, []Fault) {
	l.t.Helper()
	r := mustRunAll(l.t, l.inv, l.hosts, l.o)
	for _, h := range r.Hosts {
		if h.Error != "" || h.AgentError != "" || h.FactsError != "" {
			l.t.Fatalf("host %s: %s %s", h.Name, h.Error, h.FactsError)
		}
	}
	faults := slices.DeleteFunc(Faults(&r, l.inv), func(f Fault) bool { return f.ID == "fsync-slow" })
	return r, faults
}

// want compares the kinds and hosts of faults: "kind: host host".
func (l *lab) want(faults []Fault, want ...string) {
	l.t.Helper()
	var got []string
	for _, f := range faults {
		got = append(got, f.ID+": "+strings.Join(f.Hosts, " "))
		l.t.Logf("%s: %s; cure: %s", f.Severity, f.Text, f.Cure)
	}
	if !slices.Equal(got, want) {
		l.t.Errorf("got faults %q, want %q", got, want)
	}
}

func TestCleanLaboratoryHasNoFaults(t *testing.T) {
	l := newLab(t)
	netlabtest.Snapshots(t, l.w, "m1", "m2", "m3", "w1", "w2")
	r, faults := l.check()
	l.want(faults)
	for _, p := range r.Pairs {
		hops := 0
		if l.inv.Host(p.From).Site != l.inv.Host(p.To).Site {
			hops = 1
		}
		if p.Hops != hops || p.MTU != 1500 || p.Assumed != 1500 || p.Link != 1500 || p.Answered < 196 || p.SeenAs != l.inv.Host(p.From).NodeIP {
			t.Errorf("%+v", p)
		}
	}
	t.Logf("5 hosts in %v", r.Took)
}

// The tolerances of round trips: kernels stamp arrivals, so a busy machine is late
// only with what its forwarders do.
const (
	early = 300 * time.Microsecond
	late  = 8 * time.Millisecond
)

func TestMeasuresWhatLinksDo(t *testing.T) {
	l := newLab(t)
	l.o.Probes = 600
	l.link("m1", netlab.Link{Delay: 20 * time.Millisecond}, netlab.Link{Delay: 35 * time.Millisecond})
	l.link("m3", netlab.Link{Loss: 0.2}, netlab.Link{})
	l.link("w1", netlab.Link{MTU: 1300}, netlab.Link{})
	l.link("w2", netlab.Link{Reorder: 0.5}, netlab.Link{})
	r, faults := l.check()
	for _, other := range []string{"m2", "w1"} {
		p := r.Pair("m1", other)
		t.Logf("m1 and %s: %+v, clocks %v ± %v", other, *p.RTT, *p.Offset, p.OffsetError)
		if p.RTT.Min < 55*time.Millisecond-early || p.RTT.P50 > 55*time.Millisecond+late || p.RTT.P50 < 55*time.Millisecond-early {
			t.Errorf("round trip %+v, want 55ms", p.RTT)
		}
		// The way is 15 ms longer in one direction, which looks like half of that in clocks.
		if p.Offset.Abs() > p.OffsetError || p.Offset.Abs() < 3*time.Millisecond {
			t.Errorf("clocks differ by %v ± %v", *p.Offset, p.OffsetError)
		}
	}
	for _, other := range []string{"m1", "m2", "w1"} {
		lossy, clean := r.Pair("m3", other), r.Pair(other, "m3")
		loss, _ := lossy.Loss()
		sigma := math.Sqrt(0.2 * 0.8 / float64(lossy.Sent))
		if math.Abs(loss-0.2) > 5*sigma {
			t.Errorf("m3 to %s: loss %.3f of %d, want 0.2", other, loss, lossy.Sent)
		}
		if back, _ := clean.Loss(); back > 0.01 {
			t.Errorf("%s to m3: loss %.3f, want none", other, back)
		}
	}
	for _, other := range []string{"m1", "m2", "w2"} {
		p, back := r.Pair("w1", other), r.Pair(other, "w1")
		if p.MTU != 1300 || p.Assumed != 1500 || back.MTU != 1500 {
			t.Errorf("w1 to %s: MTU %d, assumed %d, back %d, want 1300, 1500, 1500", other, p.MTU, p.Assumed, back.MTU)
		}
	}
	for _, other := range []string{"m1", "m2"} {
		p, back := r.Pair("w2", other), r.Pair(other, "w2")
		share := float64(p.Reordered) / float64(p.Received)
		if share < 0.1 || share > 0.7 || float64(back.Reordered) > 0.02*float64(back.Received) {
			t.Errorf("w2 to %s: %d of %d late, back %d of %d", other, p.Reordered, p.Received, back.Reordered, back.Received)
		}
	}
	l.want(slices.DeleteFunc(faults, func(f Fault) bool { return f.ID == "etcd-rtt-high" }), "loss-one-way: m3", "mtu-one-way: w1", "reordering: w2")
}

func TestRouterThatSaysSoIsNoBlackHole(t *testing.T) {
	l := newLab(t)
	l.run("r", "ip", "route", "replace", "10.2.0.0/24", "dev", "eth2", "mtu", "lock", "1420")
	r, faults := l.check()
	l.want(faults)
	if p := r.Pair("m1", "w1"); p.MTU != 1420 || p.Assumed != 1420 || p.Link != 1500 {
		t.Errorf("MTU %d, assumed %d, link %d, want 1420, 1420, 1500", p.MTU, p.Assumed, p.Link)
	}
}

func TestIPv6IsMeasuredToo(t *testing.T) {
	l := newLab(t)
	l.toIPv6()
	l.link("w1", netlab.Link{MTU: 1400}, netlab.Link{Delay: 10 * time.Millisecond})
	r, faults := l.check()
	l.want(faults, "mtu-one-way: w1")
	p, back := r.Pair("m1", "w1"), r.Pair("w1", "m1")
	if p.Hops != 1 || back.Hops != 1 || p.MTU != 1500 || back.MTU != 1400 || p.SeenAs != l.inv.Host("m1").NodeIP {
		t.Errorf("%+v, back %+v", p, back)
	}
	if p.RTT.P50 < 10*time.Millisecond-early || p.RTT.P50 > 10*time.Millisecond+late {
		t.Errorf("round trip %+v, want 10ms", p.RTT)
	}
	if c := p.Ports; len(c) != 1 || c[0].State != PortOpen || c[0].SeenAs != l.inv.Host("m1").NodeIP {
		t.Errorf("ports %+v", c)
	}
}

func TestBlackHoleBetweenSites(t *testing.T) {
	l := newLab(t)
	l.run("r", "nft", "add table ip t; add chain ip t f { type filter hook forward priority 0; }; add rule ip t f ip length > 1380 drop")
	_, faults := l.check()
	l.want(faults, "mtu-black-hole: m1 m2 m3 w1 w2")
	if len(faults) == 1 && !strings.Contains(faults[0].Text, "between site s1 and site s2") {
		t.Error(faults[0].Text)
	}
}

func TestSiteThatIsCutOffIsOneFault(t *testing.T) {
	l := newLab(t)
	l.o.Linger = time.Second // much is lost
	l.run("r", "nft", "add table ip t; add chain ip t f { type filter hook forward priority 0; policy drop; }")
	_, faults := l.check()
	l.want(faults, "path-missing: m1 m2 m3 w1 w2")
}

func TestOneWayBlockIsNamedWithItsDirection(t *testing.T) {
	l := newLab(t)
	l.o.Linger = time.Second // much is lost
	l.run("r", "nft", "add table ip t; add chain ip t f { type filter hook forward priority 0; }; add rule ip t f ip daddr 10.2.0.21 drop")
	r, faults := l.check()
	if p, back := r.Pair("m1", "w1"), r.Pair("w1", "m1"); !dead(p) || back.Received != back.Sent || back.Sent != backProbes {
		t.Errorf("to w1: %+v\nfrom w1: %+v", p, back)
	}
	l.want(faults, "loss-one-way: w1")
}

func TestFirewallsOfHosts(t *testing.T) {
	l := newLab(t)
	l.o.Linger = time.Second // much is lost
	table := "add table inet t; add chain inet t i { type filter hook input priority 0; }; "
	l.run("m1", "nft", table+"add rule inet t i tcp dport 6443 drop")
	l.run("m2", "nft", table+"add rule inet t i tcp dport 2380 reject with tcp reset")
	l.run("m3", "nft", table+"add rule inet t i udp dport 7443 ip saddr 10.2.0.0/24 drop")
	l.run("w1", "nft", table+"add rule inet t i tcp dport 10250 reject with icmpx admin-prohibited")
	_, faults := l.check()
	l.want(faults, "port-filtered: m1", "port-refused: m2", "port-unreachable: w1", "probe-filtered: m3")
}

func TestFirewallRulesAreEnough(t *testing.T) {
	l := newLab(t)
	l.o.Linger = time.Second // much is lost
	for _, h := range l.inv.Hosts {
		l.run(h.Name, "nft", "add table inet filter; add chain inet filter input { type filter hook input priority filter; policy drop; }")
	}
	_, faults := l.check()
	if len(faults) != 1 || faults[0].ID != "path-missing" || !strings.Contains(faults[0].Text, "between all hosts") {
		t.Errorf("closed hosts: %s", mustJSON(t, faults))
	}
	text, err := Firewall(l.inv, FirewallNFT)
	if err != nil {
		t.Fatal(err)
	}
	for i, section := range strings.Split(text, "\n\n")[1:] {
		h := l.inv.Hosts[i]
		if !strings.HasPrefix(section, "# "+h.Name+" ") {
			t.Fatalf("section of %s is %q", h.Name, section)
		}
		l.run(h.Name, "nft", section)
	}
	_, faults = l.check()
	l.want(faults)
}

func TestNATBetweenSites(t *testing.T) {
	l := newLab(t)
	l.run("r", "nft", "add table ip t; add chain ip t p { type nat hook postrouting priority srcnat; }; add rule ip t p ip saddr 10.2.0.0/24 oifname eth1 masquerade")
	r, faults := l.check()
	if p := r.Pair("w1", "m1"); len(p.Ports) == 0 || p.Ports[0].SeenAs != netip.MustParseAddr("10.1.0.1") {
		t.Errorf("w1 to m1: %+v", p)
	}
	l.want(faults, "source-rewritten: m1 m2 m3 w1 w2")
}

func TestWaysOfDifferentLength(t *testing.T) {
	l := newLab(t)
	l.run("r", "nft", "add table ip t; add chain ip t f { type filter hook forward priority 0; }; add rule ip t f ip saddr 10.2.0.0/24 ip ttl set 60")
	_, faults := l.check()
	l.want(faults, "route-asymmetric: m1 m2 m3 w1 w2")
}

func TestClockThatIsAhead(t *testing.T) {
	l := newLab(t)
	dir := t.TempDir()
	script := "#!/bin/sh\nexec /bin/date -d '+5 seconds' \"$@\"\n"
	if err := os.WriteFile(filepath.Join(dir, "date"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	l.hosts["w1"].(*labHost).path = dir
	r, faults := l.check()
	l.want(faults, "clock-skew: w1")
	for _, other := range []string{"m1", "w2"} {
		p := r.Pair(other, "w1")
		if d := *p.Offset - 5*time.Second; d.Abs() > 500*time.Millisecond {
			t.Errorf("%s sees w1 %v ahead, want 5s", other, *p.Offset)
		}
	}
}

func TestTwoMachinesWithOneAddress(t *testing.T) {
	l := newLab(t)
	l.run("m3", "ip", "address", "add", "10.1.0.12/32", "dev", "eth0")
	r := mustRunAll(t, l.inv, l.hosts, l.o)
	faults := Faults(&r, l.inv)
	at := slices.IndexFunc(faults, func(f Fault) bool { return f.ID == "address-duplicate" })
	if at < 0 || !slices.Equal(faults[at].Hosts, []string{"m2"}) {
		t.Errorf("faults %s", mustJSON(t, faults))
	}
}

func TestFactsOfARealHost(t *testing.T) {
	l := newLab(t)
	l.run("m1", "nft", "add table ip docker; add chain ip docker FORWARD { type filter hook forward priority 0; policy drop; }")
	l.run("m1", "ip", "route", "del", "default")
	l.run("m1", "ip", "route", "add", "10.129.0.0/16", "dev", "eth0")
	listener, err := l.w.Host("m1").Listen(t.Context(), "tcp", "0.0.0.0:10250")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	h := l.hosts["m1"].(*labHost)
	h.real = true
	f, err := Gather(t.Context(), h)
	if err != nil {
		t.Fatal(err)
	}
	if f.Hostname != "m1" || f.CPUs < 1 || f.Memory < 1<<20 || f.Kernel == "" || f.DiskFree == 0 || f.PID1 == "" || len(f.Modules) != 4 {
		t.Errorf("facts %s", mustJSON(t, f))
	}
	if nodeMAC(l.inv.Host("m1"), f) == "" {
		t.Errorf("no hardware address: %v, %v", f.Addresses, f.MACs)
	}
	if !slices.Contains(f.ForwardDrops, Chain{"ip", "docker", "FORWARD"}) {
		t.Errorf("chains %v", f.ForwardDrops)
	}
	r := mustRunAll(t, l.inv, l.hosts, l.o)
	var ids []string
	for _, fault := range Faults(&r, l.inv) {
		if slices.Equal(fault.Hosts, []string{"m1"}) {
			ids = append(ids, fault.ID)
		}
	}
	for _, want := range []string{"port-in-use", "route-default-missing", "range-overlap", "firewall-forward-drop"} {
		if !slices.Contains(ids, want) {
			t.Errorf("faults %v of m1 lack %s", ids, want)
		}
	}
	if !slices.Contains(r.Host("m1").Agent.Busy, 10250) {
		t.Errorf("agent %+v", r.Host("m1").Agent)
	}
	// A service that is there counts as open, without a hello.
	if c := r.Pair("m2", "m1").Ports; state(r.Pair("m2", "m1"), 10250) != PortOpen {
		t.Errorf("ports %+v", c)
	}
}

func TestFiftyHosts(t *testing.T) {
	inv, hosts := loopback(50, 5)
	for i := range inv.Hosts {
		inv.Hosts[i].NodeIP = netip.AddrFrom4([4]byte{127, 82, 0, byte(i + 1)})
		hosts[inv.Hosts[i].Name].(*testHost).facts = cleanFacts(&inv.Hosts[i])
	}
	r := mustRunAll(t, inv, hosts, Options{Agent: agentCommand, FsyncDir: t.TempDir(), Timeout: 2 * time.Minute})
	if len(r.Pairs) != 2450 {
		t.Fatalf("%d pairs, want 2450", len(r.Pairs))
	}
	var answered, sent int
	for _, p := range r.Pairs {
		if p.Error != "" || p.RTT == nil {
			t.Fatalf("%+v", p)
		}
		answered += p.Received
		sent += p.Sent
	}
	t.Logf("50 hosts, 2450 pairs, %d of %d datagrams, in %v", answered, sent, r.Took)
	if answered < sent*99/100 {
		t.Errorf("%d of %d datagrams arrived", answered, sent)
	}
}
