package overlay

import (
	"context"
	"net/netip"
	"sync"
	"time"
)

// A gateway may be unable to find another that finds it: a NAT gives the other
// a new address towards each gateway, or a cut in one direction made it give up.
// Nobody can tell it but the other, by a new introduction: that carries the
// address which the NAT made up, and its source is proven (docs/protocol.md,
// section 3; an incoming probe alone may be a replay and moves nothing).

const (
	// knockInterval is the time between looks for peers that do not ask.
	knockInterval = 2 * time.Second
	// knockAfter is how long a path works before its other end must have asked:
	// its own probes have been on their way for longer.
	knockAfter = 3 * time.Second
	// firstKnockPause and lastKnockPause are between knocks at one peer.
	firstKnockPause = 5 * time.Second
	lastKnockPause  = time.Minute
	// knockMany bounds the introductions of one look: one QUIC handshake each.
	knockMany = 8
)

// askedEvery is how often peers ask at most, for ordinary paths at n gateways:
// three of their intervals (docs/decisions/0004-path-probes.md).
func askedEvery(n int) time.Duration {
	return 3 * min(max(5*time.Second, time.Duration(n)*100*time.Millisecond), 30*time.Second)
}

// knock is when to knock at a peer next.
type knock struct {
	due   time.Time
	pause time.Duration
}

// knockLoop introduces this gateway to peers that it reaches and that do not
// ask for it.
func (m *Mesh) knockLoop(ctx context.Context) error {
	knocks := make(map[GatewayID]*knock)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(knockInterval/2 + m.jitter(knockInterval)):
		}
		var wg sync.WaitGroup
		for _, addr := range m.deaf(knocks, time.Now()) {
			wg.Go(func() { m.knockAt(ctx, addr) })
		}
		wg.Wait()
	}
}

// deaf returns where to knock now, and plans the next knock of each.
func (m *Mesh) deaf(knocks map[GatewayID]*knock, now time.Time) []netip.AddrPort {
	var out []netip.AddrPort
	records := m.book.All()
	silence := askedEvery(len(records))
	for _, r := range records {
		path, ok := m.prover.Path(r.ID)
		if !ok || !path.Alive || now.Sub(m.port.Asked(r.ID)) < silence {
			delete(knocks, r.ID)
			continue
		}
		k := knocks[r.ID]
		switch {
		case k == nil:
			knocks[r.ID] = &knock{due: now.Add(knockAfter), pause: firstKnockPause}
		case !k.due.After(now) && len(out) < knockMany:
			k.due, k.pause = now.Add(k.pause), min(2*k.pause, lastKnockPause)
			out = append(out, path.Addr)
		}
	}
	return out
}

func (m *Mesh) knockAt(ctx context.Context, addr netip.AddrPort) {
	ctx, cancel := context.WithTimeout(ctx, introduceTimeout)
	defer cancel()
	m.count("introduction.knocks")
	if _, err := m.streams.Introduce(ctx, addr); err != nil {
		m.count("introduction.failed")
		m.log.Debug("knock not answered", "endpoint", addr, "err", err)
	}
}
