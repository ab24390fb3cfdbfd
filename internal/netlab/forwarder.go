//go:build linux

package netlab

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// forwarder carries Ethernet frames from one interface to another and lets a shaper decide when. It does so in
// batches, and reckons from the kernel's receive timestamps, so that a busy machine makes a delay longer only if it does
// not let the forwarder run for longer than the delay. One goroutine serves it, from start to stop.
type forwarder struct {
	rx, tx int // packet sockets
	wake   int // eventfd that stop writes to
	link   atomic.Pointer[Link]
	done   sync.WaitGroup
	stops  atomic.Bool

	shaper shaper
	in     batch
	out    batch
}

// Sizes of a forwarder.
const (
	batchFrames = 64       // per system call
	batchRounds = 4        // system calls for receiving before it is time to send again
	frameSlack  = 14 + 2*4 // Ethernet header and two VLAN tags around the packet
	socketBytes = 32 << 20 // receive buffer: a forwarder that does not run for 0.1 s at 2 Gbit/s loses nothing
)

// startForwarder begins to carry frames from one interface of the calling thread's network namespace to another. The
// goroutine ends by stop.
func startForwarder(from, to, mtu int, l Link) (*forwarder, error) {
	f := &forwarder{rx: -1, tx: -1, wake: -1, shaper: shaper{rand: rand.New(rand.NewPCG(rand.Uint64(), rand.Uint64()))}}
	f.link.Store(&l)
	f.in.allocate(mtu + frameSlack)
	if err := f.open(from, to); err != nil {
		f.close()
		return nil, err
	}
	f.done.Go(f.run)
	return f, nil
}

func (f *forwarder) open(from, to int) (err error) {
	if f.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("eventfd: %w", err)
	}
	if f.rx, err = packetSocket(from, unix.ETH_P_ALL); err != nil {
		return err
	}
	for _, o := range []struct{ level, name, value int }{
		{unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1},
		{unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1},
	} {
		if err := unix.SetsockoptInt(f.rx, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("packet socket option %d: %w", o.name, err)
		}
	}
	// Without the right to exceed the system's limit, as in a user namespace, the limit has to do.
	if err := unix.SetsockoptInt(f.rx, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, socketBytes); err != nil {
		if err := unix.SetsockoptInt(f.rx, unix.SOL_SOCKET, unix.SO_RCVBUF, socketBytes); err != nil {
			return fmt.Errorf("packet socket buffer: %w", err)
		}
	}
	f.tx, err = packetSocket(to, 0) // receives nothing
	return err
}

// packetSocket opens a socket for whole frames on an interface.
func packetSocket(index, protocol int) (int, error) {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return -1, fmt.Errorf("packet socket: %w", err)
	}
	network := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, uint16(protocol)))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: network, Ifindex: index}); err != nil {
		unix.Close(fd) //nolint:errcheck // nothing was sent
		return -1, fmt.Errorf("bind packet socket: %w", err)
	}
	return fd, nil
}

// set changes the link. What is under way keeps the times that it has.
func (f *forwarder) set(l Link) { f.link.Store(&l) }

// stop ends the forwarder; frames under way are lost.
func (f *forwarder) stop() {
	f.stops.Store(true)
	one := binary.NativeEndian.AppendUint64(nil, 1)
	unix.Write(f.wake, one) //nolint:errcheck // cannot fail: its counter is far below the maximum
	f.done.Wait()
	f.close()
}

func (f *forwarder) close() {
	for _, fd := range []int{f.rx, f.tx, f.wake} {
		if fd >= 0 {
			unix.Close(fd) //nolint:errcheck // frames are gone or lost
		}
	}
}

// run carries frames until stop.
func (f *forwarder) run() {
	for !f.stops.Load() {
		link := *f.link.Load()
		for range batchRounds {
			if !f.receive(link) {
				break
			}
		}
		f.send(link)
		f.wait()
	}
}

// wait returns when there is something to receive or to send, or stop was called.
func (f *forwarder) wait() {
	fds := []unix.PollFd{{Fd: int32(f.rx), Events: unix.POLLIN}, {Fd: int32(f.wake), Events: unix.POLLIN}}
	var timeout *unix.Timespec
	if at, ok := f.shaper.next(); ok {
		t := unix.NsecToTimespec(max(0, int64(at-clock(unix.CLOCK_MONOTONIC))))
		timeout = &t
	}
	unix.Ppoll(fds, timeout, nil) //nolint:errcheck // interrupted: the loop asks again
}

// clock reads one of the kernel's clocks.
func clock(id int32) time.Duration {
	var t unix.Timespec
	unix.ClockGettime(id, &t) //nolint:errcheck // both clocks in use exist everywhere
	return time.Duration(t.Nano())
}

// receive gives the shaper what has come in and reports whether there may be more.
func (f *forwarder) receive(l Link) bool {
	n := f.in.receive(f.rx)
	if n == 0 {
		return false
	}
	now, wall := clock(unix.CLOCK_MONOTONIC), clock(unix.CLOCK_REALTIME)
	for i := range n {
		data, stamp, whole := f.in.frame(i)
		if !whole {
			continue // longer than the interface carries
		}
		age := wall - stamp
		if stamp == 0 || age < 0 || age > time.Second { // the wall clock was set
			age = 0
		}
		f.shaper.arrive(l, now-age, data)
	}
	return n == batchFrames
}

// send lets go of the frames whose time has come.
func (f *forwarder) send(l Link) {
	for {
		frames := f.shaper.leave(l, clock(unix.CLOCK_MONOTONIC), batchFrames)
		if len(frames) == 0 {
			return
		}
		f.out.send(f.tx, frames)
		f.shaper.recycle(len(frames))
	}
}

// batch is the memory for one system call with many frames.
type batch struct {
	msgs [batchFrames]mmsghdr
	iovs [batchFrames]unix.Iovec
	bufs [batchFrames][]byte
	ctrl [batchFrames][controlBytes]byte
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
}

// controlBytes is room for one control message with a struct timespec.
const controlBytes = 32

func (b *batch) allocate(size int) {
	for i := range b.bufs {
		b.bufs[i] = make([]byte, size)
	}
}

// receive fills the batch with what is there and returns how many frames these are.
func (b *batch) receive(fd int) int {
	for i := range b.msgs {
		h := &b.msgs[i].hdr
		b.iovs[i].Base = &b.bufs[i][0]
		b.iovs[i].SetLen(len(b.bufs[i]))
		h.Iov, h.Control, h.Flags = &b.iovs[i], &b.ctrl[i][0], 0
		h.SetIovlen(1)
		h.SetControllen(controlBytes)
	}
	n, _, errno := unix.Syscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[0])), batchFrames, unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// frame is a received frame and the wall-clock time at which the kernel got it, 0 if it does not say.
func (b *batch) frame(i int) (data []byte, stamp time.Duration, whole bool) {
	m := &b.msgs[i]
	if m.hdr.Flags&unix.MSG_TRUNC != 0 {
		return nil, 0, false
	}
	if ctrl := b.ctrl[i][:m.hdr.Controllen]; len(ctrl) >= unix.CmsgLen(int(unsafe.Sizeof(unix.Timespec{}))) {
		c := (*unix.Cmsghdr)(unsafe.Pointer(&ctrl[0]))
		if c.Level == unix.SOL_SOCKET && c.Type == unix.SCM_TIMESTAMPNS {
			t := (*unix.Timespec)(unsafe.Pointer(&ctrl[unix.CmsgLen(0)]))
			stamp = time.Duration(t.Nano())
		}
	}
	return b.bufs[i][:m.n], stamp, true
}

// send sends frames. What the kernel refuses (the interface is down, or the frame too long for it) is lost.
func (b *batch) send(fd int, frames []frame) {
	for i, f := range frames {
		h := &b.msgs[i].hdr
		b.iovs[i].Base = &f.data[0]
		b.iovs[i].SetLen(len(f.data))
		h.Iov = &b.iovs[i]
		h.SetIovlen(1)
	}
	for sent := 0; sent < len(frames); {
		n, _, errno := unix.Syscall6(unix.SYS_SENDMMSG, uintptr(fd), uintptr(unsafe.Pointer(&b.msgs[sent])), uintptr(len(frames)-sent), 0, 0, 0)
		switch {
		case errno == 0:
			sent += int(n)
		case !errors.Is(errno, unix.EINTR):
			sent++
		}
	}
}
