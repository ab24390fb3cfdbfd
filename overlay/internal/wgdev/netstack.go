package wgdev

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"strconv"

	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/netstack"
)

// Stack is a network stack inside the process: TCP and UDP without any
// privilege. It hangs a testing/synctest bubble; use None there.
type Stack struct {
	net   *netstack.Net
	addrs []netip.Addr
}

// NewStack returns a stack with the given addresses and the TUN device that
// connects it to a Userspace.
func NewStack(addrs []netip.Addr, mtu int) (*Stack, tun.Device, error) {
	t, n, err := netstack.CreateNetTUN(addrs, nil, mtu)
	if err != nil {
		return nil, nil, fmt.Errorf("make network stack: %w", err)
	}
	return &Stack{net: n, addrs: addrs}, t, nil
}

// DialContext connects to a literal address through the mesh; network is tcp
// or udp, with 4 or 6 behind it or not.
func (s *Stack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	return s.net.DialContext(ctx, network, address)
}

// Listen listens for TCP connections from the mesh. An empty or unspecified
// host means the first address of the stack.
func (s *Stack) Listen(network, address string) (net.Listener, error) {
	to, err := s.local(address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	switch network {
	case "tcp", "tcp4", "tcp6":
		return s.net.ListenTCPAddrPort(to)
	}
	return nil, &net.OpError{Op: "listen", Net: network, Err: net.UnknownNetworkError(network)}
}

// ListenPacket listens for UDP datagrams from the mesh, as Listen.
func (s *Stack) ListenPacket(network, address string) (net.PacketConn, error) {
	to, err := s.local(address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	switch network {
	case "udp", "udp4", "udp6":
		return s.net.ListenUDPAddrPort(to)
	}
	return nil, &net.OpError{Op: "listen", Net: network, Err: net.UnknownNetworkError(network)}
}

// local reads a listening address.
func (s *Stack) local(address string) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return netip.AddrPort{}, fmt.Errorf("port %q: %w", port, err)
	}
	addr := s.addrs[0]
	if host != "" {
		if addr, err = netip.ParseAddr(host); err != nil {
			return netip.AddrPort{}, err
		}
		if addr.IsUnspecified() {
			addr = s.addrs[0]
		}
	}
	return netip.AddrPortFrom(addr, uint16(n)), nil
}
