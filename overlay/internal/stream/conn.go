package stream

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// conn is a connection whose introduction was accepted.
type conn struct {
	q        *quic.Conn
	peer     trust.GatewayID
	identity trust.IdentityKey
	ours     bool   // we dialled
	serial   uint64 // order of registration

	streams atomic.Int64 // in use, of both sides
}

// limited is a Stream with its limits.
type limited struct {
	s     *quic.Stream
	q     *quic.Conn
	end   time.Time    // of the stream's life
	left  atomic.Int64 // bytes that may still be read
	count *counters
	ended func() // called once, by Close

	writing sync.Mutex // held while a Write is in quic-go, which forbids Close meanwhile
}

func newLimited(c *conn, s *quic.Stream, l Limit, count *counters) *limited {
	c.streams.Add(1)
	st := &limited{s: s, q: c.q, end: time.Now().Add(l.Lifetime), count: count}
	st.ended = sync.OnceFunc(func() { c.streams.Add(-1) })
	st.left.Store(l.Bytes)
	_ = s.SetDeadline(st.end) // never fails
	return st
}

// Read reads at most as many bytes as the stream may still carry.
func (s *limited) Read(p []byte) (int, error) {
	left := s.left.Load()
	if left <= 0 && len(p) > 0 {
		return s.readEnd()
	}
	n, err := s.s.Read(p[:min(int64(len(p)), left)])
	s.left.Add(-int64(n))
	return n, err
}

// readEnd tells a stream that ends at its limit from one that goes on.
func (s *limited) readEnd() (int, error) {
	var b [1]byte
	n, err := s.s.Read(b[:])
	if n == 0 && err != nil {
		return 0, err
	}
	s.count.add(refusedBytes)
	s.s.CancelRead(codeProtocol)
	return 0, ErrTooMuch
}

// Write writes p.
func (s *limited) Write(p []byte) (int, error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.s.Write(p)
}

// CloseWrite ends the direction from here to the peer.
func (s *limited) CloseWrite() error {
	s.writing.Lock()
	defer s.writing.Unlock()
	return s.s.Close()
}

// Close ends both directions. What was written before still goes out, unless a Write is under way.
func (s *limited) Close() error {
	defer s.ended()
	s.s.CancelRead(codeClosed)
	if !s.writing.TryLock() {
		s.s.CancelWrite(codeClosed)
		return nil
	}
	defer s.writing.Unlock()
	return s.s.Close()
}

// LocalAddr is the address of the packet connection.
func (s *limited) LocalAddr() net.Addr { return s.q.LocalAddr() }

// RemoteAddr is the underlay address of the peer.
func (s *limited) RemoteAddr() net.Addr { return s.q.RemoteAddr() }

// SetDeadline sets both deadlines, at latest the end of the stream's life.
func (s *limited) SetDeadline(t time.Time) error { return s.s.SetDeadline(s.clamp(t)) }

// SetReadDeadline sets the read deadline, at latest the end of the stream's life.
func (s *limited) SetReadDeadline(t time.Time) error { return s.s.SetReadDeadline(s.clamp(t)) }

// SetWriteDeadline sets the write deadline, at latest the end of the stream's life.
func (s *limited) SetWriteDeadline(t time.Time) error { return s.s.SetWriteDeadline(s.clamp(t)) }

func (s *limited) clamp(t time.Time) time.Time {
	if t.IsZero() || t.After(s.end) {
		return s.end
	}
	return t
}

// pair holds the connections of one peer.
type pair struct {
	current  *conn // used for new streams
	draining *conn // replaced a moment ago; still serves
}

// register makes c the connection of its peer, if it is. since is the serial
// that was the latest when c was dialled. It returns the connection to use: c,
// or one that the peer dialled at the same time and that wins.
func (t *Transport) register(c *conn, since uint64) (*conn, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	p := t.peers[c.peer]
	if p == nil {
		p = new(pair)
		t.peers[c.peer] = p
	}
	if old := p.current; c.ours && old != nil && !old.ours && old.serial > since && t.yieldsTo(old.identity) {
		t.count.add(crossed)
		t.wg.Go(func() { t.drop(c.q, codeReplaced, "replaced") })
		return old, nil
	}
	t.serial++
	c.serial = t.serial
	if p.draining != nil {
		oldest := p.draining
		t.wg.Go(func() { t.drop(oldest.q, codeReplaced, "replaced") })
	}
	if p.current != nil {
		t.count.add(replaced)
		t.drainLocked(p.current)
	}
	p.draining, p.current = p.current, c
	return c, nil
}

// yieldsTo says whose dial stays when two gateways dial each other: that of the smaller key.
func (t *Transport) yieldsTo(other trust.IdentityKey) bool {
	return string(other[:]) < string(t.identity[:])
}

// drainLocked closes a replaced connection when it has no streams any more, at
// latest after drainLimit, unless it becomes the current one again.
func (t *Transport) drainLocked(c *conn) {
	t.wg.Go(func() {
		ticker := time.NewTicker(drainInterval)
		defer ticker.Stop()
		for range drainLimit / drainInterval {
			select {
			case <-ticker.C:
			case <-c.q.Context().Done():
				return
			case <-t.done:
				return
			}
			if !t.isDraining(c) {
				return
			}
			if c.streams.Load() == 0 {
				break
			}
		}
		t.drop(c.q, codeReplaced, "replaced")
	})
}

func (t *Transport) isDraining(c *conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.peers[c.peer]
	return p != nil && p.draining == c
}

// unregister forgets a connection that has ended.
func (t *Transport) unregister(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, c.q)
	p := t.peers[c.peer]
	if p == nil {
		return
	}
	switch c {
	case p.current:
		p.current, p.draining = p.draining, nil
	case p.draining:
		p.draining = nil
	}
	if p.current == nil {
		delete(t.peers, c.peer)
	}
}

// current returns the connection for new streams to a peer, or nil.
func (t *Transport) current(peer trust.GatewayID) *conn {
	t.mu.Lock()
	defer t.mu.Unlock()
	if p := t.peers[peer]; p != nil && p.current.q.Context().Err() == nil {
		return p.current
	}
	return nil
}

// Connected returns the peers that have a connection now, in no order.
func (t *Transport) Connected() []trust.GatewayID {
	t.mu.Lock()
	defer t.mu.Unlock()
	ids := make([]trust.GatewayID, 0, len(t.peers))
	for id := range t.peers {
		ids = append(ids, id)
	}
	return ids
}

// Disconnect closes the connections of a peer, for example because it was
// revoked or has restarted. Streams in flight break.
func (t *Transport) Disconnect(peer trust.GatewayID) {
	t.mu.Lock()
	var gone []*conn
	if p := t.peers[peer]; p != nil {
		gone = append(gone, p.current)
		if p.draining != nil {
			gone = append(gone, p.draining)
		}
		delete(t.peers, peer)
	}
	t.mu.Unlock()
	for _, c := range gone {
		t.drop(c.q, codeClosed, "closed")
	}
}

// serve runs the streams that the peer opens until the connection ends.
func (t *Transport) serve(c *conn) {
	defer t.drop(c.q, codeClosed, "closed")
	defer t.unregister(c)
	ctx := c.q.Context()
	for {
		s, err := c.q.AcceptStream(ctx)
		if err != nil {
			return
		}
		if !t.goTracked(func() { t.serveStream(ctx, c, s) }) {
			return
		}
	}
}

// serveStream gives one stream to its handler.
func (t *Transport) serveStream(ctx context.Context, c *conn, s *quic.Stream) {
	defer s.ReleaseStreamCredit()
	_ = s.SetReadDeadline(time.Now().Add(typeTimeout)) // never fails
	var typ [1]byte
	if _, err := io.ReadFull(s, typ[:]); err != nil {
		t.refuseStream(s)
		return
	}
	if typ[0] == TypeEnrolment {
		t.serveEnrolment(ctx, c.q, s)
		return
	}
	handler := t.cfg.Handlers[typ[0]]
	if handler == nil {
		t.refuseStream(s)
		return
	}
	t.count.add(streamsServed)
	st := newLimited(c, s, t.limit(typ[0]), &t.count)
	handler(ctx, c.peer, st)
	_ = st.Close() // the handler may have closed it
}

func (t *Transport) refuseStream(s *quic.Stream) {
	t.count.add(refusedStream)
	s.CancelRead(codeProtocol)
	s.CancelWrite(codeProtocol)
}

// openStream opens a stream of a type on a connection.
func (t *Transport) openStream(ctx context.Context, c *conn, typ byte) (Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, openTimeout)
	defer cancel()
	s, err := c.q.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	st := newLimited(c, s, t.limit(typ), &t.count)
	if _, err := st.Write([]byte{typ}); err != nil {
		return nil, errors.Join(err, st.Close())
	}
	t.count.add(streamsOpened)
	return st, nil
}
