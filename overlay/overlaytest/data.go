package overlaytest

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/wgdev"
)

// RuleData is the rule that packets between two gateways arrive while the path
// between them works.
const RuleData = "data"

// traffic is what the gateways of a World with a Carrier send each other: a
// packet a second from each to the next one, and to one that changes.
type traffic struct {
	world *World
	stop  chan struct{}
	done  chan struct{}

	mu    sync.Mutex        // guards all below
	sent  map[[2]int]unseen // by index
	count map[string]int    // packets that arrived, by the site that got them
}

// unseen are packets from one gateway to another of which none has arrived yet.
type unseen struct {
	first, last time.Time // when they were sent
	count       int
}

// hole is how long no packet may arrive while the path works: a handshake that
// got lost twice, and what an observer of a crashed gateway of two needs to move.
const hole = 20 * time.Second

// enough is how many packets in a row never get lost by chance where the path is
// good: twelve at 2 % loss are one case in 10^20.
const enough = 12

// rotation is how long a gateway sends to another one besides the next.
const rotation = 30 // seconds

// mtu is that of the interfaces, in bytes.
const mtu = 1420

// openDevice makes the device of a gateway.
func (g *Gateway) openDevice(c wgdev.Config) (wgdev.Device, error) {
	tap := wgdev.NewTap(mtu, g.world.traffic.arrived)
	g.world.law.tapped(g, tap)
	c.Device, c.MTU = tap, mtu
	if g.world.options.Carrier == WireGuard {
		c.Kind, c.Bubble = wgdev.Given, true
		return wgdev.Open(c)
	}
	return wgdev.OpenModel(c, wgdev.ModelOptions{Now: g.now, Seed: g.world.options.Seed + uint64(g.Index)}) //nolint:gosec // an index
}

func newTraffic(w *World) *traffic {
	return &traffic{
		world: w, stop: make(chan struct{}), done: make(chan struct{}),
		sent: make(map[[2]int]unseen), count: make(map[string]int),
	}
}

// packet is an IPv4 packet of protocol 253 (RFC 3692, for experiments) that says between whom it goes.
func packet(from, to netip.Prefix, a, b int) []byte {
	p := make([]byte, 28)
	p[0], p[8], p[9] = 0x45, 64, 253
	binary.BigEndian.PutUint16(p[2:], uint16(len(p))) //nolint:gosec // 28
	src, dst := from.Addr().Next().As4(), to.Addr().Next().As4()
	copy(p[12:], src[:])
	copy(p[16:], dst[:])
	binary.BigEndian.PutUint32(p[20:], uint32(a)) //nolint:gosec // an index
	binary.BigEndian.PutUint32(p[24:], uint32(b)) //nolint:gosec // an index
	return p
}

// arrived is called by devices with a packet for the site behind them.
func (t *traffic) arrived(p []byte) {
	if len(p) != 28 {
		return
	}
	a, b := int(binary.BigEndian.Uint32(p[20:])), int(binary.BigEndian.Uint32(p[24:]))
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.sent, [2]int{a, b})
	t.count[t.world.gateways[b].Site]++
}

// tick sends the packets of a second and looks for those that are missing.
func (t *traffic) tick(round int) {
	n := len(t.world.gateways)
	for i := range n {
		for _, j := range []int{(i + 1) % n, (i + 2 + round/rotation%max(1, n-2)) % n} {
			t.send(i, j)
		}
	}
}

func (t *traffic) send(i, j int) {
	from, to := t.world.gateways[i], t.world.gateways[j]
	works := t.world.law.works(i, j)
	key := [2]int{i, j}
	now := time.Now()
	t.mu.Lock()
	u := t.sent[key]
	if works == 0 || from.Site == to.Site || t.world.paired(from) {
		delete(t.sent, key)
		t.mu.Unlock()
		return
	}
	if now.Sub(u.last) > 2*time.Second {
		u = unseen{first: now} // there was a pause
	}
	u.last, u.count = now, u.count+1
	t.sent[key] = u
	t.mu.Unlock()
	if missing := now.Sub(u.first); u.count > enough && works > calm+hole && missing > hole {
		t.world.law.lost(from, to, missing)
	}
	if tap := from.device(); tap != nil {
		tap.Inject(packet(from.Prefixes[0], to.Prefixes[0], i, j))
	}
}

// paired reports whether a gateway's site has two. Of these only the one in use
// can send: WireGuard takes a source address from one peer alone.
func (w *World) paired(g *Gateway) bool {
	return g.second || g.Index > 0 && g.Index <= w.options.Pairs
}

// run sends until the world is closed.
func (t *traffic) run() {
	defer close(t.done)
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for round := 0; ; round++ {
		select {
		case <-t.stop:
			return
		case <-ticker.C:
		}
		t.tick(round)
	}
}

// Arrived returns how many packets arrived in all. It is zero without a Carrier.
func (w *World) Arrived() int {
	w.traffic.mu.Lock()
	defer w.traffic.mu.Unlock()
	sum := 0
	for _, n := range w.traffic.count {
		sum += n
	}
	return sum
}

// works returns for how long the path between two gateways has worked; zero if it does not.
func (l *law) works(i, j int) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.good[i][j] || l.corrupt[i] || l.corrupt[j] {
		return 0
	}
	return max(1, time.Since(l.since[i][j]))
}

func (l *law) lost(from, to *Gateway, since time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.altered[to.Site] || l.altered[from.Site] {
		return // they may have no route on purpose
	}
	l.faultLocked(from, RuleData, "no packet to %s arrived for %v", to.Name, since)
}

// tapped notes the interface of a gateway.
func (l *law) tapped(g *Gateway, tap *wgdev.Tap) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.taps[g.Index] = tap
}

// device is the interface of a gateway that runs, nil for others. Called from
// the goroutine of traffic.
func (g *Gateway) device() *wgdev.Tap {
	l := g.world.law
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.up[g.Index] {
		return nil
	}
	return l.taps[g.Index]
}
