package preflight

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// What an agent tries on its own host.
const (
	clockTries  = 5
	fsyncWrites = 128
	fsyncBytes  = 2300            // what etcd's documentation has fio write
	fsyncLimit  = 3 * time.Second // for all of them
)

// clockAhead returns how far what the host's date command says is ahead of
// the kernel's clock. Usually that is nothing; where it is something, programs
// of the host are told another time than the kernel's, and that time counts.
func clockAhead(ctx context.Context) (time.Duration, error) {
	var best, window time.Duration = 0, -1
	for range clockTries {
		began := time.Now()
		out, err := exec.CommandContext(ctx, "date", "+%s.%N").Output()
		took := time.Since(began)
		if err != nil {
			return 0, fmt.Errorf("run date: %w", err)
		}
		said, err := parseDate(string(out))
		if err != nil {
			return 0, err
		}
		if window < 0 || took < window {
			window, best = took, said.Sub(began.Add(took/2))
		}
	}
	if best.Abs() <= window { // no more than the measurement is worth
		return 0, nil
	}
	return best, nil
}

// parseDate reads "1763864096.123456789".
func parseDate(text string) (time.Time, error) {
	sec, frac, ok := strings.Cut(strings.TrimSpace(text), ".")
	s, err := strconv.ParseInt(sec, 10, 64)
	if err != nil || s < 0 || s > 1<<36 {
		return time.Time{}, fmt.Errorf("date says %.40q, want seconds since 1970", text)
	}
	if !ok || len(frac) != 9 {
		return time.Time{}, fmt.Errorf("date says %.40q, want nine digits behind the point", text)
	}
	n, err := strconv.ParseUint(frac, 10, 32)
	if err != nil {
		return time.Time{}, fmt.Errorf("date says %.40q, want nine digits behind the point", text)
	}
	return time.Unix(s, int64(n)), nil
}

// tryFsync writes to a file in dir, or where that is missing in the nearest
// directory above, as etcd writes to its log. The file has no name for
// longer than it takes to open it.
func tryFsync(ctx context.Context, dir string, r *ready) error {
	f, err := os.CreateTemp(existing(dir), ".kubeinit-probe-*")
	if err != nil {
		return err
	}
	defer f.Close()
	if err := os.Remove(f.Name()); err != nil {
		return err
	}
	began, data := time.Now(), make([]byte, fsyncBytes)
	var took []int64
	for len(took) < fsyncWrites && time.Since(began) < fsyncLimit && ctx.Err() == nil {
		if _, err := f.Write(data); err != nil {
			return err
		}
		one := time.Now()
		if err := syscall.Fdatasync(int(f.Fd())); err != nil {
			return fmt.Errorf("fdatasync in %s: %w", dir, err)
		}
		took = append(took, int64(time.Since(one)))
	}
	if len(took) == 0 {
		return errors.New("no write was tried")
	}
	r.FsyncNanos, r.FsyncCount = quantiles(slices.Clone(took)).P99, len(took)
	return nil
}

// existing returns the nearest directory of dir and those above that exists.
func existing(dir string) string {
	for dir != "/" && dir != "." {
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			return dir
		}
		i := strings.LastIndexByte(dir, '/')
		if i <= 0 {
			break
		}
		dir = dir[:i]
	}
	return "/"
}
