package stream

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"time"
)

// guard stands between the packet connection and quic-go. It drops what is not
// QUIC version 1 and limits, for each source, the packets that could open a
// connection, before quic-go looks at them. Addresses become *net.UDPAddr,
// the one kind that quic-go's tokens treat as an address.
type guard struct {
	conn  net.PacketConn
	rate  *limiter
	count *counters

	mu      sync.Mutex             // guards dialled
	dialled map[netip.AddrPort]int // own dials in flight: the answers to them are expected
}

func newGuard(conn net.PacketConn, perSource int, count *counters) *guard {
	return &guard{conn: conn, rate: newLimiter(perSource), count: count, dialled: make(map[netip.AddrPort]int)}
}

// ReadFrom returns the next packet that may pass.
func (g *guard) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, addr, err := g.conn.ReadFrom(b)
		if err != nil {
			return n, addr, err
		}
		from := addrPort(addr)
		if !from.IsValid() || !g.passes(b[:n], from) {
			continue
		}
		return n, net.UDPAddrFromAddrPort(from), nil
	}
}

// passes judges one packet by its first bytes (RFC 9000, section 17):
//
//	1FTTxxxx version[4] …   long header: F fixed bit, T type, 0 = Initial
//	0Fxxxxxx …              short header: belongs to a connection or is dropped by quic-go
func (g *guard) passes(b []byte, from netip.AddrPort) bool {
	const long, fixed, typeBits = 0x80, 0x40, 0x30
	if len(b) < 5 || b[0]&fixed == 0 {
		g.count.add(refusedPacket)
		return false
	}
	if b[0]&long == 0 {
		return true
	}
	if binary.BigEndian.Uint32(b[1:5]) != 1 {
		g.count.add(refusedPacket)
		return false
	}
	if b[0]&typeBits == 0 && !g.expects(from) && !g.rate.allow(sourceOf(from.Addr())) {
		g.count.add(refusedSource)
		return false
	}
	return true
}

// expect lets first packets of an address that we dial pass unlimited, until forget.
func (g *guard) expect(addr netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.dialled[addr]++
}

func (g *guard) forget(addr netip.AddrPort) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.dialled[addr]--; g.dialled[addr] == 0 {
		delete(g.dialled, addr)
	}
}

func (g *guard) expects(addr netip.AddrPort) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.dialled[addr] > 0
}

// WriteTo sends a packet of quic-go's.
func (g *guard) WriteTo(b []byte, addr net.Addr) (int, error) { return g.conn.WriteTo(b, addr) }

// LocalAddr is the address of the packet connection.
func (g *guard) LocalAddr() net.Addr { return g.conn.LocalAddr() }

// SetDeadline is the packet connection's.
func (g *guard) SetDeadline(t time.Time) error { return g.conn.SetDeadline(t) }

// SetReadDeadline is the packet connection's.
func (g *guard) SetReadDeadline(t time.Time) error { return g.conn.SetReadDeadline(t) }

// SetWriteDeadline is the packet connection's.
func (g *guard) SetWriteDeadline(t time.Time) error { return g.conn.SetWriteDeadline(t) }

// SetReadBuffer does nothing: buffers belong to the owner of the socket. quic-go complains in the log of the process
// if the method is missing.
func (g *guard) SetReadBuffer(int) error { return nil }

// SetWriteBuffer does nothing, as SetReadBuffer.
func (g *guard) SetWriteBuffer(int) error { return nil }

// Close does nothing: the packet connection belongs to whoever made it.
func (g *guard) Close() error { return nil }
