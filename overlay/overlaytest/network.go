package overlaytest

import (
	"container/heap"
	"encoding/binary"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"sync"
	"time"
)

// Network carries datagrams between hosts. It is safe for concurrent use.
type Network struct {
	mu      sync.Mutex // guards all below
	link    Link       // of pairs without one of their own
	random  *rand.Rand
	digest  hash.Hash64
	hosts   map[netip.Addr]*Host
	sockets map[netip.AddrPort]*socket
	nats    map[netip.Addr]*NAT // by public address
	links   map[pair]Link
	cut     map[pair]bool
	parts   map[netip.Addr]int // nil: whole
	busy    map[pair]time.Time // until when a link with a rate sends what it has taken
	flight  flight             // datagrams under way
	pumping bool               // a goroutine waits for the first of them
	earlier chan struct{}      // capacity 1: a datagram arrives before that
	serial  uint64             // of the latest datagram
	stats   Stats
}

// pair is a direction between two hosts.
type pair struct{ from, to netip.Addr }

// Link describes one direction between two hosts. The zero value is a link
// without delay and faults.
type Link struct {
	// Delay is the time that a datagram takes.
	Delay time.Duration
	// Jitter is added to Delay, uniformly from zero to this.
	Jitter time.Duration
	// Loss is the share of datagrams that get lost, 0 to 1.
	Loss float64
	// Reorder is the share of datagrams that take up to twice as long again,
	// so that later ones overtake them, 0 to 1.
	Reorder float64
	// Duplicate is the share of datagrams that arrive twice, 0 to 1.
	Duplicate float64
	// Rate is in bytes per second; zero means unlimited. What would wait for
	// more than maxWait is lost.
	Rate int
}

// maxWait is how long a datagram waits at a link with a Rate: the queue of a
// home router of the better kind (RFC 8290 aims at less, many have more).
const maxWait = 200 * time.Millisecond

// Options describe a Network.
type Options struct {
	// Link is that of every pair of hosts without one of their own.
	Link
	// Seed makes the random choices of the network repeatable.
	Seed uint64
}

// Stats are totals of a Network or of a Host.
type Stats struct {
	Packets uint64 // that were sent
	Bytes   uint64 // of their payloads
	Lost    uint64 // by chance, by a cut, or because nobody listened
}

// NewNetwork returns a network without hosts.
func NewNetwork(o Options) *Network {
	return &Network{
		link:    o.Link,
		random:  rand.New(rand.NewPCG(o.Seed, 0)), //nolint:gosec // repeatable on purpose
		digest:  fnv.New64a(),
		hosts:   make(map[netip.Addr]*Host),
		sockets: make(map[netip.AddrPort]*socket),
		nats:    make(map[netip.Addr]*NAT),
		links:   make(map[pair]Link),
		cut:     make(map[pair]bool),
		busy:    make(map[pair]time.Time),
		earlier: make(chan struct{}, 1),
	}
}

// Stats returns the totals so far.
func (n *Network) Stats() Stats {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stats
}

// Digest is equal for two runs that sent datagrams of the same lengths between
// the same addresses at the same times, and hardly for others.
func (n *Network) Digest() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.digest.Sum64()
}

// SetLink gives one direction between two hosts a link of its own. The order
// of calls with the same hosts counts, not that of datagrams under way.
func (n *Network) SetLink(from, to netip.Addr, l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[pair{from, to}] = l
}

// ResetLink undoes SetLink.
func (n *Network) ResetLink(from, to netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.links, pair{from, to})
}

// SetDefault changes the link of all pairs without one of their own.
func (n *Network) SetDefault(l Link) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.link = l
}

// Link returns the link of one direction between two hosts.
func (n *Network) Link(from, to netip.Addr) Link {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.linkLocked(from, to)
}

func (n *Network) linkLocked(from, to netip.Addr) Link {
	if l, own := n.links[pair{from, to}]; own {
		return l
	}
	return n.link
}

// Cut stops datagrams from one host to another, in this direction, until Mend.
func (n *Network) Cut(from, to netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cut[pair{from, to}] = true
}

// Mend undoes Cut.
func (n *Network) Mend(from, to netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.cut, pair{from, to})
}

// Partition stops datagrams between the given groups of hosts, in place of an
// earlier partition. Hosts in none of them form one more group.
func (n *Network) Partition(groups ...[]netip.Addr) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.parts = make(map[netip.Addr]int)
	for i, group := range groups {
		for _, a := range group {
			n.parts[a] = i + 1
		}
	}
}

// Heal undoes Partition.
func (n *Network) Heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.parts = nil
}

// Connected reports whether datagrams from one host to another pass at all,
// cuts and partitions considered, loss and NAT not.
func (n *Network) Connected(from, to netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.connectedLocked(from, to)
}

func (n *Network) connectedLocked(from, to netip.Addr) bool {
	return !n.cut[pair{from, to}] && n.parts[from] == n.parts[to]
}

// datagram is a packet on its way.
type datagram struct {
	at     time.Time
	serial uint64 // breaks ties
	from   netip.AddrPort
	to     *socket
	b      []byte
}

// flight is a heap of datagrams, the first to arrive on top.
type flight []datagram

func (f flight) Len() int { return len(f) }
func (f flight) Less(i, j int) bool {
	if f[i].at.Equal(f[j].at) {
		return f[i].serial < f[j].serial
	}
	return f[i].at.Before(f[j].at)
}
func (f flight) Swap(i, j int) { f[i], f[j] = f[j], f[i] }
func (f *flight) Push(x any)   { *f = append(*f, x.(datagram)) }
func (f *flight) Pop() any {
	last := len(*f) - 1
	d := (*f)[last]
	(*f)[last] = datagram{}
	*f = (*f)[:last]
	return d
}

// send takes a datagram of a host on its way.
func (n *Network) send(h *Host, from, to netip.AddrPort, b []byte) {
	now := time.Now()
	n.mu.Lock()
	n.noteLocked(h, from, to, b, now)
	from, to, inside := n.translateLocked(h, from, to, now)
	s := n.sockets[to]
	if s == nil || !inside || !n.connectedLocked(h.addr, s.host.addr) {
		n.loseLocked(h)
		n.mu.Unlock()
		return
	}
	l := n.linkLocked(h.addr, s.host.addr)
	copies := 1
	switch {
	case l.Loss > 0 && n.random.Float64() < l.Loss:
		copies = 0
	case l.Duplicate > 0 && n.random.Float64() < l.Duplicate:
		copies = 2
	}
	if copies == 0 {
		n.loseLocked(h)
	}
	var direct []datagram
	for range copies {
		delay, kept := n.delayLocked(pair{h.addr, s.host.addr}, l, len(b), now)
		if !kept {
			n.loseLocked(h)
			continue
		}
		n.serial++
		d := datagram{at: now.Add(delay), serial: n.serial, from: from, to: s, b: append([]byte(nil), b...)}
		if delay == 0 {
			direct = append(direct, d)
			continue
		}
		n.launchLocked(d)
	}
	n.mu.Unlock()
	for _, d := range direct {
		n.deliver(d)
	}
}

// noteLocked counts a datagram and makes it part of the digest.
func (n *Network) noteLocked(h *Host, from, to netip.AddrPort, b []byte, now time.Time) {
	n.stats.Packets++
	n.stats.Bytes += uint64(len(b))
	h.stats.Packets++
	h.stats.Bytes += uint64(len(b))
	var head [52]byte
	binary.BigEndian.PutUint64(head[0:], uint64(now.UnixNano())) //nolint:gosec // any 64 bits do
	src, dst := from.Addr().As16(), to.Addr().As16()
	copy(head[8:], src[:])
	copy(head[24:], dst[:])
	binary.BigEndian.PutUint16(head[40:], from.Port())
	binary.BigEndian.PutUint16(head[42:], to.Port())
	binary.BigEndian.PutUint64(head[44:], uint64(len(b)))
	_, _ = n.digest.Write(head[:])
}

func (n *Network) loseLocked(h *Host) {
	n.stats.Lost++
	h.stats.Lost++
}

// delayLocked draws how long a datagram takes; false if it gets lost in a full queue.
func (n *Network) delayLocked(p pair, l Link, size int, now time.Time) (time.Duration, bool) {
	delay := l.Delay
	if l.Jitter > 0 {
		delay += time.Duration(n.random.Int64N(int64(l.Jitter)))
	}
	if l.Reorder > 0 && n.random.Float64() < l.Reorder {
		delay += time.Duration(n.random.Int64N(int64(2*delay) + 1))
	}
	if l.Rate > 0 {
		start := n.busy[p]
		if start.Before(now) {
			start = now
		}
		if start.Sub(now) > maxWait {
			return 0, false
		}
		end := start.Add(time.Duration(float64(size) / float64(l.Rate) * float64(time.Second)))
		n.busy[p] = end
		delay += end.Sub(now)
	}
	return delay, true
}

// launchLocked puts a datagram among those under way.
func (n *Network) launchLocked(d datagram) {
	first := len(n.flight) == 0 || d.at.Before(n.flight[0].at)
	heap.Push(&n.flight, d)
	switch {
	case !n.pumping:
		n.pumping = true
		go n.pump() // ends when nothing is under way
	case first:
		select {
		case n.earlier <- struct{}{}:
		default:
		}
	}
}

// pump delivers what is under way, each datagram at its time.
func (n *Network) pump() {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		n.mu.Lock()
		if len(n.flight) == 0 {
			n.pumping = false
			n.mu.Unlock()
			return
		}
		if wait := time.Until(n.flight[0].at); wait > 0 {
			n.mu.Unlock()
			timer.Reset(wait)
			select {
			case <-timer.C:
			case <-n.earlier:
			}
			continue
		}
		d := heap.Pop(&n.flight).(datagram)
		n.mu.Unlock()
		n.deliver(d)
	}
}

func (n *Network) deliver(d datagram) {
	if d.to.take(d) {
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.stats.Lost++
}
