// Package inventory is the YAML file in which a person describes a cluster:
// sites, hosts and what the cluster shall be.
//
// Parse reads a file and checks it as a whole. Every fault is found at once,
// and each names its line, its field, what is wrong and what would be right.
// testdata/reference.yaml is a file with all of it explained.
package inventory

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Inventory is a whole file. One that Parse returned has every default filled
// in, is valid, and is not changed by anybody.
type Inventory struct {
	Cluster Cluster
	Sites   []Site // in the order of the file
	Hosts   []Host // in the order of the file
	// Warnings are what is allowed and still worth a second thought, by line.
	Warnings Faults `json:"-"`
}

// Cluster is what the cluster shall be.
type Cluster struct {
	// Name is a DNS label. The API's endpoint is api.<name>.
	Name string
	// Version is a minor version, "1.37", or one with its patch, "1.37.2".
	Version string
	// Endpoint says who serves the endpoint.
	Endpoint Endpoint
	// ExternalNames are further names and addresses in the certificate of the
	// API servers.
	ExternalNames []string
	// PodSupernet is divided into one block per site and a range per node, a
	// /24 in IPv4 and a /64 in IPv6.
	PodSupernet   netip.Prefix
	ServiceSubnet netip.Prefix
	DNSDomain     string
	// Source says where packages come from; Bundle is the file for SourceBundle.
	Source Source
	Bundle string
	// ImageRepository is empty for kubeadm's default.
	ImageRepository string
	Containerd      Containerd
	CNI             CNI
	Etcd            Etcd
	// AllowCgroupV1 makes hosts with cgroup v1 acceptable.
	AllowCgroupV1 bool
	KubeProxy     KubeProxy
	// WorkerLatency makes the cluster more patient with workers: empty,
	// "medium" or "low".
	WorkerLatency string
}

// Endpoint says who serves the endpoint of the API.
type Endpoint string

// The ways to serve the endpoint.
const (
	EndpointProxy   Endpoint = "proxy"   // a proxy on every host
	EndpointHAProxy Endpoint = "haproxy" // HAProxy on the load-balancer host
)

// Source says where packages come from.
type Source string

// The sources of packages.
const (
	SourcePreinstalled Source = "preinstalled"
	SourceBundle       Source = "bundle"
	SourceAPT          Source = "apt"
)

// The modes of containerd.
const (
	ContainerdManaged  = "managed"  // its configuration is rendered
	ContainerdExisting = "existing" // it is checked and left alone
)

// Containerd says who configures containerd.
type Containerd struct {
	// Mode is ContainerdManaged or ContainerdExisting.
	Mode string
	// ExtraTOML is appended to the configuration that is rendered.
	ExtraTOML string
}

// The ways to make the pod network.
const (
	CNIRoutes   = "routes"   // ours: plain routes, no second encapsulation
	CNINone     = "none"     // nobody's
	CNIManifest = "manifest" // a file that is applied
)

// CNI says what makes the pod network.
type CNI struct {
	// Mode is CNIRoutes, CNINone or CNIManifest.
	Mode string
	// Manifest is the file for CNIManifest.
	Manifest string
}

// Etcd are settings of etcd. Zero durations mean: from measured round trips.
type Etcd struct {
	Heartbeat, Election time.Duration // whole milliseconds
	// AcceptSlow accepts round trips that etcd should not be stretched over.
	AcceptSlow bool
}

// The modes of kube-proxy.
const (
	KubeProxyNFTables = "nftables"
	KubeProxyIPTables = "iptables"
)

// KubeProxy are settings of kube-proxy.
type KubeProxy struct {
	Mode string // KubeProxyNFTables or KubeProxyIPTables
	// ConntrackMaxPerCore and ConntrackMin are left to kube-proxy if nil.
	ConntrackMaxPerCore, ConntrackMin *int
}

// What joins a site to the others.
const (
	MeshMeshd   = "meshd"   // gateways of ours
	MeshOpenVPN = "openvpn" // a router that is attached to a gateway of another site
	MeshNone    = "none"    // something else
)

// Site is a place with LANs of its own.
type Site struct {
	Name string
	// Region and Zone become labels of nodes. Without a value in the file they
	// are the name of the site.
	Region, Zone string
	// Prefixes are the LANs.
	Prefixes []netip.Prefix
	// PodBlock is chosen if it is the zero Prefix.
	PodBlock netip.Prefix
	// Gateways are hosts with the role gateway.
	Gateways []string
	// Mesh is MeshMeshd, MeshOpenVPN or MeshNone.
	Mesh string
	Line int `json:"-"` // in the file
}

// Role is what a host is for.
type Role string

// The roles of hosts.
const (
	ControlPlane Role = "control-plane"
	Worker       Role = "worker"
	LoadBalancer Role = "loadbalancer"
	Gateway      Role = "gateway"
)

// Host is a machine.
type Host struct {
	Name   string // a DNS label; the name of the Node as well
	Site   string
	NodeIP netip.Addr
	Roles  []Role
	SSH    SSH
	Labels map[string]string
	Taints []Taint
	Line   int `json:"-"` // in the file
}

// SSH says how a host is reached.
type SSH struct {
	Address string // a name or an address; default: NodeIP
	Port    uint16 // default: 22
	User    string // default: root
	// Key is the file of a private key; empty: the agent, or the usual files.
	// A path that begins with ~/ begins in the home directory.
	Key string
	// Jump is the name of a host, or user@address:port; empty: none.
	Jump string
	// Sudo runs commands through sudo -n.
	Sudo bool
	// KnownHosts is a file; empty: ~/.ssh/known_hosts.
	KnownHosts string
}

// Taint keeps pods away from a node.
type Taint struct{ Key, Value, Effect string }

// Host returns the host of that name, or nil.
func (i *Inventory) Host(name string) *Host {
	return find(i.Hosts, func(h *Host) bool { return h.Name == name })
}

// Site returns the site of that name, or nil.
func (i *Inventory) Site(name string) *Site {
	return find(i.Sites, func(s *Site) bool { return s.Name == name })
}

func find[T any](list []T, is func(*T) bool) *T {
	for n := range list {
		if is(&list[n]) {
			return &list[n]
		}
	}
	return nil
}

// With returns the hosts that have a role, in the order of the file.
func (i *Inventory) With(role Role) []*Host {
	return i.filter(func(h *Host) bool { return h.Is(role) })
}

// Nodes returns the hosts that become nodes of the cluster, in the order of the
// file: control planes and workers.
func (i *Inventory) Nodes() []*Host { return i.filter((*Host).IsNode) }

func (i *Inventory) filter(want func(*Host) bool) []*Host {
	var out []*Host
	for n := range i.Hosts {
		if want(&i.Hosts[n]) {
			out = append(out, &i.Hosts[n])
		}
	}
	return out
}

// MinorVersion is the second number of Cluster.Version: 37 of "1.37.2". It is 0
// if there is none.
func (i *Inventory) MinorVersion() int {
	minor, _, _ := strings.Cut(strings.TrimPrefix(i.Cluster.Version, "1."), ".")
	n, err := strconv.Atoi(minor)
	if err != nil {
		return 0
	}
	return n
}

// EndpointName is the name of the API's endpoint: api.<name>.
func (c *Cluster) EndpointName() string { return "api." + c.Name }

// Is says whether the host has a role.
func (h *Host) Is(role Role) bool { return slices.Contains(h.Roles, role) }

// IsNode says whether the host becomes a node of the cluster.
func (h *Host) IsNode() bool { return h.Is(ControlPlane) || h.Is(Worker) }

// NodeBits is the length of the pod range of one node: 24 in IPv4, and 64 in
// IPv6, as kube-controller-manager would choose.
func NodeBits(of netip.Prefix) int {
	if of.Addr().Is4() {
		return 24
	}
	return 64
}
