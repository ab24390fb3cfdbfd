package path

import (
	"net/netip"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Budget bounds what is sent to addresses that have not proven themselves. A
// zero field means the default.
type Budget struct {
	// Gaps are the pauses between the tries of an address; one more try than
	// there are gaps. Default: five tries within 15 seconds, so that two sides
	// that learn of each other at different moments still meet.
	Gaps []time.Duration
	// Rest is the longest pause between tries after that: each is half as long
	// again as the one before, so that an address which began to answer after a
	// minute of losses is found within another half. Default 10 minutes, reached
	// after 15 tries and 25 minutes.
	Rest time.Duration
	// KickPause is how long after its last try an address may be tried again
	// because of Kick, or because the path died. Default 10 seconds.
	KickPause time.Duration
	// PerAddress and PerAddressBurst limit probes per second to one IP address over
	// all peers. Defaults 1 and 5.
	PerAddress, PerAddressBurst float64
	// PerPeer and PerPeerBurst limit probes per second because of one peer over
	// all its addresses: a record that names new ones all the time gains nothing.
	// Defaults 0.15 and 80, twice the tries of a full record.
	PerPeer, PerPeerBurst float64
	// Total and TotalBurst limit probes per second in all. Defaults 50 and 50.
	Total, TotalBurst float64
}

func (b Budget) withDefaults() Budget {
	if len(b.Gaps) == 0 {
		b.Gaps = []time.Duration{250 * time.Millisecond, 750 * time.Millisecond, 3 * time.Second, 11 * time.Second}
	}
	setDefault(&b.Rest, 10*time.Minute)
	setDefault(&b.KickPause, 10*time.Second)
	setDefault(&b.PerAddress, 1)
	setDefault(&b.PerAddressBurst, 5)
	setDefault(&b.PerPeer, 0.15)
	setDefault(&b.PerPeerBurst, 80)
	setDefault(&b.Total, 50)
	setDefault(&b.TotalBurst, 50)
	return b
}

// pause is the time after a number of tries until the next.
func (b *Budget) pause(tries int) time.Duration {
	if tries < len(b.Gaps) {
		return b.Gaps[tries]
	}
	pause := b.Gaps[len(b.Gaps)-1]
	for ; tries >= len(b.Gaps) && pause < b.Rest; tries-- {
		pause += pause / 2
	}
	return min(pause, b.Rest)
}

func setDefault[T ~int64 | ~float64](field *T, value T) {
	if *field == 0 {
		*field = value
	}
}

// Cadence of addresses that are or were proven. docs/decisions/0004-path-probes.md
// has the arithmetic.
const (
	// pathLeast, pathShare and pathMost give the pause between probes of the path
	// in use: pathShare for each known peer, so that a gateway sends ten a second
	// in all, but at least pathLeast (26 B/s) and at most pathMost, which keeps the
	// mapping of a NAT that forgets after 30 s.
	pathLeast = 5 * time.Second
	pathShare = 100 * time.Millisecond
	pathMost  = 25 * time.Second
	// spareFactor is how much longer the pause is for proven addresses that are
	// not the path; pathMost holds for them, too.
	spareFactor = 3
	// learnInterval is the pause until a new address has learnSamples.
	learnInterval = time.Second
	learnSamples  = 3

	// missAfter is the least time after which a reply counts as missing; it is
	// twice the round-trip time on paths where that is longer. A miss makes an
	// address suspect: it is sent burstProbes, burstGap apart, and is dead when
	// all of them are missing, too: 3 s after the first on paths up to 500 ms.
	// Seven losses in a row are chance once in 6.5e9 times when 2 % of all
	// packets get lost in either direction.
	missAfter   = time.Second
	burstProbes = 6
	burstGap    = 200 * time.Millisecond

	// challengeLife is how long a reply may take (docs/protocol.md, section 3).
	challengeLife = 5 * time.Second

	// A proven address that fell silent is asked with a pause of deadPart of the
	// silence, at least pathLeast, at most deadShare for each known peer: all
	// gateways of a mesh together send no more than three probes a second to an
	// address that may be somebody else's by now. After lostAfter the pause is
	// lostFactor times as long.
	deadPart   = 4
	deadShare  = 300 * time.Millisecond
	lostAfter  = 48 * time.Hour
	lostFactor = 4
	// After forgetAfter it is asked only where it is still allowed to ask.
	forgetAfter = time.Hour
	// knownFactor is how much longer the pause is for addresses that answered in
	// the run before and not yet in this one.
	knownFactor = 2
	// recallPause is the least pause between probes to a silent address.
	recallPause = time.Second
	// hurryFor is how long a silent address is asked every recallPause after a
	// sign that its peer may be back: four times, so that no lost packet spoils it.
	hurryFor = 3 * time.Second

	// A spare replaces a path that works if it is faster by both.
	betterShare = 0.2
	betterLeast = 2 * time.Millisecond

	// maxAddresses per peer: 8 of the record, the rest from elsewhere.
	maxAddresses = 16

	// mtuInterval is the pause between measurements of the path's MTU.
	mtuInterval = 10 * time.Minute
)

// bucket is a token bucket. The zero value is full.
type bucket struct {
	used float64 // tokens missing to be full, at the moment at
	at   time.Time
}

// settle brings used up to now.
func (b *bucket) settle(now time.Time, rate float64) {
	b.used = max(0, b.used-now.Sub(b.at).Seconds()*rate)
	b.at = now
}

// wait is how long until a token is there: 0 for now.
func (b *bucket) wait(now time.Time, rate, burst float64) time.Duration {
	b.settle(now, rate)
	if b.used <= burst-1 {
		return 0
	}
	// One more nanosecond: rounding must not ask for a moment too early.
	return time.Duration((b.used-(burst-1))/rate*float64(time.Second)) + 1
}

func (b *bucket) take() { b.used++ }

// limits are the buckets of a Budget. Those of peers outlive the peers.
type limits struct {
	budget Budget
	total  bucket
	dest   map[netip.Addr]*bucket
	peer   map[trust.GatewayID]*bucket
}

func newLimits(b Budget) limits {
	return limits{budget: b.withDefaults(), dest: make(map[netip.Addr]*bucket), peer: make(map[trust.GatewayID]*bucket)}
}

// everybody is how long everybody has to wait for the next probe.
func (l *limits) everybody(now time.Time) time.Duration {
	return l.total.wait(now, l.budget.Total, l.budget.TotalBurst)
}

// admit takes the tokens for a probe to a peer at addr. If one is missing, it
// takes none and says how long to wait.
func (l *limits) admit(peer trust.GatewayID, addr netip.Addr, now time.Time) time.Duration {
	if w := l.everybody(now); w > 0 {
		return w
	}
	dest, of := of(l.dest, addr), of(l.peer, peer)
	w := max(dest.wait(now, l.budget.PerAddress, l.budget.PerAddressBurst), of.wait(now, l.budget.PerPeer, l.budget.PerPeerBurst))
	if w > 0 {
		return w
	}
	dest.take()
	of.take()
	l.total.take()
	return 0
}

func of[K comparable](m map[K]*bucket, key K) *bucket {
	b := m[key]
	if b == nil {
		b = &bucket{}
		m[key] = b
	}
	return b
}

// prune forgets buckets that are full again.
func (l *limits) prune(now time.Time) {
	prune(l.dest, now, l.budget.PerAddress)
	prune(l.peer, now, l.budget.PerPeer)
}

func prune[K comparable](m map[K]*bucket, now time.Time, rate float64) {
	for key, b := range m {
		if b.settle(now, rate); b.used == 0 {
			delete(m, key)
		}
	}
}
