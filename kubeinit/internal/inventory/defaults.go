package inventory

import (
	"cmp"
	"net/netip"
)

// The versions of Kubernetes 1 that are supported.
const (
	MinMinor = 34
	MaxMinor = 37
)

// What is not written in a file.
const (
	DefaultVersion   = "1.37"
	DefaultDNSDomain = "cluster.local" // kubeadm's
	DefaultSSHPort   = 22
	DefaultUser      = "root"
)

// DefaultPodSupernet has room for 16 sites of 64 nodes each. It is a /14 and no
// wider one, because whatever it covers cannot be reached as a LAN from a pod.
// It lies apart from the usual choices of others: 10.0.0.0/16, 10.96.0.0/12 of
// kubeadm's services, 10.244.0.0/16 of flannel, 10.42.0.0/15 of k3s.
func DefaultPodSupernet() netip.Prefix { return netip.MustParsePrefix("10.128.0.0/14") }

// DefaultServiceSubnet lies in the prefix that kubeadm takes, and is as wide as
// the addresses of 65 thousand services.
func DefaultServiceSubnet() netip.Prefix { return netip.MustParsePrefix("10.96.0.0/16") }

// fill puts defaults where the file has nothing.
func fill(inv *Inventory) {
	c := &inv.Cluster
	c.Version = cmp.Or(c.Version, DefaultVersion)
	c.Endpoint = cmp.Or(c.Endpoint, EndpointProxy)
	c.DNSDomain = cmp.Or(c.DNSDomain, DefaultDNSDomain)
	c.Source = cmp.Or(c.Source, SourcePreinstalled)
	c.Containerd.Mode = cmp.Or(c.Containerd.Mode, ContainerdManaged)
	c.CNI.Mode = cmp.Or(c.CNI.Mode, CNIRoutes)
	c.KubeProxy.Mode = cmp.Or(c.KubeProxy.Mode, KubeProxyNFTables)
	if !c.PodSupernet.IsValid() {
		c.PodSupernet = DefaultPodSupernet()
	}
	if !c.ServiceSubnet.IsValid() {
		c.ServiceSubnet = DefaultServiceSubnet()
	}
	for n := range inv.Sites {
		s := &inv.Sites[n]
		s.Region, s.Zone = cmp.Or(s.Region, s.Name), cmp.Or(s.Zone, s.Name)
		s.Mesh = cmp.Or(s.Mesh, MeshMeshd)
	}
	for n := range inv.Hosts {
		h := &inv.Hosts[n]
		if h.SSH.Address == "" && h.NodeIP.IsValid() {
			h.SSH.Address = h.NodeIP.String()
		}
		h.SSH.Port = cmp.Or(h.SSH.Port, DefaultSSHPort)
		h.SSH.User = cmp.Or(h.SSH.User, DefaultUser)
	}
}
