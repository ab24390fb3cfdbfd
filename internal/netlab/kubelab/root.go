//go:build linux

package kubelab

import (
	"bufio"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// suite is the Debian release of the machines, and fallbackMirror where it comes from on a machine whose apt names no mirror.
const (
	suite          = "bookworm"
	fallbackMirror = "http://deb.debian.org/debian"
)

// packages are what the machines have beyond a minimal Debian.
var packages = []string{
	"systemd", "systemd-sysv", "dbus", "kmod", "mount", "util-linux", "procps", "ca-certificates", "curl", "jq", "openssl",
	"openssh-server", "iproute2", "iputils-ping", "iptables", "nftables", "conntrack", "ebtables", "ethtool", "socat", "tcpdump",
	"containerd", "runc", "containernetworking-plugins", "haproxy", "openvpn", "wireguard-tools",
}

// masked are the units that would touch the machine below (devices, terminals, its clock), wait for what does not come, or
// each hold one of the machine's inotify instances, of which the kernel gives root 128 by default: eight machines want about
// 113 without D-Bus and the password agents. What it costs: hostnamectl and timedatectl do not work, and of systemd-run the
// forms that go through D-Bus (--wait, --pipe).
var masked = []string{
	"systemd-udevd.service", "systemd-udev-trigger.service", "systemd-udevd-control.socket", "systemd-udevd-kernel.socket",
	"systemd-timesyncd.service", "systemd-logind.service", "systemd-oomd.service", "systemd-remount-fs.service",
	"systemd-journal-flush.service", "systemd-random-seed.service", "systemd-modules-load.service", "systemd-sysctl.service",
	"systemd-ask-password-console.path", "systemd-ask-password-wall.path", "dbus.service", "dbus.socket",
	"getty.target", "console-getty.service", "openvpn.service", "e2scrub_reap.service",
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer",
	"sys-kernel-debug.mount", "sys-kernel-tracing.mount", "sys-kernel-config.mount", "sys-fs-fuse-connections.mount",
	"dev-hugepages.mount", "dev-mqueue.mount", "proc-sys-fs-binfmt_misc.automount",
}

// notEnabled are the units that Debian enables when it installs them, and that a machine here starts only if it wants to.
var notEnabled = []string{"haproxy.service", "containerd.service", "nftables.service"}

// rootFiles are the settings of every machine.
var rootFiles = map[string]string{
	"etc/systemd/journald.conf.d/lab.conf": "[Journal]\nStorage=volatile\nRuntimeMaxUse=64M\nReadKMsg=no\nForwardToConsole=no\n",
	"etc/systemd/system.conf.d/lab.conf":   "[Manager]\nDefaultCPUAccounting=yes\nDefaultMemoryAccounting=yes\nDefaultTimeoutStopSec=15s\n",
	"etc/ssh/sshd_config.d/lab.conf":       "PasswordAuthentication no\nUseDNS no\n",
}

// rootRevision changes when roots are to be made anew though nothing else in their recipe has changed.
const rootRevision = "1"

// root is the folder with the Debian that all machines have, from the distribution's archive.
func (c cache) root(ctx context.Context) (string, error) {
	recipe := []string{rootRevision, suite, runtime.GOARCH, kernel()}
	for _, list := range [][]string{packages, masked, notEnabled} {
		recipe = append(recipe, strings.Join(list, " "))
	}
	for _, name := range slices.Sorted(maps.Keys(rootFiles)) {
		recipe = append(recipe, name, rootFiles[name])
	}
	return c.entry("root", "a Debian "+suite+" (two minutes, 90 MB from its archive)", recipe, func(dir string) error {
		if err := c.debootstrap(ctx, dir); err != nil {
			return err
		}
		return configureRoot(ctx, c, dir)
	})
}

// debootstrap fetches the program of that name, unpacks it without installing it, and lets it fill dir. It runs in mount and
// process namespaces of its own: whatever the packages' scripts mount or start ends with it.
func (c cache) debootstrap(ctx context.Context, dir string) error {
	tools, err := os.MkdirTemp(c.dir, "debootstrap")
	if err != nil {
		return err
	}
	defer os.RemoveAll(tools) //nolint:errcheck // a later run is not disturbed by it
	if _, err := c.run(ctx, tools, nil, "apt-get", "-o", "APT::Sandbox::User=root", "download", "debootstrap"); err != nil {
		return fmt.Errorf("fetch debootstrap (the cold build wants a Debian machine with package lists, see apt-get update): %w", err)
	}
	archives, err := filepath.Glob(filepath.Join(tools, "debootstrap_*.deb"))
	if err != nil || len(archives) != 1 {
		return errors.Join(errors.New("apt-get download left no package"), err)
	}
	if _, err := c.run(ctx, "", nil, "dpkg-deb", "-x", archives[0], tools); err != nil {
		return err
	}
	mirror, err := c.mirror(ctx)
	if err != nil {
		return err
	}
	_, err = c.run(ctx, "", []string{"DEBOOTSTRAP_DIR=" + filepath.Join(tools, "usr/share/debootstrap"), "DEBIAN_FRONTEND=noninteractive"},
		"unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child", "--mount-proc",
		filepath.Join(tools, "usr/sbin/debootstrap"), "--variant=minbase", "--include="+strings.Join(packages, ","), suite, dir, mirror)
	return err
}

// mirror is the archive that the machine's apt takes the suite from.
func (c cache) mirror(ctx context.Context) (string, error) {
	out, err := c.run(ctx, "", nil, "apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Created-By: Packages")
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) == 3 && f[1] == suite && f[2] == "main" {
			return f[0], nil
		}
	}
	return fallbackMirror, nil
}

func configureRoot(ctx context.Context, c cache, dir string) error {
	for name, content := range rootFiles {
		if err := writeFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	for _, unit := range masked {
		if err := link("/dev/null", filepath.Join(dir, "etc/systemd/system", unit)); err != nil {
			return err
		}
	}
	// systemctl also tells the scripts of System V, whose links have to fit.
	if _, err := c.run(ctx, "", nil, append([]string{"chroot", dir, "systemctl", "--quiet", "disable"}, notEnabled...)...); err != nil {
		return err
	}
	if err := link("/lib/systemd/system/multi-user.target", filepath.Join(dir, "etc/systemd/system/default.target")); err != nil {
		return err
	}
	// What differs from machine to machine, what was left from the installation, and settings that are the machine's below.
	for _, pattern := range []string{
		"etc/ssh/ssh_host_*", "etc/machine-id", "var/lib/dbus/machine-id", "etc/hostname", "etc/resolv.conf",
		"var/cache/apt/archives/*.deb", "var/cache/apt/*.bin", "var/lib/apt/lists/*", "var/log/*.log", "var/log/apt/*",
		"usr/lib/sysctl.d/*.conf", "etc/sysctl.d/*.conf",
	} {
		matches, err := filepath.Glob(filepath.Join(dir, pattern))
		if err != nil {
			return err
		}
		for _, m := range matches {
			if err := os.RemoveAll(m); err != nil {
				return err
			}
		}
	}
	return declareModules(ctx, c, dir)
}

// builtIn are the kernel modules that programs of a cluster load by name, with their configuration options.
var builtIn = map[string]string{
	"CONFIG_OVERLAY_FS": "fs/overlayfs/overlay", "CONFIG_BRIDGE": "net/bridge/bridge", "CONFIG_BRIDGE_NETFILTER": "net/bridge/br_netfilter",
	"CONFIG_VXLAN": "drivers/net/vxlan/vxlan", "CONFIG_TUN": "drivers/net/tun", "CONFIG_VETH": "drivers/net/veth",
	"CONFIG_NF_CONNTRACK": "net/netfilter/nf_conntrack", "CONFIG_NF_TABLES": "net/netfilter/nf_tables",
	"CONFIG_IP_TABLES": "net/ipv4/netfilter/ip_tables", "CONFIG_WIREGUARD": "drivers/net/wireguard/wireguard",
}

// declareModules tells modprobe which of the modules are built into the kernel, so that "modprobe overlay" works exactly where
// the kernel has it. A kernel that does not show its configuration declares none.
func declareModules(ctx context.Context, c cache, dir string) error {
	var names strings.Builder
	config, err := kernelConfig()
	if err != nil {
		return err
	}
	for _, option := range slices.Sorted(maps.Keys(builtIn)) {
		if config[option] {
			fmt.Fprintf(&names, "kernel/%s.ko\n", builtIn[option])
		}
	}
	tree := filepath.Join(dir, "lib/modules", kernel())
	if err := writeFile(filepath.Join(tree, "modules.builtin"), names.String(), 0o644); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(tree, "modules.order"), "", 0o644); err != nil {
		return err
	}
	_, err = c.run(ctx, "", nil, "chroot", dir, "/sbin/depmod", kernel())
	return err
}

// kernelConfig is the set of options that are built into the kernel; it is empty where the kernel does not tell.
func kernelConfig() (map[string]bool, error) {
	f, err := os.Open("/proc/config.gz")
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer f.Close()
	r, err := gzip.NewReader(f)
	if err != nil {
		return nil, fmt.Errorf("read /proc/config.gz: %w", err)
	}
	config := make(map[string]bool)
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if option, ok := strings.CutSuffix(lines.Text(), "=y"); ok {
			config[option] = true
		}
	}
	return config, lines.Err()
}

// kernel is the release of the running kernel, as uname -r says it.
func kernel() string {
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return "unknown"
	}
	return unix.ByteSliceToString(u.Release[:])
}

func writeFile(path, content string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		return err
	}
	return os.Chmod(path, mode) // whatever the umask
}

// link makes a symbolic link in the place of whatever was there.
func link(target, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.Symlink(target, path)
}

// clone makes a hard link where that is possible, and a copy where it is not.
func clone(from, to string) error {
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	if err := os.Link(from, to); err == nil {
		return nil
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	info, err := in.Stat()
	if err != nil {
		return err
	}
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, info.Mode().Perm())
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return errors.Join(err, out.Close())
	}
	return out.Close()
}
