package overlay

import (
	"context"
	"crypto/rand"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/link"
)

// pings are the probes that Ping has sent and not got back.
type pings struct {
	mu   sync.Mutex // guards open
	open map[[16]byte]pending
}

type pending struct {
	peer     GatewayID
	answered chan time.Time
}

// answered reports whether a reply belongs to one of ours.
func (p *pings) answered(peer GatewayID, challenge [16]byte) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	o, ok := p.open[challenge]
	if !ok || o.peer != peer {
		return false
	}
	delete(p.open, challenge)
	o.answered <- time.Now()
	return true
}

// probe measures one round trip on the path in use.
func (m *Mesh) probe(ctx context.Context, id GatewayID) (time.Duration, error) {
	path, ok := m.prover.Path(id)
	if !ok {
		return 0, ErrNoPath
	}
	var challenge [16]byte
	if _, err := rand.Read(challenge[:]); err != nil {
		return 0, err
	}
	o := pending{peer: id, answered: make(chan time.Time, 1)}
	m.pings.mu.Lock()
	if m.pings.open == nil {
		m.pings.open = make(map[[16]byte]pending)
	}
	m.pings.open[challenge] = o
	m.pings.mu.Unlock()
	defer func() {
		m.pings.mu.Lock()
		delete(m.pings.open, challenge)
		m.pings.mu.Unlock()
	}()
	sent := time.Now()
	if err := m.port.SendProbe(id, path.Addr, challenge, link.ProbeSize); err != nil {
		return 0, err
	}
	select {
	case at := <-o.answered:
		return at.Sub(sent), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	case <-m.stopped:
		return 0, ErrClosed
	}
}
