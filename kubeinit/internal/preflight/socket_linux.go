package preflight

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// probeSocket is the UDP socket of an agent. Datagrams are never fragmented, not
// even where the kernel knows of a smaller path MTU, leave with a TTL of 64,
// and arrive with the time at which the kernel received them.
type probeSocket struct {
	conn *net.UDPConn
	oob  []byte // of the one reader
}

// datagram is what was received.
type datagram struct {
	payload []byte // in the reader's buffer
	from    netip.AddrPort
	ttl     uint8
	at      int64     // CLOCK_REALTIME of the reception, in nanoseconds
	read    time.Time // when the program had it
}

// socketBuffer holds what arrives while the program waits for a processor: a
// second of the probes of a dozen pairs.
const socketBuffer = 1 << 20

func listenProbe(addr netip.AddrPort) (*probeSocket, error) {
	lc := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var err error
		control := raw.Control(func(fd uintptr) { err = setProbeOptions(int(fd), addr.Addr().Is4()) })
		return errors.Join(control, err)
	}}
	c, err := lc.ListenPacket(context.Background(), "udp", addr.String())
	if err != nil {
		return nil, fmt.Errorf("open probe port: %w", err)
	}
	u := c.(*net.UDPConn)
	u.SetReadBuffer(socketBuffer) //nolint:errcheck // the kernel gives what it may
	return &probeSocket{conn: u, oob: make([]byte, 256)}, nil
}

func setProbeOptions(fd int, ipv4 bool) error {
	options := []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
		{unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE},
		{unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
		{unix.IPPROTO_IPV6, unix.IPV6_UNICAST_HOPS, probeTTL},
	}
	if ipv4 {
		options = append(options[:1], []struct{ level, name, value int }{
			{unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE},
			{unix.IPPROTO_IP, unix.IP_RECVTTL, 1},
			{unix.IPPROTO_IP, unix.IP_TTL, probeTTL},
		}...)
	}
	for _, o := range options {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set socket option %d: %w", o.name, err)
		}
	}
	return nil
}

func (s *probeSocket) port() uint16 {
	return s.conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

func (s *probeSocket) Close() error { return s.conn.Close() }

func (s *probeSocket) write(b []byte, to netip.AddrPort) error {
	_, err := s.conn.WriteToUDPAddrPort(b, to)
	return err
}

// read is for one goroutine.
func (s *probeSocket) read(buf []byte) (datagram, error) {
	n, oobn, _, from, err := s.conn.ReadMsgUDPAddrPort(buf, s.oob)
	if err != nil {
		return datagram{}, err
	}
	now := time.Now()
	d := datagram{payload: buf[:n], from: netip.AddrPortFrom(from.Addr().Unmap(), from.Port()), at: now.UnixNano(), read: now}
	messages, err := unix.ParseSocketControlMessage(s.oob[:oobn])
	if err != nil {
		return d, nil //nolint:nilerr // then without time and TTL of the kernel
	}
	for _, m := range messages {
		d.control(m)
	}
	return d, nil
}

func (d *datagram) control(m unix.SocketControlMessage) {
	switch {
	case m.Header.Level == unix.SOL_SOCKET && m.Header.Type == unix.SO_TIMESTAMPNS && len(m.Data) >= 16:
		sec, nsec := int64(binary.NativeEndian.Uint64(m.Data)), int64(binary.NativeEndian.Uint64(m.Data[8:]))
		d.at = sec*int64(time.Second) + nsec
	case m.Header.Level == unix.IPPROTO_IP && m.Header.Type == unix.IP_TTL && len(m.Data) >= 4,
		m.Header.Level == unix.IPPROTO_IPV6 && m.Header.Type == unix.IPV6_HOPLIMIT && len(m.Data) >= 4:
		d.ttl = uint8(binary.NativeEndian.Uint32(m.Data))
	}
}

// connected asks a UDP socket that is connected to addr, which sends nothing.
func connected(addr netip.AddrPort, ask func(fd int, ipv4 bool) error) error {
	c, err := net.Dial("udp", addr.String())
	if err != nil {
		return err
	}
	defer c.Close()
	raw, err := c.(*net.UDPConn).SyscallConn()
	if err != nil {
		return err
	}
	control := raw.Control(func(fd uintptr) { err = ask(int(fd), addr.Addr().Is4()) })
	return errors.Join(control, err)
}

// pathMTU is what the kernel assumes for the path, and so what TCP begins with.
func pathMTU(addr netip.AddrPort) (int, error) {
	mtu := 0
	err := connected(addr, func(fd int, ipv4 bool) error {
		var err error
		if ipv4 {
			mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU)
		} else {
			mtu, err = unix.GetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MTU)
		}
		return err
	})
	if err != nil {
		return 0, fmt.Errorf("ask for the path MTU: %w", err)
	}
	return mtu, nil
}

// linkMTU is the MTU of the interface that packets to addr leave by: the one with
// the address that the kernel would choose as their source.
func linkMTU(addr netip.AddrPort) (int, error) {
	c, err := net.Dial("udp", addr.String())
	if err != nil {
		return 0, fmt.Errorf("route to %s: %w", addr.Addr(), err)
	}
	defer c.Close()
	source := c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	link, err := linkOf(source)
	if err != nil {
		return 0, err
	}
	return link.MTU, nil
}

// linkOf is the interface that has an address.
func linkOf(addr netip.Addr) (*net.Interface, error) {
	links, err := net.Interfaces()
	if err != nil {
		return nil, fmt.Errorf("list interfaces: %w", err)
	}
	for _, l := range links {
		addrs, err := l.Addrs()
		if err != nil {
			return nil, fmt.Errorf("list addresses of %s: %w", l.Name, err)
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err == nil && (p.Addr().Unmap().WithZone("") == addr || addr.IsLoopback() && p.Contains(addr)) {
				return &l, nil
			}
		}
	}
	return nil, fmt.Errorf("no interface has %s", addr)
}

func isInUse(err error) bool { return errors.Is(err, unix.EADDRINUSE) }

// portState names what a connection attempt came to.
func portState(err error) PortState {
	switch {
	case err == nil:
		return PortOpen
	case errors.Is(err, unix.ECONNREFUSED):
		return PortRefused
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded), errors.Is(err, unix.ETIMEDOUT):
		return PortFiltered
	default:
		return PortUnreachable
	}
}
