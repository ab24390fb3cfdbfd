package overlaytest

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
)

// WorldOptions describe a World. The zero value of every field but Gateways is
// usable.
type WorldOptions struct {
	// Gateways is how many there are, 1 to 4,000. Gateway 0 founds the mesh and is
	// the seed that every ticket names.
	Gateways int
	// Pairs is how many sites have two gateways with one prefix: the last
	// Pairs gateways are the second ones of sites 1, 2, 3 …
	Pairs int
	// Hidden is how many gateways are behind a NAT of their own: the last ones
	// before the second ones of Pairs.
	Hidden int
	// NAT is what hides them.
	NAT NATOptions
	// Network is the network at first.
	Network Options
	// Carrier says what carries packets; empty means Nothing.
	Carrier Carrier
	// Configure changes the configuration of a gateway before each start; nil
	// changes nothing.
	Configure func(g *Gateway, c *overlay.Config)
	// Bound is how long views of connected gateways may differ after the last
	// fault; zero means 60 s.
	Bound time.Duration
	// Seed makes the random choices of the world repeatable.
	Seed uint64
}

// Carrier says what carries the packets of the gateways of a World.
type Carrier string

// The carriers.
const (
	// Nothing carries nothing: the control plane alone.
	Nothing Carrier = ""
	// Model carries packets by the session rules of WireGuard, without its
	// cryptography: for hundreds of gateways.
	Model Carrier = "model"
	// WireGuard carries packets by the real device, over an in-memory
	// interface: for a few gateways.
	WireGuard Carrier = "wireguard"
)

// World is a mesh of many gateways in one process, in virtual time. Make it
// in a testing/synctest bubble. Its methods are for one goroutine.
type World struct {
	t        testing.TB
	options  WorldOptions
	network  *Network
	random   *rand.Rand
	gateways []*Gateway
	law      *law
	gossip   rumours
	traffic  *traffic
	closing  sync.WaitGroup // meshes that crashed
	founded  time.Time
}

// linger is how long something of a closed mesh may still run: a probe that
// memberlist had under way ends with its own timeout, and a bubble must not
// end before its goroutines.
const linger = 10 * time.Second

// NewWorld founds a mesh of o.Gateways gateways and starts the first. The others have
// joined, and are not started. What goes wrong ends the test.
func NewWorld(t testing.TB, o WorldOptions) *World {
	t.Helper()
	if o.Bound == 0 {
		o.Bound = time.Minute
	}
	w := &World{
		t: t, options: o, network: NewNetwork(o.Network), founded: time.Now(),
		random: rand.New(rand.NewPCG(o.Seed, 1)), //nolint:gosec // repeatable on purpose
	}
	w.law, w.traffic = newLaw(w), newTraffic(w)
	w.gossip.random = rand.New(rand.NewPCG(o.Seed, 2)) //nolint:gosec // repeatable on purpose
	for i := range o.Gateways {
		w.gateways = append(w.gateways, w.newGateway(i))
	}
	if o.Carrier == Nothing {
		close(w.traffic.done)
	} else {
		go w.traffic.run() // until wait
	}
	first := w.gateways[0]
	request := overlay.InitRequest{Mesh: "world", Site: first.Site, Gateway: first.Name, Prefixes: first.Prefixes}
	if _, err := overlay.Init(first.disk.open(), request); err != nil {
		t.Fatalf("found the world: %v", err)
	}
	first.mustStart()
	for _, g := range w.gateways[1:] {
		if err := w.enrol(g); err != nil {
			t.Fatal(err)
		}
	}
	return w
}

// Underlay returns the public underlay address of gateway i, of the block for
// measurements (RFC 2544), so that nothing takes it for a private one.
func Underlay(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{198, 18, byte(i / 250), byte(i%250 + 1)})
}

// hiddenUnderlay is the private address of gateway i behind its NAT.
func hiddenUnderlay(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{172, 16, byte(i / 250), byte(i%250 + 1)})
}

// sitePrefix is what site i announces.
func sitePrefix(i int) netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i / 250), byte(i % 250), 0}), 24)
}

func (w *World) newGateway(i int) *Gateway {
	site, name := i, fmt.Sprintf("gw%d", i)
	o := w.options
	if second := i - (o.Gateways - o.Pairs); second >= 0 {
		site, name = second+1, fmt.Sprintf("gw%db", second+1)
	}
	g := &Gateway{
		Index: i, Name: name, Site: fmt.Sprintf("site%d", site), Prefixes: []netip.Prefix{sitePrefix(site)},
		world: w, disk: &disk{}, second: name != fmt.Sprintf("gw%d", i),
	}
	if hidden := o.Gateways - o.Pairs - o.Hidden; !g.second && i >= hidden && i > 0 {
		g.nat = w.network.NAT(Underlay(i), o.NAT)
		g.host = g.nat.Host(hiddenUnderlay(i))
	} else {
		g.host = w.network.Host(Underlay(i))
	}
	return g
}

// Gateway returns gateway i.
func (w *World) Gateway(i int) *Gateway { return w.gateways[i] }

// Gateways returns all gateways; the caller must not change the slice.
func (w *World) Gateways() []*Gateway { return w.gateways }

// Network returns the network under the world.
func (w *World) Network() *Network { return w.network }

// StartAll starts every gateway that does not run.
func (w *World) StartAll() {
	w.t.Helper()
	for _, g := range w.gateways {
		if g.mesh == nil {
			g.mustStart()
		}
	}
}

// Partition stops packets between groups of gateways, given by their indices,
// until Heal. Those in no group form one more.
func (w *World) Partition(groups ...[]int) {
	var hosts [][]netip.Addr
	for _, group := range groups {
		var addrs []netip.Addr
		for _, i := range group {
			addrs = append(addrs, w.gateways[i].host.addr)
		}
		hosts = append(hosts, addrs)
	}
	w.network.Partition(hosts...)
	w.law.disturbed()
}

// Heal undoes Partition.
func (w *World) Heal() {
	w.network.Heal()
	w.law.disturbed()
}

// Cut stops packets from one gateway to another, in this direction, until Mend.
func (w *World) Cut(from, to int) {
	w.network.Cut(w.gateways[from].host.addr, w.gateways[to].host.addr)
	w.law.disturbed()
}

// Mend undoes Cut.
func (w *World) Mend(from, to int) {
	w.network.Mend(w.gateways[from].host.addr, w.gateways[to].host.addr)
	w.law.disturbed()
}

// SetLink changes the link from one gateway to another, in this direction.
func (w *World) SetLink(from, to int, l Link) {
	w.network.SetLink(w.gateways[from].host.addr, w.gateways[to].host.addr, l)
	w.law.disturbed()
}

// ResetLink undoes SetLink.
func (w *World) ResetLink(from, to int) {
	w.network.ResetLink(w.gateways[from].host.addr, w.gateways[to].host.addr)
	w.law.disturbed()
}

// Links lets change set and reset links of many pairs, and looks at the paths
// once afterwards.
func (w *World) Links(change func()) {
	w.law.hold(change)
	w.law.disturbed()
}

// Reaches reports whether packets pass both ways between two gateways, cuts
// and partitions considered.
func (w *World) Reaches(a, b int) bool { return w.connected(w.gateways[a], w.gateways[b]) }

// SetDefault changes the link of all pairs without one of their own.
func (w *World) SetDefault(l Link) {
	w.network.SetDefault(l)
	w.law.disturbed()
}

// Running returns the gateways that run.
func (w *World) Running() []*Gateway {
	return slices.DeleteFunc(slices.Clone(w.gateways), func(g *Gateway) bool { return g.mesh == nil })
}

// Faults returns what the gateways did that they must not do, so far.
func (w *World) Faults() []Fault { return w.law.broken() }

// Converged says why the views of the running gateways that are connected with
// each other are not identical and complete; nil means that they are.
func (w *World) Converged() error {
	synctest.Wait()
	return w.compare()
}

// Converge lets virtual time pass until all views are identical and complete,
// and returns how long that took, in steps of 50 ms.
func (w *World) Converge(limit time.Duration) (time.Duration, error) {
	start := time.Now()
	for {
		err := w.Converged()
		took := time.Since(start)
		if err == nil || took > limit {
			return took, err
		}
		time.Sleep(50 * time.Millisecond) // virtual
	}
}

// MustConverge is Converge; it ends the test after limit.
func (w *World) MustConverge(limit time.Duration) time.Duration {
	w.t.Helper()
	took, err := w.Converge(limit)
	if err != nil {
		w.t.Fatalf("after %v of virtual time: %v", took, err)
	}
	return took
}

// Close stops every gateway and waits until nothing of them runs. It fails the
// test for every fault.
func (w *World) Close() {
	w.t.Helper()
	for _, err := range w.Stop() {
		w.t.Error(err)
	}
	for _, f := range w.Faults() {
		w.t.Error(f)
	}
}

// enrolTimeout bounds a join, in virtual time.
const enrolTimeout = time.Minute

// enrol joins g by a ticket of the first gateway.
func (w *World) enrol(g *Gateway) error {
	ticket, err := w.gateways[0].mesh.Ticket(overlay.TicketRequest{Site: g.Site, Gateway: g.Name, Prefixes: g.Prefixes})
	if err != nil {
		return fmt.Errorf("ticket for %s: %w", g.Name, err)
	}
	ctx, cancel := context.WithTimeout(w.t.Context(), enrolTimeout)
	defer cancel()
	_, err = overlay.Join(ctx, g.disk.open(), ticket, overlay.JoinOptions{ListenPacket: g.host.ListenPacket, Now: g.now})
	if err != nil {
		return fmt.Errorf("join %s: %w", g.Name, err)
	}
	return nil
}

// Stop stops every gateway and waits until nothing of them runs, as Close, but
// leaves faults alone. It returns what went wrong.
func (w *World) Stop() []error {
	var errs []error
	for _, g := range w.gateways {
		if err := g.Stop(); err != nil {
			errs = append(errs, fmt.Errorf("close %s: %w", g.Name, err))
		}
	}
	w.wait()
	return errs
}

// wait waits until nothing of the gateways runs, all of which were stopped or
// crashed.
func (w *World) wait() {
	close(w.traffic.stop)
	<-w.traffic.done
	w.closing.Wait()
	time.Sleep(linger) // virtual
}
