package openvpn

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// udpTransport is one UDP socket.
type udpTransport struct {
	conn   *net.UDPConn
	remote netip.AddrPort
	max    int
}

// udpBuffer is the socket buffer asked for, in bytes: 10 ms at 1.6 Gbit/s. The
// kernel gives less where net.core.rmem_max says so.
const udpBuffer = 2 << 20

func listenUDP(ctx context.Context, c *Config, remote netip.AddrPort) (transport, error) {
	var lc net.ListenConfig
	pc, err := lc.ListenPacket(ctx, "udp", hostOf(c.Local))
	if err != nil {
		return nil, fmt.Errorf("listen on udp %s: %w", hostOf(c.Local), err)
	}
	conn := pc.(*net.UDPConn)
	// The buffers are an optimisation; the defaults work.
	_ = conn.SetReadBuffer(udpBuffer)
	_ = conn.SetWriteBuffer(udpBuffer)
	return &udpTransport{conn: conn, remote: remote, max: c.maxPacket()}, nil
}

func (t *udpTransport) peer() path { return path{addr: t.remote} }

func (t *udpTransport) local() netip.AddrPort {
	return t.conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (t *udpTransport) serve(_ context.Context, newReceiver func() receiver) error {
	r := newReceiver()
	buf := make([]byte, t.max+1)
	for {
		n, from, err := t.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		switch {
		case n > t.max:
			r.drop(ReasonOversize)
		case n > 0:
			r.packet(path{addr: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}, buf[:n])
			r.flush()
		}
	}
}

func (t *udpTransport) send(to path, packets [][]byte, _ bool) (int, error) {
	for i, p := range packets {
		if _, err := t.conn.WriteToUDPAddrPort(p, to.addr); err != nil {
			return i, err
		}
	}
	return len(packets), nil
}

func (t *udpTransport) reject(path) {}

func (t *udpTransport) adopt(path) {}

func (t *udpTransport) close() { t.conn.Close() }
