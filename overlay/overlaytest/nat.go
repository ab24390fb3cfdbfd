package overlaytest

import (
	"net/netip"
	"time"
)

// NAT is a router that hides hosts behind one public address. All its state is
// guarded by Network.mu. It does not hairpin.
type NAT struct {
	network  *Network
	public   netip.Addr
	options  NATOptions
	mappings map[mappingKey]*mapping
	ports    map[uint16]*mapping // by public port
	next     uint16
}

// NATOptions are how a NAT behaves, in the words of RFC 4787.
type NATOptions struct {
	// Symmetric gives a socket another public port for each destination
	// (address and port-dependent mapping); else it keeps one for all.
	Symmetric bool
	// Open lets every source in once a port is mapped (endpoint-independent
	// filtering); else only addresses and ports that were sent to.
	Open bool
	// Timeout is after how long without traffic from inside a mapping ends;
	// zero means two minutes (RFC 4787, REQ-5).
	Timeout time.Duration
}

type mappingKey struct {
	inside netip.AddrPort
	remote netip.AddrPort // zero unless symmetric
}

type mapping struct {
	key   mappingKey
	port  uint16
	last  time.Time                    // traffic from inside
	peers map[netip.AddrPort]time.Time // that were sent to
}

// NAT returns a new router with a public address, which must be nobody's.
func (n *Network) NAT(public netip.Addr, o NATOptions) *NAT {
	if o.Timeout == 0 {
		o.Timeout = 2 * time.Minute
	}
	t := &NAT{network: n, public: public, options: o, next: firstPort}
	t.forget()
	n.mu.Lock()
	defer n.mu.Unlock()
	n.nats[public] = t
	return t
}

// Host returns the host with an address behind the NAT. The address must be
// unique in the whole Network.
func (t *NAT) Host(addr netip.Addr) *Host {
	t.network.mu.Lock()
	defer t.network.mu.Unlock()
	return t.network.hostLocked(addr, t)
}

// Restart makes the router forget all its mappings, as a power failure does.
func (t *NAT) Restart() {
	t.network.mu.Lock()
	defer t.network.mu.Unlock()
	t.forget()
}

func (t *NAT) forget() {
	t.mappings = make(map[mappingKey]*mapping)
	t.ports = make(map[uint16]*mapping)
}

// translateLocked returns what a datagram has for addresses where it arrives;
// false if a router does not let it pass.
func (n *Network) translateLocked(h *Host, from, to netip.AddrPort, now time.Time) (_, _ netip.AddrPort, ok bool) {
	if h.nat != nil {
		if target := n.hosts[to.Addr()]; target != nil && target.nat == h.nat {
			return from, to, true // the LAN that they share
		}
		from = h.nat.out(from, to, now)
	}
	if t := n.nats[to.Addr()]; t != nil {
		inside, ok := t.in(from, to.Port(), now)
		return from, inside, ok
	}
	if target := n.hosts[to.Addr()]; target != nil && target.nat != nil {
		return from, to, false // a private address
	}
	return from, to, true
}

// out returns the public source of a datagram from inside.
func (t *NAT) out(from, to netip.AddrPort, now time.Time) netip.AddrPort {
	key := mappingKey{inside: from}
	if t.options.Symmetric {
		key.remote = to
	}
	m := t.mappings[key]
	if m != nil && now.Sub(m.last) > t.options.Timeout {
		delete(t.ports, m.port)
		m = nil
	}
	if m == nil {
		m = &mapping{key: key, port: t.freePort(from.Port(), now), peers: make(map[netip.AddrPort]time.Time)}
		t.mappings[key], t.ports[m.port] = m, m
	}
	m.last = now
	m.peers[to] = now
	return netip.AddrPortFrom(t.public, m.port)
}

// freePort keeps the port of the inside where that is possible (port
// preservation), as the routers of homes do.
func (t *NAT) freePort(want uint16, now time.Time) uint16 {
	for port := want; ; port = t.next {
		if m := t.ports[port]; m == nil || now.Sub(m.last) > t.options.Timeout {
			if m != nil {
				delete(t.mappings, m.key)
			}
			return port
		}
		t.next = max(t.next+1, firstPort)
	}
}

// in returns where inside a datagram goes that arrived at a public port.
func (t *NAT) in(from netip.AddrPort, port uint16, now time.Time) (netip.AddrPort, bool) {
	m := t.ports[port]
	if m == nil || now.Sub(m.last) > t.options.Timeout {
		return netip.AddrPort{}, false
	}
	if at, sent := m.peers[from]; !t.options.Open && (!sent || now.Sub(at) > t.options.Timeout) {
		return netip.AddrPort{}, false
	}
	return m.key.inside, true
}
