//go:build integration

package netlab

import (
	"fmt"
	"os"
	"testing"
)

func TestMain(m *testing.M) {
	if err := Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func mustStart(t *testing.T, topology Topology) *World {
	t.Helper()
	w, err := Start(t.Context(), topology)
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

func mustRun(t *testing.T, h *Host, name string, args ...string) string {
	t.Helper()
	out, err := h.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func mustSnapshot(t *testing.T, h *Host) string {
	t.Helper()
	s, err := h.Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return s
}
