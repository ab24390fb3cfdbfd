package preflight

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// FirewallKind is the language of rules.
type FirewallKind string

// The languages that Firewall knows.
const (
	FirewallNFT  FirewallKind = "nft"
	FirewallVyOS FirewallKind = "vyos"
)

// meshPort is the UDP port of gateways (overlay.DefaultPort).
const meshPort = 17946

// Firewall returns, for each host of the inventory, the rules that let in what the
// cluster needs, and forward what pods and sites exchange. They accept and drop nothing, so
// that they fit before any other rules. nft rules are for the hosts and go into a table
// inet filter with the chains input and forward; vyos prints commands for the router of
// each site, VyOS 1.4 or later, which let the same through to the hosts behind
// it. The error names an unknown kind.
func Firewall(inv *inventory.Inventory, kind FirewallKind) (string, error) {
	switch kind {
	case FirewallNFT:
		return firewallNFT(inv), nil
	case FirewallVyOS:
		return firewallVyOS(inv), nil
	}
	return "", fmt.Errorf("firewall %q: want nft or vyos", kind)
}

func firewallNFT(inv *inventory.Inventory) string {
	var b strings.Builder
	b.WriteString("# Rules that accept; where another table drops the same packets, that is to be changed there.\n")
	for i := range inv.Hosts {
		h := &inv.Hosts[i]
		fmt.Fprintf(&b, "\n# %s (%s, site %s)\n", h.Name, h.NodeIP, h.Site)
		writeNFT(&b, rulesOf(inv, h))
		if h.IsNode() {
			b.WriteString("# if services of type NodePort are wanted:\n# insert rule inet filter input meta l4proto { tcp, udp } th dport 30000-32767 accept\n")
		}
	}
	return b.String()
}

// rule accepts packets. Empty fields mean any.
type rule struct {
	forward  bool // through the host; otherwise to it
	why      string
	protocol string // tcp, udp or icmp
	port     uint16
	from, to []netip.Prefix
}

// rulesOf are the rules of one host. Sources are addresses of hosts, not whole LANs.
func rulesOf(inv *inventory.Inventory, h *inventory.Host) []rule {
	var rules []rule
	pods := podRanges(inv)
	for _, s := range services() {
		if s.asks == nil || !s.serves(inv, h) {
			continue
		}
		r := rule{why: s.name, protocol: "tcp", port: s.port}
		for i := range inv.Hosts {
			if o := &inv.Hosts[i]; o.Name != h.Name && joins(o) && s.asks(o) {
				r.from = append(r.from, netip.PrefixFrom(o.NodeIP, o.NodeIP.BitLen()))
			}
		}
		if s.pods {
			r.from = append(r.from, pods...)
		}
		if h.Is(inventory.LoadBalancer) && !h.IsNode() {
			r.why, r.from = s.name+", also for clients outside of the cluster", nil
		}
		if len(r.from) > 0 || h.Is(inventory.LoadBalancer) {
			rules = append(rules, r)
		}
	}
	if joins(h) {
		others := otherHosts(inv, h)
		if len(others) > 0 {
			rules = append(rules,
				rule{why: "measurements of kubeinit check", protocol: "udp", port: DefaultProbePort, from: others},
				rule{why: "errors that path MTU discovery needs, and ping", protocol: "icmp"})
		}
	}
	if h.Is(inventory.Gateway) {
		rules = append(rules, gatewayRules(inv, h)...)
	}
	if h.IsNode() && len(pods) > 0 {
		rules = append(rules,
			rule{forward: true, why: "from pods", from: pods},
			rule{forward: true, why: "to pods", to: pods})
	}
	return merge(rules)
}

// gatewayRules let a site reach the others.
func gatewayRules(inv *inventory.Inventory, h *inventory.Host) []rule {
	site := inv.Site(h.Site)
	if site == nil {
		return nil
	}
	var rules []rule
	if site.Mesh == inventory.MeshMeshd {
		rules = append(rules, rule{why: "the mesh, if meshd.yaml names no other port", protocol: "udp", port: meshPort})
	}
	own := append(slices.Clone(site.Prefixes), podRanges(inv)...)
	return append(rules,
		rule{forward: true, why: "from this site", from: own},
		rule{forward: true, why: "to this site", to: own})
}

func podRanges(inv *inventory.Inventory) []netip.Prefix {
	if inv.Cluster.PodSupernet.IsValid() && inv.Cluster.CNI.Mode != inventory.CNINone {
		return []netip.Prefix{inv.Cluster.PodSupernet}
	}
	return nil
}

func otherHosts(inv *inventory.Inventory, h *inventory.Host) []netip.Prefix {
	var others []netip.Prefix
	for i := range inv.Hosts {
		if o := &inv.Hosts[i]; o.Name != h.Name && joins(o) {
			others = append(others, netip.PrefixFrom(o.NodeIP, o.NodeIP.BitLen()))
		}
	}
	return others
}

// merge drops rules for a port that an earlier, wider one has opened, and puts sources in order.
func merge(rules []rule) []rule {
	var out []rule
	for _, r := range rules {
		slices.SortFunc(r.from, netip.Prefix.Compare)
		r.from = slices.Compact(r.from)
		if slices.ContainsFunc(out, func(o rule) bool {
			return o.protocol == r.protocol && o.port == r.port && o.port != 0 && o.from == nil
		}) {
			continue
		}
		out = append(out, r)
	}
	return out
}

// families splits ranges by family; a rule has one.
func families(list []netip.Prefix) (v4, v6 []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return v4, v6
}

func texts(list []netip.Prefix) []string {
	var out []string
	for _, p := range list {
		if p.IsSingleIP() {
			out = append(out, p.Addr().String())
		} else {
			out = append(out, p.String())
		}
	}
	return out
}

func writeNFT(b *strings.Builder, rules []rule) {
	b.WriteString("add table inet filter\n")
	b.WriteString("add chain inet filter input { type filter hook input priority filter; }\n")
	if slices.ContainsFunc(rules, func(r rule) bool { return r.forward }) {
		b.WriteString("add chain inet filter forward { type filter hook forward priority filter; }\n")
	}
	chains := []string{"input"}
	if slices.ContainsFunc(rules, func(r rule) bool { return r.forward }) {
		chains = append(chains, "forward")
	}
	for _, chain := range chains {
		fmt.Fprintf(b, "insert rule inet filter %s ct state { established, related } accept comment \"answers\"\n", chain)
	}
	for _, r := range rules {
		for _, match := range nftMatches(r) {
			chain := "input"
			if r.forward {
				chain = "forward"
			}
			fmt.Fprintf(b, "insert rule inet filter %s %saccept comment %q\n", chain, match, r.why)
		}
	}
}

// nftMatches are the conditions of a rule, one for each family, with a space behind.
func nftMatches(r rule) []string {
	port := ""
	switch r.protocol {
	case "icmp":
		return []string{"meta l4proto { icmp, ipv6-icmp } "}
	case "tcp", "udp":
		port = fmt.Sprintf("%s dport %d ", r.protocol, r.port)
	}
	if r.from == nil && r.to == nil {
		return []string{port}
	}
	var matches []string
	for field, ranges := range map[string][]netip.Prefix{"saddr": r.from, "daddr": r.to} {
		v4, v6 := families(ranges)
		if len(v4) > 0 {
			matches = append(matches, fmt.Sprintf("ip %s { %s } %s", field, strings.Join(texts(v4), ", "), port))
		}
		if len(v6) > 0 {
			matches = append(matches, fmt.Sprintf("ip6 %s { %s } %s", field, strings.Join(texts(v6), ", "), port))
		}
	}
	slices.Sort(matches)
	return matches
}
