package steps

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/kubeadm"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Members are the steps with which hosts leave a cluster of which nothing else
// is known any more; only for phase.Executor.Undo.
func Members(inv *inventory.Inventory, hosts map[string]host.Host) []phase.Step {
	a := newAccess(Input{Inventory: inv, Hosts: hosts}, kubeadm.Cluster{})
	var out []phase.Step
	for _, h := range inv.Nodes() {
		for _, p := range []phase.Name{phase.Init, phase.JoinCP, phase.Join} {
			out = append(out, phase.Step{
				ID: fmt.Sprintf("%s/%s/kubeadm", p, h.Name), Phase: p, Host: h.Name,
				Action: &member{access: a, node: kubeadm.Node{Name: h.Name, Address: h.NodeIP, ControlPlane: h.Is(inventory.ControlPlane)}, first: p == phase.Init},
			})
		}
	}
	return out
}

// Bury removes hosts that will not come back: their members of etcd and their
// Nodes, through control planes that live.
func Bury(ctx context.Context, inv *inventory.Inventory, hosts map[string]host.Host, names []string) error {
	a := newAccess(Input{Inventory: inv, Hosts: hosts}, kubeadm.Cluster{})
	h, err := a.plane(ctx)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range names {
		if err := removeMember(ctx, h, name); err != nil {
			errs = append(errs, fmt.Errorf("member %s of etcd: %w", name, err))
			continue
		}
		_, err := h.Run(ctx, kubectl("delete", "node", name, "--ignore-not-found"))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// etcdctl is a command in the pod of etcd on a control plane.
func etcdctl(h host.Host, args ...string) host.Command {
	return kubectl(append([]string{
		"-n", "kube-system", "exec", "etcd-" + h.Name(), "--", "etcdctl",
		"--endpoints=https://127.0.0.1:2379", "--cacert=/etc/kubernetes/pki/etcd/ca.crt",
		"--cert=/etc/kubernetes/pki/etcd/healthcheck-client.crt", "--key=/etc/kubernetes/pki/etcd/healthcheck-client.key",
	}, args...)...)
}

// removeMember removes a host from etcd, if it is there.
func removeMember(ctx context.Context, h host.Host, name string) error {
	out, err := h.Run(ctx, etcdctl(h, "member", "list"))
	if err != nil {
		return err
	}
	for line := range strings.Lines(out.Stdout) {
		fields := strings.Split(strings.TrimSpace(line), ", ")
		if len(fields) > 2 && fields[2] == name {
			_, err := h.Run(ctx, etcdctl(h, "member", "remove", fields[0]))
			return err
		}
	}
	return nil
}
