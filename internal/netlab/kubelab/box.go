//go:build linux

package kubelab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/kubelab/boxspec"
)

// box is a machine with a root file system and a process 1 of its own, in the network of a host of package netlab.
type box struct {
	net     *netlab.Host
	labinit string
	dir     string // on the machine's disk: what the box writes
	spec    boxspec.Box

	proc *netlab.Process // labinit boot; nil until the first boot
	pid  int             // the machine's number of the box's process 1
	near int             // the world's number of it
}

// boxEnv is the environment of process 1, commandEnv that of programs that are run in a box.
var (
	boxEnv     = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=dumb", "container=lab"}
	commandEnv = []string{boxEnv[0], "TERM=dumb", "HOME=/root", "LANG=C.UTF-8", "KUBECONFIG=/etc/kubernetes/admin.conf"}
)

// create makes the folders of the box: an empty layer, a /var like that of root, and in it a containerd store unless that is
// "".
func (b *box) create(root, store string) error {
	b.spec.Upper, b.spec.Work = filepath.Join(b.dir, "upper"), filepath.Join(b.dir, "work")
	b.spec.Root, b.spec.Var = filepath.Join(b.dir, "root"), filepath.Join(b.dir, "var")
	b.spec.Console = filepath.Join(b.dir, "console.log")
	for _, dir := range []string{b.spec.Upper, b.spec.Work, b.spec.Root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	if err := os.WriteFile(b.spec.Console, nil, 0o600); err != nil {
		return err
	}
	if out, err := exec.Command("cp", "--archive", filepath.Join(root, "var"), b.spec.Var).CombinedOutput(); err != nil {
		return fmt.Errorf("copy /var: %w: %s", err, tail(string(out)))
	}
	if store == "" {
		return nil
	}
	target := filepath.Join(b.spec.Var, "lib/containerd")
	if err := os.RemoveAll(target); err != nil {
		return err
	}
	return linkStore(store, target)
}

// boot starts the box and returns when its process 1 is the init that it shall be.
func (b *box) boot(ctx context.Context) error {
	spec, err := json.Marshal(b.spec)
	if err != nil {
		return err
	}
	// The box outlives ctx, which bounds its start: the world ends it.
	b.proc, err = b.net.Start(context.WithoutCancel(ctx), b.labinit, "boot", string(spec))
	if err != nil {
		return err
	}
	return b.poll(ctx, "its process 1 is not there", func() bool {
		b.pid, b.near = child(b.proc.Pid())
		exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", b.pid))
		return b.pid > 0 && err == nil && exe != b.labinit
	})
}

// pollPause is how often a box is looked at while it does something by itself.
const pollPause = 20 * time.Millisecond

// poll waits until done says so. The error says what has not come about, with the end of what the box has said.
func (b *box) poll(ctx context.Context, what string, done func() bool) error {
	tick := time.NewTicker(pollPause)
	defer tick.Stop()
	for {
		if done() {
			return nil
		}
		select {
		case <-b.proc.Done():
			return b.fault("is off")
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", b.fault(what), ctx.Err())
		case <-tick.C:
		}
	}
}

func (b *box) fault(what string) error {
	console, _ := os.ReadFile(b.spec.Console) // only adds to an error
	return fmt.Errorf("host %s: %s: %s", b.net.Name(), what, tail(b.log()+string(console)))
}

// await polls until a command succeeds.
func (b *box) await(ctx context.Context, args ...string) error {
	var last error
	err := b.poll(ctx, strings.Join(args, " ")+" does not succeed", func() bool {
		_, last = b.run(ctx, args...)
		return last == nil
	})
	if err != nil {
		return errors.Join(err, last)
	}
	return nil
}

// command prepares a program in the box; its Env must not be changed.
func (b *box) command(ctx context.Context, args ...string) *netlab.Cmd {
	entry, err := json.Marshal(boxspec.Entry{Target: b.near, Cgroups: b.spec.Cgroups, Args: args, Env: commandEnv})
	if err != nil {
		panic(err) // strings and numbers can always be marshalled
	}
	c := b.net.Command(ctx, b.labinit, "enter", string(entry))
	c.Cancel = func() error { // the program itself too, which is in the process group of labinit
		return syscall.Kill(-c.Process.Pid, syscall.SIGKILL)
	}
	return c
}

// run runs a program in the box to its end and returns its standard output. The error is a [*netlab.CommandError].
func (b *box) run(ctx context.Context, args ...string) (string, error) {
	c := b.command(ctx, args...)
	var stderr strings.Builder
	c.Stderr = &stderr
	out, err := c.Output()
	if err != nil {
		err = &netlab.CommandError{Host: b.net.Name(), Args: args, Stderr: tail(stderr.String()), Err: err}
	}
	return string(out), err
}

// on reports whether the box is running.
func (b *box) on() bool {
	if b.proc == nil {
		return false
	}
	select {
	case <-b.proc.Done():
		return false
	default:
		return true
	}
}

// powerOff kills process 1; the kernel kills all others of the box and takes its mounts away.
func (b *box) powerOff(ctx context.Context) error { return b.end(ctx, syscall.SIGKILL) }

// shutDown asks process 1 to end.
func (b *box) shutDown(ctx context.Context) error { return b.end(ctx, syscall.SIGTERM) }

func (b *box) end(ctx context.Context, s syscall.Signal) error {
	if !b.on() {
		return nil
	}
	if err := syscall.Kill(b.pid, s); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("host %s: end process 1: %w", b.net.Name(), err)
	}
	select {
	case <-b.proc.Done():
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", b.fault("does not end"), ctx.Err())
	}
}

// child finds the child of a process: its number here, and the one in the namespace around its own. 0 means that there is none.
func child(parent int) (pid, near int) {
	status, _ := filepath.Glob("/proc/[0-9]*/status")
	for _, name := range status {
		text, err := os.ReadFile(name)
		if err != nil {
			continue // it has ended
		}
		if p, n, ok := parseStatus(string(text), parent); ok {
			return p, n
		}
	}
	return 0, 0
}

// parseStatus reads a /proc/PID/status (proc(5)); ok means that it is of a child of parent that is in a namespace below.
func parseStatus(text string, parent int) (pid, near int, ok bool) {
	isChild := false
	var numbers []string
	for line := range strings.Lines(text) {
		switch key, value, _ := strings.Cut(line, ":"); key {
		case "PPid":
			isChild = strings.TrimSpace(value) == strconv.Itoa(parent)
		case "NSpid":
			numbers = strings.Fields(value)
		}
	}
	if !isChild || len(numbers) < 2 || numbers[len(numbers)-1] != "1" {
		return 0, 0, false
	}
	pid, err := strconv.Atoi(numbers[0])
	near, nearErr := strconv.Atoi(numbers[len(numbers)-2])
	if err != nil || nearErr != nil {
		return 0, 0, false
	}
	return pid, near, true
}
