package link

import (
	"bytes"
	"crypto/cipher"
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

var compareAddrs = cmpopts.EquateComparable(netip.AddrPort{})

func TestProbeIsAnsweredWithoutState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newGateway(t, n, 1), newGateway(t, n, 2)
		a.run(t)
		b.run(t)
		introduce(t, a, b)
		for _, size := range []int{ProbeSize, 500, MaxDatagram, 1400} {
			challenge := [16]byte{byte(size), 9}
			if err := a.SendProbe(b.own.ID, b.addr, challenge, size); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			got := a.gotReplies()
			want := gotReply{b.addr, b.own.ID, Probe{challenge, b.own.Boot, a.addr, trust.ExchangeKey(b.own.WireGuard.PublicKey().Bytes())}}
			if diff := cmp.Diff(want, got[len(got)-1], compareAddrs); diff != "" {
				t.Errorf("reply to a probe of %d bytes (-want +got):\n%s", size, diff)
			}
		}
		if got := b.gotReplies(); len(got) != 0 {
			t.Errorf("the handler of the other side was told of replies: %+v", got)
		}
		if diff := cmp.Diff([]trust.GatewayID{a.own.ID, a.own.ID, a.own.ID, a.own.ID}, b.gotProbes(), compareAddrs); diff != "" {
			t.Errorf("whose probes the other side was told of (-want +got):\n%s", diff)
		}
		for _, p := range n.sentBy(b.addr) {
			if len(p.b) != ProbeSize {
				t.Errorf("a reply of %d bytes, want %d", len(p.b), ProbeSize)
			}
		}
		if got := b.Counters().Probes; got != 4 {
			t.Errorf("%d probes counted, want 4", got)
		}
	})
}

func TestReplyTellsIPv6Address(t *testing.T) {
	want := Probe{Challenge: [16]byte{1}, Boot: trust.BootID{2}, Observed: netip.MustParseAddrPort("[2001:db8::7]:4500")}
	b := make([]byte, probePayload)
	encodeProbe(b, kindReply, &want)
	kind, got, err := decodeProbe(b)
	if err != nil || kind != kindReply {
		t.Fatalf("kind %d, error %v", kind, err)
	}
	if diff := cmp.Diff(want, got, compareAddrs); diff != "" {
		t.Errorf("reply (-want +got):\n%s", diff)
	}
}

func TestGossipCarriesUpToItsLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newGateway(t, n, 1), newGateway(t, n, 2)
		b.run(t)
		introduce(t, a, b)
		var want []gotGossip
		for _, size := range []int{0, 1, 100, MaxGossip} {
			text := bytes.Repeat([]byte{'g'}, size)
			if err := a.SendGossip(b.own.ID, text); err != nil {
				t.Fatal(err)
			}
			want = append(want, gotGossip{a.own.ID, a.own.Boot, string(text)})
		}
		synctest.Wait()
		if diff := cmp.Diff(want, b.gotGossip()); diff != "" {
			t.Errorf("gossip (-want +got):\n%s", diff)
		}
		if MaxGossip != 1190 {
			t.Errorf("longest gossip %d bytes, want 1190 as the protocol says", MaxGossip)
		}
		if err := a.SendGossip(b.own.ID, make([]byte, MaxGossip+1)); !errors.Is(err, ErrOversize) {
			t.Errorf("gossip above the limit: %v, want ErrOversize", err)
		}
		for _, p := range n.sentBy(a.addr) {
			if len(p.b) > MaxDatagram {
				t.Errorf("datagram of %d bytes", len(p.b))
			}
		}
	})
}

func TestGossipNeedsKeysStartAndPath(t *testing.T) {
	n := newMemNet()
	a, b := newGateway(t, n, 1), newGateway(t, n, 2)
	if err := a.SendGossip(b.own.ID, nil); !errors.Is(err, ErrUnknownPeer) {
		t.Errorf("without keys: %v, want ErrUnknownPeer", err)
	}
	if err := a.SetPeer(record(b.own)); err != nil {
		t.Fatal(err)
	}
	if err := a.SendGossip(b.own.ID, nil); !errors.Is(err, ErrNoBoot) {
		t.Errorf("without start: %v, want ErrNoBoot", err)
	}
	if err := a.SetBoot(b.own.ID, b.own.Boot); err != nil {
		t.Fatal(err)
	}
	if err := a.SendGossip(b.own.ID, nil); !errors.Is(err, ErrNoPath) {
		t.Errorf("without path: %v, want ErrNoPath", err)
	}
	a.SetPath(b.own.ID, b.addr)
	if err := a.SendGossip(b.own.ID, nil); err != nil {
		t.Error(err)
	}
	if got := len(n.sentBy(a.addr)); got != 1 {
		t.Errorf("%d datagrams sent, want 1", got)
	}
}

// retag makes the tag right again after a change.
func retag(b []byte) []byte {
	newTagger(testMesh).put(b)
	return b
}

// captured returns one datagram of each kind from a to b, and a reply of b.
func captured(t *testing.T, n *memNet, a, b *gateway) (probe, reply, gossip, stream []byte) {
	t.Helper()
	if err := a.SendProbe(b.own.ID, b.addr, [16]byte{7}, ProbeSize); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	if err := a.SendGossip(b.own.ID, []byte("hello")); err != nil {
		t.Fatal(err)
	}
	if _, err := a.StreamConn().WriteTo([]byte("quic"), netUDP(b.addr)); err != nil {
		t.Fatal(err)
	}
	synctest.Wait()
	sent := n.sentBy(a.addr)
	return sent[0].b, n.sentBy(b.addr)[0].b, sent[1].b, sent[2].b
}

func TestRefusedDatagramsAreCountedAndNotAnswered(t *testing.T) {
	type message = func(probe, reply, gossip, stream []byte) []byte
	flip := func(b []byte, at int) []byte { b[at] ^= 0x10; return b }
	for _, tt := range []struct {
		name  string
		make  message
		count func(Counters) uint64
	}{
		{"one byte", func(p, _, _, _ []byte) []byte { return p[:1] }, func(c Counters) uint64 { return c.Short }},
		{"header cut", func(p, _, _, _ []byte) []byte { return p[:9] }, func(c Counters) uint64 { return c.Short }},
		{"probe cut", func(p, _, _, _ []byte) []byte { return retag(p[:127]) }, func(c Counters) uint64 { return c.Short }},
		{"gossip cut", func(_, _, g, _ []byte) []byte { return retag(g[:gossipAt+15]) }, func(c Counters) uint64 { return c.Short }},
		{"empty stream carrier", func(_, _, _, s []byte) []byte { return retag(s[:headerLen]) }, func(c Counters) uint64 { return c.Short }},
		{"stream carrier too long", func(_, _, _, s []byte) []byte { return retag(append(s, make([]byte, MaxDatagram)...)) }, func(c Counters) uint64 { return c.Oversize }},
		{"gossip too long", func(_, _, g, _ []byte) []byte { return retag(append(g, make([]byte, MaxDatagram)...)) }, func(c Counters) uint64 { return c.Oversize }},
		{"probe beyond a jumbo frame", func(p, _, _, _ []byte) []byte { return retag(append(p, make([]byte, MaxProbe)...)) }, func(c Counters) uint64 { return c.Oversize }},
		{"tag", func(p, _, _, _ []byte) []byte { return flip(p, 5) }, func(c Counters) uint64 { return c.Tag }},
		{"tag of another mesh", func(p, _, _, _ []byte) []byte { newTagger(trust.MeshID{9}).put(p); return p }, func(c Counters) uint64 { return c.Tag }},
		{"text", func(_, _, _, _ []byte) []byte { return []byte("GET / HTTP/1.1\r\n\r\n") }, func(c Counters) uint64 { return c.Tag }},
		{"version", func(p, _, _, _ []byte) []byte { p[1] = 2; return retag(p) }, func(c Counters) uint64 { return c.Version }},
		{"type", func(p, _, _, _ []byte) []byte { p[0] = 0xC0; return retag(p) }, func(c Counters) uint64 { return c.Type }},
		{"relay, which does not exist yet", func(p, _, _, _ []byte) []byte { p[0] = 0xA0; return retag(p) }, func(c Counters) uint64 { return c.Type }},
		{"key ID", func(p, _, _, _ []byte) []byte { return retag(flip(p, headerLen)) }, func(c Counters) uint64 { return c.UnknownKey }},
		{"probe key on gossip", func(p, _, g, _ []byte) []byte { copy(g[headerLen:counterAt], p[headerLen:nonceAt]); return retag(g) }, func(c Counters) uint64 { return c.UnknownKey }},
		{"gossip key on probe", func(p, _, g, _ []byte) []byte { copy(p[headerLen:nonceAt], g[headerLen:counterAt]); return retag(p) }, func(c Counters) uint64 { return c.UnknownKey }},
		{"own probe reflected", func(_, r, _, _ []byte) []byte { return r }, func(c Counters) uint64 { return c.UnknownKey }},
		{"nonce", func(p, _, _, _ []byte) []byte { return retag(flip(p, nonceAt)) }, func(c Counters) uint64 { return c.Seal }},
		{"ciphertext", func(p, _, _, _ []byte) []byte { return retag(flip(p, sealedAt)) }, func(c Counters) uint64 { return c.Seal }},
		{"gossip counter", func(_, _, g, _ []byte) []byte { return retag(flip(g, counterAt+7)) }, func(c Counters) uint64 { return c.Seal }},
		{"gossip ciphertext", func(_, _, g, _ []byte) []byte { return retag(flip(g, gossipAt)) }, func(c Counters) uint64 { return c.Seal }},
		{"probe appended to", func(p, _, _, _ []byte) []byte { return retag(append(p, 0)) }, func(c Counters) uint64 { return c.Seal }},
		{"gossip replayed", func(_, _, g, _ []byte) []byte { return g }, func(c Counters) uint64 { return c.Replay }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				n := newMemNet()
				a, b := newGateway(t, n, 1), newGateway(t, n, 2)
				a.run(t)
				b.run(t)
				introduce(t, a, b)
				probe, reply, gossip, stream := captured(t, n, a, b)
				before, sent, heard := b.Counters(), len(n.sentBy(b.addr)), len(b.gotGossip())
				datagram := tt.make(bytes.Clone(probe), bytes.Clone(reply), bytes.Clone(gossip), bytes.Clone(stream))
				n.inject(netip.MustParseAddrPort("203.0.113.66:666"), b.addr, datagram)
				synctest.Wait()
				after := b.Counters()
				if got := tt.count(after) - tt.count(before); got != 1 {
					t.Errorf("counted %d times, want once; counters %+v", got, after)
				}
				if got := len(n.sentBy(b.addr)) - sent; got != 0 {
					t.Errorf("%d datagrams in answer, want silence", got)
				}
				if len(b.gotGossip()) != heard || len(b.gotReplies()) != 0 || after.Stream != before.Stream {
					t.Error("the datagram was handed on")
				}
			})
		})
	}
}

func TestBadContentUnderGoodSealIsCounted(t *testing.T) {
	n := newMemNet()
	a, b := newGateway(t, n, 1), newGateway(t, n, 2)
	introduce(t, a, b)
	keys := b.peer(a.own.ID).sendKeys()
	sealed := func(size int, kind byte, edit func(plain []byte)) []byte {
		d := make([]byte, size)
		begin(d, typeProbe)
		copy(d[headerLen:], keys.sendID[:])
		plain := d[sealedAt : size-sealOverhead]
		encodeProbe(plain, kind, &Probe{Observed: a.addr})
		edit(plain)
		keys.send.Seal(plain[:0], d[nonceAt:sealedAt], plain, associated(d[:sealedAt]))
		return retag(d)
	}
	none := func([]byte) {}
	for name, d := range map[string][]byte{
		"reply that is too long": sealed(ProbeSize+1, kindReply, none),
		"unknown kind":           sealed(ProbeSize, 3, none),
		"unknown family":         sealed(ProbeSize, kindReply, func(p []byte) { p[observedAt] = 5 }),
		"port 0":                 sealed(ProbeSize, kindReply, func(p []byte) { p[observedAt+1], p[observedAt+2] = 0, 0 }),
		"IPv4 with more":         sealed(ProbeSize, kindReply, func(p []byte) { p[observedAt+18] = 1 }),
		"IPv4-mapped IPv6": sealed(ProbeSize, kindReply, func(p []byte) {
			p[observedAt] = 6
			copy(p[observedAt+3:], []byte{10: 0xff, 11: 0xff, 12: 192, 15: 1})
		}),
	} {
		before := a.Counters().Format
		a.divert(d, a.sock.endpoint(b.addr))
		if got := a.Counters().Format - before; got != 1 || len(a.gotReplies()) != 0 {
			t.Errorf("%s: counted %d times, handed on %d", name, got, len(a.gotReplies()))
		}
	}
	if got := len(n.sentBy(a.addr)); got != 0 {
		t.Errorf("%d datagrams in answer", got)
	}
}

func TestReplayedProbeIsAnsweredOnceWithNoMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newGateway(t, n, 1), newGateway(t, n, 2)
		a.run(t)
		b.run(t)
		introduce(t, a, b)
		probe, _, _, _ := captured(t, n, a, b)
		sent := len(n.sentBy(b.addr))
		victim := netip.MustParseAddrPort("203.0.113.66:666")
		n.inject(victim, b.addr, probe)
		synctest.Wait()
		answers := n.sentBy(b.addr)[sent:]
		if len(answers) != 1 || len(answers[0].b) > len(probe) {
			t.Errorf("%d answers to a replayed probe, want one that is not longer", len(answers))
		}
		if got := b.bind.endpointOf(t, a.own.ID).DstToString(); got != a.addr.String() {
			t.Errorf("path moved to %s", got)
		}
	})
}

// endpointOf returns the virtual endpoint as WireGuard gets it.
func (b *bind) endpointOf(t testing.TB, id trust.GatewayID) conn.Endpoint {
	t.Helper()
	e, err := b.ParseEndpoint(EndpointText(id))
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func TestReplyThatDoesNotCountIsCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newGateway(t, n, 1), newGateway(t, n, 2)
		a.run(t)
		b.run(t)
		introduce(t, a, b)
		a.refuse = true
		if err := a.SendProbe(b.own.ID, b.addr, [16]byte{7}, ProbeSize); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		a.Handle(nil)
		if err := a.SendProbe(b.own.ID, b.addr, [16]byte{7}, ProbeSize); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c := a.Counters(); c.Challenge != 1 || c.NoHandler != 1 || c.Replies != 0 {
			t.Errorf("counters %+v, want one challenge, one without handler, no reply", c)
		}
	})
}

func TestSiftFindsOursAnywhereInBatch(t *testing.T) {
	n := newMemNet()
	a, b := newGateway(t, n, 1), newGateway(t, n, 2)
	introduce(t, a, b)
	probe := make([]byte, ProbeSize)
	b.sealProbe(probe, b.peer(a.own.ID).sendKeys(), kindProbe, &Probe{Challenge: [16]byte{1}})
	wg := func(typ byte) []byte { return append([]byte{typ, 0, 0, 0}, bytes.Repeat([]byte{typ}, 28)...) }
	batch := [][]byte{wg(1), bytes.Clone(probe), wg(4), {}, wg(2), {5, 0, 0, 0, 1}, {1, 0, 1, 0}, {0, 0, 0, 0}, bytes.Clone(probe), wg(3), bytes.Clone(probe)}
	want := make([]int, len(batch))
	for _, i := range []int{0, 2, 4, 9} {
		want[i] = len(batch[i])
	}
	sizes := make([]int, len(batch))
	eps := make([]conn.Endpoint, len(batch))
	for i := range batch {
		sizes[i] = len(batch[i])
		eps[i] = a.sock.endpoint(b.addr)
	}
	before := [][]byte{bytes.Clone(batch[0]), bytes.Clone(batch[2])}
	a.sift(batch, sizes, eps)
	if diff := cmp.Diff(want, sizes); diff != "" {
		t.Errorf("sizes (-want +got):\n%s", diff)
	}
	if !bytes.Equal(batch[0], before[0]) || !bytes.Equal(batch[2], before[1]) {
		t.Error("a WireGuard packet was changed")
	}
	if c := a.Counters(); c.Probes != 3 || c.Short != 3 {
		t.Errorf("counters %+v, want 3 probes and 3 short", c)
	}
}

func TestGossipWindow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newGateway(t, n, 1), newGateway(t, n, 2)
		introduce(t, a, b)
		const sent = 3000
		for range sent {
			if err := a.SendGossip(b.own.ID, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		wire := n.sentBy(a.addr)
		from := b.sock.endpoint(a.addr)
		push := func(i int) bool {
			before := b.Counters().Gossip
			b.divert(bytes.Clone(wire[i].b), from)
			return b.Counters().Gossip > before
		}
		if !push(sent - 1) {
			t.Error("the newest is refused")
		}
		for _, i := range []int{sent - 2, sent - 2048} {
			if !push(i) {
				t.Errorf("%d behind the newest is refused, want a window of 2048 at least", sent-1-i)
			}
			if push(i) {
				t.Errorf("%d behind the newest is taken twice", sent-1-i)
			}
		}
		if push(sent - 1) {
			t.Error("the newest is taken twice")
		}
	})
}

func TestGossipCountersOutliveKeys(t *testing.T) {
	n := newMemNet()
	a, b := newGateway(t, n, 1), newGateway(t, n, 2)
	counterOf := func() uint64 {
		t.Helper()
		if err := a.SendGossip(b.own.ID, []byte("x")); err != nil {
			t.Fatal(err)
		}
		sent := n.sentBy(a.addr)
		d := sent[len(sent)-1].b
		return uint64(d[counterAt+7])
	}
	introduce(t, a, b)
	if got := counterOf(); got != 1 {
		t.Errorf("first counter %d, want 1", got)
	}
	for _, boot := range []trust.BootID{{99}, b.own.Boot} {
		if err := a.SetBoot(b.own.ID, boot); err != nil {
			t.Fatal(err)
		}
	}
	if got := counterOf(); got != 2 {
		t.Errorf("counter %d after the peer's start came back, want 2", got)
	}
	a.RemovePeer(b.own.ID)
	introduce(t, a, b)
	if got := counterOf(); got != 3 {
		t.Errorf("counter %d after the peer came back, want 3", got)
	}
}

func TestGossipOfOldStartEndsSoon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newGateway(t, n, 1), newGateway(t, n, 2)
		introduce(t, a, b)
		for range 6 {
			if err := a.SendGossip(b.own.ID, []byte("x")); err != nil {
				t.Fatal(err)
			}
		}
		wire := n.sentBy(a.addr)
		push := func(i int) bool {
			before := b.Counters().Gossip
			b.divert(bytes.Clone(wire[i].b), b.sock.endpoint(a.addr))
			return b.Counters().Gossip > before
		}
		setBoot := func(boot trust.BootID) {
			t.Helper()
			if err := b.SetBoot(a.own.ID, boot); err != nil {
				t.Fatal(err)
			}
		}
		setBoot(trust.BootID{50})
		if !push(0) {
			t.Error("gossip under way while the peer restarted is refused")
		}
		time.Sleep(bootOverlap + time.Millisecond)
		if push(1) {
			t.Error("gossip of the old start is taken for ever")
		}
		setBoot(a.own.Boot)
		if push(0) {
			t.Error("gossip is taken again after the start came back")
		}
		if !push(2) {
			t.Error("gossip of the present start is refused")
		}
		setBoot(trust.BootID{51})
		setBoot(trust.BootID{52})
		if push(3) {
			t.Error("gossip of the start before the last is taken")
		}
		setBoot(trust.BootID{})
		if err := b.SendGossip(a.own.ID, nil); !errors.Is(err, ErrNoBoot) {
			t.Errorf("gossip after the zero start: %v, want ErrNoBoot", err)
		}
	})
}

func TestKeysAreThoseOfTheProtocol(t *testing.T) {
	// Computed by a second implementation, in Python, from docs/protocol.md.
	mesh := trust.MeshID(bytes.Repeat([]byte{0x11}, 32))
	own := func(id, l, w byte) OwnKeys {
		return OwnKeys{
			ID: trust.GatewayID{id}, Identity: trust.IdentityKey(bytes.Repeat([]byte{id}, 32)),
			Link: keyOf(t, l), WireGuard: keyOf(t, w),
		}
	}
	a, b := own(0xa0, 1, 2), own(0xb0, 3, 4)
	bootA, bootB := trust.BootID(bytes.Repeat([]byte{5}, 16)), trust.BootID(bytes.Repeat([]byte{6}, 16))
	for _, side := range []struct {
		name              string
		own, peer         OwnKeys
		ownBoot, peerBoot trust.BootID
		keyIDs            []string // probe and gossip to the peer, probe and gossip from it
	}{
		{"a", a, b, bootA, bootB, []string{"f3d8f0086f9d3b25", "38fc4f8b4a898207", "5022245c8dc56068", "e92aff0f8fc7b4b8"}},
		{"b", b, a, bootB, bootA, []string{"5022245c8dc56068", "e92aff0f8fc7b4b8", "f3d8f0086f9d3b25", "38fc4f8b4a898207"}},
	} {
		peer := record(side.peer)
		keys, err := agree(mesh, &side.own, &peer)
		if err != nil || len(keys) != 1 {
			t.Fatalf("%s: %d keys, error %v", side.name, len(keys), err)
		}
		g, err := keys[0].gossip(side.ownBoot, side.peerBoot)
		if err != nil {
			t.Fatal(err)
		}
		const k = "1960b69124f043946bdc29ec3e770de2a6928bc6c6eed1c2fc42df279497d884"
		if got := hex.EncodeToString(keys[0].k[:]); got != k {
			t.Errorf("%s: K %s, want %s", side.name, got, k)
		}
		var got []string
		for _, id := range []keyID{keys[0].sendID, g.sendID, keys[0].receiveID, g.receiveID} {
			got = append(got, hex.EncodeToString(id[:]))
		}
		if diff := cmp.Diff(side.keyIDs, got); diff != "" {
			t.Errorf("%s: key IDs (-want +got):\n%s", side.name, diff)
		}
		if side.name == "a" {
			const probeKey = "5030d7dc0b36e25fea693bdce83659cb9762aa09c12859b87c16c5c45e4a4ec6"
			const gossipKey = "55a0b453c7e772254a293c066669588522bf056d337cfd340c83a7f2a85ae4f7"
			sealedBy(t, probeKey, chacha20poly1305.NewX, keys[0].send)
			sealedBy(t, gossipKey, chacha20poly1305.New, g.send)
		}
	}
	d := append([]byte{typeStream, version}, "        quic packet"...)
	newTagger(mesh).put(d)
	if got := hex.EncodeToString(d[tagAt:headerLen]); got != "04f6d503ab299a34" {
		t.Errorf("tag %s", got)
	}
}

// sealedBy fails the test if got does not hold key.
func sealedBy(t *testing.T, key string, newAEAD func([]byte) (cipher.AEAD, error), got cipher.AEAD) {
	t.Helper()
	raw, err := hex.DecodeString(key)
	if err != nil {
		t.Fatal(err)
	}
	want, err := newAEAD(raw)
	if err != nil {
		t.Fatal(err)
	}
	nonce := make([]byte, want.NonceSize())
	if !bytes.Equal(want.Seal(nil, nonce, []byte("text"), nil), got.Seal(nil, nonce, []byte("text"), nil)) {
		t.Errorf("sealed by another key than %s", key)
	}
}

func keyOf(t *testing.T, b byte) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().NewPrivateKey(bytes.Repeat([]byte{b}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func netUDP(a netip.AddrPort) net.Addr { return net.UDPAddrFromAddrPort(a) }
