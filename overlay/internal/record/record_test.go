package record

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

var update = flag.Bool("update", false, "write golden files anew")

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmpopts.IgnoreUnexported(Record{}, trust.Delegation{}, trust.Certificate{}),
}

func left(r *Record) { r.Left, r.Routes, r.Endpoints = true, nil, nil }

func rolling(r *Record) { r.PreviousWireGuard, r.PreviousLink = [32]byte{1}, [32]byte{2} }

func TestRecordComesBack(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	for name, change := range map[string]func(*Record){
		"as it should be":     func(*Record) {},
		"left":                left,
		"during a key change": rolling,
		"nothing to say":      func(r *Record) { r.Routes, r.Endpoints, r.Capabilities, r.Software = nil, nil, 0, "" },
		"the last sequence":   func(r *Record) { r.Sequence = MaxSequence },
		"unknown capability":  func(r *Record) { r.Capabilities = 1<<63 | Relays },
	} {
		t.Run(name, func(t *testing.T) {
			raw := g.sign(t, 7, change)
			got, err := Verify(w.root, raw, now)
			if err != nil {
				t.Fatal(err)
			}
			want := g.record
			want.Sequence = 7
			change(&want)
			want.ID, want.Raw, want.BodyHash = g.id(), raw, got.BodyHash
			want.Overlay = trust.OverlayAddr(w.root.ID(), "uni-a", want.Chain.Certificate.Identity)
			if diff := cmp.Diff(&want, got, byValue, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" {
				t.Error(diff)
			}
			if got.Order() != (Order{1, want.Sequence}) || got.Order().String() != fmt.Sprintf("1.%d", want.Sequence) {
				t.Errorf("order %v", got.Order())
			}
			clear(raw)
			if bytes.Equal(got.Raw, raw) {
				t.Error("the record shares memory with what it was read from")
			}
		})
	}
}

func routes(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, 4, 32, 10, 0, 1, byte(i), 0, 1)
	}
	return b
}

func TestDecodeRefuses(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	good, goodLeft := fieldsOf(g.sign(t, 7)), fieldsOf(g.sign(t, 7, left))
	u64 := func(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }
	var nine []netip.AddrPort
	for i := range 9 {
		nine = append(nine, netip.AddrPortFrom(netip.MustParseAddr("10.4.0.90"), uint16(i+1)))
	}
	rows := map[string][]byte{
		"unknown critical field":   g.object(t, with(good, 0x8000|99, []byte{1})),
		"software made critical":   g.object(t, with(good, 0x8000|12, []byte("x"))),
		"no delegation":            g.object(t, with(good, 0x8001, nil)),
		"no certificate":           g.object(t, with(good, 0x8002, nil)),
		"certificate twice":        g.object(t, with(good, 0x8001, good[1].value)),
		"certificate, cut":         g.object(t, with(good, 0x8002, good[1].value[:100])),
		"delegation, and a byte":   g.object(t, with(good, 0x8001, append(bytes.Clone(good[0].value), 0))),
		"no WireGuard key":         g.object(t, with(good, 0x8003, nil)),
		"no link key":              g.object(t, with(good, 0x8004, nil)),
		"9 endpoints":              g.object(t, with(good, 0x8005, wire.AddrPorts(nine))),
		"endpoint twice":           g.object(t, with(good, 0x8005, wire.AddrPorts([]netip.AddrPort{nine[0], nine[0]}))),
		"65 routes":                g.object(t, with(good, 0x8006, routes(65))),
		"routes descending":        g.object(t, with(good, 0x8006, append(routes(2)[8:], routes(1)...))),
		"route twice":              g.object(t, with(good, 0x8006, append(routes(1), routes(1)...))),
		"route cut short":          g.object(t, with(good, 0x8006, routes(1)[:7])),
		"route with host bits":     g.object(t, with(good, 0x8006, []byte{4, 24, 10, 0, 1, 1, 0, 1})),
		"no sequence":              g.object(t, with(good, 0x8008, nil)),
		"sequence zero":            g.object(t, with(good, 0x8008, u64(0))),
		"sequence 2^62":            g.object(t, with(good, 0x8008, u64(1<<62))),
		"sequence 2^64−1":          g.object(t, with(good, 0x8008, u64(1<<64-1))),
		"unknown flag":             g.object(t, with(good, 0x8009, []byte{0, 0, 0, 2})),
		"left with routes":         g.object(t, with(goodLeft, 0x8006, routes(1))),
		"left with endpoints":      g.object(t, with(goodLeft, 0x8005, wire.AddrPorts(nine[:1]))),
		"previous key of zeros":    g.object(t, with(good, 0x8000|10, make([]byte, 32))),
		"previous link of zeros":   g.object(t, with(good, 0x8000|11, make([]byte, 32))),
		"software of 65 bytes":     g.object(t, with(good, 12, bytes.Repeat([]byte("x"), 65))),
		"software with an escape":  g.object(t, with(good, 12, []byte("\x1b[2J"))),
		"software with a letter ä": g.object(t, with(good, 12, []byte("ä"))),
		"field twice":              g.object(t, append(slices.Clone(good), good[len(good)-1])),
		"descending":               g.object(t, append([]field{good[len(good)-1]}, good[:len(good)-1]...)),
		"present and empty":        g.object(t, with(good, 0x8006, []byte{})),
		"trailing byte":            append(g.sign(t, 7), 0),
		"cut short":                g.sign(t, 7)[:600],
		"another object":           w.org.Raw(),
		"nothing":                  nil,
		"oversized":                append([]byte{5, 1, 0, 0, 0x40, 0}, make([]byte, 0x4000+64)...),
	}
	for name, raw := range rows {
		t.Run(name, func(t *testing.T) {
			r, err := Verify(w.root, raw, now)
			if !errors.Is(err, trust.ErrFormat) || r != nil {
				t.Errorf("got %v, %v, want %v", r, err, trust.ErrFormat)
			}
			b := NewBook(w.root, trust.GatewayID{})
			if v, r, err := b.Offer(raw, now, now); v != Refused || r != nil || !errors.Is(err, trust.ErrFormat) {
				t.Errorf("book: got %v, %v, %v", v, r, err)
			}
		})
	}
	if _, err := Verify(w.root, g.object(t, with(good, 0x8006, routes(64))), now); err != nil {
		t.Errorf("64 routes: %v", err)
	}
}

func TestRecordKeepsUnknownFieldsThatAreNotCritical(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	raw := g.object(t, with(fieldsOf(g.sign(t, 7)), 99, []byte("later")))
	r, err := Verify(w.root, raw, now)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(r.Raw, raw) {
		t.Error("raw bytes were not kept")
	}
	if plain, err := Verify(w.root, g.sign(t, 7), now); err != nil || plain.BodyHash == r.BodyHash {
		t.Errorf("the hash does not cover the field: %v", err)
	}
}

// TestVerifyRefusesAttackers has members and strangers say what they must not.
func TestVerifyRefusesAttackers(t *testing.T) {
	w, foreign := newWorld(t), newNamedWorld(t, "foreign")
	g, thief := w.newGateway(t, 1), w.newGateway(t, 2)
	stolen := *thief
	stolen.record = g.record // another's certificate, own identity
	wide := certificate(1)
	wide.Grants = []trust.Grant{{Prefix: prefix("192.168.0.0/16"), Number: 1}}
	relay := certificate(1)
	relay.Permissions = trust.MayRelay
	site := certificate(1)
	site.Site = "b-1"
	long := certificate(1)
	long.NotAfter = now.Add(400 * day)
	announce := func(p string) func(*Record) {
		return func(r *Record) { r.Routes = []Route{{Prefix: prefix(p)}} }
	}
	mixed := w.newGateway(t, 1)
	mixed.record.Chain.Delegation = w.other
	for name, row := range map[string]struct {
		raw  []byte
		want error
	}{
		"certificate of another":           {stolen.sign(t, 7), trust.ErrSignature},
		"record of another mesh":           {foreign.newGateway(t, 1).sign(t, 7), trust.ErrSignature},
		"prefix of another site":           {g.sign(t, 7, announce("10.0.2.0/24")), trust.ErrGrant},
		"prefix wider than the grant":      {g.sign(t, 7, announce("10.0.0.0/23")), trust.ErrGrant},
		"wider, with the same address":     {g.sign(t, 7, announce("fd10::/47")), trust.ErrGrant},
		"everything":                       {g.sign(t, 7, announce("10.0.0.0/8")), trust.ErrGrant},
		"default route":                    {g.sign(t, 7, announce("0.0.0.0/0")), trust.ErrGrant},
		"default route of IPv6":            {g.sign(t, 7, announce("::/0")), trust.ErrGrant},
		"certificate wider than its range": {w.newGatewayBy(t, w.org, newKey("org"), wide).sign(t, 7, announce("192.168.1.0/24")), trust.ErrChain},
		"permission that is not there":     {w.newGatewayBy(t, w.org, newKey("org"), relay).sign(t, 7), trust.ErrChain},
		"site of another":                  {w.newGatewayBy(t, w.org, newKey("org"), site).sign(t, 7), trust.ErrChain},
		"certificate outlives delegation":  {w.newGatewayBy(t, w.org, newKey("org"), long).sign(t, 7), trust.ErrChain},
		"certificate signed by a gateway":  {w.newGatewayBy(t, w.org, newKey("identity 2"), certificate(1)).sign(t, 7), trust.ErrSignature},
		"delegation of another":            {mixed.sign(t, 7), trust.ErrChain},
	} {
		t.Run(name, func(t *testing.T) {
			if r, err := Verify(w.root, row.raw, now); !errors.Is(err, row.want) || r != nil {
				t.Errorf("got %v, %v, want %v", r, err, row.want)
			}
			b := NewBook(w.root, trust.GatewayID{})
			// The chain of the first try may be known by the second one.
			for range 2 {
				if v, r, err := b.Offer(row.raw, now, now); v != Refused || r != nil || !errors.Is(err, row.want) {
					t.Errorf("book: got %v, %v, %v", v, r, err)
				}
			}
			if len(b.All()) != 0 {
				t.Error("the book has it")
			}
		})
	}
}

func TestRecordWithOneChangedBitIsRefused(t *testing.T) {
	w := newWorld(t)
	raw := w.newGateway(t, 1).sign(t, 7)
	b := NewBook(w.root, trust.GatewayID{})
	if v, _, err := b.Offer(raw, now, now); v != Accepted {
		t.Fatal(v, err)
	}
	for i := 0; i < len(raw)*8; i += 5 {
		flipped := bytes.Clone(raw)
		flipped[i/8] ^= 1 << (i % 8)
		if _, err := Verify(w.root, flipped, now); err == nil {
			t.Errorf("bit %d: verifies", i)
		}
		// A lower order may be called older without a look at signatures.
		if v, _, _ := b.Offer(flipped, now, now); v != Refused && v != Older {
			t.Errorf("bit %d: %v", i, v)
		}
	}
	if got, _ := b.Get(w.newGateway(t, 1).id()); !bytes.Equal(got.Raw, raw) || len(b.All()) != 1 {
		t.Error("the book changed")
	}
}

func TestRecordIsValidWithinToleranceOnly(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	c := g.record.Chain.Certificate
	raw := g.sign(t, 7)
	for name, row := range map[string]struct {
		at   time.Time
		want error
	}{
		"in time":               {now, nil},
		"2 h early":             {c.NotBefore.Add(-2 * time.Hour), nil},
		"more than 2 h early":   {c.NotBefore.Add(-2*time.Hour - 1), trust.ErrNotYetValid},
		"2 h late":              {c.NotAfter.Add(2 * time.Hour), nil},
		"more than 2 h late":    {c.NotAfter.Add(2*time.Hour + 1), trust.ErrExpired},
		"with a clock of 1970":  {time.Unix(0, 0), trust.ErrNotYetValid},
		"with a clock of 2100":  {time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC), trust.ErrExpired},
		"with no clock at all":  {time.Time{}, trust.ErrNotYetValid},
		"a year after the next": {now.Add(500 * day), trust.ErrExpired},
	} {
		b := NewBook(w.root, trust.GatewayID{})
		_, err := Verify(w.root, raw, row.at)
		v, r, offered := b.Offer(raw, row.at, row.at)
		if !errors.Is(err, row.want) || !errors.Is(offered, row.want) || (v == Accepted) != (row.want == nil) {
			t.Errorf("%s: got %v, %v, %v, want %v", name, err, v, offered, row.want)
		}
		if r != nil && !r.ValidAt(row.at) || g.recordAt(t, raw).ValidAt(row.at) != (row.want == nil) {
			t.Errorf("%s: ValidAt says otherwise", name)
		}
	}
}

func (g *gateway) recordAt(t testing.TB, raw []byte) *Record {
	t.Helper()
	r, err := Decode(raw)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestOrderComparesGenerationFirst(t *testing.T) {
	ascending := []Order{{0, 0}, {1, 1}, {1, 2}, {1, MaxSequence}, {2, 1}, {1 << 63, 0}}
	for i, a := range ascending {
		for j, b := range ascending {
			if got := a.Compare(b); (got < 0) != (i < j) || (got == 0) != (i == j) {
				t.Errorf("%v compared with %v: %d", a, b, got)
			}
		}
	}
}

// TestGoldenRecords pins the bytes: see also trust's golden files.
func TestGoldenRecords(t *testing.T) {
	g := newWorld(t).newGateway(t, 1)
	for name, raw := range map[string][]byte{
		"record.hex":            g.sign(t, 7),
		"record-left.hex":       g.sign(t, 8, left),
		"record-key-change.hex": g.sign(t, MaxSequence, rolling),
	} {
		r := g.recordAt(t, raw)
		var b strings.Builder
		for rest := raw; len(rest) > 0; {
			n := min(32, len(rest))
			fmt.Fprintf(&b, "%x\n", rest[:n])
			rest = rest[n:]
		}
		fmt.Fprintf(&b, "# SHA-256(body) %x\n", r.BodyHash)
		path := filepath.Join("testdata", name)
		if *update {
			if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(string(want), b.String()); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

// FuzzDecode checks that what is read is written in the same way again.
func FuzzDecode(f *testing.F) {
	g := newWorld(f).newGateway(f, 1)
	f.Add(g.sign(f, 7))
	f.Add(g.sign(f, 7, left))
	f.Add(g.sign(f, MaxSequence, rolling))
	f.Add(g.object(f, with(fieldsOf(g.sign(f, 7)), 99, []byte("later"))))
	f.Add(g.sign(f, 7)[:300])
	f.Fuzz(func(t *testing.T, raw []byte) {
		r, err := Decode(raw)
		if err != nil {
			return
		}
		again, err := r.Sign(g.world.root.ID(), g.identity)
		if err != nil {
			t.Fatal(err)
		}
		known := slices.DeleteFunc(fieldsOf(raw), func(x field) bool { return x.tag&0x8000 == 0 && x.tag != 12 })
		same := func(a, b field) bool { return a.tag == b.tag && bytes.Equal(a.value, b.value) }
		if !slices.EqualFunc(known, fieldsOf(again), same) {
			t.Fatalf("%x\nis written again as\n%x", raw, again)
		}
	})
}

// FuzzOffer gives a book that knows one gateway what anybody can send.
func FuzzOffer(f *testing.F) {
	w := newWorld(f)
	g := w.newGateway(f, 1)
	f.Add(g.sign(f, 6))
	f.Add(g.sign(f, 7))
	f.Add(newNamedWorld(f, "foreign").newGateway(f, 1).sign(f, 9))
	b := NewBook(w.root, trust.GatewayID{})
	if v, _, err := b.Offer(g.sign(f, 7), now, now); v != Accepted {
		f.Fatal(v, err)
	}
	before := b.Summary()
	f.Fuzz(func(t *testing.T, raw []byte) {
		v, r, err := b.Offer(raw, now, now)
		if (v == Refused) != (err != nil) || (v == Refused) != (r == nil) {
			t.Fatalf("%v, %v, %v", v, r, err)
		}
		if b.Summary() != before {
			t.Fatalf("changed by %x", raw)
		}
	})
}
