//go:build openvpn || openvpnversions

package openvpn

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pinger sends echo requests and remembers which were answered. ping itself gives
// up two round trips after its last request, which a busy machine exceeds.
type pinger struct {
	l    *lab
	conn *net.UDPConn
	to   netip.Addr
	size int

	mu   sync.Mutex
	sent int          // guarded by mu
	back map[int]bool // guarded by mu: numbers that were answered
}

const (
	echoRequest, echoReply   = 8, 0     // RFC 792
	echoRequest6, echoReply6 = 128, 129 // RFC 4443
	echoHeader               = 8
	maxPing                  = 2000
)

// inside runs f in the network of the peer; what it opens stays there.
func (l *lab) inside(f func()) {
	l.t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	ours, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = ours.Close() }()
	peers, err := os.Open("/proc/" + strconv.Itoa(l.pid) + "/ns/net")
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = peers.Close() }()
	if err := unix.Setns(int(peers.Fd()), unix.CLONE_NEWNET); err != nil {
		l.t.Fatal(err)
	}
	defer func() {
		if err := unix.Setns(int(ours.Fd()), unix.CLONE_NEWNET); err != nil {
			panic(err) // this thread is of no use to anybody
		}
	}()
	f()
}

// newPinger opens a socket of ours, or of the peer's network, for packets with
// that much payload.
func (l *lab) newPinger(there bool, to netip.Addr, size int) *pinger {
	l.t.Helper()
	p := &pinger{l: l, to: to, size: size, back: map[int]bool{}}
	open := func() { p.conn = l.echoSocket(to) }
	if there {
		l.inside(open)
	} else {
		open()
	}
	if p.conn == nil {
		l.t.Fatal("no socket for pings")
	}
	l.t.Cleanup(func() { _ = p.conn.Close() })
	go p.receive() // ends when the socket is closed
	return p
}

// echoSocket is a socket that the kernel gives only the replies to its own requests.
func (l *lab) echoSocket(to netip.Addr) *net.UDPConn {
	family, proto := unix.AF_INET, unix.IPPROTO_ICMP
	if to.Is6() {
		family, proto = unix.AF_INET6, unix.IPPROTO_ICMPV6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, proto)
	if err != nil {
		l.t.Errorf("socket for pings: %v", err)
		return nil
	}
	f := os.NewFile(uintptr(fd), "ping")
	defer func() { _ = f.Close() }()
	if to.Is4() {
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO); err != nil {
			l.t.Error(err)
		}
	}
	conn, err := net.FilePacketConn(f)
	if err != nil {
		l.t.Error(err)
		return nil
	}
	return conn.(*net.UDPConn)
}

// payload is what request n carries; compressible ones have one letter only.
func (p *pinger) payload(n int) []byte {
	b := make([]byte, p.size)
	rnd := rand.New(rand.NewPCG(uint64(n), uint64(p.size)))
	for i := range b {
		b[i] = byte(rnd.Uint32())
	}
	if p.size == compressible {
		b = bytes.Repeat([]byte{'A'}, p.size)
	}
	return b
}

// compressible is the size of requests that compression shortens.
const compressible = 1000

// send sends one more request.
func (p *pinger) send() {
	p.mu.Lock()
	defer p.mu.Unlock()
	msg := make([]byte, echoHeader, echoHeader+p.size)
	msg[0] = echoRequest
	if p.to.Is6() {
		msg[0] = echoRequest6
	}
	p.sent++
	binary.BigEndian.PutUint16(msg[6:], uint16(p.sent)) // kernel and receiver fill in the rest
	if _, err := p.conn.WriteToUDPAddrPort(append(msg, p.payload(p.sent)...), netip.AddrPortFrom(p.to, 0)); err != nil {
		p.l.t.Logf("ping %s: %v", p.to, err) // there may be no device yet
	}
}

func (p *pinger) receive() {
	buf := make([]byte, maxPing)
	for {
		n, err := p.conn.Read(buf)
		if err != nil {
			return
		}
		if n < echoHeader || buf[0] != echoReply && buf[0] != echoReply6 {
			continue
		}
		number := int(binary.BigEndian.Uint16(buf[6:]))
		p.mu.Lock()
		if bytes.Equal(buf[echoHeader:n], p.payload(number)) {
			p.back[number] = true
		}
		p.mu.Unlock()
	}
}

// count returns how many requests were sent and answered.
func (p *pinger) count() (sent, back int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent, len(p.back)
}

// settle waits until all are answered, and puts the count into the table. None may
// be missing.
func (p *pinger) settle() {
	p.l.t.Helper()
	deadline := time.Now().Add(labPatience)
	sent, back := p.count()
	for back < sent && time.Now().Before(deadline) {
		time.Sleep(10 * time.Millisecond)
		sent, back = p.count()
	}
	p.l.counted(sent, back)
	if back < sent || sent == 0 {
		p.mu.Lock()
		defer p.mu.Unlock()
		var lost []int
		for n := 1; n <= p.sent; n++ {
			if !p.back[n] {
				lost = append(lost, n)
			}
		}
		p.l.t.Errorf("pings of %d bytes to %s: %d of %d were lost: %v", p.size, p.to, sent-back, sent, lost)
	}
}
