package stream

import (
	"bytes"
	"crypto/rand"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// leftovers returns the stacks of goroutines that belong to this package or to QUIC.
func leftovers() []string {
	buf := make([]byte, 4<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		if strings.Contains(g, "quic-go") || strings.Contains(g, "stream.(*Transport)") {
			left = append(left, g)
		}
	}
	return left
}

// mustLeaveNothing waits for goroutines that are just ending.
func mustLeaveNothing(tb testing.TB) {
	tb.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for left := leftovers(); len(left) > 0; left = leftovers() {
		if time.Now().After(deadline) {
			tb.Fatalf("%d goroutines are left, the first:\n%s", len(left), left[0])
		}
		runtime.Gosched()
	}
}

func TestGatewaysOnLoopback(t *testing.T) {
	const gateways = 4
	members := make([]*member, gateways)
	for i := range members {
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { pc.Close() })
		members[i] = start(t, newKey(t), pc, nil)
	}
	payload := make([]byte, 1<<20-1)
	_, _ = rand.Read(payload)
	var wg sync.WaitGroup
	for _, a := range members {
		a.knows(members...)
		for _, b := range members {
			if a == b {
				continue
			}
			wg.Go(func() { // everybody dials everybody at once
				if got, err := a.ask(t.Context(), b.id, payload); err != nil || !bytes.Equal(got, payload) {
					t.Errorf("echo: got %d bytes, %v", len(got), err)
				}
			})
		}
	}
	wg.Wait()
	for _, m := range members {
		if got := len(m.Connected()); got != gateways-1 {
			t.Errorf("got %d peers, want %d", got, gateways-1)
		}
	}
	for _, m := range members {
		m.halt(t)
	}
	mustLeaveNothing(t)
}

func TestRunLeavesNothingWhileStreamsAreInUse(t *testing.T) {
	for range 5 {
		var members [2]*member
		for i := range members {
			pc, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { pc.Close() })
			members[i] = start(t, newKey(t), pc, nil)
		}
		a, b := members[0], members[1]
		a.knows(b)
		s, err := a.OpenStream(t.Context(), b.id, TypeAPI)
		if err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				if _, err := s.Write(make([]byte, 64<<10)); err != nil {
					return
				}
			}
		})
		wg.Go(func() { _, _ = a.Introduce(t.Context(), b.addr) })
		wg.Go(func() { _, _ = a.OpenStream(t.Context(), trust.GatewayID{1}, TypeAPI) })
		a.halt(t)
		wg.Wait()
		b.halt(t)
		mustLeaveNothing(t)
	}
}
