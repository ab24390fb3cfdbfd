package overlay

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Pauses between introductions to gateways that do not answer: one QUIC flight
// of 1,200 bytes each. The first is short, because gateways of a mesh are often
// started together.
const (
	firstIntroducePause = time.Second
	lastIntroducePause  = time.Minute
)

// introduceTimeout bounds one introduction: three round trips with two lost
// packets on a path of 500 ms.
const introduceTimeout = 8 * time.Second

// introduceMany bounds how many introductions are under way at once.
const introduceMany = 32

// introduceLoop introduces this gateway to all seeds and all stored gateways
// at once, then again to those that do not answer, less and less often.
func (m *Mesh) introduceLoop(ctx context.Context) error {
	for wait := firstIntroducePause; ; wait = min(2*wait, lastIntroducePause) {
		m.introduceAll(ctx, m.introduceTo())
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(wait/2 + m.jitter(wait)):
		}
	}
}

// introduceAll introduces this gateway at all addresses and waits for the last.
func (m *Mesh) introduceAll(ctx context.Context, addrs []netip.AddrPort) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, introduceMany)
	for _, addr := range addrs {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		wg.Go(func() {
			defer func() { <-slots }()
			m.introduceOnce(ctx, addr)
		})
	}
}

// introduceOnce dials an address; when somebody answers, both sides know each
// other, and the first exchange of records follows at once.
func (m *Mesh) introduceOnce(ctx context.Context, addr netip.AddrPort) {
	if ctx.Err() != nil {
		return
	}
	dial, cancel := context.WithTimeout(ctx, introduceTimeout)
	defer cancel()
	id, err := m.streams.Introduce(dial, addr)
	if err != nil {
		m.count("introduction.failed")
		m.log.Debug("introduction not answered", "endpoint", addr, "err", err)
		return
	}
	m.log.Debug("introduced", "peer", id.Short(), "endpoint", addr)
	if err := m.reconcile(ctx, id); err != nil {
		m.log.Debug("first exchange did not succeed", "peer", id.Short(), "err", err)
	}
	m.gossip.Join([]GatewayID{id})
}

// introduceTo returns the seeds, and where stored gateways were proven last,
// without those that answer probes and without this gateway itself.
func (m *Mesh) introduceTo() []netip.AddrPort {
	alive := make(map[netip.AddrPort]bool)
	var out []netip.AddrPort
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, addr := range m.saved {
		if p := m.peers[id]; p != nil && p.alive {
			alive[addr] = true
		} else if p != nil {
			out = append(out, addr)
		}
	}
	for _, addr := range m.self.seeds {
		if !alive[addr] && !slices.Contains(out, addr) && !m.isOwn(addr) {
			out = append(out, addr)
		}
	}
	return slices.DeleteFunc(out, func(a netip.AddrPort) bool { return !m.usableEndpoint(a, true) })
}

// isSeed reports whether a person or a ticket named the address.
func (m *Mesh) isSeed(addr netip.AddrPort) bool { return slices.Contains(m.self.seeds, addr) }

// isOwn reports whether addr is this gateway's own socket.
func (m *Mesh) isOwn(addr netip.AddrPort) bool {
	return addr.Port() == m.port.LocalPort() && slices.Contains(m.host.candidates(), addr.Addr())
}

// rejoinInterval is how often memberlist is told of a gateway that answers
// probes but is not among its members, for it never merges two halves by
// itself; and how often one that is among them and does not answer is asked.
const rejoinInterval = 2 * time.Second

// rejoinLoop keeps memberlist's view whole, for ever, and ours.
func (m *Mesh) rejoinLoop(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(rejoinInterval/2 + m.jitter(rejoinInterval)):
		}
		members := make(map[GatewayID]bool)
		for _, id := range m.gossip.Members() {
			members[id] = true
		}
		var absent, silent []GatewayID
		m.mu.Lock()
		for id, p := range m.peers {
			switch {
			case p.alive && !members[id]:
				absent = append(absent, id)
			case !p.alive && members[id]:
				silent = append(silent, id)
			}
		}
		m.mu.Unlock()
		slices.SortFunc(absent, compareIDs)
		slices.SortFunc(silent, compareIDs)
		if len(absent) > 0 {
			m.gossip.Join([]GatewayID{absent[m.intn(len(absent))]})
		}
		if len(silent) > 0 {
			// Somebody reaches it. A hint that lies costs a probe now and then.
			m.prover.Kick(silent[m.intn(len(silent))])
		}
	}
}

func compareIDs(a, b GatewayID) int { return bytes.Compare(a[:], b[:]) }
