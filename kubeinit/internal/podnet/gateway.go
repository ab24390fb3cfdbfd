package podnet

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// RouteSet is what a gateway with meshd must know about the pods of its site:
// the body of PUT /v1/routesets/NAME on its control socket.
type RouteSet struct {
	// Announce goes to the other sites.
	Announce []netip.Prefix `json:"announce"`
	// LAN are routes of the gateway itself.
	LAN []LANRoute `json:"lan"`
}

// LANRoute is a prefix behind a host in a LAN of the site.
type LANRoute struct {
	Prefix netip.Prefix `json:"prefix"`
	Via    netip.Addr   `json:"via"`
}

// RouteSetName is the NAME of the route set of a cluster.
func RouteSetName(cluster string) string { return "kubeinit-" + cluster }

// RouteSetOf returns the route set for the gateways of a site. Without the LAN
// routes requests from other sites would end at the gateway. A node that is the
// gateway itself has its pods on a bridge and needs none.
func RouteSetOf(n Network, site string) (RouteSet, error) {
	if err := n.Check(); err != nil {
		return RouteSet{}, err
	}
	s, ok := n.site(site)
	if !ok {
		return RouteSet{}, fmt.Errorf("site %s: is not in the pod network", site)
	}
	out := RouteSet{Announce: []netip.Prefix{s.Block}, LAN: []LANRoute{}}
	for _, h := range n.Nodes {
		if h.Site == site && h.Address != s.Gateway {
			out.LAN = append(out.LAN, LANRoute{h.Range, h.Address})
		}
	}
	slices.SortFunc(out.LAN, func(a, b LANRoute) int { return byPrefix(a.Prefix, b.Prefix) })
	return out, nil
}

// JSON is the body as it is sent.
func (r RouteSet) JSON() []byte { return indented(r) }

// OpenVPN says how a site whose router speaks OpenVPN is attached.
type OpenVPN struct {
	// Gateway is the name of the gateway with meshd at the other end, Attachment
	// the name of the entry in its meshd.yaml.
	Gateway, Attachment string
	// Prefixes are those in the entry so far.
	Prefixes []netip.Prefix
	// Interface is the tunnel's name on the router, such as vtun0.
	Interface string
	// VyOS writes commands for VyOS, otherwise for a Linux router.
	VyOS bool
}

// Instructions returns what operators must type so that the pods of a site
// behind an OpenVPN router are reached: the wider grant, the line in meshd.yaml
// and the router's static routes. kubeinit cannot do it for them, because
// neither machine is one of its hosts.
func Instructions(n Network, site string, o OpenVPN) (string, error) {
	set, err := RouteSetOf(n, site)
	if err != nil {
		return "", err
	}
	s, _ := n.site(site)
	var prefixes []string
	for _, p := range append(slices.Clone(o.Prefixes), s.Block) {
		if !slices.Contains(prefixes, p.String()) {
			prefixes = append(prefixes, p.String())
		}
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# where the mesh's authority is: let %s announce the pods of site %s\n", o.Gateway, site)
	fmt.Fprintf(&b, "meshd ticket --gateway %s --prefix %s\n\n", o.Gateway, s.Block)
	fmt.Fprintf(&b, "# on %s, in meshd.yaml, entry %s of openvpn; takes effect at once\n", o.Gateway, o.Attachment)
	fmt.Fprintf(&b, "prefixes: [%s]\n\n", strings.Join(prefixes, ", "))
	fmt.Fprintf(&b, "# on the router of site %s: pods here, then pods of the other sites\n", site)
	if o.VyOS {
		b.WriteString("configure\n")
	}
	for _, r := range set.LAN {
		b.WriteString(o.route(r.Prefix, "next-hop", r.Via.String()))
	}
	b.WriteString(o.route(n.Supernet, "interface", o.Interface))
	if o.VyOS {
		b.WriteString("commit\nsave\nexit\n")
	}
	return b.String(), nil
}

func (o OpenVPN) route(p netip.Prefix, kind, to string) string {
	if o.VyOS {
		six := ""
		if p.Addr().Is6() {
			six = "6"
		}
		return fmt.Sprintf("set protocols static route%s %s %s %s\n", six, p, kind, to)
	}
	word := map[string]string{"next-hop": "via", "interface": "dev"}[kind]
	return fmt.Sprintf("ip route replace %s %s %s\n", p, word, to)
}
