package preflight

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// couple is two hosts, by index, a < b.
type couple struct{ a, b int }

// couples returns all couples of n things, in rounds in each of which nobody
// takes part twice: the circle method of tournaments.
func couples(n int) []couple {
	even := n + n%2 // with a bye where n is odd
	var all []couple
	for round := range max(even-1, 0) {
		for k := range even / 2 {
			a, b := (round+k)%(even-1), (round-k+even-1)%(even-1)
			if k == 0 {
				b = even - 1
			}
			if a < n && b < n {
				all = append(all, couple{min(a, b), max(a, b)})
			}
		}
	}
	return all
}

// measurePairs measures all couples of hosts, at most PerHost at once on each,
// and puts the outcome into the report.
func (c *coordinator) measurePairs(ctx context.Context) {
	var members []int
	for i := range c.inv.Hosts {
		if joins(&c.inv.Hosts[i]) {
			members = append(members, i)
		}
	}
	pending := couples(len(members))
	for k, p := range pending {
		pending[k] = couple{members[p.a], members[p.b]}
	}
	all := len(pending)
	done := make(chan couple)
	busy := make([]int, len(c.inv.Hosts))
	var mu sync.Mutex // guards pairs
	var pairs []Pair
	running, finished := 0, 0
	for running > 0 || len(pending) > 0 {
		pending = slices.DeleteFunc(pending, func(p couple) bool {
			if busy[p.a] >= c.options.PerHost || busy[p.b] >= c.options.PerHost {
				return false
			}
			busy[p.a]++
			busy[p.b]++
			running++
			go func() { // ends within the limits of measure
				out, back := c.measure(ctx, p)
				mu.Lock()
				pairs = append(pairs, out, back)
				mu.Unlock()
				done <- p
			}()
			return true
		})
		p := <-done
		running--
		finished++
		busy[p.a]--
		busy[p.b]--
		if c.options.Progress != nil {
			c.options.Progress(finished, all)
		}
	}
	place := make(map[string]int, len(c.inv.Hosts))
	for i, h := range c.inv.Hosts {
		place[h.Name] = i
	}
	slices.SortFunc(pairs, func(p, q Pair) int {
		return cmp.Or(place[p.From]-place[q.From], place[p.To]-place[q.To])
	})
	c.report.Pairs = pairs
}

// measurement is a couple under work. out is from a to b, back the other way.
type measurement struct {
	c         *coordinator
	a, b      int
	run       uint64
	out, back Pair
	echo      *echoResult
	mu        sync.Mutex // guards errs
	errs      map[*Pair][]error
}

// measure measures both directions. It takes no longer than the limit for a pair.
func (c *coordinator) measure(ctx context.Context, p couple) (out, back Pair) {
	a, b := &c.inv.Hosts[p.a], &c.inv.Hosts[p.b]
	m := &measurement{
		c: c, a: p.a, b: p.b, run: uint64(p.a)<<32 | uint64(p.b),
		out: Pair{From: a.Name, To: b.Name, Hops: -1}, back: Pair{From: b.Name, To: a.Name, Hops: -1}, errs: make(map[*Pair][]error),
	}
	for _, i := range []int{p.a, p.b} {
		if c.sessions[i] == nil || c.report.Hosts[i].AgentError != "" {
			m.out.Error = fmt.Sprintf("no agent runs on %s", c.inv.Hosts[i].Name)
			m.back.Error = m.out.Error
			return m.out, m.back
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() { m.connect(ctx, &m.out, p.a, p.b) })
	wg.Go(func() { m.connect(ctx, &m.back, p.b, p.a) })
	wg.Go(func() { m.probe(ctx) })
	wg.Wait()
	if m.echo != nil && m.echo.Answered > 0 {
		wait := min(max(3*time.Duration(m.echo.RTTs.P99), minSizeWait), 5*time.Second)
		wg.Go(func() { m.size(ctx, &m.out, p.a, p.b, wait) })
		wg.Go(func() { m.size(ctx, &m.back, p.b, p.a, wait) })
		wg.Wait()
	}
	for pair, errs := range m.errs {
		pair.Error = errors.Join(errs...).Error()
	}
	return m.out, m.back
}

// minSizeWait is how long an answer to one size is waited for at least: what a
// busy host may take. Where routers say what is too long, nobody waits.
const minSizeWait = 400 * time.Millisecond

// wrong notes what kept a part of the measurement from working.
func (m *measurement) wrong(p *Pair, on int, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.errs[p] = append(m.errs[p], fmt.Errorf("%s: %w", m.c.inv.Hosts[on].Name, err))
}

// connect tries the TCP ports that from needs on to.
func (m *measurement) connect(ctx context.Context, p *Pair, from, to int) {
	c := m.c
	job := &connectJob{Peer: uint16(to), Wait: int64(c.options.ConnectWait)}
	held := c.report.Hosts[to].Agent
	for _, port := range dialPorts(c.inv, &c.inv.Hosts[from], &c.inv.Hosts[to]) {
		switch {
		case slices.Contains(held.Listening, port):
			job.Hello = append(job.Hello, port)
			job.Ports = append(job.Ports, port)
		case slices.Contains(held.Busy, port):
			job.Ports = append(job.Ports, port)
		}
	}
	if len(job.Ports) == 0 {
		return
	}
	got, err := c.sessions[from].call(ctx, request{Connect: job})
	if err == nil && len(got.Ports) != len(job.Ports) {
		err = errors.New("the agent answers for other ports than asked")
	}
	for i := range got.Ports {
		if err == nil && got.Ports[i].Port != job.Ports[i] {
			err = errors.New("the agent answers for other ports than asked")
		}
		if err == nil {
			err = got.Ports[i].check()
		}
	}
	if err != nil {
		m.wrong(p, from, err)
		return
	}
	p.Ports = got.Ports
}

// probe measures the round trip from a to b, then asks b what arrived.
func (m *measurement) probe(ctx context.Context) {
	c := m.c
	e, err := c.askEcho(ctx, m.a, m.b, m.run, c.options.Probes, c.options.Linger)
	if err != nil {
		m.wrong(&m.out, m.a, err)
		m.wrong(&m.back, m.a, err)
		return
	}
	m.echo = e
	m.fillRoundTrip()
	heard, err := c.askCount(ctx, m.b, m.a, m.run, e)
	if err != nil {
		m.wrong(&m.out, m.b, err)
		m.wrong(&m.back, m.b, err)
		return
	}
	m.out.Sent, m.out.Received, m.out.Reordered = e.Sent, heard.Received, heard.Reordered
	m.back.Sent, m.back.Received, m.back.Reordered = heard.Received, e.Answered, e.Reordered
	if heard.From.IsValid() {
		m.out.SeenAs = known(heard.From)
	}
	if heard.Received == 0 {
		m.probeBack(ctx)
	}
}

// backProbes is enough to tell whether a direction is open at all.
const backProbes = 20

// backRun marks the runs of probeBack.
const backRun = 1 << 63

// probeBack looks at the way from b to a by itself, where nothing arrived on the other.
func (m *measurement) probeBack(ctx context.Context) {
	c := m.c
	e, err := c.askEcho(ctx, m.b, m.a, m.run|backRun, min(backProbes, c.options.Probes), min(c.options.Linger, 500*time.Millisecond))
	if err != nil {
		m.wrong(&m.back, m.b, err)
		return
	}
	m.back.SendError = short(e.SendError)
	heard, err := c.askCount(ctx, m.a, m.b, m.run|backRun, e)
	if err != nil {
		m.wrong(&m.back, m.a, err)
		return
	}
	m.back.Sent, m.back.Received, m.back.Reordered = e.Sent, heard.Received, heard.Reordered
	if heard.From.IsValid() {
		m.back.SeenAs = known(heard.From)
	}
}

func (c *coordinator) askEcho(ctx context.Context, from, to int, run uint64, probes int, linger time.Duration) (*echoResult, error) {
	got, err := c.sessions[from].call(ctx, request{Echo: &echoJob{
		Peer: uint16(to), Run: run, Probes: probes, Interval: int64(c.options.Interval), Linger: int64(linger),
	}})
	switch {
	case err != nil:
		return nil, err
	case got.Echo == nil:
		return nil, errOther
	}
	return got.Echo, got.Echo.check(probes)
}

// askCount asks on what arrived of what from sent.
func (c *coordinator) askCount(ctx context.Context, on, from int, run uint64, sent *echoResult) (*countHeard, error) {
	got, err := c.sessions[on].call(ctx, request{Count: &countJob{Peer: uint16(from), Run: run}})
	switch {
	case err != nil:
		return nil, err
	case got.Count == nil:
		return nil, errOther
	case got.Count.Received < sent.Answered:
		return nil, errors.New("more answers came than the agent says it had requests")
	}
	return got.Count, got.Count.check(sent.Sent)
}

var errOther = errors.New("the agent answers something else")

// fillRoundTrip takes what both directions have from the echoes.
func (m *measurement) fillRoundTrip() {
	e := m.echo
	m.out.SendError = short(e.SendError)
	m.out.Answered, m.back.Answered = e.Answered, e.Answered
	if e.Answered == 0 {
		return
	}
	q := e.RTTs
	rtt := RTT{time.Duration(q.Min), time.Duration(q.P50), time.Duration(q.P90), time.Duration(q.P99), time.Duration(q.Max)}
	again := rtt
	m.out.RTT, m.back.RTT = &rtt, &again
	m.out.Hops, m.back.Hops = e.HopsOut, e.HopsBack
	m.out.SeenAs, m.back.SeenAs = known(e.SeenAs), known(e.AnsweredBy)
	a, b := m.c.report.Hosts[m.a].Agent, m.c.report.Hosts[m.b].Agent
	if a.ClockError == "" && b.ClockError == "" {
		offset := time.Duration(e.OffsetNanos) + b.ahead - a.ahead
		opposite := -offset
		m.out.Offset, m.back.Offset = &offset, &opposite
		m.out.OffsetError, m.back.OffsetError = time.Duration(e.OffsetErrorNanos), time.Duration(e.OffsetErrorNanos)
	}
}

func known(a netip.Addr) netip.Addr { return a.Unmap().WithZone("") }

// size searches the path MTU of one direction.
func (m *measurement) size(ctx context.Context, p *Pair, from, to int, wait time.Duration) {
	got, err := m.c.sessions[from].call(ctx, request{Size: &sizeJob{Peer: uint16(to), Run: m.run, Wait: int64(wait)}})
	if err == nil && got.Size == nil {
		err = errOther
	}
	if err == nil {
		err = got.Size.check()
	}
	if err != nil {
		m.wrong(p, from, err)
		return
	}
	p.MTU, p.Assumed, p.Link = got.Size.MTU, got.Size.Assumed, got.Size.Link
}
