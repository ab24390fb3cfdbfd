package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/sim/figures"
	"github.com/planetmesh/planetmesh/internal/sim/schedule"
	"github.com/planetmesh/planetmesh/internal/sim/steady"
)

// bench runs schedules, each in a process of its own that repeats its runs.
type bench struct {
	dir     string
	program string
	serial  atomic.Uint64
	log     string // name of a gateway, or all
}

// newBench builds the program.
func newBench(ctx context.Context, dir string, out io.Writer) (*bench, error) {
	fmt.Fprintln(out, "building the simulator")
	overlay, err := steady.Overlay(dir)
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, program: filepath.Join(dir, "trial.test")}
	build := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", overlay, "-o", b.program, "./internal/sim/trial")
	if text, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the simulator: %w\n%s", err, text)
	}
	return b, nil
}

// trialTimeout is in real time. The longest runs of 200 gateways took ten
// minutes on one processor of 2026.
const trialTimeout = "60m"

// memoryLimit keeps a run that outgrows its plan from taking the machine along.
const memoryLimit = "GOMEMLIMIT=7GiB"

// run runs a schedule.
func (b *bench) run(ctx context.Context, s schedule.Schedule) (trial, error) {
	start := time.Now()
	t := trial{schedule: s}
	said, err := b.process(ctx, "TestTrial", "schedule", s, &t.Result)
	t.took = time.Since(start)
	if err != nil && ctx.Err() == nil {
		// A panic or a deadlock is a broken rule too.
		t.Seed, t.Gateways = s.Seed, s.Gateways
		t.Broken, err = []string{fmt.Sprintf("the run ended early: %v: %s", err, firstLines(said, 12))}, nil
	}
	return t, err
}

// measure measures a case.
func (b *bench) measure(ctx context.Context, c figures.Case) (figures.Figure, error) {
	var f figures.Figure
	said, err := b.process(ctx, "TestCase", "case", c, &f)
	if err != nil {
		return f, fmt.Errorf("%+v: %w: %s", c, err, firstLines(said, 12))
	}
	return f, nil
}

// process runs one test of the program with input as a file for the flag of that name, and
// reads its result. All that the process sees is the same each time, the
// names of its files included: even the lengths of its arguments move what lies
// in its memory, and with that the order of maps with pointers for keys.
func (b *bench) process(ctx context.Context, test, flag string, input, result any) (said string, err error) {
	dir := filepath.Join(b.dir, fmt.Sprint("run", b.serial.Add(1)))
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	text, err := json.Marshal(input)
	if err != nil {
		return "", err
	}
	if err := os.WriteFile(filepath.Join(dir, "input.json"), text, 0o600); err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, b.program, "-test.run", "^"+test+"$", "-test.timeout", trialTimeout, "-"+flag, "input.json", "-result", "result.json", "-log", b.log)
	cmd.Args[0], cmd.Dir = "trial.test", dir
	cmd.Env = append(steady.Env(), memoryLimit, "PWD=/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if b.log != "" {
		cmd.Stdout = os.Stdout
	}
	if err := cmd.Run(); err != nil {
		return out.String(), err
	}
	text, err = os.ReadFile(filepath.Join(dir, "result.json"))
	if err != nil {
		return out.String(), err
	}
	return out.String(), json.Unmarshal(text, result)
}

func firstLines(s string, n int) string {
	lines := strings.SplitN(s, "\n", n+1)
	return strings.Join(lines[:min(n, len(lines))], "\n   ")
}

// shrink looks for a smaller schedule that breaks a rule, for as long as limit.
func (b *bench) shrink(ctx context.Context, f trial, limit time.Duration, jobs int) trial {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for ctx.Err() == nil {
		smaller, found := b.firstLike(ctx, f, jobs)
		if !found {
			break
		}
		f = smaller
	}
	return f
}

// firstLike runs smaller schedules, jobs at a time, until one breaks the rule that f broke.
func (b *bench) firstLike(ctx context.Context, f trial, jobs int) (trial, bool) {
	schedules := schedule.Smaller(f.schedule)
	for len(schedules) > 0 && ctx.Err() == nil {
		batch := schedules[:min(jobs, len(schedules))]
		schedules = schedules[len(batch):]
		results := make([]trial, len(batch))
		var wg sync.WaitGroup
		for i, s := range batch {
			wg.Go(func() { results[i], _ = b.run(ctx, s) })
		}
		wg.Wait()
		for _, r := range results {
			if len(r.Broken) > 0 && rule(r.Broken[0]) == rule(f.Broken[0]) {
				return r, true
			}
		}
	}
	return trial{}, false
}

// numbers are what two lines about the same fault may differ in.
var numbers = regexp.MustCompile(`([0-9][0-9.]*(ms|µs|ns|h|m|s|b)?)+`)

// rule is a line without its numbers.
func rule(line string) string { return numbers.ReplaceAllString(line, "#") }
