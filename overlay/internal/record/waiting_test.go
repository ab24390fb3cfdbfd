package record

import (
	"bytes"
	"testing"
	"time"
)

// newExhausted returns a book that has record 10 of a gateway and takes no more
// of it at now, with record 20 waiting.
func newExhausted(t testing.TB) (*Book, *gateway) {
	t.Helper()
	w := newWorld(t)
	b, g := NewBook(w.root, w.newGateway(t, 0).id()), w.newGateway(t, 1)
	for sequence := range uint64(changesBurst) {
		if v, _, err := b.Offer(g.sign(t, sequence+1), now, now); v != Accepted || err != nil {
			t.Fatalf("record %d: got %v, %v", sequence+1, v, err)
		}
	}
	if v, _, err := b.Offer(g.sign(t, 20), now, now); v != Limited || err != nil {
		t.Fatalf("got %v, %v, want %v", v, err, Limited)
	}
	return b, g
}

// TestOlderRecordDoesNotPushOutTheNewerThatWaits lets records overtake one
// another on the way, as gossip does: once a change is allowed again, it is the
// newest that is taken in, whichever arrives.
func TestOlderRecordDoesNotPushOutTheNewerThatWaits(t *testing.T) {
	b, g := newExhausted(t)
	later := now.Add(time.Second)
	v, r, err := b.Offer(g.sign(t, 15), later, later)
	if v != Accepted || err != nil || r.Sequence != 20 {
		t.Fatalf("record 15 after a second: got %v %v, %v, want %v of record 20", v, r.Order(), err, Accepted)
	}
	if stored, _ := b.Get(g.id()); stored != r {
		t.Errorf("book has %v, want record 20", stored.Order())
	}
	if v, r, _ := b.Offer(g.sign(t, 16), later, later); v != Older || r.Sequence != 20 {
		t.Errorf("record 16 after that: got %v, want %v", v, Older)
	}
}

func TestOlderRecordDoesNotTakeThePlaceOfTheNewerThatWaits(t *testing.T) {
	b, g := newExhausted(t)
	if v, r, err := b.Offer(g.sign(t, 15), now, now); v != Limited || err != nil || r.Sequence != 15 {
		t.Errorf("record 15: got %v %v, %v, want %v", v, r.Order(), err, Limited)
	}
	if got := b.Ripe(now.Add(time.Second)); len(got) != 1 || got[0].Sequence != 20 {
		t.Errorf("ripe: got %v, want record 20", got)
	}
}

func TestNewerRecordIsTakenInsteadOfTheOneThatWaits(t *testing.T) {
	b, g := newExhausted(t)
	later := now.Add(time.Second)
	if v, r, err := b.Offer(g.sign(t, 25), later, later); v != Accepted || err != nil || r.Sequence != 25 {
		t.Errorf("record 25: got %v %v, %v, want %v", v, r.Order(), err, Accepted)
	}
	if got := b.Ripe(later.Add(time.Second)); len(got) != 0 {
		t.Errorf("ripe: got %v, want nothing", got)
	}
	if v, r, _ := b.Offer(g.sign(t, 20), later.Add(time.Second), later.Add(time.Second)); v != Older || r.Sequence != 25 {
		t.Errorf("record 20 after that: got %v, want %v", v, Older)
	}
}

// TestOfTwoBodiesThatWaitTheSmallerHashIsTaken offers them in both orders.
func TestOfTwoBodiesThatWaitTheSmallerHashIsTaken(t *testing.T) {
	for _, first := range []int{0, 1} {
		b, g := newExhausted(t)
		raws := [][]byte{g.sign(t, 30), g.sign(t, 30, func(r *Record) { r.Software = "other" })}
		mustOffer(t, b, now, Limited, raws[first])
		if v, _, err := b.Offer(raws[1-first], now, now); v != Limited || err != nil {
			t.Errorf("second body: got %v, %v, want %v", v, err, Limited)
		}
		if _, ok := b.Equivocations()[g.id()]; !ok {
			t.Error("the pair is not kept")
		}
		got := b.Ripe(now.Add(time.Second))
		if len(got) != 1 {
			t.Fatalf("ripe: got %d records, want 1", len(got))
		}
		for _, raw := range raws {
			if r, err := Decode(raw); err != nil || bytes.Compare(r.BodyHash[:], got[0].BodyHash[:]) < 0 {
				t.Errorf("the larger hash was taken, %v", err)
			}
		}
	}
}

// TestWaitingRecordGivesWayToANewHolderOfItsName has a gateway re-enrolled with
// another identity while a record of the old one waits.
func TestWaitingRecordGivesWayToANewHolderOfItsName(t *testing.T) {
	b, g := newExhausted(t)
	c := certificate(1)
	c.Identity, c.Generation = public(newKey("identity 2")), 2
	renamed := g.world.newGatewayBy(t, g.world.org, newKey("org"), c)
	if v, _, err := b.Offer(renamed.sign(t, 1), now, now); v != Accepted || err != nil {
		t.Fatalf("new holder: got %v, %v", v, err)
	}
	later := now.Add(time.Second)
	if got := b.Ripe(later); len(got) != 0 {
		t.Errorf("ripe: got %v, want nothing", got)
	}
	if v, r, _ := b.Offer(g.sign(t, 20), later, later); v != Older || r.ID != renamed.id() {
		t.Errorf("record that waited: got %v, want %v", v, Older)
	}
}

// TestWaitingRecordWithATakenNameIsForgotten has a gateway change its name in
// the record that waits, to one that another gateway gets meanwhile.
func TestWaitingRecordWithATakenNameIsForgotten(t *testing.T) {
	b, g := newExhausted(t)
	stored, _ := b.Get(g.id())
	c := certificate(1)
	c.Gateway, c.Generation = "wanted", 2
	g.certify(t, g.world.org, newKey("org"), c)
	renamed := g.sign(t, 1)
	mustOffer(t, b, now, Limited, renamed)
	c = certificate(2)
	c.Gateway, c.Generation = "wanted", 3
	holder := mustOffer(t, b, now, Accepted, g.world.newGatewayBy(t, g.world.org, newKey("org"), c).sign(t, 1))
	later := now.Add(time.Second)
	if got := b.Ripe(later); len(got) != 0 {
		t.Errorf("ripe: got %v, want nothing", got)
	}
	if r := mustOffer(t, b, later, Older, renamed); r != holder {
		t.Errorf("Older because of %v, want the holder of the name", r.ID)
	}
	mustHave(t, b, stored.Raw, holder.Raw)
}
