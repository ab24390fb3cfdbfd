//go:build !linux

package openvpn

import (
	"errors"
	"fmt"
	"runtime"
)

// TUN is a network interface of the kernel. There are none outside Linux.
type TUN struct{ Device }

// OpenTUN returns errors.ErrUnsupported outside Linux: hand in a Device of
// your own.
func OpenTUN(name string, _ int) (*TUN, error) {
	return nil, fmt.Errorf("open tun %s on %s: %w", name, runtime.GOOS, errors.ErrUnsupported)
}

// Name returns the name of the interface.
func (t *TUN) Name() string { return "" }

// Refused returns how many packets of the peer the kernel did not take.
func (t *TUN) Refused() uint64 { return 0 }
