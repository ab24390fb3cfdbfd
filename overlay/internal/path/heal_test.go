package path

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// split makes a partition: hosts with a number below first do not hear the
// others. 0 ends it.
func (n *network) split(first int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.side = nil
	if first > 0 {
		n.side = func(a netip.Addr) int {
			b := a.As4()
			if int(b[2])<<8|int(b[3]) < first {
				return 0
			}
			return 1
		}
	}
}

// pairs counts the ordered pairs whose path is alive.
func pairs(hosts []*host) (alive int) {
	for _, h := range hosts {
		h.prover.mu.Lock()
		for _, pe := range h.prover.peers {
			if pe.path != nil && pe.path.alive() {
				alive++
			}
		}
		h.prover.mu.Unlock()
	}
	return alive
}

// probes is how many probes all hosts have sent.
func probes(hosts []*host) (sum uint64) {
	for _, h := range hosts {
		c := h.prover.Counters()
		sum += c.Proven + c.Unproven
	}
	return sum
}

// heals measures rounds of a partition of n hosts, the first `small` apart from
// the others: how long after its end the first and all pairs are alive, and
// how many probes a host sends a second at the end of the partition.
func heals(t *testing.T, count, small, rounds int, apart time.Duration, loss float64) (first, all []time.Duration, rate float64) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		hosts := n.group(0, count)
		acquaint(hosts)
		n.run(hosts...)
		whole := count * (count - 1)
		parts := whole - 2*small*(count-small)
		until(t, time.Minute, "full mesh", func() bool { return pairs(hosts) == whole })
		if loss > 0 {
			random := rand.New(rand.NewPCG(11, uint64(count)))
			n.mu.Lock()
			n.loses = func(netip.AddrPort, netip.AddrPort) bool { return random.Float64() < loss }
			n.mu.Unlock()
		}
		for round := range rounds {
			pass(time.Minute)
			n.split(small)
			pass(apart - 30*time.Second + time.Duration(round)*1234*time.Millisecond)
			if got := pairs(hosts); got != parts {
				t.Fatalf("round %d: %d pairs alive during the partition, want %d", round, got, parts)
			}
			before := probes(hosts)
			pass(30 * time.Second)
			rate += float64(probes(hosts)-before) / 30 / float64(count*rounds)
			n.split(0)
			healed := time.Now()
			first = append(first, untilPast(t, healed, time.Minute, func() bool { return pairs(hosts) > parts }))
			all = append(all, untilPast(t, healed, time.Minute, func() bool { return pairs(hosts) == whole }))
		}
	})
	slices.Sort(first)
	slices.Sort(all)
	return first, all, rate
}

// untilPast lets time pass until ok holds and returns how long after a moment
// that is.
func untilPast(t *testing.T, since time.Time, limit time.Duration, ok func() bool) time.Duration {
	t.Helper()
	for !ok() {
		if time.Since(since) > limit {
			t.Fatalf("not healed after %v", limit)
		}
		pass(10 * time.Millisecond)
	}
	return time.Since(since)
}

func TestPartitionHealsWithinSecondsAndCostsLittle(t *testing.T) {
	for _, tt := range []struct {
		count, small int
		rounds       int
		apart        time.Duration
		loss         float64
		sign, heal   time.Duration // the first pair, and from there to all
		rate         float64       // probes of a host a second while apart
	}{
		{2, 1, 20, 10 * time.Minute, 0, 5 * time.Second, time.Second, 0.25},
		{2, 1, 2, 24 * time.Hour, 0, 5 * time.Second, time.Second, 0.25},
		{30, 15, 2, 3 * time.Minute, 0.02, 3 * time.Second, 4 * time.Second, 5.2},
		{30, 1, 2, 3 * time.Minute, 0, 3 * time.Second, 4 * time.Second, 6.5},
		{10, 4, 1, 3 * time.Hour, 0, 3 * time.Second, 4 * time.Second, 2.2},
		{60, 30, 1, 3 * time.Minute, 0, 3 * time.Second, 4 * time.Second, 7},
	} {
		t.Run(fmt.Sprintf("%d of %d for %v", tt.small, tt.count, tt.apart), func(t *testing.T) {
			first, all, rate := heals(t, tt.count, tt.small, tt.rounds, tt.apart, tt.loss)
			t.Logf("first %v, all %v, %.1f probes/s each while apart", first, all, rate)
			for i := range all {
				if first[i] > tt.sign || all[i] > first[i]+tt.heal {
					t.Errorf("first pair alive after %v, all after %v; want %v and %v more", first[i], all[i], tt.sign, tt.heal)
				}
			}
			if rate > tt.rate {
				t.Errorf("%.1f probes/s while apart, want at most %.1f", rate, tt.rate)
			}
		})
	}
}

// Whoever repeats old probes of a gateway that does not answer makes others
// ask it where it was, and no more than once a second.
func TestReplayedProbesCostOneProbeASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		a.strangers(200)
		a.knows(b)
		pass(time.Minute)
		n.setDark("198.51.100.1", true)
		pass(10 * time.Minute)
		before := a.prover.Counters()
		for range 1000 {
			a.prover.Heard(b.id)
			a.prover.Heard(gatewayID(9)) // nobody
			pass(10 * time.Millisecond)
		}
		after := a.prover.Counters()
		if got := after.Proven - before.Proven; got < 9 || got > 14 {
			t.Errorf("%d probes for 1,000 replayed ones in 10 s, want 10", got)
		}
		if got := after.Unproven - before.Unproven; got > 10 {
			t.Errorf("%d probes to others", got)
		}
		if a.path(b).Alive {
			t.Error("a replayed probe brought a path to life")
		}
	})
}

// A gateway that comes and goes makes others ask all that are away once in a
// while only.
func TestComingAndGoingCausesFewSweeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		hosts := n.group(0, 31)
		acquaint(hosts)
		n.run(hosts[0])
		pass(time.Minute)
		for _, h := range hosts[2:] {
			n.setDark(h.addrs[0].Addr().String(), true)
		}
		flapper := hosts[1].addrs[0].Addr().String()
		pass(10 * time.Minute)
		count := func(up, down time.Duration) float64 {
			before, start := hosts[0].prover.Counters().Proven, time.Now()
			for range 20 {
				n.setDark(flapper, true)
				pass(down)
				n.setDark(flapper, false)
				hosts[0].prover.Kick(hosts[1].id)
				pass(up)
			}
			return float64(hosts[0].prover.Counters().Proven-before) / time.Since(start).Seconds()
		}
		if got := count(5*time.Second, 10*time.Second); got > 5 {
			t.Errorf("%.1f probes/s while one gateway flaps, want at most 5", got)
		}
		if got := count(5*time.Second, 30*time.Second); got > 9 {
			t.Errorf("%.1f probes/s while one gateway returns twice a minute, want at most 9", got)
		}
	})
}

func TestGatewaysThatRestartedWhileApartMeet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		hosts := n.group(0, 12)
		n.split(6)
		n.run(hosts...)
		for _, h := range hosts {
			for _, other := range hosts {
				if h != other {
					h.prover.SetPeer(other.id, []Candidate{{other.addrs[0], Proven}}) // before the start
				}
			}
		}
		pass(time.Hour)
		n.split(0)
		whole := len(hosts) * (len(hosts) - 1)
		took := until(t, 5*time.Second, "full mesh", func() bool { return pairs(hosts) == whole })
		t.Logf("all pairs alive after %v", took)
	})
}

// Probes of ordinary paths are bounded for a gateway, not for a pair.
func TestIdleGatewaySendsTenProbesASecondInLargeMeshes(t *testing.T) {
	for known, want := range map[int]float64{20: 20 / 4.75, 50: 50 / 4.75, 100: 10 / .95} {
		t.Run(fmt.Sprint(known), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				hosts := n.group(0, known+1)
				n.run(hosts[0])
				for _, h := range hosts[1:] {
					hosts[0].knows(h)
				}
				pass(2 * time.Minute)
				before := probes(hosts)
				pass(5 * time.Minute)
				got := float64(probes(hosts)-before) / 300
				if got > 1.1*want || got < 0.9*want {
					t.Errorf("%.1f probes/s at %d peers, want %.1f", got, known, want)
				}
			})
		})
	}
}

// An address that was granted to somebody since is left in peace after a while.
func TestDeadAddressThatIsGrantedLaterIsNotAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var granted atomic.Bool
		n := newNetwork(t)
		a := n.add(1, Config{Allowed: func(Candidate) bool { return !granted.Load() }}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		a.knows(b)
		pass(time.Minute)
		n.mu.Lock()
		delete(n.hosts, b.addrs[0])
		n.mu.Unlock()
		granted.Store(true)
		if got := n.arrivals("198.51.100.1", forgetAfter-time.Minute).probes; got == 0 {
			t.Error("no probes in the first hour")
		}
		pass(2 * time.Minute)
		if got := n.arrivals("198.51.100.1", 24*time.Hour).probes; got != 0 {
			t.Errorf("%d probes to an address that may not be asked", got)
		}
	})
}

// The tries of one side may all come before the other side knows it, and can
// answer: the other's first probe begins them anew.
func TestWhoWasAskedTooEarlyIsAskedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a, b)
		n.setDark("198.51.100.1", true)
		a.knows(b)
		pass(5 * time.Second) // the tries of a but one, 10 s from here
		n.setDark("198.51.100.1", false)
		b.knows(a)
		pass(100 * time.Millisecond)
		if !a.path(b).Alive || !b.path(a).Alive {
			t.Errorf("paths %+v and %+v, want both alive", a.path(b), b.path(a))
		}
	})
}

// Recorded probes of a peer that does not answer make us ask it now and then.
func TestReplayedProbesCostFewTries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		n.setDark("198.51.100.1", true)
		a.knows(b)
		pass(time.Minute)
		before := a.prover.Counters().Unproven
		for range 600 {
			a.prover.Heard(b.id)
			pass(100 * time.Millisecond)
		}
		if got := a.prover.Counters().Unproven - before; got < 10 || got > 60 {
			t.Errorf("%d probes in a minute of replays, want some, and no more than one a second", got)
		}
	})
}
