package phase_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// shell is a host that runs commands on this machine, for scripts whose meaning
// is the shell's. It can do nothing else.
type shell struct {
	host.Host
	gone  atomic.Bool
	lose  atomic.Int32 // answers that do not come
	calls chan string  // gets what each call was about, if it is not nil
}

func (s *shell) Name() string { return "master01" }

func (s *shell) Run(ctx context.Context, c host.Command) (host.Output, error) {
	if s.gone.Load() {
		return host.Output{}, errors.New("connection lost")
	}
	cmd := exec.CommandContext(ctx, c.Args[0], c.Args[1:]...)
	cmd.Stdin = c.Stdin
	var stdout, both bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &both
	err := cmd.Run()
	if exit, ran := errors.AsType[*exec.ExitError](err); ran {
		err = &host.ExitError{Host: "master01", Args: c.Args, Code: exit.ExitCode(), Tail: strings.Split(stdout.String()+both.String(), "\n")}
	}
	if s.lose.Add(-1) >= 0 {
		return host.Output{}, host.ErrLost
	}
	if s.calls != nil {
		s.calls <- strings.Join(c.Args, " ")
	}
	return host.Output{Stdout: stdout.String()}, err
}

func mustLock(t *testing.T, o phase.LockOptions) *phase.Lock {
	t.Helper()
	l, warning, err := phase.Acquire(t.Context(), &shell{}, o)
	if err != nil || warning != "" {
		t.Fatalf("Acquire = %q, %v", warning, err)
	}
	return l
}

// age makes the lock's file older.
func age(t *testing.T, file string, d time.Duration) {
	t.Helper()
	then := time.Now().Add(-d)
	if err := os.Chtimes(file, then, then); err != nil {
		t.Fatal(err)
	}
}

func TestLockRefusesTheSecond(t *testing.T) {
	dir := t.TempDir()
	o := phase.LockOptions{Cluster: "planet", Holder: "alice@laptop  pid 7\n", Dir: dir}
	l := mustLock(t, o)
	_, _, err := phase.Acquire(t.Context(), &shell{}, phase.LockOptions{Cluster: "planet", Holder: "bob", Dir: dir})
	locked, ok := errors.AsType[*phase.LockedError](err)
	if !ok || locked.Holder != "alice@laptop pid 7" || locked.Lease != time.Minute || locked.Age > time.Minute {
		t.Fatalf("Acquire = %+v, %v", locked, err)
	}
	if _, err := time.Parse(time.RFC3339, locked.Since); err != nil {
		t.Error(err)
	}
	if hint, ok := errors.AsType[*cli.Error](err); !ok || !strings.Contains(hint.Hint, "--break-lock") {
		t.Errorf("no hint in %v", err)
	}
	mustLock(t, phase.LockOptions{Cluster: "other", Dir: dir})
	if err := l.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustLock(t, o)
}

func TestLostAnswerDoesNotLockTheHolderOut(t *testing.T) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		h := &shell{}
		h.lose.Store(2)
		l, warning, err := phase.Acquire(t.Context(), h, phase.LockOptions{Cluster: "planet", Dir: dir})
		if err != nil || warning != "" {
			t.Fatalf("Acquire = %q, %v", warning, err)
		}
		if _, _, err := phase.Acquire(t.Context(), h, phase.LockOptions{Cluster: "planet", Dir: dir}); err == nil {
			t.Error("another one has it, too")
		}
		h.lose.Store(2)
		if err := l.Release(t.Context()); err != nil {
			t.Error(err)
		}
	})
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestLockLeavesNothing(t *testing.T) {
	dir := t.TempDir()
	l := mustLock(t, phase.LockOptions{Cluster: "planet", Dir: dir})
	info, err := os.Stat(filepath.Join(dir, "kubeinit-planet.lock"))
	if err != nil || info.Mode() != 0o600 {
		t.Errorf("file %v, %v", info, err)
	}
	for range 2 {
		if err := l.Release(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left are %v, %v", left, err)
	}
}

func TestStaleLockIsTakenOver(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "kubeinit-planet.lock")
	old := mustLock(t, phase.LockOptions{Cluster: "planet", Holder: "alice", Dir: dir, Lease: 10 * time.Second})
	age(t, file, 8*time.Second)
	if _, _, err := phase.Acquire(t.Context(), &shell{}, phase.LockOptions{Cluster: "planet", Dir: dir}); err == nil {
		t.Fatal("taken over before its lease ended")
	}
	age(t, file, 11*time.Second)
	_, warning, err := phase.Acquire(t.Context(), &shell{}, phase.LockOptions{Cluster: "planet", Holder: "bob", Dir: dir})
	if err != nil || !strings.Contains(warning, "alice") || !strings.Contains(warning, "taken over") {
		t.Fatalf("Acquire = %q, %v", warning, err)
	}
	before, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if err := old.Release(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(file); err != nil || !bytes.Equal(after, before) || !bytes.Contains(after, []byte("bob")) {
		t.Errorf("the old holder changed %q to %q, %v", before, after, err)
	}
}

func TestOnlyOneTakesOver(t *testing.T) {
	dir := t.TempDir()
	mustLock(t, phase.LockOptions{Cluster: "planet", Dir: dir})
	age(t, filepath.Join(dir, "kubeinit-planet.lock"), time.Hour)
	var got atomic.Int32
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			_, _, err := phase.Acquire(t.Context(), &shell{}, phase.LockOptions{Cluster: "planet", Dir: dir})
			if err == nil {
				got.Add(1)
			} else if _, locked := errors.AsType[*phase.LockedError](err); !locked {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := got.Load(); n != 1 {
		t.Errorf("%d have the lock", n)
	}
}

func TestBrokenLockIsLost(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	h := &shell{calls: make(chan string, 100)}
	l, _, err := phase.Acquire(t.Context(), h, phase.LockOptions{Cluster: "planet", Holder: "alice", Dir: dir, Lease: 6 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	held, release := l.Hold(t.Context())
	_, warning, err := phase.Acquire(t.Context(), &shell{}, phase.LockOptions{Cluster: "planet", Dir: dir, Break: true})
	if err != nil || !strings.Contains(warning, "alice") {
		t.Fatalf("Acquire = %q, %v", warning, err)
	}
	<-held.Done()
	if cause := context.Cause(held); !errors.Is(cause, phase.ErrLockLost) {
		t.Errorf("cause %v", cause)
	}
	if err := release(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "kubeinit-planet.lock")); err != nil {
		t.Errorf("the new holder's lock: %v", err)
	}
}

func TestHeldLockIsTouched(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	file := filepath.Join(dir, "kubeinit-planet.lock")
	h := &shell{calls: make(chan string, 100)}
	l, _, err := phase.Acquire(t.Context(), h, phase.LockOptions{Cluster: "planet", Dir: dir, Lease: 6 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	<-h.calls
	age(t, file, time.Hour)
	held, release := l.Hold(t.Context())
	<-h.calls
	info, err := os.Stat(file)
	if err != nil || time.Since(info.ModTime()) > 30*time.Minute {
		t.Errorf("the file is of %v, %v", info.ModTime(), err)
	}
	if err := release(); err != nil || held.Err() == nil {
		t.Errorf("release = %v, context %v", err, held.Err())
	}
}

func TestLockIsLostWithTheHost(t *testing.T) {
	h := &shell{}
	l, _, err := phase.Acquire(t.Context(), h, phase.LockOptions{Cluster: "planet", Dir: t.TempDir(), Lease: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	h.gone.Store(true)
	held, release := l.Hold(t.Context())
	<-held.Done()
	if cause := context.Cause(held); cause == nil || !strings.Contains(cause.Error(), "connection lost") {
		t.Errorf("cause %v", cause)
	}
	if err := release(); err == nil {
		t.Error("no error although the file is still there")
	}
}

func TestUnreadableLockIsNotTakenSilently(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "kubeinit-planet.lock")
	if err := os.WriteFile(file, []byte("$(reboot) x\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := phase.Acquire(t.Context(), &shell{}, phase.LockOptions{Cluster: "planet", Dir: dir}); err == nil {
		t.Error("taken")
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil { // its maker was killed before it wrote
		t.Fatal(err)
	}
	if _, warning, err := phase.Acquire(t.Context(), &shell{}, phase.LockOptions{Cluster: "planet", Dir: dir}); err != nil || warning == "" {
		t.Errorf("Acquire = %q, %v", warning, err)
	}
}
