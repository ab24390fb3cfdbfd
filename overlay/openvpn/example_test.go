package openvpn_test

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// memoryDevice is a Device without a kernel: the program puts inner packets in
// and takes them out.
type memoryDevice struct {
	toPeer, fromPeer chan []byte
	closed           chan struct{}
	once             sync.Once
}

func newMemoryDevice() *memoryDevice {
	return &memoryDevice{toPeer: make(chan []byte, 16), fromPeer: make(chan []byte, 16), closed: make(chan struct{})}
}

func (d *memoryDevice) ReadPackets(bufs [][]byte, sizes []int) (int, error) {
	select {
	case p := <-d.toPeer:
		sizes[0] = copy(bufs[0], p)
		return 1, nil
	case <-d.closed:
		return 0, net.ErrClosed
	}
}

func (d *memoryDevice) WritePackets(packets [][]byte) error {
	for _, p := range packets {
		select {
		case d.fromPeer <- append([]byte(nil), p...):
		default: // full: lost, as on any line
		}
	}
	return nil
}

func (d *memoryDevice) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

// Two endpoints in one process, joined by a static key over UDP.
func ExampleOpen() {
	ctx := context.Background()
	key := openvpn.GenerateStaticKey()
	left, right := newMemoryDevice(), newMemoryDevice()

	// One side has no Remote: it learns its peer from the first authentic packet.
	listener, err := openvpn.Open(ctx, openvpn.Config{
		Local:  netip.MustParseAddrPort("127.0.0.1:31194"),
		Static: &openvpn.Static{Key: key, Direction: openvpn.Direction0, Cipher: openvpn.CipherAES256CBC},
		Digest: openvpn.DigestSHA256,
		Device: left,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = listener.Close() }()

	caller, err := openvpn.Open(ctx, openvpn.Config{
		Local:  netip.MustParseAddrPort("127.0.0.1:31195"),
		Remote: "127.0.0.1:31194",
		Static: &openvpn.Static{Key: key, Direction: openvpn.Direction1, Cipher: openvpn.CipherAES256CBC},
		Digest: openvpn.DigestSHA256,
		Device: right,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer func() { _ = caller.Close() }()

	// The smallest inner packet there is: an IPv4 header.
	packet := make([]byte, 20)
	packet[0] = 0x45
	right.toPeer <- packet
	got := <-left.fromPeer
	fmt.Printf("%d bytes, IPv%d\n", len(got), got[0]>>4)
	fmt.Println(listener.Status().State)
	// Output:
	// 20 bytes, IPv4
	// up
}
