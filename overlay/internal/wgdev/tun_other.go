//go:build !linux

package wgdev

import (
	"errors"
	"fmt"

	"golang.zx2c4.com/wireguard/tun"
)

// OpenTUN returns errors.ErrUnsupported: only Linux is a site gateway.
func OpenTUN(name string, _ int) (tun.Device, error) {
	return nil, fmt.Errorf("make interface %s: %w", name, errors.ErrUnsupported)
}
