package preflight

import (
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// Ports of a cluster (TCP; kubernetes.io, "Ports and Protocols").
const (
	APIPort        = 6443
	EtcdClientPort = 2379
	EtcdPeerPort   = 2380
	KubeletPort    = 10250
	ProxyPort      = 7443 // of kubeinit's own API proxy
	kubeProxyPort  = 10256
	controllerPort = 10257
	schedulerPort  = 10259
)

// service is a TCP port that hosts of some roles serve for those of others.
type service struct {
	port uint16
	name string
	// processes are those that may hold the port, by the beginnings of their names:
	// the kernel keeps 15 bytes, and kubeinit's binary has a hash behind it.
	processes []string
	serves    func(*inventory.Inventory, *inventory.Host) bool
	// asks is nil for a port that only the host itself uses.
	asks func(*inventory.Host) bool
	// pods says that pods ask too, with addresses of their own.
	pods bool
}

func isControlPlane(h *inventory.Host) bool { return h.Is(inventory.ControlPlane) }

func controlPlaneServes(_ *inventory.Inventory, h *inventory.Host) bool { return isControlPlane(h) }

func nodeServes(_ *inventory.Inventory, h *inventory.Host) bool { return h.IsNode() }

// balances says whether a host serves the API's endpoint for others by mode.
func balances(mode inventory.Endpoint) func(*inventory.Inventory, *inventory.Host) bool {
	return func(i *inventory.Inventory, h *inventory.Host) bool {
		return h.Is(inventory.LoadBalancer) && !isControlPlane(h) && endpoint(i) == mode
	}
}

func endpoint(i *inventory.Inventory) inventory.Endpoint {
	if i.Cluster.Endpoint == inventory.EndpointHAProxy {
		return inventory.EndpointHAProxy
	}
	return inventory.EndpointProxy
}

// services are all TCP ports of a cluster.
func services() []service {
	return []service{
		{port: EtcdClientPort, name: "etcd clients", processes: []string{"etcd"}, serves: controlPlaneServes, asks: isControlPlane},
		{port: EtcdPeerPort, name: "etcd members", processes: []string{"etcd"}, serves: controlPlaneServes, asks: isControlPlane},
		{port: APIPort, name: "API server", processes: []string{"kube-apiserver"}, serves: controlPlaneServes, asks: joins, pods: true},
		{port: APIPort, name: "API endpoint", processes: []string{"haproxy"}, serves: balances(inventory.EndpointHAProxy), asks: joins, pods: true},
		{port: ProxyPort, name: "API proxy", processes: []string{"kubeinit"}, serves: balances(inventory.EndpointProxy), asks: joins},
		{port: ProxyPort, name: "API proxy", processes: []string{"kubeinit"}, serves: nodeServes},
		{port: KubeletPort, name: "kubelet", processes: []string{"kubelet"}, serves: nodeServes, asks: isControlPlane, pods: true},
		{port: kubeProxyPort, name: "kube-proxy health", processes: []string{"kube-proxy"}, serves: nodeServes},
		{port: controllerPort, name: "controller manager", processes: []string{"kube-controller"}, serves: controlPlaneServes},
		{port: schedulerPort, name: "scheduler", processes: []string{"kube-scheduler"}, serves: controlPlaneServes},
	}
}

// mayHold says whether a process is the one that is to serve the port.
func (s *service) mayHold(process string) bool {
	return slices.ContainsFunc(s.processes, func(p string) bool { return strings.HasPrefix(process, p) })
}

// listenPorts are the ports of a host that other hosts need, ascending.
func listenPorts(i *inventory.Inventory, h *inventory.Host) []uint16 {
	var ports []uint16
	for _, s := range services() {
		if s.asks != nil && s.serves(i, h) {
			ports = append(ports, s.port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}

// dialPorts are the ports of to that from needs, ascending.
func dialPorts(i *inventory.Inventory, from, to *inventory.Host) []uint16 {
	var ports []uint16
	for _, s := range services() {
		if s.asks != nil && s.serves(i, to) && s.asks(from) {
			ports = append(ports, s.port)
		}
	}
	slices.Sort(ports)
	return slices.Compact(ports)
}
