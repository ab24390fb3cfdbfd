//go:build linux

package kubelab

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// cgroupTop is the folder of the laboratory in every hierarchy, and cgroupRoot where the hierarchies are.
const (
	cgroupTop  = "planetmesh-kubelab"
	cgroupRoot = "/sys/fs/cgroup"
)

// needControllers are those that a kubelet and a container runtime cannot do without.
var needControllers = []string{"cpu", "cpuacct", "cpuset", "devices", "freezer", "memory", "pids"}

// hierarchies are the machine's version 1 hierarchies and, as "unified", its version 2 one, by the names of their folders.
func hierarchies() ([]string, error) {
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	names := parseHierarchies(string(mounts))
	have := strings.Split(strings.Join(names, ","), ",")
	var missing []string
	for _, c := range needControllers {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("cgroup controllers %s are not below %s as version 1 hierarchies; "+
			"a machine with version 2 alone cannot run the laboratory",
			strings.Join(missing, ", "), cgroupRoot)
	}
	return names, nil
}

// parseHierarchies reads a /proc/PID/mountinfo (proc(5)): mount point in field 5, type behind the single hyphen.
func parseHierarchies(mountinfo string) []string {
	var names []string
	for line := range strings.Lines(mountinfo) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) == 0 {
			continue
		}
		name, ok := strings.CutPrefix(fields[4], cgroupRoot+"/")
		if !ok || name == "" || strings.Contains(name, "/") || slices.Contains(names, name) {
			continue
		}
		if kind[0] == "cgroup" || kind[0] == "cgroup2" && name == "unified" {
			names = append(names, name)
		}
	}
	return names
}

// makeCgroups makes a machine's cgroup in every hierarchy.
func makeCgroups(machine string) (map[string]string, error) {
	names, err := hierarchies()
	if err != nil {
		return nil, err
	}
	cgroups := make(map[string]string)
	for _, name := range names {
		top := filepath.Join(cgroupRoot, name, cgroupTop)
		cgroups[name] = filepath.Join(top, machine)
		if err := os.MkdirAll(cgroups[name], 0o755); err != nil {
			return nil, err
		}
		if !slices.Contains(strings.Split(name, ","), "cpuset") {
			continue
		}
		for _, dir := range []string{top, cgroups[name]} { // empty at first, and nothing can enter
			for _, file := range []string{"cpuset.cpus", "cpuset.mems"} {
				value, err := os.ReadFile(filepath.Join(cgroupRoot, name, file))
				if err != nil {
					return nil, err
				}
				if err := os.WriteFile(filepath.Join(dir, file), value, 0); err != nil {
					return nil, err
				}
			}
		}
	}
	return cgroups, nil
}

// cgroupTimeout is how long cgroups may take to be empty once their processes were killed; it is milliseconds.
const cgroupTimeout = 10 * time.Second

// removeCgroups removes the laboratory's cgroups of all machines, whoever made them.
func removeCgroups() error {
	deadline := time.Now().Add(cgroupTimeout)
	for {
		err := tryRemoveCgroups()
		if err == nil || !errors.Is(err, errBusy) || time.Now().After(deadline) {
			return err
		}
		time.Sleep(pollPause)
	}
}

// errBusy is what a cgroup with processes in it answers.
var errBusy = errors.New("in use")

func tryRemoveCgroups() error {
	var errs []error
	for _, dir := range slices.Backward(leftCgroups()) { // what is inside comes after what it is in
		if err := os.Remove(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove cgroup: %w: %w", errBusy, err))
		}
	}
	return errors.Join(errs...)
}

// leftCgroups are the cgroups of the laboratory that there are.
func leftCgroups() []string {
	tops, _ := filepath.Glob(filepath.Join(cgroupRoot, "*", cgroupTop))
	var found []string
	for _, top := range tops {
		filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error { //nolint:errcheck // what went meanwhile is not left
			if err == nil && d.IsDir() {
				found = append(found, path)
			}
			return nil
		})
	}
	return found
}
