package preflight

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/etcdtune"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// From when on a measurement is a fault.
const (
	lossWarning    = 0.02 // 4 of 200: TCP slows down, and one lost datagram is no pattern
	lossFault      = 0.10 // etcd's heartbeats begin to be missed in a row
	reorderWarning = 0.05
	minUsefulMTU   = 1280 // RFC 8200: what every link of IPv6 carries
)

// network judges pairs.
func (j *judge) network() {
	n := &networkJudge{judge: j}
	for i := range j.inv.Hosts {
		for k := range j.inv.Hosts {
			d := Direction{j.inv.Hosts[i].Name, j.inv.Hosts[k].Name}
			if j.pairs[d] != nil {
				n.all = append(n.all, d)
			}
		}
	}
	n.unmeasured()
	n.ways()
	n.tcp()
	n.loss()
	n.mtu()
	n.addresses()
	n.etcd()
}

// networkJudge has the directions that were measured, in order.
type networkJudge struct {
	*judge
	all []Direction
}

// where returns the directions that a statement holds for.
func (n *networkJudge) where(holds func(*Pair) bool) []Direction {
	var some []Direction
	for _, d := range n.all {
		if holds(n.pairs[d]) {
			some = append(some, d)
		}
	}
	return some
}

func (n *networkJudge) opposite(p *Pair) *Pair { return n.pairs[Direction{p.To, p.From}] }

// dead says whether nothing at all arrived.
func dead(p *Pair) bool { return p.Sent > 0 && p.Received == 0 }

// tcpWorks says whether any connection came about, which takes both directions.
func tcpWorks(p *Pair) bool {
	return p != nil && slices.ContainsFunc(p.Ports, func(c PortCheck) bool { return c.State == PortOpen || c.State == PortRefused })
}

func (n *networkJudge) tcpEither(p *Pair) bool { return tcpWorks(p) || tcpWorks(n.opposite(p)) }

func (n *networkJudge) unmeasured() {
	bad := n.where(func(p *Pair) bool {
		// A host that has no agent is a fault of its own.
		o := n.opposite(p)
		return (p.Error != "" || o != nil && o.Error != "") && n.tookPart(p.From) && n.tookPart(p.To)
	})
	for _, s := range n.scopes(bad, n.all, false) {
		why := ""
		for _, d := range s.directions {
			why = cmp.Or(why, n.pairs[d].Error)
		}
		n.addNetwork("pair-unmeasured", SeverityWarning, []scope{s}, false, "the way %s could not be measured: "+escape(why), func(*scope) string {
			return "kubeinit check   # again, when the hosts have less to do"
		})
	}
}

func (n *networkJudge) tookPart(host string) bool {
	r := n.reports[host]
	return r.Agent != nil && r.AgentError == ""
}

// escape makes text safe for a format.
func escape(s string) string { return strings.ReplaceAll(s, "%", "%%") }

// ways finds pairs between which nothing passes, and those where only the datagrams do not.
func (n *networkJudge) ways() {
	none := n.where(func(p *Pair) bool {
		o := n.opposite(p)
		return o != nil && dead(p) && dead(o) && !n.tcpEither(p)
	})
	for _, s := range n.scopes(none, n.all, false) {
		text := "nothing passes %s"
		if why := n.pairs[s.directions[0]].SendError; why != "" {
			text += " (" + escape(why) + ")"
		}
		n.addNetwork("path-missing", SeverityFault, []scope{s}, false, text, n.routeCure)
	}
	filtered := n.where(func(p *Pair) bool { return dead(p) && n.tcpEither(p) })
	n.addNetwork("probe-filtered", SeverityWarning, n.scopes(filtered, n.all, true), true,
		fmt.Sprintf("TCP passes, but no datagram to UDP port %d arrives %%s, so round trips, loss and MTU are not known", DefaultProbePort),
		func(s *scope) string { return n.openCure(s, "udp", DefaultProbePort) })
}

// routeCure says where to look for a missing way.
func (n *networkJudge) routeCure(s *scope) string {
	d := s.directions[0]
	return fmt.Sprintf("on %s: ip route get %s && ping -c 3 %s   # across sites: meshd status on the gateways", d.From, n.inv.Host(d.To).NodeIP, n.inv.Host(d.To).NodeIP)
}

// openCure is the rule that lets the hosts of a scope in.
func (n *networkJudge) openCure(s *scope, protocol string, port uint16) string {
	var sources []netip.Addr
	for _, d := range s.directions {
		sources = append(sources, n.inv.Host(d.From).NodeIP)
	}
	return fmt.Sprintf("on %s: nft insert rule inet filter input ip saddr { %s } %s dport %d accept   # kubeinit check --firewall nft shows all rules",
		list(s.targets()), joinSources(sources), protocol, port)
}

func joinSources(sources []netip.Addr) string {
	slices.SortFunc(sources, netip.Addr.Compare)
	var texts []string
	for _, a := range slices.Compact(sources) {
		texts = append(texts, a.String())
	}
	return strings.Join(texts, ", ")
}

// tcp judges ports, one by one. Where nothing passes at all, or nothing one way,
// that is said already.
func (n *networkJudge) tcp() {
	for _, port := range n.portsTried() {
		tried := n.where(func(p *Pair) bool { return state(p, port) != "" })
		for _, kind := range []struct {
			state PortState
			id    string
			text  string
		}{
			{PortRefused, "port-refused", "TCP port %d is refused %%s although something listens there, so a firewall rejects it"},
			{PortFiltered, "port-filtered", "TCP port %d is filtered %%s: connections get no answer, so a firewall drops them"},
			{PortUnreachable, "port-unreachable", "TCP port %d is unreachable %%s: a router or a firewall on the way says so"},
			{PortForeign, "port-foreign", "TCP port %d is answered by somebody else %%s: a proxy on the way, or another machine with the same address"},
		} {
			bad := n.where(func(p *Pair) bool {
				o := n.opposite(p)
				lost := (dead(p) || o != nil && dead(o)) && !n.tcpEither(p)
				return state(p, port) == kind.state && !lost
			})
			n.addNetwork(kind.id, SeverityFault, n.scopes(bad, tried, true), true, fmt.Sprintf(kind.text, port), func(s *scope) string {
				if kind.state == PortForeign {
					return fmt.Sprintf("on %s: ip neigh show && traceroute -T -p %d %s", s.directions[0].From, port, n.inv.Host(s.directions[0].To).NodeIP)
				}
				return n.openCure(s, "tcp", port)
			})
		}
	}
}

// portsTried are the ports of all checks, ascending.
func (n *networkJudge) portsTried() []uint16 {
	var ports []uint16
	for _, d := range n.all {
		for _, c := range n.pairs[d].Ports {
			ports = append(ports, c.Port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// state is what came of an attempt, empty if there was none.
func state(p *Pair, port uint16) PortState {
	for _, c := range p.Ports {
		if c.Port == port {
			return c.State
		}
	}
	return ""
}

// loss judges datagrams that did not arrive, and those that came late.
func (n *networkJudge) loss() {
	over := func(p *Pair, limit float64) bool {
		l, ok := p.Loss()
		return ok && l > limit && !(dead(p) && n.tcpEither(p))
	}
	for _, level := range []struct {
		severity Severity
		above    float64
		below    float64
	}{{SeverityFault, lossFault, 2}, {SeverityWarning, lossWarning, lossFault}} {
		within := func(p *Pair) bool { return over(p, level.above) && !over(p, level.below) }
		missing := func(p, o *Pair) bool { return o != nil && dead(p) && dead(o) && !n.tcpEither(p) }
		one := n.where(func(p *Pair) bool {
			o := n.opposite(p)
			return within(p) && (o == nil || !over(o, lossWarning))
		})
		n.addLoss("loss-one-way", level.severity, one, true, " one way, %s, and not back")
		both := n.where(func(p *Pair) bool {
			o := n.opposite(p)
			return o != nil && !missing(p, o) && over(p, lossWarning) && over(o, lossWarning) &&
				(within(p) || within(o)) && (level.severity == SeverityFault || !over(p, lossFault) && !over(o, lossFault))
		})
		n.addLoss("loss-both-ways", level.severity, both, false, " both ways, %s")
	}
	late := n.where(func(p *Pair) bool {
		return p.Received > 0 && float64(p.Reordered)/float64(p.Received) > reorderWarning
	})
	n.addNetwork("reordering", SeverityWarning, n.scopes(late, n.all, true), true,
		"packets overtake each other %s, which TCP takes for loss",
		func(s *scope) string {
			return "on the routers of that way: let the packets of one connection take one path (ECMP per flow, no per-packet balancing)" + where(s)
		})
}

func where(s *scope) string { return fmt.Sprintf("; mtr -n %s shows it", s.directions[0].To) }

func (n *networkJudge) addLoss(id string, severity Severity, bad []Direction, directed bool, text string) {
	for _, s := range n.scopes(bad, n.all, directed) {
		var worst float64
		for _, d := range s.directions {
			l, _ := n.pairs[d].Loss()
			worst = max(worst, l)
		}
		share := fmt.Sprintf("up to %.0f %%%% of the packets are lost", 100*worst)
		if worst == 1 {
			share = "all packets are lost"
		}
		n.addNetwork(id, severity, []scope{s}, directed, share+text, func(s *scope) string {
			d := s.directions[0]
			return fmt.Sprintf("on %s: mtr -n -u -c 200 %s   # then mend the link that loses them, or take another", d.From, n.inv.Host(d.To).NodeIP)
		})
	}
}

// mtu judges long packets.
func (n *networkJudge) mtu() {
	hole := func(p *Pair) bool { return p != nil && p.Answered > 0 && p.Link > 0 && p.MTU < p.Assumed }
	measured := n.where(func(p *Pair) bool { return p.Link > 0 })
	one := n.where(func(p *Pair) bool { return hole(p) && !hole(n.opposite(p)) })
	n.addMTU("mtu-one-way", one, measured, true, "packets longer than %d bytes vanish without an error %%s, and not back: connections stall as soon as they send much")
	both := n.where(func(p *Pair) bool { return hole(p) && hole(n.opposite(p)) })
	n.addMTU("mtu-black-hole", both, measured, false, "packets longer than %d bytes vanish without an error %%s: connections stall as soon as they send much")
	small := n.where(func(p *Pair) bool {
		return p.Answered > 0 && p.Link > 0 && p.MTU < minUsefulMTU && !hole(p) && !hole(n.opposite(p))
	})
	n.addMTU("mtu-small", small, measured, true, "no packets longer than %d bytes pass %%s, and 1280 is the least that pods can live with")
}

func (n *networkJudge) addMTU(id string, bad, possible []Direction, directed bool, text string) {
	for _, s := range n.scopes(bad, possible, directed) {
		smallest := 1 << 20
		for _, d := range s.directions {
			smallest = min(smallest, n.pairs[d].MTU)
		}
		n.addNetwork(id, SeverityFault, []scope{s}, directed, fmt.Sprintf(text, max(smallest, minMTU-1)), func(s *scope) string {
			d := s.directions[0]
			return fmt.Sprintf("on the routers between: let ICMP \"fragmentation needed\" pass, or on %s: ip route replace %s via ROUTER mtu %d", d.From, n.inv.Host(d.To).NodeIP, max(smallest, minMTU))
		})
	}
}

// addresses judges what the other side sees.
func (n *networkJudge) addresses() {
	rewritten := func(p *Pair) netip.Addr {
		own := n.inv.Host(p.From).NodeIP
		if p.SeenAs.IsValid() && p.SeenAs != own {
			return p.SeenAs
		}
		for _, c := range p.Ports {
			if c.SeenAs.IsValid() && c.SeenAs != own {
				return c.SeenAs
			}
		}
		return netip.Addr{}
	}
	bad := n.where(func(p *Pair) bool { return rewritten(p).IsValid() })
	for _, s := range n.scopes(bad, n.all, true) {
		d := s.directions[0]
		n.addNetwork("source-rewritten", SeverityFault, []scope{s}, true,
			fmt.Sprintf("packets %%s arrive with the source address %s instead of %s: there is NAT on the way", rewritten(n.pairs[d]), n.inv.Host(d.From).NodeIP),
			func(*scope) string {
				return fmt.Sprintf("on the router that has %s: except the prefixes of the other sites from masquerading (nft list ruleset | grep masquerade)", rewritten(n.pairs[d]))
			})
	}
	uneven := n.where(func(p *Pair) bool {
		o := n.opposite(p)
		return o != nil && p.Hops >= 0 && o.Hops >= 0 && p.Hops != o.Hops
	})
	for _, s := range n.scopes(uneven, n.all, false) {
		p := n.pairs[s.directions[0]]
		n.addNetwork("route-asymmetric", SeverityWarning, []scope{s}, false,
			fmt.Sprintf("packets take different ways there and back %%s: routers from %s to %s: %d, back: %d", p.From, p.To, p.Hops, n.opposite(p).Hops),
			func(*scope) string {
				return fmt.Sprintf("on %s: traceroute -n %s   # and back from there; stateful firewalls drop what they see one way only", p.From, n.inv.Host(p.To).NodeIP)
			})
	}
}

// etcd judges round trips between control planes.
func (n *networkJudge) etcd() {
	between := n.where(func(p *Pair) bool {
		return isControlPlane(n.inv.Host(p.From)) && isControlPlane(n.inv.Host(p.To))
	})
	slow := func(above, upTo time.Duration) []Direction {
		return slices.DeleteFunc(slices.Clone(between), func(d Direction) bool {
			r := n.pairs[d].RTT
			return r == nil || r.P50 <= above || r.P50 > upTo
		})
	}
	const far = 1 << 62
	refused := SeverityFault
	if n.inv.Cluster.Etcd.AcceptSlow {
		refused = SeverityWarning
	}
	n.addSlow(refused, slow(etcdtune.MaxRTT, far), between, etcdtune.MaxRTT, "writes take longer than clients of the API wait")
	n.addSlow(SeverityWarning, slow(etcdtune.GoodRTT, etcdtune.MaxRTT), between, etcdtune.GoodRTT, "every write to the API waits that long")
}

func (n *networkJudge) addSlow(severity Severity, bad, possible []Direction, limit time.Duration, what string) {
	for _, s := range n.scopes(bad, possible, false) {
		var worst time.Duration
		for _, d := range s.directions {
			worst = max(worst, n.pairs[d].RTT.P50)
		}
		n.addNetwork("etcd-rtt-high", severity, []scope{s}, false,
			fmt.Sprintf("a round trip takes %s %%s, and etcd wants at most %s: %s", round(worst), limit, what),
			func(*scope) string {
				sites := n.controlPlaneSites()
				return fmt.Sprintf("in the inventory: give the role %s to hosts of one site (%s), or set etcd: {acceptSlow: true}", inventory.ControlPlane, list(sites))
			})
	}
}

func (n *networkJudge) controlPlaneSites() []string {
	var sites []string
	for _, h := range n.inv.With(inventory.ControlPlane) {
		if !slices.Contains(sites, h.Site) {
			sites = append(sites, h.Site)
		}
	}
	return sites
}
