package path

import (
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// watch says whether the death of a peer's path is to be noticed at once, and
// when a path that came back is to be trusted again. Guarded by Prover.mu.
//
// A route moves away from a path that died, and back to it when it is steady
// again. A path that dies and comes back every few seconds would take its
// routes with it each time, and every move breaks connections. So a path that
// died while watched is on probation first: it has to answer for a hold,
// which doubles while it goes on dying.
type watch struct {
	on     bool
	alive  bool // as last noted
	steady bool
	since  time.Time     // of steady
	until  time.Time     // end of the probation, while alive and not steady
	hold   time.Duration // of the present or last probation
	damped bool          // the next life begins with a probation
}

// Watched paths. docs/decisions/0004-path-probes.md has the arithmetic.
const (
	// watchedLeast and the others give the pause between probes of a watched
	// path: watchedLeast; watchedCost for each watched path, so that who watches
	// sends 100 probes a second, but not more than watchedMost, because within a
	// second is the promise; watchedShare for each known peer, so that a
	// gateway that everybody watches hears at most 400 probes a second.
	watchedLeast = 250 * time.Millisecond
	watchedMost  = 500 * time.Millisecond
	watchedCost  = 10 * time.Millisecond
	watchedShare = 2500 * time.Microsecond

	// watchedMissAfter and watchedGap are missAfter and burstGap of such a path:
	// dead 450 ms after the first probe that gets lost, up to 75 ms round trip.
	watchedMissAfter = 150 * time.Millisecond
	watchedGap       = 30 * time.Millisecond

	// A probation lasts firstHold, and twice as long as the last one, at most
	// longestHold, if the path was steady for less than holdMemory since.
	firstHold   = 5 * time.Second
	longestHold = 20 * time.Second
	holdMemory  = 2 * time.Minute
)

// urgent reports whether the path is probed at the pace of watched ones.
func (w *watch) urgent() bool { return w.on || w.alive && !w.steady }

// wakes is the end of the probation; the zero time if there is none.
func (w *watch) wakes() time.Time {
	if w.alive && !w.steady {
		return w.until
	}
	return time.Time{}
}

// note takes in whether the path answers.
func (w *watch) note(alive bool, now time.Time) {
	switch {
	case !alive && w.alive:
		w.died(now)
	case alive && !w.alive && w.damped:
		w.until = now.Add(w.hold)
	case alive && !w.alive, alive && !w.steady && !now.Before(w.until):
		w.steady, w.since = true, now
	}
	w.alive = alive
}

func (w *watch) died(now time.Time) {
	w.damped = w.on || !w.steady
	if w.damped {
		if w.steady && now.Sub(w.since) >= holdMemory {
			w.hold = 0
		}
		w.hold = min(max(firstHold, 2*w.hold), longestHold)
	}
	w.steady = false
}

// Watch names the peers whose path's death is to be noticed within a second:
// all of them, each time. For paths whose death moves something elsewhere,
// because they are probed several times a second. A path that died while it
// was watched is Alive as soon as it answers again, but Steady only after it
// has answered for some seconds; other paths are Steady while they are Alive.
func (p *Prover) Watch(peers []trust.GatewayID) {
	watched := make(map[trust.GatewayID]bool, len(peers))
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for _, id := range peers {
		watched[id] = true
		if pe := p.peers[id]; pe != nil && !pe.watch.on {
			pe.watch.on = true
			if a := pe.path; a != nil && a.alive() && a.burst == 0 {
				a.due = earliest(a.due, now.Add(a.part(p.watchedInterval())))
			}
			p.schedule(pe, now)
		}
	}
	for id := range p.watched {
		if pe := p.peers[id]; pe != nil {
			pe.watch.on = watched[id]
		}
	}
	p.watched = watched
	p.pokeIfEarlier()
}

// watchedInterval is the pause between probes of a watched path.
func (p *Prover) watchedInterval() time.Duration {
	cost := min(time.Duration(len(p.watched))*watchedCost, watchedMost)
	return max(watchedLeast, cost, time.Duration(len(p.peers))*watchedShare)
}
