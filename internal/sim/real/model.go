//go:build linux

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"

	"github.com/planetmesh/planetmesh/internal/sim/figures"
	"github.com/planetmesh/planetmesh/internal/sim/steady"
)

// model is the simulator, as a program.
type model struct {
	dir, program string
}

func newModel(ctx context.Context, dir string) (*model, error) {
	overlay, err := steady.Overlay(dir)
	if err != nil {
		return nil, err
	}
	m := &model{dir: dir, program: filepath.Join(dir, "trial.test")}
	build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-o", m.program, "github.com/planetmesh/planetmesh/internal/sim/trial")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the simulator: %w\n%s", err, text)
	}
	return m, nil
}

// measure measures in the simulator what f measured in reality.
func (m *model) measure(ctx context.Context, f figures.Figure) (figures.Figure, error) {
	var out figures.Figure
	dir, err := os.MkdirTemp(m.dir, "case")
	if err != nil {
		return out, err
	}
	text, err := json.Marshal(figures.Case{System: figures.Planetmesh, Scenario: f.Scenario, N: f.N, Seed: f.Seed})
	if err != nil {
		return out, err
	}
	if err := os.WriteFile(filepath.Join(dir, "case.json"), text, 0o600); err != nil {
		return out, err
	}
	cmd := exec.CommandContext(ctx, m.program, "-test.run", "^TestCase$", "-case", "case.json", "-result", "result.json")
	cmd.Dir, cmd.Env = dir, append(steady.Env(), "PWD=/")
	if said, err := cmd.CombinedOutput(); err != nil {
		return out, fmt.Errorf("simulate %s: %w\n%s", f.Scenario, err, said)
	}
	if text, err = os.ReadFile(filepath.Join(dir, "result.json")); err != nil {
		return out, err
	}
	err = json.Unmarshal(text, &out)
	out.System = figures.Model
	return out, err
}
