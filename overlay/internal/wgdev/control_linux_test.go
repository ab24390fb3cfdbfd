package wgdev

import (
	"bufio"
	"errors"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
)

// openSocket offers a device in dir until the returned function is called.
func openSocket(t *testing.T, dir string) func() {
	t.Helper()
	c, err := openControl(dir, "pm0", someState)
	if err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(c.run)
	var once sync.Once
	end := func() {
		once.Do(func() {
			if err := c.close(); err != nil {
				t.Error(err)
			}
			within(t, "the end of the control socket", running.Wait)
		})
	}
	t.Cleanup(end)
	return end
}

func askSocket(t *testing.T, path string) (string, error) {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	return ask(conn, bufio.NewReader(conn), "get=1\n\n")
}

const want = "listen_port=51820\nerrno=0\n\n"

func TestControlSocketIsPrivateAndGoesAway(t *testing.T) {
	noGoroutinesLeft(t)
	dir := filepath.Join(t.TempDir(), "wireguard")
	end := openSocket(t, dir)
	path := filepath.Join(dir, "pm0.sock")
	if got, err := askSocket(t, path); got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
	for name, mode := range map[string]os.FileMode{path: os.ModeSocket | 0o600, dir: os.ModeDir | 0o755} {
		if s, err := os.Stat(name); err != nil || s.Mode() != mode {
			t.Errorf("%s is %v, %v, want %v", name, s, err, mode)
		}
	}
	list := func() []os.DirEntry {
		t.Helper()
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		return entries
	}
	if got := list(); len(got) != 1 {
		t.Errorf("in the directory: %v, want the socket alone", got)
	}
	end()
	if got := list(); len(got) != 0 {
		t.Errorf("left over: %v", got)
	}
}

func TestControlSocketReplacesThatOfAKilledProcess(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "pm0.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	openSocket(t, dir)
	if got, err := askSocket(t, path); got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestControlSocketOfALivingProcessStays(t *testing.T) {
	dir := t.TempDir()
	openSocket(t, dir)
	if _, err := openControl(dir, "pm0", someState); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("got %v, want %v", err, syscall.EADDRINUSE)
	}
	if got, err := askSocket(t, filepath.Join(dir, "pm0.sock")); got != want || err != nil {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func TestControlSocketOfSomebodyElseIsNotRemoved(t *testing.T) {
	dir := t.TempDir()
	end := openSocket(t, dir)
	path := filepath.Join(dir, "pm0.sock")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	end()
	if _, err := os.Stat(path); err != nil {
		t.Error(err)
	}
}

func TestControlSocketNeedsADirectory(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openControl(file, "pm0", someState); err == nil {
		t.Error("no error")
	}
}
