package wgdev

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// openControl makes the socket dir/name.sock. It is made and given its mode in
// a directory of its own first, so that at no time somebody else can connect to
// it, and replaces one that a killed process left behind.
func openControl(dir, name string, get func(io.Writer) error) (_ *control, err error) {
	path := filepath.Join(dir, name+".sock")
	if err := os.MkdirAll(dir, 0o755); err != nil { // as wg-quick and wireguard-go do
		return nil, err
	}
	if conn, err := net.Dial("unix", path); err == nil {
		return nil, errors.Join(fmt.Errorf("%s: %w: another process answers there", path, syscall.EADDRINUSE), conn.Close())
	}
	private, err := os.MkdirTemp(dir, "."+name+".*") // mode 0700
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(private)) }()
	temporary := filepath.Join(private, "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temporary, Net: "unix"})
	if err != nil {
		return nil, err
	}
	l.SetUnlinkOnClose(false) // by then it has another name
	if err := errors.Join(os.Chmod(temporary, 0o600), os.Rename(temporary, path)); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	made, err := os.Lstat(path)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return newControl(l, get, func() error { return removeSame(path, made) }), nil
}

// removeSame removes path if it is still the file that made describes.
func removeSame(path string, made os.FileInfo) error {
	now, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if !os.SameFile(made, now) {
		return nil
	}
	return os.Remove(path)
}
