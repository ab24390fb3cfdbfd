package steps

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"reflect"

	"github.com/planetmesh/planetmesh/kubeinit/internal/action"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
	"github.com/planetmesh/planetmesh/kubeinit/internal/podnet"
)

// podNetwork gives the nodes their pod network, and the gateways what they must
// know about it.
func (b *builder) podNetwork() {
	switch c := b.in.Inventory.Cluster.CNI; c.Mode {
	case inventory.CNIRoutes:
	case inventory.CNIManifest:
		first := b.controlPlanes()[0]
		b.add(phase.PodNet, first.Name, "manifest", &objects{access: b.access, name: "manifest " + c.Manifest, text: b.in.Manifest}, b.joined(first))
		return
	default:
		return
	}
	for _, s := range b.in.Inventory.Sites {
		if s.Mesh == inventory.MeshMeshd {
			b.routeSets(s)
		}
	}
	for _, h := range b.in.Inventory.Nodes() {
		b.nodeNetwork(h)
	}
}

func (b *builder) nodeNetwork(h *inventory.Host) {
	files, err := podnet.Files(b.network, h.Name)
	b.fault(err)
	add := func(name string, a phase.Action) { b.add(phase.PodNet, h.Name, name, a, b.joined(h)) }
	var others []action.File
	var conflist action.File
	for _, f := range files {
		file := action.File{Path: f.Path, Content: f.Data, Mode: f.Mode}
		if f.Path == podnet.ConflistFile {
			conflist = file
			continue
		}
		others = append(others, file)
		add(path.Base(f.Path), file)
	}
	add("up", &networkUp{files: others, Command: action.Command{
		Name: "pod network",
		IsSo: []string{podnet.ScriptFile, "check"},
		Do:   [][]string{{podnet.ScriptFile, "up"}},
		Back: [][]string{{podnet.ScriptFile, "down"}},
	}})
	add("service", action.Unit{Name: podnet.Service, Enabled: action.Yes})
	add("timer", action.Unit{Name: podnet.Timer, Files: others, Enabled: action.Yes, Active: action.Yes})
	// Last, because the node becomes Ready with it.
	add(path.Base(conflist.Path), conflist)
}

// networkUp puts routes and SNAT of a node into the kernel.
type networkUp struct {
	action.Command
	files []action.File // that the script reads
}

// Observe looks at the files first: with others there is something to do.
func (n *networkUp) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	for _, f := range n.files {
		if changes, err := f.Observe(ctx, h); err != nil || len(changes) > 0 {
			return []phase.Change{{What: n.String()}}, err
		}
	}
	return n.Command.Observe(ctx, h)
}

func (b *builder) routeSets(s inventory.Site) {
	set, err := podnet.RouteSetOf(b.network, s.Name)
	if err != nil {
		b.fault(err)
		return
	}
	if len(set.Announce) == 0 {
		return
	}
	for _, gateway := range s.Gateways {
		b.add(phase.PodNet, gateway, "grant", &grant{block: set.Announce[0], gateways: b.meshGateways()})
		b.add(phase.PodNet, gateway, "routeset", &routeSet{name: podnet.RouteSetName(b.in.Decisions.Cluster), set: set})
	}
}

// meshGateways are the gateways with meshd.
func (b *builder) meshGateways() (all []host.Host) {
	for _, s := range b.in.Inventory.Sites {
		for _, name := range s.Gateways {
			if h := b.in.Hosts[name]; h != nil && s.Mesh == inventory.MeshMeshd {
				all = append(all, h)
			}
		}
	}
	return all
}

// routeSet is a named route set of the meshd on a gateway.
type routeSet struct {
	name string
	set  podnet.RouteSet
}

// String names it.
func (r *routeSet) String() string { return "route set " + r.name + " of meshd" }

// Observe compares the set.
func (r *routeSet) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	out, err := h.Run(ctx, host.Command{Args: []string{"meshd", "routeset", "list", "--json"}})
	if err != nil {
		return nil, err
	}
	var all struct {
		RouteSets []struct {
			Name string `json:"name"`
			podnet.RouteSet
		} `json:"routeSets"`
	}
	if err := json.Unmarshal([]byte(out.Stdout), &all); err != nil {
		return nil, fmt.Errorf("%s: meshd routeset list: %w", h.Name(), err)
	}
	change := phase.Change{What: r.String(), To: fmt.Sprintf("announce %v, %d LAN routes", r.set.Announce, len(r.set.LAN))}
	for _, s := range all.RouteSets {
		if s.Name != r.name {
			continue
		}
		if reflect.DeepEqual(s.Announce, r.set.Announce) && reflect.DeepEqual(s.LAN, r.set.LAN) {
			return nil, nil
		}
		change.From = fmt.Sprintf("announce %v, %d LAN routes", s.Announce, len(s.LAN))
	}
	return []phase.Change{change}, nil
}

func (r *routeSet) command() action.Command {
	return action.Command{
		Name:  r.String(),
		Do:    [][]string{{"meshd", "routeset", "put", r.name}},
		Back:  [][]string{{"sh", "-c", "meshd routeset delete " + host.Quote(r.name) + " || ! meshd routeset show " + host.Quote(r.name)}},
		Stdin: func() io.Reader { return bytes.NewReader(r.set.JSON()) },
	}
}

// Apply puts the set.
func (r *routeSet) Apply(ctx context.Context, h host.Host, log func(string)) error {
	return r.command().Apply(ctx, h, log)
}

// Prove looks again.
func (r *routeSet) Prove(ctx context.Context, h host.Host) error {
	changes, err := r.Observe(ctx, h)
	if err == nil && len(changes) > 0 {
		err = errors.New("meshd does not have it")
	}
	return err
}

// Undo deletes it.
func (r *routeSet) Undo(ctx context.Context, h host.Host) error { return r.command().Undo(ctx, h) }
