package wgdev

import (
	"math"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/replay"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Constants of WireGuard's whitepaper, section 6.1.
const (
	rekeyAfterTime      = 120 * time.Second
	rejectAfterTime     = 180 * time.Second
	rekeyTimeout        = 5 * time.Second
	keepaliveTimeout    = 10 * time.Second
	rekeyAfterMessages  = 1 << 60
	rejectAfterMessages = math.MaxUint64 - 1<<13
)

// Constants that the whitepaper leaves to implementations: those of
// wireguard-go (device/constants.go, device/queueconstants_default.go).
const (
	// maxRetransmits lets the last attempt be the first one after the 90 s of
	// Rekey-Attempt-Time.
	maxRetransmits = 18
	// rekeyJitter is added to waiting times, from zero to this.
	rekeyJitter = 334 * time.Millisecond
	// initiationEvery is how often an initiation of one peer is looked at.
	initiationEvery = 20 * time.Millisecond
	// maxStaged is how many packets wait for a session.
	maxStaged = 128
)

// modelPeer is what a model knows of a peer. Guarded by model.mu, except for
// what says otherwise. Times are nanoseconds since the model was opened; zero
// deadlines are not set.
type modelPeer struct {
	key      trust.ExchangeKey // does not change
	endpoint conn.Endpoint     // does not change
	tx       atomic.Uint64     // not guarded
	rx       uint64
	last     int64 // handshake that succeeded, Unix time in ns; zero: none

	// Handshake. lastSent is when we sent something of one.
	initiated    bool // we began one that has not been answered
	localIndex   uint32
	nonce        secret
	newest       timestamp // of the initiations of the peer
	lastConsumed int64
	lastSent     int64

	// Sessions. We send with current. next is one that the peer has not used
	// yet, and so may not know; previous may still be under way.
	current, previous, next *modelSession
	staged                  [][]byte // packets that wait for a session

	// Timers and what belongs to them.
	retransmit, sendKeepalive, newHandshake, zeroKeys int64
	attempts                                          uint8
	sentLastMinute                                    bool
	wake                                              int64 // when the peer is looked at; no later than any of them
	slot                                              int32 // in the schedule, -1: not in it
}

// modelSession is one end of a session.
type modelSession struct {
	key           secret
	initiator     bool
	local, remote uint32 // indices
	created       int64
	sent          uint64 // number of packets, and the next counter
	seen          window
}

// lastHandshake is zero if there was none.
func (p *modelPeer) lastHandshake() time.Time {
	if p.last == 0 {
		return time.Time{}
	}
	return time.Unix(0, p.last)
}

func (s *modelSession) age(now int64) time.Duration { return time.Duration(now - s.created) }

// usable reports whether we may send with the session.
func (s *modelSession) usable(now int64) bool {
	return s != nil && s.sent < rejectAfterMessages && s.age(now) < rejectAfterTime
}

// window knows which counters were used. It is wireguard-go's, without its
// kilobyte as long as a session is short.
type window struct {
	early uint64 // the first 64 counters
	full  *replay.Filter
}

// first reports whether a counter is used for the first time.
func (w *window) first(counter uint64) bool {
	if w.full == nil && counter < 64 {
		bit := uint64(1) << counter
		unused := w.early&bit == 0
		w.early |= bit
		return unused
	}
	if w.full == nil {
		w.full = new(replay.Filter)
		for i := range uint64(64) {
			if w.early&(1<<i) != 0 {
				w.full.ValidateCounter(i, rejectAfterMessages)
			}
		}
	}
	return w.full.ValidateCounter(counter, rejectAfterMessages)
}

// stage keeps a packet until there is a session. The oldest gives way.
func (p *modelPeer) stage(packet []byte) {
	if len(p.staged) == maxStaged {
		p.staged = append(p.staged[:0], p.staged[1:]...)
	}
	p.staged = append(p.staged, packet)
}

// due is the earliest deadline, zero if there is none.
func (p *modelPeer) due() int64 {
	next := int64(math.MaxInt64)
	for _, d := range [...]int64{p.retransmit, p.sendKeepalive, p.newHandshake, p.zeroKeys} {
		if d != 0 && d < next {
			next = d
		}
	}
	if next == math.MaxInt64 {
		return 0
	}
	return next
}

// begin starts the session that a handshake led to. The initiator knows that
// the other side has it; the responder does not yet.
func (m *model) begin(p *modelPeer, s *modelSession) {
	s.created = m.now()
	m.indices[s.local] = modelIndex{p, s}
	p.localIndex, p.initiated = 0, false
	previous, next, current := p.previous, p.next, p.current
	if s.initiator {
		if p.previous = current; next != nil {
			p.next, p.previous = nil, next
			m.forget(current)
		}
		m.forget(previous)
		p.current = s
	} else {
		p.next, p.previous = s, nil
		m.forget(next)
		m.forget(previous)
	}
	m.after(p, &p.zeroKeys, 3*rejectAfterTime)
}

// confirm makes a session that the other side has used the one to send with.
func (m *model) confirm(p *modelPeer, s *modelSession) {
	if p.next != s {
		return
	}
	m.forget(p.previous)
	p.previous, p.current, p.next = p.current, s, nil
	m.complete(p)
	m.sendStaged(p)
}

func (m *model) forget(s *modelSession) {
	if s != nil {
		delete(m.indices, s.local)
	}
}

// forgetHandshake drops the handshake that is under way.
func (m *model) forgetHandshake(p *modelPeer) {
	if p.localIndex != 0 {
		delete(m.indices, p.localIndex)
	}
	p.localIndex, p.initiated, p.nonce = 0, false, secret{}
}

// zero forgets everything that was negotiated.
func (m *model) zero(p *modelPeer) {
	for _, s := range [...]*modelSession{p.previous, p.current, p.next} {
		m.forget(s)
	}
	p.previous, p.current, p.next = nil, nil, nil
	m.forgetHandshake(p)
	p.staged = nil
}

// expire makes the sessions with a peer useless for sending.
func (m *model) expire(p *modelPeer) {
	m.forgetHandshake(p)
	p.lastSent = m.now() - int64(rekeyTimeout+time.Second)
	for _, s := range [...]*modelSession{p.current, p.next} {
		if s != nil {
			s.sent = rejectAfterMessages
		}
	}
}

// complete is called when a session is known to both sides.
func (m *model) complete(p *modelPeer) {
	p.retransmit, p.attempts, p.sentLastMinute = 0, 0, false
	p.last = time.Now().UnixNano()
}

// initiate begins a handshake, unless something of one was sent just now.
func (m *model) initiate(p *modelPeer, retry bool) {
	if !retry {
		p.attempts = 0
	}
	now := m.now()
	if time.Duration(now-p.lastSent) < rekeyTimeout {
		return
	}
	p.lastSent = now
	m.forgetHandshake(p)
	p.localIndex, p.nonce, p.initiated = m.newIndex(), m.newSecret(), true
	m.indices[p.localIndex] = modelIndex{peer: p}
	msg := initiation{sender: p.localIndex, nonce: p.nonce, from: m.own, at: stamp(m.clock())}
	p.sendKeepalive = 0
	m.post(p, msg.marshal(p.key))
	m.after(p, &p.retransmit, rekeyTimeout+m.jitter())
}

// receiveInitiation answers a peer that begins a handshake.
func (m *model) receiveInitiation(b []byte) {
	msg, ok := parseInitiation(b, m.own)
	p := m.peers[msg.from]
	if !ok || p == nil || string(msg.at[:]) <= string(p.newest[:]) {
		return
	}
	now := m.now()
	if p.lastConsumed != 0 && time.Duration(now-p.lastConsumed) <= initiationEvery {
		return
	}
	p.newest, p.lastConsumed, p.lastSent = msg.at, now, now
	p.newHandshake = 0
	p.rx += uint64(len(b))
	m.forgetHandshake(p)
	answer := response{sender: m.newIndex(), receiver: msg.sender, nonce: m.newSecret()}
	m.begin(p, &modelSession{key: answer.nonce.join(msg.nonce), local: answer.sender, remote: msg.sender})
	p.sendKeepalive = 0
	m.post(p, answer.marshal(msg.nonce))
}

// receiveResponse ends a handshake that we began.
func (m *model) receiveResponse(b []byte) {
	msg, ok := parseResponse(b)
	if !ok {
		return
	}
	at := m.indices[msg.receiver]
	p := at.peer
	if p == nil || at.session != nil || !p.initiated || !msg.answers(b, p.nonce) {
		return
	}
	p.rx += uint64(len(b))
	p.newHandshake = 0
	m.begin(p, &modelSession{key: msg.nonce.join(p.nonce), initiator: true, local: msg.receiver, remote: msg.sender})
	m.complete(p)
	m.keepalive(p)
}

// receiveData returns the packet that is to be given to the host, or nil.
func (m *model) receiveData(b []byte) []byte {
	if len(b) < dataOverhead {
		return nil
	}
	p, s := m.sessionOf(b)
	now := m.now()
	if s == nil || s.age(now) > rejectAfterTime {
		return nil
	}
	counter, packet, ok := openData(b, &s.key)
	if !ok || counter >= rejectAfterMessages || !s.seen.first(counter) {
		return nil
	}
	m.confirm(p, s)
	p.rx += uint64(len(b))
	if !p.sentLastMinute && p.current != nil && p.current.initiator &&
		p.current.age(now) > rejectAfterTime-keepaliveTimeout-rekeyTimeout {
		p.sentLastMinute = true
		m.initiate(p, false)
	}
	p.newHandshake = 0
	if len(packet) == 0 {
		return nil // a keepalive
	}
	if p.sendKeepalive == 0 {
		m.after(p, &p.sendKeepalive, keepaliveTimeout)
	}
	from, packet := source(packet)
	if !from.IsValid() || m.allowed.lookup(from) != p {
		return nil
	}
	return packet
}

// keepalive sends an empty packet, or begins a handshake for it.
func (m *model) keepalive(p *modelPeer) {
	if len(p.staged) == 0 {
		p.stage(make([]byte, headerSize, dataOverhead))
	}
	m.sendStaged(p)
}

// send sends or stages a packet, which has room for a header in front and for
// padding and seal behind it. It is copied if it has to wait.
func (m *model) send(p *modelPeer, b []byte) {
	if len(p.staged) == 0 && p.current.usable(m.now()) {
		m.sendWith(p, p.current, b)
		return
	}
	p.stage(append(make([]byte, 0, len(b)+sealSize+16), b...))
	m.sendStaged(p)
}

// sendStaged sends what waits, or begins a handshake if there is no session.
func (m *model) sendStaged(p *modelPeer) {
	if len(p.staged) == 0 {
		return
	}
	if !p.current.usable(m.now()) {
		m.initiate(p, false)
		return
	}
	staged := p.staged
	p.staged = nil
	for _, b := range staged {
		m.sendWith(p, p.current, b)
	}
}

func (m *model) sendWith(p *modelPeer, s *modelSession, b []byte) {
	isData := len(b) > headerSize
	m.post(p, sealData(b, s.remote, s.sent, &s.key, m.mtu))
	s.sent++
	p.sendKeepalive = 0
	if isData && p.newHandshake == 0 {
		m.after(p, &p.newHandshake, keepaliveTimeout+rekeyTimeout+m.jitter())
	}
	if s.sent > rekeyAfterMessages || s.initiator && s.age(m.now()) > rekeyAfterTime {
		m.initiate(p, false)
	}
}

// expired does what the timers of a peer are for.
func (m *model) expired(p *modelPeer, now int64) {
	passed := func(d *int64) bool {
		if *d == 0 || *d > now {
			return false
		}
		*d = 0
		return true
	}
	if passed(&p.retransmit) {
		m.retry(p)
	}
	if passed(&p.sendKeepalive) {
		// wireguard-go sets the timer again if more than one packet came, and
		// takes that back when the keepalive leaves its queue.
		m.keepalive(p)
	}
	if passed(&p.newHandshake) {
		m.initiate(p, false)
	}
	if passed(&p.zeroKeys) {
		m.zero(p)
	}
}

// retry is called when an initiation was not answered.
func (m *model) retry(p *modelPeer) {
	if p.attempts <= maxRetransmits {
		p.attempts++
		m.initiate(p, true)
		return
	}
	p.sendKeepalive = 0
	p.staged = nil
	if p.zeroKeys == 0 {
		m.after(p, &p.zeroKeys, 3*rejectAfterTime)
	}
}
