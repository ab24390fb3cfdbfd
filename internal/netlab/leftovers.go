//go:build linux

package netlab

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Leftovers describes, one line each, what keeps a part of the world alive: a process in one of its namespaces, a thread of
// this program, or a socket or another file of this program that belongs to one of its hosts. While the world
// is open these are simply its processes. nil means that nothing of a closed world is left.
func (w *World) Leftovers() []string {
	w.mu.Lock()
	closed := w.closed
	w.mu.Unlock()
	w.lookMu.Lock()
	defer w.lookMu.Unlock()
	if w.released {
		return nil // nothing can come back into its namespaces
	}
	left := w.look()
	if closed && len(left) == 0 {
		w.releaseLocked()
	}
	return left
}

// awaitGone polls until nothing is left or goneTimeout is over: a thread that has done its work needs a moment to end.
func (w *World) awaitGone() []string {
	deadline := time.Now().Add(goneTimeout)
	for {
		left := w.Leftovers()
		if len(left) == 0 || time.Now().After(deadline) {
			return left
		}
		time.Sleep(2 * time.Millisecond)
	}
}

func (w *World) look() []string {
	names := make(map[string]string) // "net:[4026532008]" -> "net namespace of gw10"
	own := make(map[int]bool)        // the files by which we hold them ourselves
	add := func(ns namespaces, owner string) {
		for kind, fd := range map[string]int{"net": ns.net, "mnt": ns.mnt, "uts": ns.uts, "pid": ns.pid} {
			if fd < 0 {
				continue
			}
			own[fd] = true
			names[fmt.Sprintf("%s:[%d]", kind, inode(fd))] = kind + " namespace of " + owner
		}
	}
	add(w.base, "the world")
	for _, h := range w.hosts {
		ns := h.ns
		ns.pid = -1 // that of the world
		add(ns, h.spec.Name)
	}
	return append(membersOf(names), filesOf(names, own)...)
}

// membersOf lists the processes of the machine and the threads of this program that are in one of the namespaces.
func membersOf(names map[string]string) []string {
	var found []string
	self := strconv.Itoa(os.Getpid())
	tasks, _ := filepath.Glob("/proc/self/task/[0-9]*")
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range append(procs, tasks...) {
		id := filepath.Base(dir)
		for _, kind := range []string{"pid", "net", "mnt"} {
			link, err := os.Readlink(dir + "/ns/" + kind)
			name, ok := names[link]
			if err != nil || !ok {
				continue
			}
			comm, _ := os.ReadFile(dir + "/comm")
			what := "process"
			if strings.HasPrefix(dir, "/proc/self/") || id == self {
				what = "thread of this program"
			}
			found = append(found, fmt.Sprintf("%s %s (%s) in %s", what, id, strings.TrimSpace(string(comm)), name))
			break
		}
	}
	return found
}

// filesOf lists this program's open files that belong to one of the network namespaces (sockets and TUN devices), or
// are one of the namespaces.
func filesOf(names map[string]string, own map[int]bool) []string {
	var found []string
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		fd, err := strconv.Atoi(e.Name())
		if err != nil || own[fd] {
			continue
		}
		link, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err != nil {
			continue
		}
		if strings.HasPrefix(link, "socket:") || link == "/dev/net/tun" {
			// SIOCGSKNS opens the network namespace of a socket or a TUN device (linux/sockios.h).
			ns, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
			if err != nil {
				continue
			}
			key := fmt.Sprintf("net:[%d]", inode(ns))
			unix.Close(ns) //nolint:errcheck // a namespace file has nothing to flush
			if name, ok := names[key]; ok {
				found = append(found, fmt.Sprintf("open file %d (%s) in %s", fd, link, name))
			}
		} else if name, ok := names[link]; ok {
			found = append(found, fmt.Sprintf("open file %d is the %s", fd, name))
		}
	}
	slices.Sort(found)
	return found
}
