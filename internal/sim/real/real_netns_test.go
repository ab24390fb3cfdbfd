//go:build integration

package main

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/sim/figures"
)

func TestMain(m *testing.M) {
	if err := netlab.Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func TestRealGatewaysAreMeasured(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	meshd, err := buildMeshd(ctx, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	const seed = 4 // three parts for 10 s
	measured, err := measure(ctx, meshd, seed, options{gateways: 4, idle: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", measured)
	if len(measured) != 2 || measured[0].Scenario != figures.MassStart || measured[1].Scenario != figures.Heal {
		t.Fatalf("got %+v, want a mass start and a partition", measured)
	}
	for _, f := range measured {
		if f.System != figures.Real || f.N != 4 || f.Seed != seed || !f.Reached || f.Took <= 0 || f.Idle <= 0 || f.During <= 0 {
			t.Errorf("got %+v", f)
		}
	}
	if h := measured[1]; h.Parts != 3 || h.Lasted != 10*time.Second {
		t.Errorf("got a partition of %d parts for %v, want 3 for 10 s", h.Parts, h.Lasted)
	}
}
