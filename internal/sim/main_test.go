package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/internal/sim/figures"
	"github.com/planetmesh/planetmesh/internal/sim/schedule"
)

func TestWrongCommandLinesAreRefused(t *testing.T) {
	for _, args := range [][]string{
		{"-gateways", "3"}, {"-gateways", "401"}, {"-seeds", "0"}, {"-jobs", "0"}, {"extra"}, {"-nonsense"},
	} {
		var out, errs bytes.Buffer
		if code := run(t.Context(), args, &out, &errs); code != 2 || errs.Len() == 0 {
			t.Errorf("%q: exit code %d, %q", args, code, errs.String())
		}
	}
}

func TestMissingScheduleIsAnError(t *testing.T) {
	var out, errs bytes.Buffer
	file := filepath.Join(t.TempDir(), "none.json")
	if code := run(t.Context(), []string{"-schedule", file}, &out, &errs); code != 1 || !strings.Contains(errs.String(), file) {
		t.Errorf("exit code %d, %q", code, errs.String())
	}
}

func TestSeedsFollowTheFirst(t *testing.T) {
	o := options{seeds: 3, seed: 41, gateways: 8}
	all, err := o.schedules()
	if err != nil || len(all) != 3 || all[0].Seed != 41 || all[2].Seed != 43 {
		t.Fatalf("%v, %v", all, err)
	}
	o = options{seeds: 1, gateways: 8}
	if _, err := o.schedules(); err != nil || o.seed == 0 {
		t.Errorf("drew seed %d, %v", o.seed, err)
	}
}

func TestKeptScheduleIsTheSameWhenItIsRunAgain(t *testing.T) {
	want := schedule.New(9, schedule.Options{Gateways: 10})
	path := filepath.Join(t.TempDir(), "kept", "seed.json")
	if err := keep(path, want); err != nil {
		t.Fatal(err)
	}
	o := options{file: path}
	got, err := o.schedules()
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]schedule.Schedule{want}, got); diff != "" {
		t.Error(diff)
	}
	b, err := os.ReadFile(path)
	if err != nil || !json.Valid(b) {
		t.Errorf("%s, %v", b, err)
	}
}

func TestShrinkingFollowsOneFault(t *testing.T) {
	same := []string{
		"1m2.5s: gw3: path: gw17 is taken for dead although the path has worked for 24.518471081s",
		"27.4s: gw12: path: gw1 is taken for dead although the path has worked for 3m0.2s",
	}
	if rule(same[0]) != rule(same[1]) {
		t.Errorf("%q and %q", rule(same[0]), rule(same[1]))
	}
	if rule(same[0]) == rule("views differ 1m0.05s after the last fault: gw1 gets no answer from gw2") {
		t.Error("different faults look alike")
	}
}

func TestQuantilesAreOfTheNearestRank(t *testing.T) {
	var v []time.Duration
	for i := range 200 {
		v = append(v, time.Duration(200-i))
	}
	for q, want := range map[float64]time.Duration{0.5: 100, 0.99: 198, 1: 200} {
		if got := quantile(v, q); got != want {
			t.Errorf("quantile %v of 1…200: %d, want %d", q, got, want)
		}
	}
	if quantile(nil, 0.5) != 0 {
		t.Error("quantile of nothing")
	}
}

func TestReportHasEveryGoalAndSize(t *testing.T) {
	count := make(map[figures.Scenario]map[int]int)
	for _, c := range cases(false) {
		if count[c.Scenario] == nil {
			count[c.Scenario] = make(map[int]int)
		}
		if c.System == figures.Planetmesh {
			count[c.Scenario][c.N]++
		}
	}
	for _, g := range figures.Goals {
		if len(count[g.Scenario]) == 0 || g.N != 0 && count[g.Scenario][g.N] == 0 {
			t.Errorf("no case for the goal %+v", g)
		}
	}
	if count[figures.MassStart][64] < 100 {
		t.Errorf("%d mass starts of 64, want enough for a p99", count[figures.MassStart][64])
	}
	for _, n := range growth {
		if count[figures.MassStart][n] == 0 || count[figures.Heal][n] == 0 {
			t.Errorf("no case with %d gateways", n)
		}
	}
}
