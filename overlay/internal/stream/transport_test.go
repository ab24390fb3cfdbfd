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
