package inventory

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// checker looks at how the parts of an inventory fit together.
type checker struct {
	*report
	inv   *Inventory
	sites map[string]*Site
	hosts map[string]int // index by name
}

// Validate checks how the parts of an inventory fit together, for one that was
// not read from a file or was changed. Parse has done the same. The error is a
// Faults whose file is "inventory"; Warnings are replaced.
func (i *Inventory) Validate() error {
	r := &report{file: "inventory", lines: map[string]int{}}
	for n, s := range i.Sites {
		r.lines[fmt.Sprintf("sites[%d]", n)] = s.Line
	}
	for n, h := range i.Hosts {
		r.lines[fmt.Sprintf("hosts[%d]", n)] = h.Line
	}
	fill(i)
	check(i, r)
	err := r.err()
	i.Warnings = r.warnings
	return err
}

// check looks at everything that no single value can tell. Fields that have a
// fault already are left out.
func check(inv *Inventory, r *report) {
	c := &checker{report: r, inv: inv, sites: map[string]*Site{}, hosts: map[string]int{}}
	c.names()
	c.cluster()
	c.etcd()
	c.overlaps()
	for i := range inv.Sites {
		c.site(&inv.Sites[i], fmt.Sprintf("sites[%d]", i))
	}
	for i := range inv.Hosts {
		c.host(&inv.Hosts[i], fmt.Sprintf("hosts[%d]", i))
	}
	c.addresses()
	c.jumps()
	c.blocks()
	c.controlPlanes()
	c.loadBalancers()
}

// names collects the names of sites and hosts, and notes the doubles.
func (c *checker) names() {
	firstSite := map[string]string{}
	for i := range c.inv.Sites {
		name, field := c.inv.Sites[i].Name, fmt.Sprintf("sites[%d].name", i)
		if c.unique(firstSite, name, field, "each name once") {
			c.sites[name] = &c.inv.Sites[i]
		}
	}
	firstHost := map[string]string{}
	for i := range c.inv.Hosts {
		name, field := c.inv.Hosts[i].Name, fmt.Sprintf("hosts[%d].name", i)
		if c.unique(firstHost, name, field, "each name once") {
			c.hosts[name] = i
		}
	}
	c.atLeastOne("sites", len(c.inv.Sites), "at least one site")
	c.atLeastOne("hosts", len(c.inv.Hosts), "at least one host")
}

// unique notes a value that an earlier field has. first is kept by the caller.
func (c *checker) unique(first map[string]string, value, field, want string) bool {
	if value == "" || c.broken(field) {
		return false
	}
	if earlier, ok := first[value]; ok {
		c.fault(field, fmt.Sprintf("%s stands in line %d already", value, c.line(earlier)), want)
		return false
	}
	first[value] = field
	return true
}

func (c *checker) atLeastOne(field string, n int, want string) {
	if n == 0 && !c.broken(field) {
		c.fault(field, "empty", want)
	}
}

// cluster checks settings that mean something only together.
func (c *checker) cluster() {
	k := &c.inv.Cluster
	switch {
	case c.broken("cluster.bundle") || c.broken("cluster.source"):
	case k.Source == SourceBundle && k.Bundle == "":
		c.fault("cluster.source", "bundle without its file", "\"bundle: FILE\", made by kubeinit bundle create")
	case k.Source != SourceBundle && k.Bundle != "":
		c.fault("cluster.bundle", fmt.Sprintf("a bundle that is not used, because source is %s", k.Source), "source: bundle, or no bundle")
	}
	if k.Containerd.Mode == ContainerdExisting && k.Containerd.ExtraTOML != "" && !c.broken("cluster.containerd") {
		c.fault("cluster.containerd.extraToml", "is not used, because mode existing leaves containerd's configuration alone", "mode: managed, or no extraToml")
	}
	c.families()
	c.serviceSize()
}

// families: Kubernetes gives a node with one address pods and services of that
// address's family.
func (c *checker) families() {
	k := &c.inv.Cluster
	if c.broken("cluster.podSupernet") || c.broken("cluster.serviceSubnet") {
		return
	}
	if k.PodSupernet.Addr().Is4() != k.ServiceSubnet.Addr().Is4() {
		c.fault(c.written("cluster.serviceSubnet", "cluster.podSupernet"), fmt.Sprintf("%s is %s and podSupernet %s is %s", k.ServiceSubnet, family(k.ServiceSubnet.Addr()), k.PodSupernet, family(k.PodSupernet.Addr())), "both of one family")
	}
}

// written returns the first of two fields that stands in the file: a default is
// nobody's fault.
func (c *checker) written(field, other string) string {
	if _, ok := c.lines[field]; ok {
		return field
	}
	return other
}

func family(a netip.Addr) string {
	if a.Is4() {
		return "IPv4"
	}
	return "IPv6"
}

// serviceSize: kube-apiserver refuses service prefixes of more than 20 bits for
// hosts in IPv6 (--service-cluster-ip-range: at most /108) and kubeadm less than
// 8; more than 20 bits in IPv4 would be nobody's wish.
func (c *checker) serviceSize() {
	p := c.inv.Cluster.ServiceSubnet
	if free := p.Addr().BitLen() - p.Bits(); !c.broken("cluster.serviceSubnet") && (free > 20 || free < 8) {
		c.fault("cluster.serviceSubnet", fmt.Sprintf("%s is no prefix that API servers take", p),
			fmt.Sprintf("a length from /%d to /%d", p.Addr().BitLen()-20, p.Addr().BitLen()-8))
	}
	if p := c.inv.Cluster.PodSupernet; !c.broken("cluster.podSupernet") && p.Bits() > NodeBits(p) {
		c.fault("cluster.podSupernet", fmt.Sprintf("%s is smaller than the range of one node", p), fmt.Sprintf("/%d or shorter", NodeBits(p)-4))
	}
}

// Bounds of etcd's timers (flags of etcd: --heartbeat-interval,
// --election-timeout at least five times as long and at most 50 s).
const (
	minHeartbeat = 10 * time.Millisecond
	maxElection  = 50 * time.Second
	heartbeats   = 5
)

func (c *checker) etcd() {
	e := c.inv.Cluster.Etcd
	if e.Heartbeat > 0 && (e.Heartbeat < minHeartbeat || e.Heartbeat > maxElection/heartbeats) {
		c.fault("cluster.etcd.heartbeat", e.Heartbeat.String()+" is no interval that etcd can keep", "10ms to 10s, or no heartbeat: it follows the measured round trips")
	}
	if e.Election == 0 || c.broken("cluster.etcd.election") || c.broken("cluster.etcd.heartbeat") {
		return
	}
	heartbeat := e.Heartbeat
	if heartbeat == 0 {
		heartbeat = 100 * time.Millisecond // the least that is chosen
	}
	switch {
	case e.Election > maxElection:
		c.fault("cluster.etcd.election", e.Election.String()+" is more than etcd takes", "at most 50s")
	case e.Election < heartbeats*heartbeat:
		c.fault("cluster.etcd.election", fmt.Sprintf("%s is less than five heartbeats of %s", e.Election, heartbeat), fmt.Sprintf("at least %dms", (heartbeats*heartbeat).Milliseconds()))
	case e.Election < 2*heartbeats*heartbeat:
		c.warn("cluster.etcd.election", fmt.Sprintf("%s is less than ten heartbeats of %s: a lost packet can cost a leader", e.Election, heartbeat), fmt.Sprintf("%dms or more", (2*heartbeats*heartbeat).Milliseconds()))
	}
}

// network is a prefix of the file with what it is.
type network struct {
	prefix      netip.Prefix
	field, what string
	block       bool // lies in the pod supernet
}

func (c *checker) networks() []network {
	k := &c.inv.Cluster
	all := []network{
		{k.PodSupernet, "cluster.podSupernet", "podSupernet", false},
		{k.ServiceSubnet, "cluster.serviceSubnet", "serviceSubnet", false},
	}
	for i, s := range c.inv.Sites {
		for j, p := range s.Prefixes {
			all = append(all, network{p, fmt.Sprintf("sites[%d].prefixes[%d]", i, j), "a LAN of site " + s.Name, false})
		}
		if s.PodBlock.IsValid() {
			all = append(all, network{s.PodBlock, fmt.Sprintf("sites[%d].podBlock", i), "podBlock of site " + s.Name, true})
		}
	}
	return slices.DeleteFunc(all, func(n network) bool { return !n.prefix.IsValid() || c.broken(n.field) })
}

// overlaps notes prefixes that share addresses, once for each of them.
func (c *checker) overlaps() {
	all := c.networks()
	for i, n := range all {
		for j, other := range all[:i] {
			inSupernet := n.block && other.field == "cluster.podSupernet"
			if !n.prefix.Overlaps(other.prefix) || inSupernet {
				continue
			}
			if j == 0 && c.written(n.field, other.field) == other.field {
				n, other = other, n
			}
			where := ", the default"
			if line, ok := c.lines[other.field]; ok {
				where = fmt.Sprintf(" in line %d", line)
			}
			c.fault(n.field, fmt.Sprintf("%s overlaps %s, %s%s", n.prefix, other.prefix, other.what, where), "prefixes that share no address")
			break
		}
	}
}

func (c *checker) site(s *Site, field string) {
	c.atLeastOne(field+".prefixes", len(s.Prefixes), "at least one prefix")
	first := map[string]string{}
	for i, g := range s.Gateways {
		f := fmt.Sprintf("%s.gateways[%d]", field, i)
		if c.unique(first, g, f, "each gateway once") {
			c.gateway(s, g, f)
		}
	}
	if s.Mesh == MeshMeshd && len(c.inv.Sites) > 1 && len(s.Gateways) == 0 && !c.broken(field+".gateways") && !c.broken(field+".mesh") {
		c.fault(field, fmt.Sprintf("site %s has no gateways, and its mesh is meshd", s.Name), "\"gateways:\" with a host of role gateway, or mesh: openvpn or none")
	}
}

func (c *checker) gateway(s *Site, name, field string) {
	i, ok := c.hosts[name]
	if !ok {
		c.noHost(name, field)
		return
	}
	h := &c.inv.Hosts[i]
	switch {
	case c.broken(fmt.Sprintf("hosts[%d]", i)):
	case !h.Is(Gateway):
		c.fault(field, fmt.Sprintf("%s does not have the role gateway (line %d)", name, h.Line), "roles: [gateway] at that host")
	case h.Site != s.Name:
		c.fault(field, fmt.Sprintf("%s is in site %s (line %d)", name, h.Site, h.Line), "a gateway in site "+s.Name)
	}
}

// noHost notes a name that no host has, unless there is a host whose name could
// not be read.
func (c *checker) noHost(name, field string) {
	if !c.at["hosts"] && find(c.inv.Hosts, func(h *Host) bool { return h.Name == "" }) == nil {
		c.fault(field, fmt.Sprintf("there is no host %s", name), c.suggest(name, slices.Sorted(maps.Keys(c.hosts)), "the name of a host"))
	}
}

// brokenHosts says whether a key has a fault at any host.
func (c *checker) brokenHosts(key string) bool {
	for i := range c.inv.Hosts {
		if c.broken(fmt.Sprintf("hosts[%d].%s", i, key)) {
			return true
		}
	}
	return c.at["hosts"]
}

func (c *checker) suggest(name string, among []string, want string) string {
	if near := nearest(name, among); near != "" {
		return near
	}
	switch {
	case len(among) == 1:
		return among[0]
	case len(among) > 0 && len(among) <= 8:
		return "one of " + strings.Join(among, ", ")
	}
	return want
}

func (c *checker) host(h *Host, field string) {
	first := map[string]string{}
	for i, r := range h.Roles {
		c.unique(first, string(r), fmt.Sprintf("%s.roles[%d]", field, i), "each role once")
	}
	if !c.broken(field + ".roles") {
		c.roles(h, field+".roles")
	}
	c.place(h, field)
	c.reserved(h, field)
	taints := map[string]string{}
	for i, t := range h.Taints {
		c.unique(taints, t.Key+":"+t.Effect, fmt.Sprintf("%s.taints[%d]", field, i), "each key and effect once")
	}
	if !h.IsNode() && len(h.Labels)+len(h.Taints) > 0 && !c.broken(field) {
		c.fault(field, fmt.Sprintf("%s has labels or taints, and is no node", h.Name), "them at control planes and workers only")
	}
	if h.SSH.User != DefaultUser && !h.SSH.Sudo && !c.broken(field+".ssh") {
		c.fault(field+".ssh", fmt.Sprintf("user %s is not root, and sudo is not on", h.SSH.User), "sudo: true")
	}
}

func (c *checker) roles(h *Host, field string) {
	c.atLeastOne(field, len(h.Roles), "control-plane, worker, loadbalancer or gateway")
	if h.Is(LoadBalancer) && h.Is(ControlPlane) {
		c.fault(field, "a control plane cannot be the load balancer as well: both want port 6443", "a host of its own for the load balancer")
	}
	if site := c.sites[h.Site]; h.Is(Gateway) && site != nil && !slices.Contains(site.Gateways, h.Name) && !c.broken("sites") {
		c.fault(field, fmt.Sprintf("%s has the role gateway, and site %s (line %d) does not name it", h.Name, site.Name, site.Line), "gateways: ["+h.Name+"] at that site")
	}
}

// place checks site and address of a host.
func (c *checker) place(h *Host, field string) {
	if c.broken(field + ".site") {
		return
	}
	site := c.sites[h.Site]
	if site == nil {
		if !c.at["sites"] && find(c.inv.Sites, func(s *Site) bool { return s.Name == "" }) == nil {
			c.fault(field+".site", fmt.Sprintf("there is no site %s", h.Site), c.suggest(h.Site, slices.Sorted(maps.Keys(c.sites)), "the name of a site"))
		}
		return
	}
	if c.broken(field+".nodeIP") || len(site.Prefixes) == 0 {
		return
	}
	i := slices.IndexFunc(site.Prefixes, func(p netip.Prefix) bool { return p.Contains(h.NodeIP) })
	if i < 0 {
		if !slices.Contains(site.Prefixes, netip.Prefix{}) { // what could not be read might have held it
			c.fault(field+".nodeIP", fmt.Sprintf("%s is in no prefix of site %s", h.NodeIP, site.Name), "an address in "+list(site.Prefixes))
		}
		return
	}
	if p := site.Prefixes[i]; p.Addr().Is4() && p.Bits() < 31 && (h.NodeIP == p.Addr() || h.NodeIP == broadcast(p)) {
		c.fault(field+".nodeIP", fmt.Sprintf("%s is the first or last address of %s, which no host can have", h.NodeIP, p), "one between them")
	}
	if pods := c.inv.Cluster.PodSupernet; h.IsNode() && !c.broken("cluster.podSupernet") && !c.broken("cluster.serviceSubnet") && h.NodeIP.Is4() != pods.Addr().Is4() {
		c.fault(field+".nodeIP", fmt.Sprintf("%s is %s, and podSupernet %s is %s", h.NodeIP, family(h.NodeIP), pods, family(pods.Addr())), "both of one family")
	}
}

func list(prefixes []netip.Prefix) string {
	out := make([]string, len(prefixes))
	for i, p := range prefixes {
		out[i] = p.String()
	}
	return strings.Join(out, " or ")
}

// broadcast is the last address of an IPv4 prefix.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 1 << (7 - i%8)
	}
	return netip.AddrFrom4(b)
}

// fromElsewhere are labels that a node gets from somebody else.
var fromElsewhere = map[string]string{
	"topology.kubernetes.io/region": "\"region:\" at the site",
	"topology.kubernetes.io/zone":   "\"zone:\" at the site",
	"kubernetes.io/hostname":        "nothing: the kubelet sets it",
	"kubernetes.io/arch":            "nothing: the kubelet sets it",
	"kubernetes.io/os":              "nothing: the kubelet sets it",
}

func (c *checker) reserved(h *Host, field string) {
	for _, k := range slices.Sorted(maps.Keys(h.Labels)) {
		if want, ok := fromElsewhere[k]; ok {
			c.fault(field+".labels["+k+"]", "this label is not the host's to choose", want)
		}
	}
}

// addresses notes hosts that share an address or a way to be reached.
func (c *checker) addresses() {
	ips, ways := map[string]string{}, map[string]string{}
	for i, h := range c.inv.Hosts {
		field := fmt.Sprintf("hosts[%d]", i)
		if h.NodeIP.IsValid() && !c.unique(ips, h.NodeIP.String(), field+".nodeIP", "an address of its own for each host") {
			continue
		}
		way := fmt.Sprintf("%s:%d by %s", h.SSH.Address, h.SSH.Port, h.SSH.Jump)
		if h.SSH.Address == "" || c.broken(field+".ssh") {
			continue
		}
		if earlier, ok := ways[way]; ok {
			c.fault(field+".ssh", fmt.Sprintf("%s port %d is the host in line %d already", h.SSH.Address, h.SSH.Port, c.line(earlier)), "an address or port of its own for each host")
			continue
		}
		ways[way] = field
	}
}

// jumps follows the jump hosts of each host.
func (c *checker) jumps() {
	for i := range c.inv.Hosts {
		h, field := &c.inv.Hosts[i], fmt.Sprintf("hosts[%d].ssh.jump", i)
		if h.SSH.Jump == "" || c.broken(field) {
			continue
		}
		chain := []string{h.Name}
		for next := h.SSH.Jump; next != "" && !strings.Contains(next, "@"); {
			j, ok := c.hosts[next]
			if !ok {
				if len(chain) == 1 { // otherwise it is the fault of another host
					c.noHost(next, field)
				}
				break
			}
			chain = append(chain, next)
			if next == h.Name {
				c.fault(field, "goes round in a circle: "+strings.Join(chain, ", "), "a chain of hosts that begins with one that is reached directly")
				break
			}
			if len(chain) > len(c.inv.Hosts) { // a circle of others
				break
			}
			next = c.inv.Hosts[j].SSH.Jump
		}
	}
}

// blocks checks that the explicit pod blocks lie where they must and hold a
// range for every node of their site.
func (c *checker) blocks() {
	nodes := map[string]int{}
	for i, h := range c.inv.Hosts {
		if h.IsNode() && !c.broken(fmt.Sprintf("hosts[%d].site", i)) {
			nodes[h.Site]++
		}
	}
	super := c.inv.Cluster.PodSupernet
	for i, s := range c.inv.Sites {
		field := fmt.Sprintf("sites[%d].podBlock", i)
		if !s.PodBlock.IsValid() || c.broken(field) || c.broken("cluster.podSupernet") {
			continue
		}
		bits := NodeBits(s.PodBlock)
		switch {
		case s.PodBlock.Addr().Is4() != super.Addr().Is4() || s.PodBlock.Bits() < super.Bits() || !super.Contains(s.PodBlock.Addr()):
			c.fault(field, fmt.Sprintf("%s is no part of podSupernet %s", s.PodBlock, super), "a block in it, or none: it is chosen then")
		case s.PodBlock.Bits() > bits || ranges(s.PodBlock) < nodes[s.Name]:
			need := bits
			for 1<<(bits-need) < nodes[s.Name] {
				need--
			}
			c.fault(field, fmt.Sprintf("%s holds %d ranges of /%d, and site %s has %d nodes", s.PodBlock, ranges(s.PodBlock), bits, s.Name, nodes[s.Name]), fmt.Sprintf("/%d or shorter", need))
		}
	}
}

// ranges is how many nodes have room in a block; at most 2^20.
func ranges(block netip.Prefix) int {
	free := NodeBits(block) - block.Bits()
	if free < 0 {
		return 0
	}
	return 1 << min(free, 20)
}

// controlPlanes checks how many there are and where (two sites cannot give a
// quorum that survives the loss of either).
func (c *checker) controlPlanes() {
	planes := c.inv.With(ControlPlane)
	unclear := len(c.inv.Hosts) == 0 || c.brokenHosts("roles")
	if len(planes) == 0 {
		if unclear {
			return
		}
		c.fault("hosts", "no host has the role control-plane", "at least one, better three")
		return
	}
	var sites []string
	for _, h := range planes {
		if h.Site != "" && !slices.Contains(sites, h.Site) {
			sites = append(sites, h.Site)
		}
	}
	if len(sites) == 2 && !c.brokenHosts("site") && !unclear {
		c.fault("hosts", fmt.Sprintf("control planes in exactly two sites, %s and %s: etcd stops as soon as the one with the majority is cut off", sites[0], sites[1]),
			"a control plane in a third site, or all of them in one")
	}
	if len(planes)%2 == 0 && !unclear {
		c.warn("hosts", fmt.Sprintf("%d control planes bear the loss of %d, just as %d would", len(planes), (len(planes)-1)/2, len(planes)-1), "an odd number")
	}
}

func (c *checker) loadBalancers() {
	if c.inv.Cluster.Endpoint != EndpointHAProxy || c.broken("cluster.endpoint") || len(c.inv.Hosts) == 0 {
		return
	}
	switch n := len(c.inv.With(LoadBalancer)); {
	case n == 0 && !c.brokenHosts("roles"):
		c.fault("cluster.endpoint", "haproxy, and no host has the role loadbalancer", "a host with roles: [loadbalancer], or endpoint: proxy")
	case n > 1:
		c.fault("cluster.endpoint", fmt.Sprintf("haproxy, and %d hosts have the role loadbalancer: the name of the endpoint can lead to one only", n), "one of them, or endpoint: proxy")
	}
}
