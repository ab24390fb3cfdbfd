//go:build e2ekube

package kubelab_test

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/internal/netlab/kubelab"
)

// childVariable makes this program start a world, say so, and wait for its death.
const childVariable = "KUBELAB_CHILD"

func TestMain(m *testing.M) {
	if os.Getenv(childVariable) == "" {
		os.Exit(m.Run())
	}
	if _, err := kubelab.Start(context.Background(), kubelab.Options{Hosts: []string{"master01"}}); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println("started")
	io.Copy(io.Discard, os.Stdin) //nolint:errcheck // waits
}

// newWorld starts a world that must leave nothing behind. What it was like is kept in a folder if the test fails.
func newWorld(t *testing.T, o kubelab.Options) *kubelab.World {
	t.Helper()
	o.Logf = t.Logf
	w, err := kubelab.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dir, err := os.MkdirTemp("", "kubelab-"+filepath.Base(t.Name())+"-")
			t.Logf("the world is described in %s (%v): %v", dir, err, w.Collect(t.Context(), dir))
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if left := w.Leftovers(); len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
	})
	return w
}

// mustSSH runs a command as people would, from the operator's machine.
func mustSSH(t *testing.T, w *kubelab.World, host, command, stdin string) string {
	t.Helper()
	out, err := w.Operator().SSH(t.Context(), w.Host(host), command, strings.NewReader(stdin))
	if err != nil {
		t.Fatal(err)
	}
	return out
}
