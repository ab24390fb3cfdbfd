package wgdev_test

import (
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/link"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wgdev"
)

// underlay is a network with delay, loss, duplicates and reordering.
type underlay struct {
	mu     sync.Mutex // guards all below
	random *rand.Rand
	conns  map[netip.AddrPort]*packetConn
	loss   float64
}

func newUnderlay(loss float64) *underlay {
	return &underlay{random: rand.New(rand.NewPCG(1, 1)), conns: make(map[netip.AddrPort]*packetConn), loss: loss}
}

type datagram struct {
	from netip.AddrPort
	b    []byte
}

// send brings a datagram there in 40 to 50 ms, or not, or twice.
func (u *underlay) send(from, to netip.AddrPort, b []byte) {
	u.mu.Lock()
	defer u.mu.Unlock()
	c := u.conns[to]
	if c == nil || u.random.Float64() < u.loss {
		return
	}
	d := datagram{from, slices.Clone(b)}
	for range 1 + u.random.IntN(20)/19 {
		time.AfterFunc(40*time.Millisecond+time.Duration(u.random.IntN(10_000))*time.Microsecond, func() {
			select {
			case c.queue <- d:
			default:
			}
		})
	}
}

// packetConn is a net.PacketConn whose reads end when a deadline is set that is
// long past, which is all that package link does.
type packetConn struct {
	net.PacketConn
	underlay *underlay
	local    netip.AddrPort
	queue    chan datagram

	mu    sync.Mutex    // guards ended
	ended chan struct{} // closed while there is a deadline
}

func (u *underlay) listen(addr netip.Addr) func(context.Context, uint16) (net.PacketConn, error) {
	return func(_ context.Context, port uint16) (net.PacketConn, error) {
		c := &packetConn{underlay: u, local: netip.AddrPortFrom(addr, port), queue: make(chan datagram, 1000), ended: make(chan struct{})}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.conns[c.local] = c
		return c, nil
	}
}

func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	c.mu.Lock()
	ended := c.ended
	c.mu.Unlock()
	select {
	case <-ended:
		return 0, nil, os.ErrDeadlineExceeded
	case d := <-c.queue:
		return copy(b, d.b), net.UDPAddrFromAddrPort(d.from), nil
	}
}

func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	c.underlay.send(c.local, to.(*net.UDPAddr).AddrPort(), b)
	return len(b), nil
}

func (c *packetConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.ended:
		if t.IsZero() {
			c.ended = make(chan struct{})
		}
	default:
		if !t.IsZero() {
			close(c.ended)
		}
	}
	return nil
}

func (c *packetConn) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(c.local) }
func (c *packetConn) Close() error        { return c.SetReadDeadline(time.Unix(1, 0)) }

// end is a device on the port of a gateway in a simulated network.
type end struct {
	id   trust.GatewayID
	key  *ecdh.PrivateKey
	addr netip.Addr // under and over
	port *link.Port
	dev  wgdev.Device
	tap  *wgdev.Tap
	got  atomic.Int64
}

func newEnd(t *testing.T, u *underlay, number byte, open func(wgdev.Config) (wgdev.Device, error)) *end {
	t.Helper()
	key, err := ecdh.X25519().NewPrivateKey([]byte{1: number, 31: 64})
	if err != nil {
		t.Fatal(err)
	}
	e := &end{id: trust.GatewayID{number}, key: key, addr: netip.AddrFrom4([4]byte{10, 0, 0, number})}
	e.port, err = link.Open(t.Context(), link.Config{
		Own:          link.OwnKeys{ID: e.id, Link: key, WireGuard: key},
		Port:         51820,
		ListenPacket: u.listen(e.addr),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- e.port.Run(ctx) }()
	e.tap = wgdev.NewTap(0, func([]byte) { e.got.Add(1) })
	e.dev, err = open(wgdev.Config{
		Kind: wgdev.Given, Device: e.tap, Bind: e.port.Bind(), PrivateKey: key, EndpointText: e.port.EndpointText, Bubble: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.dev.Close(); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-ended; err != nil && !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if err := e.port.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func (e *end) know(t *testing.T, other *end) {
	t.Helper()
	key := trust.ExchangeKey(other.key.PublicKey().Bytes())
	err := e.dev.Apply(t.Context(), engine.Changes{
		{Op: engine.AddPeer, Peer: other.id, Key: key},
		{Op: engine.AddPrefix, Peer: other.id, Key: key, Prefix: netip.PrefixFrom(other.addr, 32)},
	})
	if err != nil {
		t.Fatal(err)
	}
	e.port.SetPath(other.id, netip.AddrPortFrom(other.addr, 51820))
}

var kinds = map[string]func(wgdev.Config) (wgdev.Device, error){
	"wireguard-go": wgdev.Open,
	"model":        func(c wgdev.Config) (wgdev.Device, error) { return wgdev.OpenModel(c, wgdev.ModelOptions{}) },
}

// Both kinds run on the port of a gateway over a network with faults, in a
// testing/synctest bubble.
func TestDevicesRunOverAPortInABubble(t *testing.T) {
	for kind, open := range kinds {
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				u := newUnderlay(0.02)
				a, b := newEnd(t, u, 1, open), newEnd(t, u, 2, open)
				a.know(t, b)
				b.know(t, a)
				const packets = 3000
				for range packets { // 5 minutes: two handshakes more than the first
					a.tap.Inject(tuntest.Ping(b.addr, a.addr))
					b.tap.Inject(tuntest.Ping(a.addr, b.addr))
					time.Sleep(100 * time.Millisecond)
				}
				time.Sleep(time.Second)
				for _, e := range []*end{a, b} {
					if got := e.got.Load(); got < packets*95/100 || got > packets*995/1000 {
						t.Errorf("%d of %d packets arrived, want those but about 2 %%", got, packets)
					}
				}
			})
		})
	}
}

// Both sides begin to send within the 40 ms that a packet takes, and go on. Left
// to WireGuard itself, half of these pairs had no session for more than 40 s, and
// some for more than 3 minutes.
func TestTrafficOfBothSidesAtOnceIsSettledSoon(t *testing.T) {
	for kind, open := range kinds {
		for apart := time.Duration(0); apart < 40*time.Millisecond; apart += 5 * time.Millisecond {
			t.Run(fmt.Sprintf("%s/%v apart", kind, apart), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					u := newUnderlay(0)
					a, b := newEnd(t, u, 1, open), newEnd(t, u, 2, open)
					a.know(t, b)
					b.know(t, a)
					began := time.Now()
					for (a.got.Load() == 0 || b.got.Load() == 0) && time.Since(began) < 10*time.Minute {
						a.tap.Inject(tuntest.Ping(b.addr, a.addr))
						time.Sleep(apart)
						b.tap.Inject(tuntest.Ping(a.addr, b.addr))
						time.Sleep(50*time.Millisecond - apart)
					}
					if took := time.Since(began); took > 2*time.Second {
						t.Errorf("no packets both ways for %v, want them after one retry", took)
					}
				})
			})
		}
	}
}
