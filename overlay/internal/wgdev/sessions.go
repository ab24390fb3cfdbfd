package wgdev

import (
	"bytes"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Retries of a handshake that was asked for, or that begins when there is no
// session. WireGuard itself waits 5 s
// (RekeyTimeout), also when two handshakes that began at the same time have
// destroyed each other; so the two sides wait differently long here. Both are
// above the longest round trip on earth by cable and satellite, 0.7 s.
const (
	firstRetry  = time.Second             // of the side with the smaller public key
	secondRetry = 1700 * time.Millisecond // of the other side
	maxRetries  = 3                       // then WireGuard's own timer goes on
)

// Initiations that arrive are looked at, which costs two operations with keys
// (0.1 ms) for each: so many at once, and so many in a second.
const (
	maxArrived = 100
	arriveRate = 100
)

// sessions begins handshakes, in a goroutine of its own: those who want them
// must not wait for the device, because the device may be waiting for them.
type sessions struct {
	dev  starter
	own  trust.ExchangeKey
	wake chan struct{} // capacity 1
	// Initiations that arrived and may need help. What does not fit is dropped:
	// there will be another one.
	arrived chan []byte
	allowed *rate.Limiter // of arrived
	// How long to wait for a handshake, on the side with the smaller key and
	// on the other; not changed once there are peers.
	first, second time.Duration

	mu       sync.Mutex                 // guards the three below
	wanted   map[trust.ExchangeKey]bool // true: throw the old session away
	begun    map[trust.ExchangeKey]bool // the device has begun by itself
	answered map[trust.ExchangeKey]bool // the peer has begun

	pending map[trust.ExchangeKey]*attempt // of run alone
}

// starter is a device that can begin handshakes.
type starter interface {
	// latest returns a function that says when the last handshake with a peer
	// was, false if there is no such peer.
	latest() (func(trust.ExchangeKey) (time.Time, bool), error)
	// start begins a handshake with a peer: after throwing the session away, or
	// only if there is none. It reports false if there is no such peer.
	start(key trust.ExchangeKey, afresh bool) bool
	// caller says who has sent an initiation to us, false if it is not known.
	caller(initiation []byte) (trust.ExchangeKey, bool)
	// renew makes a peer anew. Its prefixes and what was counted stay.
	renew(key trust.ExchangeKey)
}

// attempt is a handshake that was begun and has not succeeded yet.
type attempt struct {
	before  time.Time // the handshake before; another one is a success
	due     time.Time
	retries int
	heard   bool // the peer tries as well
}

func newSessions(dev starter, own trust.ExchangeKey) *sessions {
	return &sessions{
		dev:      dev,
		own:      own,
		wake:     make(chan struct{}, 1),
		arrived:  make(chan []byte, maxArrived),
		allowed:  rate.NewLimiter(arriveRate, maxArrived),
		first:    firstRetry,
		second:   secondRetry,
		wanted:   make(map[trust.ExchangeKey]bool),
		begun:    make(map[trust.ExchangeKey]bool),
		answered: make(map[trust.ExchangeKey]bool),
		pending:  make(map[trust.ExchangeKey]*attempt),
	}
}

// want asks for a session and returns at once. Asking again before that one has
// begun changes nothing.
func (s *sessions) want(key trust.ExchangeKey, afresh bool) {
	s.mu.Lock()
	s.wanted[key] = s.wanted[key] || afresh
	s.mu.Unlock()
	s.wakeUp()
}

// noticed is told when the device begins to send initiations to a peer, by
// itself or because of us.
func (s *sessions) noticed(key trust.ExchangeKey) {
	s.mu.Lock()
	s.begun[key] = true
	s.mu.Unlock()
	s.wakeUp()
}

// responded is told when the device answers an initiation of a peer. The session
// that comes of it must not be thrown away before the peer could use it.
func (s *sessions) responded(key trust.ExchangeKey) {
	s.mu.Lock()
	s.answered[key] = true
	s.mu.Unlock()
	s.wakeUp()
}

func (s *sessions) postpone(answered map[trust.ExchangeKey]bool) {
	now := time.Now()
	for key := range answered {
		if a := s.pending[key]; a != nil {
			a.due = now.Add(s.wait(key))
		}
	}
}

// heard is told of the initiations that arrive. Those whose sender has a
// session need no attention.
//
// A gateway whose clock was set back cannot begin a session with those who know
// its later timestamps, and they do not tell it: so they begin one. If their
// clocks were set back as well, neither can, for as long as it was; so a peer
// that tries while we try in vain is made anew, which forgets its timestamp.
// Somebody who has recorded initiations of the peer could then have one
// accepted a second time, and would gain nothing: without the peer's keys no
// session comes of it, and no session that is good is given up for it.
func (s *sessions) heard(initiation []byte) {
	if !s.allowed.Allow() {
		return
	}
	select {
	case s.arrived <- initiation:
	default:
	}
}

func (s *sessions) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// run begins what is wanted until closing is closed.
func (s *sessions) run(closing <-chan struct{}) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-closing:
			return
		case b := <-s.arrived:
			s.look(b)
		case <-s.wake:
			s.mu.Lock()
			wanted, begun, answered := s.wanted, s.begun, s.answered
			s.wanted, s.begun = make(map[trust.ExchangeKey]bool), make(map[trust.ExchangeKey]bool)
			s.answered = make(map[trust.ExchangeKey]bool)
			s.mu.Unlock()
			s.postpone(answered)
			s.beginAll(wanted, begun)
		case <-timer.C:
			s.retry(time.Now())
		}
		if next, some := s.next(); some {
			timer.Reset(time.Until(next))
		}
	}
}

func (s *sessions) beginAll(wanted, begun map[trust.ExchangeKey]bool) {
	latest, err := s.dev.latest()
	if err != nil {
		return
	}
	for _, key := range ascending(wanted) {
		last, known := latest(key)
		if a := s.pending[key]; known && (a == nil || !last.Equal(a.before)) {
			s.begin(key, wanted[key], last)
		}
	}
	now := time.Now()
	for key := range begun {
		// A session that can still be used is not to be thrown away.
		if last, known := latest(key); known && s.pending[key] == nil && now.Sub(last) >= rejectAfterTime {
			s.pending[key] = &attempt{before: last, due: now.Add(s.wait(key))}
		}
	}
}

// look gives a peer that tries to begin a session the time that it needs, and
// help after that.
func (s *sessions) look(initiation []byte) {
	key, ok := s.dev.caller(initiation)
	if !ok {
		return
	}
	latest, err := s.dev.latest()
	if err != nil {
		return
	}
	now := time.Now()
	last, known := latest(key)
	if !known || now.Sub(last) < rejectAfterTime {
		return
	}
	a := s.pending[key]
	if a == nil {
		a = &attempt{before: last, due: now.Add(s.wait(key))}
		s.pending[key] = a
	}
	a.heard = true
}

func (s *sessions) begin(key trust.ExchangeKey, afresh bool, last time.Time) {
	now := time.Now()
	delete(s.pending, key)
	// Without afresh, any session that is not too old to send is good enough.
	if s.dev.start(key, afresh) && (afresh || now.Sub(last) >= rejectAfterTime) {
		s.pending[key] = &attempt{before: last, due: now.Add(s.wait(key))}
	}
}

// retry looks after the attempts that are due.
func (s *sessions) retry(now time.Time) {
	latest, err := s.dev.latest()
	if err != nil {
		return
	}
	for _, key := range ascending(s.pending) {
		a := s.pending[key]
		if now.Before(a.due) {
			continue
		}
		last, known := latest(key)
		if !known || !last.Equal(a.before) {
			delete(s.pending, key)
			continue
		}
		if a.retries == maxRetries {
			delete(s.pending, key)
			if a.heard {
				s.dev.renew(key)
				s.dev.start(key, false)
			}
			continue
		}
		a.retries++
		a.due = now.Add(s.wait(key))
		s.dev.start(key, true)
	}
}

// ascending makes the order the same in every run of a simulation.
func ascending[V any](m map[trust.ExchangeKey]V) []trust.ExchangeKey {
	return slices.SortedFunc(maps.Keys(m), func(a, b trust.ExchangeKey) int { return bytes.Compare(a[:], b[:]) })
}

func (s *sessions) wait(key trust.ExchangeKey) time.Duration {
	if bytes.Compare(s.own[:], key[:]) < 0 {
		return s.first
	}
	return s.second
}

// next is when the first attempt is due.
func (s *sessions) next() (next time.Time, some bool) {
	for _, a := range s.pending {
		if !some || a.due.Before(next) {
			next, some = a.due, true
		}
	}
	return next, some
}
