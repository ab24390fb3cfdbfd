package overlay

import (
	"context"
	"net"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/wgdev"
)

// inside is a Mesh as simulations see it (package seam).
type inside struct{ m *Mesh }

func (i inside) ID() GatewayID             { return i.m.self.id }
func (i inside) Records() []*record.Record { return i.m.book.All() }
func (i inside) Summary() [32]byte         { return i.m.book.Summary() }
func (i inside) Device() wgdev.Device      { return i.m.device }

func (i inside) Desired() engine.Desired {
	if last := i.m.applied.Load(); last != nil {
		return last.desired
	}
	return engine.Desired{}
}

func (i inside) Answers(peer GatewayID) bool {
	path, ok := i.m.prover.Path(peer)
	return ok && path.Alive
}

func (i inside) SendGossip(peer GatewayID, b []byte) error { return i.m.port.SendGossip(peer, b) }

func (i inside) OpenStream(ctx context.Context, peer GatewayID, kind byte) (net.Conn, error) {
	return i.m.streams.OpenStream(ctx, peer, kind)
}

func (i inside) Sign(change func(*record.Record)) ([]byte, error) {
	i.m.mu.Lock()
	r := i.m.draftLocked()
	r.Sequence = i.m.published.Sequence
	i.m.mu.Unlock()
	change(&r)
	return r.Sign(i.m.self.mesh, i.m.self.keys.identity)
}

// gossipIn gives memberlist what a peer sent.
func (m *Mesh) gossipIn(peer GatewayID, b []byte) {
	if m.hooks.GossipIn == nil {
		m.gossip.Packet(peer, b)
		return
	}
	for _, other := range m.hooks.GossipIn(peer, b) {
		m.gossip.Packet(peer, other)
	}
}

// gossipOut sends what memberlist wants to say to a peer.
func (m *Mesh) gossipOut(peer GatewayID, b []byte) error {
	if m.hooks.GossipOut == nil {
		return m.port.SendGossip(peer, b)
	}
	for _, other := range m.hooks.GossipOut(peer, b) {
		if err := m.port.SendGossip(peer, other); err != nil {
			return err
		}
	}
	return nil
}
