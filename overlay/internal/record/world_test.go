package record

import (
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// world is a mesh with two organisations and an issuing key of its owner. All
// keys come from fixed seeds.
type world struct {
	root   *trust.Root
	issuer *trust.Delegation // number 1, any site, no organisation
	org    *trust.Delegation // number 2, uni-a, sites a-…
	other  *trust.Delegation // number 3, uni-b, sites b-…
}

// now is when all of a world is valid.
var now = time.Date(2030, 1, 10, 0, 0, 0, 0, time.UTC)

const day = 24 * time.Hour

func newKey(label string) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("test key " + label))
	return ed25519.NewKeyFromSeed(seed[:])
}

func public(key ed25519.PrivateKey) [32]byte { return [32]byte(key.Public().(ed25519.PublicKey)) }

func prefix(s string) netip.Prefix { return netip.MustParsePrefix(s) }

func newWorld(t testing.TB) *world { return newNamedWorld(t, "demo") }

func newNamedWorld(t testing.TB, name string) *world {
	t.Helper()
	raw, err := trust.Genesis{
		Name: name, Authority: public(newKey("authority")),
		RecoveryHash: trust.RecoveryHash(newKey("recovery").Public().(ed25519.PublicKey)),
	}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	w := new(world)
	if w.root, err = trust.NewRoot(raw, nil); err != nil {
		t.Fatal(err)
	}
	w.issuer = w.delegate(t, trust.Delegation{Kind: trust.KindIssuer, Number: 1, Key: public(newKey("issuer"))})
	w.org = w.delegate(t, trust.Delegation{Kind: trust.KindOrganisation, Number: 2, Key: public(newKey("org")), Organisation: "uni-a", SitePrefix: "a-"})
	w.other = w.delegate(t, trust.Delegation{Kind: trust.KindOrganisation, Number: 3, Key: public(newKey("other")), Organisation: "uni-b", SitePrefix: "b-"})
	return w
}

func (w *world) delegate(t testing.TB, d trust.Delegation) *trust.Delegation {
	t.Helper()
	d.Ranges = []netip.Prefix{prefix("10.0.0.0/8"), prefix("fd10::/16")}
	d.NotBefore, d.NotAfter = now.Add(-9*day), now.Add(365*day)
	signed, err := d.Sign(w.root.ID(), newKey("authority"))
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

// gateway is one that signs records: identity, chain, and what it says.
type gateway struct {
	world    *world
	identity ed25519.PrivateKey
	record   Record // without sequence
}

// newGateway makes gateway n of uni-a.
func (w *world) newGateway(t testing.TB, n int) *gateway {
	t.Helper()
	return w.newGatewayBy(t, w.org, newKey("org"), certificate(n))
}

// certificate is a good one for gateway n of uni-a.
func certificate(n int) trust.Certificate {
	return trust.Certificate{
		Gateway: fmt.Sprintf("gw-a-%d", n), Site: fmt.Sprintf("a-%d", n), Identity: public(newKey(fmt.Sprint("identity ", n))),
		Grants: []trust.Grant{
			{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(n >> 8), byte(n), 0}), 24), Number: 1},
			{Prefix: prefix("fd10::/48"), Number: 2},
		},
		Generation: 1, NotBefore: now.Add(-day), NotAfter: now.Add(29 * day), Serial: [16]byte{byte(n)},
	}
}

func (w *world) newGatewayBy(t testing.TB, d *trust.Delegation, issuer ed25519.PrivateKey, c trust.Certificate) *gateway {
	t.Helper()
	g := &gateway{world: w}
	for n := range 3000 {
		if key := newKey(fmt.Sprint("identity ", n)); public(key) == c.Identity {
			g.identity = key
			break
		}
	}
	if g.identity == nil {
		t.Fatal("an identity without a key")
	}
	g.record = Record{
		WireGuard: sha256.Sum256(append([]byte("wireguard"), c.Identity[:]...)),
		Link:      sha256.Sum256(append([]byte("link"), c.Identity[:]...)),
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.4.0.90:51820"), netip.MustParseAddrPort("[2001:db8::90]:51820")},
		Routes:    []Route{{Prefix: c.Grants[0].Prefix, Priority: 100}, {Prefix: prefix("fd10:0:0:1::/64")}},
		Software:  "meshd 0.1", Capabilities: CarriesData,
	}
	g.certify(t, d, issuer, c)
	return g
}

// certify gives the gateway another certificate.
func (g *gateway) certify(t testing.TB, d *trust.Delegation, issuer ed25519.PrivateKey, c trust.Certificate) {
	t.Helper()
	signed, err := c.Sign(g.world.root.ID(), d, issuer)
	if err != nil {
		t.Fatal(err)
	}
	g.record.Chain = trust.Chain{Delegation: d, Certificate: signed}
}

func (g *gateway) id() trust.GatewayID {
	return trust.IDOf(g.world.root.ID(), g.record.Chain.Certificate.Identity)
}

// sign returns the record with a sequence number; change may alter it.
func (g *gateway) sign(t testing.TB, sequence uint64, change ...func(*Record)) []byte {
	t.Helper()
	r := g.record
	r.Sequence = sequence
	for _, c := range change {
		c(&r)
	}
	raw, err := r.Sign(g.world.root.ID(), g.identity)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}

// field is one field of a body, for tests that write what Sign does not.
type field struct {
	tag   uint16
	value []byte
}

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

// with returns fields with the given one in the place of its number; a nil
// value takes it out.
func with(fields []field, tag uint16, value []byte) []field {
	number := func(f field) uint16 { return f.tag &^ 0x8000 }
	out := slices.DeleteFunc(slices.Clone(fields), func(f field) bool { return number(f) == tag&^0x8000 })
	if value != nil {
		out = append(out, field{tag, value})
		slices.SortStableFunc(out, func(a, b field) int { return int(number(a)) - int(number(b)) })
	}
	return out
}

// object signs fields, whatever they are.
func (g *gateway) object(t testing.TB, fields []field) []byte {
	t.Helper()
	var body []byte
	for _, f := range fields {
		body = binary.BigEndian.AppendUint16(body, f.tag)
		body = binary.BigEndian.AppendUint16(body, uint16(len(f.value)))
		body = append(body, f.value...)
	}
	raw, err := wire.Encode(wire.Record, g.world.root.ID(), body, g.identity)
	if err != nil {
		t.Fatal(err)
	}
	return raw
}
