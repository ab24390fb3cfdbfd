package gossip

import (
	"context"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// network carries packets and streams between members in memory, all of whom
// know each other's records. It works in a synctest bubble.
type network struct {
	tb    testing.TB
	delay time.Duration // one way

	mu     sync.Mutex
	random *rand.Rand
	loss   float64
	nodes  map[trust.GatewayID]*node
	cut    func(from, to trust.GatewayID) bool
}

// node is a member on a network with what it heard.
type node struct {
	*Gossip
	id   trust.GatewayID
	net  *network
	stop context.CancelFunc
	end  chan error

	mu    sync.Mutex
	users map[string]int // messages by content; a new one is passed on
	alive map[trust.GatewayID]bool
	metas map[trust.GatewayID]string
	sent  int // bytes

	received int // packets

	packet func(from trust.GatewayID, b []byte)      // takes what arrives: Gossip, if this is an honest node
	stream func(from trust.GatewayID, conn net.Conn) // likewise
}

func newNetwork(tb testing.TB, delay time.Duration) *network {
	return &network{
		tb: tb, delay: delay, random: rand.New(rand.NewPCG(1, 2)),
		nodes: make(map[trust.GatewayID]*node),
	}
}

func testID(i int) trust.GatewayID {
	var id trust.GatewayID
	binary.BigEndian.PutUint64(id[:], uint64(i)+1)
	id[15] = byte(i)
	return id
}

// testAddr is the overlay address of a gateway: a function of its ID, as in the protocol.
func testAddr(id trust.GatewayID) netip.Addr {
	a := [16]byte{0: 0xfd, 1: 0x11}
	copy(a[8:], id[:8])
	return netip.AddrFrom16(a)
}

func (n *network) addr(id trust.GatewayID) (netip.Addr, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.nodes[id] == nil {
		return netip.Addr{}, false
	}
	return testAddr(id), true
}

// member adds a node; it runs until the test ends.
func (n *network) member(i int, change func(*Config)) *node {
	n.tb.Helper()
	d := &node{
		id: testID(i), net: n, end: make(chan error, 1),
		users: make(map[string]int), alive: make(map[trust.GatewayID]bool), metas: make(map[trust.GatewayID]string),
		packet: ignore, stream: hangUp, // until it runs
	}
	n.mu.Lock()
	n.nodes[d.id] = d
	n.mu.Unlock()
	cfg := Config{
		Self: d.id, Addr: n.addr, Send: d.send, Open: d.open,
		OnUser: d.onUser, OnHint: d.onHint, OnMeta: d.onMeta,
	}
	if change != nil {
		change(&cfg)
	}
	g, err := New(cfg)
	if err != nil {
		n.tb.Fatal(err)
	}
	d.Gossip = g
	d.mu.Lock()
	d.packet = g.Packet
	d.stream = func(from trust.GatewayID, c net.Conn) { g.Stream(context.Background(), from, c) }
	d.mu.Unlock()
	ctx, cancel := context.WithCancel(context.Background())
	d.stop = cancel
	go func() { d.end <- g.Run(ctx) }()
	n.tb.Cleanup(d.halt)
	return d
}

// hostile adds a node whose record everybody has and that does what the test says.
func (n *network) hostile(i int) *node {
	d := &node{id: testID(i), net: n, packet: ignore, stream: hangUp}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nodes[d.id] = d
	return d
}

func ignore(trust.GatewayID, []byte)       {}
func hangUp(_ trust.GatewayID, c net.Conn) { _ = c.Close() }

// halt stops a node, once or more.
func (d *node) halt() {
	d.net.tb.Helper()
	d.stop()
	if err := <-d.end; err != nil {
		d.net.tb.Errorf("Run: got %v, want nil", err)
	}
	d.end <- nil
}

// crash takes a node off the network and stops it without a word.
func (d *node) crash() {
	d.net.setCut(func(from, to trust.GatewayID) bool { return from == d.id || to == d.id })
	d.halt()
}

func (n *network) setCut(f func(from, to trust.GatewayID) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut = f
}

// setLoss changes which part of packets and streams gets lost.
func (n *network) setLoss(part float64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.loss = part
}

// passes decides about one packet or stream.
func (n *network) passes(from, to trust.GatewayID) (*node, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	dst := n.nodes[to]
	if dst == nil || n.cut != nil && n.cut(from, to) {
		return nil, false
	}
	return dst, n.loss == 0 || n.random.Float64() >= n.loss
}

func (d *node) send(to trust.GatewayID, b []byte) error {
	if len(b) > MaxPacket {
		d.net.tb.Errorf("packet of %d bytes", len(b))
	}
	dst, ok := d.net.passes(d.id, to)
	c := append([]byte(nil), b...)
	d.mu.Lock()
	d.sent += len(b)
	d.mu.Unlock()
	if !ok {
		return nil
	}
	time.AfterFunc(d.net.delay, func() {
		dst.mu.Lock()
		dst.received++
		receive := dst.packet
		dst.mu.Unlock()
		receive(d.id, c)
	})
	return nil
}

var errUnreachable = errors.New("unreachable")

func (d *node) open(ctx context.Context, to trust.GatewayID) (net.Conn, error) {
	dst, ok := d.net.passes(d.id, to)
	if !ok {
		return nil, errUnreachable
	}
	select { // a connection exists already: half a round trip until the peer sees the stream
	case <-time.After(d.net.delay):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	ours, theirs := net.Pipe()
	dst.mu.Lock()
	serve := dst.stream
	dst.mu.Unlock()
	go serve(d.id, theirs)
	return ours, nil
}

func (d *node) onUser(_ trust.GatewayID, b []byte) {
	d.mu.Lock()
	d.users[string(b)]++
	fresh := d.users[string(b)] == 1
	d.mu.Unlock()
	if fresh {
		_ = d.Broadcast(b, string(b)) // it fits: it came in a packet
	}
}

func (d *node) onHint(peer trust.GatewayID, alive bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.alive[peer] = alive
}

func (d *node) onMeta(peer trust.GatewayID, meta []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.metas[peer] = string(meta)
}

// heard returns a note that a callback took.
func heard[T any](d *node, f func() T) T {
	d.mu.Lock()
	defer d.mu.Unlock()
	return f()
}

// until waits for a condition in steps of virtual time and returns how long it took.
func until(tb testing.TB, limit time.Duration, what string, cond func() bool) time.Duration {
	tb.Helper()
	const step = 100 * time.Millisecond
	for took := time.Duration(0); took <= limit; took += step {
		if cond() {
			return took
		}
		time.Sleep(step)
	}
	tb.Fatalf("%s: not after %v", what, limit)
	return 0
}

// complete reports whether all nodes see all others.
func complete(nodes []*node) bool {
	for _, d := range nodes {
		if len(d.Members()) != len(nodes)-1 {
			return false
		}
	}
	return true
}
