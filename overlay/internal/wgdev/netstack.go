package wgdev

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"sync"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/link/channel"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
)

const (
	// nic is the only interface of the stack.
	nic tcpip.NICID = 1
	// stackQueue is how many packets may wait for wireguard-go: more than a
	// TCP sender has in flight with gVisor's largest send buffer (4 MiB).
	stackQueue = 4096
	// stackBatch is how many packets wireguard-go takes at once.
	stackBatch = 128
)

// Netstack is a network stack inside of this process, with TCP and UDP over
// IPv4 and IPv6. It answers ICMP echo requests. It reaches only what the peers
// of its device reach, and nothing on this host reaches it. Safe for concurrent
// use; everything that it handed out is closed with the device.
//
// It stands on gVisor directly. The wrapper that comes with wireguard-go cannot
// change its addresses, and panics when it is closed while it sends.
//
// It does not work in a testing/synctest bubble: gVisor keeps goroutines
// outside of it waiting.
type Netstack struct {
	stack *stack.Stack
	link  *channel.Endpoint
	mtu   int

	queued wakeup // the stack has something to send
	closed chan struct{}
	events chan tun.Event // never used, closed with the stack

	// opening is held for reading while an endpoint is made, and for writing
	// to close: what is made after that would never end.
	opening sync.RWMutex

	mu        sync.Mutex // guards addresses; held while they are changed
	addresses []netip.Addr
}

func newNetstack(mtu int) (*Netstack, error) {
	s := &Netstack{
		stack: stack.New(stack.Options{
			NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
			TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
			HandleLocal:        true,
		}),
		link:   channel.New(stackQueue, uint32(mtu), ""),
		mtu:    mtu,
		queued: make(wakeup, 1),
		closed: make(chan struct{}),
		events: make(chan tun.Event),
	}
	s.link.AddNotify(s.queued)
	// gVisor leaves selective acknowledgements off; losses over long distances
	// need them.
	sack := tcpip.TCPSACKEnabled(true)
	if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, &sack); err != nil {
		return nil, errors.Join(stackError("enable sack", err), s.close())
	}
	if err := s.stack.CreateNIC(nic, s.link); err != nil {
		return nil, errors.Join(stackError("create interface", err), s.close())
	}
	s.stack.SetRouteTable([]tcpip.Route{
		{Destination: header.IPv4EmptySubnet, NIC: nic},
		{Destination: header.IPv6EmptySubnet, NIC: nic},
	})
	return s, nil
}

// SetAddresses sets the addresses of the stack: the overlay address of the
// gateway and its addresses within the prefixes that it announces. Of a family,
// the first is the usual source of connections. Those that stay are not
// disturbed; connections of those that go end. An address that cannot be one of
// a host is refused, and then nothing changes.
func (s *Netstack) SetAddresses(addresses []netip.Addr) error {
	for _, a := range addresses {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsMulticast() || a.IsLoopback() {
			return fmt.Errorf("address %v: want one of a host", a)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.isClosed() {
		return ErrClosed
	}
	for _, a := range s.addresses {
		if !slices.Contains(addresses, a) {
			if err := s.stack.RemoveAddress(nic, tcpip.AddrFromSlice(a.AsSlice())); err != nil {
				return stackError(fmt.Sprintf("remove address %v", a), err)
			}
		}
	}
	kept := slices.DeleteFunc(slices.Clone(s.addresses), func(a netip.Addr) bool { return !slices.Contains(addresses, a) })
	s.addresses = kept
	for _, a := range addresses {
		if slices.Contains(s.addresses, a) {
			continue
		}
		err := s.stack.AddProtocolAddress(nic, tcpip.ProtocolAddress{
			Protocol:          protocol(a),
			AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix(),
		}, stack.AddressProperties{})
		if err != nil {
			return stackError(fmt.Sprintf("add address %v", a), err)
		}
		s.addresses = append(s.addresses, a)
	}
	return nil
}

// Addresses returns the addresses of the stack.
func (s *Netstack) Addresses() []netip.Addr {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.addresses)
}

// close ends all connections and waits for gVisor's goroutines. It is called
// once.
func (s *Netstack) close() error {
	s.opening.Lock()
	close(s.closed)
	s.opening.Unlock()
	s.stack.RemoveNIC(nic) // nothing comes in any more
	s.stack.Close()
	s.link.Close()
	s.stack.Wait()
	close(s.events)
	return nil
}

func (s *Netstack) isClosed() bool {
	select {
	case <-s.closed:
		return true
	default:
		return false
	}
}

// wakeup has capacity 1.
type wakeup chan struct{}

// WriteNotify is called by gVisor when there is a packet to send.
func (w wakeup) WriteNotify() {
	select {
	case w <- struct{}{}:
	default:
	}
}

func protocol(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

func stackError(act string, err tcpip.Error) error { return fmt.Errorf("%s: %w", act, cause(err)) }

// stackDevice is the stack as wireguard-go sees it: a tun.Device.
type stackDevice struct {
	s *Netstack
}

// Read hands over what the stack sends. One goroutine of wireguard-go calls it.
func (d *stackDevice) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	for {
		if n := d.take(bufs, sizes, offset); n > 0 {
			return n, nil
		}
		select {
		case <-d.s.queued:
		case <-d.s.closed:
			return 0, os.ErrClosed
		}
	}
}

// take returns how many packets there were, without waiting for one.
func (d *stackDevice) take(bufs [][]byte, sizes []int, offset int) (n int) {
	for n < len(bufs) {
		pkt := d.s.link.Read()
		if pkt == nil {
			break
		}
		if pkt.Size() <= len(bufs[n])-offset {
			sizes[n] = copyPacket(bufs[n][offset:], pkt)
			n++
		}
		pkt.DecRef()
	}
	return n
}

func copyPacket(to []byte, pkt *stack.PacketBuffer) int {
	n := 0
	for _, part := range pkt.AsSlices() {
		n += copy(to[n:], part)
	}
	return n
}

// Write gives the stack what came from a peer. What is neither IPv4 nor IPv6 is
// dropped.
func (d *stackDevice) Write(bufs [][]byte, offset int) (int, error) {
	if d.s.isClosed() {
		return 0, os.ErrClosed
	}
	for _, b := range bufs {
		b = b[offset:]
		if len(b) == 0 {
			continue
		}
		var number tcpip.NetworkProtocolNumber
		switch b[0] >> 4 {
		case 4:
			number = header.IPv4ProtocolNumber
		case 6:
			number = header.IPv6ProtocolNumber
		default:
			continue
		}
		pkt := stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithData(b)})
		d.s.link.InjectInbound(number, pkt)
		pkt.DecRef()
	}
	return len(bufs), nil
}

func (d *stackDevice) File() *os.File           { return nil }
func (d *stackDevice) MTU() (int, error)        { return d.s.mtu, nil }
func (d *stackDevice) Name() (string, error)    { return "netstack", nil }
func (d *stackDevice) Events() <-chan tun.Event { return d.s.events }
func (d *stackDevice) BatchSize() int           { return stackBatch }

// Close is called once, by wireguard-go.
func (d *stackDevice) Close() error { return d.s.close() }
