//go:build linux

package kubelab

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What a world needs. Memory was measured with a cluster of seven nodes: 1.35 GiB in processes and as much again in caches
// that it works from; the first control plane had most of it, 405 MiB. The disk holds programs, a Debian and images (3 GiB),
// the build's intermediate results and modules (5 GiB), and what machines write.
const (
	memoryBase    = 512 << 20
	memoryPerHost = 450 << 20
	diskCold      = 10 << 30
	diskWarm      = 3 << 30
	inotifyEach   = 14 // of systemd, containerd and a kubelet with its pods: 113 by seven nodes and the load balancer
)

// capabilities are what the laboratory needs, with the bits of linux/capability.h.
var capabilities = map[string]int{
	"CAP_SYS_ADMIN": unix.CAP_SYS_ADMIN, "CAP_NET_ADMIN": unix.CAP_NET_ADMIN, "CAP_NET_RAW": unix.CAP_NET_RAW,
	"CAP_SYS_CHROOT": unix.CAP_SYS_CHROOT, "CAP_MKNOD": unix.CAP_MKNOD, "CAP_SYS_PTRACE": unix.CAP_SYS_PTRACE,
	"CAP_CHOWN": unix.CAP_CHOWN, "CAP_DAC_OVERRIDE": unix.CAP_DAC_OVERRIDE, "CAP_KILL": unix.CAP_KILL,
}

// check reports everything that keeps this machine from running a laboratory with so many machines, joined.
func check(c cache, machines int) error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if os.Geteuid() != 0 {
		fault("the laboratory must run as root: it makes device files and mounts a root file system for every machine")
	}
	for _, name := range missingCapabilities() {
		fault("%s is missing", name)
	}
	if _, err := hierarchies(); err != nil {
		errs = append(errs, err)
	}
	if _, err := os.Stat("/dev/net/tun"); err != nil {
		fault("the routers' tunnels need /dev/net/tun: %w", err)
	}
	if types, err := os.ReadFile("/proc/filesystems"); err != nil || !strings.Contains(string(types), "\toverlay\n") {
		fault("the kernel has no overlayfs (modprobe overlay)")
	}
	if free, want := memory(), int64(memoryBase+machines*memoryPerHost); free < want {
		fault("%d MiB of memory are available, %d machines want %d MiB", free>>20, machines, want>>20)
	}
	if free, want := c.disk(); free < want {
		fault("%s has %d MiB free, %d MiB are needed (%s names another folder)", c.dir, free>>20, want>>20, CacheVariable)
	}
	if free, want := inotify(), machines*inotifyEach; free < want {
		fault("%d inotify instances are free, %d machines want %d: raise the sysctl fs.inotify.max_user_instances", free, machines, want)
	}
	return errors.Join(errs...)
}

func missingCapabilities() []string {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 has 64 bits in two parts (capget(2))
	if err := unix.Capget(&header, &data[0]); err != nil {
		return []string{"capget: " + err.Error()}
	}
	var missing []string
	for name, bit := range capabilities {
		if data[bit/32].Effective&(1<<(bit%32)) == 0 {
			missing = append(missing, name)
		}
	}
	return missing
}

// memory is what programs can still get without anything being written to a swap, in bytes.
func memory() int64 {
	text, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(line, "MemAvailable:"); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(value), "kB")), 10, 64) // 0 is refused
			return n << 10
		}
	}
	return 0
}

// disk is what is free in the cache, and what is needed there, in bytes.
func (c cache) disk() (free, want int64) {
	if err := os.MkdirAll(c.dir, 0o755); err != nil {
		return 0, diskCold
	}
	var st unix.Statfs_t
	if err := unix.Statfs(c.dir, &st); err != nil {
		return 0, diskCold
	}
	free, want = int64(st.Bavail)*st.Bsize, diskCold
	if stores, err := filepath.Glob(filepath.Join(c.dir, "store-*")); err == nil && len(stores) > 0 {
		want = diskWarm
	}
	return free, want
}

// inotify is the number of inotify instances that root can still open on this machine.
func inotify() int {
	text, err := os.ReadFile("/proc/sys/fs/inotify/max_user_instances")
	if err != nil {
		return 0
	}
	limit, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return 0
	}
	files, _ := filepath.Glob("/proc/[0-9]*/fd/*")
	for _, f := range files {
		if target, err := os.Readlink(f); err == nil && target == "anon_inode:inotify" {
			limit--
		}
	}
	return limit
}
