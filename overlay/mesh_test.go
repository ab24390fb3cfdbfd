package overlay_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
)

// mustInit founds a mesh in memory.
func mustInit(t testing.TB, site string, prefixes ...string) *overlay.MemStore {
	t.Helper()
	store := new(overlay.MemStore)
	if _, err := overlay.Init(store, overlay.InitRequest{Mesh: "test", Site: site, Prefixes: mustPrefixes(t, prefixes...)}); err != nil {
		t.Fatal(err)
	}
	return store
}

func mustPrefixes(t testing.TB, texts ...string) []netip.Prefix {
	t.Helper()
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, p)
	}
	return out
}

// mustOpen starts a gateway that ends with the test.
func mustOpen(t testing.TB, cfg overlay.Config) *overlay.Mesh {
	t.Helper()
	if testing.Verbose() && os.Getenv("MESH_LOG") != "" {
		cfg.Logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	m, err := overlay.Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return m
}

// mustJoin makes a further gateway through a ticket of issuer.
func mustJoin(t testing.TB, issuer *overlay.Mesh, site string, prefixes ...string) *overlay.MemStore {
	t.Helper()
	ticket, err := issuer.Ticket(overlay.TicketRequest{Site: site, Prefixes: mustPrefixes(t, prefixes...)})
	if err != nil {
		t.Fatal(err)
	}
	store := new(overlay.MemStore)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	parsed, err := overlay.ParseTicket(ticket.Text())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := overlay.Join(ctx, store, parsed, overlay.JoinOptions{}); err != nil {
		t.Fatal(err)
	}
	return store
}

func loopback() []netip.Addr { return []netip.Addr{netip.MustParseAddr("127.0.0.1")} }

// mustSee waits until a peer of m answers.
func mustSee(t testing.TB, m *overlay.Mesh) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		s := m.Status()
		if slices.ContainsFunc(s.Peers, func(p overlay.PeerStatus) bool { return p.State == overlay.PeerUp }) {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("no peer up: %+v", s)
		}
		<-time.After(20 * time.Millisecond)
	}
}

func TestTwoGatewaysCarryTCPInsideOneProcess(t *testing.T) {
	a := mustOpen(t, overlay.Config{Store: mustInit(t, "one", "10.1.0.0/16"), LocalAddrs: loopback})
	b := mustOpen(t, overlay.Config{Store: mustJoin(t, a, "two", "10.2.0.0/16"), LocalAddrs: loopback})
	mustSee(t, a)
	mustSee(t, b)

	l, err := a.Listen("tcp", ":80")
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(conn, conn)
		_ = conn.Close()
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := b.DialContext(ctx, "tcp", net.JoinHostPort(a.Status().Self.Overlay.String(), "80"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Write([]byte("hello")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 5)
	if _, err := io.ReadFull(conn, buf); err != nil {
		t.Fatal(err)
	}
	if string(buf) != "hello" {
		t.Errorf("echo: got %q", buf)
	}
	if err := errors.Join(conn.Close(), l.Close()); err != nil {
		t.Error(err)
	}
}
