package stream

import (
	"bytes"
	"net/netip"
	"testing"
)

func FuzzReadMessage(f *testing.F) {
	f.Add([]byte{0, 0, 0, 3, 'a', 'b', 'c'})
	f.Add([]byte{0, 0, 0, 0})
	f.Add([]byte{0xff, 0xff, 0xff, 0xff, 1})
	f.Add([]byte{0, 0, 0, 3, 'a'})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 64
		got, err := readMessage(bytes.NewReader(b), limit)
		if err != nil {
			return
		}
		if len(got) == 0 || len(got) > limit {
			t.Fatalf("message of %d bytes", len(got))
		}
		if again := appendMessage(nil, got); !bytes.HasPrefix(b, again) {
			t.Fatalf("%x reads as %x, which writes as %x", b, got, again)
		}
	})
}

func FuzzGuardPasses(f *testing.F) {
	f.Add([]byte{0xc0, 0, 0, 0, 1, 8, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{0x40, 1, 2, 3, 4})
	f.Add([]byte{0xc0, 0x6b, 0x33, 0x43, 0xcf})
	f.Add([]byte{})
	from := netip.MustParseAddrPort("[2001:db8::1]:7000")
	f.Fuzz(func(t *testing.T, b []byte) {
		var count counters
		g := newGuard(nil, 1, &count)
		passed := 0
		for range 3 {
			if g.passes(b, from) {
				passed++
			}
		}
		initial := len(b) >= 5 && b[0]&0xf0 == 0xc0
		if initial && passed > 2 {
			t.Fatalf("%x: %d of 3 passed, want the burst of 2 at most", b, passed)
		}
	})
}

func BenchmarkGuardForged(b *testing.B) {
	var count counters
	g := newGuard(nil, 20, &count)
	packet := append([]byte{0xc0, 0, 0, 0, 1, 8}, make([]byte, 1194)...)
	b.ReportAllocs()
	i := uint32(0)
	for b.Loop() {
		i++
		g.passes(packet, netip.AddrPortFrom(netip.AddrFrom4([4]byte{byte(i >> 24), byte(i >> 16), byte(i >> 8), byte(i)}), 1))
	}
}
