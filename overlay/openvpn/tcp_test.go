package openvpn

import (
	"context"
	"io"
	"net"
	"net/netip"
	"path/filepath"
	"testing"
	"time"
)

// freePort returns a port of the loopback address that nobody uses just now.
func freePort(t testing.TB) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

// socketPair is two configurations over real sockets of the loopback address.
func socketPair(t testing.TB, tr Transport) (a, b Config) {
	a, b = staticPair(nil)
	a.transport, b.transport = nil, nil
	a.Local, b.Local = freePort(t), freePort(t)
	a.Remote, b.Remote = b.Local.String(), a.Local.String()
	if tr != UDP {
		a.Transport, b.Transport = TCPListen, TCPConnect
		a.Remote, b.Local = "", netip.AddrPort{}
	}
	return a, b
}

func TestEndpointsOverSockets(t *testing.T) {
	for _, tr := range []Transport{UDP, TCPConnect} {
		t.Run(tr.String(), func(t *testing.T) {
			a, b := socketPair(t, tr)
			mustOpen(t, a)
			mustOpen(t, b)
			for _, size := range []int{20, 1500} {
				mustPass(t, deviceOf(b), deviceOf(a), size)
				mustPass(t, deviceOf(a), deviceOf(b), size)
			}
		})
	}
}

func TestEndpointsOverIPv6Sockets(t *testing.T) {
	a, b := socketPair(t, UDP)
	v6 := func(p uint16) netip.AddrPort { return netip.AddrPortFrom(netip.IPv6Loopback(), p) }
	a.Local, b.Local = v6(a.Local.Port()), v6(b.Local.Port())
	a.Remote, b.Remote = b.Local.String(), a.Local.String()
	mustOpen(t, a)
	mustOpen(t, b)
	mustPass(t, deviceOf(a), deviceOf(b), 100)
	mustPass(t, deviceOf(b), deviceOf(a), 100)
}

func TestFirstPacketPassesAndCloseFreesTheSocket(t *testing.T) {
	a, b := socketPair(t, UDP)
	b.Times = TimeFile(filepath.Join(t.TempDir(), "time")) // all within one second
	mustOpen(t, a)
	for range 20 {
		e, err := Open(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		_ = e.Close() // at once
		b.Device = newChanDevice()
	}
	deviceOf(b).in <- innerPacket(6, 100) // there before the endpoint
	mustOpen(t, b)
	select {
	case <-deviceOf(a).out:
	case <-time.After(20 * time.Second):
		t.Fatal("the first packet was lost")
	}
}

func TestOpenReportsAnAddressInUse(t *testing.T) {
	a, _ := socketPair(t, UDP)
	mustOpen(t, a)
	a.Device = newChanDevice()
	if e, err := Open(t.Context(), a); err == nil {
		_ = e.Close()
		t.Fatal("two endpoints on one address")
	}
}

func TestStrangersConnectionsDoNotReplaceThePeer(t *testing.T) {
	a, b := socketPair(t, TCPConnect)
	ea := mustOpen(t, a)
	dial := func() net.Conn {
		c, err := net.Dial("tcp", a.Local.String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return c
	}
	var idle []net.Conn
	for range maxCandidates + 3 {
		idle = append(idle, dial())
	}
	mustOpen(t, b)
	mustPass(t, deviceOf(b), deviceOf(a), 100)
	// The oldest had to go, and got no byte.
	_ = idle[0].SetReadDeadline(time.Now().Add(10 * time.Second))
	if n, err := idle[0].Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
		t.Errorf("oldest stranger: read %d, %v", n, err)
	}
	for name, frame := range map[string][]byte{
		"length zero": {0, 0}, "length too large": {0xff, 0xff}, "garbage": append([]byte{0, 100}, make([]byte, 100)...), "one byte": {0, 1, 7},
	} {
		c := dial()
		if _, err := c.Write(frame); err != nil {
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
		if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil || isTimeout(err) {
			t.Errorf("%s: connection read %d bytes, %v; want an end", name, n, err)
		}
	}
	mustPass(t, deviceOf(a), deviceOf(b), 100)
	s := ea.Status()
	if s.Restarts != 0 || s.Counters.Dropped[ReasonFraming] != 2 || s.Counters.Dropped[ReasonAuth] != 1 || s.Counters.Dropped[ReasonShort] != 1 {
		t.Errorf("status %+v", s)
	}
}

func isTimeout(err error) bool {
	ne, ok := err.(net.Error)
	return ok && ne.Timeout()
}

func TestNewConnectionOfThePeerReplacesAHalfOpenOne(t *testing.T) {
	a, b := socketPair(t, TCPConnect)
	ea := mustOpen(t, a)
	// A peer that authenticates and then never says a word again, like one
	// whose machine lost power.
	dead, err := net.Dial("tcp", a.Local.String())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dead.Close() }()
	send, _ := mustStaticBoxes(t, *b.Static, b.Digest)
	send.time = uint32(time.Now().Unix()) - 100
	ping, _ := send.seal(nil, &plaintext{body: pingMagic[:]})
	if _, err := dead.Write(append([]byte{0, byte(len(ping))}, ping...)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "first connection is up", ea, func() bool { return ea.Status().State == StateUp })
	mustOpen(t, b)
	mustPass(t, deviceOf(b), deviceOf(a), 100)
	mustPass(t, deviceOf(a), deviceOf(b), 100)
	if s := ea.Status(); s.Restarts != 0 {
		t.Errorf("restarted: %+v", s)
	}
}

// A status may be asked for between the end of a connection and the next one.
func TestLocalAddressIsKnownAfterTheConnectionEnded(t *testing.T) {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	tr, err := connectTCP(t.Context(), &Config{MTU: defaultMTU}, addrPortOf(l.Addr()))
	if err != nil {
		t.Fatal(err)
	}
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	want := conn.RemoteAddr().String()
	_ = conn.Close()
	_ = tr.serve(t.Context(), func() receiver { return nopReceiver{} })
	if got := tr.local().String(); got != want {
		t.Errorf("local %s, want %s", got, want)
	}
}

type nopReceiver struct{}

func (nopReceiver) packet(path, []byte) {}
func (nopReceiver) drop(Reason)         {}
func (nopReceiver) flush()              {}

func TestTCPConnectionComesBackAfterEitherSideRestarts(t *testing.T) {
	a, b := socketPair(t, TCPConnect)
	ea, err := Open(t.Context(), a)
	if err != nil {
		t.Fatal(err)
	}
	eb := mustOpen(t, b)
	mustPass(t, deviceOf(b), deviceOf(a), 100)
	first := ea.clock.last
	_ = ea.Close()
	a.Device = newChanDevice()
	a.Now = func() time.Time { return time.Unix(int64(first)+1, 0) }
	mustOpen(t, a)
	mustPass(t, deviceOf(b), deviceOf(a), 100)
	_ = eb.Close()
	b.Device = newChanDevice()
	b.Now = func() time.Time { return time.Now().Add(10 * time.Second) }
	mustOpen(t, b)
	mustPass(t, deviceOf(b), deviceOf(a), 100)
	mustPass(t, deviceOf(a), deviceOf(b), 100)
}

func TestTCPFramesMayBeSplitAndJoined(t *testing.T) {
	server, client := net.Pipe()
	s := newStreamConn(server)
	got := make(chan []byte, 10)
	done := make(chan Reason, 1)
	go func() { done <- s.read(2000, packetFunc(func(p []byte) { got <- append([]byte(nil), p...) })) }()
	for _, part := range []string{"\x00", "\x03a", "bc\x00\x01d\x00\x02e", "f"} {
		if _, err := io.WriteString(client, part); err != nil {
			t.Fatal(err)
		}
	}
	for _, want := range []string{"abc", "d", "ef"} {
		if p := <-got; string(p) != want {
			t.Errorf("frame %q, want %q", p, want)
		}
	}
	_ = client.Close()
	if r := <-done; r != 0 {
		t.Errorf("end of the connection counted as %s", r)
	}
}

// packetFunc is a receiver that is a function.
type packetFunc func(p []byte)

func (f packetFunc) packet(_ path, p []byte) { f(p) }
func (packetFunc) drop(Reason)               {}
func (packetFunc) flush()                    {}

func TestFullSendQueueDropsWithoutWaiting(t *testing.T) {
	server, client := net.Pipe()
	defer func() { _ = client.Close() }()
	s := newStreamConn(server)
	batch := make([][]byte, 300)
	for i := range batch {
		batch[i] = make([]byte, 1000)
	}
	n, err := s.enqueue(batch, false) // nobody writes
	if err == nil || n == 0 || n > maxQueue/1000 {
		t.Errorf("queued %d, %v", n, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	go func() { defer cancel(); _, _ = s.enqueue(batch, true) }()
	s.close()
	<-ctx.Done() // a waiting sender ends with the connection
}

func FuzzStreamFrames(f *testing.F) {
	v, _ := mustStaticVectors(f)
	for _, row := range v.Vectors[:3] {
		f.Add(append([]byte{0, byte(len(row.Packet))}, row.Packet...))
	}
	f.Add([]byte{0, 0})
	f.Fuzz(func(t *testing.T, stream []byte) {
		total := 0
		used, bad := (&streamConn{}).frames(stream, 2048, packetFunc(func(p []byte) { total += frameHeaderSize + len(p) }))
		if used != total || used > len(stream) || bad != 0 && bad != ReasonFraming {
			t.Errorf("used %d of %d, frames of %d, %s", used, len(stream), total, bad)
		}
	})
}
