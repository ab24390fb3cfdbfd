package wgdev

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// failingBind cannot be opened.
type failingBind struct{ conn.Bind }

func (failingBind) Open(uint16) ([]conn.ReceiveFunc, uint16, error) { return nil, 0, os.ErrPermission }
func (failingBind) Close() error                                    { return nil }

// station is a gateway with a channel for an interface. Gateway n has 10.n.0.0/16.
type station struct {
	n    byte
	dev  *userspace
	bind *hubBind
	tun  *tuntest.ChannelTUN
}

func newStation(t testing.TB, h *hub, n byte, log *slog.Logger) *station {
	t.Helper()
	s := &station{n: n, bind: h.bind(testID(n)), tun: tuntest.NewChannelTUN()}
	d, err := Open(Config{
		Kind: Given, Device: s.tun.TUN(), Bind: s.bind, PrivateKey: testKey(n), EndpointText: endpointText, Logger: log,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.dev = d.(*userspace)
	t.Cleanup(func() { closeDevice(t, s.dev) })
	return s
}

func addr(n byte) netip.Addr { return netip.AddrFrom4([4]byte{10, n, 0, 1}) }

// know makes stations peers of each other.
func know(t testing.TB, stations ...*station) {
	t.Helper()
	for _, s := range stations {
		for _, other := range stations {
			if s != other {
				mustApply(t, s.dev, addPeer(other.n, fmt.Sprintf("10.%d.0.0/16", other.n)))
			}
		}
	}
}

// send sends one packet and waits for it on the other side.
func send(t testing.TB, from, to *station) {
	t.Helper()
	packet := tuntest.Ping(addr(to.n), addr(from.n))
	deadline := time.After(10 * time.Second)
	select {
	case from.tun.Outbound <- packet:
	case <-deadline:
		t.Fatalf("%d does not take a packet:\n%s", from.n, stacks())
	}
	select {
	case got := <-to.tun.Inbound:
		if !bytes.Equal(got, packet) {
			t.Fatalf("%d sent %x, %d got %x", from.n, packet, to.n, got)
		}
	case <-deadline:
		t.Fatalf("no packet from %d to %d in 10 s", from.n, to.n)
	}
}

func TestPacketsFlowBetweenPeers(t *testing.T) {
	noGoroutinesLeft(t)
	h := newHub()
	a, b := newStation(t, h, 1, nil), newStation(t, h, 2, nil)
	know(t, a, b)
	if got := a.dev.Stats()[publicKey(2)]; got != (PeerStats{}) {
		t.Errorf("stats before anything was sent: %+v", got)
	}
	began := time.Now()
	send(t, a, b)
	send(t, b, a)
	got := a.dev.Stats()[publicKey(2)]
	if got.Rx == 0 || got.Tx == 0 || got.LastHandshake.Before(began) || got.LastHandshake.After(time.Now()) {
		t.Errorf("stats %+v, want bytes and a handshake since %v", got, began)
	}
}

func TestSourceOutsideOfAllowedPrefixesIsDropped(t *testing.T) {
	h := newHub()
	a, b := newStation(t, h, 1, nil), newStation(t, h, 2, nil)
	know(t, a, b)
	send(t, a, b)
	a.tun.Outbound <- tuntest.Ping(addr(2), addr(3)) // 10.3.0.1 is not a's
	send(t, a, b)                                    // would get the other one
}

func TestEndpointNeverRoams(t *testing.T) {
	h := newHub()
	a, b, c := newStation(t, h, 1, nil), newStation(t, h, 2, nil), newStation(t, h, 3, nil)
	know(t, a, b)
	send(t, a, b)
	send(t, b, a)
	know(t, a, b, c) // a peer that is added while the device is in use
	for _, pair := range [][2]*station{{c, a}, {a, c}, {c, b}, {b, c}, {b, a}} {
		send(t, pair[0], pair[1])
	}
	for _, s := range []*station{a, b, c} {
		if n := s.bind.strayed.Load(); n != 0 {
			t.Errorf("%d packets of %d went to the source of a packet", n, s.n)
		}
		states, err := s.dev.states()
		if err != nil {
			t.Fatal(err)
		}
		for _, other := range []*station{a, b, c} {
			if s == other {
				continue
			}
			if got, want := states[publicKey(other.n)].endpoint, (hubEndpoint{peer: testID(other.n)}).DstToString(); got != want {
				t.Errorf("endpoint of %d at %d is %s, want %s", other.n, s.n, got, want)
			}
		}
	}
}

func TestApplyLeavesOtherSessionsAlone(t *testing.T) {
	h := newHub()
	a, b := newStation(t, h, 1, nil), newStation(t, h, 2, nil)
	know(t, a, b)
	send(t, a, b)
	before := a.dev.Stats()[publicKey(2)]
	peer := a.dev.dev.LookupPeer([32]byte(publicKey(2)))
	mustApply(t, a.dev, addPeer(3, "10.3.0.0/16"), addPeer(4, "10.4.0.0/16", "10.3.0.0/16"), addPeer(2, "10.2.0.0/16"))
	mustApply(t, a.dev, engine.Changes{{Op: engine.RemovePeer, Peer: testID(4), Key: publicKey(4)}})
	send(t, b, a)
	send(t, a, b)
	after := a.dev.Stats()[publicKey(2)]
	if after.LastHandshake != before.LastHandshake || after.Tx <= before.Tx {
		t.Errorf("before %+v, after %+v: want the same session", before, after)
	}
	if a.dev.dev.LookupPeer([32]byte(publicKey(2))) != peer {
		t.Error("the peer is another one")
	}
}

func TestRestartReplacesASessionThatThePeerLost(t *testing.T) {
	h := newHub()
	a, b := newStation(t, h, 1, nil), newStation(t, h, 2, nil)
	know(t, a, b)
	send(t, a, b)
	send(t, b, a)
	closeDevice(t, b.dev)
	b = newStation(t, h, 2, nil) // rebooted: same keys, no session
	know(t, b, a)
	before := a.dev.Stats()[publicKey(2)].LastHandshake
	if err := a.dev.Restart(publicKey(2)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "a new handshake", func() bool {
		return a.dev.Stats()[publicKey(2)].LastHandshake.After(before)
	}, func() any { return a.dev.Stats() })
	send(t, a, b)
	send(t, b, a)
}

func TestInitiateBeginsASessionOnce(t *testing.T) {
	h := newHub()
	a, b := newStation(t, h, 1, nil), newStation(t, h, 2, nil)
	know(t, a, b)
	if err := a.dev.Initiate(publicKey(2)); err != nil {
		t.Fatal(err)
	}
	stats := func() PeerStats { return b.dev.Stats()[publicKey(1)] }
	eventually(t, "a session", func() bool { return !stats().LastHandshake.IsZero() }, func() any { return stats() })
	first := stats()
	eventually(t, "a sign of life", func() bool {
		if err := a.dev.Initiate(publicKey(2)); err != nil {
			t.Fatal(err)
		}
		return stats().Rx > first.Rx+64
	}, func() any { return stats() })
	if got := stats(); got.LastHandshake != first.LastHandshake {
		t.Errorf("handshake at %v and again at %v", first.LastHandshake, got.LastHandshake)
	}
}

// The Bind may want a session renewed while it hands over a packet, and the
// device may be closed at that moment.
func TestSessionsBegunByTheBindDoNotHinderClose(t *testing.T) {
	for range 20 {
		func() {
			noGoroutinesLeft(t)
			h := newHub()
			a, b := newStation(t, h, 1, nil), newStation(t, h, 2, nil)
			know(t, a, b)
			send(t, b, a)
			hook := func() {
				_ = a.dev.Restart(publicKey(2))
				_ = a.dev.Initiate(publicKey(2))
			}
			a.bind.hook.Store(&hook)
			stop := make(chan struct{})
			var flood sync.WaitGroup
			flood.Go(func() {
				for {
					select {
					case <-stop:
						return
					case b.tun.Outbound <- tuntest.Ping(addr(1), addr(2)):
					case <-a.tun.Inbound:
					}
				}
			})
			eventually(t, "traffic", func() bool { return a.dev.Stats()[publicKey(2)].Rx > 5000 }, func() any { return a.dev.Stats() })
			closeDevice(t, a.dev)
			close(stop)
			flood.Wait()
			closeDevice(t, b.dev)
		}()
	}
}

// Two handshakes that begin at the same time destroy each other: each side
// answers the other and forgets its own. WireGuard waits 5 s then.
func TestRestartOnBothSidesIsSettledSoon(t *testing.T) {
	h := newHub()
	a, b := newStation(t, h, 1, nil), newStation(t, h, 2, nil)
	know(t, a, b)
	for _, s := range []*station{a, b} {
		s.dev.sessions.first, s.dev.sessions.second = 500*time.Millisecond, 850*time.Millisecond
	}
	h.hold()
	began := time.Now()
	for _, err := range []error{a.dev.Restart(publicKey(2)), b.dev.Restart(publicKey(1))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "both begin", func() bool { return h.held() == 2 }, func() any { return h.held() })
	h.release(true)
	eventually(t, "both answer", func() bool { return h.held() == 2 }, func() any { return h.held() })
	h.release(false)
	send(t, a, b)
	send(t, b, a)
	if took := time.Since(began); took < 500*time.Millisecond || took > 4*time.Second {
		t.Errorf("a session after %v, want one retry after 500ms", took)
	}
}

func TestEveryRestartOfAPeerCounts(t *testing.T) {
	h := newHub()
	a, b := newStation(t, h, 1, nil), newStation(t, h, 2, nil)
	a.dev.sessions.first, a.dev.sessions.second = time.Hour, time.Hour // no retry helps
	know(t, a, b)
	send(t, a, b)
	last := a.dev.Stats()[publicKey(2)].LastHandshake
	for range 3 {
		closeDevice(t, b.dev)
		b = newStation(t, h, 2, nil)
		know(t, b, a)
		if err := a.dev.Restart(publicKey(2)); err != nil {
			t.Fatal(err)
		}
		eventually(t, "a new handshake", func() bool { return a.dev.Stats()[publicKey(2)].LastHandshake.After(last) }, func() any { return a.dev.Stats() })
		last = a.dev.Stats()[publicKey(2)].LastHandshake
		send(t, a, b)
	}
}

func TestRestartsInARowAreOne(t *testing.T) {
	h := newHub()
	a := newStation(t, h, 1, nil)
	h.bind(testID(2)) // says nothing
	mustApply(t, a.dev, addPeer(2))
	h.hold()
	for range 100 {
		if err := a.dev.Restart(publicKey(2)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the first", func() bool { return h.held() > 0 }, func() any { return h.held() })
	closeDevice(t, a.dev)
	if n := h.held(); n != 1 {
		t.Errorf("%d handshakes begun, want 1", n)
	}
}

func TestRemovedPeerCannotSend(t *testing.T) {
	h := newHub()
	a, b, c := newStation(t, h, 1, nil), newStation(t, h, 2, nil), newStation(t, h, 3, nil)
	know(t, a, b, c)
	send(t, a, b)
	send(t, b, a)
	mustApply(t, b.dev, engine.Changes{{Op: engine.RemovePeer, Peer: testID(1), Key: publicKey(1)}})
	a.tun.Outbound <- tuntest.Ping(addr(2), addr(1)) // must not come through
	send(t, c, b)
}

// brokenTUN fails when it is told to.
type brokenTUN struct {
	tun.Device
	fail chan struct{}
}

func (b *brokenTUN) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	<-b.fail
	return 0, io.ErrUnexpectedEOF
}

func TestDeviceEndsWithItsInterface(t *testing.T) {
	noGoroutinesLeft(t)
	broken := &brokenTUN{tuntest.NewChannelTUN().TUN(), make(chan struct{})}
	d, err := Open(Config{Kind: Given, Device: broken, Bind: newHub().bind(testID(1)), PrivateKey: testKey(1), EndpointText: endpointText})
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, d, addPeer(2))
	close(broken.fail)
	within(t, "the end of the device", func() { <-d.Done() })
	if err := d.Err(); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("got %v, want the error of the interface", err)
	}
	if err := d.Apply(t.Context(), nil); !errors.Is(err, ErrClosed) {
		t.Errorf("got %v, want %v", err, ErrClosed)
	}
	closeDevice(t, d)
}

// log keeps what is logged.
type log struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *log) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *log) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestPrivateKeyIsNotLogged(t *testing.T) {
	var out log
	logger := slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))
	h := newHub()
	a, b := newStation(t, h, 1, logger), newStation(t, h, 2, nil)
	know(t, a, b)
	send(t, a, b)
	if err := a.dev.Restart(publicKey(2)); err != nil {
		t.Fatal(err)
	}
	a.dev.Stats()
	if err := a.dev.dev.IpcSet("nonsense=1\n"); err == nil {
		t.Error("nonsense is accepted")
	}
	closeDevice(t, a.dev)
	text := out.String()
	for _, want := range []string{"Sending handshake initiation", "invalid UAPI device key"} {
		if !strings.Contains(text, want) {
			t.Errorf("log without %q:\n%s", want, text)
		}
	}
	key := testKey(1).Bytes()
	for _, secret := range []string{hex.EncodeToString(key), base64.StdEncoding.EncodeToString(key), fmt.Sprint(key)} {
		if strings.Contains(text, secret) {
			t.Errorf("log with the private key:\n%s", text)
		}
	}
}

func TestErrorsOfOnePeerDoNotFillTheLog(t *testing.T) {
	var out log
	l := newLogger(slog.New(slog.NewTextHandler(&out, nil)))
	for range 100 {
		l.Errorf("peer %d does not answer", 7)
		l.Verbosef("noise")
	}
	if got := out.String(); strings.Count(got, "\n") != 1 || !strings.Contains(got, `level=WARN msg=wireguard err="peer 7 does not answer"`) {
		t.Errorf("got %q, want one line", got)
	}
}

func TestApplyReportsAnEndpointThatTheBindDoesNotKnow(t *testing.T) {
	d, err := Open(Config{
		Kind: InProcess, Bind: newHub().bind(testID(1)), PrivateKey: testKey(1),
		EndpointText: func(trust.GatewayID) string { return "192.0.2.1:5" },
	})
	if err != nil {
		t.Fatal(err)
	}
	defer closeDevice(t, d)
	if err := d.Apply(t.Context(), addPeer(2)); err == nil {
		t.Error("no error")
	}
	if got := d.Peers(); len(got) != 0 {
		t.Errorf("peers %v, want none", got)
	}
}

func TestApplyRefusesOurOwnKey(t *testing.T) {
	a := newStation(t, newHub(), 1, nil)
	if err := a.dev.Apply(context.Background(), addPeer(1)); err == nil {
		t.Error("no error")
	}
}

func BenchmarkApply400Peers(b *testing.B) {
	var changes engine.Changes
	for i := range 400 {
		key := trust.ExchangeKey{1, byte(i), byte(i >> 8)}
		id := trust.GatewayID{byte(i), byte(i >> 8)}
		changes = append(changes, engine.Change{Op: engine.AddPeer, Peer: id, Key: key})
		for j := range 4 {
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), byte(i>>8)*4 + byte(j)}), 24)
			changes = append(changes, engine.Change{Op: engine.AddPrefix, Peer: id, Key: key, Prefix: p})
		}
	}
	a := newStation(b, newHub(), 1, nil)
	mustApply(b, a.dev, changes)
	move := engine.Changes{
		{Op: engine.AddPrefix, Peer: changes[0].Peer, Key: changes[0].Key, Prefix: changes[6].Prefix},
		{Op: engine.AddPrefix, Peer: changes[5].Peer, Key: changes[5].Key, Prefix: changes[6].Prefix},
	}
	b.ReportAllocs()
	for b.Loop() {
		mustApply(b, a.dev, move)
	}
	if got := a.dev.Peers(); len(got) != 400 || slices.ContainsFunc(got, func(p Peer) bool { return len(p.Allowed) != 4 }) {
		b.Fatalf("%d peers, want 400 with 4 prefixes each", len(got))
	}
}
