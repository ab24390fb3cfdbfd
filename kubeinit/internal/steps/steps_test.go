package steps

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/kubeinit/internal/containerd"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
	"github.com/planetmesh/planetmesh/kubeinit/internal/plan"
)

// newInput is the reference deployment with round trips of 10 ms, and changes.
func newInput(t *testing.T, change func(*inventory.Inventory)) Input {
	t.Helper()
	file := filepath.Join("..", "inventory", "testdata", "reference.yaml")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	inv, err := inventory.Parse(file, text)
	if err != nil {
		t.Fatal(err)
	}
	inv.Cluster.Version = "1.34.4"
	if change != nil {
		change(inv)
	}
	seen := plan.Observed{Hosts: map[string]plan.HostFacts{}, Offered: "1.34.4"}
	in := Input{
		Inventory: inv, Containerd: map[string]containerd.Version{}, Hosts: map[string]host.Host{}, Random: rand.Reader,
		Program: Program{SHA256: strings.Repeat("ab", 32), Size: 3, Open: func() (io.ReadCloser, error) {
			return io.NopCloser(strings.NewReader("abc")), nil
		}},
	}
	for _, h := range inv.Hosts {
		in.Hosts[h.Name] = host.NewFake(h.Name)
		if h.IsNode() {
			seen.Hosts[h.Name] = plan.HostFacts{Kubernetes: "1.34.4", LinkMTU: 1500}
			in.Containerd[h.Name] = containerd.Version{Major: 1, Minor: 6, Patch: 20}
		}
	}
	for _, a := range inv.Nodes() {
		for _, b := range inv.Nodes() {
			if a != b {
				seen.Pairs = append(seen.Pairs, plan.Pair{From: a.Name, To: b.Name, P50: 10e6, P99: 12e6, Probes: 200, MTU: 1420})
			}
		}
	}
	var verdicts []plan.Verdict
	in.Decisions, verdicts = plan.Decide(inv, seen, nil, plan.Options{})
	for _, v := range verdicts {
		t.Log(v)
	}
	return in
}

func mustAll(t *testing.T, in Input) []phase.Step {
	t.Helper()
	all, err := All(in)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestStepsOfTheReferenceDeployment(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*inventory.Inventory)
	}{
		{"proxy", func(i *inventory.Inventory) { i.Cluster.Endpoint = inventory.EndpointProxy }},
		{"haproxy", func(i *inventory.Inventory) { i.Cluster.Endpoint = inventory.EndpointHAProxy }},
		{"nocni", func(i *inventory.Inventory) { i.Cluster.CNI.Mode = inventory.CNINone }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var got bytes.Buffer
			for _, s := range mustAll(t, newInput(t, tt.change)) {
				fmt.Fprintf(&got, "%s: %v", s.ID, s.Action)
				if len(s.Needs) > 0 {
					fmt.Fprintf(&got, " <- %s", strings.Join(s.Needs, " "))
				}
				got.WriteByte('\n')
			}
			file := filepath.Join("testdata", tt.name+".txt")
			if os.Getenv("UPDATE") != "" {
				if err := os.WriteFile(file, got.Bytes(), 0o644); err != nil { //nolint:gosec // no secrets
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("steps: -want +got:\n%s", diff)
			}
		})
	}
}

func TestStepsAreTheSameForTheSameInput(t *testing.T) {
	in := newInput(t, nil)
	e := phase.Executor{Hosts: in.Hosts}
	first, err1 := e.Plan(t.Context(), mustAll(t, in))
	second, err2 := e.Plan(t.Context(), mustAll(t, in))
	if diff := cmp.Diff(first, second); diff != "" || (err1 == nil) != (err2 == nil) {
		t.Errorf("plans differ: %v %v\n%s", err1, err2, diff)
	}
	if len(first.Steps) < 50 {
		t.Errorf("%d steps: %v", len(first.Steps), err1)
	}
}

func TestNoSecretIsInAPlan(t *testing.T) {
	in := newInput(t, nil)
	b, err := newBuilder(in)
	if err != nil {
		t.Fatal(err)
	}
	b.initialise()
	if _, err := b.access.config(b.access.node); err != nil {
		t.Fatal(err)
	}
	p, _ := (&phase.Executor{Hosts: in.Hosts}).Plan(t.Context(), mustAll(t, in))
	for _, secret := range []string{b.access.token.Secret(), b.access.key.Secret()} {
		if text := fmt.Sprintf("%+v", p); secret == "" || strings.Contains(text, secret) {
			t.Errorf("secret %q in the plan", secret)
		}
	}
}

func TestContainerdThatIsTooOldIsRefused(t *testing.T) {
	in := newInput(t, nil)
	in.Decisions.Versions.Kubernetes = "1.37.2"
	_, err := All(in)
	if err == nil || !strings.Contains(err.Error(), "node01") || !strings.Contains(err.Error(), "containerd") {
		t.Errorf("got %v, want an error that names the hosts and containerd", err)
	}
}

func TestCleaningKeepsWhatWasThere(t *testing.T) {
	script := cleanScript("nft table ip docker\nlink veth7\ndir /etc/kubernetes\nsys net/ipv4/conf/all/route_localnet=0\nactive kubelet\n")
	for _, want := range []string{"'table ip docker') ;;", "' veth7 '", "[ ! -e /var/lib/etcd ] || rmdir", "echo 0 > /proc/sys/net/ipv4/conf/all/route_localnet"} {
		if !strings.Contains(script, want) {
			t.Errorf("no %q in\n%s", want, script)
		}
	}
	for _, not := range []string{"rmdir /etc/kubernetes\n", "systemctl stop kubelet"} {
		if strings.Contains(script, not) {
			t.Errorf("%q in\n%s", not, script)
		}
	}
}
