package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// publishDelay lets a burst of changes become one record, and stays within the
// one record a second that others accept (security decision 5).
const publishDelay = time.Second

// publishLoop signs and spreads a new record whenever what it says changed.
func (m *Mesh) publishLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.republish:
		}
		text := ""
		if err := m.publishIfChanged(); err != nil {
			text = fmt.Sprintf("the own record cannot be renewed: %v", err)
		}
		m.warn("publish", text)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(publishDelay):
		}
	}
}

// publishIfChanged publishes unless the last record says the same.
func (m *Mesh) publishIfChanged() error {
	m.mu.Lock()
	last, next := m.published, m.draftLocked()
	m.mu.Unlock()
	if last != nil && slices.Equal(last.Endpoints, next.Endpoints) && slices.Equal(last.Routes, next.Routes) &&
		last.Chain.Certificate.Serial == next.Chain.Certificate.Serial {
		return nil
	}
	return m.publish()
}

// publish signs a new record with the next sequence number and spreads it.
func (m *Mesh) publish() error {
	m.publishing.Lock() // records reach the book in their order
	defer m.publishing.Unlock()
	m.mu.Lock()
	if m.duplicate.stopped() {
		m.mu.Unlock()
		return errDuplicate
	}
	r := m.draftLocked()
	n, err := m.seq.take(r.Chain.Certificate.Generation)
	m.mu.Unlock()
	if err != nil {
		return err
	}
	r.Sequence = n
	raw, err := r.Sign(m.self.mesh, m.self.keys.identity)
	if err != nil {
		return err
	}
	signed, err := m.book.PutOwn(raw, m.now())
	if err != nil {
		return fmt.Errorf("own record: %w", err)
	}
	m.mu.Lock()
	m.published = signed
	m.mu.Unlock()
	m.broadcast(signed)
	return nil
}

// publishFirst publishes the first record of a run. Where no sequence number
// is left, the last record of the run before stands until the certificate is
// renewed.
func (m *Mesh) publishFirst() error {
	err := m.publish()
	if !errors.Is(err, errSequenceExhausted) {
		return err
	}
	for _, raw := range m.stored {
		if r, putErr := m.book.PutOwn(raw, m.now()); putErr == nil {
			m.published = r
			return nil
		}
	}
	return err
}

// draftLocked is the record as it would be published now, without sequence.
func (m *Mesh) draftLocked() record.Record {
	r := record.Record{
		Chain:     *m.self.current.Load(),
		WireGuard: trust.ExchangeKey(m.self.keys.wireguard.PublicKey().Bytes()),
		Link:      trust.ExchangeKey(m.self.keys.link.PublicKey().Bytes()),
		Endpoints: m.endpointsLocked(),
		Software:  m.cfg.Software,
	}
	if m.cfg.Device != DeviceNone {
		r.Capabilities |= record.CarriesData
	}
	for _, route := range m.routes {
		r.Routes = append(r.Routes, record.Route{Prefix: route.Prefix, Priority: route.Priority})
	}
	slices.SortFunc(r.Routes, func(a, b record.Route) int { return a.Prefix.Compare(b.Prefix) })
	return r
}

// endpointsLocked are configured addresses, then those that others agree on,
// then local ones; at most 8.
func (m *Mesh) endpointsLocked() []netip.AddrPort {
	var out []netip.AddrPort
	add := func(e netip.AddrPort) {
		if len(out) < maxEndpoints && !slices.Contains(out, e) {
			out = append(out, e)
		}
	}
	for _, e := range m.cfg.Endpoints {
		add(e)
	}
	// Addresses within the own prefixes are no way in from outside.
	local := slices.DeleteFunc(slices.Clone(m.host.candidates()), func(a netip.Addr) bool {
		return slices.ContainsFunc(m.self.granted(), func(p netip.Prefix) bool { return p.Contains(a) })
	})
	for _, a := range local {
		if !a.IsPrivate() && !a.IsLoopback() {
			add(netip.AddrPortFrom(a, m.port.LocalPort()))
		}
	}
	for _, e := range agreed(m.observed) {
		add(e)
	}
	for _, a := range local {
		add(netip.AddrPortFrom(a, m.port.LocalPort()))
	}
	return out
}

// Routes returns the prefixes that this gateway announces.
func (m *Mesh) Routes() []Route {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.routes)
}

// SetRoutes replaces the announced prefixes: all, or none if one of them is
// not within the grant, which is a *GrantError, or is not a valid set of
// routes. Other sites follow within seconds.
func (m *Mesh) SetRoutes(_ context.Context, routes []Route) error {
	if err := m.ended(); err != nil {
		return err
	}
	if err := m.checkRoutes(routes); err != nil {
		return err
	}
	m.mu.Lock()
	m.announceAll, m.routes = false, slices.Clone(routes)
	m.mu.Unlock()
	wake(m.republish)
	wake(m.dirty)
	return nil
}

// checkRoutes reports what is wrong with routes for this gateway.
func (m *Mesh) checkRoutes(routes []Route) error {
	if err := validateRoutes(routes); err != nil {
		return err
	}
	granted := m.self.granted()
	for _, r := range routes {
		if !slices.ContainsFunc(granted, func(g netip.Prefix) bool { return covers(g, r.Prefix) }) {
			return &GrantError{Prefix: r.Prefix, Granted: granted}
		}
	}
	return nil
}

// covers reports whether p lies within g.
func covers(g, p netip.Prefix) bool { return g.Bits() <= p.Bits() && g.Contains(p.Addr()) }

// SetAccept replaces what may be installed from other sites; empty means all
// that is authorised.
func (m *Mesh) SetAccept(accept []netip.Prefix) error {
	if err := m.ended(); err != nil {
		return err
	}
	for _, p := range accept {
		if !p.IsValid() || p != p.Masked() {
			return fmt.Errorf("accept %v: want a prefix without host bits", p)
		}
	}
	m.mu.Lock()
	m.accept = slices.Clone(accept)
	m.mu.Unlock()
	wake(m.dirty)
	return nil
}

// ended returns ErrClosed once the mesh has ended.
func (m *Mesh) ended() error {
	select {
	case <-m.stopped:
		return ErrClosed
	default:
		return nil
	}
}

// now reads the wall clock, never behind what it showed before.
func (m *Mesh) now() time.Time {
	now := m.cfg.Now()
	if now.Before(m.self.floor) {
		return m.self.floor
	}
	return now
}

var errDuplicate = errors.New("duplicate identity: another machine speaks with this gateway's keys; stop it, or enrol this one again with a new ticket")

// A machine that was cloned and its original each take the other's record for
// a lost one of their own and jump past it. Once is a restored backup; so
// often within this time is a clone.
const (
	duplicateJumps  = 5
	duplicateWithin = 5 * time.Minute
)

// ownership watches whether somebody else speaks with our identity.
type ownership struct {
	jumps []time.Time
	last  record.Order // of such records: one that comes again is no jump
	clone bool
}

// jump notes that a record of ours came from outside that we did not make, and
// reports whether it has happened too often.
func (o *ownership) jump(order record.Order, now time.Time) bool {
	if order.Compare(o.last) <= 0 {
		return o.clone
	}
	o.last = order
	o.jumps = slices.DeleteFunc(append(o.jumps, now), func(t time.Time) bool { return now.Sub(t) > duplicateWithin })
	o.clone = o.clone || len(o.jumps) >= duplicateJumps
	return o.clone
}

func (o *ownership) stopped() bool { return o.clone }

// ownAhead is called with a valid record of this gateway that it did not make:
// its state was restored from a backup, its keys were stolen, or its machine
// was cloned. It jumps past and publishes again, unless that goes on and on.
func (m *Mesh) ownAhead(r *record.Record) {
	if r.Order().Generation > m.self.certificate().Generation {
		// Restored from before a renewal: the record brings the certificate.
		before := m.self.granted()
		if err := m.self.adopt(m.cfg.Store, r.Chain.Delegation.Raw(), r.Chain.Certificate.Raw(), m.now()); err != nil {
			m.log.Debug("later certificate of this gateway not taken", "err", err)
		} else {
			m.regranted(before)
		}
	}
	m.mu.Lock()
	if r.Order().Generation == m.self.certificate().Generation {
		m.seq.jumpPast(r.Order().Generation, r.Sequence)
	}
	first := !m.duplicate.stopped()
	clone := m.duplicate.jump(r.Order(), time.Now()) // the wall clock may stand still
	m.mu.Unlock()
	if clone {
		if first {
			m.warn("duplicate identity", errDuplicate.Error())
			m.events.emit(Event{Kind: EventDuplicate, Gateway: m.self.certificate().Gateway, Site: m.self.certificate().Site, Text: errDuplicate.Error()})
		}
		return
	}
	m.log.Warn("a record of this gateway is ahead of it", "sequence", r.Sequence)
	if err := m.publish(); err != nil {
		m.warn("publish", err.Error())
	}
}

// Status returns a snapshot of what this gateway knows.
func (m *Mesh) Status() Status {
	c := m.self.certificate()
	s := Status{
		Version: StatusVersion,
		Time:    m.now(),
		Mesh:    MeshStatus{Name: m.self.root.Genesis.Name, ID: m.self.mesh.String()},
		Self: SelfStatus{
			Gateway: c.Gateway, Site: c.Site, ID: m.self.id.String(), Overlay: m.self.overlay,
			Port: m.port.LocalPort(), MTU: m.cfg.MTU, Granted: m.self.granted(), NotAfter: c.NotAfter,
			Started: m.started, Issuer: m.authority != nil,
		},
		Peers:    []PeerStatus{},
		Counters: make(map[string]uint64),
	}
	if m.cfg.Device == DeviceTUN {
		s.Self.Interface = m.device.Name()
	}
	m.mu.Lock()
	s.Self.Routes = slices.Clone(m.routes)
	if m.published != nil {
		s.Self.Endpoints = slices.Clone(m.published.Endpoints)
		s.Self.Sequence = m.published.Sequence
	}
	for _, cause := range slices.Sorted(maps.Keys(m.warnings)) {
		s.Warnings = append(s.Warnings, m.warnings[cause])
	}
	m.mu.Unlock()
	s.Peers = append(s.Peers, m.peerStatus(s.Time)...)
	m.routeStatus(&s)
	m.counters.into(s.Counters)
	for prefix, part := range map[string]map[string]uint64{
		"link":   numbers(m.port.Counters()),
		"path":   numbers(m.prover.Counters()),
		"stream": m.streams.Counters(),
		"gossip": m.gossip.Counters(),
	} {
		for k, v := range part {
			s.Counters[prefix+"."+k] = v
		}
	}
	s.Counters["events.lost"] = m.events.lostEvents()
	s.Counters["record.equivocating-gateways"] = uint64(len(m.book.Equivocations()))
	return s
}

// peerStatus describes every other gateway with a stored record.
func (m *Mesh) peerStatus(now time.Time) []PeerStatus {
	stats, last := m.device.Stats(), m.applied.Load()
	var out []PeerStatus
	records := m.book.All()
	slices.SortFunc(records, byName)
	for _, r := range records {
		if r.ID == m.self.id {
			continue
		}
		c := r.Chain.Certificate
		p := PeerStatus{
			Gateway: c.Gateway, Site: c.Site, ID: r.ID.String(), Overlay: r.Overlay, State: PeerKnown,
			Endpoints: r.Endpoints, Software: r.Software, Generation: c.Generation, Sequence: r.Sequence, NotAfter: c.NotAfter,
		}
		if path, ok := m.prover.Path(r.ID); ok {
			p.Path, p.RTT, p.Loss, p.MTU, p.LastSeen = path.Addr, path.RTT, path.Loss, path.MTU, path.Proven
		}
		m.mu.Lock()
		if state := m.peers[r.ID]; state != nil {
			p.Since = state.since
			switch {
			case state.alive && last != nil && last.has(r.ID):
				p.State = PeerUp
			case state.proven:
				p.State = PeerUnreachable
			}
		}
		m.mu.Unlock()
		switch {
		case m.revocations.Revoked(r.Chain):
			p.State = PeerRevoked
		case !r.ValidAt(now):
			p.State = PeerExpired
		case r.Left:
			p.State = PeerLeft
		}
		if st, ok := stats[r.WireGuard]; ok {
			p.RxBytes, p.TxBytes, p.LastHandshake = st.Rx, st.Tx, st.LastHandshake
		}
		out = append(out, p)
	}
	return out
}

// routeStatus fills in routes, conflicts and refusals of the last applied state.
func (m *Mesh) routeStatus(s *Status) {
	s.Routes = []RouteStatus{}
	for _, r := range s.Self.Routes {
		s.Routes = append(s.Routes, RouteStatus{Prefix: r.Prefix, Site: s.Self.Site, Gateway: s.Self.Gateway, Local: true, Why: "announced here"})
	}
	last := m.applied.Load()
	if last == nil {
		return
	}
	for _, r := range last.desired.Routes {
		s.Routes = append(s.Routes, RouteStatus{Prefix: r.Prefix, Site: r.Site, Gateway: r.Name, Standby: r.Standby, Why: r.Why})
	}
	slices.SortFunc(s.Routes, func(a, b RouteStatus) int { return a.Prefix.Compare(b.Prefix) })
	for _, c := range last.desired.Conflicts {
		s.Conflicts = append(s.Conflicts, ConflictStatus{Prefix: c.Prefix, Winner: c.Winner, Loser: c.Loser, Reason: c.Reason})
	}
	for _, r := range last.desired.Refused {
		s.Refused = append(s.Refused, RefusedStatus{Prefix: r.Prefix, Gateway: r.Name, Reason: r.Reason})
	}
}
