// Package play lets a schedule of faults happen to a simulated mesh.
package play

import (
	"fmt"
	"log/slog"
	"runtime"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/internal/sim/schedule"
	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// Result is what came of a run. JSON-stable.
type Result struct {
	Seed      uint64          `json:"seed"`
	Gateways  int             `json:"gateways"`
	Broken    []string        `json:"broken,omitempty"`  // one line for each broken rule; none: all held
	Virtual   schedule.Moment `json:"virtual"`           // how long the run was
	MassStart schedule.Moment `json:"massStart"`         // until all views were equal for the first time
	Calm      schedule.Moment `json:"calm"`              // the longest time until views were equal again after the last fault of a round
	Arrived   int             `json:"arrived,omitempty"` // packets of the data path, with a carrier
	Packets   uint64          `json:"packets"`
	Bytes     uint64          `json:"bytes"`
	Heap      uint64          `json:"heap"`       // the most bytes in use per gateway, after collections
	Routines  int             `json:"goroutines"` // the most per gateway, in calm
	Digest    string          `json:"digest"`     // of all packets: equal for runs that were
}

// Bound is how long views may differ in calm.
const Bound = 60 * time.Second

// Limits of what one gateway may use, in calm. They grow with the number of
// gateways, since each knows all others: 41 kB and 14 goroutines per pair were
// measured at 30 gateways (docs/performance.md), of which connections that idle
// for up to a minute are most.
const (
	heapBase, heapPerPeer         = 4 << 20, 128 << 10
	routinesBase, routinesPerPeer = 100, 24
)

// player is a run.
type player struct {
	t      testing.TB
	s      schedule.Schedule
	w      *overlaytest.World
	start  time.Time // of the events
	todo   []step
	lost   map[int]bool // gateways that have to enrol, and could not yet
	result Result

	garbage collector
}

// step is something that happens at a time.
type step struct {
	at time.Duration
	do func()
}

// Run lets s happen, in a testing/synctest bubble. log returns what a gateway
// logs to, nil for nothing; log may be nil.
func Run(t testing.TB, s schedule.Schedule, log func(gateway string) *slog.Logger) Result {
	p := &player{t: t, s: s, lost: make(map[int]bool), result: Result{Seed: s.Seed, Gateways: s.Gateways}}
	begin := time.Now()
	p.w = overlaytest.NewWorld(t, overlaytest.WorldOptions{
		Gateways: s.Gateways, Pairs: s.Pairs, Hidden: s.Hidden,
		NAT:     overlaytest.NATOptions{Symmetric: s.NAT == "symmetric", Open: s.NAT == "open"},
		Network: overlaytest.Options{Link: link(s.Link), Seed: s.Seed},
		Carrier: overlaytest.Carrier(s.Carrier), Seed: s.Seed,
		Configure: func(g *overlaytest.Gateway, c *overlay.Config) {
			if log != nil {
				c.Logger = log(g.Name)
			}
		},
	})
	p.massStart()
	if len(p.result.Broken) == 0 {
		p.play()
	}
	stats := p.w.Network().Stats()
	p.result.Packets, p.result.Bytes = stats.Packets, stats.Bytes
	p.result.Arrived = p.w.Arrived()
	p.result.Digest = fmt.Sprintf("%016x", p.w.Network().Digest())
	p.result.Virtual = schedule.Moment(time.Since(begin))
	for _, f := range p.w.Faults() {
		p.broken(f.String())
	}
	p.close()
	return p.result
}

// close ends the world without making its faults those of the test: they are the result.
func (p *player) close() {
	for _, err := range p.w.Stop() {
		p.broken(err.Error())
	}
}

func link(l schedule.Link) overlaytest.Link {
	return overlaytest.Link{
		Delay: time.Duration(l.Delay), Jitter: time.Duration(l.Jitter), Loss: l.Loss,
		Reorder: l.Reorder, Duplicate: l.Duplicate, Rate: l.Rate,
	}
}

func (p *player) broken(line string) { p.result.Broken = append(p.result.Broken, line) }

func (p *player) massStart() {
	for _, g := range p.w.Gateways() {
		if err := g.Start(); err != nil {
			p.broken(err.Error())
			return
		}
		p.sleep(time.Duration(p.s.Stagger))
	}
	took, err := p.converge(Bound)
	if err != nil {
		p.broken(fmt.Sprintf("mass start: views differ after %v: %v", took, err))
	}
	p.result.MassStart = schedule.Moment(took)
}

// play lets all events happen, then undoes them and asks for equal views.
func (p *player) play() {
	p.start = time.Now()
	for _, e := range p.s.Events {
		at := e.At
		if e.Kind == schedule.Calm {
			at++ // after what ends at that moment
		}
		p.at(at, func() { p.begin(e) })
	}
	for len(p.todo) > 0 {
		next := p.todo[0]
		p.todo = p.todo[1:]
		p.sleep(time.Until(p.start.Add(next.at)))
		next.do()
		if len(p.result.Broken) > 0 {
			return
		}
	}
	for _, g := range p.w.Gateways() {
		p.restart(g.Index, "keep")
	}
	p.calm()
}

// at plans a step.
func (p *player) at(at schedule.Moment, do func()) {
	s := step{time.Duration(at), do}
	i, _ := slices.BinarySearchFunc(p.todo, s.at+1, func(s step, at time.Duration) int { return int(s.at - at) })
	p.todo = slices.Insert(p.todo, i, s)
}

// stride is how much virtual time passes between looks at the heap.
const stride = 2 * time.Second

// collectAt is how many bytes of heap are worth a collection: this program
// collects only when it is told, so that its runs repeat.
const collectAt = 1 << 30

// collector keeps the heap small. The zero value has never collected.
type collector struct{ live uint64 } // what the latest collection left, in bytes

// sleep lets virtual time pass and keeps the heap small.
func (p *player) sleep(d time.Duration) {
	for d > 0 {
		time.Sleep(min(d, stride)) // virtual
		d -= stride
		synctest.Wait()
		p.garbage.sometimes()
	}
}

// sometimes collects garbage if there may be much of it. However large the
// heap is, not every look at it may cost a walk over all of it.
func (c *collector) sometimes() {
	var m runtime.MemStats
	if runtime.ReadMemStats(&m); m.HeapAlloc >= c.live+collectAt {
		c.now()
	}
}

// now collects garbage and returns the heap.
func (c *collector) now() uint64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	c.live = m.HeapAlloc
	return c.live
}

// converge is World.Converge with the heap kept small.
func (p *player) converge(limit time.Duration) (time.Duration, error) {
	start := time.Now()
	for {
		err := p.w.Converged()
		took := time.Since(start)
		if err == nil || took > limit {
			return took, err
		}
		time.Sleep(50 * time.Millisecond) // virtual
		p.garbage.sometimes()
	}
}

// calm asks for equal views within the bound, and for bounded memory.
func (p *player) calm() {
	took, err := p.converge(Bound)
	if err != nil {
		p.broken(fmt.Sprintf("views differ %v after the last fault: %v", took, err))
		return
	}
	p.result.Calm = max(p.result.Calm, schedule.Moment(took))
	p.memory()
}

func (p *player) memory() {
	n := uint64(p.s.Gateways) //nolint:gosec // small
	heap := p.garbage.now() / n
	routines := runtime.NumGoroutine() / p.s.Gateways
	p.result.Heap, p.result.Routines = max(p.result.Heap, heap), max(p.result.Routines, routines)
	if limit := heapBase + n*heapPerPeer; heap > limit {
		p.broken(fmt.Sprintf("memory: %d bytes per gateway in calm, want at most %d", heap, limit))
	}
	if limit := routinesBase + p.s.Gateways*routinesPerPeer; routines > limit {
		p.broken(fmt.Sprintf("memory: %d goroutines per gateway in calm, want at most %d", routines, limit))
	}
}

// begin lets an event happen and plans its end.
func (p *player) begin(e schedule.Event) {
	end := func(undo func()) { p.at(e.At+e.For, undo) }
	switch e.Kind {
	case schedule.Partition:
		p.w.Partition(e.Parts...)
		end(p.w.Heal)
	case schedule.OneWay:
		p.w.Cut(e.Who[0], e.Who[1])
		end(func() { p.w.Mend(e.Who[0], e.Who[1]) })
	case schedule.Flap:
		p.flap(e)
	case schedule.Lossy:
		p.lossy(e, link(*e.Link))
	case schedule.Storm:
		p.w.SetDefault(link(*e.Link))
		end(func() { p.w.SetDefault(link(p.s.Link)) })
	case schedule.Crash, schedule.Stop:
		p.down(e)
	case schedule.Rolling:
		p.rolling(e)
	case schedule.Skew:
		for _, i := range e.Who {
			p.w.Gateway(i).SetClock(time.Duration(e.Offset))
		}
	case schedule.Lie:
		for _, i := range e.Who {
			p.w.Lie(i, overlaytest.Lie(e.How))
			end(func() { p.w.Honest(i) })
		}
	case schedule.Hostile:
		p.w.SetHostility(overlaytest.Hostility(e.How))
		end(func() { p.w.SetHostility(overlaytest.Peaceful) })
	case schedule.Withdraw:
		p.withdraw(e)
	case schedule.NATLoss:
		for _, i := range e.Who {
			p.w.Gateway(i).RestartNAT()
		}
	case schedule.Calm:
		before := time.Now()
		p.calm()
		p.sleep(time.Duration(e.For))
		p.start = p.start.Add(time.Since(before)) // the rest of the schedule waits
	}
}

// flap cuts and mends a path every three seconds.
func (p *player) flap(e schedule.Event) {
	a, b := e.Who[0], e.Who[1]
	const period = schedule.Moment(3 * time.Second)
	for at := e.At; at < e.At+e.For; at += 2 * period {
		p.at(at, func() { p.w.Cut(a, b); p.w.Cut(b, a) })
		p.at(min(at+period, e.At+e.For), func() { p.w.Mend(a, b); p.w.Mend(b, a) })
	}
}

// lossy makes the links of some gateways bad, in both directions.
func (p *player) lossy(e schedule.Event, bad overlaytest.Link) {
	each := func(do func(a, b int)) {
		for _, i := range e.Who {
			for j := range p.s.Gateways {
				if i != j {
					do(i, j)
				}
			}
		}
	}
	p.w.Links(func() { each(func(a, b int) { p.w.SetLink(a, b, bad); p.w.SetLink(b, a, bad) }) })
	p.at(e.At+e.For, func() {
		p.w.Links(func() { each(func(a, b int) { p.w.ResetLink(a, b); p.w.ResetLink(b, a) }) })
	})
}

// down takes gateways out and brings them back.
func (p *player) down(e schedule.Event) {
	for _, i := range e.Who {
		if e.Kind == schedule.Crash {
			p.w.Gateway(i).Crash()
		} else if err := p.w.Gateway(i).Stop(); err != nil {
			p.broken(err.Error())
		}
		p.at(e.At+e.For, func() { p.restart(i, e.How) })
	}
}

// rolling restarts one gateway after the other.
func (p *player) rolling(e schedule.Event) {
	pause := e.For / schedule.Moment(len(e.Who))
	for n, i := range e.Who {
		at := e.At + pause*schedule.Moment(n)
		p.at(at, func() {
			if err := p.w.Gateway(i).Stop(); err != nil {
				p.broken(err.Error())
			}
		})
		p.at(at+pause/2, func() { p.restart(i, "keep") })
	}
}

// restart starts a gateway with the state that how says. One that must enrol
// and cannot tries again at its next restart.
func (p *player) restart(i int, how string) {
	g := p.w.Gateway(i)
	if g.Mesh() != nil {
		return
	}
	if how == "restore" && !p.lost[i] {
		g.Restore()
	}
	if how == "enrol" || p.lost[i] {
		p.lost[i] = true
		if p.w.Gateway(0).Mesh() == nil || !p.w.Reaches(0, i) {
			return
		}
		if err := g.Enrol(); err != nil {
			return
		}
		p.lost[i] = false
	}
	if err := g.Start(); err != nil {
		p.broken(err.Error())
	}
}

// withdraw makes gateways announce nothing for a while.
func (p *player) withdraw(e schedule.Event) {
	for _, i := range e.Who {
		if err := p.w.Gateway(i).SetRoutes([]overlay.Route{}); err != nil {
			p.broken(err.Error())
		}
		p.at(e.At+e.For, func() {
			if err := p.w.Gateway(i).SetRoutes(nil); err != nil {
				p.broken(err.Error())
			}
		})
	}
}
