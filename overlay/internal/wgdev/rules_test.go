package wgdev

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// rules are what the model and wireguard-go both keep, in virtual time.
var rules = []struct {
	name string
	test func(*bubble)
}{
	{"packets flow both ways over one handshake", testFlow},
}

func TestSessionRules(t *testing.T) {
	for kind, open := range map[string]func(Config) (Device, error){"wireguard-go": Open, "model": openModel} {
		for _, rule := range rules {
			t.Run(kind+"/"+rule.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { rule.test(&bubble{t: t, hub: newHub(), open: open}) })
			})
		}
	}
}

// bubble is a network of devices of one kind in virtual time.
type bubble struct {
	t    *testing.T
	hub  *hub
	open func(Config) (Device, error)
}

// node is a gateway with a Tap. Gateway n has 10.n.0.0/16.
type node struct {
	t    *testing.T
	n    byte
	dev  Device
	bind *hubBind
	tap  *Tap

	mu  sync.Mutex // guards got
	got []string   // packets that arrived
}

// node starts a gateway, in place of one that has its number.
func (w *bubble) node(n byte) *node {
	w.t.Helper()
	s := &node{t: w.t, n: n, bind: w.hub.bind(testID(n))}
	s.tap = NewTap(0, func(packet []byte) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.got = append(s.got, string(packet))
	})
	var err error
	s.dev, err = w.open(Config{
		Kind: Given, Device: s.tap, Bind: s.bind, PrivateKey: testKey(n), EndpointText: endpointText, Bubble: true,
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(s.close)
	return s
}

func (s *node) close() { closeDevice(s.t, s.dev) }

// know makes nodes peers of each other.
func (w *bubble) know(nodes ...*node) {
	w.t.Helper()
	for _, s := range nodes {
		for _, other := range nodes {
			if s != other {
				mustApply(w.t, s.dev, addPeer(other.n, fmt.Sprintf("10.%d.0.0/16", other.n)))
			}
		}
	}
}

// arrived returns the packets that arrived since the last call.
func (s *node) arrived() []string {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	got := s.got
	s.got = nil
	return got
}

// inject sends a packet between the hosts behind two nodes.
func (s *node) inject(to *node) {
	s.t.Helper()
	if !s.tap.Inject(tuntest.Ping(addr(to.n), addr(s.n))) {
		s.t.Fatalf("packet from %d to %d is not taken", s.n, to.n)
	}
}

// reach sends packets every 100 ms until one arrives, and returns after which
// time, or false after limit.
func (w *bubble) reach(from, to *node, limit time.Duration) (time.Duration, bool) {
	w.t.Helper()
	to.arrived()
	for began := time.Now(); time.Since(began) <= limit; time.Sleep(100 * time.Millisecond) {
		from.inject(to)
		if len(to.arrived()) > 0 {
			return time.Since(began), true
		}
	}
	return 0, false
}

func (w *bubble) mustReach(from, to *node, limit time.Duration) time.Duration {
	w.t.Helper()
	d, ok := w.reach(from, to, limit)
	if !ok {
		w.t.Fatalf("no packet from %d to %d within %v", from.n, to.n, limit)
	}
	return d
}

func (s *node) stats(other *node) PeerStats { return s.dev.Stats()[publicKey(other.n)] }

// wire returns what was sent since the last call.
func (w *bubble) wire() []wireMessage {
	synctest.Wait()
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	sent := w.hub.sent
	w.hub.sent = nil
	return sent
}

// wireMessage is a message between two gateways.
type wireMessage struct {
	At       time.Time
	From, To trust.GatewayID
	Type     uint32
	Size     int
}

func newWireMessage(from, to trust.GatewayID, b []byte) wireMessage {
	return wireMessage{time.Now(), from, to, binary.LittleEndian.Uint32(b), len(b)}
}

func (m wireMessage) String() string {
	return fmt.Sprintf("%d>%d type %d size %d", m.From[0], m.To[0], m.Type, m.Size)
}

func lines(messages []wireMessage) (out []string) {
	for _, m := range messages {
		out = append(out, m.String())
	}
	return out
}

func testFlow(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	for range 3 {
		w.mustReach(a, b, 0)
		w.mustReach(b, a, 0)
	}
	// 28 bytes of IP and ICMP with 4 bytes of payload, padded to 32.
	want := []string{
		"1>2 type 1 size 148", "2>1 type 2 size 92", "1>2 type 4 size 64",
		"2>1 type 4 size 64", "1>2 type 4 size 64", "2>1 type 4 size 64", "1>2 type 4 size 64", "2>1 type 4 size 64",
	}
	if diff := cmp.Diff(want, lines(w.wire())); diff != "" {
		w.t.Errorf("messages: -want +got:\n%s", diff)
	}
	for _, pair := range [][2]*node{{a, b}, {b, a}} {
		got := pair[0].stats(pair[1])
		if time.Since(got.LastHandshake) != 0 {
			w.t.Errorf("%d: handshake %v ago, want now", pair[0].n, time.Since(got.LastHandshake))
		}
		if other := pair[1].stats(pair[0]); got.Tx != other.Rx {
			w.t.Errorf("%d sent %d bytes, %d received %d", pair[0].n, got.Tx, pair[1].n, other.Rx)
		}
	}
}
