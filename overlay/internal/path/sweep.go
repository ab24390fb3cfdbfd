package path

import (
	"bytes"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// sweep asks all peers that do not answer soon after one of them answered
// again: a partition that heals brings many back at once, and waiting for the
// turn of each would take as long as the longest pause. Guarded by Prover.mu.
type sweep struct {
	due  time.Time // of the next; zero: none is planned
	from trust.GatewayID
	free time.Time // earliest moment of the next
}

const (
	// signAfter is how long a peer must have been away for its return to mean
	// something for others: one that flaps does not.
	signAfter = 20 * time.Second
	// sweepStep is the pause between two peers of a sweep: 50 probes a second.
	sweepStep = 20 * time.Millisecond
	// sweepRest is the pause between two sweeps.
	sweepRest = 5 * time.Second
)

// sign plans a sweep, because a peer answered that did not for long.
func (s *sweep) sign(peer trust.GatewayID, now time.Time) {
	if !s.due.IsZero() {
		return
	}
	s.due, s.from = now, peer
	if s.free.After(now) {
		s.due = s.free
	}
}

// sweepIfDue makes all peers due that do not answer, one after the other. Where
// it begins depends on who answered, so that not all gateways begin with the
// same.
func (p *Prover) sweepIfDue(now time.Time) {
	if p.sweep.due.IsZero() || p.sweep.due.After(now) {
		return
	}
	from := p.sweep.from
	var away []*peer
	for _, pe := range p.peers {
		if !pe.watch.alive {
			away = append(away, pe)
		}
	}
	slices.SortFunc(away, func(a, b *peer) int { return bytes.Compare(a.id[:], b.id[:]) })
	first, _ := slices.BinarySearchFunc(away, from, func(pe *peer, id trust.GatewayID) int { return bytes.Compare(pe.id[:], id[:]) })
	at := now
	for _, pe := range slices.Concat(away[first:], away[:first]) {
		pe.hurry(at, p.limits.budget.KickPause)
		p.schedule(pe, now)
		at = at.Add(sweepStep)
	}
	p.sweep = sweep{free: at.Add(sweepRest)}
}
