package host

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeSystemd stands in for systemd-run and systemctl. It runs the unit's shell
// in a session of its own, notes its process, and knows as active what lives.
// Commands end up in $DIR/log.
const fakeSystemdRun = `echo "systemd-run $*" >>"$DIR/log"
for a; do case $a in --unit=*) unit=${a#--unit=}; unit=${unit%.service};; esac; done
[ ! -e "$DIR/$unit.broken" ] || { echo "Failed to connect to bus" >&2; exit 1; }
while [ "${1#-}" != "$1" ]; do shift; done
setsid "$@" >/dev/null 2>&1 </dev/null &
echo $! >"$DIR/$unit.pid"
`

const fakeSystemctl = `case $1 in
show) unit=${4%.service};;
stop) unit=${2%.service};;
esac
pid=$(cat "$DIR/$unit.pid" 2>/dev/null)
alive() { [ -n "$pid" ] && [ -e "/proc/$pid" ] && ! grep -q ') Z ' "/proc/$pid/stat" 2>/dev/null; }
case $1 in
show) if alive; then echo active; else echo inactive; fi;;
stop) alive && kill -s KILL -- "-$pid"; while alive; do sleep 0.05; done; :;;
esac
`

// unitSite is a machine with the fake systemd.
type unitSite struct {
	*site
	h   *SSH
	dir string // of the unit's files
	log string // folder of the fake systemd
}

func newUnitSite(t *testing.T) *unitSite {
	t.Helper()
	bin, log := t.TempDir(), t.TempDir()
	mustWrite(t, filepath.Join(bin, "systemd-run"), "#!/bin/sh\n"+fakeSystemdRun, 0o755)
	mustWrite(t, filepath.Join(bin, "systemctl"), "#!/bin/sh\n"+fakeSystemctl, 0o755)
	s := newSite(t, withPath(bin), "DIR="+log)
	return &unitSite{site: s, h: open(t, s.config()), dir: t.TempDir() + "/units", log: log}
}

func (s *unitSite) run(h Host, c Command) *unitRun {
	return &unitRun{h: h, name: "job", dir: s.dir, c: c, pause: 20 * time.Millisecond}
}

func (s *unitSite) started(t *testing.T) int {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(s.log, "log"))
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	return strings.Count(string(b), "systemd-run")
}

func TestUnitRunsToItsEnd(t *testing.T) {
	s := newUnitSite(t)
	var lines []string
	c := Command{
		Args: []string{"sh", "-c", `echo "out $V $1"; cat; echo err >&2; [ ! -e "$0" ]`, s.dir + "/job.in", `$HOME 'x' %n`}, Env: []string{"V=$a b"},
		Stdin: strings.NewReader("secret\n"), Output: func(line string) { lines = append(lines, line) },
	}
	out, err := s.run(s.h, c).run(t.Context())
	if want := "out $a b $HOME 'x' %n\nsecret\nerr\n"; err != nil || out.Stdout != want {
		t.Fatalf("output %q, %v; want %q", out.Stdout, err, want)
	}
	if got := strings.Join(lines, "|"); got != `out $a b $HOME 'x' %n|secret|err` {
		t.Errorf("lines %q", got)
	}
	left, err := os.ReadDir(s.dir)
	if err != nil || len(left) > 0 {
		t.Errorf("files %v left, %v", left, err)
	}
	log, err := os.ReadFile(filepath.Join(s.log, "log"))
	if err != nil {
		t.Fatal(err)
	}
	if got := string(log); strings.Contains(got, "secret") || !strings.Contains(got, "--unit=kubeinit-job.service --description=kubeinit kubeinit-job /bin/sh ") || !strings.HasSuffix(got, "/bin/sh "+s.dir+"/job.sh\n") {
		t.Errorf("systemd-run got %q", got)
	}
	if info, err := os.Stat(s.dir); err != nil || info.Mode().Perm() != 0o700 {
		t.Errorf("directory: %v, %v; want mode 0700", info.Mode(), err)
	}
}

func TestUnitsFilesAreRootsAlone(t *testing.T) {
	s := newUnitSite(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	c := Command{Args: []string{"sh", "-c", "umask; sleep 300"}, Stdin: strings.NewReader("x"), Output: func(line string) {
		if line != "0022" {
			t.Errorf("umask %s, want 0022: that of our files is not the command's", line)
		}
		cancel()
	}}
	if _, err := s.run(s.h, c).run(ctx); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want context.Canceled", err)
	}
	for _, ext := range []string{"out", "sh"} {
		if info, err := os.Stat(s.dir + "/job." + ext); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("job.%s: %v, %v; want mode 0600", ext, info.Mode(), err)
		}
	}
	if err := s.run(s.h, c).stop(t.Context()); err != nil {
		t.Error(err)
	}
	if left, err := os.ReadDir(s.dir); err != nil || len(left) > 0 {
		t.Errorf("files %v left after the stop, %v", left, err)
	}
}

func TestUnitKeepsItsExitStatus(t *testing.T) {
	s := newUnitSite(t)
	c := Command{Args: []string{"sh", "-c", "echo why; exit 9"}}
	out, err := s.run(s.h, c).run(t.Context())
	exit, ok := errors.AsType[*ExitError](err)
	if !ok || exit.Code != 9 || strings.Join(exit.Tail, "|") != "why" || out.Stdout != "why\n" {
		t.Fatalf("output %q, error %v; want exit status 9", out.Stdout, err)
	}
	if _, err := s.run(s.h, c).run(t.Context()); err == nil || s.started(t) != 2 {
		t.Errorf("error %v, started %d times; want a second run", err, s.started(t))
	}
	c.Secret = true
	_, err = s.run(s.h, c).run(t.Context())
	if exit, ok := errors.AsType[*ExitError](err); !ok || len(exit.Tail) > 0 {
		t.Errorf("secret output in error %v", err)
	}
}

// Whoever followed the unit is gone; it goes on, and the next one follows it.
func TestRunningUnitIsFollowedAgain(t *testing.T) {
	s := newUnitSite(t)
	gate := t.TempDir() + "/gate"
	c := Command{Args: []string{"sh", "-c", `echo one; while [ ! -e "$1" ]; do sleep 0.05; done; echo two`, "sh", gate}}
	ctx, cancel := context.WithCancel(t.Context())
	first := c
	first.Output = func(string) { cancel() }
	if _, err := s.run(s.h, first).run(ctx); !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "goes on without us") {
		t.Fatalf("error %v, want that the unit goes on", err)
	}
	other := Command{Args: []string{"echo", "something else"}}
	if _, err := s.run(s.h, other).run(t.Context()); !errors.Is(err, ErrUnitBusy) {
		t.Errorf("another command under this name: %v, want ErrUnitBusy", err)
	}
	second := c
	second.Output = func(line string) {
		if line == "one" {
			mustWrite(t, gate, "", 0o600)
		}
	}
	out, err := s.run(open(t, s.config()), second).run(t.Context())
	if err != nil || out.Stdout != "one\ntwo\n" {
		t.Errorf("output %q, %v; want all of it", out.Stdout, err)
	}
	if n := s.started(t); n != 1 {
		t.Errorf("started %d times, want once", n)
	}
}

func TestUnseenSuccessIsGivenOnceAndUnseenFailureIsRunAgain(t *testing.T) {
	for status, want := range map[string]int{"0": 1, "1": 2} {
		s := newUnitSite(t)
		c := Command{Args: []string{"sh", "-c", "echo begun; echo done; exit " + status}}
		u := s.run(s.h, c)
		if err := u.start(t.Context()); err != nil {
			t.Fatal(err)
		}
		for {
			if l, err := u.look(t.Context(), 0); err != nil {
				t.Fatal(err)
			} else if !l.running {
				break
			}
		}
		out, err := s.run(s.h, c).run(t.Context())
		if (err == nil) != (status == "0") || out.Stdout != "begun\ndone\n" {
			t.Errorf("status %s: output %q, %v", status, out.Stdout, err)
		}
		if n := s.started(t); n != want {
			t.Errorf("status %s: started %d times, want %d", status, n, want)
		}
		if _, err := s.run(s.h, c).run(t.Context()); (err == nil) != (status == "0") || s.started(t) != want+1 {
			t.Errorf("status %s: %v, started %d times; want a new run after the result was given", status, err, s.started(t))
		}
	}
}

func TestUnitThatIsKilledHasNoStatus(t *testing.T) {
	s := newUnitSite(t)
	c := Command{Args: []string{"sh", "-c", `echo begun; kill -s KILL "$PPID"; exec sleep 0`}}
	_, err := s.run(s.h, c).run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "ended from outside") {
		t.Errorf("error %v, want that it was ended from outside", err)
	}
}

func TestUnitThatCannotStartLeavesNoSecret(t *testing.T) {
	s := newUnitSite(t)
	mustWrite(t, filepath.Join(s.log, "kubeinit-job.broken"), "", 0o600)
	_, err := s.run(s.h, Command{Args: []string{"cat"}, Stdin: strings.NewReader("secret")}).run(t.Context())
	if err == nil || !strings.Contains(err.Error(), "Failed to connect to bus") {
		t.Errorf("error %v, want systemd's", err)
	}
	if _, err := os.Stat(s.dir + "/job.in"); !os.IsNotExist(err) {
		t.Errorf("the secret is left: %v", err)
	}
}

func TestUnitIsFollowedOverBrokenConnections(t *testing.T) {
	s := newUnitSite(t)
	c := Command{Args: []string{"sh", "-c", "for i in 1 2 3 4 5 6; do echo $i; sleep 0.1; done"}, Output: func(string) { s.server.drop() }}
	out, err := s.run(s.h, c).run(t.Context())
	if err != nil || out.Stdout != "1\n2\n3\n4\n5\n6\n" {
		t.Errorf("output %q, %v", out.Stdout, err)
	}
}

func TestUnitsOutputIsFetchedInChunks(t *testing.T) {
	s := newUnitSite(t)
	c := Command{Args: []string{"sh", "-c", "head -c 900000 /dev/zero | tr '\\0' x"}}
	out, err := s.run(s.h, c).run(t.Context())
	if err != nil || out.Stdout != strings.Repeat("x", 900000) {
		t.Errorf("%d bytes, %v; want 900000", len(out.Stdout), err)
	}
}

func TestUnitNamesAreChecked(t *testing.T) {
	f := NewFake("h")
	for _, name := range []string{"", "a/b", "../x", "a b", "-x", "a$b", strings.Repeat("x", 101)} {
		if _, err := RunUnit(t.Context(), f, name, Command{Args: []string{"true"}}); err == nil {
			t.Errorf("unit %q was run", name)
		}
		if err := StopUnit(t.Context(), f, name); err == nil {
			t.Errorf("unit %q was stopped", name)
		}
	}
}

func TestFakeRunsUnits(t *testing.T) {
	f := NewFake("h")
	began, gate := make(chan struct{}), make(chan struct{})
	f.On("kubeadm init", func(ctx context.Context, c Call) Result {
		close(began)
		select {
		case <-gate:
		case <-ctx.Done():
			return Result{Code: 143}
		}
		return Result{Stdout: "in " + c.Stdin, Stderr: "warning\n"}
	})
	f.On("kubeadm join", func(context.Context, Call) Result { return Result{Stdout: "no\n", Code: 1} })
	c := Command{Args: []string{"kubeadm", "init"}, Stdin: strings.NewReader("token\n")}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := RunUnit(ctx, f, "init", c); !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want context.Canceled", err)
	}
	ctx, cancel = context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := RunUnit(ctx, f, "init", c); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v, want context.Canceled", err)
		}
	})
	<-began
	cancel()
	wg.Wait()
	if _, err := RunUnit(t.Context(), f, "init", Command{Args: []string{"other"}}); !errors.Is(err, ErrUnitBusy) {
		t.Errorf("error %v, want ErrUnitBusy", err)
	}
	close(gate)
	out, err := RunUnit(t.Context(), f, "init", c)
	if err != nil || out.Stdout != "in token\nwarning\n" {
		t.Errorf("output %q, %v", out.Stdout, err)
	}
	if calls := f.Calls(); len(calls) != 1 {
		t.Errorf("calls %q, want the one that was followed again", calls)
	}
	_, err = RunUnit(t.Context(), f, "join", Command{Args: []string{"kubeadm", "join"}})
	if exit, ok := errors.AsType[*ExitError](err); !ok || exit.Code != 1 {
		t.Errorf("error %v, want exit status 1", err)
	}
	if err := StopUnit(t.Context(), f, "none"); err != nil {
		t.Error(err)
	}
}
