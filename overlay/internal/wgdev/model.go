package wgdev

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// model is a Device that keeps WireGuard's rules about handshakes, sessions and
// addresses, without its cryptography. It has six goroutines and one timer
// however many peers it has, and works in a testing/synctest bubble.
type model struct {
	log      *slog.Logger
	tun      *guard
	bind     *spotter
	endpoint func(trust.GatewayID) string
	own      trust.ExchangeKey
	mtu      int
	clock    func() time.Time
	epoch    time.Time // times of the sessions count from here
	sessions *sessions

	applying sync.Mutex // one Apply at a time
	running  sync.WaitGroup
	closing  chan struct{}
	once     sync.Once
	done     chan struct{}
	err      error         // of Close; valid once done is closed
	earlier  chan struct{} // capacity 1: sleeping has changed

	mu       sync.Mutex // guards all below
	random   *rand.Rand
	table    *table
	peers    map[trust.ExchangeKey]*modelPeer
	allowed  *allowed
	indices  map[uint32]modelIndex // of handshakes and sessions
	schedule schedule
	sleeping int64   // when the schedule is looked at next
	out      *outbox // of who holds mu
}

// never is later than all times of a model.
const never = math.MaxInt64

// modelIndex is what an index leads to: a session, or the handshake of a peer.
type modelIndex struct {
	peer    *modelPeer
	session *modelSession
}

// ModelOptions are what a model has in addition to a Config.
type ModelOptions struct {
	// Now is the wall clock of the gateway, which the timestamps of its
	// handshakes are taken from; it may be wrong and jump. Nil means time.Now.
	// Everything else, LastHandshake too, goes by package time.
	Now func() time.Time
	// Seed makes the random choices of the model repeatable, in the same
	// testing/synctest bubble at the same time with the same key.
	Seed uint64
}

// OpenModel makes a device without peers that stands for one of WireGuard in a
// simulation. It has WireGuard's messages in their true sizes and at their true
// times, and treats its peers as WireGuard does: the same tests hold for both.
// It does not understand real ones. Nothing is secret: who can read its
// messages, or knows a public key, can forge them.
//
// Left out are cookies (it is never under load), preshared keys, persistent
// keepalives and counters near their end, which no gateway lives to see.
//
// Of the Config, Device, MTU, Bind, PrivateKey, EndpointText and Logger count.
// A nil Device means one that sends nothing and drops what arrives. The device
// owns Device and closes it, also when OpenModel fails. Errors are as with Open.
func OpenModel(c Config, o ModelOptions) (Device, error) {
	if c.Device == nil {
		c.Device = NewTap(c.MTU, nil)
	}
	c.Kind, c.Name = Given, ""
	c.Logger = cmp.Or(c.Logger, slog.New(slog.DiscardHandler))
	if err := c.validate(); err != nil {
		return nil, errors.Join(err, c.Device.Close())
	}
	mtu, err := c.Device.MTU()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("mtu of the given device: %w", err), c.Device.Close())
	}
	m := newModel(c, o, cmp.Or(c.MTU, mtu))
	receive, _, err := m.bind.Open(0)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start wireguard: %w", err), c.Device.Close())
	}
	// All of these end in Close.
	for _, f := range receive {
		m.running.Go(func() { m.receive(f) })
	}
	m.running.Go(m.read)
	m.running.Go(m.run)
	m.running.Go(func() { m.sessions.run(m.closing) })
	m.running.Go(m.drain)
	go m.watch()
	return m, nil
}

func newModel(c Config, o ModelOptions, mtu int) *model {
	m := &model{
		log:      c.Logger,
		tun:      newGuard(c.Device),
		endpoint: c.EndpointText,
		own:      trust.ExchangeKey(c.PrivateKey.PublicKey().Bytes()),
		mtu:      mtu,
		clock:    o.Now,
		epoch:    time.Now(),
		closing:  make(chan struct{}),
		done:     make(chan struct{}),
		earlier:  make(chan struct{}, 1),
		peers:    make(map[trust.ExchangeKey]*modelPeer),
		allowed:  newAllowed(),
		indices:  make(map[uint32]modelIndex),
		sleeping: never,
	}
	if m.clock == nil {
		m.clock = time.Now
	}
	m.table = &table{own: m.own}
	m.sessions = newSessions(m, m.own)
	m.bind = newSpotter(c.Bind, m.sessions)
	var seed [32]byte
	copy(seed[:], m.own[:])
	for i := range 8 {
		seed[i] ^= byte(o.Seed >> (8 * i))
		seed[8+i] ^= byte(m.epoch.UnixNano() >> (8 * i)) // a later run is another one
	}
	m.random = rand.New(rand.NewChaCha8(seed)) //nolint:gosec // repeatable on purpose
	return m
}

func (m *model) now() int64            { return int64(time.Since(m.epoch)) + 1 } // never zero
func (m *model) jitter() time.Duration { return time.Duration(m.random.Int64N(int64(rekeyJitter))) }

func (m *model) newSecret() (s secret) {
	for i := range s {
		s[i] = byte(m.random.Uint32())
	}
	return s
}

func (m *model) newIndex() uint32 {
	for {
		i := m.random.Uint32()
		if _, taken := m.indices[i]; i != 0 && !taken {
			return i
		}
	}
}

func (m *model) Apply(ctx context.Context, changes engine.Changes) error {
	m.applying.Lock()
	defer m.applying.Unlock()
	if m.isClosed() {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	next, err := m.table.with(changes)
	if err != nil {
		return err
	}
	endpoints, err := parseEndpoints(m.bind, m.endpoint, changes)
	if err != nil {
		return err
	}
	m.bind.follow(changes, endpoints)
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isClosed() {
		return ErrClosed
	}
	for _, c := range changes {
		m.change(c, endpoints)
	}
	m.table = next
	return nil
}

// change makes a change that was found to be right.
func (m *model) change(c engine.Change, endpoints map[trust.GatewayID]conn.Endpoint) {
	p := m.peers[c.Key]
	switch c.Op {
	case engine.AddPeer:
		if p == nil {
			m.peers[c.Key] = &modelPeer{key: c.Key, endpoint: endpoints[c.Peer], lastSent: m.now() - int64(rekeyTimeout), slot: -1}
		}
	case engine.RemovePeer:
		if p != nil {
			m.remove(p)
			delete(m.peers, c.Key)
		}
	case engine.AddPrefix:
		m.allowed.set(c.Prefix, p)
	case engine.RemovePrefix:
		m.allowed.remove(c.Prefix, p)
	}
}

func (m *model) remove(p *modelPeer) {
	m.zero(p)
	m.unschedule(p)
	m.allowed.removeAll(p)
}

func (m *model) Peers() []Peer {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.table.list()
}

func (m *model) Stats() map[trust.ExchangeKey]PeerStats {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make(map[trust.ExchangeKey]PeerStats, len(m.peers))
	for key, p := range m.peers {
		out[key] = PeerStats{Rx: p.rx, Tx: p.tx.Load(), LastHandshake: p.lastHandshake()}
	}
	return out
}

func (m *model) caller(b []byte) (trust.ExchangeKey, bool) {
	msg, ok := parseInitiation(b, m.own)
	return msg.from, ok
}

func (m *model) renew(key trust.ExchangeKey) {
	m.applying.Lock()
	defer m.applying.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.peers[key]
	if old == nil {
		return
	}
	endpoints := map[trust.GatewayID]conn.Endpoint{m.table.peers[key]: old.endpoint}
	for _, c := range m.table.renewal(key) {
		m.change(c, endpoints)
	}
	peer := m.peers[key]
	peer.rx, peer.last = old.rx, old.last
	peer.tx.Store(old.tx.Load())
}

func (m *model) Restart(key trust.ExchangeKey) error  { return m.session(key, true) }
func (m *model) Initiate(key trust.ExchangeKey) error { return m.session(key, false) }

func (m *model) session(key trust.ExchangeKey, afresh bool) error {
	m.mu.Lock()
	known := m.peers[key] != nil
	m.mu.Unlock()
	switch {
	case m.isClosed():
		return ErrClosed
	case !known:
		return ErrNoPeer
	}
	m.sessions.want(key, afresh)
	return nil
}

func (m *model) Netstack() *Netstack   { return nil }
func (m *model) Name() string          { return "" }
func (m *model) MTU() int              { return m.mtu }
func (m *model) Done() <-chan struct{} { return m.done }

func (m *model) Err() error {
	select {
	case <-m.tun.failed:
		return fmt.Errorf("interface went away: %w", m.tun.cause)
	default:
		return nil
	}
}

func (m *model) Close() error {
	m.once.Do(func() {
		close(m.closing)
		m.err = errors.Join(m.tun.Close(), m.bind.Close())
		m.running.Wait()
		m.mu.Lock()
		for _, p := range m.peers {
			m.remove(p)
		}
		clear(m.peers)
		m.table = &table{own: m.own}
		m.mu.Unlock()
		close(m.done)
	})
	<-m.done
	return m.err
}

func (m *model) isClosed() bool {
	select {
	case <-m.closing:
		return true
	default:
		return false
	}
}
