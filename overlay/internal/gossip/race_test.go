//go:build race

package gossip

import (
	"os"
	"runtime"
	"testing"
)

// settingsMembers are fewer than elsewhere: the race detector makes a packet ten times as dear.
const settingsMembers = 20

// TestMain keeps the race detector alive: with Go 1.26.8 it dies of a segmentation violation when two threads run timers
// of one synctest bubble, for which there is one race context. Seen in one of three runs of a bubble with 64 goroutines that
// use time.AfterFunc and time.After, with -cpu 2; in none of 15 with -cpu 1. Races are found all the same: the detector
// compares what is ordered before what, not what happens at once.
func TestMain(m *testing.M) {
	runtime.GOMAXPROCS(1)
	os.Exit(m.Run())
}
