//go:build e2ekube

package kubelab_test

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/internal/netlab/kubelab"
)

// cgroups are those of the laboratory, by the processes in them.
func cgroups(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	files, err := filepath.Glob("/sys/fs/cgroup/*/planetmesh-kubelab/*/cgroup.procs")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		procs, err := os.ReadFile(f)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		found[f] = string(procs)
	}
	return found
}

func TestFailedStartLeavesNothing(t *testing.T) {
	w, err := kubelab.Start(t.Context(), kubelab.Options{Hosts: []string{"master01", "node01"}, Meshd: "/nowhere/meshd"})
	if err == nil {
		t.Fatalf("a world with routers without their meshd was started: %v", w.Close())
	}
	if !strings.Contains(err.Error(), "/nowhere/meshd") || strings.Contains(err.Error(), "left over") {
		t.Errorf("got %v, want an error about the program, and nothing left over", err)
	}
	if left := cgroups(t); len(left) > 0 {
		t.Errorf("cgroups left: %q", left)
	}
	w = newWorld(t, kubelab.Options{Hosts: []string{"master01"}}) // the lock is free
	if got := mustSSH(t, w, "master01", "hostname", ""); got != "master01\n" {
		t.Errorf("the laboratory after that: %q", got)
	}
}

func TestKilledLaboratoryIsCleanedUpByTheNext(t *testing.T) {
	child := exec.CommandContext(t.Context(), os.Args[0])
	child.Env, child.Stderr = append(os.Environ(), childVariable+"=1"), os.Stderr
	in, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "started\n" {
		t.Fatalf("the other laboratory says %q, %v", line, err)
	}
	if before := cgroups(t); len(before) == 0 {
		t.Error("the running laboratory has no cgroups")
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	child.Wait() //nolint:errcheck // killed
	w := newWorld(t, kubelab.Options{Hosts: []string{"master02"}})
	for name := range cgroups(t) {
		if !strings.Contains(name, "/master02/") {
			t.Errorf("the killed laboratory's cgroup %s is still there", name)
		}
	}
	if got := mustSSH(t, w, "master02", "hostname", ""); got != "master02\n" {
		t.Errorf("the laboratory after that: %q", got)
	}
}
