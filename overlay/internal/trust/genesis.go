package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Root is what everything in a mesh is verified against: its genesis and the
// authority keys that followed. Nobody changes it; safe for concurrent use.
type Root struct {
	Genesis *Genesis
	id      MeshID
	epochs  []*Epoch // ascending, without gaps, from 1

	delegations verified // whose signatures are good
}

// Genesis founds a mesh. Its hash is the mesh ID.
type Genesis struct {
	Name         string
	Authority    [32]byte // Ed25519 public key
	RecoveryHash [32]byte // RecoveryHash of an Ed25519 public key
	raw          []byte
}

// Epoch replaces the authority key, by the recovery key that the one before
// committed to.
type Epoch struct {
	Number       uint32
	Key          [32]byte  // the new authority key
	OverlapUntil time.Time // until then delegations of the epoch before stay valid
	NextRecovery [32]byte  // RecoveryHash of the next recovery key
	Recovery     [32]byte  // the recovery key that signs
	raw          []byte
	object       wire.Object
}

// hash is H(label, parts…) of docs/protocol.md.
func hash(label string, parts ...[]byte) [32]byte {
	h := sha256.New()
	_, _ = h.Write([]byte("planetmesh/1/" + label + "\x00"))
	for _, p := range parts {
		_, _ = h.Write(p)
	}
	return [32]byte(h.Sum(nil))
}

// Hash is H(label, parts…) of docs/protocol.md, for packages that hash other
// things in the same way.
func Hash(label string, parts ...[]byte) [32]byte { return hash(label, parts...) }

// RecoveryHash is what a genesis or an epoch commits to.
func RecoveryHash(key ed25519.PublicKey) [32]byte { return hash("recovery", key) }

// Encode returns the genesis object.
func (g Genesis) Encode() ([]byte, error) {
	var w wire.Writer
	w.Name(1, g.Name)
	w.Field(2, g.Authority[:])
	w.Field(3, g.RecoveryHash[:])
	return encode(wire.Genesis, MeshID{}, &w)
}

// encode finishes an object.
func encode(t wire.Type, mesh MeshID, w *wire.Writer, keys ...ed25519.PrivateKey) ([]byte, error) {
	body, err := w.Bytes()
	if err != nil {
		return nil, err
	}
	return wire.Encode(t, mesh, body, keys...)
}

// DecodeGenesis reads a genesis object.
func DecodeGenesis(raw []byte) (*Genesis, error) {
	o, err := wire.Decode(wire.Genesis, raw)
	if err != nil {
		return nil, err
	}
	g := &Genesis{raw: bytes.Clone(raw)}
	r := wire.NewReader(o.Body)
	g.Name = r.RequiredName(1)
	r.RequiredFixed(2, g.Authority[:])
	r.RequiredFixed(3, g.RecoveryHash[:])
	if err := r.Close(); err != nil {
		return nil, wrap("genesis", err)
	}
	return g, nil
}

// wrap names the object that an error is about.
func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// Raw returns the genesis object; do not change it.
func (g *Genesis) Raw() []byte { return g.raw }

// Sign returns the epoch object, signed by the recovery key and the new key.
func (e Epoch) Sign(mesh MeshID, recovery, authority ed25519.PrivateKey) ([]byte, error) {
	var w wire.Writer
	w.Uint32(1, e.Number)
	w.Field(2, e.Key[:])
	w.Time(3, e.OverlapUntil)
	w.Field(4, e.NextRecovery[:])
	w.Field(5, e.Recovery[:])
	return encode(wire.Epoch, mesh, &w, recovery, authority)
}

// decodeEpoch reads an epoch object; no signature is checked.
func decodeEpoch(raw []byte) (*Epoch, error) {
	raw = bytes.Clone(raw)
	o, err := wire.Decode(wire.Epoch, raw)
	if err != nil {
		return nil, err
	}
	e := &Epoch{raw: raw, object: o}
	r := wire.NewReader(o.Body)
	e.Number = r.Uint32(1)
	r.RequiredFixed(2, e.Key[:])
	e.OverlapUntil = r.Time(3)
	r.RequiredFixed(4, e.NextRecovery[:])
	r.RequiredFixed(5, e.Recovery[:])
	return e, r.Close()
}

// NewRoot verifies a genesis and the chain of epochs after it.
func NewRoot(genesis []byte, epochs [][]byte) (*Root, error) {
	g, err := DecodeGenesis(genesis)
	if err != nil {
		return nil, err
	}
	root := &Root{Genesis: g, id: hash("genesis", g.raw)}
	recovery := g.RecoveryHash
	for i, raw := range epochs {
		e, err := decodeEpoch(raw)
		if err != nil {
			return nil, wrap("epoch", err)
		}
		if !e.object.Verify(root.id, 0, e.Recovery[:]) || !e.object.Verify(root.id, 1, e.Key[:]) {
			return nil, wrap("epoch", ErrSignature)
		}
		if e.Number != uint32(i)+1 {
			return nil, fmt.Errorf("epoch %d where %d is wanted: %w", e.Number, i+1, ErrFormat)
		}
		if RecoveryHash(e.Recovery[:]) != recovery {
			return nil, fmt.Errorf("epoch %d: recovery key was not committed to: %w", e.Number, ErrSignature)
		}
		recovery = e.NextRecovery
		root.epochs = append(root.epochs, e)
	}
	return root, nil
}

// ID returns the mesh ID.
func (root *Root) ID() MeshID { return root.id }

// Epochs returns the epoch objects, for tickets and introductions.
func (root *Root) Epochs() [][]byte {
	var out [][]byte
	for _, e := range root.epochs {
		out = append(out, e.raw)
	}
	return out
}

// authority returns the key of an epoch, and until when it counts; the zero
// time means without end.
func (root *Root) authority(epoch uint32) (key [32]byte, until time.Time, ok bool) {
	switch {
	case uint64(epoch) > uint64(len(root.epochs)):
		return key, until, false
	case epoch == 0:
		key = root.Genesis.Authority
	default:
		key = root.epochs[epoch-1].Key
	}
	if uint64(epoch) < uint64(len(root.epochs)) {
		until = root.epochs[epoch].OverlapUntil
	}
	return key, until, true
}

// IDOf returns the gateway ID of an identity.
func IDOf(mesh MeshID, identity IdentityKey) GatewayID {
	h := hash("gateway-id", mesh[:], identity[:])
	return GatewayID(h[:16])
}

// OverlayBlock returns the /48 that all overlay addresses of a mesh lie in; see
// OverlayAddr.
func OverlayBlock(mesh MeshID) netip.Prefix {
	h := hash("overlay-block", mesh[:])
	var a [16]byte
	a[0] = 0xfd
	copy(a[1:6], h[:5])
	return netip.PrefixFrom(netip.AddrFrom16(a), 48)
}

// OverlayAddr computes the overlay address of an identity (docs/protocol.md,
// section 2): nobody hands it out, and nobody else can have it.
func OverlayAddr(mesh MeshID, organisation string, identity IdentityKey) netip.Addr {
	a := OverlayBlock(mesh).Addr().As16()
	org := hash("overlay-organisation", mesh[:], []byte(organisation))
	addr := hash("overlay-address", mesh[:], []byte(organisation), []byte{0}, identity[:])
	copy(a[6:8], org[:2])
	copy(a[8:16], addr[:8])
	return netip.AddrFrom16(a)
}

// forbidden are prefixes that nobody may be granted a part of, with the reason.
var forbidden = []struct {
	prefix netip.Prefix
	reason string
}{
	{netip.MustParsePrefix("0.0.0.0/8"), "this network (RFC 1122)"},
	{netip.MustParsePrefix("127.0.0.0/8"), "loopback (RFC 1122)"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local (RFC 3927)"},
	{netip.MustParsePrefix("224.0.0.0/4"), "multicast (RFC 5771)"},
	{netip.MustParsePrefix("240.0.0.0/4"), "reserved (RFC 1112)"},
	{netip.MustParsePrefix("::/96"), "unspecified, loopback and IPv4-compatible (RFC 4291)"},
	{netip.MustParsePrefix("::ffff:0:0/96"), "IPv4-mapped (RFC 4291)"},
	{netip.MustParsePrefix("fe80::/10"), "link-local (RFC 4291)"},
	{netip.MustParsePrefix("ff00::/8"), "multicast (RFC 4291)"},
}

// The shortest prefixes that may be granted (security decision 6).
const (
	minBits4 = 8
	minBits6 = 16
)

// CheckGrant refuses prefixes that no gateway may announce; block is the
// overlay block.
func CheckGrant(p, block netip.Prefix) error {
	switch {
	case !p.IsValid() || p.Masked() != p:
		return fmt.Errorf("%w: %v is not a prefix without host bits", ErrGrant, p)
	case p.Addr().Is4() && p.Bits() < minBits4, p.Addr().Is6() && p.Bits() < minBits6:
		return fmt.Errorf("%w: %v is shorter than /%d", ErrGrant, p, minBits(p))
	case p.Overlaps(block):
		return fmt.Errorf("%w: %v overlaps the overlay block %v", ErrGrant, p, block)
	}
	for _, f := range forbidden {
		if f.prefix.Overlaps(p) {
			return fmt.Errorf("%w: %v overlaps %v, %s", ErrGrant, p, f.prefix, f.reason)
		}
	}
	return nil
}

func minBits(p netip.Prefix) int {
	if p.Addr().Is4() {
		return minBits4
	}
	return minBits6
}

// within reports whether p lies within one of ranges.
func within(p netip.Prefix, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(r netip.Prefix) bool { return r.Bits() <= p.Bits() && r.Contains(p.Addr()) })
}
