package wgdev

import (
	"bytes"
	"fmt"
	"maps"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// spotter is the Bind of a device. It notices the handshakes that the device
// begins by itself, because there is something to send, so that those get the
// same retries as others. It also notices those that others begin with us, for
// the device says nothing of an initiation that it does not answer.
//
// Without that, two gateways that begin to send to each other in the time that
// a packet takes between them, both with more to follow, may go without a
// session for minutes: each answers the handshake of the other and forgets its
// own, and both try again 5 s later, which is again at the same time.
// TestTrafficOfBothSidesAtOnceIsSettledSoon has figures.
type spotter struct {
	conn.Bind
	sessions *sessions

	mu    sync.Mutex              // guards spots; taken for handshakes and changes only
	spots map[conn.Endpoint]*spot // by virtual endpoint
}

// spot is a peer.
type spot struct {
	key  trust.ExchangeKey
	last time.Time // when an initiation was sent
}

// quietTime without initiations makes the next one the first of a row:
// WireGuard sends them every 5 to 5.4 s.
const quietTime = 2 * rekeyTimeout

func newSpotter(b conn.Bind, s *sessions) *spotter {
	return &spotter{Bind: b, sessions: s, spots: make(map[conn.Endpoint]*spot)}
}

// follow is told of changes before the device is.
func (s *spotter) follow(changes engine.Changes, endpoints map[trust.GatewayID]conn.Endpoint) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range changes {
		switch c.Op {
		case engine.AddPeer:
			e := endpoints[c.Peer]
			if at := s.spots[e]; at == nil || at.key != c.Key {
				s.spots[e] = &spot{key: c.Key}
			}
		case engine.RemovePeer:
			maps.DeleteFunc(s.spots, func(_ conn.Endpoint, at *spot) bool { return at.key == c.Key })
		}
	}
}

// parseEndpoints returns the virtual endpoints of the peers that changes add.
func parseEndpoints(b conn.Bind, text func(trust.GatewayID) string, changes engine.Changes) (map[trust.GatewayID]conn.Endpoint, error) {
	endpoints := make(map[trust.GatewayID]conn.Endpoint)
	for _, c := range changes {
		if c.Op != engine.AddPeer {
			continue
		}
		e, err := b.ParseEndpoint(text(c.Peer))
		if err != nil {
			return nil, fmt.Errorf("%v of %s: %w", c.Op, c.Peer.Short(), err)
		}
		endpoints[c.Peer] = e
	}
	return endpoints, nil
}

// Open implements conn.Bind.
func (s *spotter) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	receive, port, err := s.Bind.Open(port)
	for i, f := range receive {
		receive[i] = func(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
			n, err := f(bufs, sizes, eps)
			for j, size := range sizes[:n] {
				if size == initiationSize && bufs[j][0] == typeInitiation {
					s.sessions.heard(bytes.Clone(bufs[j][:size]))
				}
			}
			return n, err
		}
	}
	return receive, port, err
}

// Send implements conn.Bind.
func (s *spotter) Send(bufs [][]byte, to conn.Endpoint) error {
	if len(bufs) == 1 && len(bufs[0]) > 0 {
		switch b := bufs[0]; {
		case len(b) == initiationSize && b[0] == typeInitiation:
			s.initiated(to)
		case len(b) == responseSize && b[0] == typeResponse:
			s.responded(to)
		}
	}
	return s.Bind.Send(bufs, to)
}

func (s *spotter) initiated(to conn.Endpoint) {
	now := time.Now()
	s.mu.Lock()
	at := s.spots[to]
	first := at != nil && now.Sub(at.last) > quietTime
	if at != nil {
		at.last = now
	}
	s.mu.Unlock()
	if first {
		s.sessions.noticed(at.key) // key does not change
	}
}

func (s *spotter) responded(to conn.Endpoint) {
	s.mu.Lock()
	at := s.spots[to]
	s.mu.Unlock()
	if at != nil {
		s.sessions.responded(at.key)
	}
}
