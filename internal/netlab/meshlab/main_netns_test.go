//go:build integration

package meshlab_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
	"github.com/planetmesh/planetmesh/internal/netlab/netlabtest"
	"github.com/planetmesh/planetmesh/overlay"
)

// meshd is the program under test, built once.
var meshd string

func TestMain(m *testing.M) {
	if err := netlab.Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(build(m))
}

func build(m *testing.M) int {
	dir, err := os.MkdirTemp("", "meshlab-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	meshd = filepath.Join(dir, "meshd")
	cmd := exec.Command("go", "build", "-o", meshd, "github.com/planetmesh/planetmesh/meshd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "build meshd: %v\n%s", err, out)
		return 1
	}
	return m.Run()
}

// newLab starts a world without any gateway; its end is checked for leftovers.
func newLab(t *testing.T, topology netlab.Topology) *meshlab.Lab {
	t.Helper()
	lab, err := meshlab.Start(t.Context(), topology, meshd)
	if err != nil {
		t.Fatal(err)
	}
	lab.RunArgs = []string{"--log-level", "debug"}
	t.Cleanup(func() {
		if t.Failed() {
			for _, g := range topology.Routers() {
				if p := lab.Process(g); p != nil {
					t.Logf("log of %s:\n%s", g, p.Log())
				}
			}
		}
		if err := lab.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return lab
}

// newMesh starts the reference deployment with a gateway on every router.
func newMesh(t *testing.T, topology netlab.Topology) *meshlab.Lab {
	t.Helper()
	lab := newLab(t, topology)
	if err := lab.Up(within(t, 30*time.Second), "planet", meshlab.ReferenceGateways(topology)); err != nil {
		t.Fatal(err)
	}
	return lab
}

func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// mustBeFull waits until every pair of leaves answers.
func mustBeFull(t *testing.T, lab *meshlab.Lab, o netlab.PingOptions, limit time.Duration) {
	t.Helper()
	m, took, err := lab.WaitFull(within(t, limit), o, nil)
	if err != nil {
		t.Fatalf("not full after %v:\n%v\n%v", took, m, err)
	}
	t.Logf("full after %v", took.Round(time.Millisecond))
}

func mustStatus(t *testing.T, lab *meshlab.Lab, host string) overlay.Status {
	t.Helper()
	s, err := lab.Status(within(t, 10*time.Second), host)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually polls until f reports no fault, and shows the last one if it never does.
func eventually(t *testing.T, limit time.Duration, f func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		fault := f()
		if fault == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %s", limit, fault)
		}
		<-time.After(100 * time.Millisecond)
	}
}

func mustRun(t *testing.T, lab *meshlab.Lab, host, name string, args ...string) string {
	t.Helper()
	out, err := lab.World().Host(host).Run(within(t, 20*time.Second), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func gateway(t *testing.T, topology netlab.Topology, host string) meshlab.Gateway {
	t.Helper()
	for _, g := range meshlab.ReferenceGateways(topology) {
		if g.Host == host {
			return g
		}
	}
	t.Fatalf("no gateway %s", host)
	return meshlab.Gateway{}
}

func routesTo(t *testing.T, lab *meshlab.Lab, host string) string {
	t.Helper()
	return strings.TrimSpace(mustRun(t, lab, host, "ip", "route", "show", "dev", overlay.DefaultInterface))
}

var _ = netlabtest.Snapshots
