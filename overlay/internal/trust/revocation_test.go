package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

func (w *world) revoke(t testing.TB, v Revocation, key ed25519.PrivateKey) []byte {
	t.Helper()
	if v.Number == 0 {
		v.Number = 1
	}
	if v.KeepUntil.IsZero() {
		v.KeepUntil = day0.Add(40 * day)
	}
	raw, err := v.Sign(w.root.id, key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// TestRevocationReachesWhatItsSignerIssued has every kind of signer revoke the
// gateway of uni-a.
func TestRevocationReachesWhatItsSignerIssued(t *testing.T) {
	w := newWorld(t)
	c := w.certificate()
	c.Ticket = [16]byte{5}
	victim := w.chain(t, c)
	serial, identity, name, ticket := c.Serial[:], c.Identity[:], []byte("uni-a"), c.Ticket[:]
	newer := *w.org
	newer.Key = public(newKey("org2"))
	renewed := w.delegate(t, newer)
	for what, row := range map[string]struct {
		entry   Revocation
		key     ed25519.PrivateKey
		err     error
		revoked bool
	}{
		"serial by the authority":            {Revocation{Kind: RevokeSerial, Target: serial}, w.authority, nil, true},
		"identity by the authority":          {Revocation{Kind: RevokeIdentity, Target: identity}, w.authority, nil, true},
		"organisation by the authority":      {Revocation{Kind: RevokeOrganisation, Target: name}, w.authority, nil, true},
		"ticket by the authority":            {Revocation{Kind: RevokeTicket, Target: ticket}, w.authority, nil, true},
		"another serial":                     {Revocation{Kind: RevokeSerial, Target: make([]byte, 16)}, w.authority, nil, false},
		"another identity":                   {Revocation{Kind: RevokeIdentity, Target: make([]byte, 32)}, w.authority, nil, false},
		"another organisation":               {Revocation{Kind: RevokeOrganisation, Target: []byte("uni-b")}, w.authority, nil, false},
		"serial given as a ticket":           {Revocation{Kind: RevokeTicket, Target: serial}, w.authority, nil, false},
		"serial by its organisation":         {Revocation{Kind: RevokeSerial, Target: serial, Delegation: w.org}, newKey("org"), nil, true},
		"identity by its organisation":       {Revocation{Kind: RevokeIdentity, Target: identity, Delegation: w.org}, newKey("org"), nil, true},
		"ticket by its organisation":         {Revocation{Kind: RevokeTicket, Target: ticket, Delegation: w.org}, newKey("org"), nil, true},
		"by its organisation's next key":     {Revocation{Kind: RevokeSerial, Target: serial, Delegation: renewed}, newKey("org2"), nil, true},
		"serial by a foreign organisation":   {Revocation{Kind: RevokeSerial, Target: serial, Delegation: w.other}, newKey("other"), nil, false},
		"identity by a foreign organisation": {Revocation{Kind: RevokeIdentity, Target: identity, Delegation: w.other}, newKey("other"), nil, false},
		"by an issuing key of the mesh":      {Revocation{Kind: RevokeIdentity, Target: identity, Delegation: w.issuer}, newKey("issuer"), nil, false},
		"itself, as an organisation":         {Revocation{Kind: RevokeOrganisation, Target: name, Delegation: w.org}, newKey("org"), ErrChain, false},
		"another, as an organisation":        {Revocation{Kind: RevokeOrganisation, Target: name, Delegation: w.other}, newKey("other"), ErrChain, false},
		"in its organisation's name":         {Revocation{Kind: RevokeSerial, Target: serial, Delegation: w.org}, newKey("other"), ErrSignature, false},
		"in the authority's name":            {Revocation{Kind: RevokeSerial, Target: serial}, newKey("org"), ErrSignature, false},
		"by the gateway itself":              {Revocation{Kind: RevokeSerial, Target: serial}, newKey("identity a-1"), ErrSignature, false},
	} {
		t.Run(what, func(t *testing.T) {
			s := NewRevocations(w.root)
			raw := w.revoke(t, row.entry, row.key)
			fresh, err := s.Add(raw)
			if !errors.Is(err, row.err) || fresh != (row.err == nil) {
				t.Errorf("add: got %t, %v, want %v", fresh, err, row.err)
			}
			if got := s.Revoked(victim); got != row.revoked {
				t.Errorf("revoked: got %t, want %t", got, row.revoked)
			}
			if again, err := s.Add(raw); again || !errors.Is(err, row.err) {
				t.Errorf("a second time: got %t, %v", again, err)
			}
		})
	}
}

func TestTicketOfZerosRevokesNoCertificateWithoutATicket(t *testing.T) {
	w := newWorld(t)
	s := NewRevocations(w.root)
	if _, err := s.Add(w.revoke(t, Revocation{Kind: RevokeTicket, Target: make([]byte, 16)}, w.authority)); err != nil {
		t.Fatal(err)
	}
	if s.Revoked(w.chain(t, w.certificate())) {
		t.Error("revoked")
	}
}

// TestReplacedAuthorityRevokesNothingNew has the thief of an old authority key
// try to put out the mesh that went on without it.
func TestReplacedAuthorityRevokesNothingNew(t *testing.T) {
	w := newWorld(t)
	root, err := NewRoot(w.root.Genesis.Raw(), [][]byte{w.epoch(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	d := *w.org
	d.Epoch = 1
	renewed, err := d.Sign(root.id, newKey("authority1"))
	if err != nil {
		t.Fatal(err)
	}
	before, after := w.chain(t, w.certificate()), w.chainBy(t, w.certificate(), renewed, newKey("org"))
	id := before.Certificate.Identity
	fake := *w.org
	fake.Key = public(newKey("thief"))
	forged, err := fake.Sign(root.id, w.authority)
	if err != nil {
		t.Fatal(err)
	}
	for name, row := range map[string]struct {
		raw           []byte
		before, after bool
	}{
		"old authority":                  {w.revoke(t, Revocation{Kind: RevokeIdentity, Target: id[:]}, w.authority), true, false},
		"new authority":                  {w.revoke(t, Revocation{Kind: RevokeIdentity, Target: id[:]}, newKey("authority1")), true, true},
		"delegation made by the old one": {w.revoke(t, Revocation{Kind: RevokeIdentity, Target: id[:], Delegation: forged}, newKey("thief")), true, false},
		"renewed delegation":             {w.revoke(t, Revocation{Kind: RevokeIdentity, Target: id[:], Delegation: renewed}, newKey("org")), true, true},
	} {
		s := NewRevocations(root)
		if _, err := s.Add(row.raw); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if got := [2]bool{s.Revoked(before), s.Revoked(after)}; got != [2]bool{row.before, row.after} {
			t.Errorf("%s: revoked before, after the change: got %v, want %v", name, got, [2]bool{row.before, row.after})
		}
	}
}

func TestRevocationIsRefused(t *testing.T) {
	w, foreign := newWorld(t), newNamedWorld(t, "foreign")
	good := fieldsOf(w.revoke(t, Revocation{Kind: RevokeSerial, Target: make([]byte, 16), Delegation: w.org}, newKey("org")))
	sign := func(fields []field) []byte { return object(t, wire.Revocation, w.root.id, fields, newKey("org")) }
	valid := sign(good)
	for name, row := range map[string]struct {
		raw  []byte
		want error
	}{
		"no kind":                 {sign(with(good, 0x8001, nil)), ErrFormat},
		"kind 5":                  {sign(with(good, 0x8001, []byte{5})), ErrFormat},
		"no target":               {sign(with(good, 0x8002, nil)), ErrFormat},
		"serial of 15 bytes":      {sign(with(good, 0x8002, make([]byte, 15))), ErrFormat},
		"identity of 16 bytes":    {sign(with(good, 0x8001, []byte{2})), ErrFormat},
		"organisation is no name": {sign(with(good, 0x8001, []byte{3})), ErrFormat},
		"kept for no time":        {sign(with(good, 0x8003, nil)), ErrFormat},
		"no number":               {sign(with(good, 0x8005, nil)), ErrFormat},
		"number zero":             {sign(with(good, 0x8005, make([]byte, 8))), ErrFormat},
		"unknown critical field":  {sign(with(good, 0x8006, []byte{1})), ErrFormat},
		"delegation is none":      {sign(with(good, 0x8004, w.root.Genesis.Raw())), ErrFormat},
		"trailing byte":           {append(bytes.Clone(valid), 0), ErrFormat},
		"cut short":               {valid[:len(valid)-1], ErrFormat},
		"delegation of elsewhere": {sign(with(good, 0x8004, foreign.org.Raw())), ErrSignature},
		"signed for another mesh": {object(t, wire.Revocation, foreign.root.id, good, newKey("org")), ErrSignature},
	} {
		s := NewRevocations(w.root)
		if fresh, err := s.Add(row.raw); fresh || !errors.Is(err, row.want) {
			t.Errorf("%s: got %t, %v, want %v", name, fresh, err, row.want)
		}
		if len(s.Raw()) != 0 {
			t.Errorf("%s: is in the set", name)
		}
	}
	s := NewRevocations(w.root)
	if fresh, err := s.Add(sign(with(good, 9, []byte("later")))); !fresh || err != nil {
		t.Errorf("unknown field that is not critical: %t, %v", fresh, err)
	}
}

// TestConcurrentRevocationsMeetAfterAPartition adds different entries in two
// halves and merges them both ways.
func TestConcurrentRevocationsMeetAfterAPartition(t *testing.T) {
	w := newWorld(t)
	a, b := NewRevocations(w.root), NewRevocations(w.root)
	other := w.certificate()
	other.Identity, other.Serial = public(newKey("identity a-2")), [16]byte{9}
	one, two := w.chain(t, w.certificate()), w.chain(t, other)
	mustAdd(t, a, w.revoke(t, Revocation{Kind: RevokeSerial, Target: one.Certificate.Serial[:], Number: 1}, w.authority))
	mustAdd(t, b, w.revoke(t, Revocation{Kind: RevokeSerial, Target: two.Certificate.Serial[:], Number: 1}, w.authority))
	if a.Digest() == b.Digest() || a.Revoked(two) || b.Revoked(one) {
		t.Fatal("the halves know of each other")
	}
	fromA, fromB := a.Raw(), b.Raw()
	mustAdd(t, a, fromB...)
	mustAdd(t, b, fromA...)
	if a.Digest() != b.Digest() {
		t.Error("digests differ after the merge")
	}
	if diff := cmp.Diff(a.Raw(), b.Raw()); diff != "" {
		t.Error(diff)
	}
	for _, s := range []*Revocations{a, b} {
		if !s.Revoked(one) || !s.Revoked(two) {
			t.Error("a half does not hold both")
		}
	}
}

func mustAdd(t testing.TB, s *Revocations, raws ...[]byte) {
	t.Helper()
	for _, raw := range raws {
		if _, err := s.Add(raw); err != nil {
			t.Fatal(err)
		}
	}
}

// TestQuotaLeavesAllSetsEqual has a stolen organisation key sign more than it
// may have, which arrives in another order everywhere.
func TestQuotaLeavesAllSetsEqual(t *testing.T) {
	w := newWorld(t)
	var raws [][]byte
	for i := range revocationQuota + 40 {
		number := uint64(i/2 + 1) // two of each number
		raws = append(raws, w.revoke(t, Revocation{
			Kind: RevokeSerial, Target: binary.BigEndian.AppendUint64(make([]byte, 8), uint64(i)), Number: number, Delegation: w.org,
		}, newKey("org")))
	}
	c := w.certificate()
	byAuthority := w.revoke(t, Revocation{Kind: RevokeSerial, Target: c.Serial[:], Number: 9999}, w.authority)
	random := rand.New(rand.NewPCG(1, 2))
	var digests [][32]byte
	for range 3 {
		s := NewRevocations(w.root)
		random.Shuffle(len(raws), func(i, j int) { raws[i], raws[j] = raws[j], raws[i] })
		mustAdd(t, s, raws...)
		mustAdd(t, s, byAuthority)
		if n := len(s.Raw()); n != revocationQuota+1 {
			t.Errorf("%d entries, want %d", n, revocationQuota+1)
		}
		if !s.Revoked(w.chain(t, c)) {
			t.Error("the flood of one signer keeps out another's")
		}
		digests = append(digests, s.Digest())
		if n := len(s.targets); n != revocationQuota+1 {
			t.Errorf("%d targets are left in the index", n)
		}
	}
	if digests[0] != digests[1] || digests[1] != digests[2] {
		t.Error("the order of arrival decided what stayed")
	}
}

func TestRevocationsAreForgottenAfterTheirTime(t *testing.T) {
	w := newWorld(t)
	s := NewRevocations(w.root)
	c := w.certificate()
	until := day0.Add(40 * day)
	short := w.revoke(t, Revocation{Kind: RevokeSerial, Target: c.Serial[:], KeepUntil: until, Delegation: w.org}, newKey("org"))
	mustAdd(t, s, short, w.revoke(t, Revocation{Kind: RevokeSerial, Target: make([]byte, 16), KeepUntil: until.Add(day)}, w.authority))
	s.Expire(until)
	if !s.Revoked(w.chain(t, c)) {
		t.Error("forgotten too early")
	}
	s.Expire(until.Add(time.Second))
	if s.Revoked(w.chain(t, c)) || len(s.Raw()) != 1 {
		t.Errorf("%d entries are left", len(s.Raw()))
	}
	s.Expire(until.Add(2 * day))
	if len(s.Raw()) != 0 || len(s.targets) != 0 || len(s.signers) != 0 || s.Digest() != NewRevocations(w.root).Digest() {
		t.Error("something is left")
	}
	// Its quota is free again.
	if fresh, err := s.Add(short); !fresh || err != nil {
		t.Errorf("after it was forgotten: %t, %v", fresh, err)
	}
}

func TestRevocationsMayBeUsedByMany(t *testing.T) {
	w := newWorld(t)
	s := NewRevocations(w.root)
	ch := w.chain(t, w.certificate())
	done := make(chan error)
	for i := range 4 {
		go func() { // ends by itself
			var err error
			for n := range 5 {
				target := fmt.Appendf(nil, "%016d", n)
				raw, signErr := Revocation{Kind: RevokeSerial, Target: target, KeepUntil: day0, Number: uint64(i + 1)}.Sign(w.root.id, w.authority)
				_, addErr := s.Add(raw)
				err = errors.Join(err, signErr, addErr)
				s.Revoked(ch)
				s.Digest()
				s.Expire(day0)
			}
			done <- err
		}()
	}
	for range 4 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	if n := len(s.Raw()); n != 20 {
		t.Errorf("%d entries, want 20", n)
	}
}

func FuzzDecodeRevocation(f *testing.F) {
	w := newWorld(f)
	f.Add(w.revoke(f, Revocation{Kind: RevokeSerial, Target: make([]byte, 16), Delegation: w.org}, newKey("org")))
	f.Add(w.revoke(f, Revocation{Kind: RevokeOrganisation, Target: []byte("uni-b")}, w.authority))
	f.Add(w.revoke(f, Revocation{Kind: RevokeIdentity, Target: make([]byte, 32)}, w.authority)[:30])
	s := NewRevocations(w.root)
	ch := w.chain(f, w.certificate())
	f.Fuzz(func(t *testing.T, raw []byte) {
		if _, err := s.Add(raw); err == nil && s.Revoked(ch) {
			t.Fatalf("forged: %x", raw)
		}
		v, err := decodeRevocation(raw)
		if err != nil {
			return
		}
		again, err := v.Sign(w.root.id, w.authority)
		if err != nil {
			t.Fatal(err)
		}
		mustBeCanonical(t, raw, again)
	})
}
