package gossip

import (
	"context"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// spread sends broadcasts to a few random members in every round. memberlist
// would do that only when it has nothing to say itself, which after many have
// joined takes a minute, and as long as somebody hostile likes.
func (g *Gossip) spread(ctx context.Context) {
	ticker := time.NewTicker(g.cfg.Tuning.Gossip)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		if g.queue.NumQueued() == 0 {
			continue
		}
		for _, id := range g.draw(g.cfg.Tuning.GossipNodes) {
			g.tell(id)
		}
	}
}

// draw returns n of Members, or all if they are fewer. It looks only at those that it draws.
func (g *Gossip) draw(n int) []trust.GatewayID {
	list := g.list.Load()
	if list == nil {
		return nil
	}
	var drawn []trust.GatewayID
	for nodes := list.Members(); len(nodes) > 0 && len(drawn) < n; {
		i, last := rand.IntN(len(nodes)), len(nodes)-1
		if id, ok := g.stored(nodes[i]); ok {
			drawn = append(drawn, id)
		}
		nodes[i], nodes = nodes[last], nodes[:last]
	}
	return drawn
}

// tell sends one member as many broadcasts as fit into a packet.
func (g *Gossip) tell(peer trust.GatewayID) {
	messages := g.queue.GetBroadcasts(broadcastOverhead, MaxPacket-compoundOverhead)
	for i, m := range messages {
		messages[i] = append([]byte{typeUser}, m...)
	}
	for some := range slices.Chunk(messages, maxMessages) { // very small ones take more than one packet
		if g.transport.send(peer, join(some)) == nil {
			g.count.add(packetsOut)
		}
	}
}

// broadcast is a message in the queue.
type broadcast struct {
	key string
	b   []byte
}

// Invalidates is memberlist's question whether a newer message makes an older one useless.
func (b *broadcast) Invalidates(other memberlist.Broadcast) bool {
	o, ok := other.(*broadcast)
	return ok && o.key == b.key
}

// Name is the key.
func (b *broadcast) Name() string { return b.key }

// Message is the message.
func (b *broadcast) Message() []byte { return b.b }

// Finished hears that the message is not sent any more.
func (b *broadcast) Finished() {}
