package phase_test

import (
	"fmt"
	"testing"
	"testing/synctest"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/kubeinit/internal/action"
	"github.com/planetmesh/planetmesh/kubeinit/internal/action/actiontest"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// TestLostConnectionIsNoFailure breaks the connection once, at every call: the run
// must not notice, whether the call was done or not.
func TestLostConnectionIsNoFailure(t *testing.T) {
	setup := func() (*world, []phase.Step) {
		w := newWorld("a")
		w.machines["a"].Put("/etc/0/0", "old", 0o600, 3, 4)
		w.machines["a"].Put("/etc/hosts", "x", 0o600, 3, 4)
		first := step(phase.Prepare, "a", "0")
		first.Action = files{content: map[string]string{"/etc/0/0": "new", "/etc/0/1": "new"}}
		second := step(phase.Proxy, "a", "1", "prepare/")
		second.Action = action.Block{Path: "/etc/hosts", Mark: "us", Text: "y\n"}
		return w, []phase.Step{first, second}
	}
	w, steps := setup()
	before := w.snapshot()
	plan, err := w.executor().Plan(t.Context(), steps)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.executor().Apply(t.Context(), steps); err != nil {
		t.Fatal(err)
	}
	want := w.snapshot()
	calls := len(w.machines["a"].Calls())
	for _, cut := range actiontest.Cuts {
		for n := range calls {
			synctest.Test(t, func(t *testing.T) {
				where := fmt.Sprintf("call %d, cut %v", n, cut)
				w, steps := setup()
				w.machines["a"].LoseAfter(n, cut)
				result, err := w.executor().Apply(t.Context(), steps)
				if err != nil {
					t.Fatalf("%s: %v", where, err)
				}
				if diff := cmp.Diff(want, w.snapshot()); diff != "" {
					t.Errorf("%s:\n%s", where, diff)
				}
				got := result.Changes()
				if diff := cmp.Diff(map[string][]phase.Change{steps[0].ID: plan.Steps[0].Changes, steps[1].ID: plan.Steps[1].Changes}, got); diff != "" {
					t.Errorf("%s: changes (-plan +apply):\n%s", where, diff)
				}
				w.machines["a"].LoseAfter(n%25, cut)
				if _, err := w.executor().Undo(t.Context(), nil, []string{"a"}); err != nil {
					t.Fatalf("%s: undo: %v", where, err)
				}
				if diff := cmp.Diff(before, w.snapshot()); diff != "" {
					t.Errorf("%s: after undo:\n%s", where, diff)
				}
			})
		}
	}
}

func TestConnectionThatStaysLostIsAFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld("a")
		tries := 0
		s := failing(step(phase.Prepare, "a", "x"), func() error {
			tries++
			w.machines["a"].LoseAfter(0, actiontest.Before)
			return nil
		})
		result, err := w.executor().Apply(t.Context(), []phase.Step{s})
		if err == nil || tries != 5 || len(result.Failures) != 1 || len(result.Failures[0].Undone) != 1 {
			t.Errorf("%d tries: %+v, %v", tries, result, err)
		}
	})
}
