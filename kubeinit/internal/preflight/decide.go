package preflight

import (
	"encoding/json"
	"io"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/etcdtune"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// EtcdInput returns what etcdtune judges: the control planes and the round trips between
// them. Pairs that were not measured are missing in it, which it says.
func (r *Report) EtcdInput(inv *inventory.Inventory) etcdtune.Input {
	in := etcdtune.Input{
		Heartbeat: inv.Cluster.Etcd.Heartbeat, Election: inv.Cluster.Etcd.Election, AcceptSlow: inv.Cluster.Etcd.AcceptSlow,
	}
	for _, h := range inv.With(inventory.ControlPlane) {
		m := etcdtune.Member{Host: h.Name, Site: h.Site}
		if hr := r.Host(h.Name); hr != nil && hr.Agent != nil {
			m.Fsync = hr.Agent.Fsync
		}
		in.Members = append(in.Members, m)
	}
	for i := range r.Pairs {
		p := &r.Pairs[i]
		from, to := inv.Host(p.From), inv.Host(p.To)
		if p.RTT == nil || from == nil || to == nil || !isControlPlane(from) || !isControlPlane(to) {
			continue
		}
		in.Pairs = append(in.Pairs, etcdtune.Pair{A: p.From, B: p.To, P50: p.RTT.P50, P99: p.RTT.P99, Probes: p.Answered})
	}
	return in
}

// NodeMTU returns the largest packet that passes between all nodes, in all
// directions that were measured; 0 if none was.
func (r *Report) NodeMTU(inv *inventory.Inventory) int {
	mtu := 0
	for i := range r.Pairs {
		p := &r.Pairs[i]
		from, to := inv.Host(p.From), inv.Host(p.To)
		if from == nil || to == nil || !from.IsNode() || !to.IsNode() || p.Link == 0 {
			continue
		}
		if mtu == 0 || p.MTU < mtu {
			mtu = p.MTU
		}
	}
	return mtu
}

// RTT returns the median round trip between two hosts; ok is false if it is not known.
func (r *Report) RTT(a, b string) (rtt time.Duration, ok bool) {
	p := r.Pair(a, b)
	if p == nil || p.RTT == nil {
		return 0, false
	}
	return p.RTT.P50, true
}

// RenderJSON writes report and faults as one JSON object with the fields version,
// report and faults. The error is that of w.
func RenderJSON(w io.Writer, r *Report, faults []Fault) error {
	if faults == nil {
		faults = []Fault{}
	}
	e := json.NewEncoder(w)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		Version int     `json:"version"`
		Report  *Report `json:"report"`
		Faults  []Fault `json:"faults"`
	}{ReportVersion, r, faults})
}
