//go:build integration

package netlab

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestCloseKillsEveryProcess(t *testing.T) {
	goroutines := runtime.NumGoroutine()
	w := mustStart(t, Reference())
	// A daemon of its own session, whose parent has ended, keeps the output open.
	script := "setsid sh -c 'sleep 1000; true' & sleep 1001 & trap '' TERM HUP INT; echo up; while :; do wait; done"
	var processes []*Process
	for _, name := range []string{"gw10", "gw20", "lb"} {
		p, err := w.Host(name).Start(t.Context(), "sh", "-c", script)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.WaitLog(t.Context(), "up"); err != nil {
			t.Fatal(err)
		}
		processes = append(processes, p)
	}
	unwaited := w.Host("gw30").Command(t.Context(), "sleep", "1002")
	if err := unwaited.Start(); err != nil {
		t.Fatal(err)
	}
	if left := w.Leftovers(); len(left) < 1+3*3+1 {
		t.Errorf("an open world has %q, want all its processes", left)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
	for _, p := range processes {
		select {
		case <-p.Done():
		default:
			t.Errorf("process %d has not ended", p.Pid())
		}
	}
	if err := syscall.Kill(unwaited.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("a process that nobody waited for: %v, want %v", err, syscall.ESRCH)
	}
	if left := w.Leftovers(); left != nil {
		t.Errorf("left over: %q", left)
	}
	if err := w.Close(); err != nil {
		t.Errorf("second close: %v", err)
	}
	awaitTrue(t, "goroutines end", func() bool { return runtime.NumGoroutine() <= goroutines })
}

func TestClosedWorldRefusesWork(t *testing.T) {
	w := mustStart(t, Reference())
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Host("lb").Run(t.Context(), "true"); !errors.Is(err, ErrClosed) {
		t.Errorf("run: got %v, want %v", err, ErrClosed)
	}
	if err := w.Host("lb").Do(func() error { return nil }); !errors.Is(err, ErrClosed) {
		t.Errorf("do: got %v, want %v", err, ErrClosed)
	}
}

func TestCloseNamesWhatKeepsAHostAlive(t *testing.T) {
	w, err := Start(t.Context(), Reference())
	if err != nil {
		t.Fatal(err)
	}
	l, err := w.Host("gw20").Listen(t.Context(), "tcp", "10.4.0.91:80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	leave := make(chan struct{})
	inside, outside := make(chan struct{}), make(chan struct{})
	go func() { // ends when leave is closed
		defer close(outside)
		w.Host("gw30").Do(func() error { close(inside); <-leave; return nil }) //nolint:errcheck // returns none
	}()
	<-inside
	err = w.Close()
	for _, want := range []string{"open file ", "in net namespace of gw20", "thread of this program", "namespace of gw30"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwithout %q", err, want)
		}
	}
	l.Close()
	close(leave)
	<-outside
	awaitTrue(t, "leftovers go", func() bool { return w.Leftovers() == nil })
}

func TestStartWithADoneContextLeavesNothing(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	w, err := Start(ctx, Reference())
	if err == nil {
		w.Close()
	}
	if !errors.Is(err, context.Canceled) || strings.Contains(err.Error(), "left over") {
		t.Errorf("got %v, want only %v", err, context.Canceled)
	}
}

func TestTwoWorldsDoNotSeeEachOther(t *testing.T) {
	a, b := mustStart(t, Reference()), mustStart(t, Reference())
	l, err := a.Host("lb").Listen(t.Context(), "tcp", "192.168.10.253:80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if c, err := b.Host("master01").Dial(t.Context(), "tcp", "192.168.10.253:80"); err == nil {
		c.Close()
		t.Error("one world reaches the other")
	}
	if c, err := a.Host("master01").Dial(t.Context(), "tcp", "192.168.10.253:80"); err != nil {
		t.Error(err)
	} else {
		c.Close()
	}
}

// childEnv makes TestWorldOfAKilledProgramIsGone play the program that is killed.
const childEnv = "NETLAB_TEST_CHILD"

func TestWorldOfAKilledProgramIsGone(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		buildAndHang(t)
		return
	}
	adopt(t)
	c := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	c.Env = append(os.Environ(), childEnv+"=1")
	c.Stderr = os.Stderr
	out, err := c.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	pids := readPids(t, bufio.NewReader(out))
	names, release := pin(t, pids)
	defer release()
	if found := membersOf(names); len(found) < len(pids) {
		t.Fatalf("the world of the child has only %q", found)
	}
	if err := c.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := c.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("child: %v, want signal: killed", err)
	}
	reap(t, pids)
	awaitTrue(t, "the world goes", func() bool { return len(membersOf(names)) == 0 })
}

// adopt makes orphans below this program its children: the machine's init may take seconds to reap them.
func adopt(t *testing.T) {
	t.Helper()
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0); err != nil {
			t.Error(err)
		}
	})
}

// reap waits for adopted processes; the first one ends after all others.
func reap(t *testing.T, pids []int) {
	t.Helper()
	for _, pid := range slices.Backward(pids) {
		var status unix.WaitStatus
		awaitTrue(t, fmt.Sprintf("process %d ends", pid), func() bool {
			got, err := unix.Wait4(pid, &status, unix.WNOHANG, nil)
			return err == nil && got == pid
		})
	}
}

// buildAndHang builds a world with processes, tells their numbers and waits to be killed.
func buildAndHang(t *testing.T) {
	w, err := Start(t.Context(), Reference())
	if err != nil {
		t.Fatal(err)
	}
	fmt.Println("pid", w.holder.Process.Pid)
	for _, name := range []string{"gw10", "node04"} {
		p, err := w.Host(name).Start(t.Context(), "sh", "-c", "trap '' TERM HUP; setsid sleep 1000 & echo up; wait")
		if err != nil {
			t.Fatal(err)
		}
		if err := p.WaitLog(t.Context(), "up"); err != nil {
			t.Fatal(err)
		}
		fmt.Println("pid", p.Pid())
	}
	fmt.Println("built")
	select {}
}

func readPids(t *testing.T, r *bufio.Reader) []int {
	t.Helper()
	var pids []int
	for {
		line, err := r.ReadString('\n')
		if err != nil {
			t.Fatalf("child: %v after %q", err, line)
		}
		if line == "built\n" {
			return pids
		}
		var pid int
		if _, err := fmt.Sscanf(line, "pid %d", &pid); err == nil {
			pids = append(pids, pid)
		}
	}
}

// pin opens the namespaces of processes, so that their numbers are not used again as long as the test looks for them.
func pin(t *testing.T, pids []int) (names map[string]string, release func()) {
	t.Helper()
	proc, err := unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(proc)
	var pinned []namespaces
	names = make(map[string]string)
	for _, pid := range pids {
		ns, err := openNamespaces(proc, fmt.Sprintf("%d/ns", pid))
		if err != nil {
			t.Fatal(err)
		}
		pinned = append(pinned, ns)
		for kind, fd := range map[string]int{"net": ns.net, "mnt": ns.mnt, "pid": ns.pid} {
			names[fmt.Sprintf("%s:[%d]", kind, inode(fd))] = "the child's world"
		}
	}
	return names, func() {
		for _, ns := range pinned {
			ns.close()
		}
	}
}

// TestWorldNeedsNoRoot runs other tests as the user nobody.
func TestWorldNeedsNoRoot(t *testing.T) {
	if os.Getenv(elevatedEnv) != "" {
		return // this very run is without root
	}
	dir, err := os.MkdirTemp("", "netlab")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	program, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	binary := filepath.Join(dir, "netlab.test")
	if err := os.WriteFile(binary, program, 0o755); err != nil {
		t.Fatal(err)
	}
	c := exec.CommandContext(t.Context(), binary, "-test.v",
		"-test.run=^(TestReferenceHostsReachOnlyTheirLAN|TestNATLetsOutAndNotIn|TestCloseKillsEveryProcess|TestHostHasItsOwnRunNameAndDevices|TestMendedLinkLeavesNothingBehind|TestLinkReordersItsShare)$")
	c.Dir = dir
	c.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}} // nobody, nogroup
	out, err := c.CombinedOutput()
	if err != nil || strings.Count(string(out), "\n--- PASS: ") != 6 {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
}

// awaitTrue polls for what happens in the kernel's own time.
func awaitTrue(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Errorf("%s: not within 5 s", what)
			return
		}
	}
}
