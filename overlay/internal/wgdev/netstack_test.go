package wgdev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
)

// Gateway n of the tests below has the overlay address fd00::n and, in the
// prefixes that it announces, 10.n.0.1 and 2001:db8:n::1.
func stackAddresses(n byte) (overlay, v4, v6 netip.Addr) {
	return netip.AddrFrom16([16]byte{0xfd, 15: n}),
		netip.AddrFrom4([4]byte{10, n, 0, 1}),
		netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 4: 0, 5: n, 15: 1})
}

func newStackDevice(t testing.TB, h *hub, n byte) Device {
	t.Helper()
	overlay, v4, v6 := stackAddresses(n)
	d, err := Open(Config{
		Kind: InProcess, Addresses: []netip.Addr{overlay, v4, v6},
		Bind: h.bind(testID(n)), PrivateKey: testKey(n), EndpointText: endpointText,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeDevice(t, d) })
	return d
}

// newStackPair returns two network stacks that reach each other.
func newStackPair(t testing.TB) (a, b Device) {
	t.Helper()
	h := newHub()
	a, b = newStackDevice(t, h, 1), newStackDevice(t, h, 2)
	for n, d := range map[byte]Device{1: b, 2: a} {
		mustApply(t, d, addPeer(n, fmt.Sprintf("fd00::%d/128", n), fmt.Sprintf("10.%d.0.0/16", n), fmt.Sprintf("2001:db8:%d::/48", n)))
	}
	return a, b
}

// echo sends back what comes in on every connection until l is closed.
func echo(l net.Listener) {
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		conns.Go(func() {
			defer conn.Close()
			_, _ = io.Copy(conn, conn) // until the other side has enough
		})
	}
}

func mustListen(t testing.TB, d Device, network, address string) net.Listener {
	t.Helper()
	l, err := d.Netstack().Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l
}

func mustDial(t testing.TB, d Device, network, address string) net.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	conn, err := d.Netstack().DialContext(ctx, network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return conn
}

func TestNetstackCarriesTCP(t *testing.T) {
	noGoroutinesLeft(t)
	a, b := newStackPair(t)
	message := bytes.Repeat([]byte("planetmesh"), 100_000) // a megabyte
	for _, test := range []struct{ listen, at, dial string }{
		{"tcp", "[fd00::2]:80", "[fd00::2]:80"},
		{"tcp", "10.2.0.1:80", "10.2.0.1:80"},
		{"tcp6", "[2001:db8:2::1]:80", "[2001:db8:2::1]:80"},
		{"tcp", ":81", "10.2.0.1:81"},
		{"tcp", ":82", "[fd00::2]:82"},
		{"tcp", "[::]:83", "10.2.0.1:83"},
		{"tcp4", "0.0.0.0:84", "10.2.0.1:84"},
		{"tcp6", "[::]:85", "[2001:db8:2::1]:85"},
	} {
		t.Run(test.listen+" "+test.at+" "+test.dial, func(t *testing.T) {
			l := mustListen(t, b, test.listen, test.at)
			var served sync.WaitGroup
			served.Go(func() { echo(l) })
			conn := mustDial(t, a, "tcp", test.dial)
			var wrote sync.WaitGroup
			wrote.Go(func() {
				if _, err := conn.Write(message); err != nil {
					t.Error(err)
				}
				if err := conn.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
					t.Error(err)
				}
			})
			got, err := io.ReadAll(conn)
			wrote.Wait()
			if err != nil || !bytes.Equal(got, message) {
				t.Errorf("%d bytes, %v, want %d", len(got), err, len(message))
			}
			if got := conn.RemoteAddr().String(); got != test.dial {
				t.Errorf("remote address %s, want %s", got, test.dial)
			}
			if err := errors.Join(conn.Close(), l.Close()); err != nil {
				t.Error(err)
			}
			within(t, "the server", served.Wait)
		})
	}
}

func TestNetstackFamiliesStayApart(t *testing.T) {
	a, b := newStackPair(t)
	mustListen(t, b, "tcp4", ":80")
	mustListen(t, b, "tcp6", ":81")
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	for _, address := range []string{"[fd00::2]:80", "10.2.0.1:81", "10.2.0.1:82"} {
		if _, err := a.Netstack().DialContext(ctx, "tcp", address); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("%s: got %v, want %v", address, err, syscall.ECONNREFUSED)
		}
	}
}

func TestNetstackCarriesUDP(t *testing.T) {
	noGoroutinesLeft(t)
	a, b := newStackPair(t)
	for _, test := range []struct{ listen, at, to, from string }{
		{"udp", "[fd00::2]:53", "[fd00::2]:53", "[fd00::1]"},
		{"udp", "10.2.0.1:53", "10.2.0.1:53", "10.1.0.1"},
		{"udp", ":54", "10.2.0.1:54", "10.1.0.1"},
		{"udp", ":55", "[2001:db8:2::1]:55", "[2001:db8:1::1]"},
		{"udp4", ":56", "10.2.0.1:56", "10.1.0.1"},
	} {
		t.Run(test.listen+" "+test.at+" "+test.to, func(t *testing.T) {
			server, err := b.Netstack().ListenPacket(test.listen, test.at)
			if err != nil {
				t.Fatal(err)
			}
			defer server.Close()
			client := mustDial(t, a, "udp", test.to)
			if err := server.SetDeadline(time.Now().Add(10 * time.Second)); err != nil {
				t.Fatal(err)
			}
			if _, err := client.Write([]byte("question")); err != nil {
				t.Fatal(err)
			}
			b := make([]byte, 100)
			n, from, err := server.ReadFrom(b)
			if err != nil || string(b[:n]) != "question" {
				t.Fatalf("got %q, %v", b[:n], err)
			}
			ip := from.(*net.UDPAddr).IP.String()
			if strings.Trim(test.from, "[]") != ip {
				t.Errorf("from %s, want %s", ip, test.from)
			}
			if _, err := server.WriteTo([]byte("answer"), from); err != nil {
				t.Fatal(err)
			}
			if n, err = client.Read(b); err != nil || string(b[:n]) != "answer" {
				t.Errorf("got %q, %v", b[:n], err)
			}
		})
	}
}

func TestNetstackUDPTakesAnyAddressThatReadsAsOne(t *testing.T) {
	a, b := newStackPair(t)
	server, err := b.Netstack().ListenPacket("udp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	client, err := a.Netstack().ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	for _, to := range []net.Addr{
		&net.UDPAddr{IP: net.IPv4(10, 2, 0, 1), Port: 53}, // 16 bytes long
		&net.TCPAddr{IP: net.IPv4(10, 2, 0, 1).To4(), Port: 53},
		net.UDPAddrFromAddrPort(netip.MustParseAddrPort("[fd00::2]:53")),
	} {
		if _, err := client.WriteTo([]byte("x"), to); err != nil {
			t.Errorf("%v: %v", to, err)
			continue
		}
		if err := server.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
			t.Fatal(err)
		}
		if _, _, err := server.ReadFrom(make([]byte, 1)); err != nil {
			t.Errorf("%v: %v", to, err)
		}
	}
	for _, to := range []net.Addr{nil, &net.UnixAddr{Name: "x"}, (*net.UDPAddr)(nil)} {
		if _, err := client.WriteTo([]byte("x"), to); err == nil {
			t.Errorf("%v: no error", to)
		}
	}
}

func TestNetstackServesHTTP(t *testing.T) {
	noGoroutinesLeft(t)
	a, b := newStackPair(t)
	l := mustListen(t, b, "tcp", ":80")
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s", r.RemoteAddr[:strings.LastIndex(r.RemoteAddr, ":")])
	})}
	var serving sync.WaitGroup
	serving.Go(func() {
		if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			t.Error(err)
		}
	})
	transport := &http.Transport{DialContext: a.Netstack().DialContext}
	client := &http.Client{Transport: transport, Timeout: 10 * time.Second}
	resp, err := client.Get("http://[fd00::2]/")
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(resp.Body)
	if want := "hello [fd00::1]"; err != nil || string(body) != want {
		t.Errorf("got %q, %v, want %q", body, err, want)
	}
	if err := errors.Join(resp.Body.Close(), server.Close()); err != nil {
		t.Error(err)
	}
	serving.Wait()
	transport.CloseIdleConnections()
}

func TestNetstackAddressesCanChange(t *testing.T) {
	noGoroutinesLeft(t)
	a, b := newStackPair(t)
	overlay, v4, _ := stackAddresses(2)
	l := mustListen(t, b, "tcp", ":80")
	go echo(l) // ends when the test closes everything
	kept := mustDial(t, a, "tcp", "[fd00::2]:80")

	extra := netip.MustParseAddr("10.2.9.9")
	if err := b.Netstack().SetAddresses([]netip.Addr{overlay, extra}); err != nil {
		t.Fatal(err)
	}
	if got := b.Netstack().Addresses(); len(got) != 2 || got[0] != overlay || got[1] != extra {
		t.Errorf("addresses %v", got)
	}
	mustDial(t, a, "tcp", "10.2.9.9:80")
	if _, err := kept.Write([]byte("still there")); err != nil {
		t.Error(err)
	}
	got := make([]byte, len("still there"))
	if _, err := io.ReadFull(kept, got); err != nil || string(got) != "still there" {
		t.Errorf("connection of an address that stays: %q, %v", got, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.Netstack().DialContext(ctx, "tcp", netip.AddrPortFrom(v4, 80).String()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("address that went: got %v, want %v", err, context.DeadlineExceeded)
	}
	if err := b.Netstack().SetAddresses([]netip.Addr{overlay, netip.MustParseAddr("fe80::1%eth0")}); err == nil {
		t.Error("an address with a zone is accepted")
	}
	if got := b.Netstack().Addresses(); len(got) != 2 {
		t.Errorf("addresses after a refusal: %v", got)
	}
}

func TestNetstackErrorsAreThoseOfPackageNet(t *testing.T) {
	noGoroutinesLeft(t)
	a, b := newStackPair(t)
	s := a.Netstack()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.DialContext(ctx, "tcp", "10.2.0.1:1"); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: got %v", err)
	}
	var dns *net.DNSError
	if _, err := s.DialContext(t.Context(), "tcp", "node01:80"); !errors.As(err, &dns) || dns.Name != "node01" || !dns.IsNotFound {
		t.Errorf("name: got %v", err)
	}
	var unknown net.UnknownNetworkError
	if _, err := s.DialContext(t.Context(), "unix", "/run/x"); !errors.As(err, &unknown) {
		t.Errorf("network: got %v", err)
	}
	for _, address := range []string{"10.2.0.1", "10.2.0.1:99999", ":80", "[::]:80", "[fe80::1%eth0]:80", "10.2.0.1:nonsense"} {
		if _, err := s.DialContext(t.Context(), "tcp", address); err == nil {
			t.Errorf("dial %s: no error", address)
		}
	}
	for _, wrong := range []struct{ network, address string }{{"udp", ":80"}, {"tcp4", "[fd00::1]:80"}, {"tcp6", "10.1.0.1:80"}, {"tcp", "x"}} {
		if _, err := s.Listen(wrong.network, wrong.address); err == nil {
			t.Errorf("listen %v: no error", wrong)
		}
	}
	if _, err := s.ListenPacket("tcp", ":80"); err == nil {
		t.Error("listen for packets on tcp: no error")
	}
	if _, err := s.Listen("tcp", "10.9.0.1:80"); !errors.Is(err, syscall.EADDRNOTAVAIL) {
		t.Errorf("foreign address: got %v, want %v", err, syscall.EADDRNOTAVAIL)
	}

	l := mustListen(t, b, "tcp", ":80")
	if _, err := b.Netstack().Listen("tcp", ":80"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("port in use: got %v, want %v", err, syscall.EADDRINUSE)
	}
	conn := mustDial(t, a, "tcp", "10.2.0.1:80")
	other, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := conn.SetReadDeadline(time.Now().Add(time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	_, err = conn.Read(make([]byte, 1))
	var timeout net.Error
	if !errors.Is(err, os.ErrDeadlineExceeded) || !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("deadline: got %v", err)
	}
	if err := conn.SetReadDeadline(time.Time{}); err != nil {
		t.Fatal(err)
	}
	packets, err := s.ListenPacket("udp", ":0")
	if err != nil {
		t.Fatal(err)
	}
	// Those who wait are woken by Close.
	var waiting sync.WaitGroup
	for name, wait := range map[string]func() error{
		"read":   func() error { _, err := conn.Read(make([]byte, 1)); return err },
		"accept": func() error { return waitAccept(l) },
		"packet": func() error { _, _, err := packets.ReadFrom(make([]byte, 1)); return err },
	} {
		waiting.Go(func() {
			if err := wait(); !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: got %v, want %v", name, err, net.ErrClosed)
			}
		})
	}
	if err := errors.Join(conn.Close(), l.Close(), packets.Close()); err != nil {
		t.Error(err)
	}
	within(t, "waking", waiting.Wait)
	if err := conn.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("second close: got %v", err)
	}
	if _, err := conn.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write: got %v", err)
	}
}

// waitAccept waits for a connection that never comes.
func waitAccept(l net.Listener) error {
	c, err := l.Accept()
	if err == nil {
		return errors.Join(errors.New("a connection"), c.Close())
	}
	return err
}

func TestNetstackEndsWithItsDevice(t *testing.T) {
	noGoroutinesLeft(t)
	a, b := newStackPair(t)
	l := mustListen(t, b, "tcp", ":80")
	client := mustDial(t, a, "tcp", "10.2.0.1:80")
	server, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := client.Write([]byte("unread")); err != nil {
		t.Fatal(err)
	}
	packets, err := b.Netstack().ListenPacket("udp", ":53")
	if err != nil {
		t.Fatal(err)
	}
	var waiting sync.WaitGroup
	for name, wait := range map[string]func() error{
		"read":    func() error { _, err := io.Copy(io.Discard, server); return err },
		"accept":  func() error { return waitAccept(l) },
		"packet":  func() error { _, _, err := packets.ReadFrom(make([]byte, 1)); return err },
		"connect": func() error { _, err := b.Netstack().DialContext(t.Context(), "tcp", "10.9.9.9:1"); return err },
	} {
		waiting.Go(func() {
			if err := wait(); !errors.Is(err, ErrClosed) || !errors.Is(err, net.ErrClosed) {
				t.Errorf("%s: got %v, want %v", name, err, ErrClosed)
			}
		})
	}
	closeDevice(t, b)
	within(t, "waking", waiting.Wait)
	s := b.Netstack()
	_, dial := s.DialContext(t.Context(), "tcp", "10.1.0.1:80")
	_, listen := s.Listen("tcp", ":81")
	_, packet := s.ListenPacket("udp", ":81")
	for _, err := range []error{dial, listen, packet, s.SetAddresses(nil)} {
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v, want %v", err, ErrClosed)
		}
	}
	_, _, _ = server.Close(), l.Close(), packets.Close()
}

// A stack is closed while it sends as fast as it can, and while connections are
// being made: nothing may panic, hang or be left over.
func TestNetstackClosesUnderLoad(t *testing.T) {
	for range 10 {
		func() {
			noGoroutinesLeft(t)
			a, b := newStackPair(t)
			l := mustListen(t, b, "tcp", ":80")
			var users sync.WaitGroup
			users.Go(func() { echo(l) })
			for range 3 {
				conn := mustDial(t, a, "tcp", "[fd00::2]:80")
				users.Go(func() { _, _ = io.Copy(io.Discard, conn) })
				users.Go(func() {
					for {
						if _, err := conn.Write(make([]byte, 1<<16)); err != nil {
							return
						}
					}
				})
			}
			users.Go(func() {
				for {
					conn, err := a.Netstack().DialContext(context.Background(), "tcp", "10.2.0.1:80")
					if errors.Is(err, ErrClosed) {
						return
					}
					if err == nil {
						_ = conn.Close()
					}
				}
			})
			eventually(t, "load", func() bool { return a.Stats()[publicKey(2)].Tx > 1<<20 }, func() any { return a.Stats() })
			closeDevice(t, a)
			closeDevice(t, b)
			within(t, "users", users.Wait)
		}()
	}
}

func TestNetstackReachesOnlyPeers(t *testing.T) {
	a, b := newStackPair(t)
	mustListen(t, b, "tcp", ":80")
	mustApply(t, a, engine.Changes{{Op: engine.RemovePrefix, Peer: testID(2), Key: publicKey(2), Prefix: netip.MustParsePrefix("10.2.0.0/16")}})
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := a.Netstack().DialContext(ctx, "tcp", "10.2.0.1:80"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
	mustDial(t, a, "tcp", "[fd00::2]:80")
}

func BenchmarkNetstackTCP(b *testing.B) {
	client, server := newStackPair(b)
	l := mustListen(b, server, "tcp", ":80")
	var received sync.WaitGroup
	received.Go(func() {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(io.Discard, conn)
		_ = conn.Close()
	})
	conn, err := client.Netstack().DialContext(b.Context(), "tcp", "[fd00::2]:80")
	if err != nil {
		b.Fatal(err)
	}
	block := make([]byte, 1<<16)
	b.SetBytes(int64(len(block)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(block); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	_ = conn.Close()
	received.Wait()
}
