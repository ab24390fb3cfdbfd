package link

import (
	"bytes"
	"net/netip"
	"testing"
	"testing/synctest"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

func TestSetPeerRefusesBadKeys(t *testing.T) {
	n := newMemNet()
	a, b := newGateway(t, n, 1), newGateway(t, n, 2)
	good := record(b.own)
	for _, tt := range []struct {
		name string
		edit func(*PeerKeys)
	}{
		{"zero link key", func(k *PeerKeys) { k.Link = trust.ExchangeKey{} }},
		{"zero wireguard key", func(k *PeerKeys) { k.WireGuard = trust.ExchangeKey{} }},
		{"link key of low order", func(k *PeerKeys) { k.Link = trust.ExchangeKey{1} }},
		{"previous key of low order", func(k *PeerKeys) { k.PreviousLink = trust.ExchangeKey{1} }},
		{"our identity", func(k *PeerKeys) { k.Identity = a.own.Identity }},
		{"our gateway ID", func(k *PeerKeys) { k.ID = a.own.ID }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			keys := good
			tt.edit(&keys)
			if err := a.SetPeer(keys); err == nil {
				t.Error("taken")
			}
			if err := a.SendProbe(keys.ID, b.addr, [16]byte{}, ProbeSize); err == nil {
				t.Error("a probe is sent with refused keys")
			}
		})
	}
	if err := a.SetPeer(good); err != nil {
		t.Errorf("good keys: %v", err)
	}
}

func TestPortWithoutKeysHasNoPeers(t *testing.T) {
	n := newMemNet()
	b := newGateway(t, n, 2)
	joiner := newGatewayWith(t, n, 1, OwnKeys{})
	if err := joiner.SetPeer(record(b.own)); err == nil {
		t.Error("a peer without own keys")
	}
}

func TestRemovedPeerIsNotHeard(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newGateway(t, n, 1), newGateway(t, n, 2)
		b.run(t)
		introduce(t, a, b)
		b.RemovePeer(a.own.ID)
		if err := a.SendProbe(b.own.ID, b.addr, [16]byte{1}, ProbeSize); err != nil {
			t.Fatal(err)
		}
		if err := a.SendGossip(b.own.ID, []byte("x")); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if c := b.Counters(); c.UnknownKey != 2 || len(n.sentBy(b.addr)) != 0 {
			t.Errorf("counters %+v, %d answers; want two unknown keys and none", c, len(n.sentBy(b.addr)))
		}
		if got := b.bind.endpointOf(t, a.own.ID).DstToString(); got != "0.0.0.0:0" {
			t.Errorf("path of the removed peer %s", got)
		}
	})
}

// A rolls both keys. In every order in which the two learn of it they keep
// hearing each other.
func TestKeyChangeLosesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		before := newOwnKeys(t, 1)
		after := before
		after.Link, after.WireGuard = newKey(t), newKey(t)
		after.PreviousLink, after.PreviousWireGuard = before.Link, before.WireGuard
		a, b := newGatewayWith(t, n, 1, after), newGateway(t, n, 2)
		a.run(t)
		b.run(t)
		introduce(t, a, b)
		if err := b.SetPeer(record(before)); err != nil { // has not heard of the change
			t.Fatal(err)
		}
		hear := func(step string, tries int) {
			t.Helper()
			for _, way := range []struct{ from, to *gateway }{{a, b}, {b, a}} {
				heard := len(way.from.gotReplies())
				for i := range tries {
					if err := way.from.SendProbe(way.to.own.ID, way.to.addr, [16]byte{byte(i)}, ProbeSize); err != nil {
						t.Fatal(err)
					}
					synctest.Wait()
				}
				if len(way.from.gotReplies()) == heard {
					t.Errorf("%s: %s hears no reply", step, way.from.own.ID.Short())
				}
				gossip := len(way.to.gotGossip())
				if err := way.from.SendGossip(way.to.own.ID, []byte(step)); err != nil {
					t.Fatal(err)
				}
				synctest.Wait()
				if len(way.to.gotGossip()) != gossip+1 {
					t.Errorf("%s: %s hears no gossip", step, way.to.own.ID.Short())
				}
			}
		}
		hear("changed, not known", 4) // takes turns over four combinations
		hear("changed, not known, found", 1)
		if err := b.SetPeer(record(after)); err != nil {
			t.Fatal(err)
		}
		hear("known", 1)
		rolled := after
		rolled.PreviousLink, rolled.PreviousWireGuard = nil, nil
		if err := b.SetPeer(record(rolled)); err != nil {
			t.Fatal(err)
		}
		hear("over", 4)
		if got := b.peer(a.own.ID).keys; len(got) != 1 {
			t.Errorf("%d keys after the change, want 1", len(got))
		}
	})
}

func TestSetPeerAgainKeepsWindows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newGateway(t, n, 1), newGateway(t, n, 2)
		introduce(t, a, b)
		if err := a.SendGossip(b.own.ID, []byte("x")); err != nil {
			t.Fatal(err)
		}
		d := n.sentBy(a.addr)[0].b
		push := func() { b.divert(append([]byte(nil), d...), b.sock.endpoint(a.addr)) }
		push()
		introduce(t, a, b)
		push()
		if c := b.Counters(); c.Gossip != 1 || c.Replay != 1 {
			t.Errorf("counters %+v, want the second to be a replay", c)
		}
	})
}

func FuzzDivert(f *testing.F) {
	n := newMemNet()
	a, b := newGateway(f, n, 1), newGateway(f, n, 2)
	introduce(f, a, b)
	probe := make([]byte, ProbeSize)
	b.sealProbe(probe, b.peer(a.own.ID).sendKeys(), kindProbe, &Probe{Challenge: [16]byte{1}})
	f.Add(probe)
	reply := make([]byte, ProbeSize)
	b.sealProbe(reply, b.peer(a.own.ID).sendKeys(), kindReply, &Probe{Challenge: [16]byte{1}, Observed: a.addr})
	f.Add(reply)
	if err := b.SendGossip(a.own.ID, []byte("hello")); err != nil {
		f.Fatal(err)
	}
	f.Add(n.sentBy(b.addr)[0].b)
	f.Add([]byte{0xB0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2, 3})
	f.Add([]byte{})
	from := a.sock.endpoint(b.addr)
	f.Fuzz(func(t *testing.T, d []byte) {
		if len(d) >= headerLen {
			retag(d)
		}
		before := a.Counters()
		sizes := []int{len(d)}
		a.sift([][]byte{d}, sizes, []conn.Endpoint{from})
		if (sizes[0] == 0) == isWireGuard(d) {
			t.Errorf("size %d left of %d bytes, wireguard %t", sizes[0], len(d), isWireGuard(d))
		}
		after := a.Counters()
		if sizes[0] == 0 && len(d) > 0 && before == after {
			t.Error("a datagram was dropped without being counted")
		}
	})
}

func FuzzDecodeProbe(f *testing.F) {
	for _, kind := range []byte{kindProbe, kindReply} {
		for _, addr := range []string{"192.0.2.1:1", "[2001:db8::1]:65535"} {
			b := make([]byte, probePayload)
			encodeProbe(b, kind, &Probe{Challenge: [16]byte{1}, Boot: trust.BootID{2}, Observed: netip.MustParseAddrPort(addr)})
			f.Add(b)
		}
	}
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		kind, pr, err := decodeProbe(b)
		if err != nil {
			return
		}
		again := make([]byte, len(b))
		encodeProbe(again, kind, &pr)
		end := observedAt
		if kind == kindReply {
			end = probeMin
		}
		if !bytes.Equal(again[:end], b[:end]) {
			t.Errorf("decoded %+v encodes to\n%x, was\n%x", pr, again[:end], b[:end])
		}
	})
}
