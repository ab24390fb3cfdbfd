// Package podnet writes what the pod network of a node consists of when there
// is no second encapsulation: a CNI configuration, routes to the pods of the
// other nodes, and source NAT for what leaves the mesh. It also writes what the
// gateway of a site must know, or the operator of its router.
//
// A pod keeps its address everywhere in the mesh. A node reaches the pods of its
// own site directly over the LAN, all others through the site's gateway, which
// announces one block of pods for the whole site. A node that is not known yet
// is reached through the gateway, too.
//
//	pod ── pmpods0 (bridge) ── node ──┬── LAN ── node of the same site
//	                                  └── gateway of the site ═ mesh ═ gateway ── node
//
// The package runs nothing and opens nothing.
package podnet

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
)

// Names in the kernel, and marks by which kubeinit knows its own.
const (
	Bridge = "pmpods0"
	Table  = "kubeinit-podnet" // nftables, family inet
	// RouteProtocol marks the routes (rtm_protocol). 110 is assigned by none of
	// the kernel, iproute2 and FRRouting, and is the one after meshd's.
	RouteProtocol = 110
	// RouteMetric lets an operator's own routes win, and those of a meshd on the
	// same host (2048).
	RouteMetric = 2050
)

// Files on a node.
const (
	ConflistFile = "/etc/cni/net.d/10-planetmesh.conflist"
	ScriptFile   = "/etc/kubeinit/podnet"
	TableFile    = "/etc/kubeinit/podnet.nft"
	RoutesFile   = "/etc/kubeinit/podnet.routes"
	ServiceFile  = "/etc/systemd/system/" + Service
	TimerFile    = "/etc/systemd/system/" + Timer
)

// Units on a node. Both are to be enabled, and started when the files are there
// or have changed.
const (
	Service = "kubeinit-podnet.service"
	Timer   = "kubeinit-podnet.timer"
)

// Network is the pod network of a whole cluster.
type Network struct {
	// Cluster names the route sets on the gateways.
	Cluster string
	// Supernet covers the blocks of all sites; Services are the addresses of
	// Services.
	Supernet, Services netip.Prefix
	// MTU is the largest packet that fits through the mesh, in bytes.
	MTU   int
	Sites []Site
	Nodes []Node
}

// Site is a place with LANs of its own.
type Site struct {
	Name string
	LANs []netip.Prefix
	// Block holds the ranges of all nodes of the site.
	Block netip.Prefix
	// Gateway is the address in the LAN of what carries packets into the mesh:
	// a host with meshd, or a router. The zero Addr if there is no mesh.
	Gateway netip.Addr
	// Foreign are the prefixes beside those of the other sites that are reached
	// through the mesh.
	Foreign []netip.Prefix
}

// Node is a host that runs pods.
type Node struct {
	Name    string
	Site    string
	Address netip.Addr
	// Range are the addresses of its pods, a part of the site's block.
	Range netip.Prefix
}

// File is a file on a node.
type File struct {
	Path string
	Data []byte
	Mode fs.FileMode
}

// Files returns what belongs on a node, in the order in which it is to be
// written. The CNI configuration is the last, because the node becomes Ready
// with it.
func Files(n Network, node string) ([]File, error) {
	routes, err := Routes(n, node)
	if err != nil {
		return nil, err
	}
	me, _ := n.node(node)
	batch := renderRoutes(routes)
	table, mark := n.table(me, batch)
	return []File{
		{RoutesFile, batch, 0o644},
		{TableFile, table, 0o644},
		{ScriptFile, script(mark), 0o755},
		{ServiceFile, []byte(service), 0o644},
		{TimerFile, []byte(timer), 0o644},
		{ConflistFile, conflist(me.Range, n.MTU), 0o644},
	}, nil
}

// Check returns every fault of the network: ranges outside of their block, any
// two prefixes that overlap, an address that is in no LAN of its site.
func (n Network) Check() error {
	var errs []error
	add := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	add(usable(n.Supernet), "pod supernet %s: want a prefix without host bits", n.Supernet)
	add(usable(n.Services), "service subnet %s: want a prefix without host bits", n.Services)
	// 576 is the least of IPv4 (RFC 791), 65535 the most of it.
	add(n.MTU >= 576 && n.MTU <= 65535, "mtu %d: want 576 to 65535", n.MTU)
	for _, s := range n.Sites {
		add(usable(s.Block) && contains(n.Supernet, s.Block), "site %s: pod block %s does not lie in %s", s.Name, s.Block, n.Supernet)
		add(!s.Gateway.IsValid() || s.inLAN(s.Gateway), "site %s: gateway %s is in none of its LANs", s.Name, s.Gateway)
		for _, p := range slices.Concat(s.LANs, s.Foreign) {
			add(usable(p), "site %s: %s: want a prefix without host bits", s.Name, p)
		}
	}
	names := map[string]bool{}
	for _, h := range n.Nodes {
		add(!names[h.Name], "node %s: is there twice", h.Name)
		names[h.Name] = true
		s, ok := n.site(h.Site)
		add(ok, "node %s: there is no site %q", h.Name, h.Site)
		add(!ok || s.inLAN(h.Address), "node %s: address %s is in no LAN of site %s", h.Name, h.Address, h.Site)
		// host-local needs a network, a gateway, a pod and a broadcast address.
		add(usable(h.Range) && h.Range.Bits() <= h.Range.Addr().BitLen()-2, "node %s: range %s: want room for pods", h.Name, h.Range)
		add(!ok || contains(s.Block, h.Range), "node %s: range %s does not lie in %s of site %s", h.Name, h.Range, s.Block, h.Site)
	}
	return errors.Join(append(errs, n.overlaps()...)...)
}

// overlaps compares what must be apart.
func (n Network) overlaps() []error {
	type named struct {
		what string
		p    netip.Prefix
	}
	top := []named{{"the pod supernet", n.Supernet}, {"the service subnet", n.Services}}
	var blocks, ranges []named
	for _, s := range n.Sites {
		blocks = append(blocks, named{"the pod block of site " + s.Name, s.Block})
		for _, p := range s.LANs {
			top = append(top, named{"a LAN of site " + s.Name, p})
		}
	}
	for _, h := range n.Nodes {
		ranges = append(ranges, named{"the range of node " + h.Name, h.Range})
	}
	var errs []error
	for _, list := range [][]named{top, blocks, ranges} {
		for i, a := range list {
			for _, b := range list[i+1:] {
				if a.p.Overlaps(b.p) {
					errs = append(errs, fmt.Errorf("%s and %s overlap: %s, %s", a.what, b.what, a.p, b.p))
				}
			}
		}
	}
	return errs
}

func usable(p netip.Prefix) bool { return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6() }

func contains(outer, inner netip.Prefix) bool {
	return outer.Overlaps(inner) && outer.Bits() <= inner.Bits()
}

func (s Site) inLAN(a netip.Addr) bool {
	return slices.ContainsFunc(s.LANs, func(p netip.Prefix) bool { return p.Contains(a) })
}

func (n Network) site(name string) (Site, bool) {
	i := slices.IndexFunc(n.Sites, func(s Site) bool { return s.Name == name })
	if i < 0 {
		return Site{}, false
	}
	return n.Sites[i], true
}

func (n Network) node(name string) (Node, bool) {
	i := slices.IndexFunc(n.Nodes, func(h Node) bool { return h.Name == name })
	if i < 0 {
		return Node{}, false
	}
	return n.Nodes[i], true
}

func byPrefix(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
