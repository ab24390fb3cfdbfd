package preflight

import (
	"context"
	"errors"
	"net/netip"
	"sync"
	"syscall"
	"time"
)

// echoRun is a series of datagrams that a peer returns.
type echoRun struct {
	peer *peerState

	mu        sync.Mutex // guards the rest
	sent      []time.Time
	replied   []bool
	rtts      []int64
	highest   uint32 // count of the answers so far
	reordered int
	best      int64 // fastest exchange, from which the offset is
	offset    int64
	hopsOut   int
	hopsBack  int
	seen      netip.Addr
	from      netip.Addr
	enough    int           // answers
	all       chan struct{} // closed when there are enough
}

// warmRun marks the runs that come before those that are measured.
const warmRun = 1 << 62

// warm sends a few datagrams until one is answered, for a second at most: until the hardware
// address of the next hop is known, and until a mesh has a path, datagrams are lost
// that would not be lost later.
func (a *agent) warm(ctx context.Context, job *echoJob) error {
	const tries, gap = 10, 100 * time.Millisecond
	_, err := a.echoes(ctx, &echoJob{Peer: job.Peer, Run: job.Run | warmRun, Probes: tries, Interval: int64(gap)}, true)
	return err
}

// echo sends job.Probes datagrams, one each job.Interval, and waits for
// the last answers.
func (a *agent) echo(ctx context.Context, job *echoJob) (*echoResult, error) {
	if err := a.warm(ctx, job); err != nil {
		return nil, err
	}
	return a.echoes(ctx, job, false)
}

// echoes ends with the first answer if first is true.
func (a *agent) echoes(ctx context.Context, job *echoJob, first bool) (*echoResult, error) {
	p, err := a.peer(job.Peer)
	if err != nil {
		return nil, err
	}
	if job.Probes < 1 || job.Probes > maxProbes || job.Interval < int64(100*time.Microsecond) || job.Interval > int64(time.Second) ||
		job.Linger < 0 || job.Linger > int64(30*time.Second) {
		return nil, errors.New("number or times of probes are out of range")
	}
	run := &echoRun{peer: p, sent: make([]time.Time, job.Probes), replied: make([]bool, job.Probes), best: -1, enough: job.Probes, all: make(chan struct{})}
	if first {
		run.enough = 1
	}
	a.mu.Lock()
	a.runs[job.Run] = run
	a.mu.Unlock()
	defer func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.runs, job.Run)
	}()
	refused, err := a.sendEchoes(ctx, job, run)
	if err != nil {
		return nil, err
	}
	linger := time.NewTimer(max(time.Duration(job.Linger), 3*run.slowest()))
	defer linger.Stop()
	select {
	case <-run.all:
	case <-linger.C:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	e := run.result()
	if refused != nil {
		e.SendError = errorText(refused)
	}
	return e, nil
}

// sendEchoes returns why the kernel refused to send some, which are lost too.
func (a *agent) sendEchoes(ctx context.Context, job *echoJob, run *echoRun) (refused, err error) {
	tick := time.NewTicker(time.Duration(job.Interval))
	defer tick.Stop()
	buf := make([]byte, 0, packetLen)
	for seq := range job.Probes {
		p := packet{kind: kindEcho, from: a.self, to: job.Peer, run: job.Run, seq: uint32(seq)}
		now := time.Now()
		p.asked = now.UnixNano()
		run.mu.Lock()
		run.sent[seq] = now
		run.mu.Unlock()
		if err := a.sock.write(p.append(buf[:0], run.peer.key), run.peer.addr); err != nil {
			refused = err
		}
		select {
		case <-tick.C:
		case <-run.all:
			return refused, nil
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return refused, nil
}

// errorText is the system's own text where there is one, without addresses.
func errorText(err error) string {
	if number, ok := errors.AsType[syscall.Errno](err); ok {
		return number.Error()
	}
	return err.Error()
}

func (r *echoRun) slowest() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	var slowest int64
	for _, rtt := range r.rtts {
		slowest = max(slowest, rtt)
	}
	return min(time.Duration(slowest), 10*time.Second)
}

// answered takes an answer. A second one to the same request does not count.
func (r *echoRun) answered(p packet, d datagram) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if int(p.seq) >= len(r.sent) || r.sent[p.seq].IsZero() || r.replied[p.seq] {
		return
	}
	r.replied[p.seq] = true
	sent := r.sent[p.seq]
	rtt := roundTrip(sent.UnixNano(), p.arrived, p.answered, d.at, int64(d.read.Sub(sent)))
	r.rtts = append(r.rtts, rtt)
	if p.count < r.highest {
		r.reordered++
	}
	r.highest = max(r.highest, p.count)
	if r.best < 0 || rtt < r.best {
		r.best = rtt
		r.offset = ((p.arrived - sent.UnixNano()) + (p.answered - d.at)) / 2 // RFC 5905, section 8
	}
	r.hopsOut, r.hopsBack = hops(p.ttl), hops(d.ttl)
	r.seen, r.from = p.seen, d.from.Addr()
	if len(r.rtts) == r.enough {
		close(r.all)
	}
}

// roundTrip is the time on the way, without that which the answering host took,
// from the kernels' receive times. Where a clock was set in between, these
// make no sense, and the time that the program itself saw pass is taken.
func roundTrip(asked, arrived, answered, back, seen int64) int64 {
	rtt := (back - asked) - (answered - arrived)
	if rtt < 0 || rtt > seen || answered < arrived {
		return max(seen, 0)
	}
	return rtt
}

// probeTTL is the TTL of all datagrams of agents, so that what is missing on
// arrival was taken by routers.
const probeTTL = 64

func hops(ttl uint8) int { return max(probeTTL-int(ttl), 0) }

func (r *echoRun) result() *echoResult {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := &echoResult{
		Sent: len(r.sent), Answered: len(r.rtts), Reordered: r.reordered, RTTs: quantiles(r.rtts),
		HopsOut: r.hopsOut, HopsBack: r.hopsBack, SeenAs: r.seen, AnsweredBy: r.from,
	}
	if r.best >= 0 {
		e.OffsetNanos, e.OffsetErrorNanos = r.offset, r.best/2
	}
	return e
}
