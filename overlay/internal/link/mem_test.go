package link

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// memNet is an underlay in memory.
type memNet struct {
	mu    sync.Mutex // guards the fields below
	conns map[netip.AddrPort]*memConn
	wire  []memPacket // everything that was sent
}

type memPacket struct {
	from, to netip.AddrPort
	b        []byte
}

// memConn is a net.PacketConn of a memNet.
type memConn struct {
	net      *memNet
	addr     netip.AddrPort
	queue    chan memPacket
	once     sync.Once
	closed   chan struct{}
	deadline deadline
}

func newMemNet() *memNet { return &memNet{conns: make(map[netip.AddrPort]*memConn)} }

// listen returns what Config.ListenPacket wants, for a host with one address.
func (n *memNet) listen(host string) func(context.Context, uint16) (net.PacketConn, error) {
	return func(_ context.Context, port uint16) (net.PacketConn, error) {
		addr := netip.AddrPortFrom(netip.MustParseAddr(host), port)
		n.mu.Lock()
		defer n.mu.Unlock()
		if n.conns[addr] != nil {
			return nil, errors.New("address in use")
		}
		c := &memConn{net: n, addr: addr, queue: make(chan memPacket, 1000), closed: make(chan struct{})}
		c.deadline.init()
		n.conns[addr] = c
		return c, nil
	}
}

// inject sends a datagram from any address.
func (n *memNet) inject(from, to netip.AddrPort, b []byte) {
	n.mu.Lock()
	defer n.mu.Unlock()
	p := memPacket{from, to, bytes.Clone(b)}
	n.wire = append(n.wire, p)
	c := n.conns[to]
	if c == nil {
		return
	}
	select {
	case c.queue <- p:
	default: // nobody reads: dropped, as networks do
	}
}

// lose drops what waits to be read at addr.
func (n *memNet) lose(addr netip.AddrPort) {
	n.mu.Lock()
	c := n.conns[addr]
	n.mu.Unlock()
	for len(c.queue) > 0 {
		<-c.queue
	}
}

// sentBy returns what addr has sent so far.
func (n *memNet) sentBy(addr netip.AddrPort) (out []memPacket) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, p := range n.wire {
		if p.from == addr {
			out = append(out, p)
		}
	}
	return out
}

func (c *memConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-c.deadline.passed():
		return 0, nil, os.ErrDeadlineExceeded
	default:
	}
	select {
	case p := <-c.queue:
		return copy(b, p.b), net.UDPAddrFromAddrPort(p.from), nil
	case <-c.closed:
		return 0, nil, net.ErrClosed
	case <-c.deadline.passed():
		return 0, nil, os.ErrDeadlineExceeded
	}
}

func (c *memConn) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case <-c.closed:
		return 0, net.ErrClosed
	default:
	}
	c.net.inject(c.addr, netAddrPort(to), b)
	return len(b), nil
}

func (c *memConn) Close() error {
	c.once.Do(func() {
		close(c.closed)
		c.net.mu.Lock()
		defer c.net.mu.Unlock()
		delete(c.net.conns, c.addr)
	})
	return nil
}

func (c *memConn) LocalAddr() net.Addr               { return net.UDPAddrFromAddrPort(c.addr) }
func (c *memConn) SetDeadline(t time.Time) error     { return c.SetReadDeadline(t) }
func (c *memConn) SetReadDeadline(t time.Time) error { c.deadline.set(t); return nil }
func (*memConn) SetWriteDeadline(time.Time) error    { return nil }

// gateway is a Port with its keys, and a Handler that keeps what it gets.
type gateway struct {
	*Port
	own  OwnKeys
	addr netip.AddrPort

	mu      sync.Mutex // guards the fields below
	replies []gotReply
	gossip  []gotGossip
	heard   []trust.GatewayID
	refuse  bool // replies do not count
}

type gotReply struct {
	From  netip.AddrPort
	Peer  trust.GatewayID
	Probe Probe
}

type gotGossip struct {
	Peer trust.GatewayID
	Boot trust.BootID
	B    string
}

func (g *gateway) Probe(from netip.AddrPort, peer trust.GatewayID, p Probe) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.replies = append(g.replies, gotReply{from, peer, p})
	return !g.refuse
}

func (g *gateway) Heard(peer trust.GatewayID) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.heard = append(g.heard, peer)
}

func (g *gateway) gotProbes() []trust.GatewayID {
	g.mu.Lock()
	defer g.mu.Unlock()
	return slices.Clone(g.heard)
}

func (g *gateway) Gossip(peer trust.GatewayID, boot trust.BootID, b []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.gossip = append(g.gossip, gotGossip{peer, boot, string(b)})
	clear(b) // ours during the call
}

func (g *gateway) gotReplies() []gotReply {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]gotReply(nil), g.replies...)
}

func (g *gateway) gotGossip() []gotGossip {
	g.mu.Lock()
	defer g.mu.Unlock()
	return append([]gotGossip(nil), g.gossip...)
}

var testMesh = trust.MeshID{1, 2, 3}

func newKey(t testing.TB) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func newOwnKeys(t testing.TB, number byte) OwnKeys {
	t.Helper()
	return OwnKeys{
		ID: trust.GatewayID{number}, Identity: trust.IdentityKey{number, 1}, Boot: trust.BootID{number, 2},
		Link: newKey(t), WireGuard: newKey(t),
	}
}

func public(k *ecdh.PrivateKey) trust.ExchangeKey {
	if k == nil {
		return trust.ExchangeKey{}
	}
	return trust.ExchangeKey(k.PublicKey().Bytes())
}

// record is what others know of own.
func record(own OwnKeys) PeerKeys {
	return PeerKeys{
		ID: own.ID, Identity: own.Identity, Link: public(own.Link), WireGuard: public(own.WireGuard),
		PreviousLink: public(own.PreviousLink), PreviousWireGuard: public(own.PreviousWireGuard),
	}
}

// newGateway opens a Port on n, or on loopback if n is nil. Nothing reads from
// it yet.
func newGateway(t testing.TB, n *memNet, number byte) *gateway {
	t.Helper()
	return newGatewayWith(t, n, number, newOwnKeys(t, number))
}

func newGatewayWith(t testing.TB, n *memNet, number byte, own OwnKeys) *gateway {
	t.Helper()
	g := &gateway{own: own}
	cfg := Config{Mesh: testMesh, Own: g.own}
	host := netip.MustParseAddr("127.0.0.1")
	if n != nil {
		host = netip.AddrFrom4([4]byte{192, 0, 2, number})
		cfg.ListenPacket = n.listen(host.String())
		cfg.Port = 51820
	}
	p, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	g.Port, g.addr = p, netip.AddrPortFrom(host, p.LocalPort())
	p.Handle(g)
	return g
}

// run runs the Port until the test ends and fails the test if it does not end
// well.
func (g *gateway) run(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- g.Run(ctx) }() // ends with the test
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
	})
}

// introduce makes gateways peers of each other, with gossip.
func introduce(t testing.TB, gs ...*gateway) {
	t.Helper()
	for _, a := range gs {
		for _, b := range gs {
			if a == b {
				continue
			}
			if err := a.SetPeer(record(b.own)); err != nil {
				t.Fatal(err)
			}
			if err := a.SetBoot(b.own.ID, b.own.Boot); err != nil {
				t.Fatal(err)
			}
			a.SetPath(b.own.ID, b.addr)
		}
	}
}
