package gossip

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// A member that says of another that it is dead: whoever believes it hints at it and works on; the accused speaks up.
func TestForgedDeathCostsNothingButHints(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 50*time.Millisecond)
		nodes := newMesh(net, 6, nil)
		evil := net.hostile(90)
		until(t, 10*time.Second, "6 members", func() bool { return complete(nodes) })
		victim, others := nodes[2], append(nodes[:2:2], nodes[3:]...)
		for round := range 30 {
			incarnation := []uint32{1, uint32(round), 1 << 20, maxRefuted}[round%4]
			dead := encode(typeDead, (&accusation{incarnation, victim.id.String(), evil.id.String()}).fields())
			left := encode(typeDead, (&accusation{incarnation, victim.id.String(), victim.id.String()}).fields())
			for _, d := range nodes {
				_ = evil.send(d.id, compound(dead, left))
			}
			time.Sleep(time.Second)
			// Packets of and to the victim pass as ever.
			message := strings.Repeat("x", round+1)
			_ = victim.send(others[0].id, append([]byte{typeUser}, message...))
			_ = others[1].send(victim.id, append([]byte{typeUser}, message...))
			time.Sleep(100 * time.Millisecond)
			if heardBy([]*node{others[0], victim}, message) != 2 {
				t.Errorf("round %d: a message of or to the accused got lost", round)
			}
		}
		if !heard(others[0], func() bool { _, ok := others[0].alive[victim.id]; return ok }) {
			t.Error("nobody ever heard of the accused")
		}
		until(t, 10*time.Second, "all alive again", func() bool { return complete(nodes) })
	})
}

// With the highest numbers the accused cannot speak up. It comes back when the others have forgotten it and it joins again.
func TestForgedDeathAtTheHighestIncarnationHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 50*time.Millisecond)
		nodes := newMesh(net, 6, nil)
		evil := net.hostile(90)
		until(t, 10*time.Second, "6 members", func() bool { return complete(nodes) })
		victim := nodes[2]
		for _, incarnation := range []uint32{maxRefuted, maxRefuted + 1, maxIncarnation, maxIncarnation + 1, 1<<32 - 1} {
			for _, d := range nodes {
				_ = evil.send(d.id, encode(typeDead, (&accusation{incarnation, victim.id.String(), evil.id.String()}).fields()))
			}
			time.Sleep(time.Second)
		}
		took := until(t, 5*time.Minute, "all alive again", func() bool {
			victim.Join([]trust.GatewayID{nodes[0].id}) // as the owner does
			return complete(nodes)
		})
		t.Logf("healed after %v", took)
		mustCount(t, nodes[0], "dropped_incarnation", 2)
		mustCount(t, victim, "dropped_incarnation", 3)
	})
}

// Everything that a member could say to make others talk to strangers or to go wrong inside.
func TestHostilePacketsLeaveAMeshAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 50*time.Millisecond)
		nodes := newMesh(net, 4, nil)
		evil := net.hostile(90)
		until(t, 10*time.Second, "4 members", func() bool { return complete(nodes) })
		victim := nodes[1].id
		moved := with(testMember(victim), func(m *member) { m.addr = testAddr(evil.id).AsSlice(); m.incarnation = 1000 })
		badVersion := with(testMember(evil.id), func(m *member) { m.vsn = []byte{1, 2, 2, 0, 0, 0} })
		for _, b := range [][]byte{
			encode(typeAlive, moved.aliveFields()),
			encode(typeAlive, badVersion.aliveFields()),
			encode(typeAlive, testMember(unknownID).aliveFields()),
			encode(typePing, testPing(victim, nodes[0].id).fields()),
			encode(typeIndirectPing, testIndirect(victim, nodes[2].id).fields()),
			{typeCompressed, 0x82}, {typeEncrypted, 1}, {typeLabel, 1, 1, 0}, nil,
		} {
			_ = evil.send(nodes[0].id, b)
		}
		time.Sleep(time.Second)
		counted := nodes[0].Counters()
		for name, want := range map[string]uint64{
			"dropped_node": 2, "dropped_version": 1, "dropped_source": 2, "dropped_type": 3, "dropped_malformed": 1,
		} {
			if counted[name] != want {
				t.Errorf("%s: got %d, want %d", name, counted[name], want)
			}
		}
		time.Sleep(5 * time.Minute)
		if !complete(nodes) {
			t.Error("the mesh is not complete any more")
		}
		if got := heard(evil, func() int { return evil.received }); got != 0 {
			t.Errorf("somebody who never joined got %d packets", got)
		}
	})
}

func TestFloodOfOnePeerIsLimited(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10*time.Millisecond)
		nodes := newMesh(net, 3, nil)
		evil := net.hostile(90)
		until(t, 10*time.Second, "3 members", func() bool { return complete(nodes) })
		net.setCut(func(_, to trust.GatewayID) bool { return to == nodes[1].id }) // it cannot be reached
		synctest.Wait()
		before := runtime.NumGoroutine()
		indirect := encode(typeIndirectPing, testIndirect(evil.id, nodes[1].id).fields())
		many := make([][]byte, maxMessages)
		for i := range many {
			many[i] = append([]byte{typeUser}, byte(i), 0)
		}
		for i := range 1000 {
			nodes[0].Packet(evil.id, indirect)
			nodes[0].Packet(evil.id, compound(many...))
			if i%100 == 0 {
				time.Sleep(10 * time.Millisecond)
			}
		}
		synctest.Wait()
		if got := runtime.NumGoroutine() - before; got > 2*rateIndirects+5 {
			t.Errorf("%d goroutines more than before", got)
		}
		if got := nodes[0].Counters()["user_messages_in"]; got > 2*rateUsers+rateUsers/2 {
			t.Errorf("got %d user messages of one peer at once", got)
		}
		mustCount(t, nodes[0], "dropped_rate", 1500)
		dropped := nodes[2].Counters()["dropped_rate"]
		for range 1000 {
			nodes[2].Packet(evil.id, encode(typeAck, (&ack{1}).fields()))
		}
		if got := nodes[2].Counters()["dropped_rate"] - dropped; got != 1000-2*ratePackets {
			t.Errorf("dropped_rate after 1000 acks at once: got %d, want %d", got, 1000-2*ratePackets)
		}
		net.setCut(nil)
		if err := nodes[2].Broadcast([]byte("of others"), "k"); err != nil {
			t.Fatal(err)
		}
		until(t, 3*time.Second, "message of another peer", func() bool { return heardBy(nodes, "of others") >= 2 })
	})
}

// exchangeWith opens a stream to d as the hostile node, writes b and returns all that comes back and how long it took.
func exchangeWith(d, evil *node, b []byte) ([]byte, time.Duration) {
	begin := time.Now()
	c, err := evil.open(context.Background(), d.id)
	if err != nil {
		return nil, 0
	}
	defer c.Close()
	go func() { _, _ = c.Write(b) }()
	got, _ := io.ReadAll(c)
	return got, time.Since(begin)
}

func TestHostileStreamsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10*time.Millisecond)
		d := net.member(0, nil)
		evil := net.hostile(90)
		million := append(append([]byte{typePushPull, 0x81}, appendRaw(nil, "Nodes")...), 0xce, 0, 0x10, 0, 0)
		for name, b := range map[string][]byte{
			"ping":           encode(typePing, testPing(evil.id, d.id).fields()),
			"user message":   append([]byte{typeUser, 0x81}, appendNumber(appendRaw(nil, "UserMsgLen"), 20<<20)...),
			"compressed":     {typeCompressed, 0x82, 0xa4, 'A', 'l', 'g', 'o', 0},
			"encrypted":      {typeEncrypted, 0xff, 0xff, 0xff, 0xff},
			"labelled":       {typeLabel, 1, 'x', typePushPull},
			"million nodes":  million,
			"unfinished":     {typePushPull, 0x83},
			"nothing at all": nil,
		} {
			before := heap()
			got, took := exchangeWith(d, evil, b)
			if took > streamTimeout+time.Second {
				t.Errorf("%s: stream ended after %v", name, took)
			}
			if len(got) > 200 { // memberlist says what it thinks of it
				t.Errorf("%s: got an answer of %d bytes: %.40x", name, len(got), got)
			}
			if grown := heap() - before; grown > 4<<20 {
				t.Errorf("%s: memory grew by %d bytes", name, grown)
			}
		}
		mustCount(t, d, "dropped_state", 7)
	})
}

func TestStreamsOfOthersThanStoredGatewaysAreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newNetwork(t, 0).member(0, nil)
		for i, id := range []trust.GatewayID{unknownID, d.id} {
			ours, theirs := net.Pipe()
			d.Stream(t.Context(), id, theirs) // returns at once
			if _, err := ours.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
				t.Errorf("got %v, want the end", err)
			}
			mustCount(t, d, "dropped_streams", uint64(i+1))
		}
	})
}

func TestExchangeEndsInTimeHoweverSlowThePeerIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10*time.Millisecond)
		d := net.member(0, nil)
		evil := net.hostile(90)
		c, err := evil.open(t.Context(), d.id)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		begin := time.Now()
		state := stateOf(stateHeader{nodes: 1}, testMember(evil.id))
		for len(state) > 0 { // takes 9.8 s; then memberlist answers, which nobody reads
			n := min(3, len(state))
			if _, err := c.Write(state[:n]); err != nil {
				t.Fatal(err)
			}
			state = state[n:]
			time.Sleep(200 * time.Millisecond)
		}
		until(t, time.Minute, "end of the stream", func() bool {
			tr := d.transport
			tr.mu.Lock()
			defer tr.mu.Unlock()
			return len(tr.serving) == 0 && len(tr.endings) == 0
		})
		if took := time.Since(begin); took > streamTimeout+time.Second {
			t.Errorf("stream ended after %v", took)
		}
	})
}

func heap() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.TotalAlloc)
}

func TestHostileStateMergesOnlyWhatIsTrue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10*time.Millisecond)
		d := net.member(0, nil)
		evil, third := net.hostile(90), net.hostile(91)
		b := stateOf(stateHeader{nodes: 4, join: true},
			testMember(evil.id),
			testMember(unknownID),
			with(testMember(third.id), func(m *member) { m.addr = testAddr(evil.id).AsSlice() }),
			with(testMember(third.id), func(m *member) { m.vsn[0], m.vsn[1] = 200, 1 }), // would fail every later exchange
		)
		if got, _ := exchangeWith(d, evil, b); len(got) == 0 || got[0] != typePushPull {
			t.Errorf("answer: got %.40x, want a state", got)
		}
		if got := d.Members(); !slices.Equal(got, []trust.GatewayID{evil.id}) {
			t.Errorf("members: got %v, want the one that exists", got)
		}
		honest := net.member(1, nil)
		honest.Join([]trust.GatewayID{d.id})
		until(t, 5*time.Second, "honest member", func() bool { return slices.Contains(d.Members(), honest.id) })
	})
}

func TestPeerHasOneStreamAndAllHaveEight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 10*time.Millisecond)
		d := net.member(0, nil)
		sit := func(i int) io.Closer { // opens a stream and says nothing
			t.Helper()
			evil := net.hostile(90 + i)
			c, err := evil.open(t.Context(), d.id)
			if err != nil {
				t.Fatal(err)
			}
			return c
		}
		for i := range maxStreams {
			defer sit(i).Close()
		}
		defer sit(0).Close()
		time.Sleep(time.Second)
		mustCount(t, d, "dropped_streams", 1) // the second one of the first peer
		begin := time.Now()
		got, took := exchangeWith(d, net.hostile(99), stateOf(stateHeader{nodes: 1}, testMember(testID(99))))
		if len(got) == 0 {
			t.Errorf("ninth peer: got no answer in %v; it should have waited for a place", took)
		}
		if took := time.Since(begin); took > streamTimeout {
			t.Errorf("ninth peer waited %v", took)
		}
		if got := d.Counters()["dropped_streams"]; got != 1 {
			t.Errorf("dropped streams: got %d, want 1", got)
		}
	})
}

func TestHostileAnswersToOurExchangeAreRefused(t *testing.T) {
	million := append(append([]byte{typePushPull, 0x81}, appendRaw(nil, "Nodes")...), 0xce, 0, 0x10, 0, 0)
	for name, answer := range map[string][]byte{
		"nothing":       nil,
		"million nodes": million,
		"compressed":    {typeCompressed, 0x82},
		"error":         append(append([]byte{typeError, 0x81}, appendRaw(nil, "Error")...), appendRaw(nil, strings.Repeat("x", 4000))...),
		"strangers":     stateOf(stateHeader{nodes: 1}, testMember(unknownID)),
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newNetwork(t, 10*time.Millisecond)
				d := n.member(0, nil)
				evil := n.hostile(90)
				ended := make(chan time.Duration, 1)
				evil.stream = func(_ trust.GatewayID, c net.Conn) {
					begin := time.Now()
					if answer == nil { // memberlist gives ten seconds for writing, and then ten for reading
						time.Sleep(9 * time.Second)
					}
					go func() { _, _ = c.Write(answer) }()
					_, _ = io.Copy(io.Discard, c)
					ended <- time.Since(begin)
					_ = c.Close()
				}
				d.Join([]trust.GatewayID{evil.id})
				if took := <-ended; took > streamTimeout+time.Second {
					t.Errorf("exchange ended after %v", took)
				}
				synctest.Wait()
				if got := d.Members(); len(got) != 0 {
					t.Errorf("members: got %v, want none", got)
				}
			})
		})
	}
}

func TestMemberlistReachesStoredGatewaysOnly(t *testing.T) {
	n := newNetwork(t, 0)
	n.hostile(0)
	peer := n.hostile(1)
	var sent []trust.GatewayID
	g, err := New(Config{
		Self: testID(0), Addr: n.addr,
		Send: func(id trust.GatewayID, _ []byte) error { sent = append(sent, id); return nil },
		Open: func(context.Context, trust.GatewayID) (net.Conn, error) { return nil, errUnreachable },
	})
	if err != nil {
		t.Fatal(err)
	}
	tr := g.transport
	at := func(id trust.GatewayID, port string) string { return net.JoinHostPort(testAddr(id).String(), port) }
	for name, to := range map[string]memberlist.Address{
		"nobody":          {Addr: at(peer.id, "7946"), Name: ""},
		"unknown":         {Addr: at(unknownID, "7946"), Name: unknownID.String()},
		"other address":   {Addr: at(unknownID, "7946"), Name: peer.id.String()},
		"other port":      {Addr: at(peer.id, "53"), Name: peer.id.String()},
		"underlay":        {Addr: "192.0.2.1:7946", Name: peer.id.String()},
		"name to resolve": {Addr: "example.org:7946", Name: peer.id.String()},
		"ourselves":       {Addr: at(testID(0), "7946"), Name: testID(0).String()},
	} {
		_, _ = tr.WriteToAddress([]byte{typeAck}, to) // as good as lost
		if _, err := tr.DialAddressTimeout(to, time.Second); !errors.Is(err, errDestination) {
			t.Errorf("%s: dial: got %v, want %v", name, err, errDestination)
		}
	}
	if len(sent) != 0 {
		t.Errorf("packets went to %v", sent)
	}
	good := memberlist.Address{Addr: at(peer.id, "7946"), Name: peer.id.String()}
	_, _ = tr.WriteToAddress(bytes.Repeat([]byte{1}, MaxPacket+1), good)
	if len(sent) != 0 {
		t.Error("an oversized packet was sent")
	}
	_, _ = tr.WriteToAddress(bytes.Repeat([]byte{1}, MaxPacket), good)
	if !slices.Equal(sent, []trust.GatewayID{peer.id}) {
		t.Errorf("packets went to %v, want %v", sent, peer.id)
	}
	if _, err := tr.DialAddressTimeout(good, time.Second); !errors.Is(err, errUnreachable) {
		t.Errorf("dial: got %v, want %v", err, errUnreachable)
	}
	tr.close()
	if _, err := tr.WriteToAddress([]byte{typeAck}, good); !errors.Is(err, errStopped) || len(sent) != 1 {
		t.Errorf("packet after the end: got %v, want %v", err, errStopped)
	}
	if _, err := tr.WriteTo(nil, good.Addr); err == nil {
		t.Error("packet without a name: got no error")
	}
	if _, err := tr.DialTimeout(good.Addr, time.Second); err == nil {
		t.Error("dial without a name: got no error")
	}
}
