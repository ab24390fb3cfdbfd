package phase_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/action/actiontest"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// files is an action that writes some files, one after another, so that it can
// be interrupted between them.
type files struct {
	content map[string]string
	fail    func() error // before the last file
	proof   func() error
}

func (f files) names() []string {
	var names []string
	for n := range f.content {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

func (f files) String() string { return "files " + strings.Join(f.names(), " ") }

func (f files) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	var changes []phase.Change
	for _, n := range f.names() {
		data, err := h.ReadFile(ctx, n)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if string(data) != f.content[n] {
			changes = append(changes, phase.Change{What: "file " + n, From: string(data), To: f.content[n]})
		}
	}
	return changes, nil
}

func (f files) Apply(ctx context.Context, h host.Host, log func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	for i, n := range f.names() {
		if err := intent.KeepFile(ctx, n); err != nil {
			return err
		}
		log("writes " + n)
		if f.fail != nil && i == len(f.content)-1 {
			if err := f.fail(); err != nil {
				return err
			}
		}
		if err := h.WriteFile(ctx, n, []byte(f.content[n]), 0o644); err != nil {
			return err
		}
	}
	return nil
}

func (f files) Prove(context.Context, host.Host) error {
	if f.proof != nil {
		return f.proof()
	}
	return nil
}

func (f files) Undo(ctx context.Context, _ host.Host) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	return intent.Restore(ctx)
}

// step makes a step of one file that is named like it.
func step(ph phase.Name, on, name string, needs ...string) phase.Step {
	return phase.Step{
		ID: string(ph) + "/" + on + "/" + name, Phase: ph, Host: on, Needs: needs, UndoOnFailure: true,
		Action: files{content: map[string]string{"/etc/" + string(ph) + "/" + name: name}},
	}
}

// failing makes a step fail as long as fail returns an error.
func failing(s phase.Step, fail func() error) phase.Step {
	f := s.Action.(files)
	f.fail = fail
	s.Action = f
	return s
}

func always(err error) func() error { return func() error { return err } }

// world is machines and what happened to them.
type world struct {
	machines map[string]*actiontest.Machine
	mu       sync.Mutex
	events   []phase.Event
}

func newWorld(names ...string) *world {
	w := &world{machines: map[string]*actiontest.Machine{}}
	for _, n := range names {
		w.machines[n] = actiontest.New(n)
	}
	return w
}

func (w *world) executor() *phase.Executor {
	hosts := map[string]host.Host{}
	for n, m := range w.machines {
		hosts[n] = m
	}
	return &phase.Executor{Hosts: hosts, Events: func(e phase.Event) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.events = append(w.events, e)
	}}
}

// snapshot describes all machines without kubeinit's own files.
func (w *world) snapshot() map[string]string {
	out := map[string]string{}
	for n, m := range w.machines {
		out[n] = m.Snapshot(journal.Dir)
	}
	return out
}

// order lists what happened, without output and phases.
func (w *world) order(kinds ...phase.EventKind) []string {
	var out []string
	for _, e := range w.events {
		if slices.Contains(kinds, e.Kind) {
			out = append(out, string(e.Kind)+" "+e.Step)
		}
	}
	return out
}

func TestGraphRefusesBeforeAnythingHappens(t *testing.T) {
	good := step(phase.Prepare, "a", "x")
	tests := []struct {
		name  string
		steps []phase.Step
		want  string
	}{
		{"cycle", []phase.Step{step(phase.Prepare, "a", "x", "prepare/b/y"), step(phase.Prepare, "b", "y", "prepare/a/z"), step(phase.Prepare, "a", "z", "prepare/a/x")},
			"steps need each other: prepare/a/x -> prepare/b/y -> prepare/a/z -> prepare/a/x"},
		{"itself", []phase.Step{step(phase.Prepare, "a", "x", "prepare/a/x")}, "need each other: prepare/a/x -> prepare/a/x"},
		{"cycle over a prefix", []phase.Step{step(phase.Prepare, "a", "x", "init/"), step(phase.Init, "b", "y", "prepare/")}, "need each other"},
		{"unknown need", []phase.Step{step(phase.Prepare, "a", "x", "prepare/a/nothing")}, "needs prepare/a/nothing, which is not there"},
		{"empty prefix", []phase.Step{step(phase.Prepare, "a", "x", "prepare/c/")}, "needs prepare/c/, under which there is nothing"},
		{"unknown host", []phase.Step{step(phase.Prepare, "c", "x")}, "not connected"},
		{"twice", []phase.Step{good, good}, "is there twice"},
		{"misnamed", []phase.Step{{ID: "x", Phase: phase.Prepare, Host: "a", Action: good.Action}}, "is not named"},
		{"no action", []phase.Step{{ID: "prepare/a/x", Phase: phase.Prepare, Host: "a"}}, "has no action"},
		{"unknown phase", []phase.Step{step("later", "a", "x")}, "unknown phase"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld("a", "b")
			_, err := w.executor().Apply(t.Context(), tt.steps)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("Apply = %v, want %q", err, tt.want)
			}
			if _, err := w.executor().Plan(t.Context(), tt.steps); err == nil {
				t.Error("Plan accepts it")
			}
			for n, m := range w.machines {
				if calls := m.Calls(); len(calls) > 0 {
					t.Errorf("%s was asked %q", n, calls)
				}
			}
		})
	}
}

func TestGraphReportsAllFaults(t *testing.T) {
	_, err := newWorld("a").executor().Plan(t.Context(), []phase.Step{step(phase.Init, "b", "x", "init/b/y"), step(phase.Init, "c", "x")})
	for _, want := range []string{"init/b/x is for a host", "init/c/x is for a host", "needs init/b/y"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("no %q in %v", want, err)
		}
	}
}

func TestApplyKeepsTheOrderOfNeeds(t *testing.T) {
	w := newWorld("a", "b", "c")
	steps := []phase.Step{
		step(phase.Policy, "a", "last", "join/", "join-cp/"), // no control planes join: an empty phase is fine
		step(phase.Join, "b", "join", "init/"),
		step(phase.Join, "c", "join", "init/"),
		step(phase.Init, "a", "init", "prepare/"),
		step(phase.Prepare, "a", "x"), step(phase.Prepare, "b", "x"), step(phase.Prepare, "c", "x"),
	}
	result, err := w.executor().Apply(t.Context(), steps)
	if err != nil {
		t.Fatal(err)
	}
	place := map[string]int{}
	for i, e := range w.events {
		place[string(e.Kind)+" "+e.Step] = i
		if e.Kind == phase.PhaseDone {
			place[string(e.Phase)] = i
		}
	}
	for _, pair := range [][2]string{
		{"done prepare/a/x", "started init/a/init"}, {"done prepare/b/x", "started init/a/init"}, {"done prepare/c/x", "started init/a/init"},
		{"done init/a/init", "started join/b/join"}, {"done init/a/init", "started join/c/join"},
		{"done join/b/join", "started policy/a/last"}, {"done join/c/join", "started policy/a/last"},
		{"done prepare/c/x", "prepare"}, {"prepare", "init"}, {"init", "join"}, {"join", "policy"},
	} {
		before, ok := place[pair[0]]
		after, ok2 := place[pair[1]]
		if !ok || !ok2 || before > after {
			t.Errorf("%q at %d is not before %q at %d", pair[0], before, pair[1], after)
		}
	}
	if n := result.Count(phase.StateDone); n != len(steps) {
		t.Errorf("%d steps are done: %+v", n, result.Steps)
	}
	if n := len(result.Phases); n != 4 || result.Phases[0].Phase != phase.Prepare || result.Phases[0].Steps[phase.StateDone] != 3 {
		t.Errorf("phases %+v", result.Phases)
	}
}

func TestHostDoesOneStepAtATime(t *testing.T) {
	w := newWorld("a", "b", "c", "d", "e")
	var steps []phase.Step
	for i := range 12 {
		for n := range w.machines {
			steps = append(steps, step(phase.Prepare, n, fmt.Sprint(i)))
		}
	}
	e := w.executor()
	e.Parallel = 3
	busy := map[string]string{}
	most := 0
	e.Events = func(ev phase.Event) { // one at a time, as promised: no lock
		switch ev.Kind {
		case phase.Started:
			if other := busy[ev.Host]; other != "" {
				t.Errorf("%s begins during %s", ev.Step, other)
			}
			busy[ev.Host] = ev.Step
			most = max(most, len(busy))
		case phase.Done:
			delete(busy, ev.Host)
		}
	}
	if _, err := e.Apply(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
	if most > 3 {
		t.Errorf("%d hosts worked at the same time", most)
	}
}

// TestHostsWorkSideBySide has two steps that wait for each other.
func TestHostsWorkSideBySide(t *testing.T) {
	w := newWorld("a", "b")
	meet := make(chan struct{})
	steps := []phase.Step{
		failing(step(phase.Prepare, "a", "x"), func() error { meet <- struct{}{}; return nil }),
		failing(step(phase.Prepare, "b", "x"), func() error { <-meet; return nil }),
	}
	if _, err := w.executor().Apply(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
}

func TestFailingHostIsUndoneAlone(t *testing.T) {
	w := newWorld("a", "b", "c")
	broken := &host.ExitError{Host: "b", Args: []string{"kubeadm", "join"}, Code: 3, Tail: []string{"one", "two"}}
	kept := step(phase.Prepare, "b", "kept")
	kept.UndoOnFailure = false
	stays := step(phase.Prepare, "b", "stays")
	stays.Stays = true
	steps := []phase.Step{
		step(phase.Prepare, "a", "x"), step(phase.Prepare, "b", "x"), step(phase.Prepare, "b", "y"), kept, stays, step(phase.Prepare, "c", "x"),
		step(phase.Join, "a", "join", "prepare/a/"),
		failing(step(phase.Join, "b", "join", "prepare/b/"), always(cli.Hint(broken, "look at the kubelet"))),
		step(phase.PodNet, "b", "routes", "join/b/"),
		step(phase.PodNet, "c", "routes", "prepare/c/"),
		step(phase.Policy, "c", "waits for b", "join/"),
		step(phase.Policy, "c", "relies on what b took back", "prepare/b/x", "podnet/b/"),
	}
	result, err := w.executor().Apply(t.Context(), steps)
	if err == nil || !strings.Contains(err.Error(), "join/b/join") {
		t.Fatalf("Apply = %v", err)
	}
	got := map[string]phase.State{}
	for _, s := range result.Steps {
		got[s.ID] = s.State
	}
	want := map[string]phase.State{
		"prepare/a/x": "done", "prepare/b/x": "undone", "prepare/b/y": "undone", "prepare/b/kept": "done", "prepare/b/stays": "done", "prepare/c/x": "done",
		"join/a/join": "done", "join/b/join": "failed", "podnet/b/routes": "blocked", "podnet/c/routes": "done",
		"policy/c/waits for b": "blocked", "policy/c/relies on what b took back": "blocked",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("states (-want +got):\n%s", diff)
	}
	wantFailure := []phase.Failure{{
		Step: "join/b/join", Host: "b", Error: "files /etc/join/join: b: kubeadm join: exit status 3: two", Command: "kubeadm join", Code: 3,
		Tail: []string{"writes /etc/join/join", "one", "two"}, Hint: "look at the kubelet", Undone: []string{"join/b/join", "prepare/b/y", "prepare/b/x"},
	}}
	if diff := cmp.Diff(wantFailure, result.Failures); diff != "" {
		t.Errorf("failures (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"undone join/b/join", "undone prepare/b/y", "undone prepare/b/x"}, w.order(phase.Undone)); diff != "" {
		t.Errorf("undone (-want +got):\n%s", diff)
	}
	b := w.machines["b"].Snapshot(journal.Dir)
	if strings.Contains(b, "/etc/prepare/x") || strings.Contains(b, "/etc/join") || !strings.Contains(b, "/etc/prepare/kept") || !strings.Contains(b, "/etc/prepare/stays") {
		t.Errorf("host b:\n%s", b)
	}
	if a := w.machines["a"].Snapshot(); !strings.Contains(a, "/etc/join/join") {
		t.Errorf("host a:\n%s", a)
	}
}

func TestFailureWithoutCommandShowsWhatTheStepSaid(t *testing.T) {
	w := newWorld("a")
	result, _ := w.executor().Apply(t.Context(), []phase.Step{failing(step(phase.Prepare, "a", "x"), always(errors.New("no")))})
	f := result.Failures[0]
	if diff := cmp.Diff([]string{"writes /etc/prepare/x"}, f.Tail); diff != "" || f.Hint == "" || f.Code != 0 {
		t.Errorf("failure %+v", f)
	}
}

func TestUndoThatFailsIsReported(t *testing.T) {
	w := newWorld("a")
	steps := []phase.Step{step(phase.Prepare, "a", "x"), failing(step(phase.Join, "a", "y", "prepare/"), func() error {
		w.machines["a"].KillAfter(0, actiontest.Before)
		return errors.New("gone")
	})}
	result, err := w.executor().Apply(t.Context(), steps)
	if err == nil || len(result.Failures) != 1 {
		t.Fatalf("failures %+v, %v", result.Failures, err)
	}
	if f := result.Failures[0]; len(f.NotUndone) != 2 || len(f.Undone) != 0 {
		t.Errorf("failure %+v", f)
	}
	if s := result.Steps[0].State; s != phase.StateUndoFailed {
		t.Errorf("prepare/a/x is %s", s)
	}
}

func TestRetryWaitsAndTriesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a")
		tries := 0
		s := failing(step(phase.Prepare, "a", "x"), func() error {
			if tries++; tries < 3 {
				return fmt.Errorf("not yet %d", tries)
			}
			return nil
		})
		s.Retry = 2
		began := time.Now()
		result, err := w.executor().Apply(t.Context(), []phase.Step{s})
		if err != nil || result.Steps[0].Tries != 3 {
			t.Fatalf("%+v, %v", result, err)
		}
		if d := time.Since(began); d != 6*time.Second || result.Steps[0].Duration != d {
			t.Errorf("took %v, the step %v; want 2 s and 4 s of waiting", d, result.Steps[0].Duration)
		}
	})
}

func TestProofThatFailsIsAFailure(t *testing.T) {
	w := newWorld("a")
	before := w.snapshot()
	s := step(phase.Prepare, "a", "x")
	f := s.Action.(files)
	f.proof = always(errors.New("it does not answer"))
	s.Action = f
	_, err := w.executor().Apply(t.Context(), []phase.Step{s})
	if err == nil || !strings.Contains(err.Error(), "prove files /etc/prepare/x: it does not answer") {
		t.Errorf("Apply = %v", err)
	}
	if diff := cmp.Diff(before, w.snapshot()); diff != "" {
		t.Errorf("the host differs:\n%s", diff)
	}
}

func TestCancelledRunIsNotUndone(t *testing.T) {
	w := newWorld("a", "b")
	ctx, cancel := context.WithCancelCause(t.Context())
	steps := []phase.Step{
		step(phase.Prepare, "a", "x"),
		failing(step(phase.Init, "a", "y", "prepare/"), func() error { cancel(errors.New("ctrl-c")); return ctx.Err() }),
		step(phase.Join, "b", "z", "init/"),
	}
	result, err := w.executor().Apply(ctx, steps)
	if err == nil || !strings.Contains(err.Error(), "ctrl-c") {
		t.Errorf("Apply = %v", err)
	}
	if len(result.Failures) != 0 || len(w.order(phase.Undone)) != 0 || result.Count(phase.StateInterrupted) != 1 || result.Count(phase.StateBlocked) != 1 {
		t.Errorf("result %+v", result)
	}
	steps[1] = step(phase.Init, "a", "y", "prepare/")
	result, err = w.executor().Apply(t.Context(), steps)
	if err != nil || result.Count(phase.StateUnchanged) != 1 || result.Count(phase.StateDone) != 2 {
		t.Errorf("second run %+v, %v", result.Steps, err)
	}
}

func TestCancelledPlanEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("ctrl-c"))
	w := newWorld("a")
	if _, err := w.executor().Plan(ctx, []phase.Step{step(phase.Prepare, "a", "x")}); err == nil || err.Error() != "ctrl-c" {
		t.Errorf("Plan = %v", err)
	}
}

// randomSteps makes steps without cycles on three hosts, some of which find
// everything in place.
func randomSteps(r *rand.Rand, w *world) []phase.Step {
	names := []string{"a", "b", "c"}
	var steps []phase.Step
	for i := range 3 + r.IntN(12) {
		on := names[r.IntN(len(names))]
		ph := phase.Order[r.IntN(len(phase.Order))]
		s := step(ph, on, fmt.Sprint(i))
		content := map[string]string{}
		for j := range 1 + r.IntN(3) {
			name := fmt.Sprintf("/etc/%d/%d", i, j)
			content[name] = fmt.Sprint(r.Uint32())
			switch r.IntN(4) {
			case 0:
				w.machines[on].Put(name, content[name], 0o644, 0, 0)
			case 1:
				w.machines[on].Put(name, "old", 0o600, 3, 4)
			}
		}
		s.Action = files{content: content}
		s.UndoOnFailure = r.IntN(2) == 0
		for range r.IntN(3) {
			if len(steps) > 0 {
				s.Needs = append(s.Needs, steps[r.IntN(len(steps))].ID)
			}
		}
		steps = append(steps, s)
	}
	r.Shuffle(len(steps), func(i, j int) { steps[i], steps[j] = steps[j], steps[i] })
	return steps
}

func TestApplyDoesExactlyWhatPlanSays(t *testing.T) {
	for seed := range uint64(60) {
		w := newWorld("a", "b", "c")
		steps := randomSteps(rand.New(rand.NewPCG(seed, 1)), w)
		before := w.snapshot()
		plan, err := w.executor().Plan(t.Context(), steps)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, w.snapshot()); diff != "" {
			t.Fatalf("seed %d: the plan changed something:\n%s", seed, diff)
		}
		result, err := w.executor().Apply(t.Context(), steps)
		if err != nil {
			t.Fatal(err)
		}
		planned := map[string][]phase.Change{}
		for _, s := range plan.Steps {
			if len(s.Changes) > 0 {
				planned[s.ID] = s.Changes
			}
		}
		if diff := cmp.Diff(planned, result.Changes()); diff != "" {
			t.Errorf("seed %d: planned and made (-plan +apply):\n%s", seed, diff)
		}
		again, err := w.executor().Apply(t.Context(), steps)
		if err != nil || len(again.Changes()) != 0 {
			t.Errorf("seed %d: second run changes %v, %v", seed, again.Changes(), err)
		}
		if _, err := w.executor().Undo(t.Context(), nil, []string{"a", "b", "c"}); err != nil {
			t.Error(err)
		}
		if diff := cmp.Diff(before, w.snapshot()); diff != "" {
			t.Errorf("seed %d: after undo:\n%s", seed, diff)
		}
	}
}

// TestKilledAnywhereEndsTheSame kills the operator's program after each call to a
// host: from there on it reaches none. The next run must end as if nothing had
// happened, and everything must be undone from the journals alone.
func TestKilledAnywhereEndsTheSame(t *testing.T) {
	setup := func() (*world, []phase.Step) {
		w := newWorld("a", "b")
		w.machines["a"].Put("/etc/1/0", "old", 0o600, 3, 4)
		var steps []phase.Step
		for i, on := range []string{"a", "b", "a"} {
			s := step(phase.Prepare, on, fmt.Sprint(i))
			s.Action = files{content: map[string]string{fmt.Sprintf("/etc/%d/0", i): "new", fmt.Sprintf("/etc/%d/1", i): "new"}}
			if i > 0 {
				s.Needs = []string{steps[i-1].ID}
			}
			steps = append(steps, s)
		}
		return w, steps
	}
	w, steps := setup()
	before := w.snapshot()
	if _, err := w.executor().Apply(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
	want := w.snapshot()
	points := 0
	for _, victim := range []string{"a", "b"} {
		for _, cut := range actiontest.Cuts {
			for n := 0; ; n++ {
				w, steps := setup()
				w.machines[victim].KillAfter(n, cut)
				_, err := w.executor().Apply(t.Context(), steps)
				died := w.machines[victim].Dead()
				w.machines[victim].KillAfter(-1, actiontest.Before)
				if died == (err == nil) {
					t.Fatalf("call %d of %s: dead %v, error %v", n, victim, died, err)
				}
				where := fmt.Sprintf("killed at call %d of %s, cut %v", n, victim, cut)
				if _, err := w.executor().Apply(t.Context(), steps); err != nil {
					t.Fatalf("%s: second run: %v", where, err)
				}
				if diff := cmp.Diff(want, w.snapshot()); diff != "" {
					t.Fatalf("%s: after the second run:\n%s", where, diff)
				}
				wantAllDone(t, w, where, len(steps))
				killUndo(t, w, where, n)
				if diff := cmp.Diff(before, w.snapshot()); diff != "" {
					t.Fatalf("%s: after undo:\n%s", where, diff)
				}
				if !died {
					break
				}
				points++
			}
		}
	}
	if points < 60 {
		t.Errorf("only %d points were tried", points)
	}
}

// wantAllDone checks that the journals know of no interrupted step.
func wantAllDone(t *testing.T, w *world, where string, steps int) {
	t.Helper()
	done := 0
	for _, m := range w.machines {
		log, err := journal.Open(t.Context(), m)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range log.Deeds() {
			if d.State == journal.Done {
				done++
			}
		}
	}
	if done != steps {
		t.Errorf("%s: %d of %d steps are done in the journals", where, done, steps)
	}
}

// killUndo undoes everything, killed once after n calls of both hosts.
func killUndo(t *testing.T, w *world, where string, n int) {
	t.Helper()
	for _, m := range w.machines {
		m.KillAfter(n, actiontest.Torn)
	}
	_, _ = w.executor().Undo(t.Context(), nil, []string{"a", "b"})
	for _, m := range w.machines {
		m.KillAfter(-1, actiontest.Before)
	}
	if _, err := w.executor().Undo(t.Context(), nil, []string{"a", "b"}); err != nil {
		t.Fatalf("%s: undo: %v", where, err)
	}
}

func TestUndoUsesActionsThatAreKnown(t *testing.T) {
	w := newWorld("a")
	called := 0
	s := phase.Step{ID: "init/a/x", Phase: phase.Init, Host: "a", Action: custom{undo: func() error { called++; return nil }}}
	if _, err := w.executor().Apply(t.Context(), []phase.Step{s}); err != nil {
		t.Fatal(err)
	}
	result, err := w.executor().Undo(t.Context(), []phase.Step{s}, []string{"a"})
	if err != nil || called != 1 || result.Count(phase.StateUndone) != 1 {
		t.Errorf("called %d times: %+v, %v", called, result, err)
	}
	result, err = w.executor().Undo(t.Context(), []phase.Step{s}, []string{"a"})
	if err != nil || called != 1 || len(result.Steps) != 0 {
		t.Errorf("second undo: called %d times: %+v, %v", called, result, err)
	}
}

func TestUndoStopsAHostWhereItFails(t *testing.T) {
	w := newWorld("a", "b")
	bad := phase.Step{ID: "init/a/x", Phase: phase.Init, Host: "a", Needs: []string{"prepare/"}, Action: custom{undo: always(errors.New("no"))}}
	steps := []phase.Step{step(phase.Prepare, "a", "x"), step(phase.Prepare, "b", "x"), bad}
	if _, err := w.executor().Apply(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
	result, err := w.executor().Undo(t.Context(), steps, []string{"a", "b"})
	if err == nil || result.Count(phase.StateUndone) != 1 || result.Count(phase.StateUndoFailed) != 1 {
		t.Errorf("%+v, %v", result.Steps, err)
	}
	if !strings.Contains(w.machines["a"].Snapshot(), "/etc/prepare/x") {
		t.Error("what the failing step stands on is gone")
	}
}

// custom is an action with an undo of its own, which keeps nothing.
type custom struct{ undo func() error }

func (custom) String() string { return "custom" }
func (custom) Observe(context.Context, host.Host) ([]phase.Change, error) {
	return []phase.Change{{What: "x"}}, nil
}
func (custom) Apply(context.Context, host.Host, func(string)) error { return nil }
func (custom) Prove(context.Context, host.Host) error               { return nil }
func (c custom) Undo(context.Context, host.Host) error              { return c.undo() }
