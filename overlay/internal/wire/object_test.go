package wire

import (
	"bytes"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func newKey(b byte) ed25519.PrivateKey {
	return ed25519.NewKeyFromSeed(bytes.Repeat([]byte{b}, ed25519.SeedSize))
}

func public(key ed25519.PrivateKey) []byte { return key.Public().(ed25519.PublicKey) }

func mustEncode(t testing.TB, typ Type, body []byte, keys ...ed25519.PrivateKey) []byte {
	t.Helper()
	raw, err := Encode(typ, [32]byte{1}, body, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

func TestEncodePutsBodyBetweenHeaderAndSignatures(t *testing.T) {
	body := []byte("body")
	raw := mustEncode(t, Epoch, body, newKey(1), newKey(2))
	head := []byte{2, 1, 0, 0, 0, 4, 'b', 'o', 'd', 'y'}
	mesh := [32]byte{1}
	message := append(append([]byte("planetmesh/1/epoch\x00"), mesh[:]...), head...)
	want := append(bytes.Clone(head), ed25519.Sign(newKey(1), message)...)
	want = append(want, ed25519.Sign(newKey(2), message)...)
	if !bytes.Equal(raw, want) {
		t.Errorf("got %x\nwant %x", raw, want)
	}
	o, err := Decode(Epoch, raw)
	if err != nil {
		t.Fatal(err)
	}
	if o.Type != Epoch || !bytes.Equal(o.Body, body) {
		t.Errorf("got type %d body %q", o.Type, o.Body)
	}
	if !o.Verify(mesh, 0, public(newKey(1))) || !o.Verify(mesh, 1, public(newKey(2))) {
		t.Error("signatures do not hold")
	}
}

func TestVerifyRefuses(t *testing.T) {
	mesh := [32]byte{1}
	raw := mustEncode(t, Delegation, []byte("body"), newKey(1))
	for name, verify := range map[string]func(Object) bool{
		"another key":          func(o Object) bool { return o.Verify(mesh, 0, public(newKey(2))) },
		"another mesh":         func(o Object) bool { return o.Verify([32]byte{2}, 0, public(newKey(1))) },
		"no key":               func(o Object) bool { return o.Verify(mesh, 0, nil) },
		"a long key":           func(o Object) bool { return o.Verify(mesh, 0, make([]byte, 64)) },
		"a second signature":   func(o Object) bool { return o.Verify(mesh, 1, public(newKey(1))) },
		"the label of another": func(o Object) bool { o.Type = Certificate; return o.Verify(mesh, 0, public(newKey(1))) },
	} {
		t.Run(name, func(t *testing.T) {
			o, err := Decode(Delegation, raw)
			if err != nil {
				t.Fatal(err)
			}
			if verify(o) {
				t.Error("verifies")
			}
		})
	}
	for i := range raw {
		changed := bytes.Clone(raw)
		changed[i] ^= 1
		if o, err := Decode(Delegation, changed); err == nil && o.Verify(mesh, 0, public(newKey(1))) {
			t.Errorf("byte %d changed: still verifies", i)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	good := mustEncode(t, Delegation, []byte("body"), newKey(1))
	with := func(i int, b byte) []byte {
		out := bytes.Clone(good)
		out[i] = b
		return out
	}
	for name, raw := range map[string][]byte{
		"nothing":          {},
		"half a header":    good[:5],
		"cut short":        good[:len(good)-1],
		"trailing byte":    append(bytes.Clone(good), 0),
		"type 0":           with(0, 0),
		"type 11":          with(0, 11),
		"another type":     with(0, byte(Certificate)),
		"version 0":        with(1, 0),
		"version 2":        with(1, 2),
		"body one longer":  with(5, 5),
		"body one shorter": with(5, 3),
		"length 2^32−1":    {3, 1, 0xff, 0xff, 0xff, 0xff},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Decode(Delegation, raw); !errors.Is(err, ErrFormat) {
				t.Errorf("got %v, want %v", err, ErrFormat)
			}
		})
	}
}

// TestLimitsAreThoseOfTheProtocol knows the table of docs/protocol.md, section
// 2: the largest body passes, one byte more is refused before it is read.
func TestLimitsAreThoseOfTheProtocol(t *testing.T) {
	for typ, row := range map[Type]struct{ limit, signatures int }{
		Genesis: {1 << 10, 0}, Epoch: {1 << 10, 2}, Delegation: {2 << 10, 1}, Certificate: {4 << 10, 1},
		Record: {8 << 10, 1}, Ticket: {8 << 10, 1}, EnrolRequest: {2 << 10, 2}, EnrolReply: {64 << 10, 0},
		Revocation: {2 << 10, 1}, Introduction: {16 << 10, 0},
	} {
		keys := []ed25519.PrivateKey{newKey(1), newKey(2)}[:row.signatures]
		largest := row.limit - 6 - 64*row.signatures
		raw := mustEncode(t, typ, make([]byte, largest), keys...)
		if _, err := Decode(typ, raw); err != nil || len(raw) != row.limit {
			t.Errorf("type %d: %d bytes: %v", typ, len(raw), err)
		}
		if _, err := Encode(typ, [32]byte{}, make([]byte, largest+1), keys...); !errors.Is(err, ErrFormat) {
			t.Errorf("type %d: one byte more is written: %v", typ, err)
		}
		// Only the header is there: what it promises is refused, not awaited.
		head := binary.BigEndian.AppendUint32([]byte{byte(typ), Version}, uint32(largest+1))
		if _, _, err := Cut(append(head, make([]byte, row.limit)...)); !errors.Is(err, ErrFormat) {
			t.Errorf("type %d: one byte more is read: %v", typ, err)
		}
	}
}

func TestEncodeRefusesTheWrongNumberOfKeys(t *testing.T) {
	for typ, keys := range map[Type][]ed25519.PrivateKey{
		Genesis: {newKey(1)}, Epoch: {newKey(1)}, Record: nil, 77: {newKey(1)},
	} {
		if _, err := Encode(typ, [32]byte{}, []byte("body"), keys...); !errors.Is(err, ErrFormat) {
			t.Errorf("type %d with %d keys: got %v", typ, len(keys), err)
		}
	}
	if _, err := Encode(77, [32]byte{}, []byte("body")); !errors.Is(err, ErrFormat) {
		t.Errorf("unknown type: got %v", err)
	}
}

func TestSplitObjects(t *testing.T) {
	a, b := mustEncode(t, Genesis, []byte("a")), mustEncode(t, Delegation, []byte("b"), newKey(1))
	joined := append(bytes.Clone(a), b...)
	got, err := SplitObjects(joined)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([][]byte{a, b}, got); diff != "" {
		t.Error(diff)
	}
	joined[6] = 'x'
	if got[0][6] != 'a' {
		t.Error("objects share memory with what they were cut from")
	}
	if got, err := SplitObjects(nil); err != nil || got != nil {
		t.Errorf("nothing: got %v, %v", got, err)
	}
	if _, err := SplitObjects(joined[:len(joined)-1]); !errors.Is(err, ErrFormat) {
		t.Errorf("cut short: got %v", err)
	}
	if _, err := SplitList(Genesis, joined); !errors.Is(err, ErrFormat) {
		t.Errorf("a delegation among geneses: got %v", err)
	}
	if got, err := SplitList(Genesis, a); err != nil || len(got) != 1 {
		t.Errorf("list of one: got %d, %v", len(got), err)
	}
}

func FuzzSplitObjects(f *testing.F) {
	a, b := mustEncode(f, Genesis, []byte("a")), mustEncode(f, Delegation, []byte("b"), newKey(1))
	f.Add(append(bytes.Clone(a), b...))
	f.Add(a[:3])
	f.Add([]byte{3, 1, 0xff, 0xff, 0xff, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := SplitObjects(b)
		if err != nil {
			return
		}
		if !bytes.Equal(bytes.Join(list, nil), b) {
			t.Fatal("objects do not add up")
		}
		for _, raw := range list {
			o, err := Decode(Type(raw[0]), raw)
			if err != nil {
				t.Fatal(err)
			}
			if o.Verify([32]byte{}, 0, public(newKey(9))) {
				t.Fatal("signature of nobody holds")
			}
		}
	})
}
