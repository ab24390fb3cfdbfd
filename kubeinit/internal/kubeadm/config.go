// Package kubeadm writes the configuration that real kubeadm reads, with small
// types of its own for the API version kubeadm.k8s.io/v1beta4, which kubeadm
// 1.34 to 1.37 share. It runs nothing and opens nothing.
//
// Secrets, that is bootstrap tokens and the certificate key, travel in these
// files and never in arguments: "kubeadm init", "kubeadm join", "kubeadm token
// create" and "kubeadm init phase upload-certs --upload-certs" all take them
// with --config.
package kubeadm

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// Ports and paths on every host.
const (
	// APIPort is where the API servers listen, and HAProxy in front of them.
	APIPort = 6443
	// Socket is where containerd listens for the kubelet.
	Socket = "unix:///run/containerd/containerd.sock"
	// ControlPlaneTaint keeps ordinary pods away from control planes.
	ControlPlaneTaint = "node-role.kubernetes.io/control-plane"
)

const header = "# written by kubeinit; changes are overwritten\n"

// Cluster is what all hosts of a cluster have in common. It must stay the same
// from the first host's init to the last host's join.
type Cluster struct {
	Name    string
	Version Version
	// Endpoint is name:port, the same on every host. It is never an address,
	// because kubeadm does not support that it changes later.
	Endpoint string
	// CertSANs are names and addresses in the certificate of each API server,
	// beside those that kubeadm adds.
	CertSANs []string
	// PodSubnet covers the pods of all sites. kubeadm's own division of it among
	// the nodes is off.
	PodSubnet     netip.Prefix
	ServiceSubnet netip.Prefix
	DNSDomain     string // empty: cluster.local
	// ImageRepository is empty for kubeadm's default.
	ImageRepository string
	// Heartbeat and Election are the timers of etcd, in whole milliseconds; 0
	// leaves etcd's own.
	Heartbeat, Election time.Duration
	// EtcdSANs are further names and addresses of the etcd members.
	EtcdSANs []string
	// RTT is the largest median round trip between any two hosts; time-outs grow
	// with it.
	RTT time.Duration
	// AllowCgroupV1 accepts hosts with cgroup v1.
	AllowCgroupV1 bool
	KubeProxy     inventory.KubeProxy
	// WorkerLatency is how patient the cluster is with its nodes.
	WorkerLatency Latency
	// ResolvConf is the resolver file that pods inherit, on every host. Empty
	// lets each kubelet choose: that of systemd-resolved where it runs.
	ResolvConf string
}

// Node is a host that becomes a node.
type Node struct {
	Name string
	// Address is the one that the others reach it at: InternalIP, and on control
	// planes also what its API server and etcd advertise.
	Address netip.Addr
	// Labels must be ones that a kubelet may set itself, see KubeletLabels.
	Labels map[string]string
	Taints []inventory.Taint
	// ControlPlane says what it runs; Worker that ordinary pods may come, which
	// on a control plane leaves out ControlPlaneTaint.
	ControlPlane, Worker bool
}

// Init returns the configuration of "kubeadm init" on the first control plane.
// It holds the two secrets and belongs into a file with mode 0600. The same
// file is what "kubeadm token create" and the phase upload-certs want later.
func Init(c Cluster, n Node, token Token, key CertificateKey) ([]byte, error) {
	err := errors.Join(c.check(), n.check(c), token.check(), key.check())
	if !n.ControlPlane {
		err = errors.Join(err, fmt.Errorf("node %s: init wants a control plane", n.Name))
	}
	if err != nil {
		return nil, err
	}
	return documents(
		initConfiguration{
			head:             head{v1beta4, "InitConfiguration"},
			BootstrapTokens:  []bootstrapToken{{Token: token.Secret(), Description: "of kubeinit", TTL: tokenTTL.String()}},
			CertificateKey:   key.Secret(),
			LocalAPIEndpoint: apiEndpoint{n.Address.String(), APIPort},
			NodeRegistration: c.registration(n),
			Timeouts:         scaledTimeouts(c.RTT),
		},
		c.configuration(),
		c.kubelet(),
		c.kubeProxy(),
	)
}

// Discovery is what a host needs to join.
type Discovery struct {
	Token Token
	// CAHash is what CAHash returns for the cluster's ca.crt.
	CAHash string
	// Key is needed by control planes only.
	Key CertificateKey
}

// Join returns the configuration of "kubeadm join" for a control plane or a
// worker. It holds secrets and belongs into a file with mode 0600.
func Join(c Cluster, n Node, d Discovery) ([]byte, error) {
	err := errors.Join(c.check(), n.check(c), d.Token.check(), checkCAHash(d.CAHash))
	if n.ControlPlane {
		err = errors.Join(err, d.Key.check())
	}
	if err != nil {
		return nil, err
	}
	j := joinConfiguration{
		head: head{v1beta4, "JoinConfiguration"},
		Discovery: discovery{BootstrapToken: bootstrapTokenDiscovery{
			APIServerEndpoint: c.Endpoint,
			Token:             d.Token.Secret(),
			CACertHashes:      []string{d.CAHash},
		}},
		NodeRegistration: c.registration(n),
		Timeouts:         scaledTimeouts(c.RTT),
	}
	if n.ControlPlane {
		j.ControlPlane = &joinControlPlane{
			LocalAPIEndpoint: apiEndpoint{n.Address.String(), APIPort},
			CertificateKey:   d.Key.Secret(),
		}
	}
	return documents(j)
}

// Reset returns the configuration of "kubeadm reset", which is the same for all
// hosts and holds no secrets. rtt is as in Cluster.
func Reset(rtt time.Duration) ([]byte, error) {
	return documents(resetConfiguration{
		head:          head{v1beta4, "ResetConfiguration"},
		CRISocket:     Socket,
		Force:         true,
		CleanupTmpDir: true,
		Timeouts:      scaledTimeouts(rtt),
	})
}

// IgnoredPreflightErrors returns the checks of kubeadm that are not to stop it,
// by the minor version. From 1.35 on SystemVerification refuses cgroup v1 even
// if the kubelet is told to accept it; 1.34 warns.
func IgnoredPreflightErrors(v Version, allowCgroupV1 bool) []string {
	if allowCgroupV1 && v.Minor >= 35 {
		return []string{"SystemVerification"}
	}
	return nil
}

func (c Cluster) configuration() clusterConfiguration {
	profile := profiles[c.WorkerLatency]
	out := clusterConfiguration{
		head:                 head{v1beta4, "ClusterConfiguration"},
		ClusterName:          c.Name,
		KubernetesVersion:    c.Version.String(),
		ControlPlaneEndpoint: c.Endpoint,
		ImageRepository:      c.ImageRepository,
		Networking:           networking{c.PodSubnet.String(), c.ServiceSubnet.String(), c.DNSDomain},
		APIServer:            apiServer{CertSANs: distinct(c.CertSANs)},
		// The ranges of the nodes come from the plan, not from the controller.
		ControllerManager: component{ExtraArgs: []arg{{"allocate-node-cidrs", "false"}}},
	}
	if c.Heartbeat > 0 || c.Election > 0 || len(c.EtcdSANs) > 0 {
		sans := distinct(c.EtcdSANs)
		out.Etcd = &etcd{Local: localEtcd{ExtraArgs: c.etcdArgs(), ServerCertSANs: sans, PeerCertSANs: sans}}
	}
	if profile.grace > 0 {
		out.ControllerManager.ExtraArgs = append(out.ControllerManager.ExtraArgs, arg{"node-monitor-grace-period", profile.grace.String()})
	}
	if profile.tolerate > 0 {
		seconds := strconv.Itoa(int(profile.tolerate / time.Second))
		out.APIServer.ExtraArgs = []arg{
			{"default-not-ready-toleration-seconds", seconds},
			{"default-unreachable-toleration-seconds", seconds},
		}
	}
	return out
}

func (c Cluster) etcdArgs() []arg {
	var out []arg
	if c.Heartbeat > 0 {
		out = append(out, arg{"heartbeat-interval", strconv.FormatInt(c.Heartbeat.Milliseconds(), 10)})
	}
	if c.Election > 0 {
		out = append(out, arg{"election-timeout", strconv.FormatInt(c.Election.Milliseconds(), 10)})
	}
	return out
}

// registration is about one node. Taints are always written, because kubeadm
// takes their absence for a wish.
func (c Cluster) registration(n Node) nodeRegistration {
	serial := false
	taints := []taint{}
	if n.ControlPlane && !n.Worker {
		taints = append(taints, taint{Key: ControlPlaneTaint, Effect: "NoSchedule"})
	}
	for _, t := range n.Taints {
		taints = append(taints, taint(t))
	}
	args := []arg{{"node-ip", n.Address.String()}}
	if len(n.Labels) > 0 {
		args = append(args, arg{"node-labels", joinLabels(n.Labels)})
	}
	return nodeRegistration{
		Name:                  n.Name,
		CRISocket:             Socket,
		ImagePullPolicy:       "IfNotPresent",
		ImagePullSerial:       &serial,
		Taints:                taints,
		KubeletExtraArgs:      args,
		IgnorePreflightErrors: IgnoredPreflightErrors(c.Version, c.AllowCgroupV1),
	}
}

// distinct leaves out repetitions and keeps the order.
func distinct(list []string) []string {
	var out []string
	for _, s := range list {
		if !slices.Contains(out, s) {
			out = append(out, s)
		}
	}
	return out
}

// documents writes several YAML documents under the usual first line.
func documents(docs ...any) ([]byte, error) {
	b := bytes.NewBufferString(header)
	e := yaml.NewEncoder(b)
	e.SetIndent(2)
	for _, d := range docs {
		if err := e.Encode(d); err != nil {
			return nil, fmt.Errorf("write kubeadm configuration: %w", err)
		}
	}
	if err := e.Close(); err != nil {
		return nil, fmt.Errorf("write kubeadm configuration: %w", err)
	}
	return b.Bytes(), nil
}

func joinLabels(labels map[string]string) string {
	var out []string
	for k, v := range labels {
		out = append(out, k+"="+v)
	}
	slices.Sort(out)
	return strings.Join(out, ",")
}
