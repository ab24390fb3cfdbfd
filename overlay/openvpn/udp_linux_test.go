package openvpn

import (
	"bytes"
	"net/netip"
	"testing"
	"time"
)

// collector is a receiver that copies packets into a channel.
type collector struct {
	packets chan []byte
	from    chan netip.AddrPort
	dropped chan Reason
}

func newCollector() *collector {
	return &collector{make(chan []byte, 1000), make(chan netip.AddrPort, 1000), make(chan Reason, 1000)}
}

func (c *collector) packet(from path, p []byte) {
	c.packets <- bytes.Clone(p)
	c.from <- from.addr
}
func (c *collector) drop(r Reason) { c.dropped <- r }
func (c *collector) flush()        {}

func mustUDP(t testing.TB, local string) *udpTransport {
	t.Helper()
	tr, err := listenUDP(t.Context(), &Config{Local: netip.MustParseAddrPort(local)}, netip.AddrPort{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(tr.close)
	return tr.(*udpTransport)
}

func TestUDPBatchesKeepPacketsWhole(t *testing.T) {
	for _, row := range []struct{ from, to, seen string }{
		{"127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"},
		{"[::1]:0", "[::1]:0", "::1"},
		{"[::]:0", "127.0.0.1:0", "127.0.0.1"}, // an IPv4 peer on a socket of both families
		{"127.0.0.1:0", "[::]:0", "127.0.0.1"},
	} {
		a, b := mustUDP(t, row.from), mustUDP(t, row.to)
		got := newCollector()
		ended := make(chan error, 1)
		go func() { ended <- b.serve(t.Context(), func() receiver { return got }) }()
		to := b.local()
		if to.Addr().IsUnspecified() {
			to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.Port())
		}
		var batch [][]byte
		for i := range 300 {
			// Runs of equal length, shorter ends, lone large ones.
			batch = append(batch, bytes.Repeat([]byte{byte(i)}, []int{1400, 1400, 1400, 700, 60, 60, 2000, 1}[i/3%8]))
		}
		for at := 0; at < len(batch); at += 50 {
			if n, err := a.send(path{addr: to}, batch[at:at+50], true); n != 50 || err != nil {
				t.Fatalf("%s to %s: sent %d, %v", row.from, row.to, n, err)
			}
			for _, want := range batch[at : at+50] {
				select {
				case p := <-got.packets:
					if !bytes.Equal(p, want) {
						t.Fatalf("%s to %s: %d bytes of %d came, want %d of %d", row.from, row.to, len(p), p[0], len(want), want[0])
					}
				case <-time.After(10 * time.Second):
					t.Fatalf("%s to %s: a packet of %d bytes did not come", row.from, row.to, len(want))
				}
				if from := <-got.from; from.Addr() != netip.MustParseAddr(row.seen) || from.Port() != a.local().Port() {
					t.Fatalf("sender is %s", from)
				}
			}
		}
		b.close()
		if err := <-ended; err == nil {
			t.Error("serve ended without an error")
		}
	}
}

func TestUDPBatchWithoutSegments(t *testing.T) {
	a, b := mustUDP(t, "127.0.0.1:0"), mustUDP(t, "127.0.0.1:0")
	a.batch.segmentMax.Store(0)
	got := newCollector()
	go func() { _ = b.serve(t.Context(), func() receiver { return got }) }() // ends with b
	batch := make([][]byte, 150)
	for i := range batch {
		batch[i] = bytes.Repeat([]byte{byte(i)}, 900)
	}
	if n, err := a.send(path{addr: b.local()}, batch, true); n != len(batch) || err != nil {
		t.Fatalf("sent %d, %v", n, err)
	}
	for _, want := range batch {
		if p := <-got.packets; !bytes.Equal(p, want) {
			t.Fatalf("%d bytes of %d", len(p), p[0])
		}
	}
}

func TestUDPOversizeIsCountedAndTheRestPasses(t *testing.T) {
	a, b := mustUDP(t, "127.0.0.1:0"), mustUDP(t, "127.0.0.1:0")
	got := newCollector()
	go func() { _ = b.serve(t.Context(), func() receiver { return got }) }() // ends with b
	large := make([]byte, b.max+1)
	batch := [][]byte{large, large, {1}, {}, {2}}
	if n, err := a.send(path{addr: b.local()}, batch, true); n != len(batch) || err != nil {
		t.Fatalf("sent %d, %v", n, err)
	}
	for range 2 {
		if r := <-got.dropped; r != ReasonOversize {
			t.Errorf("dropped as %s", r)
		}
	}
	for _, want := range []byte{1, 2} {
		if p := <-got.packets; !bytes.Equal(p, []byte{want}) {
			t.Errorf("got %v, want %d", p, want)
		}
	}
}

func TestUDPSendToNowhereReportsAnError(t *testing.T) {
	a := mustUDP(t, "127.0.0.1:0")
	batch := [][]byte{make([]byte, 100), make([]byte, 100)}
	if n, err := a.send(path{addr: netip.MustParseAddrPort("[2001:db8::1]:9")}, batch, true); err == nil {
		t.Errorf("IPv6 over an IPv4 socket: %d sent", n)
	}
	a.close()
	if n, err := a.send(path{addr: netip.MustParseAddrPort("127.0.0.1:9")}, batch, true); err == nil || n != 0 {
		t.Errorf("closed socket: %d sent, %v", n, err)
	}
}

func FuzzSegmentSize(f *testing.F) {
	f.Add([]byte{20, 0, 0, 0, 0, 0, 0, 0, 17, 0, 0, 0, 104, 0, 0, 0, 0x78, 5, 0, 0, 0, 0, 0, 0})
	f.Fuzz(func(t *testing.T, ctrl []byte) {
		if n := segmentSize(ctrl); n != 0 && len(ctrl) < 20 {
			t.Errorf("%d out of %d bytes", n, len(ctrl))
		}
	})
}
