package openvpn

import (
	"net"
	"sync/atomic"
	"testing"
)

// benchBoxes are both ends of every packet format that matters for speed.
func benchBoxes(b *testing.B) map[string]func() (sealer, opener) {
	key := GenerateStaticKey()
	static := func(c Cipher, d Digest) func() (sealer, opener) {
		return func() (sealer, opener) {
			send, recv := mustStaticBoxes(b, Static{Key: key, Cipher: c, BlowfishBits: 128}, d)
			return send, recv
		}
	}
	data := func(c Cipher) func() (sealer, opener) {
		return func() (sealer, opener) {
			spec, _ := cipherSpecOf(c)
			a := agreement{cipher: spec, dataV2: true}
			from, err := newDataKey(a, DigestSHA256, key, TLSClient, 0, 5)
			if err != nil {
				b.Fatal(err)
			}
			to, err := newDataKey(a, DigestSHA256, key, TLSServer, 0, 5)
			if err != nil {
				b.Fatal(err)
			}
			*to.head = headers[:dataV2Size]
			return from.send.box, to.recv
		}
	}
	return map[string]func() (sealer, opener){
		"static AES-256-CBC SHA256": static(CipherAES256CBC, DigestSHA256),
		"static BF-CBC SHA1":        static(CipherBlowfishCBC, DigestSHA1),
		"tls AES-256-GCM":           data(CipherAES256GCM),
		"tls CHACHA20-POLY1305":     data(CipherChaCha20Poly1305),
		"tls AES-256-CBC SHA256":    data(CipherAES256CBC),
	}
}

func BenchmarkSeal(b *testing.B) {
	for name, build := range benchBoxes(b) {
		b.Run(name, func(b *testing.B) {
			send, _ := build()
			p := &plaintext{body: innerPacket(1, 1400)}
			buf := make([]byte, 0, 2048)
			b.SetBytes(1400)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := send.seal(buf, p); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	for name, build := range benchBoxes(b) {
		b.Run(name, func(b *testing.B) {
			send, recv := build()
			packet, err := send.seal(nil, &plaintext{body: innerPacket(1, 1400)})
			if err != nil {
				b.Fatal(err)
			}
			buf := make([]byte, 2048)
			b.SetBytes(1400)
			b.ReportAllocs()
			for b.Loop() {
				if _, err := recv.open(buf[:copy(buf, packet)]); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func TestPacketPathAllocatesNothing(t *testing.T) {
	l := &link{e: &Endpoint{}, tr: discardTransport{}}
	for _, f := range []Framing{FramingNone, FramingLZO, FramingStub} {
		send, recv := mustStaticBoxes(t, Static{Key: GenerateStaticKey(), Cipher: CipherAES256CBC}, DigestSHA256)
		l.e.cfg.Framing = f
		l.ch = fixedChannel{out: &outlet{to: path{addr: addrA}, key: &sendKey{box: send}}}
		var out sendBuffer
		batch := [][]byte{innerPacket(1, 1400), innerPacket(2, 60)}
		buf := make([]byte, 2048)
		if n := testing.AllocsPerRun(100, func() {
			if count, _ := l.transmit(&out, batch); count != 2 {
				t.Fatalf("%d of 2 packets taken", count)
			}
			if _, err := recv.open(buf[:copy(buf, out.packets[0])]); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", f, n)
		}
	}
}

// fixedChannel is a channel that only sends.
type fixedChannel struct {
	channel
	out *outlet
}

func (c fixedChannel) outlet() (*outlet, bool) { return c.out, true }

// discardTransport takes everything.
type discardTransport struct{ transport }

func (discardTransport) send(_ path, packets [][]byte, _ bool) (int, error) { return len(packets), nil }

// BenchmarkEndpoints moves packets between two endpoints over the loopback
// address, as fast as they go; what is lost does not count.
func BenchmarkEndpoints(b *testing.B) {
	for _, mode := range []string{"static AES-256-CBC SHA256", "tls AES-256-GCM"} {
		b.Run(mode, func(b *testing.B) {
			x, y := socketPair(b, UDP)
			if mode[0] == 't' {
				c, s := tlsPair(b, nil)
				x.Static, y.Static, x.TLS, y.TLS = nil, nil, c.TLS, s.TLS
			}
			source, sink := newFlood(1400), newFlood(1400)
			x.Device, y.Device = source, sink
			mustOpen(b, x)
			ey := mustOpen(b, y)
			source.begin()
			eventually(b, "traffic", ey, func() bool { return sink.taken.Load() > 0 })
			b.SetBytes(1400)
			b.ReportAllocs()
			b.ResetTimer()
			goal := sink.taken.Load() + int64(b.N)
			for sink.taken.Load() < goal {
				<-sink.more
			}
			b.StopTimer()
		})
	}
}

// flood is a Device that always has packets, once started, and counts what it gets.
type flood struct {
	p     []byte
	start atomic.Bool
	began chan struct{} // closed with start
	taken atomic.Int64
	more  chan struct{}
	done  chan struct{}
}

func newFlood(size int) *flood {
	return &flood{p: innerPacket(1, size), began: make(chan struct{}), more: make(chan struct{}, 1), done: make(chan struct{})}
}

func (f *flood) begin() {
	f.start.Store(true)
	close(f.began)
}

func (f *flood) ReadPackets(bufs [][]byte, sizes []int) (int, error) {
	select {
	case <-f.done:
		return 0, net.ErrClosed
	default:
	}
	if !f.start.Load() {
		select {
		case <-f.done:
		case <-f.began:
		}
		return 0, nil
	}
	for i := range bufs {
		sizes[i] = copy(bufs[i], f.p)
	}
	return len(bufs), nil
}

func (f *flood) WritePackets(packets [][]byte) error {
	f.taken.Add(int64(len(packets)))
	select {
	case f.more <- struct{}{}:
	default:
	}
	return nil
}

func (f *flood) Close() error {
	close(f.done)
	return nil
}
