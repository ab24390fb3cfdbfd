package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
)

// patience is how long real sockets may take in a test.
const patience = 20 * time.Second

// await polls until ok and fails with what it was waiting for.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
		<-time.After(time.Millisecond)
	}
}

// readers runs receive functions as a device does.
type readers struct {
	wg  sync.WaitGroup
	got chan []byte // packets
}

func (r *readers) start(t testing.TB, bind conn.Bind, fns []conn.ReceiveFunc) {
	r.got = make(chan []byte, 10000)
	for _, fn := range fns {
		r.wg.Go(func() { // ends with net.ErrClosed
			n := bind.BatchSize()
			ba := newBatch(n)
			for {
				n, err := fn(ba.bufs, ba.sizes, ba.eps)
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Errorf("receive: %v", err)
					}
					return
				}
				for i, size := range ba.sizes[:n] {
					if size > 0 {
						r.got <- bytes.Clone(ba.bufs[i][:size])
					}
				}
			}
		})
	}
}

// numbered is a packet that looks like WireGuard's.
func numbered(i uint32) []byte {
	return binary.BigEndian.AppendUint32([]byte{4, 0, 0, 0}, i)
}

func TestSocketChangesHandsWithoutLoss(t *testing.T) {
	for _, mode := range []string{"loopback", "memory"} {
		t.Run(mode, func(t *testing.T) {
			var n *memNet
			if mode == "memory" {
				n = newMemNet()
			}
			a, b := newGateway(t, n, 1), newGateway(t, n, 2)
			a.run(t)
			b.run(t)
			introduce(t, a, b)
			port := a.LocalPort()
			send := func(i uint32) {
				t.Helper()
				if err := b.Bind().Send([][]byte{numbered(i)}, b.bind.endpointOf(t, a.own.ID)); err != nil {
					t.Fatal(err)
				}
			}
			for round := range 5 {
				// Nobody has a device: Run counts.
				before := a.Counters().NoDevice
				send(0)
				await(t, "a packet without device", func() bool { return a.Counters().NoDevice == before+1 })
				// With a device everything gets there, from the first packet on, though Run
				// is blocked in the socket.
				fns, got, err := a.Bind().Open(0)
				if err != nil || got != port {
					t.Fatalf("open: port %d, error %v; want %d", got, err, port)
				}
				if _, _, err := a.Bind().Open(0); !errors.Is(err, conn.ErrBindAlreadyOpen) {
					t.Errorf("second open: %v", err)
				}
				var r readers
				r.start(t, a.Bind(), fns)
				for i := range uint32(50) {
					send(i)
				}
				for i := range uint32(50) {
					select {
					case p := <-r.got:
						if !bytes.Equal(p, numbered(i)) {
							t.Fatalf("round %d: packet %x, want %x", round, p, numbered(i))
						}
					case <-time.After(patience):
						t.Fatalf("round %d: packet %d is lost", round, i)
					}
				}
				probeAndWait(t, b, a)
				if err := a.Bind().Close(); err != nil {
					t.Fatal(err)
				}
				r.wg.Wait()
				if _, err := fns[0](make([][]byte, 128), make([]int, 128), make([]conn.Endpoint, 128)); !errors.Is(err, net.ErrClosed) {
					t.Errorf("receive after close: %v", err)
				}
				if err := a.Bind().Close(); err != nil {
					t.Errorf("second close: %v", err)
				}
				probeAndWait(t, b, a)
			}
			if _, _, err := a.Bind().Open(port + 1); err == nil {
				t.Error("another port can be asked for")
			}
			if a.LocalPort() != port {
				t.Errorf("port %d, was %d", a.LocalPort(), port)
			}
		})
	}
}

// probeAndWait has from ask to until there is an answer.
func probeAndWait(t testing.TB, from, to *gateway) {
	t.Helper()
	before := len(from.gotReplies())
	if err := from.SendProbe(to.own.ID, to.addr, [16]byte{1}, ProbeSize); err != nil {
		t.Fatal(err)
	}
	await(t, "a reply", func() bool { return len(from.gotReplies()) > before })
}

func TestDeviceGoesOnWhenRunEnds(t *testing.T) {
	for _, mode := range []string{"loopback", "memory"} {
		t.Run(mode, func(t *testing.T) {
			var n *memNet
			if mode == "memory" {
				n = newMemNet()
			}
			a, b := newGateway(t, n, 1), newGateway(t, n, 2)
			b.SetPath(a.own.ID, a.addr)
			e := b.bind.endpointOf(t, a.own.ID)
			ctx, cancel := context.WithCancel(t.Context())
			ended := make(chan error, 1)
			go func() { ended <- a.Run(ctx) }() // ends with ctx
			await(t, "run to read", func() bool { return int(a.reading.Load()) == len(a.lanes) })
			fns, _, err := a.Bind().Open(0)
			if err != nil {
				t.Fatal(err)
			}
			var r readers
			r.start(t, a.Bind(), fns)
			receive := func() { // the socket may just be renewed
				t.Helper()
				await(t, "a packet", func() bool {
					if err := b.Bind().Send([][]byte{numbered(1)}, e); err != nil {
						t.Fatal(err)
					}
					select {
					case <-r.got:
						return true
					case <-time.After(10 * time.Millisecond):
						return false
					}
				})
			}
			receive()
			// Where two families are read, Run is still blocked in the other one, and
			// ends by renewing the socket under the device.
			_, before, _ := a.sock.receiver(0)
			blocked := a.reading.Load() > 0
			cancel()
			if err := <-ended; err != nil {
				t.Errorf("run: %v", err)
			}
			if _, after, _ := a.sock.receiver(0); (after != before) != blocked {
				t.Errorf("socket renewed %t, though run was blocked in it %t", after != before, blocked)
			}
			receive()
			// The end of the Port is the end of the receive functions.
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
			r.wg.Wait()
			if err := a.Bind().Close(); err != nil {
				t.Errorf("close of the bind after the port: %v", err)
			}
			if _, _, err := a.Bind().Open(0); !errors.Is(err, net.ErrClosed) {
				t.Errorf("open after close: %v", err)
			}
		})
	}
}

func TestPortLeavesNothingBehind(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, n := range []*memNet{nil, newMemNet()} {
		a := newGateway(t, n, 1)
		ended := make(chan error, 1)
		go func() { ended <- a.Run(t.Context()) }() // ends with Close
		fns, _, err := a.Bind().Open(0)
		if err != nil {
			t.Fatal(err)
		}
		var r readers
		r.start(t, a.Bind(), fns)
		port := a.LocalPort()
		for range 2 {
			if err := a.Close(); err != nil {
				t.Fatal(err)
			}
		}
		r.wg.Wait()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		if n == nil {
			again, err := Open(t.Context(), Config{Mesh: testMesh, Port: port})
			if err != nil {
				t.Errorf("the port is not free: %v", err)
			} else if err := again.Close(); err != nil {
				t.Error(err)
			}
		}
		if err := a.SendProbe(a.own.ID, a.addr, [16]byte{}, ProbeSize); err == nil {
			t.Error("a probe is sent after close")
		}
	}
	await(t, "goroutines to end", func() bool { return runtime.NumGoroutine() <= before })
}

// The kernel hands the three datagrams over as one, and the library splits it.
func TestOursInCoalescedBatchIsDiverted(t *testing.T) {
	a, b := newGateway(t, nil, 1), newGateway(t, nil, 2)
	introduce(t, a, b)
	fns, _, err := a.Bind().Open(0)
	if err != nil {
		t.Fatal(err)
	}
	var r readers
	r.start(t, a.Bind(), fns)
	defer func() {
		if err := a.Bind().Close(); err != nil {
			t.Error(err)
		}
		r.wg.Wait()
	}()
	wg := func(i byte) []byte {
		return append([]byte{4, 0, 0, 0}, bytes.Repeat([]byte{i}, ProbeSize-4)...)
	}
	const rounds = 20
	for i := range byte(rounds) {
		var batch [][]byte
		for j := range 3 {
			b0 := make([]byte, ProbeSize, 4096) // room for the library to coalesce
			copy(b0, wg(i))
			if j == 1 {
				clear(b0)
				b.sealProbe(b0, b.peer(a.own.ID).sendKeys(), kindProbe, &Probe{Challenge: [16]byte{i}})
			}
			batch = append(batch, b0)
		}
		if err := b.Bind().Send(batch, b.bind.endpointOf(t, a.own.ID)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			select {
			case p := <-r.got:
				if !bytes.Equal(p, wg(i)) {
					t.Fatalf("packet %x", p)
				}
			case <-time.After(patience):
				t.Fatal("a WireGuard packet is lost")
			}
		}
	}
	await(t, "all probes to be answered", func() bool { return a.Counters().Probes == rounds })
}

func TestPortWorksOverIPv6(t *testing.T) {
	a, b := newGateway(t, nil, 1), newGateway(t, nil, 2)
	a.run(t)
	b.run(t)
	introduce(t, a, b)
	for _, g := range []*gateway{a, b} {
		g.addr = netip.AddrPortFrom(netip.IPv6Loopback(), g.LocalPort())
	}
	probeAndWait(t, a, b)
	got := a.gotReplies()[0]
	if got.From != b.addr || got.Probe.Observed != a.addr {
		t.Errorf("reply from %v that saw %v, want %v and %v", got.From, got.Probe.Observed, b.addr, a.addr)
	}
}

// On a host with more than one address the answer comes from the one that was
// asked, where the library tells us which (it does not with receive offload). What
// counts here is that the endpoint a packet came with is used for the answer.
func TestAnswersUseTheEndpointThatAsked(t *testing.T) {
	b := &oddBind{opens: withBoth}
	p := newOddPort(t, b)
	defer p.Close()
	peer := netip.MustParseAddrPort("192.0.2.9:51820")
	from := &conn.StdNetEndpoint{AddrPort: peer}
	write := func() conn.Endpoint {
		t.Helper()
		if _, err := p.StreamConn().WriteTo([]byte("back"), netUDP(peer)); err != nil {
			t.Fatal(err)
		}
		return b.sent[len(b.sent)-1]
	}
	if got := write(); got == conn.Endpoint(from) || endpointAddr(got) != peer {
		t.Errorf("before a packet came: sent to %v", got)
	}
	p.divert(retag([]byte("\xB0\x01        packet")), from)
	if got := write(); got != conn.Endpoint(from) {
		t.Errorf("sent to %v, want the endpoint that the packet came with", got)
	}
	b.refuses = from // as if the local address were gone
	for range 2 {
		if got := write(); got == conn.Endpoint(from) || endpointAddr(got) != peer {
			t.Errorf("after the endpoint was refused: sent to %v", got)
		}
		b.refuses = nil
	}
	p.divert(retag([]byte("\xB0\x01        packet")), from)
	p.ClearSources()
	if got := write(); got == conn.Endpoint(from) || endpointAddr(got) != peer {
		t.Errorf("after sources were cleared: sent to %v", got)
	}
	for _, refused := range []error{syscall.ENETUNREACH, conn.ErrUDPGSODisabled{RetryErr: syscall.ENETUNREACH}} {
		b.fails = refused
		if _, err := p.StreamConn().WriteTo([]byte("x"), netUDP(peer)); !errors.Is(err, syscall.ENETUNREACH) {
			t.Errorf("socket says %v: error %v", refused, err)
		}
	}
	b.fails = conn.ErrUDPGSODisabled{}
	if _, err := p.StreamConn().WriteTo([]byte("x"), netUDP(peer)); err != nil {
		t.Errorf("offload switched off: %v, though the packet was sent", err)
	}
}

func readWithin(c net.PacketConn, b []byte) (int, net.Addr, error) {
	if err := c.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return 0, nil, err
	}
	return c.ReadFrom(b)
}

func TestStreamRunsOverRealSocket(t *testing.T) {
	a, b := newGateway(t, nil, 1), newGateway(t, nil, 2)
	a.run(t)
	b.run(t)
	buf := make([]byte, 100)
	if _, err := a.StreamConn().WriteTo([]byte("there"), netUDP(b.addr)); err != nil {
		t.Fatal(err)
	}
	_, from, err := readWithin(b.StreamConn(), buf)
	if err != nil || netAddrPort(from) != a.addr {
		t.Fatalf("packet from %v, error %v", from, err)
	}
	if _, err := b.StreamConn().WriteTo([]byte("back"), from); err != nil {
		t.Fatal(err)
	}
	if n, from, err := readWithin(a.StreamConn(), buf); err != nil || string(buf[:n]) != "back" || netAddrPort(from) != b.addr {
		t.Errorf("%q from %v, error %v", buf[:n], from, err)
	}
}
