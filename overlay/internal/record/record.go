// Package record is the signed statement that gossip carries: codec,
// verification, and the book of what is believed (docs/protocol.md, section 2).
//
// It is pure: times are arguments, nothing is read or written.
package record

import (
	"bytes"
	"cmp"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Record is what a gateway says of itself. A decoded one is not changed by
// anybody.
type Record struct {
	Chain             trust.Chain
	WireGuard         trust.ExchangeKey
	Link              trust.ExchangeKey
	Endpoints         []netip.AddrPort // best first, at most 8
	Routes            []Route          // ascending by prefix, at most 64
	Capabilities      Capabilities
	Sequence          uint64 // 1 … 2^62−1
	Left              bool
	PreviousWireGuard trust.ExchangeKey // zero: none
	PreviousLink      trust.ExchangeKey // zero: none
	Software          string

	// What follows is set by Decode and ignored by Sign.

	ID       trust.GatewayID
	Overlay  netip.Addr
	Raw      []byte   // the whole object
	BodyHash [32]byte // SHA-256 of the body
	object   wire.Object
	sum      [32]byte // SHA-256 of Raw, set by the book
}

// Route is an announced prefix.
type Route struct {
	Prefix   netip.Prefix
	Priority uint16 // lower is preferred
}

// Capabilities are a bit set.
type Capabilities uint64

// The capabilities.
const (
	CarriesData Capabilities = 1 << 0 // has a device for packets
	Relays      Capabilities = 1 << 1 // forwards for others
)

// Limits (docs/protocol.md, section 2).
const (
	MaxRoutes    = 64
	MaxEndpoints = 8
	MaxSequence  = 1<<62 - 1
	maxSoftware  = 64
	flagLeft     = 1
)

// Order says which of two records of a gateway is newer.
type Order struct {
	Generation uint64 // of the certificate
	Sequence   uint64
}

// Compare is negative if a is older than b.
func (a Order) Compare(b Order) int {
	return cmp.Or(cmp.Compare(a.Generation, b.Generation), cmp.Compare(a.Sequence, b.Sequence))
}

// String is generation.sequence.
func (a Order) String() string { return fmt.Sprintf("%d.%d", a.Generation, a.Sequence) }

// Order returns the order of the record.
func (r *Record) Order() Order {
	return Order{Generation: r.Chain.Certificate.Generation, Sequence: r.Sequence}
}

// ValidAt reports whether the certificate is valid at a time, within the
// tolerance for clocks.
func (r *Record) ValidAt(now time.Time) bool {
	c := r.Chain.Certificate
	return !now.Before(c.NotBefore.Add(-trust.Tolerance)) && !now.After(c.NotAfter.Add(trust.Tolerance))
}

// Sign returns the record object, signed by the identity of its certificate.
func (r Record) Sign(mesh trust.MeshID, identity ed25519.PrivateKey) ([]byte, error) {
	var w wire.Writer
	w.Field(1, r.Chain.Delegation.Raw())
	w.Field(2, r.Chain.Certificate.Raw())
	w.Field(3, r.WireGuard[:])
	w.Field(4, r.Link[:])
	w.Field(5, wire.AddrPorts(r.Endpoints))
	var routes []byte
	for _, route := range r.Routes {
		routes = binary.BigEndian.AppendUint16(wire.AppendPrefix(routes, route.Prefix), route.Priority)
	}
	w.Field(6, routes)
	w.Uint64(7, uint64(r.Capabilities))
	w.Uint64(8, r.Sequence)
	if r.Left {
		w.Uint32(9, flagLeft)
	}
	if r.PreviousWireGuard != (trust.ExchangeKey{}) {
		w.Field(10, r.PreviousWireGuard[:])
	}
	if r.PreviousLink != (trust.ExchangeKey{}) {
		w.Field(11, r.PreviousLink[:])
	}
	w.Optional(12, []byte(r.Software))
	body, err := w.Bytes()
	if err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return wire.Encode(wire.Record, mesh, body, identity)
}

// Decode reads a record object. Nothing in it is verified, and ID and Overlay
// are not set: they need the mesh.
func Decode(raw []byte) (*Record, error) {
	raw = bytes.Clone(raw)
	o, err := wire.Decode(wire.Record, raw)
	if err != nil {
		return nil, err
	}
	rec := &Record{Raw: raw, BodyHash: sha256.Sum256(o.Body), object: o}
	r := wire.NewReader(o.Body)
	delegation, certificate := r.Required(1), r.Required(2)
	r.RequiredFixed(3, rec.WireGuard[:])
	r.RequiredFixed(4, rec.Link[:])
	rec.Endpoints, err = wire.DecodeAddrPorts(r.Field(5), MaxEndpoints)
	r.Fail(err)
	rec.Routes, err = decodeRoutes(r.Field(6))
	r.Fail(err)
	rec.Capabilities = Capabilities(r.Uint64(7))
	if rec.Sequence = r.Uint64(8); rec.Sequence == 0 || rec.Sequence > MaxSequence {
		r.Fail(fmt.Errorf("%w: sequence %d", trust.ErrFormat, rec.Sequence))
	}
	flags := r.Uint32(9)
	rec.Left = flags&flagLeft != 0
	r.NonZero(10, rec.PreviousWireGuard[:])
	r.NonZero(11, rec.PreviousLink[:])
	rec.Software = string(r.Optional(12))
	r.Fail(rec.checkForm(flags))
	if err := r.Close(); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	if rec.Chain, err = trust.DecodeChain(delegation, certificate); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	return rec, nil
}

func (r *Record) checkForm(flags uint32) error {
	switch {
	case flags&^flagLeft != 0:
		return fmt.Errorf("%w: flags %#x", trust.ErrFormat, flags)
	case r.Left && len(r.Routes)+len(r.Endpoints) > 0:
		return fmt.Errorf("%w: left, but with routes or endpoints", trust.ErrFormat)
	case len(r.Software) > maxSoftware:
		return fmt.Errorf("%w: software of %d bytes", trust.ErrFormat, len(r.Software))
	}
	for _, b := range []byte(r.Software) {
		if b < ' ' || b > '~' {
			return fmt.Errorf("%w: software is not printable", trust.ErrFormat)
		}
	}
	return nil
}

func decodeRoutes(b []byte) ([]Route, error) {
	var out []Route
	for len(b) > 0 {
		p, rest, err := wire.CutPrefix(b)
		if err != nil {
			return nil, err
		}
		if len(rest) < 2 {
			return nil, fmt.Errorf("%w: route cut short", trust.ErrFormat)
		}
		if n := len(out); n > 0 && wire.ComparePrefixes(out[n-1].Prefix, p) >= 0 {
			return nil, fmt.Errorf("%w: route %v after %v", trust.ErrFormat, p, out[n-1].Prefix)
		}
		if len(out) == MaxRoutes {
			return nil, fmt.Errorf("%w: more than %d routes", trust.ErrFormat, MaxRoutes)
		}
		out = append(out, Route{Prefix: p, Priority: binary.BigEndian.Uint16(rest)})
		b = rest[2:]
	}
	return out, nil
}

// Verify decodes a record and checks everything about it: chain, validity,
// signature of the identity, and every route against the grants. The errors are
// those of package trust.
func Verify(root *trust.Root, raw []byte, now time.Time) (*Record, error) {
	r, err := Decode(raw)
	if err != nil {
		return nil, err
	}
	if err := root.VerifyChainForm(r.Chain); err != nil {
		return nil, fmt.Errorf("record: %w", err)
	}
	if err := r.verify(root, now); err != nil {
		return nil, err
	}
	return r, nil
}

// verify is Verify for a record whose chain was verified before.
func (r *Record) verify(root *trust.Root, now time.Time) error {
	if err := root.ValidAt(r.Chain, now); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	c := r.Chain.Certificate
	if !r.object.Verify(root.ID(), 0, c.Identity[:]) {
		return fmt.Errorf("record of %s: %w", c.Gateway, trust.ErrSignature)
	}
	for _, route := range r.Routes {
		if !granted(c.Grants, route.Prefix) {
			return fmt.Errorf("record of %s: %v is not granted: %w", c.Gateway, route.Prefix, trust.ErrGrant)
		}
	}
	r.ID = trust.IDOf(root.ID(), c.Identity)
	r.Overlay = trust.OverlayAddr(root.ID(), r.Chain.Delegation.Organisation, c.Identity)
	return nil
}

// granted reports whether a prefix lies within a grant.
func granted(grants []trust.Grant, p netip.Prefix) bool {
	for _, g := range grants {
		if g.Prefix.Bits() <= p.Bits() && g.Prefix.Contains(p.Addr()) {
			return true
		}
	}
	return false
}
