package preflight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// Bounds of an agent, which nobody may need to stop by hand.
const (
	maxLife     = 15 * time.Minute // of an agent; 50 hosts take half a minute
	maxReplies  = 20_000           // answers per second
	maxHeard    = 4096             // runs of which an agent counts what it received
	maxClients  = 64               // TCP connections at once per port
	clientLimit = 5 * time.Second  // for one TCP connection
)

// agent measures between its host and others.
type agent struct {
	out *lineWriter

	ready chan struct{} // closed when setup is done
	self  uint16
	addr  netip.Addr
	sock  *probeSocket

	mu      sync.Mutex // guards the rest
	closed  bool
	closers []io.Closer // sockets
	peers   map[uint16]*peerState
	runs    map[uint64]*echoRun
	sizes   map[uint64]*sizeRun
	heard   map[heardKey]*heardRun
	// budget is how many answers may still be sent in the second window.
	budget int
	window int64
}

type peerState struct {
	addr netip.AddrPort
	key  *pairKey
}

type heardKey struct {
	from uint16
	run  uint64
}

// heardRun is what arrived of a run that a peer began.
type heardRun struct {
	count     int
	reordered int
	highest   uint32
	seen      map[uint32]struct{} // at most maxProbes
	from      netip.Addr
}

// Serve is the agent: it obeys the requests that come on in and answers on out,
// until in ends, ctx is done or fifteen minutes are over. All that it has opened is closed
// when it returns; a request that is being worked on is given up. The error says what
// was wrong with a line or with out; the end of in is none.
func Serve(ctx context.Context, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, maxLife)
	defer cancel()
	a := &agent{
		out: &lineWriter{w: out}, ready: make(chan struct{}), peers: make(map[uint16]*peerState),
		runs: make(map[uint64]*echoRun), sizes: make(map[uint64]*sizeRun), heard: make(map[heardKey]*heardRun),
	}
	var work sync.WaitGroup
	defer work.Wait()
	defer a.close()
	defer cancel()
	lines := make(chan error, 1)
	slots := make(chan struct{}, maxRunning)
	// Ends with in; where in never ends, with the process.
	go func() {
		lines <- readLines(in, func(line []byte) error {
			r, err := parseRequest(line)
			if err != nil {
				return err
			}
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
			return a.begin(func() {
				work.Go(func() {
					defer func() { <-slots }()
					a.serve(ctx, r, &work)
				})
			})
		})
	}()
	select {
	case err := <-lines:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin calls f unless the agent has been closed: a line may come at the same moment.
func (a *agent) begin(f func()) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		return net.ErrClosed
	}
	f()
	return nil
}

// close closes all sockets, also those that are opened later.
func (a *agent) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.closed = true
	for _, c := range a.closers {
		c.Close() //nolint:errcheck // nothing is buffered
	}
	a.closers = nil
}

// own keeps c to be closed at the end.
func (a *agent) own(c io.Closer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.closed {
		c.Close() //nolint:errcheck // nothing is buffered
		return
	}
	a.closers = append(a.closers, c)
}

// serve does one request. What out does not take is lost with the session.
func (a *agent) serve(ctx context.Context, r request, work *sync.WaitGroup) {
	answer, err := a.answer(ctx, r, work)
	answer.Version, answer.ID = protocolVersion, r.ID
	if err != nil {
		answer.Error = err.Error()
	}
	a.out.write(answer) //nolint:errcheck // the reader has gone, so in ends too
}

func (a *agent) answer(ctx context.Context, r request, work *sync.WaitGroup) (reply, error) {
	if r.Setup != nil {
		ready, err := a.setup(ctx, r.Setup, work)
		return reply{Ready: ready}, err
	}
	select {
	case <-a.ready:
	default:
		return reply{}, errors.New("request before setup")
	}
	switch {
	case r.Peers != nil:
		return reply{}, a.setPeers(r.Peers.Peers)
	case r.Connect != nil:
		ports, err := a.connect(ctx, r.Connect)
		return reply{Ports: ports}, err
	case r.Echo != nil:
		echo, err := a.echo(ctx, r.Echo)
		return reply{Echo: echo}, err
	case r.Count != nil:
		return reply{Count: a.countOf(r.Count)}, nil
	case r.Size != nil:
		size, err := a.size(ctx, r.Size)
		return reply{Size: size}, err
	}
	return reply{}, errors.New("empty request")
}

// setup opens sockets and tries what concerns the host alone.
func (a *agent) setup(ctx context.Context, s *setup, work *sync.WaitGroup) (*ready, error) {
	select {
	case <-a.ready:
		return nil, errors.New("setup comes twice")
	default:
	}
	if !s.Addr.IsValid() || len(s.Ports) > maxPorts {
		return nil, errors.New("setup without an address, or with too many ports")
	}
	a.self, a.addr = s.Self, s.Addr
	sock, err := listenProbe(netip.AddrPortFrom(s.Addr, s.ProbePort))
	if err != nil {
		return nil, err
	}
	a.sock = sock
	a.own(sock)
	r := &ready{ProbePort: sock.port()}
	for _, port := range s.Ports {
		a.open(ctx, port, r, work)
	}
	r.Duplicates = findDuplicates(ctx, s.Addr)
	ahead, err := clockAhead(ctx)
	if err != nil {
		r.ClockError = err.Error()
	}
	r.ClockNanos = int64(ahead)
	if s.FsyncDir != "" {
		if err := tryFsync(ctx, s.FsyncDir, r); err != nil {
			r.FsyncError = err.Error()
		}
	}
	work.Go(a.receive) // ends when close closes the socket
	close(a.ready)
	return r, nil
}

// open listens on a port that nobody uses.
func (a *agent) open(ctx context.Context, port uint16, r *ready, work *sync.WaitGroup) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", netip.AddrPortFrom(a.addr, port).String())
	switch {
	case isInUse(err):
		r.Busy = append(r.Busy, port)
	case err != nil:
		r.Failed = append(r.Failed, fmt.Sprintf("port %d: %v", port, err))
	default:
		a.own(l)
		r.Listening = append(r.Listening, port)
		work.Go(func() { a.accept(ctx, l, work) }) // ends when close closes l
	}
}

func (a *agent) setPeers(list []peer) error {
	if len(list) > maxPeers {
		return fmt.Errorf("%d peers, at most %d are accepted", len(list), maxPeers)
	}
	states := make(map[uint16]*peerState, len(list))
	for _, p := range list {
		if !p.Addr.IsValid() || len(p.Key) < 16 {
			return fmt.Errorf("peer %d has no address or no key", p.Index)
		}
		states[p.Index] = &peerState{addr: netip.AddrPortFrom(p.Addr, p.ProbePort), key: newPairKey(p.Key)}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.peers = states
	return nil
}

func (a *agent) peer(index uint16) (*peerState, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.peers[index]; p != nil {
		return p, nil
	}
	return nil, fmt.Errorf("no peer %d", index)
}

// key returns nil for strangers.
func (a *agent) key(index uint16) *pairKey {
	a.mu.Lock()
	defer a.mu.Unlock()
	if p := a.peers[index]; p != nil {
		return p.key
	}
	return nil
}

// receive handles datagrams until the socket is closed.
func (a *agent) receive() {
	buf := make([]byte, 65536)
	out := make([]byte, 0, packetLen)
	for {
		d, err := a.sock.read(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error of an earlier datagram
		}
		p, err := parsePacket(d.payload, a.self, a.key)
		if err != nil {
			continue // strangers get silence
		}
		switch p.kind {
		case kindEcho:
			a.heardEcho(p, d, out)
		case kindSize:
			a.heardSize(p, d, out)
		case kindEchoReply:
			a.mu.Lock()
			run := a.runs[p.run]
			a.mu.Unlock()
			if run != nil {
				run.answered(p, d)
			}
		case kindSizeAck:
			a.mu.Lock()
			run := a.sizes[p.run]
			a.mu.Unlock()
			if run != nil {
				run.arrived(p)
			}
		}
	}
}

// mayAnswer says whether one more datagram may be sent in answer.
func (a *agent) mayAnswer() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if now := time.Now().Unix(); now != a.window {
		a.window, a.budget = now, maxReplies
	}
	a.budget--
	return a.budget >= 0
}

// heardEcho counts a request and returns it, to where it came from: that is
// what a NAT on the way needs, and one datagram is answered with one of the same length.
func (a *agent) heardEcho(p packet, d datagram, out []byte) {
	a.mu.Lock()
	k := heardKey{p.from, p.run}
	h := a.heard[k]
	if h == nil && len(a.heard) < maxHeard {
		h = &heardRun{seen: make(map[uint32]struct{})}
		a.heard[k] = h
	}
	fresh := h != nil && h.add(p.seq, d.from.Addr())
	count := 0
	if h != nil {
		count = h.count
	}
	a.mu.Unlock()
	if !fresh || !a.mayAnswer() {
		return
	}
	back := packet{
		kind: kindEchoReply, ttl: d.ttl, from: a.self, to: p.from, run: p.run, seq: p.seq, count: uint32(count),
		asked: p.asked, arrived: d.at, seen: d.from.Addr(),
	}
	a.send(&back, d.from, out)
}

// add returns false for a datagram that was there before.
func (h *heardRun) add(seq uint32, from netip.Addr) bool {
	if _, again := h.seen[seq]; again || len(h.seen) >= maxProbes {
		return false
	}
	h.seen[seq] = struct{}{}
	if h.count > 0 && seq < h.highest {
		h.reordered++
	}
	h.highest = max(h.highest, seq)
	h.count++
	h.from = from
	return true
}

func (a *agent) heardSize(p packet, d datagram, out []byte) {
	if !a.mayAnswer() {
		return
	}
	back := packet{kind: kindSizeAck, ttl: d.ttl, from: a.self, to: p.from, size: p.size, run: p.run, seq: p.seq, asked: p.asked, arrived: d.at, seen: d.from.Addr()}
	a.send(&back, d.from, out)
}

// send signs an answer as late as possible. What cannot be sent is lost, as on the way.
func (a *agent) send(p *packet, to netip.AddrPort, buf []byte) {
	key := a.key(p.to)
	if key == nil {
		return
	}
	p.answered = time.Now().UnixNano()
	a.sock.write(p.append(buf[:0], key), to) //nolint:errcheck // counted as lost by the peer
}

func (a *agent) countOf(c *countJob) *countHeard {
	a.mu.Lock()
	defer a.mu.Unlock()
	h := a.heard[heardKey{c.Peer, c.Run}]
	if h == nil {
		return &countHeard{}
	}
	return &countHeard{Received: h.count, Reordered: h.reordered, From: h.from}
}

// quantiles sorts values and describes them; of none it returns the zero value.
func quantiles(values []int64) quantum {
	if len(values) == 0 {
		return quantum{}
	}
	slices.Sort(values)
	at := func(percent int) int64 {
		rank := (len(values)*percent + 99) / 100 // nearest rank, from 1
		return values[max(rank, 1)-1]
	}
	return quantum{Min: values[0], P50: at(50), P90: at(90), P99: at(99), Max: values[len(values)-1]}
}
