package openvpn

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// TUN is a network interface of the kernel, as [OpenTUN] makes it. Its methods
// are safe for concurrent use.
//
// The kernel hands over and takes up to 64 KiB of one flow at once, which is
// cut into packets and joined again here.
type TUN struct {
	dev     tun.Device
	name    string
	refused atomic.Uint64

	mu  sync.Mutex
	out [][]byte // guarded by mu: memory of tunBatch packets, each after room for a header
	use [][]byte // guarded by mu: those of them that are being written
}

var _ Batcher = (*TUN)(nil)

const (
	// cloneDevice is opened to get a TUN interface (Documentation/networking/tuntap.rst
	// of Linux).
	cloneDevice = "/dev/net/tun"
	// tunBatch is more than the packets of 64 KiB with segments of the least
	// size that senders use (536 bytes, RFC 9293).
	tunBatch = 128
	// tunPacket is the longest packet there is, and what joined ones may become.
	tunPacket = 65535
	// tunHeader is room for the virtio header before each packet that is written.
	tunHeader = 16
)

// OpenTUN makes a network interface that is gone when it is closed, with that
// MTU in bytes. It is down and has no addresses: both are the caller's business,
// and so are routes. It refuses a name that is in use.
//
// An Endpoint with a TUN should have the same MTU in its Config, and clamp the
// segment size of TCP that is forwarded, as routers do.
//
// Errors are those of the kernel; errors.Is finds os.ErrNotExist (no tun driver),
// os.ErrPermission and os.ErrExist. Elsewhere than on Linux it returns
// errors.ErrUnsupported.
func OpenTUN(name string, mtu int) (*TUN, error) {
	fail := func(err error) (*TUN, error) { return nil, fmt.Errorf("open tun %s: %w", name, err) }
	if mtu < minMTU || mtu > maxMTU {
		return fail(fmt.Errorf("mtu %d is not between %d and %d", mtu, minMTU, maxMTU))
	}
	fd, err := unix.Open(cloneDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return fail(fmt.Errorf("%s: %w", cloneDevice, err))
	}
	if err := createTUN(fd, name); err != nil {
		return fail(errors.Join(err, unix.Close(fd)))
	}
	// Nobody here wants to hear when the interface goes up or down.
	dev, given, err := tun.CreateUnmonitoredTUNFromFD(fd)
	if err != nil {
		return fail(err) // the descriptor is the os.File's by now
	}
	if err := setMTU(given, mtu); err != nil {
		return fail(errors.Join(err, dev.Close()))
	}
	t := &TUN{dev: dev, name: given, out: make([][]byte, tunBatch), use: make([][]byte, 0, tunBatch)}
	for i := range t.out {
		t.out[i] = make([]byte, tunHeader+tunPacket)
	}
	return t, nil
}

// createTUN makes the interface. IFF_VNET_HDR lets the kernel hand over many
// segments of a flow as one packet.
func createTUN(fd int, name string) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); {
	case errors.Is(err, unix.EBUSY):
		return os.ErrExist
	default:
		return err
	}
}

// setMTU sets the MTU of an interface.
func setMTU(name string, mtu int) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint32(uint32(mtu))
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.IoctlIfreq(fd, unix.SIOCSIFMTU, request)
	if err != nil {
		err = fmt.Errorf("set mtu %d: %w", mtu, err)
	}
	return errors.Join(err, unix.Close(fd))
}

// Name returns the name of the interface. If OpenTUN got none or one with %d,
// the kernel has chosen it.
func (t *TUN) Name() string { return t.name }

// Refused returns how many packets of the peer the kernel did not take, for
// example because the interface was down, and how many of the kernel could not
// be read. Several that were joined count once.
func (t *TUN) Refused() uint64 { return t.refused.Load() }

// Batch returns what ReadPackets needs to hold everything that one read gives.
func (t *TUN) Batch() (packets, size int) { return tunBatch, tunPacket }

// ReadPackets waits for packets of the kernel.
func (t *TUN) ReadPackets(bufs [][]byte, sizes []int) (int, error) {
	for {
		n, err := t.dev.Read(bufs, sizes, 0)
		switch {
		case err == nil, errors.Is(err, tun.ErrTooManySegments):
			if n > 0 {
				return n, nil
			}
		case errors.Is(err, os.ErrClosed):
			return 0, net.ErrClosed
		case isSystemError(err):
			return 0, err
		default:
			t.refused.Add(1) // one packet in a form that nobody asked for
		}
	}
}

// isSystemError tells an error of the kernel from one about a packet.
func isSystemError(err error) bool {
	if _, ok := errors.AsType[*fs.PathError](err); ok {
		return true
	}
	_, ok := errors.AsType[syscall.Errno](err)
	return ok
}

// WritePackets gives packets to the kernel, those of one flow joined.
func (t *TUN) WritePackets(packets [][]byte) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	for len(packets) > 0 {
		n := min(len(packets), tunBatch)
		t.use = t.use[:0]
		for i, p := range packets[:n] {
			if len(p) == 0 || len(p) > tunPacket {
				t.refused.Add(1)
				continue
			}
			t.use = append(t.use, append(t.out[i][:tunHeader], p...))
		}
		packets = packets[n:]
		if len(t.use) == 0 {
			continue
		}
		if _, err := t.dev.Write(t.use, tunHeader); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return net.ErrClosed
			}
			t.refused.Add(refusals(err))
		}
	}
	return nil
}

// refusals is how many errors are joined in one.
func refusals(err error) uint64 {
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return 1
	}
	var n uint64
	for _, e := range joined.Unwrap() {
		n += refusals(e)
	}
	return n
}

// Close removes the interface and makes a blocked ReadPackets return. It is
// idempotent.
func (t *TUN) Close() error { return t.dev.Close() }
