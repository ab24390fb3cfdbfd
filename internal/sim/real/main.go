//go:build linux

// Real measures real meshd processes in network namespaces in the cases of the
// simulator, and the simulator in the same cases beside them.
//
//	go run ./internal/sim/real -doc docs/performance.md
//
// For each seed it builds a world of gateways on one underlay, whose links have the
// delay, jitter and loss that the seed gives to the simulator, and measures a
// mass start and the healing of a partition. It needs root, or user namespaces
// and /dev/net/tun.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/sim/figures"
)

type options struct {
	gateways int
	seeds    []uint64
	doc      string
	file     string
	settle   time.Duration
	idle     time.Duration
}

func main() {
	if err := netlab.Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// defaultSeeds have partitions of 10 s, 1 min, 10 s, 1 min and 5 min, see figures.Case.Setup.
const defaultSeeds = "4,5,8,9,14"

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	o := options{settle: figures.Settle, idle: figures.IdleWindow}
	flags := flag.NewFlagSet("real", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.gateways, "gateways", 12, "gateways of each mesh, 4 to 50")
	seeds := flags.String("seeds", defaultSeeds, "`seeds`, separated by commas")
	flags.StringVar(&o.doc, "doc", "", "`document` to write the table into; empty writes none")
	flags.StringVar(&o.file, "figures", "bin/sim/real.jsonl", "`file` that gets the figures")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	var err error
	if o.seeds, err = parseSeeds(*seeds); err != nil || o.gateways < 4 || o.gateways > 50 || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "error: want -gateways 4 to 50, -seeds as numbers with commas, and no arguments")
		return 2
	}
	if err := compare(ctx, o, stdout); err != nil {
		fmt.Fprintln(stderr, "error:", err)
		return 1
	}
	return 0
}

func parseSeeds(list string) ([]uint64, error) {
	var out []uint64
	for text := range strings.SplitSeq(list, ",") {
		seed, err := strconv.ParseUint(strings.TrimSpace(text), 10, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, seed)
	}
	return out, nil
}

// compare measures everything and writes it down.
func compare(ctx context.Context, o options, out io.Writer) error {
	dir, err := os.MkdirTemp("", "sim-real-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	fmt.Fprintln(out, "building the programs")
	meshd, err := buildMeshd(ctx, dir)
	if err != nil {
		return err
	}
	m, err := newModel(ctx, dir)
	if err != nil {
		return err
	}
	var all []figures.Figure
	for i, seed := range o.seeds {
		measured, err := measure(ctx, meshd, seed, o)
		if err != nil {
			return fmt.Errorf("seed %d: %w", seed, err)
		}
		for _, f := range measured {
			modelled, err := m.measure(ctx, f)
			if err != nil {
				return fmt.Errorf("seed %d: %w", seed, err)
			}
			all = append(all, f, modelled)
			fmt.Fprintf(out, "%d/%d  seed %d  %-12s real %v, model %v\n", i+1, len(o.seeds), seed, f.Scenario,
				f.Took.Round(time.Millisecond), modelled.Took.Round(time.Millisecond))
		}
	}
	figures.Sort(all)
	if err := keep(o.file, all); err != nil {
		return err
	}
	if o.doc == "" {
		return nil
	}
	return figures.WriteReal(o.doc, all, figures.Options{Command: "make sim-real", Day: time.Now().UTC(), Machine: machine()})
}

// keep writes figures to a file, all or none.
func keep(path string, all []figures.Figure) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	return errors.Join(figures.Write(file, all...), file.Close())
}

func buildMeshd(ctx context.Context, dir string) (string, error) {
	path := filepath.Join(dir, "meshd")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "github.com/planetmesh/planetmesh/meshd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if text, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("build meshd: %w\n%s", err, text)
	}
	return path, nil
}

// machine describes processor, kernel and toolchain.
func machine() string {
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo") // without it the model is unknown
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	model := "unknown processor"
	for line := range strings.Lines(string(cpuinfo)) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			break
		}
	}
	return fmt.Sprintf("%s, %d processors, Linux %s, %s", model, runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version())
}
