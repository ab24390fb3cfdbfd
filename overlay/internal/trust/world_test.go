package trust

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// world is a mesh with an issuing key and two organisations. All keys come
// from fixed seeds, so that every object in it is the same in every run.
type world struct {
	root      *Root
	authority ed25519.PrivateKey
	recovery  ed25519.PrivateKey
	issuer    *Delegation // number 1, any site, 192.168.0.0/16 and fd10::/16
	org       *Delegation // number 2, organisation uni-a, sites a-…, 10.0.0.0/8 and fd10::/16
	other     *Delegation // number 3, organisation uni-b, sites b-…, 10.0.0.0/8
}

// day0 is when everything in a world begins.
var day0 = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func newKey(label string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("test key " + label))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(key ed25519.PrivateKey) [32]byte { return [32]byte(key.Public().(ed25519.PublicKey)) }

func newExchangeKey(t testing.TB, label string) *ecdh.PrivateKey {
	t.Helper()
	seed := sha256.Sum256([]byte("test exchange key " + label))
	key, err := ecdh.X25519().NewPrivateKey(seed[:])
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func newWorld(t testing.TB) *world { return newNamedWorld(t, "demo") }

// newNamedWorld makes a mesh of that name. Its authority has the same key in
// all meshes: only the mesh ID tells them apart.
func newNamedWorld(t testing.TB, name string) *world {
	t.Helper()
	w := &world{authority: newKey("authority"), recovery: newKey("recovery")}
	raw, err := Genesis{
		Name:         name,
		Authority:    public(w.authority),
		RecoveryHash: RecoveryHash(w.recovery.Public().(ed25519.PublicKey)),
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if w.root, err = NewRoot(raw, nil); err != nil {
		t.Fatal(err)
	}
	w.issuer = w.delegate(t, Delegation{
		Kind: KindIssuer, Number: 1, Key: public(newKey("issuer")), Ranges: prefixes("192.168.0.0/16", "fd10::/16"),
		NotBefore: day0, NotAfter: day0.Add(3650 * day), Permissions: MayRelay,
	})
	w.org = w.delegate(t, Delegation{
		Kind: KindOrganisation, Number: 2, Key: public(newKey("org")), Organisation: "uni-a", SitePrefix: "a-",
		Ranges: prefixes("10.0.0.0/8", "fd10::/16"), NotBefore: day0, NotAfter: day0.Add(365 * day),
	})
	w.other = w.delegate(t, Delegation{
		Kind: KindOrganisation, Number: 3, Key: public(newKey("other")), Organisation: "uni-b", SitePrefix: "b-",
		Ranges: prefixes("10.0.0.0/8"), NotBefore: day0, NotAfter: day0.Add(365 * day),
	})
	return w
}

func (w *world) delegate(t testing.TB, d Delegation) *Delegation {
	t.Helper()
	signed, err := d.Sign(w.root.id, w.authority)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// certificate is a good one of organisation uni-a.
func (w *world) certificate() Certificate {
	return Certificate{
		Gateway: "gw-a-1", Site: "a-1", Identity: public(newKey("identity a-1")),
		Grants:     []Grant{{netip.MustParsePrefix("10.1.0.0/16"), 1}, {netip.MustParsePrefix("fd10:1::/48"), 2}},
		Generation: 1, NotBefore: day0.Add(day), NotAfter: day0.Add(31 * day), Serial: [16]byte{1, 2, 3},
	}
}

// chain signs c by uni-a.
func (w *world) chain(t testing.TB, c Certificate) Chain {
	t.Helper()
	return w.chainBy(t, c, w.org, newKey("org"))
}

func (w *world) chainBy(t testing.TB, c Certificate, d *Delegation, key ed25519.PrivateKey) Chain {
	t.Helper()
	signed, err := c.Sign(w.root.id, d, key)
	if err != nil {
		t.Fatal(err)
	}
	return Chain{Delegation: d, Certificate: signed}
}

// epoch changes the authority key for the n-th time; the new key and the next
// recovery key have n in their label.
func (w *world) epoch(t testing.TB, n uint32) []byte {
	t.Helper()
	recovery := w.recovery
	if n > 1 {
		recovery = newKey("recovery" + string('0'+rune(n-1)))
	}
	key, next := newKey("authority"+string('0'+rune(n))), newKey("recovery"+string('0'+rune(n)))
	raw, err := Epoch{
		Number: n, Key: public(key), OverlapUntil: day0.Add(time.Duration(n) * 10 * day),
		NextRecovery: RecoveryHash(next.Public().(ed25519.PublicKey)), Recovery: public(recovery),
	}.Sign(w.root.id, recovery, key)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// field is one field of a body, for tests that write what Writer refuses.
type field struct {
	tag   uint16
	value []byte
}

// fieldsOf takes the body of an object apart without judging it.
func fieldsOf(raw []byte) []field {
	body := raw[6 : 6+binary.BigEndian.Uint32(raw[2:])]
	var out []field
	for len(body) >= 4 {
		n := int(binary.BigEndian.Uint16(body[2:]))
		out = append(out, field{binary.BigEndian.Uint16(body), body[4 : 4+n]})
		body = body[4+n:]
	}
	return out
}

// object puts fields into a signed object, whatever they are.
func object(t testing.TB, typ wire.Type, mesh MeshID, fields []field, keys ...ed25519.PrivateKey) []byte {
	t.Helper()
	var body []byte
	for _, f := range fields {
		body = binary.BigEndian.AppendUint16(body, f.tag)
		body = binary.BigEndian.AppendUint16(body, uint16(len(f.value)))
		body = append(body, f.value...)
	}
	raw, err := wire.Encode(typ, mesh, body, keys...)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// with returns fields with the given one put in the place of its number, or
// added in order; a nil value takes it out.
func with(fields []field, tag uint16, value []byte) []field {
	number := func(f field) uint16 { return f.tag &^ 0x8000 }
	out := slices.DeleteFunc(slices.Clone(fields), func(f field) bool { return number(f) == tag&^0x8000 })
	if value != nil {
		out = append(out, field{tag, value})
		slices.SortStableFunc(out, func(a, b field) int { return int(number(a)) - int(number(b)) })
	}
	return out
}

// known keeps fields that a decoder of this version understands: critical ones,
// and the given ones.
func known(fields []field, optional ...uint16) []field {
	return slices.DeleteFunc(slices.Clone(fields), func(f field) bool {
		return f.tag&0x8000 == 0 && !slices.Contains(optional, f.tag)
	})
}

// mustBeCanonical fails if what a decoder understood of raw is written in
// another way than it was read.
func mustBeCanonical(t testing.TB, raw, again []byte, optional ...uint16) {
	t.Helper()
	a, b := known(fieldsOf(raw), optional...), fieldsOf(again)
	same := func(x, y field) bool { return x.tag == y.tag && bytes.Equal(x.value, y.value) }
	if !slices.EqualFunc(a, b, same) {
		t.Fatalf("%x\nis written again as\n%x", raw, again)
	}
}
