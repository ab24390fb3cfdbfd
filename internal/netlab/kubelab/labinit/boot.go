//go:build linux

package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/planetmesh/planetmesh/internal/netlab/kubelab/boxspec"
)

// boot enters the box's cgroups, starts its process 1 in namespaces of its own, and waits. The network stays the caller's.
func boot(box boxspec.Box, spec string) error {
	if err := join(box.Cgroups, "cgroup.procs"); err != nil {
		return err
	}
	runtime.LockOSThread() // the signal at the parent's death is that of the parent's thread
	cmd := exec.Command("/proc/self/exe", "first", spec)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWCGROUP,
		Setsid:     true,
		Pdeathsig:  unix.SIGKILL,
	}
	return cmd.Run()
}

// join moves this process, or with "tasks" this thread, into a cgroup of each hierarchy.
func join(cgroups map[string]string, file string) error {
	for name, dir := range cgroups {
		if name == unified && file != "cgroup.procs" {
			continue // version 2 moves whole processes, of which a program that was entered is none yet
		}
		if err := os.WriteFile(filepath.Join(dir, file), []byte("0"), 0); err != nil {
			return fmt.Errorf("join cgroup: %w", err)
		}
	}
	return nil
}

// unified is the name that the version 2 hierarchy has beside those of version 1.
const unified = "unified"

// first builds the file system of the box around itself and becomes its init.
func first(box boxspec.Box) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	lower := strings.Join(box.Lower, ":")
	steps := []func() error{
		func() error {
			return mount("overlay", box.Root, "overlay", 0, "lowerdir="+lower+",upperdir="+box.Upper+",workdir="+box.Work)
		},
		func() error { return mount("proc", box.Root+"/proc", "proc", quiet, "") },
		func() error { return mount("sysfs", box.Root+"/sys", "sysfs", quiet, "") },
		func() error { return mountCgroups(box) },
		func() error { return bindReadOnly(box.Root + "/sys") }, // systemd then leaves devices alone
		func() error { return mountDev(box) },
		func() error {
			return mount("tmpfs", box.Root+"/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
		},
		func() error { return mountSettings(box) },
		func() error {
			if box.Var == "" {
				return nil
			}
			return mount(box.Var, box.Root+"/var", "", unix.MS_BIND, "")
		},
		func() error { return pivot(box.Root) },
	}
	for _, step := range steps {
		if err := step(); err != nil {
			return err
		}
	}
	return fmt.Errorf("run %s: %w", box.Init[0], unix.Exec(box.Init[0], box.Init, box.Env))
}

const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC

func mount(source, target, kind string, flags uintptr, data string) error {
	if err := unix.Mount(source, target, kind, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", source, target, err)
	}
	return nil
}

// bindReadOnly makes a mount read-only without touching the file system that it shows, which is also elsewhere.
func bindReadOnly(target string) error {
	return mount("", target, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY|quiet, "")
}

// mountCgroups mounts every hierarchy afresh, so that the box's own cgroup is its root.
func mountCgroups(box boxspec.Box) error {
	if len(box.Cgroups) == 0 {
		return nil
	}
	top := box.Root + "/sys/fs/cgroup"
	if err := mount("tmpfs", top, "tmpfs", quiet, "mode=755"); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(box.Cgroups)) {
		target := filepath.Join(top, name)
		if err := os.Mkdir(target, 0o755); err != nil {
			return err
		}
		kind, data := "cgroup", name
		switch name {
		case unified:
			kind, data = "cgroup2", ""
		case "systemd":
			data = "none,name=systemd" // a hierarchy without controller
		}
		if err := mount("cgroup", target, kind, quiet, data); err != nil {
			return err
		}
	}
	return nil
}

// devices are those that no box can do harm with, by their kernel numbers (Documentation/admin-guide/devices.txt).
var devices = map[string][2]uint32{
	"null": {1, 3}, "zero": {1, 5}, "full": {1, 7}, "random": {1, 8}, "urandom": {1, 9}, "kmsg": {1, 11}, "tty": {5, 0},
	"net/tun": {10, 200},
}

func mountDev(box boxspec.Box) error {
	dev := box.Root + "/dev"
	if err := mount("tmpfs", dev, "tmpfs", unix.MS_NOSUID, "mode=755"); err != nil {
		return err
	}
	for _, dir := range []string{"net", "pts", "shm", "mqueue"} {
		if err := os.Mkdir(filepath.Join(dev, dir), 0o755); err != nil {
			return err
		}
	}
	for name, number := range devices {
		path := filepath.Join(dev, name)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(number[0], number[1]))); err != nil {
			return fmt.Errorf("make device %s: %w", name, err)
		}
		if err := os.Chmod(path, 0o666); err != nil { // without the umask
			return err
		}
	}
	links := map[string]string{
		"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "fd/0", "stdout": "fd/1", "stderr": "fd/2",
	}
	for name, target := range links {
		if err := os.Symlink(target, filepath.Join(dev, name)); err != nil {
			return err
		}
	}
	if err := mount("devpts", dev+"/pts", "devpts", unix.MS_NOSUID|unix.MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5"); err != nil {
		return err // group 5 is Debian's tty
	}
	if err := mount("tmpfs", dev+"/shm", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return err
	}
	if err := mount("mqueue", dev+"/mqueue", "mqueue", quiet, ""); err != nil {
		return err
	}
	if err := os.WriteFile(dev+"/console", nil, 0o600); err != nil {
		return err
	}
	return mount(box.Console, dev+"/console", "", unix.MS_BIND, "")
}

// mountSettings makes /proc/sys read-only but for the network's part, which is the box's own, and covers the settings that
// programs insist on.
func mountSettings(box boxspec.Box) error {
	sys := box.Root + "/proc/sys"
	for _, step := range []struct {
		target string
		flags  uintptr
	}{{sys, unix.MS_RDONLY}, {sys + "/net", 0}} {
		if err := mount(step.target, step.target, "", unix.MS_BIND, ""); err != nil {
			return err
		}
		if err := mount("", step.target, "", unix.MS_REMOUNT|unix.MS_BIND|quiet|step.flags, ""); err != nil {
			return err
		}
	}
	covers := box.Root + "/run/lab"
	if err := os.Mkdir(covers, 0o755); err != nil {
		return err
	}
	for name, value := range box.Readable {
		file := filepath.Join(covers, strings.ReplaceAll(name, "/", "."))
		if err := os.WriteFile(file, []byte(value+"\n"), 0o644); err != nil {
			return err
		}
		if err := mount(file, filepath.Join(sys, name), "", unix.MS_BIND, ""); err != nil {
			return err
		}
	}
	return nil
}

// pivot makes root the root and lets go of the machine's file systems. Mounts are shared within the box from then on, as
// systemd and the kubelet want them.
func pivot(root string) error {
	const old = ".old"
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := os.Mkdir(old, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if err := unix.PivotRoot(".", old); err != nil {
		return fmt.Errorf("pivot root to %s: %w", root, err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Unmount("/"+old, unix.MNT_DETACH); err != nil {
		return fmt.Errorf("let go of the machine's root: %w", err)
	}
	if err := os.Remove("/" + old); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("share mounts: %w", err)
	}
	return nil
}
