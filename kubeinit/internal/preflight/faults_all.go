package preflight

import (
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// round makes a time readable.
func round(d time.Duration) time.Duration {
	switch a := d.Abs(); {
	case a >= 10*time.Second:
		return d.Round(time.Second)
	case a >= time.Second:
		return d.Round(100 * time.Millisecond)
	case a >= 10*time.Millisecond:
		return d.Round(time.Millisecond)
	default:
		return d.Round(10 * time.Microsecond)
	}
}

// duplicates finds hosts that are the same where each should be itself.
func (j *judge) duplicates() {
	for _, kind := range []struct {
		id, text, cure string
		severity       Severity
		value          func(*inventory.Host, *Facts) string
	}{
		{
			"hostname-duplicate", "call themselves %s", "on all but one of them: hostnamectl set-hostname NAME", SeverityFault,
			func(_ *inventory.Host, f *Facts) string { return f.Hostname },
		}, {
			"machine-id-duplicate", "have the same machine ID, %s, as copies of one machine do",
			"on all but one of them: rm /etc/machine-id && systemd-machine-id-setup && reboot", SeverityFault,
			func(_ *inventory.Host, f *Facts) string { return f.MachineID },
		}, {
			"uuid-duplicate", "have the same hardware UUID, %s, as copies of one virtual machine do",
			"give the virtual machines UUIDs of their own where they are defined", SeverityWarning,
			func(_ *inventory.Host, f *Facts) string { return f.UUID },
		}, {
			"mac-duplicate", "have the same hardware address, %s",
			"give the virtual machines hardware addresses of their own where they are defined", SeverityWarning, nodeMAC,
		},
	} {
		same := make(map[string][]string)
		var order []string
		for i := range j.inv.Hosts {
			h := &j.inv.Hosts[i]
			f := j.reports[h.Name].Facts
			if f == nil || !joins(h) {
				continue
			}
			if v := kind.value(h, f); v != "" {
				if same[v] == nil {
					order = append(order, v)
				}
				same[v] = append(same[v], h.Name)
			}
		}
		for _, v := range order {
			if hosts := same[v]; len(hosts) > 1 && !j.oneMachine(kind.id, hosts) {
				j.add(kind.id, kind.severity, hosts, list(hosts)+" "+fmt.Sprintf(kind.text, v), kind.cure)
			}
		}
	}
}

// oneMachine says whether the hosts share a hardware UUID because they are containers
// on one machine: then all of them have it, and machine IDs of their own.
func (j *judge) oneMachine(id string, hosts []string) bool {
	if id != "uuid-duplicate" {
		return false
	}
	seen := make(map[string]bool)
	for _, name := range hosts {
		m := j.reports[name].Facts.MachineID
		if m == "" || seen[m] {
			return false
		}
		seen[m] = true
	}
	for i := range j.inv.Hosts {
		h := &j.inv.Hosts[i]
		if f := j.reports[h.Name].Facts; f != nil && joins(h) && !slices.Contains(hosts, h.Name) {
			return false
		}
	}
	return true
}

// nodeMAC is the hardware address behind the node address.
func nodeMAC(h *inventory.Host, f *Facts) string {
	for _, a := range f.Addresses {
		if a.Prefix.Addr().WithZone("") == h.NodeIP {
			return f.MACs[a.Interface]
		}
	}
	return ""
}

// overlaps finds routes that the ranges of the cluster, or the LANs of other sites, collide with.
func (j *judge) overlaps() {
	type collision struct{ what, route string }
	found := make(map[collision][]string)
	var order []collision
	note := func(what string, route netip.Prefix, host string) {
		c := collision{what, route.String()}
		if found[c] == nil {
			order = append(order, c)
		}
		found[c] = append(found[c], host)
	}
	for i := range j.inv.Hosts {
		h := &j.inv.Hosts[i]
		f := j.reports[h.Name].Facts
		if f == nil {
			continue
		}
		for _, r := range f.Routes {
			j.collide(h, r.Prefix, r.Protocol == "kernel", note)
		}
		if f.Mesh != nil {
			for _, r := range f.Mesh.Routes {
				j.collide(h, r.Prefix, false, note)
			}
			for _, p := range f.Mesh.Announced {
				j.collide(h, p, false, note)
			}
		}
	}
	for _, c := range order {
		hosts := slices.Compact(found[c])
		j.add("range-overlap", SeverityFault, hosts, fmt.Sprintf("%s overlaps the route to %s that %s has", c.what, c.route, list(hosts)),
			fmt.Sprintf("on %s: ip route show %s   # then remove the route, or choose another range in the inventory", hosts[0], c.route))
	}
}

// collide notes what a route of a host collides with. Only the LAN of a host
// itself (link) collides with that of another site: other routes may lead there.
func (j *judge) collide(h *inventory.Host, p netip.Prefix, link bool, note func(what string, route netip.Prefix, host string)) {
	if !p.IsValid() || p.Bits() == 0 || p.Addr().IsLinkLocalUnicast() || p.Addr().IsMulticast() {
		return
	}
	c := &j.inv.Cluster
	ownPods := j.ours && c.PodSupernet.IsValid() && c.PodSupernet.Contains(p.Addr()) && p.Bits() >= c.PodSupernet.Bits()
	if c.PodSupernet.IsValid() && c.PodSupernet.Overlaps(p) && !ownPods {
		note(fmt.Sprintf("podSupernet %s", c.PodSupernet), p, h.Name)
	}
	if c.ServiceSubnet.IsValid() && c.ServiceSubnet.Overlaps(p) {
		note(fmt.Sprintf("serviceSubnet %s", c.ServiceSubnet), p, h.Name)
	}
	if !link {
		return
	}
	for _, s := range j.inv.Sites {
		for _, lan := range s.Prefixes {
			if s.Name != h.Site && lan.Overlaps(p) {
				note(fmt.Sprintf("the LAN %s of site %s", lan, s.Name), p, h.Name)
			}
		}
	}
}

// clocks finds the hosts whose clock differs from what most others agree on.
func (j *judge) clocks() {
	const limit = time.Second
	differ := func(a, b string) (time.Duration, bool) {
		p := j.pairs[Direction{a, b}]
		if p == nil || p.Offset == nil {
			return 0, false
		}
		return *p.Offset, p.Offset.Abs()-p.OffsetError > limit
	}
	// The reference is who agrees with most.
	reference, most := "", -1
	for i := range j.inv.Hosts {
		agrees := 0
		for k := range j.inv.Hosts {
			a, b := j.inv.Hosts[i].Name, j.inv.Hosts[k].Name
			if p := j.pairs[Direction{a, b}]; p != nil && p.Offset != nil {
				if _, bad := differ(a, b); !bad {
					agrees++
				}
			}
		}
		if agrees > most {
			reference, most = j.inv.Hosts[i].Name, agrees
		}
	}
	for i := range j.inv.Hosts {
		name := j.inv.Hosts[i].Name
		offset, bad := differ(reference, name)
		if !bad {
			continue
		}
		way := "ahead of"
		if offset < 0 {
			way = "behind"
		}
		j.add("clock-skew", SeverityFault, []string{name},
			fmt.Sprintf("the clock of %s is %s %s that of %s, and certificates and etcd bear a second at most", name, round(offset.Abs()), way, reference),
			fmt.Sprintf("on %s: timedatectl set-ntp true   # or: date -s @$(ssh %s date +%%s)", name, reference))
	}
}

// mesh judges what the gateways say of the mesh between the sites.
func (j *judge) mesh() {
	if len(j.inv.Sites) < 2 {
		return
	}
	announced := j.gateways()
	if len(announced) == 0 {
		return
	}
	for i := range j.inv.Sites {
		if s := &j.inv.Sites[i]; s.Mesh != inventory.MeshNone {
			j.announcement(s, announced)
			j.reach(s, announced)
		}
	}
	j.relays()
}

// gateways returns what each gateway that runs meshd announces, and notes those that do not.
func (j *judge) gateways() map[string][]netip.Prefix {
	announced := make(map[string][]netip.Prefix)
	for i := range j.inv.Sites {
		for _, name := range j.inv.Sites[i].Gateways {
			r := j.reports[name]
			switch {
			case r == nil || r.Facts == nil:
			case r.Facts.Mesh != nil:
				announced[name] = r.Facts.Mesh.Announced
			case j.inv.Sites[i].Mesh == inventory.MeshMeshd:
				j.add("mesh-down", SeverityFault, []string{name}, fmt.Sprintf("%s is the gateway of site %s, and meshd does not run there", name, j.inv.Sites[i].Name),
					"on "+name+": systemctl start meshd && meshd doctor")
			}
		}
	}
	return announced
}

func contains(prefixes []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return p.Contains(a) })
}

// announcement finds hosts whose address no gateway announces.
func (j *judge) announcement(s *inventory.Site, announced map[string][]netip.Prefix) {
	var hosts []string
	for i := range j.inv.Hosts {
		h := &j.inv.Hosts[i]
		if h.Site == s.Name && joins(h) && !j.isAnnounced(s, h.NodeIP, announced) {
			hosts = append(hosts, h.Name)
		}
	}
	if len(hosts) > 0 {
		addr := j.inv.Host(hosts[0]).NodeIP
		j.add("address-not-announced", SeverityFault, hosts,
			fmt.Sprintf("no gateway announces a route to %s of %s, so other sites do not reach it", addr, list(hosts)),
			fmt.Sprintf("on the gateway of site %s: meshd routes   # then add a prefix with %s to announce: in meshd.yaml, or correct nodeIP", s.Name, addr))
	}
}

// isAnnounced looks at the gateways of the site, or, where the site is attached to that of
// another, at all.
func (j *judge) isAnnounced(s *inventory.Site, a netip.Addr, announced map[string][]netip.Prefix) bool {
	known := false
	for gateway, prefixes := range announced {
		if s.Mesh == inventory.MeshMeshd && !slices.Contains(s.Gateways, gateway) {
			continue
		}
		known = true
		if contains(prefixes, a) {
			return true
		}
	}
	return !known // of a gateway that could not be asked nothing is said
}

// reach finds the sites that the gateways of s have no route to.
func (j *judge) reach(s *inventory.Site, announced map[string][]netip.Prefix) {
	for _, gateway := range s.Gateways {
		if _, runs := announced[gateway]; !runs {
			continue
		}
		m := j.reports[gateway].Facts.Mesh
		for i := range j.inv.Sites {
			t := &j.inv.Sites[i]
			if t.Name == s.Name || t.Mesh == inventory.MeshNone {
				continue
			}
			if why := j.unreached(m, t, announced); why != "" {
				j.add("mesh-no-route", SeverityFault, []string{gateway},
					fmt.Sprintf("the gateway %s of site %s does not reach site %s: %s", gateway, s.Name, t.Name, why),
					fmt.Sprintf("on %s: meshd status && meshd ping %s", gateway, t.Name))
			}
		}
	}
}

// unreached says why a gateway does not reach a site; empty if it does.
func (j *judge) unreached(m *Mesh, t *inventory.Site, announced map[string][]netip.Prefix) string {
	prefixes := slices.Clone(m.Announced) // of a site that is attached to this gateway
	for _, r := range m.Routes {
		prefixes = append(prefixes, r.Prefix)
	}
	for i := range j.inv.Hosts {
		h := &j.inv.Hosts[i]
		if h.Site == t.Name && joins(h) && j.isAnnounced(t, h.NodeIP, announced) && !contains(prefixes, h.NodeIP) {
			return "it has no route to " + h.NodeIP.String()
		}
	}
	up, peers := false, 0
	for _, p := range m.Peers {
		if slices.Contains(t.Gateways, p.Gateway) {
			peers++
			up = up || p.State == "up"
		}
	}
	if peers > 0 && !up {
		return "no gateway there answers"
	}
	return ""
}

// relays notes paths that go through a third gateway.
func (j *judge) relays() {
	for i := range j.inv.Sites {
		for _, name := range j.inv.Sites[i].Gateways {
			r := j.reports[name]
			if r == nil || r.Facts == nil || r.Facts.Mesh == nil {
				continue
			}
			for _, p := range r.Facts.Mesh.Peers {
				if p.Relayed && p.State == "up" && name < p.Gateway {
					j.add("mesh-relayed", SeverityNote, []string{name},
						fmt.Sprintf("%s reaches %s of site %s through a third gateway", name, p.Gateway, p.Site),
						fmt.Sprintf("on %s: meshd doctor   # open its UDP port, or name an endpoint that can be reached", name))
				}
			}
		}
	}
}
