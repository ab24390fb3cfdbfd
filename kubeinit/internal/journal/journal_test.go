package journal_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/kubeinit/internal/action/actiontest"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
)

func mustOpen(t *testing.T, m *actiontest.Machine) *journal.Log {
	t.Helper()
	l, err := journal.Open(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

func mustBegin(t *testing.T, l *journal.Log, step string) *journal.Intent {
	t.Helper()
	in, err := l.Begin(t.Context(), step, "file /etc/x", []string{"file /etc/x: a -> b"})
	if err != nil {
		t.Fatal(err)
	}
	return in
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// states lists steps and states, the oldest first.
func states(l *journal.Log) []string {
	var out []string
	for _, d := range l.Deeds() {
		out = append(out, fmt.Sprintf("%d %s %s", d.Seq, d.Step, d.State))
	}
	return out
}

func TestOpenChangesNothing(t *testing.T) {
	m := actiontest.New("a")
	before := m.Snapshot()
	mustOpen(t, m)
	if diff := cmp.Diff(before, m.Snapshot()); diff != "" {
		t.Errorf("the host changed:\n%s", diff)
	}
}

func TestAnotherLogSeesWhatWasWritten(t *testing.T) {
	m := actiontest.New("a")
	l := mustOpen(t, m)
	must(t, mustBegin(t, l, "one").Done(t.Context()))
	mustBegin(t, l, "two")
	must(t, mustBegin(t, l, "three").Done(t.Context()))
	must(t, l.Resume(l.Deeds()[2]).Undone(t.Context()))
	again := mustOpen(t, m)
	want := []string{"1 one done", "2 two intent", "3 three undone"}
	if diff := cmp.Diff(want, states(again)); diff != "" {
		t.Errorf("deeds (-want +got):\n%s", diff)
	}
	var undo []string
	for _, d := range again.ToUndo() {
		undo = append(undo, d.Step)
	}
	if diff := cmp.Diff([]string{"two", "one"}, undo); diff != "" {
		t.Errorf("to undo (-want +got):\n%s", diff)
	}
	if !again.Interrupted("two") || again.Interrupted("one") {
		t.Error("two was interrupted, one was not")
	}
}

func TestInterruptedStepKeepsItsIntent(t *testing.T) {
	m := actiontest.New("a")
	m.Put("/etc/x", "original", 0o644, 0, 0)
	in := mustBegin(t, mustOpen(t, m), "one")
	must(t, in.KeepFile(t.Context(), "/etc/x"))
	m.Put("/etc/x", "half", 0o644, 0, 0)

	in = mustBegin(t, mustOpen(t, m), "one")
	must(t, in.KeepFile(t.Context(), "/etc/x"))
	if d, err := in.Deed(); err != nil || len(d.Before) != 1 {
		t.Errorf("kept is %+v, %v", d.Before, err)
	}
	must(t, in.Restore(t.Context()))
	data, err := m.ReadFile(t.Context(), "/etc/x")
	if err != nil || string(data) != "original" {
		t.Errorf("after undo: %q, %v", data, err)
	}
}

func TestKeptContentIsForRootOnly(t *testing.T) {
	m := actiontest.New("a")
	m.Put("/etc/key", "very secret", 0o644, 0, 0)
	in := mustBegin(t, mustOpen(t, m), "one")
	must(t, in.KeepFile(t.Context(), "/etc/key"))
	d, err := in.Deed()
	must(t, err)
	for name, want := range map[string]fs.FileMode{
		journal.BeforeDir: fs.ModeDir | 0o700, journal.BeforeDir + "/" + d.Before[0].Copy: 0o600, journal.File: 0o600,
	} {
		info, err := m.Stat(t.Context(), name)
		if err != nil || info.Mode != want {
			t.Errorf("%s has mode %v, %v; want %v", name, info.Mode, err, want)
		}
	}
	data, err := m.ReadFile(t.Context(), journal.File)
	if err != nil || strings.Contains(string(data), "secret") {
		t.Errorf("journal %q, %v", data, err)
	}
}

// giant is a machine of which each file says that it is very big.
type giant struct{ *actiontest.Machine }

func (g giant) Stat(ctx context.Context, name string) (host.Info, error) {
	info, err := g.Machine.Stat(ctx, name)
	info.Size = 1 << 40
	return info, err
}

func TestWhatIsTooBigIsNotKept(t *testing.T) {
	m := actiontest.New("a")
	m.Put("/etc/x", "x", 0o600, 0, 0)
	l, err := journal.Open(t.Context(), giant{m})
	must(t, err)
	if err := mustBegin(t, l, "one").KeepFile(t.Context(), "/etc/x"); err == nil || strings.Contains(m.Snapshot(), journal.BeforeDir+"/") {
		t.Errorf("KeepFile = %v\n%s", err, m.Snapshot())
	}
}

func TestRestoreIsExact(t *testing.T) {
	setups := map[string]func(m *actiontest.Machine){
		"absent":              func(*actiontest.Machine) {},
		"content, mode, user": func(m *actiontest.Machine) { m.Put("/etc/d/x", "old\x00\xff", 0o640, 7, 8) },
		"setuid":              func(m *actiontest.Machine) { m.Put("/etc/d/x", "old", fs.ModeSetuid|0o755, 0, 0) },
		"empty":               func(m *actiontest.Machine) { m.Put("/etc/d/x", "", 0o600, 0, 0) },
		"link":                func(m *actiontest.Machine) { m.PutLink("/etc/d/x", "../elsewhere") },
	}
	for name, setup := range setups {
		t.Run(name, func(t *testing.T) {
			m := actiontest.New("a")
			setup(m)
			before := m.Snapshot(journal.Dir)
			in := mustBegin(t, mustOpen(t, m), "one")
			must(t, in.KeepFile(t.Context(), "/etc/d/x"))
			must(t, m.Remove(t.Context(), "/etc/d/x"))
			must(t, m.WriteFile(t.Context(), "/etc/d/x", []byte("new"), 0o644))
			for range 2 {
				must(t, in.Restore(t.Context()))
				if diff := cmp.Diff(before, m.Snapshot(journal.Dir)); diff != "" {
					t.Errorf("the host differs:\n%s", diff)
				}
			}
			must(t, in.Undone(t.Context()))
			must(t, in.Undone(t.Context()))
			must(t, in.Restore(t.Context()))
			if diff := cmp.Diff(before, m.Snapshot(journal.Dir)); diff != "" {
				t.Errorf("the host differs after it was undone:\n%s", diff)
			}
			if strings.Contains(m.Snapshot(), journal.BeforeDir+"/") {
				t.Errorf("kept files are left:\n%s", m.Snapshot())
			}
		})
	}
}

func TestRestoreLeavesDirectoriesThatOthersUse(t *testing.T) {
	m := actiontest.New("a")
	in := mustBegin(t, mustOpen(t, m), "one")
	must(t, in.KeepFile(t.Context(), "/etc/d/e/x"))
	must(t, m.WriteFile(t.Context(), "/etc/d/e/x", nil, 0o644))
	must(t, m.WriteFile(t.Context(), "/etc/d/theirs", nil, 0o644))
	must(t, in.Restore(t.Context()))
	if _, err := m.Stat(t.Context(), "/etc/d/theirs"); err != nil {
		t.Error(err)
	}
	if _, err := m.Stat(t.Context(), "/etc/d/e"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("/etc/d/e is left: %v", err)
	}
}

func TestTornLineIsToleratedOnce(t *testing.T) {
	whole := `{"seq":1,"kind":"intent","time":"2026-11-23T02:00:00Z","step":"one"}` + "\n"
	tests := []struct {
		name, file string
		want       []string // after one more deed
	}{
		{"whole", whole, []string{"1 one intent", "2 two intent"}},
		{"half a line", whole + `{"seq":1,"ki`, []string{"1 one intent", "2 two intent"}},
		{"half of the first", `{"seq"`, []string{"1 two intent"}},
		{"without newline", strings.TrimSpace(whole), []string{"1 one intent", "2 two intent"}},
		{"torn twice", whole + "{\"se\n{\"s", []string{"1 one intent", "2 two intent"}},
		{"torn after its newline", whole + "{\"se\n", []string{"1 one intent", "2 two intent"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := actiontest.New("a")
			m.Put(journal.File, tt.file, 0o600, 0, 0)
			mustBegin(t, mustOpen(t, m), "two")
			if diff := cmp.Diff(tt.want, states(mustOpen(t, m))); diff != "" {
				t.Errorf("deeds (-want +got):\n%s", diff)
			}
		})
	}
}

func TestDamageIsAnError(t *testing.T) {
	intent := `{"seq":1,"kind":"intent","step":"one"}` + "\n"
	for name, file := range map[string]string{
		"line in the middle":      intent + "rubbish\n" + `{"seq":1,"kind":"done"}` + "\n",
		"done without intent":     `{"seq":1,"kind":"done"}` + "\n",
		"same number":             intent + intent,
		"goes on after undone":    intent + `{"seq":1,"kind":"undone"}` + "\n" + `{"seq":1,"kind":"done"}` + "\n",
		"unknown kind":            intent + `{"seq":1,"kind":"x"}` + "\n",
		"copy outside of folder":  intent + `{"seq":1,"kind":"before","before":{"type":"file","name":"/etc/x","copy":"../../x"}}` + "\n",
		"relative path":           intent + `{"seq":1,"kind":"before","before":{"type":"file","name":"etc/x"}}` + "\n",
		"unit that is an option":  intent + `{"seq":1,"kind":"before","before":{"type":"unit","name":"--root=/x"}}` + "\n",
		"empty command":           intent + `{"seq":1,"kind":"before","before":{"type":"command","name":"x","commands":[[]]}}` + "\n",
		"type nobody knows":       intent + `{"seq":1,"kind":"before","before":{"type":"y","name":"x"}}` + "\n",
		"directory that is above": intent + `{"seq":1,"kind":"before","before":{"type":"file","name":"/etc/x","made":["/etc/../.."]}}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			m := actiontest.New("a")
			m.Put(journal.File, file, 0o600, 0, 0)
			if l, err := journal.Open(t.Context(), m); err == nil {
				t.Errorf("accepted: %+v", l.Deeds())
			}
		})
	}
}

func TestWriteThatDiesHalfWayIsHealed(t *testing.T) {
	m := actiontest.New("a")
	l := mustOpen(t, m)
	mustBegin(t, l, "one")
	m.KillAfter(0, actiontest.Torn)
	if _, err := l.Begin(t.Context(), "two", "", nil); err == nil {
		t.Fatal("no error from a dead host")
	}
	m.KillAfter(-1, actiontest.Before)
	mustBegin(t, l, "three") // the same log, whose host came back
	want := []string{"1 one intent", "2 three intent"}
	for _, l := range []*journal.Log{l, mustOpen(t, m)} {
		if diff := cmp.Diff(want, states(l)); diff != "" {
			t.Errorf("deeds (-want +got):\n%s", diff)
		}
	}
}

func TestCompactKeepsTheOldest(t *testing.T) {
	m := actiontest.New("a")
	m.Put("/etc/x", "original", 0o600, 0, 0)
	l := mustOpen(t, m)
	long := strings.Repeat("x", 200)
	rounds := 0
	for ; strings.Count(m.Snapshot(), journal.BeforeDir+"/") < 150; rounds++ {
		in, err := l.Begin(t.Context(), "one", long, []string{long, long, long})
		must(t, err)
		must(t, in.KeepFile(t.Context(), "/etc/x"))
		m.Put("/etc/x", fmt.Sprint(rounds), 0o600, 0, 0)
		must(t, in.Done(t.Context()))
	}
	gone, err := l.Begin(t.Context(), "undone", strings.Repeat(long, 5000), nil)
	must(t, err)
	must(t, gone.Undone(t.Context()))
	_, err = l.Begin(t.Context(), "own undo", "", nil)
	must(t, err)

	l = mustOpen(t, m)
	mustBegin(t, l, "last") // finds the file too big
	if diff := cmp.Diff([]string{"1 one done", "152 own undo intent", "153 last intent"}, states(mustOpen(t, m))); diff != "" {
		t.Errorf("deeds (-want +got):\n%s", diff)
	}
	if n := strings.Count(m.Snapshot(), journal.BeforeDir+"/"); n != 1 {
		t.Errorf("%d kept files are left of %d", n, rounds)
	}
	for _, d := range l.ToUndo() {
		must(t, l.Resume(d).Restore(t.Context()))
	}
	data, err := m.ReadFile(t.Context(), "/etc/x")
	if err != nil || string(data) != "original" {
		t.Errorf("after undo: %q, %v", data, err)
	}
}

func TestEndRefusesWhileSomethingIsLeft(t *testing.T) {
	m := actiontest.New("a")
	before := m.Snapshot()
	l := mustOpen(t, m)
	in := mustBegin(t, l, "one")
	if err := l.End(t.Context(), false); !errors.Is(err, journal.ErrNotUndone) {
		t.Errorf("End = %v", err)
	}
	must(t, in.Undone(t.Context()))
	must(t, l.End(t.Context(), false))
	if diff := cmp.Diff(before, m.Snapshot()); diff != "" {
		t.Errorf("something is left:\n%s", diff)
	}
	mustBegin(t, l, "one") // and it can begin anew
	if diff := cmp.Diff([]string{"1 one intent"}, states(mustOpen(t, m))); diff != "" {
		t.Errorf("deeds (-want +got):\n%s", diff)
	}
}

func TestNothingIsChangedWithoutJournal(t *testing.T) {
	if _, err := journal.From(context.Background()); err == nil {
		t.Error("no error without an intent")
	}
}
