package openvpn

import (
	"context"
	"fmt"
	"net"
	"net/netip"
)

// udpTransport is one UDP socket. How packets pass in batches is the system's
// business: see udpBatch.
type udpTransport struct {
	conn   *net.UDPConn
	remote netip.AddrPort
	max    int
	batch  udpBatch
}

// udpBuffer is the socket buffer asked for, in bytes: 10 ms at 1.6 Gbit/s. The
// kernel gives less where net.core.rmem_max says so and the process may not go
// beyond it.
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
	t := &udpTransport{conn: conn, remote: remote, max: c.maxPacket()}
	if err := t.batch.init(conn); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return t, nil
}

func (t *udpTransport) peer() path { return path{addr: t.remote} }

func (t *udpTransport) local() netip.AddrPort {
	return t.conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func (t *udpTransport) serve(_ context.Context, newReceiver func() receiver) error {
	if err := t.batch.serve(t.conn, t.max, newReceiver()); err != nil {
		return fmt.Errorf("receive: %w", err)
	}
	return nil
}

func (t *udpTransport) send(to path, packets [][]byte, _ bool) (int, error) {
	return t.batch.send(t.conn, to.addr, packets)
}

func (t *udpTransport) reject(path) {}

func (t *udpTransport) adopt(path) {}

func (t *udpTransport) close() { _ = t.conn.Close() }

// sendEach sends packets one by one.
func sendEach(conn *net.UDPConn, to netip.AddrPort, packets [][]byte) (int, error) {
	for i, p := range packets {
		if _, err := conn.WriteToUDPAddrPort(p, to); err != nil {
			return i, err
		}
	}
	return len(packets), nil
}
