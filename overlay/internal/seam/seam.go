// Package seam is where simulations reach into a mesh: what carries its
// packets, what memberlist hears and says, and what the mesh decided. The hooks
// travel in the context that Open gets, so that they are no part of the public
// configuration. A program never has any.
package seam

import (
	"context"
	"net"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wgdev"
)

// Hooks are called by the goroutines of a mesh, several at a time; they must
// be quick and must not call it back. Each may be nil.
type Hooks struct {
	// Device makes what carries the packets; nil means wgdev.Open.
	Device func(wgdev.Config) (wgdev.Device, error)
	// GossipIn returns what memberlist gets in place of a packet that a peer sent.
	GossipIn func(peer trust.GatewayID, b []byte) [][]byte
	// GossipOut returns what goes to a peer in place of a packet of memberlist.
	GossipOut func(peer trust.GatewayID, b []byte) [][]byte
	// Accepted hears of every record of another gateway that became the one that counts.
	Accepted func(*record.Record)
	// Applied hears of every desired state that was put into effect.
	Applied func(engine.Desired)
	// Reachable hears whenever a peer begins or ceases to answer probes.
	Reachable func(peer trust.GatewayID, alive bool)
	// Opened gets the inside of the mesh before anything of it runs.
	Opened func(Inside)
}

// Inside is a mesh as only itself sees it. Its methods are safe for concurrent use.
type Inside interface {
	// ID is the own gateway.
	ID() trust.GatewayID
	// Records are those that count, the own one included, ascending by ID.
	Records() []*record.Record
	// Summary is equal for two meshes exactly if their Records are.
	Summary() [32]byte
	// Desired is the state that was put into effect last.
	Desired() engine.Desired
	// Answers reports whether a peer answers probes.
	Answers(peer trust.GatewayID) bool
	// Device is what carries the packets.
	Device() wgdev.Device
	// SendGossip sends a packet as memberlist would.
	SendGossip(peer trust.GatewayID, b []byte) error
	// OpenStream opens a stream of a type to a peer.
	OpenStream(ctx context.Context, peer trust.GatewayID, kind byte) (net.Conn, error)
	// Sign returns the own record after change, signed, without believing or
	// spreading it. Sequence numbers are the caller's affair.
	Sign(change func(*record.Record)) ([]byte, error)
}

type key struct{}

// NewContext returns a context that carries hooks to Open.
func NewContext(ctx context.Context, h *Hooks) context.Context {
	return context.WithValue(ctx, key{}, h)
}

// FromContext returns the hooks of ctx; without any, those that do nothing.
func FromContext(ctx context.Context) *Hooks {
	if h, ok := ctx.Value(key{}).(*Hooks); ok {
		return h
	}
	return &Hooks{}
}
