package openvpn

import (
	"bytes"
	"context"
	"sync"
	"testing"
)

// newCrewLink is a link that seals with a crew and sends nowhere.
func newCrewLink(t *testing.T, f Framing) *link {
	t.Helper()
	l := &link{e: &Endpoint{cfg: Config{Framing: f}}, tr: discardTransport{}, crew: newCrew(f, crewMembers+1)}
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { l.crew.run(ctx) })
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	return l
}

func TestCrewSealsWhatOneWouldInItsOrder(t *testing.T) {
	for _, f := range []Framing{FramingNone, FramingStub} {
		l := newCrewLink(t, f)
		var out sendBuffer
		for round := range 3 { // each with another key
			send, recv := mustStaticBoxes(t, Static{Key: GenerateStaticKey(), Cipher: CipherAES256CBC}, DigestSHA256)
			l.ch = fixedChannel{out: &outlet{to: path{addr: addrA}, key: &sendKey{box: send}}}
			var seen replayWindow
			for size := range 100 {
				batch := make([][]byte, size)
				want := 0
				for i := range batch {
					batch[i] = innerPacket(uint32(i), 40+(i*37+size)%1300)
					want += len(batch[i])
				}
				if count, total := l.transmit(&out, batch); count != size || total != want {
					t.Fatalf("%d packets with %d bytes taken, want %d with %d", count, total, size, want)
				}
				for i, p := range out.packets[:size] {
					o, err := recv.open(p)
					if err != nil {
						t.Fatalf("round %d, batch of %d, packet %d: %v", round, size, i, err)
					}
					inner, err := f.unframe(o.payload, nil)
					if err != nil || !bytes.Equal(inner, batch[i]) {
						t.Fatalf("round %d, batch of %d, packet %d: another payload, %v", round, size, i, err)
					}
					if id := seen.max + 1; o.id != id || !seen.accept(o.time, o.id) {
						t.Fatalf("round %d, batch of %d, packet %d: id %d, want %d", round, size, i, o.id, id)
					}
				}
			}
		}
	}
}

func TestCrewLeavesTheLastIDsToOne(t *testing.T) {
	l := newCrewLink(t, FramingNone)
	batch := make([][]byte, 2*crewLeast)
	for i := range batch {
		batch[i] = innerPacket(1, 100)
	}
	send, recv := mustStaticBoxes(t, Static{Key: GenerateStaticKey(), Cipher: CipherAES256CBC}, DigestSHA256)
	send.time, send.id = 7, maxPacketID-5
	send.renew = func() (uint32, error) { return 9, nil }
	l.ch = fixedChannel{out: &outlet{to: path{addr: addrA}, key: &sendKey{box: send}}}
	var out sendBuffer
	if count, _ := l.transmit(&out, batch); count != len(batch) {
		t.Errorf("%d packets taken", count)
	}
	var seen replayWindow
	for i, p := range out.packets[:len(batch)] {
		o, err := recv.open(p)
		if err != nil || !seen.accept(o.time, o.id) {
			t.Fatalf("packet %d: time %d, id %d: %v", i, o.time, o.id, err)
		}
	}
	if seen.time != 9 || seen.max != uint32(len(batch)-5) {
		t.Errorf("ended with time %d and id %d", seen.time, seen.max)
	}
	send.id, send.renew = maxPacketID-5, nil // as in TLS mode
	if count, _ := l.transmit(&out, batch); count != 5 {
		t.Errorf("%d packets with 5 ids", count)
	}
	if n := l.e.count.dropped[ReasonSend].Load(); n != uint64(len(batch)-5) {
		t.Errorf("%d packets counted as dropped", n)
	}
}

func TestCrewAllocatesNothing(t *testing.T) {
	l := newCrewLink(t, FramingNone)
	send, _ := mustStaticBoxes(t, Static{Key: GenerateStaticKey(), Cipher: CipherAES256CBC}, DigestSHA256)
	l.ch = fixedChannel{out: &outlet{to: path{addr: addrA}, key: &sendKey{box: send}}}
	batch := make([][]byte, 64)
	for i := range batch {
		batch[i] = innerPacket(1, 1400)
	}
	var out sendBuffer
	// Members make their cipher state when they take their first packet.
	for range 200 {
		l.transmit(&out, batch)
	}
	if n := testing.AllocsPerRun(100, func() { l.transmit(&out, batch) }); n >= 1 {
		t.Errorf("%v allocations for a batch", n)
	}
}

// BenchmarkTransmit is what a sender does with a batch before the socket.
func BenchmarkTransmit(b *testing.B) {
	for _, c := range []struct {
		name       string
		processors int
	}{{"alone", 1}, {"crew", crewMembers + 1}} {
		b.Run(c.name, func(b *testing.B) {
			l := &link{e: &Endpoint{}, tr: discardTransport{}, crew: newCrew(FramingNone, c.processors)}
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			if l.crew != nil {
				wg.Go(func() { l.crew.run(ctx) })
			}
			send, _ := mustStaticBoxes(b, Static{Key: GenerateStaticKey(), Cipher: CipherAES256CBC}, DigestSHA256)
			l.ch = fixedChannel{out: &outlet{to: path{addr: addrA}, key: &sendKey{box: send}}}
			batch := make([][]byte, 47) // 64 KiB of TCP
			for i := range batch {
				batch[i] = innerPacket(1, 1400)
			}
			var out sendBuffer
			b.SetBytes(int64(1400 * len(batch)))
			b.ReportAllocs()
			for b.Loop() {
				l.transmit(&out, batch)
			}
			cancel()
			wg.Wait()
		})
	}
}
