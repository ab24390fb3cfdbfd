//go:build !race

// The race detector makes pools forget at random, so that allocations cannot be
// counted under it.

package link

import (
	"bytes"
	"testing"

	"golang.zx2c4.com/wireguard/conn"
)

func TestStrangerCostsNoMemory(t *testing.T) {
	n := newMemNet()
	a, b := newGateway(t, n, 1), newGateway(t, n, 2)
	introduce(t, a, b)
	probe := make([]byte, MaxDatagram)
	b.sealProbe(probe, b.peer(a.own.ID).sendKeys(), kindProbe, &Probe{})
	wrongTag := bytes.Clone(probe)
	wrongTag[3] ^= 1
	member := bytes.Clone(probe) // of the mesh, but nobody that we know
	member[headerLen] ^= 1
	retag(member)
	from := a.sock.endpoint(b.addr)
	for name, datagram := range map[string][]byte{
		"short": probe[:7], "wrong tag": wrongTag, "unknown key": member, "unknown type": retag([]byte("\xC0\x01        and more")),
	} {
		if got := testing.AllocsPerRun(1000, func() { a.divert(datagram, from) }); got != 0 {
			t.Errorf("%s: %v allocations, want 0", name, got)
		}
	}
	if got := len(n.sentBy(a.addr)); got != 0 {
		t.Errorf("%d datagrams in answer to strangers, want silence", got)
	}
}

func TestSendOverPathAllocatesNoMoreThanTheLibrary(t *testing.T) {
	a, b := newGateway(t, nil, 1), newGateway(t, nil, 2)
	a.SetPath(b.own.ID, b.addr)
	e := a.bind.endpointOf(t, b.own.ID)
	bufs := [][]byte{append(make([]byte, 0, 4096), 4, 0, 0, 0, 1, 2, 3)}
	library := conn.NewStdNetBind()
	if _, _, err := library.Open(0); err != nil {
		t.Fatal(err)
	}
	defer library.Close()
	raw := &conn.StdNetEndpoint{AddrPort: b.addr}
	send := func(bind conn.Bind, e conn.Endpoint) float64 {
		return testing.AllocsPerRun(500, func() {
			if err := bind.Send(bufs, e); err != nil {
				t.Fatal(err)
			}
		})
	}
	if ours, theirs := send(a.Bind(), e), send(library, raw); ours > theirs {
		t.Errorf("%v allocations per send, the library's own bind has %v", ours, theirs)
	}
}
