package stream

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// idOf names a gateway in these tests: the beginning of its key's hash.
func idOf(k trust.IdentityKey) trust.GatewayID {
	sum := sha256.Sum256(k[:])
	return trust.GatewayID(sum[:16])
}

// member is a transport with what it needs around it. Its introduction is its
// own key, so that Verify can compare it with the one that TLS proved.
type member struct {
	*Transport
	key  ed25519.PrivateKey
	id   trust.GatewayID
	addr netip.AddrPort
	stop context.CancelFunc
	end  chan error // what Run returned

	mu    sync.Mutex
	paths map[trust.GatewayID]netip.AddrPort
	known map[netip.AddrPort]bool
}

func newKey(tb testing.TB) ed25519.PrivateKey {
	tb.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		tb.Fatal(err)
	}
	return key
}

func identityKey(k ed25519.PrivateKey) trust.IdentityKey {
	return trust.IdentityKey(k.Public().(ed25519.PublicKey))
}

var errForeign = errors.New("introduction of another identity")

func verifyOwnKey(identity trust.IdentityKey, intro []byte, _ netip.AddrPort) (trust.GatewayID, error) {
	if !bytes.Equal(intro, identity[:]) {
		return trust.GatewayID{}, errForeign
	}
	return idOf(identity), nil
}

// start runs a transport on conn; change may alter its configuration.
func start(tb testing.TB, key ed25519.PrivateKey, conn net.PacketConn, change func(*Config)) *member {
	tb.Helper()
	m := &member{
		key: key, id: idOf(identityKey(key)), addr: addrPort(conn.LocalAddr()), end: make(chan error, 1),
		paths: make(map[trust.GatewayID]netip.AddrPort), known: make(map[netip.AddrPort]bool),
	}
	cfg := Config{
		Conn:      conn,
		Identity:  key,
		Introduce: func() []byte { k := identityKey(key); return k[:] },
		Verify:    verifyOwnKey,
		Addr:      m.path,
		Proven:    m.proven,
		Handlers:  map[byte]Handler{TypeAPI: echo},
	}
	if change != nil {
		change(&cfg)
	}
	t, err := New(cfg)
	if err != nil {
		tb.Fatal(err)
	}
	m.Transport = t
	ctx, cancel := context.WithCancel(context.Background())
	m.stop = cancel
	go func() { m.end <- t.Run(ctx) }()
	tb.Cleanup(func() { m.halt(tb) })
	return m
}

// halt stops a member, once or more, and checks how Run ended.
func (m *member) halt(tb testing.TB) {
	tb.Helper()
	m.stop()
	if err := <-m.end; err != nil {
		tb.Errorf("Run: got %v, want nil", err)
	}
	m.end <- nil
}

func (m *member) path(id trust.GatewayID) (netip.AddrPort, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	a, ok := m.paths[id]
	return a, ok
}

func (m *member) proven(a netip.AddrPort) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.known[a]
}

// knows proves the path from m to each of others.
func (m *member) knows(others ...*member) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, o := range others {
		m.paths[o.id] = o.addr
		m.known[o.addr] = true
	}
}

// echo sends back what it reads.
func echo(_ context.Context, _ trust.GatewayID, s Stream) {
	_, _ = io.Copy(s, s)
	_ = s.CloseWrite()
}

// ask sends b over a new stream and returns what comes back.
func (m *member) ask(ctx context.Context, peer trust.GatewayID, b []byte) ([]byte, error) {
	s, err := m.OpenStream(ctx, peer, TypeAPI)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	var writing sync.WaitGroup
	writing.Go(func() {
		_, _ = s.Write(b)
		_ = s.CloseWrite()
	})
	got, err := io.ReadAll(s)
	writing.Wait()
	return got, err
}

func mustCount(tb testing.TB, m *member, name string, want uint64) {
	tb.Helper()
	got, ok := m.Counters()[name]
	if !ok || got != want {
		tb.Errorf("counter %s: got %d (present %v), want %d", name, got, ok, want)
	}
}

func TestStrangersBecomePeersByIntroduction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(20 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		begin := time.Now()
		id, err := a.Introduce(t.Context(), b.addr)
		if err != nil || id != b.id {
			t.Fatalf("introduce: got %v, %v; want %v", id, err, b.id)
		}
		// Retry, handshake, introduction: three round trips of 40 ms.
		if took := time.Since(begin); took > 150*time.Millisecond {
			t.Errorf("introduction took %v", took)
		}
		payload := make([]byte, 400_000)
		_, _ = rand.Read(payload)
		for _, p := range [][2]*member{{a, b}, {b, a}} {
			got, err := p[0].ask(t.Context(), p[1].id, payload)
			if err != nil || !bytes.Equal(got, payload) {
				t.Errorf("echo: got %d bytes, %v; want %d", len(got), err, len(payload))
			}
		}
		mustCount(t, b, "handshakes", 1)
		mustCount(t, b, "introduced", 1)
		mustCount(t, a, "dialled", 1)
	})
}

// mustAsk asks for an echo and checks it.
func (m *member) mustAsk(tb testing.TB, ctx context.Context, peer trust.GatewayID, b []byte) {
	tb.Helper()
	got, err := m.ask(ctx, peer, b)
	if err != nil || !bytes.Equal(got, b) {
		tb.Fatalf("echo of %d bytes: got %d bytes, %v", len(b), len(got), err)
	}
}

// openConns returns how many connections a transport holds.
func openConns(m *member) int {
	m.Transport.mu.Lock()
	defer m.Transport.mu.Unlock()
	return len(m.open)
}

func TestStreamsShareOneDialToTheProvenPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(20 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		a.knows(b)
		b.knows(a)
		var wg sync.WaitGroup
		for range 20 { // more than the 8 streams that fit at a time
			wg.Go(func() {
				if got, err := a.ask(t.Context(), b.id, []byte("hello")); err != nil || string(got) != "hello" {
					t.Errorf("echo: got %q, %v", got, err)
				}
			})
		}
		wg.Wait()
		mustCount(t, b, "accepted", 1)
		mustCount(t, b, "streams_served", 20)
		mustCount(t, a, "dialled", 1)
	})
}

func TestProvenAddressNeedsNoRetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(50 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		b.knows(a)
		begin := time.Now()
		if _, err := a.Introduce(t.Context(), b.addr); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begin); took >= 300*time.Millisecond { // two round trips; a Retry would be a third
			t.Errorf("introduction took %v", took)
		}
	})
}

func TestCrossingDialsLeaveOneConnection(t *testing.T) {
	yielded := uint64(0)
	defer func() {
		if yielded == 0 {
			t.Error("no dials crossed")
		}
	}()
	for offset := time.Duration(0); offset <= 140*time.Millisecond; offset += 7 * time.Millisecond {
		for _, proven := range []bool{false, true} { // whose dial is faster
			synctest.Test(t, func(t *testing.T) {
				n := newMemnet(20 * time.Millisecond)
				a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
				b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
				b.paths[a.id], a.paths[b.id] = a.addr, b.addr
				if proven {
					a.knows(b)
				}
				ask := func(from, to *member) {
					if got, err := from.ask(t.Context(), to.id, []byte("x")); err != nil || string(got) != "x" {
						t.Errorf("offset %v: echo: got %q, %v", offset, got, err)
					}
				}
				var wg sync.WaitGroup
				wg.Go(func() { ask(a, b) })
				wg.Go(func() { time.Sleep(offset); ask(b, a) })
				wg.Wait()
				for range 20 { // through the time in which replaced connections go
					time.Sleep(500 * time.Millisecond)
					ask(a, b)
					ask(b, a)
				}
				if x, y := openConns(a), openConns(b); x != 1 || y != 1 {
					t.Errorf("offset %v: got %d and %d connections, want 1 and 1", offset, x, y)
				}
				yielded += a.Counters()["crossed"] + b.Counters()["crossed"]
				if x, y := a.Counters()["dialled"], b.Counters()["dialled"]; x > 1 || y > 1 {
					t.Errorf("offset %v: got %d and %d dials, want at most 1 each", offset, x, y)
				}
			})
		}
	}
}

func TestNewerConnectionReplacesOlderWithoutBreakingStreams(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		if _, err := a.Introduce(t.Context(), b.addr); err != nil {
			t.Fatal(err)
		}
		s, err := a.OpenStream(t.Context(), b.id, TypeAPI)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		for range 3 {
			if _, err := a.Introduce(t.Context(), b.addr); err != nil {
				t.Fatal(err)
			}
			time.Sleep(20 * time.Millisecond) // closing is told to the peer first
			if a, b := openConns(a), openConns(b); a > 2 || b > 2 {
				t.Errorf("got %d and %d connections, want at most the current and the one it replaced", a, b)
			}
		}
		// The stream's connection is not the latest but one any more: it is gone at both ends.
		if _, err := io.ReadAll(s); err == nil {
			t.Error("stream of a connection replaced three times goes on")
		}
		s, err = a.OpenStream(t.Context(), b.id, TypeAPI)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := a.Introduce(t.Context(), b.addr); err != nil {
			t.Fatal(err)
		}
		time.Sleep(4 * drainInterval) // its stream is still in use
		if _, err := s.Write([]byte("late")); err != nil {
			t.Fatal(err)
		}
		if err := s.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(s); err != nil || string(got) != "late" {
			t.Errorf("stream of the connection just replaced: got %q, %v", got, err)
		}
		s.Close()
		time.Sleep(drainInterval + time.Second)
		if a, b := openConns(a), openConns(b); a != 1 || b != 1 {
			t.Errorf("got %d and %d connections, want 1 and 1", a, b)
		}
	})
}

func TestReplacedConnectionLivesAMinuteAtMost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		long := map[byte]Limit{TypeAPI: {Lifetime: time.Hour, Bytes: 1 << 20}}
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), func(c *Config) { c.Limits = long })
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) { c.Limits = long })
		a.knows(b)
		s, err := a.OpenStream(t.Context(), b.id, TypeAPI)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := a.Introduce(t.Context(), b.addr); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		for err == nil && time.Since(begin) < time.Hour { // it is in use all the time
			_, err = s.Write([]byte("x"))
			time.Sleep(time.Second)
		}
		if took := time.Since(begin); took > drainLimit+2*time.Second || took < drainLimit-2*time.Second {
			t.Errorf("replaced connection lived %v, want %v", took, drainLimit)
		}
	})
}

func TestRestartedPeerIsReachedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		key := newKey(t)
		b := start(t, key, n.listen("192.0.2.2:7000"), nil)
		a.knows(b)
		a.mustAsk(t, t.Context(), b.id, []byte("x"))
		n.silence(b.addr) // b dies without a word
		b.halt(t)
		n.setTap(nil)
		b = start(t, key, n.listen("192.0.2.2:7000"), nil)
		if _, err := b.Introduce(t.Context(), a.addr); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		a.mustAsk(t, t.Context(), b.id, []byte("x"))
		if took := time.Since(begin); took > 100*time.Millisecond {
			t.Errorf("stream to the restarted peer took %v", took)
		}
	})
}

// A peer that restarted without a word is introduced to again, although a connection that it had dialled seems to live.
func TestIntroductionReplacesADeadConnectionOfThePeer(t *testing.T) {
	for _, smaller := range []bool{false, true} { // whether the peer's dial would win if both crossed
		synctest.Test(t, func(t *testing.T) {
			n := newMemnet(10 * time.Millisecond)
			key, peerKey := newKey(t), newKey(t)
			if x, y := identityKey(key), identityKey(peerKey); (bytes.Compare(y[:], x[:]) < 0) != smaller {
				key, peerKey = peerKey, key
			}
			a := start(t, key, n.listen("192.0.2.1:7000"), nil)
			b := start(t, peerKey, n.listen("192.0.2.2:7000"), nil)
			if _, err := b.Introduce(t.Context(), a.addr); err != nil {
				t.Fatal(err)
			}
			n.silence(b.addr)
			b.halt(t)
			n.setTap(nil)
			b = start(t, peerKey, n.listen("192.0.2.2:7000"), nil)
			if _, err := a.Introduce(t.Context(), b.addr); err != nil {
				t.Fatal(err)
			}
			begin := time.Now()
			a.mustAsk(t, t.Context(), b.id, []byte("x"))
			if took := time.Since(begin); took > 100*time.Millisecond {
				t.Errorf("stream to the restarted peer took %v", took)
			}
		})
	}
}

func TestStreamEndsWithItsHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Handlers = map[byte]Handler{TypeAPI: func(context.Context, trust.GatewayID, Stream) {}}
		})
		a.knows(b)
		s, err := a.OpenStream(t.Context(), b.id, TypeAPI)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		begin := time.Now()
		if _, err := s.Read(make([]byte, 1)); !errors.Is(err, io.EOF) || time.Since(begin) > time.Second {
			t.Errorf("got %v after %v, want the end at once", err, time.Since(begin))
		}
	})
}

func TestAnswersToOwnDialsAreNotLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), func(c *Config) { c.PerSource = 1 })
		for _, at := range []string{"192.0.2.2:1", "192.0.2.2:2", "192.0.2.2:3", "192.0.2.2:4"} { // behind one NAT
			b := start(t, newKey(t), n.listen(at), nil)
			if _, err := a.Introduce(t.Context(), b.addr); err != nil {
				t.Fatal(err)
			}
		}
		mustCount(t, a, "refused_source", 0)
	})
}

func TestStreamIsOpenedAnewWhenTheConnectionEndsMeanwhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		a.knows(b)
		for range maxStreams {
			s, err := a.OpenStream(t.Context(), b.id, TypeAPI)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
		}
		time.AfterFunc(time.Second, func() { b.Disconnect(a.id) })
		a.mustAsk(t, t.Context(), b.id, []byte("waits for a place, then dials"))
	})
}

func TestDisconnectAndCloseEndConnectionsAtBothEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		a.knows(b)
		a.mustAsk(t, t.Context(), b.id, []byte("x"))
		a.Disconnect(b.id)
		time.Sleep(50 * time.Millisecond)
		if a, b := len(a.Connected()), len(b.Connected()); a != 0 || b != 0 {
			t.Errorf("connected peers after Disconnect: got %d and %d, want none", a, b)
		}
		a.mustAsk(t, t.Context(), b.id, []byte("x")) // dials again
		b.halt(t)
		time.Sleep(50 * time.Millisecond)
		if got := a.Connected(); len(got) != 0 {
			t.Errorf("connected peers after the peer's end: got %v, want none", got)
		}
		if _, err := b.OpenStream(t.Context(), a.id, TypeAPI); !errors.Is(err, ErrNoPath) && !errors.Is(err, ErrClosed) {
			t.Errorf("open stream after Run: got %v", err)
		}
		if _, err := b.Introduce(t.Context(), a.addr); !errors.Is(err, ErrClosed) || !errors.Is(err, net.ErrClosed) {
			t.Errorf("introduce after Run: got %v, want ErrClosed", err)
		}
	})
}

func TestIdleConnectionsCloseAfterAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		if _, err := a.Introduce(t.Context(), b.addr); err != nil {
			t.Fatal(err)
		}
		time.Sleep(idleTimeout - time.Second)
		if got := openConns(b); got != 1 {
			t.Errorf("before a minute: got %d connections, want 1", got)
		}
		time.Sleep(2 * time.Second)
		if a, b := openConns(a), openConns(b); a != 0 || b != 0 {
			t.Errorf("after a minute: got %d and %d connections, want none", a, b)
		}
	})
}

func TestOpenStreamNamesWhyItFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), nil)
		stranger := trust.GatewayID{1}
		if _, err := a.OpenStream(t.Context(), stranger, TypeAPI); !errors.Is(err, ErrNoPath) {
			t.Errorf("no path: got %v, want ErrNoPath", err)
		}
		a.paths[stranger] = b.addr
		if _, err := a.OpenStream(t.Context(), stranger, TypeAPI); !errors.Is(err, ErrWrongPeer) {
			t.Errorf("another gateway answers: got %v, want ErrWrongPeer", err)
		}
		a.paths[stranger] = netip.MustParseAddrPort("192.0.2.99:7000")
		begin := time.Now()
		if _, err := a.OpenStream(t.Context(), stranger, TypeAPI); err == nil || time.Since(begin) > dialTimeout {
			t.Errorf("nobody answers: got %v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.OpenStream(ctx, stranger, TypeAPI); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nobody answers in time: got %v, want the context's error", err)
		}
		if got := len(a.Connected()) + len(b.Connected()); got != 0 {
			t.Errorf("got %d connected peers, want none", got)
		}
	})
}

func TestMethodsWaitForRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(0)
		a, err := New(Config{Conn: n.listen("192.0.2.1:7000"), Identity: newKey(t)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := a.Introduce(ctx, netip.MustParseAddrPort("192.0.2.2:7000")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("introduce before Run: got %v, want the context's error", err)
		}
	})
}

func TestConfigIsChecked(t *testing.T) {
	conn := newMemnet(0).listen("192.0.2.1:7000")
	for name, cfg := range map[string]Config{
		"no connection": {Identity: newKey(t)},
		"no identity":   {Conn: conn},
		"short key":     {Conn: conn, Identity: newKey(t)[:32]},
		"own type":      {Conn: conn, Identity: newKey(t), Handlers: map[byte]Handler{TypeIntroduction: echo}},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestRunTwiceIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := start(t, newKey(t), newMemnet(0).listen("192.0.2.1:7000"), nil)
		synctest.Wait()
		if err := a.Run(t.Context()); err == nil {
			t.Error("second Run: got no error")
		}
	})
}

func TestRunEndsWhenThePacketConnectionFails(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a, err := New(Config{Conn: pc, Identity: newKey(t)})
	if err != nil {
		t.Fatal(err)
	}
	end := make(chan error, 1)
	go func() { end <- a.Run(t.Context()) }()
	<-a.started
	pc.Close()
	if err := <-end; err == nil {
		t.Error("Run after the socket closed: got nil")
	}
}

func TestEnrolmentNeedsNoIntroduction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		joiner := start(t, newKey(t), n.listen("192.0.2.1:7000"), func(c *Config) { c.Introduce, c.Verify = nil, nil })
		var from netip.AddrPort
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Enrol = func(_ context.Context, sealed []byte, f netip.AddrPort) ([]byte, error) {
				from = f
				if string(sealed) == "bad" {
					return nil, errors.New("bad request")
				}
				return append([]byte("reply to "), sealed...), nil
			}
		})
		got, err := joiner.Enrol(t.Context(), b.addr, []byte("request"))
		if err != nil || string(got) != "reply to request" || from != joiner.addr {
			t.Errorf("enrol: got %q from %v, %v", got, from, err)
		}
		if _, err := joiner.Enrol(t.Context(), b.addr, []byte("bad")); err == nil {
			t.Error("refused enrolment: got no error")
		}
		for _, size := range []int{0, MaxEnrolRequest + 1} {
			if _, err := joiner.Enrol(t.Context(), b.addr, make([]byte, size)); !errors.Is(err, errFrame) {
				t.Errorf("request of %d bytes: got %v, want %v", size, err, errFrame)
			}
		}
		if _, err := joiner.Introduce(t.Context(), b.addr); err == nil {
			t.Error("introduction of a joiner that has none: got no error")
		}
		time.Sleep(time.Second)
		if a, b := openConns(joiner), openConns(b); a != 0 || b != 0 {
			t.Errorf("got %d and %d connections after enrolment, want none", a, b)
		}
		mustCount(t, b, "enrolments", 1)
		mustCount(t, b, "refused_enrolment", 1)
		if len(b.Connected()) != 0 {
			t.Error("a joiner became a peer")
		}
	})
}

func TestEnrolmentConnectionLivesHalfAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		joiner := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Enrol = func(ctx context.Context, _ []byte, _ netip.AddrPort) ([]byte, error) {
				<-ctx.Done() // a redeemer that does not answer
				return nil, ctx.Err()
			}
		})
		begin := time.Now()
		if _, err := joiner.Enrol(t.Context(), b.addr, []byte("request")); err == nil {
			t.Error("got no error")
		}
		if took := time.Since(begin); took > enrolTimeout+time.Second {
			t.Errorf("enrolment ended after %v", took)
		}
	})
}

func TestPeersMayEnrolOthersOverTheirConnection(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Enrol = func(_ context.Context, sealed []byte, _ netip.AddrPort) ([]byte, error) { return sealed, nil }
		})
		a.knows(b)
		s, err := a.OpenStream(t.Context(), b.id, TypeEnrolment)
		if err != nil {
			t.Fatal(err)
		}
		defer s.Close()
		if _, err := s.Write(appendMessage(nil, []byte("forwarded"))); err != nil {
			t.Fatal(err)
		}
		if got, err := readMessage(s, MaxEnrolReply); err != nil || string(got) != "forwarded" {
			t.Errorf("reply: got %q, %v", got, err)
		}
	})
}

func TestStreamsAreBoundedInBytesAndTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		limits := map[byte]Limit{TypeAPI: {Lifetime: 3 * time.Second, Bytes: 1000}}
		type result struct {
			n   int
			err error
			end time.Duration
		}
		results := make(chan result, 1)
		later := false
		read := func(_ context.Context, _ trust.GatewayID, s Stream) {
			begin := time.Now()
			if later {
				_ = s.SetDeadline(time.Now().Add(time.Hour)) // cannot be later than the stream's life
			}
			b, err := io.ReadAll(s)
			results <- result{len(b), err, time.Since(begin)}
		}
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Limits, c.Handlers = limits, map[byte]Handler{TypeAPI: read}
		})
		a.knows(b)
		send := func(bytes int, end bool) result {
			s, err := a.OpenStream(t.Context(), b.id, TypeAPI)
			if err != nil {
				t.Fatal(err)
			}
			defer s.Close()
			if _, err := s.Write(make([]byte, bytes)); err != nil {
				t.Fatal(err)
			}
			if end {
				_ = s.CloseWrite()
			}
			return <-results
		}
		if r := send(1000, true); r.n != 1000 || r.err != nil {
			t.Errorf("1000 bytes: got %d, %v", r.n, r.err)
		}
		if r := send(1001, true); r.n != 1000 || !errors.Is(r.err, ErrTooMuch) {
			t.Errorf("1001 bytes: got %d, %v; want ErrTooMuch", r.n, r.err)
		}
		var timeout net.Error
		for _, later = range []bool{false, true} {
			if r := send(1, false); !errors.As(r.err, &timeout) || !timeout.Timeout() || r.end != 3*time.Second {
				t.Errorf("stream that stays open: got %v after %v, want a timeout after 3 s", r.err, r.end)
			}
		}
		mustCount(t, b, "refused_bytes", 1)
	})
}

func TestCloseInterruptsAWriteThatNobodyReads(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemnet(10 * time.Millisecond)
		a := start(t, newKey(t), n.listen("192.0.2.1:7000"), nil)
		b := start(t, newKey(t), n.listen("192.0.2.2:7000"), func(c *Config) {
			c.Handlers = map[byte]Handler{TypeAPI: func(ctx context.Context, _ trust.GatewayID, _ Stream) { <-ctx.Done() }}
		})
		a.knows(b)
		s, err := a.OpenStream(t.Context(), b.id, TypeAPI)
		if err != nil {
			t.Fatal(err)
		}
		end := make(chan error, 1)
		go func() {
			_, err := s.Write(make([]byte, 10<<20))
			end <- err
		}()
		time.Sleep(time.Second)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		begin := time.Now()
		if err := <-end; err == nil || time.Since(begin) > time.Second {
			t.Errorf("write after Close: got %v after %v, want an error at once", err, time.Since(begin))
		}
	})
}
