package trust

import (
	"bytes"
	"cmp"
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
	targets map[target][]*Revocation
	signers map[signer][]*Revocation // ascending by rank
	digest  *[32]byte                // nil: to be made
}

// Revocation withdraws one thing.
type Revocation struct {
	Kind       RevocationKind
	Target     []byte      // 16 bytes, 32 bytes, or a name, by Kind
	KeepUntil  time.Time   // latest expiry of the target plus Tolerance
	Delegation *Delegation // of the signer; nil: the authority
	Number     uint64      // per signer, ascending from 1
	raw        []byte
	id         [32]byte // SHA-256 of raw
	object     wire.Object
	signer     signer // set by verify
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
const revocationQuota = 512

// target is what an entry is looked up by.
type target struct {
	kind  RevocationKind
	bytes string
}

// signer is who made an entry: a delegation by its number, which renewal
// keeps, or the authority, number 0; and the epoch of the authority key behind
// it, so that a key that was replaced has no say about what came after it.
type signer struct {
	delegation uint64
	epoch      uint32
}

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
	return &Revocations{
		root:    root,
		entries: make(map[[32]byte]*Revocation),
		targets: make(map[target][]*Revocation),
		signers: make(map[signer][]*Revocation),
	}
}

// Add verifies an entry and takes it in. fresh says that the set changed: the
// entry was not there, and its signer's quota has room for it. Errors:
// ErrFormat, ErrSignature, ErrChain if the signer may not revoke this.
func (s *Revocations) Add(raw []byte) (fresh bool, err error) {
	id := sha256.Sum256(raw)
	s.mu.Lock()
	_, known := s.entries[id]
	s.mu.Unlock()
	if known {
		return false, nil
	}
	v, err := decodeRevocation(bytes.Clone(raw))
	if err == nil {
		err = v.verify(s.root)
	}
	if err != nil {
		return false, wrap("revocation", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.addLocked(v), nil
}

// addLocked takes a verified entry in. Beyond its quota the lowest entries of a
// signer stay, whatever order they came in, so that all sets become equal. That
// is no error of whoever passed them on.
func (s *Revocations) addLocked(v *Revocation) bool {
	list := s.signers[v.signer]
	at, known := slices.BinarySearchFunc(list, v, (*Revocation).rank)
	if known || at >= revocationQuota {
		return false
	}
	s.signers[v.signer] = slices.Insert(list, at, v)
	s.entries[v.id] = v
	s.digest = nil
	key := v.target()
	s.targets[key] = append(s.targets[key], v)
	if list = s.signers[v.signer]; len(list) > revocationQuota {
		s.removeLocked(list[revocationQuota])
	}
	return true
}

func (s *Revocations) removeLocked(v *Revocation) {
	same := func(other *Revocation) bool { return other == v }
	delete(s.entries, v.id)
	s.digest = nil
	key := v.target()
	if s.targets[key] = slices.DeleteFunc(s.targets[key], same); len(s.targets[key]) == 0 {
		delete(s.targets, key)
	}
	if s.signers[v.signer] = slices.DeleteFunc(s.signers[v.signer], same); len(s.signers[v.signer]) == 0 {
		delete(s.signers, v.signer)
	}
}

// rank orders the entries of a signer.
func (v *Revocation) rank(other *Revocation) int {
	return cmp.Or(cmp.Compare(v.Number, other.Number), bytes.Compare(v.id[:], other.id[:]))
}

func (v *Revocation) target() target { return target{v.Kind, string(v.Target)} }

// decodeRevocation reads a revocation object; no signature is checked.
func decodeRevocation(raw []byte) (*Revocation, error) {
	o, err := wire.Decode(wire.Revocation, raw)
	if err != nil {
		return nil, err
	}
	v := &Revocation{raw: raw, id: sha256.Sum256(raw), object: o}
	r := wire.NewReader(o.Body)
	v.Kind = RevocationKind(r.Uint8(1))
	v.Target = r.Required(2)
	v.KeepUntil = r.Time(3)
	delegation := r.Field(4)
	if v.Number = r.Uint64(5); v.Number == 0 {
		r.Fail(fmt.Errorf("%w: number 0", ErrFormat))
	}
	r.Fail(v.checkTarget())
	if err := r.Close(); err != nil {
		return nil, err
	}
	if delegation != nil {
		v.Delegation, err = DecodeDelegation(delegation)
	}
	return v, err
}

// verify checks that the signer may revoke this.
func (v *Revocation) verify(root *Root) error {
	if v.Delegation == nil {
		return v.verifyAuthority(root)
	}
	d := v.Delegation
	if err := root.VerifyDelegation(d); err != nil {
		return err
	}
	if !v.object.Verify(root.id, 0, d.Key[:]) {
		return ErrSignature
	}
	if v.Kind == RevokeOrganisation {
		return fmt.Errorf("organisations are revoked by the authority alone: %w", ErrChain)
	}
	v.signer = signer{delegation: d.Number, epoch: d.Epoch}
	return nil
}

// verifyAuthority finds the epoch whose authority key signed.
func (v *Revocation) verifyAuthority(root *Root) error {
	for epoch := range uint32(len(root.epochs)) + 1 {
		key, _, _ := root.authority(epoch)
		if v.object.Verify(root.id, 0, key[:]) {
			v.signer = signer{epoch: epoch}
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

// Revoked reports whether a chain was withdrawn. An entry by a delegation
// counts only for what that delegation issued.
func (s *Revocations) Revoked(ch Chain) bool {
	c := ch.Certificate
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.targets) == 0 { // as nearly always, and this is asked for every packet of gossip
		return false
	}
	// A lookup with a converted key allocates nothing.
	return ch.withdrawnBy(s.targets[target{RevokeSerial, string(c.Serial[:])}]) ||
		ch.withdrawnBy(s.targets[target{RevokeIdentity, string(c.Identity[:])}]) ||
		c.Ticket != [16]byte{} && ch.withdrawnBy(s.targets[target{RevokeTicket, string(c.Ticket[:])}]) ||
		ch.Delegation.Organisation != "" && ch.withdrawnBy(s.targets[target{RevokeOrganisation, ch.Delegation.Organisation}])
}

// withdrawnBy reports whether one of the entries about a part of the chain counts.
func (ch Chain) withdrawnBy(entries []*Revocation) bool {
	return slices.ContainsFunc(entries, func(v *Revocation) bool { return v.signer.over(ch.Delegation) })
}

// over reports whether the signer may revoke what d issued.
func (by signer) over(d *Delegation) bool {
	return d.Epoch <= by.epoch && (by.delegation == 0 || by.delegation == d.Number)
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

// Digest is the part of an anti-entropy summary (docs/protocol.md, section 4):
// equal for two sets exactly if they hold the same entries.
func (s *Revocations) Digest() [32]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.digest == nil {
		var b []byte
		for _, id := range s.idsLocked() {
			b = append(b, id[:]...)
		}
		digest := hash("revocations", b)
		s.digest = &digest
	}
	return *s.digest
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
	for _, v := range s.entries {
		if now.After(v.KeepUntil) {
			s.removeLocked(v)
		}
	}
}
