//go:build linux

// Package netlabtest lets tests use worlds of package netlab.
package netlabtest

import (
	"context"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

// startTimeout is far more than a world needs, which is a tenth of a second.
const startTimeout = 30 * time.Second

// Start builds the world and closes it at the end of the test, which fails if something of the world is left over then. It
// fails the test at once where the rights are missing: see [netlab.Elevate] for TestMain.
func Start(t testing.TB, topology netlab.Topology) *netlab.World {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startTimeout)
	defer cancel()
	w, err := netlab.Start(ctx, topology)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// Snapshots takes a snapshot of each of the hosts; at the end of the test each must look the same again. Call
// it after [Start] and before anything is started that has to clean up after itself.
func Snapshots(t testing.TB, w *netlab.World, hosts ...string) {
	t.Helper()
	before := make(map[string]string)
	for _, name := range hosts {
		before[name] = mustSnapshot(t.Context(), t, w, name)
	}
	t.Cleanup(func() {
		for _, name := range hosts {
			after := mustSnapshot(context.Background(), t, w, name)
			for _, line := range netlab.DiffSnapshots(before[name], after) {
				t.Errorf("host %s is not as it was: %s", name, line)
			}
		}
	})
}

func mustSnapshot(ctx context.Context, t testing.TB, w *netlab.World, name string) string {
	t.Helper()
	s, err := w.Host(name).Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
