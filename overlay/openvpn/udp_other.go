//go:build !linux || !(amd64 || arm64)

package openvpn

import (
	"net"
	"net/netip"
)

// udpBatch passes packets one by one.
type udpBatch struct{}

func (*udpBatch) init(*net.UDPConn) error { return nil }

func (*udpBatch) serve(conn *net.UDPConn, limit int, r receiver) error {
	buf := make([]byte, limit+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return err
		}
		switch {
		case n > limit:
			r.drop(ReasonOversize)
		case n > 0:
			r.packet(path{addr: netip.AddrPortFrom(from.Addr().Unmap(), from.Port())}, buf[:n])
			r.flush()
		}
	}
}

func (*udpBatch) send(conn *net.UDPConn, to netip.AddrPort, packets [][]byte) (int, error) {
	return sendEach(conn, to, packets)
}
