package overlay

import (
	"net/netip"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// GatewayID names a gateway within its mesh: a hash of its identity key. Its
// String method gives 32 hex digits.
type GatewayID = trust.GatewayID

// MeshID names a mesh: the hash of its genesis.
type MeshID = trust.MeshID

// Route is a prefix that this gateway offers to carry packets to.
type Route struct {
	// Prefix is what lies behind this gateway: IPv4 or IPv6, masked.
	Prefix netip.Prefix `json:"prefix"`
	// Priority orders gateways of one site that announce the same prefix:
	// the lower value is preferred. Zero is the most preferred.
	Priority uint16 `json:"priority,omitempty"`
}
