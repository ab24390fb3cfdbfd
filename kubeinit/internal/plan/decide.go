package plan

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/etcdtune"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// Bounds of the MTU in bytes: what IPv6 needs (RFC 8200, section 5), and the
// length of the longest IPv4 packet.
const (
	MinMTU = 1280
	maxMTU = 65535
	// plainMTU is that of Ethernet, for a cluster of one node.
	plainMTU = 1500
)

// Bounds within which measured timers may leave the decided ones without a
// word: a quarter longer, or down to half. The round trip of one way varies by
// that much within a day.
const (
	longer  = 1.25
	shorter = 0.5
)

// Observed is what was found out about hosts and ways.
type Observed struct {
	Hosts map[string]HostFacts
	Pairs []Pair
	// Offered is the version of Kubernetes that a bundle or the package archive
	// has, such as "1.37.2"; empty if that is not known.
	Offered string
}

// HostFacts are what a host says about itself.
type HostFacts struct {
	// Kubernetes is the version of the installed kubeadm, such as "1.37.2"; empty
	// if it is not installed.
	Kubernetes string
	// Fsync is the 99th percentile of an fsync where etcd will write; 0 if it was
	// not measured.
	Fsync time.Duration
	// LinkMTU is the MTU of the interface that has the node's address; 0 if that
	// is not known.
	LinkMTU int
}

// Pair is what was measured from one host to another. Where both directions
// were measured, the worse one counts.
type Pair struct {
	From, To string
	P50, P99 time.Duration
	Probes   int // answered; 0: no round trip was measured
	MTU      int // 0: not measured
}

// Verdict is one judgement, as etcdtune has it.
type Verdict = etcdtune.Verdict

// Options are wishes beside the inventory.
type Options struct {
	// Redecide takes over what is measured now: timers, MTU, round trip, leader
	// and version. Addresses, names and the first host stay in any case.
	Redecide bool
}

// Decide decides. inv is valid. earlier are the decisions of the cluster that
// exists; nil if there is none. Nothing that is passed is changed. The verdicts
// are in the order of the heaviest first; if one is etcdtune.Refuse, nothing
// must be built on the decisions.
func Decide(inv *inventory.Inventory, o Observed, earlier *Decisions, opt Options) (Decisions, []Verdict) {
	d := &decider{inv: inv, seen: o, earlier: earlier, redecide: opt.Redecide}
	d.out = Decisions{Format: Format, Cluster: inv.Cluster.Name, InventoryHash: Hash(inv)}
	d.addresses()
	d.blocks()
	d.names()
	d.labels()
	d.versions()
	d.etcd()
	d.ways()
	slices.SortStableFunc(d.verdicts, func(a, b Verdict) int { return int(b.Level) - int(a.Level) })
	return d.out, d.verdicts
}

// decider makes one set of decisions.
type decider struct {
	inv      *inventory.Inventory
	seen     Observed
	earlier  *Decisions
	redecide bool
	out      Decisions
	verdicts []Verdict
}

func (d *decider) refuse(reason, cure string) {
	d.verdicts = append(d.verdicts, Verdict{Level: etcdtune.Refuse, Reason: reason, Cure: cure})
}

func (d *decider) warn(reason, cure string) {
	d.verdicts = append(d.verdicts, Verdict{Level: etcdtune.Warn, Reason: reason, Cure: cure})
}

// kept refuses another value than the one that the cluster was built with.
func kept[T comparable](d *decider, what string, old, wanted T) T {
	if d.earlier == nil || old == wanted {
		return wanted
	}
	d.refuse(fmt.Sprintf("%s of the cluster is %v, which cannot be changed, and the inventory wants %v", what, old, wanted), fmt.Sprintf("%v in the inventory, or a new cluster", old))
	return old
}

// addresses takes what the inventory says, once and for all.
func (d *decider) addresses() {
	c := &d.inv.Cluster
	var old Decisions
	if d.earlier != nil {
		old = *d.earlier
	}
	port := uint16(ProxyPort)
	if c.Endpoint == inventory.EndpointHAProxy {
		port = HAProxyPort
	}
	kept(d, "the name", old.Cluster, c.Name)
	d.out.Endpoint = kept(d, "the endpoint", old.Endpoint, Endpoint{c.EndpointName(), port})
	d.out.PodSupernet = kept(d, "podSupernet", old.PodSupernet, c.PodSupernet)
	d.out.ServiceSubnet = kept(d, "serviceSubnet", old.ServiceSubnet, c.ServiceSubnet)
	d.out.DNSDomain = kept(d, "dnsDomain", old.DNSDomain, c.DNSDomain)
	d.out.DNSService = tenth(d.out.ServiceSubnet)
}

// names collects what certificates of API servers are to be valid for. Names
// that they have already stay.
func (d *decider) names() {
	sans := []string{d.out.Endpoint.Name, "localhost", "127.0.0.1", "::1"}
	for _, h := range d.inv.Hosts {
		if h.Is(inventory.ControlPlane) || h.Is(inventory.LoadBalancer) {
			sans = append(sans, h.Name, h.NodeIP.String())
		}
	}
	sans = append(sans, d.inv.Cluster.ExternalNames...)
	if d.earlier == nil {
		d.out.CertSANs = unique(sans)
		return
	}
	d.out.CertSANs = unique(slices.Concat(d.earlier.CertSANs, sans))
	for _, name := range d.inv.Cluster.ExternalNames {
		if !slices.Contains(d.earlier.CertSANs, name) {
			d.warn(fmt.Sprintf("the certificates of the API servers do not have %s yet", name), "kubeinit certs renew")
		}
	}
}

// unique drops repetitions and keeps the order.
func unique(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// Labels that a node gets from its site.
const (
	regionLabel = "topology.kubernetes.io/region"
	zoneLabel   = "topology.kubernetes.io/zone"
)

func (d *decider) labels() {
	d.out.Labels = map[string]map[string]string{}
	for _, h := range d.inv.Nodes() {
		labels := map[string]string{}
		maps.Copy(labels, h.Labels)
		if s := d.inv.Site(h.Site); s != nil {
			labels[regionLabel], labels[zoneLabel] = s.Region, s.Zone
		}
		d.out.Labels[h.Name] = labels
	}
}

// etcd decides the timers, the first host and the leader.
func (d *decider) etcd() {
	in := etcdtune.Input{Heartbeat: d.inv.Cluster.Etcd.Heartbeat, Election: d.inv.Cluster.Etcd.Election, AcceptSlow: d.inv.Cluster.Etcd.AcceptSlow}
	for _, h := range d.inv.With(inventory.ControlPlane) {
		in.Members = append(in.Members, etcdtune.Member{Host: h.Name, Site: h.Site, Fsync: d.seen.Hosts[h.Name].Fsync})
		d.out.ControlPlanes = append(d.out.ControlPlanes, h.Name)
	}
	for _, p := range d.seen.Pairs {
		in.Pairs = append(in.Pairs, etcdtune.Pair{A: p.From, B: p.To, P50: p.P50, P99: p.P99, Probes: p.Probes})
	}
	r := etcdtune.Judge(in)
	d.out.EtcdHeartbeat, d.out.EtcdElection, d.out.First, d.out.Leader = r.Heartbeat, r.Election, r.Leader, r.Leader
	d.judgeEtcd(r)
	if d.earlier == nil {
		return
	}
	if slices.Contains(d.out.ControlPlanes, d.earlier.First) {
		d.out.First = d.earlier.First
	}
	if d.redecide {
		return
	}
	d.keepTimers(r)
	if slices.Contains(d.out.ControlPlanes, d.earlier.Leader) {
		d.out.Leader = d.earlier.Leader
	}
}

// judgeEtcd passes on what etcdtune says. A cluster that exists is not refused
// for what is measured now: it runs in any case.
func (d *decider) judgeEtcd(r etcdtune.Result) {
	exists := d.earlier != nil && !d.redecide && slices.Equal(d.earlier.ControlPlanes, d.out.ControlPlanes)
	if exists && len(d.seen.Pairs) == 0 {
		return // nothing was measured, and nothing has to be
	}
	for _, v := range r.Verdicts {
		if exists {
			v.Level = min(v.Level, etcdtune.Warn)
		}
		d.verdicts = append(d.verdicts, v)
	}
}

// keepTimers takes the earlier timers, and says if they do not fit any more.
func (d *decider) keepTimers(r etcdtune.Result) {
	old := d.earlier
	d.out.EtcdHeartbeat, d.out.EtcdElection = old.EtcdHeartbeat, old.EtcdElection
	wanted := d.inv.Cluster.Etcd
	wish := wanted.Heartbeat > 0 && wanted.Heartbeat != old.EtcdHeartbeat || wanted.Election > 0 && wanted.Election != old.EtcdElection
	measured := r.Worst.A != ""
	if wish || measured && (left(old.EtcdHeartbeat, r.Heartbeat) || left(old.EtcdElection, r.Election)) {
		d.warn(fmt.Sprintf("etcd has a heartbeat of %s and an election timeout of %s, and now %s and %s would be chosen", old.EtcdHeartbeat, old.EtcdElection, r.Heartbeat, r.Election),
			"kubeinit apply --redecide")
	}
}

// left says whether a value has left the tolerance around the decided one.
func left(decided, now time.Duration) bool {
	return float64(now) > longer*float64(decided) || float64(now) < shorter*float64(decided)
}

// ways decides what follows from the ways between nodes.
func (d *decider) ways() {
	node := map[string]bool{}
	for _, h := range d.inv.Nodes() {
		node[h.Name] = true
	}
	narrow := Pair{}
	for _, p := range d.seen.Pairs {
		if !node[p.From] || !node[p.To] || p.From == p.To {
			continue
		}
		if p.MTU > 0 && (narrow.MTU == 0 || p.MTU < narrow.MTU) {
			narrow = p
		}
		if p.Probes > 0 {
			d.out.RTT = max(d.out.RTT, p.P50)
		}
	}
	d.mtu(narrow, len(node))
	if d.earlier != nil && !d.redecide {
		d.out.RTT = d.earlier.RTT
	}
}

func (d *decider) mtu(narrow Pair, nodes int) {
	keep := d.earlier != nil && !d.redecide
	switch {
	case narrow.MTU > 0:
		d.out.MTU = min(narrow.MTU, maxMTU)
	case keep:
		d.out.MTU = d.earlier.MTU
	case nodes > 1:
		d.out.MTU = plainMTU
		d.refuse("no path MTU was measured between nodes", "see what the reachability matrix says about them")
	default:
		d.out.MTU = plainMTU
		if link := d.seen.Hosts[d.inv.Nodes()[0].Name].LinkMTU; link >= MinMTU && link <= maxMTU {
			d.out.MTU = link
		}
	}
	if narrow.MTU > 0 && narrow.MTU < MinMTU {
		d.out.MTU = MinMTU
		d.refuse(fmt.Sprintf("only packets of %d bytes get from %s to %s, and IPv6 needs %d", narrow.MTU, narrow.From, narrow.To, MinMTU), "a larger MTU between these sites")
	}
	if !keep {
		return
	}
	if narrow.MTU > 0 && narrow.MTU < d.earlier.MTU {
		d.warn(fmt.Sprintf("pods send packets of %d bytes, and only %d get from %s to %s: longer ones can vanish", d.earlier.MTU, narrow.MTU, narrow.From, narrow.To), "kubeinit apply --redecide")
	}
	d.out.MTU = d.earlier.MTU
}

// versions decides the version of Kubernetes.
func (d *decider) versions() {
	wanted := d.inv.Cluster.Version
	d.out.Versions.Kubernetes = wanted
	if d.inv.Cluster.Source == inventory.SourcePreinstalled {
		d.installed(wanted)
	} else if d.seen.Offered != "" {
		d.offered(wanted)
	}
	if d.earlier == nil {
		return
	}
	old, now := d.earlier.Versions.Kubernetes, d.out.Versions.Kubernetes
	switch {
	case d.redecide:
		return
	case !matches(old, wanted) && !matches(wanted, old):
		d.refuse(fmt.Sprintf("the cluster has Kubernetes %s, and the inventory wants %s: kubeinit does not upgrade in place", old, wanted),
			"kubeadm upgrade plan and kubeadm upgrade apply on the first control plane, then kubeadm upgrade node on each other host, and kubeinit apply --redecide")
	case fixed(old) && fixed(now) && now != old:
		d.warn(fmt.Sprintf("the cluster was built with Kubernetes %s, and now %s is there", old, now), "kubeinit apply --redecide, if it was upgraded")
	}
	if fixed(old) {
		d.out.Versions.Kubernetes = old
	}
}

func (d *decider) offered(wanted string) {
	if !matches(d.seen.Offered, wanted) {
		d.refuse(fmt.Sprintf("source %s has Kubernetes %s, and the inventory wants %s", d.inv.Cluster.Source, d.seen.Offered, wanted), "a bundle or package archive with that version, or another version")
		return
	}
	d.out.Versions.Kubernetes = d.seen.Offered
}

// installed takes the version that the control planes have: it must be one and
// the same, and no node may have a newer one.
func (d *decider) installed(wanted string) {
	version, from := "", ""
	for _, h := range d.inv.With(inventory.ControlPlane) {
		v := d.seen.Hosts[h.Name].Kubernetes
		switch {
		case v == "":
			d.missing(h.Name)
		case !matches(v, wanted):
			d.refuse(fmt.Sprintf("%s has Kubernetes %s, and the inventory wants %s", h.Name, v, wanted), "install that version there, or another version in the inventory")
		case version == "":
			version, from = v, h.Name
		case v != version:
			d.refuse(fmt.Sprintf("%s has Kubernetes %s, and %s has %s: control planes need one and the same", h.Name, v, from, version), "install the same version on both")
		}
	}
	if version == "" {
		return
	}
	d.out.Versions.Kubernetes = version
	for _, h := range d.inv.Nodes() {
		v := d.seen.Hosts[h.Name].Kubernetes
		switch {
		case h.Is(inventory.ControlPlane):
		case v == "":
			d.missing(h.Name)
		case compare(v, version) > 0:
			d.refuse(fmt.Sprintf("%s has Kubernetes %s, and no node may be newer than the control planes with %s", h.Name, v, version), "install "+version+" there")
		case v != version:
			d.warn(fmt.Sprintf("%s has Kubernetes %s, and the control planes have %s", h.Name, v, version), "install "+version+" there")
		}
	}
}

// missing refuses a host without kubeadm, unless nothing is known about any.
func (d *decider) missing(host string) {
	if _, seen := d.seen.Hosts[host]; seen {
		d.refuse(host+" has no kubeadm, and source is preinstalled", "install it there, or source: bundle or apt")
	}
}

// matches says whether a version is the wanted one, which may lack the patch.
func matches(version, wanted string) bool {
	return version == wanted || !fixed(wanted) && minor(version) == wanted
}

// fixed says whether a version has a patch.
func fixed(version string) bool { return strings.Count(version, ".") >= 2 }

// minor is "1.37" of "1.37.2".
func minor(version string) string {
	parts := strings.SplitN(version, ".", 3)
	return strings.Join(parts[:min(2, len(parts))], ".")
}

// compare orders versions by their numbers; what follows a number, as in
// "2-rc.1", does not count.
func compare(a, b string) int {
	return slices.Compare(numbers(a), numbers(b))
}

func numbers(version string) []int {
	version, _, _ = strings.Cut(version, "-")
	var out []int
	for p := range strings.SplitSeq(version, ".") {
		n, err := strconv.Atoi(p)
		if err != nil {
			n = 0
		}
		out = append(out, n)
	}
	return out
}
