//go:build linux

package netlab

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// onThread runs f on an operating system thread of its own that ends with it, so that f may move the thread into other
// namespaces. The goroutine ends when f returns.
func onThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			// The process's first thread never ends, and what it shows in /proc/self must stay. As long as it
			// waits here it cannot be chosen again.
			done <- onThread(f)
			runtime.UnlockOSThread()
			return
		}
		defer close(done) // also when f calls runtime.Goexit, as testing.T's FailNow does
		done <- f()
	}()
	err, ok := <-done
	if !ok {
		return errors.New("the function ended its goroutine")
	}
	return err
}

// namespaces are open files of /proc/PID/ns; -1 stands for one that is not held.
type namespaces struct {
	net, mnt, uts, pid int
}

func noNamespaces() namespaces { return namespaces{net: -1, mnt: -1, uts: -1, pid: -1} }

// openNamespaces opens the namespaces of a process or thread, given the directory "PID/ns" or "thread-self/ns" below
// the open directory proc.
func openNamespaces(proc int, dir string) (namespaces, error) {
	ns := noNamespaces()
	for name, fd := range map[string]*int{"net": &ns.net, "mnt": &ns.mnt, "uts": &ns.uts, "pid": &ns.pid} {
		var err error
		if *fd, err = unix.Openat(proc, dir+"/"+name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			ns.close()
			return noNamespaces(), fmt.Errorf("open namespace %s/%s: %w", dir, name, err)
		}
	}
	return ns, nil
}

// enter moves the calling thread, which must belong to [onThread], and the processes that it starts.
func (ns namespaces) enter() error {
	// Threads of one process share root and working directory, which a change of the mount namespace sets.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare file system attributes: %w", err)
	}
	steps := []struct {
		fd, kind int
		name     string
	}{
		{ns.pid, unix.CLONE_NEWPID, "pid"}, {ns.net, unix.CLONE_NEWNET, "net"},
		{ns.uts, unix.CLONE_NEWUTS, "uts"}, {ns.mnt, unix.CLONE_NEWNS, "mnt"},
	}
	for _, s := range steps {
		if s.fd < 0 {
			continue
		}
		if err := unix.Setns(s.fd, s.kind); err != nil {
			return fmt.Errorf("enter %s namespace: %w", s.name, err)
		}
	}
	return nil
}

// enterNet moves only the network of the calling thread, which must belong to [onThread].
func (ns namespaces) enterNet() error {
	if err := unix.Setns(ns.net, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter net namespace: %w", err)
	}
	return nil
}

func (ns namespaces) close() {
	for _, fd := range []int{ns.net, ns.mnt, ns.uts, ns.pid} {
		if fd >= 0 {
			unix.Close(fd) //nolint:errcheck // a namespace file has nothing to flush
		}
	}
}

// inode identifies a namespace as long as it lives.
func inode(fd int) uint64 {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0
	}
	return st.Ino
}

// mountPrivate gives the calling thread's mount namespace what a host has for itself: /run with /var/run and the private
// directory, and a /sys that shows the devices of the thread's network namespace.
func mountPrivate(dir string) error {
	// The cgroup trees are mounted below the /sys that is about to be covered; where there are none, none are moved.
	cgroup, err := unix.OpenTree(unix.AT_FDCWD, "/sys/fs/cgroup", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_RECURSIVE)
	if err == nil {
		defer unix.Close(cgroup)
	}
	mounts := []struct {
		source, target, fstype string
		flags                  uintptr
		data                   string
	}{
		{"tmpfs", "/run", "tmpfs", unix.MS_NOSUID | unix.MS_NODEV, "mode=755"},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC, ""},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
			return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
		}
	}
	if err == nil {
		if err := unix.MoveMount(cgroup, "", unix.AT_FDCWD, "/sys/fs/cgroup", unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("mount cgroups below /sys: %w", err)
		}
	}
	if target, err := os.Readlink("/var/run"); err != nil || (target != "/run" && target != "../run") {
		if err := unix.Mount("/run", "/var/run", "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount /run on /var/run: %w", err)
		}
	}
	for _, d := range []string{dir, "/run/lock"} {
		if err := os.Mkdir(d, 0o755); err != nil {
			return err
		}
	}
	return nil
}
