// Package steps turns decisions into the steps that build a cluster: what is to
// be on which host, in which order.
package steps

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/action"
	"github.com/planetmesh/planetmesh/kubeinit/internal/containerd"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/kubeadm"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
	"github.com/planetmesh/planetmesh/kubeinit/internal/plan"
	"github.com/planetmesh/planetmesh/kubeinit/internal/podnet"
)

// Input is what the steps follow from. The same Input gives the same steps.
type Input struct {
	Inventory *inventory.Inventory
	Decisions plan.Decisions
	// Containerd is the version on each node.
	Containerd map[string]containerd.Version
	// Program is kubeinit itself, for the hosts.
	Program Program
	// Manifest is the content of the file of Cluster.CNI.
	Manifest []byte
	// Hosts are the connected machines, for steps of one host that ask another
	// one.
	Hosts map[string]host.Host
	// Random is where secrets come from: crypto/rand.Reader.
	Random io.Reader
}

// Program is a file with its digest.
type Program struct {
	SHA256 string // in hexadecimal
	Size   int64
	Open   func() (io.ReadCloser, error)
}

// Path is where the program lies on a host.
func (p Program) Path() string { return fmt.Sprintf("%s/kubeinit-%.16s", ProgramDir, p.SHA256) }

// Places on hosts.
const (
	// Dir is what kubeinit keeps on a host, ProgramDir where it keeps itself.
	Dir        = "/var/lib/kubeinit"
	ProgramDir = Dir + "/bin"
	// DecisionsFile is on every control plane.
	DecisionsFile = Dir + "/decisions.json"
	// adminConf is the administrator's access on a control plane.
	adminConf = "/etc/kubernetes/admin.conf"
)

// builder makes the steps of an Input.
type builder struct {
	in      Input
	cluster kubeadm.Cluster
	network podnet.Network
	access  *access
	steps   []phase.Step
	errs    []error
}

// All returns the steps that build the cluster, and that change nothing where it
// is built already.
func All(in Input) ([]phase.Step, error) {
	b, err := newBuilder(in)
	if err != nil {
		return nil, err
	}
	b.mesh()
	for _, h := range in.Inventory.Hosts {
		b.prepare(&h)
		b.proxy(&h)
	}
	b.initialise()
	b.join()
	b.podNetwork()
	b.policy()
	if err := errors.Join(b.errs...); err != nil {
		return nil, err
	}
	return b.steps, nil
}

func newBuilder(in Input) (*builder, error) {
	version, err := kubeadm.ParseVersion("v" + in.Decisions.Versions.Kubernetes)
	if err != nil {
		return nil, fmt.Errorf("version of Kubernetes: %w", err)
	}
	c, d := in.Inventory.Cluster, in.Decisions
	b := &builder{in: in, cluster: kubeadm.Cluster{
		Name:            c.Name,
		Version:         version,
		Endpoint:        d.Endpoint.String(),
		CertSANs:        d.CertSANs,
		PodSubnet:       d.PodSupernet,
		ServiceSubnet:   d.ServiceSubnet,
		DNSDomain:       d.DNSDomain,
		ImageRepository: c.ImageRepository,
		Heartbeat:       d.EtcdHeartbeat,
		Election:        d.EtcdElection,
		RTT:             d.RTT,
		AllowCgroupV1:   c.AllowCgroupV1,
		KubeProxy:       c.KubeProxy,
		WorkerLatency:   kubeadm.Latency(c.WorkerLatency),
	}}
	b.network = Network(in.Inventory, d)
	b.access = newAccess(in, b.cluster)
	return b, b.network.Check()
}

// Network is the pod network that was decided on.
func Network(inv *inventory.Inventory, d plan.Decisions) podnet.Network {
	n := podnet.Network{Cluster: d.Cluster, Supernet: d.PodSupernet, Services: d.ServiceSubnet, MTU: d.MTU}
	for _, s := range inv.Sites {
		site := podnet.Site{Name: s.Name, LANs: s.Prefixes, Block: d.PodBlocks[s.Name]}
		if len(s.Gateways) > 0 {
			site.Gateway = inv.Host(s.Gateways[0]).NodeIP
		}
		n.Sites = append(n.Sites, site)
	}
	for _, h := range inv.Nodes() {
		n.Nodes = append(n.Nodes, podnet.Node{Name: h.Name, Site: h.Site, Address: h.NodeIP, Range: d.NodeRanges[h.Name]})
	}
	return n
}

// add appends a step and returns its ID.
func (b *builder) add(p phase.Name, host, name string, a phase.Action, needs ...string) string {
	s := phase.Step{ID: string(p) + "/" + host + "/" + name, Phase: p, Host: host, Action: a, Needs: needs}
	b.steps = append(b.steps, s)
	return s.ID
}

// last is the step that was added last.
func (b *builder) last() *phase.Step { return &b.steps[len(b.steps)-1] }

// fault notes what keeps the steps from being made.
func (b *builder) fault(err error) {
	if err != nil {
		b.errs = append(b.errs, err)
	}
}

// node is a host as kubeadm knows it.
func (b *builder) node(h *inventory.Host) kubeadm.Node {
	labels, _ := kubeadm.KubeletLabels(b.in.Decisions.Labels[h.Name])
	return kubeadm.Node{
		Name: h.Name, Address: h.NodeIP, Labels: labels, Taints: h.Taints,
		ControlPlane: h.Is(inventory.ControlPlane), Worker: h.Is(inventory.Worker),
	}
}

// prepare makes a host fit for the kubelet.
func (b *builder) prepare(h *inventory.Host) {
	if !h.IsNode() {
		return
	}
	add := func(name string, a phase.Action) { b.add(phase.Prepare, h.Name, name, a) }
	add("swap", action.NoSwap())
	add("overlay", action.Module{Name: "overlay", Sign: "/sys/module/overlay", Stays: true})
	add("br_netfilter", action.Module{Name: "br_netfilter", Sign: "/proc/sys/net/bridge", Stays: true})
	add("sysctl", action.Sysctl{Name: "kubernetes", Values: forwarding(h.NodeIP)})
	minor := fmt.Sprintf("v1.%d.", b.cluster.Version.Minor)
	add("programs", action.Preinstalled(
		action.Program{Args: []string{"kubeadm", "version", "-o", "short"}, Want: minor},
		action.Program{Args: []string{"kubelet", "--version"}, Want: minor},
		action.Program{Args: []string{"kubectl", "version", "--client"}, Want: minor},
	))
	b.containerd(h)
	add("kubelet", action.Unit{Name: "kubelet.service", Enabled: action.Yes})
}

// forwarding are the kernel parameters that pods need.
func forwarding(a netip.Addr) map[string]string {
	if a.Is6() {
		return map[string]string{"net.ipv6.conf.all.forwarding": "1", "net.bridge.bridge-nf-call-ip6tables": "1"}
	}
	return map[string]string{"net.ipv4.ip_forward": "1", "net.bridge.bridge-nf-call-iptables": "1"}
}

func (b *builder) containerd(h *inventory.Host) {
	unit := action.Unit{Name: "containerd.service", Enabled: action.Yes, Active: action.Yes}
	version := b.in.Containerd[h.Name]
	if err := containerd.Supported(b.cluster.Version.Minor, version); err != nil {
		b.fault(fmt.Errorf("%s: %w", h.Name, err))
		return
	}
	if c := b.in.Inventory.Cluster.Containerd; c.Mode != inventory.ContainerdExisting {
		text, err := containerd.Render(containerd.Config{
			Version:   version,
			Sandbox:   kubeadm.PauseImage(b.cluster.Version, b.cluster.ImageRepository),
			ExtraTOML: c.ExtraTOML,
		})
		b.fault(err)
		file := action.File{Path: containerd.File, Content: text}
		b.add(phase.Prepare, h.Name, "containerd.toml", file)
		unit.Files = []action.File{file}
	}
	// containerd makes these when it serves kubelets.
	for _, d := range []string{"/opt/containerd", "/opt/containerd/bin", "/opt/containerd/lib"} {
		b.add(phase.Prepare, h.Name, strings.ReplaceAll(d[1:], "/", "-"), action.Directory{Path: d, Mode: 0o711})
	}
	b.add(phase.Prepare, h.Name, "containerd", unit)
}

// controlPlanes are the control planes, the first one to be initialised first.
func (b *builder) controlPlanes() []*inventory.Host {
	all := b.in.Inventory.With(inventory.ControlPlane)
	at := slices.IndexFunc(all, func(h *inventory.Host) bool { return h.Name == b.in.Decisions.First })
	if at > 0 {
		first := all[at]
		all = append([]*inventory.Host{first}, slices.Delete(slices.Clone(all), at, at+1)...)
	}
	return all
}
