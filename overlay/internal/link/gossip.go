package link

import (
	"encoding/binary"
	"fmt"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/replay"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

const (
	counterLen = 8
	counterAt  = headerLen + keyIDLen
	gossipAt   = counterAt + counterLen

	// bootOverlap is how long gossip of a peer's previous start is still
	// accepted: as long as a probe may be under way.
	bootOverlap = 5 * time.Second

	// bootMemory is how many starts of a peer we keep keys and replay windows
	// for. One that comes back finds its window, so nothing of it can be
	// replayed.
	bootMemory = 4
)

// session is gossip with one start of a peer under one pair key.
type session struct {
	boot trust.BootID
	keys *gossipKeys

	mu     sync.Mutex    // guards window
	window replay.Filter // 8,128 datagrams wide (the protocol asks for 2,048 at least)
}

// fresh reports whether counter was not seen before. Call it for authenticated
// datagrams only.
func (s *session) fresh(counter uint64) bool {
	if counter == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.window.ValidateCounter(counter, math.MaxUint64)
}

// start is what we keep of one start of a peer: a session per pair key.
type start struct {
	boot     trust.BootID
	sessions map[*pairKeys]*session
	until    time.Time // when it is no longer accepted; zero for the present one
}

// SetBoot says which start of a peer is the present one, as learnt from an
// authenticated reply or introduction, and so enables gossip in both
// directions. Gossip of the start before is accepted for five more seconds. The
// zero boot ID ends gossip. Errors: ErrUnknownPeer, failed key derivation. Safe for
// concurrent use.
func (p *Port) SetBoot(peer trust.GatewayID, boot trust.BootID) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	pe := p.peers[peer]
	if pe == nil {
		return ErrUnknownPeer
	}
	if len(pe.starts) > 0 && pe.starts[0].boot == boot && pe.starts[0].until.IsZero() {
		return nil
	}
	if err := pe.setBootLocked(p.own.Boot, boot); err != nil {
		return err
	}
	p.indexLocked(pe)
	return nil
}

// setBootLocked moves boot to the front of the starts that we know.
func (pe *peer) setBootLocked(own, boot trust.BootID) error {
	if len(pe.starts) > 0 && pe.starts[0].until.IsZero() {
		pe.starts[0].until = time.Now().Add(bootOverlap)
	}
	if (boot == trust.BootID{}) {
		return nil
	}
	var st *start
	for i, s := range pe.starts {
		if s.boot == boot {
			st = s
			pe.starts = append(pe.starts[:i], pe.starts[i+1:]...)
			break
		}
	}
	if st == nil {
		st = &start{boot: boot, sessions: make(map[*pairKeys]*session)}
	}
	st.until = time.Time{}
	if err := st.derive(own, pe.keys); err != nil {
		return fmt.Errorf("gossip keys: %w", err)
	}
	pe.starts = append([]*start{st}, pe.starts...)
	pe.starts = pe.starts[:min(len(pe.starts), bootMemory)]
	return nil
}

// derive makes the sessions that are missing and forgets those of keys that are
// gone.
func (st *start) derive(own trust.BootID, keys []*pairKeys) error {
	sessions := make(map[*pairKeys]*session, len(keys))
	for _, k := range keys {
		s := st.sessions[k]
		if s == nil {
			g, err := k.gossip(own, st.boot)
			if err != nil {
				return err
			}
			s = &session{boot: st.boot, keys: g}
		}
		sessions[k] = s
	}
	st.sessions = sessions
	return nil
}

// gossipCounter counts the gossip datagrams to one peer. It outlives keys,
// starts and the peer itself, so that no key ever meets a counter twice.
type gossipCounter struct{ atomic.Uint64 }

// SendGossip seals b and sends it over the path of peer. b is at most MaxGossip
// bytes long and may be used again afterwards. Errors: ErrUnknownPeer, ErrNoPath,
// ErrNoBoot, ErrOversize, net.ErrClosed, what the socket reports. Safe for
// concurrent use.
func (p *Port) SendGossip(peer trust.GatewayID, b []byte) error {
	if len(b) > MaxGossip {
		p.counters.oversize.Add(1)
		return ErrOversize
	}
	pe, s, err := p.gossipSession(peer)
	if err != nil {
		return err
	}
	to := pe.endpoint.path.Load()
	if to == nil {
		p.counters.noPath.Add(1)
		return ErrNoPath
	}
	pk := packets.Get().(*packet)
	defer packets.Put(pk)
	d := pk.data[:gossipAt+len(b)+sealOverhead]
	clear(d[:gossipAt])
	begin(d, typeGossip)
	copy(d[headerLen:], s.keys.sendID[:])
	counter := pe.counter.Add(1)
	binary.BigEndian.PutUint64(d[counterAt:], counter)
	nonce := gossipNonce(counter)
	s.keys.send.Seal(d[gossipAt:gossipAt], nonce[:], b, associated(d[:gossipAt]))
	p.tags.put(d)
	return p.write(pk, d, to.endpoint, &p.counters.gossipSent)
}

// gossipSession finds what a datagram to peer is sealed with.
func (p *Port) gossipSession(id trust.GatewayID) (*peer, *session, error) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	pe := p.peers[id]
	if pe == nil {
		return nil, nil, ErrUnknownPeer
	}
	if len(pe.starts) == 0 || !pe.starts[0].until.IsZero() {
		return nil, nil, ErrNoBoot
	}
	s := pe.starts[0].sessions[pe.sendKeys()]
	if s == nil { // the key was dropped a moment ago
		s = pe.starts[0].sessions[pe.keys[0]]
	}
	return pe, s, nil
}

// receiveGossip handles a gossip datagram whose tag holds.
func (p *Port) receiveGossip(b []byte) {
	if len(b) < gossipAt+sealOverhead {
		p.counters.short.Add(1)
		return
	}
	owner, ok := p.lookup(keyID(b[headerLen:counterAt]))
	if !ok || owner.session == nil || (!owner.until.IsZero() && time.Now().After(owner.until)) {
		p.counters.unknownKey.Add(1)
		return
	}
	s := owner.session
	counter := binary.BigEndian.Uint64(b[counterAt:])
	nonce := gossipNonce(counter)
	plain, err := s.keys.receive.Open(b[gossipAt:gossipAt], nonce[:], b[gossipAt:], associated(b[:gossipAt]))
	if err != nil {
		p.counters.seal.Add(1)
		return
	}
	if !s.fresh(counter) {
		p.counters.replay.Add(1)
		return
	}
	h := p.handler.Load()
	if h == nil {
		p.counters.noHandler.Add(1)
		return
	}
	p.counters.gossip.Add(1)
	(*h).Gossip(owner.peer.id, s.boot, plain)
}

// gossipNonce is four zero bytes and the counter.
func gossipNonce(counter uint64) (n [12]byte) {
	binary.BigEndian.PutUint64(n[4:], counter)
	return n
}
