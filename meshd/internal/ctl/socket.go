package ctl

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
)

// DefaultDir is the run directory if nobody says otherwise.
const DefaultDir = "/run/meshd"

// socketName is the socket's name in the run directory.
const socketName = "meshd.sock"

// maxPath is the longest path of a socket in bytes: sun_path of sockaddr_un
// has 108 with the zero at its end (unix(7)).
const maxPath = 107

// ErrInUse says that another daemon has the run directory.
var ErrInUse = errors.New("run directory is in use by another meshd")

// ErrExposed says that others than the daemon's user could get at the socket.
var ErrExposed = errors.New("run directory is open to other users")

// Listen makes the run directory dir (mode 0700) and the socket in it (0600),
// which exists until the listener is closed. A socket that a killed daemon
// left behind is replaced; one that somebody answers on is ErrInUse. A
// directory that others may enter is ErrExposed. Requests are kept waiting
// until the listener is served.
func Listen(dir string) (net.Listener, error) {
	path := filepath.Join(dir, socketName)
	if len(path) > maxPath {
		return nil, fmt.Errorf("control socket %s: path of %d bytes, want at most %d", path, len(path), maxPath)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make run directory: %w", err)
	}
	info, err := os.Stat(dir)
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	if perm := info.Mode().Perm(); perm&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, want 0700: %w", dir, perm, ErrExposed)
	}
	// The lock of a state directory is what is needed here too: it goes with
	// the process, so that between two daemons there is no race for the socket.
	unlock, err := overlay.OpenDir(dir).Lock()
	if errors.Is(err, overlay.ErrStateInUse) {
		return nil, fmt.Errorf("%s: %w", dir, ErrInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("run directory: %w", err)
	}
	l, err := listen(path)
	if err != nil {
		return nil, errors.Join(err, unlock())
	}
	return &listener{Listener: l, unlock: unlock}, nil
}

// listen binds path after it removed a socket that nobody answers on.
func listen(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", path, ErrInUse), conn.Close())
	}
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, fmt.Errorf("control socket: %w", err)
	case info.Mode().Type() != fs.ModeSocket:
		return nil, fmt.Errorf("control socket: %s exists and is no socket", path)
	default:
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("remove stale control socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("control socket: %w", err), l.Close())
	}
	return l, nil
}

// listener gives the run directory back when it is closed. Closing removes the
// socket.
type listener struct {
	net.Listener
	unlock func() error
}

func (l *listener) Close() error {
	err := l.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		return err // a second Close, as by http.Server
	}
	return errors.Join(err, l.unlock())
}
