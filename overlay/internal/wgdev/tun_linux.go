package wgdev

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.zx2c4.com/wireguard/tun"
)

// tunDevice is where the kernel makes TUN devices (Documentation/networking/tuntap.rst).
const tunDevice = "/dev/net/tun"

// OpenTUN makes a TUN device of the host. The error is os.ErrNotExist without
// /dev/net/tun, os.ErrPermission without the rights, os.ErrExist if the name is
// taken.
func OpenTUN(name string, mtu int) (tun.Device, error) {
	if _, err := os.Stat(tunDevice); err != nil {
		return nil, fmt.Errorf("make interface %s: %w", name, err)
	}
	if _, err := os.Stat("/sys/class/net/" + name); err == nil {
		return nil, fmt.Errorf("make interface %s: a link of that name: %w", name, os.ErrExist)
	}
	t, err := tun.CreateTUN(name, mtu)
	switch {
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return nil, fmt.Errorf("make interface %s: %w", name, os.ErrPermission)
	case errors.Is(err, syscall.EBUSY):
		return nil, fmt.Errorf("make interface %s: %w", name, os.ErrExist)
	case err != nil:
		return nil, fmt.Errorf("make interface %s: %w", name, err)
	}
	return t, nil
}
