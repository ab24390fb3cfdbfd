package gossip

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// newMesh starts n members that join through the first one.
func newMesh(t *testing.T, net *network, n int, change func(*Config)) []*node {
	t.Helper()
	nodes := make([]*node, n)
	for i := range nodes {
		nodes[i] = net.member(i, change)
	}
	for _, d := range nodes[1:] {
		d.Join([]trust.GatewayID{nodes[0].id})
	}
	return nodes
}

func TestFiftyMembersFindEachOtherThroughOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		net := newNetwork(t, 150*time.Millisecond)
		nodes := newMesh(t, net, 50, nil)
		took := until(t, 30*time.Second, "50 members", func() bool { return complete(nodes) })
		t.Logf("complete after %v", took)
		if err := nodes[7].Broadcast([]byte("news"), "key"); err != nil {
			t.Fatal(err)
		}
		took = until(t, 10*time.Second, "broadcast", func() bool {
			for i, d := range nodes {
				if i != 7 && heard(d, func() int { return d.users["news"] }) == 0 {
					return false
				}
			}
			return true
		})
		t.Logf("broadcast reached all after %v", took)
		for _, d := range nodes {
			for name, n := range d.Counters() {
				if n > 0 && name[:4] == "drop" {
					t.Errorf("counter %s: got %d in an honest mesh, want 0", name, n)
				}
			}
		}
	})
}
