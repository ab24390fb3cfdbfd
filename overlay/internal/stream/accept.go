package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/quic-go/quic-go"
)

// serveStranger serves a connection that somebody made to us: first its
// introduction, then its streams, or one enrolment.
func (t *Transport) serveStranger(q *quic.Conn) {
	if !t.track(q) {
		t.drop(q, codeClosed, "closed")
		return
	}
	t.count.add(accepted)
	c, err := t.firstStream(q)
	if err != nil {
		t.log.Debug("connection refused", "endpoint", addrPort(q.RemoteAddr()), "err", err)
		code := quic.ApplicationErrorCode(codeProtocol)
		if errors.Is(err, ErrRefused) {
			code = codeRefused
		}
		t.drop(q, code, "refused")
		return
	}
	if c == nil { // an enrolment, and it is over
		t.drop(q, codeClosed, "done")
		return
	}
	leave(q.Context())
	t.log.Debug("connection accepted", "peer", c.peer, "endpoint", addrPort(q.RemoteAddr()))
	t.serve(c)
}

// firstStream serves the first stream of a connection. It returns the
// registered connection after an introduction, nil after an enrolment.
func (t *Transport) firstStream(q *quic.Conn) (*conn, error) {
	born := time.Now()
	deadline := born.Add(introduceTimeout)
	ctx, cancel := context.WithDeadline(q.Context(), deadline)
	defer cancel()
	s, err := q.AcceptStream(ctx)
	if err != nil {
		t.count.add(refusedFirstStream)
		return nil, fmt.Errorf("wait for first stream: %w", err)
	}
	defer s.ReleaseStreamCredit()
	_ = s.SetDeadline(deadline) // never fails
	var typ [1]byte
	if _, err := io.ReadFull(s, typ[:]); err != nil {
		t.count.add(refusedFirstStream)
		return nil, fmt.Errorf("read type of first stream: %w", err)
	}
	switch typ[0] {
	case TypeIntroduction:
		return t.acceptIntroduction(q, s)
	case TypeEnrolment:
		return nil, t.acceptEnrolment(q, s, born.Add(enrolTimeout))
	default:
		t.count.add(refusedFirstStream)
		return nil, fmt.Errorf("first stream has type %d", typ[0])
	}
}

// acceptIntroduction verifies the introduction of the dialler and answers with ours.
func (t *Transport) acceptIntroduction(q *quic.Conn, s *quic.Stream) (*conn, error) {
	intro, err := readMessage(s, MaxIntroduction)
	if err != nil {
		t.count.add(refusedIntroduction)
		return nil, fmt.Errorf("read introduction: %w", err)
	}
	c, err := t.verify(q, intro)
	if err != nil {
		t.count.add(refusedIntroduction)
		return nil, err
	}
	// Registered before the dialler has the answer: register relies on it.
	if _, err := t.register(c, 0); err != nil {
		return nil, err
	}
	if err := finish(s, t.cfg.Introduce()); err != nil {
		t.unregister(c)
		return nil, fmt.Errorf("answer introduction: %w", err)
	}
	t.count.add(introduced)
	return c, nil
}

// finish writes the last message of a stream.
func finish(s *quic.Stream, b []byte) error {
	if _, err := s.Write(appendMessage(nil, b)); err != nil {
		return err
	}
	return s.Close()
}

// verify asks the owner whether an introduction is good. All errors are ErrRefused.
func (t *Transport) verify(q *quic.Conn, intro []byte) (*conn, error) {
	if t.cfg.Verify == nil || t.cfg.Introduce == nil {
		return nil, fmt.Errorf("%w: introductions are not accepted here", ErrRefused)
	}
	identity, err := identityOf(q.ConnectionState().TLS)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	peer, err := t.cfg.Verify(identity, intro, addrPort(q.RemoteAddr()))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return &conn{q: q, peer: peer, identity: identity}, nil
}

// acceptEnrolment serves a connection that is for an enrolment only. It stays
// until the client has its answer and closes, half a minute at most; a second
// stream ends it.
func (t *Transport) acceptEnrolment(q *quic.Conn, s *quic.Stream, end time.Time) error {
	ctx, cancel := context.WithDeadline(q.Context(), end)
	defer cancel()
	second := make(chan struct{})
	if !t.goTracked(func() {
		defer close(second)
		if _, err := q.AcceptStream(ctx); err == nil {
			t.count.add(refusedStream)
			t.drop(q, codeProtocol, "one stream only")
		}
	}) {
		return ErrClosed
	}
	t.serveEnrolment(ctx, q, s)
	<-second // the client closed, time is up, or there was a second stream
	return nil
}

// serveEnrolment answers one sealed request.
func (t *Transport) serveEnrolment(ctx context.Context, q *quic.Conn, s *quic.Stream) {
	ctx, cancel := context.WithTimeout(ctx, enrolTimeout)
	defer cancel()
	deadline, _ := ctx.Deadline()
	_ = s.SetReadDeadline(time.Now().Add(introduceTimeout)) // never fails
	_ = s.SetWriteDeadline(deadline)
	if err := t.answerEnrolment(ctx, q, s); err != nil {
		t.count.add(refusedEnrolment)
		t.log.Debug("enrolment refused", "endpoint", addrPort(q.RemoteAddr()), "err", err)
		s.CancelRead(codeRefused)
		s.CancelWrite(codeRefused)
		return
	}
	t.count.add(enrolments)
}

func (t *Transport) answerEnrolment(ctx context.Context, q *quic.Conn, s *quic.Stream) error {
	if t.cfg.Enrol == nil {
		return errors.New("no enrolment here")
	}
	sealed, err := readMessage(s, MaxEnrolRequest)
	if err != nil {
		return fmt.Errorf("read request: %w", err)
	}
	reply, err := t.cfg.Enrol(ctx, sealed, addrPort(q.RemoteAddr()))
	if err != nil {
		return err
	}
	if len(reply) == 0 || len(reply) > MaxEnrolReply {
		return fmt.Errorf("reply: %w: %d bytes", errFrame, len(reply))
	}
	s.CancelRead(codeClosed)
	return finish(s, reply)
}
