//go:build linux

package netlab

import (
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/net/icmp"
)

func TestSettingsOfAnInterfaceComeAfterThoseOfAll(t *testing.T) {
	h := HostSpec{Forward: true, NoIPv6: true, Sysctls: map[string]string{
		"net.ipv4.conf.all.rp_filter": "1", "net.ipv4.conf.aaa0.rp_filter": "2", "net.core.somaxconn": "9",
	}}
	s := h.settings()
	want := []setting{
		{"net.ipv4.ip_forward", "1"}, {"net.ipv6.conf.all.forwarding", "1"},
		{"net.ipv6.conf.all.disable_ipv6", "1"}, {"net.ipv6.conf.default.disable_ipv6", "1"},
		{"net.core.somaxconn", "9"}, {"net.ipv4.conf.all.rp_filter", "1"}, {"net.ipv4.conf.aaa0.rp_filter", "2"},
	}
	if got := s[len(s)-len(want):]; !slices.Equal(got, want) {
		t.Errorf("got %v\nwant %v", got, want)
	}
}

func TestNATRulesKeepOrRandomizePorts(t *testing.T) {
	if got := natRules(nil); got != "" {
		t.Errorf("got %q for no NAT, want nothing", got)
	}
	got := natRules([]NAT{{Out: "eth0"}, {Out: "eth1", Ports: RandomPorts}})
	for _, want := range []string{
		"oifname \"eth0\" meta nfproto ipv4 masquerade\n",
		"oifname \"eth1\" meta nfproto ipv4 masquerade random,fully-random\n",
		"iifname \"eth1\" ct state established,related accept\n\t\tiifname \"eth1\" drop\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("got\n%s\nwithout %q", got, want)
		}
	}
}

func TestSnapshotsLeaveOutWhatChangesByItself(t *testing.T) {
	before := "# links\n2: eth0@if14: <UP> mtu 1500 \\    link/ether 02:00\n3: tun0@NONE: <UP>\n" +
		"# addresses\n2: eth0    inet 10.4.0.90/16 scope global eth0\\       valid_lft 100sec preferred_lft 50sec\n" +
		"# routes\ndefault via fe80::1 dev eth0 expires 30sec pref medium  \n" +
		"# nftables\n\t\tcounter packets 5 bytes 700 drop\n"
	want := "# links\neth0: <UP> mtu 1500 \\    link/ether 02:00\ntun0: <UP>\n" +
		"# addresses\neth0    inet 10.4.0.90/16 scope global eth0\n" +
		"# routes\ndefault via fe80::1 dev eth0 pref medium\n" +
		"# nftables\n\t\tcounter drop\n"
	if diff := cmp.Diff(want, normalize(before)); diff != "" {
		t.Errorf("normalized (-want +got):\n%s", diff)
	}
}

func TestDiffSnapshotsNamesSectionAndSide(t *testing.T) {
	before := "# links\neth0 up\n# rules\n0: from all\n0: from all\n"
	after := "# links\neth0 up\ntun0 up\n# rules\n0: from all\n"
	want := []string{"+ links: tun0 up", "- rules: 0: from all"}
	slices.Sort(want)
	got := DiffSnapshots(before, after)
	slices.Sort(got)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("difference (-want +got):\n%s", diff)
	}
	if got := DiffSnapshots(after, after); got != nil {
		t.Errorf("got %q for equal snapshots", got)
	}
}

func TestLogKeepsTheEnd(t *testing.T) {
	l := newLog()
	line := []byte(strings.Repeat("x", 1<<20))
	for range 3 * logMax >> 20 {
		l.Write(line) //nolint:errcheck // never fails
	}
	l.Write([]byte("end")) //nolint:errcheck // never fails
	if got := l.String(); len(got) != logMax || !strings.HasSuffix(got, "xend") {
		t.Errorf("got %d bytes that end with %q, want %d and xend", len(got), got[len(got)-4:], logMax)
	}
}

func TestLogWakesReaders(t *testing.T) {
	l := newLog()
	_, changed := l.snapshot()
	select {
	case <-changed:
		t.Fatal("woken without a write")
	default:
	}
	l.Write([]byte("a")) //nolint:errcheck // never fails
	<-changed
}

func TestThroughputReadsWell(t *testing.T) {
	got := []string{
		Throughput{Bytes: 381e6, Duration: 2 * time.Second, Streams: 4}.String(),
		Throughput{Bytes: 25e6, Duration: time.Second, Streams: 1}.String(),
		Throughput{}.String(),
	}
	want := []string{
		"1.52 Gbit/s (4 streams, 381 MB in 2.0 s)", "200.00 Mbit/s (1 stream, 25 MB in 1.0 s)",
		"0.00 Mbit/s (0 streams, 0 MB in 0.0 s)",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("texts (-want +got):\n%s", diff)
	}
}

// FuzzCPU: whatever the kernel writes there, there is an answer or an error.
func FuzzCPU(f *testing.F) {
	f.Add("12 (a) b) c) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100")
	f.Add("12 (cat) S 1")
	f.Add("0 0 0 0 0 0 0 0 0 0 0 0 0") // no name
	f.Add("")
	f.Fuzz(func(t *testing.T, stat string) {
		if got, err := parseCPU(stat); err == nil && (got < 0 || !strings.Contains(stat, ")")) {
			t.Errorf("%q is %v of processor time", stat, got)
		}
	})
}

func TestCPUTimeIsUserAndKernelTime(t *testing.T) {
	got, err := parseCPU("12 (a) b) c) S 1 1 1 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 1 0 100")
	if err != nil || got != 3*time.Second {
		t.Errorf("got %v, %v; want 3s", got, err)
	}
}

// mustReply is the answer to the first request of p, changed by the caller before it is encoded.
func mustReply(t testing.TB, p *pinger, change func(*icmp.Message, *icmp.Echo)) []byte {
	t.Helper()
	packet, err := p.request(0)
	if err != nil {
		t.Fatal(err)
	}
	m, err := icmp.ParseMessage(p.family.protocol, packet)
	if err != nil {
		t.Fatal(err)
	}
	m.Type = p.family.reply
	if change != nil {
		change(m, m.Body.(*icmp.Echo))
	}
	reply, err := m.Marshal(nil)
	if err != nil {
		t.Fatal(err)
	}
	return reply
}

func TestPingCountsOnlyAnswersToItsOwnRequests(t *testing.T) {
	target := netip.MustParseAddr("192.0.2.1")
	from := &net.IPAddr{IP: target.AsSlice()}
	for _, c := range []struct {
		name   string
		from   net.Addr
		change func(*icmp.Message, *icmp.Echo)
		want   int // open targets afterwards
	}{
		{"own", from, nil, 0},
		{"request", from, func(m *icmp.Message, _ *icmp.Echo) { m.Type = family4.request }, 1},
		{"identifier", from, func(_ *icmp.Message, e *icmp.Echo) { e.ID ^= 1 }, 1},
		{"sequence", from, func(_ *icmp.Message, e *icmp.Echo) { e.Seq = 1 }, 1},
		{"cookie", from, func(_ *icmp.Message, e *icmp.Echo) { e.Data[0] ^= 1 }, 1},
		{"short", from, func(_ *icmp.Message, e *icmp.Echo) { e.Data = e.Data[:15] }, 1},
		{"source", &net.IPAddr{IP: net.IPv4(192, 0, 2, 2)}, nil, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := newPinger([]netip.Addr{target})
			p.take(mustReply(t, p, c.change), c.from)
			if p.open != c.want {
				t.Errorf("got %d open targets, want %d", p.open, c.want)
			}
		})
	}
}

func TestPingCountsAnAnswerOnce(t *testing.T) {
	target := netip.MustParseAddr("192.0.2.1")
	p := newPinger([]netip.Addr{target, netip.MustParseAddr("192.0.2.2")})
	reply := mustReply(t, p, nil)
	for range 2 {
		p.take(reply, &net.IPAddr{IP: target.AsSlice()})
	}
	if p.open != 1 || p.rtts[1] >= 0 {
		t.Errorf("got %d open, RTTs %v; want the second target open", p.open, p.rtts)
	}
}

// FuzzPingTake: no packet from outside makes the pinger panic or count below zero.
func FuzzPingTake(f *testing.F) {
	target := netip.MustParseAddr("192.0.2.1")
	p := newPinger([]netip.Addr{target})
	f.Add(mustReply(f, p, nil))
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, packet []byte) {
		p.take(packet, &net.IPAddr{IP: target.AsSlice()})
		if p.open < 0 || p.open > 1 {
			t.Errorf("%d targets open after %x", p.open, packet)
		}
	})
}
