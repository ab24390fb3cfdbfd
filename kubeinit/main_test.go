package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/internal/cli"
)

// mustRun runs kubeinit without hosts.
func mustRun(t *testing.T, want int, args ...string) (stdout, stderr string) {
	t.Helper()
	var out, problem bytes.Buffer
	if got := run(t.Context(), args, []string{"HOME=" + t.TempDir()}, strings.NewReader(""), &out, &problem); got != want {
		t.Fatalf("kubeinit %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, want, &out, &problem)
	}
	return out.String(), problem.String()
}

func TestInventoryThatIsWrongIsExitCode3(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	if err := os.WriteFile(file, []byte("cluster: {name: planet, colour: blue}\nhosts: []\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, command := range []string{"check", "plan", "apply", "status", "reset"} {
		_, problem := mustRun(t, cli.ExitFaults, command, "-f", file)
		if !strings.Contains(problem, file+":1: ") || !strings.Contains(problem, "colour") {
			t.Errorf("kubeinit %s says %q", command, problem)
		}
	}
}

func TestMissingInventoryIsAMistake(t *testing.T) {
	for _, command := range []string{"check", "plan", "apply", "status", "reset"} {
		mustRun(t, cli.ExitUsage, command)
	}
}

func TestFirewallRulesNeedNoHost(t *testing.T) {
	file := filepath.Join("internal", "inventory", "testdata", "reference.yaml")
	for kind, want := range map[string]string{"nft": "tcp dport", "vyos": "set firewall"} {
		if out, _ := mustRun(t, cli.ExitDone, "check", "-f", file, "--firewall", kind); !strings.Contains(out, want) {
			t.Errorf("rules for %s:\n%s", kind, out)
		}
	}
	mustRun(t, cli.ExitUsage, "check", "-f", file, "--firewall", "pf")
}

func TestResetOfEverythingWantsAYes(t *testing.T) {
	file := filepath.Join("internal", "inventory", "testdata", "reference.yaml")
	if _, problem := mustRun(t, cli.ExitUsage, "reset", "-f", file); !strings.Contains(problem, "--yes") {
		t.Errorf("says %q", problem)
	}
	mustRun(t, cli.ExitUsage, "reset", "-f", file, "nobody")
	mustRun(t, cli.ExitUsage, "reset", "-f", file, "--dead")
}

func TestHostThatIsAwayIsNamed(t *testing.T) {
	file := filepath.Join(t.TempDir(), "cluster.yaml")
	text := `cluster: {name: planet, version: "1.34.4"}
sites: [{name: a, prefixes: [192.168.10.0/24], mesh: none}]
hosts:
  - {name: m, site: a, nodeIP: 192.168.10.1, roles: [control-plane], ssh: {address: 127.0.0.1, port: 1}}
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, problem := mustRun(t, cli.ExitFailed, "plan", "-f", file); !strings.Contains(problem, "connect to m") {
		t.Errorf("says %q", problem)
	}
}

func TestResetEndsWithWhatLeadsToTheControlPlanes(t *testing.T) {
	inv, err := readInventory(filepath.Join("internal", "inventory", "testdata", "reference.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := [][]string{
		{"node01", "node02", "node03", "node04"}, {"master03"}, {"master02"}, {"master01"}, {"lb", "gw10", "gw20", "gw30"},
	}
	got := groups(inv, nil)
	slices.Sort(got[len(got)-1])
	slices.Sort(want[len(want)-1])
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("groups: -want +got:\n%s", diff)
	}
	if diff := cmp.Diff([][]string{{"node02"}, {"master02"}}, groups(inv, []string{"master02", "node02"})); diff != "" {
		t.Errorf("of two: -want +got:\n%s", diff)
	}
}
