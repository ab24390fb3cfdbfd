package path

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// peer is what a Prover knows about another gateway. Guarded by Prover.mu.
type peer struct {
	id        trust.GatewayID
	addresses []*address
	path      *address // proven; nil before the first proof
	removed   bool
	said      published
	away      time.Time // since when it does not answer, if it does not
	heard     time.Time // when Heard last made it due

	watch watch

	wakes  time.Time // when it wants attention; its key in Prover.table
	slot   int       // in Prover.table
	prover *Prover

	boot     trust.BootID
	bootSent time.Time // when the probe was sent whose answer told boot

	mtu mtuSearch
}

// published is what OnChange was last told.
type published struct {
	addr          netip.AddrPort
	alive, steady bool
	mtu           int
	ok            bool
}

// address is one address of a peer.
//
//	unproven --reply--> alive --a miss--> suspect --all of a burst missed--> dead
//	                      ^----reply---------'----------------------------------'
type address struct {
	peer   *peer
	addr   netip.AddrPort
	source Source
	named  bool // by the last SetPeer
	gone   bool // no longer in peer.addresses

	due  time.Time // of the next probe
	slot int       // in Prover.waiters

	// While not proven.
	tries   int
	lastTry time.Time
	born    time.Time // when it became known

	// Once proven.
	proven   bool
	last     time.Time // last reply
	rtt      time.Duration
	jitter   time.Duration // mean deviation from rtt
	samples  int
	loss     float64
	suspect  time.Time // of the first miss after the last reply; zero: none is missing
	burst    int       // probes that a suspect address is still to be sent
	dead     bool
	hurried  time.Time // until then the pause is recallPause, if it is silent
	waiting  *attempt  // the latest probe whose answer is awaited; never of a dead address
	observed netip.AddrPort
	mtu      int
	dice     uint64 // spreads the probes of many addresses over time
}

// setCandidates replaces what is named and keeps what answers.
func (pe *peer) setCandidates(named []Candidate, now time.Time) {
	for _, a := range pe.addresses {
		a.named = false
	}
	for _, c := range named {
		if a := pe.find(c.Addr); a != nil {
			pe.prover.waiters.remove(a) // its turn depends on the source
			a.named = true
			a.source = c.Source
			continue
		}
		pe.addresses = append(pe.addresses, &address{
			peer: pe, addr: c.Addr, source: c.Source, named: true, due: now, born: now,
			dice: binary.BigEndian.Uint64(pe.id[:8]) ^ uint64(c.Addr.Port()),
		})
	}
	pe.tidy()
}

func (pe *peer) find(addr netip.AddrPort) *address {
	for _, a := range pe.addresses {
		if a.addr == addr {
			return a
		}
	}
	return nil
}

// tidy forgets addresses that are not named, unless they answer or are the path.
func (pe *peer) tidy() {
	pe.addresses = slices.DeleteFunc(pe.addresses, func(a *address) bool {
		a.gone = !a.named && a != pe.path && !a.alive()
		if a.gone {
			pe.prover.waiters.remove(a)
		}
		return a.gone
	})
}

// alive reports whether replies come.
func (a *address) alive() bool { return a.proven && !a.dead }

// urgent reports whether a is a path whose death is to be noticed at once.
func (a *address) urgent() bool { return a == a.peer.path && a.peer.watch.urgent() }

// patience is how long a reply may take before it counts as missing. A watched
// path is suspected sooner, since that costs a burst and no more.
func (a *address) patience() time.Duration {
	least, expected := missAfter, 2*a.rtt+4*a.jitter
	switch {
	case a.urgent() && a.suspect.IsZero():
		least, expected = watchedMissAfter, a.rtt+3*a.jitter
	case a.urgent():
		least, expected = watchedMissAfter, a.rtt+a.rtt/4+4*a.jitter
	}
	most := min(max(missAfter, 2*a.rtt), challengeLife)
	return min(max(least, expected), most)
}

// gap is the pause between the probes of a burst.
func (a *address) gap() time.Duration {
	if a.urgent() {
		return watchedGap
	}
	return burstGap
}

// attention is the moment at which an address wants attention.
func (a *address) attention() time.Time {
	if a.waiting != nil && a.burst == 0 {
		return a.waiting.sent.Add(a.patience())
	}
	return a.due
}

// asks reports whether it is time for a probe to a proven address.
func (a *address) asks(now time.Time) bool {
	return a.proven && (a.waiting == nil || a.burst > 0) && !a.due.After(now)
}

// asked notes a probe to a proven address.
func (a *address) asked(at *attempt) {
	if a.dead {
		a.due = at.sent.Add(a.recall(a.peer.interval(a, at.sent), at.sent))
		return
	}
	a.waiting = at
	if a.burst > 0 {
		a.burst--
		a.due = at.sent.Add(a.gap())
	}
}

// known reports whether the peer was at an unproven address in the run before.
func (a *address) known() bool { return a.source == Proven }

// tried notes a probe to an unproven address and plans the next.
func (a *address) tried(now time.Time, b *Budget) {
	a.lastTry = now
	pause := b.pause(a.tries)
	switch {
	case a.tries < len(b.Gaps):
	case a.known():
		pause = a.recall(a.spread(knownFactor*a.deadInterval(now)), now)
	}
	a.tries++
	a.due = now.Add(pause)
}

// recall is the pause after a probe to an address that is silent.
func (a *address) recall(pause time.Duration, now time.Time) time.Duration {
	if now.Before(a.hurried) {
		return recallPause
	}
	return pause
}

// hurry makes a peer due at a moment, because it probably answers: where it is
// or was it is asked four times, so that no lost packet spoils it.
func (pe *peer) hurry(at time.Time, pause time.Duration) {
	for _, a := range pe.addresses {
		a.hurried = at.Add(hurryFor)
	}
	pe.kick(at, pause)
}

// retry begins the tries at the addresses of a peer that has never answered
// anew, from the second on, because it knows us now: those before may have come
// too early for it.
func (pe *peer) retry(now time.Time) {
	for _, a := range pe.addresses {
		at := a.lastTry.Add(recallPause)
		if at.Before(now) {
			at = now
		}
		if !a.proven && !a.known() {
			a.due, a.tries = earliest(a.due, at), min(a.tries, 1)
		}
	}
}

// kick makes addresses due at a moment: those where the peer is or was, others
// if pause has passed since their last try. A burst keeps its pace: it must
// outlast a short trouble.
func (pe *peer) kick(at time.Time, pause time.Duration) {
	for _, a := range pe.addresses {
		wait := pause
		if a.known() {
			wait = min(pause, recallPause)
		}
		if a.burst == 0 && (a.proven || at.Sub(a.lastTry) >= wait) {
			a.due = earliest(a.due, at)
		}
	}
}

// learnBoot notes the start that a reply told, and reports whether it is
// another one. The reply to an older probe does not bring back an older start.
func (pe *peer) learnBoot(boot trust.BootID, sent time.Time) bool {
	if sent.Before(pe.bootSent) {
		return false
	}
	pe.bootSent = sent
	changed := boot != pe.boot
	pe.boot = boot
	return changed
}

// answered notes a reply.
func (pe *peer) answered(at *attempt, now time.Time) {
	a := at.at
	if !a.proven {
		a.proven, a.samples, a.loss, a.tries = true, 0, 0, 0
	}
	a.measured(now.Sub(at.sent), at.size)
	a.loss -= a.loss / 16
	revived := a.dead
	a.dead, a.suspect, a.burst, a.last = false, time.Time{}, 0, now
	if at.size > probeSize {
		pe.mtu.answered(at)
	}
	if at.size == probeSize || revived {
		a.waiting = nil
		a.due = at.sent.Add(pe.interval(a, now))
	}
}

// measured notes a round-trip time, smoothed as in RFC 6298, section 2.
func (a *address) measured(rtt time.Duration, size int) {
	a.samples++
	switch {
	case a.samples == 1:
		a.rtt, a.jitter = rtt, rtt/4
	case size == probeSize:
		a.jitter += ((rtt - a.rtt).Abs() - a.jitter) / 4
		a.rtt += (rtt - a.rtt) / 8
	}
}

// interval is the pause between two probes of a proven address.
func (pe *peer) interval(a *address, now time.Time) time.Duration {
	var d time.Duration
	switch {
	case a.dead:
		d = a.deadInterval(now)
	case a.urgent():
		d = pe.prover.watchedInterval()
	case a.samples < learnSamples:
		return learnInterval
	case a == pe.path || pe.path == nil:
		d = pe.prover.pathInterval()
	default:
		d = min(spareFactor*pe.prover.pathInterval(), pathMost)
	}
	return a.spread(d)
}

// pathInterval is the pause between probes of a path in use.
func (p *Prover) pathInterval() time.Duration {
	return min(max(pathLeast, time.Duration(len(p.peers))*pathShare), pathMost)
}

// deadInterval is the pause between probes of an address that does not answer
// though it did once.
func (a *address) deadInterval(now time.Time) time.Duration {
	silent := now.Sub(a.born)
	if !a.last.IsZero() {
		silent = now.Sub(a.last)
	}
	most := max(pathLeast, time.Duration(len(a.peer.prover.peers))*deadShare)
	if silent >= lostAfter {
		most *= lostFactor
		return most
	}
	return min(max(pathLeast, silent/deadPart), most)
}

// spread varies d by up to a tenth downwards, the same in every run.
func (a *address) spread(d time.Duration) time.Duration { return d - a.part(d/10) }

// part is a part of d, another one each time, the same in every run.
func (a *address) part(d time.Duration) time.Duration {
	a.dice = a.dice*6364136223846793005 + 1442695040888963407 // MMIX, Knuth
	return time.Duration(a.dice>>40) * d >> 24
}

// judge counts the replies that are missing and acts on them.
func (pe *peer) judge(now time.Time, pause time.Duration) (misses uint64) {
	for _, a := range pe.addresses {
		if a.waiting == nil || a.burst > 0 || now.Sub(a.waiting.sent) < a.patience() {
			continue
		}
		a.waiting = nil
		if a.suspect.IsZero() {
			misses++
			a.suspect, a.burst, a.due = now, burstProbes, now
		} else {
			misses += burstProbes
			a.dead = true
			a.due = now.Add(pe.interval(a, now))
		}
		if a == pe.path {
			pe.alarm(a, now, pause)
		}
	}
	if misses > 0 {
		pe.tidy()
	}
	return misses
}

// alarm looks for another way when the path misses a reply: proven addresses at
// the first miss, all others once the path is dead.
func (pe *peer) alarm(path *address, now time.Time, pause time.Duration) {
	for _, a := range pe.addresses {
		switch {
		case a == path || a.burst > 0:
		case !path.dead && a.proven, path.dead && !a.proven && now.Sub(a.lastTry) >= pause:
			a.due = earliest(a.due, now)
		}
	}
}

// choose picks the path among the addresses that answer, and notes what that
// means for who watches.
func (pe *peer) choose(now time.Time) {
	was, urgent, answered := pe.path, pe.watch.urgent(), pe.watch.alive
	pe.pick()
	a := pe.path
	pe.watch.note(a != nil && a.alive(), now)
	switch {
	case answered && !pe.watch.alive:
		pe.away = now
	case !answered && pe.watch.alive && now.Sub(pe.away) >= signAfter:
		pe.prover.sweep.sign(pe.id, now)
	}
	if pe.watch.urgent() && (!urgent || a != was) && a.alive() && a.waiting == nil {
		a.due = earliest(a.due, now)
	}
}

func (pe *peer) pick() {
	var best *address
	for _, a := range pe.addresses {
		if a.alive() && pe.eligible(a) && (best == nil || a.rtt < best.rtt) {
			best = a
		}
	}
	if best == nil || best == pe.path {
		return
	}
	if cur := pe.path; cur != nil && cur.alive() && !better(best, cur) {
		return
	}
	pe.path = best
	pe.mtu.reset(best)
	pe.tidy()
}

// eligible reports whether a may replace the path. While the path is dead, an
// address that has answered since the trouble began; otherwise one that we know
// well enough to compare.
func (pe *peer) eligible(a *address) bool {
	cur := pe.path
	switch {
	case cur == nil || a == cur:
		return true
	case !cur.alive():
		return !a.last.Before(cur.suspect)
	default:
		return a.samples >= learnSamples
	}
}

// better reports whether a is faster than the path by enough to move.
func better(a, path *address) bool {
	gain := path.rtt - a.rtt
	return gain >= betterLeast && float64(gain) >= betterShare*float64(path.rtt)
}

// current is the path as others see it.
func (pe *peer) current() (Path, bool) {
	a := pe.path
	if a == nil {
		return Path{}, false
	}
	return Path{Addr: a.addr, RTT: a.rtt, Proven: a.last, Loss: a.loss, Alive: a.alive(), Steady: pe.watch.steady, MTU: a.mtu}, true
}
