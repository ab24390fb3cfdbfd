package trust

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Revocations is the grow-only set of what was withdrawn. Sets merge by union;
// there is no way back. It is safe for concurrent use.
type Revocations struct {
	root *Root

	mu      sync.Mutex // guards all below
	entries map[[32]byte]*Revocation
	perKey  map[[32]byte]int
}

// Revocation withdraws one thing.
type Revocation struct {
	Kind       RevocationKind
	Target     []byte // 16 bytes, 32 bytes, or a name, by Kind
	KeepUntil  time.Time
	Delegation *Delegation // of the signer; nil: the authority
	Number     uint64
	raw        []byte
}

// RevocationKind says what is withdrawn.
type RevocationKind uint8

// The kinds of revocations.
const (
	RevokeSerial       RevocationKind = 1
	RevokeIdentity     RevocationKind = 2
	RevokeOrganisation RevocationKind = 3
	RevokeTicket       RevocationKind = 4
)

// revocationQuota bounds how many entries one signer may have, so that a
// stolen organisation key cannot fill every disk.
const revocationQuota = 4096

// Sign returns the revocation object. The key is the authority's, or that of
// the delegation.
func (v Revocation) Sign(mesh MeshID, key ed25519.PrivateKey) ([]byte, error) {
	var w wire.Writer
	w.Uint8(1, uint8(v.Kind))
	w.Field(2, v.Target)
	w.Time(3, v.KeepUntil)
	if v.Delegation != nil {
		w.Field(4, v.Delegation.raw)
	}
	w.Uint64(5, v.Number)
	return encode(wire.Revocation, mesh, &w, key)
}

// NewRevocations returns an empty set.
func NewRevocations(root *Root) *Revocations {
	return &Revocations{root: root, entries: make(map[[32]byte]*Revocation), perKey: make(map[[32]byte]int)}
}

// Add verifies an entry and takes it in. fresh says that it was not there.
func (s *Revocations) Add(raw []byte) (fresh bool, err error) {
	id := sha256.Sum256(raw)
	s.mu.Lock()
	_, known := s.entries[id]
	s.mu.Unlock()
	if known {
		return false, nil
	}
	v, signer, err := s.verify(raw)
	if err != nil {
		return false, wrap("revocation", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.perKey[signer] >= revocationQuota {
		return false, fmt.Errorf("revocation: more than %d of one signer", revocationQuota)
	}
	s.entries[id] = v
	s.perKey[signer]++
	return true, nil
}

func (s *Revocations) verify(raw []byte) (*Revocation, [32]byte, error) {
	var signer [32]byte
	o, err := wire.Decode(wire.Revocation, raw)
	if err != nil {
		return nil, signer, err
	}
	v := &Revocation{raw: bytes.Clone(raw)}
	r := wire.NewReader(o.Body)
	v.Kind = RevocationKind(r.Uint8(1))
	v.Target = bytes.Clone(r.Required(2))
	v.KeepUntil = r.Time(3)
	delegation := r.Field(4)
	v.Number = r.Uint64(5)
	r.Fail(v.checkTarget())
	if err := r.Close(); err != nil {
		return nil, signer, err
	}
	if delegation == nil {
		return v, signer, s.verifyAuthority(o, &signer)
	}
	if v.Delegation, err = DecodeDelegation(delegation); err != nil {
		return nil, signer, err
	}
	if err := s.root.VerifyDelegation(v.Delegation); err != nil {
		return nil, signer, err
	}
	signer = v.Delegation.Key
	if !o.Verify(s.root.id, 0, signer[:]) {
		return nil, signer, ErrSignature
	}
	if v.Kind == RevokeOrganisation {
		return nil, signer, fmt.Errorf("organisations are revoked by the authority alone: %w", ErrSignature)
	}
	return v, signer, nil
}

// verifyAuthority tries the authority key of every epoch.
func (s *Revocations) verifyAuthority(o wire.Object, signer *[32]byte) error {
	for epoch := range uint32(len(s.root.epochs)) + 1 {
		key, _, _ := s.root.authority(epoch)
		if o.Verify(s.root.id, 0, key[:]) {
			*signer = key
			return nil
		}
	}
	return ErrSignature
}

func (v *Revocation) checkTarget() error {
	want := map[RevocationKind]int{RevokeSerial: 16, RevokeTicket: 16, RevokeIdentity: 32}[v.Kind]
	switch {
	case v.Kind == RevokeOrganisation:
		return wire.CheckName(string(v.Target))
	case want == 0, len(v.Target) != want:
		return fmt.Errorf("%w: target of %d bytes for kind %d", ErrFormat, len(v.Target), v.Kind)
	}
	return nil
}

// Revoked reports whether a chain was withdrawn. An organisation's or issuing
// key's entry counts only for what it issued itself.
func (s *Revocations) Revoked(ch Chain) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.entries {
		if v.covers(ch) {
			return true
		}
	}
	return false
}

func (v *Revocation) covers(ch Chain) bool {
	c := ch.Certificate
	if v.Delegation != nil && v.Delegation.Key != ch.Delegation.Key {
		return false
	}
	switch v.Kind {
	case RevokeSerial:
		return bytes.Equal(v.Target, c.Serial[:])
	case RevokeIdentity:
		return bytes.Equal(v.Target, c.Identity[:])
	case RevokeTicket:
		return bytes.Equal(v.Target, c.Ticket[:])
	case RevokeOrganisation:
		return string(v.Target) == ch.Delegation.Organisation
	}
	return false
}

// Raw returns all entries, ascending by hash; do not change them.
func (s *Revocations) Raw() [][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out [][]byte
	for _, id := range s.idsLocked() {
		out = append(out, s.entries[id].raw)
	}
	return out
}

// Digest is the part of an anti-entropy summary (docs/protocol.md, section 4).
func (s *Revocations) Digest() [32]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b []byte
	for _, id := range s.idsLocked() {
		b = append(b, id[:]...)
	}
	return hash("revocations", b)
}

func (s *Revocations) idsLocked() [][32]byte {
	ids := make([][32]byte, 0, len(s.entries))
	for id := range s.entries {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, func(a, b [32]byte) int { return bytes.Compare(a[:], b[:]) })
	return ids
}

// Expire forgets entries whose target cannot be valid any more.
func (s *Revocations) Expire(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, v := range s.entries {
		if now.After(v.KeepUntil) {
			delete(s.entries, id)
		}
	}
}
