package wgdev

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// rules are what the model and wireguard-go both keep, in virtual time.
var rules = []struct {
	name string
	test func(*bubble)
}{
	{"packets flow both ways over one handshake", testFlow},
	{"packets wait for the handshake", testStaging},
	{"only allowed addresses pass", testAllowed},
	{"the longest prefix wins", testLongestPrefix},
	{"a lost initiation is sent again soon, then every 5 s", testLostInitiation},
	{"a lost response is asked for soon", testLostResponse},
	{"a lost renewal disturbs nothing", testLostRekey},
	{"attempts end after 90 s", testGivingUp},
	{"the responder waits until its session is used", testConfirmation},
	{"the initiator renews after 120 s of sending", testRekeySending},
	{"the initiator renews after 120 s of listening", testRekeyListening},
	{"the initiator renews when it hears something after 165 s", testRekeyLate},
	{"sessions end after 180 s", testReject},
	{"a silent receiver answers after 10 s", testKeepalive},
	{"a restarted peer leaves a hole of 15 to 21 s", testHole},
	{"a restart that is told leaves none", testRestart},
	{"a peer that restarts with sessions begun is reached", testRestartedBegins},
	{"sessions begun on both sides at once are settled", testCollision},
	{"a session that was asked for is not thrown away", testAnswered},
	{"a session is initiated once", testInitiate},
	{"everything counts once", testReplay},
	{"the endpoint does not move", testRoaming},
	{"a removed peer is forgotten", testRemoval},
	{"what strangers send is dropped in silence", testStrangers},
	{"what was changed under way is dropped in silence", testTampering},
	{"closing ends everything", testClose},
}

var kinds = map[string]func(Config) (Device, error){"wireguard-go": Open, "model": openModel}

func TestSessionRules(t *testing.T) {
	for kind, open := range kinds {
		for _, rule := range rules {
			t.Run(kind+"/"+rule.name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) { rule.test(newBubble(t, open)) })
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

func newBubble(t *testing.T, open func(Config) (Device, error)) *bubble {
	h := newHub()
	h.record = true
	return &bubble{t: t, hub: h, open: open}
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
	data     []byte
}

func newWireMessage(from, to trust.GatewayID, b []byte) wireMessage {
	return wireMessage{time.Now(), from, to, binary.LittleEndian.Uint32(b), len(b), slices.Clone(b)}
}

func (m wireMessage) String() string {
	return fmt.Sprintf("%d>%d type %d size %d", m.From[0], m.To[0], m.Type, m.Size)
}

// deliver gives a node a message as if it came from another.
func (w *bubble) deliver(from trust.GatewayID, to *node, b []byte) {
	to.bind.inbox <- hubPacket{from, slices.Clone(b)}
	synctest.Wait()
}

// lose says what gets lost from now on, nil for nothing.
func (w *bubble) lose(f func(wireMessage) bool) {
	w.hub.mu.Lock()
	defer w.hub.mu.Unlock()
	w.hub.lose = f
}

// expect compares what was sent since the last look.
func (w *bubble) expect(want ...string) {
	w.t.Helper()
	if diff := cmp.Diff(want, lines(w.wire()), cmpopts.EquateEmpty()); diff != "" {
		w.t.Errorf("messages: -want +got:\n%s", diff)
	}
}

// mustTake fails the test unless d is between least and most.
func (w *bubble) mustTake(what string, d, least, most time.Duration) {
	w.t.Helper()
	if d < least || d > most {
		w.t.Errorf("%s took %v, want %v to %v", what, d, least, most)
	}
}

// pair returns two nodes that know each other, with a session that 1 began.
func (w *bubble) pair() (a, b *node) {
	w.t.Helper()
	a, b = w.node(1), w.node(2)
	w.know(a, b)
	w.mustReach(a, b, 0)
	w.wire()
	return a, b
}

func lines(messages []wireMessage) (out []string) {
	for _, m := range messages {
		out = append(out, m.String())
	}
	return out
}
