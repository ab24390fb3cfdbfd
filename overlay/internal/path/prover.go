package path

import (
	"cmp"
	"context"
	"crypto/rand"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// probeSize is the length of ordinary probes in bytes (docs/protocol.md,
// section 3).
const probeSize = 128

// Sender sends a probe of size bytes to a peer at an address. It must not block
// and not call the Prover.
type Sender interface {
	SendProbe(peer trust.GatewayID, to netip.AddrPort, challenge [16]byte, size int) error
}

// Config is what a Prover is made from.
type Config struct {
	// Send is required.
	Send Sender

	// Allowed says whether an address that is not proven may be asked; nil: all.
	// It is the place to refuse addresses of the overlay and in granted
	// prefixes, broadcast addresses of own networks, and private or link-local
	// addresses that are neither on-link nor configured. Always refused are
	// the unspecified address, multicast, 255.255.255.255, port 0, link-local
	// IPv6, and loopback unless configured. It must not call the Prover.
	Allowed func(Candidate) bool

	// Loopback allows loopback addresses of every source: for tests on one
	// machine.
	Loopback bool

	// OnChange is told when the path of a peer appeared, moved, died, came
	// back, became steady, or got another MTU; ok is false when there is none any more. A path that died
	// keeps its address, with Alive false. All three callbacks are called by Run
	// without any lock, one at a time, in the order of events. They may be nil.
	OnChange func(peer trust.GatewayID, p Path, ok bool)
	// OnBoot is told the first and every other start of a peer.
	OnBoot func(peer trust.GatewayID, boot trust.BootID)
	// OnObserved is told our own address as a peer sees it, when that is new on
	// the way that was asked.
	OnObserved func(peer trust.GatewayID, mine netip.AddrPort)

	// MTUSizes are lengths of UDP payloads to measure paths with, ascending; none: no
	// measurement. Where the system fragments what is too long, sizes above the
	// path's MTU can count as passing.
	MTUSizes []int

	// Budget bounds probes to unproven addresses.
	Budget Budget

	// Logger may be nil for silence.
	Logger *slog.Logger
}

// Path is the way to a peer. A copy.
type Path struct {
	Addr   netip.AddrPort
	RTT    time.Duration // smoothed
	Proven time.Time     // of the last reply
	Loss   float64       // share of probes without reply, smoothed, 0 to 1
	Alive  bool          // replies come
	Steady bool          // and have come for long enough to prefer it to others, see Watch
	MTU    int           // longest UDP payload in bytes that was answered; 0: not measured
}

// Counters are totals since New. A copy.
type Counters struct {
	Proven         uint64 `json:"proven"`          // probes to proven addresses
	Unproven       uint64 `json:"unproven"`        // probes to other addresses
	SendErrors     uint64 `json:"send_errors"`     // of them not sent
	Replies        uint64 `json:"replies"`         // that counted
	Misses         uint64 `json:"misses"`          // proven addresses that did not answer in time
	Unknown        uint64 `json:"unknown"`         // replies without outstanding challenge: late, replayed or invented
	WrongPeer      uint64 `json:"wrong_peer"`      // replies to a challenge for another peer
	OtherSource    uint64 `json:"other_source"`    // replies that counted, from another address than was asked
	RefusedAddress uint64 `json:"refused_address"` // candidates that may not be asked
	TooMany        uint64 `json:"too_many"`        // candidates above the limit per peer
	Limited        uint64 `json:"limited"`         // times that a limit put off probes
}

// Prover finds and keeps the path of every peer. Make one with New; it works
// while Run does. All methods are safe for concurrent use.
type Prover struct {
	cfg Config
	log *slog.Logger

	wake chan struct{} // capacity 1: something is due earlier than planned

	mu          sync.Mutex // guards the fields below; never held over sends and callbacks
	peers       map[trust.GatewayID]*peer
	watched     map[trust.GatewayID]bool
	table       queue[*peer]    // the same, by the moment at which they want attention
	waiters     queue[*address] // unproven addresses that are due and wait for the budget
	sweep       sweep
	planned     time.Time // of the next round
	joined      bool      // an address began to wait since the last round
	outstanding map[[16]byte]*attempt
	sent        []*attempt // oldest first, until they expire
	limits      limits
	pruned      time.Time
	events      []func() // callbacks to be called by Run
	counters    Counters
	rounds      uint64 // of Run
}

// attempt is a probe under way.
type attempt struct {
	challenge [16]byte
	peer      *peer
	at        *address
	size      int
	sent      time.Time
	measures  bool // its loss counts
}

// New makes a Prover. Nothing happens before Run.
func New(cfg Config) *Prover {
	p := &Prover{
		cfg: cfg, log: cfg.Logger,
		wake:        make(chan struct{}, 1),
		peers:       make(map[trust.GatewayID]*peer),
		outstanding: make(map[[16]byte]*attempt),
		limits:      newLimits(cfg.Budget),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	return p
}

// SetPeer sets the candidates of a peer: all of them, each time. Addresses that
// stay keep their state, and a proven one that is no longer named is kept while
// it answers. At most 16 are kept, those of lower Source first.
func (p *Prover) SetPeer(id trust.GatewayID, candidates []Candidate) {
	p.mu.Lock()
	now := time.Now()
	pe := p.peers[id]
	if pe == nil {
		pe = &peer{id: id, prover: p, away: now, watch: watch{on: p.watched[id]}}
		p.peers[id] = pe
	}
	pe.setCandidates(p.accepted(candidates), now)
	p.publish(pe)
	p.schedule(pe, now)
	p.pokeIfEarlier()
	p.mu.Unlock()
}

// accepted returns the candidates that may be asked, best first, without
// duplicates and not more than we keep.
func (p *Prover) accepted(candidates []Candidate) []Candidate {
	sorted := slices.Clone(candidates)
	slices.SortStableFunc(sorted, func(a, b Candidate) int { return cmp.Compare(a.Source, b.Source) })
	var out []Candidate
	for _, c := range sorted {
		c.Addr = netip.AddrPortFrom(c.Addr.Addr().Unmap(), c.Addr.Port())
		switch {
		case !p.allowed(c):
			p.counters.RefusedAddress++
		case slices.ContainsFunc(out, func(o Candidate) bool { return o.Addr == c.Addr }):
		case len(out) == maxAddresses:
			p.counters.TooMany++
		default:
			out = append(out, c)
		}
	}
	return out
}

func (p *Prover) allowed(c Candidate) bool {
	return c.askable(p.cfg.Loopback) && (p.cfg.Allowed == nil || p.cfg.Allowed(c))
}

// RemovePeer forgets a peer. Its path is gone.
func (p *Prover) RemovePeer(id trust.GatewayID) {
	p.mu.Lock()
	if pe := p.peers[id]; pe != nil {
		delete(p.peers, id)
		p.table.remove(pe)
		for _, a := range pe.addresses {
			p.waiters.remove(a)
		}
		pe.removed = true
		pe.path = nil
		p.publish(pe)
		p.pokeIfEarlier()
	}
	p.mu.Unlock()
}

// Kick asks a peer now: at its proven addresses, and once more at those others
// whose last try is long enough ago. For whoever has a reason to think that
// something changed.
func (p *Prover) Kick(id trust.GatewayID) {
	p.mu.Lock()
	if pe := p.peers[id]; pe != nil {
		now := time.Now()
		pe.kick(now, p.limits.budget.KickPause)
		p.schedule(pe, now)
		p.pokeIfEarlier()
	}
	p.mu.Unlock()
}

// Heard notes that an authenticated probe of a peer arrived. One that does not
// answer is asked, once a second at most, where it is or was or may be by its
// record, never where the probe came from: a probe may be a replay.
func (p *Prover) Heard(id trust.GatewayID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pe := p.peers[id]
	if pe == nil || pe.watch.alive {
		return
	}
	now := time.Now()
	if now.Sub(pe.heard) < hurryFor {
		return
	}
	pe.heard = now
	pe.hurry(now, p.limits.budget.KickPause)
	pe.retry(now)
	p.schedule(pe, now)
	p.pokeIfEarlier()
}

// Reply takes an authenticated probe reply of peer and reports whether it
// counts: its challenge must be outstanding, for this peer and not longer than
// five seconds. What it proves is the address that the challenge was sent to,
// because nobody else could know it. Where the reply comes from proves nothing, and
// a host with several addresses may answer from another. It does not block.
func (p *Prover) Reply(from netip.AddrPort, id trust.GatewayID, challenge [16]byte, boot trust.BootID, observed netip.AddrPort) bool {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	a := p.outstanding[challenge]
	switch {
	case a == nil || now.Sub(a.sent) > challengeLife || a.peer.removed || a.at.gone:
		p.counters.Unknown++
		return false
	case a.peer.id != id:
		p.counters.WrongPeer++
		return false
	}
	if a.at.addr != from {
		p.counters.OtherSource++
	}
	delete(p.outstanding, challenge)
	p.counters.Replies++
	pe := a.peer
	if pe.learnBoot(boot, a.sent) {
		p.event(func() { call(p.cfg.OnBoot, id, boot) })
	}
	if observed.IsValid() && observed != a.at.observed {
		a.at.observed = observed
		p.event(func() { call(p.cfg.OnObserved, id, observed) })
	}
	pe.answered(a, now)
	pe.choose(now)
	p.publish(pe)
	p.schedule(pe, now)
	p.pokeIfEarlier()
	return true
}

func call[A, B any](f func(A, B), a A, b B) {
	if f != nil {
		f(a, b)
	}
}

// event queues a callback for Run.
func (p *Prover) event(f func()) { p.events = append(p.events, f) }

// publish queues OnChange if what it last said about pe is no longer so.
func (p *Prover) publish(pe *peer) {
	now, ok := pe.current()
	said := published{addr: now.Addr, alive: now.Alive, steady: now.Steady, mtu: now.MTU, ok: ok}
	if said == pe.said {
		return
	}
	pe.said = said
	p.event(func() {
		p.log.Debug("path changed", "peer", pe.id.Short(), "endpoint", now.Addr, "rtt", now.RTT, "alive", now.Alive)
		if p.cfg.OnChange != nil {
			p.cfg.OnChange(pe.id, now, ok)
		}
	})
}

// Path returns the path of a peer; false if there is none.
func (p *Prover) Path(id trust.GatewayID) (Path, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	pe := p.peers[id]
	if pe == nil {
		return Path{}, false
	}
	return pe.current()
}

// Address is what is known about one address of a peer. A copy.
type Address struct {
	Candidate
	Proven bool // it answered
	InUse  bool // it is the path
	Alive  bool
	RTT    time.Duration
	Loss   float64
	Tries  int // while it was not proven
}

// Addresses returns what is known about every address of a peer, in the order
// in which they came.
func (p *Prover) Addresses(id trust.GatewayID) []Address {
	p.mu.Lock()
	defer p.mu.Unlock()
	pe := p.peers[id]
	if pe == nil {
		return nil
	}
	var out []Address
	for _, a := range pe.addresses {
		out = append(out, Address{
			Candidate: Candidate{Addr: a.addr, Source: a.source},
			Proven:    a.proven, InUse: a == pe.path, Alive: a.alive(), RTT: a.rtt, Loss: a.loss, Tries: a.tries,
		})
	}
	return out
}

// Counters returns the totals so far.
func (p *Prover) Counters() Counters {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counters
}

// poke makes Run look at once.
func (p *Prover) poke() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// minPause is the least time between two looks at the timetable. Everything in
// it may be late by as much.
const minPause = 2 * time.Millisecond

// Run sends probes and calls the callbacks until ctx is done, and then returns
// nil. Call it once.
func (p *Prover) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.wake:
		case <-timer.C:
		}
		timer.Reset(p.round())
	}
}

// round does what is due and returns the time until the next. It touches only
// peers that want attention now.
func (p *Prover) round() time.Duration {
	now := time.Now()
	p.mu.Lock()
	p.rounds++
	p.expire(now)
	p.sweepIfDue(now)
	var probes []*attempt
	for _, pe := range p.dueNow(now) {
		p.counters.Misses += pe.judge(now, p.limits.budget.KickPause)
		pe.choose(now)
		p.publish(pe)
		probes = p.ask(pe, now, probes)
		p.schedule(pe, now)
	}
	probes, wait := p.askUnproven(now, probes)
	next := max(minPause, min(p.untilNext(now), wait))
	p.planned, p.joined = now.Add(next), false
	events := p.events
	p.events = nil
	p.mu.Unlock()

	for _, a := range probes {
		p.send(a)
	}
	for _, f := range events {
		f()
	}
	return next
}

// dueNow takes the peers that want attention out of the timetable, in its order.
func (p *Prover) dueNow(now time.Time) (due []*peer) {
	for {
		pe, ok := p.table.first()
		if !ok || pe.wakes.After(now) {
			return due
		}
		p.table.remove(pe)
		due = append(due, pe)
	}
}

// ask makes the probes of a peer to its proven addresses whose time has come.
func (p *Prover) ask(pe *peer, now time.Time, probes []*attempt) []*attempt {
	for _, a := range pe.addresses {
		switch {
		case !a.asks(now):
		case a.dead && now.Sub(a.last) > forgetAfter && !p.allowed(Candidate{Addr: a.addr, Source: a.source}):
			p.counters.RefusedAddress++
			a.due = now.Add(pe.interval(a, now))
		default:
			p.counters.Proven++
			at := p.begin(&attempt{peer: pe, at: a, size: probeSize}, now)
			a.asked(at)
			probes = append(probes, at)
		}
	}
	if a := p.mtuProbe(pe, now); a != nil {
		p.counters.Proven++
		probes = append(probes, p.begin(a, now))
	}
	return probes
}

// schedule puts a peer to its place in the timetable, and its unproven
// addresses that are due among those that wait for the budget.
func (p *Prover) schedule(pe *peer, now time.Time) {
	wakes := earliestSet(p.mtuWakes(pe, now), pe.watch.wakes())
	for _, a := range pe.addresses {
		if !a.proven && !a.due.After(now) {
			p.joined = p.joined || a.slot == 0
			p.waiters.set(a)
			continue
		}
		p.waiters.remove(a)
		wakes = earliestSet(wakes, a.attention())
	}
	if pe.wakes = wakes; wakes.IsZero() {
		p.table.remove(pe)
		return
	}
	p.table.set(pe)
}

// wakes is when something wants attention; the zero time: nothing does.
func (p *Prover) wakes() time.Time {
	if pe, ok := p.table.first(); ok {
		return earliestSet(pe.wakes, p.sweep.due)
	}
	return p.sweep.due
}

// untilNext is the time until something wants attention.
func (p *Prover) untilNext(now time.Time) time.Duration {
	if wakes := p.wakes(); !wakes.IsZero() {
		return min(wakes.Sub(now), idleRound)
	}
	return idleRound
}

// pokeIfEarlier makes Run look at once if it would be late otherwise.
func (p *Prover) pokeIfEarlier() {
	wakes := p.wakes()
	if !wakes.IsZero() && wakes.Before(p.planned) || len(p.events) > 0 || p.joined {
		p.poke()
	}
}

// send sends a probe and starts its clock.
func (p *Prover) send(a *attempt) {
	p.mu.Lock()
	a.sent = time.Now()
	p.mu.Unlock()
	err := p.cfg.Send.SendProbe(a.peer.id, a.at.addr, a.challenge, a.size)
	if err == nil {
		return
	}
	p.log.Debug("probe not sent", "peer", a.peer.id.Short(), "endpoint", a.at.addr, "err", err)
	p.mu.Lock()
	p.counters.SendErrors++
	p.mu.Unlock()
}

// expire forgets challenges that may no longer be answered: they are lost. It
// forgets full buckets, too.
func (p *Prover) expire(now time.Time) {
	n := 0
	for n < len(p.sent) && now.Sub(p.sent[n].sent) > challengeLife {
		a := p.sent[n]
		if p.outstanding[a.challenge] != nil && a.measures {
			a.at.loss += (1 - a.at.loss) / 16
		}
		delete(p.outstanding, a.challenge)
		n++
	}
	clear(p.sent[:n])
	p.sent = p.sent[n:] // append makes room by itself
	if now.Sub(p.pruned) > time.Minute {
		p.pruned = now
		p.limits.prune(now)
	}
}

// idleRound is the longest time between two rounds.
const idleRound = time.Minute

func earliest(a, b time.Time) time.Time {
	if b.IsZero() || a.Before(b) {
		return a
	}
	return b
}

// askUnproven spends the budget for unproven addresses, and returns how long to
// wait for the next token if some addresses still wait.
func (p *Prover) askUnproven(now time.Time, probes []*attempt) ([]*attempt, time.Duration) {
	b := &p.limits.budget
	for {
		a, ok := p.waiters.first()
		if !ok {
			return probes, idleRound
		}
		if wait := p.limits.everybody(now); wait > 0 {
			p.counters.Limited++
			return probes, wait
		}
		p.waiters.remove(a)
		if !p.allowed(Candidate{Addr: a.addr, Source: a.source}) {
			p.counters.RefusedAddress++
			a.due = now.Add(b.Rest)
		} else if wait := p.limits.admit(a.peer.id, a.addr.Addr(), now); wait > 0 {
			p.counters.Limited++
			a.due = now.Add(wait)
		} else {
			p.counters.Unproven++
			a.tried(now, b)
			probes = append(probes, p.begin(&attempt{peer: a.peer, at: a, size: probeSize}, now))
		}
		p.schedule(a.peer, now)
	}
}

// earliestSet returns the earlier of those that are not zero.
func earliestSet(a, b time.Time) time.Time {
	if a.IsZero() {
		return b
	}
	return earliest(a, b)
}

// begin gives an attempt its challenge.
func (p *Prover) begin(a *attempt, now time.Time) *attempt {
	_, _ = rand.Read(a.challenge[:]) // never fails (crypto/rand)
	a.sent = now
	a.measures = a.at.proven && a.size == probeSize
	p.outstanding[a.challenge] = a
	p.sent = append(p.sent, a)
	return a
}
