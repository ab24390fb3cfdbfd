package openvpn

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

// TimeStore keeps the newest start time that was used with a key, in Unix
// seconds, across runs of the program. A peer drops all packets of a time that
// is not newer than one it has seen. Both methods are called by one goroutine
// at a time.
type TimeStore interface {
	// Load returns the stored time, 0 if there is none.
	Load() (uint32, error)
	// Save stores t durably before it returns.
	Save(t uint32) error
}

// TimeFile is a TimeStore in the file of that path, written atomically. The
// directory must exist.
type TimeFile string

// maxTimeFile is more than ten digits and a newline need.
const maxTimeFile = 64

// Load reads the file. A missing file is no error and gives 0; damaged content is one.
func (f TimeFile) Load() (uint32, error) {
	text, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("load start time: %w", err)
	}
	if len(text) > maxTimeFile {
		return 0, fmt.Errorf("load start time: %s is too long", string(f))
	}
	t, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil {
		return 0, fmt.Errorf("load start time: %s: %w", string(f), err)
	}
	return uint32(t), nil
}

// Save replaces the file and syncs it and its directory.
func (f TimeFile) Save(t uint32) error {
	dir := filepath.Dir(string(f))
	tmp, err := os.CreateTemp(dir, filepath.Base(string(f))+".*")
	if err != nil {
		return fmt.Errorf("save start time: %w", err)
	}
	_, err = fmt.Fprintf(tmp, "%d\n", t)
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), string(f))
	}
	if err != nil {
		return errors.Join(fmt.Errorf("save start time: %w", err), os.Remove(tmp.Name()))
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("save start time: %w", err)
	}
	return errors.Join(d.Sync(), d.Close())
}

// startClock gives out start times, each greater than all before.
type startClock struct {
	now   func() time.Time
	store TimeStore

	mu   sync.Mutex
	last uint32 // guarded by mu
}

// newStartClock reads what the last run left.
func newStartClock(now func() time.Time, store TimeStore) (*startClock, error) {
	c := &startClock{now: now, store: store}
	if store == nil {
		return c, nil
	}
	last, err := store.Load()
	c.last = last
	return c, err
}

// next returns the next start time: that of the wall clock, or one second more
// than the last if the clock is behind it. The time is stored before it is used.
func (c *startClock) next() (uint32, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.last == math.MaxUint32 {
		return 0, errors.New("no start time is left before the end of the 32 bit clock: use a new key")
	}
	wall := min(max(c.now().Unix(), 0), math.MaxUint32)
	t := max(uint32(wall), c.last+1)
	c.last = t
	if c.store != nil {
		if err := c.store.Save(t); err != nil {
			return t, err
		}
	}
	return t, nil
}
