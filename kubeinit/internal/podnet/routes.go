package podnet

import (
	"bytes"
	"fmt"
	"net/netip"
	"slices"
)

// Route is a route of a node.
type Route struct {
	Prefix netip.Prefix
	// Via is the next hop. The zero Addr makes the prefix unreachable.
	Via netip.Addr
	// MTU is that of the mesh for what goes through it, and otherwise 0: the LAN
	// of the node has a larger one, by which connections of the node itself
	// would size their segments.
	MTU int
}

// Routes returns the routes of a node, ordered by prefix.
//
// Its own range is unreachable until the bridge is there, whose route has the
// better metric; otherwise a packet for a pod that is gone would go to the
// gateway and come back.
func Routes(n Network, node string) ([]Route, error) {
	if err := n.Check(); err != nil {
		return nil, err
	}
	me, ok := n.node(node)
	if !ok {
		return nil, fmt.Errorf("node %s: is not in the pod network", node)
	}
	site, _ := n.site(me.Site)
	out := []Route{{Prefix: me.Range}}
	for _, h := range n.Nodes {
		if h.Site == me.Site && h.Name != me.Name && sameFamily(h.Range, h.Address) {
			out = append(out, Route{Prefix: h.Range, Via: h.Address})
		}
	}
	// On the gateway itself meshd makes the routes to the other sites.
	if site.Gateway.IsValid() && site.Gateway != me.Address {
		for _, p := range n.beyond(site) {
			if sameFamily(p, site.Gateway) {
				out = append(out, Route{Prefix: p, Via: site.Gateway, MTU: n.MTU})
			}
		}
	}
	slices.SortFunc(out, func(a, b Route) int { return byPrefix(a.Prefix, b.Prefix) })
	return out, nil
}

// beyond is what lies behind the gateway of a site, without repetitions and
// without what is the site's own.
func (n Network) beyond(site Site) []netip.Prefix {
	out := append([]netip.Prefix{n.Supernet}, site.Foreign...)
	for _, s := range n.Sites {
		if s.Name != site.Name {
			out = append(out, s.LANs...)
		}
	}
	slices.SortFunc(out, byPrefix)
	out = slices.Compact(out)
	return slices.DeleteFunc(out, func(p netip.Prefix) bool { return slices.Contains(site.LANs, p) })
}

func sameFamily(p netip.Prefix, a netip.Addr) bool { return p.Addr().Is4() == a.Is4() }

// renderRoutes writes the input of "ip -batch".
func renderRoutes(routes []Route) []byte {
	b := bytes.NewBufferString(header)
	for _, r := range routes {
		b.WriteString("route add ")
		if r.Via.IsValid() {
			fmt.Fprintf(b, "%s via %s", r.Prefix, r.Via)
		} else {
			fmt.Fprintf(b, "unreachable %s", r.Prefix)
		}
		fmt.Fprintf(b, " proto %d metric %d", RouteProtocol, RouteMetric)
		if r.MTU > 0 {
			fmt.Fprintf(b, " mtu %d", r.MTU)
		}
		b.WriteByte('\n')
	}
	return b.Bytes()
}
