package wgdev

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/replay"
	"golang.zx2c4.com/wireguard/tai64n"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// day is what happens to three gateways in an hour: packets at random times
// with long breaks, restarts of sessions, and peers that come and go. Returned
// is everything that was sent, with times.
func day(t *testing.T, open func(Config) (Device, error), seed uint64) (trace []string) {
	synctest.Test(t, func(t *testing.T) {
		w := newBubble(t, open)
		w.hub.spread = true
		nodes := []*node{w.node(1), w.node(2), w.node(3)}
		w.know(nodes...)
		began := time.Now()
		r := rand.New(rand.NewPCG(seed, 0))
		for time.Since(began) < time.Hour {
			i := r.IntN(3)
			from, to := nodes[i], nodes[(i+1+r.IntN(2))%3]
			switch n := r.IntN(200); {
			case n == 0:
				// On both sides: else one would wait for answers, with jitter.
				for _, pair := range [][2]*node{{from, to}, {to, from}} {
					other := pair[1].n
					mustApply(t, pair[0].dev, engine.Changes{{Op: engine.RemovePeer, Peer: testID(other), Key: publicKey(other)}},
						addPeer(other, fmt.Sprintf("10.%d.0.0/16", other)))
				}
			case n < 3:
				if err := from.dev.Restart(publicKey(to.n)); err != nil {
					t.Fatal(err)
				}
			case n < 6:
				if err := from.dev.Initiate(publicKey(to.n)); err != nil {
					t.Fatal(err)
				}
			default:
				from.tap.Inject(numbered(from, to, n, 24+r.IntN(1396)))
			}
			// Timers go off whole seconds after something: not at the moment when
			// something else happens.
			pause := time.Duration(1+r.IntN(3000)) * time.Millisecond
			if r.IntN(40) == 0 {
				pause = time.Duration(1+r.IntN(300_000)) * time.Millisecond
			}
			time.Sleep(pause + 7*time.Microsecond)
		}
		for _, m := range w.wire() {
			trace = append(trace, fmt.Sprintf("%v %v", m.At.Sub(began), m))
		}
		for _, s := range nodes {
			trace = append(trace, fmt.Sprintf("%d got %d packets", s.n, len(s.arrived())))
		}
	})
	return trace
}

// Same messages, same sizes, same nanoseconds.
func TestModelSendsWhatWireGuardSends(t *testing.T) {
	// wireguard-go sets a keepalive timer and deletes it in two goroutines
	// (see model.expired); on one processor the order is always the same.
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	for seed := range uint64(20) {
		want, got := day(t, Open, seed), day(t, openModel, seed)
		if diff := firstDifference(want, got); diff != "" {
			t.Errorf("seed %d: %s", seed, diff)
		}
		if len(want) < 500 {
			t.Errorf("seed %d: only %d messages", seed, len(want))
		}
	}
}

func firstDifference(want, got []string) string {
	for i := range max(len(want), len(got)) {
		if i >= len(want) || i >= len(got) || want[i] != got[i] {
			from, to := max(i-5, 0), i+5
			return fmt.Sprintf("message %d of %d and %d: -want +got:\n%s", i, len(want), len(got),
				cmp.Diff(want[from:min(to, len(want))], got[from:min(to, len(got))]))
		}
	}
	return ""
}

func TestModelIsRepeatable(t *testing.T) {
	run := func(seed uint64) (data []byte) {
		synctest.Test(t, func(t *testing.T) {
			w := newBubble(t, func(c Config) (Device, error) { return OpenModel(c, ModelOptions{Seed: seed}) })
			a, b := w.node(1), w.node(2)
			w.know(a, b)
			w.lose(func(wireMessage) bool { return true })
			a.inject(b)
			time.Sleep(30 * time.Second)
			w.lose(nil)
			w.mustReach(b, a, time.Minute)
			for _, m := range w.wire() {
				data = append(append(data, m.At.String()...), m.data...)
			}
		})
		return data
	}
	first := run(7)
	if !bytes.Equal(first, run(7)) {
		t.Error("two runs with one seed differ")
	}
	if bytes.Equal(first, run(8)) {
		t.Error("two runs with different seeds do not differ")
	}
}

func TestModelTakesTimestampsFromItsClock(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBubble(t, openModel)
		a := w.node(1)
		offset := time.Duration(0) // of 2
		w.open = func(c Config) (Device, error) {
			return OpenModel(c, ModelOptions{Now: func() time.Time { return time.Now().Add(offset) }})
		}
		b := w.node(2)
		w.know(a, b)
		w.mustReach(b, a, 0)
		b.close()
		offset = -time.Hour
		b = w.node(2)
		w.know(a, b)
		if d, ok := w.reach(b, a, rejectAfterTime-10*time.Second); ok {
			t.Errorf("2 reached 1 after %v, want not while 1 has the old session", d)
		}
		offset = time.Second // time service has set it right
		w.mustReach(b, a, 6*time.Second)
	})
}

func TestModelForgetsOldSessions(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBubble(t, openModel)
		a, b := w.node(1), w.node(2)
		w.know(a, b)
		r := rand.New(rand.NewPCG(1, 1))
		for range 500 {
			if err := a.dev.Restart(publicKey(2)); err != nil {
				t.Fatal(err)
			}
			a.inject(b)
			if err := b.dev.Initiate(publicKey(1)); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Duration(r.IntN(2000)) * time.Millisecond)
		}
		indices := func(s *node) int {
			m := s.dev.(*model)
			m.mu.Lock()
			defer m.mu.Unlock()
			return len(m.indices)
		}
		for _, s := range []*node{a, b} {
			if n := indices(s); n < 1 || n > 4 {
				t.Errorf("%d has %d indices, want up to 3 sessions and a handshake", s.n, n)
			}
		}
		time.Sleep(3*rejectAfterTime + time.Minute)
		for _, s := range []*node{a, b} {
			if n := indices(s); n != 0 {
				t.Errorf("%d has %d indices after a long silence, want none", s.n, n)
			}
			m := s.dev.(*model)
			m.mu.Lock()
			if len(m.schedule) != 0 {
				t.Errorf("%d has timers after a long silence", s.n)
			}
			m.mu.Unlock()
		}
	})
}

func TestModelNeedsNoDevice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newBubble(t, openModel)
		a := w.node(1)
		d, err := OpenModel(Config{Kind: None, Bind: w.hub.bind(testID(2)), PrivateKey: testKey(2), EndpointText: endpointText}, ModelOptions{})
		if err != nil {
			t.Fatal(err)
		}
		defer closeDevice(t, d)
		mustApply(t, a.dev, addPeer(2))
		mustApply(t, d, addPeer(1))
		if err := d.Initiate(publicKey(1)); err != nil {
			t.Fatal(err)
		}
		w.expect("2>1 type 1 size 148", "1>2 type 2 size 92", "2>1 type 4 size 32")
		if d.MTU() != DefaultMTU {
			t.Errorf("mtu %d, want %d", d.MTU(), DefaultMTU)
		}
	})
}

func TestTapDropsWhatItCannotHold(t *testing.T) {
	tap := NewTap(1280, nil)
	if tap.Inject(make([]byte, 1281)) {
		t.Error("a packet larger than the MTU is taken")
	}
	for i := range tapQueue {
		if !tap.Inject(make([]byte, 1280)) {
			t.Fatalf("packet %d is not taken", i)
		}
	}
	if tap.Inject(make([]byte, 1280)) {
		t.Error("a packet beyond the queue is taken")
	}
	if err := tap.Close(); err != nil {
		t.Error(err)
	}
}

// The window must be that of wireguard-go, whatever comes.
func TestWindowIsThatOfWireGuard(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 200 {
		var want replay.Filter
		var got window
		at := uint64(0)
		for range 2000 {
			switch r.IntN(20) {
			case 0:
				at += r.Uint64N(10_000)
			default:
				at += r.Uint64N(3)
			}
			counter := at - min(at, r.Uint64N(1<<r.IntN(15)))
			if w, g := want.ValidateCounter(counter, rejectAfterMessages), got.first(counter); w != g {
				t.Fatalf("counter %d: got %v, want %v", counter, g, w)
			}
		}
	}
}

func TestStampIsThatOfWireGuard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 100 {
			if want, got := tai64n.Now(), stamp(time.Now()); !bytes.Equal(want[:], got[:]) {
				t.Errorf("%v: got %x, want %x", time.Now(), got, want)
			}
			time.Sleep(time.Duration(rand.Int64N(int64(time.Hour))))
		}
	})
}

// Longest prefixes, against a search through all of them.
func TestAllowedFindsTheLongestPrefix(t *testing.T) {
	r := rand.New(rand.NewPCG(5, 5))
	address := func() netip.Addr {
		b := []byte{10, byte(r.IntN(2)), byte(r.IntN(4)) << 6, byte(r.IntN(256))}
		if r.IntN(2) == 0 {
			b = append([]byte{0xfd, 14: 0}, b[3])
			b[7] = byte(r.IntN(4))
		}
		a, _ := netip.AddrFromSlice(b)
		return a
	}
	a, all := newAllowed(), make(map[netip.Prefix]*modelPeer)
	peers := []*modelPeer{{}, {}, {}}
	for range 5000 {
		addr := address()
		p := netip.PrefixFrom(addr, r.IntN(addr.BitLen()+1)).Masked()
		peer := peers[r.IntN(len(peers))]
		switch r.IntN(10) {
		case 0:
			a.removeAll(peer)
			for p, owner := range all {
				if owner == peer {
					delete(all, p)
				}
			}
		case 1, 2, 3:
			a.remove(p, peer)
			if all[p] == peer {
				delete(all, p)
			}
		default:
			a.set(p, peer)
			all[p] = peer
		}
		addr = address()
		var want *modelPeer
		longest := -1
		for p, owner := range all {
			if p.Contains(addr) && p.Bits() > longest {
				want, longest = owner, p.Bits()
			}
		}
		if a.lookup(addr) != want {
			t.Fatalf("%v: wrong owner", addr)
		}
	}
	for _, p := range peers {
		a.removeAll(p)
	}
	if len(a.sizes[0])+len(a.sizes[1]) != 0 {
		t.Errorf("lengths %v in use, want none", a.sizes)
	}
}

// nowhere is a Bind that sends nothing.
type nowhere struct{ conn.Bind }

func (nowhere) Send([][]byte, conn.Endpoint) error { return nil }

func TestModelAllocatesNothingPerPacket(t *testing.T) {
	m := newModel(Config{Device: NewTap(0, nil), Bind: nowhere{newHub().bind(testID(1))}, PrivateKey: testKey(1), EndpointText: endpointText}, ModelOptions{}, DefaultMTU)
	mustApply(t, m, addPeer(2, "10.2.0.0/16"))
	p := m.peers[publicKey(2)]
	var out outbox
	m.enter(&out)
	m.begin(p, &modelSession{key: secret{1}, initiator: true, local: 7, remote: 7})
	m.leave()
	b := make([]byte, headerSize+1400, headerSize+DefaultMTU+sealSize)
	copy(b[headerSize:], tuntest.Ping(addr(1), addr(2))) // for ourselves, as far as the model can see
	step := func() {
		m.enter(&out)
		m.send(p, b)
		if packet := m.dispatch(sealedIn(b)); packet == nil {
			t.Fatal("dropped")
		}
		m.leave()
	}
	for range 200 { // through the window's first 64
		step()
	}
	if n := testing.AllocsPerRun(1000, step); n != 0 {
		t.Errorf("%v allocations per packet, want none", n)
	}
}

// sealedIn is the message that sealData has made of b.
func sealedIn(b []byte) []byte {
	n := len(b) - headerSize
	return b[:headerSize+n+padding(n, DefaultMTU)+sealSize]
}

func FuzzModel(f *testing.F) {
	msg := initiation{sender: 1, from: publicKey(2), at: stamp(time.Unix(1e9, 0))}
	f.Add(msg.marshal(publicKey(1)))
	answer := response{sender: 1, receiver: 2}
	f.Add(answer.marshal(secret{}))
	f.Add(sealData(make([]byte, headerSize, 100), 1, 0, &secret{}, DefaultMTU))
	f.Add(sealData(append(make([]byte, headerSize, 200), tuntest.Ping(addr(1), addr(2))...), 7, 3, &secret{1}, DefaultMTU))
	f.Fuzz(func(t *testing.T, b []byte) {
		tap := NewTap(0, nil)
		h := newHub()
		m := newModel(Config{Device: tap, Bind: h.bind(testID(1)), PrivateKey: testKey(1), EndpointText: endpointText}, ModelOptions{}, DefaultMTU)
		mustApply(t, m, addPeer(2, "10.2.0.0/16"))
		p := m.peers[publicKey(2)]
		session := &modelSession{key: secret{1}, local: 7, remote: 9}
		var out outbox
		m.enter(&out)
		m.begin(p, session)
		p.initiated, p.localIndex = true, 2
		m.indices[2] = modelIndex{peer: p}
		packet := m.dispatch(b)
		m.mu.Unlock()
		if packet == nil {
			return
		}
		from, _ := source(packet)
		if binary.LittleEndian.Uint32(b[4:]) != 7 || !netip.MustParsePrefix("10.2.0.0/16").Contains(from) || len(packet) > len(b)-dataOverhead {
			t.Errorf("%x is taken", b)
		}
	})
}

// configureMany gives a device n peers with one prefix each.
func configureMany(t testing.TB, d Device, n int) {
	t.Helper()
	var changes engine.Changes
	for i := range n {
		var key trust.ExchangeKey
		binary.LittleEndian.PutUint32(key[:], uint32(i+1))
		id := trust.GatewayID(key[:len(trust.GatewayID{})])
		changes = append(changes,
			engine.Change{Op: engine.AddPeer, Peer: id, Key: key},
			engine.Change{Op: engine.AddPrefix, Peer: id, Key: key, Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 8), byte(i)}), 24)})
	}
	mustApply(t, d, changes)
}

func heapInUse() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// BenchmarkPeerMemory measures what a configured peer costs, without a session.
func BenchmarkPeerMemory(b *testing.B) {
	const devices, peers = 10, 400
	for kind, open := range kinds {
		b.Run(kind, func(b *testing.B) {
			var empty, full uint64
			for b.Loop() {
				h := newHub()
				var binds []*hubBind
				for n := range devices {
					binds = append(binds, h.bind(testID(byte(n))))
				}
				before := heapInUse()
				var opened []Device
				for n, bind := range binds {
					d, err := open(Config{
						Kind: Given, Device: NewTap(0, nil), Bind: bind, PrivateKey: testKey(byte(n)), EndpointText: endpointText,
					})
					if err != nil {
						b.Fatal(err)
					}
					opened = append(opened, d)
				}
				empty = heapInUse()
				for _, d := range opened {
					configureMany(b, d, peers)
				}
				full = heapInUse()
				b.ReportMetric(float64(empty-before)/devices, "B/device")
				b.ReportMetric(float64(full-empty)/devices/peers, "B/peer")
				for _, d := range opened {
					closeDevice(b, d)
				}
			}
		})
	}
}

// BenchmarkPackets sends packets of 1,400 bytes from one device to another, on
// as many cores as there are.
func BenchmarkPackets(b *testing.B) {
	for kind, open := range kinds {
		b.Run(kind, func(b *testing.B) {
			h := newHub()
			arrived := make(chan struct{}, 1<<16)
			station := func(n byte, deliver func([]byte)) (*Tap, Device) {
				tap := NewTap(0, deliver)
				d, err := open(Config{Kind: Given, Device: tap, Bind: h.bind(testID(n)), PrivateKey: testKey(n), EndpointText: endpointText})
				if err != nil {
					b.Fatal(err)
				}
				b.Cleanup(func() { closeDevice(b, d) })
				return tap, d
			}
			from, a := station(1, nil)
			_, c := station(2, func([]byte) { arrived <- struct{}{} })
			mustApply(b, a, addPeer(2, "10.2.0.0/16"))
			mustApply(b, c, addPeer(1, "10.1.0.0/16"))
			packet := make([]byte, 1400)
			copy(packet, tuntest.Ping(addr(2), addr(1))[:ipv4Header])
			binary.BigEndian.PutUint16(packet[2:], 1400)
			from.Inject(packet)
			<-arrived
			b.SetBytes(1400)
			b.ReportAllocs()
			underway := 0
			for b.Loop() {
				if underway == 64 {
					<-arrived
					underway--
				}
				if from.Inject(packet) {
					underway++
				}
			}
			for range underway {
				<-arrived
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "packets/s")
		})
	}
}
