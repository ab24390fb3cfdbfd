//go:build linux

package netlab

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// privateDir is a host's own directory, on its private /run.
const privateDir = "/run/netlab"

// Host is a running host of a [World]. It is safe for concurrent use.
type Host struct {
	world *World
	spec  HostSpec
	ns    namespaces // pid is the world's

	cables map[string]*cable // by the name of the interface
}

// Name is the host's name.
func (h *Host) Name() string { return h.spec.Name }

// Spec is the declaration of the host.
func (h *Host) Spec() HostSpec { return h.spec }

// Dir is an empty directory that only this host sees. It is in memory and goes with the world. Outside of the
// host the path means nothing: use [Host.ReadFile] and [Host.WriteFile].
func (h *Host) Dir() string { return privateDir }

// Addr is the first IPv4 address in the declaration of the host; the zero Addr means that it has none.
func (h *Host) Addr() netip.Addr { return h.spec.Addr(false) }

// Addr6 is the first IPv6 address in the declaration of the host; the zero Addr means that it has none.
func (h *Host) Addr6() netip.Addr { return h.spec.Addr(true) }

// Do runs f as if it ran on the host: sockets, netlink, /proc/thread-self/net, /sys and files are the host's; /proc has the
// machine's process numbers, and /proc/net, which the kernel makes for whole processes, is the machine's. f runs on a thread
// of its own; goroutines that it starts are not on the host, but sockets that it opened stay the host's wherever they are
// used. f must not call FailNow of a test. Do returns the error of f.
func (h *Host) Do(f func() error) error {
	done, err := h.world.begin()
	if err != nil {
		return err
	}
	return onThread(func() error {
		err := h.enterForGo()
		done()
		if err != nil {
			return fmt.Errorf("host %s: %w", h.spec.Name, err)
		}
		return f()
	})
}

// enterForGo enters the host with a copy of its mounts in which /proc is that of our own PID namespace, which the
// holder covered with the world's. In the host's /proc this program does not exist, so that /proc/self and
// /proc/thread-self would lead nowhere.
func (h *Host) enterForGo() error {
	if err := h.enter(); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("unshare mounts: %w", err)
	}
	if err := unix.Unmount("/proc", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("uncover /proc: %w", err)
	}
	return nil
}

// enter moves the calling thread, but not the processes that it starts, into the host.
func (h *Host) enter() error {
	ns := h.ns
	ns.pid = -1
	return ns.enter()
}

// Dial connects from the host. The address must be literal; nothing is resolved.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	if _, err := netip.ParseAddrPort(address); err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.spec.Name, err)
	}
	var conn net.Conn
	err := h.Do(func() (err error) {
		conn, err = (&net.Dialer{}).DialContext(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("dial from %s: %w", h.spec.Name, err)
	}
	return conn, nil
}

// Listen listens on the host for stream connections. The address must be literal.
func (h *Host) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	var l net.Listener
	err := h.Do(func() (err error) {
		l, err = (&net.ListenConfig{}).Listen(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", h.spec.Name, err)
	}
	return l, nil
}

// ListenPacket opens a datagram socket on the host. The address must be literal.
func (h *Host) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	var c net.PacketConn
	err := h.Do(func() (err error) {
		c, err = (&net.ListenConfig{}).ListenPacket(ctx, network, address)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", h.spec.Name, err)
	}
	return c, nil
}

// ReadFile reads a file as the host sees it. A relative name is below [Host.Dir].
func (h *Host) ReadFile(name string) ([]byte, error) {
	var data []byte
	err := h.Do(func() (err error) {
		data, err = os.ReadFile(inDir(name))
		return err
	})
	return data, err
}

// WriteFile writes a file as the host sees it and makes the directories above it, with mode 0755, as far as they are
// missing. A relative name is below [Host.Dir].
func (h *Host) WriteFile(name string, data []byte, mode os.FileMode) error {
	return h.Do(func() error {
		name := inDir(name)
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		return os.WriteFile(name, data, mode)
	})
}

func inDir(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(privateDir, name)
}

// unshare makes the host's namespaces as copies of the holder's.
func (h *Host) unshare(context.Context) error {
	err := onThread(func() error {
		base := h.world.base
		base.pid = -1
		if err := base.enter(); err != nil {
			return err
		}
		if err := unix.Unshare(unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWUTS); err != nil {
			return fmt.Errorf("unshare: %w", err)
		}
		if err := unix.Sethostname([]byte(h.spec.Name)); err != nil {
			return fmt.Errorf("set host name: %w", err)
		}
		if err := mountPrivate(privateDir); err != nil {
			return err
		}
		ns, err := openNamespaces(h.world.proc, "thread-self/ns")
		if err != nil {
			return err
		}
		unix.Close(ns.pid) //nolint:errcheck // this program's, not the world's
		ns.pid = h.world.base.pid
		h.ns = ns
		return nil
	})
	if err != nil {
		return fmt.Errorf("host %s: %w", h.spec.Name, err)
	}
	return nil
}
