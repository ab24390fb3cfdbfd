// Package baseline measures plain memberlist, on the defaults that it has for
// a LAN and for a WAN, in the same cases as Planetmesh: on the same in-memory
// network, in virtual time, from the same seeds.
//
// Every member publishes 64 bytes of metadata. The views are full and
// identical if each running member lists exactly the running ones, each with
// its name, address, port and metadata; a member that memberlist suspects is
// still listed. What differs from the defaults: names of nodes are not looked
// up in DNS (all addresses are numbers), nothing is logged.
package baseline

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/planetmesh/planetmesh/internal/sim/figures"
	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// metaSize is what a mesh without signatures would have to tell about a
// member, in bytes: a public key (32), an endpoint (18) and a prefix (up to 17).
// Planetmesh spreads signed records of some 900.
const metaSize = 64

// joinRetry is the time between attempts to join; memberlist itself makes one.
const joinRetry = time.Second

// readyLimit is how long the start before the event may take, longer than
// figures.Limit: that memberlist is slow must not keep its cases from being measured.
const readyLimit = time.Hour

// linger is how long something of a member may still run after its shutdown:
// a probe that it had under way, at most five seconds times an awareness of eight, and
// a dial.
const linger = 2 * time.Minute

// Measure measures a case of figures.MemberlistLAN or figures.MemberlistWAN. Call it in a
// testing/synctest bubble. A scenario that memberlist does not have
// (figures.CrashRoutes), and a mesh that never gets ready for the event, end the test.
func Measure(t testing.TB, c figures.Case) figures.Figure {
	t.Helper()
	m := newMesh(t, c)
	defer m.close()
	switch c.Scenario {
	case figures.MassStart:
		m.until(func() { m.start(0, c.N) })
	case figures.Join:
		m.ready(c.N - 1)
		m.until(func() { m.start(c.N-1, c.N) })
	case figures.Heal:
		m.ready(c.N)
		m.partition()
		m.pass(m.setup.Lasts)
		m.figure.Parts, m.figure.Lasted = len(m.setup.Parts), m.setup.Lasts
		m.until(m.network.Heal)
	case figures.CrashViews:
		m.ready(c.N)
		m.until(m.crash)
	case figures.Idle:
		m.ready(c.N)
		m.figure.Reached = true
	default:
		t.Fatalf("%s has no scenario %s", c.System, c.Scenario)
	}
	return m.figure
}

// mesh is the members of a case.
type mesh struct {
	t       testing.TB
	c       figures.Case
	setup   figures.Setup
	figure  figures.Figure
	network *overlaytest.Network
	wire    *wire
	members []*member // by index; nil: not started
	joining sync.WaitGroup
	behind  int // index of the member whose view was found wrong last
}

// member is a running or crashed one.
type member struct {
	*memberlist.Memberlist
	transport *transport
	line      string // what others have to say about it
	crashed   bool
}

func newMesh(t testing.TB, c figures.Case) *mesh {
	s := c.Setup()
	n := overlaytest.NewNetwork(overlaytest.Options{
		Link: overlaytest.Link{Delay: s.Delay, Jitter: s.Jitter, Loss: s.Loss}, Seed: c.Seed,
	})
	return &mesh{t: t, c: c, setup: s, figure: c.Figure(), network: n, wire: newWire(n, c.Seed), members: make([]*member, c.N)}
}

// settings are the defaults of a profile.
func settings(t testing.TB, profile figures.System) *memberlist.Config {
	t.Helper()
	switch profile {
	case figures.MemberlistLAN:
		return memberlist.DefaultLANConfig()
	case figures.MemberlistWAN:
		return memberlist.DefaultWANConfig()
	}
	t.Fatalf("%s is no profile of memberlist", profile)
	return nil
}

// start starts members from <= i < to, at one moment. All but member 0 join
// through that.
func (m *mesh) start(from, to int) {
	m.t.Helper()
	for i := from; i < to; i++ {
		transport, err := newTransport(m.t.Context(), m.wire, m.network.Host(overlaytest.Underlay(i)))
		if err != nil {
			m.t.Fatal(err)
		}
		meta := newMeta(m.c.Seed, i)
		c := settings(m.t, m.c.System)
		c.Name, c.Transport, c.Delegate = fmt.Sprint("member", i), transport, meta
		c.BindPort, c.AdvertisePort = port, port
		c.DNSConfigPath, c.LogOutput = "", io.Discard
		list, err := memberlist.Create(c)
		if err != nil {
			m.t.Fatal(err)
		}
		d := &member{Memberlist: list, transport: transport, line: line(c.Name, transport.addr.AsSlice(), port, meta)}
		m.members[i] = d
		if i > 0 {
			m.joining.Go(d.join)
		}
	}
}

// join tries until it has worked once, or the member is shut down.
func (d *member) join() {
	first := "member0/" + net.JoinHostPort(overlaytest.Underlay(0).String(), strconv.Itoa(port))
	for {
		if _, err := d.Join([]string{first}); err == nil {
			return
		}
		if d.transport.sleep(joinRetry) != nil {
			return
		}
	}
}

// crash takes the hosts of members away, which say nothing about it.
func (m *mesh) crash() {
	for _, i := range m.setup.Crashed {
		d := m.members[i]
		d.crashed = true
		d.transport.crash()
		m.network.Host(d.transport.addr).Crash()
	}
}

func (m *mesh) partition() {
	var groups [][]netip.Addr
	for _, part := range m.setup.Parts {
		var group []netip.Addr
		for _, i := range part {
			group = append(group, overlaytest.Underlay(i))
		}
		groups = append(groups, group)
	}
	m.network.Partition(groups...)
}

func (m *mesh) close() {
	for _, d := range m.members {
		if d == nil {
			continue
		}
		if err := d.Shutdown(); err != nil {
			m.t.Errorf("shut down: %v", err)
		}
	}
	m.joining.Wait()
	time.Sleep(linger) // virtual
}

// ready starts the first n members, waits for full and identical views and
// measures the traffic of a minute in which nothing happens.
func (m *mesh) ready(n int) {
	m.t.Helper()
	m.start(0, n)
	m.converge()
	m.pass(figures.Settle)
	before := m.sent()
	m.pass(figures.IdleWindow)
	m.figure.Idle = m.rate(before, figures.IdleWindow)
	m.converge() // memberlist may have taken someone for dead meanwhile
}

func (m *mesh) converge() {
	m.t.Helper()
	for start := time.Now(); ; m.pass(figures.Step) {
		err := m.differ()
		if err == nil {
			return
		}
		if time.Since(start) > readyLimit {
			m.t.Fatalf("before the event, after %v: %v", time.Since(start), err)
		}
	}
}

// until measures the time from an event until views are full and identical.
func (m *mesh) until(event func()) {
	before, start := m.sent(), time.Now()
	event()
	err := m.differ()
	for ; err != nil && time.Since(start) < figures.Limit; err = m.differ() {
		m.pass(figures.Step)
	}
	m.figure.Took, m.figure.Reached = time.Since(start), err == nil
	if err != nil {
		m.figure.Took, m.figure.Notes = figures.Limit, err.Error()
	}
	m.figure.During = m.rate(before, max(m.figure.Took, figures.Step))
}

func (m *mesh) sent() uint64 { return m.network.Stats().Bytes + m.wire.sent() }

// rate is in bytes per running member and second.
func (m *mesh) rate(before uint64, took time.Duration) float64 {
	return float64(m.sent()-before) / float64(len(m.running())) / took.Seconds()
}

func (m *mesh) running() []*member {
	return slices.DeleteFunc(slices.Clone(m.members), func(d *member) bool { return d == nil || d.crashed })
}

// differ says why views are not full and identical; nil means that they are.
func (m *mesh) differ() error {
	synctest.Wait() // what memberlist returns is not guarded
	running := m.running()
	want := make([]string, 0, len(running))
	for _, d := range running {
		want = append(want, d.line)
	}
	slices.Sort(want)
	for n := range running {
		// The one that was behind last mostly still is.
		i := (m.behind + n) % len(running)
		if got := running[i].NumMembers(); got != len(running) {
			m.behind = i
			return fmt.Errorf("%s lists %d of %d", running[i].LocalNode().Name, got, len(running))
		}
	}
	for i, d := range running {
		if got := d.view(); !slices.Equal(got, want) {
			m.behind = i
			return fmt.Errorf("%s lists others:\n%s", d.LocalNode().Name, strings.Join(got, "\n"))
		}
	}
	return nil
}

// view is what a member says about all, itself included, in order.
func (d *member) view() []string {
	var lines []string
	for _, n := range d.Members() {
		lines = append(lines, line(n.Name, n.Addr, n.Port, n.Meta))
	}
	slices.Sort(lines)
	return lines
}

func line(name string, addr net.IP, port uint16, meta []byte) string {
	return fmt.Sprintf("%s %v %d %x", name, addr, port, meta)
}

const (
	// stride is how much virtual time passes between looks at the heap.
	stride = 2 * time.Second
	// collectAt is the heap in bytes from which on it is worth to collect: the
	// simulator's processes do so only when they are told, so that runs repeat.
	collectAt = 1 << 30
)

// pass lets virtual time pass with a small heap.
func (m *mesh) pass(d time.Duration) {
	for ; d > 0; d -= stride {
		time.Sleep(min(d, stride)) // virtual
		var s runtime.MemStats
		if runtime.ReadMemStats(&s); s.HeapAlloc >= collectAt {
			runtime.GC()
		}
	}
}

// meta is a memberlist.Delegate that has metadata and nothing else.
type meta []byte

// newMeta is noise, which cannot be compressed, as keys cannot.
func newMeta(seed uint64, i int) meta {
	random := rand.New(rand.NewPCG(seed, uint64(i)<<8|4)) //nolint:gosec // repeatable on purpose
	b := make(meta, metaSize)
	for j := range b {
		b[j] = byte(random.Uint32()) //nolint:gosec // the low bits
	}
	return b
}

// NodeMeta implements memberlist.Delegate.
func (m meta) NodeMeta(int) []byte { return m }

// NotifyMsg implements memberlist.Delegate.
func (meta) NotifyMsg([]byte) {}

// GetBroadcasts implements memberlist.Delegate.
func (meta) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState implements memberlist.Delegate.
func (meta) LocalState(bool) []byte { return nil }

// MergeRemoteState implements memberlist.Delegate.
func (meta) MergeRemoteState([]byte, bool) {}
