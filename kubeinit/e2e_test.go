//go:build e2ekube

package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/internal/netlab/kubelab"
)

// twoHosts is a control plane in site 10 and a worker in site 20.
const twoHosts = `
cluster:
  name: planet
  version: "%s"
  allowCgroupV1: true
  containerd:
    extraToml: |
      [plugins.%q]
      restrict_oom_score_adj = true
  kubeProxy: {conntrackMaxPerCore: 0, conntrackMin: 0}
sites:
  - {name: site10, prefixes: [192.168.10.0/24], gateways: [gw10]}
  - {name: site20, prefixes: [192.168.20.0/24], gateways: [gw20]}
hosts:
  - {name: gw10, site: site10, nodeIP: 192.168.10.1, roles: [gateway]}
  - {name: gw20, site: site20, nodeIP: 192.168.20.1, roles: [gateway]}
  - {name: master01, site: site10, nodeIP: 192.168.10.101, roles: [control-plane]}
  - {name: node01, site: site20, nodeIP: 192.168.20.101, roles: [worker]}
`

// desk is an operator with an inventory in a laboratory.
type desk struct {
	t      *testing.T
	world  *kubelab.World
	before map[string]string
}

// newDesk starts a world of two hosts and a mesh. The programs are those in bin.
func newDesk(t *testing.T) *desk {
	t.Helper()
	w, err := kubelab.Start(t.Context(), kubelab.Options{
		Hosts: []string{"master01", "node01"}, Meshd: program(t, "meshd"), Containerd: kubelab.ContainerdStock, Logf: t.Logf,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			dir, err := os.MkdirTemp("", "kubeinit-"+t.Name()+"-")
			t.Logf("the world is described in %s (%v): %v", dir, err, w.Collect(context.WithoutCancel(t.Context()), dir))
		}
		if err := w.Close(); err != nil {
			t.Error(err)
		}
		if left := w.Leftovers(); len(left) > 0 {
			t.Errorf("left over: %q", left)
		}
	})
	if err := w.StartMesh(t.Context(), "planet"); err != nil {
		t.Fatal(err)
	}
	plugin, minor := "io.containerd.grpc.v1.cri", "1.34"
	if strings.HasPrefix(w.Assets().Version(), "v1.37.") {
		plugin, minor = "io.containerd.cri.v1.runtime", "1.37"
	}
	d := &desk{t: t, world: w}
	file := filepath.Join(w.Operator().Home(), "cluster.yaml")
	if err := w.Operator().Net().WriteFile(file, fmt.Appendf(nil, twoHosts, minor, plugin), 0o644); err != nil {
		t.Fatal(err)
	}
	d.before = d.snapshots()
	return d
}

func program(t *testing.T, name string) string {
	t.Helper()
	file, err := filepath.Abs(filepath.Join("..", "bin", name))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(file); err != nil {
		t.Fatalf("%v; make build", err)
	}
	return file
}

func (d *desk) snapshots() map[string]string {
	d.t.Helper()
	s, err := d.world.Snapshots(d.t.Context())
	if err != nil {
		d.t.Fatal(err)
	}
	return s
}

// kubeinit runs a command and returns its exit code and what it printed.
func (d *desk) kubeinit(args ...string) (int, string) {
	d.t.Helper()
	c := d.world.Operator().Command(d.t.Context(), program(d.t, "kubeinit"), append(args, "-f", "cluster.yaml")...)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	if err := c.Run(); err != nil && c.ProcessState == nil {
		d.t.Fatal(err)
	}
	return c.ProcessState.ExitCode(), out.String()
}

func (d *desk) mustKubeinit(args ...string) string {
	d.t.Helper()
	code, out := d.kubeinit(args...)
	if code != 0 {
		d.t.Fatalf("kubeinit %s: exit code %d\n%s", strings.Join(args, " "), code, out)
	}
	return out
}

// applyUntil runs apply and kills it without warning once a line that it prints
// has all of the words. It reports false if apply ended before.
func (d *desk) applyUntil(words ...string) bool {
	d.t.Helper()
	c := d.world.Operator().Command(d.t.Context(), program(d.t, "kubeinit"), "apply", "--yes", "--json", "--break-lock", "-f", "cluster.yaml")
	out, err := c.StdoutPipe()
	if err != nil {
		d.t.Fatal(err)
	}
	if err := c.Start(); err != nil {
		d.t.Fatal(err)
	}
	killed := false
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		missing := func(w string) bool { return !strings.Contains(lines.Text(), w) }
		if !killed && !slices.ContainsFunc(words, missing) {
			killed = true
			if err := c.Process.Kill(); err != nil {
				d.t.Error(err)
			}
		}
	}
	_ = c.Wait() // it was killed
	return killed
}

func (d *desk) kubectl(args ...string) string {
	d.t.Helper()
	out, err := d.world.Host("master01").Exec(d.t.Context(), append([]string{"kubectl"}, args...)...)
	if err != nil {
		d.t.Fatal(err)
	}
	return out
}

// complete checks the cluster, and that nothing is left to do.
func (d *desk) complete() {
	d.t.Helper()
	if out := d.mustKubeinit("apply", "--yes"); !strings.Contains(out, " 0 changes") {
		d.t.Errorf("another apply:\n%s", out)
	}
	d.kubectl("wait", "--for=condition=Ready", "nodes", "--all", "--timeout=120s")
	got := d.kubectl("get", "nodes", "-o", `jsonpath={range .items[*]}{.metadata.name} {.status.addresses[?(@.type=="InternalIP")].address} {.spec.podCIDR}{"\n"}{end}`)
	for _, want := range []string{"master01 192.168.10.101 10.128.", "node01 192.168.20.101 10.128."} {
		if !strings.Contains(got, want) {
			d.t.Errorf("no %q in\n%s", want, got)
		}
	}
}

// gone checks that reset leaves the hosts as they were.
func (d *desk) gone() {
	d.t.Helper()
	d.mustKubeinit("reset", "--yes")
	if left := kubelab.DiffAll(d.before, d.snapshots()); len(left) > 0 {
		d.t.Errorf("reset leaves:\n%s", strings.Join(left, "\n"))
	}
}

func TestKilledAfterEveryPhaseApplyEndsTheSame(t *testing.T) {
	d := newDesk(t)
	for _, words := range [][]string{
		{`"phase":"prepare"`, `"phase-done"`},
		{`"phase":"proxy"`, `"phase-done"`},
		{`"phase":"init"`, `"output"`, "certs"}, // kubeadm goes on, and is found again
		{`"phase":"init"`, `"phase-done"`},
		{`"phase":"join"`, `"output"`},
		{`"phase":"join"`, `"phase-done"`},
		{`"host":"node01"`, `"step":"podnet/`, `"done"`},
		{`"phase":"podnet"`, `"phase-done"`},
		{`"phase":"policy"`, `"started"`},
	} {
		t.Logf("apply is killed at %v", words)
		if !d.applyUntil(words...) {
			t.Error("it ended before")
		}
	}
	d.mustKubeinit("apply", "--yes", "--break-lock")
	d.complete()
	d.gone()
}

func TestPlanIsWhatApplyDoesAndChangesNothing(t *testing.T) {
	d := newDesk(t)
	d.mustKubeinit("plan", "-o", "plan.json")
	if changed := kubelab.DiffAll(d.before, d.snapshots()); len(changed) > 0 {
		t.Errorf("plan changes:\n%s", strings.Join(changed, "\n"))
	}
	if code, out := d.kubeinit("check"); code != 0 {
		t.Errorf("check of a clean laboratory: exit code %d\n%s", code, out)
	}
	if changed := kubelab.DiffAll(d.before, d.snapshots()); len(changed) > 0 {
		t.Errorf("check changes:\n%s", strings.Join(changed, "\n"))
	}
	d.mustKubeinit("apply", "--plan", "plan.json")
	d.complete()
	if code, out := d.kubeinit("apply", "--plan", "plan.json"); code == 0 || !strings.Contains(out, "is not what would be done now") {
		t.Errorf("an old plan: exit code %d\n%s", code, out)
	}
	if code, out := d.kubeinit("status"); code != 0 || !strings.Contains(out, "voter") {
		t.Errorf("status: exit code %d\n%s", code, out)
	}
	d.gone()
}

func TestWorkerThatFailsIsUndoneAlone(t *testing.T) {
	d := newDesk(t)
	const fails = "#!/bin/sh\n/usr/bin/kubeadm \"$@\" || exit\n[ \"$1\" != join ] || { echo the disk is on fire >&2; exit 7; }\n"
	node := d.world.Host("node01")
	if err := node.WriteFile(t.Context(), "/usr/local/bin/kubeadm", []byte(fails), 0o755); err != nil {
		t.Fatal(err)
	}
	code, out := d.kubeinit("apply", "--yes")
	if code != 1 {
		t.Fatalf("exit code %d\n%s", code, out)
	}
	for _, want := range []string{"failed: join/node01/kubeadm on node01", "exit status: 7", "the disk is on fire", "taken back: join/node01/kubeadm"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in\n%s", want, out)
		}
	}
	if got := strings.Fields(d.kubectl("get", "nodes", "-o", "name")); !slices.Equal(got, []string{"node/master01"}) {
		t.Errorf("nodes %q, want master01 alone", got)
	}
	if out, err := node.Exec(t.Context(), "sh", "-c", "ls -A /etc/kubernetes /var/lib/kubelet 2>/dev/null; ip link show pmpods0 2>/dev/null; true"); err != nil || strings.Contains(out, "conf") || strings.Contains(out, "pmpods0") {
		t.Errorf("the worker has %q, %v", out, err)
	}
	if _, err := node.Exec(t.Context(), "rm", "/usr/local/bin/kubeadm"); err != nil {
		t.Fatal(err)
	}
	d.mustKubeinit("apply", "--yes")
	d.complete()
	d.gone()
}
