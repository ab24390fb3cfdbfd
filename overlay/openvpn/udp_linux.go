//go:build linux && (amd64 || arm64)

package openvpn

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// udpBatch passes many packets per system call: recvmmsg with UDP_GRO on the way
// in, sendmmsg with UDP_SEGMENT on the way out. Both offloads are used as far as
// the kernel has them. The layouts below are those of 64 bit little endian Linux.
type udpBatch struct {
	raw     syscall.RawConn
	is6     bool // the socket's family: IPv4 peers have mapped addresses on it
	senders sync.Pool
	// segmentMax is the largest segment that UDP_SEGMENT takes here, 0 for none.
	// It shrinks when the kernel refuses one, because segments cannot be longer
	// than the path permits.
	segmentMax atomic.Int64
}

const (
	recvSlots = 16       // messages per recvmmsg
	recvSize  = 64 << 10 // bytes per message: the most that UDP_GRO joins
	sendSlots = 64       // messages per sendmmsg
	// maxSegments and maxJoined bound what UDP_SEGMENT takes (UDP_MAX_SEGMENTS
	// of the kernel, and the length field of UDP).
	maxSegments = 64
	maxJoined   = 65000
	controlSize = 24 // one control message with an int in it, aligned
)

// mmsghdr is struct mmsghdr of the kernel.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   uint32
}

func (u *udpBatch) init(conn *net.UDPConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	u.raw = raw
	u.senders.New = func() any { return newUDPSender(u) }
	return raw.Control(func(fd uintptr) {
		family, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_DOMAIN)
		u.is6 = err == nil && family == unix.AF_INET6
		// With CAP_NET_ADMIN beyond net.core.rmem_max too; without, what there is stays.
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, udpBuffer)
		_ = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, udpBuffer)
		// Without UDP_GRO every message is one packet.
		_ = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_GRO, 1)
		if _, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT); err == nil {
			u.segmentMax.Store(maxJoined)
		}
	})
}

// udpReceiver is the memory of one serve.
type udpReceiver struct {
	msgs  [recvSlots]mmsghdr
	iovs  [recvSlots]unix.Iovec
	names [recvSlots]unix.RawSockaddrInet6
	ctrl  [recvSlots][controlSize]byte
	bufs  [recvSlots][]byte
	zones map[uint32]string
	n     int
	err   error
}

func (u *udpBatch) serve(_ *net.UDPConn, limit int, r receiver) error {
	in := &udpReceiver{zones: map[uint32]string{}}
	for i := range in.msgs {
		in.bufs[i] = make([]byte, recvSize)
		in.iovs[i].Base, in.iovs[i].Len = &in.bufs[i][0], recvSize
	}
	read := in.read // once, so that it is not made per call
	for {
		in.reset()
		if err := u.raw.Read(read); err != nil {
			return err
		}
		if in.err != nil {
			return in.err
		}
		for i := range in.n {
			in.deliver(i, limit, r)
		}
		r.flush()
	}
}

// reset prepares all messages for the next call.
func (in *udpReceiver) reset() {
	for i := range in.msgs {
		h := &in.msgs[i].hdr
		h.Name, h.Namelen = (*byte)(unsafe.Pointer(&in.names[i])), unix.SizeofSockaddrInet6
		h.Iov, h.Iovlen = &in.iovs[i], 1
		h.Control, h.Controllen = &in.ctrl[i][0], controlSize
		h.Flags = 0
	}
}

// read is one recvmmsg; it reports false to be called again when there is data.
func (in *udpReceiver) read(fd uintptr) bool {
	for {
		n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, fd, uintptr(unsafe.Pointer(&in.msgs[0])), recvSlots, unix.MSG_DONTWAIT, 0, 0)
		switch errno {
		case 0:
			in.n, in.err = int(n), nil
			return true
		case unix.EAGAIN:
			return false
		case unix.EINTR, unix.ECONNREFUSED: // the latter is news of a packet we sent
		default:
			in.n, in.err = 0, errno
			return true
		}
	}
}

// deliver hands on the packets of one message.
func (in *udpReceiver) deliver(i, limit int, r receiver) {
	m := &in.msgs[i]
	size := int(m.n)
	if size == 0 {
		return
	}
	if m.hdr.Flags&unix.MSG_TRUNC != 0 {
		r.drop(ReasonOversize)
		return
	}
	segment := segmentSize(in.ctrl[i][:m.hdr.Controllen])
	if segment == 0 {
		segment = size
	}
	from := path{addr: in.address(&in.names[i])}
	for rest := in.bufs[i][:size]; len(rest) > 0; {
		n := min(segment, len(rest))
		if n > limit {
			r.drop(ReasonOversize)
		} else {
			r.packet(from, rest[:n:n])
		}
		rest = rest[n:]
	}
}

// segmentSize returns the value of the UDP_GRO control message, 0 if there is none.
func segmentSize(ctrl []byte) int {
	const header = 16 // struct cmsghdr
	if len(ctrl) < header+4 {
		return 0
	}
	if binary.LittleEndian.Uint32(ctrl[8:]) != unix.IPPROTO_UDP || binary.LittleEndian.Uint32(ctrl[12:]) != unix.UDP_GRO {
		return 0
	}
	return int(binary.LittleEndian.Uint32(ctrl[header:]))
}

// address converts what the kernel wrote as the sender.
func (in *udpReceiver) address(sa *unix.RawSockaddrInet6) netip.AddrPort {
	if sa.Family == unix.AF_INET {
		sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(sa4.Addr), swap16(sa4.Port))
	}
	addr := netip.AddrFrom16(sa.Addr).Unmap()
	if sa.Scope_id != 0 && addr.Is6() {
		addr = addr.WithZone(in.zone(sa.Scope_id))
	}
	return netip.AddrPortFrom(addr, swap16(sa.Port))
}

// maxZones bounds the names that are remembered; a machine has few interfaces.
const maxZones = 256

// zone returns the name of an interface, as the net package does.
func (in *udpReceiver) zone(index uint32) string {
	if name, ok := in.zones[index]; ok {
		return name
	}
	itf, err := net.InterfaceByIndex(int(index))
	if err != nil {
		return ""
	}
	if len(in.zones) == maxZones {
		clear(in.zones)
	}
	in.zones[index] = itf.Name
	return itf.Name
}

func swap16(p uint16) uint16 { return p<<8 | p>>8 }

// udpSender is the memory of one call of send.
type udpSender struct {
	msgs  [sendSlots]mmsghdr
	count [sendSlots]int // packets in each message
	iovs  []unix.Iovec
	name  unix.RawSockaddrInet6
	ctrl  [sendSlots][controlSize]byte
	used  int // messages that are filled
	sent  int
	errno unix.Errno
	write func(fd uintptr) bool
}

func newUDPSender(*udpBatch) *udpSender {
	s := &udpSender{}
	s.write = s.sendmmsg
	return s
}

func (u *udpBatch) send(conn *net.UDPConn, to netip.AddrPort, packets [][]byte) (int, error) {
	if len(packets) == 1 || to.Addr().Zone() != "" || to.Addr().Is6() && !u.is6 {
		return sendEach(conn, to, packets)
	}
	s := u.senders.Get().(*udpSender)
	defer u.senders.Put(s)
	s.address(to, u.is6)
	for done := 0; done < len(packets); {
		limit := int(u.segmentMax.Load())
		segment := s.fill(packets[done:], limit)
		if err := u.raw.Write(s.write); err != nil {
			return done, err
		}
		for i := range s.sent {
			done += s.count[i]
		}
		switch {
		case s.errno == 0:
		case s.sent < s.used && s.count[s.sent] > 1 && u.refused(s.errno, segment[s.sent]):
			// Once more, with smaller or no segments.
		default:
			clear(s.iovs)
			return done, s.errno
		}
	}
	clear(s.iovs) // do not keep the packets alive
	return len(packets), nil
}

// refused learns from an error of a message with segments, and reports whether it
// is worth another try without them.
func (u *udpBatch) refused(errno unix.Errno, segment int) bool {
	switch errno {
	case unix.EIO: // the device has no checksum offload
		u.segmentMax.Store(0)
	case unix.EINVAL, unix.EMSGSIZE: // longer than the path permits
		u.segmentMax.Store(int64(min(segment-1, int(u.segmentMax.Load()))))
	default:
		return false
	}
	return true
}

func (s *udpSender) address(to netip.AddrPort, is6 bool) {
	s.name = unix.RawSockaddrInet6{}
	if is6 {
		s.name.Family, s.name.Port, s.name.Addr = unix.AF_INET6, swap16(to.Port()), to.Addr().As16()
		return
	}
	sa4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.name))
	sa4.Family, sa4.Port, sa4.Addr = unix.AF_INET, swap16(to.Port()), to.Addr().Unmap().As4()
}

// fill makes messages of packets, joining runs of equal length, of which the last
// may be shorter. It returns the segment size of each message.
func (s *udpSender) fill(packets [][]byte, segmentMax int) (segments [sendSlots]int) {
	if cap(s.iovs) < len(packets) {
		s.iovs = make([]unix.Iovec, len(packets))
	}
	s.iovs = s.iovs[:len(packets)]
	s.used, s.sent, s.errno = 0, 0, 0
	for at := 0; at < len(packets) && s.used < sendSlots; s.used++ {
		size, total, n := len(packets[at]), 0, 0
		for _, p := range packets[at:] {
			if n > 0 && (size > segmentMax || len(p) > size || n == maxSegments || total+len(p) > maxJoined) {
				break
			}
			s.iovs[at+n].Base, s.iovs[at+n].Len = unsafe.SliceData(p), uint64(len(p))
			total += len(p)
			n++
			if len(p) < size {
				break
			}
		}
		s.message(at, n, size)
		segments[s.used] = size
		at += n
	}
	return segments
}

// message sets up one message of n packets from iovec at on.
func (s *udpSender) message(at, n, size int) {
	h := &s.msgs[s.used].hdr
	*h = unix.Msghdr{Name: (*byte)(unsafe.Pointer(&s.name)), Namelen: unix.SizeofSockaddrInet6, Iov: &s.iovs[at], Iovlen: uint64(n)}
	if s.name.Family == unix.AF_INET {
		h.Namelen = unix.SizeofSockaddrInet4
	}
	s.count[s.used] = n
	if n == 1 {
		return
	}
	c := s.ctrl[s.used][:]
	binary.LittleEndian.PutUint64(c, 16+2)
	binary.LittleEndian.PutUint32(c[8:], unix.IPPROTO_UDP)
	binary.LittleEndian.PutUint32(c[12:], unix.UDP_SEGMENT)
	binary.LittleEndian.PutUint16(c[16:], uint16(size))
	h.Control, h.Controllen = &c[0], controlSize
}

// sendmmsg sends the messages that are left; it reports false to be called again
// when there is room.
func (s *udpSender) sendmmsg(fd uintptr) bool {
	for s.sent < s.used {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, fd, uintptr(unsafe.Pointer(&s.msgs[s.sent])), uintptr(s.used-s.sent), unix.MSG_DONTWAIT, 0, 0)
		switch {
		case errno == 0:
			s.sent += int(n)
		case errors.Is(errno, unix.EAGAIN):
			return false
		case errors.Is(errno, unix.EINTR), errors.Is(errno, unix.ECONNREFUSED):
		default:
			s.errno = errno
			return true
		}
	}
	return true
}
