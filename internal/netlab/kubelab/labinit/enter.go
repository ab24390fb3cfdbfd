//go:build linux

package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/planetmesh/planetmesh/internal/netlab/kubelab/boxspec"
)

// enter runs a program in the namespaces and cgroups of a box, passes SIGTERM and SIGINT on to it, and ends as it ends.
func enter(e boxspec.Entry) error {
	runtime.LockOSThread() // never unlocked: the thread is in the box
	if err := join(e.Cgroups, "tasks"); err != nil {
		return err
	}
	if err := enterNamespaces(e.Target); err != nil {
		return err
	}
	path, err := lookPath(e.Args[0], e.Env)
	if err != nil {
		return err
	}
	dir := e.Dir
	if dir == "" {
		dir = "/"
	}
	cmd := &exec.Cmd{
		Path: path, Args: e.Args, Env: e.Env, Dir: dir, Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT)
	if err := cmd.Start(); err != nil {
		return err
	}
	go func() { // ends with the program
		for s := range signals {
			cmd.Process.Signal(s) //nolint:errcheck // then it has ended
		}
	}()
	return cmd.Wait()
}

// enterNamespaces moves the calling thread, and with it the programs that it starts. The mounts come last, because /proc is
// another one there.
func enterNamespaces(target int) error {
	kinds := []struct {
		name string
		flag int
	}{
		{"cgroup", unix.CLONE_NEWCGROUP}, {"ipc", unix.CLONE_NEWIPC}, {"uts", unix.CLONE_NEWUTS},
		{"net", unix.CLONE_NEWNET}, {"pid", unix.CLONE_NEWPID}, {"mnt", unix.CLONE_NEWNS},
	}
	files := make([]int, len(kinds))
	for i, kind := range kinds {
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/%s", target, kind.name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("open the %s namespace of the box: %w", kind.name, err)
		}
		files[i] = fd
	}
	if err := unix.Unshare(unix.CLONE_FS); err != nil { // the threads of a process share their root otherwise
		return fmt.Errorf("unshare file system attributes: %w", err)
	}
	for i, kind := range kinds {
		if err := unix.Setns(files[i], kind.flag); err != nil {
			return fmt.Errorf("enter the %s namespace of the box: %w", kind.name, err)
		}
	}
	return nil
}

// lookPath finds a program in the PATH of env, which is not the one of this process.
func lookPath(name string, env []string) (string, error) {
	if strings.Contains(name, "/") {
		return name, nil
	}
	for _, e := range env {
		list, ok := strings.CutPrefix(e, "PATH=")
		if !ok {
			continue
		}
		for _, dir := range filepath.SplitList(list) {
			path := filepath.Join(dir, name)
			if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
				return path, nil
			}
		}
	}
	return "", errors.New(name + ": no such program in the box")
}
