package stream

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Introduce dials an address, whoever is there, and exchanges introductions.
// The connection becomes the one of that peer. Errors: ErrClosed, ErrRefused
// (they refused us, or we them), the context's, and whatever ends a dial.
func (t *Transport) Introduce(ctx context.Context, to netip.AddrPort) (trust.GatewayID, error) {
	c, err := t.connect(ctx, to, trust.GatewayID{})
	if err != nil {
		return trust.GatewayID{}, fmt.Errorf("introduce to %s: %w", to, err)
	}
	return c.peer, nil
}

// OpenStream opens a stream of a type to a peer, over the connection that
// exists or a new one to its proven address. Callers that ask at the same time
// share one dial. Errors: ErrNoPath, ErrWrongPeer, those of Introduce.
func (t *Transport) OpenStream(ctx context.Context, peer trust.GatewayID, typ byte) (Stream, error) {
	for retried := false; ; retried = true {
		c := t.current(peer)
		if c == nil {
			var err error
			if c, err = t.reach(ctx, peer); err != nil {
				return nil, fmt.Errorf("open stream to %s: %w", peer.Short(), err)
			}
		}
		s, err := t.openStream(ctx, c, typ)
		if err == nil {
			return s, nil
		}
		if retried || c.q.Context().Err() == nil { // else the connection had just ended: once again
			return nil, fmt.Errorf("open stream to %s: %w", peer.Short(), err)
		}
	}
}

// Enrol dials an address, sends a sealed enrolment request and returns the
// sealed reply. It needs no introduction of ours.
func (t *Transport) Enrol(ctx context.Context, to netip.AddrPort, sealed []byte) ([]byte, error) {
	if len(sealed) == 0 || len(sealed) > MaxEnrolRequest {
		return nil, fmt.Errorf("enrol at %s: %w: %d bytes", to, errFrame, len(sealed))
	}
	ctx, cancel := context.WithTimeout(ctx, dialTimeout+enrolTimeout)
	defer cancel()
	q, err := t.dial(ctx, to)
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", to, err)
	}
	defer t.drop(q, codeClosed, "done")
	reply, err := exchange(ctx, q, TypeEnrolment, sealed, MaxEnrolReply)
	if err != nil {
		return nil, fmt.Errorf("enrol at %s: %w", to, err)
	}
	return reply, nil
}

// call is a dial that several callers wait for.
type call struct {
	done chan struct{} // closed when c and err are set
	c    *conn
	err  error
}

// reach returns a connection to a peer, dialling its proven address.
func (t *Transport) reach(ctx context.Context, peer trust.GatewayID) (*conn, error) {
	cl, err := t.callFor(peer)
	if err != nil {
		return nil, err
	}
	select {
	case <-cl.done:
		return cl.c, cl.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// callFor joins the dial to a peer, or begins it.
func (t *Transport) callFor(peer trust.GatewayID) (*call, error) {
	if t.cfg.Addr == nil {
		return nil, ErrNoPath
	}
	to, ok := t.cfg.Addr(peer)
	if !ok {
		return nil, ErrNoPath
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, ErrClosed
	}
	if cl := t.calls[peer]; cl != nil {
		return cl, nil
	}
	cl := &call{done: make(chan struct{})}
	t.calls[peer] = cl
	t.wg.Go(func() { // ends with the dial, which Run's end and dialTimeout end
		cl.c, cl.err = t.connect(context.Background(), to, peer)
		t.mu.Lock()
		delete(t.calls, peer)
		t.mu.Unlock()
		close(cl.done)
	})
	return cl, nil
}

// connect dials, introduces and registers. A peer that is not the zero value is the only one accepted.
func (t *Transport) connect(ctx context.Context, to netip.AddrPort, peer trust.GatewayID) (*conn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	t.mu.Lock()
	since := t.serial
	t.mu.Unlock()
	q, err := t.dial(ctx, to)
	if err != nil {
		t.count.add(dialFailed)
		return nil, err
	}
	c, err := t.introduce(ctx, q, peer)
	if err != nil {
		t.count.add(dialFailed)
		t.drop(q, codeRefused, "refused")
		return nil, err
	}
	c.ours = true
	use, err := t.register(c, since)
	if err != nil {
		t.drop(q, codeClosed, "closed")
		return nil, err
	}
	t.count.add(dialled)
	if use == c && !t.goTracked(func() { t.serve(c) }) {
		t.unregister(c)
		t.drop(q, codeClosed, "closed")
		return nil, ErrClosed
	}
	t.log.Debug("connection made", "peer", c.peer, "endpoint", to, "crossed", use != c)
	return use, nil
}

// dial makes a connection to an address and remembers it. Own dials are bounded.
func (t *Transport) dial(ctx context.Context, to netip.AddrPort) (*quic.Conn, error) {
	select {
	case <-t.started:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case t.dials <- struct{}{}:
		defer func() { <-t.dials }()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	to = netip.AddrPortFrom(to.Addr().Unmap(), to.Port())
	t.guard.expect(to)
	defer t.guard.forget(to)
	q, err := t.quic.Dial(ctx, net.UDPAddrFromAddrPort(to), t.client, quicConfig())
	if err != nil {
		return nil, t.translate(err)
	}
	if !t.track(q) {
		t.drop(q, codeClosed, "closed")
		return nil, ErrClosed
	}
	return q, nil
}

// introduce sends our introduction and verifies the answer.
func (t *Transport) introduce(ctx context.Context, q *quic.Conn, peer trust.GatewayID) (*conn, error) {
	if t.cfg.Introduce == nil {
		return nil, errors.New("no introduction of our own")
	}
	intro, err := exchange(ctx, q, TypeIntroduction, t.cfg.Introduce(), MaxIntroduction)
	if err != nil {
		return nil, t.translate(err)
	}
	c, err := t.verify(q, intro)
	if err != nil {
		return nil, err
	}
	if !peer.IsZero() && c.peer != peer {
		return nil, fmt.Errorf("%w: %s", ErrWrongPeer, c.peer.Short())
	}
	return c, nil
}

// exchange opens the first stream of a connection, writes one message and reads one.
func exchange(ctx context.Context, q *quic.Conn, typ byte, b []byte, limit int) ([]byte, error) {
	s, err := q.OpenStreamSync(ctx)
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, func() { _ = s.SetDeadline(time.Now()) }) // never fails
	defer stop()
	if _, err := s.Write([]byte{typ}); err != nil {
		return nil, err
	}
	if err := finish(s, b); err != nil {
		return nil, err
	}
	reply, err := readMessage(s, limit)
	s.CancelRead(codeClosed)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return reply, err
}

// translate turns errors of quic-go into ours where a caller can tell them apart.
func (t *Transport) translate(err error) error {
	var app *quic.ApplicationError
	switch {
	case errors.Is(err, quic.ErrTransportClosed):
		return ErrClosed
	case errors.As(err, &app) && app.Remote && app.ErrorCode == codeRefused:
		return ErrRefused
	}
	return err
}
