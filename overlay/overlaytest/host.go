package overlaytest

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"
)

// Host is one address of a Network.
type Host struct {
	network *Network
	addr    netip.Addr
	nat     *NAT // nil: has a public address

	// The rest is guarded by Network.mu.
	stats Stats
	next  uint16 // where the search for a free port begins
}

// firstPort is the first of the ports given to sockets that ask for any: the
// beginning of the dynamic range (RFC 6335, section 6).
const firstPort = 49152

// Host returns the host with an address, the same each time.
func (n *Network) Host(addr netip.Addr) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.hostLocked(addr, nil)
}

func (n *Network) hostLocked(addr netip.Addr, nat *NAT) *Host {
	h := n.hosts[addr]
	if h == nil {
		h = &Host{network: n, addr: addr, nat: nat, next: firstPort}
		n.hosts[addr] = h
	}
	return h
}

// Addr is the host's own address.
func (h *Host) Addr() netip.Addr { return h.addr }

// Addrs is for overlay.Config.LocalAddrs.
func (h *Host) Addrs() []netip.Addr { return []netip.Addr{h.addr} }

// Stats returns what the host sent so far.
func (h *Host) Stats() Stats {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	return h.stats
}

// Crash takes the host's sockets off the network: nothing reaches them and
// nothing that they send goes anywhere, and their ports are free again. Who
// holds them notices nothing until he closes them.
func (h *Host) Crash() {
	h.network.mu.Lock()
	defer h.network.mu.Unlock()
	for at, s := range h.network.sockets {
		if s.host == h {
			delete(h.network.sockets, at)
			s.dead = true
		}
	}
}

// ListenPacket is for overlay.Config.ListenPacket. Port zero means any; a port
// in use is syscall.EADDRINUSE.
func (h *Host) ListenPacket(_ context.Context, port uint16) (net.PacketConn, error) {
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	local := netip.AddrPortFrom(h.addr, port)
	for port == 0 {
		if local = netip.AddrPortFrom(h.addr, h.next); n.sockets[local] == nil {
			break
		}
		h.next = max(h.next+1, firstPort)
	}
	if n.sockets[local] != nil {
		return nil, fmt.Errorf("listen %v: %w", local, syscall.EADDRINUSE)
	}
	s := &socket{host: h, local: local, arrived: make(chan struct{}, 1), changed: make(chan struct{})}
	n.sockets[local] = s
	return s, nil
}

// queueLength is how many datagrams wait for a reader, about what the kernel's
// default receive buffer of 208 KiB holds at 1,200 bytes.
const queueLength = 160

// socket is a net.PacketConn.
type socket struct {
	host    *Host
	local   netip.AddrPort
	dead    bool          // its host crashed; guarded by Network.mu
	arrived chan struct{} // capacity 1: the queue is not empty

	mu       sync.Mutex // guards all below
	queue    []datagram
	closed   bool
	deadline time.Time
	changed  chan struct{} // closed when deadline or closed change
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
	if deadline.IsZero() {
		select {
		case <-s.arrived:
		case <-changed:
		}
		return
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-s.arrived:
	case <-changed:
	case <-t.C:
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
	n := s.host.network
	n.mu.Lock()
	dead := s.dead
	n.mu.Unlock()
	if dead {
		return len(p), nil
	}
	dst := to.AddrPort()
	n.send(s.host, s.local, netip.AddrPortFrom(dst.Addr().Unmap(), dst.Port()), p)
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
	n := s.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.sockets[s.local] == s {
		delete(n.sockets, s.local)
	}
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
