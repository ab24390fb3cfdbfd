package trust

import (
	"crypto/ed25519"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// TestEntriesBeyondTheQuotaAreNotFresh matters because what is fresh is written
// to disk and passed on: a flood would keep every gateway busy.
func TestEntriesBeyondTheQuotaAreNotFresh(t *testing.T) {
	w := newWorld(t)
	s := NewRevocations(w.root)
	entry := func(number uint64) []byte {
		return w.revoke(t, Revocation{Kind: RevokeSerial, Target: make([]byte, 16), Number: number, Delegation: w.org}, newKey("org"))
	}
	for number := range uint64(revocationQuota) {
		if fresh, err := s.Add(entry(number + 2)); !fresh || err != nil {
			t.Fatalf("number %d: got %t, %v, want it to be fresh", number+2, fresh, err)
		}
	}
	before := s.Digest()
	for _, number := range []uint64{revocationQuota + 2, 1 << 63} {
		if fresh, err := s.Add(entry(number)); fresh || err != nil {
			t.Errorf("number %d beyond the quota: got fresh %t, %v", number, fresh, err)
		}
	}
	if s.Digest() != before {
		t.Error("the set changed")
	}
	if fresh, err := s.Add(entry(1)); !fresh || err != nil {
		t.Errorf("the lowest of all: got fresh %t, %v", fresh, err)
	}
	if fresh, err := s.Add(entry(revocationQuota + 1)); fresh || err != nil {
		t.Errorf("the one that it pushed out: got fresh %t, %v", fresh, err)
	}
}

// TestSealedReplyMayFillItsLimit fills 64 KiB with records, then asks for one
// byte more.
func TestSealedReplyMayFillItsLimit(t *testing.T) {
	e := newEnrolment(t)
	q := e.request(t)
	record := func(size int) []byte {
		raw, err := wire.Encode(wire.Record, e.root.id, make([]byte, size-6-ed25519.SignatureSize), newKey("x"))
		if err != nil {
			t.Fatal(err)
		}
		return raw
	}
	// Around the records stand enc and tag, the header, the status, a field header.
	room := MaxSealedReply - 48 - 6 - 5 - 4
	var records [][]byte
	for ; room > 8<<10; room -= 4 << 10 {
		records = append(records, record(4<<10))
	}
	for extra, want := range map[int]error{0: nil, 1: ErrFormat} {
		reply := EnrolReply{Status: EnrolRefused, Records: append(slices.Clip(records), record(room+extra))}
		answer, err := SealReply(e.root.id, q, e.sealed, reply)
		if !errors.Is(err, want) {
			t.Errorf("%d bytes more: got %v, want %v", extra, err, want)
		}
		if err != nil {
			continue
		}
		got, err := OpenReply(e.root.id, e.reply, e.sealed, answer)
		if err != nil || len(answer) != MaxSealedReply || len(got.Records) != len(reply.Records) {
			t.Errorf("%d bytes: got %v", len(answer), err)
		}
	}
}

func TestSitePrefixMayFillItsLimit(t *testing.T) {
	w := newWorld(t)
	d := *w.org
	d.SitePrefix = strings.Repeat("a", 63)
	if got := w.delegate(t, d); got.SitePrefix != d.SitePrefix {
		t.Errorf("got %q", got.SitePrefix)
	}
}
