package openvpn

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Endpoint is one side of a site-to-site connection. All methods are safe for
// concurrent use.
//
// Until Close it keeps one connection after the other: each opens the sockets,
// speaks to the peer, and ends when the peer is silent for too long, says that
// it leaves, or its TCP connection ends.
type Endpoint struct {
	cfg   Config
	log   *slog.Logger
	clock *startClock
	guard replayGuard // static key mode; used under the lock of the channel

	cancel  context.CancelFunc
	wg      sync.WaitGroup
	done    chan struct{} // closed when every goroutine ended
	changes chan struct{}
	count   counters
	quiet   logLimiter
	link    atomic.Pointer[link]

	closeOnce sync.Once
	closeErr  error

	mu     sync.Mutex
	status Status // guarded by mu; the fields that change rarely
	heard  time.Time
	fatal  error
}

const (
	// restartPause is the pause before the next connection, as real peers make it.
	restartPause = time.Second
	// maxRestartPause bounds the pause when connections cannot be opened or the peer
	// ends them before it has proved who it is.
	maxRestartPause = 15 * time.Second
	// leaveTime is how long Close waits for the peer to hear about it.
	leaveTime = time.Second
)

// Open starts an endpoint. ctx bounds Open only. With UDP and TCPListen the
// socket is bound when Open returns; the peer need not be there. On success the
// endpoint owns the Device and closes it; on error the caller keeps it. Errors
// are those of Validate, of Times, and of the socket.
func Open(ctx context.Context, cfg Config) (*Endpoint, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("openvpn configuration: %w", err)
	}
	cfg = cfg.withDefaults()
	clock, err := newStartClock(cfg.Now, cfg.Times)
	if err != nil {
		return nil, err
	}
	e := &Endpoint{cfg: cfg, clock: clock, log: cfg.Logger, done: make(chan struct{}), changes: make(chan struct{}, 1)}
	if cfg.Name != "" {
		e.log = e.log.With("endpoint", cfg.Name)
	}
	e.status = Status{Since: cfg.Now(), Mode: "static", Transport: cfg.Transport.String(), Digest: cfg.Digest}
	if cfg.TLS != nil {
		e.status.Mode = cfg.TLS.Role.option()
	} else {
		e.status.Cipher = cfg.Static.Cipher
	}
	var first *link
	if cfg.Transport != TCPConnect {
		first, err = e.newLink(ctx, 0)
		if dns := (*net.DNSError)(nil); err != nil && !errors.As(err, &dns) {
			return nil, err
		}
	}
	for _, w := range cfg.Warnings() {
		e.log.Warn("weak configuration", "warning", w)
	}
	run, cancel := context.WithCancel(context.Background())
	e.cancel = cancel
	e.start(run, first)
	return e, nil
}

// start runs the goroutines of the endpoint. All end when the context does;
// closing the device wakes the second.
func (e *Endpoint) start(ctx context.Context, first *link) {
	e.link.Store(first) // packets pass from the start
	e.wg.Go(func() { e.connect(ctx, first) })
	e.wg.Go(func() { e.readDevice(ctx) })
	e.wg.Go(func() {
		<-ctx.Done()
		err := e.cfg.Device.Close()
		e.mu.Lock()
		defer e.mu.Unlock()
		e.closeErr = err
	})
	go func() { // ends when the three above did
		e.wg.Wait()
		close(e.done)
	}()
}

// Close ends the endpoint, tells the peer if so configured, closes the Device
// and waits for every goroutine. It is idempotent. It returns the error of the
// Device's Close.
func (e *Endpoint) Close() error {
	e.closeOnce.Do(func() {
		if l := e.link.Load(); l != nil && e.cfg.ExitNotify {
			l.leave()
		}
		e.cancel()
	})
	<-e.done
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.closeErr
}

// Wait blocks until the endpoint has ended and returns why: ErrClosed after
// Close, or the error of the Device.
func (e *Endpoint) Wait() error {
	<-e.done
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.fatal != nil {
		return e.fatal
	}
	return ErrClosed
}

// Changes returns a channel that holds a value after the State, the peer's
// address or the keys changed. Its capacity is one; read Status after receiving.
// One watcher may use it.
func (e *Endpoint) Changes() <-chan struct{} { return e.changes }

// Status returns a snapshot, which the caller owns.
func (e *Endpoint) Status() Status {
	l := e.link.Load()
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.status
	s.Heard = e.heard
	s.Counters = e.count.snapshot()
	s.Keys = e.count.keys.Load()
	if l != nil {
		s.Local = l.tr.local()
		if out, ok := l.ch.outlet(); ok {
			s.KeyID = out.keyID
		}
	}
	return s
}

// update changes the status and wakes the watcher.
func (e *Endpoint) update(change func(*Status)) {
	e.mu.Lock()
	before := e.status.State
	change(&e.status)
	after := e.status.State
	if before != after {
		e.status.Since = e.cfg.Now()
	}
	peer := e.status.Peer
	e.mu.Unlock()
	if before != after {
		e.log.Info("connection changed", "state", after.String(), "peer", peer)
	}
	select {
	case e.changes <- struct{}{}:
	default:
	}
}

// fail ends the endpoint; the first reason wins.
func (e *Endpoint) fail(err error) {
	e.mu.Lock()
	if e.fatal == nil {
		e.fatal = err
	}
	e.mu.Unlock()
	e.cancel()
}

// connect keeps one connection after the other until ctx ends.
func (e *Endpoint) connect(ctx context.Context, l *link) {
	defer e.update(func(s *Status) { s.State = StateClosed })
	pause := restartPause
	// A link that was opened must run once, to be closed.
	for attempt := 1; l != nil || ctx.Err() == nil; attempt++ {
		var err error
		if l == nil {
			l, err = e.newLink(ctx, attempt)
		}
		if err == nil {
			err = l.run(ctx)
		}
		if ctx.Err() != nil {
			return
		}
		e.log.Warn("connection starts again", "err", err)
		e.update(func(s *Status) {
			s.State, s.Restarts, s.LastError = StateConnecting, s.Restarts+1, err.Error()
		})
		switch {
		case errors.Is(err, errHangup) && e.cfg.Transport == TCPListen:
			pause = 0 // the peer connects again when it likes
		case l == nil, errors.Is(err, errHangup) && !l.up.Load(): // refused, by the kernel or by the peer
			pause = min(2*pause, maxRestartPause)
		default:
			pause = restartPause
		}
		l = nil
		sleep(ctx, pause)
		pause = max(pause, restartPause)
	}
}

func sleep(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
	case <-t.C:
	}
}

// deviceBatch is how many inner packets are read at once from a Device that has
// no wish of its own.
const deviceBatch = 64

// readDevice carries packets from the device to whatever connection there is.
func (e *Endpoint) readDevice(ctx context.Context) {
	batch, size := deviceBatch, e.cfg.MTU+mtuSlack
	if b, ok := e.cfg.Device.(Batcher); ok {
		wanted, least := b.Batch()
		batch, size = max(wanted, 1), max(size, least)
	}
	bufs, sizes := make([][]byte, batch), make([]int, batch)
	for i := range bufs {
		bufs[i] = make([]byte, size)
	}
	payloads := make([][]byte, 0, batch)
	var out sendBuffer
	for {
		n, err := e.cfg.Device.ReadPackets(bufs, sizes)
		if err != nil {
			if ctx.Err() == nil {
				e.fail(fmt.Errorf("read device: %w", err))
			}
			return
		}
		payloads = payloads[:0]
		for i := range n {
			if sizes[i] > e.cfg.MTU {
				e.count.dropped[ReasonOversize].Add(1)
				continue
			}
			payloads = append(payloads, bufs[i][:sizes[i]])
		}
		l := e.link.Load()
		if l == nil {
			e.count.dropped[ReasonNoPeer].Add(uint64(len(payloads)))
			continue
		}
		packets, bytes := l.transmit(&out, payloads)
		e.count.outPackets.Add(uint64(packets))
		e.count.outBytes.Add(uint64(bytes))
	}
}

// dropped counts a packet and logs the first of its kind per minute.
func (e *Endpoint) dropped(r Reason, from path) {
	e.count.dropped[r].Add(1)
	if e.quiet.allow(r) {
		e.log.Warn("packet dropped", "reason", r.String(), "peer", from.addr)
	}
}

// logLimiter lets one line per reason and minute through.
type logLimiter struct {
	mu   sync.Mutex
	last [reasonCount]time.Time // guarded by mu
}

const logInterval = time.Minute

func (q *logLimiter) allow(r Reason) bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	if !q.last[r].IsZero() && now.Sub(q.last[r]) < logInterval {
		return false
	}
	q.last[r] = now
	return true
}

// hear remembers when the peer was last heard.
func (e *Endpoint) hear() {
	now := e.cfg.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	e.heard = now
}

// deviceFailed ends the endpoint, unless it ends anyway.
func (e *Endpoint) deviceFailed(err error) { e.fail(fmt.Errorf("write device: %w", err)) }
