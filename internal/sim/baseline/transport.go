package baseline

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// port is that of every member.
const port = 7946

var errNotUp = errors.New("member is shut down")

// transport is a member's memberlist.Transport: datagrams of its host on the
// network, streams of the wire.
type transport struct {
	wire    *wire
	addr    netip.Addr
	socket  net.PacketConn
	packets chan *memberlist.Packet
	streams chan net.Conn
	done    chan struct{} // closed by Shutdown
	reading sync.WaitGroup

	mu    sync.Mutex // guards all below
	dead  bool       // crashed
	down  bool       // Shutdown was called
	conns map[*conn]struct{}
}

func newTransport(ctx context.Context, w *wire, h *overlaytest.Host) (*transport, error) {
	socket, err := h.ListenPacket(ctx, port)
	if err != nil {
		return nil, err
	}
	t := &transport{
		wire: w, addr: h.Addr(), socket: socket,
		packets: make(chan *memberlist.Packet), streams: make(chan net.Conn),
		done: make(chan struct{}), conns: make(map[*conn]struct{}),
	}
	w.attach(t)
	t.reading.Go(t.read) // ends when Shutdown closes the socket
	return t, nil
}

func (t *transport) tcp() net.Addr { return net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.addr, port)) }

// maxPacket is larger than any packet of memberlist.
const maxPacket = 1 << 16

// read hands datagrams to memberlist.
func (t *transport) read() {
	buf := make([]byte, maxPacket)
	for {
		n, from, err := t.socket.ReadFrom(buf)
		if err != nil {
			return
		}
		p := &memberlist.Packet{Buf: append([]byte(nil), buf[:n]...), From: from, Timestamp: time.Now()}
		select {
		case t.packets <- p:
		case <-t.done:
			return
		}
	}
}

// FinalAdvertiseAddr implements memberlist.Transport.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.addr.AsSlice(), port, nil
}

// WriteTo implements memberlist.Transport.
func (t *transport) WriteTo(b []byte, addr string) (time.Time, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return time.Time{}, err
	}
	_, err = t.socket.WriteTo(b, net.UDPAddrFromAddrPort(to))
	return time.Now(), err
}

// PacketCh implements memberlist.Transport.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.packets }

// DialTimeout implements memberlist.Transport.
func (t *transport) DialTimeout(addr string, timeout time.Duration) (net.Conn, error) {
	to, err := netip.ParseAddrPort(addr)
	if err != nil {
		return nil, err
	}
	return t.wire.dial(t, to.Addr(), timeout)
}

// StreamCh implements memberlist.Transport.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// Shutdown implements memberlist.Transport.
func (t *transport) Shutdown() error {
	t.mu.Lock()
	if t.down {
		t.mu.Unlock()
		return nil
	}
	t.down = true
	close(t.done)
	conns := t.conns
	t.conns = make(map[*conn]struct{})
	t.mu.Unlock()
	for c := range conns {
		_ = c.Close() // a second time is no harm
	}
	err := t.socket.Close()
	t.reading.Wait()
	return err
}

// crash makes the host silent: nothing leaves it, nothing is heard.
func (t *transport) crash() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.dead = true
}

func (t *transport) isDead() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.dead
}

func (t *transport) isClosed() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.down
}

// accept hands a stream of another member to memberlist.
func (t *transport) accept(c *conn) {
	t.keep(c)
	select {
	case t.streams <- c:
	case <-t.done:
		_ = c.Close() // nobody reads it
	}
}

// keep remembers a stream, for Shutdown; after it, it closes the stream.
func (t *transport) keep(c *conn) {
	t.mu.Lock()
	down := t.down
	if !down {
		t.conns[c] = struct{}{}
	}
	t.mu.Unlock()
	if down {
		_ = c.Close() // as Shutdown would have
	}
}

func (t *transport) forget(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.conns, c)
}

// sleep returns early with an error if the member is shut down.
func (t *transport) sleep(d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-t.done:
		return errNotUp
	}
}
