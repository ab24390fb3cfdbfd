package gossip

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

const (
	// Port is the port that every member says it has (docs/protocol.md, section 5). Nobody listens on it.
	Port = 7946
	// MaxPacket is the largest packet given to Config.Send, in bytes (docs/protocol.md, section 5).
	MaxPacket = 1190
	// MaxBroadcast is the largest message that Broadcast takes, in bytes: alone in a compound message it fills a packet.
	MaxBroadcast = MaxPacket - compoundOverhead - broadcastOverhead
	// MaxMeta is the largest metadata of a member, in bytes.
	MaxMeta = 32

	packetBuffer      = MaxPacket - 5 // memberlist puts a checksum before a full packet
	compoundOverhead  = 2             // type and number of messages
	broadcastOverhead = 3             // length of a message in a compound message, and its type
)

const (
	maxQueuedPackets    = 256 // towards memberlist
	maxQueuedUsers      = 256 // towards OnUser
	maxQueuedBroadcasts = 1024
	maxStreams          = 8 // state exchanges of others at a time; one for each peer
	maxJoins            = 4 // own joins at a time
	streamTimeout       = 10 * time.Second
	metaInterval        = 10 * time.Second // between changes of our metadata: each is told to everybody
)

// Config says who this member is and how it reaches others. Self, Addr, Send
// and Open are required. Callbacks are called from several goroutines; Addr and
// Meta must be quick and must not call this package.
type Config struct {
	// Self is the own gateway. Addr must know it.
	Self trust.GatewayID
	// Addr returns the overlay address of a gateway that has a stored record and is not revoked.
	Addr func(peer trust.GatewayID) (netip.Addr, bool)
	// Send sends a packet of at most MaxPacket bytes to a peer, as a datagram: it may get lost. It must not block and not keep b.
	Send func(peer trust.GatewayID, b []byte) error
	// Open opens a stream of type gossip to a peer.
	Open func(ctx context.Context, peer trust.GatewayID) (net.Conn, error)
	// Meta returns our metadata, at most MaxMeta bytes. nil: none.
	Meta func() []byte
	// OnUser gets the messages that peers broadcast, with the peer that passed it on, one at a time; b is the callee's. nil ignores them.
	OnUser func(peer trust.GatewayID, b []byte)
	// OnHint hears that a member seems to have come or gone, one at a time. Of hints that come faster than they
	// are taken the latest for each member stays. nil ignores them.
	OnHint func(peer trust.GatewayID, alive bool)
	// OnMeta hears the metadata of a member when it comes and when they change, as OnHint. nil ignores them.
	OnMeta func(peer trust.GatewayID, meta []byte)
	// Logger gets memberlist's own log on level debug; nil is silent.
	Logger *slog.Logger
	// Tuning replaces single settings; zero fields mean the defaults.
	Tuning Tuning
}

// Tuning are the settings of memberlist that matter for large and slow meshes.
// The defaults and their reasons are in docs/decisions/0003-gossip-settings.md.
type Tuning struct {
	Gossip      time.Duration // between rounds of broadcasts
	GossipNodes int           // members told in each round
	PushPull    time.Duration // between state exchanges of a small mesh; memberlist stretches it beyond 32 members
	Probe       time.Duration // between probes of one member each
	ProbeWait   time.Duration // for the answer to a probe
	Retransmit  int           // times log10(members+1): how often a broadcast is sent
	Suspicion   int           // times log10(members) times Probe: how long a suspect may take to speak up
}

// defaultTuning is for round trips of up to 300 ms.
var defaultTuning = Tuning{
	Gossip:      200 * time.Millisecond,
	GossipNodes: 4,
	PushPull:    10 * time.Second,
	Probe:       3 * time.Second,
	ProbeWait:   1500 * time.Millisecond,
	Retransmit:  6,
	Suspicion:   4,
}

func (t Tuning) withDefaults() Tuning {
	pick(&t.Gossip, defaultTuning.Gossip)
	pick(&t.GossipNodes, defaultTuning.GossipNodes)
	pick(&t.PushPull, defaultTuning.PushPull)
	pick(&t.Probe, defaultTuning.Probe)
	pick(&t.ProbeWait, defaultTuning.ProbeWait)
	pick(&t.Retransmit, defaultTuning.Retransmit)
	pick(&t.Suspicion, defaultTuning.Suspicion)
	return t
}

func pick[T comparable](v *T, fallback T) {
	var zero T
	if *v == zero {
		*v = fallback
	}
}

// protocolVersion is the version of memberlist's protocol that we speak (docs/protocol.md, section 5).
const protocolVersion = 5

// Gossip is one member. New starts nothing; Run works until its context ends.
// All methods are safe for concurrent use and do not block, Stream excepted.
type Gossip struct {
	cfg       Config
	log       *slog.Logger
	count     counters
	transport *transport
	inbox     *inbox
	queue     memberlist.TransmitLimitedQueue
	list      atomic.Pointer[memberlist.Memberlist] // set while Run works
	running   atomic.Bool

	users    chan userMessage
	joinNow  chan struct{} // capacity 1: joins is not empty
	metaNow  chan struct{} // capacity 1: Meta may have changed
	hintsNow chan struct{} // capacity 1: hints is not empty

	mu    sync.Mutex // guards the rest
	joins map[trust.GatewayID]struct{}
	hints map[trust.GatewayID]hint
}

type userMessage struct {
	peer trust.GatewayID
	b    []byte
}

// New returns a member that does nothing yet.
func New(cfg Config) (*Gossip, error) {
	if cfg.Addr == nil || cfg.Send == nil || cfg.Open == nil {
		return nil, errors.New("gossip: Addr, Send and Open are required")
	}
	self, ok := cfg.Addr(cfg.Self)
	if !ok || !self.Is6() {
		return nil, fmt.Errorf("gossip: no overlay address of our own gateway %s", cfg.Self)
	}
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	cfg.Tuning = cfg.Tuning.withDefaults()
	g := &Gossip{
		cfg:      cfg,
		log:      log,
		users:    make(chan userMessage, maxQueuedUsers),
		joinNow:  make(chan struct{}, 1),
		metaNow:  make(chan struct{}, 1),
		hintsNow: make(chan struct{}, 1),
		joins:    make(map[trust.GatewayID]struct{}),
		hints:    make(map[trust.GatewayID]hint),
	}
	f := &filter{self: cfg.Self, name: cfg.Self.String(), addr: cfg.Addr, count: &g.count}
	g.transport = newTransport(cfg, f, self)
	g.inbox = newInbox(f, g.transport.packets, g.users)
	g.queue = memberlist.TransmitLimitedQueue{NumNodes: g.numNodes, RetransmitMult: cfg.Tuning.Retransmit}
	return g, nil
}

// Run is a member until ctx ends. When it returns, memberlist's goroutines
// have been told to end and wait for nothing. It can be called once.
func (g *Gossip) Run(ctx context.Context) error {
	if !g.running.CompareAndSwap(false, true) {
		return errors.New("gossip: run for the second time")
	}
	list, err := memberlist.Create(g.settings())
	if err != nil {
		return fmt.Errorf("start memberlist: %w", err)
	}
	g.list.Store(list)
	var wg sync.WaitGroup // each goroutine ends with ctx; the transport's end interrupts what they wait for
	wg.Go(func() { g.transport.pump(ctx) })
	wg.Go(func() { g.spread(ctx) })
	wg.Go(func() { g.deliverUsers(ctx) })
	wg.Go(func() { g.deliverHints(ctx) })
	wg.Go(func() { g.updateMeta(ctx, list) })
	wg.Go(func() { g.joinAll(ctx, list) })
	<-ctx.Done()
	g.list.Store(nil)
	g.transport.close()
	err = list.Shutdown()
	wg.Wait()
	return err
}

// settings is memberlist's configuration: its wide-area defaults with ours.
func (g *Gossip) settings() *memberlist.Config {
	t := g.cfg.Tuning
	c := memberlist.DefaultWANConfig()
	c.Name = g.cfg.Self.String()
	c.Transport = g.transport
	c.BindPort, c.AdvertisePort = Port, Port
	c.ProtocolVersion = protocolVersion
	c.EnableCompression = false
	c.GossipVerifyIncoming, c.GossipVerifyOutgoing = false, false
	c.DNSConfigPath = "" // names are never resolved: all addresses are numbers
	c.UDPBufferSize = packetBuffer
	c.TCPTimeout = streamTimeout
	c.DisableTcpPings = true
	c.GossipInterval, c.GossipNodes = t.Gossip, t.GossipNodes
	c.PushPullInterval = t.PushPull
	c.ProbeInterval, c.ProbeTimeout = t.Probe, t.ProbeWait
	c.RetransmitMult, c.SuspicionMult = t.Retransmit, t.Suspicion
	c.AwarenessMaxMultiplier = 4
	c.Logger = slog.NewLogLogger(g.log.Handler(), slog.LevelDebug)
	d := (*delegate)(g)
	c.Delegate, c.Events, c.Alive = d, d, d
	return c
}

// Packet takes a packet that a peer sent; b is not kept. It never blocks.
func (g *Gossip) Packet(peer trust.GatewayID, b []byte) { g.inbox.packet(peer, b) }

// Stream serves a stream of type gossip that a peer opened, until it is over
// or ctx ends, and closes it.
func (g *Gossip) Stream(ctx context.Context, peer trust.GatewayID, conn net.Conn) {
	g.transport.serve(ctx, peer, conn)
}

// Join exchanges state with each of peers soon, to become a member of their
// mesh. It is an attempt: whoever wants certainty looks at Members and calls
// again.
func (g *Gossip) Join(peers []trust.GatewayID) {
	g.mu.Lock()
	for _, id := range peers {
		if id != g.cfg.Self && len(g.joins) < maxStateNodes {
			g.joins[id] = struct{}{}
		}
	}
	g.mu.Unlock()
	signal(g.joinNow)
}

// UpdateMeta says that Meta has something new to tell. It is told soon, every
// ten seconds at most.
func (g *Gossip) UpdateMeta() { signal(g.metaNow) }

// ErrTooLarge is returned by Broadcast for a message above MaxBroadcast.
var ErrTooLarge = errors.New("message is too large for gossip")

// Broadcast sends a message of 1 to MaxBroadcast bytes to some members, as
// many as it takes for all to hear of it if each that finds it new broadcasts
// it again. A message replaces one with the same key that is still being sent.
// It keeps b.
func (g *Gossip) Broadcast(b []byte, key string) error {
	if len(b) == 0 || len(b) > MaxBroadcast {
		return fmt.Errorf("broadcast of %d bytes: %w", len(b), ErrTooLarge)
	}
	g.queue.QueueBroadcast(&broadcast{key: key, b: b})
	g.queue.Prune(maxQueuedBroadcasts)
	return nil
}

// Members returns the stored gateways that memberlist takes for alive, without
// ourselves, in no order. It is nil while Run does not work.
func (g *Gossip) Members() []trust.GatewayID {
	list := g.list.Load()
	if list == nil {
		return nil
	}
	nodes := list.Members()
	ids := make([]trust.GatewayID, 0, len(nodes))
	for _, n := range nodes {
		if id, ok := g.stored(n); ok {
			ids = append(ids, id)
		}
	}
	return ids
}

// stored returns the gateway that a member is, if it is another one than ours with a stored record.
func (g *Gossip) stored(n *memberlist.Node) (trust.GatewayID, bool) {
	id, err := trust.ParseGatewayID(n.Name)
	if err != nil || id == g.cfg.Self {
		return trust.GatewayID{}, false
	}
	_, ok := g.cfg.Addr(id)
	return id, ok
}

// Counters returns how often each thing happened that an operator may ask
// about, by name. All names are always present.
func (g *Gossip) Counters() map[string]uint64 { return g.count.snapshot() }

// numNodes decides how often a broadcast is sent.
func (g *Gossip) numNodes() int {
	if list := g.list.Load(); list != nil {
		return list.NumMembers()
	}
	return 1
}

func (g *Gossip) deliverUsers(ctx context.Context) {
	for {
		select {
		case m := <-g.users:
			if g.cfg.OnUser != nil {
				g.cfg.OnUser(m.peer, m.b)
			}
		case <-ctx.Done():
			return
		}
	}
}

// updateMeta tells the members about new metadata, one change at a time.
func (g *Gossip) updateMeta(ctx context.Context, list *memberlist.Memberlist) {
	for {
		select {
		case <-g.metaNow:
		case <-ctx.Done():
			return
		}
		// The error only says that the change was not sent while it waited, which it hardly does here.
		_ = list.UpdateNode(time.Nanosecond)
		select {
		case <-time.After(metaInterval):
		case <-ctx.Done():
			return
		}
	}
}

// joinAll exchanges state with everybody that Join named, a few at a time.
func (g *Gossip) joinAll(ctx context.Context, list *memberlist.Memberlist) {
	var wg sync.WaitGroup
	defer wg.Wait()
	places := make(chan struct{}, maxJoins)
	for {
		select {
		case <-g.joinNow:
		case <-ctx.Done():
			return
		}
		for id, ok := g.nextJoin(); ok; id, ok = g.nextJoin() {
			select {
			case places <- struct{}{}:
			case <-ctx.Done():
				return
			}
			wg.Go(func() {
				defer func() { <-places }()
				if addr, ok := g.cfg.Addr(id); ok {
					_, _ = list.Join([]string{joinName(id, addr)}) // memberlist logs why not
				}
			})
		}
	}
}

func (g *Gossip) nextJoin() (trust.GatewayID, bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for id := range g.joins {
		delete(g.joins, id)
		return id, true
	}
	return trust.GatewayID{}, false
}

// signal sets a flag that is a channel of capacity 1.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
