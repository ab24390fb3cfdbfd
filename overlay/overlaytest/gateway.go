package overlaytest

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/seam"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Gateway is one gateway of a World. Its methods are for the goroutine that
// has the World.
type Gateway struct {
	Index    int
	Name     string
	Site     string
	Prefixes []netip.Prefix // that it was granted

	world  *World
	host   *Host
	nat    *NAT // nil unless hidden
	disk   *disk
	backup map[string][]byte // the disk as it was right after the first join
	second bool              // of two gateways of its site
	routes []overlay.Route   // nil: all that is granted
	offset atomic.Int64      // of its clock, in nanoseconds

	mesh   *overlay.Mesh // nil: does not run
	inside seam.Inside   // of mesh
	id     trust.GatewayID
	began  time.Time // when mesh was started
	liar   *liar     // nil: honest
	lied   bool      // since it was started
}

// Mesh returns the running mesh, nil if there is none.
func (g *Gateway) Mesh() *overlay.Mesh { return g.mesh }

// Host returns the gateway's place in the network.
func (g *Gateway) Host() *Host { return g.host }

// now is the gateway's wall clock.
func (g *Gateway) now() time.Time { return time.Now().Add(time.Duration(g.offset.Load())) }

// SetClock makes the gateway's wall clock wrong by offset from now on. What
// its timers do does not change.
func (g *Gateway) SetClock(offset time.Duration) { g.offset.Store(int64(offset)) }

// config is what the gateway is started with.
func (g *Gateway) config() overlay.Config {
	c := overlay.Config{
		Store: g.disk.open(), Device: overlay.DeviceNone, Port: overlay.DefaultPort,
		ListenPacket: g.host.ListenPacket, LocalAddrs: g.host.Addrs, Now: g.now, Routes: g.routes,
	}
	if g.world.options.Configure != nil {
		g.world.options.Configure(g, &c)
	}
	return c
}

// Start starts the gateway with the state on its disk. A running one is left
// alone.
func (g *Gateway) Start() error {
	if g.mesh != nil {
		return nil
	}
	w := g.world
	hooks := &seam.Hooks{
		Opened: func(i seam.Inside) {
			g.inside = i
			g.id = i.ID()
			w.law.identified(g, g.id)
		},
		Accepted:  func(r *record.Record) { w.law.accepted(g, r) },
		Applied:   func(d engine.Desired) { w.law.applied(g, d) },
		GossipIn:  func(peer trust.GatewayID, b []byte) [][]byte { return w.gossip.hear(w, peer, b) },
		Reachable: func(peer trust.GatewayID, alive bool) { w.law.reachable(g, peer, alive) },
	}
	g.lied = false
	w.law.started(g)
	if w.options.Carrier != Nothing {
		hooks.Device = g.openDevice
	}
	m, err := overlay.Open(seam.NewContext(w.t.Context(), hooks), g.config())
	if err != nil {
		return fmt.Errorf("start %s: %w", g.Name, err)
	}
	g.mesh, g.began = m, time.Now()
	if g.backup == nil {
		g.backup = g.disk.copy()
	}
	return nil
}

func (g *Gateway) mustStart() {
	g.world.t.Helper()
	if err := g.Start(); err != nil {
		g.world.t.Fatal(err)
	}
}

// Stop closes the gateway in good order.
func (g *Gateway) Stop() error {
	if g.mesh == nil {
		return nil
	}
	g.world.law.stopped(g)
	g.shutUp()
	m := g.mesh
	g.mesh, g.inside = nil, nil
	return m.Close()
}

// Crash ends the gateway like a power failure: nothing that it sends from now
// on leaves it, nothing that it stores from now on is on its disk.
func (g *Gateway) Crash() {
	if g.mesh == nil {
		return
	}
	w := g.world
	w.law.stopped(g)
	g.host.Crash()
	g.disk.crash()
	g.shutUp()
	m := g.mesh
	g.mesh, g.inside = nil, nil
	w.closing.Go(func() { _ = m.Close() }) // what it says about its lost disk is no news
}

// Restore puts the state back that was on the disk right after the first start,
// as from an old backup. The gateway must not run.
func (g *Gateway) Restore() { g.disk.replace(g.backup) }

// Enrol makes a gateway anew with a ticket of the first gateway, which
// must run: with new keys under the same name. The gateway must not run.
func (g *Gateway) Enrol() error {
	g.disk.replace(nil)
	g.backup = nil
	g.world.law.changed(g) // its old self is superseded
	return g.world.enrol(g)
}

// SetRoutes changes what the gateway announces, also for later starts; nil
// means all that is granted.
func (g *Gateway) SetRoutes(routes []overlay.Route) error {
	g.routes = routes
	g.world.law.changed(g)
	if g.mesh == nil {
		return nil
	}
	if routes == nil {
		for _, p := range g.Prefixes {
			routes = append(routes, overlay.Route{Prefix: p})
		}
	}
	return g.mesh.SetRoutes(context.Background(), routes)
}

// RestartNAT makes the NAT of a hidden gateway forget its mappings.
func (g *Gateway) RestartNAT() {
	if g.nat != nil {
		g.nat.Restart()
		g.world.law.shaken(g)
	}
}

// disk is what of a gateway survives its process.
type disk struct {
	store   *overlay.MemStore
	process *handle
}

// handle is a disk as one process sees it.
type handle struct {
	*overlay.MemStore
	lost atomic.Bool // the process crashed
}

// open returns the disk for a process.
func (d *disk) open() overlay.Store {
	if d.store == nil {
		d.store = &overlay.MemStore{}
	}
	d.process = &handle{MemStore: d.store}
	return d.process
}

// crash leaves the disk as it is, whatever the process still does.
func (d *disk) crash() {
	if d.process != nil {
		d.process.lost.Store(true)
	}
	d.store = d.store.Clone() // without the lock of the process
}

func (d *disk) copy() map[string][]byte {
	return d.store.Clone().Files()
}

func (d *disk) replace(files map[string][]byte) {
	d.store = overlay.NewMemStore(files)
}

// Save implements overlay.Store.
func (h *handle) Save(name string, b []byte) error {
	if h.lost.Load() {
		return nil
	}
	return h.MemStore.Save(name, b)
}

// Delete implements overlay.Store.
func (h *handle) Delete(name string) error {
	if h.lost.Load() {
		return nil
	}
	return h.MemStore.Delete(name)
}

// compare says why the views of the running gateways are not identical and
// complete as far as they are connected.
func (w *World) compare() error {
	for _, part := range w.parts() {
		if err := w.compareIn(part); err != nil {
			return err
		}
	}
	return nil
}

// parts returns the running gateways, grouped by who reaches whom both ways.
func (w *World) parts() [][]*Gateway {
	var parts [][]*Gateway
	seen := make(map[*Gateway]bool)
	running := w.Running()
	for _, g := range running {
		if seen[g] {
			continue
		}
		seen[g] = true
		part := []*Gateway{g}
		for i := 0; i < len(part); i++ {
			for _, other := range running {
				if !seen[other] && w.connected(part[i], other) {
					seen[other] = true
					part = append(part, other)
				}
			}
		}
		parts = append(parts, part)
	}
	return parts
}

// connected reports whether packets pass both ways between two gateways.
func (w *World) connected(a, b *Gateway) bool {
	return w.network.Connected(a.host.addr, b.host.addr) && w.network.Connected(b.host.addr, a.host.addr)
}

// meets reports whether two gateways can find a direct path.
func (w *World) meets(a, b *Gateway) bool {
	return w.connected(a, b) && w.punch(a, b)
}

// punch reports whether the NATs of two gateways let them find each other.
func (w *World) punch(a, b *Gateway) bool {
	return a.nat == nil || b.nat == nil || !w.options.NAT.Symmetric || w.options.NAT.Open
}

// compareIn is compare for gateways that reach each other. Records come first:
// they are the cheapest to compare.
func (w *World) compareIn(part []*Gateway) error {
	part = slices.DeleteFunc(slices.Clone(part), func(g *Gateway) bool { return g.lied })
	if len(part) == 0 {
		return nil
	}
	first := part[0]
	want := first.inside.Summary()
	for _, g := range part[1:] {
		if g.inside.Summary() != want {
			return fmt.Errorf("%s and %s hold different records: %s", first.Name, g.Name, w.difference(first, g))
		}
	}
	owners := make(map[netip.Prefix]trust.GatewayID)
	for _, g := range part {
		if err := w.complete(g, part); err != nil {
			return err
		}
		for _, r := range g.inside.Desired().Routes {
			if other, seen := owners[r.Prefix]; seen && other != r.Peer {
				return fmt.Errorf("%s reaches %v through %s, another gateway does not", g.Name, r.Prefix, r.Name)
			}
			owners[r.Prefix] = r.Peer
		}
	}
	return nil
}

// complete says what g lacks of the gateways that it reaches.
func (w *World) complete(g *Gateway, part []*Gateway) error {
	routes := make(map[netip.Prefix]string)
	for _, r := range g.inside.Desired().Routes {
		routes[r.Prefix] = r.Site
	}
	for _, other := range part {
		if other == g || !w.meets(g, other) {
			continue
		}
		if !g.inside.Answers(other.inside.ID()) {
			return fmt.Errorf("%s gets no answer from %s", g.Name, other.Name)
		}
		for _, r := range other.mesh.Routes() {
			if other.Site != g.Site && routes[r.Prefix] != other.Site {
				return fmt.Errorf("%s has no route to %v of %s", g.Name, r.Prefix, other.Name)
			}
		}
	}
	return nil
}

// difference names a record that two gateways do not agree about.
func (w *World) difference(a, b *Gateway) string {
	theirs := make(map[trust.GatewayID]*record.Record)
	for _, r := range b.inside.Records() {
		theirs[r.ID] = r
	}
	for _, r := range a.inside.Records() {
		other := theirs[r.ID]
		delete(theirs, r.ID)
		switch name := r.Chain.Certificate.Gateway; {
		case other == nil:
			return fmt.Sprintf("only the first has %s (%s)", name, r.ID.Short())
		case other.BodyHash != r.BodyHash:
			return fmt.Sprintf("%s is at %v and %v", name, r.Order(), other.Order())
		}
	}
	for _, id := range slices.SortedFunc(maps.Keys(theirs), func(a, b trust.GatewayID) int { return slices.Compare(a[:], b[:]) }) {
		return fmt.Sprintf("only the second has %s (%s)", theirs[id].Chain.Certificate.Gateway, id.Short())
	}
	return "none any more"
}

// Aware says who is taken for dead that runs, or for alive that does not; nil
// means that every running gateway takes exactly those for alive that run and
// are connected with it.
func (w *World) Aware() error {
	synctest.Wait()
	for _, g := range w.Running() {
		for _, other := range w.gateways {
			if other == g || other.lied || other.id == (trust.GatewayID{}) {
				continue
			}
			runs := other.mesh != nil && w.meets(g, other)
			if answers := g.inside.Answers(other.id); answers != runs {
				return fmt.Errorf("%s takes %s for alive: %v", g.Name, other.Name, answers)
			}
		}
	}
	return nil
}

// Rerouted names a route that still leads to a gateway which does not run,
// though another one that runs announces its prefix; nil means that there is none.
func (w *World) Rerouted() error {
	synctest.Wait()
	running := w.Running()
	standing := make(map[netip.Prefix]bool)
	dead := make(map[trust.GatewayID]*Gateway)
	for _, g := range w.gateways {
		if g.mesh == nil {
			dead[g.id] = g
			continue
		}
		for _, r := range g.mesh.Routes() {
			standing[r.Prefix] = true
		}
	}
	for _, g := range running {
		for _, r := range g.inside.Desired().Routes {
			if owner := dead[r.Peer]; owner != nil && standing[r.Prefix] {
				return fmt.Errorf("%s reaches %v through %s, which does not run", g.Name, r.Prefix, owner.Name)
			}
		}
	}
	return nil
}

// Active returns the gateway through which the first one reaches a prefix of
// another site, nil if it does not.
func (w *World) Active(p netip.Prefix) *Gateway {
	for _, r := range w.gateways[0].inside.Desired().Routes {
		for _, g := range w.gateways {
			if r.Prefix == p && g.id == r.Peer {
				return g
			}
		}
	}
	return nil
}
