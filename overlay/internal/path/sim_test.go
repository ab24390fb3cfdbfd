package path

import (
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// network is an underlay in virtual time: datagrams between addresses, with a
// delay per pair of addresses, and counting.
type network struct {
	t *testing.T

	mu       sync.Mutex // guards the fields below
	hosts    map[netip.AddrPort]*host
	delay    map[[2]netip.Addr]time.Duration // one way
	dark     map[netip.Addr]bool
	side     func(netip.Addr) int               // partitions do not hear each other; nil: none
	loses    func(from, to netip.AddrPort) bool // nil: nothing
	tooLong  func(size int) bool                // nil: never
	behind   time.Duration                      // by how much probes are slower than replies
	sends    func(from *host, to trust.GatewayID, addr string)
	received map[netip.Addr][]arrival
}

type arrival struct {
	at   time.Time
	size int
}

// host is a gateway with a Prover. It sends from its first address.
type host struct {
	net    *network
	id     trust.GatewayID
	addrs  []netip.AddrPort
	prover *Prover
	nat    *nat // of the first address; nil: none

	mu       sync.Mutex // guards the fields below
	boot     trust.BootID
	changes  []change
	boots    []trust.BootID
	observed []netip.AddrPort
	replies  []reply // to be replayed
}

type change struct {
	peer trust.GatewayID
	path Path
	ok   bool
	at   time.Time
}

type reply struct {
	from      netip.AddrPort
	peer      trust.GatewayID
	challenge [16]byte
	boot      trust.BootID
	observed  netip.AddrPort
}

// nat lets in what was written to within the last 30 seconds, as Linux does.
type nat struct{ opened map[netip.AddrPort]time.Time }

func newNetwork(t *testing.T) *network {
	return &network{
		t: t, hosts: make(map[netip.AddrPort]*host), delay: make(map[[2]netip.Addr]time.Duration),
		dark: make(map[netip.Addr]bool), received: make(map[netip.Addr][]arrival),
	}
}

func gatewayID(n int) trust.GatewayID { return trust.GatewayID{byte(n >> 8), byte(n), 0xaa} }

// add starts a host; cfg is completed.
func (n *network) add(number int, cfg Config, addrs ...string) *host {
	h := &host{net: n, id: gatewayID(number), boot: trust.BootID{byte(number), 1}}
	for _, a := range addrs {
		h.addrs = append(h.addrs, netip.MustParseAddrPort(a))
	}
	cfg.Send = h
	cfg.OnChange = func(peer trust.GatewayID, p Path, ok bool) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.changes = append(h.changes, change{peer, p, ok, time.Now()})
	}
	cfg.OnBoot = func(_ trust.GatewayID, b trust.BootID) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.boots = append(h.boots, b)
	}
	cfg.OnObserved = func(_ trust.GatewayID, mine netip.AddrPort) {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.observed = append(h.observed, mine)
	}
	h.prover = New(cfg)
	n.mu.Lock()
	for _, a := range h.addrs {
		n.hosts[a] = h
	}
	n.mu.Unlock()
	return h
}

// group adds count hosts with an address each, numbered from first.
func (n *network) group(first, count int) (hosts []*host) {
	for i := first; i < first+count; i++ {
		hosts = append(hosts, n.add(i, Config{}, netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 18, byte(i >> 8), byte(i)}), 51820).String()))
	}
	return hosts
}

// acquaint makes all of them peers of each other.
func acquaint(hosts []*host) {
	for _, h := range hosts {
		for _, other := range hosts {
			if h != other {
				h.knows(other)
			}
		}
	}
}

// run runs the Provers until the test ends.
func (n *network) run(hosts ...*host) {
	ctx := n.t.Context()
	for _, h := range hosts {
		go func() { _ = h.prover.Run(ctx) }() // ends with the test
	}
}

// setDelay sets the delay one way between 192.0.2.1, the first host of every
// test, and to.
func (n *network) setDelay(to string, d time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	x, y := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr(to)
	n.delay[[2]netip.Addr{x, y}], n.delay[[2]netip.Addr{y, x}] = d, d
}

func (n *network) setDark(a string, dark bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.dark[netip.MustParseAddr(a)] = dark
}

// carry calls f at the other end if the datagram gets there, late by as much.
func (n *network) carry(from, to netip.AddrPort, size int, late time.Duration, f func(*host)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.side != nil && n.side(from.Addr()) != n.side(to.Addr()) {
		return
	}
	if n.dark[from.Addr()] || n.dark[to.Addr()] || (n.loses != nil && n.loses(from, to)) || (n.tooLong != nil && n.tooLong(size)) {
		return
	}
	d, ok := n.delay[[2]netip.Addr{from.Addr(), to.Addr()}]
	if !ok {
		d = 5 * time.Millisecond
	}
	time.AfterFunc(d+late, func() { n.arrive(from, to, size, f) })
}

func (n *network) arrive(from, to netip.AddrPort, size int, f func(*host)) {
	n.mu.Lock()
	n.received[to.Addr()] = append(n.received[to.Addr()], arrival{time.Now(), size})
	h := n.hosts[to]
	if h != nil && h.nat != nil && time.Since(h.nat.opened[from]) > 30*time.Second {
		h = nil
	}
	n.mu.Unlock()
	if h != nil {
		f(h)
	}
}

// SendProbe is the port of a host: the other side answers without state, as
// package link does, if it is who was asked.
func (h *host) SendProbe(peer trust.GatewayID, to netip.AddrPort, challenge [16]byte, size int) error {
	from := h.addrs[0]
	if h.net.sends != nil {
		h.net.mu.Lock()
		h.net.sends(h, peer, to.String())
		h.net.mu.Unlock()
	}
	if h.nat != nil {
		h.net.mu.Lock()
		h.nat.opened[to] = time.Now()
		h.net.mu.Unlock()
	}
	h.net.carry(from, to, size, h.net.behind, func(other *host) {
		if other.id != peer {
			return // the key of the pair does not fit
		}
		other.prover.Heard(h.id)
		r := reply{from: to, peer: other.id, challenge: challenge, boot: other.start(), observed: from}
		h.net.carry(to, from, probeSize, 0, func(*host) {
			h.mu.Lock()
			h.replies = append(h.replies, r)
			h.mu.Unlock()
			h.deliver(r)
		})
	})
	return nil
}

func (h *host) deliver(r reply) bool {
	return h.prover.Reply(r.from, r.peer, r.challenge, r.boot, r.observed)
}

func (h *host) seen() []reply {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.replies)
}

func (h *host) changed() []change {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.changes)
}

func (h *host) startsTold() []trust.BootID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.boots)
}

func (h *host) observedTold() []netip.AddrPort {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.observed)
}

func (h *host) start() trust.BootID {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.boot
}

func (h *host) restart(boot trust.BootID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.boot = boot
}

// knows makes other a peer of h, at the addresses named or all that it has.
func (h *host) knows(other *host, addrs ...string) {
	var cs []Candidate
	if len(addrs) == 0 {
		for _, a := range other.addrs {
			cs = append(cs, Candidate{a, Record})
		}
	}
	for _, a := range addrs {
		cs = append(cs, Candidate{netip.MustParseAddrPort(a), Record})
	}
	h.prover.SetPeer(other.id, cs)
}

// path returns the path to other and fails without one.
func (h *host) path(other *host) Path {
	h.net.t.Helper()
	p, ok := h.prover.Path(other.id)
	if !ok {
		h.net.t.Fatalf("%s has no path to %s; addresses %+v", h.id.Short(), other.id.Short(), h.prover.Addresses(other.id))
	}
	return p
}

// pass lets virtual time pass.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}
