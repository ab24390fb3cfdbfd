package preflight

import (
	"context"
	"errors"
	"sync"
	"syscall"
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
	search := &sizeSearch{a: a, job: job, run: run, peer: p, wait: time.Duration(job.Wait)}
	if search.before, err = pathMTU(p.addr); err != nil {
		return nil, err
	}
	mtu, err := search.mtu(ctx, min(link, 65535))
	if err != nil {
		return nil, err
	}
	assumed, err := pathMTU(p.addr) // after the search: now the kernel has seen what routers say
	if err != nil {
		return nil, err
	}
	return &sizeResult{MTU: mtu, Assumed: assumed, Link: link}, nil
}

// sizeSearch is one search.
type sizeSearch struct {
	a      *agent
	job    *sizeJob
	run    *sizeRun
	peer   *peerState
	seq    uint32
	wait   time.Duration
	before int // what the kernel assumed for the path
}

// told returns the path MTU if a router has said it since the search began, else 0.
func (s *sizeSearch) told() int {
	if mtu, err := pathMTU(s.peer.addr); err == nil && mtu < s.before {
		return mtu
	}
	return 0
}

// mtu searches up to the MTU of the link. A limit that no router speaks of is tried
// again with more patience, because a busy host looks the same.
func (s *sizeSearch) mtu(ctx context.Context, link int) (int, error) {
	low := minMTU
	for range 3 {
		mtu, err := searchMTU(low, link, s.told, func(size int) (bool, error) { return s.try(ctx, size) })
		if err != nil || mtu == link || s.told() != 0 {
			return mtu, err
		}
		s.wait *= 2
		again := max(mtu+1, minMTU)
		if ok, err := s.try(ctx, again); !ok || err != nil {
			return mtu, err
		}
		low = again
	}
	return low, nil
}

// try says whether a packet of so many bytes arrives.
func (s *sizeSearch) try(ctx context.Context, size int) (bool, error) {
	p := s.peer
	s.seq++
	header := 20 + 8 // IPv4 and UDP
	if p.addr.Addr().Is6() && !p.addr.Addr().Is4In6() {
		header = 40 + 8
	}
	d := packet{kind: kindSize, from: s.a.self, to: s.job.Peer, size: uint16(size), run: s.job.Run, seq: s.seq, padding: size - header - packetLen}
	bytes := d.append(make([]byte, 0, size), p.key)
	ack := s.run.expect(s.seq)
	limit := time.NewTimer(s.wait)
	defer limit.Stop()
	tick := time.NewTicker(max(s.wait/16, time.Millisecond))
	defer tick.Stop()
	for sent := 0; ; {
		if sent < copies && errors.Is(s.a.sock.write(bytes, p.addr), syscall.EMSGSIZE) {
			return false, nil
		}
		sent++
		select {
		case <-ack:
			return true, nil
		case <-tick.C:
			if told := s.told(); told != 0 && told < size {
				return false, nil
			}
		case <-limit.C:
			return false, nil
		case <-ctx.Done():
			return false, ctx.Err()
		}
	}
}

// searchMTU returns the largest size from low to high that passes, 0 if not even low
// does. It tries what is likely first, then halves. told is what a router has
// said meanwhile, or 0.
func searchMTU(low, high int, told func() int, passes func(size int) (bool, error)) (int, error) {
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
	guesses := []int{meshMTU, meshMTU + 1}
	if mtu := told(); mtu != 0 {
		guesses = []int{mtu, mtu + 1}
	}
	for high-low > 1 { // low passes, high does not
		size := (low + high) / 2
		if len(guesses) > 0 {
			size, guesses = guesses[0], guesses[1:]
			if size <= low || size >= high {
				continue
			}
		}
		if ok, err = passes(size); err != nil {
			return 0, err
		}
		if ok {
			low = size
		} else {
			high = size
		}
	}
	return low, nil
}
