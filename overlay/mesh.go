package overlay

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	rand2 "math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/gossip"
	"github.com/planetmesh/planetmesh/overlay/internal/link"
	"github.com/planetmesh/planetmesh/overlay/internal/path"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/seam"
	"github.com/planetmesh/planetmesh/overlay/internal/stream"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wgdev"
)

// Mesh is a running gateway: this site's end of the network of all sites. All
// its methods are safe for concurrent use.
type Mesh struct {
	cfg         Config
	log         *slog.Logger
	hooks       *seam.Hooks
	self        *self
	boot        trust.BootID
	started     time.Time
	book        *record.Book
	revocations *trust.Revocations
	authority   *authority // nil without an issuing key
	port        *link.Port
	prover      *path.Prover
	streams     *stream.Transport
	gossip      *gossip.Gossip
	device      wgdev.Device
	pings       pings
	host        host
	events      watchers
	counters    counters
	dirty       chan struct{} // capacity 1: the desired state may have changed
	unsaved     chan struct{} // capacity 1: records or peers on disk are old
	republish   chan struct{} // capacity 1: the own record is old
	newcomer    chan struct{} // capacity 1: others should hear of a gateway that introduced itself
	applied     atomic.Pointer[applied]
	stored      [][]byte // records of the run before; nil once they are loaded

	publishing sync.Mutex // held from a sequence number to its record in the book

	mu     sync.Mutex // guards all below
	routes []Route
	// announceAll says that routes are all that is granted, whatever that is.
	announceAll bool
	lan         []LANRoute
	accept      []netip.Prefix
	peers       map[GatewayID]*peer
	published   *record.Record
	seq         *sequence
	observed    map[GatewayID]netip.AddrPort // where others see this gateway
	duplicate   ownership
	warnings    map[string]string // by cause
	saved       map[GatewayID]netip.AddrPort

	said sayings // used by apply alone

	stop    context.CancelFunc
	stopped chan struct{}
	err     error // valid once stopped is closed
	unlock  func() error
	once    sync.Once
}

// peer is what this run has seen of another gateway.
type peer struct {
	boot   trust.BootID
	proven bool // answered a challenge since the start
	alive  bool
	steady bool // alive, and for long enough to carry routes that others could
	since  time.Time
	wg     trust.ExchangeKey   // the key that the device has for it
	keys   []trust.ExchangeKey // its WireGuard keys whose private half it has shown to hold, at most two
	seen   netip.AddrPort      // where its last introduction came from
}

// applied is the last desired state that was put into effect.
type applied struct {
	desired engine.Desired
	err     error
}

// Open starts the gateway that Init or Join made and returns when it is ready
// to talk to others; it does not wait until any of them answers. ctx bounds
// Open alone. What Open created is gone again if it returns an error:
// ErrNoState, ErrStateInUse, ErrStateCorrupt, ErrStateExposed, a *GrantError
// for a route that is not granted, ErrUnsupported, an error of the socket (a
// port in use is syscall.EADDRINUSE), os.ErrPermission without the rights to
// make a TUN device.
func Open(ctx context.Context, cfg Config) (*Mesh, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	cfg = cfg.withDefaults()
	unlock, err := cfg.Store.Lock()
	if err != nil {
		return nil, err
	}
	m, err := open(ctx, cfg)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	m.unlock = unlock
	m.start()
	return m, nil
}

// open builds every part. Nothing runs yet, except the device.
func open(ctx context.Context, cfg Config) (_ *Mesh, err error) {
	m := &Mesh{
		cfg:       cfg,
		log:       cfg.Logger,
		hooks:     seam.FromContext(ctx),
		dirty:     make(chan struct{}, 1),
		unsaved:   make(chan struct{}, 1),
		republish: make(chan struct{}, 1),
		newcomer:  make(chan struct{}, 1),
		stopped:   make(chan struct{}),
		peers:     make(map[GatewayID]*peer),
		observed:  make(map[GatewayID]netip.AddrPort),
		warnings:  make(map[string]string),
		saved:     make(map[GatewayID]netip.AddrPort),
		accept:    slices.Clone(cfg.Accept),
		started:   cfg.Now(),
	}
	m.events.now = cfg.Now
	if _, err := rand.Read(m.boot[:]); err != nil {
		return nil, err
	}
	if m.self, err = loadSelf(cfg.Store, cfg.Now()); err != nil {
		return nil, err
	}
	m.log = m.log.With("gateway", m.self.certificate().Gateway)
	if err := m.openState(); err != nil {
		return nil, err
	}
	var undo []func() error
	defer func() {
		if err == nil {
			return
		}
		for _, f := range slices.Backward(undo) {
			err = errors.Join(err, f())
		}
	}()
	if err := m.openPort(ctx); err != nil {
		return nil, err
	}
	undo = append(undo, m.port.Close)
	if err := m.openControl(); err != nil {
		return nil, err
	}
	if m.host, err = openHost(m); err != nil {
		return nil, err
	}
	undo = append(undo, m.host.close)
	if m.device, err = m.openDevice(); err != nil {
		return nil, err
	}
	undo = append(undo, m.device.Close)
	if err := m.publishFirst(); err != nil {
		return nil, err
	}
	if m.hooks.Opened != nil {
		m.hooks.Opened(inside{m})
	}
	m.loadRecords()
	return m, m.apply(ctx)
}

// start runs every part in one group: the first to end with an error ends all.
func (m *Mesh) start() {
	ctx, stop := context.WithCancel(context.Background())
	m.stop = stop
	group, ctx := errgroup.WithContext(ctx)
	for _, part := range []struct {
		name string
		run  func(context.Context) error
	}{
		{"port", m.port.Run},
		{"paths", m.prover.Run},
		{"streams", m.streams.Run},
		{"gossip", m.gossip.Run},
		{"host", m.host.watch},
		{"device", m.watchDevice},
		{"control", m.controlLoop},
		{"publish", m.publishLoop},
		{"save", m.saveLoop},
		{"entropy", m.entropyLoop},
		{"introduce", m.introduceLoop},
		{"knock", m.knockLoop},
		{"rejoin", m.rejoinLoop},
		{"ripen", m.ripenLoop},
		{"upkeep", m.upkeepLoop},
	} {
		group.Go(func() error {
			if err := part.run(ctx); err != nil && ctx.Err() == nil {
				return fmt.Errorf("%s: %w", part.name, err)
			}
			return nil
		})
	}
	// Ends when every part has ended; Close and Wait wait for it.
	go func() {
		err := group.Wait()
		stop()
		m.finish(err)
	}()
}

// finish undoes everything in reverse order and wakes Wait.
func (m *Mesh) finish(cause error) {
	errs := []error{cause}
	if err := m.save(); err != nil {
		errs = append(errs, fmt.Errorf("save state: %w", err))
	}
	errs = append(errs, m.device.Close(), m.host.close(), m.port.Close(), m.unlock())
	m.events.close()
	m.err = errors.Join(errs...)
	close(m.stopped)
}

// Close stops the gateway, waits for everything that runs and hands the host
// back as it was found. It may be called more than once; every call returns
// the same.
func (m *Mesh) Close() error {
	m.once.Do(m.stop)
	<-m.stopped
	return m.err
}

// Wait blocks until the mesh has ended and returns why: ErrClosed after Close,
// else the first error that a part could not go on after.
func (m *Mesh) Wait() error {
	<-m.stopped
	if m.err == nil {
		return ErrClosed
	}
	return m.err
}

// Done is closed when the mesh has ended.
func (m *Mesh) Done() <-chan struct{} { return m.stopped }

// Watch returns the changes from now on. The channel is closed when ctx or the
// mesh ends. A reader that falls 256 events behind loses some.
func (m *Mesh) Watch(ctx context.Context) <-chan Event { return m.events.watch(ctx) }

// wake marks c without waiting: whoever reads it takes a fresh look.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// jitter returns a random duration below d.
func (m *Mesh) jitter(d time.Duration) time.Duration { return rand2.N(d) }

// intn returns a random number below n.
func (m *Mesh) intn(n int) int { return rand2.IntN(n) }

// warn keeps a warning for status and logs it when it is new; an empty text
// takes it away.
func (m *Mesh) warn(cause, text string) {
	m.mu.Lock()
	old := m.warnings[cause]
	if text == "" {
		delete(m.warnings, cause)
	} else {
		m.warnings[cause] = text
	}
	m.mu.Unlock()
	if text != "" && text != old {
		m.log.Warn("degraded", "cause", cause, "err", text)
	}
}
