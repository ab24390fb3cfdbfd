package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/hashicorp/memberlist"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// newMesh starts n members that join through the first one.
func newMesh(net *network, n int, change func(*Config)) []*node {
	nodes := make([]*node, n)
	for i := range nodes {
		nodes[i] = net.member(i, change)
	}
	for _, d := range nodes[1:] {
		d.Join([]trust.GatewayID{nodes[0].id})
	}
	return nodes
}

// mustBeHonest checks that the filter left nothing out.
func mustBeHonest(tb testing.TB, nodes ...*node) {
	tb.Helper()
	for i, d := range nodes {
		for name, n := range d.Counters() {
			if n > 0 && strings.HasPrefix(name, "dropped") {
				tb.Errorf("member %d: counter %s: got %d in an honest mesh, want 0", i, name, n)
			}
		}
	}
}

func mustCount(tb testing.TB, d *node, name string, least uint64) {
	tb.Helper()
	if got, ok := d.Counters()[name]; !ok || got < least {
		tb.Errorf("counter %s: got %d (present %v), want at least %d", name, got, ok, least)
	}
}

func TestFiftyMembersFindEachOtherThroughOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 150*time.Millisecond)
		nodes := newMesh(net, 50, nil)
		took := until(t, 15*time.Second, "50 members", func() bool { return complete(nodes) })
		t.Logf("complete after %v", took)
		if err := nodes[7].Broadcast([]byte("news"), "key"); err != nil {
			t.Fatal(err)
		}
		others := append(nodes[:7:7], nodes[8:]...)
		took = until(t, 5*time.Second, "broadcast", func() bool { return heardBy(others, "news") == len(others) })
		t.Logf("broadcast reached all after %v", took)
		mustBeHonest(t, nodes...)
	})
}

// heardBy returns how many heard of a message.
func heardBy(nodes []*node, message string) int {
	n := 0
	for _, d := range nodes {
		if heard(d, func() int { return d.users[message] }) > 0 {
			n++
		}
	}
	return n
}

func TestTwentyMembersWithLossFindEachOther(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 150*time.Millisecond)
		net.setLoss(0.1) // of packets and of streams
		nodes := newMesh(net, 20, nil)
		took := until(t, time.Minute, "20 members", func() bool {
			for _, d := range nodes[1:] {
				if len(d.Members()) == 0 { // as the owner does
					d.Join([]trust.GatewayID{nodes[0].id})
				}
			}
			return complete(nodes)
		})
		t.Logf("complete after %v", took)
		time.Sleep(2 * time.Minute)
		if !complete(nodes) {
			t.Error("members that live are taken for dead")
		}
		mustBeHonest(t, nodes...)
	})
}

func TestCrashAndReturnAreHintedAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 50*time.Millisecond)
		nodes := newMesh(net, 8, nil)
		until(t, 10*time.Second, "8 members", func() bool { return complete(nodes) })
		victim, others := nodes[3], append(nodes[:3:3], nodes[4:]...)
		victim.crash()
		took := until(t, 2*time.Minute, "crash noticed", func() bool {
			for _, d := range others {
				if heard(d, func() bool { return d.alive[victim.id] }) {
					return false
				}
			}
			return true
		})
		t.Logf("crash noticed after %v", took)
		if !complete(others) {
			t.Error("somebody else is taken for dead")
		}
		net.setCut(nil)
		again := net.member(3, nil)
		again.Join([]trust.GatewayID{nodes[0].id})
		took = until(t, 30*time.Second, "return noticed", func() bool {
			for _, d := range others {
				if !heard(d, func() bool { return d.alive[victim.id] }) {
					return false
				}
			}
			return len(again.Members()) == len(others)
		})
		t.Logf("return noticed after %v", took)
		mustBeHonest(t, others...)
	})
}

func TestNewerBroadcastReplacesOlderOfItsKey(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 50*time.Millisecond)
		a, b := net.member(0, nil), net.member(1, nil)
		large := bytes.Repeat([]byte{1}, MaxBroadcast)
		for _, m := range []struct{ b, key string }{{"old", "k"}, {"new", "k"}, {"other", "l"}, {string(large), "m"}} {
			if err := a.Broadcast([]byte(m.b), m.key); err != nil {
				t.Fatal(err)
			}
		}
		for _, size := range []int{0, MaxBroadcast + 1} {
			if err := a.Broadcast(make([]byte, size), "k"); !errors.Is(err, ErrTooLarge) {
				t.Errorf("broadcast of %d bytes: got %v, want ErrTooLarge", size, err)
			}
		}
		b.Join([]trust.GatewayID{a.id})
		until(t, 10*time.Second, "broadcasts", func() bool {
			return heardBy([]*node{b}, "new") == 1 && heardBy([]*node{b}, "other") == 1 && heardBy([]*node{b}, string(large)) == 1
		})
		if heardBy([]*node{b}, "old") > 0 {
			t.Error("a message was sent that a newer one had replaced")
		}
	})
}

func TestBroadcastQueueIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		a := newNetwork(t, 0).member(0, nil)
		for i := range 2 * maxQueuedBroadcasts {
			if err := a.Broadcast([]byte("x"), fmt.Sprint(i)); err != nil {
				t.Fatal(err)
			}
		}
		if got := a.queue.NumQueued(); got > maxQueuedBroadcasts {
			t.Errorf("got %d queued broadcasts, want at most %d", got, maxQueuedBroadcasts)
		}
	})
}

func TestMetadataReachAllMembers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 50*time.Millisecond)
		meta := "summary1"
		nodes := newMesh(net, 5, func(c *Config) {
			if c.Self == testID(2) {
				c.Meta = func() []byte { return []byte(meta) }
			}
		})
		told := func(want string) func() bool {
			return func() bool {
				for i, d := range nodes {
					if i != 2 && heard(d, func() string { return d.metas[nodes[2].id] }) != want {
						return false
					}
				}
				return true
			}
		}
		until(t, 10*time.Second, "first metadata", told(meta))
		meta = "summary2"
		nodes[2].UpdateMeta()
		until(t, 5*time.Second, "new metadata", told(meta))
		meta = "summary3"
		nodes[2].UpdateMeta()
		time.Sleep(3 * time.Second)
		if told(meta)() {
			t.Error("metadata changed twice within ten seconds")
		}
		until(t, 15*time.Second, "newest metadata", told(meta))
		mustBeHonest(t, nodes...)
	})
}

func TestHintsThatWaitAreMerged(t *testing.T) {
	n := newNetwork(t, 0)
	for i := range 3 {
		n.hostile(i)
	}
	stopped, err := New(Config{
		Self: testID(0), Addr: n.addr, Send: n.nodes[testID(0)].send, Open: n.nodes[testID(0)].open,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := (*delegate)(stopped)
	node := func(i int, meta string) *memberlist.Node {
		id := testID(i)
		return &memberlist.Node{Name: id.String(), Addr: testAddr(id).AsSlice(), Port: Port, Meta: []byte(meta)}
	}
	d.NotifyJoin(node(1, "a"))
	d.NotifyUpdate(node(1, "b"))
	d.NotifyUpdate(node(2, "c"))
	d.NotifyLeave(node(2, "c"))
	d.NotifyJoin(node(0, "ourselves"))
	want := map[trust.GatewayID]hint{
		testID(1): {came: true, alive: true, told: true, meta: []byte("b")},
		testID(2): {came: true, told: true, meta: []byte("c")},
	}
	if diff := cmp.Diff(want, stopped.hints, cmp.AllowUnexported(hint{})); diff != "" {
		t.Errorf("hints (-want +got):\n%s", diff)
	}
}

func TestJoinTakesNoMoreThanAMeshCanHave(t *testing.T) {
	n := newNetwork(t, 0)
	n.hostile(0)
	stopped, err := New(Config{
		Self: testID(0), Addr: n.addr, Send: n.nodes[testID(0)].send, Open: n.nodes[testID(0)].open,
	})
	if err != nil {
		t.Fatal(err)
	}
	stopped.Join([]trust.GatewayID{testID(0)})
	if got := len(stopped.joins); got != 0 {
		t.Error("we join ourselves")
	}
	for i := range maxStateNodes + 10 {
		stopped.Join([]trust.GatewayID{testID(i + 1)})
	}
	if got := len(stopped.joins); got != maxStateNodes {
		t.Errorf("got %d joins to make, want %d", got, maxStateNodes)
	}
}

func TestMembersAreStoredGatewaysWithTheirOwnAddress(t *testing.T) {
	n := newNetwork(t, 0)
	n.hostile(0)
	n.hostile(1)
	stopped, err := New(Config{
		Self: testID(0), Addr: n.addr, Send: n.nodes[testID(0)].send, Open: n.nodes[testID(0)].open,
	})
	if err != nil {
		t.Fatal(err)
	}
	d := (*delegate)(stopped)
	node := func(change func(*memberlist.Node)) *memberlist.Node {
		id := testID(1)
		return with(&memberlist.Node{Name: id.String(), Addr: testAddr(id).AsSlice(), Port: Port}, change)
	}
	if err := d.NotifyAlive(node(func(*memberlist.Node) {})); err != nil {
		t.Errorf("stored gateway: got %v", err)
	}
	for name, change := range map[string]func(*memberlist.Node){
		"unknown":        func(m *memberlist.Node) { m.Name = unknownID.String() },
		"other address":  func(m *memberlist.Node) { m.Addr = net.IPv6loopback },
		"other port":     func(m *memberlist.Node) { m.Port = 1 },
		"large metadata": func(m *memberlist.Node) { m.Meta = make([]byte, MaxMeta+1) },
	} {
		if err := d.NotifyAlive(node(change)); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestRevokedMemberIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 50*time.Millisecond)
		nodes := newMesh(net, 4, nil)
		until(t, 10*time.Second, "4 members", func() bool { return complete(nodes) })
		gone := nodes[3]
		net.mu.Lock()
		delete(net.nodes, gone.id) // nobody has its record any more
		net.mu.Unlock()
		before := heard(gone, func() int { return gone.received })
		if !complete(nodes[:3]) {
			t.Error("a revoked member is still shown")
		}
		until(t, 5*time.Minute, "forgotten", func() bool {
			for _, d := range nodes[:3] {
				if d.list.Load().NumMembers() != 3 {
					return false
				}
			}
			return true
		})
		if got := heard(gone, func() int { return gone.received }); got > before+1 { // one may have been on its way
			t.Errorf("got %d packets after the revocation", got-before)
		}
		nodes[0].Packet(gone.id, []byte{typeUser, 1})
		mustCount(t, nodes[0], "dropped_peer", 1)
		mustCount(t, nodes[0], "dropped_destination", 1)
	})
}

func TestPacketNeverBlocks(t *testing.T) {
	net := newNetwork(t, 0)
	release := make(chan struct{})
	d := net.member(0, func(c *Config) { c.OnUser = func(trust.GatewayID, []byte) { <-release } })
	defer close(release)
	const peers = 10
	for i := 1; i <= peers; i++ {
		net.nodes[testID(i)] = &node{id: testID(i)}
	}
	stopped, err := New(Config{Self: d.id, Addr: net.addr, Send: d.send, Open: d.open})
	if err != nil {
		t.Fatal(err)
	}
	user := append([]byte{typeUser}, "x"...)
	ping := func(i int) []byte { return encode(typePing, testPing(testID(i), d.id).fields()) }
	for i := range 2 * peers * ratePackets {
		peer := 1 + i%peers
		d.Packet(testID(peer), user)
		stopped.Packet(testID(peer), ping(peer)) // nobody takes anything out
	}
	mustCount(t, d, "dropped_user_queue", 1)
	if got := stopped.Counters()["dropped_queue"]; got == 0 {
		t.Error("dropped_queue: got 0")
	}
}

func TestNewChecksItsConfig(t *testing.T) {
	addr := func(trust.GatewayID) (netip.Addr, bool) { return testAddr(selfID), true }
	send := func(trust.GatewayID, []byte) error { return nil }
	open := func(context.Context, trust.GatewayID) (net.Conn, error) { return nil, errUnreachable }
	for name, cfg := range map[string]Config{
		"no addresses":     {Send: send, Open: open},
		"no way to send":   {Addr: addr, Open: open},
		"no way to open":   {Addr: addr, Send: send},
		"no record of us":  {Send: send, Open: open, Addr: func(trust.GatewayID) (netip.Addr, bool) { return netip.Addr{}, false }},
		"no IPv6 of our's": {Send: send, Open: open, Addr: func(trust.GatewayID) (netip.Addr, bool) { return netip.MustParseAddr("10.0.0.1"), true }},
	} {
		if _, err := New(cfg); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestRunTwiceIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newNetwork(t, 0).member(0, nil)
		synctest.Wait()
		if err := d.Run(t.Context()); err == nil {
			t.Error("second Run: got no error")
		}
	})
}

// leftovers returns the stacks of goroutines of memberlist and of this package, tests and their callbacks excepted.
func leftovers() []string {
	buf := make([]byte, 16<<20)
	buf = buf[:runtime.Stack(buf, true)]
	var left []string
	for g := range strings.SplitSeq(string(buf), "\n\n") {
		if strings.Contains(g, "hashicorp/memberlist.") || strings.Contains(g, "gossip.(*") {
			left = append(left, g)
		}
	}
	return left
}

// A probe of a member that is gone waits for seconds, one that others were asked to help with longer. Run ends meanwhile.
func TestNoGoroutineIsLeftAfterRun(t *testing.T) {
	for wait := time.Duration(0); wait < 8*time.Second; wait += 250 * time.Millisecond {
		synctest.Test(t, func(t *testing.T) {
			net := newNetwork(t, 50*time.Millisecond)
			nodes := newMesh(net, 5, func(c *Config) { c.Tuning.PushPull = time.Second })
			until(t, 20*time.Second, "5 members", func() bool { return complete(nodes) })
			nodes[4].crash()
			time.Sleep(wait)
			nodes[0].Join([]trust.GatewayID{nodes[1].id, nodes[4].id})
			time.Sleep(30 * time.Millisecond)
			for _, d := range nodes {
				d.halt()
			}
			synctest.Wait()
			if left := leftovers(); len(left) > 0 {
				t.Fatalf("%v after the crash: %d goroutines are left:\n%s", wait, len(left), strings.Join(left, "\n\n"))
			}
		})
	}
}
