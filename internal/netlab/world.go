//go:build linux

package netlab

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrClosed is returned by what needs a world that has been closed.
var ErrClosed = errors.New("world is closed")

// World is a running topology. It is safe for concurrent use.
type World struct {
	topology Topology
	hosts    map[string]*Host
	proc     int        // the machine's /proc, O_PATH
	base     namespaces // of the holder: its net namespace has the bridges, its mnt namespace is what hosts copy
	holder   *Cmd       // first process of the PID namespace; all others die with it
	leash    *os.File   // write end of the holder's standard input

	closeOnce sync.Once
	closeErr  error

	mu       sync.Mutex
	closed   bool
	starting sync.WaitGroup    // processes between begin and track; added to under mu while not closed
	running  map[*Cmd]struct{} // started and not yet waited for

	lookMu   sync.Mutex // one look at a time, and none during the release
	released bool

	linkMu sync.Mutex // guards the cables, and the table that drops what they lose
	cables []*cable   // all of them; the list itself does not change once the world is built
	drops  string     // nftables text in force
}

// How long Close waits for killed processes, and for threads and namespaces to go once nothing runs. Both take
// milliseconds; the limits only turn a hang into an error.
const (
	killTimeout = 10 * time.Second
	goneTimeout = time.Second
)

// Start builds the world that the topology declares and returns when its links are up. ctx bounds Start alone. The
// error is that of [Topology.Validate], or names the host and the act that did not work; nothing is left then.
func Start(ctx context.Context, t Topology) (*World, error) {
	if err := t.Validate(); err != nil {
		return nil, err
	}
	if !privileged() {
		return nil, errors.New("start world: CAP_SYS_ADMIN and CAP_NET_ADMIN are needed; run as root, or call netlab.Elevate first")
	}
	w := &World{
		topology: t, hosts: make(map[string]*Host), proc: -1, base: noNamespaces(), running: make(map[*Cmd]struct{}),
	}
	if err := w.build(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start world: %w", err), w.Close())
	}
	return w, nil
}

func (w *World) build(ctx context.Context) error {
	var err error
	if w.proc, err = unix.Open("/proc", unix.O_PATH|unix.O_CLOEXEC, 0); err != nil {
		return fmt.Errorf("open /proc: %w", err)
	}
	if err := w.hold(ctx); err != nil {
		return err
	}
	for _, spec := range w.topology.Hosts {
		w.hosts[spec.Name] = &Host{world: w, spec: spec, ns: noNamespaces(), cables: make(map[string]*cable)}
	}
	if err := w.each(ctx, (*Host).unshare); err != nil {
		return err
	}
	if err := w.plug(); err != nil {
		return err
	}
	if err := w.each(ctx, (*Host).configure); err != nil {
		return err
	}
	return w.setLinks(ctx)
}

// setLinks sets the links that the topology declares.
func (w *World) setLinks(ctx context.Context) error {
	for _, spec := range w.topology.Hosts {
		for _, i := range spec.Interfaces {
			if (i.Out == Link{} && i.In == Link{}) {
				continue
			}
			if err := w.hosts[spec.Name].SetLink(ctx, i.Name, i.Out, i.In); err != nil {
				return err
			}
		}
	}
	return nil
}

// each runs a step on all hosts at once. The errors of steps name the host.
func (w *World) each(ctx context.Context, step func(*Host, context.Context) error) error {
	var wg sync.WaitGroup
	errs := make([]error, len(w.topology.Hosts))
	for i, spec := range w.topology.Hosts {
		wg.Go(func() {
			errs[i] = step(w.hosts[spec.Name], ctx)
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// holderScript is the first process of a world. Children that nobody waits for are reaped by the kernel because
// SIGCHLD is ignored, which exec keeps. cat ends when the other end of its standard input is closed.
const holderScript = `mount --make-rprivate / && mount -t proc -o nosuid,nodev,noexec proc /proc && trap '' CHLD && echo ready && exec cat >/dev/null`

// hold starts the holder and opens its namespaces.
func (w *World) hold(ctx context.Context) error {
	in, leash, err := os.Pipe()
	if err != nil {
		return err
	}
	defer in.Close()
	out, ready, err := os.Pipe()
	if err != nil {
		return errors.Join(err, leash.Close())
	}
	defer out.Close()
	w.leash = leash
	var stderr bytes.Buffer
	cmd := exec.Command("sh", "-c", holderScript)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, ready, &stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET,
		Setpgid:    true, // an interrupt from the terminal is for the program that holds the leash
	}
	err = cmd.Start()
	ready.Close() //nolint:errcheck // only the holder writes
	if err != nil {
		return fmt.Errorf("start the first process: %w", err)
	}
	w.holder = &Cmd{Cmd: cmd}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() }) //nolint:errcheck // then it has ended
	line, err := bufio.NewReader(out).ReadString('\n')
	if !stop() {
		return ctx.Err()
	}
	if err != nil || line != "ready\n" {
		cmd.Process.Kill() //nolint:errcheck // then it has ended
		err = w.holder.Wait()
		return fmt.Errorf("prepare mounts: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	if w.base, err = openNamespaces(w.proc, fmt.Sprintf("%d/ns", cmd.Process.Pid)); err != nil {
		return err
	}
	unix.Close(w.base.uts) //nolint:errcheck // the machine's
	w.base.uts = -1
	return nil
}

// Topology is the declaration that the world was started with.
func (w *World) Topology() Topology { return w.topology }

// Host returns the host of that name. It panics if the topology has none, which is a mistake in the program.
func (w *World) Host(name string) *Host {
	h, ok := w.hosts[name]
	if !ok {
		panic("netlab: no host " + name)
	}
	return h
}

// begin announces the start of a process; done ends the announcement.
func (w *World) begin() (done func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil, ErrClosed
	}
	w.starting.Add(1)
	return w.starting.Done, nil
}

func (w *World) track(c *Cmd) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.running[c] = struct{}{}
}

func (w *World) untrack(c *Cmd) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.running, c)
}

// Close kills all processes of the world, waits for them and removes hosts and networks. The error lists what is left,
// as [World.Leftovers] does. Further calls return the same.
func (w *World) Close() error {
	w.closeOnce.Do(func() { w.closeErr = w.close() })
	return w.closeErr
}

func (w *World) close() error {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	w.starting.Wait()
	w.linkMu.Lock()
	for _, c := range w.cables {
		c.stop()
	}
	w.linkMu.Unlock()
	var errs []error
	if err := w.kill(); err != nil {
		errs = append(errs, err)
	}
	if left := w.awaitGone(); len(left) > 0 {
		errs = append(errs, fmt.Errorf("close world: left over: %s", strings.Join(left, "; ")))
	}
	return errors.Join(errs...)
}

// kill ends the PID namespace and waits for those of its processes that are our children. The holder goes last: the
// kernel lets it end only when the namespace is empty.
func (w *World) kill() error {
	if w.leash != nil {
		w.leash.Close() //nolint:errcheck // nothing was written
	}
	if w.holder == nil {
		return nil
	}
	w.holder.Process.Kill() //nolint:errcheck // then it has ended
	w.mu.Lock()
	var running []*Cmd
	for c := range w.running {
		running = append(running, c)
	}
	w.mu.Unlock()
	done := make(chan struct{})
	go func() { // ends with the last process
		defer close(done)
		for _, c := range append(running, w.holder) {
			c.Wait() //nolint:errcheck // killed
		}
	}()
	select {
	case <-done:
		return nil
	case <-time.After(killTimeout):
		return fmt.Errorf("close world: processes did not end within %v of being killed", killTimeout)
	}
}

// releaseLocked lets go of the namespaces; the kernel then takes them down with everything in them.
func (w *World) releaseLocked() {
	w.released = true
	for _, h := range w.hosts {
		h.ns.pid = -1 // closed with the base
		h.ns.close()
		h.ns = noNamespaces()
	}
	w.base.close()
	w.base = noNamespaces()
	if w.proc >= 0 {
		unix.Close(w.proc) //nolint:errcheck // O_PATH
		w.proc = -1
	}
}
