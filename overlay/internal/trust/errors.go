package trust

import (
	"errors"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Why something is not believed. Test with errors.Is.
var (
	// ErrFormat says that bytes are not the one canonical encoding of anything.
	ErrFormat = wire.ErrFormat
	// ErrSignature says that a signature does not hold. Objects of another mesh
	// end here too, because every signature covers the mesh ID.
	ErrSignature = errors.New("signature does not hold")
	// ErrChain says that a certificate is not within its delegation.
	ErrChain = errors.New("certificate exceeds its delegation")
	// ErrPromise says that a reply grants something else than its ticket promised.
	ErrPromise = errors.New("not what the ticket promised")
	// ErrGrant says that a prefix is forbidden or not granted.
	ErrGrant = errors.New("prefix not allowed")
	// ErrExpired says that validity is over, by this host's clock.
	ErrExpired = errors.New("no longer valid (or the clock here is ahead)")
	// ErrNotYetValid says that validity has not begun, by this host's clock.
	ErrNotYetValid = errors.New("not yet valid (or the clock here is behind)")
	// ErrRevoked says that a certificate, identity or organisation was withdrawn.
	ErrRevoked = errors.New("revoked")
)
