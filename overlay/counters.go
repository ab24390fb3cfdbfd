package overlay

import (
	"maps"
	"sync"
)

// counters counts what was refused, dropped or lost, by reason.
type counters struct {
	mu sync.Mutex // guards n
	n  map[string]uint64
}

func (c *counters) add(reason string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.n == nil {
		c.n = make(map[string]uint64)
	}
	c.n[reason]++
}

// into copies all counters into out.
func (c *counters) into(out map[string]uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	maps.Copy(out, c.n)
}

// count adds one to a counter that status shows.
func (m *Mesh) count(reason string) { m.counters.add(reason) }
