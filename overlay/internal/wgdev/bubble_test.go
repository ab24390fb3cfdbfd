package wgdev

import (
	"runtime"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
)

// If this fails, it fails with the whole process: "receive on synctest channel
// from outside bubble".
func TestWireGuardSurvivesGarbageCollectionsInABubble(t *testing.T) {
	collect := func() {
		for range 5 {
			runtime.GC()
			time.Sleep(50 * time.Millisecond) // finalizers have a goroutine of their own
		}
	}
	var finalized atomic.Bool
	synctest.Test(t, func(t *testing.T) {
		w := newBubble(t, Open)
		a, b := w.node(1), w.node(2)
		w.know(a, b)
		w.mustReach(a, b, time.Second)
		remove := engine.Changes{{Op: engine.RemovePeer, Peer: testID(1), Key: publicKey(1)}}
		mustApply(t, b.dev, remove, addPeer(1), remove)
		// Added and removed at once.
		mustApply(t, b.dev, append(addPeer(3), engine.Change{Op: engine.RemovePeer, Peer: testID(3), Key: publicKey(3)}))
		collect()
		a.close()
		b.close()
		collect()
		canary := new([64]byte)
		runtime.SetFinalizer(canary, func(*[64]byte) { finalized.Store(true) })
	})
	collect()
	if !finalized.Load() {
		t.Error("no finalizer ran at all: the test shows nothing")
	}
}
