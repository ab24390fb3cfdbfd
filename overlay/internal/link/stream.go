package link

import (
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

const (
	// streamQueue is how many QUIC packets wait for the reader: 640 kB.
	streamQueue = 512
	// maxSources is how many addresses we remember the local address for, that
	// they wrote to. Above it all are forgotten, which costs nothing on hosts
	// with one address.
	maxSources = 1024
)

// StreamConn is the connection for QUIC. Its packets travel in stream carriers,
// its addresses are *net.UDPAddr. It has a queue of bounded length: the newest
// packet is dropped if the reader is too slow. Closing it closes it for good and
// leaves the Port open.
//
// It deliberately has no SyscallConn, ReadMsgUDP or WriteMsgUDP: quic-go would
// use them to get at the socket. Setting buffer sizes does nothing and succeeds.
func (p *Port) StreamConn() net.PacketConn { return &p.stream }

// streamConn is one per Port.
type streamConn struct {
	port  *Port
	queue chan streamPacket

	closeOnce sync.Once
	closed    chan struct{}

	deadline deadline

	mu      sync.Mutex // guards sources
	sources map[netip.AddrPort]conn.Endpoint
}

// streamPacket is a QUIC packet in the queue; its memory is from packets.
type streamPacket struct {
	pk   *packet
	size int
	from netip.AddrPort
}

func (s *streamConn) init(p *Port) {
	s.port = p
	s.queue = make(chan streamPacket, streamQueue)
	s.closed = make(chan struct{})
	s.sources = make(map[netip.AddrPort]conn.Endpoint)
	s.deadline.init()
}

// push queues a packet that arrived. b is copied.
func (s *streamConn) push(b []byte, from conn.Endpoint) {
	c := &s.port.counters
	addr := endpointAddr(from)
	if len(b) == 0 || !addr.IsValid() {
		c.short.Add(1)
		return
	}
	select {
	case <-s.closed:
		c.noReader.Add(1)
		return
	default:
	}
	pk := packets.Get().(*packet)
	p := streamPacket{pk: pk, size: copy(pk.data[:], b), from: addr}
	s.remember(addr, from)
	select {
	case s.queue <- p:
		c.stream.Add(1)
	default:
		packets.Put(pk)
		c.queueFull.Add(1)
	}
}

// remember keeps the local address that from wrote to.
func (s *streamConn) remember(addr netip.AddrPort, from conn.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.sources) >= maxSources {
		clear(s.sources)
	}
	s.sources[addr] = from
}

func (s *streamConn) source(addr netip.AddrPort) (conn.Endpoint, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	e, ok := s.sources[addr]
	return e, ok
}

func (s *streamConn) forgetSources() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sources)
}

// ReadFrom takes the next packet from the queue. The error is net.ErrClosed
// after Close and os.ErrDeadlineExceeded after the read deadline.
func (s *streamConn) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-s.closed:
		return 0, nil, net.ErrClosed
	case <-s.port.done:
		return 0, nil, net.ErrClosed
	case <-s.deadline.passed():
		return 0, nil, os.ErrDeadlineExceeded
	default:
	}
	select {
	case p := <-s.queue:
		n := copy(b, p.pk.data[:p.size])
		packets.Put(p.pk)
		return n, net.UDPAddrFromAddrPort(p.from), nil
	case <-s.closed:
		return 0, nil, net.ErrClosed
	case <-s.port.done:
		return 0, nil, net.ErrClosed
	case <-s.deadline.passed():
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo sends one packet of at most MaxStream bytes, from the local address
// that the other side wrote to, if it did.
func (s *streamConn) WriteTo(b []byte, to net.Addr) (int, error) {
	p := s.port
	select {
	case <-s.closed:
		return 0, net.ErrClosed
	default:
	}
	if len(b) > MaxStream {
		p.counters.oversize.Add(1)
		return 0, ErrOversize
	}
	addr := netAddrPort(to)
	if !addr.IsValid() || addr.Port() == 0 {
		return 0, &net.AddrError{Err: "no address", Addr: to.String()}
	}
	pk := packets.Get().(*packet)
	defer packets.Put(pk)
	d := pk.data[:headerLen+len(b)]
	begin(d, typeStream)
	copy(d[headerLen:], b)
	p.tags.put(d)
	if e, ok := s.source(addr); ok {
		if err := p.write(pk, d, e, &p.counters.streamSent); err == nil {
			return len(b), nil
		}
		s.forget(addr) // the local address may be gone
	}
	if err := p.write(pk, d, p.sock.endpoint(addr), &p.counters.streamSent); err != nil {
		return 0, err
	}
	return len(b), nil
}

func (s *streamConn) forget(addr netip.AddrPort) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sources, addr)
}

// Close ends reading and writing.
func (s *streamConn) Close() error {
	s.closeOnce.Do(func() { close(s.closed) })
	return nil
}

// LocalAddr is the unspecified address with our port.
func (s *streamConn) LocalAddr() net.Addr {
	return &net.UDPAddr{IP: net.IPv6unspecified, Port: int(s.port.LocalPort())}
}

// SetDeadline is SetReadDeadline: writing never waits.
func (s *streamConn) SetDeadline(t time.Time) error { return s.SetReadDeadline(t) }

// SetReadDeadline ends a ReadFrom that waits at t. The zero time: never.
func (s *streamConn) SetReadDeadline(t time.Time) error {
	s.deadline.set(t)
	return nil
}

// SetWriteDeadline does nothing: writing never waits.
func (*streamConn) SetWriteDeadline(time.Time) error { return nil }

// SetReadBuffer does nothing: the socket has the size that WireGuard needs.
func (*streamConn) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing.
func (*streamConn) SetWriteBuffer(int) error { return nil }

// deadline is a moment that can be moved.
type deadline struct {
	mu    sync.Mutex // guards the fields below
	timer *time.Timer
	ended chan struct{} // closed when the moment has passed
}

func (d *deadline) init() { d.ended = make(chan struct{}) }

func (d *deadline) passed() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.ended
}

// set moves the deadline. The channel stays the same until its moment has
// passed, so that a reader that waits already follows.
func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.ended // the timer's function has begun: let it finish
	}
	d.timer = nil
	select {
	case <-d.ended:
		d.ended = make(chan struct{})
	default:
	}
	if t.IsZero() {
		return
	}
	ended := d.ended
	wait := time.Until(t)
	if wait <= 0 {
		close(ended)
		return
	}
	d.timer = time.AfterFunc(wait, func() { close(ended) })
}
