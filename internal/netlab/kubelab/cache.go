//go:build linux

package kubelab

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// cache is the folder in which what is costly to make is kept between runs. What a run writes is below it too, because files
// are linked from one to the other.
type cache struct {
	dir  string
	logf func(format string, args ...any)
}

// CacheVariable is the environment variable that names the folder of everything that is kept; the default is planetmesh in the
// user's cache folder.
const CacheVariable = "PLANETMESH_CACHE"

func cacheFolder() (string, error) {
	dir := os.Getenv(CacheVariable)
	if dir == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("find the cache folder (%s names another): %w", CacheVariable, err)
		}
		dir = filepath.Join(user, "planetmesh")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	dir = filepath.Join(dir, "kubelab")
	if strings.ContainsAny(dir, ":,\\") {
		return "", fmt.Errorf("cache folder %s: the options of an overlay mount cannot have colons, commas and backslashes", dir)
	}
	return dir, nil
}

// entry is a folder kind-HASH of the cache. If it is missing it is made: fill fills an empty folder, which gets its name when
// that worked, so that one with the name is always whole. Entries that were made from something else stay for a while:
// going back to an older state of the tree costs nothing.
func (c cache) entry(kind, what string, recipe []string, fill func(dir string) error) (string, error) {
	dir := filepath.Join(c.dir, kind+"-"+hash(recipe...))
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err == nil {
		return dir, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	c.logf("making %s in %s", what, dir)
	part := dir + ".part"
	if err := os.RemoveAll(part); err != nil {
		return "", err
	}
	if err := os.MkdirAll(part, 0o755); err != nil {
		return "", err
	}
	if err := fill(part); err != nil {
		return "", errors.Join(fmt.Errorf("make %s: %w", what, err), os.RemoveAll(part))
	}
	return dir, os.Rename(part, dir)
}

// keepUnused is how long an entry stays that no laboratory uses. Each recipe costs about 2 GiB.
const keepUnused = 14 * 24 * time.Hour

// prune removes entries that have not been used for long, and halves of entries.
func (c cache) prune(now time.Time) error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		kind, _, _ := strings.Cut(e.Name(), "-")
		if !e.IsDir() || !slices.Contains([]string{"bin", "root", "node", "store"}, kind) {
			continue
		}
		info, err := e.Info()
		if err == nil && (now.Sub(info.ModTime()) > keepUnused || strings.HasSuffix(e.Name(), ".part")) {
			err = os.RemoveAll(filepath.Join(c.dir, e.Name()))
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// hash identifies what an entry is made from.
func hash(recipe ...string) string {
	h := sha256.New()
	for _, part := range recipe {
		fmt.Fprintf(h, "%d %s", len(part), part)
	}
	return hex.EncodeToString(h.Sum(nil))[:16]
}

// run runs a program on the machine, at a low priority because it may take minutes, and returns its standard output.
func (c cache) run(ctx context.Context, dir string, env []string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nice", append([]string{"-n", "15"}, args...)...)
	cmd.Dir, cmd.Env = dir, append(os.Environ(), env...)
	var stdout, stderr strings.Builder
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, tail(stdout.String()+stderr.String()))
	}
	return stdout.String(), nil
}

// tailShown is how much of the output of a program an error shows, in bytes.
const tailShown = 2000

func tail(s string) string {
	s = strings.TrimSpace(s)
	return s[max(0, len(s)-tailShown):]
}

// lock is the right to be the only laboratory on the machine.
type lock struct{ file *os.File }

// takeLock takes the lock or says who has it. The kernel gives it back when its holder ends, in whatever way.
func takeLock(dir string) (*lock, error) {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, err
	}
	f, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		holder, readErr := os.ReadFile(f.Name())
		f.Close() //nolint:errcheck // nothing was written
		if !errors.Is(err, unix.EWOULDBLOCK) || readErr != nil {
			return nil, fmt.Errorf("lock %s: %w", f.Name(), err)
		}
		return nil, fmt.Errorf("another laboratory runs on this machine (process %s has %s); wait for its end", strings.TrimSpace(string(holder)), f.Name())
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	if _, err := fmt.Fprintln(f, os.Getpid()); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return &lock{f}, nil
}

// release gives the lock back. The file stays: removing it would let two hold locks on different files of one name.
func (l *lock) release() error { return l.file.Close() }
