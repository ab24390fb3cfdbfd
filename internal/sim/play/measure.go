package play

import (
	"fmt"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/sim/figures"
	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// ruler measures a case.
type ruler struct {
	t     testing.TB
	w     *overlaytest.World
	c     figures.Case
	setup figures.Setup
	f     figures.Figure

	garbage collector
}

// Measure measures a case of Planetmesh in a testing/synctest bubble. Where
// less than what comes before the event fails, it fails the test.
func Measure(t testing.TB, c figures.Case) figures.Figure {
	r := &ruler{t: t, c: c, setup: c.Setup(), f: c.Figure()}
	pairs := 0
	if c.Scenario == figures.CrashRoutes {
		pairs = c.N / 3 // so that some of the crashed have a standby
	}
	r.w = overlaytest.NewWorld(t, overlaytest.WorldOptions{
		Gateways: c.N, Pairs: pairs, Seed: c.Seed,
		Network: overlaytest.Options{
			Link: overlaytest.Link{Delay: r.setup.Delay, Jitter: r.setup.Jitter, Loss: r.setup.Loss}, Seed: c.Seed,
		},
	})
	defer r.w.Close()
	switch c.Scenario {
	case figures.MassStart:
		r.until(r.startAll, r.w.Converged)
	case figures.Join:
		last := r.w.Gateway(c.N - 1)
		r.ready(c.N - 1)
		r.until(func() { r.start(last) }, r.w.Converged)
	case figures.Heal:
		r.ready(c.N)
		r.w.Partition(r.setup.Parts...)
		r.pass(r.setup.Lasts)
		r.f.Parts, r.f.Lasted = len(r.setup.Parts), r.setup.Lasts
		r.until(r.w.Heal, r.w.Converged)
	case figures.CrashViews:
		r.ready(c.N)
		r.until(r.crash, r.w.Aware)
	case figures.CrashRoutes:
		r.ready(c.N)
		r.until(func() { r.crashActive(pairs) }, r.w.Rerouted)
	case figures.Idle:
		r.ready(c.N)
		r.f.Reached = true
	}
	return r.f
}

func (r *ruler) start(g *overlaytest.Gateway) {
	if err := g.Start(); err != nil {
		r.t.Fatal(err)
	}
}

func (r *ruler) startAll() { r.w.StartAll() }

func (r *ruler) crash() {
	for _, i := range r.setup.Crashed {
		r.w.Gateway(i).Crash()
	}
}

// crashActive crashes as many gateways as crash would, each the one in use of
// a site with two.
func (r *ruler) crashActive(pairs int) {
	for _, i := range r.setup.Crashed {
		// Site n has gateway n, and the second ones come last.
		if g := r.w.Active(r.w.Gateway(1 + i%pairs).Prefixes[0]); g != nil {
			g.Crash()
		}
	}
}

// ready starts the first n gateways, waits for equal views and measures the
// traffic of a minute in which nothing happens.
func (r *ruler) ready(n int) {
	for _, g := range r.w.Gateways()[:n] {
		r.start(g)
	}
	start := time.Now()
	for r.w.Converged() != nil {
		if time.Since(start) > figures.Limit {
			r.t.Fatalf("before the event: %v", r.w.Converged())
		}
		r.pass(figures.Step)
	}
	r.pass(figures.Settle)
	before := r.sent()
	r.pass(figures.IdleWindow)
	r.f.Idle = r.rate(before, n, figures.IdleWindow)
	if err := r.w.Converged(); err != nil {
		r.t.Fatalf("views differ though nothing happened: %v", err)
	}
}

func (r *ruler) sent() uint64 { return r.w.Network().Stats().Bytes }

func (r *ruler) rate(before uint64, n int, took time.Duration) float64 {
	return float64(r.sent()-before) / float64(n) / max(took, figures.Step).Seconds()
}

// pass lets virtual time pass with a small heap.
func (r *ruler) pass(d time.Duration) {
	for ; d > 0; d -= stride {
		time.Sleep(min(d, stride)) // virtual
		r.garbage.sometimes()
	}
}

// until measures the time from an event until done finds nothing.
func (r *ruler) until(event func(), done func() error) {
	before, start := r.sent(), time.Now()
	event()
	err := done()
	for ; err != nil && time.Since(start) < figures.Limit; err = done() {
		r.pass(figures.Step)
	}
	r.f.Took, r.f.Reached = time.Since(start), err == nil
	if err != nil {
		r.f.Took, r.f.Notes = figures.Limit, fmt.Sprint(err)
	}
	r.f.During = r.rate(before, len(r.w.Running()), r.f.Took)
}
