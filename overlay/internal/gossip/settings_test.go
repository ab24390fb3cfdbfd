package gossip

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// The numbers that docs/decisions/0003-gossip-settings.md promises, with room: 64 members, round trips of 300 ms, 2 % loss.
func TestSettingsKeepTheirPromises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = settingsMembers
		var deaths atomic.Int64
		net := newNetwork(t, 150*time.Millisecond)
		net.setLoss(0.02)
		nodes := newMesh(net, n, func(c *Config) {
			hint := c.OnHint
			c.OnHint = func(peer trust.GatewayID, alive bool) {
				if !alive {
					deaths.Add(1)
				}
				hint(peer, alive)
			}
		})
		took := until(t, 20*time.Second, "complete", func() bool {
			for _, d := range nodes[1:] {
				if len(d.Members()) == 0 { // its exchange got lost; the owner tries again
					d.Join([]trust.GatewayID{nodes[0].id})
				}
			}
			return complete(nodes)
		})
		t.Logf("complete after %v, with %d bytes sent by each member", took, average(nodes))

		time.Sleep(time.Minute) // nothing is said any more
		before := average(nodes)
		time.Sleep(time.Minute)
		rate := (average(nodes) - before) / 60
		t.Logf("idle: %d bytes a second for each member", rate)
		if rate > 200 {
			t.Errorf("idle: got %d bytes a second for each member, want about 65", rate)
		}

		message := strings.Repeat("r", 900) // a record
		if err := nodes[5].Broadcast([]byte(message), "record"); err != nil {
			t.Fatal(err)
		}
		took = until(t, 4*time.Second, "broadcast", func() bool { return heardBy(nodes, message) >= n-1 })
		t.Logf("broadcast reached all after %v", took)

		net.setLoss(0.1)
		time.Sleep(3 * time.Minute)
		if got := deaths.Load(); got != 0 {
			t.Errorf("with 10 %% loss: got %d false deaths in 3 minutes", got)
		}
		victim := nodes[n-3]
		victim.crash()
		took = until(t, 90*time.Second, "crash noticed", func() bool { return deaths.Load() >= n-1 })
		t.Logf("crash noticed by all after %v", took)
	})
}

// average returns how many bytes the members have sent, on average.
func average(nodes []*node) int {
	sum := 0
	for _, d := range nodes {
		sum += heard(d, func() int { return d.sent })
	}
	return sum / len(nodes)
}
