package stream

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/quic-go/quic-go"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Stream types of docs/protocol.md, section 4: the first byte of a stream.
const (
	TypeIntroduction byte = 1
	TypeEnrolment    byte = 2
	TypeAntiEntropy  byte = 3
	TypeGossip       byte = 4
	TypeAPI          byte = 5
)

// Largest messages of docs/protocol.md, sections 2 and 4, in bytes.
const (
	MaxIntroduction  = 16 << 10
	MaxEnrolRequest  = 4 << 10
	MaxEnrolReply    = 64 << 10
	maxStreams       = 8                // of one connection, for each side (section 4)
	idleTimeout      = 60 * time.Second // security-decisions: idle connections closed after 60 s
	handshakeIdle    = 5 * time.Second  // silence that ends a handshake; twice this ends it in any case
	introduceTimeout = 10 * time.Second // from the end of the handshake to an accepted introduction
	dialTimeout      = 15 * time.Second // handshake and introduction
	enrolTimeout     = 30 * time.Second // life of a connection for enrolment (section 4)
	openTimeout      = 10 * time.Second // until a peer lets us open one more stream
	typeTimeout      = 10 * time.Second // until the first byte of a stream is there
	drainInterval    = 5 * time.Second  // between looks whether a connection that was replaced is out of use
	drainLimit       = 60 * time.Second // life of a connection that was replaced: the longest that a stream lives
	maxDials         = 64               // own dials in flight
)

// Errors of this package that a caller may want to tell apart.
var (
	// ErrClosed is returned once Run has ended. It also is net.ErrClosed.
	ErrClosed = fmt.Errorf("streams are closed: %w", net.ErrClosed)
	// ErrNoPath is returned by OpenStream for a peer that has neither a connection nor a proven path.
	ErrNoPath = errors.New("no proven path")
	// ErrRefused means that the other end did not accept our introduction.
	ErrRefused = errors.New("introduction refused")
	// ErrWrongPeer means that somebody else answered at the address of a peer.
	ErrWrongPeer = errors.New("another gateway answered")
	// ErrTooMuch is returned by reads beyond the byte limit of a stream.
	ErrTooMuch = errors.New("stream exceeds its byte limit")
)

// Application error codes of QUIC connections and streams, as sent to the peer.
const (
	codeClosed   = 0 // we are going away, or are done
	codeReplaced = 1 // another connection is used
	codeRefused  = 2 // introduction not accepted
	codeProtocol = 3 // rules of section 4 broken, or too slow
)

// Stream is one stream of a connection. Close ends both directions and frees
// the stream; CloseWrite only says that nothing more will be written. Every
// stream has a deadline and a byte limit of its own ([Limits]); the deadlines
// that a caller sets can only be sooner. Safe for one reader and one writer at
// a time; Close may be called at any time.
type Stream interface {
	net.Conn
	// CloseWrite ends the direction from here to the peer.
	CloseWrite() error
}

// Handler serves a stream that a peer opened. The stream is closed when it
// returns. ctx ends with the connection, at latest with Run.
type Handler func(ctx context.Context, peer trust.GatewayID, s Stream)

// Limit bounds one stream. Zero fields mean the default of the stream type.
type Limit struct {
	Lifetime time.Duration // from opening to the end
	Bytes    int64         // that may be read
}

// defaultLimits are the numbers of docs/protocol.md, section 4. The API limit is a request and a response.
var defaultLimits = map[byte]Limit{
	TypeAntiEntropy: {30 * time.Second, 16 << 20},
	TypeGossip:      {10 * time.Second, 4 << 20},
	TypeAPI:         {60 * time.Second, 1<<20 + 64<<10},
}

// fallbackLimit is for stream types that this package does not know by name.
var fallbackLimit = Limit{30 * time.Second, 1 << 20}

// Config says with whom a Transport speaks and what about. Conn and Identity
// are required; the callbacks may be called from several goroutines at once.
type Config struct {
	// Conn carries QUIC packets. It must honour SetReadDeadline, and its addresses must be *net.UDPAddr or
	// have a method AddrPort() netip.AddrPort. It is not closed by this package.
	Conn net.PacketConn
	// Identity is the key that TLS proves.
	Identity ed25519.PrivateKey
	// Introduce returns our introduction object, at most MaxIntroduction bytes. nil: a joiner that has none and only uses Enrol.
	Introduce func() []byte
	// Verify judges an introduction that came over a connection whose end proved identity. An error refuses it and
	// closes the connection. It is called with our own identity too, if somebody else has it. nil refuses all.
	Verify func(identity trust.IdentityKey, intro []byte, from netip.AddrPort) (trust.GatewayID, error)
	// Addr returns the proven address of a peer, for OpenStream. nil knows none.
	Addr func(peer trust.GatewayID) (netip.AddrPort, bool)
	// Proven reports whether an address was proven recently, so that a connection from it needs no Retry. nil proves none.
	Proven func(addr netip.AddrPort) bool
	// Enrol answers a sealed enrolment request. An error resets the stream. nil refuses all.
	Enrol func(ctx context.Context, sealed []byte, from netip.AddrPort) ([]byte, error)
	// Handlers serve the other stream types; a type without handler is refused.
	Handlers map[byte]Handler
	// Limits replaces the limits of stream types, for streams of both directions.
	Limits map[byte]Limit
	// PerSource is how many packets that could open a connection one source (IPv4 /32, IPv6 /64) may send in a
	// second; twice as many at once. An honest handshake takes three. Zero means 20.
	PerSource int
	// Pending is how many clients may be between first packet and accepted introduction, in all; a quarter of it
	// for one source. Clients at proven addresses are counted apart, with the same limits. Zero means 64.
	Pending int
	// Logger gets debug lines about connections; nil is silent.
	Logger *slog.Logger
}

// Transport makes and accepts connections between identities. New starts
// nothing; Run serves until its context ends. All methods are safe for
// concurrent use; those that dial wait until Run has begun.
type Transport struct {
	cfg      Config
	log      *slog.Logger
	identity trust.IdentityKey
	server   *tls.Config
	client   *tls.Config
	guard    *guard
	admit    *admission
	count    counters
	dials    chan struct{} // holds a token for each own dial in flight
	started  chan struct{} // closed when quic is set
	done     chan struct{} // closed when Run is ending
	quic     *quic.Transport

	mu      sync.Mutex // guards everything below; never held over I/O or callbacks
	running bool
	closed  bool
	wg      sync.WaitGroup // all goroutines of Run; Add only under mu while not closed
	open    map[*quic.Conn]struct{}
	peers   map[trust.GatewayID]*pair
	calls   map[trust.GatewayID]*call
	serial  uint64 // of the latest registered connection
}

// New returns a Transport that does nothing yet.
func New(cfg Config) (*Transport, error) {
	if cfg.Conn == nil {
		return nil, errors.New("stream transport: no packet connection")
	}
	if len(cfg.Identity) != ed25519.PrivateKeySize {
		return nil, fmt.Errorf("stream transport: identity key of %d bytes", len(cfg.Identity))
	}
	for _, typ := range []byte{TypeIntroduction, TypeEnrolment} {
		if cfg.Handlers[typ] != nil {
			return nil, fmt.Errorf("stream transport: handler for stream type %d", typ)
		}
	}
	if cfg.PerSource <= 0 {
		cfg.PerSource = 20
	}
	if cfg.Pending <= 0 {
		cfg.Pending = 64
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	t := &Transport{
		cfg:     cfg,
		log:     log,
		dials:   make(chan struct{}, maxDials),
		started: make(chan struct{}),
		done:    make(chan struct{}),
		open:    make(map[*quic.Conn]struct{}),
		peers:   make(map[trust.GatewayID]*pair),
		calls:   make(map[trust.GatewayID]*call),
	}
	copy(t.identity[:], cfg.Identity.Public().(ed25519.PublicKey))
	wrapper, err := wrap(cfg.Identity)
	if err != nil {
		return nil, err
	}
	t.server, t.client = serverTLS(wrapper), clientTLS(wrapper)
	t.guard = newGuard(cfg.Conn, cfg.PerSource, &t.count)
	t.admit = newAdmission(cfg, &t.count)
	return t, nil
}

// Run accepts connections until ctx ends or the packet connection fails. When
// it returns, all connections are closed and all goroutines have ended. It
// returns nil after ctx ended. It can be called once.
func (t *Transport) Run(ctx context.Context) error {
	listener, err := t.listen()
	if err != nil {
		return err
	}
	close(t.started)
	ctx, cancel := context.WithCancel(ctx)
	err = t.acceptLoop(ctx, listener)
	ended := ctx.Err() != nil
	cancel()
	t.shutdown(listener)
	if ended {
		return nil
	}
	return fmt.Errorf("accept connections: %w", err)
}

func (t *Transport) listen() (*quic.Listener, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.running {
		return nil, errors.New("stream transport: run for the second time")
	}
	t.running = true
	// The token key stays nil: quic-go draws one, so that tokens of an earlier start are worthless.
	t.quic = &quic.Transport{
		Conn:                             t.guard,
		ConnectionIDLength:               8,
		MaxTokenAge:                      2 * handshakeIdle,
		DisableVersionNegotiationPackets: true,
		VerifySourceAddress:              t.admit.needsRetry,
		ConnContext:                      t.admit.enter,
	}
	listener, err := t.quic.Listen(t.server, quicConfig())
	if err != nil {
		return nil, fmt.Errorf("listen for streams: %w", err)
	}
	return listener, nil
}

// quicConfig is the same for both ends.
func quicConfig() *quic.Config {
	return &quic.Config{
		Versions:                       []quic.Version{quic.Version1},
		HandshakeIdleTimeout:           handshakeIdle,
		MaxIdleTimeout:                 idleTimeout,
		InitialPacketSize:              1200, // fits into a stream carrier of 1,232 bytes
		DisablePathMTUDiscovery:        true,
		MaxIncomingStreams:             maxStreams,
		MaxIncomingUniStreams:          -1,
		RequireStreamCreditRelease:     true, // a stream counts until its handler has returned
		InitialStreamReceiveWindow:     64 << 10,
		MaxStreamReceiveWindow:         1 << 20,
		InitialConnectionReceiveWindow: 128 << 10,
		MaxConnectionReceiveWindow:     4 << 20,
	}
}

func (t *Transport) acceptLoop(ctx context.Context, listener *quic.Listener) error {
	for {
		q, err := listener.Accept(ctx)
		if err != nil {
			return err
		}
		if !t.goTracked(func() { t.serveStranger(q) }) {
			t.drop(q, codeClosed, "closed")
		}
	}
}

// shutdown closes everything in an order that lets peers hear of it.
func (t *Transport) shutdown(listener *quic.Listener) {
	t.mu.Lock()
	t.closed = true
	close(t.done)
	open := make([]*quic.Conn, 0, len(t.open))
	for q := range t.open {
		open = append(open, q)
	}
	t.mu.Unlock()
	var closing sync.WaitGroup
	for _, q := range open {
		closing.Go(func() { t.drop(q, codeClosed, "closed") })
	}
	closing.Wait()
	_ = listener.Close()
	_ = t.quic.Close()
	t.wg.Wait()
}

// goTracked runs f in a goroutine that Run waits for, unless Run is ending.
func (t *Transport) goTracked(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.wg.Go(f)
	return true
}

// track remembers a connection, so that shutdown can close it.
func (t *Transport) track(q *quic.Conn) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.open[q] = struct{}{}
	return true
}

// drop closes a connection and forgets it.
func (t *Transport) drop(q *quic.Conn, code quic.ApplicationErrorCode, reason string) {
	_ = q.CloseWithError(code, reason) // never fails
	t.mu.Lock()
	delete(t.open, q)
	t.mu.Unlock()
}

// limit returns the limits of a stream type.
func (t *Transport) limit(typ byte) Limit {
	l, ok := defaultLimits[typ]
	if !ok {
		l = fallbackLimit
	}
	own := t.cfg.Limits[typ]
	if own.Lifetime > 0 {
		l.Lifetime = own.Lifetime
	}
	if own.Bytes > 0 {
		l.Bytes = own.Bytes
	}
	return l
}

// Counters returns how often each thing happened that an operator may ask
// about, by name. All names are always present.
func (t *Transport) Counters() map[string]uint64 { return t.count.snapshot() }
