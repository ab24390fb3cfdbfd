package stream

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"
)

// memnet is a network in memory. Packets arrive after a delay, in order; a queue that is full loses them. It works in
// a synctest bubble.
type memnet struct {
	delay time.Duration

	mu    sync.Mutex
	conns map[netip.AddrPort]*memconn
	tap   func(from, to netip.AddrPort, b []byte) bool // sees all packets; false loses one
}

func newMemnet(delay time.Duration) *memnet {
	return &memnet{delay: delay, conns: make(map[netip.AddrPort]*memconn)}
}

type mempacket struct {
	b    []byte
	from netip.AddrPort
}

// memconn is a net.PacketConn on a memnet.
type memconn struct {
	net   *memnet
	addr  netip.AddrPort
	queue chan mempacket

	mu       sync.Mutex
	deadline time.Time
	changed  chan struct{} // closed when the deadline changes
}

func (n *memnet) listen(addr string) *memconn {
	c := &memconn{net: n, addr: netip.MustParseAddrPort(addr), queue: make(chan mempacket, 4096), changed: make(chan struct{})}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.conns[c.addr] = c
	return c
}

// setTap installs f, which sees every packet and says whether it may pass.
func (n *memnet) setTap(f func(from, to netip.AddrPort, b []byte) bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.tap = f
}

// silence loses everything that an address sends.
func (n *memnet) silence(addr netip.AddrPort) {
	n.setTap(func(from, _ netip.AddrPort, _ []byte) bool { return from != addr })
}

// send delivers a packet from any address, forged or not.
func (n *memnet) send(from, to netip.AddrPort, b []byte) {
	n.mu.Lock()
	dst, tap := n.conns[to], n.tap
	n.mu.Unlock()
	if tap != nil && !tap(from, to, b) || dst == nil {
		return
	}
	p := mempacket{append([]byte(nil), b...), from}
	deliver := func() {
		select {
		case dst.queue <- p:
		default:
		}
	}
	if n.delay == 0 {
		deliver()
		return
	}
	time.AfterFunc(n.delay, deliver)
}

func (c *memconn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		c.mu.Lock()
		deadline, changed := c.deadline, c.changed
		c.mu.Unlock()
		var expired <-chan time.Time
		if !deadline.IsZero() {
			wait := time.Until(deadline)
			if wait <= 0 {
				return 0, nil, os.ErrDeadlineExceeded
			}
			timer := time.NewTimer(wait)
			defer timer.Stop()
			expired = timer.C
		}
		select {
		case p := <-c.queue:
			return copy(b, p.b), net.UDPAddrFromAddrPort(p.from), nil
		case <-expired:
			return 0, nil, os.ErrDeadlineExceeded
		case <-changed:
		}
	}
}

func (c *memconn) WriteTo(b []byte, addr net.Addr) (int, error) {
	c.net.send(c.addr, addrPort(addr), b)
	return len(b), nil
}

func (c *memconn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	close(c.changed)
	c.changed = make(chan struct{})
	return nil
}

func (c *memconn) SetDeadline(t time.Time) error    { return c.SetReadDeadline(t) }
func (c *memconn) SetWriteDeadline(time.Time) error { return nil }
func (c *memconn) LocalAddr() net.Addr              { return net.UDPAddrFromAddrPort(c.addr) }
func (c *memconn) Close() error                     { return nil }
