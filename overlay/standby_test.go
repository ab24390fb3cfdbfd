package overlay_test

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// carries is who carries a prefix at a gateway.
func carries(g *overlaytest.Gateway, prefix netip.Prefix) string {
	for _, r := range g.Mesh().Status().Routes {
		if r.Prefix == prefix {
			return r.Gateway
		}
	}
	return ""
}

// moved lets time pass until all gateways of other sites send a prefix to another
// gateway, and returns how long that took.
func moved(t *testing.T, w *overlaytest.World, prefix netip.Prefix, to string, limit time.Duration) time.Duration {
	t.Helper()
	start := time.Now()
	for _, g := range w.Gateways() {
		if g.Mesh() == nil || len(g.Prefixes) > 0 && g.Prefixes[0] == prefix {
			continue
		}
		for carries(g, prefix) != to {
			if time.Since(start) > limit {
				t.Fatalf("after %v %s sends %v to %q, want %q", time.Since(start), g.Name, prefix, carries(g, prefix), to)
			}
			time.Sleep(5 * time.Millisecond) // virtual
			synctest.Wait()
		}
	}
	return time.Since(start)
}

func TestRouteWithStandbyMovesWithinASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := overlaytest.NewWorld(t, overlaytest.WorldOptions{
			Gateways: 10, Pairs: 2,
			Network: overlaytest.Options{Link: overlaytest.Link{Delay: 35 * time.Millisecond, Loss: 0.01}, Seed: 3},
		})
		defer w.Close()
		w.StartAll()
		w.MustConverge(time.Minute)
		prefix := w.Gateway(1).Prefixes[0]
		owner, standby := w.Gateway(1), w.Gateway(8)
		if carries(w.Gateway(3), prefix) != owner.Name {
			owner, standby = standby, owner
		}
		moved(t, w, prefix, owner.Name, time.Second)
		time.Sleep(30 * time.Second) // virtual
		owner.Crash()
		t.Log("to the standby", moved(t, w, prefix, standby.Name, time.Second))

		// Back only after a probation, and then the standby is free to die.
		time.Sleep(20 * time.Second) // virtual
		w.StartAll()
		start := time.Now()
		back := moved(t, w, prefix, owner.Name, time.Minute)
		t.Log("back", back)
		if back < 5*time.Second {
			t.Errorf("the route went back %v after the start, want it to be steady for 5 s first", time.Since(start))
		}
	})
}

// A gateway on probation is better than one that does not answer.
func TestProbationDoesNotKeepARouteAtADeadGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := overlaytest.NewWorld(t, overlaytest.WorldOptions{
			Gateways: 6, Pairs: 1,
			Network: overlaytest.Options{Link: overlaytest.Link{Delay: 10 * time.Millisecond}, Seed: 4},
		})
		defer w.Close()
		w.StartAll()
		w.MustConverge(time.Minute)
		prefix := w.Gateway(1).Prefixes[0]
		owner, standby := w.Gateway(1), w.Gateway(5)
		if carries(w.Gateway(3), prefix) != owner.Name {
			owner, standby = standby, owner
		}
		time.Sleep(30 * time.Second) // virtual
		owner.Crash()
		moved(t, w, prefix, standby.Name, time.Second)
		time.Sleep(time.Second) // virtual
		w.StartAll()
		time.Sleep(3 * time.Second) // virtual
		if got := carries(w.Gateway(3), prefix); got != standby.Name {
			t.Fatalf("the route is at %s during the probation, want %s", got, standby.Name)
		}
		standby.Crash()
		t.Log("back to who is on probation", moved(t, w, prefix, owner.Name, time.Second))
	})
}
