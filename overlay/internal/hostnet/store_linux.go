package hostnet

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// store keeps the journal in a file. Saving is atomic and durable: after it
// returns nil the new content survives a power cut, after an error the old one
// is still there.
type store struct {
	path string
}

// load reads the journal, and returns nil if there is none. It refuses a file
// that another user could have written or put there.
func (s store) load() (*journal, error) {
	if err := checkDirectory(filepath.Dir(s.path)); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(s.path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, s.unusable(errors.New("is a symbolic link"))
	}
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	defer func() { _ = f.Close() }() // read only, nothing can be lost
	if err := checkFile(f); err != nil {
		return nil, s.unusable(err)
	}
	data, err := io.ReadAll(io.LimitReader(f, journalLimit+1))
	if err != nil {
		return nil, fmt.Errorf("read journal: %w", err)
	}
	j, err := decodeJournal(data)
	if err != nil {
		return nil, s.unusable(err)
	}
	return j, nil
}

func (s store) unusable(why error) error {
	return fmt.Errorf("%w: %s: %w; it lists network settings to be restored: "+
		"compare them with sysctl, then remove the file", ErrJournal, s.path, why)
}

func checkFile(f *os.File) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	st, ok := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return errors.New("is not a regular file")
	case info.Mode().Perm()&0o022 != 0:
		return fmt.Errorf("may be written by others (mode %#o)", info.Mode().Perm())
	case !ok || st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return errors.New("belongs to another user")
	}
	return nil
}

// checkDirectory refuses a directory in which others may replace our files.
func checkDirectory(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("journal directory: %w", err)
	}
	if info.Mode().Perm()&0o022 != 0 && info.Mode()&fs.ModeSticky == 0 {
		return fmt.Errorf("%w: directory %s may be written by others (mode %#o): chmod go-w it",
			ErrJournal, dir, info.Mode().Perm())
	}
	return nil
}

// save replaces the journal. An empty one means that there is no file.
func (s store) save(j *journal) error {
	if j.empty() {
		return s.remove()
	}
	next := s.path + ".new"
	if err := os.Remove(next); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("write journal: %w", err)
	}
	if err := writeSynced(next, j.encode()); err != nil {
		_ = os.Remove(next) // the error that counts is the first
		return fmt.Errorf("write journal: %w", err)
	}
	if err := os.Rename(next, s.path); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return s.syncDirectory()
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// remove deletes the journal and what an interrupted save left.
func (s store) remove() error {
	removed := false
	for _, path := range []string{s.path + ".new", s.path} {
		switch err := os.Remove(path); {
		case err == nil:
			removed = true
		case !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("remove journal: %w", err)
		}
	}
	if !removed {
		return nil
	}
	return s.syncDirectory()
}

func (s store) syncDirectory() error {
	d, err := os.Open(filepath.Dir(s.path))
	if err != nil {
		return fmt.Errorf("sync journal directory: %w", err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync journal directory: %w", err)
	}
	return nil
}
