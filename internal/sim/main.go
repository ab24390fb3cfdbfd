// Sim lets whole meshes live through schedules of faults in virtual time, one
// process per seed, and says which rules they broke.
//
//	go run ./internal/sim -seeds 1000 -gateways 30
//	go run ./internal/sim -seeds 1 -seed 4711        # the same run again
//	go run ./internal/sim -schedule failed.json      # a schedule that was kept
//
// A schedule that breaks a rule is shrunk to a small one that still does, and
// kept as a file.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/sim/play"
	"github.com/planetmesh/planetmesh/internal/sim/schedule"
)

type options struct {
	seeds    int
	seed     uint64
	gateways int
	jobs     int
	longest  time.Duration
	file     string
	keep     string
	shrink   time.Duration
	log      string
	verbose  bool
	report   string // document to write into; empty: run seeds
	figures  string // file for the figures of the report
	quick    bool
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var o options
	flags := flag.NewFlagSet("sim", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.IntVar(&o.seeds, "seeds", 50, "how many seeds to run")
	flags.Uint64Var(&o.seed, "seed", 0, "the first seed; 0 draws one")
	flags.IntVar(&o.gateways, "gateways", 30, "gateways of each mesh, 4 to 400")
	flags.IntVar(&o.jobs, "jobs", runtime.NumCPU(), "runs at a time")
	flags.DurationVar(&o.longest, "longest", 24*time.Hour, "longest single fault, in virtual time")
	flags.StringVar(&o.file, "schedule", "", "run the schedule in this `file` instead")
	flags.StringVar(&o.keep, "keep", "bin/sim", "`directory` for schedules that broke a rule")
	flags.DurationVar(&o.shrink, "shrink", 3*time.Minute, "how long to look for a smaller schedule; 0 does not")
	flags.StringVar(&o.log, "log", "", "print what the gateway of this `name` logs, or all; a run may differ from one without")
	flags.StringVar(&o.report, "report", "", "measure the cases of the report and write it into this `document`")
	flags.StringVar(&o.figures, "figures", "bin/sim/figures.jsonl", "`file` that gets the figures of the report as they come, and whose figures are not measured again")
	flags.BoolVar(&o.quick, "quick", false, "a report of few and small cases: a smoke test")
	flags.BoolVar(&o.verbose, "v", false, "print a line for every seed")
	if err := flags.Parse(args); err != nil {
		return 2
	}
	if o.gateways < 4 || o.gateways > 400 || o.seeds < 1 || o.jobs < 1 || flags.NArg() > 0 {
		fmt.Fprintln(stderr, "error: want -gateways 4 to 400, -seeds and -jobs above zero, and no arguments")
		return 2
	}
	if o.report != "" {
		if err := writeReport(ctx, o, stdout); err != nil {
			fmt.Fprintln(stderr, "error:", err)
			return 1
		}
		return 0
	}
	broken, err := simulate(ctx, o, stdout)
	switch {
	case err != nil:
		fmt.Fprintln(stderr, "error:", err)
		return 1
	case broken > 0:
		return 3
	}
	return 0
}

// simulate runs all seeds and returns how many broke a rule.
func simulate(ctx context.Context, o options, out io.Writer) (int, error) {
	schedules, err := o.schedules()
	if err != nil {
		return 0, err
	}
	dir, err := os.MkdirTemp("", "sim")
	if err != nil {
		return 0, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b, err := newBench(ctx, dir, out)
	if err != nil {
		return 0, err
	}
	b.log = o.log
	fmt.Fprintf(out, "sim: %d seeds from %d on, %d gateways, %d at a time\n", len(schedules), schedules[0].Seed, schedules[0].Gateways, o.jobs)
	results, err := runAll(ctx, b, schedules, o, out)
	if err != nil {
		return 0, err
	}
	failed := slices.DeleteFunc(slices.Clone(results), func(r trial) bool { return len(r.Broken) == 0 })
	for _, f := range failed {
		report(ctx, b, f, o, out)
	}
	summarise(results, out)
	fmt.Fprintf(out, "sim: seeds %d broken %d\n", len(results), len(failed))
	return len(failed), nil
}

// schedules are those to run.
func (o *options) schedules() ([]schedule.Schedule, error) {
	if o.file != "" {
		b, err := os.ReadFile(o.file)
		if err != nil {
			return nil, err
		}
		var s schedule.Schedule
		if err := json.Unmarshal(b, &s); err != nil {
			return nil, fmt.Errorf("%s: %w", o.file, err)
		}
		return []schedule.Schedule{s}, nil
	}
	if o.seed == 0 {
		o.seed = 1 + rand.Uint64N(1_000_000) //nolint:gosec // any will do; it is printed
	}
	var out []schedule.Schedule
	for i := range uint64(o.seeds) { //nolint:gosec // checked
		out = append(out, schedule.New(o.seed+i, schedule.Options{Gateways: o.gateways, Longest: o.longest}))
	}
	return out, nil
}

// trial is a schedule and what came of it.
type trial struct {
	play.Result
	schedule schedule.Schedule
	took     time.Duration // real
}

// runAll runs schedules, o.jobs at a time, and returns the results in their order.
func runAll(ctx context.Context, b *bench, schedules []schedule.Schedule, o options, out io.Writer) ([]trial, error) {
	results := make([]trial, len(schedules))
	errs := make([]error, len(schedules))
	next := make(chan int)
	p := progress{out: out, total: len(schedules), start: time.Now(), verbose: o.verbose}
	var wg sync.WaitGroup
	for range min(o.jobs, len(schedules)) {
		wg.Go(func() {
			for i := range next {
				results[i], errs[i] = b.run(ctx, schedules[i])
				p.done(results[i], errs[i])
			}
		})
	}
	for i := range schedules {
		select {
		case next <- i:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
	return results, errors.Join(append(errs, ctx.Err())...)
}

// report prints a failed run, shrinks its schedule and keeps it.
func report(ctx context.Context, b *bench, f trial, o options, out io.Writer) {
	fmt.Fprintf(out, "\nseed %d broke a rule:\n", f.Seed)
	for _, line := range f.Broken {
		fmt.Fprintln(out, "  ", line)
	}
	small := f
	if o.shrink > 0 {
		small = b.shrink(ctx, f, o.shrink, o.jobs)
		fmt.Fprintf(out, "the smallest schedule found that does as well, %d gateways:\n", small.schedule.Gateways)
		for _, e := range small.schedule.Events {
			fmt.Fprintln(out, "  ", e)
		}
		for _, line := range small.Broken {
			fmt.Fprintln(out, "   =>", line)
		}
	}
	path := filepath.Join(o.keep, fmt.Sprintf("seed-%d-%d.json", f.schedule.Gateways, f.Seed))
	if err := keep(path, small.schedule); err != nil {
		fmt.Fprintln(out, "   not kept:", err)
		return
	}
	fmt.Fprintf(out, "run it again: go run ./internal/sim -schedule %s\n", path)
}

func keep(path string, s schedule.Schedule) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil { //nolint:gosec // no secrets
		return err
	}
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, b, 0o644) //nolint:gosec // no secrets
}
