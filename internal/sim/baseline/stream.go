package baseline

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// wire carries streams between members beside the datagrams of a network, with
// its delays, losses, cuts and partitions. A lost segment costs the time until
// it is sent again. There is no slow start, no acknowledgement and no limit to what
// is under way, all of which would take more time.
type wire struct {
	network *overlaytest.Network

	mu     sync.Mutex // guards all below
	random *rand.Rand
	at     map[netip.Addr]*transport
	bytes  uint64 // that were written
}

// Times of a transmission control, RFC 6298: until the first segment of a
// connection is sent again, and the least until others are (of Linux).
const (
	firstRetry = time.Second
	leastRetry = 200 * time.Millisecond
)

// segmentSize is what is lost or arrives together, in bytes.
const segmentSize = 1400

func newWire(n *overlaytest.Network, seed uint64) *wire {
	return &wire{network: n, at: make(map[netip.Addr]*transport), random: rand.New(rand.NewPCG(seed, 3))} //nolint:gosec // repeatable on purpose
}

func (w *wire) sent() uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bytes
}

func (w *wire) attach(t *transport) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at[t.addr] = t
}

func (w *wire) transport(addr netip.Addr) *transport {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.at[addr]
}

// flight draws how long a segment takes, and whether it arrives at all if
// nothing is cut.
func (w *wire) flight(from, to netip.Addr) (time.Duration, bool) {
	l := w.network.Link(from, to)
	w.mu.Lock()
	defer w.mu.Unlock()
	d := l.Delay
	if l.Jitter > 0 {
		d += time.Duration(w.random.Int64N(int64(l.Jitter)))
	}
	return d, l.Loss == 0 || w.random.Float64() >= l.Loss
}

// passes reports whether what from sends reaches a running host.
func (w *wire) passes(from, to *transport) bool {
	return !from.isDead() && !to.isDead() && w.network.Connected(from.addr, to.addr)
}

// dial opens a stream. A host without a member refuses; one that crashed or
// that is cut off says nothing.
func (w *wire) dial(from *transport, addr netip.Addr, timeout time.Duration) (net.Conn, error) {
	deadline := time.Now().Add(timeout)
	for retry := firstRetry; ; retry *= 2 {
		to := w.transport(addr)
		there, arrives := w.flight(from.addr, addr)
		back, returns := w.flight(addr, from.addr)
		wait := retry
		answered := arrives && returns && w.network.Connected(from.addr, addr) && w.network.Connected(addr, from.addr) && (to == nil || !to.isDead())
		if answered {
			wait = there + back
		}
		left := time.Until(deadline)
		if err := from.sleep(min(wait, left)); err != nil {
			return nil, err
		}
		switch {
		case left < wait:
			return nil, fmt.Errorf("dial %v: %w", addr, os.ErrDeadlineExceeded)
		case answered && (to == nil || to.isClosed()):
			return nil, fmt.Errorf("dial %v: %w", addr, syscall.ECONNREFUSED)
		case answered:
			return w.connect(from, to), nil
		}
	}
}

// connect makes both ends; the other one appears when the third segment of the handshake arrives.
func (w *wire) connect(from, to *transport) net.Conn {
	there, back := newHalf(w, from, to), newHalf(w, to, from)
	ours := &conn{local: from, remote: to, in: back, out: there}
	theirs := &conn{local: to, remote: from, in: there, out: back}
	from.keep(ours)
	delay, _ := w.flight(from.addr, to.addr)
	go func() {
		time.Sleep(delay)
		to.accept(theirs)
	}()
	return ours
}

// half is one direction of a stream.
type half struct {
	wire     *wire
	from, to *transport

	mu       sync.Mutex // guards all below
	segments []segment
	latest   time.Time     // when the last of segments arrives
	changed  chan struct{} // closed when something is new for who reads
}

// segment is a part of a stream that arrives as a whole.
type segment struct {
	at    time.Time
	retry time.Duration // from then on if it cannot arrive
	b     []byte
	end   bool // nothing follows
}

func newHalf(w *wire, from, to *transport) *half {
	return &half{wire: w, from: from, to: to, changed: make(chan struct{})}
}

// write sends bytes, or the end of the stream without any.
func (h *half) write(b []byte, end bool) {
	delay, arrives := h.wire.flight(h.from.addr, h.to.addr)
	retry := max(leastRetry, 3*delay)
	for wait := retry; !arrives; wait *= 2 {
		delay += wait
		_, arrives = h.wire.flight(h.from.addr, h.to.addr)
	}
	h.wire.mu.Lock()
	h.wire.bytes += uint64(len(b))
	h.wire.mu.Unlock()
	h.mu.Lock()
	defer h.mu.Unlock()
	if at := time.Now().Add(delay); at.After(h.latest) {
		h.latest = at
	}
	h.segments = append(h.segments, segment{at: h.latest, retry: retry, b: append([]byte(nil), b...), end: end})
	h.wakeLocked()
}

func (h *half) wakeLocked() {
	close(h.changed)
	h.changed = make(chan struct{})
}

func (h *half) wake() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wakeLocked()
}

// pause says when there may be something to read: at a time, unless that is
// zero, or when changed is closed.
type pause struct {
	at      time.Time
	changed <-chan struct{}
}

// read takes what has arrived. If that is nothing, it says when to look again.
func (h *half) read(p []byte) (int, pause, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.segments) == 0 {
		return 0, pause{changed: h.changed}, nil
	}
	s := &h.segments[0]
	if time.Now().Before(s.at) {
		return 0, pause{s.at, h.changed}, nil
	}
	if !h.wire.passes(h.from, h.to) { // it is sent again, less and less often
		s.at = time.Now().Add(s.retry)
		s.retry *= 2
		return 0, pause{s.at, h.changed}, nil
	}
	if s.end {
		return 0, pause{}, io.EOF
	}
	n := copy(p, s.b)
	if s.b = s.b[n:]; len(s.b) == 0 {
		h.segments = h.segments[1:]
	}
	return n, pause{}, nil
}

// conn is one end of a stream.
type conn struct {
	local, remote *transport
	in, out       *half

	mu       sync.Mutex // guards all below
	closed   bool
	deadline time.Time // of reads: writes never block
}

// Read implements net.Conn.
func (c *conn) Read(p []byte) (int, error) {
	for {
		c.mu.Lock()
		closed, deadline := c.closed, c.deadline
		c.mu.Unlock()
		switch {
		case closed:
			return 0, net.ErrClosed
		case !deadline.IsZero() && !time.Now().Before(deadline):
			return 0, os.ErrDeadlineExceeded
		case len(p) == 0:
			return 0, nil
		}
		n, again, err := c.in.read(p)
		if n > 0 || err != nil {
			return n, err
		}
		if again.at.IsZero() || !deadline.IsZero() && deadline.Before(again.at) {
			again.at = deadline
		}
		again.wait()
	}
}

func (p pause) wait() {
	if p.at.IsZero() {
		<-p.changed
		return
	}
	timer := time.NewTimer(time.Until(p.at))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-p.changed:
	}
}

// Write implements net.Conn.
func (c *conn) Write(p []byte) (int, error) {
	c.mu.Lock()
	closed := c.closed
	c.mu.Unlock()
	if closed {
		return 0, net.ErrClosed
	}
	for rest := p; len(rest) > 0; {
		n := min(len(rest), segmentSize)
		c.out.write(rest[:n], false)
		rest = rest[n:]
	}
	return len(p), nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return net.ErrClosed
	}
	c.closed = true
	c.mu.Unlock()
	c.local.forget(c)
	if !c.local.isDead() {
		c.out.write(nil, true)
	}
	c.in.wake()
	return nil
}

// LocalAddr implements net.Conn.
func (c *conn) LocalAddr() net.Addr { return c.local.tcp() }

// RemoteAddr implements net.Conn.
func (c *conn) RemoteAddr() net.Addr { return c.remote.tcp() }

// SetDeadline implements net.Conn.
func (c *conn) SetDeadline(t time.Time) error { return c.SetReadDeadline(t) }

// SetReadDeadline implements net.Conn.
func (c *conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.deadline = t
	c.in.wake()
	return nil
}

// SetWriteDeadline implements net.Conn.
func (c *conn) SetWriteDeadline(time.Time) error { return nil }
