package engine

import (
	"cmp"
	"net/netip"
	"slices"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Changes lead from one desired state to another, to be made in their order.
// Nil means that nothing changes.
type Changes []Change

// Change is one change of the WireGuard device. Comparable.
type Change struct {
	Op   Op
	Peer trust.GatewayID
	Key  trust.ExchangeKey // of the peer
	// Prefix of AddPrefix and RemovePrefix; the zero value else.
	Prefix netip.Prefix
}

// Op is what a Change does.
type Op uint8

// The operations.
const (
	// AddPeer makes a peer without prefixes.
	AddPeer Op = iota + 1
	// RemovePeer takes a peer away, with the prefixes that it still has.
	RemovePeer
	// AddPrefix gives a prefix to a peer. Another peer that has it loses it
	// in the same step.
	AddPrefix
	// RemovePrefix takes a prefix from a peer.
	RemovePrefix
)

// String names the operation.
func (o Op) String() string {
	switch o {
	case AddPeer:
		return "add peer"
	case RemovePeer:
		return "remove peer"
	case AddPrefix:
		return "add prefix"
	case RemovePrefix:
		return "remove prefix"
	}
	return "unknown"
}

// Diff returns what makes a device in the state before one in the state after.
// What both have is not touched: neither the session of a peer nor a prefix.
// A prefix that moves is given to its new owner in one step, so it is never
// without one and never has two; only where a WireGuard key goes to another
// gateway its old peer has to go first.
func Diff(before, after Desired) Changes {
	type slot struct { // the gateway is part of it: it decides the endpoint
		id  trust.GatewayID
		key trust.ExchangeKey
	}
	had, want := make(map[slot]bool), make(map[slot]bool)
	wanted := make(map[trust.ExchangeKey]bool)
	for _, p := range before.Peers {
		had[slot{p.ID, p.WireGuard}] = true
	}
	for _, p := range after.Peers {
		want[slot{p.ID, p.WireGuard}] = true
		wanted[p.WireGuard] = true
	}
	owner := make(map[netip.Prefix]slot) // before, where the peer stays
	stays := make(map[netip.Prefix]bool)
	var early, add, give, take, late Changes
	for _, p := range before.Peers {
		s := slot{p.ID, p.WireGuard}
		switch remove := (Change{Op: RemovePeer, Peer: p.ID, Key: p.WireGuard}); {
		case want[s]:
			for _, q := range p.Allowed {
				owner[q] = s
			}
		case wanted[p.WireGuard]:
			early = append(early, remove)
		default:
			late = append(late, remove)
		}
	}
	for _, p := range after.Peers {
		s := slot{p.ID, p.WireGuard}
		if !had[s] {
			add = append(add, Change{Op: AddPeer, Peer: p.ID, Key: p.WireGuard})
		}
		for _, q := range p.Allowed {
			stays[q] = true
			if owner[q] != s {
				give = append(give, Change{AddPrefix, p.ID, p.WireGuard, q})
			}
		}
	}
	for q, s := range owner {
		if !stays[q] {
			take = append(take, Change{RemovePrefix, s.id, s.key, q})
		}
	}
	for _, part := range []Changes{early, add, give, take, late} {
		slices.SortFunc(part, compareChanges)
	}
	return slices.Concat(early, add, give, take, late)
}

func compareChanges(a, b Change) int {
	return cmp.Or(
		compareID(a.Peer, b.Peer),
		slices.Compare(a.Key[:], b.Key[:]),
		a.Prefix.Compare(b.Prefix),
	)
}
