package openvpn

import (
	"slices"
	"sync"
	"testing"
	"testing/synctest"
)

// gateTransport takes packets, but not before it is let.
type gateTransport struct {
	transport
	gate chan struct{}

	mu    sync.Mutex
	taken [][]byte // guarded by mu
}

func (g *gateTransport) send(_ path, packets [][]byte, wait bool) (int, error) {
	if wait {
		<-g.gate
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, p := range packets {
		g.taken = append(g.taken, slices.Clone(p))
	}
	return len(packets), nil
}

// A ping that falls due while a batch is on its way must not overtake it: the
// peer would take the batch for a replay, and over TCP hang up.
func TestPacketsLeaveInTheOrderOfTheirIDs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		send, recv := mustStaticBoxes(t, Static{Key: GenerateStaticKey(), Cipher: CipherAES256CBC}, DigestSHA256)
		tr := &gateTransport{gate: make(chan struct{})}
		l := &link{e: &Endpoint{}, tr: tr, ch: fixedChannel{out: &outlet{to: path{addr: addrA}, key: &sendKey{box: send}}}}
		batch := make([][]byte, 2*replayWidth)
		for i := range batch {
			batch[i] = innerPacket(1, 100)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			var out sendBuffer
			for range 2 {
				if count, _ := l.transmit(&out, batch); count != len(batch) {
					t.Errorf("%d packets taken", count)
				}
			}
		})
		synctest.Wait()
		for range 2 * maxSaid { // returns at once, however long the batch takes
			l.say(pingMagic[:])
		}
		tr.gate <- struct{}{}
		synctest.Wait()
		l.say(pingMagic[:])
		tr.gate <- struct{}{}
		wg.Wait()
		if got, want := len(tr.taken), 2*len(batch)+maxSaid+1; got != want {
			t.Errorf("%d packets, want %d", got, want)
		}
		var seen replayWindow
		for i, p := range tr.taken {
			o, err := recv.open(p)
			if err != nil || !seen.accept(0, o.id) || o.id != uint32(i+1) {
				t.Fatalf("packet %d has id %d, %v", i, o.id, err)
			}
		}
	})
}
