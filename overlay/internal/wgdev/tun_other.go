//go:build !linux

package wgdev

import (
	"errors"
	"fmt"
	"runtime"

	"golang.zx2c4.com/wireguard/tun"
)

// openTUN says that there is none: nothing here configures hosts other than
// Linux.
func openTUN(string, int) (tun.Device, error) {
	return nil, fmt.Errorf("tun device on %s: %w; use the netstack device", runtime.GOOS, errors.ErrUnsupported)
}
