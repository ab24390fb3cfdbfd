package gossip

import (
	"context"
	"errors"
	"slices"

	"github.com/hashicorp/memberlist"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// delegate is what memberlist calls, mostly with its own locks held: the
// methods copy, leave a note and return.
type delegate Gossip

// NodeMeta returns our metadata.
func (d *delegate) NodeMeta(limit int) []byte {
	if d.cfg.Meta == nil {
		return nil
	}
	b := d.cfg.Meta()
	return slices.Clone(b[:min(len(b), limit, MaxMeta)])
}

// NotifyMsg is never called: the filter takes user messages out before memberlist, while it is known who sent them.
func (d *delegate) NotifyMsg([]byte) {}

// GetBroadcasts has nothing for memberlist's packets: spread sends our messages.
func (d *delegate) GetBroadcasts(int, int) [][]byte { return nil }

// LocalState is empty: records travel by anti-entropy, which does not depend on memberlist.
func (d *delegate) LocalState(bool) []byte { return nil }

// MergeRemoteState is never called: the filter accepts no user state.
func (d *delegate) MergeRemoteState([]byte, bool) {}

var errNotMember = errors.New("no stored gateway has this name and address")

// NotifyAlive is asked about every member before memberlist believes in it. The filter has judged already; a record
// may have gone since.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	if !d.transport.filter.isNode(n.Name, n.Addr, n.Port) || len(n.Meta) > MaxMeta {
		return errNotMember
	}
	return nil
}

// NotifyJoin hears that a member came, or came back.
func (d *delegate) NotifyJoin(n *memberlist.Node) {
	d.note(n, hint{alive: true, came: true, told: true})
}

// NotifyUpdate hears that a member has new metadata.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.note(n, hint{told: true}) }

// NotifyLeave hears that a member went or is taken for dead.
func (d *delegate) NotifyLeave(n *memberlist.Node) { d.note(n, hint{came: true}) }

// hint is news about a member that was not delivered yet.
type hint struct {
	came  bool // whether it is alive is news
	alive bool
	told  bool // its metadata is news
	meta  []byte
}

// note replaces what was noted about a member before. There are at most as many notes as stored gateways.
func (d *delegate) note(n *memberlist.Node, h hint) {
	id, err := trust.ParseGatewayID(n.Name)
	if err != nil || id == d.cfg.Self {
		return
	}
	d.mu.Lock()
	old := d.hints[id]
	if !h.came {
		h.came, h.alive = old.came, old.alive
	}
	h.meta = old.meta
	if h.told {
		h.meta = slices.Clone(n.Meta)
	}
	h.told = h.told || old.told
	d.hints[id] = h
	d.mu.Unlock()
	signal(d.hintsNow)
}

// deliverHints passes notes on, one at a time.
func (g *Gossip) deliverHints(ctx context.Context) {
	for {
		select {
		case <-g.hintsNow:
		case <-ctx.Done():
			return
		}
		g.mu.Lock()
		hints := g.hints
		g.hints = make(map[trust.GatewayID]hint)
		g.mu.Unlock()
		for id, h := range hints {
			if h.came && g.cfg.OnHint != nil {
				g.cfg.OnHint(id, h.alive)
			}
			if h.told && g.cfg.OnMeta != nil {
				g.cfg.OnMeta(id, h.meta)
			}
		}
	}
}
