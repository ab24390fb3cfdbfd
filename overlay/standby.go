package overlay

import (
	"net/netip"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
)

// watchOwners lets the paths be watched whose death moves a route: those to
// gateways that carry a prefix for which another one that answers stands by.
// Nothing is gained by knowing sooner that a gateway without such a standby
// is gone.
func (m *Mesh) watchOwners(d engine.Desired) {
	standby := make(map[netip.Prefix]bool)
	m.mu.Lock()
	for _, s := range d.Standby {
		if p := m.peers[s.Peer]; p != nil && p.alive {
			standby[s.Prefix] = true
		}
	}
	m.mu.Unlock()
	var owners []GatewayID
	for _, r := range d.Routes {
		if standby[r.Prefix] {
			owners = append(owners, r.Peer)
		}
	}
	m.prover.Watch(owners)
}

// preferable says which gateways count as answering when routes are chosen:
// those whose path is steady. One on probation after its path died counts as
// well if it announces a prefix for which nobody steady stands.
func preferable(all []engine.Announcement, alive, steady map[GatewayID]bool) map[GatewayID]bool {
	covered := make(map[netip.Prefix]bool)
	for _, a := range all {
		for _, r := range a.Routes {
			covered[r.Prefix] = covered[r.Prefix] || steady[a.ID]
		}
	}
	out := make(map[GatewayID]bool, len(all))
	for _, a := range all {
		out[a.ID] = steady[a.ID]
		for _, r := range a.Routes {
			out[a.ID] = out[a.ID] || alive[a.ID] && !covered[r.Prefix]
		}
	}
	return out
}
