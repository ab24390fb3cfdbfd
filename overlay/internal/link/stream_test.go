package link

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"
)

func TestStreamCarriesPacketsBothWays(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newGateway(t, n, 1), newGateway(t, n, 2) // strangers of one mesh
		a.run(t)
		b.run(t)
		if _, err := a.StreamConn().WriteTo(make([]byte, MaxStream), netUDP(b.addr)); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 2000)
		size, from, err := b.StreamConn().ReadFrom(buf)
		if err != nil || size != MaxStream || from.String() != a.addr.String() {
			t.Fatalf("%d bytes from %v, error %v", size, from, err)
		}
		if _, err := b.StreamConn().WriteTo([]byte("back"), from); err != nil {
			t.Fatal(err)
		}
		if size, from, err = a.StreamConn().ReadFrom(buf); err != nil || string(buf[:size]) != "back" || from.String() != b.addr.String() {
			t.Errorf("%q from %v, error %v", buf[:size], from, err)
		}
		if _, err := a.StreamConn().WriteTo(make([]byte, MaxStream+1), netUDP(b.addr)); !errors.Is(err, ErrOversize) {
			t.Errorf("packet above the limit: %v, want ErrOversize", err)
		}
	})
}

func TestStreamQueueIsBounded(t *testing.T) {
	n := newMemNet()
	a := newGateway(t, n, 1)
	d := retag([]byte("\xB0\x01        packet"))
	for i := range 2000 {
		from := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)}), 1)
		a.divert(d, a.sock.endpoint(from))
	}
	c := a.Counters()
	if c.Stream != streamQueue || c.QueueFull != 2000-streamQueue {
		t.Errorf("%d queued, %d dropped; want %d and %d", c.Stream, c.QueueFull, streamQueue, 2000-streamQueue)
	}
	if got := len(a.stream.sources); got > maxSources {
		t.Errorf("%d sources remembered, want at most %d", got, maxSources)
	}
	if err := a.StreamConn().Close(); err != nil {
		t.Fatal(err)
	}
	a.divert(d, a.sock.endpoint(a.addr))
	if got := a.Counters().NoReader; got != 1 {
		t.Errorf("%d counted without reader, want 1", got)
	}
}

func TestStreamDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a := newGateway(t, n, 1)
		c := a.StreamConn()
		read := func() error {
			_, _, err := c.ReadFrom(make([]byte, 10))
			return err
		}
		set := func(d time.Duration) {
			t.Helper()
			at := time.Time{}
			if d != 0 {
				at = time.Now().Add(d)
			}
			if err := c.SetReadDeadline(at); err != nil {
				t.Fatal(err)
			}
		}
		set(-time.Second)
		if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("past deadline: %v", err)
		}
		set(time.Second)
		start := time.Now()
		if err := read(); !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Second {
			t.Errorf("deadline in a second: %v after %v", err, time.Since(start))
		}
		set(time.Hour)
		ended := make(chan error, 1)
		go func() { ended <- read() }() // ended by the deadline, moved while it waits
		synctest.Wait()
		start = time.Now()
		set(time.Minute)
		if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("deadline moved: %v after %v", err, time.Since(start))
		}
		set(0)
		go func() { ended <- read() }() // ended by Close
		time.Sleep(time.Hour)
		select {
		case err := <-ended:
			t.Fatalf("without deadline: %v", err)
		default:
		}
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed: %v", err)
		}
		if _, err := c.WriteTo([]byte("x"), netUDP(a.addr)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write after close: %v", err)
		}
	})
}

func TestStreamEndsWithPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a := newGateway(t, n, 1)
		ended := make(chan error, 1)
		go func() { // ended by Close
			_, _, err := a.StreamConn().ReadFrom(make([]byte, 10))
			ended <- err
		}()
		synctest.Wait()
		if err := a.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errors.Is(err, net.ErrClosed) {
			t.Errorf("read: %v, want net.ErrClosed", err)
		}
		if _, err := a.StreamConn().WriteTo([]byte("x"), netUDP(a.addr)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("write: %v, want net.ErrClosed", err)
		}
	})
}

// quic-go must not find a way to the socket behind the connection.
func TestStreamConnHidesTheSocket(t *testing.T) {
	var c any = newGateway(t, newMemNet(), 1).StreamConn()
	if _, ok := c.(quic.OOBCapablePacketConn); ok {
		t.Error("quic-go would read packets itself")
	}
	if _, ok := c.(interface{ SyscallConn() }); ok {
		t.Error("has SyscallConn")
	}
}

func TestQUICRunsOverStreamConn(t *testing.T) {
	t.Run("memory", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) { echoOverQUIC(t, newMemNet()) })
	})
	t.Run("loopback", func(t *testing.T) { echoOverQUIC(t, nil) })
}

func echoOverQUIC(t *testing.T, n *memNet) {
	a, b := newGateway(t, n, 1), newGateway(t, n, 2)
	a.run(t)
	b.run(t)
	certificate := newCertificate(t)
	tlsConfig := &tls.Config{
		Certificates: []tls.Certificate{certificate}, NextProtos: []string{"test"},
		InsecureSkipVerify: true, // the test is about packets
	}
	quicConfig := &quic.Config{InitialPacketSize: 1200, DisablePathMTUDiscovery: true}
	server := &quic.Transport{Conn: b.StreamConn()}
	client := &quic.Transport{Conn: a.StreamConn()}
	defer server.Close()
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	listener, err := server.Listen(tlsConfig, quicConfig)
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	served := make(chan error, 1)
	go func() { served <- echoOne(ctx, listener) }() // ends with the stream or ctx
	c, err := client.Dial(ctx, netUDP(b.addr), tlsConfig, quicConfig)
	if err != nil {
		t.Fatal(err)
	}
	s, err := c.OpenStreamSync(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const size = 300_000
	wrote := make(chan error, 1)
	go func() { // ends with the stream
		_, err := s.Write(make([]byte, size))
		wrote <- errors.Join(err, s.Close())
	}()
	back, err := io.ReadAll(s)
	if err != nil || len(back) != size {
		t.Errorf("%d bytes came back, error %v", len(back), err)
	}
	if err := errors.Join(<-wrote, <-served, c.CloseWithError(0, "")); err != nil {
		t.Error(err)
	}
	for _, g := range []*gateway{a, b} {
		if c := g.Counters(); c.Oversize != 0 || c.Tag != 0 {
			t.Errorf("counters %+v", c)
		}
	}
}

func echoOne(ctx context.Context, l *quic.Listener) error {
	c, err := l.Accept(ctx)
	if err != nil {
		return err
	}
	s, err := c.AcceptStream(ctx)
	if err != nil {
		return err
	}
	_, err = io.Copy(s, s)
	return errors.Join(err, s.Close())
}

func newCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	public, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}
}
