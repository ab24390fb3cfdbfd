package overlay

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"slices"

	"github.com/planetmesh/planetmesh/overlay/internal/gossip"
	"github.com/planetmesh/planetmesh/overlay/internal/link"
	"github.com/planetmesh/planetmesh/overlay/internal/path"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/stream"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wgdev"
)

// openState reads everything that an earlier run has stored, and checks the
// routes of the configuration against the grant.
func (m *Mesh) openState() error {
	store := m.cfg.Store
	m.self.seeds = append(slices.Clone(m.cfg.Seeds), m.self.seeds...)
	m.book = record.NewBook(m.self.root, m.self.id)
	m.revocations = trust.NewRevocations(m.self.root)
	revocations, err := loadList(store, fileRevocations)
	if err != nil {
		return err
	}
	for _, raw := range revocations {
		if _, err := m.revocations.Add(raw); err != nil {
			return fmt.Errorf("%s: %w: %w", fileRevocations, err, ErrStateCorrupt)
		}
	}
	if m.stored, err = loadList(store, fileRecords); err != nil {
		return err
	}
	if m.seq, err = openSequence(store); err != nil {
		return err
	}
	proven := make(map[string]netip.AddrPort)
	if err := loadJSON(store, filePeers, &proven); err != nil {
		return err
	}
	for text, addr := range proven {
		if id, err := trust.ParseGatewayID(text); err == nil && addr.IsValid() {
			m.saved[id] = addr
		}
	}
	if m.authority, err = loadAuthority(store, m.self.root); err != nil {
		return err
	}
	if m.authority != nil {
		m.authority.records = m.book.All
		m.authority.redeemed = func(gateway, site string) {
			m.log.Info("ticket redeemed", "peer", gateway, "site", site)
			m.events.emit(Event{Kind: EventRedeemed, Gateway: gateway, Site: site})
		}
	}
	m.routes = slices.Clone(m.cfg.Routes)
	if m.cfg.Routes == nil {
		m.announceAll, m.routes = true, routesTo(m.self.granted())
	}
	return m.checkRoutes(m.routes)
}

// loadRecords offers the stored records, after every part is there that hears
// of accepted ones.
func (m *Mesh) loadRecords() {
	for _, raw := range m.stored {
		// One that has expired since is refused, and that is all.
		_, _ = m.offer(raw, "disk")
	}
	m.stored = nil
}

func (m *Mesh) openPort(ctx context.Context) (err error) {
	m.port, err = link.Open(ctx, link.Config{
		Mesh: m.self.mesh,
		Own: link.OwnKeys{
			ID:        m.self.id,
			Identity:  m.self.certificate().Identity,
			Boot:      m.boot,
			Link:      m.self.keys.link,
			WireGuard: m.self.keys.wireguard,
		},
		Port:         m.cfg.Port,
		ListenPacket: m.cfg.ListenPacket,
		Logger:       m.log,
	})
	return err
}

// openControl builds paths, streams and gossip on the port.
func (m *Mesh) openControl() (err error) {
	m.prover = path.New(path.Config{
		Send: m.port,
		Allowed: func(c path.Candidate) bool {
			return m.usableEndpoint(c.Addr, c.Source == path.Proven || c.Source == path.Configured)
		},
		Loopback:   m.cfg.Device != DeviceTUN,
		OnChange:   m.pathChanged,
		OnBoot:     func(id GatewayID, boot trust.BootID) { m.bootSeen(id, boot) },
		OnObserved: m.observedAt,
		Logger:     m.log,
	})
	m.port.Handle(handler{m})
	m.streams, err = stream.New(stream.Config{
		Conn:      m.port.StreamConn(),
		Identity:  m.self.keys.identity,
		Introduce: m.introduction,
		Verify:    m.introduced,
		Addr:      m.provenAddr,
		Proven:    m.isProven,
		Enrol:     m.enrol,
		Handlers: map[byte]stream.Handler{
			stream.TypeAntiEntropy: func(_ context.Context, peer GatewayID, s stream.Stream) { m.serveEntropy(peer, s) },
			stream.TypeGossip:      func(ctx context.Context, peer GatewayID, s stream.Stream) { m.gossip.Stream(ctx, peer, s) },
			stream.TypeAPI:         func(ctx context.Context, peer GatewayID, s stream.Stream) { m.serveAPI(ctx, peer, s) },
		},
		Logger: m.log,
	})
	if err != nil {
		return err
	}
	m.gossip, err = gossip.New(gossip.Config{
		Self: m.self.id,
		Addr: m.overlayAddr,
		Send: m.gossipOut,
		Open: func(ctx context.Context, peer GatewayID) (net.Conn, error) {
			return m.streams.OpenStream(ctx, peer, stream.TypeGossip)
		},
		OnUser: m.gossiped,
		OnHint: func(peer GatewayID, _ bool) { m.prover.Kick(peer) },
		Logger: m.log,
	})
	return err
}

// handler gives what the port receives to those whom it is for.
type handler struct{ m *Mesh }

func (h handler) Probe(from netip.AddrPort, peer trust.GatewayID, p link.Probe) bool {
	if h.m.pings.answered(peer, p.Challenge) {
		return true
	}
	if !h.m.prover.Reply(from, peer, p.Challenge, p.Boot, p.Observed) {
		return false
	}
	h.m.keyProven(peer, p.WireGuard)
	return true
}

func (h handler) Heard(peer trust.GatewayID) { h.m.prover.Heard(peer) }

func (h handler) Gossip(peer trust.GatewayID, _ trust.BootID, b []byte) { h.m.gossipIn(peer, b) }

// provenAddr is where streams to a peer go.
func (m *Mesh) provenAddr(id GatewayID) (netip.AddrPort, bool) {
	p, ok := m.prover.Path(id)
	return p.Addr, ok
}

// isProven reports whether a peer that answers has proven the address.
func (m *Mesh) isProven(addr netip.AddrPort) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, a := range m.saved {
		if p := m.peers[id]; a == addr && p != nil && p.alive {
			return true
		}
	}
	return false
}

// overlayAddr is what memberlist takes for the address of a gateway.
func (m *Mesh) overlayAddr(id GatewayID) (netip.Addr, bool) {
	if id == m.self.id {
		return m.self.overlay, true
	}
	r, ok := m.book.Get(id)
	if !ok || r.Left || m.revocations.Revoked(r.Chain) {
		return netip.Addr{}, false
	}
	return r.Overlay, true
}

// gossiped takes a record that a peer broadcasts.
func (m *Mesh) gossiped(_ GatewayID, b []byte) { _, _ = m.offer(b, "gossip") }

// enrol answers a sealed enrolment request, or passes it on to its redeemer.
func (m *Mesh) enrol(ctx context.Context, sealed []byte, _ netip.AddrPort) ([]byte, error) {
	redeemer, err := trust.Redeemer(sealed)
	if err != nil {
		m.count("enrol.format")
		return nil, err
	}
	if redeemer == m.self.id {
		if m.authority == nil {
			m.count("enrol.no-issuer")
			return nil, ErrNotIssuer
		}
		m.count("enrol.judged")
		return m.authority.redeem(sealed, m.self, m.now())
	}
	// One hop, unread: the redeemer takes it only from whom it is for.
	to, ok := m.provenAddr(redeemer)
	if !ok {
		m.count("enrol.no-path")
		return nil, ErrNoPath
	}
	m.count("enrol.forwarded")
	return m.streams.Enrol(ctx, to, sealed)
}

// openDevice makes what carries the packets.
func (m *Mesh) openDevice() (wgdev.Device, error) {
	cfg := wgdev.Config{
		Kind:         wgdev.Kind(m.cfg.Device),
		MTU:          m.cfg.MTU,
		Addresses:    []netip.Addr{m.self.overlay},
		Bind:         m.port.Bind(),
		PrivateKey:   m.self.keys.wireguard,
		EndpointText: m.port.EndpointText,
		Logger:       m.log,
	}
	if m.cfg.Device == DeviceTUN {
		cfg.Name, cfg.ControlSocket = m.cfg.Interface, true
	}
	if m.hooks.Device != nil {
		return m.hooks.Device(cfg)
	}
	return wgdev.Open(cfg)
}

// watchDevice ends the mesh if its device ends by itself: somebody deleted the
// interface.
func (m *Mesh) watchDevice(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-m.device.Done():
		return cmp.Or(m.device.Err(), wgdev.ErrClosed)
	}
}

// DialContext connects through the mesh to a literal address: the overlay
// address of a gateway, or one behind it. It needs DeviceNetstack: else
// ErrUnsupported, since the host's own sockets do it.
func (m *Mesh) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	if err := m.needStack(); err != nil {
		return nil, err
	}
	return m.device.Netstack().DialContext(ctx, network, address)
}

// Listen listens for TCP connections from the mesh, on the overlay address
// unless address names another. Errors as DialContext.
func (m *Mesh) Listen(network, address string) (net.Listener, error) {
	if err := m.needStack(); err != nil {
		return nil, err
	}
	return m.device.Netstack().Listen(network, address)
}

// ListenPacket listens for UDP datagrams from the mesh, as Listen.
func (m *Mesh) ListenPacket(network, address string) (net.PacketConn, error) {
	if err := m.needStack(); err != nil {
		return nil, err
	}
	return m.device.Netstack().ListenPacket(network, address)
}

func (m *Mesh) needStack() error {
	if err := m.ended(); err != nil {
		return err
	}
	if m.device.Netstack() == nil {
		return fmt.Errorf("device %s has no network stack: %w", m.cfg.Device, ErrUnsupported)
	}
	return nil
}

// numbers turns a struct of counters into the names of its JSON form.
func numbers(counters any) map[string]uint64 {
	out := make(map[string]uint64)
	if b, err := json.Marshal(counters); err == nil {
		_ = json.Unmarshal(b, &out)
	}
	return out
}

// issuer is the gateway that certified this one: the one whose own certificate
// is of the same delegation and that redeemed the ticket.
func (m *Mesh) issuer() (GatewayID, error) {
	var id trust.IdentityKey
	b, err := m.cfg.Store.Load(fileRedeemer)
	if errors.Is(err, fs.ErrNotExist) {
		return GatewayID{}, errors.New("the gateway that issued it is not known")
	}
	if err != nil {
		return GatewayID{}, err
	}
	if len(b) != ed25519.PublicKeySize {
		return GatewayID{}, fmt.Errorf("%s: %w", fileRedeemer, ErrStateCorrupt)
	}
	copy(id[:], b)
	return trust.IDOf(m.self.mesh, id), nil
}
