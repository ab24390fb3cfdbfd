package steps

import (
	"fmt"
	"net/netip"

	"github.com/planetmesh/planetmesh/kubeinit/internal/action"
	"github.com/planetmesh/planetmesh/kubeinit/internal/apiproxy"
	"github.com/planetmesh/planetmesh/kubeinit/internal/haproxy"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/kubeadm"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
	"github.com/planetmesh/planetmesh/kubeinit/internal/plan"
)

var loopback = netip.AddrFrom4([4]byte{127, 0, 0, 1})

// proxy makes the endpoint's name lead to an API server, before there is one.
func (b *builder) proxy(h *inventory.Host) {
	balancer := h.Is(inventory.LoadBalancer)
	if !h.IsNode() && !balancer {
		return
	}
	at := loopback
	if b.in.Inventory.Cluster.Endpoint == inventory.EndpointHAProxy {
		at = b.in.Inventory.With(inventory.LoadBalancer)[0].NodeIP
	}
	b.add(phase.Proxy, h.Name, "hosts", action.Hosts{
		Mark:    "kubeinit " + b.in.Decisions.Cluster,
		Entries: []action.HostsEntry{{Addr: at, Names: []string{b.in.Decisions.Endpoint.Name}}},
	})
	switch {
	case b.in.Inventory.Cluster.Endpoint != inventory.EndpointHAProxy:
		b.ownProxy(h, balancer)
	case balancer:
		b.haproxy(h)
	}
}

// ownProxy runs kubeinit's proxy on a host; on a load balancer also for clients
// in its LAN.
func (b *builder) ownProxy(h *inventory.Host, balancer bool) {
	add := func(name string, a phase.Action) { b.add(phase.Proxy, h.Name, name, a) }
	p := b.in.Program
	add("program", action.Upload{Path: p.Path(), SHA256: p.SHA256, Size: p.Size, Open: p.Open, Once: true})
	c := apiproxy.Config{
		Listen:  []netip.AddrPort{netip.AddrPortFrom(loopback, plan.ProxyPort)},
		Learned: apiproxy.LearnedFile,
		CA:      "/etc/kubernetes/pki/ca.crt",
		Status:  apiproxy.StatusSocket,
	}
	if balancer {
		c.Listen = append(c.Listen, netip.AddrPortFrom(h.NodeIP, plan.ProxyPort))
	}
	for _, cp := range b.controlPlanes() {
		c.Upstreams = append(c.Upstreams, apiproxy.Upstream{
			Address: netip.AddrPortFrom(cp.NodeIP, kubeadm.APIPort), Name: cp.Name,
			OwnHost: cp.Name == h.Name, OwnSite: cp.Site == h.Site,
		})
	}
	config := action.File{Path: apiproxy.ConfigFile, Content: c.JSON()}
	add("apiproxy.json", config)
	text, err := apiproxy.Unit(p.Path())
	b.fault(err)
	unit := action.File{Path: apiproxy.UnitFile, Content: []byte(text)}
	add("apiproxy.service", unit)
	// systemd makes this for units with a dynamic user.
	add("dynamic-uid", action.Directory{Path: "/run/systemd/dynamic-uid"})
	add("apiproxy", action.Unit{
		Name: apiproxy.UnitName, Files: []action.File{unit, config},
		Enabled: action.Yes, Active: action.Yes,
	})
}

// haproxy runs HAProxy on the load balancer.
func (b *builder) haproxy(h *inventory.Host) {
	c := haproxy.Config{Listen: []netip.Addr{h.NodeIP}}
	for _, cp := range b.controlPlanes() {
		c.Servers = append(c.Servers, haproxy.Server{Name: cp.Name, Address: cp.NodeIP})
	}
	text, err := haproxy.Render(c)
	b.fault(err)
	file := action.File{Path: haproxy.File, Content: text}
	b.add(phase.Proxy, h.Name, "program", action.Preinstalled(action.Program{Args: []string{"haproxy", "-v"}, Want: "HAProxy"}))
	b.add(phase.Proxy, h.Name, "haproxy.cfg", file)
	// What HAProxy leaves when it stops, and the target that it wants.
	const before = Dir + "/haproxy-before"
	b.add(phase.Proxy, h.Name, "traces", action.Command{
		Name: "what HAProxy leaves",
		IsSo: []string{"test", "-e", before},
		Do:   [][]string{{"sh", "-c", "for u in haproxy.service network-online.target; do systemctl is-active --quiet $u && echo $u; done > " + before + "; true"}},
		Back: [][]string{{"sh", "-c", "grep -q haproxy.service " + before + " || rm -f /run/haproxy.pid /run/haproxy-master.sock /var/lib/haproxy/dev/log; " +
			"grep -q network-online.target " + before + " || systemctl stop network-online.target; rm -f " + before}},
	})
	b.add(phase.Proxy, h.Name, "haproxy", action.Unit{
		Name: "haproxy.service", Files: []action.File{file}, Enabled: action.Yes, Active: action.Yes,
	})
}

// mesh checks that the gateways carry what the cluster needs.
func (b *builder) mesh() {
	for _, s := range b.in.Inventory.Sites {
		if s.Mesh != inventory.MeshMeshd {
			continue
		}
		for _, name := range s.Gateways {
			b.add(phase.Mesh, name, "meshd", action.Preinstalled(action.Program{Args: []string{"meshd", "--version"}, Want: "meshd"}))
		}
	}
}

func needsOf(host string) []string {
	return []string{fmt.Sprintf("%s/%s/", phase.Prepare, host), fmt.Sprintf("%s/%s/", phase.Proxy, host)}
}
