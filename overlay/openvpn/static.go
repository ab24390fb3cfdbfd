package openvpn

import (
	"sync"
	"sync/atomic"
	"time"
)

// newStaticBoxes builds both directions of static key mode. The configuration
// is valid and complete.
func newStaticBoxes(s *Static, d Digest) (send, recv *cbcBox, err error) {
	spec, _ := cipherSpecOf(s.Cipher)
	if s.Cipher == CipherBlowfishCBC {
		spec.keySize = s.BlowfishBits / 8
	}
	sendHalf, recvHalf := s.Key.directed(s.Direction)
	if send, err = newCBC(spec, d, sendHalf, true); err != nil {
		return nil, nil, err
	}
	if recv, err = newCBC(spec, d, recvHalf, false); err != nil {
		return nil, nil, err
	}
	send.long, recv.long = true, true
	return send, recv, nil
}

// staticChannel is static key mode. There is no handshake: the first packet that
// passes the checks is the proof of the peer.
type staticChannel struct {
	l       *link
	options string
	out     atomic.Pointer[outlet]

	mu   sync.Mutex
	recv *cbcBox // guarded by mu, as is the guard of the endpoint
	up   bool    // guarded by mu
}

func newStaticChannel(l *link) (*staticChannel, error) {
	cfg := &l.e.cfg
	send, recv, err := newStaticBoxes(cfg.Static, cfg.Digest)
	if err != nil {
		return nil, err
	}
	if send.time, err = l.e.clock.next(); err != nil {
		return nil, err
	}
	send.renew = func() (uint32, error) { return l.e.clock.next() }
	spec, _ := cipherSpecOf(cfg.Static.Cipher)
	if spec.name == CipherBlowfishCBC {
		spec.keySize = cfg.Static.BlowfishBits / 8
	}
	c := &staticChannel{l: l, recv: recv}
	c.options = optionsString(optionFacts{
		transport: cfg.Transport, mtu: cfg.MTU, local: cfg.Address, remote: cfg.PeerAddress, ipv6: cfg.IPv6,
		framing: cfg.Framing, fragment: cfg.Fragment != 0, direction: cfg.Static.Direction, cipher: spec, digest: cfg.Digest,
	})
	c.out.Store(&outlet{to: l.tr.peer(), key: &sendKey{box: send}})
	return c, nil
}

func (c *staticChannel) receive(from path, p []byte) ([]byte, bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	o, err := c.recv.open(p)
	if err != nil {
		return nil, false, err
	}
	if !c.l.e.guard.accept(o.time, o.id) {
		return nil, false, ReasonReplay
	}
	if out := c.out.Load(); !c.up || out.to != from {
		c.follow(from)
	}
	return o.payload, true, nil
}

// follow makes the sender of an authentic packet the peer.
func (c *staticChannel) follow(from path) {
	out := c.out.Load()
	if out.to != from {
		c.l.tr.adopt(from)
		c.out.Store(&outlet{to: from, key: out.key})
	}
	c.up = true
	c.l.up.Store(true)
	c.l.e.update(func(s *Status) { s.State, s.Peer = StateUp, from.addr })
	c.l.kick()
}

func (c *staticChannel) outlet() (*outlet, bool) {
	out := c.out.Load()
	return out, out.to.valid()
}

// relax lets the next connection hear a peer whose clock went back.
func (c *staticChannel) relax() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.l.e.guard.relax()
}

func (c *staticChannel) tick(time.Time) time.Time { return time.Time{} }

// leave sends the exit notification twice, because nobody acknowledges it.
func (c *staticChannel) leave() {
	for range 2 {
		c.l.say(occMessage(occExit, ""))
	}
}

func (c *staticChannel) stop() {}
