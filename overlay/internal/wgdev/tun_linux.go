package wgdev

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/tun"
)

// cloneDevice is opened to get a TUN interface
// (Documentation/networking/tuntap.rst of Linux).
const cloneDevice = "/dev/net/tun"

// openTUN makes a network interface that is gone when it is closed. It refuses
// a name that is in use, also by a TUN interface that waits for a program:
// nobody would give it back as it was.
func openTUN(name string, mtu int) (tun.Device, error) {
	fd, err := unix.Open(cloneDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, cloneError(err)
	}
	if err := attach(fd, name); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	file := os.NewFile(uintptr(fd), cloneDevice)
	t, err := tun.CreateTUNFromFile(file, mtu)
	if err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return t, nil
}

// attach creates the interface. IFF_VNET_HDR lets the kernel hand over many
// segments of a flow as one packet.
func attach(fd int, name string) error {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR | unix.IFF_TUN_EXCL)
	switch err := unix.IoctlIfreq(fd, unix.TUNSETIFF, request); {
	case err == nil:
		return nil
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("create: %w: CAP_NET_ADMIN is missing; run as root or give the program that capability", err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("create: %w: an interface of that name exists; remove it or choose another name", os.ErrExist)
	default:
		return fmt.Errorf("create: %w", err)
	}
}

// cloneError says what to do about a clone device that cannot be opened.
func cloneError(err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%s: %w: load the module with `modprobe tun`; in a container, hand the device in (--device %s)", cloneDevice, err, cloneDevice)
	case errors.Is(err, unix.ENODEV), errors.Is(err, unix.ENXIO):
		return fmt.Errorf("%s: %w: %w: the kernel has no tun driver loaded; `modprobe tun` on the host", cloneDevice, os.ErrNotExist, err)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("%s: %w: may not be opened; run as root, and in a container allow the device", cloneDevice, err)
	}
	return fmt.Errorf("%s: %w", cloneDevice, err)
}
