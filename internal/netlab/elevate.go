//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"os"
	"os/exec"

	"golang.org/x/sys/unix"
)

// elevatedEnv marks a program that has already been run again by Elevate.
const elevatedEnv = "NETLAB_ELEVATED"

// Elevate gives the program the rights to build worlds. Where it has them it does nothing. Otherwise it runs the
// program again, in place and with the same arguments, as root of a new user namespace (unshare(1) of util-linux); then it
// does not return. It belongs at the top of main or TestMain, before anything has effects.
//
// The error says why it does not work: unshare is missing, or the machine does not let its users make user namespaces
// (sysctl kernel.unprivileged_userns_clone, user.max_user_namespaces or kernel.apparmor_restrict_unprivileged_userns).
func Elevate() error {
	if privileged() {
		return nil
	}
	if os.Getenv(elevatedEnv) != "" {
		return errors.New("no CAP_SYS_ADMIN and CAP_NET_ADMIN, not even in a user namespace: run as root")
	}
	unshare, err := exec.LookPath("unshare")
	if err != nil {
		return fmt.Errorf("run in a user namespace: %w", err)
	}
	if out, err := exec.Command(unshare, "--user", "--map-root-user", "true").CombinedOutput(); err != nil {
		return fmt.Errorf("this machine lets only root make namespaces, run as root: %w: %s", err, out)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("run in a user namespace: %w", err)
	}
	args := append([]string{unshare, "--user", "--map-root-user", "--", self}, os.Args[1:]...)
	return fmt.Errorf("run in a user namespace: %w", unix.Exec(unshare, args, append(os.Environ(), elevatedEnv+"=1")))
}

// privileged reports whether the process has, in its user namespace, the capabilities that namespaces and their
// networks need.
func privileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData // version 3 has 64 bits in two parts (capget(2))
	if err := unix.Capget(&header, &data[0]); err != nil {
		return false
	}
	const need = 1<<unix.CAP_SYS_ADMIN | 1<<unix.CAP_NET_ADMIN | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SYS_CHROOT
	return data[0].Effective&need == need
}
