package openvpn

import (
	"crypto/tls"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// dataKey protects packets of both directions under one key id.
type dataKey struct {
	send sendKey
	spec cipherSpec

	mu    sync.Mutex
	recv  opener // guarded by mu
	head  *[]byte
	seen  replayWindow  // guarded by mu
	bytes atomic.Uint64 // received, for ciphers with small blocks
}

// dataKeys are the data keys of the active session by key id.
type dataKeys struct {
	byID atomic.Pointer[[maxKeyID + 1]*dataKey]
}

func (d *dataKeys) set(keys *[maxKeyID + 1]*dataKey) { d.byID.Store(keys) }

func (d *dataKeys) get(id uint8) *dataKey {
	keys := d.byID.Load()
	if keys == nil {
		return nil
	}
	return keys[id]
}

// newDataKey builds the keys out of the key block, of which the client sends
// with the first half.
func newDataKey(a agreement, d Digest, block StaticKey, role Role, keyID uint8, peerID uint32) (*dataKey, error) {
	sendHalf, recvHalf := block.directed(Direction0)
	if role == TLSServer {
		sendHalf, recvHalf = recvHalf, sendHalf
	}
	header := []byte{opDataV1<<3 | keyID}
	if a.dataV2 {
		header = []byte{opDataV2<<3 | keyID, byte(peerID >> 16), byte(peerID >> 8), byte(peerID)}
	}
	k := &dataKey{spec: a.cipher}
	if a.cipher.aead {
		send, err := newAEAD(a.cipher, sendHalf)
		if err != nil {
			return nil, err
		}
		recv, err := newAEAD(a.cipher, recvHalf)
		if err != nil {
			return nil, err
		}
		send.header = header
		k.send.box, k.recv, k.head = send, recv, &recv.header
		return k, nil
	}
	send, err := newCBC(a.cipher, d, sendHalf, true)
	if err != nil {
		return nil, err
	}
	recv, err := newCBC(a.cipher, d, recvHalf, false)
	if err != nil {
		return nil, err
	}
	send.header = header
	k.send.box, k.recv, k.head = send, recv, &recv.header
	return k, nil
}

// headers stands in for the header of received packets, of which only the length
// matters.
var headers [dataV2Size]byte

// open checks a data packet with a header of that length.
func (k *dataKey) open(p []byte, header int) ([]byte, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	*k.head = headers[:header]
	o, err := k.recv.open(p)
	if err != nil {
		return nil, err
	}
	if !k.seen.accept(0, o.id) {
		return nil, ReasonReplay
	}
	return o.payload, nil
}

// worn reports whether the key should be replaced whatever its age.
func (k *dataKey) worn() bool {
	k.send.mu.Lock()
	sent := k.send.box.used()
	k.send.mu.Unlock()
	if sent >= maxKeyIDBeforeReneg {
		return true
	}
	// Packets are up to 1,500 bytes: ids stand in for the bytes sent.
	return k.spec.smallBlock() && k.bytes.Load()+uint64(sent)*defaultMTU >= smallBlockLimit
}

// checkAgain is after how long worn may have changed its mind.
func (k *dataKey) checkAgain() time.Duration {
	if k.spec.smallBlock() {
		return time.Second
	}
	return 10 * time.Second
}

// receiveData handles a data packet of the active session.
func (c *tlsChannel) receiveData(from path, p []byte, op uint8) ([]byte, bool, error) {
	id := p[0] & maxKeyID
	k := c.data.get(id)
	if k == nil {
		return nil, false, ReasonNoKey
	}
	header := dataV1Size
	if op == opDataV2 {
		header = dataV2Size
	}
	payload, err := k.open(p, header)
	if err != nil {
		return nil, false, err
	}
	if k.spec.smallBlock() {
		k.bytes.Add(uint64(len(p)))
	}
	if out := c.out.Load(); out == nil || out.to != from || out.key != &k.send {
		c.followData(from, k)
	}
	return payload, true, nil
}

// followData acts on an authentic packet from another address or under a new key.
func (c *tlsChannel) followData(from path, k *dataKey) {
	c.mu.Lock()
	s := c.active
	if s == nil || c.stopped {
		c.mu.Unlock()
		return
	}
	moved := s.path != from
	if moved {
		s.path = from
	}
	if s.primary.data == k {
		s.switchLocked(c)
	} else if out := c.out.Load(); moved && out != nil {
		c.out.Store(&outlet{to: from, key: out.key, keyID: out.keyID})
	}
	c.mu.Unlock()
	if moved {
		c.l.tr.adopt(from)
		c.l.e.update(func(st *Status) { st.Peer = from.addr })
	}
}

// install makes data keys out of both key messages and puts them to use. Before
// sending with them it calls answer, if there is one.
func (c *tlsChannel) install(s *session, k *key, conn *tls.Conn, ours, theirs *keyMessage, answer func() error) error {
	state := conn.ConnectionState()
	if k.id == 0 {
		if err := c.settle(s, &state, theirs); err != nil {
			return err
		}
	}
	block, err := c.keyBlock(s, &state, ours, theirs)
	if err != nil {
		return err
	}
	data, err := newDataKey(s.agreed, c.l.e.cfg.Digest, block, c.t.Role, k.id, s.peerID)
	if err != nil {
		return err
	}
	c.mu.Lock()
	k.data, k.conn = data, conn
	if s == c.active {
		c.publishLocked(s) // the peer may use the key before we do
	}
	c.mu.Unlock()
	if answer != nil {
		if err := answer(); err != nil {
			return err
		}
	}
	return c.activate(s, k, &state, theirs.options)
}

// settle agrees on cipher and formats from the first key messages of a session.
// Only the goroutine of key 0 writes these fields, before the session is active.
func (c *tlsChannel) settle(s *session, state *tls.ConnectionState, theirs *keyMessage) error {
	a, err := agree(c.t.Role, c.ours, parsePeerInfo(theirs.peerInfo), c.t.Fallback)
	if err != nil {
		return err
	}
	if a.dataV2 {
		s.peerID = prfPeerID
	}
	if a.dataV2 && a.exporter {
		id, err := state.ExportKeyingMaterial(labelPeerID, nil, 3)
		if err != nil {
			return err
		}
		s.peerID = uint32(id[0])<<16 | uint32(id[1])<<8 | uint32(id[2])
	}
	var dyn wrapping
	if a.dynWrap {
		b, err := state.ExportKeyingMaterial(labelDynWrap, nil, staticKeySize)
		if err != nil {
			return err
		}
		dyn = newCryptWrapping(StaticKey{[staticKeySize]byte(b)}.xor(c.t.WrapKey), c.t.Role)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	s.agreed, s.dynWrap = a, dyn
	return nil
}

// keyBlock derives the 256 bytes of data keys.
func (c *tlsChannel) keyBlock(s *session, state *tls.ConnectionState, ours, theirs *keyMessage) (StaticKey, error) {
	if s.agreed.exporter {
		b, err := state.ExportKeyingMaterial(labelDataKeys, nil, staticKeySize)
		if err != nil {
			return StaticKey{}, err
		}
		return StaticKey{[staticKeySize]byte(b)}, nil
	}
	if c.t.Role == TLSClient {
		return prfKeys(ours, theirs, s.local, s.remote), nil
	}
	return prfKeys(theirs, ours, s.remote, s.local), nil
}

// activate makes a key the newest of its session, and with key 0 the session the
// active one.
func (c *tlsChannel) activate(s *session, k *key, state *tls.ConnectionState, options string) error {
	now := time.Now()
	c.mu.Lock()
	if k.closed || c.stopped {
		defer c.mu.Unlock()
		if k.reason != nil {
			return k.reason
		}
		return errSuperseded
	}
	k.born = now
	if s.old != nil {
		s.old.closeLocked()
	}
	s.old, s.primary, s.negotiating = s.primary, k, nil
	s.renegAt = time.Time{}
	if every := c.t.RenegInterval; every > 0 {
		s.renegAt = now.Add(every)
		s.switchAt = now.Add(min(switchAfter, every/4))
	} else {
		s.switchAt = now.Add(switchAfter)
	}
	replaced := s != c.active
	if replaced {
		c.replaceLocked(s)
	}
	c.publishLocked(s)
	if s.old == nil {
		s.switchLocked(c)
	}
	path, spec := s.path, s.agreed.cipher
	v2, peerID := s.agreed.dataV2, s.peerID
	c.mu.Unlock()
	if replaced {
		c.l.tr.adopt(path)
	}
	c.l.e.count.keys.Add(1)
	c.l.heard.Store(c.l.now())
	c.l.up.Store(true)
	c.l.e.update(func(st *Status) {
		st.State, st.Peer, st.Cipher, st.Digest = StateUp, path.addr, spec.name, c.l.e.cfg.Digest
		if spec.aead {
			st.Digest = ""
		}
		st.DataV2, st.PeerID, st.TLSVersion, st.PeerOptions = v2, peerID, tls.VersionName(state.Version), clip(options)
	})
	c.l.kick()
	return nil
}

// clip bounds a text of the peer that is kept.
func clip(s string) string { return s[:min(len(s), maxOptions)] }

// replaceLocked makes s the active session and ends the others: the one before,
// and attempts from the same peer that are now pointless.
func (c *tlsChannel) replaceLocked(s *session) {
	for _, other := range slices.Clone(c.sessions) {
		if other != s && (other == c.active || !other.bound) {
			c.dropLocked(other)
		}
	}
	c.active, c.failures = s, 0
}
