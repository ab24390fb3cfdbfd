//go:build !unix

package overlay

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Lock implements Store with a file that only its maker can hold open and
// remove. A killed process leaves it behind; remove it by hand then.
func (s *DirStore) Lock() (func() error, error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return nil, fmt.Errorf("make state directory: %w", err)
	}
	path := filepath.Join(s.dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return nil, fmt.Errorf("%s exists: %w", path, ErrStateInUse)
	}
	if err != nil {
		return nil, fmt.Errorf("lock state: %w", err)
	}
	return func() error { return errors.Join(f.Close(), os.Remove(path)) }, nil
}

// syncDir does nothing: directories cannot be synced here.
func syncDir(string) error { return nil }
