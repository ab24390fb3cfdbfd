package link

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/path"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// proving is a gateway whose paths a Prover finds, as in a mesh.
type proving struct {
	*gateway
	prover *path.Prover
}

func (p proving) Heard(peer trust.GatewayID) { p.prover.Heard(peer) }

func (p proving) Probe(from netip.AddrPort, peer trust.GatewayID, pr Probe) bool {
	return p.prover.Reply(from, peer, pr.Challenge, pr.Boot, pr.Observed)
}

func newProving(t *testing.T, n *memNet, number byte) proving {
	g := newGateway(t, n, number)
	p := proving{gateway: g}
	p.prover = path.New(path.Config{
		Send: g.Port,
		OnChange: func(peer trust.GatewayID, way path.Path, _ bool) {
			g.SetPath(peer, way.Addr)
		},
		OnBoot: func(peer trust.GatewayID, boot trust.BootID) {
			if err := g.SetBoot(peer, boot); err != nil {
				t.Error(err)
			}
		},
	})
	g.Handle(p)
	g.run(t)
	go func() { _ = p.prover.Run(t.Context()) }() // ends with the test
	return p
}

func TestProverFindsPathOverPort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newMemNet()
		a, b := newProving(t, n, 1), newProving(t, n, 2)
		for _, side := range []struct{ from, to proving }{{a, b}, {b, a}} {
			if err := side.from.SetPeer(record(side.to.own)); err != nil {
				t.Fatal(err)
			}
			side.from.prover.SetPeer(side.to.own.ID, []path.Candidate{
				{Addr: netip.MustParseAddrPort("203.0.113.5:51820"), Source: path.Record}, // nobody
				{Addr: side.to.addr, Source: path.Record},
			})
		}
		time.Sleep(time.Second)
		synctest.Wait()
		for _, side := range []struct{ from, to proving }{{a, b}, {b, a}} {
			if got := side.from.bind.endpointOf(t, side.to.own.ID).DstToString(); got != side.to.addr.String() {
				t.Errorf("path %s, want %v", got, side.to.addr)
			}
			if err := side.from.SendGossip(side.to.own.ID, []byte("hello")); err != nil {
				t.Error(err)
			}
		}
		synctest.Wait()
		for _, g := range []proving{a, b} {
			if got := len(g.gotGossip()); got != 1 {
				t.Errorf("%d gossip datagrams, want 1", got)
			}
		}
		if c := a.Counters(); c.Challenge+c.Seal+c.UnknownKey > 0 {
			t.Errorf("counters %+v", c)
		}
	})
}
