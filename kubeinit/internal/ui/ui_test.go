package ui_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
	"github.com/planetmesh/planetmesh/kubeinit/internal/ui"
)

var update = flag.Bool("update", false, "rewrite golden files")

func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

var (
	start   = time.Date(2026, 11, 23, 2, 0, 0, 0, time.UTC)
	changes = []phase.Change{
		{What: "file /etc/x", To: " one\n-two\n+\x1b[31mTWO"}, {What: "mode of /etc/x", From: "0600", To: "0644"},
		{What: "file /etc/key", From: "(secret)", To: "(secret)"},
	}
	secretKey = strings.Repeat("0123456789abcdef", 4)
)

// story is a run in which one host fails; each event comes so many seconds after
// the beginning.
func story() []phase.Event {
	var events []phase.Event
	add := func(seconds float64, host string, ph phase.Name, step string, e phase.Event) {
		e.Time = start.Add(time.Duration(seconds * float64(time.Second)))
		e.Host, e.Phase = host, ph
		if step != "" {
			e.Step = fmt.Sprintf("%s/%s/%s", ph, host, step)
		}
		events = append(events, e)
	}
	add(0, "master01", phase.Prepare, "files", phase.Event{Kind: phase.Started, Text: "file /etc/x"})
	add(0.2, "node01", phase.Prepare, "swap", phase.Event{Kind: phase.Started, Text: "no swap"})
	add(0.5, "node01", phase.Prepare, "swap", phase.Event{Kind: phase.Unchanged, Duration: 300 * time.Millisecond})
	add(1.2, "master01", phase.Prepare, "files", phase.Event{Kind: phase.Done, Changes: changes, Duration: 1200 * time.Millisecond})
	add(1.2, "", phase.Prepare, "", phase.Event{Kind: phase.PhaseDone, Text: "1 done, 1 unchanged", Duration: 1200 * time.Millisecond})
	add(1.3, "node01", phase.Join, "kubeadm", phase.Event{Kind: phase.Started, Text: "kubeadm join"})
	add(9, "node01", phase.Join, "kubeadm", phase.Event{Kind: phase.Line, Text: "kubeadm join api.planet --token abcdef.0123456789abcdef --certificate-key " + secretKey})
	add(12, "node01", phase.Join, "kubeadm", phase.Event{Kind: phase.Line, Text: "[preflight]\tpassword is hunter2hunter2 \x1b[2J\x07über"})
	add(75, "node01", phase.Join, "kubeadm", phase.Event{Kind: phase.Failed, Text: "node01: kubeadm join: exit status 1: no route", Duration: 74 * time.Second})
	add(76, "node01", phase.Join, "kubeadm", phase.Event{Kind: phase.Undone, Text: "kubeadm join", Duration: time.Second})
	add(76, "node01", phase.PodNet, "routes", phase.Event{Kind: phase.Blocked, Text: "the host stopped at join/node01/kubeadm"})
	add(76, "", phase.Join, "", phase.Event{Kind: phase.PhaseDone, Text: "1 failed", Duration: 75 * time.Second})
	return events
}

func result() phase.Result {
	return phase.Result{
		Began: start, Duration: 76 * time.Second,
		Steps: []phase.StepResult{
			{ID: "prepare/master01/files", Phase: phase.Prepare, Host: "master01", Action: "file /etc/x", State: phase.StateDone, Changes: changes, Tries: 1},
			{ID: "prepare/node01/swap", Phase: phase.Prepare, Host: "node01", Action: "no swap", State: phase.StateUnchanged},
			{ID: "join/node01/kubeadm", Phase: phase.Join, Host: "node01", Action: "kubeadm join", State: phase.StateFailed, Reason: "no route"},
			{ID: "podnet/node01/routes", Phase: phase.PodNet, Host: "node01", Action: "routes", State: phase.StateBlocked},
		},
		Phases: []phase.Timing{
			{Phase: phase.Prepare, Began: start, Duration: 1200 * time.Millisecond, Steps: map[phase.State]int{phase.StateDone: 1, phase.StateUnchanged: 1}},
			{Phase: phase.Join, Began: start, Duration: 75 * time.Second, Steps: map[phase.State]int{phase.StateFailed: 1}},
		},
		Failures: []phase.Failure{{
			Step: "join/node01/kubeadm", Host: "node01", Error: "node01: kubeadm join: exit status 1: no route", Command: "kubeadm join", Code: 1,
			Tail: []string{"dialing with hunter2hunter2", "-----BEGIN RSA PRIVATE KEY-----", "MIIabc", "-----END RSA PRIVATE KEY-----", "no\x1b]0;route"},
			Hint: "kubeinit check", Undone: []string{"join/node01/kubeadm"}, NotUndone: []string{"prepare/node01/x: connection lost"},
		}},
	}
}

var plan = phase.Plan{Steps: []phase.PlanStep{
	{ID: "prepare/master01/files", Phase: phase.Prepare, Host: "master01", Action: "file /etc/x", Changes: changes},
	{ID: "prepare/node01/swap", Phase: phase.Prepare, Host: "node01", Action: "no swap"},
	{ID: "join/node01/kubeadm", Phase: phase.Join, Host: "node01", Action: "kubeadm join", Changes: []phase.Change{{What: "kubeadm join"}}},
}}

func options(mode ui.Mode) ui.Options {
	return ui.Options{Mode: mode, Hosts: []string{"master01", "node01", "lb"}, Steps: 4, Secrets: []string{"hunter2hunter2", "api"}}
}

func TestPlainLog(t *testing.T) {
	var b bytes.Buffer
	v := ui.New(&b, options(ui.Plain))
	for _, e := range story() {
		v.Event(e)
	}
	v.Result(result())
	v.Plan(plan)
	v.Plan(phase.Plan{Steps: plan.Steps[1:2]})
	v.Close()
	v.Close()
	golden(t, "plain", b.String())
	wantHarmless(t, b.String())
}

func TestJSONLines(t *testing.T) {
	var b bytes.Buffer
	v := ui.New(&b, options(ui.JSON))
	for _, e := range story() {
		v.Event(e)
	}
	v.Result(result())
	v.Plan(plan)
	v.Close()
	golden(t, "json", b.String())
	wantHarmless(t, b.String())
	for line := range strings.Lines(b.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil || m["v"] != 1.0 || m["kind"] == "" {
			t.Errorf("%v in %s", err, line)
		}
	}
}

// wantHarmless checks that no secret and no control character is shown.
func wantHarmless(t *testing.T, text string) {
	t.Helper()
	for _, s := range []string{"hunter2", "abcdef.0123456789abcdef", secretKey, "MIIabc", "\x1b", "\x07"} {
		if strings.Contains(text, s) {
			t.Errorf("%q is shown", s)
		}
	}
}

// play shows the story in its own time, and the screen at some points of it.
func play(t *testing.T, screen *terminal, o ui.Options, at func(seconds int, v *ui.View)) string {
	t.Helper()
	var out strings.Builder
	o.Size = screen.size
	began := time.Now()
	v := ui.New(screen, o)
	next := 0
	for _, e := range story() {
		offset := e.Time.Sub(start)
		for ; time.Duration(next)*time.Second <= offset; next++ {
			time.Sleep(time.Until(began.Add(time.Duration(next)*time.Second + time.Microsecond)))
			synctest.Wait()
			if next%10 == 0 || next < 3 {
				fmt.Fprintf(&out, "--- after %d s\n%s\n", next, screen)
			}
			if at != nil {
				at(next, v)
			}
		}
		time.Sleep(time.Until(began.Add(offset)))
		e.Time = began.Add(offset)
		v.Event(e)
	}
	fmt.Fprintf(&out, "--- at the end\n%s\n", screen)
	v.Result(result())
	v.Close()
	fmt.Fprintf(&out, "--- closed\n%s\n", screen)
	if screen.col != 0 || screen.color != "" || screen.row != len(screen.lines)-1 {
		t.Errorf("the cursor is left in column %d of line %d of %d, colour %q", screen.col, screen.row, len(screen.lines), screen.color)
	}
	wantHarmless(t, screen.String())
	return out.String()
}

func TestTerminal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		o := options(ui.TTY)
		o.Color = true
		golden(t, "terminal", play(t, newTerminal(t, 72, 24), o, nil))
	})
}

func TestTerminalThatIsSmallAndResized(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		screen := newTerminal(t, 30, 4)
		golden(t, "terminal-small", play(t, screen, options(ui.TTY), func(seconds int, v *ui.View) {
			switch seconds {
			case 15:
				screen.resize(20, 4)
				v.Warn("the lock was taken over")
			case 25:
				screen.resize(50, 10)
			}
		}))
	})
}

func TestTerminalOfUnknownOrAbsurdSize(t *testing.T) {
	for _, size := range [][2]int{{0, 0}, {1, 1}, {2, 2}, {5, 1000}} {
		synctest.Test(t, func(t *testing.T) {
			o := options(ui.TTY)
			o.Size = func() (int, int) { return size[0], size[1] }
			v := ui.New(io.Discard, o)
			for _, e := range story() {
				v.Event(e)
			}
			v.Close()
		})
	}
}

func TestManyLinesAreDrawnNowAndThen(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		writes := 0
		v := ui.New(writer(func(p []byte) (int, error) { writes++; return len(p), nil }), options(ui.TTY))
		defer v.Close()
		v.Event(phase.Event{Time: time.Now(), Host: "lb", Phase: phase.Prepare, Step: "prepare/lb/x", Kind: phase.Started})
		for range 1000 {
			time.Sleep(time.Millisecond)
			v.Event(phase.Event{Time: time.Now(), Host: "lb", Phase: phase.Prepare, Step: "prepare/lb/x", Kind: phase.Line, Text: "x"})
		}
		if writes < 10 || writes > 13 {
			t.Errorf("%d drawings in a second", writes)
		}
	})
}

type writer func(p []byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestWarning(t *testing.T) {
	var b bytes.Buffer
	for _, mode := range []ui.Mode{ui.Plain, ui.JSON} {
		v := ui.New(&b, options(mode))
		v.Warn("the lock of hunter2hunter2\x1b[2J was taken over")
		v.Close()
	}
	if n := strings.Count(b.String(), "the lock of (secret)"); n != 2 || !strings.Contains(b.String(), `"kind":"warning"`) {
		t.Errorf("shown %q", b.String())
	}
	wantHarmless(t, b.String())
}

func TestPrivateKeyInSeveralLinesIsMasked(t *testing.T) {
	var b bytes.Buffer
	v := ui.New(&b, options(ui.Plain))
	defer v.Close()
	for _, line := range []string{"before", "-----BEGIN EC PRIVATE KEY-----", "MIIabc", "xyz==", "-----END EC PRIVATE KEY-----", "after"} {
		v.Event(phase.Event{Time: start, Host: "a", Phase: phase.Init, Step: "init/a/x", Kind: phase.Line, Text: line})
		v.Event(phase.Event{Time: start, Host: "b", Phase: phase.Init, Step: "init/b/x", Kind: phase.Line, Text: "harmless"})
	}
	got := b.String()
	if strings.Contains(got, "MIIabc") || strings.Contains(got, "xyz") || !strings.Contains(got, "after") || strings.Count(got, "harmless") != 6 {
		t.Errorf("shown\n%s", got)
	}
}

func TestOptionsForStreams(t *testing.T) {
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	tests := []struct {
		name   string
		stream any
		env    []string
		json   bool
		mode   ui.Mode
		color  bool
	}{
		{"terminal", tty, []string{"TERM=xterm"}, false, ui.TTY, true},
		{"terminal without colours", tty, []string{"TERM=xterm", "NO_COLOR=1"}, false, ui.TTY, false},
		{"terminal with an empty wish", tty, []string{"NO_COLOR="}, false, ui.TTY, true},
		{"dumb terminal", tty, []string{"TERM=dumb"}, false, ui.Plain, false},
		{"last setting wins", tty, []string{"TERM=dumb", "TERM=xterm"}, false, ui.TTY, true},
		{"machine", tty, nil, true, ui.JSON, false},
		{"file", &bytes.Buffer{}, nil, false, ui.Plain, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			o := ui.For(tt.stream, tt.env, tt.json)
			if o.Mode != tt.mode || o.Color != tt.color || (o.Size != nil) != (tt.mode == ui.TTY) {
				t.Errorf("%+v", o)
			}
			if o.Size != nil {
				o.Size()
			}
		})
	}
}
