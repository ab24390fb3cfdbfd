package steps

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/kubeadm"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// initialise makes the first control plane.
func (b *builder) initialise() {
	first := b.controlPlanes()[0]
	b.access.node = b.node(first)
	b.add(phase.Init, first.Name, "kubeadm", &member{access: b.access, node: b.node(first), first: true}, needsOf(first.Name)...)
	b.last().UndoOnFailure, b.last().Stays = true, true
}

// join makes the other control planes, one after another, and beside them the
// workers.
func (b *builder) join() {
	planes := b.controlPlanes()
	before := fmt.Sprintf("%s/%s/kubeadm", phase.Init, planes[0].Name)
	begun := before
	for _, h := range planes[1:] {
		before = b.add(phase.JoinCP, h.Name, "kubeadm", &member{access: b.access, node: b.node(h)}, append(needsOf(h.Name), before)...)
		b.last().UndoOnFailure, b.last().Stays = true, true
	}
	for _, h := range b.in.Inventory.Nodes() {
		if !h.Is(inventory.ControlPlane) {
			b.add(phase.Join, h.Name, "kubeadm", &member{access: b.access, node: b.node(h)}, append(needsOf(h.Name), begun)...)
			b.last().UndoOnFailure, b.last().Stays = true, true
		}
	}
}

// joined is the step that makes a host a node.
func (b *builder) joined(h *inventory.Host) string {
	p := phase.Join
	switch {
	case h.Name == b.controlPlanes()[0].Name:
		p = phase.Init
	case h.Is(inventory.ControlPlane):
		p = phase.JoinCP
	}
	return fmt.Sprintf("%s/%s/kubeadm", p, h.Name)
}

// member is kubeadm's work on one host: it initialises the cluster, or joins it.
type member struct {
	access *access
	node   kubeadm.Node
	first  bool
}

func (m *member) verb() string {
	if m.first {
		return "init"
	}
	return "join"
}

// unit is the name of the transient unit: a killed kubeinit finds it again.
func (m *member) unit() string { return "kubeadm-" + m.verb() }

// String names the command.
func (m *member) String() string { return "kubeadm " + m.verb() }

// Observe asks the API whether the host is a node, and the host whether it is
// one of this cluster.
func (m *member) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	what := "control plane"
	if !m.node.ControlPlane {
		what = "worker"
	}
	change := []phase.Change{{What: "node " + m.node.Name, To: what + " at " + m.node.Address.String()}}
	running, err := unitRuns(ctx, h, m.unit())
	if err != nil || running {
		return change, err
	}
	if _, err := h.Stat(ctx, "/etc/kubernetes/kubelet.conf"); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return change, nil
		}
		return nil, err
	}
	address, err := m.registered(ctx)
	switch {
	case errors.Is(err, errNoCluster):
		return nil, fmt.Errorf("%s belongs to a cluster, but no control plane of the inventory is one: kubeinit reset %s", h.Name(), h.Name())
	case err != nil:
		return nil, err
	case address == "":
		return change, nil // it did not get to the end
	case address != m.node.Address.String():
		return nil, fmt.Errorf("node %s has InternalIP %s, want %s: kubeinit reset %s, then apply", m.node.Name, address, m.node.Address, h.Name())
	}
	return nil, nil
}

// registered returns the InternalIP of the node, empty if kubeadm has not done
// everything for it.
func (m *member) registered(ctx context.Context) (string, error) {
	const form = `{.status.addresses[?(@.type=="InternalIP")].address}{" "}{.metadata.labels.node-role\.kubernetes\.io/control-plane}{"-"}`
	out, err := m.access.ask(ctx, "get", "node", m.node.Name, "--ignore-not-found", "-o", "jsonpath="+form)
	if err != nil {
		return "", err
	}
	address, _, _ := strings.Cut(out, " ")
	if !m.node.ControlPlane {
		return address, nil
	}
	// The label is what kubeadm gives a control plane last; jsonpath prints
	// nothing for an empty value as for a missing one.
	keys, err := m.access.ask(ctx, "get", "node", "-l", kubeadm.ControlPlaneTaint, "-o", `jsonpath={range .items[*]}{.metadata.name}{"\n"}{end}`)
	if err != nil {
		return "", err
	}
	if !slices.Contains(strings.Fields(keys), m.node.Name) {
		return "", nil
	}
	err = m.complete(ctx, &address)
	return address, err
}

// complete empties address if init has not come to its last phase, the addons.
func (m *member) complete(ctx context.Context, address *string) error {
	if !m.first {
		return nil
	}
	out, err := m.access.ask(ctx, "-n", "kube-system", "get", "daemonset/kube-proxy", "deployment/coredns", "--ignore-not-found", "-o", "name")
	if err == nil && len(strings.Fields(out)) < 2 {
		*address = ""
	}
	return err
}

// Apply runs kubeadm as a unit that outlives the connection.
func (m *member) Apply(ctx context.Context, h host.Host, log func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	if err := m.remember(ctx, h, intent); err != nil {
		return err
	}
	running, err := unitRuns(ctx, h, m.unit())
	if err != nil {
		return err
	}
	if _, err := h.Stat(ctx, "/etc/kubernetes/kubelet.conf"); err == nil && !running {
		log("what an earlier try left is removed")
		if _, err := h.Run(ctx, host.Command{Args: []string{"kubeadm", "reset", "--force"}, Output: log}); err != nil {
			return err
		}
	}
	text, err := m.config(ctx)
	if err != nil {
		return err
	}
	// The name of the file is part of the command: a unit that runs is followed.
	return withConfig(ctx, h, m.verb(), text, func(file string) error {
		args := []string{"kubeadm", m.verb(), "--config", file}
		if m.first {
			args = append(args, "--upload-certs", "--skip-token-print", "--skip-certificate-key-print")
		}
		if skip := kubeadm.IgnoredPreflightErrors(m.access.cluster.Version, m.access.cluster.AllowCgroupV1); len(skip) > 0 {
			args = append(args, "--ignore-preflight-errors="+strings.Join(skip, ","))
		}
		_, err := host.RunUnit(ctx, h, m.unit(), host.Command{Args: args, Output: log})
		return err
	})
}

func (m *member) config(ctx context.Context) ([]byte, error) {
	if m.first {
		return m.access.config(m.node)
	}
	d, err := m.access.discovery(ctx)
	if err != nil {
		return nil, err
	}
	return kubeadm.Join(m.access.cluster, m.node, d)
}

// Limits of what is waited for after kubeadm has ended.
const (
	memberPause = time.Second
	memberWait  = 2 * time.Minute
)

// Prove waits until the API says so.
func (m *member) Prove(ctx context.Context, h host.Host) error {
	ctx, cancel := context.WithTimeout(ctx, memberWait)
	defer cancel()
	for {
		address, err := m.registered(ctx)
		switch {
		case err == nil && address == m.node.Address.String():
			return nil
		case err == nil && address != "":
			return fmt.Errorf("node %s has InternalIP %s, want %s", m.node.Name, address, m.node.Address)
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("node %s did not register in %v", m.node.Name, memberWait), err)
		case <-time.After(memberPause):
		}
	}
}

// Undo removes the node from the cluster and everything from the host.
func (m *member) Undo(ctx context.Context, h host.Host) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	if err := host.StopUnit(ctx, h, m.unit()); err != nil {
		return err
	}
	// kubeadm reset takes a control plane out of etcd while the API answers.
	if err := intent.Restore(ctx); err != nil {
		return err
	}
	if m.first {
		return nil
	}
	if _, err := m.access.ask(ctx, "delete", "node", m.node.Name, "--ignore-not-found"); err != nil && !errors.Is(err, errNoCluster) {
		return fmt.Errorf("remove node %s: %w", m.node.Name, err)
	}
	return nil
}

// remember keeps how the host is cleaned: whatever kubeadm, the kubelet, pods
// and kube-proxy add to what is there now goes.
func (m *member) remember(ctx context.Context, h host.Host, intent *journal.Intent) error {
	out, err := h.Run(ctx, host.Command{Args: []string{"sh", "-c", observeScript}})
	if err != nil {
		return err
	}
	return intent.Keep(ctx, journal.Before{
		Type: journal.TypeCommand, Name: m.String(),
		Commands: [][]string{{"sh", "-c", cleanScript(out.Stdout)}},
	})
}

// unitRuns reports whether a transient unit of kubeinit runs.
func unitRuns(ctx context.Context, h host.Host, unit string) (bool, error) {
	_, err := h.Run(ctx, host.Command{Args: []string{"systemctl", "is-active", "--quiet", "kubeinit-" + unit + ".service"}})
	if _, ran := errors.AsType[*host.ExitError](err); ran {
		return false, nil
	}
	return err == nil, err
}
