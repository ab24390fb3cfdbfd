package overlaytest

import (
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// lawful gives f a world of four running gateways in which nothing is wrong,
// and returns the rules that f broke.
func lawful(t *testing.T, f func(w *World)) (rules []string) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, WorldOptions{Gateways: 4, Network: wide})
		w.StartAll()
		w.MustConverge(time.Minute)
		time.Sleep(2 * calm) // virtual
		if got := w.Faults(); len(got) > 0 {
			t.Fatalf("before: %v", got)
		}
		f(w)
		for _, fault := range w.Faults() {
			rules = append(rules, fault.Rule)
		}
		for _, err := range w.Stop() {
			t.Error(err)
		}
	})
	return rules
}

// desired is what gateway 1 wants at present, to be changed by change.
func desired(w *World, change func(*engine.Desired)) engine.Desired {
	d := w.Gateway(1).inside.Desired()
	d.Routes, d.Peers = slices.Clone(d.Routes), slices.Clone(d.Peers)
	change(&d)
	return d
}

func TestRulesNoticeWhatTheyForbid(t *testing.T) {
	g := func(w *World) *Gateway { return w.Gateway(1) }
	for _, tt := range []struct {
		name, want string
		do         func(w *World)
	}{
		{"nothing", "", func(w *World) { w.law.applied(g(w), desired(w, func(*engine.Desired) {})) }},
		{"prefix of another site", RuleGrant, func(w *World) {
			w.law.applied(g(w), desired(w, func(d *engine.Desired) { d.Routes[0].Peer = d.Routes[1].Peer }))
		}},
		{"prefix of a stranger", RuleGrant, func(w *World) {
			w.law.applied(g(w), desired(w, func(d *engine.Desired) { d.Routes[0].Peer = trust.GatewayID{1} }))
		}},
		{"wider than the grant", RuleGrant, func(w *World) {
			w.law.applied(g(w), desired(w, func(d *engine.Desired) {
				r := d.Routes[0]
				r.Prefix = netip.MustParsePrefix("10.0.0.0/8")
				d.Routes = append(d.Routes, r)
			}))
		}},
		{"two owners", RuleOwner, func(w *World) {
			w.law.applied(g(w), desired(w, func(d *engine.Desired) { d.Routes = append(d.Routes, d.Routes[0]) }))
		}},
		{"two peers with one prefix", RuleOwner, func(w *World) {
			w.law.applied(g(w), desired(w, func(d *engine.Desired) { d.Peers[0].Allowed = d.Peers[1].Allowed }))
		}},
		{"route that nobody withdrew", RuleRoute, func(w *World) {
			w.law.applied(g(w), desired(w, func(d *engine.Desired) { d.Routes = d.Routes[:len(d.Routes)-1] }))
		}},
		{"older record", RuleOrder, func(w *World) {
			other := w.Gateway(2).inside.ID()
			at := slices.IndexFunc(g(w).inside.Records(), func(r *record.Record) bool { return r.ID == other })
			newer := *g(w).inside.Records()[at]
			older := newer
			newer.Sequence += 10
			w.law.accepted(g(w), &newer)
			w.law.accepted(g(w), &older)
		}},
		{"dead though the path works", RulePath, func(w *World) { w.law.reachable(g(w), w.Gateway(2).inside.ID(), false) }},
		{"dead after a cut", "", func(w *World) {
			w.Cut(1, 2)
			w.law.reachable(g(w), w.Gateway(2).inside.ID(), false)
		}},
		{"dead right after a cut was mended", "", func(w *World) {
			w.Cut(2, 1)
			w.Mend(2, 1)
			w.law.reachable(g(w), w.Gateway(2).inside.ID(), false)
		}},
		{"packets lost", RuleData, func(w *World) { w.law.lost(g(w), w.Gateway(2), time.Minute) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := lawful(t, tt.do)
			if tt.want == "" && len(got) > 0 || tt.want != "" && !slices.Contains(got, tt.want) {
				t.Errorf("broken: %q, want %q", got, tt.want)
			}
		})
	}
}

func TestConvergedNoticesWhatIsMissing(t *testing.T) {
	lawful(t, func(w *World) {
		if err := w.Converged(); err != nil {
			t.Errorf("nothing happened, but %v", err)
		}
		if err := w.Gateway(3).mesh.SetRoutes(t.Context(), []overlay.Route{}); err != nil {
			t.Fatal(err)
		}
		w.law.changed(w.Gateway(3))
		if err := w.Converged(); err == nil {
			t.Error("converged at the very moment of a change")
		}
		time.Sleep(10 * time.Second)
		if err := w.Converged(); err != nil {
			t.Errorf("10 s after a change: %v", err)
		}
		w.Gateway(2).Crash()
		if w.Aware() == nil {
			t.Error("aware of a crash at its very moment")
		}
		time.Sleep(30 * time.Second)
		if err := w.Aware(); err != nil {
			t.Errorf("30 s after a crash: %v", err)
		}
	})
}
