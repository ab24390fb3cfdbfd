package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Chain is what makes a gateway a member: a delegation by the authority and a
// certificate by the delegation. Each narrows what the one before allows.
type Chain struct {
	Delegation  *Delegation
	Certificate *Certificate
}

// Permissions are a bit set.
type Permissions uint32

// MayRelay lets a gateway forward packets for two others.
const MayRelay Permissions = 1

// Kind says what a delegation is for.
type Kind uint8

// The kinds of delegations.
const (
	KindIssuer       Kind = 1 // an issuing key of the mesh's owner
	KindOrganisation Kind = 2 // an organisation that issues for its own sites
)

// Delegation lets a key sign certificates for some sites and some ranges.
type Delegation struct {
	Kind         Kind
	Number       uint64   // unique, from the authority's ledger; lower wins conflicts
	Key          [32]byte // the issuing key, Ed25519
	Organisation string   // empty for KindIssuer
	SitePrefix   string   // how every site name begins; empty: any
	Ranges       []netip.Prefix
	NotBefore    time.Time
	NotAfter     time.Time
	Permissions  Permissions
	Epoch        uint32 // of the authority key
	raw          []byte
	hash         [32]byte
	object       wire.Object
}

// Grant is the right to announce a prefix and what lies within it.
type Grant struct {
	Prefix netip.Prefix
	Number uint64 // from the issuer's ledger; lower wins conflicts
}

// Certificate makes an identity a gateway of a site.
type Certificate struct {
	Gateway     string
	Site        string
	Identity    IdentityKey
	Grants      []Grant // ascending by prefix
	Generation  uint64
	NotBefore   time.Time
	NotAfter    time.Time
	Serial      [16]byte
	Permissions Permissions
	Delegation  [32]byte // hash of the delegation object
	Ticket      [16]byte // zero: none
	raw         []byte
	hash        [32]byte
	object      wire.Object
}

// Limits of lists (docs/protocol.md, section 2).
const (
	MaxGrants    = 64
	maxRanges    = 64
	MaxEndpoints = 8
)

// Tolerance is how far two clocks may differ (security decision 1).
const Tolerance = 2 * time.Hour

// Sign returns the delegation as signed by the authority.
func (d Delegation) Sign(mesh MeshID, authority ed25519.PrivateKey) (*Delegation, error) {
	var w wire.Writer
	w.Uint8(1, uint8(d.Kind))
	w.Uint64(2, d.Number)
	w.Field(3, d.Key[:])
	w.Name(4, d.Organisation)
	w.Field(5, []byte(d.SitePrefix))
	w.Field(6, wire.Prefixes(d.Ranges))
	w.Time(7, d.NotBefore)
	w.Time(8, d.NotAfter)
	w.Uint32(9, uint32(d.Permissions))
	w.Uint32(10, d.Epoch)
	raw, err := encode(wire.Delegation, mesh, &w, authority)
	if err != nil {
		return nil, wrap("delegation", err)
	}
	return DecodeDelegation(raw)
}

// DecodeDelegation reads a delegation object; no signature is checked.
func DecodeDelegation(raw []byte) (*Delegation, error) {
	raw = bytes.Clone(raw)
	o, err := wire.Decode(wire.Delegation, raw)
	if err != nil {
		return nil, err
	}
	d := &Delegation{raw: raw, hash: sha256.Sum256(raw), object: o}
	r := wire.NewReader(o.Body)
	d.Kind = Kind(r.Uint8(1))
	d.Number = r.Uint64(2)
	r.RequiredFixed(3, d.Key[:])
	d.Organisation = r.Name(4)
	d.SitePrefix = string(r.Field(5))
	d.Ranges, err = wire.DecodePrefixes(r.Required(6), maxRanges)
	r.Fail(err)
	d.NotBefore, d.NotAfter = r.Time(7), r.Time(8)
	d.Permissions = Permissions(r.Uint32(9))
	d.Epoch = r.Uint32(10)
	r.Fail(d.checkForm())
	if err := r.Close(); err != nil {
		return nil, wrap("delegation", err)
	}
	return d, nil
}

// checkForm refuses combinations that mean nothing.
func (d *Delegation) checkForm() error {
	switch {
	case d.Kind != KindIssuer && d.Kind != KindOrganisation:
		return fmt.Errorf("%w: kind %d", ErrFormat, d.Kind)
	case (d.Kind == KindOrganisation) != (d.Organisation != ""):
		return fmt.Errorf("%w: kind %d with organisation %q", ErrFormat, d.Kind, d.Organisation)
	case d.Number == 0:
		return fmt.Errorf("%w: number 0", ErrFormat)
	case len(d.SitePrefix) > 63 || strings.Trim(d.SitePrefix, "abcdefghijklmnopqrstuvwxyz0123456789-.") != "":
		return fmt.Errorf("%w: site prefix %q", ErrFormat, d.SitePrefix)
	}
	return nil
}

// Raw returns the delegation object; do not change it.
func (d *Delegation) Raw() []byte { return d.raw }

// Sign returns the certificate as signed by the key of delegation d.
func (c Certificate) Sign(mesh MeshID, d *Delegation, issuer ed25519.PrivateKey) (*Certificate, error) {
	c.Delegation = d.hash
	var w wire.Writer
	w.Name(1, c.Gateway)
	w.Name(2, c.Site)
	w.Field(3, c.Identity[:])
	var grants []byte
	for _, g := range c.Grants {
		grants = binary.BigEndian.AppendUint64(wire.AppendPrefix(grants, g.Prefix), g.Number)
	}
	w.Field(4, grants)
	w.Uint64(5, c.Generation)
	w.Time(6, c.NotBefore)
	w.Time(7, c.NotAfter)
	w.Field(8, c.Serial[:])
	w.Uint32(9, uint32(c.Permissions))
	w.Field(10, c.Delegation[:])
	if c.Ticket != [16]byte{} {
		w.Optional(11, c.Ticket[:])
	}
	raw, err := encode(wire.Certificate, mesh, &w, issuer)
	if err != nil {
		return nil, wrap("certificate", err)
	}
	return DecodeCertificate(raw)
}

// DecodeCertificate reads a certificate object; no signature is checked.
func DecodeCertificate(raw []byte) (*Certificate, error) {
	raw = bytes.Clone(raw)
	o, err := wire.Decode(wire.Certificate, raw)
	if err != nil {
		return nil, err
	}
	c := &Certificate{raw: raw, hash: sha256.Sum256(raw), object: o}
	r := wire.NewReader(o.Body)
	c.Gateway, c.Site = r.RequiredName(1), r.RequiredName(2)
	r.RequiredFixed(3, c.Identity[:])
	c.Grants, err = decodeGrants(r.Field(4))
	r.Fail(err)
	if c.Generation = r.Uint64(5); c.Generation == 0 {
		r.Fail(fmt.Errorf("%w: generation 0", ErrFormat))
	}
	c.NotBefore, c.NotAfter = r.Time(6), r.Time(7)
	r.RequiredFixed(8, c.Serial[:])
	c.Permissions = Permissions(r.Uint32(9))
	r.RequiredFixed(10, c.Delegation[:])
	r.OptionalNonZero(11, c.Ticket[:])
	if err := r.Close(); err != nil {
		return nil, wrap("certificate", err)
	}
	return c, nil
}

func decodeGrants(b []byte) ([]Grant, error) {
	var out []Grant
	for len(b) > 0 {
		p, rest, err := wire.CutPrefix(b)
		if err != nil {
			return nil, err
		}
		if len(rest) < 8 {
			return nil, fmt.Errorf("%w: grant cut short", ErrFormat)
		}
		if n := len(out); n > 0 && wire.ComparePrefixes(out[n-1].Prefix, p) >= 0 {
			return nil, fmt.Errorf("%w: grant %v after %v", ErrFormat, p, out[n-1].Prefix)
		}
		if len(out) == MaxGrants {
			return nil, fmt.Errorf("%w: more than %d grants", ErrFormat, MaxGrants)
		}
		out = append(out, Grant{Prefix: p, Number: binary.BigEndian.Uint64(rest)})
		b = rest[8:]
	}
	return out, nil
}

// Raw returns the certificate object; do not change it.
func (c *Certificate) Raw() []byte { return c.raw }

// DecodeChain reads a delegation and a certificate; nothing is verified.
func DecodeChain(delegation, certificate []byte) (Chain, error) {
	d, err := DecodeDelegation(delegation)
	if err != nil {
		return Chain{}, err
	}
	c, err := DecodeCertificate(certificate)
	if err != nil {
		return Chain{}, err
	}
	return Chain{Delegation: d, Certificate: c}, nil
}

// Key names the exact bytes of a chain, for caches of verified ones.
func (ch Chain) Key() [32]byte {
	return sha256.Sum256(append(append([]byte(nil), ch.Delegation.hash[:]...), ch.Certificate.hash[:]...))
}

// VerifyDelegation checks that the authority signed d.
func (root *Root) VerifyDelegation(d *Delegation) error {
	key, _, ok := root.authority(d.Epoch)
	if !ok {
		return fmt.Errorf("delegation: authority epoch %d is not known: %w", d.Epoch, ErrSignature)
	}
	if root.delegations.has(d.hash) {
		return nil
	}
	if !d.object.Verify(root.id, 0, key[:]) {
		return fmt.Errorf("delegation: %w", ErrSignature)
	}
	root.delegations.add(d.hash)
	return nil
}

// verified remembers objects whose signatures were good by the hash of all
// their bytes. All gateways of an organisation show the same delegation. The
// zero value is empty; safe for concurrent use.
type verified struct {
	mu     sync.Mutex // guards hashes
	hashes map[[32]byte]struct{}
}

// maxVerified bounds what is remembered, 32 bytes each: a mesh has few delegations.
const maxVerified = 256

func (v *verified) has(hash [32]byte) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, ok := v.hashes[hash]
	return ok
}

func (v *verified) add(hash [32]byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.hashes == nil || len(v.hashes) >= maxVerified {
		v.hashes = make(map[[32]byte]struct{})
	}
	v.hashes[hash] = struct{}{}
}

// VerifyChain checks everything about a chain: both signatures, that the
// certificate narrows the delegation, that no grant is forbidden, and validity.
func (root *Root) VerifyChain(ch Chain, now time.Time) error {
	if err := root.VerifyChainForm(ch); err != nil {
		return err
	}
	return root.ValidAt(ch, now)
}

// VerifyChainForm checks all of VerifyChain that time does not change.
func (root *Root) VerifyChainForm(ch Chain) error {
	d, c := ch.Delegation, ch.Certificate
	if err := root.VerifyDelegation(d); err != nil {
		return err
	}
	if c.Delegation != d.hash {
		return fmt.Errorf("certificate of %s names another delegation: %w", c.Gateway, ErrChain)
	}
	if !c.object.Verify(root.id, 0, d.Key[:]) {
		return fmt.Errorf("certificate of %s: %w", c.Gateway, ErrSignature)
	}
	switch {
	case !strings.HasPrefix(c.Site, d.SitePrefix):
		return fmt.Errorf("site %s does not begin with %s: %w", c.Site, d.SitePrefix, ErrChain)
	case c.Permissions&^d.Permissions != 0:
		return fmt.Errorf("permissions %#x of %#x: %w", c.Permissions, d.Permissions, ErrChain)
	case c.NotBefore.Before(d.NotBefore), c.NotAfter.After(d.NotAfter), c.NotAfter.Before(c.NotBefore):
		return fmt.Errorf("validity of %s is not within that of its delegation: %w", c.Gateway, ErrChain)
	}
	block := OverlayBlock(root.id)
	for _, g := range c.Grants {
		if err := CheckGrant(g.Prefix, block); err != nil {
			return fmt.Errorf("certificate of %s: %w", c.Gateway, err)
		}
		if !within(g.Prefix, d.Ranges) {
			return fmt.Errorf("grant %v of %s: %w", g.Prefix, c.Gateway, ErrChain)
		}
	}
	return nil
}

// ValidAt checks the validity of a chain at a time, within Tolerance.
func (root *Root) ValidAt(ch Chain, now time.Time) error {
	c := ch.Certificate
	_, until, _ := root.authority(ch.Delegation.Epoch)
	switch {
	case now.Before(c.NotBefore.Add(-Tolerance)):
		return fmt.Errorf("certificate of %s begins %s: %w", c.Gateway, c.NotBefore.Format(time.RFC3339), ErrNotYetValid)
	case now.After(c.NotAfter.Add(Tolerance)):
		return fmt.Errorf("certificate of %s ended %s: %w", c.Gateway, c.NotAfter.Format(time.RFC3339), ErrExpired)
	case !until.IsZero() && now.After(until.Add(Tolerance)):
		return fmt.Errorf("authority epoch %d of %s ended: %w", ch.Delegation.Epoch, c.Gateway, ErrExpired)
	}
	return nil
}

// Claim orders overlapping grants of different sites (security decision 6).
type Claim struct {
	Delegation uint64
	Grant      uint64
	Hash       [32]byte // of the certificate object
}

// Claim is the claim that grant g of the chain makes.
func (ch Chain) Claim(g Grant) Claim {
	return Claim{Delegation: ch.Delegation.Number, Grant: g.Number, Hash: ch.Certificate.hash}
}

// Before reports whether a wins over b.
func (a Claim) Before(b Claim) bool {
	if a.Delegation != b.Delegation {
		return a.Delegation < b.Delegation
	}
	if a.Grant != b.Grant {
		return a.Grant < b.Grant
	}
	return bytes.Compare(a.Hash[:], b.Hash[:]) < 0
}
