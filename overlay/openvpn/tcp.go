package openvpn

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// tcpTransport is the connections of one endpoint over TCP: the one that it
// made, or those that a listener took. Among the latter, one is the peer's, and
// a few are candidates that have not yet sent an authentic packet.
type tcpTransport struct {
	listener net.Listener   // nil when connecting
	own      netip.AddrPort // the address in use
	remote   netip.AddrPort
	max      int

	mu         sync.Mutex
	active     *streamConn   // guarded by mu
	candidates []*streamConn // guarded by mu, oldest first
	closed     bool          // guarded by mu
	lost       chan struct{} // closed when the active connection ended
	wg         sync.WaitGroup
}

const (
	// maxCandidates and candidateLife bound the connections that strangers hold.
	maxCandidates = 8
	candidateLife = 30 * time.Second
	// connectTimeout bounds one attempt to connect.
	connectTimeout = 10 * time.Second
	// frameHeaderSize is the length that stands before every packet.
	frameHeaderSize = 2
	// acceptPause keeps a listener without file descriptors from spinning.
	acceptPause = 100 * time.Millisecond
)

func listenTCP(ctx context.Context, c *Config, remote netip.AddrPort) (transport, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", hostOf(c.Local))
	if err != nil {
		return nil, fmt.Errorf("listen on tcp %s: %w", hostOf(c.Local), err)
	}
	return &tcpTransport{listener: l, own: addrPortOf(l.Addr()), remote: remote, max: c.maxPacket(), lost: make(chan struct{})}, nil
}

func connectTCP(ctx context.Context, c *Config, remote netip.AddrPort) (transport, error) {
	d := net.Dialer{Timeout: connectTimeout}
	if c.Local.Port() != 0 || c.Local.Addr().IsValid() {
		d.LocalAddr = net.TCPAddrFromAddrPort(c.Local)
	}
	conn, err := d.DialContext(ctx, "tcp", remote.String())
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", remote, err)
	}
	t := &tcpTransport{own: addrPortOf(conn.LocalAddr()), remote: remote, max: c.maxPacket(), lost: make(chan struct{})}
	t.active = newStreamConn(conn)
	return t, nil
}

func (t *tcpTransport) peer() path {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.active == nil {
		return path{}
	}
	return path{addr: t.active.remote, conn: t.active}
}

func (t *tcpTransport) local() netip.AddrPort { return t.own }

// addrPortOf is the address of a socket of ours.
func addrPortOf(a net.Addr) netip.AddrPort { return a.(*net.TCPAddr).AddrPort() }

func (t *tcpTransport) serve(_ context.Context, newReceiver func() receiver) error {
	defer t.wg.Wait()
	defer t.close()
	if t.listener == nil {
		t.start(t.active, newReceiver())
		<-t.lost
		return errHangup
	}
	// The goroutine ends when close closes the listener.
	var acceptErr error
	t.wg.Go(func() {
		acceptErr = t.accept(newReceiver)
		t.close()
	})
	<-t.lost
	t.close()
	t.wg.Wait()
	if acceptErr != nil && !errors.Is(acceptErr, net.ErrClosed) {
		return acceptErr
	}
	return errHangup
}

// accept takes connections until the listener is closed.
func (t *tcpTransport) accept(newReceiver func() receiver) error {
	for {
		conn, err := t.listener.Accept()
		if err != nil {
			var temporary interface{ Temporary() bool }
			if errors.As(err, &temporary) && temporary.Temporary() {
				// Out of descriptors, for example: wait for some to be closed.
				select {
				case <-time.After(acceptPause):
				case <-t.lost:
				}
				continue
			}
			return fmt.Errorf("accept: %w", err)
		}
		s := newStreamConn(conn)
		r := newReceiver()
		if t.remote.IsValid() && s.remote.Addr() != t.remote.Addr() {
			r.drop(ReasonAddress)
			_ = conn.Close()
			continue
		}
		t.admit(s, r)
	}
}

// admit makes a connection a candidate; the oldest one goes if there are too many.
func (t *tcpTransport) admit(s *streamConn, r receiver) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		_ = s.conn.Close()
		return
	}
	if len(t.candidates) == maxCandidates {
		r.drop(ReasonLimit)
		t.candidates[0].close()
		t.candidates = slices.Delete(t.candidates, 0, 1)
	}
	t.candidates = append(t.candidates, s)
	_ = s.conn.SetReadDeadline(time.Now().Add(candidateLife))
	t.start(s, r)
}

// start runs the two goroutines of a connection. Both end when it is closed.
func (t *tcpTransport) start(s *streamConn, r receiver) {
	t.wg.Go(s.write)
	t.wg.Go(func() {
		reason := s.read(t.max, r)
		if reason != 0 {
			r.drop(reason)
		}
		t.forget(s)
	})
}

// forget closes a connection; if it was the peer's, the transport ends.
func (t *tcpTransport) forget(s *streamConn) {
	s.close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.candidates = slices.DeleteFunc(t.candidates, func(c *streamConn) bool { return c == s })
	if t.active == s {
		t.active = nil
		t.loseLocked()
	}
}

func (t *tcpTransport) loseLocked() {
	select {
	case <-t.lost:
	default:
		close(t.lost)
	}
}

func (t *tcpTransport) adopt(p path) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := slices.Index(t.candidates, p.conn)
	if at < 0 {
		return
	}
	t.candidates = slices.Delete(t.candidates, at, at+1)
	_ = p.conn.conn.SetReadDeadline(time.Time{})
	if t.active != nil {
		t.active.close()
	}
	t.active = p.conn
}

func (t *tcpTransport) reject(p path) {
	if p.conn != nil {
		p.conn.close()
	}
}

func (t *tcpTransport) send(to path, packets [][]byte, wait bool) (int, error) {
	if to.conn == nil {
		return 0, net.ErrClosed
	}
	return to.conn.enqueue(packets, wait)
}

func (t *tcpTransport) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	if t.listener != nil {
		_ = t.listener.Close()
	}
	for _, s := range t.candidates {
		s.close()
	}
	if t.active != nil {
		t.active.close()
	}
	t.loseLocked()
}

// streamConn is one TCP connection with frames:
//
//	length (2, not counting itself) | packet
type streamConn struct {
	conn   net.Conn
	remote netip.AddrPort

	mu     sync.Mutex
	room   sync.Cond // out became shorter, or closed
	filled sync.Cond // out became longer, or closed
	out    []byte    // guarded by mu: frames that wait for write
	closed bool      // guarded by mu
}

const (
	// maxQueue is how many bytes of frames wait for a connection.
	maxQueue = 256 << 10
	// writeTimeout ends a connection whose peer takes nothing.
	writeTimeout = 30 * time.Second
	// readChunk is the size of the receive buffer: many frames per system call.
	readChunk = 64 << 10
)

func newStreamConn(conn net.Conn) *streamConn {
	s := &streamConn{conn: conn}
	s.room.L, s.filled.L = &s.mu, &s.mu
	if a, err := netip.ParseAddrPort(conn.RemoteAddr().String()); err == nil {
		s.remote = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return s
}

// enqueue puts packets into the queue and returns how many.
func (s *streamConn) enqueue(packets [][]byte, wait bool) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i, p := range packets {
		for wait && !s.closed && len(s.out)+len(p) > maxQueue {
			s.room.Wait()
		}
		if s.closed {
			return i, net.ErrClosed
		}
		if len(s.out)+len(p) > maxQueue {
			return i, errors.New("send queue is full")
		}
		s.out = binary.BigEndian.AppendUint16(s.out, uint16(len(p)))
		s.out = append(s.out, p...)
		s.filled.Signal()
	}
	return len(packets), nil
}

// write empties the queue until the connection is closed.
func (s *streamConn) write() {
	var batch []byte
	for {
		s.mu.Lock()
		for len(s.out) == 0 && !s.closed {
			s.filled.Wait()
		}
		if len(s.out) == 0 {
			s.mu.Unlock()
			return
		}
		batch, s.out = s.out, batch[:0]
		s.room.Broadcast()
		s.mu.Unlock()
		_ = s.conn.SetWriteDeadline(time.Now().Add(writeTimeout))
		if _, err := s.conn.Write(batch); err != nil {
			s.close()
			return
		}
	}
}

// read hands frames to r until the connection ends. It returns ReasonFraming
// if a frame was the cause, 0 otherwise.
func (s *streamConn) read(limit int, r receiver) Reason {
	buf := make([]byte, max(readChunk, frameHeaderSize+limit))
	have := 0
	for {
		n, err := s.conn.Read(buf[have:])
		if err != nil {
			return 0
		}
		used, reason := s.frames(buf[:have+n], limit, r)
		r.flush()
		if reason != 0 {
			return reason
		}
		have = copy(buf, buf[used:have+n])
	}
}

// frames hands on the whole frames at the start of buf and returns their length.
func (s *streamConn) frames(buf []byte, limit int, r receiver) (used int, bad Reason) {
	for {
		rest := buf[used:]
		if len(rest) < frameHeaderSize {
			return used, 0
		}
		size := int(binary.BigEndian.Uint16(rest))
		if size == 0 || size > limit {
			return used, ReasonFraming
		}
		if len(rest) < frameHeaderSize+size {
			return used, 0
		}
		r.packet(path{addr: s.remote, conn: s}, rest[frameHeaderSize:frameHeaderSize+size])
		used += frameHeaderSize + size
	}
}

// close ends both goroutines. What is queued is still written if the kernel
// takes it at once.
func (s *streamConn) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	s.room.Broadcast()
	s.filled.Broadcast()
	_ = s.conn.Close()
}
