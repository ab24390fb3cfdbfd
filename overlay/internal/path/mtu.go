package path

import "time"

// mtuSearch measures the MTU of a peer's path: sizes in ascending order, each
// asked twice, until one stays without answer. Guarded by Prover.mu.
type mtuSearch struct {
	of    *address
	due   time.Time
	index int // of the size that is asked
	tries int
	best  int
	done  bool // until due
}

// mtuTries is how often a size is asked before it counts as too long.
const mtuTries = 2

// reset begins a measurement of a new path.
func (m *mtuSearch) reset(a *address) { *m = mtuSearch{of: a} }

// answered notes that a size passed.
func (m *mtuSearch) answered(at *attempt) {
	if at.at != m.of || m.done || at.size <= m.best {
		return
	}
	m.best = at.size
	m.index++
	m.tries = 0
	m.due = time.Time{}
}

// mtuWakes is when the measurement wants attention; the zero time: after
// something else happened.
func (p *Prover) mtuWakes(pe *peer, now time.Time) time.Time {
	m := &pe.mtu
	switch {
	case len(p.cfg.MTUSizes) == 0, m.of == nil, m.of != pe.path, !m.of.alive():
		return time.Time{}
	case m.due.After(now):
		return m.due
	}
	return now
}

// mtuProbe returns the next probe of the measurement if it is due, or nil.
func (p *Prover) mtuProbe(pe *peer, now time.Time) *attempt {
	m := &pe.mtu
	sizes := p.cfg.MTUSizes
	if wakes := p.mtuWakes(pe, now); wakes.IsZero() || wakes.After(now) {
		return nil
	}
	if m.done {
		m.reset(m.of)
	}
	if m.index < len(sizes) && m.tries < mtuTries {
		m.tries++
		m.due = now.Add(m.of.patience())
		return &attempt{peer: pe, at: m.of, size: sizes[m.index]}
	}
	m.done = true
	m.due = now.Add(mtuInterval)
	if m.of.mtu = m.best; m.best > 0 {
		p.publish(pe)
	}
	return nil
}
