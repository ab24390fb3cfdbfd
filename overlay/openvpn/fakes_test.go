package openvpn

import (
	"context"
	"encoding/binary"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"
)

// chanDevice is a Device whose packets the test puts in and takes out.
type chanDevice struct {
	in, out chan []byte
	done    chan struct{}
	once    sync.Once
}

func newChanDevice() *chanDevice {
	return &chanDevice{in: make(chan []byte, 1000), out: make(chan []byte, 1000), done: make(chan struct{})}
}

func (d *chanDevice) ReadPackets(bufs [][]byte, sizes []int) (int, error) {
	select {
	case p := <-d.in:
		sizes[0] = copy(bufs[0], p)
		return 1, nil
	case <-d.done:
		return 0, net.ErrClosed
	}
}

func (d *chanDevice) WritePackets(packets [][]byte) error {
	for _, p := range packets {
		select {
		case d.out <- append([]byte(nil), p...):
		default:
		}
	}
	return nil
}

func (d *chanDevice) Close() error {
	d.once.Do(func() { close(d.done) })
	return nil
}

// memNet is a network of endpoints in memory, for synctest bubbles.
type memNet struct {
	mu    sync.Mutex
	nodes map[netip.AddrPort]*memTransport
	// deliver, if set, decides about each datagram; it may change it.
	deliver func(from, to netip.AddrPort, p []byte) [][]byte
	delay   time.Duration
}

func newMemNet() *memNet { return &memNet{nodes: map[netip.AddrPort]*memTransport{}} }

type datagram struct {
	from path
	p    []byte
}

type memTransport struct {
	net    *memNet
	addr   netip.AddrPort
	remote netip.AddrPort
	queue  chan datagram
	done   chan struct{}
	once   sync.Once
}

// open is the transport of a Config whose Local and Remote are in the memNet.
func (m *memNet) open(_ context.Context, c *Config) (transport, error) {
	t := &memTransport{net: m, addr: c.Local, queue: make(chan datagram, 1000), done: make(chan struct{})}
	if c.Remote != "" {
		t.remote = netip.MustParseAddrPort(c.Remote)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.nodes[c.Local] = t
	return t, nil
}

func (t *memTransport) serve(_ context.Context, newReceiver func() receiver) error {
	r := newReceiver()
	for {
		select {
		case d := <-t.queue:
			r.packet(d.from, d.p)
			r.flush()
		case <-t.done:
			return net.ErrClosed
		}
	}
}

func (t *memTransport) send(to path, packets [][]byte, _ bool) (int, error) {
	for _, p := range packets {
		t.net.send(t.addr, to.addr, p)
	}
	return len(packets), nil
}

// send puts a datagram on the wire, which loses it if the queue is full.
func (m *memNet) send(from, to netip.AddrPort, p []byte) {
	all := [][]byte{append([]byte(nil), p...)}
	m.mu.Lock()
	deliver := m.deliver
	m.mu.Unlock()
	if deliver != nil {
		all = deliver(from, to, all[0])
	}
	put := func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		node := m.nodes[to]
		if node == nil {
			return
		}
		for _, p := range all {
			select {
			case node.queue <- datagram{path{addr: from}, p}:
			default:
			}
		}
	}
	if m.delay > 0 {
		time.AfterFunc(m.delay, put)
		return
	}
	put()
}

func (m *memNet) setDeliver(f func(from, to netip.AddrPort, p []byte) [][]byte) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deliver = f
}

func (t *memTransport) peer() path            { return path{addr: t.remote} }
func (t *memTransport) local() netip.AddrPort { return t.addr }
func (t *memTransport) reject(path)           {}
func (t *memTransport) adopt(path)            {}

func (t *memTransport) close() {
	t.once.Do(func() { close(t.done) })
	t.net.mu.Lock()
	defer t.net.mu.Unlock()
	if t.net.nodes[t.addr] == t {
		delete(t.net.nodes, t.addr)
	}
}

// logLines keeps what an endpoint logs.
type logLines struct {
	mu  sync.Mutex
	out strings.Builder
}

func (l *logLines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.Write(p)
}

func (l *logLines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.out.String()
}

func (l *logLines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// innerPacket is an IPv4 packet of that total length with a number in it.
func innerPacket(n uint32, size int) []byte {
	p := make([]byte, size)
	p[0] = 0x45
	binary.BigEndian.PutUint16(p[2:], uint16(size))
	binary.BigEndian.PutUint32(p[16:], n)
	return p
}

func mustOpen(t testing.TB, cfg Config) *Endpoint {
	t.Helper()
	e, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("status of our side: %+v", e.Status())
		}
		if err := e.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return e
}

// eventually polls until ok or the deadline, and shows the last status.
func eventually(t testing.TB, what string, e *Endpoint, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s; status %+v", what, e.Status())
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// mustPass sends one packet through and waits for it on the other side. Early
// packets may be lost, so it repeats.
func mustPass(t testing.TB, from, to *chanDevice, size int) {
	t.Helper()
	want := innerPacket(uint32(size)<<8|7, size)
	deadline := time.After(60 * time.Second) // the handshake timeout
	for {
		select {
		case from.in <- want:
		default:
		}
		again := time.After(300 * time.Millisecond)
	wait:
		for {
			select {
			case got := <-to.out:
				if string(got) == string(want) {
					return
				}
			case <-again:
				break wait
			case <-deadline:
				t.Fatalf("a packet of %d bytes did not come through", size)
			}
		}
	}
}
