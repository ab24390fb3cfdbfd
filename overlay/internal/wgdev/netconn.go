package wgdev

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"syscall"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// listenBacklog is how many connections may wait to be accepted: Linux'
// default (net.core.somaxconn).
const listenBacklog = 4096

// DialContext connects to an address through the device. Networks are tcp, udp
// and both with 4 or 6 added. The host of the address is an IP address: names
// are not looked up inside of the mesh, and give a *net.DNSError. Other errors
// are *net.OpError, with ErrClosed, the error of ctx or a syscall.Errno inside.
func (s *Netstack) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	to, err := resolve(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Err: err}
	}
	conn, err := s.dial(ctx, network, to)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: netAddr(network, to), Err: err}
	}
	return conn, nil
}

func (s *Netstack) dial(ctx context.Context, network string, to netip.AddrPort) (net.Conn, error) {
	if !to.Addr().IsValid() || to.Addr().IsUnspecified() {
		return nil, errors.New("want the address of a host")
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var queue waiter.Queue
	ready, writable := waiter.NewChannelEntry(waiter.WritableEvents)
	queue.EventRegister(&ready)
	defer queue.EventUnregister(&ready)
	ep, err := s.endpoint(network, to.Addr(), &queue, func(ep tcpip.Endpoint) tcpip.Error {
		return ep.Connect(fullAddress(to))
	})
	if errors.Is(err, syscall.EINPROGRESS) {
		select {
		case <-ctx.Done():
			ep.Close()
			return nil, ctx.Err()
		case <-s.closed:
			ep.Close()
			return nil, ErrClosed
		case <-writable:
		}
		if err = cause(ep.LastError()); err != nil {
			ep.Close()
		}
	}
	switch {
	case err != nil:
		return nil, err
	case isTCP(network):
		return &stackConn{TCPConn: gonet.NewTCPConn(&queue, ep), stack: s}, nil
	}
	return &stackPacketConn{UDPConn: gonet.NewUDPConn(&queue, ep), stack: s}, nil
}

// Listen accepts TCP connections that come in through the device. Networks are
// tcp, tcp4 and tcp6; an empty or unspecified host means all addresses of the
// stack, port 0 a free port. Errors as with DialContext.
func (s *Netstack) Listen(network, address string) (net.Listener, error) {
	if !isTCP(network) {
		return nil, &net.OpError{Op: "listen", Net: network, Err: net.UnknownNetworkError(network)}
	}
	at, err := resolve(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	var queue waiter.Queue
	ep, err := s.endpoint(network, at.Addr(), &queue, func(ep tcpip.Endpoint) tcpip.Error {
		if err := ep.Bind(fullAddress(at)); err != nil {
			return err
		}
		return ep.Listen(listenBacklog)
	})
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: netAddr(network, at), Err: err}
	}
	return &stackListener{TCPListener: gonet.NewTCPListener(s.stack, &queue, ep), stack: s}, nil
}

// ListenPacket receives UDP packets that come in through the device, and sends
// some. Networks are udp, udp4 and udp6; addresses and errors as with Listen.
func (s *Netstack) ListenPacket(network, address string) (net.PacketConn, error) {
	if !isUDP(network) {
		return nil, &net.OpError{Op: "listen", Net: network, Err: net.UnknownNetworkError(network)}
	}
	at, err := resolve(network, address)
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Err: err}
	}
	var queue waiter.Queue
	ep, err := s.endpoint(network, at.Addr(), &queue, func(ep tcpip.Endpoint) tcpip.Error {
		return ep.Bind(fullAddress(at))
	})
	if err != nil {
		return nil, &net.OpError{Op: "listen", Net: network, Addr: netAddr(network, at), Err: err}
	}
	return &stackPacketConn{UDPConn: gonet.NewUDPConn(&queue, ep), stack: s}, nil
}

// endpoint makes an endpoint and prepares it. With EINPROGRESS it returns the
// endpoint as well; with other errors it is closed.
func (s *Netstack) endpoint(network string, addr netip.Addr, queue *waiter.Queue, prepare func(tcpip.Endpoint) tcpip.Error) (tcpip.Endpoint, error) {
	s.opening.RLock()
	defer s.opening.RUnlock()
	if s.isClosed() {
		return nil, ErrClosed
	}
	transport := tcp.ProtocolNumber
	if isUDP(network) {
		transport = udp.ProtocolNumber
	}
	number := ipv6.ProtocolNumber
	if addr.Is4() || strings.HasSuffix(network, "4") {
		number = ipv4.ProtocolNumber
	}
	ep, err := s.stack.NewEndpoint(transport, number, queue)
	if err != nil {
		return nil, cause(err)
	}
	ep.SocketOptions().SetV6Only(strings.HasSuffix(network, "6"))
	err = prepare(ep)
	if _, started := err.(*tcpip.ErrConnectStarted); started {
		return ep, syscall.EINPROGRESS
	}
	if err != nil {
		ep.Close()
		return nil, cause(err)
	}
	return ep, nil
}

// stackConn is a TCP connection whose errors are those of package net.
type stackConn struct {
	*gonet.TCPConn
	stack  *Netstack
	closed atomic.Bool
}

func (c *stackConn) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	return n, c.stack.fault(err, &c.closed)
}

func (c *stackConn) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	return n, c.stack.fault(err, &c.closed)
}

func (c *stackConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	return c.TCPConn.Close()
}

// stackListener is a TCP listener whose errors are those of package net.
type stackListener struct {
	*gonet.TCPListener
	stack  *Netstack
	closed atomic.Bool
}

func (l *stackListener) Accept() (net.Conn, error) {
	conn, err := l.TCPListener.Accept()
	if err != nil {
		return nil, l.stack.fault(err, &l.closed)
	}
	c, ok := conn.(*gonet.TCPConn)
	if !ok {
		return nil, errors.Join(errors.New("accept: not a tcp connection"), conn.Close())
	}
	return &stackConn{TCPConn: c, stack: l.stack}, nil
}

func (l *stackListener) Close() error {
	if l.closed.Swap(true) {
		return net.ErrClosed
	}
	return l.TCPListener.Close()
}

// stackPacketConn is a UDP socket whose errors are those of package net. It is
// a net.Conn as well.
type stackPacketConn struct {
	*gonet.UDPConn
	stack  *Netstack
	closed atomic.Bool
}

func (c *stackPacketConn) Read(b []byte) (int, error) {
	n, _, err := c.ReadFrom(b)
	return n, err
}

func (c *stackPacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, from, err := c.UDPConn.ReadFrom(b)
	return n, from, c.stack.fault(err, &c.closed)
}

func (c *stackPacketConn) Write(b []byte) (int, error) {
	n, err := c.UDPConn.Write(b)
	return n, c.stack.fault(err, &c.closed)
}

// WriteTo takes any address that reads as an IP address and a port.
func (c *stackPacketConn) WriteTo(b []byte, to net.Addr) (int, error) {
	addr, err := netip.ParseAddrPort(fmt.Sprint(to))
	if err != nil {
		return 0, &net.OpError{Op: "write", Net: "udp", Source: c.LocalAddr(), Addr: to, Err: err}
	}
	n, err := c.UDPConn.WriteTo(b, net.UDPAddrFromAddrPort(unmap(addr)))
	return n, c.stack.fault(err, &c.closed)
}

func (c *stackPacketConn) Close() error {
	if c.closed.Swap(true) {
		return net.ErrClosed
	}
	return c.UDPConn.Close()
}

// fault turns an error of gVisor's adapter into one of package net.
func (s *Netstack) fault(err error, closed *atomic.Bool) error {
	if err == nil {
		return nil
	}
	var op *net.OpError
	switch is := errors.As(err, &op); {
	case closed.Load():
		err = net.ErrClosed
	case s.isClosed():
		err = ErrClosed
	case is && op.Timeout():
		err = os.ErrDeadlineExceeded
	default:
		return err
	}
	if op == nil {
		return err
	}
	return &net.OpError{Op: op.Op, Net: op.Net, Source: op.Source, Addr: op.Addr, Err: err}
}

// cause is the error of the operating system that an error of gVisor means.
func cause(err tcpip.Error) error {
	switch err.(type) {
	case nil:
		return nil
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrConnectionAborted, *tcpip.ErrAborted:
		return syscall.ECONNABORTED
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	case *tcpip.ErrPortInUse:
		return syscall.EADDRINUSE
	case *tcpip.ErrBadLocalAddress:
		return syscall.EADDRNOTAVAIL
	}
	return errors.New(strings.ToLower(err.String()))
}

// resolve reads an address. An empty host is not a valid address but a port.
func resolve(network, address string) (netip.AddrPort, error) {
	if !isTCP(network) && !isUDP(network) {
		return netip.AddrPort{}, net.UnknownNetworkError(network)
	}
	host, service, err := net.SplitHostPort(address)
	if err != nil {
		return netip.AddrPort{}, err
	}
	port, err := net.LookupPort(network, service)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if host == "" {
		return netip.AddrPortFrom(netip.Addr{}, uint16(port)), nil
	}
	addr, err := netip.ParseAddr(host)
	if err != nil {
		return netip.AddrPort{}, &net.DNSError{Err: "names are not looked up inside of the mesh; use an address", Name: host, IsNotFound: true}
	}
	addr = addr.Unmap()
	switch {
	case addr.Zone() != "":
		return netip.AddrPort{}, &net.AddrError{Err: "zones mean nothing inside of the mesh", Addr: host}
	case strings.HasSuffix(network, "4") && !addr.Is4(), strings.HasSuffix(network, "6") && !addr.Is6():
		return netip.AddrPort{}, &net.AddrError{Err: "not an address of " + network, Addr: host}
	}
	return netip.AddrPortFrom(addr, uint16(port)), nil
}

// fullAddress is addr as gVisor wants it; every address is written as none.
func fullAddress(a netip.AddrPort) tcpip.FullAddress {
	full := tcpip.FullAddress{Port: a.Port()} // with the interface named, gVisor does not check the address
	if a.Addr().IsValid() && !a.Addr().IsUnspecified() {
		full.Addr = tcpip.AddrFromSlice(a.Addr().AsSlice())
	}
	return full
}

func netAddr(network string, a netip.AddrPort) net.Addr {
	if isUDP(network) {
		return net.UDPAddrFromAddrPort(a)
	}
	return net.TCPAddrFromAddrPort(a)
}

func unmap(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

func isTCP(network string) bool { return network == "tcp" || network == "tcp4" || network == "tcp6" }
func isUDP(network string) bool { return network == "udp" || network == "udp4" || network == "udp6" }
