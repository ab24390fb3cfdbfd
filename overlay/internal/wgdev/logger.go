package wgdev

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/device"
)

// errorEvery is the shortest time between two warnings of one device: peers
// that cannot be reached would otherwise fill the log every five seconds.
const errorEvery = 10 * time.Second

// newLogger makes wireguard-go write to log: what it calls verbose at debug
// level, what it calls errors as warnings, because each is about one packet or
// one peer and the device goes on.
func newLogger(log *slog.Logger) *device.Logger {
	var (
		mu         sync.Mutex // guards the two below
		last       time.Time
		suppressed int
	)
	return &device.Logger{
		Verbosef: func(format string, args ...any) {
			if log.Enabled(context.Background(), slog.LevelDebug) {
				log.Debug("wireguard", "text", fmt.Sprintf(format, args...))
			}
		},
		Errorf: func(format string, args ...any) {
			mu.Lock()
			now := time.Now()
			quiet := !last.IsZero() && now.Sub(last) < errorEvery
			if quiet {
				suppressed++
			}
			n := suppressed
			if !quiet {
				last, suppressed = now, 0
			}
			mu.Unlock()
			if quiet {
				return
			}
			log.Warn("wireguard", "err", fmt.Sprintf(format, args...), "suppressed", n)
		},
	}
}
