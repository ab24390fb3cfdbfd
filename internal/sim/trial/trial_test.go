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

	"github.com/planetmesh/planetmesh/internal/sim/play"
	"github.com/planetmesh/planetmesh/internal/sim/schedule"
)

var (
	scheduleFile = flag.String("schedule", "", "`file` with a schedule to run, in JSON; without it TestTrial makes up a small one")
	resultFile   = flag.String("result", "", "`file` that gets the result, in JSON")
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
		b, err := os.ReadFile(*scheduleFile)
		if err != nil {
			t.Fatal(err)
		}
		s = schedule.Schedule{}
		if err := json.Unmarshal(b, &s); err != nil {
			t.Fatal(err)
		}
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
	b, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	if *resultFile != "" {
		if err := os.WriteFile(*resultFile, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Logf("%s", b)
	for _, line := range r.Broken {
		t.Error(line)
	}
}
