package path

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// strangers makes h know count peers that are nowhere.
func (h *host) strangers(count int) {
	for i := range count {
		addr := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
		h.prover.SetPeer(gatewayID(10_000+i), []Candidate{{netip.AddrPortFrom(addr, 51820), Record}})
	}
}

func (h *host) watches(others ...*host) {
	var ids []trust.GatewayID
	for _, o := range others {
		ids = append(ids, o.id)
	}
	h.prover.Watch(ids)
}

// until lets time pass until ok holds, and returns how long that took.
func until(t *testing.T, limit time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	for !ok() {
		if time.Since(start) > limit {
			t.Fatalf("%s does not hold after %v", what, limit)
		}
		pass(time.Millisecond)
	}
	return time.Since(start)
}

func TestWatchedPathDiesWithinASecond(t *testing.T) {
	for _, tt := range []struct {
		rtt   time.Duration
		known int // peers
		limit time.Duration
	}{
		{2 * time.Millisecond, 2, 710 * time.Millisecond},
		{40 * time.Millisecond, 30, 710 * time.Millisecond},
		{70 * time.Millisecond, 100, 710 * time.Millisecond},
		{70 * time.Millisecond, 200, 960 * time.Millisecond},
		{150 * time.Millisecond, 100, 710 * time.Millisecond},
		{300 * time.Millisecond, 100, 1010 * time.Millisecond},
	} {
		t.Run(fmt.Sprintf("rtt=%v known=%d", tt.rtt, tt.known), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				a := n.add(1, Config{}, "192.0.2.1:51820")
				b := n.add(2, Config{}, "198.51.100.1:51820")
				n.setDelay("198.51.100.1", tt.rtt/2)
				n.run(a)
				a.strangers(tt.known - 1)
				a.knows(b)
				var sum, longest time.Duration
				const rounds = 40
				for i := range rounds {
					a.watches(b)
					pass(30*time.Second + time.Duration(i)*17*time.Millisecond)
					n.setDark("198.51.100.1", true)
					took := until(t, 3*time.Second, "death", func() bool { return !a.path(b).Alive })
					n.setDark("198.51.100.1", false)
					sum, longest = sum+took, max(longest, took)
					a.watches() // without a probation that grows from round to round
					a.prover.Kick(b.id)
					until(t, 3*time.Second, "life", func() bool { return a.path(b).Alive })
				}
				t.Logf("noticed after %v, at most %v", sum/rounds, longest)
				if longest > tt.limit {
					t.Errorf("noticed after %v, want at most %v", longest, tt.limit)
				}
			})
		})
	}
}

func TestWatchedPathSurvivesSixLossesInARow(t *testing.T) {
	for lost, alive := range map[int]bool{1: true, 3: true, 6: true, 7: false} {
		t.Run(fmt.Sprint(lost), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				a := n.add(1, Config{}, "192.0.2.1:51820")
				b := n.add(2, Config{}, "198.51.100.1:51820")
				n.run(a)
				a.knows(b)
				a.watches(b)
				pass(time.Minute)
				left := lost
				n.mu.Lock()
				n.loses = func(_, to netip.AddrPort) bool {
					left--
					return left >= 0 && to == b.addrs[0]
				}
				n.mu.Unlock()
				pass(time.Minute)
				if died := len(a.changed()) > 1; died == alive {
					t.Errorf("changes %+v after %d lost probes", a.changed(), lost)
				}
			})
		})
	}
}

// deaths counts how often a working path that loses packets in both directions
// with a probability is taken for dead, and says how often that is to be
// expected: a miss and a burst of misses, all by chance.
func deaths(t *testing.T, loss float64, paths int, during time.Duration) (count int, expected float64) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		random := rand.New(rand.NewPCG(7, uint64(paths)))
		n.loses = func(netip.AddrPort, netip.AddrPort) bool { return random.Float64() < loss }
		a := n.add(0, Config{}, "192.0.2.1:51820")
		others := n.group(1, paths)
		n.run(a)
		for _, b := range others {
			a.knows(b)
		}
		a.watches(others...)
		pass(during)
		for _, c := range a.changed() {
			if c.ok && !c.path.Alive {
				count++
			}
		}
		missed := 1 - (1-loss)*(1-loss)
		cycles := float64(paths) * float64(during) / float64(watchedLeast)
		expected = cycles * math.Pow(missed, 1+burstProbes)
	})
	return count, expected
}

func TestRandomLossDoesNotKillWatchedPaths(t *testing.T) {
	count, expected := deaths(t, 0.02, 4, 2*time.Hour)
	t.Logf("2 %% loss: %d deaths in 4 paths x 2 h, expected %.1e", count, expected)
	if count > 0 {
		t.Errorf("%d working paths were taken for dead", count)
	}
	// So much loss that chance kills: as often as the arithmetic says, which
	// therefore holds for small loss, too.
	count, expected = deaths(t, 0.2, 4, time.Hour)
	t.Logf("20 %% loss: %d deaths in 4 paths x 1 h, expected %.1f", count, expected)
	if float64(count) > 1.3*expected || float64(count) < expected/3 {
		t.Errorf("%d deaths, want about %.1f", count, expected)
	}
}

func TestFlappingPathDoesNotMoveRoutesEverySecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		a.knows(b)
		pass(10 * time.Second)
		flap := func(down, up, during time.Duration) (moves int) {
			before := len(a.changed())
			for end := time.Now().Add(during); time.Now().Before(end); {
				// As who has a standby: watched while it carries the route.
				n.setDark("198.51.100.1", true)
				pass(down)
				n.setDark("198.51.100.1", false)
				a.prover.Kick(b.id)
				for range int(up / (100 * time.Millisecond)) {
					pass(100 * time.Millisecond)
					if a.path(b).Steady {
						a.watches(b)
					} else {
						a.watches()
					}
				}
			}
			steady := true
			for _, c := range a.changed()[before:] {
				if c.path.Steady != steady {
					steady = c.path.Steady
					moves++
				}
			}
			return moves
		}
		a.watches(b)
		if moves := flap(2*time.Second, 3*time.Second, 5*time.Minute); moves != 1 {
			t.Errorf("%d moves of a path that is up for 3 s at a time, want 1: away", moves)
		}
		pass(longestHold)
		if !a.path(b).Steady {
			t.Errorf("path %+v not steady after it answered for %v", a.path(b), longestHold)
		}
		pass(2 * holdMemory)
		a.watches(b)
		if moves := flap(2*time.Second, 8*time.Second, 10*time.Minute); moves > 6 {
			t.Errorf("%d moves in ten minutes of a path that is up for 8 s at a time, want at most 6", moves)
		}
	})
}

func TestProbationIsShortAfterLongHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		a.knows(b)
		a.watches(b)
		for round, want := range []time.Duration{firstHold, 2 * firstHold, firstHold} {
			pass([]time.Duration{time.Minute, time.Minute, time.Hour}[round])
			n.setDark("198.51.100.1", true)
			pass(10 * time.Second)
			n.setDark("198.51.100.1", false)
			a.prover.Kick(b.id)
			until(t, time.Second, "life", func() bool { return a.path(b).Alive })
			took := until(t, time.Minute, "steadiness", func() bool { return a.path(b).Steady })
			if took < want-10*time.Millisecond || took > want+10*time.Millisecond {
				t.Errorf("round %d: steady %v after it came back, want %v", round, took, want)
			}
		}
	})
}

// Who is not watched is trusted as soon as it answers: nothing else could be used.
func TestUnwatchedPathIsSteadyAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		a.knows(b)
		pass(time.Minute)
		n.setDark("198.51.100.1", true)
		pass(time.Minute)
		n.setDark("198.51.100.1", false)
		pass(time.Minute)
		for _, c := range a.changed() {
			if c.path.Alive != c.path.Steady {
				t.Errorf("change %+v", c)
			}
		}
		if len(a.changed()) != 3 {
			t.Errorf("changes %+v, want up, down, up", a.changed())
		}
	})
}

func TestGatewayThatEverybodyWatchesHearsABoundedRate(t *testing.T) {
	for _, tt := range []struct{ watchers, known int }{{20, 20}, {40, 200}} {
		t.Run(fmt.Sprint(tt.known), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				b := n.add(0, Config{}, "198.51.100.1:51820")
				hosts := n.group(1, tt.watchers)
				n.run(hosts...)
				for _, h := range hosts {
					h.strangers(tt.known - 1)
					h.knows(b)
					h.watches(b)
				}
				pass(10 * time.Second)
				const during = 10
				got := float64(n.arrivals("198.51.100.1", during*time.Second).probes) / during
				all := min(float64(tt.known)/watchedLeast.Seconds(), 1/watchedShare.Seconds())
				want := all * float64(tt.watchers) / float64(tt.known)
				t.Logf("%d of %d watch: %.0f probes/s", tt.watchers, tt.known, got)
				if got > 1.12*want || got < 0.9*want {
					t.Errorf("%.0f probes/s of %d watchers, want about %.0f", got, tt.watchers, want)
				}
			})
		})
	}
}

func TestWhoWatchesManySendsABoundedRate(t *testing.T) {
	for watched, want := range map[int]float64{10: 40, 40: 100, 100: 200} {
		t.Run(fmt.Sprint(watched), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t)
				hosts := n.group(0, watched+1)
				n.run(hosts[0])
				for _, h := range hosts[1:] {
					hosts[0].knows(h)
				}
				hosts[0].watches(hosts[1:]...)
				pass(10 * time.Second)
				before := probes(hosts)
				pass(10 * time.Second)
				if got := float64(probes(hosts)-before) / 10; got > 1.12*want || got < 0.9*want {
					t.Errorf("%.0f probes/s for %d watched paths, want about %.0f", got, watched, want)
				}
			})
		})
	}
}

func TestPathThatIsNoLongerWatchedIsProbedSeldom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t)
		a := n.add(1, Config{}, "192.0.2.1:51820")
		b := n.add(2, Config{}, "198.51.100.1:51820")
		n.run(a)
		a.watches(b) // before it is known
		a.knows(b)
		pass(time.Minute)
		if got := n.arrivals("198.51.100.1", time.Minute).probes; got < 230 {
			t.Errorf("%d probes in a minute while watched, want 240 at least", got)
		}
		a.watches()
		pass(time.Second)
		if got := n.arrivals("198.51.100.1", time.Minute).probes; got > 14 {
			t.Errorf("%d probes in a minute when no longer watched, want about 12", got)
		}
	})
}
