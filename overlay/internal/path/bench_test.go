package path

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// last is a Sender that remembers its last probe.
type last struct {
	peer      trust.GatewayID
	to        netip.AddrPort
	challenge [16]byte
}

func (l *last) SendProbe(peer trust.GatewayID, to netip.AddrPort, challenge [16]byte, _ int) error {
	l.peer, l.to, l.challenge = peer, to, challenge
	return nil
}

// One probe of one peer and its reply, with the rounds of Run that they cause,
// while others are known and nothing of theirs is due.
func BenchmarkProbeAndReply(b *testing.B) {
	for _, peers := range []int{50, 400} {
		b.Run(fmt.Sprintf("peers=%d", peers), func(b *testing.B) {
			var l last
			p := New(Config{Send: &l, Budget: Budget{PerAddressBurst: 1e6, PerPeerBurst: 1e6, TotalBurst: 1e6}})
			boot := trust.BootID{1}
			ask := func(id trust.GatewayID) {
				p.Kick(id)
				p.round()
				if l.peer != id || !p.Reply(l.to, id, l.challenge, boot, l.to) {
					b.Fatalf("peer %s was not asked, or its reply does not count", id.Short())
				}
				p.round()
			}
			for i := range peers {
				addr := netip.AddrFrom4([4]byte{203, 0, byte(i >> 8), byte(i)})
				p.SetPeer(gatewayID(i), []Candidate{{netip.AddrPortFrom(addr, 51820), Record}})
				for range learnSamples {
					ask(gatewayID(i))
				}
			}
			n := 0
			b.ReportAllocs()
			for b.Loop() {
				ask(gatewayID(n % peers))
				n++
			}
		})
	}
}
