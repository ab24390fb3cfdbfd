package preflight

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Lengths of IP packets.
const (
	minMTU  = 576  // RFC 791: every host takes it
	meshMTU = 1420 // inside a WireGuard path of 1500, the likely one between sites
	copies  = 3    // of each size, so that a bit of loss does not look like a limit
)

// sizeRun waits for the acknowledgements of sizes.
type sizeRun struct {
	mu   sync.Mutex // guards acks
	acks map[uint32]chan struct{}
}

func (r *sizeRun) expect(seq uint32) <-chan struct{} {
	r.mu.Lock()
	defer r.mu.Unlock()
	c := make(chan struct{})
	r.acks[seq] = c
	return c
}

func (r *sizeRun) arrived(p packet) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c := r.acks[p.seq]; c != nil {
		close(c)
		delete(r.acks, p.seq) // copies are acknowledged too
	}
}

// size searches the largest packet that the peer receives.
func (a *agent) size(ctx context.Context, job *sizeJob) (*sizeResult, error) {
	p, err := a.peer(job.Peer)
	if err != nil {
		return nil, err
	}
	if job.Wait < int64(time.Millisecond) || job.Wait > int64(10*time.Second) {
		return nil, errors.New("waiting time is out of range")
	}
	run := &sizeRun{acks: make(map[uint32]chan struct{})}
	a.mu.Lock()
	a.sizes[job.Run] = run
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.sizes, job.Run)
	}()
	link, err := linkMTU(p.addr)
	if err != nil {
		return nil, err
	}
	seq := uint32(0)
	mtu, err := searchMTU(minMTU, min(link, 65535), func(size int) (bool, error) {
		seq++
		return a.trySize(ctx, job, run, p, seq, size)
	})
	if err != nil {
		return nil, err
	}
	assumed, err := pathMTU(p.addr) // after the search: now the kernel has seen what routers say
	if err != nil {
		return nil, err
	}
	return &sizeResult{MTU: mtu, Assumed: assumed, Link: link}, nil
}

// trySize says whether a packet of so many bytes arrives.
func (a *agent) trySize(ctx context.Context, job *sizeJob, run *sizeRun, p *peerState, seq uint32, size int) (bool, error) {
	header := 20 + 8 // IPv4 and UDP
	if p.addr.Addr().Is6() && !p.addr.Addr().Is4In6() {
		header = 40 + 8
	}
	d := packet{kind: kindSize, from: a.self, to: job.Peer, size: uint16(size), run: job.Run, seq: seq, padding: size - header - packetLen}
	bytes := d.append(make([]byte, 0, size), p.key)
	ack := run.expect(seq)
	limit := time.NewTimer(time.Duration(job.Wait))
	defer limit.Stop()
	again := time.NewTicker(max(time.Duration(job.Wait)/16, time.Millisecond))
	defer again.Stop()
	sent := 0
	for range copies {
		if a.sock.write(bytes, p.addr) == nil { // the error is that of a size that the kernel knows to be too long
			sent++
		}
		select {
		case <-ack:
			return true, nil
		case <-again.C:
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
	if sent == 0 {
		return false, nil
	}
	select {
	case <-ack:
		return true, nil
	case <-limit.C:
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// searchMTU returns the largest size from low to high that passes, 0 if not even low
// does. It tries what is likely first, then halves.
func searchMTU(low, high int, passes func(size int) (bool, error)) (int, error) {
	if high < low {
		return 0, nil
	}
	if ok, err := passes(high); ok || err != nil {
		return high, err
	}
	ok, err := passes(low)
	if !ok || err != nil {
		return 0, err
	}
	// low passes, high does not.
	for _, guess := range []int{meshMTU, meshMTU + 1} {
		if low < guess && guess < high {
			if ok, err = passes(guess); err != nil {
				return 0, err
			}
			if ok {
				low = guess
			} else {
				high = guess
			}
		}
	}
	for high-low > 1 {
		middle := (low + high) / 2
		if ok, err = passes(middle); err != nil {
			return 0, err
		}
		if ok {
			low = middle
		} else {
			high = middle
		}
	}
	return low, nil
}
