package openvpn

import (
	"context"
	"crypto/tls"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// tlsChannel is TLS mode. It holds a few sessions: the active one, whose keys
// carry the packets, and attempts at a next one, which touch nothing until they
// have succeeded.
//
// A session has up to three keys: the one to send with, the one before it, which
// is still good for receiving, and one under negotiation. Each negotiation is a
// TLS connection in a goroutine of its own over a reliable stream of control
// packets; that goroutine blocks in key.Read and is ended by closing the key.
type tlsChannel struct {
	l        *link
	t        *TLS
	wrap     wrapping
	tls      *tls.Config
	options  string
	ours     peerInfo
	wrapTime uint32
	ctx      context.Context // ends with stop; only for handshakes
	cancel   context.CancelFunc
	wg       sync.WaitGroup // one per negotiation

	out  atomic.Pointer[outlet]
	data dataKeys

	mu       sync.Mutex
	sessions []*session // guarded by mu, oldest first
	active   *session   // guarded by mu, one of sessions
	retryAt  time.Time  // guarded by mu: when to try again of our own accord
	failures uint       // guarded by mu: attempts that failed in a row
	tokens   float64    // guarded by mu: attempts that strangers may start now
	filled   time.Time  // guarded by mu: when tokens was reckoned
	outbox   []parcel   // guarded by mu: what to send after unlocking
	wrapID   uint32     // guarded by mu: last id of the configured protection
	stopped  bool       // guarded by mu
}

// parcel is a packet that waits to be sent.
type parcel struct {
	to path
	p  []byte
}

const (
	// maxSessions, attemptBurst and attemptRate bound what strangers can start.
	maxSessions  = 4
	attemptBurst = 8
	attemptRate  = 1 // per second
	// retryPause is the pause after a failed attempt of ours; it doubles up to
	// maxRetryPause. Attempts of the peer are taken up at once in any case.
	retryPause    = 2 * time.Second
	maxRetryPause = 16 * time.Second
	// controlLimit is the largest control packet that is sent, that of 2.6.
	controlLimit = 1250
	// maxKeyIDBeforeReneg is the packet id at which a key is replaced.
	maxKeyIDBeforeReneg = 0xff000000
	// smallBlockLimit is how many bytes pass under a key of a cipher with 64 bit
	// blocks, as in real peers.
	smallBlockLimit = 64 << 20
	// oldKeyLife is how long an old key is good for receiving (tran-window).
	oldKeyLife = time.Hour
	// switchAfter is how long after a renegotiation the old key sends, if the peer
	// does not use the new one before. Real peers may need a second to install it.
	switchAfter = 2 * time.Second
)

func newTLSChannel(l *link) (*tlsChannel, error) {
	cfg := &l.e.cfg
	t := cfg.TLS
	wrapTime, err := l.e.clock.next()
	if err != nil {
		return nil, err
	}
	c := &tlsChannel{
		l: l, t: t, wrap: newWrapping(t, cfg.Digest), tls: tlsConfig(t, cfg.Now), wrapTime: wrapTime,
		ours: peerInfo{ciphers: t.Ciphers, proto: protoSupported &^ t.protoMask}, tokens: attemptBurst, filled: time.Now(),
	}
	if t.silent {
		c.ours = peerInfo{}
	}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	spec, known := cipherSpecOf(t.Fallback)
	if !known {
		spec, _ = cipherSpecOf(CipherBlowfishCBC) // what real peers announce then
	}
	facts := optionFacts{
		transport: cfg.Transport, mtu: cfg.MTU, local: cfg.Address, remote: cfg.PeerAddress, ipv6: cfg.IPv6,
		framing: cfg.Framing, fragment: cfg.Fragment != 0, cipher: spec, digest: cfg.Digest,
		tls: true, tlsAuth: t.Wrap == WrapAuth, role: t.Role,
	}
	if t.Wrap == WrapAuth {
		facts.direction = t.WrapDirection
	}
	c.options = optionsString(facts)
	return c, nil
}

func (c *tlsChannel) outlet() (*outlet, bool) {
	out := c.out.Load()
	return out, out != nil
}

func (c *tlsChannel) receive(from path, p []byte) ([]byte, bool, error) {
	switch op := p[0] >> 3; op {
	case opDataV1, opDataV2:
		return c.receiveData(from, p, op)
	case opSoftReset, opControl, opAck, opResetClient, opResetServer:
		now := time.Now()
		c.mu.Lock()
		heard, err := c.control(from, p, now)
		c.pumpLocked(now)
		c.unlockAndSend()
		c.l.kick()
		return nil, heard, err
	}
	return nil, false, ReasonOpcode
}

// unlockAndSend sends what was put into the outbox, after unlocking.
func (c *tlsChannel) unlockAndSend() {
	box := c.outbox
	c.outbox = nil
	c.mu.Unlock()
	for _, m := range box {
		n, err := c.l.tr.send(m.to, [][]byte{m.p}, false)
		if err != nil {
			c.l.e.count.dropped[ReasonSend].Add(1)
			continue
		}
		c.l.e.count.sentPackets.Add(uint64(n))
		c.l.e.count.sentBytes.Add(uint64(len(m.p)))
	}
}

// control handles one control packet. Locked.
func (c *tlsChannel) control(from path, p []byte, now time.Time) (heard bool, err error) {
	if len(p) < controlHeader {
		return false, ReasonShort
	}
	op, keyID, sid := p[0]>>3, p[0]&maxKeyID, sessionID(p[1:controlHeader])
	if sid == (sessionID{}) {
		return false, ReasonMalformed
	}
	reset := op == opResetClient || op == opResetServer
	if reset && keyID != 0 {
		return false, ReasonMalformed
	}
	if op == opResetClient && c.t.Role == TLSClient || op == opResetServer && c.t.Role == TLSServer {
		return false, ReasonRole
	}
	s := c.find(sid)
	if s == nil && !reset {
		return false, ReasonSession
	}
	wrap := c.wrap
	if s != nil && keyID > 0 && s.dynWrap != nil {
		wrap = s.dynWrap
	}
	u, err := wrap.open(p)
	if err != nil {
		return false, err
	}
	packet, err := parseControl(u.first, u.sid, u.body)
	if err != nil {
		return false, err
	}
	if s == nil {
		if s, err = c.greet(from, &packet, now); err != nil {
			return false, err
		}
	}
	window := &s.seen
	if wrap == s.dynWrap && s.dynWrap != nil {
		window = &s.dynSeen
	}
	if u.id != 0 || c.wrapped(wrap) {
		if !window.accept(u.time, u.id) {
			return false, ReasonReplay
		}
	}
	if from != s.path {
		if !c.wrapped(wrap) || c.l.fixed.IsValid() {
			return false, ReasonAddress
		}
		s.path = from // the packet is authentic
	}
	news, err := s.handle(c, &packet, now)
	return news && (s == c.active || c.active == nil), err
}

func (c *tlsChannel) wrapped(w wrapping) bool { return w.overhead() > 0 }

// find returns the session of a peer's session id. Locked.
func (c *tlsChannel) find(remote sessionID) *session {
	at := slices.IndexFunc(c.sessions, func(s *session) bool { return s.bound && s.remote == remote })
	if at < 0 {
		return nil
	}
	return c.sessions[at]
}

// greet finds or makes the session for a hard reset of a session id that is new.
// Locked.
func (c *tlsChannel) greet(from path, p *controlPacket, now time.Time) (*session, error) {
	free := func(s *session) bool {
		return !s.bound && s.path == from && (len(p.acks) == 0 || s.local == p.ackSID)
	}
	if at := slices.IndexFunc(c.sessions, free); at >= 0 {
		c.sessions[at].bind(p.sid, now)
		return c.sessions[at], nil
	}
	if len(p.acks) > 0 {
		return nil, ReasonSession // it answers a session that is gone
	}
	c.tokens = min(attemptBurst, c.tokens+attemptRate*now.Sub(c.filled).Seconds())
	c.filled = now
	if c.tokens < 1 {
		return nil, ReasonLimit
	}
	c.tokens--
	if len(c.sessions) == maxSessions {
		at := slices.IndexFunc(c.sessions, func(s *session) bool { return s != c.active })
		c.sessions[at].negotiating.reason = errStartedOver
		c.dropLocked(c.sessions[at])
	}
	s := c.startLocked(from, now)
	s.bind(p.sid, now)
	return s, nil
}

// startLocked begins a session with our hard reset.
func (c *tlsChannel) startLocked(to path, now time.Time) *session {
	s := &session{local: newSessionID(), path: to}
	s.negotiating = s.newKey(c, 0, now)
	op := uint8(opResetClient)
	if c.t.Role == TLSServer {
		op = opResetServer
	}
	s.negotiating.rel.push(op, nil, now)
	c.sessions = append(c.sessions, s)
	return s
}

// dropLocked ends a session and its negotiations.
func (c *tlsChannel) dropLocked(s *session) {
	for _, k := range s.keys() {
		k.closeLocked()
	}
	c.sessions = slices.DeleteFunc(c.sessions, func(o *session) bool { return o == s })
	if c.active == s {
		c.active = nil
	}
}

// pumpLocked puts everything that is due into the outbox, and starts the
// negotiations that are ready for it.
func (c *tlsChannel) pumpLocked(now time.Time) {
	for _, s := range c.sessions {
		for _, k := range s.keys() {
			if k == s.negotiating && !k.started && s.bound && k.rel.idle() && k.rel.expect > 0 && !c.stopped {
				k.started = true
				c.wg.Go(func() { c.negotiate(s, k) }) // ends when k is closed
			}
			k.pumpLocked(c, s, now)
		}
	}
}

func (c *tlsChannel) tick(now time.Time) time.Time {
	c.mu.Lock()
	if c.stopped {
		c.mu.Unlock()
		return time.Time{}
	}
	var next time.Time
	for _, s := range slices.Clone(c.sessions) {
		next = earlier(next, s.tickLocked(c, now))
	}
	to := c.l.tr.peer()
	trying := c.active != nil || slices.ContainsFunc(c.sessions, func(s *session) bool { return s.path == to })
	if to.valid() && !trying {
		if !now.Before(c.retryAt) {
			c.startLocked(to, now)
		} else {
			next = earlier(next, c.retryAt)
		}
	}
	c.pumpLocked(now)
	for _, s := range c.sessions {
		for _, k := range s.keys() {
			next = earlier(next, k.rel.nextDue())
			if k == s.negotiating {
				next = earlier(next, k.deadline)
			}
		}
	}
	c.unlockAndSend()
	return next
}

// abandonLocked ends an attempt that failed and sets when to try again.
func (c *tlsChannel) abandonLocked(s *session, now time.Time) {
	c.dropLocked(s)
	c.retryAt = now.Add(min(retryPause<<min(c.failures, 8), maxRetryPause))
	c.failures++
}

// failed counts and records an attempt that did not succeed, and forgets it.
func (c *tlsChannel) failed(s *session, k *key, err error) {
	c.mu.Lock()
	if c.stopped || k.closed && k.reason == nil {
		c.mu.Unlock()
		return
	}
	if k.reason != nil {
		err = k.reason
	}
	now := time.Now()
	c.pumpLocked(now) // the TLS alert, once
	k.closeLocked()
	switch {
	case s.negotiating != k: // an old key
	case s == c.active:
		s.negotiating = nil
		s.renegAt = now.Add(renegRetry)
	default:
		c.abandonLocked(s, now)
	}
	peer := s.path
	c.unlockAndSend()
	reason := attemptReason(err)
	c.l.e.dropped(reason, peer)
	c.l.e.log.Debug("negotiation ended", "peer", peer.addr, "reason", reason.String(), "err", err)
	c.l.e.update(func(st *Status) { st.LastError = "negotiation: " + err.Error() })
	c.l.kick()
}

// leave says goodbye over the control channel where that was agreed on, else
// like static key mode.
func (c *tlsChannel) leave() {
	c.mu.Lock()
	s := c.active
	if s == nil {
		c.mu.Unlock()
		return
	}
	k, byControl := s.primary, s.agreed.exit
	c.mu.Unlock()
	if !byControl {
		for range 2 {
			c.l.say(occMessage(occExit, ""))
		}
		return
	}
	if _, err := k.conn.Write([]byte("EXIT\x00")); err != nil {
		return
	}
	deadline := time.AfterFunc(leaveTime, k.wake)
	defer deadline.Stop()
	until := time.Now().Add(leaveTime)
	c.mu.Lock()
	defer c.mu.Unlock()
	for !k.rel.idle() && !k.closed && time.Now().Before(until) {
		k.cond.Wait()
	}
}

func (c *tlsChannel) stop() {
	c.cancel()
	c.mu.Lock()
	c.stopped = true
	for _, s := range slices.Clone(c.sessions) {
		c.dropLocked(s)
	}
	c.out.Store(nil)
	c.data.set(nil)
	c.mu.Unlock()
	c.wg.Wait()
}
