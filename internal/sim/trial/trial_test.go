// Package trial runs one schedule, in the process that internal/sim starts for
// each: testing/synctest needs a test.
package trial

import (
	"encoding/json"
	"flag"
	"log/slog"
	"math/rand/v2"
	"os"
	"testing"
	"testing/cryptotest"
	"testing/synctest"

	"github.com/planetmesh/planetmesh/internal/sim/baseline"
	"github.com/planetmesh/planetmesh/internal/sim/figures"
	"github.com/planetmesh/planetmesh/internal/sim/play"
	"github.com/planetmesh/planetmesh/internal/sim/schedule"
)

var (
	scheduleFile = flag.String("schedule", "", "`file` with a schedule to run, in JSON; without it TestTrial makes up a small one")
	resultFile   = flag.String("result", "", "`file` that gets the result, in JSON")
	caseFile     = flag.String("case", "", "`file` with a case to measure, in JSON: TestCase")
	seed         = flag.Uint64("seed", 1, "of the schedule without -schedule")
	logged       = flag.String("log", "", "`name` of a gateway whose log is printed; all: every gateway's")
	gateways     = flag.Int("gateways", 12, "of the schedule without -schedule")
)

func logger(gateway string) *slog.Logger {
	if *logged != gateway && *logged != "all" {
		return nil
	}
	return slog.New(slog.NewTextHandler(os.Stdout, &slog.HandlerOptions{Level: slog.LevelDebug})).With("of", gateway)
}

// The result of a run is data: a broken rule fails the test only where nobody
// reads the result.
func TestTrial(t *testing.T) {
	s := schedule.New(*seed, schedule.Options{Gateways: *gateways})
	if *scheduleFile != "" {
		s = schedule.Schedule{}
		mustRead(t, *scheduleFile, &s)
	}
	for _, e := range s.Events {
		t.Log(e)
	}
	var r play.Result
	cryptotest.SetGlobalRandom(t, s.Seed)
	for range s.Seed % 1000 {
		rand.Uint64() // other lots in the runtime for other seeds
	}
	synctest.Test(t, func(t *testing.T) { r = play.Run(t, s, logger) })
	if *resultFile != "" {
		mustWrite(t, *resultFile, r)
		return
	}
	t.Logf("%+v", r)
	for _, line := range r.Broken {
		t.Error(line)
	}
}

// TestCase measures one case for the report. Without a file it measures a small one.
func TestCase(t *testing.T) {
	c := figures.Case{System: figures.Planetmesh, Scenario: figures.MassStart, N: 8, Seed: *seed}
	if *caseFile != "" {
		mustRead(t, *caseFile, &c)
	}
	cryptotest.SetGlobalRandom(t, c.Seed)
	var f figures.Figure
	measure := baseline.Measure
	if c.System == figures.Planetmesh {
		measure = play.Measure
	}
	synctest.Test(t, func(t *testing.T) { f = measure(t, c) })
	if *resultFile == "" {
		t.Logf("%+v", f)
		if !f.Reached {
			t.Error(f.Notes)
		}
		return
	}
	mustWrite(t, *resultFile, f)
}

func mustRead(t *testing.T, file string, v any) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, v); err != nil {
		t.Fatal(err)
	}
}

func mustWrite(t *testing.T, file string, v any) {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
}
