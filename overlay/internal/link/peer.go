package link

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// peer is another gateway with whom we share keys.
type peer struct {
	id       trust.GatewayID
	public   PeerKeys    // that keys were derived from; guarded by Port.mu
	indexed  []keyID     // its entries in Port.index; guarded by Port.mu
	keys     []*pairKeys // never empty, newest first; guarded by Port.mu
	endpoint *Endpoint
	counter  *gossipCounter
	starts   []*start // the present one first; guarded by Port.mu

	// heard says under which key replies come, nil before the first. What we
	// send uses it, so that a peer which has not learnt of our new keys, or of
	// whose new keys we have not learnt, is understood.
	heard atomic.Pointer[heard]
	turn  atomic.Uint32               // of probes over all keys
	asked atomic.Int64                // when its last probe was answered, in Unix nanoseconds; 0: never
	all   atomic.Pointer[[]*pairKeys] // keys, to be read without Port.mu
}

// heard is the key of replies that count, and when the last of them came.
type heard struct {
	keys *pairKeys
	at   time.Time
}

// heardFor is how long a key must have been silent before an older one takes its
// place: two probes of a path in use.
const heardFor = 10 * time.Second

// sendKeys picks the key for gossip.
func (pe *peer) sendKeys() *pairKeys {
	if h := pe.heard.Load(); h != nil {
		return h.keys
	}
	return (*pe.all.Load())[0]
}

// probeKeys picks the keys for a probe. There are two during a key change, once
// the peer was heard: that of its replies, and the others in turn; the newer
// one first. Before that, and to addresses where nobody has answered yet, one.
func (pe *peer) probeKeys() (first, second *pairKeys) {
	all, h := *pe.all.Load(), pe.heard.Load()
	if len(all) == 1 {
		return all[0], nil
	}
	turn := int(pe.turn.Add(1) - 1)
	if h == nil {
		return all[turn%len(all)], nil
	}
	at := slices.Index(all, h.keys)
	other := turn % (len(all) - 1)
	if other >= at {
		return h.keys, all[other+1]
	}
	return all[other], h.keys
}

// hear notes that a reply under keys counted. A newer key replaces an older one
// at once, an older one only a key that has fallen silent.
func (pe *peer) hear(keys *pairKeys) {
	now := time.Now()
	all, h := *pe.all.Load(), pe.heard.Load()
	if !slices.Contains(all, keys) {
		return // dropped meanwhile
	}
	if h != nil && now.Sub(h.at) < heardFor && slices.Index(all, keys) > slices.Index(all, h.keys) {
		return
	}
	pe.heard.Store(&heard{keys, now})
}

// Asked returns when a probe of a peer was answered last, zero if none was. A
// replayed probe counts too, so it is a hint only. Safe for concurrent use.
func (p *Port) Asked(id trust.GatewayID) time.Time {
	pe := p.peer(id)
	if pe == nil {
		return time.Time{}
	}
	at := pe.asked.Load()
	if at == 0 {
		return time.Time{}
	}
	return time.Unix(0, at)
}

// keyOwner is who a key ID belongs to. session is nil for probe keys.
type keyOwner struct {
	peer    *peer
	keys    *pairKeys
	session *session
	until   time.Time // zero: no end
}

// lookup finds the owner of a key ID.
func (p *Port) lookup(id keyID) (keyOwner, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	o, ok := p.index[id]
	return o, ok
}

func (p *Port) peer(id trust.GatewayID) *peer {
	p.mu.RLock()
	defer p.mu.RUnlock()
	return p.peers[id]
}

// SetPeer makes a gateway a peer, or changes the keys of one. It agrees on the
// pair key, two X25519 operations (up to eight during key changes), and is the
// only place where that happens. Keys that stay keep their state. It fails for
// keys of low order and for this gateway itself. Safe for concurrent use.
func (p *Port) SetPeer(keys PeerKeys) error {
	if keys.Identity == p.own.Identity || keys.ID == p.own.ID {
		return fmt.Errorf("peer %s: %w", keys.ID.Short(), errOwnKeys)
	}
	if p.has(keys) {
		return nil
	}
	agreed, err := agree(p.mesh, &p.own, &keys)
	if err != nil {
		return fmt.Errorf("peer %s: %w", keys.ID.Short(), err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	pe := p.peers[keys.ID]
	if pe == nil {
		pe = &peer{id: keys.ID, endpoint: p.endpointLocked(keys.ID), counter: p.gossipCounterLocked(keys.ID)}
	}
	if err := pe.setKeysLocked(agreed, p.own.Boot); err != nil {
		return fmt.Errorf("peer %s: %w", keys.ID.Short(), err)
	}
	pe.public = keys
	p.peers[keys.ID] = pe
	p.indexLocked(pe)
	return nil
}

// has reports whether a peer has exactly these keys. Most records of a gateway
// differ in other things.
func (p *Port) has(keys PeerKeys) bool {
	pe := p.peer(keys.ID)
	if pe == nil {
		return false
	}
	p.mu.RLock()
	defer p.mu.RUnlock()
	return pe.public == keys
}

var errOwnKeys = errors.New("keys of this gateway")

// setKeysLocked replaces the keys and keeps those that are the same.
func (pe *peer) setKeysLocked(agreed []*pairKeys, own trust.BootID) error {
	for i, k := range agreed {
		for _, before := range pe.keys {
			if before.k == k.k {
				agreed[i] = before
			}
		}
	}
	for _, st := range pe.starts {
		if err := st.derive(own, agreed); err != nil {
			return err
		}
	}
	pe.keys = agreed
	pe.all.Store(&agreed)
	if h := pe.heard.Load(); h != nil && !slices.Contains(agreed, h.keys) {
		pe.heard.Store(nil)
	}
	return nil
}

// RemovePeer forgets the keys and the path of a peer. Its virtual endpoint stays
// valid and leads nowhere. Safe for concurrent use.
func (p *Port) RemovePeer(id trust.GatewayID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.endpoints[id]; e != nil {
		e.path.Store(nil)
	}
	if pe, ok := p.peers[id]; ok {
		delete(p.peers, id)
		p.unindexLocked(pe)
	}
}

// indexLocked puts the key IDs of a peer into the table anew.
func (p *Port) indexLocked(pe *peer) {
	p.unindexLocked(pe)
	put := func(id keyID, o keyOwner) {
		p.index[id] = o
		pe.indexed = append(pe.indexed, id)
	}
	for _, k := range pe.keys {
		put(k.receiveID, keyOwner{peer: pe, keys: k})
	}
	for i, st := range pe.starts {
		if i > 1 || (i == 1 && st.until.IsZero()) {
			break // only the present start and the one before
		}
		for k, s := range st.sessions {
			put(s.keys.receiveID, keyOwner{peer: pe, keys: k, session: s, until: st.until})
		}
	}
}

// unindexLocked takes the key IDs of a peer out of the table.
func (p *Port) unindexLocked(pe *peer) {
	for _, id := range pe.indexed {
		if p.index[id].peer == pe {
			delete(p.index, id)
		}
	}
	pe.indexed = pe.indexed[:0]
}

func (p *Port) gossipCounterLocked(id trust.GatewayID) *gossipCounter {
	c := p.gossipCounters[id]
	if c == nil {
		c = new(gossipCounter)
		p.gossipCounters[id] = c
	}
	return c
}

// SetPath says where packets and gossip for a peer go. The zero AddrPort means
// nowhere: packets are dropped and counted. Only the path prover calls it,
// because whoever sets a path redirects the traffic of the peer. Safe for
// concurrent use.
func (p *Port) SetPath(id trust.GatewayID, to netip.AddrPort) {
	p.mu.Lock()
	defer p.mu.Unlock()
	e := p.endpointLocked(id)
	to = unmap(to)
	if !to.IsValid() || to.Port() == 0 {
		e.path.Store(nil)
		return
	}
	e.path.Store(&route{addr: to, endpoint: p.sock.endpoint(to)})
}

// ClearSources forgets which local addresses to answer from. Call it after
// addresses or routes of the host changed. Safe for concurrent use.
func (p *Port) ClearSources() { p.stream.forgetSources() }

// route is where a virtual endpoint leads. Immutable.
type route struct {
	addr     netip.AddrPort
	endpoint conn.Endpoint
}
