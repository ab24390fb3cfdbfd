package record

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// noSelf is a gateway of its own for books of observers.
var noSelf = trust.GatewayID{0xff}

func mustOffer(t testing.TB, b *Book, at time.Time, want Verdict, raws ...[]byte) *Record {
	t.Helper()
	var last *Record
	for i, raw := range raws {
		v, r, err := b.Offer(raw, at, at)
		if v != want {
			t.Fatalf("record %d of %d: got %v, %v, want %v", i+1, len(raws), v, err, want)
		}
		last = r
	}
	return last
}

// has fails unless the book holds exactly these records.
func mustHave(t testing.TB, b *Book, raws ...[]byte) {
	t.Helper()
	var got, want []string
	for _, r := range b.All() {
		got = append(got, string(r.Raw))
	}
	for _, raw := range raws {
		want = append(want, string(raw))
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Fatalf("the book has %d records, want the %d others", len(got), len(want))
	}
}

func TestBookKeepsTheNewest(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, noSelf)
	one, two, three := g.sign(t, 1), g.sign(t, 2), g.sign(t, 3)
	mustOffer(t, b, now, Accepted, two)
	mustOffer(t, b, now, Known, two)
	if r := mustOffer(t, b, now, Older, one); !bytes.Equal(r.Raw, two) {
		t.Error("Older does not say what is newer")
	}
	mustOffer(t, b, now, Accepted, three)
	mustOffer(t, b, now, Older, one, two)
	mustHave(t, b, three)
	c := certificate(1)
	c.Generation = 2
	g.certify(t, w.org, newKey("org"), c)
	renewed := g.sign(t, 1)
	mustOffer(t, b, now, Accepted, renewed)
	mustOffer(t, b, now, Older, three)
	mustHave(t, b, renewed)
	if r, ok := b.Get(g.id()); !ok || !bytes.Equal(r.Raw, renewed) {
		t.Error("Get gives another")
	}
	if _, ok := b.Get(noSelf); ok {
		t.Error("Get finds nobody")
	}
}

// TestOldRecordsCostNoPublicKeyWork offers an old record whose signature does
// not hold: the answer shows that nobody looked.
func TestOldRecordsCostNoPublicKeyWork(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, noSelf)
	mustOffer(t, b, now, Accepted, g.sign(t, 2))
	forged := g.sign(t, 1)
	forged[len(forged)-1] ^= 1
	mustOffer(t, b, now, Older, forged)
	forged = g.sign(t, 3)
	forged[len(forged)-1] ^= 1
	mustOffer(t, b, now, Refused, forged)
}

// TestChainsAreVerifiedOnce changes nothing but the sequence.
func TestChainsAreVerifiedOnce(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, noSelf)
	first := mustOffer(t, b, now, Accepted, g.sign(t, 1))
	if second := mustOffer(t, b, now, Accepted, g.sign(t, 2)); first.Chain != second.Chain {
		t.Error("the chain was read anew")
	}
	// Another chain of the same gateway is looked at.
	bad := certificate(1)
	bad.Site, bad.Generation = "b-1", 2
	if _, _, err := b.Offer(w.newGatewayBy(t, w.org, newKey("org"), bad).sign(t, 1), now, now); !errors.Is(err, trust.ErrChain) {
		t.Errorf("got %v, want %v", err, trust.ErrChain)
	}
}

func TestEquivocationEndsTheSameEverywhere(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	x := g.sign(t, 5)
	y := g.sign(t, 5, func(r *Record) { r.Capabilities = Relays })
	if hx, hy := g.recordAt(t, x).BodyHash, g.recordAt(t, y).BodyHash; bytes.Compare(hx[:], hy[:]) > 0 {
		x, y = y, x
	}
	// x has the smaller hash.
	a, b := NewBook(w.root, noSelf), NewBook(w.root, noSelf)
	mustOffer(t, a, now, Accepted, x)
	mustOffer(t, a, now, Lost, y)
	mustOffer(t, b, now, Accepted, y)
	mustOffer(t, b, now, Conflict, x)
	mustOffer(t, b, now, Lost, y)
	mustHave(t, a, x)
	mustHave(t, b, x)
	if a.Summary() != b.Summary() {
		t.Error("summaries differ")
	}
	for name, book := range map[string]*Book{"a": a, "b": b} {
		proof, ok := book.Equivocations()[g.id()]
		if !ok || bytes.Equal(proof[0], proof[1]) {
			t.Fatalf("%s keeps no proof", name)
		}
		for _, raw := range proof {
			if r, err := Verify(w.root, raw, now); err != nil || r.Order() != (Order{1, 5}) {
				t.Errorf("%s: the proof proves nothing: %v", name, err)
			}
		}
	}
	// Another edition of the same lie does not replace the proof.
	first := a.Equivocations()[g.id()]
	_, _, _ = a.Offer(g.sign(t, 5, func(r *Record) { r.Software = "third" }), now, now)
	if diff := cmp.Diff(first, a.Equivocations()[g.id()]); diff != "" {
		t.Error(diff)
	}
	// What is newer ends it.
	next := g.sign(t, 6)
	mustOffer(t, a, now, Accepted, next)
	mustHave(t, a, next)
}

func TestTheSameBodyIsNoEquivocation(t *testing.T) {
	// Ed25519 signatures of the standard library are deterministic, so the case
	// of another signature over one body can be shown to compareLocked alone.
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, noSelf)
	r := mustOffer(t, b, now, Accepted, g.sign(t, 5))
	twin := *r
	if v := b.compareLocked(r, &twin); v != Known || len(b.Equivocations()) != 0 {
		t.Errorf("got %v", v)
	}
}

// A gateway whose clock was set back lives on its floor of time until the clock
// has caught up: an hour in which records must change all the same.
func TestStandingClockDoesNotStopChanges(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, noSelf)
	for n := range uint64(100) {
		tick := now.Add(time.Duration(n) * time.Second)
		if v, _, err := b.Offer(g.sign(t, n+1), now, tick); v != Accepted {
			t.Fatalf("change %d, one a second: %v, %v", n, v, err)
		}
	}
}

func TestFloodOfChangesIsLimitedAndTheNewestKept(t *testing.T) {
	w := newWorld(t)
	g, quiet := w.newGateway(t, 1), w.newGateway(t, 2)
	b := NewBook(w.root, noSelf)
	var raws [][]byte
	for n := range uint64(40) {
		raws = append(raws, g.sign(t, n+1))
	}
	mustOffer(t, b, now, Accepted, raws[:10]...)
	mustOffer(t, b, now, Limited, raws[10:30]...)
	mustOffer(t, b, now, Limited, raws[15]) // not the newest that waits: forgotten
	mustOffer(t, b, now, Limited, raws[29])
	mustHave(t, b, raws[9])
	if len(b.raws) != 2 {
		t.Errorf("%d records in memory for one gateway, want 2", len(b.raws))
	}
	// Others are not limited by it.
	other := quiet.sign(t, 1)
	mustOffer(t, b, now, Accepted, other)
	// Too early: nothing is ripe.
	if got := b.Ripe(now.Add(time.Second - 1)); len(got) != 0 {
		t.Errorf("%d are ripe too early", len(got))
	}
	got := b.Ripe(now.Add(time.Second))
	if len(got) != 1 || !bytes.Equal(got[0].Raw, raws[29]) {
		t.Fatalf("%d are ripe, want the newest that was offered", len(got))
	}
	mustHave(t, b, raws[29], other)
	if got := b.Ripe(now.Add(time.Hour)); len(got) != 0 {
		t.Errorf("%d are ripe twice", len(got))
	}
	// One a second is accepted for ever, and after a rest a burst of ten.
	at := now.Add(2 * time.Second)
	mustOffer(t, b, at, Accepted, raws[30])
	mustOffer(t, b, at, Limited, raws[31])
	at = at.Add(time.Hour)
	mustOffer(t, b, at, Accepted, raws[32:40]...)
}

func TestHeldRecordIsTakenInWithTheNextOffer(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, noSelf)
	var raws [][]byte
	for n := range uint64(12) {
		raws = append(raws, g.sign(t, n+1))
	}
	mustOffer(t, b, now, Accepted, raws[:10]...)
	mustOffer(t, b, now, Limited, raws[10], raws[11])
	// The old one comes by again: the answer is the new one.
	if r := mustOffer(t, b, now.Add(time.Second), Accepted, raws[9]); !bytes.Equal(r.Raw, raws[11]) {
		t.Error("another record than the newest")
	}
	mustOffer(t, b, now.Add(time.Second), Known, raws[11])
	mustHave(t, b, raws[11])
}

// TestEquivocationIsLimitedToo signs bodies of one order with ever smaller
// hashes, each of which wins.
func TestEquivocationIsLimitedToo(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	type body struct {
		raw  []byte
		hash [32]byte
	}
	var all []body
	for n := range 30 {
		raw := g.sign(t, 5, func(r *Record) { r.Software = fmt.Sprint(n) })
		all = append(all, body{raw, g.recordAt(t, raw).BodyHash})
	}
	slices.SortFunc(all, func(x, y body) int { return bytes.Compare(y.hash[:], x.hash[:]) })
	b := NewBook(w.root, noSelf)
	verdicts := map[Verdict]int{}
	for _, x := range all {
		v, _, err := b.Offer(x.raw, now, now)
		if err != nil {
			t.Fatal(err)
		}
		verdicts[v]++
	}
	want := map[Verdict]int{Accepted: 1, Conflict: 9, Limited: 20}
	if diff := cmp.Diff(want, verdicts); diff != "" {
		t.Error(diff)
	}
	if got := b.Ripe(now.Add(time.Second)); len(got) != 1 {
		t.Fatalf("%d are ripe", len(got))
	}
	mustHave(t, b, all[len(all)-1].raw) // the smallest: what all others end with
}

func TestOwnRecordFromOutsideIsNotBelieved(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, g.id())
	// Before the first record of this run, what others remember is ahead.
	mustOffer(t, b, now, OwnAhead, g.sign(t, 5))
	own := g.sign(t, 6)
	if _, err := b.PutOwn(own, now); err != nil {
		t.Fatal(err)
	}
	mustOffer(t, b, now, Known, own)
	mustOffer(t, b, now, Older, g.sign(t, 5))
	// A clone, or a restored snapshot.
	mustOffer(t, b, now, OwnAhead, g.sign(t, 6, left))
	mustOffer(t, b, now, OwnAhead, g.sign(t, 7))
	mustHave(t, b, own)
	if _, ok := b.Equivocations()[g.id()]; !ok {
		t.Error("a clone leaves no proof")
	}
	forged := g.sign(t, 9)
	forged[len(forged)-1] ^= 1
	mustOffer(t, b, now, Refused, forged)
}

// TestStolenKeyThatSignsTheLastSequenceIsCuredByRenewal follows a key thief who
// leaves the owner no higher sequence.
func TestStolenKeyThatSignsTheLastSequenceIsCuredByRenewal(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	owner, other := NewBook(w.root, g.id()), NewBook(w.root, noSelf)
	own := g.sign(t, 6)
	if _, err := owner.PutOwn(own, now); err != nil {
		t.Fatal(err)
	}
	mustOffer(t, other, now, Accepted, own)
	last := g.sign(t, MaxSequence, left)
	mustOffer(t, other, now, Accepted, last)
	r := mustOffer(t, owner, now, OwnAhead, last)
	if r.Sequence != MaxSequence {
		t.Errorf("sequence %d", r.Sequence)
	}
	// There is no way past it with this certificate.
	mustOffer(t, other, now, Refused, g.sign(t, r.Sequence+1))
	mustOffer(t, other, now, Older, g.sign(t, 7))
	c := certificate(1)
	c.Generation = 2
	g.certify(t, w.org, newKey("org"), c)
	renewed := g.sign(t, 1)
	if _, err := owner.PutOwn(renewed, now); err != nil {
		t.Fatal(err)
	}
	mustOffer(t, other, now, Accepted, renewed)
	mustOffer(t, other, now, Older, last)
	mustOffer(t, owner, now, Older, last)
}

func TestPutOwnRefusesOthers(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, g.id())
	expired, unsigned := g.sign(t, 1), g.sign(t, 1)
	unsigned[len(unsigned)-1] ^= 1
	for name, row := range map[string]struct {
		raw []byte
		at  time.Time
	}{
		"of another gateway": {w.newGateway(t, 2).sign(t, 1), now},
		"that is expired":    {expired, now.Add(60 * day)},
		"that is forged":     {unsigned, now},
		"that is nothing":    {nil, now},
	} {
		if _, err := b.PutOwn(row.raw, row.at); err == nil {
			t.Errorf("a record %s was put in", name)
		}
	}
	mustHave(t, b)
}

// TestHigherGenerationSupersedesAnotherIdentity enrols a gateway name again
// with a new key.
func TestHigherGenerationSupersedesAnotherIdentity(t *testing.T) {
	w := newWorld(t)
	old := w.newGateway(t, 1)
	c := certificate(2)
	c.Gateway, c.Generation = "gw-a-1", 2
	fresh := w.newGatewayBy(t, w.org, newKey("org"), c)
	before, after := old.sign(t, 9), fresh.sign(t, 1)
	a, b := NewBook(w.root, noSelf), NewBook(w.root, noSelf)
	mustOffer(t, a, now, Accepted, before, after)
	mustOffer(t, b, now, Accepted, after)
	if r := mustOffer(t, b, now, Older, before); r.ID != fresh.id() {
		t.Error("Older does not say what is newer")
	}
	mustHave(t, a, after)
	mustHave(t, b, after)
	if got := a.Expire(now); !slices.Equal(got, []trust.GatewayID{old.id()}) {
		t.Errorf("Expire tells %v of the one that gave way", got)
	}
	if got := a.Expire(now); len(got) != 0 {
		t.Errorf("and tells %v again", got)
	}
	// The old one comes back with a higher generation.
	c = certificate(1)
	c.Generation = 3
	old.certify(t, w.org, newKey("org"), c)
	back := old.sign(t, 1)
	mustOffer(t, a, now, Accepted, back)
	mustHave(t, a, back)
	if len(a.raws) != 1 || len(a.names) != 1 {
		t.Errorf("%d records and %d names are left behind", len(a.raws), len(a.names))
	}
}

func TestEqualGenerationsOfOneNameEndTheSameEverywhere(t *testing.T) {
	w := newWorld(t)
	c := certificate(2)
	c.Gateway = "gw-a-1"
	x, y := w.newGateway(t, 1), w.newGatewayBy(t, w.org, newKey("org"), c)
	rx, ry := x.sign(t, 1), y.sign(t, 1)
	a, b := NewBook(w.root, noSelf), NewBook(w.root, noSelf)
	_, _, _ = a.Offer(rx, now, now)
	_, _, _ = a.Offer(ry, now, now)
	_, _, _ = b.Offer(ry, now, now)
	_, _, _ = b.Offer(rx, now, now)
	if a.Summary() != b.Summary() || len(a.All()) != 1 {
		t.Errorf("%d and %d records", len(a.All()), len(b.All()))
	}
}

// TestNamesOfOthersCannotBeTaken has uni-b, and an issuing key that is limited
// to other sites, certify a gateway with the name of one of uni-a.
func TestNamesOfOthersCannotBeTaken(t *testing.T) {
	w := newWorld(t)
	limited := w.delegate(t, trust.Delegation{
		Kind: trust.KindOrganisation, Number: 4, Key: public(newKey("limited")), Organisation: "uni-a", SitePrefix: "a-x",
	})
	sister := w.delegate(t, trust.Delegation{
		Kind: trust.KindOrganisation, Number: 5, Key: public(newKey("sister")), Organisation: "uni-a", SitePrefix: "a-",
	})
	for name, row := range map[string]struct {
		issuer *trust.Delegation
		key    string
		site   string
		taken  bool
	}{
		"another organisation":              {w.other, "other", "b-1", false},
		"issuing key of the mesh":           {w.issuer, "issuer", "a-1", false},
		"same organisation, other sites":    {limited, "limited", "a-x1", false},
		"same organisation, the same sites": {sister, "sister", "a-1", true},
		"the same delegation":               {w.org, "org", "a-9", true},
	} {
		t.Run(name, func(t *testing.T) {
			victim := w.newGateway(t, 1)
			c := certificate(2)
			c.Gateway, c.Generation, c.Site = "gw-a-1", 1<<60, row.site
			thief := w.newGatewayBy(t, row.issuer, newKey(row.key), c)
			rv, rt := victim.sign(t, 1), thief.sign(t, 1)
			want := [][]byte{rv, rt}
			if row.taken {
				want = [][]byte{rt}
			}
			a, b := NewBook(w.root, noSelf), NewBook(w.root, noSelf)
			mustOffer(t, a, now, Accepted, rv, rt)
			mustHave(t, a, want...)
			mustOffer(t, b, now, Accepted, rt)
			_, _, _ = b.Offer(rv, now, now)
			mustHave(t, b, want...)
		})
	}
}

// TestReplayOfARenamedGatewayHarmsNobody replays a record with the old name of
// a gateway, which another one has now.
func TestReplayOfARenamedGatewayHarmsNobody(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	c := certificate(1)
	c.Generation = 5
	g.certify(t, w.org, newKey("org"), c)
	replay := g.sign(t, 1)
	c.Gateway, c.Generation = "renamed", 6
	g.certify(t, w.org, newKey("org"), c)
	renamed := g.sign(t, 1)
	c = certificate(2)
	c.Gateway, c.Generation = "gw-a-1", 2
	holder := w.newGatewayBy(t, w.org, newKey("org"), c).sign(t, 1)
	b := NewBook(w.root, noSelf)
	mustOffer(t, b, now, Accepted, replay, renamed, holder)
	mustOffer(t, b, now, Older, replay)
	mustHave(t, b, renamed, holder)
}

func TestOwnNameIsNotLostFromTheBook(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, g.id())
	own := g.sign(t, 1)
	if _, err := b.PutOwn(own, now); err != nil {
		t.Fatal(err)
	}
	c := certificate(2)
	c.Gateway, c.Generation = "gw-a-1", 2
	again := w.newGatewayBy(t, w.org, newKey("org"), c).sign(t, 1)
	mustOffer(t, b, now, Accepted, again)
	mustHave(t, b, own, again)
}

func TestTombstonesStayUntilTheCertificateEnds(t *testing.T) {
	w := newWorld(t)
	g, self := w.newGateway(t, 1), w.newGateway(t, 2)
	b := NewBook(w.root, self.id())
	own := self.sign(t, 1)
	if _, err := b.PutOwn(own, now); err != nil {
		t.Fatal(err)
	}
	tombstone := g.sign(t, 2, left)
	mustOffer(t, b, now, Accepted, tombstone)
	mustOffer(t, b, now, Older, g.sign(t, 1)) // what it said before it left does not come back
	end := g.record.Chain.Certificate.NotAfter.Add(trust.Tolerance)
	if got := b.Expire(end); len(got) != 0 {
		t.Errorf("%v expired early", got)
	}
	mustHave(t, b, own, tombstone)
	if v, _, _ := b.Offer(g.sign(t, 2, left, func(r *Record) { r.Software = "other" }), now, now); v != Lost && v != Conflict || len(b.Equivocations()) != 1 {
		t.Error("no proof")
	}
	if got := b.Expire(end.Add(1)); !slices.Equal(got, []trust.GatewayID{g.id()}) {
		t.Errorf("%v expired", got)
	}
	mustHave(t, b, own) // its own is for its gateway to renew
	if len(b.Equivocations()) != 0 {
		t.Error("the proof outlives the certificate")
	}
	mustOffer(t, b, end.Add(1), Refused, tombstone)
}

func TestGatewaysOfOneDelegationAreBounded(t *testing.T) {
	w := newWorld(t)
	b := NewBook(w.root, noSelf)
	// Entries as if a stolen key had filled the book: certificates for real would
	// take seconds.
	for n := range maxPerDelegation {
		id := trust.GatewayID{1, byte(n >> 8), byte(n)}
		c := certificate(0)
		c.Gateway = fmt.Sprint("stolen-", n)
		r := &Record{ID: id, Chain: trust.Chain{Delegation: w.other, Certificate: &c}, sum: [32]byte{byte(n >> 8), byte(n)}}
		b.entries[id] = new(entry)
		b.putLocked(b.entries[id], r)
	}
	c := certificate(3)
	c.Gateway, c.Site = "gw-b-3", "b-3"
	one := w.newGatewayBy(t, w.other, newKey("other"), c)
	if v, r, err := b.Offer(one.sign(t, 1), now, now); v != Refused || r != nil || !errors.Is(err, ErrFull) {
		t.Errorf("got %v, %v, %v", v, r, err)
	}
	mustOffer(t, b, now, Accepted, w.newGateway(t, 1).sign(t, 1)) // another delegation has room
	// One that takes the place of another needs none.
	c.Gateway, c.Generation = "stolen-5", 2
	mustOffer(t, b, now, Accepted, w.newGatewayBy(t, w.other, newKey("other"), c).sign(t, 1))
}

func TestDigestsShowWhatToSendAndWant(t *testing.T) {
	w := newWorld(t)
	same, newer, older, mine, theirs, split := w.newGateway(t, 1), w.newGateway(t, 2), w.newGateway(t, 3), w.newGateway(t, 4), w.newGateway(t, 5), w.newGateway(t, 6)
	a, b := NewBook(w.root, noSelf), NewBook(w.root, noSelf)
	x, y := split.sign(t, 1), split.sign(t, 1, left)
	mustOffer(t, a, now, Accepted, same.sign(t, 1), newer.sign(t, 2), older.sign(t, 1), mine.sign(t, 1), x)
	mustOffer(t, b, now, Accepted, same.sign(t, 1), newer.sign(t, 1), older.sign(t, 2), theirs.sign(t, 1), y)
	if a.Summary() == b.Summary() {
		t.Error("different books, one summary")
	}
	send, want := a.Newer(b.Digest())
	var sent []trust.GatewayID
	for _, r := range send {
		sent = append(sent, r.ID)
	}
	sorted := func(ids ...trust.GatewayID) []trust.GatewayID {
		slices.SortFunc(ids, func(x, y trust.GatewayID) int { return bytes.Compare(x[:], y[:]) })
		return ids
	}
	if diff := cmp.Diff(sorted(newer.id(), mine.id(), split.id()), sent); diff != "" {
		t.Errorf("send: %s", diff)
	}
	if diff := cmp.Diff(sorted(older.id(), theirs.id(), split.id()), sorted(want...)); diff != "" {
		t.Errorf("want: %s", diff)
	}
	// One exchange makes both equal.
	for _, r := range send {
		_, _, _ = b.Offer(r.Raw, now, now)
	}
	for _, id := range want {
		if r, ok := b.Get(id); ok {
			_, _, _ = a.Offer(r.Raw, now, now)
		}
	}
	if a.Summary() != b.Summary() {
		t.Error("still different")
	}
	if send, want := a.Newer(b.Digest()); len(send)+len(want) != 0 {
		t.Errorf("send %d, want %d between equal books", len(send), len(want))
	}
	if send, want := a.Newer(nil); len(send) != 6 || len(want) != 0 {
		t.Errorf("send %d, want %d for an empty book", len(send), len(want))
	}
}

func TestDigestAndSummaryAreThoseOfTheProtocol(t *testing.T) {
	w := newWorld(t)
	b := NewBook(w.root, noSelf)
	if b.Summary() != trust.Hash("records") {
		t.Error("summary of nothing")
	}
	var all []*Record
	for n := range 5 {
		all = append(all, mustOffer(t, b, now, Accepted, w.newGateway(t, n).sign(t, uint64(n+1))))
	}
	slices.SortFunc(all, func(x, y *Record) int { return bytes.Compare(x.ID[:], y.ID[:]) })
	var parts [][]byte
	var digest []DigestEntry
	for _, r := range all {
		parts = append(parts, r.ID[:], r.BodyHash[:])
		digest = append(digest, DigestEntry{ID: r.ID, Order: Order{1, r.Sequence}, Hash: [16]byte(r.BodyHash[:16])})
	}
	if b.Summary() != trust.Hash("records", parts...) {
		t.Error("summary is another")
	}
	if diff := cmp.Diff(digest, b.Digest()); diff != "" {
		t.Error(diff)
	}
}

func TestAllIsASnapshotOfTheCallers(t *testing.T) {
	w := newWorld(t)
	b := NewBook(w.root, noSelf)
	mustOffer(t, b, now, Accepted, w.newGateway(t, 1).sign(t, 1), w.newGateway(t, 2).sign(t, 1))
	all := b.All()
	clear(all)
	if got := b.All(); len(got) != 2 || got[0] == nil || bytes.Compare(got[0].ID[:], got[1].ID[:]) >= 0 {
		t.Errorf("got %v", got)
	}
}

// TestBooksConvergeWhateverTheOrder offers the records of a rough life to many
// books in many orders. It is replayable: the seed is fixed.
func TestBooksConvergeWhateverTheOrder(t *testing.T) {
	w := newWorld(t)
	var raws [][]byte
	for n := range 4 {
		g := w.newGateway(t, n)
		for sequence := range uint64(3) {
			raws = append(raws, g.sign(t, sequence+1), g.sign(t, sequence+1, left))
		}
		c := certificate(n)
		c.Generation = 2
		c.Gateway = fmt.Sprintf("gw-a-%d", n/2) // two of them get the name of another
		g.certify(t, w.org, newKey("org"), c)
		raws = append(raws, g.sign(t, 1), g.sign(t, 2))
	}
	random := rand.New(rand.NewPCG(3, 4))
	var want [32]byte
	for run := range 30 {
		b := NewBook(w.root, noSelf)
		// As anti-entropy does, until nothing changes: what gave way early can
		// only be judged again when it is offered again.
		for last := [32]byte{1}; last != b.Summary(); {
			last = b.Summary()
			random.Shuffle(len(raws), func(i, j int) { raws[i], raws[j] = raws[j], raws[i] })
			for i, raw := range raws {
				if _, _, err := b.Offer(raw, now.Add(time.Duration(i)*time.Second), now.Add(time.Duration(i)*time.Second)); err != nil {
					t.Fatal(err)
				}
			}
		}
		if run == 0 {
			want = b.Summary()
		}
		if got := b.Summary(); got != want {
			t.Fatalf("run %d ends with other records", run)
		}
		// The holders of gw-a-0 and gw-a-1, and what the loser of the latter said
		// under its first name, which nobody else has.
		if names := len(b.names); names != 3 || len(b.entries) != 3 || len(b.raws) != 3 {
			t.Fatalf("run %d: %d names, %d entries, %d records", run, names, len(b.entries), len(b.raws))
		}
	}
}

func TestBookMayBeUsedByMany(t *testing.T) {
	w := newWorld(t)
	self := w.newGateway(t, 9)
	b := NewBook(w.root, self.id())
	var raws [][]byte
	for n := range 4 {
		g := w.newGateway(t, n)
		raws = append(raws, g.sign(t, 1), g.sign(t, 2), g.sign(t, 2, left))
	}
	own := self.sign(t, 1)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i, raw := range raws {
				_, _, _ = b.Offer(raw, now, now)
				_, send := b.Newer(b.Digest())
				b.Expire(now)
				b.Ripe(now)
				b.Equivocations()
				if i == 5 {
					_, _ = b.PutOwn(own, now)
				}
				if len(send) > len(raws) || b.Summary() == [32]byte{} {
					t.Error("impossible")
				}
			}
		})
	}
	wg.Wait()
	if n := len(b.All()); n != 5 {
		t.Errorf("%d records, want 5", n)
	}
}

func TestVerdictsHaveNames(t *testing.T) {
	seen := map[string]bool{}
	for v := Refused; v <= OwnAhead; v++ {
		if name := v.String(); seen[name] || name == "" {
			t.Errorf("verdict %d is called %q", int(v), name)
		}
		seen[v.String()] = true
	}
	if got := Verdict(99).String(); got != "verdict 99" {
		t.Errorf("got %q", got)
	}
}

// BenchmarkOffer is what 400 gateways cost a receiver: a record that it has, a
// new one of a chain that it has, and one whose order is behind.
func BenchmarkOffer(b *testing.B) {
	w := newWorld(b)
	book := NewBook(w.root, noSelf)
	var gateways []*gateway
	for n := range 400 {
		g := w.newGateway(b, n)
		gateways = append(gateways, g)
		if v, _, err := book.Offer(g.sign(b, 1<<20), now, now); v != Accepted {
			b.Fatal(v, err)
		}
	}
	known, older := gateways[7].sign(b, 1<<20), gateways[7].sign(b, 1)
	b.Run("known", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _, _ = book.Offer(known, now, now)
		}
	})
	b.Run("older", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			_, _, _ = book.Offer(older, now, now)
		}
	})
	b.Run("newer", func(b *testing.B) {
		raws := make([][]byte, 1000)
		for i := range raws {
			raws[i] = gateways[8].sign(b, 1<<20+1+uint64(i))
		}
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			// Each is refused work only by the limit, after its signature was checked.
			_, _, _ = book.Offer(raws[i%len(raws)], now, now)
			i++
		}
	})
	b.Run("first", func(b *testing.B) {
		raw := gateways[9].sign(b, 1)
		b.ReportAllocs()
		for b.Loop() {
			if v, _, err := NewBook(w.root, noSelf).Offer(raw, now, now); v != Accepted {
				b.Fatal(v, err)
			}
		}
	})
	b.Run("summary", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			book.Summary()
		}
	})
}

func TestBookVerifiesOnceAndValidityAlways(t *testing.T) {
	w := newWorld(t)
	g := w.newGateway(t, 1)
	b := NewBook(w.root, noSelf)
	raw := g.sign(t, 1)
	r, err := b.Verify(raw, now)
	if err != nil {
		t.Fatal(err)
	}
	if len(b.All()) != 0 {
		t.Fatal("verification changed the book")
	}
	if v, stands, err := b.OfferVerified(r, now); v != Accepted || stands != r || err != nil {
		t.Fatalf("offer: got %v, %v, %v", v, stands, err)
	}
	if again, err := b.Verify(raw, now); again != r || err != nil {
		t.Errorf("got %v, %v, want the record of the book", again, err)
	}
	if v, _, err := b.OfferVerified(r, now); v != Known || err != nil {
		t.Errorf("offer again: got %v, %v", v, err)
	}
	end := r.Chain.Certificate.NotAfter.Add(trust.Tolerance + time.Second)
	if _, err := b.Verify(raw, end); !errors.Is(err, trust.ErrExpired) {
		t.Errorf("after its end: got %v, want %v", err, trust.ErrExpired)
	}
	newer := mustOffer(t, b, now, Accepted, g.sign(t, 2))
	if old, err := b.Verify(raw, now); err != nil || old.Sequence != 1 {
		t.Errorf("an older one that is good: got %v, %v", old, err)
	}
	if v, stands, err := b.OfferVerified(r, now); v != Older || stands != newer || err != nil {
		t.Errorf("an older one: got %v, %v, %v", v, stands, err)
	}
	raw[len(raw)-1] ^= 1
	if _, err := b.Verify(raw, now); !errors.Is(err, trust.ErrSignature) {
		t.Errorf("changed bytes: got %v, want %v", err, trust.ErrSignature)
	}
}
