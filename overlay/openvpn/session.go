package openvpn

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"reflect"
	"slices"
	"sync"
	"time"
)

// session is one TLS session between two session ids. All fields are guarded by
// the lock of the channel.
type session struct {
	local  sessionID
	remote sessionID
	bound  bool // remote is known
	path   path

	seen    replayWindow
	dynWrap wrapping // protection of key ids from 1 on, nil: the configured one
	dynID   uint32
	dynSeen replayWindow

	agreed      agreement
	peerID      uint32
	primary     *key // sends, or will after switchAt
	old         *key // still receives
	negotiating *key
	renegAt     time.Time // when to negotiate the next key of our own accord, zero: never
	switchAt    time.Time // when primary takes over from old for sending, zero: it did
}

// renegRetry is the pause after a failed renegotiation.
const renegRetry = 10 * time.Second

// key is one negotiation and the keys that come of it.
type key struct {
	c        *tlsChannel
	id       uint8
	rel      reliable
	deadline time.Time
	started  bool
	conn     *tls.Conn

	cond   sync.Cond // on the lock of the channel
	in     []byte    // stream from the peer that TLS has not read
	out    []byte    // stream to the peer that is not in messages
	closed bool
	reason error // why it was closed, if that is worth telling
	behind bool  // TLS has read something that it may not have acted on

	data *dataKey
	born time.Time // when the data key was made
}

// maxStream bounds the stream that waits for TLS. A whole handshake with a chain
// of large certificates has less.
const maxStream = 64 << 10

// bind learns the peer's session id from its first packet.
func (s *session) bind(remote sessionID, now time.Time) {
	s.remote, s.bound = remote, true
	s.negotiating.rel.repeatNow(now)
}

// keys returns the keys that there are.
func (s *session) keys() []*key {
	return slices.DeleteFunc([]*key{s.negotiating, s.primary, s.old}, func(k *key) bool { return k == nil })
}

func (s *session) newKey(c *tlsChannel, id uint8, now time.Time) *key {
	k := &key{c: c, id: id, deadline: now.Add(c.t.HandshakeTimeout)}
	k.cond.L = &c.mu
	return k
}

// nextKeyID is the id of the next renegotiation.
func (s *session) nextKeyID() uint8 { return s.primary.id%maxKeyID + 1 }

// handle takes a control packet of this session and reports whether it brought
// anything new.
func (s *session) handle(c *tlsChannel, p *controlPacket, now time.Time) (news bool, err error) {
	if len(p.acks) > 0 && p.ackSID != s.local {
		return false, ReasonSession
	}
	if p.op == opSoftReset && s.negotiating == nil && s.primary != nil && p.keyID == s.nextKeyID() && p.id == 0 {
		s.renegotiate(c, now)
	}
	at := slices.IndexFunc(s.keys(), func(k *key) bool { return k.id == p.keyID })
	if at < 0 {
		return false, ReasonNoKey
	}
	k := s.keys()[at]
	for _, id := range p.acks {
		news = k.rel.acked(id, now) || news
	}
	if news {
		k.cond.Broadcast()
	}
	if p.op == opAck || p.op != opControl && p.id != 0 {
		// 2.6.14 as tcp-server now and then numbers a second reset 1 and then gives
		// the same number to its first TLS bytes (measured). A reset is always 0:
		// taking this one would swallow them.
		return news, nil
	}
	if len(k.in)+len(p.payload) > maxStream {
		return news, ReasonLimit // not acknowledged: it comes again
	}
	ready, fresh, ok := k.rel.receive(p.id, p.payload)
	if !ok {
		return news, ReasonMalformed
	}
	for _, payload := range ready {
		k.in = append(k.in, payload...)
	}
	k.cond.Broadcast()
	return news || fresh, nil
}

// renegotiate begins the next key with our soft reset. A real peer now forgets
// the key before the current one.
func (s *session) renegotiate(c *tlsChannel, now time.Time) {
	if !s.switchAt.IsZero() {
		s.switchLocked(c)
	}
	s.negotiating = s.newKey(c, s.nextKeyID(), now)
	s.negotiating.rel.push(opSoftReset, nil, now)
}

// tickLocked does what is due in this session and returns the next time.
func (s *session) tickLocked(c *tlsChannel, now time.Time) time.Time {
	if k := s.negotiating; k != nil && !now.Before(k.deadline) {
		c.expireLocked(s, k, now)
	}
	if s != c.active {
		return time.Time{}
	}
	if s.old != nil && now.Sub(s.primary.born) > oldKeyLife {
		s.retireOld(c)
	}
	if !s.switchAt.IsZero() && !now.Before(s.switchAt) && s.primary.settled() {
		s.switchLocked(c)
	}
	if s.negotiating == nil && (!s.renegAt.IsZero() && !now.Before(s.renegAt) || s.primary.data.worn()) {
		s.renegotiate(c, now)
	}
	next := now.Add(s.primary.data.checkAgain())
	if now.Before(s.switchAt) {
		next = earlier(next, s.switchAt)
	} // otherwise it waits for the peer, whose next packet brings us here
	if s.negotiating == nil {
		next = earlier(next, s.renegAt)
	}
	return next
}

// expireLocked ends a negotiation that took too long.
func (c *tlsChannel) expireLocked(s *session, k *key, now time.Time) {
	k.reason = errHandshakeTimeout
	started := k.started
	k.closeLocked()
	if started {
		return // its goroutine reports it
	}
	if s == c.active {
		s.negotiating, s.renegAt = nil, now.Add(renegRetry)
	} else {
		c.abandonLocked(s, now)
	}
	c.l.e.count.dropped[ReasonTLS].Add(1)
}

var errHandshakeTimeout = errors.New("the peer did not finish in time")

// switchLocked begins to send with the newest key.
func (s *session) switchLocked(c *tlsChannel) {
	s.switchAt = time.Time{}
	c.out.Store(&outlet{to: s.path, key: &s.primary.data.send, keyID: s.primary.id})
}

// retireOld forgets the key before the current one.
func (s *session) retireOld(c *tlsChannel) {
	s.old.closeLocked()
	s.old = nil
	c.publishLocked(s)
}

// publishLocked makes the data keys of the session those of the channel.
func (c *tlsChannel) publishLocked(s *session) {
	var keys [maxKeyID + 1]*dataKey
	for _, k := range s.keys() {
		if k.data != nil {
			keys[k.id] = k.data
		}
	}
	c.data.set(&keys)
}

// wrapFor returns the protection of a key id and the id for its next packet.
func (s *session) wrapFor(c *tlsChannel, keyID uint8) (wrapping, uint32) {
	if keyID > 0 && s.dynWrap != nil {
		s.dynID++
		return s.dynWrap, s.dynID
	}
	c.wrapID++
	return c.wrap, c.wrapID
}

// emit puts one control packet into the outbox.
func (k *key) emit(c *tlsChannel, s *session, p controlPacket) {
	p.keyID, p.sid = k.id, s.local
	if len(p.acks) > 0 {
		p.ackSID = s.remote
	}
	w, id := s.wrapFor(c, k.id)
	c.outbox = append(c.outbox, parcel{s.path, w.seal(p.first(), p.sid, id, c.wrapTime, p.body())})
}

// pumpLocked cuts the stream into messages and sends what is due.
func (k *key) pumpLocked(c *tlsChannel, s *session, now time.Time) {
	w := c.wrap
	if k.id > 0 && s.dynWrap != nil {
		w = s.dynWrap
	}
	limit := controlLimit - controlHeader - w.overhead() - 1 - 4*acksPerMessage - len(s.remote) - 4
	for len(k.out) > 0 && k.rel.room() {
		n := min(limit, len(k.out))
		k.rel.push(opControl, slices.Clone(k.out[:n]), now)
		k.out = k.out[n:]
	}
	for _, m := range k.rel.takeDue(now) {
		p := controlPacket{op: m.op, id: m.id, payload: m.payload}
		if s.bound && k.caughtUp() {
			p.acks = k.rel.takeAcks(acksPerMessage)
		}
		k.emit(c, s, p)
	}
	for s.bound && k.caughtUp() && len(k.rel.unacked) > 0 {
		k.emit(c, s, controlPacket{op: opAck, acks: k.rel.takeAcks(maxAcks)})
	}
}

// caughtUp reports whether TLS has acted on all of the peer's stream, so that it
// may be acknowledged: a real peer sends under the new key as soon as its last
// message is, and by then we must be able to receive.
func (k *key) caughtUp() bool { return len(k.in) == 0 && !k.behind }

// settled reports whether both sides can receive under this key. The peer can
// when it has all our messages; as server it also waits for the acknowledgement
// of its last one, which then is on its way before our first packet.
func (k *key) settled() bool { return k.rel.idle() && len(k.rel.unacked) == 0 }

func (k *key) closeLocked() {
	k.closed = true
	k.cond.Broadcast()
}

func (k *key) wake() {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	k.cond.Broadcast()
}

// Read gives the TLS library what came from the peer.
func (k *key) Read(b []byte) (int, error) {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	for len(k.in) == 0 && !k.closed {
		if k.behind {
			k.behind = false
			k.c.pumpLocked(time.Now())
			k.c.unlockAndSend()
			k.c.l.kick()
			k.c.mu.Lock()
			continue
		}
		k.cond.Wait()
	}
	if k.closed {
		return 0, net.ErrClosed
	}
	n := copy(b, k.in)
	k.in, k.behind = k.in[n:], true
	return n, nil
}

// Write takes what the TLS library has for the peer.
func (k *key) Write(b []byte) (int, error) {
	k.c.mu.Lock()
	if k.closed {
		k.c.mu.Unlock()
		return 0, net.ErrClosed
	}
	k.out = append(k.out, b...)
	k.behind = k.behind && len(k.in) > 0 // what TLS writes answers what it has read
	k.c.pumpLocked(time.Now())
	k.c.unlockAndSend()
	k.c.l.kick()
	return len(b), nil
}

// Close ends the stream.
func (k *key) Close() error {
	k.c.mu.Lock()
	defer k.c.mu.Unlock()
	k.closeLocked()
	return nil
}

// The rest of net.Conn, of which the TLS library needs nothing.

func (k *key) LocalAddr() net.Addr              { return streamAddr{} }
func (k *key) RemoteAddr() net.Addr             { return streamAddr{} }
func (k *key) SetDeadline(time.Time) error      { return nil }
func (k *key) SetReadDeadline(time.Time) error  { return nil }
func (k *key) SetWriteDeadline(time.Time) error { return nil }

// streamAddr is the address of a stream of control packets.
type streamAddr struct{}

func (streamAddr) Network() string { return "openvpn" }
func (streamAddr) String() string  { return "control channel" }

// negotiate runs TLS over a key's stream, agrees on data keys, and then reads
// control texts until the key is closed.
func (c *tlsChannel) negotiate(s *session, k *key) {
	conn := tls.Client(k, c.tls)
	if c.t.Role == TLSServer {
		conn = tls.Server(k, c.tls)
	}
	err := c.exchange(c.ctx, s, k, conn)
	if err == nil {
		err = c.readTexts(conn)
		c.l.e.log.Debug("control channel of a key ended", "err", err)
		return
	}
	c.failed(s, k, err)
}

// exchange does the handshake and both key messages, and installs the keys.
func (c *tlsChannel) exchange(ctx context.Context, s *session, k *key, conn *tls.Conn) error {
	if err := conn.HandshakeContext(ctx); err != nil {
		return err
	}
	info := ""
	if !c.t.silent {
		info = c.ours.encode()
	}
	ours := newKeyMessage(c.options, info)
	if c.t.Role == TLSClient {
		if _, err := conn.Write(ours.encode(TLSClient)); err != nil {
			return err
		}
		theirs, err := readKeyMessage(conn, TLSServer)
		if err != nil {
			return err
		}
		return c.install(s, k, conn, &ours, &theirs, nil)
	}
	theirs, err := readKeyMessage(conn, TLSClient)
	if err != nil {
		return err
	}
	return c.install(s, k, conn, &ours, &theirs, func() error {
		_, err := conn.Write(ours.encode(TLSServer))
		return err
	})
}

// readKeyMessage reads until the message is whole. Nothing of a well-behaved
// peer follows it at once.
func readKeyMessage(conn *tls.Conn, role Role) (keyMessage, error) {
	buf := make([]byte, 0, maxKeyMessage)
	for {
		if len(buf) == cap(buf) {
			return keyMessage{}, ReasonMalformed
		}
		n, err := conn.Read(buf[len(buf):cap(buf)])
		buf = buf[:len(buf)+n]
		if err != nil {
			return keyMessage{}, err
		}
		m, _, err := parseKeyMessage(role, buf)
		if !errors.Is(err, errIncomplete) {
			return m, err
		}
	}
}

// maxText bounds a control text.
const maxText = 1024

// readTexts acts on control texts: EXIT ends the connection, others are ignored.
func (c *tlsChannel) readTexts(conn *tls.Conn) error {
	var texts textReader
	buf := make([]byte, maxText)
	for {
		n, err := conn.Read(buf)
		if texts.exit(buf[:n]) {
			c.l.end(errPeerExit)
		}
		if err != nil {
			return err
		}
	}
}

// textReader finds control texts in a stream; each ends with a NUL. What is
// longer than maxText is skipped.
type textReader struct {
	text []byte
	skip bool
}

// exit takes a part of the stream and reports whether a text in it is EXIT.
func (r *textReader) exit(part []byte) bool {
	found := false
	for _, b := range part {
		switch {
		case b == 0:
			found = found || !r.skip && string(r.text) == "EXIT"
			r.text, r.skip = r.text[:0], false
		case len(r.text) == maxText:
			r.skip = true
		default:
			r.text = append(r.text, b)
		}
	}
	return found
}

// attemptReason sorts the error of an attempt.
func attemptReason(err error) Reason {
	if r := Reason(0); errors.As(err, &r) {
		return r
	}
	var cert *certificateError
	if errors.As(err, &cert) || certificateAlert(err) {
		return ReasonCertificate
	}
	return ReasonTLS
}

// certificateAlert tells the alerts (RFC 8446, section 6) of a peer that refuses
// our certificate: 42 to 46, 48 and 116. The TLS library keeps their type to
// itself, but not that it is a number.
func certificateAlert(err error) bool {
	var op *net.OpError
	if !errors.As(err, &op) || op.Op != "remote error" {
		return false
	}
	alert := reflect.ValueOf(op.Err)
	if alert.Kind() != reflect.Uint8 {
		return false
	}
	n := alert.Uint()
	return n >= 42 && n <= 46 || n == 48 || n == 116
}
