package apiproxy

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// timing is every duration, so that tests can have shorter ones.
type timing struct {
	poll    time.Duration // between looks at files
	busy    time.Duration // between questions to a server in use or not ready
	idle    time.Duration // between questions to others
	kept    time.Duration // for an answer on a connection that is kept
	fresh   time.Duration // for a new connection, and as long again for its first answer
	dial    time.Duration // for one dial for a client
	total   time.Duration // for all dials for a client
	stagger time.Duration // at least, before the next server is tried beside one that is slow
	hung    time.Duration // after which a server that only accepts loses its connections
	half    time.Duration // that a connection may stay open in one direction only
	drain   time.Duration // that connections have to end by themselves when Run stops
}

// A server that vanishes is noticed after busy + kept + fresh = 3.7 s at most;
// fresh bears one lost SYN, which is sent again after a second.
var defaults = timing{
	poll: 2 * time.Second, busy: time.Second, idle: 3 * time.Second,
	kept: 1200 * time.Millisecond, fresh: 1500 * time.Millisecond,
	dial: 2200 * time.Millisecond, total: 4500 * time.Millisecond, stagger: 250 * time.Millisecond,
	hung: 10 * time.Second, half: 5 * time.Minute, drain: 2 * time.Second,
}

// keepAlive finds peers that are gone after about half a minute of silence.
var keepAlive = net.KeepAliveConfig{Enable: true, Idle: 15 * time.Second, Interval: 5 * time.Second, Count: 3}

// proxy is what Run runs.
type proxy struct {
	path   string // of the configuration
	log    *slog.Logger
	timing timing
	dial   func(ctx context.Context, network, address string) (net.Conn, error)

	group    sync.WaitGroup                // everything that Run waits for
	order    atomic.Pointer[[]*upstream]   // best first; nobody changes a published one
	roots    atomic.Pointer[x509.CertPool] // nil: the authority is not known
	accepted atomic.Int64
	refused  atomic.Int64 // by limits
	failed   atomic.Int64 // no server could be connected to

	mu        sync.Mutex // guards what follows and the fields of upstreams
	config    Config     // written by the goroutine of Run only, which reads it without mu
	badFile   error      // why the file as it is now is not in use
	badListen error      // why addresses are not listened on
	upstreams []*upstream
	listeners map[netip.AddrPort]net.Listener
	clients   map[*session]struct{}
	sources   map[netip.Addr]int
	// complained is when the log said last that there are too many.
	complained time.Time

	// Only the goroutine of Run uses these.
	raw    [3][]byte // the files as they were read last
	loaded bool
}

// Run serves until ctx ends, which is no error, and then closes everything. It
// returns an error if it cannot begin: the file is not as it should be, or none
// of the addresses can be listened on. Other faults are logged and shown in the
// status, and what was in use stays in use; an address that cannot be listened
// on is tried again and again. A nil logger logs nothing.
func Run(ctx context.Context, path string, logger *slog.Logger) error {
	return newProxy(path, logger).run(ctx, func() { notify(os.Getenv("NOTIFY_SOCKET")) })
}

func newProxy(path string, logger *slog.Logger) *proxy {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	d := net.Dialer{KeepAliveConfig: keepAlive}
	return &proxy{
		path: path, log: logger, timing: defaults, dial: d.DialContext,
		listeners: map[netip.AddrPort]net.Listener{},
		clients:   map[*session]struct{}{}, sources: map[netip.Addr]int{},
	}
}

// run is Run; ready is called when clients can connect.
func (p *proxy) run(ctx context.Context, ready func()) error {
	inner, cancel := context.WithCancel(ctx)
	defer p.stop(cancel)
	if err := p.load(inner); err != nil {
		if !p.listening() {
			return err
		}
		// Such as ::1 on a host without IPv6: the rest is worth having.
		p.log.Error("not all of the configuration is usable", "err", err)
	}
	status, err := p.listenStatus()
	if err != nil {
		return err
	}
	if status != nil {
		p.group.Go(func() { p.answer(status) })
		defer status.Close()
	}
	ready()
	tick := time.NewTicker(p.timing.poll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := p.load(inner); err != nil {
				p.log.Error("configuration is not usable, the last one stays", "err", err)
			}
		}
	}
}

// stop ends everything that load began. Listeners first, then connections that
// have not ended by themselves.
func (p *proxy) stop(cancel context.CancelFunc) {
	p.mu.Lock()
	for _, l := range p.listeners {
		_ = l.Close()
	}
	clear(p.listeners)
	p.mu.Unlock()
	for limit := time.Now().Add(p.timing.drain); p.connections() > 0 && time.Now().Before(limit); {
		pause := time.NewTimer(p.timing.drain / 50)
		<-pause.C
	}
	cancel()
	p.mu.Lock()
	for s := range p.clients {
		s.close()
	}
	p.mu.Unlock()
	p.group.Wait()
}

func (p *proxy) listening() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.listeners) > 0
}

func (p *proxy) connections() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.clients)
}

// load reads the three files and makes it so. What is wrong is returned once,
// until it is another fault.
func (p *proxy) load(ctx context.Context) error {
	config, changed, err := p.loadConfig()
	if err != nil && !p.loaded {
		return err
	}
	err = p.fault(&p.badFile, err)
	learned, newer := p.loadLearned(config.Learned)
	p.loadCA(config.CA)
	if changed || newer {
		p.apply(ctx, config, learned)
	}
	p.loaded = true
	return errors.Join(err, p.fault(&p.badListen, p.listen(ctx, config.Listen)))
}

// loadConfig returns what is to be in use: what was, if the file is bad.
func (p *proxy) loadConfig() (c Config, changed bool, err error) {
	raw, err := readFile(p.path)
	if err != nil {
		return p.config, false, fmt.Errorf("read configuration: %w", err)
	}
	if p.loaded && bytes.Equal(raw, p.raw[0]) {
		return p.config, false, nil
	}
	if c, err = ParseConfig(raw); err != nil {
		return p.config, false, fmt.Errorf("%s: %w", p.path, err)
	}
	p.raw[0] = raw
	return c, true, nil
}

// fault keeps an error for the status and returns it if it was another before.
func (p *proxy) fault(kept *error, err error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := *kept
	*kept = err
	if err != nil && old != nil && old.Error() == err.Error() {
		return nil
	}
	return err
}

// loadLearned returns what the second file says; what cannot be read is nothing,
// because the inventory's servers are there in any case.
func (p *proxy) loadLearned(path string) (l Learned, changed bool) {
	var raw []byte
	if path != "" {
		var err error
		if raw, err = readFile(path); err != nil && !errors.Is(err, fs.ErrNotExist) && p.raw[1] != nil {
			p.log.Warn("learned servers cannot be read", "err", err)
		}
	}
	changed = !bytes.Equal(raw, p.raw[1])
	p.raw[1] = raw
	if len(raw) == 0 {
		return Learned{}, changed
	}
	l, err := ParseLearned(raw)
	if err != nil && changed {
		p.log.Warn("learned servers are not usable", "err", err)
	}
	return l, changed
}

// loadCA takes the authority when its file comes, changes or goes.
func (p *proxy) loadCA(path string) {
	var raw []byte
	if path != "" {
		raw, _ = readFile(path) // not there yet: any certificate will do
	}
	if bytes.Equal(raw, p.raw[2]) {
		return
	}
	p.raw[2] = raw
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(raw) {
		if len(raw) > 0 {
			p.log.Warn("no certificate in the file of the authority", "path", path)
		}
		roots = nil
	}
	p.roots.Store(roots)
}

// readFile reads a small file.
func readFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(b) > maxFile {
		err = fmt.Errorf("%s: more than %d bytes", path, maxFile)
	}
	return b, err
}

// apply makes the servers be those of both lists. Those that stay keep what is
// known of them; connections of those that go are closed.
func (p *proxy) apply(ctx context.Context, c Config, l Learned) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.config = c
	old := map[netip.AddrPort]*upstream{}
	for _, u := range p.upstreams {
		old[u.Address] = u
	}
	p.upstreams = nil
	for _, v := range c.merged(l) {
		u, ok := old[v.Address]
		if !ok {
			u = &upstream{address: v.Address, kick: make(chan struct{}, 1), state: Unknown, since: time.Now(), sessions: map[*session]struct{}{}}
			watching, cancel := context.WithCancel(ctx)
			u.cancel = cancel
			p.group.Go(func() { p.watch(watching, u) })
		}
		u.Upstream = v
		p.upstreams = append(p.upstreams, u)
		delete(old, v.Address)
	}
	for _, u := range old {
		u.cancel()
		u.removed = true
		for s := range u.sessions {
			s.close()
		}
	}
	p.orderLocked()
}

// listen opens and closes listeners. Connections that came through one that is
// closed stay. What cannot be opened is tried again with the next look.
func (p *proxy) listen(ctx context.Context, want []netip.AddrPort) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	wanted := map[netip.AddrPort]bool{}
	var errs []error
	for _, a := range want {
		wanted[a] = true
		if p.listeners[a] != nil {
			continue
		}
		lc := net.ListenConfig{KeepAliveConfig: keepAlive}
		l, err := lc.Listen(ctx, "tcp", a.String())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		p.listeners[a] = l
		p.log.Info("listening", "endpoint", a)
		p.group.Go(func() { p.accept(ctx, l) })
	}
	for a, l := range p.listeners {
		if !wanted[a] {
			_ = l.Close()
			delete(p.listeners, a)
		}
	}
	return errors.Join(errs...)
}
