//go:build e2ekube

package kubelab_test

import (
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/internal/netlab/kubelab"
)

// newWorld starts a world that must leave nothing behind; what it was like is shown where the test has failed.
func newWorld(t *testing.T, o kubelab.Options) *kubelab.World {
	t.Helper()
	o.Logf = t.Logf
	w, err := kubelab.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func mustSSH(t *testing.T, w *kubelab.World, host, command, stdin string) string {
	t.Helper()
	out, err := w.Operator().SSH(t.Context(), w.Host(host), command, strings.NewReader(stdin))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestBoot(t *testing.T) {
	w := newWorld(t, kubelab.Options{Hosts: []string{"master01", "node01"}, Routed: true})
	t.Log(mustSSH(t, w, "master01", "hostname; systemctl --failed; ps aux | tail -30; ip a; df -h; cat /proc/self/cgroup; ctr -n k8s.io images ls -q; systemd-run --unit=foo sleep 1; mount", ""))
	t.Log(mustSSH(t, w, "node01", "hostname; systemctl is-system-running; ls -la /run /", ""))
}
