package link

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Errors that callers branch on.
var (
	ErrNoPath      = errors.New("no path to peer")
	ErrUnknownPeer = errors.New("unknown peer")
	ErrNoBoot      = errors.New("start of peer not known yet")
	ErrOversize    = fmt.Errorf("datagram too long: %w", syscall.EMSGSIZE)
)

// Config is what a Port is made from. None of it can change later.
type Config struct {
	Mesh trust.MeshID
	Own  OwnKeys

	// Port is the UDP port; 0 lets the system choose.
	Port uint16

	// ListenPacket, if not nil, is used instead of real UDP. Its connection
	// must honour read deadlines, and its addresses are *net.UDPAddr.
	ListenPacket func(ctx context.Context, port uint16) (net.PacketConn, error)

	// Logger may be nil for silence.
	Logger *slog.Logger
}

// Handler gets what arrives for this gateway. Its methods are called from
// receive goroutines, several at a time, and must not block.
type Handler interface {
	// Probe is called for an authenticated probe reply and reports whether it
	// answered a challenge that is outstanding. Only then it may change
	// anything. from is unauthenticated.
	Probe(from netip.AddrPort, peer trust.GatewayID, p Probe) (counts bool)
	// Heard is called for an authenticated probe of a peer, which is answered
	// whatever it does. The probe may be a replay: it is a hint only.
	Heard(peer trust.GatewayID)
	// Gossip is called for an authenticated gossip datagram that was not seen
	// before. b may be used and changed during the call only.
	Gossip(peer trust.GatewayID, boot trust.BootID, b []byte)
}

// Port is the one UDP port of a gateway. Make one with Open. All methods are
// safe for concurrent use.
type Port struct {
	mesh  trust.MeshID
	own   OwnKeys
	log   *slog.Logger
	sock  socket
	batch int
	tags  *tagger
	bind  bind
	lanes []*lane

	reading atomic.Int32 // lanes that Run reads from

	handler  atomic.Pointer[Handler]
	stream   streamConn
	counters counters

	closeOnce sync.Once
	closeErr  error
	done      chan struct{} // closed by Close

	mu             sync.RWMutex // guards the fields below
	peers          map[trust.GatewayID]*peer
	endpoints      map[trust.GatewayID]*Endpoint      // only ever grows: WireGuard holds on to them
	gossipCounters map[trust.GatewayID]*gossipCounter // only ever grows
	index          map[keyID]keyOwner

	deviceMu sync.Mutex    // guards the fields below
	device   bool          // the bind is open
	idle     chan struct{} // closed while device is false
}

// Open opens the port. From then on the socket takes in packets; they are read
// by Run, or by a WireGuard device once it has opened the Bind. A port in use is
// reported with its number and is syscall.EADDRINUSE. A host without IPv6, or
// without IPv4, is fine. ctx bounds Open only.
func Open(ctx context.Context, cfg Config) (*Port, error) {
	sock, err := openSocket(ctx, &cfg)
	if err != nil {
		return nil, fmt.Errorf("udp port %d: %w", cfg.Port, err)
	}
	p := &Port{
		mesh: cfg.Mesh, own: cfg.Own, log: cfg.Logger,
		sock: sock, batch: sock.batchSize(), tags: newTagger(cfg.Mesh),
		done:           make(chan struct{}),
		peers:          make(map[trust.GatewayID]*peer),
		endpoints:      make(map[trust.GatewayID]*Endpoint),
		gossipCounters: make(map[trust.GatewayID]*gossipCounter),
		index:          make(map[keyID]keyOwner),
		idle:           make(chan struct{}),
	}
	if p.log == nil {
		p.log = slog.New(slog.DiscardHandler)
	}
	close(p.idle)
	p.bind.port = p
	p.stream.init(p)
	for range sock.lanes() {
		p.lanes = append(p.lanes, newLane())
	}
	return p, nil
}

func openSocket(ctx context.Context, cfg *Config) (socket, error) {
	if cfg.ListenPacket == nil {
		return openReal(cfg.Port, conn.NewStdNetBind)
	}
	pc, err := cfg.ListenPacket(ctx, cfg.Port)
	if err != nil {
		return nil, err
	}
	return newPacketSocket(pc)
}

// Close closes the socket. Everything that waits on the Port returns
// net.ErrClosed; Run returns nil. Idempotent.
func (p *Port) Close() error {
	p.closeOnce.Do(func() {
		close(p.done)
		p.closeErr = p.sock.close()
	})
	return p.closeErr
}

func (p *Port) isClosed() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// LocalPort is the UDP port that we have.
func (p *Port) LocalPort() uint16 { return p.sock.port() }

// Handle says who gets replies and gossip. nil: nobody, they are counted.
func (p *Port) Handle(h Handler) {
	if h == nil {
		p.handler.Store(nil)
		return
	}
	p.handler.Store(&h)
}

// setDevice notes whether a device reads from the socket.
func (p *Port) setDevice(open bool) {
	p.deviceMu.Lock()
	defer p.deviceMu.Unlock()
	if open == p.device {
		return
	}
	p.device = open
	if open {
		p.idle = make(chan struct{})
	} else {
		close(p.idle)
	}
}

// whenIdle returns a channel that is closed while no device is open.
func (p *Port) whenIdle() <-chan struct{} {
	p.deviceMu.Lock()
	defer p.deviceMu.Unlock()
	return p.idle
}

func (p *Port) deviceOpen() bool {
	p.deviceMu.Lock()
	defer p.deviceMu.Unlock()
	return p.device
}

// write sends one datagram of ours. sent, if not nil, counts it.
func (p *Port) write(pk *packet, b []byte, to conn.Endpoint, sent *atomic.Uint64) error {
	pk.list[0] = b
	err := p.sock.send(pk.list[:], to)
	pk.list[0] = nil
	// The library's bind says with an error that it switched an offload off,
	// and that the packet was sent again without.
	if gso, ok := errors.AsType[conn.ErrUDPGSODisabled](err); ok {
		err = gso.RetryErr
	}
	if err != nil {
		p.counters.sendErrors.Add(1)
		if p.isClosed() {
			return net.ErrClosed
		}
		return err
	}
	if sent != nil {
		sent.Add(1)
	}
	return nil
}

// sift handles what is ours in a batch and takes it out by setting its size to
// zero.
func (p *Port) sift(bufs [][]byte, sizes []int, eps []conn.Endpoint) {
	for i, size := range sizes {
		b := bufs[i][:size]
		if isWireGuard(b) {
			continue
		}
		sizes[i] = 0
		if size > 0 {
			p.divert(b, eps[i])
		}
	}
}

// divert handles one datagram that is not WireGuard. The tag comes before
// everything that costs more than looking at the length.
func (p *Port) divert(b []byte, from conn.Endpoint) {
	c := &p.counters
	switch {
	case len(b) < headerLen:
		c.short.Add(1)
	case len(b) > MaxDatagram && (b[0] != typeProbe || len(b) > MaxProbe):
		c.oversize.Add(1)
	case !p.tags.holds(b):
		c.tag.Add(1)
	case b[1] != version:
		c.version.Add(1)
	case b[0] == typeProbe:
		p.receiveProbe(b, from)
	case b[0] == typeGossip:
		p.receiveGossip(b)
	case b[0] == typeStream:
		p.stream.push(b[headerLen:], from)
	default:
		c.typ.Add(1)
	}
}

// lane is the right to read from one of the socket's receive functions. It is
// held by Run or by a device, never by both.
type lane struct {
	turn chan struct{} // holds one token; whoever has taken it has the lane
	left []leftover    // for the device; guarded by the token
}

// leftover is a WireGuard packet that Run read after a device had opened.
type leftover struct {
	b    []byte
	from conn.Endpoint
}

func newLane() *lane {
	l := &lane{turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	return l
}

// keep copies the WireGuard packets of a batch for the device.
func (l *lane) keep(bufs [][]byte, sizes []int, eps []conn.Endpoint) {
	for i, size := range sizes {
		if size > 0 {
			l.left = append(l.left, leftover{b: append([]byte(nil), bufs[i][:size]...), from: eps[i]})
		}
	}
}

// take moves leftovers into the device's buffers.
func (l *lane) take(bufs [][]byte, sizes []int, eps []conn.Endpoint) int {
	n := min(len(l.left), len(bufs))
	for i := range n {
		sizes[i] = copy(bufs[i], l.left[i].b)
		eps[i] = l.left[i].from
	}
	l.left = append([]leftover(nil), l.left[n:]...)
	return n
}

// Run reads from the socket while no device does: before a device has opened
// the Bind, after it has closed it, and for good in a gateway without one. The
// change is without loss: a reader that is waiting when a device opens goes on
// until its next batch and leaves the WireGuard packets of it to the device. Run
// ends with nil when ctx is done or the Port is closed, or with the reason why
// the socket cannot be read any more. Call it once.
func (p *Port) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	errs := make([]error, len(p.lanes))
	read := make(chan struct{}) // closed when no lane is read any more
	var readers, waker sync.WaitGroup
	waker.Go(func() { // ends with ctx or the readers
		select {
		case <-ctx.Done():
			p.wakeReaders()
		case <-read:
		}
	})
	for i := range p.lanes {
		readers.Go(func() { // ends with ctx, Close or an error, which ends the others, too
			if errs[i] = p.readLane(ctx, i); errs[i] != nil {
				stop()
			}
		})
	}
	readers.Wait()
	close(read)
	waker.Wait()
	return errors.Join(errs...)
}

// wakeReaders gets Run out of the socket. A device that reads meanwhile goes on
// with the renewed one, so that a packet may be lost; where Run does not read,
// nothing happens.
func (p *Port) wakeReaders() {
	if p.reading.Load() > 0 && !p.isClosed() {
		_ = p.sock.renew() // its error comes back from the next receiver
	}
}

// readLane takes the lane whenever no device is open.
func (p *Port) readLane(ctx context.Context, number int) error {
	l := p.lanes[number]
	batch := newBatch(p.batch)
	for {
		select {
		case <-p.whenIdle():
		case <-ctx.Done():
			return nil
		case <-p.done:
			return nil
		}
		select {
		case <-l.turn:
		case <-ctx.Done():
			return nil
		case <-p.done:
			return nil
		}
		p.reading.Add(1) // before ctx is looked at: see wakeReaders
		err := p.readUntilDevice(ctx, number, batch)
		p.reading.Add(-1)
		l.turn <- struct{}{}
		if err != nil {
			return err
		}
	}
}

// maxReadErrors in a row end Run, as they end wireguard-go's own reader.
const (
	maxReadErrors  = 10
	readErrorPause = time.Second / 3
)

// readUntilDevice reads until a device opens, ctx ends or the Port is closed.
func (p *Port) readUntilDevice(ctx context.Context, number int, ba *batch) error {
	failed := 0
	raw, generation, err := p.sock.receiver(number)
	for ctx.Err() == nil && !p.isClosed() && !p.deviceOpen() {
		if err != nil {
			return p.unlessClosed(err)
		}
		var n int
		n, err = raw(ba.bufs, ba.sizes, ba.eps)
		if err == nil {
			failed = 0
			p.sift(ba.bufs, ba.sizes[:n], ba.eps)
			p.passOn(ba, n, p.lanes[number])
			continue
		}
		if p.isClosed() || ctx.Err() != nil {
			return nil
		}
		before := generation
		if raw, generation, err = p.sock.receiver(number); err != nil || generation != before {
			continue
		}
		p.counters.receiveErrors.Add(1)
		if failed++; failed >= maxReadErrors {
			return fmt.Errorf("udp port %d: reading fails again and again", p.LocalPort())
		}
		select {
		case <-time.After(readErrorPause):
		case <-ctx.Done():
		case <-p.done:
		}
	}
	return nil
}

// passOn does what can be done with WireGuard packets that Run read.
func (p *Port) passOn(ba *batch, n int, l *lane) {
	if p.deviceOpen() {
		l.keep(ba.bufs, ba.sizes[:n], ba.eps)
		return
	}
	for _, size := range ba.sizes[:n] {
		if size > 0 {
			p.counters.noDevice.Add(1)
		}
	}
}

func (p *Port) unlessClosed(err error) error {
	if p.isClosed() {
		return nil
	}
	return err
}

// batch is memory for one call of a receive function.
type batch struct {
	bufs  [][]byte
	sizes []int
	eps   []conn.Endpoint
}

// newBatch makes buffers as the library's bind needs them: it reads coalesced
// datagrams into the last two and splits them over all. Run has to do with
// control packets only, so that the others may be short.
func newBatch(n int) *batch {
	ba := &batch{bufs: make([][]byte, n), sizes: make([]int, n), eps: make([]conn.Endpoint, n)}
	for i := range ba.bufs {
		size := 2048
		if i >= n-2 {
			size = 1<<16 - 1
		}
		ba.bufs[i] = make([]byte, size)
	}
	return ba
}
