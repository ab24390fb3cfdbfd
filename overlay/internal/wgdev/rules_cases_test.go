package wgdev

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
)

func testFlow(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	for range 3 {
		w.mustReach(a, b, 0)
		w.mustReach(b, a, 0)
	}
	// 32 bytes: IP, ICMP and 4 bytes of payload.
	w.expect("1>2 type 1 size 148", "2>1 type 2 size 92", "1>2 type 4 size 64",
		"2>1 type 4 size 64", "1>2 type 4 size 64", "2>1 type 4 size 64", "1>2 type 4 size 64", "2>1 type 4 size 64")
	for _, pair := range [][2]*node{{a, b}, {b, a}} {
		got := pair[0].stats(pair[1])
		if time.Since(got.LastHandshake) != 0 {
			w.t.Errorf("%d: handshake %v ago, want now", pair[0].n, time.Since(got.LastHandshake))
		}
		if other := pair[1].stats(pair[0]); got.Tx != other.Rx {
			w.t.Errorf("%d sent %d bytes, %d received %d", pair[0].n, got.Tx, pair[1].n, other.Rx)
		}
	}
}

// numbered is a packet from a to b that carries a number, of some size.
func numbered(a, b *node, number, size int) []byte {
	p := make([]byte, max(size, ipv4Header+4))
	copy(p, tuntest.Ping(addr(b.n), addr(a.n))[:ipv4Header])
	p[2], p[3] = byte(len(p)>>8), byte(len(p))
	copy(p[ipv4Header:], fmt.Sprintf("%04d", number))
	return p
}

func testStaging(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	w.lose(func(wireMessage) bool { return true })
	var want []string
	for i := range 200 {
		p := numbered(a, b, i, 24+7*i)
		if !a.tap.Inject(p) {
			w.t.Fatalf("packet %d is not taken", i)
		}
		synctest.Wait()
		want = append(want, string(p))
	}
	w.lose(nil)
	time.Sleep(6 * time.Second)
	got := b.arrived()
	// wireguard-go prepares packets in parallel and may hand the first to the
	// network before the queue is full: what counts are the last 128, in order.
	if diff := cmp.Diff(want[len(want)-128:], got); diff != "" {
		w.t.Errorf("%d packets arrived, want the last 128 of 200 as they were: -want +got:\n%s", len(got), diff)
	}
	for _, m := range w.wire() {
		if m.Type == typeData && m.Size%16 != 0 && m.Size != DefaultMTU+dataOverhead {
			w.t.Errorf("message of %d bytes, want it padded", m.Size)
		}
	}
	if w.t.Failed() {
		return
	}
	full := numbered(a, b, 1, DefaultMTU) // is not padded beyond the MTU
	a.tap.Inject(full)
	if got := b.arrived(); !slices.Equal(got, []string{string(full)}) {
		w.t.Errorf("%d packets arrived, want one as large as the MTU", len(got))
	}
	w.expect(fmt.Sprintf("1>2 type 4 size %d", DefaultMTU+dataOverhead))
}

func testAllowed(w *bubble) {
	a, b := w.pair()
	c := w.node(3)
	w.know(a, b, c)
	w.mustReach(a, c, 0)
	w.wire()
	ipv6 := make([]byte, ipv6Header+8)
	ipv6[0], ipv6[5] = 6<<4, 8
	to := netip.MustParseAddr("fd00::2").As16()
	copy(ipv6[24:], to[:])
	for name, p := range map[string][]byte{
		"to nobody":     tuntest.Ping(netip.MustParseAddr("10.9.0.1"), addr(1)),
		"no ip":         append([]byte{5 << 4}, make([]byte, 40)...),
		"empty":         {},
		"short ipv4":    tuntest.Ping(addr(2), addr(1))[:ipv4Header-1],
		"ipv6 nobody's": ipv6,
	} {
		a.tap.Inject(p)
		if got := lines(w.wire()); len(got) != 0 {
			w.t.Errorf("%s: sent %v, want nothing", name, got)
		}
	}
	cut := tuntest.Ping(addr(2), addr(1))
	cut[3] = 200 // says that it is longer
	tiny := tuntest.Ping(addr(2), addr(1))
	tiny[3] = ipv4Header - 1
	for name, p := range map[string][]byte{
		"source of nobody":       tuntest.Ping(addr(2), addr(9)),
		"source of another peer": tuntest.Ping(addr(2), addr(3)),
		"source of the receiver": tuntest.Ping(addr(2), addr(2)),
		"cut off":                cut,
		"shorter than a header":  tiny,
	} {
		a.tap.Inject(p)
		if got := b.arrived(); len(got) != 0 {
			w.t.Errorf("%s: arrived", name)
		}
		w.expect("1>2 type 4 size 64")
	}
	w.mustReach(a, b, 0)

	mustApply(w.t, a.dev, addPeer(2, "fd00::/64"))
	mustApply(w.t, b.dev, addPeer(1, "fd00:1::/64"))
	a.tap.Inject(ipv6) // from ::
	if len(b.arrived()) != 0 {
		w.t.Error("ipv6 packet from a foreign address arrived")
	}
	from := netip.MustParseAddr("fd00:1::1").As16()
	copy(ipv6[8:], from[:])
	a.tap.Inject(ipv6)
	if got := b.arrived(); len(got) != 1 || got[0] != string(ipv6) {
		w.t.Errorf("got %x, want %x", got, ipv6)
	}
}

func testLongestPrefix(w *bubble) {
	a, b, c := w.node(1), w.node(2), w.node(3)
	mustApply(w.t, a.dev, addPeer(2, "10.0.0.0/8"), addPeer(3, "10.7.0.0/16", "10.2.7.0/24", "0.0.0.0/0"))
	for _, s := range []*node{b, c} {
		mustApply(w.t, s.dev, addPeer(1, "10.1.0.0/16"))
	}
	check := func(to string, wantB, wantC int) {
		w.t.Helper()
		a.tap.Inject(tuntest.Ping(netip.MustParseAddr(to), addr(1)))
		if gotB, gotC := len(b.arrived()), len(c.arrived()); gotB != wantB || gotC != wantC {
			w.t.Errorf("%s: %d packets at 2 and %d at 3, want %d and %d", to, gotB, gotC, wantB, wantC)
		}
	}
	change := func(op engine.Op, n byte, p string) {
		w.t.Helper()
		mustApply(w.t, a.dev, engine.Changes{{Op: op, Peer: testID(n), Key: publicKey(n), Prefix: netip.MustParsePrefix(p)}})
	}
	check("10.2.0.1", 1, 0)
	check("10.2.7.1", 0, 1)
	check("10.2.8.1", 1, 0)
	check("10.7.7.1", 0, 1)
	check("192.0.2.1", 0, 1)
	change(engine.RemovePrefix, 3, "10.2.7.0/24")
	check("10.2.7.1", 1, 0)
	change(engine.AddPrefix, 2, "10.7.0.0/16") // moves
	check("10.7.7.1", 1, 0)
	change(engine.RemovePrefix, 3, "10.7.0.0/16") // no longer its own
	check("10.7.7.1", 1, 0)
	change(engine.RemovePrefix, 3, "0.0.0.0/0")
	check("192.0.2.1", 0, 0)
	mustApply(w.t, a.dev, engine.Changes{{Op: engine.RemovePeer, Peer: testID(2), Key: publicKey(2)}})
	check("10.2.0.1", 0, 0)
}

func testLostInitiation(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	for _, tt := range []struct {
		from, to *node
		wait     time.Duration
	}{{a, b, secondRetry}, {b, a, firstRetry}} {
		lost := 0
		w.lose(func(wireMessage) bool { lost++; return lost <= 5 })
		tt.from.inject(tt.to)
		time.Sleep(20 * time.Second)
		if len(tt.to.arrived()) != 1 {
			w.t.Error("the packet that began it did not arrive")
		}
		sent := w.wire()
		for i := range 6 {
			if sent[i].Type != typeInitiation || sent[i].From != testID(tt.from.n) {
				w.t.Fatalf("message %d is %v, want an initiation", i, sent[i])
			}
		}
		for i := range maxRetries {
			w.mustTake("one of the first retries", sent[i+1].At.Sub(sent[i].At), tt.wait, tt.wait)
		}
		for i := maxRetries; i < 5; i++ {
			w.mustTake("a later retry", sent[i+1].At.Sub(sent[i].At), rekeyTimeout, rekeyTimeout+rekeyJitter)
		}
		w.lose(nil)
		time.Sleep(10 * time.Minute)
		w.wire()
	}
}

func testLostResponse(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	lost := false
	w.lose(func(m wireMessage) bool {
		lose := m.Type == typeResponse && !lost
		lost = lost || lose
		return lose
	})
	a.inject(b)
	began := time.Now()
	for len(b.arrived()) == 0 && time.Since(began) < time.Minute {
		time.Sleep(10 * time.Millisecond)
	}
	// The responder knows that there should be a session, and has the smaller key.
	w.mustTake("the packet", time.Since(began), firstRetry, firstRetry)
}

// A session that is good is not given up to renew it sooner.
func testLostRekey(w *bubble) {
	a, b := w.pair()
	time.Sleep(rekeyAfterTime + time.Millisecond)
	w.wire()
	began := time.Now()
	w.lose(func(m wireMessage) bool { return m.Type == typeInitiation && time.Since(began) < time.Second })
	for range 100 {
		a.inject(b)
		synctest.Wait()
		time.Sleep(100 * time.Millisecond)
	}
	if got := len(b.arrived()); got != 100 {
		w.t.Errorf("%d packets arrived, want 100: the session is good for 60 s more", got)
	}
	sent := w.handshakes(began)
	if len(sent) != 2 || sent[0] != "1 at 0s" {
		w.t.Errorf("handshakes %v, want one and another 5 s later", sent)
	}
}

func testGivingUp(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	w.lose(func(wireMessage) bool { return true })
	began := time.Now()
	a.inject(b)
	time.Sleep(10 * time.Minute)
	sent := w.wire()
	if want := 1 + maxRetries + maxRetransmits + 1; len(sent) != want {
		w.t.Errorf("%d attempts, want %d", len(sent), want)
	}
	w.mustTake("all attempts", sent[len(sent)-1].At.Sub(began), 90*time.Second, 110*time.Second)
	w.lose(nil)
	time.Sleep(time.Minute)
	w.expect()
	if len(b.arrived()) != 0 {
		w.t.Error("a packet that waited arrived after it was given up")
	}
	w.mustReach(a, b, 0) // the next one begins anew
}

func testConfirmation(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	w.lose(func(m wireMessage) bool { return m.Type == typeData && m.From == testID(1) })
	a.inject(b)
	synctest.Wait()
	w.lose(nil)
	w.expect("1>2 type 1 size 148", "2>1 type 2 size 92", "1>2 type 4 size 64")
	b.inject(a)
	w.expect() // it may be that 1 has no session
	d := w.mustReach(b, a, time.Minute)
	w.mustTake("a handshake of 2", d, firstRetry, firstRetry)
	if m := lines(w.wire()); m[0] != "2>1 type 1 size 148" {
		w.t.Errorf("first %s, want an initiation of 2", m[0])
	}
}

// handshakes are the times of initiations since began, by sender.
func (w *bubble) handshakes(began time.Time) (out []string) {
	for _, m := range w.wire() {
		if m.Type == typeInitiation {
			out = append(out, fmt.Sprintf("%d at %v", m.From[0], m.At.Sub(began)))
		}
	}
	return out
}

func testRekeySending(w *bubble) {
	a, b := w.pair()
	began := time.Now()
	for range 300 {
		a.inject(b)
		b.inject(a)
		synctest.Wait()
		time.Sleep(time.Second)
	}
	if diff := cmp.Diff([]string{"1 at 2m1s", "1 at 4m2s"}, w.handshakes(began)); diff != "" {
		w.t.Errorf("handshakes: -want +got:\n%s", diff)
	}
	if a, b := len(a.arrived()), len(b.arrived()); a != 300 || b != 300 {
		w.t.Errorf("%d and %d packets arrived, want 300 each", a, b)
	}
}

func testRekeyListening(w *bubble) {
	a, b := w.pair()
	began := time.Now()
	for range 285 { // 199.5 s
		b.inject(a)
		synctest.Wait()
		time.Sleep(700 * time.Millisecond)
	}
	// Its keepalives are sending, too.
	if diff := cmp.Diff([]string{"1 at 2m5.5s"}, w.handshakes(began)); diff != "" {
		w.t.Errorf("handshakes: -want +got:\n%s", diff)
	}
	if got := len(a.arrived()); got != 285 {
		w.t.Errorf("%d packets arrived, want 285", got)
	}
}

func testRekeyLate(w *bubble) {
	a, b := w.pair()
	time.Sleep(11 * time.Second)
	w.wire() // a keepalive of 2
	time.Sleep(154 * time.Second)
	b.inject(a)
	w.expect("2>1 type 4 size 64")
	time.Sleep(time.Second)
	b.inject(a)
	w.expect("2>1 type 4 size 64", "1>2 type 1 size 148", "2>1 type 2 size 92", "1>2 type 4 size 32")
}

func testReject(w *bubble) {
	a, b := w.pair()
	w.hub.hold()
	a.inject(b)
	synctest.Wait()
	time.Sleep(rejectAfterTime + time.Millisecond)
	w.hub.release(false)
	if len(b.arrived()) != 0 {
		w.t.Error("a packet that was under way for longer than 180 s arrived")
	}
	w.wire()
	time.Sleep(10 * time.Minute)
	w.wire()
	w.mustReach(a, b, 0)
	if got := lines(w.wire()); len(got) != 3 || got[0] != "1>2 type 1 size 148" {
		w.t.Errorf("sent %v, want a handshake and the packet", got)
	}
	time.Sleep(rejectAfterTime + time.Millisecond)
	w.wire()
	w.mustReach(b, a, 0) // also the responder begins a new one
	if got := lines(w.wire()); len(got) != 3 || got[0] != "2>1 type 1 size 148" {
		w.t.Errorf("sent %v, want a handshake and the packet", got)
	}
}

func testKeepalive(w *bubble) {
	a, b := w.pair()
	time.Sleep(keepaliveTimeout - time.Millisecond)
	w.expect()
	time.Sleep(time.Millisecond)
	w.expect("2>1 type 4 size 32")
	time.Sleep(time.Minute)
	w.expect()
	b.inject(a) // what 1 has to say itself is answer enough
	synctest.Wait()
	time.Sleep(keepaliveTimeout - time.Millisecond)
	a.inject(b)
	time.Sleep(keepaliveTimeout - time.Millisecond)
	w.expect("2>1 type 4 size 64", "1>2 type 4 size 64")
	time.Sleep(time.Millisecond)
	w.expect("2>1 type 4 size 32")
}

func testHole(w *bubble) {
	a, b := w.pair()
	w.mustReach(b, a, 0)
	b.close()
	b = w.node(2)
	w.know(b, a)
	d := w.mustReach(a, b, time.Minute)
	w.mustTake("the hole", d, keepaliveTimeout+rekeyTimeout, 21*time.Second)
}

// tick passes the time between two handshakes of one peer that count: their
// timestamps differ, and they are no flood.
func (w *bubble) tick() { time.Sleep(initiationEvery + time.Millisecond) }

func testRestart(w *bubble) {
	a, b := w.pair()
	w.mustReach(b, a, 0)
	for range 5 {
		b.close()
		b = w.node(2)
		w.know(b, a)
		w.tick()
		if err := a.dev.Restart(publicKey(2)); err != nil {
			w.t.Fatal(err)
		}
		w.mustReach(a, b, 0)
		w.mustReach(b, a, 0)
	}
}

func testRestartedBegins(w *bubble) {
	a, b := w.pair()
	b.close()
	b = w.node(2)
	w.know(b, a)
	w.tick()
	w.mustReach(b, a, 0)
	w.mustReach(a, b, 0)
}

func testCollision(w *bubble) {
	a, b := w.pair()
	w.mustReach(b, a, 0)
	w.tick()
	w.hub.hold()
	began := time.Now()
	for _, err := range []error{a.dev.Restart(publicKey(2)), b.dev.Restart(publicKey(1))} {
		if err != nil {
			w.t.Fatal(err)
		}
	}
	synctest.Wait()
	w.hub.release(true)
	synctest.Wait()
	w.hub.release(false)
	w.mustReach(a, b, time.Minute)
	w.mustReach(b, a, time.Minute)
	w.mustTake("settling", time.Since(began), 900*time.Millisecond, 2*time.Second)
}

// A session that the peer has asked for just now is left to it.
func testAnswered(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	w.lose(func(m wireMessage) bool { return m.From == testID(2) })
	b.inject(a) // 2 will try again after firstRetry
	time.Sleep(firstRetry - 10*time.Millisecond)
	w.lose(func(m wireMessage) bool { return m.Type == typeData })
	a.inject(b)
	w.expect("2>1 type 1 size 148", "1>2 type 1 size 148", "2>1 type 2 size 92", "1>2 type 4 size 64")
	time.Sleep(firstRetry / 2)
	w.expect()
	w.lose(nil)
	w.mustReach(a, b, 0)
	w.mustReach(b, a, 0)
}

func testInitiate(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	initiate := func() {
		w.t.Helper()
		if err := a.dev.Initiate(publicKey(2)); err != nil {
			w.t.Fatal(err)
		}
		synctest.Wait()
	}
	initiate()
	w.expect("1>2 type 1 size 148", "2>1 type 2 size 92", "1>2 type 4 size 32")
	time.Sleep(time.Minute)
	w.expect()
	initiate()
	w.expect("1>2 type 4 size 32")
	b.close()
	time.Sleep(10 * time.Minute)
	w.wire()
	initiate()
	time.Sleep(time.Minute)
	if got := lines(w.wire()); len(got) < 10 || slices.ContainsFunc(got, func(s string) bool { return s != "1>2 type 1 size 148" }) {
		w.t.Errorf("sent %v, want initiations", got)
	}
}

func testReplay(w *bubble) {
	w.hub.twice = true
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	for i := range 100 {
		a.inject(b)
		if got := len(b.arrived()); got != 1 {
			w.t.Fatalf("packet %d arrived %d times, want once", i, got)
		}
		b.inject(a)
		if got := len(a.arrived()); got != 1 {
			w.t.Fatalf("packet %d back arrived %d times, want once", i, got)
		}
	}
	w.hub.mu.Lock()
	w.hub.twice = false
	w.hub.mu.Unlock()
	replayed := w.wire()
	for _, m := range replayed {
		time.Sleep(time.Millisecond)
		to := map[byte]*node{1: a, 2: b}[m.To[0]]
		w.deliver(m.From, to, m.data)
		w.deliver(m.To, map[byte]*node{1: a, 2: b}[m.From[0]], m.data) // back to its sender
	}
	if a, b := len(a.arrived()), len(b.arrived()); a != 0 || b != 0 {
		w.t.Errorf("%d and %d packets arrived again", a, b)
	}
	w.expect()
	// What overtook others by less than the window is taken, once.
	w.hub.hold()
	for range 500 {
		a.inject(b)
		synctest.Wait()
	}
	w.hub.mu.Lock()
	slices.Reverse(w.hub.later)
	w.hub.later = slices.Concat(w.hub.later, w.hub.later)[:900]
	w.hub.mu.Unlock()
	w.hub.release(false)
	if got := len(b.arrived()); got != 500 {
		w.t.Errorf("%d packets arrived, want 500", got)
	}
}

func testRoaming(w *bubble) {
	a, b := w.pair()
	w.mustReach(b, a, 0)
	a.inject(b)
	b.inject(a)
	synctest.Wait()
	for _, m := range w.wire() {
		w.deliver(testID(7), map[byte]*node{1: a, 2: b}[m.To[0]], m.data)
	}
	w.hub.hold()
	b.inject(a)
	synctest.Wait()
	held := w.wire()
	w.deliver(testID(7), a, held[0].data) // the first to arrive comes from elsewhere
	w.hub.release(false)
	if len(a.arrived()) != 2 {
		w.t.Error("a packet from elsewhere did not arrive")
	}
	w.mustReach(a, b, 0)
	w.tick()
	if err := a.dev.Restart(publicKey(2)); err != nil {
		w.t.Fatal(err)
	}
	w.mustReach(a, b, 0)
	for _, s := range []*node{a, b} {
		if n := s.bind.strayed.Load(); n != 0 {
			w.t.Errorf("%d packets of %d went to the source of a packet", n, s.n)
		}
	}
}

func testRemoval(w *bubble) {
	a, b := w.pair()
	remove := engine.Changes{{Op: engine.RemovePeer, Peer: testID(1), Key: publicKey(1)}}
	mustApply(w.t, b.dev, remove)
	a.inject(b)
	if len(b.arrived()) != 0 {
		w.t.Error("a packet of a removed peer arrived")
	}
	w.wire()
	if err := a.dev.Restart(publicKey(2)); err != nil {
		w.t.Fatal(err)
	}
	time.Sleep(4 * time.Second)
	for _, m := range w.wire() {
		if m.From != testID(1) {
			w.t.Errorf("%v: a removed peer is answered", m)
		}
	}
	w.know(a, b)
	w.mustReach(a, b, 10*time.Second)
}

func testStrangers(w *bubble) {
	a, b := w.pair()
	c := w.node(3)
	mustApply(w.t, c.dev, addPeer(2, "10.2.0.0/16"))
	c.inject(b) // 2 does not know it
	synctest.Wait()
	w.wire()
	before := b.stats(a)
	for kind := range 6 {
		for size := range 200 {
			w.deliver(testID(1), b, append([]byte{byte(kind), 0, 0, 0}, make([]byte, size)...)[:max(size, 1)])
		}
	}
	// A session of others, and an initiation for somebody else.
	d := w.node(4)
	w.know(c, d)
	w.mustReach(c, d, 0)
	for _, m := range w.wire() {
		w.deliver(testID(1), b, m.data)
	}
	w.expect()
	if got := b.stats(a); got != before {
		w.t.Errorf("stats %+v, want %+v", got, before)
	}
	if len(b.arrived()) != 0 {
		w.t.Error("a packet arrived")
	}
	w.mustReach(a, b, 0)
}

func testTampering(w *bubble) {
	a, b := w.node(1), w.node(2)
	w.know(a, b)
	change := func(m wireMessage) {
		to := map[byte]*node{1: a, 2: b}[m.To[0]]
		for i := range m.data {
			if m.Type == typeData && i < 4 || i >= 132 && m.Type == typeInitiation || i >= 76 && m.Type == typeResponse {
				continue // the second MAC is for times of load only
			}
			spoiled := slices.Clone(m.data)
			spoiled[i] ^= 1
			w.deliver(m.From, to, spoiled)
		}
		w.deliver(m.From, to, m.data[:len(m.data)-1])
		w.deliver(m.From, to, append(slices.Clone(m.data), 0))
	}
	w.hub.hold()
	a.inject(b)
	for range 3 { // initiation, response, packet
		for _, m := range w.wire() {
			change(m)
			if got := lines(w.wire()); len(got) != 0 {
				w.t.Fatalf("%v, changed: sent %v", m, got)
			}
			if len(a.arrived()) != 0 || len(b.arrived()) != 0 {
				w.t.Fatalf("%v, changed: a packet arrived", m)
			}
		}
		w.hub.release(true)
		synctest.Wait()
	}
	if len(b.arrived()) != 1 {
		w.t.Error("the packet itself did not arrive")
	}
}

func testClose(w *bubble) {
	noGoroutinesLeft(w.t)
	a, b := w.pair()
	mustApply(w.t, a.dev, addPeer(9, "10.9.0.0/16"))
	a.tap.Inject(tuntest.Ping(addr(9), addr(1))) // a handshake under way
	b.inject(a)
	a.close()
	if a.tap.Inject([]byte{4 << 4}) {
		w.t.Error("a closed tap takes packets")
	}
	w.wire()
	time.Sleep(time.Hour)
	for _, m := range w.wire() {
		if m.From == testID(1) {
			w.t.Errorf("%v of a closed device", m)
		}
	}
	b.close()
}

// later returns an initiation that a device sends an hour later than devices of
// other bubbles begin.
func later(t *testing.T, open func(Config) (Device, error), from, to byte) (initiation []byte) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := newBubble(t, open)
		a, b := w.node(from), w.node(to)
		w.know(a, b)
		time.Sleep(time.Hour)
		a.inject(b)
		initiation = w.wire()[0].data
	})
	return initiation
}

// A gateway whose clock was set back cannot begin a session with those who know
// its later timestamps: they begin one, or forget them.
func TestClocksSetBackDelaySessionsOnly(t *testing.T) {
	for kind, open := range kinds {
		two := later(t, open, 2, 1)
		one := later(t, open, 1, 2)
		setBack := func(t *testing.T, both bool) (w *bubble, a, b *node) {
			w = newBubble(t, open)
			a, b = w.node(1), w.node(2)
			w.know(a, b)
			w.deliver(testID(2), a, two)
			want := []string{"1>2 type 2 size 92"}
			if both {
				w.deliver(testID(1), b, one)
				want = append(want, "2>1 type 2 size 92")
			}
			w.expect(want...)
			return w, a, b
		}
		t.Run(kind+"/of one that sends", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b := setBack(t, false)
				w.mustReach(b, a, 2*time.Second)
				w.mustReach(a, b, 0)
			})
		})
		t.Run(kind+"/of both, both send", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b := setBack(t, true)
				a.inject(b)
				w.mustReach(b, a, 15*time.Second)
				w.mustReach(a, b, 0)
			})
		})
		t.Run(kind+"/of both, one sends", func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, a, b := setBack(t, true)
				before := a.stats(b)
				w.mustReach(a, b, 15*time.Second)
				w.mustReach(b, a, 0)
				if got := a.stats(b); got.Rx <= before.Rx || got.Tx <= before.Tx || got.LastHandshake.IsZero() {
					t.Errorf("counted %+v, before that %+v", got, before)
				}
			})
		})
	}
}

// Whoever has recorded initiations of a peer can make us try to reach it, and no
// more: not now and then a session less.
func TestRecordedInitiationsDisturbNoSession(t *testing.T) {
	for kind, open := range kinds {
		recorded := later(t, open, 2, 1)
		t.Run(kind, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newBubble(t, open)
				a, b := w.node(1), w.node(2)
				w.know(a, b)
				time.Sleep(2 * time.Hour) // what was recorded is old
				w.mustReach(b, a, 0)
				w.mustReach(a, b, 0)
				w.wire()
				for range 200 {
					w.deliver(testID(3), a, recorded)
					time.Sleep(100 * time.Millisecond)
					a.inject(b)
				}
				for _, m := range w.wire() {
					if m.Type != typeData {
						t.Errorf("%v because of an old initiation", m)
					}
				}
				if got := len(b.arrived()); got != 200 {
					t.Errorf("%d packets arrived, want 200", got)
				}
				time.Sleep(10 * time.Minute) // the session is over
				b.close()
				w.wire()
				for range 60 {
					w.deliver(testID(3), a, recorded)
					time.Sleep(time.Second)
				}
				if got := len(w.wire()); got == 0 || got > 60 {
					t.Errorf("%d messages in a minute of old initiations, want some, and no more than one for each", got)
				}
			})
		})
	}
}

func TestCallerIsKnownByTheKeys(t *testing.T) {
	good := later(t, Open, 2, 1)
	if from, ok := caller(testKey(1), good); !ok || from != publicKey(2) {
		t.Fatalf("caller is %x, %v, want %x", from, ok, publicKey(2))
	}
	if _, ok := caller(testKey(3), good); ok {
		t.Error("an initiation for somebody else is accepted")
	}
	for i := range 132 { // the second tag is empty
		bad := slices.Clone(good)
		bad[i] ^= 1
		if _, ok := caller(testKey(1), bad); ok {
			t.Errorf("a changed byte %d is accepted", i)
		}
	}
	if _, ok := caller(testKey(1), good[:100]); ok {
		t.Error("a short initiation is accepted")
	}
}

func FuzzCaller(f *testing.F) {
	f.Add(make([]byte, initiationSize))
	f.Add(append([]byte{1, 0, 0, 0}, make([]byte, initiationSize-4)...))
	key := testKey(1)
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, ok := caller(key, b); ok {
			t.Errorf("%x is accepted", b)
		}
	})
}
