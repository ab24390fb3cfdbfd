package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// oddBind is the library's bind as it behaves on hosts that we do not have: it
// opens without error and tells the port that opens says.
type oddBind struct {
	opens  func(asked uint16) (families int, actual uint16, err error)
	failed chan error // what the next read returns; may be nil

	mu     sync.Mutex // guards the fields below
	asked  []uint16
	closed chan struct{}
	marks  []uint32

	sent    []conn.Endpoint
	refuses conn.Endpoint // fails to send there
	fails   error         // of every send
}

func (b *oddBind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.asked = append(b.asked, port)
	families, actual, err := b.opens(port)
	if err != nil {
		return nil, 0, err
	}
	closed := make(chan struct{})
	b.closed = closed
	read := func([][]byte, []int, []conn.Endpoint) (int, error) {
		select {
		case <-closed:
			return 0, net.ErrClosed
		case err := <-b.failed:
			return 0, err
		}
	}
	var fns []conn.ReceiveFunc
	for range families {
		fns = append(fns, read)
	}
	return fns, actual, nil
}

func (b *oddBind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.closed != nil {
		close(b.closed)
		b.closed = nil
	}
	return nil
}

func (b *oddBind) SetMark(mark uint32) error {
	b.marks = append(b.marks, mark)
	return nil
}

func (b *oddBind) Send(_ [][]byte, to conn.Endpoint) error {
	if b.refuses != nil && b.refuses == to {
		return syscall.EINVAL
	}
	b.sent = append(b.sent, to)
	return b.fails
}

func (*oddBind) ParseEndpoint(string) (conn.Endpoint, error) { return nil, errors.New("unused") }
func (*oddBind) BatchSize() int                              { return 1 }
func (b *oddBind) new() conn.Bind                            { return b }
func withoutIPv6(asked uint16) (int, uint16, error)          { return 1, 0, nil }
func withBoth(asked uint16) (int, uint16, error)             { return 2, asked, nil }

func TestHostWithoutIPv6KeepsItsPort(t *testing.T) {
	b := &oddBind{opens: withoutIPv6}
	s, err := openReal(4711, b.new)
	if err != nil {
		t.Fatal(err)
	}
	if s.port() != 4711 || s.lanes() != 1 {
		t.Errorf("port %d, %d lanes; want 4711 and 1", s.port(), s.lanes())
	}
	if err := s.renew(); err != nil || s.port() != 4711 {
		t.Errorf("renewed: port %d, error %v", s.port(), err)
	}
}

func TestHostWithoutIPv6LearnsItsPort(t *testing.T) {
	b := &oddBind{opens: withoutIPv6}
	s, err := openReal(0, b.new)
	if err != nil {
		t.Fatal(err)
	}
	if s.port() == 0 || b.asked[len(b.asked)-1] != s.port() {
		t.Errorf("port %d, asked for %v", s.port(), b.asked)
	}
}

func TestHostWithoutIPv4GetsTheRightPort(t *testing.T) {
	probe, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Fatal(err)
	}
	want := netAddrPort(probe.LocalAddr()).Port()
	if err := probe.Close(); err != nil {
		t.Fatal(err)
	}
	b := &oddBind{opens: func(uint16) (int, uint16, error) { return 1, 33333, nil }}
	for _, port := range []uint16{want, 0} {
		s, err := openReal(port, b.new)
		if err != nil {
			t.Fatal(err)
		}
		if s.port() == 33333 || s.port() == 0 || (port != 0 && s.port() != port) {
			t.Errorf("asked for %d, got %d", port, s.port())
		}
		if b.closed != nil {
			t.Error("the library's socket is left open")
		}
		if err := s.close(); err != nil {
			t.Error(err)
		}
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	for _, network := range []string{"udp4", "udp6"} {
		taken, err := net.ListenPacket(network, ":0")
		if err != nil {
			t.Fatal(err)
		}
		defer taken.Close()
		port := netAddrPort(taken.LocalAddr()).Port()
		p, err := Open(t.Context(), Config{Mesh: testMesh, Port: port})
		if err == nil {
			p.Close()
		}
		if !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(fmt.Sprint(err), fmt.Sprintf("udp port %d", port)) {
			t.Errorf("%s port %d in use: %v", network, port, err)
		}
	}
}

func TestRenewWaitsForItsPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		taken := 0
		b := &oddBind{opens: func(port uint16) (int, uint16, error) {
			if taken--; taken > 0 {
				return 0, 0, syscall.EADDRINUSE
			}
			return 2, port, nil
		}}
		s, err := openReal(4711, b.new)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.setMark(7); err != nil {
			t.Fatal(err)
		}
		taken = 20
		start := time.Now()
		if err := s.renew(); err != nil || time.Since(start) == 0 {
			t.Errorf("port taken for a second: %v after %v", err, time.Since(start))
		}
		if len(b.marks) != 2 || b.marks[1] != 7 {
			t.Errorf("marks %v, want 7 set again", b.marks)
		}
		taken = 1000
		if err := s.renew(); !errors.Is(err, syscall.EADDRINUSE) || !strings.Contains(err.Error(), "4711") {
			t.Errorf("port taken for good: %v", err)
		}
		if _, _, err := s.receiver(0); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("receiver after that: %v", err)
		}
	})
}

// newOddPort makes a Port over b.
func newOddPort(t *testing.T, b *oddBind) *Port {
	t.Helper()
	p, err := Open(t.Context(), Config{Mesh: testMesh, ListenPacket: newMemNet().listen("192.0.2.1"), Port: 4711})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.sock.close(); err != nil {
		t.Fatal(err)
	}
	if p.sock, err = openReal(4711, b.new); err != nil {
		t.Fatal(err)
	}
	p.lanes = []*lane{newLane(), newLane()}
	return p
}

func TestRunEndsWhenThePortIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		lost := false
		b := &oddBind{opens: func(port uint16) (int, uint16, error) {
			if lost {
				return 0, 0, syscall.EADDRINUSE
			}
			return 2, port, nil
		}}
		p := newOddPort(t, b)
		defer p.Close()
		ended := make(chan error, 1)
		go func() { ended <- p.Run(t.Context()) }() // ends with the error
		synctest.Wait()
		if _, _, err := p.Bind().Open(0); err != nil {
			t.Fatal(err)
		}
		lost = true
		if err := p.Bind().Close(); !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("close: %v", err)
		}
		if err := <-ended; !errors.Is(err, syscall.EADDRINUSE) {
			t.Errorf("run: %v, want the port in use", err)
		}
	})
}

func TestRunSurvivesSomeReadErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &oddBind{opens: withBoth, failed: make(chan error)}
		p := newOddPort(t, b)
		defer p.Close()
		ended := make(chan error, 1)
		go func() { ended <- p.Run(t.Context()) }() // ends with the last error
		for range maxReadErrors - 2 {
			b.failed <- errors.New("out of buffers")
		}
		select {
		case err := <-ended:
			t.Fatalf("run ended: %v", err)
		default:
		}
		for {
			select {
			case b.failed <- errors.New("out of buffers"):
				continue
			case err := <-ended:
				if err == nil {
					t.Error("run ended without an error though a lane cannot be read")
				}
			}
			break
		}
		if got := p.Counters().ReceiveErrors; got < maxReadErrors {
			t.Errorf("%d read errors counted", got)
		}
	})
}

func TestDeviceReadErrorsArePassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := &oddBind{opens: withBoth, failed: make(chan error)}
		p := newOddPort(t, b)
		defer p.Close()
		fns, _, err := p.Bind().Open(0)
		if err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		failure := errors.New("out of buffers")
		for range 3 {
			go func() { // ends with the error
				_, err := fns[0](make([][]byte, 1), make([]int, 1), make([]conn.Endpoint, 1))
				ended <- err
			}()
			b.failed <- failure
			if err := <-ended; !errors.Is(err, failure) {
				t.Errorf("read: %v, want %v", err, failure)
			}
		}
	})
}

func TestOpenClosesWhatHasNoPort(t *testing.T) {
	n := newMemNet()
	_, err := Open(t.Context(), Config{Mesh: testMesh, ListenPacket: n.listen("192.0.2.1")})
	if err == nil || len(n.conns) != 0 {
		t.Errorf("port 0 of a packet connection: error %v, %d left open", err, len(n.conns))
	}
	refused := errors.New("refused")
	_, err = Open(t.Context(), Config{Mesh: testMesh, ListenPacket: func(context.Context, uint16) (net.PacketConn, error) { return nil, refused }})
	if !errors.Is(err, refused) {
		t.Errorf("error %v, want %v", err, refused)
	}
}

func TestEndpointsAreVirtual(t *testing.T) {
	n := newMemNet()
	a, b := newGateway(t, n, 1), newGateway(t, n, 2)
	for _, text := range []string{"192.0.2.2:51820", "peer:", "peer:xyz", "peer:" + strings.ToUpper(a.EndpointText(b.own.ID)[5:])[:31] + "G", ""} {
		if e, err := a.Bind().ParseEndpoint(text); err == nil {
			t.Errorf("endpoint %q is taken as %v", text, e)
		}
	}
	e := a.bind.endpointOf(t, b.own.ID)
	if e != a.bind.endpointOf(t, b.own.ID) {
		t.Error("two endpoints for one peer")
	}
	packet := []byte{4, 0, 0, 0, 1, 2, 3}
	if err := a.Bind().Send([][]byte{packet, packet}, e); err != nil {
		t.Errorf("send without path: %v", err)
	}
	if got := a.Counters().NoPath; got != 2 || len(n.sentBy(a.addr)) != 0 {
		t.Errorf("%d counted without path, %d sent; want 2 and 0", got, len(n.sentBy(a.addr)))
	}
	if _, err := netip.ParseAddrPort(e.DstToString()); err != nil {
		t.Errorf("without path: %v", err)
	}
	a.SetPath(b.own.ID, netip.MustParseAddrPort("[::ffff:192.0.2.2]:51820"))
	if e.DstToString() != "192.0.2.2:51820" || e.DstIP() != netip.MustParseAddr("192.0.2.2") || len(e.DstToBytes()) == 0 {
		t.Errorf("path %s %v", e.DstToString(), e.DstIP())
	}
	e.ClearSrc()
	if err := a.Bind().Send([][]byte{packet}, e); err != nil {
		t.Error(err)
	}
	if err := a.Bind().Send([][]byte{packet}, a.sock.endpoint(b.addr)); err != nil { // as for cookies
		t.Error(err)
	}
	sent := n.sentBy(a.addr)
	if len(sent) != 2 || sent[0].to != b.addr || sent[1].to != b.addr {
		t.Errorf("sent %+v, want two packets to %v", sent, b.addr)
	}
	a.SetPath(b.own.ID, netip.AddrPort{})
	if err := a.Bind().Send([][]byte{packet}, e); err != nil || len(n.sentBy(a.addr)) != 2 {
		t.Errorf("sent after the path was taken away; error %v", err)
	}
}
