package record

import (
	"strings"
	"testing"
	"time"
)

func TestSoftwareMayFillItsLimits(t *testing.T) {
	g := newWorld(t).newGateway(t, 1)
	for _, software := range []string{strings.Repeat("x", 64), " ", "~", "meshd 1.0 (~dev)"} {
		raw := g.sign(t, 1, func(r *Record) { r.Software = software })
		if r, err := Decode(raw); err != nil || r.Software != software {
			t.Errorf("%q: got %v", software, err)
		}
	}
}

// TestRecordThatLostARaceIsNotTakenIn has a record judged after a newer one was
// taken in between its verification and its turn.
func TestRecordThatLostARaceIsNotTakenIn(t *testing.T) {
	w := newWorld(t)
	b, g := NewBook(w.root, w.newGateway(t, 0).id()), w.newGateway(t, 1)
	late, err := Verify(w.root, g.sign(t, 1), now)
	if err != nil {
		t.Fatal(err)
	}
	newest := mustOffer(t, b, now, Accepted, g.sign(t, 2))
	v, r, err := b.takeLocked(late, now)
	if v != Older || r != newest || err != nil {
		t.Errorf("got %v, %v, want %v", v, err, Older)
	}
	// The signer may sign one body twice, in other bytes.
	twin := *newest
	if v, r, err := b.takeLocked(&twin, now); v != Known || r != newest || err != nil {
		t.Errorf("got %v, %v, want %v", v, err, Known)
	}
	mustHave(t, b, newest.Raw)
}

// TestClockThatStepsBackEarnsNoChanges lets the clock of the receiver jump.
func TestClockThatStepsBackEarnsNoChanges(t *testing.T) {
	b, g := newExhausted(t)
	for n, at := range []time.Time{now.Add(-time.Hour), now.Add(-2 * time.Hour), now.Add(-2*time.Hour + time.Millisecond)} {
		if v, _, err := b.Offer(g.sign(t, uint64(30+n)), at, at); v != Limited || err != nil {
			t.Errorf("%v: got %v, %v, want %v", at, v, err, Limited)
		}
	}
	if got := b.Ripe(now.Add(-time.Hour)); len(got) != 1 || got[0].Sequence != 32 {
		t.Errorf("ripe an hour later: got %v, want record 32", got)
	}
}
