package trust

import (
	"encoding/hex"
	"fmt"
)

// MeshID names a mesh: the hash of its genesis (docs/protocol.md, section 2).
// The zero value names no mesh. Comparable; safe for concurrent use.
type MeshID [32]byte

// String returns the ID as 64 lower-case hex digits.
func (id MeshID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first ten hex digits: enough for a person to compare.
func (id MeshID) Short() string { return id.String()[:10] }

// GatewayID names a gateway within its mesh: a hash of its identity key. The
// zero value names no gateway. Comparable; safe for concurrent use.
type GatewayID [16]byte

// String returns the ID as 32 lower-case hex digits, the name memberlist knows.
func (id GatewayID) String() string { return hex.EncodeToString(id[:]) }

// Short returns the first ten hex digits: enough for a person to compare.
func (id GatewayID) Short() string { return id.String()[:10] }

// IsZero reports whether id names no gateway.
func (id GatewayID) IsZero() bool { return id == GatewayID{} }

// ParseGatewayID reads what String wrote.
func ParseGatewayID(s string) (GatewayID, error) {
	var id GatewayID
	if len(s) != 2*len(id) {
		return id, fmt.Errorf("gateway id %q: want %d hex digits", s, 2*len(id))
	}
	for i := range id {
		high, low := digit(s[2*i]), digit(s[2*i+1])
		if high|low > 15 {
			return GatewayID{}, fmt.Errorf("gateway id %q: want lower-case hex digits", s)
		}
		id[i] = high<<4 | low
	}
	return id, nil
}

// digit is the value of a lower-case hex digit, 255 for anything else.
func digit(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	}
	return 255
}

// BootID is drawn at random at every start of a gateway; peers recognise a
// restart by it. The zero value is never sent.
type BootID [16]byte

// IdentityKey is the Ed25519 public key that is a gateway's identity.
type IdentityKey [32]byte

// ExchangeKey is an X25519 public key: a link key or a WireGuard key.
type ExchangeKey [32]byte
