package record

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Book is the set of records that are believed: the newest of every gateway.
// It is safe for concurrent use.
type Book struct {
	root *trust.Root
	self trust.GatewayID

	mu       sync.Mutex // guards all below
	entries  map[trust.GatewayID]*entry
	names    map[string]trust.GatewayID // who has a gateway name now
	chains   map[[32]byte]bool          // verified, whatever the time
	proofs   map[trust.GatewayID][2][]byte
	replaced uint64
}

// entry is what the book knows of one gateway.
type entry struct {
	record *Record
	tokens float64 // changes that may come at once
	refill time.Time
}

// Verdict is what became of an offered record.
type Verdict int

// The verdicts.
const (
	Refused  Verdict = iota // does not verify
	Accepted                // is now what the book has
	Known                   // is what the book has
	Older                   // the book has a newer one
	Conflict                // same order, other body: it won; the pair is kept as proof
	Lost                    // same order, other body: it lost; the pair is kept as proof
	Limited                 // too many changes of this gateway in too short a time
	OwnAhead                // is of this gateway, which has not made it, and not behind its own
)

// String is the name that counters use.
func (v Verdict) String() string {
	return [...]string{"refused", "accepted", "known", "older", "conflict", "lost", "limited", "own-ahead"}[v]
}

// Changes accepted per identity (security decision 5).
const (
	changesPerSecond = 1
	changesBurst     = 10
)

// maxChains bounds the cache of verified chains: four per gateway at the 4,096
// records that a push/pull may carry.
const maxChains = 16 << 10

// NewBook returns an empty book for the gateway self.
func NewBook(root *trust.Root, self trust.GatewayID) *Book {
	return &Book{
		root:    root,
		self:    self,
		entries: make(map[trust.GatewayID]*entry),
		names:   make(map[string]trust.GatewayID),
		chains:  make(map[[32]byte]bool),
		proofs:  make(map[trust.GatewayID][2][]byte),
	}
}

// Offer verifies a record that came from outside and takes it in if it is newer
// than what the book has. The record is nil if it does not verify.
func (b *Book) Offer(raw []byte, now time.Time) (Verdict, *Record, error) {
	if r := b.same(raw); r != nil {
		return Known, r, nil
	}
	r, err := b.verified(raw, now)
	if err != nil {
		return Refused, nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.ID == b.self {
		return b.ownLocked(r), r, nil
	}
	if holder, ok := b.holderLocked(r); ok {
		return Older, holder, nil
	}
	e := b.entries[r.ID]
	if e == nil {
		b.entries[r.ID] = &entry{record: r, tokens: changesBurst - 1, refill: now}
		b.tookLocked(r)
		return Accepted, r, nil
	}
	return b.replaceLocked(e, r, now), r, nil
}

// same returns the stored record with exactly these bytes.
func (b *Book) same(raw []byte) *Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, e := range b.entries {
		if bytes.Equal(e.record.Raw, raw) {
			return e.record
		}
	}
	return nil
}

// verified decodes and verifies a record; the chain only if it was not
// verified before.
func (b *Book) verified(raw []byte, now time.Time) (*Record, error) {
	r, err := Decode(raw)
	if err != nil {
		return nil, err
	}
	key := r.Chain.Key()
	b.mu.Lock()
	known := b.chains[key]
	b.mu.Unlock()
	if !known {
		if err := b.root.VerifyChainForm(r.Chain); err != nil {
			return nil, fmt.Errorf("record: %w", err)
		}
		b.mu.Lock()
		if len(b.chains) >= maxChains {
			clear(b.chains)
		}
		b.chains[key] = true
		b.mu.Unlock()
	}
	return r, r.verify(b.root, now)
}

// ownLocked judges a record of this gateway that came from outside.
func (b *Book) ownLocked(r *Record) Verdict {
	e := b.entries[b.self]
	if e == nil || r.Order().Compare(e.record.Order()) >= 0 {
		return OwnAhead
	}
	return Older
}

// holderLocked returns the record of another identity that has the gateway
// name of r by a higher generation. One with a lower generation gives way.
func (b *Book) holderLocked(r *Record) (*Record, bool) {
	holder, ok := b.names[r.Chain.Certificate.Gateway]
	if !ok || holder == r.ID {
		return nil, false
	}
	e := b.entries[holder]
	if e == nil {
		return nil, false
	}
	mine, theirs := r.Chain.Certificate.Generation, e.record.Chain.Certificate.Generation
	if mine < theirs || mine == theirs && bytes.Compare(r.Chain.Certificate.Identity[:], e.record.Chain.Certificate.Identity[:]) > 0 {
		return e.record, true
	}
	if holder != b.self {
		delete(b.entries, holder)
		b.replaced++
	}
	return nil, false
}

// replaceLocked puts r in the place of e's record if it is newer.
func (b *Book) replaceLocked(e *entry, r *Record, now time.Time) Verdict {
	switch c := r.Order().Compare(e.record.Order()); {
	case c < 0:
		return Older
	case c == 0:
		return b.equivocationLocked(e, r)
	}
	if since := now.Sub(e.refill); since > 0 {
		e.tokens = min(changesBurst, e.tokens+since.Seconds()*changesPerSecond)
	}
	e.refill = now
	if e.tokens < 1 {
		return Limited
	}
	e.tokens--
	e.record = r
	b.tookLocked(r)
	return Accepted
}

// equivocationLocked settles two bodies of one order: the smaller hash wins
// everywhere.
func (b *Book) equivocationLocked(e *entry, r *Record) Verdict {
	if r.BodyHash == e.record.BodyHash {
		return Known // the signature differs, what it says does not
	}
	b.proofs[r.ID] = [2][]byte{e.record.Raw, r.Raw}
	if bytes.Compare(r.BodyHash[:], e.record.BodyHash[:]) > 0 {
		return Lost
	}
	e.record = r
	b.tookLocked(r)
	return Conflict
}

func (b *Book) tookLocked(r *Record) { b.names[r.Chain.Certificate.Gateway] = r.ID }

// PutOwn verifies and takes in a record that this gateway made.
func (b *Book) PutOwn(raw []byte, now time.Time) (*Record, error) {
	r, err := b.verified(raw, now)
	if err != nil {
		return nil, err
	}
	if r.ID != b.self {
		return nil, fmt.Errorf("record of %s is not our own", r.Chain.Certificate.Gateway)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.entries[r.ID] = &entry{record: r}
	b.tookLocked(r)
	return r, nil
}

// Get returns the record of a gateway.
func (b *Book) Get(id trust.GatewayID) (*Record, bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[id]
	if e == nil {
		return nil, false
	}
	return e.record, true
}

// All returns all records, ascending by gateway ID, in a slice of the caller's.
func (b *Book) All() []*Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.allLocked()
}

func (b *Book) allLocked() []*Record {
	out := make([]*Record, 0, len(b.entries))
	for _, e := range b.entries {
		out = append(out, e.record)
	}
	slices.SortFunc(out, func(x, y *Record) int { return bytes.Compare(x.ID[:], y.ID[:]) })
	return out
}

// Expire forgets gateways whose certificate is over, tombstones too.
func (b *Book) Expire(now time.Time) []trust.GatewayID {
	b.mu.Lock()
	defer b.mu.Unlock()
	var out []trust.GatewayID
	for id, e := range b.entries {
		if id != b.self && now.After(e.record.Chain.Certificate.NotAfter.Add(trust.Tolerance)) {
			out = append(out, id)
			delete(b.entries, id)
			delete(b.proofs, id)
		}
	}
	return out
}

// Equivocations returns, by gateway, two records that it signed with the same
// order and different bodies.
func (b *Book) Equivocations() map[trust.GatewayID][2][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := make(map[trust.GatewayID][2][]byte, len(b.proofs))
	maps.Copy(out, b.proofs)
	return out
}

// DigestEntry names the version of a record that somebody has.
type DigestEntry struct {
	ID    trust.GatewayID
	Order Order
	Hash  [16]byte // the first half of BodyHash
}

func (r *Record) digest() DigestEntry {
	return DigestEntry{ID: r.ID, Order: r.Order(), Hash: [16]byte(r.BodyHash[:16])}
}

// Digest returns an entry for every record, ascending by gateway ID.
func (b *Book) Digest() []DigestEntry {
	records := b.All()
	out := make([]DigestEntry, len(records))
	for i, r := range records {
		out[i] = r.digest()
	}
	return out
}

// Summary is equal for two books exactly if they hold the same records.
func (b *Book) Summary() [32]byte {
	var all []byte
	for _, r := range b.All() {
		all = append(all, r.ID[:]...)
		all = append(all, r.BodyHash[:]...)
	}
	return trust.Hash("records", all)
}

// Newer compares the book with somebody else's digest: what to send, because
// they lack it or have it older, and what to ask for.
func (b *Book) Newer(theirs []DigestEntry) (send []*Record, want []trust.GatewayID) {
	have := make(map[trust.GatewayID]DigestEntry, len(theirs))
	for _, d := range theirs {
		have[d.ID] = d
	}
	for _, r := range b.All() {
		d, ok := have[r.ID]
		delete(have, r.ID)
		mine := r.digest()
		switch c := mine.Order.Compare(d.Order); {
		case !ok, c > 0:
			send = append(send, r)
		case c < 0:
			want = append(want, r.ID)
		case mine.Hash != d.Hash:
			// Two bodies of one order: both sides must see both.
			send = append(send, r)
			want = append(want, r.ID)
		}
	}
	for _, d := range theirs {
		if _, missing := have[d.ID]; missing {
			want = append(want, d.ID)
		}
	}
	return send, want
}
