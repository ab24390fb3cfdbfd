package overlay

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// echoEvery is the pause between two echo requests of one measurement.
const echoEvery = 300 * time.Millisecond

// echo sends ICMP echo requests to addr until one is answered, and returns its
// round-trip time. It needs raw sockets and the host's routes, so only a
// gateway with a TUN device can; others get errors.ErrUnsupported.
func (m *Mesh) echo(ctx context.Context, addr netip.Addr) (time.Duration, error) {
	if m.cfg.Device != DeviceTUN {
		return 0, errors.ErrUnsupported
	}
	network, proto := "ip4:icmp", 1
	var request, reply icmp.Type = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply
	if addr.Is6() {
		network, proto = "ip6:ipv6-icmp", 58
		request, reply = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply
	}
	conn, err := icmp.ListenPacket(network, unspecified(addr))
	if err != nil {
		return 0, fmt.Errorf("%w: %w", errors.ErrUnsupported, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	defer conn.Close()
	e := echoer{conn: conn, addr: addr, request: request, reply: reply, proto: proto}
	if _, err := rand.Read(e.token[:]); err != nil {
		return 0, err
	}
	return e.run(ctx)
}

func unspecified(addr netip.Addr) string {
	if addr.Is6() {
		return "::"
	}
	return "0.0.0.0"
}

// echoer measures one round trip. The token tells its replies from others'.
type echoer struct {
	conn           *icmp.PacketConn
	addr           netip.Addr
	request, reply icmp.Type
	proto          int
	token          [16]byte
	sent           [64]time.Time
}

func (e *echoer) run(ctx context.Context) (time.Duration, error) {
	buf := make([]byte, 1500)
	for seq := range len(e.sent) {
		if err := e.send(seq); err != nil {
			return 0, err
		}
		rtt, err := e.await(buf, time.Now().Add(echoEvery))
		if err == nil {
			return rtt, nil
		}
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, err
		}
	}
	return 0, os.ErrDeadlineExceeded
}

func (e *echoer) send(seq int) error {
	msg := icmp.Message{Type: e.request, Body: &icmp.Echo{
		ID: int(binary.BigEndian.Uint16(e.token[:])), Seq: seq, Data: e.token[:],
	}}
	b, err := msg.Marshal(nil)
	if err != nil {
		return err
	}
	e.sent[seq] = time.Now()
	_, err = e.conn.WriteTo(b, &net.IPAddr{IP: e.addr.AsSlice(), Zone: e.addr.Zone()})
	return err
}

// await reads until a reply of ours arrives or the deadline is over.
func (e *echoer) await(buf []byte, deadline time.Time) (time.Duration, error) {
	if err := e.conn.SetReadDeadline(deadline); err != nil {
		return 0, err
	}
	for {
		n, _, err := e.conn.ReadFrom(buf)
		if err != nil {
			return 0, err
		}
		msg, err := icmp.ParseMessage(e.proto, buf[:n])
		if err != nil || msg.Type != e.reply {
			continue
		}
		body, ok := msg.Body.(*icmp.Echo)
		if !ok || string(body.Data) != string(e.token[:]) || body.Seq < 0 || body.Seq >= len(e.sent) {
			continue
		}
		return time.Since(e.sent[body.Seq]), nil
	}
}
