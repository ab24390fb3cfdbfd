package path

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Whatever is put in, moved and taken out, the next is the least of those in.
func TestQueueKeepsItsOrder(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	start := time.Now()
	peers := make([]*peer, 40)
	for i := range peers {
		peers[i] = &peer{id: gatewayID(i)}
	}
	in := make(map[*peer]bool)
	var q queue[*peer]
	for step := range 20_000 {
		pe := peers[random.IntN(len(peers))]
		if random.IntN(3) == 0 {
			q.remove(pe)
			delete(in, pe)
		} else {
			pe.wakes = start.Add(time.Duration(random.IntN(20)))
			q.set(pe)
			in[pe] = true
		}
		got, ok := q.first()
		if ok != (len(in) > 0) || len(q) != len(in) {
			t.Fatalf("step %d: %d in the queue, want %d", step, len(q), len(in))
		}
		for other := range in {
			if other.before(got) {
				t.Fatalf("step %d: %s at %v comes first, though %s wants attention at %v", step, got.id.Short(), got.wakes, other.id.Short(), other.wakes)
			}
		}
	}
}

// Simulations are only worth something if they can be repeated.
func TestSameEventsGiveSameProbes(t *testing.T) {
	type probe struct {
		from, to trust.GatewayID
		addr     string
		at       time.Duration
	}
	run := func(t *testing.T) (all []probe) {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t)
			start := time.Now()
			hosts := n.group(1, 12)
			n.sends = func(from *host, to trust.GatewayID, addr string) {
				all = append(all, probe{from.id, to, addr, time.Since(start)})
			}
			// No two datagrams arrive at one moment: their order would be up to
			// the scheduler.
			n.behind = time.Nanosecond
			for i, x := range hosts {
				for j, y := range hosts {
					n.delay[[2]netip.Addr{x.addrs[0].Addr(), y.addrs[0].Addr()}] = 5*time.Millisecond + time.Duration(i*len(hosts)+j)*time.Microsecond
				}
			}
			acquaint(hosts)
			n.run(hosts...)
			pass(30 * time.Second)
			n.setDark(hosts[3].addrs[0].Addr().String(), true)
			pass(2 * time.Minute)
			n.setDark(hosts[3].addrs[0].Addr().String(), false)
			pass(time.Minute)
		})
		// Which gateway is first at one moment is up to the scheduler.
		slices.SortStableFunc(all, func(a, b probe) int { return cmp.Or(cmp.Compare(a.at, b.at), slices.Compare(a.from[:], b.from[:])) })
		return all
	}
	first, second := run(t), run(t)
	if len(first) != len(second) || len(first) < 1000 {
		t.Errorf("%d and %d probes, want equally many", len(first), len(second))
	}
	for i := range min(len(first), len(second)) {
		if first[i] != second[i] {
			t.Fatalf("probe %d of two runs: %+v and %+v", i, first[i], second[i])
		}
	}
}
