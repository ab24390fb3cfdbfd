//go:build linux

package kubelab

import (
	"fmt"
	"os"
	"strings"
)

// Leftovers describes, one line each, what there is of the world on the machine: processes, namespaces that something keeps,
// cgroups, mounts and what the machines wrote. nil means that nothing of a closed world is left. The cache is no leftover.
func (w *World) Leftovers() []string {
	var left []string
	if w.net != nil {
		left = append(left, w.net.Leftovers()...)
	}
	for _, dir := range leftCgroups() {
		left = append(left, "cgroup "+dir)
	}
	if w.assets == nil {
		return left
	}
	run := w.runFolder(w.assets.cache)
	for _, target := range mountsBelow(w.assets.cache.dir) {
		left = append(left, "mount "+target)
	}
	if _, err := os.Lstat(run); err == nil {
		left = append(left, "folder "+run)
	}
	return left
}

// mountsBelow are the mount points of this program's mount namespace that are in dir.
func mountsBelow(dir string) []string {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return []string{fmt.Sprintf("unknown: %v", err)}
	}
	var found []string
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			found = append(found, fields[4])
		}
	}
	return found
}
