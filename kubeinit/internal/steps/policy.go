package steps

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/action"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/kubeadm"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// policy stores the decisions, and sets what only an administrator can.
func (b *builder) policy() {
	text, err := b.in.Decisions.Encode()
	b.fault(err)
	first := b.controlPlanes()[0]
	for _, h := range b.in.Inventory.With(inventory.ControlPlane) {
		b.add(phase.Policy, h.Name, "decisions.json", action.File{Path: DecisionsFile, Content: text}, b.joined(h))
	}
	b.add(phase.Policy, first.Name, "configmap", &objects{access: b.access, name: "ConfigMap kubeinit-decisions", text: object(map[string]any{
		"apiVersion": "v1", "kind": "ConfigMap",
		"metadata": map[string]any{"name": "kubeinit-decisions", "namespace": "kube-system"},
		"data":     map[string]any{"decisions.json": string(text)},
	})}, b.joined(first))
	for _, h := range b.in.Inventory.Nodes() {
		_, labels := kubeadm.KubeletLabels(b.in.Decisions.Labels[h.Name])
		r := b.in.Decisions.NodeRanges[h.Name]
		node := map[string]any{"apiVersion": "v1", "kind": "Node", "metadata": map[string]any{"name": h.Name, "labels": labels}}
		if r.IsValid() && b.in.Inventory.Cluster.CNI.Mode == inventory.CNIRoutes {
			// For the record, and for whoever reads it: ours do not.
			node["spec"] = map[string]any{"podCIDR": r.String(), "podCIDRs": []string{r.String()}}
		}
		b.add(phase.Policy, first.Name, "node-"+h.Name, &objects{access: b.access, name: "labels and pod range of node " + h.Name, text: object(node)}, b.joined(h))
	}
	b.add(phase.Policy, first.Name, "coredns", b.coreDNS(), b.joined(first))
}

// coreDNS spreads as many replicas as there are sites, at least two, over them.
func (b *builder) coreDNS() phase.Action {
	sites := map[string]bool{}
	for _, h := range b.in.Inventory.Nodes() {
		sites[h.Site] = true
	}
	labels := map[string]any{"k8s-app": "kube-dns"}
	return &objects{access: b.access, name: "CoreDNS in every site", text: object(map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment",
		"metadata": map[string]any{"name": "coredns", "namespace": "kube-system"},
		"spec": map[string]any{
			"replicas": max(2, len(sites)),
			"template": map[string]any{"spec": map[string]any{
				"topologySpreadConstraints": []any{map[string]any{
					"maxSkew": 1, "topologyKey": "topology.kubernetes.io/zone", "whenUnsatisfiable": "ScheduleAnyway",
					"labelSelector": map[string]any{"matchLabels": labels},
				}},
			}},
		},
	})}
}

// object is the JSON form of an object of the API, which kubectl reads.
func object(o map[string]any) []byte {
	text, err := json.Marshal(o)
	if err != nil {
		panic(err) // maps, lists and strings always have one
	}
	return text
}

// objects are objects of the API that have what text says, whatever else they
// have.
type objects struct {
	access *access
	name   string
	text   []byte
}

// String names them.
func (o *objects) String() string { return o.name }

// Observe asks the API what would change.
func (o *objects) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	plane, err := o.access.plane(ctx)
	if errors.Is(err, errNoCluster) {
		return []phase.Change{{What: o.name}}, nil
	}
	if err != nil {
		return nil, err
	}
	// What kubectl compares are two answers of the API: if the object's status
	// changes between them it sees a difference. One that remains is one.
	for try := 1; ; try++ {
		differs, err := o.differs(ctx, plane)
		if err != nil || !differs {
			return nil, err
		}
		if try == diffTries {
			return []phase.Change{{What: o.name}}, nil
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(diffPause):
		}
	}
}

// A difference is looked at so often, with such a pause.
const (
	diffTries = 4
	diffPause = 500 * time.Millisecond
)

// differs asks the API whether putting the objects would change something.
func (o *objects) differs(ctx context.Context, plane host.Host) (bool, error) {
	c := kubectl("diff", "--server-side", "--field-manager", "kubeinit", "--force-conflicts", "-f", "-")
	c.Env = []string{"KUBECTL_EXTERNAL_DIFF=diff -U0"}
	c.Stdin = strings.NewReader(string(o.text))
	_, err := plane.Run(ctx, c)
	exit, ran := errors.AsType[*host.ExitError](err)
	if ran && (exit.Code == 1 || o.missing(exit)) {
		return true, nil
	}
	return false, err
}

// missing reports whether the object's node is yet to come.
func (*objects) missing(exit *host.ExitError) bool {
	return strings.Contains(strings.Join(exit.Tail, "\n"), "(NotFound)")
}

// Apply sets what differs.
func (o *objects) Apply(ctx context.Context, _ host.Host, _ func(string)) error {
	if _, err := journal.From(ctx); err != nil {
		return err
	}
	return o.access.put(ctx, o.text)
}

// Prove asks again.
func (o *objects) Prove(ctx context.Context, h host.Host) error {
	changes, err := o.Observe(ctx, h)
	if err == nil && len(changes) > 0 {
		err = fmt.Errorf("%s: the API does not have it", o.name)
	}
	return err
}

// Undo has nothing to do: they go with the cluster.
func (o *objects) Undo(context.Context, host.Host) error { return nil }

// Zones returns the zones of the nodes, ascending.
func Zones(inv *inventory.Inventory) []string {
	zones := map[string]bool{}
	for _, h := range inv.Nodes() {
		zones[inv.Site(h.Site).Zone] = true
	}
	return slices.Sorted(maps.Keys(zones))
}
