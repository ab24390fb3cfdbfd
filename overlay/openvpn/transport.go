package openvpn

import (
	"context"
	"net/netip"
	"strconv"
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

// frameHeaderSize is the length that stands before every packet over TCP.
const frameHeaderSize = 2

type streamConn struct{}
