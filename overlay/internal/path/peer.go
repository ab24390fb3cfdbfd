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
//	unproven --reply--> alive --a miss--> suspect --all of a burst missed--> dead --1 h--> unproven
//	                      ^----reply---------'-----------------------------------'
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
	waiting  *attempt // the latest probe whose answer is awaited; never of a dead address
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
			peer: pe, addr: c.Addr, source: c.Source, named: true, due: now,
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

// patience is how long a reply may take before it counts as missing.
func (a *address) patience() time.Duration {
	least := missAfter
	if a.urgent() {
		least = watchedMissAfter
	}
	most := min(max(missAfter, 2*a.rtt), challengeLife)
	return min(max(least, 2*a.rtt+4*a.jitter), most)
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
		a.due = at.sent.Add(a.peer.interval(a, at.sent))
		return
	}
	a.waiting = at
	if a.burst > 0 {
		a.burst--
		a.due = at.sent.Add(a.gap())
	}
}

// tried notes a probe to an unproven address and plans the next.
func (a *address) tried(now time.Time, b *Budget) {
	a.lastTry = now
	pause := b.Rest
	if a.tries < len(b.Gaps) {
		pause = b.Gaps[a.tries]
	}
	a.tries++
	a.due = now.Add(pause)
}

// kick makes addresses due: proven ones now, others if pause has passed since
// their last try. A burst keeps its pace: it must outlast a short trouble.
func (pe *peer) kick(now time.Time, pause time.Duration) {
	for _, a := range pe.addresses {
		if a.burst == 0 && (a.proven || now.Sub(a.lastTry) >= pause) {
			a.due = earliest(a.due, now)
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
	silent := now.Sub(a.last)
	var d time.Duration
	switch {
	case !a.alive() && silent >= quickFor:
		d = slowInterval
	case !a.alive():
		d = pathInterval
	case a.urgent():
		d = pe.prover.watchedInterval()
	case a.samples < learnSamples:
		return learnInterval
	case a == pe.path || pe.path == nil:
		d = pathInterval
	default:
		d = spareInterval
	}
	return a.spread(d)
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

// unprove makes an address prove itself again. It stays the path, so that a
// gateway that comes back late is still found there.
func (pe *peer) unprove(a *address, now time.Time) {
	a.proven, a.dead = false, false
	a.tries = len(pe.addresses) + maxTries // all used up: one try per rest
	a.lastTry = now
	a.due = now.Add(slowInterval)
}

// maxTries is more than any budget has.
const maxTries = 100

// choose picks the path among the addresses that answer, and notes what that
// means for who watches.
func (pe *peer) choose(now time.Time) {
	was, urgent := pe.path, pe.watch.urgent()
	pe.pick()
	a := pe.path
	pe.watch.note(a != nil && a.alive(), now)
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
