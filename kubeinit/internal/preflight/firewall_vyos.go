package preflight

import (
	"fmt"
	"net/netip"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// vyosFirst is the number of the first rule: before what routers usually have.
const vyosFirst = 100

// The groups of source addresses, for each family.
const (
	vyosHosts         = "kubeinit-hosts"
	vyosControlPlanes = "kubeinit-control-planes"
)

// firewallVyOS writes what the routers of the sites shall forward to the hosts
// behind them.
func firewallVyOS(inv *inventory.Inventory) string {
	v := &vyosWriter{inv: inv}
	v.b.WriteString("# Rules that accept, for VyOS 1.4 and later; rules with lower numbers and zones that drop the same packets are to be changed themselves.\n")
	v.b.WriteString("\n# the router of every site\n")
	for i := range inv.Hosts {
		if h := &inv.Hosts[i]; joins(h) {
			v.member(vyosHosts, h.NodeIP)
			if isControlPlane(h) {
				v.member(vyosControlPlanes, h.NodeIP)
			}
		}
	}
	for i := range inv.Sites {
		v.site(&inv.Sites[i])
	}
	return v.b.String()
}

type vyosWriter struct {
	inv    *inventory.Inventory
	b      strings.Builder
	number map[string]int // of the next rule, by chain
}

func (v *vyosWriter) member(group string, a netip.Addr) {
	kind := "address-group"
	if a.Is6() {
		kind = "ipv6-address-group"
	}
	fmt.Fprintf(&v.b, "set firewall group %s %s address %s\n", kind, group, a)
}

// site writes the rules of one router, host by host.
func (v *vyosWriter) site(s *inventory.Site) {
	v.number = make(map[string]int)
	fmt.Fprintf(&v.b, "\n# the router of site %s\n", s.Name)
	for _, family := range v.families(s) {
		v.rule(family, "forward", "answers", "state established", "state related")
		for _, p := range podRanges(v.inv) {
			if p.Addr().Is4() == (family == "ipv4") {
				v.rule(family, "forward", "from pods", "source address "+p.String())
				v.rule(family, "forward", "to pods", "destination address "+p.String())
			}
		}
		if s.Mesh == inventory.MeshMeshd {
			v.rule(family, "input", "the mesh, where this router runs meshd", "protocol udp", fmt.Sprintf("destination port %d", meshPort))
			v.rule(family, "forward", "the mesh, where a host behind this router runs meshd", "protocol udp", fmt.Sprintf("destination port %d", meshPort))
		}
	}
	for i := range v.inv.Hosts {
		if h := &v.inv.Hosts[i]; h.Site == s.Name && joins(h) {
			fmt.Fprintf(&v.b, "\n# %s (%s, site %s)\n", h.Name, h.NodeIP, h.Site)
			v.host(h)
		}
	}
}

// families are those that hosts of the site have.
func (v *vyosWriter) families(s *inventory.Site) []string {
	var v4, v6 bool
	for i := range v.inv.Hosts {
		if h := &v.inv.Hosts[i]; h.Site == s.Name {
			v4, v6 = v4 || h.NodeIP.Is4(), v6 || h.NodeIP.Is6()
		}
	}
	var families []string
	if v4 {
		families = append(families, "ipv4")
	}
	if v6 {
		families = append(families, "ipv6")
	}
	return families
}

func (v *vyosWriter) host(h *inventory.Host) {
	family, group, icmp := "ipv4", "source group address-group ", "protocol icmp"
	if h.NodeIP.Is6() {
		family, icmp = "ipv6", "protocol ipv6-icmp"
	}
	to := "destination address " + h.NodeIP.String()
	for _, s := range services() {
		if s.asks == nil || !s.serves(v.inv, h) {
			continue
		}
		match := []string{to, "protocol tcp", fmt.Sprintf("destination port %d", s.port)}
		switch {
		case h.Is(inventory.LoadBalancer) && !h.IsNode():
			v.rule(family, "forward", s.name+", also for clients outside of the cluster", match...)
		case s.asks(&inventory.Host{Roles: []inventory.Role{inventory.Worker}}):
			v.rule(family, "forward", s.name, append(match, group+vyosHosts)...)
		default:
			v.rule(family, "forward", s.name, append(match, group+vyosControlPlanes)...)
		}
	}
	v.rule(family, "forward", "measurements of kubeinit check", to, "protocol udp", fmt.Sprintf("destination port %d", DefaultProbePort), group+vyosHosts)
	v.rule(family, "forward", "errors that path MTU discovery needs, and ping", to, icmp)
}

// rule writes one rule.
func (v *vyosWriter) rule(family, chain, why string, matches ...string) {
	path := fmt.Sprintf("set firewall %s %s filter rule %d", family, chain, vyosFirst+v.number[family+chain])
	v.number[family+chain]++
	fmt.Fprintf(&v.b, "%s action accept\n%s description '%s'\n", path, path, why)
	for _, m := range matches {
		fmt.Fprintf(&v.b, "%s %s\n", path, m)
	}
}
