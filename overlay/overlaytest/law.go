package overlaytest

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wgdev"
)

// Fault is something that a gateway did and must not do.
type Fault struct {
	At      time.Duration // of virtual time since the world was founded
	Gateway string        // that did it
	Rule    string        // that it broke
	Text    string
}

// String is one line.
func (f Fault) String() string {
	return fmt.Sprintf("%v: %s: %s: %s", f.At.Round(time.Millisecond), f.Gateway, f.Rule, f.Text)
}

// The rules that hold all the time.
const (
	// RuleGrant: no prefix is installed that the grant of its owner does not cover.
	RuleGrant = "grant"
	// RuleOwner: a prefix never has two owners at one observer.
	RuleOwner = "owner"
	// RuleOrder: a superseded record never comes back.
	RuleOrder = "order"
	// RulePath: a working path is never taken for dead.
	RulePath = "path"
	// RuleRoute: a route goes only when its site withdraws it.
	RuleRoute = "route"
)

// calm is how long nothing must have happened to a path before its death is a
// fault: a probe interval, its repetitions and timeouts (docs/protocol.md,
// section 3), and a handshake.
const calm = 20 * time.Second

// maxFaults bounds what is kept: one fault tends to bring many.
const maxFaults = 32

// law watches all gateways of a world. Hooks call it from many goroutines.
type law struct {
	world *World
	held  bool // used by the goroutine that has the world

	mu      sync.Mutex // guards all below
	faults  []Fault
	owners  map[trust.GatewayID]*Gateway // every identity that ever ran
	good    [][]bool                     // by index: the path between two gateways works
	since   [][]time.Time                // by index: good
	up      []bool
	orders  []map[trust.GatewayID]record.Order // by observer, since its start
	newest  []map[string]uint64                // by observer and name of a gateway: the highest generation
	routes  []map[netip.Prefix]string          // by observer: site
	altered map[string]bool                    // sites that changed what they announce
	taps    []*wgdev.Tap                       // by index: interfaces of the data path
	corrupt []bool                             // by index: lies, or has lied since its start
	ids     []trust.GatewayID                  // every identity that ever ran, in that order
}

func newLaw(w *World) *law {
	n := w.options.Gateways
	l := &law{
		world: w, up: make([]bool, n), good: make([][]bool, n), since: make([][]time.Time, n),
		orders: make([]map[trust.GatewayID]record.Order, n), newest: make([]map[string]uint64, n),
		routes: make([]map[netip.Prefix]string, n), altered: make(map[string]bool),
		owners: make(map[trust.GatewayID]*Gateway), corrupt: make([]bool, n),
		taps: make([]*wgdev.Tap, n),
	}
	for i := range n {
		l.good[i], l.since[i] = make([]bool, n), make([]time.Time, n)
	}
	return l
}

func (l *law) broken() []Fault {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.faults)
}

func (l *law) faultLocked(g *Gateway, rule, format string, args ...any) {
	if len(l.faults) < maxFaults && !l.corrupt[g.Index] {
		l.faults = append(l.faults, Fault{
			At: time.Since(l.world.founded), Gateway: g.Name, Rule: rule, Text: fmt.Sprintf(format, args...),
		})
	}
}

// identified notes who a gateway is.
func (l *law) identified(g *Gateway, id trust.GatewayID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.owners[id] == nil {
		l.ids = append(l.ids, id)
	}
	l.owners[id] = g
}

// someone returns an identity that runs or once ran.
func (l *law) someone(random *rand.Rand) (trust.GatewayID, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.ids) == 0 {
		return trust.GatewayID{}, false
	}
	return l.ids[random.IntN(len(l.ids))], true
}

// corrupted notes that a gateway lies: what it does itself is no fault any
// more, and its site may withdraw things.
func (l *law) corrupted(g *Gateway) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.corrupt[g.Index] = true
	l.altered[g.Site] = true
}

// started forgets what the gateway knew: its memory is gone.
func (l *law) started(g *Gateway) {
	l.mu.Lock()
	i := g.Index
	l.orders[i] = make(map[trust.GatewayID]record.Order)
	l.newest[i] = make(map[string]uint64)
	l.routes[i] = nil
	l.up[i], l.corrupt[i] = true, false
	l.mu.Unlock()
	l.shaken(g)
	l.disturbed()
}

func (l *law) stopped(g *Gateway) {
	l.mu.Lock()
	l.up[g.Index] = false
	l.mu.Unlock()
	l.disturbed()
}

// changed notes that a gateway's site withdraws something, or may.
func (l *law) changed(g *Gateway) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.altered[g.Site] = true
}

// shaken begins the time anew that all paths of a gateway have worked.
func (l *law) shaken(g *Gateway) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	for j := range l.since {
		l.since[g.Index][j], l.since[j][g.Index] = now, now
	}
}

// maxGoodLoss is how much loss in one direction a path must survive: four
// probes in a row get lost once in a million times.
const maxGoodLoss = 0.02

// hold lets disturbed wait until change is done.
func (l *law) hold(change func()) {
	l.held = true
	change()
	l.held = false
}

// disturbed looks at every path again, after something in the network changed.
func (l *law) disturbed() {
	if l.held {
		return
	}
	now := time.Now()
	n := l.world.network
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, a := range l.world.gateways {
		for j, b := range l.world.gateways[:i] {
			good := l.up[i] && l.up[j] && l.world.punch(a, b) && n.usable(a.host.addr, b.host.addr) && n.usable(b.host.addr, a.host.addr)
			if !good || !l.good[i][j] {
				l.since[i][j], l.since[j][i] = now, now
			}
			l.good[i][j], l.good[j][i] = good, good
		}
	}
}

// usable reports whether a direction between two hosts is good enough to demand a working path.
func (n *Network) usable(from, to netip.Addr) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.linkLocked(from, to)
	return n.connectedLocked(from, to) && l.Loss <= maxGoodLoss && l.Rate == 0
}

// reachable is called when a gateway begins or ceases to take a peer for alive.
func (l *law) reachable(g *Gateway, peer trust.GatewayID, alive bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	other := l.owners[peer]
	if alive || other == nil {
		return
	}
	i, j := g.Index, other.Index
	if works := time.Since(l.since[i][j]); l.good[i][j] && works > calm {
		l.faultLocked(g, RulePath, "%s is taken for dead although the path has worked for %v", other.Name, works)
	}
}

// accepted is called when a record became the one that counts at a gateway.
func (l *law) accepted(g *Gateway, r *record.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	orders, newest := l.orders[g.Index], l.newest[g.Index]
	name := r.Chain.Certificate.Gateway
	if last, known := orders[r.ID]; known && r.Order().Compare(last) < 0 {
		l.faultLocked(g, RuleOrder, "record %v of %s after %v", r.Order(), name, last)
	}
	orders[r.ID] = r.Order()
	if last := newest[name]; r.Order().Generation < last {
		l.faultLocked(g, RuleOrder, "generation %d of %s after %d", r.Order().Generation, name, last)
	}
	newest[name] = max(newest[name], r.Order().Generation)
}

// applied is called when a gateway put a desired state into effect.
func (l *law) applied(g *Gateway, d engine.Desired) {
	routes := make(map[netip.Prefix]string, len(d.Routes))
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range d.Routes {
		owner := l.owners[r.Peer]
		switch {
		case owner == nil:
			l.faultLocked(g, RuleGrant, "%v is installed for a stranger", r.Prefix)
		case !slices.ContainsFunc(owner.Prefixes, func(p netip.Prefix) bool { return p.Bits() <= r.Prefix.Bits() && p.Contains(r.Prefix.Addr()) }):
			l.faultLocked(g, RuleGrant, "%v is installed for %s, which was granted %v", r.Prefix, owner.Name, owner.Prefixes)
		}
		if _, twice := routes[r.Prefix]; twice {
			l.faultLocked(g, RuleOwner, "%v is installed twice", r.Prefix)
		}
		routes[r.Prefix] = r.Site
	}
	l.allowedLocked(g, d)
	for p, site := range l.routes[g.Index] {
		if _, still := routes[p]; !still && !l.altered[site] {
			l.faultLocked(g, RuleRoute, "%v of %s is gone, though nobody withdrew it", p, site)
		}
	}
	l.routes[g.Index] = routes
}

// allowedLocked checks that no two peers of the device share a prefix.
func (l *law) allowedLocked(g *Gateway, d engine.Desired) {
	owner := make(map[netip.Prefix]string)
	for _, p := range d.Peers {
		for _, a := range p.Allowed {
			if other, taken := owner[a]; taken {
				l.faultLocked(g, RuleOwner, "%v is allowed for %s and %s", a, other, p.Name)
			}
			owner[a] = p.Name
		}
	}
}
