package record

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Book is the set of records that are believed: the newest of every gateway.
// It is safe for concurrent use.
type Book struct {
	root *trust.Root
	self trust.GatewayID

	mu         sync.Mutex // guards all below
	entries    map[trust.GatewayID]*entry
	raws       map[[32]byte]trust.GatewayID  // SHA-256 of what is stored or waits
	names      map[string][]trust.GatewayID  // who has a gateway name
	proofs     map[trust.GatewayID][2][]byte // of equivocation, the first pair
	superseded []trust.GatewayID             // since the last Expire
	snapshot   []*Record                     // all, ascending by ID; nil: to be made
	summary    *[32]byte                     // of snapshot; nil: to be made
	waiting    map[trust.GatewayID]struct{}  // entries with a next
	ground     ground                        // of all records
}

// entry is what the book knows of one gateway.
type entry struct {
	record *Record
	next   *Record   // newer, held back by the rate limit; nil: none
	tokens float64   // changes that may come at once
	refill time.Time // when tokens was right
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
	Limited                 // too many changes of this gateway in too short a time; it waits unless a newer one does
	OwnAhead                // is of this gateway, which has not made it, and not behind its own
)

// String is the name that counters use.
func (v Verdict) String() string {
	names := [...]string{"refused", "accepted", "known", "older", "conflict", "lost", "limited", "own-ahead"}
	if v < 0 || int(v) >= len(names) {
		return fmt.Sprintf("verdict %d", int(v))
	}
	return names[v]
}

// Changes accepted per identity (security decision 5).
const (
	changesPerSecond = 1
	changesBurst     = 10
)

// maxPerDelegation bounds how many gateways one delegation may have, so that a
// stolen issuing key cannot fill the memory of all others. Meshes are made for
// hundreds of gateways.
const maxPerDelegation = 1024

// ErrFull says that a delegation has more gateways than the book takes.
var ErrFull = errors.New("too many gateways of one delegation")

// NewBook returns an empty book for the gateway self.
func NewBook(root *trust.Root, self trust.GatewayID) *Book {
	return &Book{
		root:    root,
		self:    self,
		entries: make(map[trust.GatewayID]*entry),
		raws:    make(map[[32]byte]trust.GatewayID),
		names:   make(map[string][]trust.GatewayID),
		proofs:  make(map[trust.GatewayID][2][]byte),
		waiting: make(map[trust.GatewayID]struct{}),
	}
}

// Offer verifies a record that came from outside and takes it in if it is newer
// than what the book has. The record that it returns is the one that the
// verdict is about, and verified: with Known and Older it is the book's, with
// Accepted it can be a newer one that the rate limit had held back. It is nil
// only with Refused; the error is then one of package trust's or ErrFull.
//
// now judges validity. tick measures time for the rate limit: it must come from
// a clock that never goes back or stands still, whatever happens to now.
func (b *Book) Offer(raw []byte, now, tick time.Time) (Verdict, *Record, error) {
	sum := sha256.Sum256(raw)
	if v, r := b.seen(sum, tick); r != nil {
		return v, r, nil
	}
	r, err := Decode(raw)
	if err != nil {
		return Refused, nil, err
	}
	r.sum = sum
	if newer := b.newerThan(r); newer != nil {
		return Older, newer, nil
	}
	if err := b.verify(r, now); err != nil {
		return Refused, nil, err
	}
	return b.take(r, tick)
}

// Verify is the function Verify for a record that may be in the book, or whose
// chain may be: what was verified before is not again, validity is always. The
// book is not changed; OfferVerified offers it the record.
func (b *Book) Verify(raw []byte, now time.Time) (*Record, error) {
	sum := sha256.Sum256(raw)
	if r := b.held(sum); r != nil {
		if err := b.root.ValidAt(r.Chain, now); err != nil {
			return nil, fmt.Errorf("record: %w", err)
		}
		return r, nil
	}
	r, err := Decode(raw)
	if err != nil {
		return nil, err
	}
	r.sum = sum
	if err := b.verify(r, now); err != nil {
		return nil, err
	}
	return r, nil
}

// held returns the record with these bytes, stored or waiting; nil if there is none.
func (b *Book) held(sum [32]byte) *Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	id, ok := b.raws[sum]
	if !ok {
		return nil
	}
	if e := b.entries[id]; e.next != nil && e.next.sum == sum {
		return e.next
	}
	return b.entries[id].record
}

// OfferVerified is Offer for a record that Verify of this book returned.
func (b *Book) OfferVerified(r *Record, tick time.Time) (Verdict, *Record, error) {
	if v, known := b.seen(r.sum, tick); known != nil {
		return v, known, nil
	}
	if newer := b.newerThan(r); newer != nil {
		return Older, newer, nil
	}
	return b.take(r, tick)
}

// take decides about a verified record.
func (b *Book) take(r *Record, tick time.Time) (Verdict, *Record, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if r.ID == b.self {
		return b.ownLocked(r), r, nil
	}
	return b.takeLocked(r, tick)
}

// seen answers for bytes that the book has verified before.
func (b *Book) seen(sum [32]byte, tick time.Time) (Verdict, *Record) {
	b.mu.Lock()
	defer b.mu.Unlock()
	id, ok := b.raws[sum]
	if !ok {
		return 0, nil
	}
	e := b.entries[id]
	if r := b.ripeLocked(e, tick); r != nil {
		return Accepted, r
	}
	if e.next != nil && e.next.sum == sum {
		return Limited, e.next
	}
	return Known, e.record
}

// newerThan returns the stored record of a gateway if r is older, before a
// signature of r is looked at: whoever replays old records, or forges them, buys
// no public-key work.
func (b *Book) newerThan(r *Record) *Record {
	id := trust.IDOf(b.root.ID(), r.Chain.Certificate.Identity)
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[id]
	if e == nil || r.Order().Compare(e.record.Order()) >= 0 {
		return nil
	}
	return e.record
}

// verify checks a decoded record; its chain only if that is not the one of the
// record that is stored, which it shares then.
func (b *Book) verify(r *Record, now time.Time) error {
	if stored, ok := b.Get(trust.IDOf(b.root.ID(), r.Chain.Certificate.Identity)); ok && stored.Chain.Key() == r.Chain.Key() {
		r.Chain = stored.Chain
	} else if err := b.root.VerifyChainForm(r.Chain); err != nil {
		return fmt.Errorf("record: %w", err)
	}
	return r.verify(b.root, now)
}

// ownLocked judges a record of this gateway that came from outside.
func (b *Book) ownLocked(r *Record) Verdict {
	if e := b.entries[b.self]; e != nil {
		if v := b.compareLocked(e.record, r); v == Older || v == Known {
			return v
		}
	}
	return OwnAhead
}

// takeLocked decides about a verified record of another gateway.
func (b *Book) takeLocked(r *Record, tick time.Time) (Verdict, *Record, error) {
	holder, losers := b.rivalsLocked(r)
	if holder != nil {
		return Older, holder, nil
	}
	e := b.entries[r.ID]
	if e == nil {
		if len(losers) == 0 && b.fullLocked(r.Chain.Delegation.Number) {
			return Refused, nil, fmt.Errorf("record of %s: %w", r.name(), ErrFull)
		}
		e = &entry{tokens: changesBurst, refill: tick}
		b.entries[r.ID] = e
	}
	verdict := b.compareLocked(e.record, r)
	switch {
	case verdict == Older || verdict == Known:
		return verdict, e.record, nil
	case verdict == Lost:
		return Lost, r, nil
	}
	if e.next != nil && !b.newerLocked(e.next, r) {
		if next := b.ripeLocked(e, tick); next != nil {
			return Accepted, next, nil
		}
		return Limited, r, nil
	}
	if !e.spend(tick) {
		b.dropNextLocked(e)
		e.next, b.raws[r.sum] = r, r.ID
		b.waiting[r.ID] = struct{}{}
		return Limited, r, nil
	}
	b.putLocked(e, r)
	b.supersedeLocked(losers)
	return verdict, r, nil
}

// rivalsLocked looks at other gateways with the name of r: holder is one that
// r has to give way to, losers are those that give way to r.
func (b *Book) rivalsLocked(r *Record) (holder *Record, losers []trust.GatewayID) {
	for _, id := range b.names[r.name()] {
		switch other := b.entries[id].record; {
		case id == r.ID:
		case other.supersedes(r):
			return other, nil
		case id != b.self && r.supersedes(other):
			losers = append(losers, id)
		}
	}
	return nil, losers
}

func (r *Record) name() string { return r.Chain.Certificate.Gateway }

// supersedes reports whether r takes the place of another gateway with the same
// name: by a higher generation, of two equal ones by the smaller identity. Only
// an issuer that could have certified the other one has a say about it: without
// that, one organisation could put out the gateways of all others.
func (r *Record) supersedes(other *Record) bool {
	c, d := r.Chain.Certificate, r.Chain.Delegation
	oc, od := other.Chain.Certificate, other.Chain.Delegation
	if d.Number != od.Number && (d.Organisation != od.Organisation || !strings.HasPrefix(oc.Site, d.SitePrefix)) {
		return false
	}
	if c.Generation != oc.Generation {
		return c.Generation > oc.Generation
	}
	return bytes.Compare(c.Identity[:], oc.Identity[:]) < 0
}

func (b *Book) fullLocked(delegation uint64) bool {
	n := 0
	for _, e := range b.entries {
		if e.record.Chain.Delegation.Number == delegation {
			n++
		}
	}
	return n >= maxPerDelegation
}

// compareLocked says what r is to the record that stands in its place, nil for
// none, before limits. Of two bodies of one order the smaller hash wins
// everywhere, and the pair is kept.
func (b *Book) compareLocked(stands, r *Record) Verdict {
	if stands == nil {
		return Accepted
	}
	switch c := r.Order().Compare(stands.Order()); {
	case c < 0:
		return Older
	case c > 0:
		return Accepted
	case r.BodyHash == stands.BodyHash:
		return Known // the signature differs, what it says does not
	}
	if _, proven := b.proofs[r.ID]; !proven {
		b.proofs[r.ID] = [2][]byte{stands.Raw, r.Raw}
	}
	if bytes.Compare(r.BodyHash[:], stands.BodyHash[:]) > 0 {
		return Lost
	}
	return Conflict
}

// spend takes the right to one change, if there is one.
func (e *entry) spend(tick time.Time) bool {
	if since := tick.Sub(e.refill); since > 0 {
		e.tokens = min(changesBurst, e.tokens+since.Seconds()*changesPerSecond)
	}
	e.refill = tick
	if e.tokens < 1 {
		return false
	}
	e.tokens--
	return true
}

// newerLocked reports whether r takes the place of the record that stands there.
func (b *Book) newerLocked(stands, r *Record) bool {
	v := b.compareLocked(stands, r)
	return v == Accepted || v == Conflict
}

func (b *Book) dropNextLocked(e *entry) {
	if e.next != nil {
		delete(b.raws, e.next.sum)
		delete(b.waiting, e.next.ID)
		e.next = nil
	}
}

// ripeLocked takes in the record that waits, if it may now, and returns it.
func (b *Book) ripeLocked(e *entry, tick time.Time) *Record {
	r := e.next
	if r == nil {
		return nil
	}
	holder, losers := b.rivalsLocked(r)
	if holder != nil {
		b.dropNextLocked(e)
		return nil
	}
	if !e.spend(tick) {
		return nil
	}
	b.putLocked(e, r)
	b.supersedeLocked(losers)
	return r
}

// Ripe takes in the records that the rate limit held back and that may be taken
// in now, and returns them: the caller does with them as after Accepted.
func (b *Book) Ripe(tick time.Time) []*Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.waiting) == 0 {
		return nil
	}
	var out []*Record
	for _, id := range slices.SortedFunc(maps.Keys(b.waiting), compareIDs) {
		if e := b.entries[id]; e != nil { // else one before it has superseded it
			if r := b.ripeLocked(e, tick); r != nil {
				out = append(out, r)
			}
		}
	}
	return out
}

func compareIDs(x, y trust.GatewayID) int { return bytes.Compare(x[:], y[:]) }

// putLocked makes r the record of its entry.
func (b *Book) putLocked(e *entry, r *Record) {
	b.dropNextLocked(e)
	if e.record != nil {
		b.unindexLocked(e.record)
	}
	e.record = r
	b.raws[r.sum] = r.ID
	b.names[r.name()] = append(b.names[r.name()], r.ID)
	b.ground.add(r, 1)
	b.changedLocked()
}

func (b *Book) changedLocked() { b.snapshot, b.summary = nil, nil }

func (b *Book) unindexLocked(r *Record) {
	delete(b.raws, r.sum)
	b.ground.add(r, -1)
	ids := slices.DeleteFunc(b.names[r.name()], func(id trust.GatewayID) bool { return id == r.ID })
	if b.names[r.name()] = ids; len(ids) == 0 {
		delete(b.names, r.name())
	}
}

func (b *Book) removeLocked(id trust.GatewayID) {
	e := b.entries[id]
	b.dropNextLocked(e)
	b.unindexLocked(e.record)
	delete(b.entries, id)
	delete(b.proofs, id)
	b.changedLocked()
}

func (b *Book) supersedeLocked(ids []trust.GatewayID) {
	for _, id := range ids {
		b.removeLocked(id)
		b.superseded = append(b.superseded, id)
	}
}

// PutOwn verifies and takes in a record that this gateway made.
func (b *Book) PutOwn(raw []byte, now time.Time) (*Record, error) {
	r, err := Decode(raw)
	if err != nil {
		return nil, err
	}
	r.sum = sha256.Sum256(raw)
	if err := b.verify(r, now); err != nil {
		return nil, err
	}
	if r.ID != b.self {
		return nil, fmt.Errorf("record of %s is not our own", r.name())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	e := b.entries[r.ID]
	if e == nil {
		e = new(entry)
		b.entries[r.ID] = e
	}
	b.putLocked(e, r)
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

// Len is how many records there are.
func (b *Book) Len() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.entries)
}

// All returns all records, ascending by gateway ID, in a slice of the caller's.
func (b *Book) All() []*Record {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.allLocked())
}

// allLocked returns all records, ascending by gateway ID, in a slice that nobody changes.
func (b *Book) allLocked() []*Record {
	if b.snapshot == nil && len(b.entries) > 0 {
		b.snapshot = make([]*Record, 0, len(b.entries))
		for _, id := range b.idsLocked() {
			b.snapshot = append(b.snapshot, b.entries[id].record)
		}
	}
	return b.snapshot
}

// Granted calls yield for sites that were granted a prefix with addr in it,
// until that returns false; a site may come more than once. yield must not call
// the book.
func (b *Book) Granted(addr netip.Addr, yield func(site string) bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.ground.at(addr, yield)
}

func (b *Book) idsLocked() []trust.GatewayID {
	ids := make([]trust.GatewayID, 0, len(b.entries))
	for id := range b.entries {
		ids = append(ids, id)
	}
	slices.SortFunc(ids, compareIDs)
	return ids
}

// Expire forgets gateways whose certificate is over, tombstones too. It returns
// them, and those that gave way to another one of their name since the last
// call: the caller lets go of what it has of them.
func (b *Book) Expire(now time.Time) []trust.GatewayID {
	b.mu.Lock()
	defer b.mu.Unlock()
	out := slices.DeleteFunc(b.superseded, func(id trust.GatewayID) bool { return b.entries[id] != nil })
	b.superseded = nil
	for _, id := range b.idsLocked() {
		err := b.root.ValidAt(b.entries[id].record.Chain, now)
		if id != b.self && errors.Is(err, trust.ErrExpired) {
			b.removeLocked(id)
			out = append(out, id)
		}
	}
	return out
}

// Equivocations returns, by gateway, the first two records that it signed with
// the same order and different bodies.
func (b *Book) Equivocations() map[trust.GatewayID][2][]byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.proofs)
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
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.summary == nil {
		all := make([]byte, 0, len(b.entries)*(len(trust.GatewayID{})+sha256.Size))
		for _, r := range b.allLocked() {
			all = append(all, r.ID[:]...)
			all = append(all, r.BodyHash[:]...)
		}
		sum := trust.Hash("records", all)
		b.summary = &sum
	}
	return *b.summary
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
