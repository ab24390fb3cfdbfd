package openvpn

import (
	"context"
	"sync"
	"sync/atomic"
)

// crew seals the packets of a batch on several processors. The goroutine that
// has the batch works as well, and never waits for a member that has not begun:
// where the other processors are busy it does everything itself.
type crew struct {
	framing Framing
	wake    chan struct{} // one value for each member that should look

	mu   sync.Mutex
	idle sync.Cond // working became 0
	// The batch. All but next is written under mu while open is false and nobody
	// works, and read by those who work.
	open     bool
	working  int      // members at work
	twins    []sealer // not in use
	first    stamp
	payloads [][]byte
	packets  [][]byte
	next     atomic.Int64 // payload that nobody has taken

	key *sendKey // that twins are of
}

const (
	// crewMembers bounds the goroutines beside the one with the batch: for more,
	// one batch is not long enough.
	crewMembers = 3
	// crewLeast is the shortest batch that is worth waking them.
	crewLeast = 16
	// crewShare is how many packets one takes at a time.
	crewShare = 4
)

// newCrew returns nil where there is one processor.
func newCrew(f Framing, processors int) *crew {
	members := min(processors-1, crewMembers)
	if members < 1 {
		return nil
	}
	c := &crew{framing: f, wake: make(chan struct{}, members)}
	c.idle.L = &c.mu
	return c
}

// run is the members; it returns when ctx is done.
func (c *crew) run(ctx context.Context) {
	var wg sync.WaitGroup
	for range cap(c.wake) {
		wg.Go(func() {
			var p plaintext
			for {
				select {
				case <-ctx.Done():
					return
				case <-c.wake:
					c.help(&p)
				}
			}
		})
	}
	wg.Wait()
}

// help takes part in the batch, if there is still something to do.
func (c *crew) help(p *plaintext) {
	c.mu.Lock()
	if !c.open || len(c.twins) == 0 {
		c.mu.Unlock()
		return
	}
	box := c.twins[len(c.twins)-1]
	c.twins = c.twins[:len(c.twins)-1]
	c.working++
	c.mu.Unlock()
	c.work(box, p)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.twins = append(c.twins, box)
	if c.working--; c.working == 0 {
		c.idle.Signal()
	}
}

// work seals shares until none is left.
func (c *crew) work(box sealer, p *plaintext) {
	for {
		to := int(c.next.Add(crewShare))
		from := to - crewShare
		if from >= len(c.payloads) {
			return
		}
		for i := from; i < min(to, len(c.payloads)); i++ {
			*p = plaintext{body: c.payloads[i]}
			c.framing.frame(p)
			c.packets[i] = box.sealAs(c.packets[i][:0], p, c.first.plus(i))
		}
	}
}

// seal seals all payloads into the first slots of b and reports whether it did:
// otherwise the batch is too short, the cipher too quick, or ids run out. The
// caller holds the lock of the key. One goroutine at a time calls it.
func (c *crew) seal(b *sendBuffer, key *sendKey, payloads [][]byte) bool {
	if c == nil || len(payloads) < crewLeast || !c.adopt(key) {
		return false
	}
	first, err := key.box.take(len(payloads))
	if err != nil {
		return false // one by one they get new ids, or the error
	}
	b.slot(len(payloads) - 1)
	c.mu.Lock()
	c.first, c.payloads, c.packets = first, payloads, b.packets
	c.next.Store(0)
	c.open = true
	c.mu.Unlock()
	for range cap(c.wake) {
		select {
		case c.wake <- struct{}{}:
		default:
		}
	}
	c.work(key.box, &b.plain)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open = false
	for c.working > 0 {
		c.idle.Wait()
	}
	c.payloads, c.packets = nil, nil
	return true
}

// adopt makes twins of the key, and reports whether it has any.
func (c *crew) adopt(key *sendKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.key == key {
		return len(c.twins) > 0
	}
	c.key, c.twins = key, c.twins[:0]
	for range cap(c.wake) {
		if t := key.box.twin(); t != nil {
			c.twins = append(c.twins, t)
		}
	}
	return len(c.twins) > 0
}
