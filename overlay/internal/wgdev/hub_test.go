package wgdev

import (
	"crypto/ecdh"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// hub is a network between devices of one test: everybody reaches everybody.
type hub struct {
	mu      sync.Mutex
	binds   map[trust.GatewayID]*hubBind
	holding bool
	later   []func() // deliveries that are held

	record bool // in sent
	sent   []wireMessage
	lose   func(wireMessage) bool // of what is recorded; nil: nothing
	twice  bool                   // everything arrives twice
	spread bool                   // no two messages arrive at the same time
	latest time.Time              // when the last of these arrives
}

// recordLocked reports whether a message is to get lost.
func (h *hub) recordLocked(from, to trust.GatewayID, b []byte) bool {
	if !h.record {
		return false
	}
	m := newWireMessage(from, to, b)
	h.sent = append(h.sent, m)
	return h.lose != nil && h.lose(m)
}

// spreading is the time between two messages that are spread.
const spreading = 100 * time.Microsecond

// spreadLocked makes deliver wait until nothing else arrives.
func (h *hub) spreadLocked(deliver func()) func() {
	now := time.Now()
	if h.latest.Before(now) {
		h.latest = now
	}
	h.latest = h.latest.Add(spreading)
	wait := h.latest.Sub(now)
	return func() { time.AfterFunc(wait, deliver) }
}

// hold keeps packets back; held is how many there are.
func (h *hub) hold() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.holding = true
}

func (h *hub) held() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.later)
}

// release delivers what is held, and either holds what comes next or not.
func (h *hub) release(holding bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, deliver := range h.later {
		deliver()
	}
	h.holding, h.later = holding, nil
}

func newHub() *hub { return &hub{binds: make(map[trust.GatewayID]*hubBind)} }

// hubBind is a conn.Bind with virtual endpoints, as package link has them.
type hubBind struct {
	hub     *hub
	id      trust.GatewayID
	inbox   chan hubPacket
	hook    atomic.Pointer[func()] // called in the receive goroutine
	strayed atomic.Int64           // packets that were sent to a source address

	mu     sync.Mutex
	closed chan struct{}
}

type hubPacket struct {
	from trust.GatewayID
	data []byte
}

// bind returns the place of a gateway in the network; a second one takes over
// from the first, as a restarted process does.
func (h *hub) bind(id trust.GatewayID) *hubBind {
	b := &hubBind{hub: h, id: id, inbox: make(chan hubPacket, 1024)}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.binds[id] = b
	return b
}

func (b *hubBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	closed := make(chan struct{})
	b.closed = closed
	return []conn.ReceiveFunc{func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case p := <-b.inbox:
			if hook := b.hook.Load(); hook != nil {
				(*hook)()
			}
			sizes[0] = copy(bufs[0], p.data)
			eps[0] = hubEndpoint{p.from, true}
			return 1, nil
		}
	}}, 51820, nil
}

func (b *hubBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	return nil
}

func (b *hubBind) Send(bufs [][]byte, to conn.Endpoint) error {
	e := to.(hubEndpoint)
	if e.source {
		b.strayed.Add(1)
	}
	b.hub.mu.Lock()
	defer b.hub.mu.Unlock()
	other := b.hub.binds[e.peer]
	if other == nil {
		return nil
	}
	for _, data := range bufs {
		if b.hub.recordLocked(b.id, e.peer, data) {
			continue
		}
		packet := hubPacket{b.id, append([]byte(nil), data...)}
		deliver := func() {
			select {
			case other.inbox <- packet:
			default: // lost, as in a network
			}
		}
		if b.hub.spread {
			deliver = b.hub.spreadLocked(deliver)
		}
		if b.hub.holding {
			b.hub.later = append(b.hub.later, deliver)
		} else {
			deliver()
		}
		if b.hub.twice {
			deliver()
		}
	}
	return nil
}

func (b *hubBind) ParseEndpoint(s string) (conn.Endpoint, error) {
	text, ok := strings.CutPrefix(s, "peer:")
	if !ok {
		return nil, fmt.Errorf("endpoint %q", s)
	}
	id, err := trust.ParseGatewayID(text)
	return hubEndpoint{id, false}, err
}

func (b *hubBind) SetMark(uint32) error { return nil }
func (b *hubBind) BatchSize() int       { return 1 }

// hubEndpoint is a virtual endpoint, or the source address of a packet.
type hubEndpoint struct {
	peer   trust.GatewayID
	source bool
}

func (e hubEndpoint) DstToString() string {
	if e.source {
		return fmt.Sprintf("203.0.113.%d:99", e.peer[0])
	}
	return fmt.Sprintf("192.0.2.%d:51820", e.peer[0])
}
func (e hubEndpoint) ClearSrc()           {}
func (e hubEndpoint) SrcToString() string { return "" }
func (e hubEndpoint) DstToBytes() []byte  { return []byte(e.DstToString()) }
func (e hubEndpoint) DstIP() netip.Addr   { return netip.AddrFrom4([4]byte{192, 0, 2, e.peer[0]}) }
func (e hubEndpoint) SrcIP() netip.Addr   { return netip.Addr{} }

func endpointText(id trust.GatewayID) string { return "peer:" + id.String() }

// testKey is the private key of gateway n.
func testKey(n byte) *ecdh.PrivateKey {
	key, err := ecdh.X25519().NewPrivateKey([]byte{1: n, 7: 200, 31: 64})
	if err != nil {
		panic(err)
	}
	return key
}

func publicKey(n byte) trust.ExchangeKey {
	return trust.ExchangeKey(testKey(n).PublicKey().Bytes())
}

func testID(n byte) trust.GatewayID { return trust.GatewayID{n} }

// addPeer are the changes that configure gateway n.
func addPeer(n byte, prefixes ...string) engine.Changes {
	changes := engine.Changes{{Op: engine.AddPeer, Peer: testID(n), Key: publicKey(n)}}
	for _, p := range prefixes {
		changes = append(changes, engine.Change{Op: engine.AddPrefix, Peer: testID(n), Key: publicKey(n), Prefix: netip.MustParsePrefix(p)})
	}
	return changes
}

func mustApply(t testing.TB, d Device, changes ...engine.Changes) {
	t.Helper()
	for _, c := range changes {
		if err := d.Apply(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
}

// eventually waits until what holds; said tells the last state.
func eventually(t testing.TB, what string, holds func() bool, said func() any) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !holds() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not in 10 s: %s; last: %v", what, said())
		}
	}
}

// within fails the test if f takes longer than anything here can.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(20 * time.Second):
		t.Fatalf("%s hangs:\n%s", what, stacks())
	}
}

// noGoroutinesLeft fails the test if at its end there are goroutines of ours,
// of wireguard-go or of gVisor that were not there now.
func noGoroutinesLeft(t testing.TB) {
	t.Helper()
	before := make(map[string]bool)
	for _, g := range goroutines() {
		before[g[:strings.Index(g, " [")]] = true
	}
	t.Cleanup(func() {
		var left []string
		eventually(t, "all goroutines end", func() bool {
			left = nil
			for _, g := range goroutines() {
				if !before[g[:strings.Index(g, " [")]] {
					left = append(left, g)
				}
			}
			return len(left) == 0
		}, func() any { return strings.Join(left, "\n\n") })
	})
}

func goroutines() []string {
	var out []string
	for g := range strings.SplitSeq(stacks(), "\n\n") {
		if strings.Contains(g, "goroutines()") || strings.Contains(g, "testing.") && !strings.Contains(g, "created by") {
			continue
		}
		for _, whose := range []string{"internal/wgdev.", "wireguard/device.", "wireguard/tun.", "gvisor.dev/"} {
			if strings.Contains(g, whose) && strings.HasPrefix(g, "goroutine ") {
				out = append(out, g)
				break
			}
		}
	}
	return out
}

func stacks() string {
	b := make([]byte, 1<<20)
	return string(b[:runtime.Stack(b, true)])
}
