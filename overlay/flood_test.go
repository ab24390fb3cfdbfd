package overlay_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/blake2s"

	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/internal/stream"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// outside is where strangers sit: TEST-NET-3.
var outside = netip.MustParseAddr("203.0.113.1")

// outsider is a raw socket of somebody on the underlay.
type outsider struct {
	t    testing.TB
	conn net.PacketConn
}

func (w *world) outsider(addr netip.Addr, port uint16) *outsider {
	w.t.Helper()
	conn, err := w.network.Host(addr).ListenPacket(w.t.Context(), port)
	if err != nil {
		w.t.Fatal(err)
	}
	return &outsider{w.t, conn}
}

func (o *outsider) send(to netip.AddrPort, b []byte) {
	o.t.Helper()
	if _, err := o.conn.WriteTo(b, net.UDPAddrFromAddrPort(to)); err != nil {
		o.t.Fatal(err)
	}
}

// received reads all that arrives within a time.
func (o *outsider) received(wait time.Duration) (packets, bytes int) {
	o.t.Helper()
	buf := make([]byte, 1<<16)
	_ = o.conn.SetReadDeadline(time.Now().Add(wait))
	for {
		n, _, err := o.conn.ReadFrom(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return packets, bytes
		}
		if err != nil {
			o.t.Fatal(err)
		}
		packets, bytes = packets+1, bytes+n
	}
}

// tagged makes a datagram with the tag of a mesh (docs/protocol.md, section 3),
// as everybody can who has seen a ticket.
func tagged(mesh trust.MeshID, typ, version byte, payload []byte) []byte {
	key := trust.Hash("tag-key", mesh[:])
	mac, err := blake2s.New128(key[:])
	if err != nil {
		panic(err)
	}
	mac.Write([]byte{typ, version})
	mac.Write(payload)
	return append(append([]byte{typ, version}, mac.Sum(nil)[:8]...), payload...)
}

// noise is bytes that mean nothing, the same in every run.
func noise(seed uint64, n int) []byte {
	b := make([]byte, 0, n+8)
	for r := rand.New(rand.NewPCG(seed, 1)); len(b) < n; {
		b = binary.BigEndian.AppendUint64(b, r.Uint64())
	}
	return b[:n]
}

// tap remembers what the owner of a socket sends.
type tap struct {
	mu   sync.Mutex // guards sent
	sent []sentDatagram
}

type sentDatagram struct {
	to netip.AddrPort
	b  []byte
}

// on returns the ListenPacket of a host with the tap on it.
func (tp *tap) on(host *overlaytest.Host) listener {
	return func(ctx context.Context, port uint16) (net.PacketConn, error) {
		conn, err := host.ListenPacket(ctx, port)
		return &tapped{conn, tp}, err
	}
}

// to returns what was sent to an address, in order.
func (tp *tap) to(addr netip.AddrPort) [][]byte {
	tp.mu.Lock()
	defer tp.mu.Unlock()
	var out [][]byte
	for _, d := range tp.sent {
		if d.to == addr {
			out = append(out, d.b)
		}
	}
	return out
}

type tapped struct {
	net.PacketConn
	tap *tap
}

func (c *tapped) WriteTo(b []byte, addr net.Addr) (int, error) {
	c.tap.mu.Lock()
	c.tap.sent = append(c.tap.sent, sentDatagram{addr.(*net.UDPAddr).AddrPort(), bytes.Clone(b)})
	c.tap.mu.Unlock()
	return c.PacketConn.WriteTo(b, addr)
}

func TestDatagramsOfStrangersAreCountedAndNotAnswered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		defer w.stop()
		w.start(1)
		w.mustConverge(2, time.Minute)
		time.Sleep(10 * time.Second) // virtual
		before := w.pictures()
		mesh := mustRoot(t, w.stores[0]).ID()
		foreign := mustRoot(t, mustInit(t, "elsewhere")).ID()
		stranger := w.outsider(outside, 0)
		defer stranger.conn.Close()
		right := func(typ byte, payload int) []byte { return tagged(mesh, typ, 1, noise(1, payload)) }
		quic := func(first byte, version uint32) []byte {
			b := binary.BigEndian.AppendUint32([]byte{first}, version)
			return tagged(mesh, 0xB0, 1, append(b, noise(2, 1195)...))
		}
		for _, c := range []struct {
			name, counter string
			b             []byte
		}{
			{"one byte", "link.short", []byte{0x80}},
			{"cut in the tag", "link.short", right(0x80, 100)[:9]},
			{"probe cut in the key ID", "link.short", right(0x80, 7)},
			{"gossip cut in the counter", "link.short", right(0x90, 15)},
			{"cut behind the tag", "link.tag", right(0x90, 100)[:90]},
			{"oversized gossip", "link.oversize", right(0x90, 1223)},
			{"oversized stream carrier", "link.oversize", right(0xB0, 1223)},
			{"oversized probe", "link.oversize", right(0x80, 9000)},
			{"largest datagram", "link.oversize", right(0xA0, 65000)},
			{"wrong version", "link.version", tagged(mesh, 0x80, 2, noise(1, 118))},
			{"version zero", "link.version", tagged(mesh, 0xB0, 0, noise(1, 118))},
			{"wrong tag", "link.tag", append([]byte{0x80, 1}, noise(3, 126)...)},
			{"tag of another mesh", "link.tag", tagged(foreign, 0x80, 1, noise(1, 118))},
			{"type changed", "link.tag", append([]byte{0x90}, right(0x80, 118)[1:]...)},
			{"unknown type", "link.type", right(0xC0, 118)},
			{"relay", "link.type", right(0xA0, 118)},
			{"probe under no key", "link.unknown_key", right(0x80, 118)},
			{"gossip under no key", "link.unknown_key", right(0x90, 118)},
			{"no quic", "stream.refused_packet", right(0xB0, 3)},
			{"version negotiation of quic", "stream.refused_packet", quic(0xC0, 0)},
			{"quic version 2", "stream.refused_packet", quic(0xC0, 0x6b3343cf)},
			{"wireguard without a device", "link.no_device", append([]byte{1, 0, 0, 0}, noise(4, 144)...)},
		} {
			counted := count(w.meshes[0], c.counter)
			for range 10 {
				stranger.send(endpoint(0), c.b)
			}
			if n, _ := stranger.received(time.Second); n != 0 {
				t.Errorf("%s: %d answers, want silence", c.name, n)
			}
			if got := count(w.meshes[0], c.counter) - counted; got != 10 {
				t.Errorf("%s: %s rose by %d, want 10: %v", c.name, c.counter, got, w.meshes[0].Status().Counters)
			}
		}
		w.mustLookLike(before)
	})
}

// resources is what a flood must not make grow.
type resources struct {
	goroutines int
	heap       uint64
	out        uint64 // datagrams that the gateway sent
	outBytes   uint64
	handshakes uint64
}

// spend measures what f costs the only gateway of a world; f returns how many
// datagrams and bytes it sent.
func (w *world) spend(f func() (packets, bytes uint64)) (used resources, in uint64) {
	before, stats, handshakes := measure(), w.network.Stats(), count(w.meshes[0], "stream.handshakes")
	packets, in := f()
	time.Sleep(time.Second) // virtual: answers are under way, nothing else happens
	synctest.Wait()
	after, now := measure(), w.network.Stats()
	return resources{
		goroutines: after.goroutines - before.goroutines,
		heap:       max(after.heap, before.heap) - before.heap,
		out:        now.Packets - stats.Packets - packets,
		outBytes:   now.Bytes - stats.Bytes - in,
		handshakes: count(w.meshes[0], "stream.handshakes") - handshakes,
	}, in
}

func measure() resources {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return resources{goroutines: len(bubble()), heap: m.HeapAlloc}
}

// flood sends a datagram from each of n forged sources to gateway 0.
func (w *world) flood(n int, b func(i int) []byte) (packets, total uint64) {
	for i := range n {
		// As many as its queue holds, then it may read.
		if i%100 == 0 {
			synctest.Wait()
		}
		source := netip.AddrFrom4([4]byte{100, byte(64 + i>>16), byte(i >> 8), byte(i)})
		forged := w.outsider(source, 40000)
		d := b(i)
		forged.send(endpoint(0), d)
		_ = forged.conn.Close()
		packets, total = packets+1, total+uint64(len(d))
	}
	return packets, total
}

const (
	floodSize  = 20_000
	floodSlack = 4 << 20 // bytes of heap that may differ for other reasons
)

func TestFloodFromForgedSourcesBuysNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 1, overlaytest.Options{Seed: 1})
		defer w.stop()
		mesh := mustRoot(t, w.stores[0]).ID()
		flight := w.firstFlight(mesh)
		time.Sleep(time.Minute) // virtual: what the recording has left at the gateway is over
		for _, c := range []struct {
			name string
			b    func(i int) []byte
		}{
			{"noise", func(i int) []byte { return noise(uint64(i), 200) }},
			{"probes", func(i int) []byte { return tagged(mesh, 0x80, 1, noise(uint64(i), 118)) }},
			{"gossip", func(i int) []byte { return tagged(mesh, 0x90, 1, noise(uint64(i), 1000)) }},
			{"short quic packets", func(i int) []byte { return tagged(mesh, 0xB0, 1, append([]byte{0x40}, noise(uint64(i), 60)...)) }},
			{"first flight", func(int) []byte { return flight }},
		} {
			used, in := w.spend(func() (uint64, uint64) { return w.flood(floodSize, c.b) })
			t.Logf("%s: %d bytes in, %+v", c.name, in, used)
			if used.goroutines > 0 || used.heap > floodSlack {
				t.Errorf("%s: grew by %d goroutines and %d bytes", c.name, used.goroutines, used.heap)
			}
			if used.handshakes > 0 {
				t.Errorf("%s: %d handshakes were begun", c.name, used.handshakes)
			}
			if c.name != "first flight" && used.out > 0 {
				t.Errorf("%s: %d answers to strangers, want none", c.name, used.out)
			}
			// A first flight is answered by a Retry, which has no state and is shorter.
			if used.outBytes*4 > in {
				t.Errorf("%s: %d bytes out for %d bytes in, want a quarter at most", c.name, used.outBytes, in)
			}
		}
		if got := len(w.meshes[0].Status().Peers); got != 0 {
			t.Errorf("%d peers, want none", got)
		}
	})
}

// firstFlight records the first packet of a connection to gateway 0, by
// somebody who knows the mesh ID and belongs to another mesh.
func (w *world) firstFlight(mesh trust.MeshID) []byte {
	w.t.Helper()
	other := newAttacker(w.t, mustInit(w.t, "elsewhere", "10.9.0.0/16"))
	other.mesh = mesh
	var record tap
	host := w.network.Host(outside)
	other.runOn(host, 0, record.on(host))
	defer other.stop()
	_ = other.introduce(endpoint(0), other.sign(other.draft(1)))
	sent := record.to(endpoint(0))
	if len(sent) == 0 || len(sent[0]) < 1200 {
		w.t.Fatalf("recorded %d packets, want a first flight", len(sent))
	}
	return sent[0]
}

func TestMemberOfAnotherMeshIsNotIntroduced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		defer w.stop()
		w.start(1)
		w.mustConverge(2, time.Minute)
		time.Sleep(10 * time.Second) // virtual
		before := w.pictures()
		elsewhere := mustInit(t, "site1", "10.1.0.0/16")

		// With its own mesh's tag nobody even hears it.
		deaf := newAttacker(t, elsewhere)
		deaf.run(w.network.Host(outside), 0)
		err := deaf.introduce(endpoint(0), deaf.sign(deaf.draft(1)))
		deaf.stop()
		if err == nil || errors.Is(err, stream.ErrRefused) {
			t.Errorf("introduction with another tag: got %v, want silence", err)
		}
		if got := count(w.meshes[0], "link.tag"); got == 0 {
			t.Error("datagrams with another tag were not counted")
		}

		// With the right tag the certificate is judged.
		m := newAttacker(t, elsewhere)
		m.mesh = mustRoot(t, w.stores[0]).ID()
		m.run(w.network.Host(outside), 0)
		defer m.stop()
		for range 3 {
			if err := m.introduce(endpoint(0), m.sign(m.draft(1))); !errors.Is(err, stream.ErrRefused) {
				t.Errorf("introduction: got %v, want it refused", err)
			}
		}
		for _, name := range []string{"introduction.record", "stream.refused_introduction"} {
			if got := count(w.meshes[0], name); got != 3 {
				t.Errorf("%s: got %d, want 3", name, got)
			}
		}
		time.Sleep(20 * time.Second) // virtual
		w.mustLookLike(before)
	})
}

// What a member sent when it introduced itself is recorded and sent again: from
// elsewhere, to another gateway, and after a restart of the receiver.
func TestReplayedIntroductionBeginsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		w.start(1)
		w.mustConverge(2, time.Minute)
		m := newAttacker(t, w.stores[2])
		var record tap
		host := w.network.Host(underlay(2))
		m.runOn(host, overlay.DefaultPort, record.on(host))
		w.mustAdmit(m)
		recorded := record.to(endpoint(0))
		m.stop()
		time.Sleep(time.Minute) // virtual: the connection and its token are over
		for i := range 2 {
			if got := peerStatus(w.meshes[i], "gw-site2").State; got != overlay.PeerUnreachable {
				t.Fatalf("recorded gateway is %s at %d, want unreachable", got, i)
			}
		}
		replay := func(what string, from netip.Addr, port uint16, i int) {
			t.Helper()
			before := w.pictures()
			names := []string{"stream.handshakes", "stream.introduced", "record.accepted"}
			var counted []uint64
			for _, name := range names {
				counted = append(counted, count(w.meshes[i], name))
			}
			o := w.outsider(from, port)
			defer o.conn.Close()
			in := 0
			for _, b := range recorded {
				o.send(endpoint(i), b)
				in += len(b)
			}
			// To the member's own address gateways send probes anyway.
			if _, out := o.received(10 * time.Second); out > in && from == outside {
				t.Errorf("%s: %d bytes out for %d bytes in", what, out, in)
			}
			for n, name := range names {
				if got := count(w.meshes[i], name) - counted[n]; got != 0 {
					t.Errorf("%s: %s rose by %d", what, name, got)
				}
			}
			w.mustLookLike(before)
		}
		replay("from another address", outside, 0, 0)
		replay("to another receiver", underlay(2), overlay.DefaultPort, 1)
		if err := w.meshes[0].Close(); err != nil {
			t.Fatal(err)
		}
		w.start(0)
		w.until(time.Minute, "gateways meet again", func() bool { return peerStatus(w.meshes[0], "gw-site1").State == overlay.PeerUp })
		time.Sleep(20 * time.Second) // virtual
		replay("after a restart", underlay(2), overlay.DefaultPort, 0)
		replay("after a restart, from another address", outside, 0, 0)
	})
}

// Everything that a running member sent: probes, replies, gossip, streams.
func TestReplayedDatagramsOfAMemberChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		var record tap
		w.start(1)
		cfg := w.config(2)
		cfg.ListenPacket = record.on(w.network.Host(underlay(2)))
		member, err := overlay.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		w.meshes[2] = member
		w.mustConverge(3, time.Minute)
		time.Sleep(20 * time.Second) // virtual
		recorded := record.to(endpoint(0))
		kinds := make(map[byte]uint64)
		for _, b := range recorded {
			kinds[b[0]]++
		}
		if kinds[0x80] == 0 || kinds[0x90] == 0 || kinds[0xB0] == 0 {
			t.Fatalf("recorded %v by type, want probes, gossip and streams", kinds)
		}
		before := w.pictures()
		counted := w.meshes[0].Status().Counters
		o := w.outsider(outside, 0)
		defer o.conn.Close()
		in := 0
		for i, b := range recorded {
			if i%50 == 0 {
				time.Sleep(100 * time.Millisecond) // virtual: its queue is not the point
			}
			o.send(endpoint(0), b)
			in += len(b)
		}
		if _, out := o.received(2 * time.Second); out > in {
			t.Errorf("%d bytes out for %d bytes in", out, in)
		}
		now := w.meshes[0].Status().Counters
		if got := now["link.replay"] - counted["link.replay"]; got != kinds[0x90] {
			t.Errorf("%d replayed gossip datagrams counted, want all %d", got, kinds[0x90])
		}
		if got := now["link.challenge"] - counted["link.challenge"]; got == 0 {
			t.Error("no replayed reply was counted")
		}
		for _, name := range []string{"stream.handshakes", "stream.introduced", "introduction.format"} {
			if now[name] != counted[name] {
				t.Errorf("%s: %d, then %d", name, counted[name], now[name])
			}
		}
		time.Sleep(20 * time.Second) // virtual
		w.mustLookLike(before)
	})
}

// memberlistAccusation says in memberlist's encoding that a member is suspect
// (3) or dead (5), in the name of another (memberlist 0.7, net.go: msgpack).
func memberlistAccusation(typ byte, incarnation uint32, node, from string) []byte {
	text := func(b []byte, s string) []byte {
		if len(s) < 32 {
			return append(append(b, 0xa0|byte(len(s))), s...)
		}
		return append(binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(s))), s...)
	}
	b := text([]byte{typ, 0x83}, "From")
	b = text(text(b, from), "Incarnation")
	b = binary.BigEndian.AppendUint32(append(b, 0xce), incarnation)
	return text(text(b, "Node"), node)
}

func TestForgedDeathInGossipCostsNoRouteAndNoPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newSiege(t, 4)
		defer w.end(m)
		w.mustAdmit(m)
		victim := mustID(t, w.meshes[1])
		before := w.pictures()
		events := []<-chan overlay.Event{w.meshes[0].Watch(t.Context()), w.meshes[2].Watch(t.Context())}
		packets := count(w.meshes[0], "gossip.packets_in")
		const suspect, dead = 3, 5
		for round := range 60 {
			for i := range 3 {
				to := mustID(t, w.meshes[i])
				for _, from := range []trust.GatewayID{m.id, victim} { // the second means that it left
					for _, typ := range []byte{suspect, dead} {
						b := memberlistAccusation(typ, []uint32{0, 1, uint32(round), 1 << 29}[round%4], victim.String(), from.String())
						if err := m.port.SendGossip(to, b); err != nil {
							t.Fatal(err)
						}
					}
				}
			}
			time.Sleep(time.Second) // virtual
			w.mustLookLike(before)
		}
		for i, c := range events {
			for len(c) > 0 {
				t.Errorf("observer %d reports %+v", i, <-c)
			}
		}
		if got := count(w.meshes[0], "gossip.packets_in") - packets; got < 240 {
			t.Errorf("%d gossip packets came in, want the attacker's 240 at least", got)
		}
		for _, name := range []string{"gossip.dropped_malformed", "gossip.dropped_type"} {
			if got := count(w.meshes[0], name); got != 0 {
				t.Errorf("%s: %d: the forged messages were not what memberlist understands", name, got)
			}
		}
		// Nor does it disturb how records spread.
		if err := w.meshes[1].SetRoutes(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		w.until(10*time.Second, "withdrawal reaches the others", func() bool {
			return carrier(w.meshes[0], "10.1.0.0/16") == "" && carrier(w.meshes[2], "10.1.0.0/16") == ""
		})
	})
}

func TestGossipOfANonMemberIsNotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		w.start(1)
		w.mustConverge(2, time.Minute)
		time.Sleep(10 * time.Second) // virtual
		// It has keys and a certificate, but nobody has its record: it has not
		// introduced itself. It learnt the gateways' public keys elsewhere.
		m := newAttacker(t, w.stores[2])
		m.run(w.network.Host(underlay(2)), overlay.DefaultPort)
		defer m.stop()
		honest := m.sign(m.draft(1))
		before := w.pictures()
		for i := range 2 {
			m.meet(w, i)
			id := mustID(t, w.meshes[i])
			unread, packets := count(w.meshes[i], "link.unknown_key"), count(w.meshes[i], "record.accepted")
			for n := range 50 {
				b := append([]byte{8}, honest...)
				if n%2 == 0 {
					b = memberlistAccusation(5, 1, mustID(t, w.meshes[1-i]).String(), id.String())
				}
				if err := m.port.SendGossip(id, b); err != nil {
					t.Fatal(err)
				}
			}
			time.Sleep(time.Second) // virtual
			if got := count(w.meshes[i], "link.unknown_key") - unread; got != 50 {
				t.Errorf("gateway %d counted %d datagrams under no key, want 50", i, got)
			}
			if got := count(w.meshes[i], "record.accepted") - packets; got != 0 {
				t.Errorf("gateway %d accepted %d records", i, got)
			}
		}
		time.Sleep(20 * time.Second) // virtual
		w.mustLookLike(before)
	})
}

// meet teaches the attacker the public keys of gateway i, its address and a
// boot ID, without a word to it.
func (a *attacker) meet(w *world, i int) {
	a.t.Helper()
	other := newAttacker(a.t, w.stores[i])
	intro, err := trust.Introduction{Record: other.sign(other.draft(1)), Boot: other.boot}.Encode()
	if err != nil {
		a.t.Fatal(err)
	}
	if _, err := a.verify(trust.IdentityKey{}, intro, endpoint(i)); err != nil {
		a.t.Fatal(fmt.Errorf("meet gateway %d: %w", i, err))
	}
}
