//go:build linux

package netlab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// PingOptions say who pings whom.
type PingOptions struct {
	// Hosts are the names of the hosts; all ordered pairs of them are tried. Empty means the leaves of the topology.
	Hosts []string
	// IPv6 pings the first IPv6 address of each host instead of the first IPv4 address.
	IPv6 bool
	// Timeout is how long answers are waited for; 0 means one second.
	Timeout time.Duration
}

const (
	defaultPingTimeout = time.Second
	// pingAgain is how long after an echo request the next one is sent while no answer is there. One packet may get lost
	// while a neighbour or a path is being found; a pair counts as reached when any answer comes.
	pingAgain = 200 * time.Millisecond
)

// PingAll sends ICMP echo requests between all ordered pairs of the hosts at the same time, each repeated every 200 ms
// until it is answered, and returns when all were answered or the timeout is over. An unanswered pair is no error. The
// error names a host without an address, or says what kept a host from sending at all.
func (w *World) PingAll(ctx context.Context, o PingOptions) (*Matrix, error) {
	if len(o.Hosts) == 0 {
		o.Hosts = w.topology.Leaves()
	}
	if o.Timeout == 0 {
		o.Timeout = defaultPingTimeout
	}
	targets := make([]netip.Addr, len(o.Hosts))
	for i, name := range o.Hosts {
		if targets[i] = w.Host(name).spec.Addr(o.IPv6); !targets[i].IsValid() {
			return nil, fmt.Errorf("ping: host %s has no address of that family", name)
		}
	}
	m := newMatrix(o.Hosts)
	errs := make([]error, len(o.Hosts))
	ctx, cancel := context.WithTimeout(ctx, o.Timeout)
	defer cancel()
	var wg sync.WaitGroup
	for i, name := range o.Hosts {
		wg.Go(func() {
			others := slices.Delete(slices.Clone(targets), i, i+1)
			rtts, err := w.Host(name).pingMany(ctx, others)
			if errs[i] = err; err == nil {
				copy(m.RTT[i], slices.Insert(rtts, i, 0))
			}
		})
	}
	wg.Wait()
	return m, errors.Join(errs...)
}

// Ping sends ICMP echo requests to an address, one every 200 ms, until one is answered or ctx is done, which is the error.
func (h *Host) Ping(ctx context.Context, to netip.Addr) (time.Duration, error) {
	rtts, err := h.pingMany(ctx, []netip.Addr{to})
	if err != nil {
		return 0, err
	}
	if rtts[0] < 0 {
		return 0, fmt.Errorf("host %s: ping %v: no answer: %w", h.spec.Name, to, context.Cause(ctx))
	}
	return rtts[0], nil
}

// pingMany pings targets of one address family until all have answered or ctx is done; -1 means no answer.
func (h *Host) pingMany(ctx context.Context, to []netip.Addr) ([]time.Duration, error) {
	if len(to) == 0 {
		return nil, nil
	}
	p := newPinger(to)
	conn, err := h.ListenPacket(ctx, p.family.network, p.family.any)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.SetReadDeadline(time.Unix(1, 0)) }) //nolint:errcheck // conn is open
	defer stop()
	for p.open > 0 && ctx.Err() == nil {
		p.send(conn)
		next := time.Now().Add(pingAgain)
		if err := conn.SetReadDeadline(next); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			break // its deadline was set before ours
		}
		if err := p.receive(conn); err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			return nil, fmt.Errorf("host %s: ping: %w", h.spec.Name, err)
		}
	}
	return p.rtts, nil
}

// family is what differs between ICMP (RFC 792) and ICMPv6 (RFC 4443).
type family struct {
	network, any   string
	protocol       int // IANA protocol number, for the parser
	request, reply icmp.Type
}

var (
	family4 = family{"ip4:icmp", "0.0.0.0", 1, ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply}
	family6 = family{"ip6:ipv6-icmp", "::", 58, ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply}
)

// pinger is the state of one host that pings several targets over one raw socket. The echo identifier is random per
// pinger, the sequence number is the target's index; the time of sending travels in the packet with a random cookie.
type pinger struct {
	family family
	to     []netip.Addr
	rtts   []time.Duration
	open   int // targets without an answer
	id     int
	cookie uint64
	start  time.Time
}

func newPinger(to []netip.Addr) *pinger {
	p := &pinger{
		family: family4, to: to, rtts: slices.Repeat([]time.Duration{-1}, len(to)), open: len(to),
		id: rand.IntN(1 << 16), cookie: rand.Uint64(), start: time.Now(),
	}
	if to[0].Is6() {
		p.family = family6
	}
	return p
}

// send sends one request to each target that has not answered. A send that the kernel refuses (no route) is a missing answer.
func (p *pinger) send(conn net.PacketConn) {
	for i, addr := range p.to {
		if p.rtts[i] >= 0 {
			continue
		}
		packet, err := p.request(i)
		if err != nil {
			continue
		}
		conn.WriteTo(packet, &net.IPAddr{IP: addr.AsSlice()}) //nolint:errcheck // see above
	}
}

// request is the echo request to a target; the kernel fills in the checksum of ICMPv6.
func (p *pinger) request(target int) ([]byte, error) {
	data := binary.BigEndian.AppendUint64(nil, p.cookie)
	data = binary.BigEndian.AppendUint64(data, uint64(time.Since(p.start)))
	m := icmp.Message{Type: p.family.request, Body: &icmp.Echo{ID: p.id, Seq: target, Data: data}}
	return m.Marshal(nil)
}

// receive takes answers until all are there or the read deadline is over.
func (p *pinger) receive(conn net.PacketConn) error {
	buf := make([]byte, 1500)
	for p.open > 0 {
		n, from, err := conn.ReadFrom(buf)
		if err != nil {
			return err
		}
		p.take(buf[:n], from)
	}
	return nil
}

// take counts a packet if it answers one of our requests: the socket sees all ICMP of the host.
func (p *pinger) take(packet []byte, from net.Addr) {
	m, err := icmp.ParseMessage(p.family.protocol, packet)
	if err != nil || m.Type != p.family.reply {
		return
	}
	echo, ok := m.Body.(*icmp.Echo)
	if !ok || echo.ID != p.id || echo.Seq >= len(p.to) || len(echo.Data) != 16 {
		return
	}
	source, ok := from.(*net.IPAddr)
	if !ok || binary.BigEndian.Uint64(echo.Data) != p.cookie || p.rtts[echo.Seq] >= 0 {
		return
	}
	if addr, _ := netip.AddrFromSlice(source.IP); addr.Unmap() != p.to[echo.Seq] {
		return
	}
	p.rtts[echo.Seq] = max(0, time.Since(p.start)-time.Duration(binary.BigEndian.Uint64(echo.Data[8:])))
	p.open--
}
