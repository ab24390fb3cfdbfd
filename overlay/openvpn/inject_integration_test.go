//go:build openvpn

package openvpn

import (
	"encoding/binary"
	"net/netip"

	"golang.org/x/sys/unix"
)

// injection sends UDP datagrams from any source in the network of the peer.
type injection struct {
	l  *lab
	fd int
}

func (l *lab) injection() *injection {
	l.t.Helper()
	i := &injection{l: l, fd: -1}
	l.inside(func() {
		var err error
		if i.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW); err != nil {
			l.t.Error(err)
		}
	})
	if i.fd < 0 {
		l.t.FailNow()
	}
	l.t.Cleanup(func() { _ = unix.Close(i.fd) })
	return i
}

// send puts a datagram for us on the line, as if it came from src.
func (i *injection) send(src netip.AddrPort, payload []byte) {
	i.l.t.Helper()
	if err := sendRaw(i.fd, src, netip.AddrPortFrom(i.l.outer(1), 1195), payload); err != nil {
		i.l.t.Fatal(err)
	}
}

// fromPeer sends with the address of the peer.
func (i *injection) fromPeer(payload []byte) {
	i.l.t.Helper()
	i.send(netip.AddrPortFrom(i.l.outer(2), 1195), payload)
}

// sendRaw sends a datagram, in fragments if it is larger than the line takes.
func sendRaw(fd int, src, dst netip.AddrPort, payload []byte) error {
	udp := binary.BigEndian.AppendUint16(nil, src.Port())
	udp = binary.BigEndian.AppendUint16(udp, dst.Port())
	udp = binary.BigEndian.AppendUint16(udp, uint16(8+len(payload)))
	udp = append(append(udp, 0, 0), payload...) // no checksum
	const part = 1400                           // a multiple of 8
	for at := 0; at < len(udp); at += part {
		piece := udp[at:min(at+part, len(udp))]
		p := make([]byte, 20, 20+len(piece))
		p[0], p[8], p[9] = 0x45, 64, unix.IPPROTO_UDP
		binary.BigEndian.PutUint16(p[4:], 0x4711)
		flags := uint16(at / 8)
		if at+part < len(udp) {
			flags |= 0x2000
		}
		binary.BigEndian.PutUint16(p[6:], flags)
		from, to := src.Addr().As4(), dst.Addr().As4()
		copy(p[12:], from[:])
		copy(p[16:], to[:])
		if err := unix.Sendto(fd, append(p, piece...), 0, &unix.SockaddrInet4{Addr: to}); err != nil {
			return err
		}
	}
	return nil
}
