package openvpn

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"time"
)

// Transport is how packets travel outside.
type Transport uint8

const (
	// UDP sends one packet per datagram. It is the zero value.
	UDP Transport = iota
	// TCPListen waits for the peer's connection (--proto tcp-server, VyOS tcp-passive).
	TCPListen
	// TCPConnect connects to the peer (--proto tcp-client, VyOS tcp-active).
	TCPConnect
)

// String returns "udp", "tcp-listen" or "tcp-connect".
func (t Transport) String() string {
	switch t {
	case UDP:
		return "udp"
	case TCPListen:
		return "tcp-listen"
	case TCPConnect:
		return "tcp-connect"
	}
	return "Transport(" + strconv.Itoa(int(t)) + ")"
}

// path is a way to a peer: an address, over TCP also the connection. It is
// comparable; the zero value is no path.
type path struct {
	addr netip.AddrPort
	conn *streamConn
}

func (p path) valid() bool { return p.addr.IsValid() }

// transport is the outside of one connection, between two restarts.
type transport interface {
	// serve hands every packet to a receiver of newReceiver, one per goroutine,
	// until the transport is closed or ctx ends, and returns why.
	serve(ctx context.Context, newReceiver func() receiver) error
	// peer is the path to speak to first, the zero path if it must be learnt.
	peer() path
	// local is the address in use.
	local() netip.AddrPort
	// send sends packets in order. The caller keeps the memory. With wait it may
	// block until there is room, without it drops what does not fit. It returns
	// how many packets were taken. It is safe for concurrent use.
	send(to path, packets [][]byte, wait bool) (int, error)
	// reject closes what the path stands for after a packet that nobody honest
	// sends. It does nothing over UDP.
	reject(p path)
	// adopt makes the path the peer's, and lets go of the others.
	adopt(p path)
	// close ends serve and send. It is idempotent.
	close()
}

// receiver takes packets in.
type receiver interface {
	// packet takes one packet, which it may overwrite and keeps until flush.
	packet(from path, p []byte)
	// drop counts a packet that the transport refused.
	drop(r Reason)
	// flush passes on what the packets since the last flush gave.
	flush()
}

// maxPacket is the largest packet that is taken in: the inner limit and more
// than any header, HMAC, IV and padding need. Control packets of real peers
// have up to 2048 bytes.
func (c *Config) maxPacket() int { return max(2048, c.MTU+mtuSlack+256) }

// openTransport opens the sockets of one connection. Over TCPConnect it
// returns when the peer took the connection.
func openTransport(ctx context.Context, c *Config, attempt int) (transport, error) {
	if c.transport != nil {
		return c.transport(ctx, c)
	}
	remote, err := resolveRemote(ctx, c, attempt)
	if err != nil {
		return nil, err
	}
	switch c.Transport {
	case TCPListen:
		return listenTCP(ctx, c, remote)
	case TCPConnect:
		return connectTCP(ctx, c, remote)
	default:
		return listenUDP(ctx, c, remote)
	}
}

// resolveTimeout bounds one name lookup.
const resolveTimeout = 10 * time.Second

// resolveRemote returns the peer's address, or an invalid one if none is
// configured. Of several addresses, each attempt takes the next.
func resolveRemote(ctx context.Context, c *Config, attempt int) (netip.AddrPort, error) {
	if c.Remote == "" {
		return netip.AddrPort{}, nil
	}
	host, port, err := splitRemote(c.Remote)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return netip.AddrPortFrom(addr.Unmap(), port), nil
	}
	ctx, cancel := context.WithTimeout(ctx, resolveTimeout)
	defer cancel()
	network := "ip"
	if local := c.Local.Addr().Unmap(); local.Is4() {
		network = "ip4"
	} else if local.Is6() && !local.IsUnspecified() {
		network = "ip6"
	}
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, network, host)
	if err != nil {
		return netip.AddrPort{}, err
	}
	return netip.AddrPortFrom(addrs[attempt%len(addrs)].Unmap(), port), nil
}

// hostOf returns the text of the local address that net.Listen wants.
func hostOf(a netip.AddrPort) string {
	if !a.Addr().IsValid() {
		return ":" + strconv.Itoa(int(a.Port()))
	}
	return a.String()
}
