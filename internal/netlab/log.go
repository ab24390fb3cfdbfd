//go:build linux

package netlab

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// logMax is how much of a process's output is kept, in bytes. A daemon at debug level writes about 1 MiB in a minute.
const logMax = 8 << 20

// log keeps the end of what is written to it and tells readers when there is more.
type log struct {
	mu      sync.Mutex
	content []byte
	changed chan struct{} // closed, and replaced, at the next write
}

func newLog() *log { return &log{changed: make(chan struct{})} }

// Write appends p. It never returns an error.
func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.content = append(l.content, p...)
	if len(l.content) > 2*logMax { // rarely, so that it costs little
		l.content = append([]byte(nil), l.content[len(l.content)-logMax:]...)
	}
	close(l.changed)
	l.changed = make(chan struct{})
	return len(p), nil
}

func (l *log) String() string {
	content, _ := l.snapshot()
	return content
}

// snapshot is the content, and a channel that is closed at the next write.
func (l *log) snapshot() (string, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(l.content[max(0, len(l.content)-logMax):]), l.changed
}

// tee is a writer to the log, and to w unless that is nil.
func (l *log) tee(w io.Writer) io.Writer {
	if w == nil {
		return l
	}
	return io.MultiWriter(l, w)
}

// clockTick is the unit of times in /proc/PID/stat; USER_HZ is 100 on all Linux architectures that Go runs on.
const clockTick = time.Second / 100

// parseCPU adds utime and stime, fields 14 and 15 of /proc/PID/stat (proc(5)). Field 2 is a name in parentheses that may
// contain anything.
func parseCPU(stat string) (time.Duration, error) {
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if !strings.Contains(stat, ")") || len(fields) < 13 {
		return 0, fmt.Errorf("%q is not a process status", stat)
	}
	var ticks time.Duration
	for _, f := range fields[11:13] {
		n, err := strconv.ParseUint(f, 10, 32) // 2^32 steps are 497 days
		if err != nil {
			return 0, fmt.Errorf("process status: %w", err)
		}
		ticks += time.Duration(n)
	}
	return ticks * clockTick, nil
}
