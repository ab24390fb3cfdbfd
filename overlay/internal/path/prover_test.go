package path

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

func TestPathConvergesToFastestAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820", "198.51.100.2:51820", "[2001:db8::2]:51820")
		n.setDelay("198.51.100.1", 40*time.Millisecond)
		n.setDelay("198.51.100.2", 10*time.Millisecond)
		n.setDelay("2001:db8::2", 25*time.Millisecond)
		n.run(a)
		a.knows(b)
		pass(5 * time.Second)
		got := a.path(b)
		if got.Addr != b.addrs[1] || !got.Alive || got.RTT != 20*time.Millisecond {
			t.Errorf("path %+v, want %v with 20ms", got, b.addrs[1])
		}
		if diff := cmp.Diff([]trust.BootID{b.boot}, a.startsTold()); diff != "" {
			t.Errorf("starts told (-want +got):\n%s", diff)
		}
		for _, mine := range a.observedTold() {
			if mine != a.addrs[0] {
				t.Errorf("observed address %v, want %v", mine, a.addrs[0])
			}
		}
		if len(a.observedTold()) != 3 {
			t.Errorf("told %d observed addresses, want one per way asked: 3", len(a.observedTold()))
		}
	})
}

func TestPathMovesForClearGainsOnly(t *testing.T) {
	for _, tt := range []struct {
		name        string
		path, spare time.Duration // one way
		moves       bool
	}{
		{"same", 20 * time.Millisecond, 20 * time.Millisecond, false},
		{"gain too small a share", 20 * time.Millisecond, 17 * time.Millisecond, false},
		{"gain too small in time", 1500 * time.Microsecond, 600 * time.Microsecond, false},
		{"gain clear", 20 * time.Millisecond, 15 * time.Millisecond, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				a := n.add(1, Config{}, "192.0.2.1:51820")
				b := n.add(2, Config{}, "198.51.100.1:51820", "198.51.100.2:51820")
				n.setDelay("198.51.100.1", tt.path)
				n.setDelay("198.51.100.2", tt.spare)
				n.run(a)
				a.knows(b, "198.51.100.1:51820")
				pass(10 * time.Second)
				if got := a.path(b).Addr; got != b.addrs[0] {
					t.Fatalf("path %v before the spare is known, want %v", got, b.addrs[0])
				}
				a.knows(b)
				pass(5 * time.Minute)
				if moved := a.path(b).Addr == b.addrs[1]; moved != tt.moves {
					t.Errorf("moved %t, want %t; addresses %+v", moved, tt.moves, a.prover.Addresses(b.id))
				}
				if got, most := len(a.changed()), 2; got > most {
					t.Errorf("path changed %d times, want at most %d", got, most)
				}
			})
		})
	}
}

// One lucky probe is not enough to move.
func TestPathDoesNotMoveForOneFastReply(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820", "198.51.100.2:51820")
		n.setDelay("198.51.100.1", 20*time.Millisecond)
		n.setDelay("198.51.100.2", 2*time.Millisecond)
		n.run(a)
		a.knows(b, "198.51.100.1:51820")
		pass(10 * time.Second)
		a.knows(b)
		pass(500 * time.Millisecond)
		n.setDelay("198.51.100.2", 200*time.Millisecond)
		pass(time.Minute)
		if got := a.changed(); len(got) != 1 || a.path(b).Addr != b.addrs[0] {
			t.Errorf("changes %+v, want to stay at %v", got, b.addrs[0])
		}
	})
}

func TestPathFailsOverThreeSecondsAfterFirstMiss(t *testing.T) {
	for _, kicked := range []bool{false, true} {
		t.Run(fmt.Sprintf("kicked=%t", kicked), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				a := n.add(1, Config{}, "192.0.2.1:51820")
				b := n.add(2, Config{}, "198.51.100.1:51820", "198.51.100.2:51820")
				n.setDelay("198.51.100.1", 10*time.Millisecond)
				n.setDelay("198.51.100.2", 50*time.Millisecond)
				n.run(a)
				a.knows(b)
				pass(time.Minute)
				if got := a.path(b).Addr; got != b.addrs[0] {
					t.Fatalf("path %v, want %v", got, b.addrs[0])
				}
				n.setDark("198.51.100.1", true)
				dark := time.Now()
				limit := pathLeast + 3100*time.Millisecond
				if kicked {
					limit = 3100 * time.Millisecond
					a.prover.Kick(b.id)
				}
				for a.path(b).Addr != b.addrs[1] || !a.path(b).Alive {
					if time.Since(dark) > limit {
						t.Fatalf("no other path %v after the first went dark: %+v", time.Since(dark), a.prover.Addresses(b.id))
					}
					pass(50 * time.Millisecond)
				}
				t.Logf("failed over after %v", time.Since(dark))
				// And back, once the fast one answers again.
				n.setDark("198.51.100.1", false)
				pass(time.Minute)
				if got := a.path(b).Addr; got != b.addrs[0] {
					t.Errorf("path %v after the fast address came back, want %v", got, b.addrs[0])
				}
			})
		})
	}
}

func TestDeadPeerDoesNotFlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820", "198.51.100.2:51820")
		n.setDelay("198.51.100.1", 10*time.Millisecond)
		n.setDelay("198.51.100.2", 50*time.Millisecond)
		n.run(a)
		a.knows(b)
		pass(time.Minute)
		before := len(a.changed())
		n.setDark("198.51.100.1", true)
		n.setDark("198.51.100.2", true)
		pass(3 * time.Hour)
		changes := a.changed()[before:]
		if len(changes) != 1 || changes[0].path.Alive || !changes[0].ok || changes[0].path.Addr != b.addrs[0] {
			t.Fatalf("changes %+v while the peer was dead, want one: not alive at %v", changes, b.addrs[0])
		}
		n.setDark("198.51.100.1", false)
		n.setDark("198.51.100.2", false)
		a.prover.Kick(b.id)
		pass(time.Second)
		changes = a.changed()[before+1:]
		if len(changes) != 1 || !changes[0].path.Alive || changes[0].path.Addr != b.addrs[0] {
			t.Errorf("changes %+v after the peer came back, want one: alive at %v", changes, b.addrs[0])
		}
	})
}

// At most three probes a second from a whole mesh, and one after two days.
func TestSilentAddressIsAskedLessAndLess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const known = 100
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		a.strangers(known - 1)
		a.knows(b)
		pass(time.Minute)
		n.mu.Lock()
		delete(n.hosts, b.addrs[0]) // somebody else's now; datagrams arrive all the same
		n.mu.Unlock()
		pass(20 * time.Second)
		for _, tt := range []struct {
			during      time.Duration
			least, most int
		}{
			{time.Minute, 4, 12},
			{58 * time.Minute, 58 * 2, 58*2*11/10 + 8},
			{46 * time.Hour, 46 * 120, 46 * 120 * 11 / 10},
			{time.Hour, 0, 130}, // when the two days end
			{10 * time.Hour, 10 * 30, 10 * 30 * 11 / 10},
		} {
			got := n.arrivals("198.51.100.1", tt.during)
			if got.probes > tt.most || got.probes < tt.least {
				t.Errorf("%d probes in %v, want %d to %d", got.probes, tt.during, tt.least, tt.most)
			}
		}
	})
}

// totals is what arrived at an address during some time.
type totals struct{ probes, bytes, longest int }

// arrivals counts what arrives at addr in the time to come.
func (n *network) arrivals(addr string, during time.Duration) totals {
	from := time.Now()
	pass(during)
	n.mu.Lock()
	defer n.mu.Unlock()
	var sum totals
	for _, r := range n.received[netip.MustParseAddr(addr)] {
		if r.at.After(from) {
			sum.probes++
			sum.bytes += r.size
			sum.longest = max(sum.longest, r.size)
		}
	}
	return sum
}

func TestLyingRecordCostsVictimLittle(t *testing.T) {
	const gateways = 100
	victim := "203.0.113.9"
	eight := func(round int) (cs []Candidate) {
		for port := range 8 {
			cs = append(cs, Candidate{netip.AddrPortFrom(netip.MustParseAddr(victim), uint16(1000+8*round+port)), Record})
		}
		return cs
	}
	for _, tt := range []struct {
		name          string
		lie           func(round int) []Candidate // the record in every second
		kick          bool
		minute, later int // most probes at the victim in the first minute, and in the five after it
	}{
		{
			// Five tries each, then pauses that grow to ten minutes.
			"one address", func(int) []Candidate { return eight(0)[:1] }, false,
			gateways * 7, gateways * 4,
		},
		{
			// Eight times as much, slowed by the limit per destination.
			"eight ports", func(int) []Candidate { return eight(0) }, false,
			gateways * 56, gateways * 32,
		},
		{
			// New addresses in every second: bounded by what one peer may cause.
			"new ports every second", eight, false,
			gateways * (60 + 5), gateways * (80 + 0.15*300),
		},
		{
			"kicked every second", func(int) []Candidate { return eight(0)[:1] }, true,
			gateways * (5 + 6), gateways * (80 + 0.15*300),
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				liar := gatewayID(999)
				var hosts []*host
				for i := range gateways {
					hosts = append(hosts, n.add(i, Config{}, fmt.Sprintf("192.0.2.%d:51820", i+1)))
				}
				n.run(hosts...)
				lie := func(seconds int) (sum totals) {
					for i := range seconds {
						for _, h := range hosts {
							h.prover.SetPeer(liar, tt.lie(i))
							if tt.kick {
								h.prover.Kick(liar)
							}
						}
						got := n.arrivals(victim, time.Second)
						sum.probes += got.probes
						sum.bytes += got.bytes
						sum.longest = max(sum.longest, got.longest)
					}
					return sum
				}
				first, later := lie(60), lie(300)
				t.Logf("victim of %d gateways: %d bytes in the first minute, %d in the five after it", gateways, first.bytes, later.bytes)
				if first.probes == 0 || first.probes > tt.minute {
					t.Errorf("%d probes in the first minute, want 1 to %d", first.probes, tt.minute)
				}
				if later.probes > tt.later {
					t.Errorf("%d probes in the five minutes after it, want at most %d", later.probes, tt.later)
				}
				if longest := max(first.longest, later.longest); longest > 128 {
					t.Errorf("a probe of %d bytes, want at most 128", longest)
				}
			})
		})
	}
}

// recorder is a Sender that nobody answers.
type recorder struct {
	mu   sync.Mutex // guards list
	list []sentProbe
}

func (r *recorder) sent() []sentProbe {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.list)
}

type sentProbe struct {
	peer      trust.GatewayID
	to        netip.AddrPort
	challenge [16]byte
	size      int
	at        time.Time
}

func (r *recorder) SendProbe(peer trust.GatewayID, to netip.AddrPort, challenge [16]byte, size int) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.list = append(r.list, sentProbe{peer, to, challenge, size, time.Now()})
	return nil
}

// most is the largest number of probes within any window of that length.
func (r *recorder) most(window time.Duration, match func(sentProbe) bool) int {
	most, first := 0, 0
	var times []time.Time
	for _, s := range r.sent() {
		if !match(s) {
			continue
		}
		times = append(times, s.at)
		for s.at.Sub(times[first]) >= window {
			first++
		}
		most = max(most, len(times)-first)
	}
	return most
}

func TestBudgetPerAddressIsSharedByPeers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		p := New(Config{Send: &r})
		go func() { _ = p.Run(t.Context()) }()
		to := netip.MustParseAddr("203.0.113.9")
		for i := range 40 {
			p.SetPeer(gatewayID(i), []Candidate{{netip.AddrPortFrom(to, uint16(1000+i)), Record}})
		}
		pass(time.Minute)
		all := func(sentProbe) bool { return true }
		if got := r.most(10*time.Second, all); got != 5+10 && got != 5+9 {
			t.Errorf("%d probes to one address within 10s, want burst 5 and 1/s", got)
		}
		firsts := make(map[trust.GatewayID]bool)
		for _, s := range r.sent()[:40] {
			firsts[s.peer] = true
		}
		if len(firsts) != 40 {
			t.Errorf("the first 40 probes went to %d peers, want to each one", len(firsts))
		}
	})
}

func TestBudgetInTotalIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		p := New(Config{Send: &r})
		go func() { _ = p.Run(t.Context()) }()
		const peers = 400
		for i := range peers {
			addr := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
			p.SetPeer(gatewayID(i), []Candidate{{netip.AddrPortFrom(addr, 51820), Record}})
		}
		pass(20 * time.Second)
		all := func(sentProbe) bool { return true }
		if got := r.most(time.Second, all); got > 101 || got < 90 {
			t.Errorf("%d probes within a second, want about burst 50 and 50/s", got)
		}
		if got := r.most(10*time.Second, all); got > 551 || got < 540 {
			t.Errorf("%d probes within 10s, want about 550", got)
		}
		firsts := make(map[trust.GatewayID]bool)
		for _, s := range r.sent()[:peers] {
			firsts[s.peer] = true
		}
		if len(firsts) != peers {
			t.Errorf("the first %d probes went to %d peers, want to each one", peers, len(firsts))
		}
	})
}

func TestAddressesThatAreNeverAsked(t *testing.T) {
	refusePrefix := netip.MustParsePrefix("10.8.0.0/16")
	allowed := func(c Candidate) bool { return !refusePrefix.Contains(c.Addr.Addr()) }
	for _, tt := range []struct {
		addr   string
		source Source
		asked  bool
	}{
		{"198.51.100.1:51820", Record, true},
		{"[2001:db8::1]:51820", Record, true},
		{"[::ffff:198.51.100.1]:51820", Record, true}, // as the IPv4 address that it is
		{"198.51.100.1:0", Record, false},
		{"0.0.0.0:51820", Configured, false},
		{"[::]:51820", Configured, false},
		{"127.0.0.1:51820", Record, false},
		{"[::1]:51820", Observed, false},
		{"[::ffff:127.0.0.1]:51820", Record, false},
		{"127.0.0.1:51820", Configured, true},
		{"224.0.0.1:51820", Configured, false},
		{"[ff02::1]:51820", Configured, false},
		{"255.255.255.255:51820", Configured, false},
		{"[fe80::1]:51820", Configured, false},
		{"10.8.3.4:51820", Record, false},
		{"[::ffff:10.8.3.4]:51820", Record, false},
	} {
		t.Run(tt.addr+" "+tt.source.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r recorder
				p := New(Config{Send: &r, Allowed: allowed})
				go func() { _ = p.Run(t.Context()) }()
				p.SetPeer(gatewayID(1), []Candidate{{netip.MustParseAddrPort(tt.addr), tt.source}})
				pass(time.Second)
				if asked := len(r.sent()) > 0; asked != tt.asked {
					t.Errorf("asked %t, want %t", asked, tt.asked)
				}
				if refused := p.Counters().RefusedAddress == 1; refused == tt.asked {
					t.Errorf("counted as refused %t, want %t", refused, !tt.asked)
				}
			})
		})
	}
}

func TestAddressThatIsGrantedLaterIsNotAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		var granted atomic.Bool
		p := New(Config{Send: &r, Allowed: func(Candidate) bool { return !granted.Load() }})
		go func() { _ = p.Run(t.Context()) }()
		p.SetPeer(gatewayID(1), []Candidate{{netip.MustParseAddrPort("10.1.2.3:1"), Record}})
		pass(100 * time.Millisecond)
		before := len(r.sent())
		granted.Store(true)
		pass(time.Hour)
		if before == 0 || len(r.sent()) != before {
			t.Errorf("%d probes before and %d after the address was refused, want some and none", before, len(r.sent())-before)
		}
	})
}

func TestRepliesThatDoNotCount(t *testing.T) {
	other := netip.MustParseAddrPort("203.0.113.9:51820")
	for _, tt := range []struct {
		name  string
		forge func(r *reply)
		wait  time.Duration
		count func(Counters) uint64
	}{
		{"invented challenge", func(r *reply) { r.challenge[3] ^= 1 }, 0, func(c Counters) uint64 { return c.Unknown }},
		{"by another identity", func(r *reply) { r.peer = gatewayID(77) }, 0, func(c Counters) uint64 { return c.WrongPeer }},
		{"after five seconds", func(*reply) {}, 5*time.Second + time.Millisecond, func(c Counters) uint64 { return c.Unknown }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var r recorder
				var changes atomic.Int32
				p := New(Config{Send: &r, OnChange: func(trust.GatewayID, Path, bool) { changes.Add(1) }})
				go func() { _ = p.Run(t.Context()) }()
				id, at := gatewayID(1), netip.MustParseAddrPort("198.51.100.1:51820")
				p.SetPeer(id, []Candidate{{at, Record}})
				pass(10 * time.Millisecond)
				answer := reply{from: at, peer: id, challenge: r.sent()[0].challenge, boot: trust.BootID{1}, observed: other}
				tt.forge(&answer)
				pass(tt.wait)
				if p.Reply(answer.from, answer.peer, answer.challenge, answer.boot, answer.observed) {
					t.Error("reply counts")
				}
				pass(100 * time.Millisecond)
				if _, ok := p.Path(id); ok || changes.Load() > 0 {
					t.Errorf("path proven %t, told %d times", ok, changes.Load())
				}
				if got := tt.count(p.Counters()); got != 1 {
					t.Errorf("counted %d times, want once: %+v", got, p.Counters())
				}
			})
		})
	}
}

// A host with several addresses answers from another than was asked: what is
// proven is where the challenge went, and the other address gains nothing.
func TestReplyProvesTheAddressThatWasAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		p := New(Config{Send: &r})
		go func() { _ = p.Run(t.Context()) }()
		id, at := gatewayID(1), netip.MustParseAddrPort("198.51.100.1:51820")
		other := netip.MustParseAddrPort("203.0.113.9:51820")
		p.SetPeer(id, []Candidate{{at, Record}})
		pass(10 * time.Millisecond)
		if !p.Reply(other, id, r.sent()[0].challenge, trust.BootID{1}, other) {
			t.Fatal("reply does not count")
		}
		pass(time.Minute)
		if got, ok := p.Path(id); !ok || got.Addr != at {
			t.Errorf("path %+v, %t; want %v", got, ok, at)
		}
		for _, s := range r.sent() {
			if s.to != at {
				t.Errorf("probe to %v", s.to)
			}
		}
		if got := p.Counters().OtherSource; got != 1 {
			t.Errorf("counted %d times, want once", got)
		}
	})
}

func TestReplyIsNotTakenTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		a.knows(b)
		pass(100 * time.Millisecond)
		if a.deliver(a.seen()[0]) {
			t.Error("a reply counts twice")
		}
		n.setDark("198.51.100.1", true)
		pass(20 * time.Second)
		if a.path(b).Alive {
			t.Fatal("path alive without replies")
		}
		replies := a.seen()
		for _, r := range replies {
			if a.deliver(r) {
				t.Error("replayed reply counts")
			}
		}
		if a.path(b).Alive || len(replies) == 0 {
			t.Errorf("path alive %t after %d replayed replies", a.path(b).Alive, len(replies))
		}
	})
}

func TestLateReplyStillCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.setDelay("198.51.100.1", 1200*time.Millisecond)
		n.run(a)
		a.knows(b)
		pass(time.Minute)
		if got := a.path(b); !got.Alive || got.RTT != 2400*time.Millisecond {
			t.Errorf("path %+v over a link of 2.4s, want it alive", got)
		}
		if got := len(a.changed()); got != 1 {
			t.Errorf("%d changes, want 1: %+v", got, a.changed())
		}
		if got := a.prover.Counters().Misses; got != 0 {
			t.Errorf("%d misses on a slow link without loss", got)
		}
	})
}

func TestReplyIsTooLateWithoutRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		p := New(Config{Send: &r})
		ctx, cancel := context.WithCancel(t.Context())
		go func() { _ = p.Run(ctx) }() // ends with ctx, so that nothing expires
		at := netip.MustParseAddrPort("198.51.100.1:51820")
		p.SetPeer(gatewayID(1), []Candidate{{at, Record}})
		pass(10 * time.Millisecond)
		cancel()
		pass(challengeLife)
		if p.Reply(at, gatewayID(1), r.sent()[0].challenge, trust.BootID{1}, at) {
			t.Error("a reply after more than five seconds counts")
		}
	})
}

func TestNewStartIsToldOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820", "198.51.100.2:51820")
		n.setDelay("198.51.100.2", 300*time.Millisecond)
		n.run(a)
		first := b.boot
		a.knows(b)
		pass(30 * time.Second)
		// The answer of the old start, on the slow way, arrives after one of the new.
		a.prover.Kick(b.id)
		pass(310 * time.Millisecond)
		b.restart(trust.BootID{2, 2})
		a.prover.Kick(b.id)
		pass(time.Minute)
		if diff := cmp.Diff([]trust.BootID{first, {2, 2}}, a.startsTold()); diff != "" {
			t.Errorf("starts told (-want +got):\n%s", diff)
		}
	})
}

func TestTranslatedGatewaysMeet(t *testing.T) {
	for _, late := range []time.Duration{0, 700 * time.Millisecond, 2 * time.Second, 10 * time.Second} {
		t.Run(late.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				a := n.add(1, Config{}, "192.0.2.1:51820")
				b := n.add(2, Config{}, "198.51.100.1:51820")
				a.nat = &nat{opened: make(map[netip.AddrPort]time.Time)}
				b.nat = &nat{opened: make(map[netip.AddrPort]time.Time)}
				n.run(a, b)
				a.knows(b)
				pass(late)
				b.knows(a)
				pass(12 * time.Second)
				if !a.path(b).Alive || !b.path(a).Alive {
					t.Errorf("alive %t and %t", a.path(b).Alive, b.path(a).Alive)
				}
			})
		})
	}
}

func TestRemovedPeerIsGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.setDelay("198.51.100.1", 100*time.Millisecond)
		n.run(a)
		a.knows(b)
		pass(time.Second + 100*time.Millisecond) // the second probe is under way
		a.prover.RemovePeer(b.id)
		pass(time.Minute)
		if _, ok := a.prover.Path(b.id); ok {
			t.Error("a path to a removed peer")
		}
		changes := a.changed()
		if len(changes) != 2 || !changes[0].ok || changes[1].ok {
			t.Errorf("changes %+v, want a path and then none", changes)
		}
		if got := n.arrivals("198.51.100.1", time.Hour); got.probes != 0 {
			t.Errorf("%d probes to a removed peer", got.probes)
		}
	})
}

func TestPathThatIsNoLongerNamedStaysWhileItAnswers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820", "198.51.100.2:51820")
		n.setDelay("198.51.100.2", 100*time.Millisecond)
		n.run(a)
		a.knows(b)
		pass(10 * time.Second)
		a.knows(b, "198.51.100.1:51820") // without the spare
		pass(time.Minute)
		if got := a.prover.Addresses(b.id); len(got) != 2 || !got[1].Alive {
			t.Errorf("addresses %+v, want the spare kept while it answers", got)
		}
		a.knows(b, "198.51.100.2:51820") // without the path
		pass(time.Minute)
		if got := a.path(b).Addr; got != b.addrs[0] {
			t.Errorf("path %v, want to stay at %v, which answers", got, b.addrs[0])
		}
		n.setDark("198.51.100.1", true)
		pass(time.Minute)
		if got := a.path(b); got.Addr != b.addrs[1] || !got.Alive {
			t.Errorf("path %+v after the first went dark, want %v", got, b.addrs[1])
		}
		if got := a.prover.Addresses(b.id); len(got) != 1 {
			t.Errorf("addresses %+v, want the named one only", got)
		}
	})
}

func TestLossDoesNotMoveThePath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820", "198.51.100.2:51820")
		n.setDelay("198.51.100.1", 10*time.Millisecond)
		n.setDelay("198.51.100.2", 11*time.Millisecond)
		count := 0
		n.loses = func(_, to netip.AddrPort) bool { // every fifth probe to either
			if to == a.addrs[0] {
				return false
			}
			count++
			return count%5 == 0
		}
		n.run(a)
		a.knows(b)
		pass(time.Hour)
		if got := a.changed(); len(got) != 1 {
			t.Errorf("%d changes with a fifth lost, want 1: %+v", len(got), got)
		}
		if got := a.path(b).Loss; got < 0.05 || got > 0.5 {
			t.Errorf("loss %.2f, want about 0.2", got)
		}
	})
}

func TestKickAsksProvenAddressesAtOnceAndOthersSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820", "198.51.100.2:51820")
		n.setDark("198.51.100.2", true)
		n.run(a)
		a.knows(b)
		pass(70 * time.Second) // its tries are 37 s apart by now
		n.setDark("198.51.100.2", false)
		before := a.prover.Counters()
		for range 9 {
			a.prover.Kick(b.id)
			pass(100 * time.Millisecond)
		}
		after := a.prover.Counters()
		if got := after.Proven - before.Proven; got < 9 {
			t.Errorf("%d probes of proven addresses for 9 kicks, want 9 at least", got)
		}
		if got := after.Unproven - before.Unproven; got != 1 {
			t.Errorf("%d probes of the address not proven for 9 kicks within a second, want 1", got)
		}
	})
}

func TestPathMTUIsTheLargestThatPasses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{MTUSizes: []int{1232, 1372, 1392, 1452, 8972}}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		lost := false
		n.tooLong = func(size int) bool {
			if size == 1372 && !lost { // by chance
				lost = true
				return true
			}
			return size > 1400
		}
		n.run(a)
		a.knows(b)
		pass(10 * time.Second)
		if got := a.path(b); got.MTU != 1392 || !got.Alive {
			t.Errorf("path %+v, want MTU 1392", got)
		}
		if got := n.arrivals("198.51.100.1", 5*time.Minute); got.longest > 128 {
			t.Errorf("MTU probes go on after the measurement: %+v", got)
		}
		n.mu.Lock()
		n.tooLong = func(size int) bool { return size > 1300 }
		n.mu.Unlock()
		pass(10 * time.Minute)
		if got := a.path(b).MTU; got != 1232 {
			t.Errorf("MTU %d after the path shrank, want 1232", got)
		}
	})
}

func TestTooManyCandidatesAreCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r recorder
		p := New(Config{Send: &r})
		go func() { _ = p.Run(t.Context()) }()
		var cs []Candidate
		for i := range 100 {
			cs = append(cs, Candidate{netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 1), Record})
		}
		cs = append(cs, Candidate{netip.MustParseAddrPort("198.51.100.1:1"), Configured})
		p.SetPeer(gatewayID(1), cs)
		pass(time.Minute)
		got := p.Addresses(gatewayID(1))
		if len(got) != maxAddresses || got[0].Source != Configured {
			t.Errorf("%d addresses, the first %+v; want %d, the configured one first", len(got), got[0], maxAddresses)
		}
		if got := p.Counters().TooMany; got != 100+1-maxAddresses {
			t.Errorf("%d counted as too many, want %d", got, 100+1-maxAddresses)
		}
	})
}

func TestRunRestsWhenNothingIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{MTUSizes: []int{1232, 1400}}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		a.knows(b)
		pass(time.Minute)
		n.setDark("198.51.100.1", true)
		pass(time.Hour)
		rounds := func() uint64 {
			a.prover.mu.Lock()
			defer a.prover.mu.Unlock()
			return a.prover.rounds
		}
		before := rounds()
		pass(time.Hour)
		if got := rounds() - before; got < 60 || got > 4*3600/pathSeconds {
			t.Errorf("%d rounds in an hour with one dead peer, want a few thousand at most", got)
		}
	})
}

const pathSeconds = uint64(pathLeast / time.Second)
