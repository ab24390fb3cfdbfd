package wgdev

import (
	"os"
	"sync"

	"golang.zx2c4.com/wireguard/tun"
)

// tapQueue is how many packets wait for the device: what a TUN interface of
// Linux holds (TUN_READQ_SIZE in drivers/net/tun.c).
const tapQueue = 500

// Tap is a tun.Device in memory: the host of a gateway in a simulation. Its
// channels belong to the testing/synctest bubble that it is made in. Safe for
// concurrent use.
type Tap struct {
	mtu     int
	deliver func(packet []byte)
	queue   chan []byte
	closed  chan struct{}
	events  chan tun.Event // never used, closed with the tap
	once    sync.Once
}

// NewTap returns a tap with an MTU in bytes; zero means DefaultMTU. deliver gets
// every packet that came from a peer. It is called by the goroutines of the
// device, several at a time, must not block for long, must not keep the packet
// and may call Inject. Nil drops what arrives.
func NewTap(mtu int, deliver func(packet []byte)) *Tap {
	if mtu == 0 {
		mtu = DefaultMTU
	}
	return &Tap{
		mtu:     mtu,
		deliver: deliver,
		queue:   make(chan []byte, tapQueue),
		closed:  make(chan struct{}),
		events:  make(chan tun.Event),
	}
}

// Inject gives the device an IP packet to send, as the host would. It copies
// the packet and does not wait. It reports false for a packet that is dropped:
// it is larger than the MTU, too many wait already, or the tap is closed.
func (t *Tap) Inject(packet []byte) bool {
	if len(packet) > t.mtu {
		return false
	}
	select {
	case <-t.closed:
		return false
	default:
	}
	select {
	case t.queue <- append([]byte(nil), packet...):
		return true
	default:
		return false
	}
}

// Read implements tun.Device.
func (t *Tap) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	case packet := <-t.queue:
		sizes[0] = copy(bufs[0][offset:], packet)
		return 1, nil
	}
}

// Write implements tun.Device.
func (t *Tap) Write(bufs [][]byte, offset int) (int, error) {
	select {
	case <-t.closed:
		return 0, os.ErrClosed
	default:
	}
	if t.deliver != nil {
		for _, b := range bufs {
			t.deliver(b[offset:])
		}
	}
	return len(bufs), nil
}

// Close implements tun.Device. It may be called again.
func (t *Tap) Close() error {
	t.once.Do(func() {
		close(t.closed)
		close(t.events)
	})
	return nil
}

// File implements tun.Device: there is none.
func (*Tap) File() *os.File { return nil }

// MTU implements tun.Device.
func (t *Tap) MTU() (int, error) { return t.mtu, nil }

// Name implements tun.Device.
func (*Tap) Name() (string, error) { return "tap", nil }

// Events implements tun.Device: there are none.
func (t *Tap) Events() <-chan tun.Event { return t.events }

// BatchSize implements tun.Device. One keeps the buffers of the device small.
func (*Tap) BatchSize() int { return 1 }
