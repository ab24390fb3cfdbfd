package wgdev

import (
	"context"
	"sync"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// none is a Device that carries nothing. It starts no goroutine, so it may be
// used in a testing/synctest bubble.
type none struct {
	mtu  int
	done chan struct{}

	mu     sync.Mutex // guards table and closed
	table  *table
	closed bool
}

func newNone(mtu int) *none {
	return &none{mtu: mtu, done: make(chan struct{}), table: &table{}}
}

func (n *none) Apply(ctx context.Context, changes engine.Changes) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	next, err := n.table.with(changes)
	if err != nil {
		return err
	}
	n.table = next
	return nil
}

func (n *none) Peers() []Peer {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.table.list()
}

func (n *none) Restart(key trust.ExchangeKey) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return ErrClosed
	}
	if _, known := n.table.peers[key]; !known {
		return ErrNoPeer
	}
	return nil
}

func (n *none) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.closed {
		n.closed, n.table = true, &table{}
		close(n.done)
	}
	return nil
}

func (n *none) Initiate(key trust.ExchangeKey) error   { return n.Restart(key) }
func (n *none) Stats() map[trust.ExchangeKey]PeerStats { return map[trust.ExchangeKey]PeerStats{} }
func (n *none) Netstack() *Netstack                    { return nil }
func (n *none) Name() string                           { return "" }
func (n *none) MTU() int                               { return n.mtu }
func (n *none) Done() <-chan struct{}                  { return n.done }
func (n *none) Err() error                             { return nil }
