package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/internal/sim/figures"
)

// growth are the sizes of the growth table.
var growth = []int{25, 50, 100, 200, 400}

// systems are those that the report compares.
var systems = []figures.System{figures.Planetmesh, figures.MemberlistLAN, figures.MemberlistWAN}

// cases are those of the report, the small ones first. Where a goal speaks of a
// share of runs there are a hundred of ours and twenty of each baseline; the
// sizes of the growth table have as many as fit into two hours.
func cases(quick bool) []figures.Case {
	var out []figures.Case
	add := func(s figures.Scenario, n, seeds int) {
		for _, system := range systems {
			if s == figures.CrashRoutes && system != figures.Planetmesh {
				continue // memberlist has no routes
			}
			count := seeds
			if system != figures.Planetmesh && seeds > fewer {
				count = fewer
			}
			for seed := range uint64(count) { //nolint:gosec // small
				out = append(out, figures.Case{System: system, Scenario: s, N: n, Seed: seed + 1})
			}
		}
	}
	if quick {
		for _, s := range []figures.Scenario{figures.MassStart, figures.Join, figures.Heal, figures.CrashViews, figures.CrashRoutes} {
			add(s, 10, 2)
		}
		return out
	}
	add(figures.Heal, 30, 100)
	add(figures.CrashViews, 30, 100)
	add(figures.CrashRoutes, 30, 100)
	add(figures.MassStart, 64, 100)
	add(figures.Join, 200, 10)
	seeds := map[int]int{25: 10, 50: 10, 100: 4, 200: 2, 400: 1}
	for _, n := range growth {
		for _, s := range []figures.Scenario{figures.MassStart, figures.Join, figures.Heal, figures.CrashViews} {
			if n != 200 || s != figures.Join {
				add(s, n, seeds[n])
			}
		}
	}
	slices.SortStableFunc(out, func(a, b figures.Case) int { return a.N - b.N })
	return out
}

// fewer is how many runs a baseline has at most.
const fewer = 20

// large is from how many gateways on only one case is measured at a time: 400
// need up to 8 GB.
const large = 300

// writeReport measures what is not in the file of figures yet, and writes the report.
func writeReport(ctx context.Context, o options, out io.Writer) error {
	done, err := figures.ReadFiles(o.figures)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	todo := slices.DeleteFunc(cases(o.quick), func(c figures.Case) bool {
		return slices.ContainsFunc(done, func(f figures.Figure) bool {
			return f.System == c.System && f.Scenario == c.Scenario && f.N == c.N && f.Seed == c.Seed
		})
	})
	if len(todo) > 0 {
		measured, err := measureAll(ctx, todo, o, out)
		if err != nil {
			return err
		}
		done = append(done, measured...)
	}
	figures.Sort(done)
	command := "make sim-report"
	if o.quick {
		command = "go run ./internal/sim -quick -report " + o.report
	}
	if err := figures.WriteReport(o.report, done, figures.Options{Command: command, Day: time.Now(), Plot: "sim-growth.svg"}); err != nil {
		return err
	}
	fmt.Fprintf(out, "sim-report: %d figures, %d measured now, in %s\n", len(done), len(todo), o.report)
	return nil
}

// measureAll measures cases, o.jobs at a time, and keeps each figure as it comes.
func measureAll(ctx context.Context, todo []figures.Case, o options, out io.Writer) ([]figures.Figure, error) {
	dir, err := os.MkdirTemp("", "sim")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	b, err := newBench(ctx, dir, out)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Dir(o.figures), 0o755); err != nil { //nolint:gosec // no secrets
		return nil, err
	}
	file, err := os.OpenFile(o.figures, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644) //nolint:gosec // no secrets
	if err != nil {
		return nil, err
	}
	defer file.Close()
	m := &measuring{bench: b, file: file, out: out, total: len(todo), start: time.Now()}
	small := slices.IndexFunc(todo, func(c figures.Case) bool { return c.N >= large })
	if small < 0 {
		small = len(todo)
	}
	m.all(ctx, todo[:small], o.jobs)
	m.all(ctx, todo[small:], 1)
	return m.figures, errors.Join(append(m.errs, ctx.Err())...)
}

// measuring is a report being made.
type measuring struct {
	bench *bench
	out   io.Writer
	total int
	start time.Time

	mu      sync.Mutex // guards all below
	file    *os.File
	figures []figures.Figure
	errs    []error
	last    time.Time
}

func (m *measuring) all(ctx context.Context, todo []figures.Case, jobs int) {
	next := make(chan figures.Case)
	var wg sync.WaitGroup
	for range min(jobs, len(todo)) {
		wg.Go(func() {
			for c := range next {
				f, err := m.bench.measure(ctx, c)
				m.took(f, err)
			}
		})
	}
	for _, c := range todo {
		select {
		case next <- c:
		case <-ctx.Done():
		}
	}
	close(next)
	wg.Wait()
}

func (m *measuring) took(f figures.Figure, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err == nil {
		m.figures = append(m.figures, f)
		err = figures.Write(m.file, f)
	}
	if err != nil {
		m.errs = append(m.errs, err)
		return
	}
	if now := time.Now(); now.Sub(m.last) > 2*time.Second || len(m.figures) == m.total {
		m.last = now
		fmt.Fprintf(m.out, "%d of %d, %v gone; %s %s of %d: %v\n", len(m.figures), m.total, now.Sub(m.start).Round(time.Second),
			f.System, f.Scenario, f.N, f.Took.Round(time.Millisecond))
	}
}
