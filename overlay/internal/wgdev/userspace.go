package wgdev

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// userspace is a Device that wireguard-go drives.
type userspace struct {
	name     string
	mtu      int
	bubble   bool // see Config.Bubble
	bind     *spotter
	endpoint func(trust.GatewayID) string
	private  *ecdh.PrivateKey
	dev      *device.Device
	tun      *guard
	stack    *Netstack // nil unless in process
	control  *control  // nil without a control socket
	table    atomic.Pointer[table]
	sessions *sessions

	counting sync.Mutex                      // guards before
	before   map[trust.ExchangeKey]PeerStats // of peers that were made anew, until then

	applying  sync.Mutex     // one Apply at a time
	beginning sync.WaitGroup // sessions.run
	answering sync.WaitGroup // control.run
	closing   chan struct{}
	once      sync.Once
	done      chan struct{}
	err       error // of Close; valid once done is closed
}

// openUserspace takes over t, also when it fails.
func openUserspace(c Config, t tun.Device, stack *Netstack, mtu int) (*userspace, error) {
	d := &userspace{
		mtu:      mtu,
		bubble:   c.Bubble,
		endpoint: c.EndpointText,
		private:  c.PrivateKey,
		stack:    stack,
		tun:      newGuard(t),
		closing:  make(chan struct{}),
		done:     make(chan struct{}),
		before:   make(map[trust.ExchangeKey]PeerStats),
	}
	d.table.Store(&table{own: trust.ExchangeKey(c.PrivateKey.PublicKey().Bytes())})
	if c.Kind == TUN {
		d.name = c.Name
	}
	d.sessions = newSessions(d, d.table.Load().own)
	d.bind = newSpotter(c.Bind, d.sessions)
	d.dev = device.NewDevice(d.tun, d.bind, newLogger(c.Logger))
	d.dev.DisableSomeRoamingForBrokenMobileSemantics()
	if err := d.dev.SetPrivateKey(device.NoisePrivateKey(c.PrivateKey.Bytes())); err != nil {
		d.dev.Close()
		return nil, fmt.Errorf("set private key: %w", err)
	}
	// The interface of a TUN device is still down and says when that changes.
	if c.Kind != TUN {
		if err := d.dev.Up(); err != nil {
			d.dev.Close()
			return nil, fmt.Errorf("start wireguard: %w", err)
		}
	}
	if c.ControlSocket && c.Name != "" {
		var err error
		if d.control, err = openControl(controlDir, c.Name, d.dev.IpcGetOperation); err != nil {
			c.Logger.Warn("no control socket for wg", "err", err)
		}
	}
	// All end in Close; the last one closes the device if its interface goes away.
	d.beginning.Go(func() { d.sessions.run(d.closing) })
	if d.control != nil {
		d.answering.Go(d.control.run)
	}
	go d.watch()
	return d, nil
}

func (d *userspace) Apply(ctx context.Context, changes engine.Changes) error {
	d.applying.Lock()
	defer d.applying.Unlock()
	if d.isClosed() {
		return ErrClosed
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	next, err := d.table.Load().with(changes)
	if err != nil {
		return err
	}
	endpoints, err := parseEndpoints(d.bind, d.endpoint, changes)
	if err != nil {
		return err
	}
	d.bind.follow(changes, endpoints)
	if err := d.set(changes); err != nil {
		if d.isClosed() {
			return ErrClosed
		}
		return err
	}
	d.table.Store(next)
	d.counting.Lock()
	defer d.counting.Unlock()
	for _, c := range changes {
		if c.Op == engine.RemovePeer {
			delete(d.before, c.Key)
		}
	}
	return nil
}

// set makes changes that were found to be right.
func (d *userspace) set(changes engine.Changes) error {
	if d.bubble {
		return d.setInBubble(changes)
	}
	if len(changes) == 0 {
		return nil
	}
	return d.dev.IpcSet(render(changes, d.endpoint))
}

// setInBubble gets hold of every new peer before it can be removed again.
func (d *userspace) setInBubble(changes engine.Changes) error {
	for _, c := range changes {
		if err := d.dev.IpcSet(render(engine.Changes{c}, d.endpoint)); err != nil {
			return err
		}
		if c.Op != engine.AddPeer {
			continue
		}
		if p := d.dev.LookupPeer(device.NoisePublicKey(c.Key)); p != nil {
			if err := disarm(p); err != nil {
				return err
			}
		}
	}
	return nil
}

func (d *userspace) Peers() []Peer {
	states, err := d.states()
	if err != nil {
		return nil
	}
	allowed := make(map[trust.ExchangeKey][]netip.Prefix, len(states))
	ids := make(map[trust.ExchangeKey]trust.GatewayID, len(states))
	known := d.table.Load()
	for key, s := range states {
		ids[key], allowed[key] = known.peers[key], s.allowed
	}
	return (&table{peers: ids}).listWith(allowed)
}

func (d *userspace) Stats() map[trust.ExchangeKey]PeerStats {
	states, err := d.states()
	if err != nil {
		return map[trust.ExchangeKey]PeerStats{}
	}
	out := make(map[trust.ExchangeKey]PeerStats, len(states))
	d.counting.Lock()
	defer d.counting.Unlock()
	for key, s := range states {
		out[key] = s.stats.with(d.before[key])
	}
	return out
}

// states asks the device itself.
func (d *userspace) states() (map[trust.ExchangeKey]*state, error) {
	var b bytes.Buffer
	if err := d.dev.IpcGetOperation(&b); err != nil {
		return nil, err
	}
	return parse(b.Bytes())
}

// latest and start are what sessions needs.

func (d *userspace) latest() (func(trust.ExchangeKey) (time.Time, bool), error) {
	states, err := d.states()
	if err != nil {
		return nil, err
	}
	return func(key trust.ExchangeKey) (time.Time, bool) {
		if s := states[key]; s != nil {
			return s.stats.LastHandshake, true
		}
		return time.Time{}, false
	}, nil
}

func (d *userspace) start(key trust.ExchangeKey, afresh bool) bool {
	peer := d.dev.LookupPeer(device.NoisePublicKey(key))
	if peer == nil {
		return false
	}
	if afresh {
		peer.ExpireCurrentKeypairs()
		_ = peer.SendHandshakeInitiation(false) // logged there, and tried again by timers
	} else {
		peer.SendKeepalive() // begins a handshake if there is none
	}
	return true
}

func (d *userspace) caller(initiation []byte) (trust.ExchangeKey, bool) {
	return caller(d.private, initiation)
}

func (d *userspace) renew(key trust.ExchangeKey) {
	d.applying.Lock()
	defer d.applying.Unlock()
	changes := d.table.Load().renewal(key)
	states, err := d.states()
	if len(changes) == 0 || err != nil || states[key] == nil {
		return
	}
	d.counting.Lock()
	d.before[key] = states[key].stats.with(d.before[key])
	d.counting.Unlock()
	_ = d.set(changes) // it fails when the device is closed, and then all is over
}

func (d *userspace) Restart(key trust.ExchangeKey) error  { return d.session(key, true) }
func (d *userspace) Initiate(key trust.ExchangeKey) error { return d.session(key, false) }

func (d *userspace) session(key trust.ExchangeKey, afresh bool) error {
	if d.isClosed() {
		return ErrClosed
	}
	if _, known := d.table.Load().peers[key]; !known {
		return ErrNoPeer
	}
	d.sessions.want(key, afresh)
	return nil
}

func (d *userspace) Netstack() *Netstack   { return d.stack }
func (d *userspace) Name() string          { return d.name }
func (d *userspace) MTU() int              { return d.mtu }
func (d *userspace) Done() <-chan struct{} { return d.done }

func (d *userspace) Err() error {
	select {
	case <-d.tun.failed:
		return fmt.Errorf("interface %s went away: %w", d.name, d.tun.cause)
	default:
		return nil
	}
}

// Close stops what uses the device before the device: a handshake that is begun
// while wireguard-go closes would write to a closed queue.
func (d *userspace) Close() error {
	d.once.Do(func() {
		close(d.closing)
		d.beginning.Wait()
		var errs []error
		if d.control != nil {
			errs = append(errs, d.control.close())
		}
		d.dev.Close()
		d.answering.Wait()
		d.err = errors.Join(append(errs, d.tun.closeErr)...)
		close(d.done)
	})
	<-d.done
	return d.err
}

func (d *userspace) isClosed() bool {
	select {
	case <-d.closing:
		return true
	default:
		return false
	}
}

func (d *userspace) watch() {
	select {
	case <-d.tun.failed:
		_ = d.Close() // whoever calls Close gets its error
	case <-d.closing:
	}
}

// guard stands between wireguard-go and the tun.Device. When the interface
// fails, wireguard-go would close itself under the feet of those who use it; the
// guard says so instead and waits to be closed in order.
type guard struct {
	tun.Device
	failed   chan struct{} // closed when the interface has failed
	cause    error         // valid once failed is closed
	closed   chan struct{}
	closeErr error
	failOnce sync.Once
}

func newGuard(t tun.Device) *guard {
	return &guard{Device: t, failed: make(chan struct{}), closed: make(chan struct{})}
}

// Read is called by one goroutine of wireguard-go.
func (g *guard) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	n, err := g.Device.Read(bufs, sizes, offset)
	if err == nil || errors.Is(err, tun.ErrTooManySegments) {
		return n, err
	}
	g.failOnce.Do(func() {
		select {
		case <-g.closed:
		default:
			g.cause = err
			close(g.failed)
		}
	})
	<-g.closed
	return 0, os.ErrClosed
}

// Close is called once, by wireguard-go.
func (g *guard) Close() error {
	close(g.closed)
	g.closeErr = g.Device.Close()
	return g.closeErr
}
