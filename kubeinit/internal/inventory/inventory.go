// Package inventory is the YAML file in which a person describes a cluster:
// sites, hosts and what the cluster shall be.
package inventory

import "net/netip"

// Inventory is a whole file.
type Inventory struct {
	Cluster Cluster
	Sites   []Site
	Hosts   []Host
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
	// PodSupernet is divided into one block per site and a /24 per node.
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

// Containerd says who configures containerd.
type Containerd struct {
	// Mode is "managed" or "existing".
	Mode string
	// ExtraTOML is appended to the configuration that is rendered.
	ExtraTOML string
}

// CNI says what makes the pod network.
type CNI struct {
	// Mode is "routes" (ours), "none" or "manifest".
	Mode string
	// Manifest is the file for mode manifest.
	Manifest string
}

// Etcd are settings of etcd. Zero durations mean: from measured round trips.
type Etcd struct {
	HeartbeatMS int
	ElectionMS  int
	// AcceptSlow accepts round trips that etcd should not be stretched over.
	AcceptSlow bool
}

// KubeProxy are settings of kube-proxy.
type KubeProxy struct {
	Mode string // "nftables" or "iptables"
	// ConntrackMaxPerCore and ConntrackMin are left to kube-proxy if nil.
	ConntrackMaxPerCore, ConntrackMin *int
}

// Site is a place with LANs of its own.
type Site struct {
	Name string
	// Region and Zone become labels of nodes.
	Region, Zone string
	// Prefixes are the LANs.
	Prefixes []netip.Prefix
	// PodBlock is chosen if it is the zero Prefix.
	PodBlock netip.Prefix
	// Gateways are hosts with the role gateway.
	Gateways []string
	// Mesh is what joins the site to the others: "meshd", "openvpn" or "none".
	Mesh string
	Line int // in the file
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
	Name   string
	Site   string
	NodeIP netip.Addr
	Roles  []Role
	SSH    SSH
	Labels map[string]string
	Taints []Taint
	Line   int // in the file
}

// SSH says how a host is reached.
type SSH struct {
	Address string // default: NodeIP
	Port    uint16
	User    string
	// Key is the file of a private key; empty: the agent, or the usual files.
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
