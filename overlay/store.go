package overlay

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
)

// Store keeps a gateway's state: keys, certificate, records, ledger. Names
// are short file names. Implementations are safe for concurrent use.
type Store interface {
	// Load returns what Save stored under name, or an error that is
	// fs.ErrNotExist, ErrStateCorrupt or ErrStateExposed.
	Load(name string) ([]byte, error)
	// Save stores b under name, wholly or not at all, and returns when it
	// survives a crash.
	Save(name string, b []byte) error
	// Delete removes name; a name that is not there is no error.
	Delete(name string) error
	// Lock makes the caller the only user until unlock, or returns
	// ErrStateInUse at once.
	Lock() (unlock func() error, err error)
}

// Secret says whether a state file must be readable by its owner only.
func secretFile(name string) bool { return strings.HasSuffix(name, ".key") }

// DirStore keeps state in a directory of mode 0700, one file a name, mode
// 0600. Every file begins with a line that holds the SHA-256 of the rest.
type DirStore struct {
	dir string
}

// OpenDir returns the store in dir. The directory is made by the first Save.
func OpenDir(dir string) *DirStore { return &DirStore{dir: dir} }

// Dir returns the directory.
func (s *DirStore) Dir() string { return s.dir }

// Load implements Store. Errors name the file.
func (s *DirStore) Load(name string) ([]byte, error) {
	path := filepath.Join(s.dir, name)
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if secretFile(name) && info.Mode().Perm()&0o077 != 0 {
		return nil, fmt.Errorf("%s has mode %04o, want 0600: %w", path, info.Mode().Perm(), ErrStateExposed)
	}
	if info.Size() > maxStateFile {
		return nil, fmt.Errorf("%s is larger than %d bytes: %w", path, maxStateFile, ErrStateCorrupt)
	}
	sealed := make([]byte, info.Size())
	n, err := f.ReadAt(sealed, 0)
	if err != nil && n < len(sealed) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	b, err := unsealFile(name, sealed)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

// maxStateFile bounds what is read: 4,096 records of 8 KiB, doubled.
const maxStateFile = 64 << 20

// Save implements Store: a temporary file, fsync, rename, fsync of the
// directory.
func (s *DirStore) Save(name string, b []byte) (err error) {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return fmt.Errorf("make state directory: %w", err)
	}
	path := filepath.Join(s.dir, name)
	f, err := os.CreateTemp(s.dir, "."+name+".*")
	if err != nil {
		return fmt.Errorf("store %s: %w", path, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("store %s: %w", path, err)
			_ = f.Close()
			_ = os.Remove(f.Name())
		}
	}()
	if _, err := f.Write(sealFile(name, b)); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(s.dir)
}

// Delete implements Store.
func (s *DirStore) Delete(name string) error {
	err := os.Remove(filepath.Join(s.dir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// sealFile puts the line before b that unsealFile checks.
func sealFile(name string, b []byte) []byte {
	sum := sha256.Sum256(b)
	return append([]byte(fmt.Sprintf("planetmesh/1 %s sha256:%x\n", name, sum)), b...)
}

func unsealFile(name string, sealed []byte) ([]byte, error) {
	line, b, ok := bytes.Cut(sealed, []byte("\n"))
	if !ok {
		return nil, fmt.Errorf("no header line: %w", ErrStateCorrupt)
	}
	want := "planetmesh/1 " + name + " sha256:"
	got, ok := strings.CutPrefix(string(line), want)
	if !ok {
		return nil, fmt.Errorf("header is not %q: %w", want, ErrStateCorrupt)
	}
	sum := sha256.Sum256(b)
	if got != hex.EncodeToString(sum[:]) {
		return nil, fmt.Errorf("checksum differs: %w", ErrStateCorrupt)
	}
	return b, nil
}

// MemStore keeps state in memory: for programs whose gateway does not outlive
// them, and for simulations. The zero value is ready.
type MemStore struct {
	mu     sync.Mutex // guards all below
	files  map[string][]byte
	locked bool
}

// Load implements Store.
func (s *MemStore) Load(name string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.files[name]
	if !ok {
		return nil, fmt.Errorf("%s: %w", name, fs.ErrNotExist)
	}
	return bytes.Clone(b), nil
}

// Save implements Store.
func (s *MemStore) Save(name string, b []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.files == nil {
		s.files = make(map[string][]byte)
	}
	s.files[name] = bytes.Clone(b)
	return nil
}

// Delete implements Store.
func (s *MemStore) Delete(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.files, name)
	return nil
}

// Lock implements Store.
func (s *MemStore) Lock() (func() error, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.locked {
		return nil, ErrStateInUse
	}
	s.locked = true
	return func() error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.locked = false
		return nil
	}, nil
}

// NewMemStore returns a store with a copy of files, by name; nil means an empty
// one.
func NewMemStore(files map[string][]byte) *MemStore {
	s := &MemStore{files: make(map[string][]byte, len(files))}
	for name, b := range files {
		s.files[name] = bytes.Clone(b)
	}
	return s
}

// Files returns a copy of what is stored, by name.
func (s *MemStore) Files() map[string][]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make(map[string][]byte, len(s.files))
	for name, b := range s.files {
		out[name] = bytes.Clone(b)
	}
	return out
}

// Clone returns a copy: a backup that a test restores later. The copy is not
// locked.
func (s *MemStore) Clone() *MemStore {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &MemStore{files: maps.Clone(s.files)}
}
