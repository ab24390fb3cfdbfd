//go:build integration

package netlab

import (
	"context"
	"encoding/binary"
	"math"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pairWorld is two hosts on one network, a 10.1.0.1 and b 10.1.0.2; the faults are on the link of a.
func pairWorld() Topology {
	return Topology{
		Nets: []Net{{Name: "wire", Prefixes: prefixes("10.1.0.0/24", "fd01::/64")}},
		Hosts: []HostSpec{
			{Name: "a", Interfaces: []Iface{{Net: "wire", Name: "eth0", Addrs: prefixes("10.1.0.1/24", "fd01::1/64")}}},
			{Name: "b", Interfaces: []Iface{{Net: "wire", Name: "eth0", Addrs: prefixes("10.1.0.2/24", "fd01::2/64")}}},
		},
	}
}

// arrival is a datagram of a stream.
type arrival struct {
	number int
	took   time.Duration // from the sender's write to the receiver's read
}

// stream sends count numbered datagrams of size bytes (UDP payload), in bursts with gaps, and returns those that arrive.
// Both ends are sockets of this program, so they share a clock.
type stream struct {
	from, to    string
	count, size int
	burst       int
	gap         time.Duration
	during      func(number int) // called before each datagram
}

// silence is how long after the last arrival, or the end of sending, a stream is over.
const silence = 500 * time.Millisecond

func (s stream) run(t *testing.T, w *World) []arrival {
	t.Helper()
	receiver := listenWide(t, w.Host(s.to))
	defer receiver.Close()
	sender := listenWide(t, w.Host(s.from))
	defer sender.Close()
	// The first datagram would wait for the address resolution.
	if _, err := w.Host(s.from).Ping(t.Context(), w.Host(s.to).Addr()); err != nil && s.during == nil {
		t.Log(err)
	}
	start := time.Now()
	var wg sync.WaitGroup
	var sendErr error
	wg.Go(func() { sendErr = s.send(sender, receiver.LocalAddr(), start) })
	sent := make(chan struct{})
	go func() { wg.Wait(); close(sent) }() // ends with the sender
	got := s.receive(receiver, start, sent)
	<-sent
	if sendErr != nil {
		t.Fatal(sendErr)
	}
	return got
}

func (s stream) send(c *net.UDPConn, to net.Addr, start time.Time) error {
	tick := time.NewTicker(max(s.gap, time.Microsecond))
	defer tick.Stop()
	data := make([]byte, max(s.size, 12))
	for i := range s.count {
		if s.gap > 0 && i%max(s.burst, 1) == 0 {
			<-tick.C
		}
		if s.during != nil {
			s.during(i)
		}
		binary.BigEndian.PutUint32(data, uint32(i))
		binary.BigEndian.PutUint64(data[4:], uint64(time.Since(start)))
		if _, err := c.WriteTo(data, to); err != nil {
			return err
		}
	}
	return nil
}

func (s stream) receive(c *net.UDPConn, start time.Time, sent <-chan struct{}) []arrival {
	var got []arrival
	buf := make([]byte, 2000)
	for {
		c.SetReadDeadline(time.Now().Add(silence)) //nolint:errcheck // c is open
		n, _, err := c.ReadFrom(buf)
		now := time.Since(start)
		if err != nil {
			select {
			case <-sent:
				return got
			default:
				continue
			}
		}
		if n >= 12 {
			got = append(got, arrival{int(binary.BigEndian.Uint32(buf)), now - time.Duration(binary.BigEndian.Uint64(buf[4:]))})
		}
	}
}

// listenWide is a socket that a burst does not overflow and that never fragments.
func listenWide(t *testing.T, h *Host) *net.UDPConn {
	t.Helper()
	c, err := h.ListenPacket(t.Context(), "udp4", netip.AddrPortFrom(h.Addr(), 0).String())
	if err != nil {
		t.Fatal(err)
	}
	u := c.(*net.UDPConn)
	raw, err := u.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var errs [2]error
	err = raw.Control(func(fd uintptr) {
		errs[0] = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE)
		if unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20) != nil {
			errs[1] = u.SetReadBuffer(4 << 20) // as much as an ordinary user gets
		}
	})
	if err != nil || errs[0] != nil || errs[1] != nil {
		t.Fatal(err, errs)
	}
	return u
}

func mustSetLink(t *testing.T, w *World, out, in Link) {
	t.Helper()
	if err := w.Host("a").SetLink(t.Context(), "eth0", out, in); err != nil {
		t.Fatal(err)
	}
	if o, i := w.Host("a").Link("eth0"); o != out || i != in {
		t.Errorf("got %v and %v, want %v and %v", o, i, out, in)
	}
}

// The tolerances of delays: a forwarder never lets a packet go early, beyond what clocks differ by, and is late by as
// much as a busy machine makes any program late. The median over many packets bears that.
const (
	early = 200 * time.Microsecond
	late  = 4 * time.Millisecond
)

// quantile of the times that datagrams took, q from 0 to 1.
func quantile(got []arrival, q float64) time.Duration {
	var took []time.Duration
	for _, a := range got {
		took = append(took, a.took)
	}
	slices.Sort(took)
	return took[int(q*float64(len(took)-1))]
}

func inOrder(got []arrival) bool {
	return slices.IsSortedFunc(got, func(a, b arrival) int { return a.number - b.number })
}

func TestLinkDelaysEachDirectionByItsOwn(t *testing.T) {
	w := mustStart(t, pairWorld())
	out, in := 20*time.Millisecond, 55*time.Millisecond
	mustSetLink(t, w, Link{Delay: out}, Link{Delay: in})
	for _, c := range []struct {
		from, to string
		want     time.Duration
	}{{"a", "b", out}, {"b", "a", in}} {
		got := stream{from: c.from, to: c.to, count: 300, gap: 2 * time.Millisecond}.run(t, w)
		if len(got) != 300 || !inOrder(got) {
			t.Errorf("%s to %s: %d datagrams arrive, in order %v; want all 300 in order", c.from, c.to, len(got), inOrder(got))
		}
		low, middle, high := quantile(got, 0), quantile(got, 0.5), quantile(got, 1)
		t.Logf("%s to %s: delay %v: minimum %v, median %v, maximum %v", c.from, c.to, c.want, low, middle, high)
		if low < c.want-early || middle > c.want+late {
			t.Errorf("%s to %s: minimum %v, median %v, want %v", c.from, c.to, low, middle, c.want)
		}
	}
	best := time.Hour
	for range 20 {
		rtt, err := w.Host("b").Ping(t.Context(), w.Host("a").Addr6())
		if err != nil {
			t.Fatal(err)
		}
		best = min(best, rtt)
	}
	t.Logf("best RTT over IPv6: %v", best)
	if best < out+in-2*early || best > out+in+2*late {
		t.Errorf("best RTT %v, want %v", best, out+in)
	}
}

func TestLinkJitterSpreadsDelaysAndKeepsOrder(t *testing.T) {
	w := mustStart(t, pairWorld())
	mustSetLink(t, w, Link{Delay: 30 * time.Millisecond, Jitter: 10 * time.Millisecond}, Link{})
	got := stream{from: "a", to: "b", count: 150, gap: 20 * time.Millisecond}.run(t, w)
	if len(got) != 150 || !inOrder(got) {
		t.Errorf("%d datagrams arrive, in order %v; want all 150 in order", len(got), inOrder(got))
	}
	low, middle, spread := quantile(got, 0), quantile(got, 0.5), quantile(got, 0.9)-quantile(got, 0.1)
	t.Logf("minimum %v, median %v, spread of the middle 80 %% %v", low, middle, spread)
	if low < 20*time.Millisecond-early || middle < 27*time.Millisecond || middle > 33*time.Millisecond+late {
		t.Errorf("minimum %v, median %v, want at least 20ms and about 30ms", low, middle)
	}
	if spread < 11*time.Millisecond || spread > 20*time.Millisecond+late {
		t.Errorf("the middle 80 %% spread over %v, want about 16ms", spread)
	}
}

// mustLose checks a count of lost packets against the binomial distribution: five standard deviations are missed once
// in 1.7 million runs.
func mustLose(t *testing.T, what string, lost, count int, share float64) {
	t.Helper()
	mean := float64(count) * share
	bound := 5 * math.Sqrt(mean*(1-share))
	t.Logf("%s: %d of %d, %.2f %%", what, lost, count, 100*float64(lost)/float64(count))
	if math.Abs(float64(lost)-mean) > bound {
		t.Errorf("%s: %d of %d, want %.0f ± %.0f", what, lost, count, mean, bound)
	}
}

func TestLinkLosesItsShareOfEachDirection(t *testing.T) {
	w := mustStart(t, pairWorld())
	const count = 10_000
	flood := func(from, to string) int {
		return count - len(stream{from: from, to: to, count: count, size: 100, burst: 25, gap: time.Millisecond}.run(t, w))
	}
	for _, delay := range []time.Duration{0, 5 * time.Millisecond} { // dropping by the kernel alone, and with forwarders
		mustSetLink(t, w, Link{Loss: 0.01, Delay: delay}, Link{Loss: 0.1})
		mustLose(t, "lost out, delay "+delay.String(), flood("a", "b"), count, 0.01)
		mustLose(t, "lost in, delay "+delay.String(), flood("b", "a"), count, 0.1)
		mustSetLink(t, w, Link{Delay: delay}, Link{})
		if lost := flood("a", "b"); lost != 0 {
			t.Errorf("lost %d of %d without loss, delay %v", lost, count, delay)
		}
	}
}

func TestLinkReordersItsShare(t *testing.T) {
	w := mustStart(t, pairWorld())
	mustSetLink(t, w, Link{Delay: 2 * time.Millisecond, Reorder: 0.05}, Link{})
	const count = 10_000
	got := stream{from: "a", to: "b", count: count, size: 100, burst: 25, gap: time.Millisecond}.run(t, w)
	if len(got) != count {
		t.Errorf("%d of %d datagrams arrive", len(got), count)
	}
	highest, overtaken := -1, 0
	for _, a := range got {
		if a.number < highest {
			overtaken++
		}
		highest = max(highest, a.number)
	}
	mustLose(t, "overtaken", overtaken, count, 0.05)
	if back := (stream{from: "b", to: "a", count: 1000, burst: 25, gap: time.Millisecond}).run(t, w); len(back) != 1000 || !inOrder(back) {
		t.Errorf("the other direction: %d of 1000 datagrams, in order %v", len(back), inOrder(back))
	}
}

func TestLinkHasARate(t *testing.T) {
	w := mustStart(t, pairWorld())
	const rate = 8e6
	mustSetLink(t, w, Link{Rate: rate}, Link{})
	// A burst of 4 Mbit, while the queue is empty: a tenth of a second of it fits into the queue.
	burst := stream{from: "a", to: "b", count: 350, size: 1472}.run(t, w)
	if len(burst) < 60 || len(burst) > 100 { // 0.1 s × 8 Mbit/s are 66 frames; some leave while others come
		t.Errorf("%d of 350 datagrams of a burst pass, want what fits into the queue, 66, and little more", len(burst))
	}
	got, err := w.Throughput(t.Context(), ThroughputOptions{From: "a", To: "b", Duration: 2 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("limited to 8 Mbit/s: %v", got)
	if bits := got.BitsPerSecond(); bits > rate || bits < 0.8*rate { // 1448 of 1514 bytes are payload: 7.65 Mbit/s
		t.Errorf("TCP: %v, want a bit less than 8 Mbit/s", got)
	}
	back, err := w.Throughput(t.Context(), ThroughputOptions{From: "b", To: "a", Duration: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("the other direction, through a forwarder without limit: %v", back)
	if back.BitsPerSecond() < 5*rate {
		t.Errorf("the other direction: %v", back)
	}
}

func TestLinkDropsWhatIsLongerThanItsMTU(t *testing.T) {
	w := mustStart(t, pairWorld())
	passes := func(from, to string, payload int) bool {
		return len(stream{from: from, to: to, count: 3, size: payload}.run(t, w)) == 3
	}
	for _, delay := range []time.Duration{0, time.Millisecond} {
		mustSetLink(t, w, Link{MTU: 1300, Delay: delay}, Link{MTU: 1400})
		for _, c := range []struct {
			from, to string
			mtu      int
		}{{"a", "b", 1300}, {"b", "a", 1400}} {
			const headers = 28 // IPv4 and UDP
			if !passes(c.from, c.to, c.mtu-headers) {
				t.Errorf("%s to %s, delay %v: a packet of %d bytes does not pass", c.from, c.to, delay, c.mtu)
			}
			if passes(c.from, c.to, c.mtu-headers+1) {
				t.Errorf("%s to %s, delay %v: a packet of %d bytes passes", c.from, c.to, delay, c.mtu+1)
			}
		}
		// Hosts that know better get through, with segmentation left to the kernel; others fall into the hole.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		if err := w.CheckTCP(ctx, "a", "b", netip.Addr{}, 100<<10); err == nil {
			t.Errorf("delay %v: TCP passes with segments of 1500 bytes", delay)
		}
		cancel()
		for host, to := range map[string]string{"a": "10.1.0.2", "b": "10.1.0.1"} {
			mustRun(t, w.Host(host), "ip", "route", "replace", to, "dev", "eth0", "mtu", "1300")
		}
		ctx, cancel = context.WithTimeout(t.Context(), 20*time.Second)
		if err := w.CheckTCP(ctx, "a", "b", netip.Addr{}, 1<<20); err != nil {
			t.Errorf("delay %v: TCP with small segments: %v", delay, err)
		}
		cancel()
		for host, to := range map[string]string{"a": "10.1.0.2", "b": "10.1.0.1"} {
			mustRun(t, w.Host(host), "ip", "route", "del", to)
		}
	}
}

func TestLinkChangesWhilePacketsFlow(t *testing.T) {
	w := mustStart(t, pairWorld())
	mustSetLink(t, w, Link{Delay: 10 * time.Millisecond}, Link{})
	links := map[int]Link{100: {Delay: 60 * time.Millisecond}, 200: {Delay: time.Millisecond}, 300: {Rate: 1e9}, 400: {MTU: 1400}}
	got := stream{from: "a", to: "b", count: 500, gap: time.Millisecond, during: func(n int) {
		if l, ok := links[n]; ok {
			if err := w.Host("a").SetLink(t.Context(), "eth0", l, Link{}); err != nil {
				t.Error(err)
			}
		}
	}}.run(t, w)
	if len(got) != 500 || !inOrder(got) {
		t.Fatalf("%d datagrams arrive, in order %v; want all 500 in order", len(got), inOrder(got))
	}
	for _, c := range []struct {
		from, to int
		want     time.Duration
	}{{0, 100, 10 * time.Millisecond}, {100, 200, 60 * time.Millisecond}, {300, 400, 0}, {400, 500, 0}} {
		middle := quantile(got[c.from+20:c.to], 0.5) // the first of them may wait for those before
		t.Logf("datagrams %d to %d: median %v", c.from, c.to, middle)
		if middle < c.want-early || middle > c.want+late {
			t.Errorf("datagrams %d to %d took %v, want %v", c.from, c.to, middle, c.want)
		}
	}
}

func TestCutLinkPassesNothingUntilItIsMended(t *testing.T) {
	topology := pairWorld()
	topology.Host("a").Interfaces[0].Out = Cut
	w := mustStart(t, topology)
	reaches := func() bool {
		m, err := w.PingAll(t.Context(), PingOptions{Timeout: 600 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		return m.Reached() == 2
	}
	if reaches() {
		t.Error("the link that was declared as cut passes packets")
	}
	mustSetLink(t, w, Link{}, Link{})
	if !reaches() {
		t.Error("the mended link passes none")
	}
	mustSetLink(t, w, Link{Delay: time.Millisecond}, Cut)
	if reaches() {
		t.Error("the link that was cut in one direction passes packets both ways")
	}
	mustSetLink(t, w, Link{Delay: time.Millisecond}, Link{})
	if !reaches() {
		t.Error("the link that was mended again passes none")
	}
}

func TestLinkCarriesOffloadedTrafficUnharmed(t *testing.T) {
	w := mustStart(t, pairWorld())
	for _, l := range []Link{{}, {MTU: 1500}, {Delay: 100 * time.Microsecond}} {
		mustSetLink(t, w, l, l)
		for _, to := range []netip.Addr{w.Host("b").Addr(), w.Host("b").Addr6()} {
			if err := w.CheckTCP(t.Context(), "a", "b", to, 4<<20); err != nil {
				t.Errorf("%v: %v", l, err)
			}
		}
		got, err := w.Throughput(t.Context(), ThroughputOptions{From: "a", To: "b", Duration: 500 * time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("%v: %v", l, got)
		if got.BitsPerSecond() < 50e6 {
			t.Errorf("%v: %v", l, got)
		}
	}
}

// below describes what the world's own namespace has: devices with their bridges, and nftables.
func below(t *testing.T, w *World) string {
	t.Helper()
	h := &Host{world: w, spec: HostSpec{Name: "base"}, ns: w.base}
	c := h.Command(t.Context(), "sh", "-c", "ip -o link | sed 's/@.*master/ master/; s/^[0-9]*: //; s/ state.*//' | sort; nft list ruleset")
	c.Dir = "/"
	out, err := c.Output()
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

func TestMendedLinkLeavesNothingBehind(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	w := mustStart(t, pairWorld())
	before, hosts := below(t, w), []string{mustSnapshot(t, w.Host("a")), mustSnapshot(t, w.Host("b"))}
	for _, l := range []Link{{Loss: 0.5}, {Delay: time.Millisecond}} {
		mustSetLink(t, w, l, Link{MTU: 1000})
		if below(t, w) == before {
			t.Errorf("%v changes nothing", l)
		}
		for i, name := range []string{"a", "b"} {
			if diff := DiffSnapshots(hosts[i], mustSnapshot(t, w.Host(name))); diff != nil {
				t.Errorf("%v shows on host %s:\n%s", l, name, strings.Join(diff, "\n"))
			}
		}
		mustSetLink(t, w, Link{}, Link{})
		if after := below(t, w); after != before {
			t.Errorf("after %v:\n%s\nbefore:\n%s", l, after, before)
		}
	}
	mustSetLink(t, w, Link{Delay: time.Second}, Link{Delay: time.Second})
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	awaitTrue(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
	if err := w.Host("a").SetLink(t.Context(), "eth0", Link{}, Link{}); err != ErrClosed {
		t.Errorf("after close: got %v, want %v", err, ErrClosed)
	}
}

func TestSetLinkRefusesNonsense(t *testing.T) {
	w := mustStart(t, pairWorld())
	before := below(t, w)
	err := w.Host("a").SetLink(t.Context(), "eth9", Link{Loss: -1}, Link{Rate: 3})
	for _, want := range []string{"host a interface eth9: set link: ", "Loss -1", "Rate 3", "no such interface"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwithout %q", err, want)
		}
	}
	if after := below(t, w); after != before {
		t.Errorf("the world changed:\n%s", after)
	}
}
