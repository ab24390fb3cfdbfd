package host

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
)

// Run runs a command. At most eight run at a time on one machine; others wait.
func (h *SSH) Run(ctx context.Context, c Command) (Output, error) {
	select {
	case h.sessions <- struct{}{}:
		defer func() { <-h.sessions }()
	case <-ctx.Done():
		return Output{}, h.errorf("%s: %w", c.Args, context.Cause(ctx))
	}
	mark := "kubeinit-" + rand.Text()
	line, err := c.line(mark, h.config.Sudo)
	if err != nil {
		return Output{}, h.errorf("%w", err)
	}
	session, gone, err := h.session(ctx)
	if err != nil {
		return Output{}, err
	}
	defer session.Close()
	r := newRun(h, c, mark, gone)
	return r.to(ctx, session, line)
}

// session opens a session, on a new connection if the one that was there proves
// to be broken. No command has begun then, so nothing is done twice.
func (h *SSH) session(ctx context.Context) (*ssh.Session, <-chan struct{}, error) {
	for try := 0; ; try++ {
		client, gone, err := h.connected(ctx)
		if err != nil {
			return nil, nil, err
		}
		session, err := newSession(ctx, client)
		if err == nil {
			return session, gone, nil
		}
		if refused, ok := errors.AsType[*ssh.OpenChannelError](err); ok {
			return nil, nil, h.errorf("the server allows no further session (MaxSessions in sshd_config): %w", refused)
		}
		if ctx.Err() != nil {
			return nil, nil, h.errorf("%w", context.Cause(ctx))
		}
		if try > 0 {
			return nil, nil, h.errorf("%w: %w", ErrLost, err)
		}
		_ = client.Close() // it is broken already
		<-gone
	}
}

// newSession is client.NewSession with a context.
func newSession(ctx context.Context, client *ssh.Client) (*ssh.Session, error) {
	type opened struct {
		session *ssh.Session
		err     error
	}
	done := make(chan opened, 1)
	go func() { // ends with the server's answer, or the connection
		s, err := client.NewSession()
		done <- opened{s, err}
	}()
	select {
	case o := <-done:
		return o.session, o.err
	case <-ctx.Done():
		go func() { // ends as the one before
			if o := <-done; o.err == nil {
				_ = o.session.Close() // nobody waits for it
			}
		}()
		return nil, context.Cause(ctx)
	}
}

// run is one command that runs.
type run struct {
	h              *SSH
	c              Command
	out            *collector
	stdout, stderr *stream
	gone           <-chan struct{} // the connection is

	mu       sync.Mutex // guards inputErr
	inputErr error      // of c.Stdin
}

func newRun(h *SSH, c Command, mark string, gone <-chan struct{}) *run {
	out := newCollector(c.Output)
	return &run{h: h, c: c, out: out, stdout: out.stream(mark, c.Limit), stderr: out.stream(mark, c.Limit), gone: gone}
}

// to runs the command to its end, or to that of ctx.
func (r *run) to(ctx context.Context, session *ssh.Session, line string) (Output, error) {
	session.Stdout, session.Stderr = r.stdout, r.stderr
	stdin, err := session.StdinPipe()
	if err != nil {
		return Output{}, r.h.errorf("%w", err)
	}
	if err := session.Start(line); err != nil {
		return Output{}, r.h.errorf("%w: %w", ErrLost, err)
	}
	go r.feed(stdin) // ends with c.Stdin, or with the session at the next write
	ended := make(chan struct{})
	go func() { // ends with the session
		err = session.Wait()
		close(ended)
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		r.kill(session, ended)
		out, _ := r.collect()
		return out, r.h.errorf("%s: %w", r.c.Args[0], context.Cause(ctx))
	}
	out, began := r.collect()
	return out, r.explain(err, began, out)
}

func (r *run) feed(stdin io.WriteCloser) {
	if r.c.Stdin != nil {
		// An error in writing is no fault: a command need not read everything.
		_, _ = io.Copy(stdin, watched{r.c.Stdin, r})
	}
	_ = stdin.Close() // the session may have ended already
}

// watched notes the error of a reader.
type watched struct {
	io.Reader
	r *run
}

func (w watched) Read(p []byte) (int, error) {
	n, err := w.Reader.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		w.r.mu.Lock()
		w.r.inputErr = err
		w.r.mu.Unlock()
	}
	return n, err
}

func (r *run) collect() (out Output, began bool) {
	var first, second bool
	out.Stdout, first = r.stdout.end()
	out.Stderr, second = r.stderr.end()
	out.Truncated = r.stdout.cut || r.stderr.cut
	return out, first || second
}

// explain turns the end of a session into the error of Run.
func (r *run) explain(err error, began bool, out Output) error {
	r.mu.Lock()
	inputErr := r.inputErr
	r.mu.Unlock()
	if inputErr != nil {
		return r.h.errorf("%s: standard input: %w", r.c.Args[0], inputErr)
	}
	if err == nil {
		return nil
	}
	exit, ok := errors.AsType[*ssh.ExitError](err)
	if !ok {
		return r.h.errorf("%s: %w", r.c.Args[0], ErrLost)
	}
	if !began {
		return r.h.notBegun(strings.TrimSpace(out.Stderr + out.Stdout))
	}
	e := &ExitError{Host: r.h.Name(), Args: r.c.Args, Code: exit.ExitStatus()}
	if !r.c.Secret {
		e.Tail = r.out.tail
	}
	return e
}

// notBegun explains why not even our shell was run.
func (h *SSH) notBegun(said string) error {
	said = said[strings.LastIndexByte(said, '\n')+1:]
	switch {
	case h.config.Sudo && strings.Contains(said, "password"):
		return h.errorf("sudo asks user %s for a password; allow it without one: %s ALL=(ALL) NOPASSWD: ALL in /etc/sudoers.d/kubeinit", h.config.User, h.config.User)
	case h.config.Sudo:
		return h.errorf("sudo -n as user %s: %s", h.config.User, said)
	}
	return h.errorf("the login shell of user %s runs no commands: %s", h.config.User, said)
}

// kill ends the command on the host. Closing the session would not: a server
// only closes the command's input and output then. SSH has a request for
// signals, which a server may refuse, and which would not reach what sudo runs.
func (r *run) kill(session *ssh.Session, ended <-chan struct{}) {
	ctx, cancel := context.WithTimeout(context.Background(), killTimeout)
	defer cancel()
	defer session.Close()
	select {
	case <-r.out.began:
	case <-ended:
		return
	case <-r.gone:
		return
	case <-time.After(time.Second): // the shell did not begin; without its outputs it will not
		return
	}
	r.out.mu.Lock()
	group := r.out.group
	r.out.mu.Unlock()
	if group <= 1 {
		return
	}
	for _, signal := range []string{"TERM", "KILL"} {
		r.signal(ctx, signal, group)
		select {
		case <-ended:
			return
		case <-r.gone:
			return
		case <-ctx.Done():
			return
		case <-time.After(killGrace):
		}
	}
}

// signal sends a signal to the process group of the command, in a session
// beside the eight, of which there is one at a time.
func (r *run) signal(ctx context.Context, name string, group int) {
	select {
	case r.h.killing <- struct{}{}:
		defer func() { <-r.h.killing }()
	case <-ctx.Done():
		return
	}
	r.h.mu.Lock()
	client := r.h.client
	r.h.mu.Unlock()
	if client == nil {
		return
	}
	// Nobody is left to tell about errors: the caller hears that its context ended.
	session, err := newSession(ctx, client)
	if err != nil {
		return
	}
	defer session.Close()
	c := Command{Args: script(`kill -s "$1" -- "-$2"`, name, strconv.Itoa(group))}
	line, err := c.line("kubeinit", r.h.config.Sudo)
	if err != nil {
		return
	}
	done := make(chan struct{})
	go func() { // ends with the session
		_ = session.Run(line)
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
	}
}
