package wgdev

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// controlDir is where wireguard-tools look for userspace devices.
const controlDir = "/var/run/wireguard"

// Bounds of one client of the control socket.
const (
	controlTimeout = 5 * time.Second
	controlMaxLine = 256
	controlClients = 8
)

// Control lets standard tools read the device: wg show works, wg set is
// refused, for what it changed would not be what the records say.
type Control struct {
	u        *Userspace
	listener *net.UnixListener
	slots    chan struct{}
	wg       sync.WaitGroup
}

// OpenControl listens on the device's socket, mode 0600. One that a killed
// process left behind is replaced; one that somebody answers is not.
func (u *Userspace) OpenControl() (*Control, error) {
	if err := os.MkdirAll(controlDir, 0o755); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	path := filepath.Join(controlDir, u.name+".sock")
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("control socket %s: %w", path, syscall.EADDRINUSE), conn.Close())
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	return &Control{u: u, listener: l, slots: make(chan struct{}, controlClients)}, nil
}

// Run answers clients until ctx is done, then waits for the last one.
func (c *Control) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = c.listener.Close() })
	defer stop()
	defer c.wg.Wait()
	for {
		conn, err := c.listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("control socket: %w", err)
		}
		select {
		case c.slots <- struct{}{}:
			c.wg.Go(func() {
				defer func() { <-c.slots }()
				c.serve(conn)
			})
		default:
			_ = conn.Close()
		}
	}
}

// Close removes the socket; needed only if Run was never called.
func (c *Control) Close() error {
	err := c.listener.Close()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// serve answers one client: any number of operations, each ended by an empty line.
func (c *Control) serve(conn net.Conn) {
	defer conn.Close() //nolint:errcheck // nothing was promised
	_ = conn.SetDeadline(time.Now().Add(controlTimeout))
	in := bufio.NewReaderSize(conn, controlMaxLine)
	for {
		op, err := line(in)
		if err != nil {
			return
		}
		for text := op; text != ""; {
			if text, err = line(in); err != nil {
				return
			}
		}
		if _, err := io.WriteString(conn, c.answer(op)); err != nil {
			return
		}
	}
}

// line reads one line, which must not be longer than the buffer.
func line(in *bufio.Reader) (string, error) {
	b, err := in.ReadSlice('\n')
	return strings.TrimSuffix(string(b), "\n"), err
}

// answer is what an operation gets back.
func (c *Control) answer(op string) string {
	errno := syscall.EPERM
	if op == "get=1" {
		c.u.mu.Lock()
		defer c.u.mu.Unlock()
		if !c.u.closed {
			if text, err := c.u.dev.IpcGet(); err == nil {
				return text + "errno=0\n\n"
			}
		}
		errno = syscall.EIO
	}
	return fmt.Sprintf("errno=%d\n\n", -int(errno))
}
