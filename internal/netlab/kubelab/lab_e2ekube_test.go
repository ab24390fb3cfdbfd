//go:build e2ekube

package kubelab_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/kubelab"
)

// meshdVariable is the environment variable that names a meshd to be used, so that none is built.
const meshdVariable = "MESHD"

// buildMeshd builds the daemon of the tree.
func buildMeshd(t *testing.T) string {
	t.Helper()
	if meshd := os.Getenv(meshdVariable); meshd != "" {
		return meshd
	}
	meshd := filepath.Join(t.TempDir(), "meshd")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", meshd, "github.com/planetmesh/planetmesh/meshd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build meshd: %v\n%s", err, out)
	}
	return meshd
}

func TestReferenceDeploymentBoots(t *testing.T) {
	start := time.Now()
	w := newWorld(t, kubelab.Options{Meshd: buildMeshd(t)})
	t.Logf("eight machines and three routers are up after %.1f s", time.Since(start).Seconds())

	if m, err := w.Net().PingAll(t.Context(), netlab.PingOptions{Hosts: netlab.ReferenceHosts()}); err != nil || m.Reached() != 16 {
		t.Errorf("pairs that answer before there is a mesh: got\n%v (%v), want the 16 within the LANs", m, err)
	}
	start = time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := w.StartMesh(ctx, "lab"); err != nil {
		t.Fatal(err)
	}
	t.Logf("the mesh carries everything after %.1f s", time.Since(start).Seconds())

	for _, h := range w.Hosts() {
		got := mustSSH(t, w, h.Name(), "hostname; cat /proc/1/comm; systemctl is-system-running || true; "+
			"modprobe -a overlay br_netfilter && sysctl --system >/dev/null && echo settings; hostname -I", "")
		want := h.Name() + "\nsystemd\nrunning\nsettings\n" + h.Addr().String()
		if strings.TrimSpace(got) != want {
			t.Errorf("%s says %q, want %q", h.Name(), got, want)
		}
	}
	for _, h := range w.Routers() {
		if got := mustSSH(t, w, h.Name(), "hostname; cat /proc/1/comm; meshd status >/dev/null && echo meshd", ""); got != h.Name()+"\nsshd\nmeshd\n" {
			t.Errorf("router %s says %q, want its name, sshd and meshd", h.Name(), got)
		}
	}
	for _, name := range []string{"master01", "node04"} {
		images := mustSSH(t, w, name, "ctr --namespace k8s.io images ls -q", "")
		for _, want := range w.Assets().Images() {
			if !strings.Contains(images, want+"\n") {
				t.Errorf("%s lacks the image %s", name, want)
			}
		}
	}
	got := mustSSH(t, w, "lb", "which kubeadm kubelet; which haproxy; systemctl is-active containerd haproxy || true", "")
	if got != "/usr/sbin/haproxy\ninactive\ninactive\n" {
		t.Errorf("the load balancer has %q, want an idle HAProxy and nothing of a cluster", got)
	}
	checkOperator(t, w)
}

// checkOperator runs the programs of people on the operator's machine.
func checkOperator(t *testing.T, w *kubelab.World) {
	t.Helper()
	const look = "echo $HOME; ls -A ~/.ssh; which kubeadm kubectl kubelet containerd; ip -4 -o address show eth0 | awk '{ print $4 }'"
	out, err := w.Operator().Command(t.Context(), "sh", "-c", look).Output()
	want := w.Operator().Home() + "\nid_ed25519\nid_ed25519.pub\nknown_hosts\n192.168.10.250/24\n"
	if err != nil || string(out) != want {
		t.Errorf("operator has %q (%v), want %q", out, err, want)
	}
	_, err = w.Operator().SSH(t.Context(), w.Host("node03"), "echo no >&2; exit 3", nil)
	if err == nil || errors.Is(err, kubelab.ErrSession) || !strings.Contains(err.Error(), "status 3: no") {
		t.Errorf("a command that ends with status 3: got %v", err)
	}
}

func TestPowerLossIsSilentAndDisksSurvive(t *testing.T) {
	w := newWorld(t, kubelab.Options{Hosts: []string{"master01", "master02"}})
	h := w.Host("master01")
	mustSSH(t, w, "master01", "echo kept > /etc/kept; echo gone > /run/gone; sync; "+
		"ip link add gone0 type bridge; nft add table inet gone; ip route add 10.9.0.0/16 via 192.168.10.1", "")
	before, err := w.Host("master02").Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := h.PowerOff(t.Context()); err != nil {
		t.Fatal(err)
	}
	if h.On() {
		t.Error("the host is on after its power was taken")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := w.Operator().Net().Dial(ctx, "tcp", h.Addr().String()+":22"); err == nil || strings.Contains(err.Error(), "refused") {
		t.Errorf("connect to a host without power: got %v, want no answer at all", err)
	}
	if err := h.PowerOn(t.Context()); err != nil {
		t.Fatal(err)
	}
	got := mustSSH(t, w, "master01", "cat /etc/kept; ls /run/gone; ip link show gone0; nft list ruleset; ip route show", "")
	if !strings.HasPrefix(got, "kept\ndefault via 192.168.10.1 dev eth0") || strings.Contains(got, "gone") || strings.Contains(got, "10.9.") {
		t.Errorf("after the power is back: %q", got)
	}
	after, err := w.Host("master02").Snapshot(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := kubelab.Diff(before, after); diff != nil {
		t.Errorf("the host beside it is not as it was: %q", diff)
	}
}

// changes are acts on a host, what a snapshot says of them, and how they are undone.
var changes = []struct{ name, do, want, undo string }{
	{"file", "echo x > /etc/x", "+ files: /etc/x f 644 0:0 ", "rm /etc/x"},
	{"mode", "chmod 600 /etc/fstab", "+ files: /etc/fstab f 600 0:0 ", "chmod 644 /etc/fstab"},
	{"content", "cp -p /etc/issue /run/issue; echo y >> /etc/issue", "  /etc/issue", "cp -p /run/issue /etc/issue; rm /run/issue"},
	{"folder", "mkdir -p /var/lib/kubelet/pods", "+ files: /var/lib/kubelet/pods d 755 0:0", "rm -r /var/lib/kubelet"},
	{"link", "ip link add cni0 type bridge", "+ links: cni0: ", "ip link delete cni0"},
	{"address", "ip address add 10.9.0.1/32 dev lo", "+ addresses: lo", "ip address delete 10.9.0.1/32 dev lo"},
	{"route", "ip route add 10.9.0.0/16 via 192.168.10.1", "+ routes: 10.9.0.0/16 via 192.168.10.1", "ip route delete 10.9.0.0/16"},
	{"rule", "ip rule add from 10.9.0.0/16 table 77", "+ rules: ", "ip rule delete from 10.9.0.0/16 table 77"},
	{"nftables", "nft add table inet kube", "+ nftables: table inet kube {", "nft delete table inet kube"},
	{"setting", "sysctl -qw net.ipv4.ip_forward=1", "+ settings: /proc/sys/net/ipv4/ip_forward:1", "sysctl -qw net.ipv4.ip_forward=0"},
	{"enabled unit", "systemctl enable haproxy", "+ units: haproxy.service enabled", "systemctl disable haproxy"},
	{"running unit", "systemctl stop containerd", "- running units: containerd.service loaded active", "systemctl start containerd"},
	{"cgroup", "mkdir /sys/fs/cgroup/pids/kubepods", "+ cgroups: /sys/fs/cgroup/pids/kubepods", "rmdir /sys/fs/cgroup/pids/kubepods"},
	{"mount", "mount -t tmpfs tmpfs /mnt", "+ mounts: / /mnt ", "umount /mnt"},
	{"named namespace", "ip netns add cni-1", "+ named namespaces: cni-1", "ip netns delete cni-1; umount /run/netns; rmdir /run/netns"},
}

func TestSnapshotsShowEveryKindOfChange(t *testing.T) {
	w := newWorld(t, kubelab.Options{Hosts: []string{"master01"}})
	snapshot := func() string {
		t.Helper()
		s, err := w.Host("master01").Snapshot(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	before := snapshot()
	if diff := kubelab.Diff(before, snapshot()); diff != nil {
		t.Fatalf("two snapshots of an unchanged host differ: %q", diff)
	}
	for _, c := range changes {
		t.Run(c.name, func(t *testing.T) {
			mustSSH(t, w, "master01", c.do, "")
			diff := kubelab.Diff(before, snapshot())
			if !strings.Contains(strings.Join(diff, "\n")+"\n", c.want) {
				t.Errorf("%s: the difference is %q, want a line with %q", c.do, diff, c.want)
			}
			mustSSH(t, w, "master01", c.undo, "")
			if diff := kubelab.Diff(before, snapshot()); diff != nil {
				t.Errorf("%s: still different: %q", c.undo, diff)
			}
		})
	}
}

func TestOnlyOneLaboratoryRuns(t *testing.T) {
	w := newWorld(t, kubelab.Options{Hosts: []string{"master01"}})
	second, err := kubelab.Start(t.Context(), kubelab.Options{Hosts: []string{"node01"}})
	if err == nil {
		t.Errorf("a second laboratory was started: %v", second.Close())
	} else if !strings.Contains(err.Error(), "another laboratory runs") {
		t.Errorf("start a second laboratory: %v", err)
	}
	if got := mustSSH(t, w, "master01", "hostname", ""); got != "master01\n" {
		t.Errorf("the first laboratory after that: %q", got)
	}
}
