//go:build linux

package netlab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Cmd is a program on a host. Its fields are those of [exec.Cmd] and are set in the same way before it is started. It
// runs in a process group of its own, so that an interrupt from the terminal does not reach it.
type Cmd struct {
	*exec.Cmd
	host *Host

	waitOnce sync.Once
	waitErr  error
}

// Command prepares a program on the host. name is looked up, and relative paths are resolved, as on the machine; the
// working directory is [Host.Dir] unless Dir is set. The program is killed when ctx is done or the world is closed.
func (h *Host) Command(ctx context.Context, name string, args ...string) *Cmd {
	if filepath.Base(name) != name {
		if abs, err := filepath.Abs(name); err == nil {
			name = abs
		}
	}
	c := exec.CommandContext(ctx, name, args...)
	c.Dir = privateDir
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	c.WaitDelay = time.Second // for output that a surviving child keeps open
	return &Cmd{Cmd: c, host: h}
}

// Start starts the program, as [exec.Cmd.Start]. The error is [ErrClosed] after the world was closed.
func (c *Cmd) Start() error {
	done, err := c.host.world.begin()
	if err != nil {
		return err
	}
	defer done()
	err = onThread(func() error {
		if err := c.host.ns.enter(); err != nil {
			return err
		}
		return c.Cmd.Start()
	})
	if err != nil {
		return fmt.Errorf("host %s: %w", c.host.spec.Name, err)
	}
	c.host.world.track(c)
	return nil
}

// Wait waits for the program to end, as [exec.Cmd.Wait]; other than there, every call returns the same.
func (c *Cmd) Wait() error {
	c.waitOnce.Do(func() {
		c.waitErr = c.Cmd.Wait()
		if c.host != nil {
			c.host.world.untrack(c)
		}
	})
	return c.waitErr
}

// Run starts the program and waits for its end.
func (c *Cmd) Run() error {
	if err := c.Start(); err != nil {
		return err
	}
	return c.Wait()
}

// Output runs the program and returns its standard output. Stdout must not be set.
func (c *Cmd) Output() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout = &out
	err := c.Run()
	return out.Bytes(), err
}

// CombinedOutput runs the program and returns its standard output and error. Neither must be set.
func (c *Cmd) CombinedOutput() ([]byte, error) {
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	err := c.Run()
	return out.Bytes(), err
}

// CommandError says which command did not work where, and what it wrote to its standard error.
type CommandError struct {
	// Host is the name of the host.
	Host string
	// Args are the command and its arguments.
	Args []string
	// Stderr is its standard error without white space around it.
	Stderr string
	// Err is the cause, an [*exec.ExitError] if the command was started.
	Err error
}

// Error is "host gw10: ip route add default: exit status 2: RTNETLINK answers: File exists".
func (e *CommandError) Error() string {
	s := fmt.Sprintf("host %s: %s: %v", e.Host, strings.Join(e.Args, " "), e.Err)
	if e.Stderr != "" {
		s += ": " + e.Stderr
	}
	return s
}

// Unwrap returns Err.
func (e *CommandError) Unwrap() error { return e.Err }

// Run runs a program on the host to its end and returns its standard output. The error is a [*CommandError].
func (h *Host) Run(ctx context.Context, name string, args ...string) (string, error) {
	return h.runInput(ctx, "", name, args...)
}

func (h *Host) runInput(ctx context.Context, input, name string, args ...string) (string, error) {
	c := h.Command(ctx, name, args...)
	var stderr strings.Builder
	c.Stdin, c.Stderr = strings.NewReader(input), &stderr
	out, err := c.Output()
	if err != nil {
		err = &CommandError{
			Host: h.spec.Name, Args: append([]string{name}, args...), Stderr: strings.TrimSpace(stderr.String()), Err: err,
		}
	}
	return string(out), err
}

// Start starts a program on the host that runs until it ends by itself, is stopped, ctx is done or the world is closed.
func (h *Host) Start(ctx context.Context, name string, args ...string) (*Process, error) {
	return h.StartCommand(h.Command(ctx, name, args...))
}

// StartCommand is [Host.Start] for a prepared command, for example one with an environment. Where its Stdout or Stderr is
// set, output goes there as well as to the log; a writer that both are set to must be safe for concurrent use.
func (h *Host) StartCommand(c *Cmd) (*Process, error) {
	p := &Process{cmd: c, log: newLog(), done: make(chan struct{})}
	c.Stdout, c.Stderr = p.log.tee(c.Stdout), p.log.tee(c.Stderr) // if equal, exec makes one pipe, which keeps the order
	if err := c.Start(); err != nil {
		return nil, err
	}
	go func() { // ends with the process, which ends at the latest when the world is closed
		p.err = c.Wait()
		close(p.done)
	}()
	return p, nil
}

// Process is a running program on a host. It is safe for concurrent use.
type Process struct {
	cmd  *Cmd
	log  *log
	done chan struct{}
	err  error // set before done is closed
}

// Pid is the machine's number of the process; in the world it has another one.
func (p *Process) Pid() int { return p.cmd.Process.Pid }

// Log is what the process has written so far to its standard output and error, the last 8 MiB of it.
func (p *Process) Log() string { return p.log.String() }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for the end of the process and returns the error of [exec.Cmd.Wait].
func (p *Process) Wait() error {
	<-p.done
	return p.err
}

// Signal sends a signal. After the end of the process the error is [os.ErrProcessDone].
func (p *Process) Signal(s os.Signal) error { return p.cmd.Process.Signal(s) }

// Kill kills the process, as kill -9, and waits for its end. Its own children live on.
func (p *Process) Kill() error {
	if err := p.cmd.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	<-p.done
	return nil
}

// Stop asks the process to end, with SIGTERM, and waits until it has ended or ctx is done. It returns the error of Wait, nil
// if the process ended with exit status 0.
func (p *Process) Stop(ctx context.Context) error {
	if err := p.Signal(syscall.SIGTERM); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-p.done:
		return p.err
	case <-ctx.Done():
		return fmt.Errorf("host %s: %s did not end on SIGTERM: %w", p.cmd.host.spec.Name, filepath.Base(p.cmd.Path), ctx.Err())
	}
}

// WaitLog waits until the log contains text. The error says that ctx is done or that the process has ended, and
// has the end of the log.
func (p *Process) WaitLog(ctx context.Context, text string) error {
	for {
		content, changed := p.log.snapshot()
		if strings.Contains(content, text) {
			return nil
		}
		select {
		case <-changed:
			continue
		case <-p.done:
			if strings.Contains(p.Log(), text) {
				return nil
			}
			return p.logError(text, errors.New("process has ended"))
		case <-ctx.Done():
			return p.logError(text, ctx.Err())
		}
	}
}

// logShown is how much of the end of a log an error shows, in bytes.
const logShown = 2000

func (p *Process) logError(text string, cause error) error {
	content := p.Log()
	if len(content) > logShown {
		content = "…" + content[len(content)-logShown:]
	}
	return fmt.Errorf("host %s: wait for %q in the log of %s: %w; the log ends with:\n%s",
		p.cmd.host.spec.Name, text, filepath.Base(p.cmd.Path), cause, content)
}

// CPU is the processor time that the process has used so far, in user and kernel mode, in steps of 10 ms.
func (p *Process) CPU() (time.Duration, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.Pid()))
	if err != nil {
		return 0, err
	}
	return parseCPU(string(stat))
}
