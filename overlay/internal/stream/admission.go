package stream

import (
	"context"
	"errors"
	"hash/maphash"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
)

var (
	errPending     = errors.New("too many handshakes in flight")
	errNotVerified = errors.New("source address is not verified")
)

// admission decides who may cause public-key work. Its methods are callbacks
// of quic-go for packets that would open a connection.
type admission struct {
	proven    func(netip.AddrPort) bool
	strangers *pool // clients that answered a Retry
	known     *pool // clients at proven addresses
	count     *counters
}

func newAdmission(cfg Config, count *counters) *admission {
	proven := cfg.Proven
	if proven == nil {
		proven = func(netip.AddrPort) bool { return false }
	}
	return &admission{
		proven:    proven,
		strangers: newPool(cfg.Pending),
		known:     newPool(cfg.Pending),
		count:     count,
	}
}

// needsRetry asks for a Retry from everybody but proven addresses. Those can
// be forged as well: when half of their places are taken, they need one too,
// so that forged packets never use up the other half.
func (a *admission) needsRetry(addr net.Addr) bool {
	return !a.proven(addrPort(addr)) || a.known.halfFull()
}

// enter gives a client a place until its connection ends or leave is called
// with the connection's context.
func (a *admission) enter(ctx context.Context, info *quic.ClientInfo) (context.Context, error) {
	from := addrPort(info.RemoteAddr)
	p := a.strangers
	if a.proven(from) {
		p = a.known
	} else if !info.AddrVerified {
		return nil, errNotVerified
	}
	source := sourceOf(from.Addr())
	if !p.take(source) {
		a.count.add(refusedPending)
		return nil, errPending
	}
	a.count.add(handshakes)
	leave := sync.OnceFunc(func() { p.release(source) })
	context.AfterFunc(ctx, leave)
	return context.WithValue(ctx, placeKey{}, leave), nil
}

type placeKey struct{}

// leave frees the place of an accepted connection.
func leave(ctx context.Context) {
	if f, ok := ctx.Value(placeKey{}).(func()); ok {
		f()
	}
}

// pool counts clients in all and for each source.
type pool struct {
	total, each int

	mu      sync.Mutex // guards the rest
	taken   int
	sources map[netip.Addr]int // at most total entries
}

func newPool(total int) *pool {
	return &pool{total: total, each: max(1, total/4), sources: make(map[netip.Addr]int)}
}

func (p *pool) take(source netip.Addr) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.total || p.sources[source] >= p.each {
		return false
	}
	p.taken++
	p.sources[source]++
	return true
}

func (p *pool) release(source netip.Addr) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.taken--
	if p.sources[source]--; p.sources[source] == 0 {
		delete(p.sources, source)
	}
}

func (p *pool) halfFull() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return 2*p.taken >= p.total
}

// limiter is a bucket for each source in a table that never grows: sources
// share a bucket by a secret hash. Somebody who forges very many sources makes
// others wait with some probability, and cannot fill a table or choose whom it
// hits.
type limiter struct {
	start    time.Time
	interval time.Duration // one event
	slack    time.Duration // how far ahead of time a bucket may be: the burst
	seed     maphash.Seed
	buckets  [limiterBuckets]atomic.Int64 // time since start at which the bucket is full again
}

const limiterBuckets = 4096 // 32 KiB; 100,000 forged sources put 24 into each

// newLimiter allows rate events each second, and twice as many at once.
func newLimiter(rate int) *limiter {
	interval := time.Second / time.Duration(rate)
	return &limiter{
		start:    time.Now(),
		interval: interval,
		slack:    time.Duration(2*rate-1) * interval,
		seed:     maphash.MakeSeed(),
	}
}

// allow counts an event of a source and reports whether it is within the rate.
func (l *limiter) allow(source netip.Addr) bool {
	bucket := &l.buckets[maphash.Comparable(l.seed, source)%limiterBuckets]
	now := int64(time.Since(l.start))
	for {
		full := bucket.Load()
		next := max(full, now)
		if next-now > int64(l.slack) {
			return false
		}
		if bucket.CompareAndSwap(full, next+int64(l.interval)) {
			return true
		}
	}
}

// sourceOf returns what is one source: an IPv4 address or an IPv6 /64.
func sourceOf(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if !a.Is6() {
		return a
	}
	p, err := a.Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}

// addrPort reads the address of a packet; the zero value if it is of no kind we know.
func addrPort(addr net.Addr) netip.AddrPort {
	a, ok := addr.(interface{ AddrPort() netip.AddrPort }) // *net.UDPAddr has it
	if !ok {
		return netip.AddrPort{}
	}
	ap := a.AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}
