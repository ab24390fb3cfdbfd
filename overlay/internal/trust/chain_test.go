package trust

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

var byValue = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

func TestDelegationAndCertificateComeBack(t *testing.T) {
	w := newWorld(t)
	d, err := DecodeDelegation(w.org.Raw())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(w.org, d, byValue, cmpopts.IgnoreUnexported(Delegation{})); diff != "" {
		t.Error(diff)
	}
	want := w.certificate()
	want.Ticket = [16]byte{9}
	want.Permissions = MayRelay
	signed := w.chain(t, want).Certificate
	got, err := DecodeCertificate(signed.Raw())
	if err != nil {
		t.Fatal(err)
	}
	want.Delegation = w.org.hash
	if diff := cmp.Diff(&want, got, byValue, cmpopts.IgnoreUnexported(Certificate{})); diff != "" {
		t.Error(diff)
	}
}

func TestDecodedObjectsShareNoMemoryWithTheirBytes(t *testing.T) {
	w := newWorld(t)
	ch := w.chain(t, w.certificate())
	delegation, certificate := bytes.Clone(ch.Delegation.Raw()), bytes.Clone(ch.Certificate.Raw())
	decoded, err := DecodeChain(delegation, certificate)
	if err != nil {
		t.Fatal(err)
	}
	clear(delegation)
	clear(certificate)
	if err := w.root.VerifyChain(decoded, day0.Add(2*day)); err != nil {
		t.Error(err)
	}
}

func TestDelegationIsRefused(t *testing.T) {
	w := newWorld(t)
	good := fieldsOf(w.org.Raw())
	for name, fields := range map[string][]field{
		"unknown critical field":         with(good, 0x8000|99, []byte{1}),
		"field 2 not critical":           with(good, 2, binary.BigEndian.AppendUint64(nil, 2)),
		"no kind":                        with(good, 0x8001, nil),
		"kind 3":                         with(good, 0x8001, []byte{3}),
		"no number":                      with(good, 0x8002, nil),
		"no key":                         with(good, 0x8003, nil),
		"key of 31 bytes":                with(good, 0x8003, make([]byte, 31)),
		"organisation without a name":    with(good, 0x8004, nil),
		"issuer with an organisation":    with(good, 0x8001, []byte{1}),
		"organisation that is no name":   with(good, 0x8004, []byte("Uni A")),
		"site prefix that begins no one": with(good, 0x8005, []byte("A-")),
		"site prefix of 64 bytes":        with(good, 0x8005, bytes.Repeat([]byte("a"), 64)),
		"no ranges":                      with(good, 0x8006, nil),
		"range with host bits":           with(good, 0x8006, []byte{4, 8, 10, 0, 0, 1}),
		"65 ranges":                      with(good, 0x8006, manyPrefixes(65)),
		"no beginning":                   with(good, 0x8007, nil),
		"no end":                         with(good, 0x8008, nil),
		"permissions of zero":            with(good, 0x8009, make([]byte, 4)),
		"epoch of zero":                  with(good, 0x8000|10, make([]byte, 4)),
		"a field twice":                  append(with(good, 0x8000|10, nil), good[len(good)-1]),
		"descending":                     append([]field{good[len(good)-1]}, good[:len(good)-1]...),
		"present and empty":              with(good, 0x8005, []byte{}),
	} {
		t.Run(name, func(t *testing.T) {
			d, err := DecodeDelegation(object(t, wire.Delegation, w.root.id, fields, w.authority))
			if !errors.Is(err, ErrFormat) || d != nil {
				t.Errorf("got %v, %v, want %v", d, err, ErrFormat)
			}
		})
	}
}

func manyPrefixes(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, 4, 24, 10, 0, byte(i), 0)
	}
	return b
}

func manyGrants(n int) []byte {
	var b []byte
	for i := range n {
		b = append(b, 4, 24, 10, 0, byte(i), 0, 0, 0, 0, 0, 0, 0, 0, 1)
	}
	return b
}

func TestCertificateIsRefused(t *testing.T) {
	w := newWorld(t)
	good := fieldsOf(w.chain(t, w.certificate()).Certificate.Raw())
	for name, fields := range map[string][]field{
		"unknown critical field": with(good, 0x8000|99, []byte{1}),
		"no gateway":             with(good, 0x8001, nil),
		"gateway is no name":     with(good, 0x8001, []byte("gw_1")),
		"no site":                with(good, 0x8002, nil),
		"no identity":            with(good, 0x8003, nil),
		"identity too long":      with(good, 0x8003, make([]byte, 33)),
		"grant cut short":        with(good, 0x8004, manyGrants(1)[:13]),
		"grant with host bits":   with(good, 0x8004, []byte{4, 8, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 1}),
		"grants descending":      with(good, 0x8004, append(manyGrants(2)[14:], manyGrants(1)...)),
		"grant twice":            with(good, 0x8004, append(manyGrants(1), manyGrants(1)...)),
		"65 grants":              with(good, 0x8004, manyGrants(65)),
		"no generation":          with(good, 0x8005, nil),
		"generation zero":        with(good, 0x8005, make([]byte, 8)),
		"no beginning":           with(good, 0x8006, nil),
		"no end":                 with(good, 0x8007, nil),
		"no serial":              with(good, 0x8008, nil),
		"no delegation":          with(good, 0x8000|10, nil),
		"ticket of zeros":        with(good, 11, make([]byte, 16)),
		"ticket of 15 bytes":     with(good, 11, make([]byte, 15)),
		"ticket critical":        with(good, 0x8000|11, bytes.Repeat([]byte{1}, 16)),
	} {
		t.Run(name, func(t *testing.T) {
			c, err := DecodeCertificate(object(t, wire.Certificate, w.root.id, fields, newKey("org")))
			if !errors.Is(err, ErrFormat) || c != nil {
				t.Errorf("got %v, %v, want %v", c, err, ErrFormat)
			}
		})
	}
	if _, err := DecodeCertificate(object(t, wire.Certificate, w.root.id, with(good, 0x8004, manyGrants(64)), newKey("org"))); err != nil {
		t.Errorf("64 grants: %v", err)
	}
}

func TestChainKeepsUnknownFieldsThatAreNotCritical(t *testing.T) {
	w := newWorld(t)
	d, err := DecodeDelegation(object(t, wire.Delegation, w.root.id, with(fieldsOf(w.org.Raw()), 99, []byte("later")), w.authority))
	if err != nil {
		t.Fatal(err)
	}
	signed := w.chainBy(t, w.certificate(), d, newKey("org")).Certificate
	raw := object(t, wire.Certificate, w.root.id, with(fieldsOf(signed.Raw()), 99, []byte("later")), newKey("org"))
	c, err := DecodeCertificate(raw)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(c.Raw(), raw) {
		t.Error("raw bytes were not kept")
	}
	if err := w.root.VerifyChain(Chain{d, c}, day0.Add(2*day)); err != nil {
		t.Error(err)
	}
}

// TestChainOnlyNarrows has a delegation's key sign more than it may.
func TestChainOnlyNarrows(t *testing.T) {
	w := newWorld(t)
	block := OverlayBlock(w.root.id)
	inBlock := netip.PrefixFrom(block.Addr(), 64)
	for name, row := range map[string]struct {
		change func(*Certificate)
		want   error
	}{
		"as it should be":           {func(*Certificate) {}, nil},
		"no grants":                 {func(c *Certificate) { c.Grants = nil }, nil},
		"a whole range":             {func(c *Certificate) { c.Grants = []Grant{{netip.MustParsePrefix("10.0.0.0/8"), 1}} }, nil},
		"exactly the validity":      {func(c *Certificate) { c.NotBefore, c.NotAfter = w.org.NotBefore, w.org.NotAfter }, nil},
		"prefix of somebody else":   {func(c *Certificate) { c.Grants = []Grant{{netip.MustParsePrefix("192.168.1.0/24"), 1}} }, ErrChain},
		"IPv6 of somebody else":     {func(c *Certificate) { c.Grants = []Grant{{netip.MustParsePrefix("2001:db8::/32"), 1}} }, ErrChain},
		"prefix wider than a range": {func(c *Certificate) { c.Grants = []Grant{{netip.MustParsePrefix("fd00::/16"), 1}} }, ErrChain},
		"one bad grant of two":      {func(c *Certificate) { c.Grants[1].Prefix = netip.MustParsePrefix("fd11::/48") }, ErrChain},
		"site of another":           {func(c *Certificate) { c.Site = "b-1" }, ErrChain},
		"permission it has not":     {func(c *Certificate) { c.Permissions = MayRelay }, ErrChain},
		"unknown permission":        {func(c *Certificate) { c.Permissions = 1 << 31 }, ErrChain},
		"begins earlier":            {func(c *Certificate) { c.NotBefore = w.org.NotBefore.Add(-time.Second) }, ErrChain},
		"ends later":                {func(c *Certificate) { c.NotAfter = w.org.NotAfter.Add(time.Second) }, ErrChain},
		"ends before it begins":     {func(c *Certificate) { c.NotAfter = c.NotBefore.Add(-time.Second) }, ErrChain},
		"overlay block":             {func(c *Certificate) { c.Grants = []Grant{{inBlock, 1}} }, ErrGrant},
		"default route":             {func(c *Certificate) { c.Grants = []Grant{{netip.MustParsePrefix("0.0.0.0/0"), 1}} }, ErrGrant},
	} {
		t.Run(name, func(t *testing.T) {
			c := w.certificate()
			row.change(&c)
			if err := w.root.VerifyChain(w.chain(t, c), day0.Add(2*day)); !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
		})
	}
}

func TestDefaultRangesAllowNoDefaultGrant(t *testing.T) {
	w := newWorld(t)
	d := w.delegate(t, Delegation{
		Kind: KindIssuer, Number: 9, Key: public(newKey("issuer")), Ranges: prefixes("0.0.0.0/0", "::/0"),
		NotBefore: day0, NotAfter: day0.Add(365 * day),
	})
	for _, p := range []string{"0.0.0.0/0", "::/0", "128.0.0.0/1"} {
		c := w.certificate()
		c.Grants = []Grant{{netip.MustParsePrefix(p), 1}}
		if err := w.root.VerifyChain(w.chainBy(t, c, d, newKey("issuer")), day0.Add(2*day)); !errors.Is(err, ErrGrant) {
			t.Errorf("%s: got %v, want %v", p, err, ErrGrant)
		}
	}
	if err := w.root.VerifyChain(w.chainBy(t, w.certificate(), d, newKey("issuer")), day0.Add(2*day)); err != nil {
		t.Error(err)
	}
}

// TestGrantMayNotBeginInARangeAndReachBeyond is about prefixes whose first
// address lies in the range.
func TestGrantMayNotBeginInARangeAndReachBeyond(t *testing.T) {
	w := newWorld(t)
	d := w.delegate(t, Delegation{
		Kind: KindIssuer, Number: 9, Key: public(newKey("issuer")), Ranges: prefixes("10.2.0.0/16", "fd10::/32"),
		NotBefore: day0, NotAfter: day0.Add(365 * day),
	})
	for p, want := range map[string]error{
		"10.2.0.0/16": nil, "10.2.0.0/15": ErrChain, "10.2.0.0/17": nil, "fd10::/31": ErrChain, "fd10::/33": nil,
	} {
		c := w.certificate()
		c.Grants = []Grant{{netip.MustParsePrefix(p), 1}}
		if err := w.root.VerifyChain(w.chainBy(t, c, d, newKey("issuer")), day0.Add(2*day)); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", p, err, want)
		}
	}
}

func TestChainWithForgedLinksIsRefused(t *testing.T) {
	w, foreign := newWorld(t), newNamedWorld(t, "foreign")
	now := day0.Add(2 * day)
	ownDelegation, err := Delegation{
		Kind: KindIssuer, Number: 1, Key: public(newKey("mallory")), Ranges: prefixes("10.0.0.0/8", "fd10::/16"),
		NotBefore: day0, NotAfter: day0.Add(365 * day),
	}.Sign(w.root.id, newKey("mallory"))
	if err != nil {
		t.Fatal(err)
	}
	good := w.chain(t, w.certificate())
	renewed := w.delegate(t, *w.org)
	if !bytes.Equal(renewed.Raw(), w.org.Raw()) {
		t.Fatal("signatures are not deterministic: the golden files cannot work")
	}
	later := *w.org
	later.NotAfter = later.NotAfter.Add(day)
	for name, row := range map[string]struct {
		chain Chain
		want  error
	}{
		"delegation by nobody":               {w.chainBy(t, w.certificate(), ownDelegation, newKey("mallory")), ErrSignature},
		"delegation of another mesh":         {foreign.chain(t, w.certificate()), ErrSignature},
		"certificate by another key":         {w.chainBy(t, w.certificate(), w.org, newKey("other")), ErrSignature},
		"certificate by the authority":       {w.chainBy(t, w.certificate(), w.org, w.authority), ErrSignature},
		"certificate by a gateway":           {w.chainBy(t, w.certificate(), w.org, newKey("identity a-1")), ErrSignature},
		"delegation that is not the one":     {Chain{w.other, good.Certificate}, ErrChain},
		"another edition of the delegation":  {Chain{w.delegate(t, later), good.Certificate}, ErrChain},
		"certificate of another mesh's twin": {Chain{w.org, foreign.chain(t, w.certificate()).Certificate}, ErrChain},
	} {
		t.Run(name, func(t *testing.T) {
			if err := w.root.VerifyChain(row.chain, now); !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
		})
	}
}

func TestChainWithOneChangedBitIsRefused(t *testing.T) {
	w := newWorld(t)
	good := w.chain(t, w.certificate())
	try := func(delegation, certificate []byte) error {
		ch, err := DecodeChain(delegation, certificate)
		if err != nil {
			return err
		}
		return w.root.VerifyChain(ch, day0.Add(2*day))
	}
	flip := func(b []byte, i int) []byte {
		b = bytes.Clone(b)
		b[i/8] ^= 1 << (i % 8)
		return b
	}
	delegation, certificate := good.Delegation.Raw(), good.Certificate.Raw()
	if err := try(delegation, certificate); err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(delegation)*8; i += 3 {
		if try(flip(delegation, i), certificate) == nil {
			t.Errorf("bit %d of the delegation", i)
		}
	}
	for i := 0; i < len(certificate)*8; i += 3 {
		if try(delegation, flip(certificate, i)) == nil {
			t.Errorf("bit %d of the certificate", i)
		}
	}
}

func TestChainIsValidWithinToleranceOnly(t *testing.T) {
	w := newWorld(t)
	ch := w.chain(t, w.certificate())
	c := ch.Certificate
	for name, row := range map[string]struct {
		now  time.Time
		want error
	}{
		"middle":                   {day0.Add(10 * day), nil},
		"2 h early":                {c.NotBefore.Add(-2 * time.Hour), nil},
		"2 h and a second early":   {c.NotBefore.Add(-2*time.Hour - time.Second), ErrNotYetValid},
		"2 h late":                 {c.NotAfter.Add(2 * time.Hour), nil},
		"2 h and a second late":    {c.NotAfter.Add(2*time.Hour + time.Second), ErrExpired},
		"a clock that begins 1970": {time.Unix(0, 0), ErrNotYetValid},
	} {
		t.Run(name, func(t *testing.T) {
			err := w.root.VerifyChain(ch, row.now)
			if !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
			if err != nil && !strings.Contains(err.Error(), "clock") {
				t.Errorf("%v does not name skew as a cause", err)
			}
		})
	}
}

func TestKeyOfChainNamesItsBytes(t *testing.T) {
	w := newWorld(t)
	a := w.chain(t, w.certificate())
	c := w.certificate()
	c.Serial[0]++
	keys := map[[32]byte]string{}
	for name, ch := range map[string]Chain{
		"a":                  a,
		"another serial":     w.chain(t, c),
		"another delegation": {w.other, a.Certificate},
	} {
		if same, ok := keys[ch.Key()]; ok {
			t.Errorf("%s has the key of %s", name, same)
		}
		keys[ch.Key()] = name
	}
	if again, err := DecodeChain(a.Delegation.Raw(), a.Certificate.Raw()); err != nil || again.Key() != a.Key() {
		t.Errorf("decoded again: another key, %v", err)
	}
}

func TestLowerClaimsWin(t *testing.T) {
	ascending := []Claim{
		{1, 1, [32]byte{1}},
		{1, 1, [32]byte{2}},
		{1, 2, [32]byte{0}},
		{2, 1, [32]byte{0}},
		{2, 1, [32]byte{0, 1}},
		{1 << 63, 0, [32]byte{}},
	}
	for i, a := range ascending {
		for j, b := range ascending {
			if a.Before(b) != (i < j) {
				t.Errorf("%v before %v: got %t", a, b, a.Before(b))
			}
		}
	}
	w := newWorld(t)
	ch := w.chain(t, w.certificate())
	want := Claim{Delegation: 2, Grant: 2, Hash: ch.Certificate.hash}
	if got := ch.Claim(ch.Certificate.Grants[1]); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSignRefusesWhatCannotBeRead(t *testing.T) {
	w := newWorld(t)
	c := w.certificate()
	c.Grants[0], c.Grants[1] = c.Grants[1], c.Grants[0]
	if _, err := c.Sign(w.root.id, w.org, newKey("org")); err == nil {
		t.Error("certificate with descending grants was signed")
	}
	d := *w.org
	d.Organisation = ""
	if _, err := d.Sign(w.root.id, w.authority); err == nil {
		t.Error("delegation of an organisation without a name was signed")
	}
	c = w.certificate()
	c.Site = "A"
	if _, err := c.Sign(w.root.id, w.org, newKey("org")); err == nil {
		t.Error("certificate of a site that is no name was signed")
	}
	if _, err := (Genesis{Name: "-"}).Encode(); err == nil {
		t.Error("genesis without a name was encoded")
	}
}

func FuzzDecodeDelegation(f *testing.F) {
	w := newWorld(f)
	for _, d := range []*Delegation{w.issuer, w.org} {
		f.Add(d.Raw())
	}
	f.Add(object(f, wire.Delegation, w.root.id, with(fieldsOf(w.org.Raw()), 99, []byte("later")), w.authority))
	f.Add(w.org.Raw()[:40])
	f.Fuzz(func(t *testing.T, raw []byte) {
		d, err := DecodeDelegation(raw)
		if err != nil {
			return
		}
		again, err := d.Sign(w.root.id, w.authority)
		if err != nil {
			t.Fatal(err)
		}
		mustBeCanonical(t, raw, again.Raw())
	})
}

func FuzzDecodeCertificate(f *testing.F) {
	w := newWorld(f)
	c := w.certificate()
	f.Add(w.chain(f, c).Certificate.Raw())
	c.Ticket, c.Grants = [16]byte{5}, nil
	f.Add(w.chain(f, c).Certificate.Raw())
	f.Add(w.chain(f, c).Certificate.Raw()[:80])
	f.Fuzz(func(t *testing.T, raw []byte) {
		c, err := DecodeCertificate(raw)
		if err != nil {
			return
		}
		again, err := c.Sign(w.root.id, &Delegation{hash: c.Delegation}, newKey("org"))
		if err != nil {
			t.Fatal(err)
		}
		mustBeCanonical(t, raw, again.Raw(), 11)
	})
}
