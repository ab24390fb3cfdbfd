package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
)

// resync is how often the desired state is compared with the real one even
// when nothing happened: it repairs what others changed on the host.
const resync = 30 * time.Second

// settle lets a burst of events become one application.
const settle = 20 * time.Millisecond

// controlLoop owns the desired state. Events only mark it dirty; a missed one
// costs time, not truth.
func (m *Mesh) controlLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.dirty:
		case <-time.After(resync):
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		if err := m.apply(ctx); err != nil && ctx.Err() == nil {
			m.warn("apply", err.Error())
			m.log.Error("desired state not wholly applied", "err", err)
		} else {
			m.warn("apply", "")
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(m.applyPause()):
		}
	}
}

// applyShare and maxApplyPause bound what is spent on applying while changes
// come without end, as when a whole mesh starts: each application looks at all
// gateways, and costs the more the more there are. The first change after a
// pause is applied at once.
const (
	applyShare    = time.Millisecond // of pause for each gateway
	maxApplyPause = 250 * time.Millisecond
)

// applyPause is the least time between two applications.
func (m *Mesh) applyPause() time.Duration {
	return min(time.Duration(m.book.Len())*applyShare, maxApplyPause)
}

// apply computes the desired state and puts the difference into effect. Only
// Open and the control loop call it.
func (m *Mesh) apply(ctx context.Context) error {
	want := engine.Compute(m.inputs())
	var had engine.Desired
	if last := m.applied.Load(); last != nil {
		had = last.desired
	}
	if err := m.device.Apply(ctx, engine.Diff(had, want)); err != nil {
		return fmt.Errorf("configure device: %w", err)
	}
	m.openSessions(had, want)
	m.mu.Lock()
	for _, p := range want.Peers {
		if state := m.peers[p.ID]; state != nil {
			state.wg = p.WireGuard
		}
	}
	announced, lan := prefixesOf(m.routes), slices.Clone(m.lan)
	m.mu.Unlock()
	m.applied.Store(&applied{desired: want})
	if m.hooks.Applied != nil {
		m.hooks.Applied(want)
	}
	m.announce(had, want)
	m.watchOwners(want)

	err := m.host.apply(ctx, hostState{
		overlay:   m.self.overlay,
		mtu:       m.cfg.MTU,
		routes:    append(routePrefixes(want.Routes), m.overlayRoutes(want)...),
		announced: announced,
		lan:       lan,
	})
	if err != nil {
		return fmt.Errorf("configure host: %w", err)
	}
	return nil
}

// openSessions begins a handshake with every new peer. Both sides do: that of
// the one that configured the other last arrives at a peer that knows it, so
// that no packet waits for WireGuard's retry after 5 s.
func (m *Mesh) openSessions(had, want engine.Desired) {
	for _, p := range want.Peers {
		if hasPeer(had, p.ID) {
			continue
		}
		if err := m.device.Initiate(p.WireGuard); err != nil {
			m.log.Debug("session not begun", "peer", p.Name, "err", err)
		}
	}
}

// overlayRoutes are the overlay addresses of all peers, so that the gateways
// themselves reach each other.
func (m *Mesh) overlayRoutes(d engine.Desired) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range d.Peers {
		if p.Overlay.IsValid() {
			out = append(out, netip.PrefixFrom(p.Overlay, 128))
		}
	}
	return out
}

// inputs collects what the engine decides from.
func (m *Mesh) inputs() engine.Inputs {
	now := m.now()
	records := slices.DeleteFunc(m.book.All(), func(r *record.Record) bool {
		return m.revocations.Revoked(r.Chain) || !r.ValidAt(now)
	})
	in := engine.Inputs{
		Self:          m.self.id,
		Site:          m.self.certificate().Site,
		Overlay:       m.self.block,
		Announcements: m.said.of(records),
	}
	m.mu.Lock()
	in.Accept = slices.Clone(m.accept)
	in.Proven = make(map[GatewayID]bool, len(m.peers))
	alive, steady := make(map[GatewayID]bool, len(m.peers)), make(map[GatewayID]bool, len(m.peers))
	for id, p := range m.peers {
		in.Proven[id], alive[id], steady[id] = p.proven, p.alive, p.steady
	}
	for i, r := range records {
		if key, ok := m.provenKeyLocked(r); ok {
			in.Announcements[i].WireGuard = key
		} else {
			in.Proven[r.ID] = false
		}
	}
	m.mu.Unlock()
	in.Alive = preferable(in.Announcements, alive, steady)
	in.Local = m.localPrefixes(in.Announcements)
	return in
}

// localPrefixes are the announced prefixes of others that this host cannot
// route into the overlay, and the addresses of endpoints in use.
func (m *Mesh) localPrefixes(all []engine.Announcement) []engine.Local {
	out := make([]engine.Local, 0, len(all))
	for _, a := range all {
		if a.ID == m.self.id {
			continue
		}
		for _, r := range a.Routes {
			if with, reason, collides := m.host.collision(r.Prefix); collides {
				out = append(out, engine.Local{Prefix: with, Reason: reason})
			}
		}
		if path, ok := m.prover.Path(a.ID); ok {
			addr := path.Addr.Addr().Unmap()
			out = append(out, engine.Local{Prefix: netip.PrefixFrom(addr, addr.BitLen()), Reason: "covers the endpoint of " + a.Name})
		}
	}
	return out
}

// sayings are what the engine needs of records, kept for as long as the
// records stand. Open and the control loop use it, one after the other.
type sayings map[GatewayID]saying

type saying struct {
	record       *record.Record
	announcement engine.Announcement
}

// of returns the announcement of each record. Their lists are not to be changed.
func (s *sayings) of(records []*record.Record) []engine.Announcement {
	if *s == nil || len(*s) > 2*len(records) { // more than half have gone
		*s = make(sayings, len(records))
	}
	out := make([]engine.Announcement, len(records))
	for i, r := range records {
		said := (*s)[r.ID]
		if said.record != r {
			said = saying{r, announcement(r)}
			(*s)[r.ID] = said
		}
		out[i] = said.announcement
	}
	return out
}

// announcement is what the engine needs of a record.
func announcement(r *record.Record) engine.Announcement {
	c := r.Chain.Certificate
	a := engine.Announcement{
		ID:        r.ID,
		Name:      c.Gateway,
		Site:      c.Site,
		Org:       r.Chain.Delegation.Organisation,
		WireGuard: r.WireGuard,
		Overlay:   r.Overlay,
		Left:      r.Left,
	}
	for _, g := range c.Grants {
		a.Grants = append(a.Grants, engine.Grant{Prefix: g.Prefix, Claim: r.Chain.Claim(g)})
	}
	for _, route := range r.Routes {
		a.Routes = append(a.Routes, engine.AnnouncedRoute{Prefix: route.Prefix, Priority: route.Priority})
	}
	return a
}

// announce tells watchers and the log what changed in peers, routes and conflicts.
func (m *Mesh) announce(had, want engine.Desired) {
	for _, p := range want.Peers {
		if hasPeer(had, p.ID) {
			continue
		}
		path, ok := m.prover.Path(p.ID)
		if r, known := m.book.Get(p.ID); known && ok {
			c := r.Chain.Certificate
			m.log.Info("peer up", "peer", c.Gateway, "site", c.Site, "path", path.Addr, "rtt", path.RTT)
			m.events.emit(Event{Kind: EventPeerUp, Gateway: c.Gateway, Site: c.Site, Path: path.Addr})
		}
	}
	old := make(map[netip.Prefix]engine.Route)
	for _, r := range had.Routes {
		old[r.Prefix] = r
	}
	for _, r := range want.Routes {
		before, existed := old[r.Prefix]
		delete(old, r.Prefix)
		e := Event{Kind: EventRouteAdded, Gateway: r.Name, Site: r.Site, Prefix: r.Prefix, Text: r.Why}
		switch {
		case !existed:
			m.log.Info("route added", "route", r.Prefix, "peer", r.Name, "site", r.Site)
		case before.Peer != r.Peer:
			e.Kind = EventRouteMoved
			m.log.Info("route moved", "route", r.Prefix, "peer", r.Name, "site", r.Site)
		default:
			continue
		}
		m.events.emit(e)
	}
	for _, r := range old {
		m.events.emit(Event{Kind: EventRouteRemoved, Gateway: r.Name, Site: r.Site, Prefix: r.Prefix})
		m.log.Info("route removed", "route", r.Prefix, "peer", r.Name, "site", r.Site)
	}
	for _, c := range want.Conflicts {
		if !slices.Contains(had.Conflicts, c) {
			m.events.emit(Event{Kind: EventConflict, Prefix: c.Prefix, Gateway: c.Loser, Text: c.Reason})
			m.log.Warn("overlapping grants", "route", c.Prefix, "peer", c.Loser, "err", c.Reason)
		}
	}
	for _, r := range want.Refused {
		if !slices.Contains(had.Refused, r) {
			m.events.emit(Event{Kind: EventRefused, Prefix: r.Prefix, Gateway: r.Name, Text: r.Reason})
			m.log.Warn("route not installed", "route", r.Prefix, "peer", r.Name, "err", r.Reason)
		}
	}
}

// has reports whether a gateway is a peer of the device.
func (a *applied) has(id GatewayID) bool { return hasPeer(a.desired, id) }

func hasPeer(d engine.Desired, id GatewayID) bool {
	_, found := slices.BinarySearchFunc(d.Peers, id, func(p engine.Peer, id GatewayID) int { return compareIDs(p.ID, id) })
	return found
}

func prefixesOf(routes []Route) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range routes {
		out = append(out, r.Prefix)
	}
	return out
}

func routePrefixes(routes []engine.Route) []netip.Prefix {
	var out []netip.Prefix
	for _, r := range routes {
		out = append(out, r.Prefix)
	}
	return out
}

// hostChanged is called when addresses or routes of the host change.
func (m *Mesh) hostChanged() {
	m.port.ClearSources()
	wake(m.dirty)
	wake(m.republish)
}

// savePause is the least time between two writes. The first change of a burst
// is written at once: a gateway that is killed right after it met the others
// must find them again.
const savePause = 200 * time.Millisecond

// saveLoop keeps records and peers on disk, so that a mesh whose seed is gone
// restarts and re-forms.
func (m *Mesh) saveLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-m.unsaved:
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(settle):
		}
		text := ""
		if err := m.save(); err != nil {
			text = fmt.Sprintf("records are not stored; after a restart this gateway may not find the others: %v", err)
		}
		m.warn("save", text)
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(savePause):
		}
	}
}

// save writes records, proven addresses and the time.
func (m *Mesh) save() error {
	var raws [][]byte
	for _, r := range m.book.All() {
		raws = append(raws, r.Raw)
	}
	m.mu.Lock()
	proven := make(map[string]netip.AddrPort, len(m.saved))
	for id, addr := range m.saved {
		if _, known := m.book.Get(id); known {
			proven[id.String()] = addr
		}
	}
	m.mu.Unlock()
	return errors.Join(
		saveList(m.cfg.Store, fileRecords, raws),
		saveJSON(m.cfg.Store, filePeers, proven),
		saveJSON(m.cfg.Store, fileTime, m.now()),
	)
}

// upkeepInterval is how often validity is looked at: a certificate's end is
// a matter of hours of tolerance.
const upkeepInterval = time.Minute

// upkeepLoop drops expired records, renews the own certificate, and reminds
// others of wider ones.
func (m *Mesh) upkeepLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(upkeepInterval):
		}
		for _, id := range m.book.Expire(m.now()) {
			m.forget(id)
			wake(m.unsaved)
		}
		m.revocations.Expire(m.now())
		wake(m.dirty)
		m.renewIfDue(ctx)
		m.remind(ctx)
	}
}
