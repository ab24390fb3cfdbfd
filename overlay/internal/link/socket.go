package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// socket is what a Port reads from and writes to.
type socket interface {
	// receiver returns the receive function of a lane and the generation it
	// belongs to. renew ends the functions of all earlier generations: they
	// return net.ErrClosed, also those that are blocked.
	receiver(lane int) (conn.ReceiveFunc, uint64, error)
	lanes() int
	renew() error
	endpoint(to netip.AddrPort) conn.Endpoint
	send(bufs [][]byte, to conn.Endpoint) error
	setMark(mark uint32) error
	batchSize() int
	port() uint16
	close() error
}

// How long a port that we give up for a moment may be in use by somebody else
// before we count it as lost.
const (
	reopenTries = 40
	reopenPause = 50 * time.Millisecond
)

// errNoIPv4 says that the library's bind opened a port other than the one
// asked for, because the kernel has no IPv4.
var errNoIPv4 = errors.New("no ipv4")

// stdSocket is real UDP: the library's bind, with batches and offloads. It has
// one lane per address family.
type stdSocket struct {
	bind conn.Bind
	num  uint16

	mu         sync.Mutex // guards the fields below
	fns        []conn.ReceiveFunc
	generation uint64
	mark       uint32
	err        error // why there are no receive functions
	closed     bool
	renewing   chan struct{} // closed at the end of the renewal under way; nil: none
}

// openReal opens UDP on port for every address family that the kernel has. The
// error is syscall.EADDRINUSE if the port is taken.
func openReal(port uint16, newBind func() conn.Bind) (socket, error) {
	s := &stdSocket{bind: newBind()}
	fns, num, err := openExact(s.bind, port)
	if errors.Is(err, errNoIPv4) {
		pc, err := net.ListenUDP("udp6", &net.UDPAddr{Port: int(port)})
		if err != nil {
			return nil, err
		}
		return newPacketSocket(pc)
	}
	if err != nil {
		return nil, err
	}
	s.fns, s.num, s.generation = fns, num, 1
	return s, nil
}

// openExact opens bind on exactly the port asked for, or on any if it is 0, and
// knows what the library reports for kernels with one address family only: port
// 0 without IPv6, a random port whatever was asked without IPv4.
func openExact(bind conn.Bind, port uint16) ([]conn.ReceiveFunc, uint16, error) {
	for range 10 {
		fns, actual, err := bind.Open(port)
		if err != nil {
			return nil, 0, err
		}
		switch {
		case actual == 0 && port != 0: // no IPv6
			return fns, port, nil
		case actual == 0: // no IPv6, and we were not told which port: choose it ourselves
			if err := bind.Close(); err != nil {
				return nil, 0, err
			}
			if port, err = freePort(); err != nil {
				return nil, 0, err
			}
			fns, _, err = bind.Open(port)
			if errors.Is(err, syscall.EADDRINUSE) {
				port = 0
				continue
			}
			return fns, port, err
		case port != 0 && actual != port, len(fns) == 1:
			return nil, 0, errors.Join(errNoIPv4, bind.Close())
		default:
			return fns, actual, nil
		}
	}
	return nil, 0, syscall.EADDRINUSE
}

// freePort asks the kernel for a UDP port over IPv4 that nobody uses now.
func freePort() (uint16, error) {
	c, err := net.ListenUDP("udp4", &net.UDPAddr{})
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return netAddrPort(c.LocalAddr()).Port(), nil
}

func (s *stdSocket) receiver(lane int) (conn.ReceiveFunc, uint64, error) {
	s.lockIdle()
	defer s.mu.Unlock()
	switch {
	case s.closed:
		return nil, 0, net.ErrClosed
	case s.err != nil:
		return nil, 0, s.err
	case lane >= len(s.fns):
		return nil, 0, fmt.Errorf("udp port %d: address family went away", s.num)
	}
	return s.fns[lane], s.generation, nil
}

// lockIdle locks s.mu while no renewal is under way.
func (s *stdSocket) lockIdle() {
	for {
		s.mu.Lock()
		busy := s.renewing
		if busy == nil {
			return
		}
		s.mu.Unlock()
		<-busy
	}
}

func (s *stdSocket) lanes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.fns)
}

// renew closes and opens the library's bind on the same port. Somebody may take
// the port in between (it can be among those that the kernel hands out), so we
// try for two seconds.
func (s *stdSocket) renew() error {
	s.lockIdle()
	if s.closed {
		s.mu.Unlock()
		return net.ErrClosed
	}
	busy := make(chan struct{})
	s.renewing = busy
	s.mu.Unlock()

	closeErr := s.bind.Close()
	fns, err := s.reopen()

	s.mu.Lock()
	defer s.mu.Unlock()
	s.fns = fns
	s.generation++
	if s.err = err; err != nil {
		s.err = fmt.Errorf("reopen udp port %d: %w", s.num, err)
	} else if s.mark != 0 {
		s.err = s.bind.SetMark(s.mark)
	}
	s.renewing = nil
	close(busy)
	return errors.Join(closeErr, s.err)
}

func (s *stdSocket) reopen() (fns []conn.ReceiveFunc, err error) {
	for try := range reopenTries {
		if try > 0 {
			<-time.After(reopenPause)
		}
		fns, _, err = openExact(s.bind, s.num)
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return fns, err
}

func (*stdSocket) endpoint(to netip.AddrPort) conn.Endpoint {
	return &conn.StdNetEndpoint{AddrPort: to}
}

func (s *stdSocket) send(bufs [][]byte, to conn.Endpoint) error { return s.bind.Send(bufs, to) }

func (s *stdSocket) setMark(mark uint32) error {
	s.lockIdle()
	defer s.mu.Unlock()
	s.mark = mark
	return s.bind.SetMark(mark)
}

func (s *stdSocket) batchSize() int { return s.bind.BatchSize() }

func (s *stdSocket) port() uint16 { return s.num }

func (s *stdSocket) close() error {
	s.lockIdle()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.bind.Close()
}

// packetSocket is any net.PacketConn: the in-memory network of a simulation, or
// UDP on a kernel without IPv4. One lane, one packet at a time.
type packetSocket struct {
	pc  net.PacketConn
	num uint16

	mu      sync.Mutex // guards the fields below
	current *packetReader
	number  uint64
	closed  bool
}

func newPacketSocket(pc net.PacketConn) (*packetSocket, error) {
	local := netAddrPort(pc.LocalAddr())
	if local.Port() == 0 {
		return nil, errors.Join(fmt.Errorf("packet connection has no port: %v", pc.LocalAddr()), pc.Close())
	}
	s := &packetSocket{pc: pc, num: local.Port(), number: 1}
	s.current = &packetReader{socket: s, stop: make(chan struct{})}
	return s, nil
}

// packetReader is one generation of a packetSocket. Only one goroutine reads at
// a time, over all generations: the one that holds the lane.
type packetReader struct {
	socket  *packetSocket
	stop    chan struct{} // closed by renew
	started bool
}

func (r *packetReader) stopped() bool {
	select {
	case <-r.stop:
		return true
	default:
		return false
	}
}

func (r *packetReader) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	if !r.started {
		// Take back the deadline that stopped the generation before. renew
		// marks us stopped before it sets a deadline, so none is lost.
		if err := r.socket.pc.SetReadDeadline(time.Time{}); err != nil {
			return 0, err
		}
		r.started = true
	}
	if r.stopped() {
		return 0, net.ErrClosed
	}
	n, from, err := r.socket.pc.ReadFrom(bufs[0])
	if err != nil {
		if r.stopped() {
			return 0, net.ErrClosed
		}
		return 0, err
	}
	sizes[0] = n
	eps[0] = r.socket.endpoint(netAddrPort(from))
	return 1, nil
}

func (s *packetSocket) receiver(lane int) (conn.ReceiveFunc, uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || lane > 0 {
		return nil, 0, net.ErrClosed
	}
	return s.current.receive, s.number, nil
}

func (*packetSocket) lanes() int { return 1 }

func (s *packetSocket) renew() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return net.ErrClosed
	}
	close(s.current.stop)
	s.current = &packetReader{socket: s, stop: make(chan struct{})}
	s.number++
	return s.pc.SetReadDeadline(time.Unix(1, 0))
}

func (*packetSocket) endpoint(to netip.AddrPort) conn.Endpoint {
	return &packetEndpoint{addr: to, udp: net.UDPAddrFromAddrPort(to)}
}

func (s *packetSocket) send(bufs [][]byte, to conn.Endpoint) error {
	e, ok := to.(*packetEndpoint)
	if !ok {
		return conn.ErrWrongEndpointType
	}
	for _, b := range bufs {
		if _, err := s.pc.WriteTo(b, e.udp); err != nil {
			return err
		}
	}
	return nil
}

func (*packetSocket) setMark(uint32) error { return nil }

func (*packetSocket) batchSize() int { return 1 }

func (s *packetSocket) port() uint16 { return s.num }

func (s *packetSocket) close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	s.closed = true
	return s.pc.Close()
}

// packetEndpoint is an address of a packetSocket. Immutable.
type packetEndpoint struct {
	addr netip.AddrPort
	udp  *net.UDPAddr
}

func (*packetEndpoint) ClearSrc()             {}
func (*packetEndpoint) SrcToString() string   { return "" }
func (e *packetEndpoint) DstToString() string { return e.addr.String() }
func (e *packetEndpoint) DstToBytes() []byte  { return addrPortBytes(e.addr) }
func (e *packetEndpoint) DstIP() netip.Addr   { return e.addr.Addr() }
func (*packetEndpoint) SrcIP() netip.Addr     { return netip.Addr{} }

// addrPortBytes is what WireGuard's cookies are bound to.
func addrPortBytes(a netip.AddrPort) []byte {
	b, _ := a.MarshalBinary() // never fails
	return b
}

// netAddrPort converts an address of package net. The result is unmapped and
// not valid if there is no address in a.
func netAddrPort(a net.Addr) netip.AddrPort {
	if u, ok := a.(*net.UDPAddr); ok {
		return unmap(u.AddrPort())
	}
	if a == nil {
		return netip.AddrPort{}
	}
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return netip.AddrPort{}
	}
	return unmap(ap)
}

// unmap turns an IPv4-mapped IPv6 address into the IPv4 address that it is.
func unmap(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
