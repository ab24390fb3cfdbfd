// Package overlaytest lets many meshes run in one process over an in-memory
// packet network: without sockets, and in virtual time inside a
// testing/synctest bubble.
//
// A mesh takes part by its configuration:
//
//	network := overlaytest.NewNetwork(overlaytest.Options{Delay: 20 * time.Millisecond})
//	host := network.Host(netip.MustParseAddr("10.0.0.1"))
//	mesh, err := overlay.Open(ctx, overlay.Config{
//		Store:        store,
//		Device:       overlay.DeviceNone,
//		ListenPacket: host.ListenPacket,
//		LocalAddrs:   host.Addrs,
//	})
package overlaytest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Options describe every link of a Network. The zero value is a network
// without delay and loss.
type Options struct {
	// Delay is the time from one host to another, one way.
	Delay time.Duration
	// Jitter is added to Delay, uniformly from zero to this.
	Jitter time.Duration
	// Loss is the share of packets that get lost, 0 to 1.
	Loss float64
	// Seed makes the random choices of the network repeatable.
	Seed uint64
}

// Network carries datagrams between hosts. It is safe for concurrent use.
type Network struct {
	options Options

	mu      sync.Mutex // guards all below
	random  *rand.Rand
	sockets map[netip.AddrPort]*socket
	cut     map[[2]netip.Addr]bool
	next    uint16
	stats   Stats
}

// Stats are totals of a Network.
type Stats struct {
	Packets uint64 // that were sent
	Bytes   uint64 // of their payloads
	Lost    uint64 // by chance, by a cut, or because nobody listened
}

// firstPort is the first of the ports given to sockets that ask for any: the
// beginning of the dynamic range (RFC 6335, section 6).
const firstPort = 49152

// NewNetwork returns a network without hosts.
func NewNetwork(o Options) *Network {
	return &Network{
		options: o,
		random:  rand.New(rand.NewPCG(o.Seed, 0)), //nolint:gosec // repeatable on purpose
		sockets: make(map[netip.AddrPort]*socket),
		cut:     make(map[[2]netip.Addr]bool),
		next:    firstPort,
	}
}

// Stats returns the totals so far.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// Cut stops packets from one host to another, in this direction, until Mend.
func (n *Network) Cut(from, to netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[[2]netip.Addr{from, to}] = true
}

// Mend undoes Cut.
func (n *Network) Mend(from, to netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, [2]netip.Addr{from, to})
}

// Host is one address of a Network.
type Host struct {
	network *Network
	addr    netip.Addr
}

// Host returns the host with an address.
func (n *Network) Host(addr netip.Addr) *Host { return &Host{network: n, addr: addr} }

// Addrs is for overlay.Config.LocalAddrs.
func (h *Host) Addrs() []netip.Addr { return []netip.Addr{h.addr} }

// ListenPacket is for overlay.Config.ListenPacket. Port zero means any; a port
// in use is syscall.EADDRINUSE.
func (h *Host) ListenPacket(_ context.Context, port uint16) (net.PacketConn, error) {
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	local := netip.AddrPortFrom(h.addr, port)
	for port == 0 {
		if local = netip.AddrPortFrom(h.addr, n.next); n.sockets[local] == nil {
			break
		}
		n.next = max(n.next+1, firstPort)
	}
	if n.sockets[local] != nil {
		return nil, fmt.Errorf("listen %v: %w", local, syscall.EADDRINUSE)
	}
	s := &socket{network: n, local: local, arrived: make(chan struct{}, 1), changed: make(chan struct{})}
	n.sockets[local] = s
	return s, nil
}

// queueLength is how many datagrams wait for a reader, about what the kernel's
// default receive buffer of 208 KiB holds at 1,200 bytes.
const queueLength = 160

// datagram is a packet on its way.
type datagram struct {
	from netip.AddrPort
	b    []byte
}

// socket is a net.PacketConn.
type socket struct {
	network *Network
	local   netip.AddrPort
	arrived chan struct{} // capacity 1: the queue is not empty

	mu       sync.Mutex // guards all below
	queue    []datagram
	closed   bool
	deadline time.Time
	changed  chan struct{} // closed when deadline or closed change
}

// send takes a datagram on its way.
func (n *Network) send(from, to netip.AddrPort, b []byte) {
	n.mu.Lock()
	n.stats.Packets++
	n.stats.Bytes += uint64(len(b))
	lost := n.cut[[2]netip.Addr{from.Addr(), to.Addr()}] || n.options.Loss > 0 && n.random.Float64() < n.options.Loss
	delay := n.options.Delay
	if n.options.Jitter > 0 {
		delay += time.Duration(n.random.Int64N(int64(n.options.Jitter)))
	}
	if lost {
		n.stats.Lost++
	}
	n.mu.Unlock()
	if lost {
		return
	}
	d := datagram{from: from, b: append([]byte(nil), b...)}
	if delay == 0 {
		n.deliver(to, d)
		return
	}
	time.AfterFunc(delay, func() { n.deliver(to, d) })
}

func (n *Network) deliver(to netip.AddrPort, d datagram) {
	n.mu.Lock()
	s := n.sockets[to]
	n.mu.Unlock()
	if s == nil || !s.take(d) {
		n.mu.Lock()
		n.stats.Lost++
		n.mu.Unlock()
	}
}

func (s *socket) take(d datagram) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || len(s.queue) >= queueLength {
		return false
	}
	s.queue = append(s.queue, d)
	select {
	case s.arrived <- struct{}{}:
	default:
	}
	return true
}

// ReadFrom implements net.PacketConn.
func (s *socket) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		s.mu.Lock()
		deadline, changed := s.deadline, s.changed
		switch {
		case s.closed:
			s.mu.Unlock()
			return 0, nil, net.ErrClosed
		case !deadline.IsZero() && !time.Now().Before(deadline):
			s.mu.Unlock()
			return 0, nil, os.ErrDeadlineExceeded
		case len(s.queue) > 0:
			d := s.queue[0]
			s.queue = s.queue[1:]
			s.mu.Unlock()
			return copy(p, d.b), net.UDPAddrFromAddrPort(d.from), nil
		}
		s.mu.Unlock()
		s.wait(deadline, changed)
	}
}

// wait blocks until it may be worth to look again.
func (s *socket) wait(deadline time.Time, changed <-chan struct{}) {
	var over <-chan time.Time
	if !deadline.IsZero() {
		t := time.NewTimer(time.Until(deadline))
		defer t.Stop()
		over = t.C
	}
	select {
	case <-s.arrived:
	case <-changed:
	case <-over:
	}
}

// WriteTo implements net.PacketConn.
func (s *socket) WriteTo(p []byte, addr net.Addr) (int, error) {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	to, ok := addr.(*net.UDPAddr)
	if !ok {
		return 0, &net.AddrError{Err: "want a UDP address", Addr: addr.String()}
	}
	dst := to.AddrPort()
	s.network.send(s.local, netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()), p)
	return len(p), nil
}

// Close implements net.PacketConn.
func (s *socket) Close() error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	s.closed = true
	close(s.changed)
	s.mu.Unlock()
	s.network.mu.Lock()
	defer s.network.mu.Unlock()
	delete(s.network.sockets, s.local)
	return nil
}

// LocalAddr implements net.PacketConn.
func (s *socket) LocalAddr() net.Addr { return net.UDPAddrFromAddrPort(s.local) }

// SetDeadline implements net.PacketConn; writes never block.
func (s *socket) SetDeadline(t time.Time) error { return s.SetReadDeadline(t) }

// SetWriteDeadline implements net.PacketConn; writes never block.
func (s *socket) SetWriteDeadline(time.Time) error { return nil }

// SetReadDeadline implements net.PacketConn.
func (s *socket) SetReadDeadline(t time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	s.deadline = t
	close(s.changed)
	s.changed = make(chan struct{})
	return nil
}
