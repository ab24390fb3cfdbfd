package wgdev

import (
	"bytes"
	"fmt"
	"maps"
	"net/netip"
	"slices"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// table is what a device was told. It is never changed, only replaced.
type table struct {
	own   trust.ExchangeKey // no peer may have it; zero if there is none
	peers map[trust.ExchangeKey]trust.GatewayID
	owner map[netip.Prefix]trust.ExchangeKey
}

// with returns the table after changes, or what is wrong with one of them.
func (t *table) with(changes engine.Changes) (*table, error) {
	next := &table{own: t.own, peers: maps.Clone(t.peers), owner: maps.Clone(t.owner)}
	if next.peers == nil {
		next.peers = make(map[trust.ExchangeKey]trust.GatewayID)
		next.owner = make(map[netip.Prefix]trust.ExchangeKey)
	}
	for _, c := range changes {
		if err := next.change(c); err != nil {
			return nil, fmt.Errorf("%v of %s: %w", c.Op, c.Peer.Short(), err)
		}
	}
	return next, nil
}

func (t *table) change(c engine.Change) error {
	id, known := t.peers[c.Key]
	switch c.Op {
	case engine.AddPeer:
		switch {
		case c.Key == trust.ExchangeKey{}:
			return fmt.Errorf("wireguard key is zero")
		case c.Key == t.own:
			return fmt.Errorf("wireguard key is our own")
		case known && id != c.Peer:
			return fmt.Errorf("wireguard key belongs to %s", id.Short())
		}
		t.peers[c.Key] = c.Peer
	case engine.RemovePeer:
		if known && id != c.Peer {
			return fmt.Errorf("wireguard key belongs to %s", id.Short())
		}
		delete(t.peers, c.Key)
		maps.DeleteFunc(t.owner, func(_ netip.Prefix, owner trust.ExchangeKey) bool { return owner == c.Key })
	case engine.AddPrefix, engine.RemovePrefix:
		switch p := c.Prefix; {
		case !p.IsValid() || p != p.Masked() || p.Addr().Is4In6():
			return fmt.Errorf("%v is not a prefix without host bits", p)
		case c.Op == engine.AddPrefix && (!known || id != c.Peer):
			return fmt.Errorf("%v: %w", p, ErrNoPeer)
		case c.Op == engine.AddPrefix:
			t.owner[p] = c.Key
		case t.owner[p] == c.Key:
			delete(t.owner, p)
		}
	default:
		return fmt.Errorf("operation %d is unknown", c.Op)
	}
	return nil
}

// renewal are the changes that make a peer anew; none if there is no such peer.
func (t *table) renewal(key trust.ExchangeKey) engine.Changes {
	id, known := t.peers[key]
	if !known {
		return nil
	}
	changes := engine.Changes{
		{Op: engine.RemovePeer, Peer: id, Key: key},
		{Op: engine.AddPeer, Peer: id, Key: key},
	}
	for _, peer := range t.list() {
		if peer.Key != key {
			continue
		}
		for _, p := range peer.Allowed {
			changes = append(changes, engine.Change{Op: engine.AddPrefix, Peer: id, Key: key, Prefix: p})
		}
	}
	return changes
}

// list returns the peers, ascending by ID.
func (t *table) list() []Peer {
	allowed := make(map[trust.ExchangeKey][]netip.Prefix, len(t.peers))
	for p, key := range t.owner {
		allowed[key] = append(allowed[key], p)
	}
	return t.listWith(allowed)
}

// listWith returns the peers, ascending by ID, with these prefixes.
func (t *table) listWith(allowed map[trust.ExchangeKey][]netip.Prefix) []Peer {
	out := make([]Peer, 0, len(t.peers))
	for key, id := range t.peers {
		slices.SortFunc(allowed[key], netip.Prefix.Compare)
		out = append(out, Peer{ID: id, Key: key, Allowed: allowed[key]})
	}
	slices.SortFunc(out, func(a, b Peer) int {
		if c := bytes.Compare(a.ID[:], b.ID[:]); c != 0 {
			return c
		}
		return bytes.Compare(a.Key[:], b.Key[:])
	})
	return out
}
