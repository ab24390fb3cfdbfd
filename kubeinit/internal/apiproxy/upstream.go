package apiproxy

import (
	"cmp"
	"context"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// upstream is an API server while Run runs. The first three fields do not
// change, the rest is guarded by proxy.mu.
type upstream struct {
	address netip.AddrPort
	cancel  context.CancelFunc // ends watch
	kick    chan struct{}      // capacity 1: ask now

	Upstream      // as it is in the lists
	removed  bool // is in no list any more
	state    State
	since    time.Time     // of state
	err      error         // of the last question, nil if it was answered
	smooth   time.Duration // of round trips; 0: none yet
	rtt      time.Duration // what the order goes by: smooth, when it moved enough
	sessions map[*session]struct{}
	total    int64 // connections that were made
	failed   int64 // dials for clients that failed
}

// Round trips move the order only by a fifth and by two milliseconds, as paths
// of the mesh do; otherwise two equal servers would take turns.
const (
	smoothing = 4 // a new value counts a quarter
	rttFactor = 5
	rttStep   = 2 * time.Millisecond
)

// measured takes a new round trip.
func (u *upstream) measured(rtt time.Duration) {
	if u.smooth == 0 {
		u.smooth = rtt
	} else {
		u.smooth += (rtt - u.smooth) / smoothing
	}
	if moved := (u.smooth - u.rtt).Abs(); u.rtt == 0 || moved > rttStep && moved > u.rtt/rttFactor {
		u.rtt = u.smooth
	}
}

// better orders servers. Equal ones stay in the order of the configuration.
func better(a, b *upstream) int {
	return cmp.Or(
		cmp.Compare(a.state, b.state),
		-compareBool(a.OwnHost, b.OwnHost),
		-compareBool(a.OwnHost || a.OwnSite, b.OwnHost || b.OwnSite),
		cmp.Compare(a.rtt, b.rtt),
	)
}

func compareBool(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return 1
	}
	return -1
}

// watch asks a server until ctx ends.
func (p *proxy) watch(ctx context.Context, u *upstream) {
	q := &probe{address: u.address, dial: p.dial, timing: p.timing}
	defer q.close()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-u.kick:
		}
		r := q.ask(ctx, p.roots.Load())
		if ctx.Err() != nil {
			return
		}
		timer.Reset(p.observe(u, r))
	}
}

// observe takes an answer and returns when to ask again.
func (p *proxy) observe(u *upstream, r result) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	if r.rtt > 0 {
		u.measured(r.rtt)
	}
	u.err = r.err
	if u.state != r.state {
		attrs := []any{"endpoint", u.Address, "name", u.Name, "state", r.state, "was", u.state, "rtt", u.smooth}
		if r.err != nil {
			attrs = append(attrs, "err", r.err)
		}
		p.log.Info("api server changed", attrs...)
		u.state, u.since = r.state, time.Now()
	}
	p.orderLocked()
	p.dropLocked()
	wait := p.timing.idle
	if len(u.sessions) > 0 || u.state != Ready || u == (*p.order.Load())[0] {
		wait = p.timing.busy
	}
	return wait - wait/10 + rand.N(wait/5+1)
}

// orderLocked publishes the order for new connections.
func (p *proxy) orderLocked() {
	order := slices.Clone(p.upstreams)
	slices.SortStableFunc(order, better)
	if old := p.order.Load(); len(order) > 0 && (old == nil || len(*old) == 0 || (*old)[0] != order[0]) {
		p.log.Info("connections go to another api server", "endpoint", order[0].Address, "name", order[0].Name, "state", order[0].state)
	}
	p.order.Store(&order)
}

// dropLocked closes the connections of servers that are gone, if there is one
// that answers: without one, a client that comes back gains nothing, and the
// fault may be on this host.
func (p *proxy) dropLocked() {
	answers := func(u *upstream) bool { return u.state <= Live }
	if !slices.ContainsFunc(p.upstreams, answers) {
		return
	}
	for _, u := range p.upstreams {
		gone := u.state == Down || u.state == Silent && time.Since(u.since) > p.timing.hung
		if gone && len(u.sessions) > 0 {
			p.log.Info("connections of a lost api server are closed", "endpoint", u.Address, "name", u.Name, "count", len(u.sessions))
			for s := range u.sessions {
				s.close()
			}
		}
	}
}
