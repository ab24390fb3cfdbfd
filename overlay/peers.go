package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/link"
	"github.com/planetmesh/planetmesh/overlay/internal/path"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wgdev"
)

// offer gives a record that came from outside to the book and acts on what
// the book makes of it. how names the way it came, for the log.
func (m *Mesh) offer(raw []byte, how string) (*record.Record, error) {
	verdict, r, err := m.book.Offer(raw, m.now(), time.Now())
	m.heed(verdict, r, err, how)
	return r, err
}

// heed acts on what the book made of a record.
func (m *Mesh) heed(verdict record.Verdict, r *record.Record, err error, how string) {
	m.count("record." + verdict.String())
	switch verdict {
	case record.Accepted:
		m.log.Debug("record accepted", "peer", r.Chain.Certificate.Gateway, "order", r.Order(), "from", how)
		m.accepted(r)
	case record.Conflict:
		m.events.emit(Event{Kind: EventRefused, Gateway: r.Chain.Certificate.Gateway, Site: r.Chain.Certificate.Site, Text: "two records of one order"})
		m.accepted(r)
	case record.OwnAhead:
		m.ownAhead(r)
	case record.Refused:
		m.log.Debug("record refused", "from", how, "err", err)
	}
}

// ripenInterval is how often records that came too fast are looked at again:
// one a second is what a gateway may change (security decision 5).
const ripenInterval = time.Second

// ripenLoop takes in what the rate limit has held back, so that the newest
// record of a gateway stands even if nobody sends it again.
func (m *Mesh) ripenLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(ripenInterval):
		}
		for _, r := range m.book.Ripe(time.Now()) {
			m.count("record.accepted")
			m.accepted(r)
		}
	}
}

// accepted makes a record that the book took known to every part.
func (m *Mesh) accepted(r *record.Record) {
	if r.ID == m.self.id {
		return
	}
	if m.hooks.Accepted != nil {
		m.hooks.Accepted(r)
	}
	m.setPeer(r)
	m.broadcast(r)
	wake(m.dirty)
	wake(m.unsaved)
}

// setPeer tells the link and the path prover about a gateway, or to forget it.
func (m *Mesh) setPeer(r *record.Record) {
	if r.Left || m.revocations.Revoked(r.Chain) {
		m.forget(r.ID)
		return
	}
	err := m.port.SetPeer(link.PeerKeys{
		ID:                r.ID,
		Identity:          r.Chain.Certificate.Identity,
		Link:              r.Link,
		WireGuard:         r.WireGuard,
		PreviousLink:      r.PreviousLink,
		PreviousWireGuard: r.PreviousWireGuard,
	})
	if err != nil {
		m.count("peer.keys")
		m.log.Debug("keys of a peer refused", "peer", r.Chain.Certificate.Gateway, "err", err)
		return
	}
	m.mu.Lock()
	state := m.peers[r.ID]
	if state == nil {
		state = &peer{}
		m.peers[r.ID] = state
	}
	state.keys = slices.DeleteFunc(state.keys, func(k trust.ExchangeKey) bool { return k != r.WireGuard && k != r.PreviousWireGuard })
	unproven := state.proven && !slices.Contains(state.keys, r.WireGuard)
	m.mu.Unlock()
	m.setCandidates(r)
	if unproven {
		m.prover.Kick(r.ID)
	}
}

// keyProven notes that a peer answered a challenge under one of its WireGuard
// keys. Until it has, the key in its record may be somebody else's.
func (m *Mesh) keyProven(id GatewayID, key trust.ExchangeKey) {
	m.mu.Lock()
	state := m.peers[id]
	fresh := state != nil && !slices.Contains(state.keys, key)
	if fresh {
		state.keys = append(state.keys, key)
	}
	m.mu.Unlock()
	if fresh {
		wake(m.dirty)
	}
}

// provenKeyLocked returns the WireGuard key that a gateway may be configured with:
// the present one of its record, or the previous one while that alone is proven.
func (m *Mesh) provenKeyLocked(r *record.Record) (trust.ExchangeKey, bool) {
	state := m.peers[r.ID]
	for _, key := range [...]trust.ExchangeKey{r.WireGuard, r.PreviousWireGuard} {
		if state != nil && slices.Contains(state.keys, key) {
			return key, true
		}
	}
	return r.WireGuard, false
}

// setCandidates tells the prover where a gateway may be.
func (m *Mesh) setCandidates(r *record.Record) {
	m.mu.Lock()
	state, proven := m.peers[r.ID], m.saved[r.ID]
	if state == nil {
		m.mu.Unlock()
		return
	}
	seen := state.seen
	m.mu.Unlock()
	var candidates []path.Candidate
	add := func(addr netip.AddrPort, source path.Source) {
		if addr.IsValid() {
			candidates = append(candidates, path.Candidate{Addr: addr, Source: source})
		}
	}
	add(proven, path.Proven)
	if m.isSeed(seen) {
		add(seen, path.Configured)
	} else {
		add(seen, path.Observed)
	}
	for _, e := range r.Endpoints {
		add(e, path.Record)
	}
	m.prover.SetPeer(r.ID, candidates)
}

// forget takes a gateway that left, was revoked or expired out of every part.
func (m *Mesh) forget(id GatewayID) {
	m.prover.RemovePeer(id)
	m.port.RemovePeer(id)
	m.streams.Disconnect(id)
	m.mu.Lock()
	delete(m.peers, id)
	delete(m.observed, id)
	m.mu.Unlock()
	wake(m.dirty)
}

// pathChanged is called by the prover: packets to a peer take another way, or
// it stopped answering.
func (m *Mesh) pathChanged(id GatewayID, p path.Path, ok bool) {
	r, known := m.book.Get(id)
	if !known {
		return
	}
	m.mu.Lock()
	state := m.peers[id]
	if state == nil {
		m.mu.Unlock()
		return
	}
	wasAlive := state.alive
	moved := ok && m.saved[id] != p.Addr
	state.alive = ok && p.Alive
	steadied := state.steady != (ok && p.Steady)
	state.steady = ok && p.Steady
	fresh := ok && !state.proven
	if ok {
		state.proven = true
		m.saved[id] = p.Addr
	}
	if wasAlive != state.alive {
		state.since = m.now()
	}
	alive := state.alive
	m.mu.Unlock()

	if steadied {
		wake(m.dirty)
	}
	if ok {
		m.port.SetPath(id, p.Addr)
	}
	if m.hooks.Reachable != nil && alive != wasAlive {
		m.hooks.Reachable(id, alive)
	}
	if fresh {
		// One of the two may have been away: what it missed comes at once.
		wake(m.newcomer)
	}
	e := Event{Gateway: r.Chain.Certificate.Gateway, Site: r.Chain.Certificate.Site, Path: p.Addr}
	switch {
	case alive && !wasAlive:
		if last := m.applied.Load(); last == nil || !last.has(id) {
			// Not usable before the device knows it: announce tells then.
			wake(m.dirty)
			wake(m.unsaved)
			return
		}
		e.Kind = EventPeerUp
		m.log.Info("peer up", "peer", e.Gateway, "site", e.Site, "path", p.Addr, "rtt", p.RTT)
	case !alive && wasAlive:
		e.Kind = EventPeerDown
		m.log.Warn("peer does not answer", "peer", e.Gateway, "site", e.Site, "path", p.Addr)
	case moved:
		e.Kind = EventPathChanged
		m.log.Info("path changed", "peer", e.Gateway, "site", e.Site, "path", p.Addr, "rtt", p.RTT)
	default:
		return
	}
	m.events.emit(e)
	wake(m.dirty)
	wake(m.unsaved)
}

// bootSeen is called with the boot ID that a peer spoke with under its pair key.
// It reports whether it was a new one.
func (m *Mesh) bootSeen(id GatewayID, boot trust.BootID) bool {
	m.mu.Lock()
	state := m.peers[id]
	if state == nil || state.boot == boot {
		m.mu.Unlock()
		return false
	}
	restarted := state.boot != trust.BootID{}
	state.boot = boot
	key := state.wg
	m.mu.Unlock()

	if err := m.port.SetBoot(id, boot); err != nil {
		m.log.Debug("gossip keys of a peer not made", "peer", id.Short(), "err", err)
	}
	if !restarted {
		return true
	}
	// The peer has lost its WireGuard session: without a new handshake packets
	// would vanish until ours times out (design: boot IDs).
	if key != (trust.ExchangeKey{}) {
		if err := m.device.Restart(key); err != nil && !errors.Is(err, wgdev.ErrNoPeer) {
			m.log.Debug("session of a restarted peer not renewed", "peer", id.Short(), "err", err)
		}
	}
	m.prover.Kick(id)
	if r, ok := m.book.Get(id); ok {
		m.events.emit(Event{Kind: EventPeerRestart, Gateway: r.Chain.Certificate.Gateway, Site: r.Chain.Certificate.Site})
		m.log.Info("peer restarted", "peer", r.Chain.Certificate.Gateway, "site", r.Chain.Certificate.Site)
	}
	return true
}

// observedAt is called when a peer answered a probe and said where it saw the
// probe come from.
func (m *Mesh) observedAt(id GatewayID, mine netip.AddrPort) {
	m.mu.Lock()
	changed := m.observed[id] != mine
	m.observed[id] = mine
	m.mu.Unlock()
	if changed {
		wake(m.republish)
	}
}

// agreed returns the addresses at which others see this gateway: those that two
// identities agree on, or the only one if there is only one.
func agreed(observed map[GatewayID]netip.AddrPort) []netip.AddrPort {
	votes := make(map[netip.AddrPort]int)
	for _, a := range observed {
		votes[a]++
	}
	var out []netip.AddrPort
	for a, n := range votes {
		if n >= 2 || len(observed) == 1 {
			out = append(out, a)
		}
	}
	slices.SortFunc(out, netip.AddrPort.Compare)
	return out
}

// usableEndpoint says whether an underlay address may be somebody's endpoint
// (security decision 4). configured are those that a person or a ticket named.
func (m *Mesh) usableEndpoint(e netip.AddrPort, configured bool) bool {
	addr := e.Addr().Unmap()
	switch {
	case e.Port() == 0, !addr.IsValid(), addr.IsUnspecified(), addr.IsMulticast():
		return false
	case addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case m.self.block.Contains(addr):
		return false
	case m.behindGateway(addr):
		// Reached through the overlay itself, it would be a loop.
		return false
	case configured:
		return true
	}
	if addr.IsLoopback() {
		// Only gateways of one machine name it, and only if they have nothing else.
		return m.onlyLoopback()
	}
	if addr.IsPrivate() || addr.IsLinkLocalUnicast() {
		return m.host.onLink(addr)
	}
	return true
}

// behindGateway reports whether addr lies in a prefix that a gateway was
// granted. Gateways of this site may use the LAN that they share.
func (m *Mesh) behindGateway(addr netip.Addr) bool {
	own, ours, others := m.self.certificate().Site, false, false
	m.book.Granted(addr, func(site string) bool {
		ours, others = ours || site == own, others || site != own
		return !others
	})
	return others || ours && !m.host.onLink(addr)
}

// onlyLoopback reports whether this host itself can be reached by nothing else.
func (m *Mesh) onlyLoopback() bool {
	return !slices.ContainsFunc(m.host.candidates(), func(a netip.Addr) bool { return !a.IsLoopback() })
}

// introduced is called by streams with the introduction of the other side of a
// connection whose identity TLS has proven. An error closes the connection.
func (m *Mesh) introduced(identity trust.IdentityKey, b []byte, from netip.AddrPort) (GatewayID, error) {
	intro, err := trust.DecodeIntroduction(b)
	if err != nil {
		m.count("introduction.format")
		return GatewayID{}, err
	}
	if err := m.mergeRevocations(intro.Revocations); err != nil {
		m.count("introduction.revocations")
		return GatewayID{}, err
	}
	// Verified in full even if the book has a newer one: this is who speaks.
	r, err := m.book.Verify(intro.Record, m.now())
	if err != nil {
		m.count("introduction.record")
		return GatewayID{}, err
	}
	if r.Chain.Certificate.Identity != identity {
		m.count("introduction.identity")
		return GatewayID{}, errors.New("introduction with the record of another identity")
	}
	if m.revocations.Revoked(r.Chain) {
		m.count("introduction.revoked")
		return GatewayID{}, trust.ErrRevoked
	}
	if r.ID == m.self.id {
		m.count("introduction.self")
		return GatewayID{}, errors.New("introduction of ourselves")
	}
	verdict, stands, err := m.book.OfferVerified(r, time.Now())
	m.heed(verdict, stands, err, "introduction")
	if err != nil {
		return GatewayID{}, err
	}
	if m.bootSeen(r.ID, intro.Boot) {
		wake(m.newcomer)
	}
	m.mu.Lock()
	state := m.peers[r.ID]
	fresh := state != nil && state.seen != from
	if fresh {
		state.seen = from
	}
	m.mu.Unlock()
	if newest, ok := m.book.Get(r.ID); ok && fresh {
		m.setCandidates(newest)
	}
	m.prover.Kick(r.ID)
	return r.ID, nil
}

// introduction is what this gateway says of itself.
func (m *Mesh) introduction() []byte {
	m.mu.Lock()
	own := m.published
	m.mu.Unlock()
	b, err := trust.Introduction{
		Record:      own.Raw,
		Boot:        m.boot,
		Epochs:      m.self.epochs,
		Revocations: m.revocations.Raw(),
	}.Encode()
	if err != nil {
		// Too many revocations for one message: anti-entropy brings them.
		m.count("introduction.too-long")
		b, _ = trust.Introduction{Record: own.Raw, Boot: m.boot}.Encode()
	}
	return b
}

// mergeRevocations takes in what others know, on disk before it is acted on.
func (m *Mesh) mergeRevocations(raws [][]byte) error {
	changed := false
	for _, raw := range raws {
		fresh, err := m.revocations.Add(raw)
		if err != nil {
			m.count("revocation.refused")
			return fmt.Errorf("revocation: %w", err)
		}
		changed = changed || fresh
	}
	if !changed {
		return nil
	}
	if err := saveList(m.cfg.Store, fileRevocations, m.revocations.Raw()); err != nil {
		return err
	}
	for _, r := range m.book.All() {
		if r.ID != m.self.id && m.revocations.Revoked(r.Chain) {
			m.forget(r.ID)
		}
	}
	return nil
}

// broadcast lets gossip carry a record. One that is too large for a datagram
// travels by anti-entropy alone.
func (m *Mesh) broadcast(r *record.Record) {
	if err := m.gossip.Broadcast(r.Raw, r.ID.String()); err != nil {
		m.count("gossip.not-broadcast")
	}
}
