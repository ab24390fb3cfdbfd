package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"
)

// progress prints how far it is, at most every two seconds.
type progress struct {
	out     io.Writer
	total   int
	start   time.Time
	verbose bool

	mu     sync.Mutex // guards all below
	count  int
	broken int
	last   time.Time
}

func (p *progress) done(t trial, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.count++
	if len(t.Broken) > 0 {
		p.broken++
	}
	switch {
	case err != nil:
		return
	case len(t.Broken) > 0:
		fmt.Fprintf(p.out, "seed %d: %s\n", t.Seed, t.Broken[0])
	case p.verbose:
		fmt.Fprintf(p.out, "seed %d: %v virtual in %v, mass start %v, calm after %v, %d packets, digest %s\n", t.Seed,
			time.Duration(t.Virtual).Round(time.Second), t.took.Round(time.Millisecond), time.Duration(t.MassStart), time.Duration(t.Calm), t.Packets, t.Digest)
	}
	if now := time.Now(); now.Sub(p.last) > 2*time.Second || p.count == p.total {
		p.last = now
		took := now.Sub(p.start)
		left := time.Duration(float64(took) / float64(p.count) * float64(p.total-p.count))
		fmt.Fprintf(p.out, "%d of %d, %d broken, %v gone, about %v left\n", p.count, p.total, p.broken, took.Round(time.Second), left.Round(time.Second))
	}
}

// summarise prints what the runs had in common.
func summarise(results []trial, out io.Writer) {
	var virtual, massStart, calm []time.Duration
	var packets, heap uint64
	events := make(map[string]int)
	for _, r := range results {
		virtual = append(virtual, time.Duration(r.Virtual))
		massStart = append(massStart, time.Duration(r.MassStart))
		calm = append(calm, time.Duration(r.Calm))
		packets += r.Packets
		heap = max(heap, r.Heap)
		for _, e := range r.schedule.Events {
			events[string(e.Kind)]++
		}
	}
	var total time.Duration
	for _, v := range virtual {
		total += v
	}
	fmt.Fprintf(out, "\n%v of virtual time, %d packets, at most %d kB per gateway in calm\n", total.Round(time.Second), packets, heap/1000)
	fmt.Fprintf(out, "mass start until views are equal: median %v, p99 %v, longest %v\n", quantile(massStart, 0.5), quantile(massStart, 0.99), quantile(massStart, 1))
	fmt.Fprintf(out, "after the last fault until views are equal: median %v, p99 %v, longest %v\n", quantile(calm, 0.5), quantile(calm, 0.99), quantile(calm, 1))
	fmt.Fprint(out, "faults:")
	for _, kind := range slices.Sorted(maps.Keys(events)) {
		fmt.Fprintf(out, " %s %d", kind, events[kind])
	}
	fmt.Fprintln(out)
}

// quantile returns the smallest value that at least a share q of all do not exceed.
func quantile(values []time.Duration, q float64) time.Duration {
	if len(values) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(values))
	i := int(q*float64(len(sorted))+0.999999) - 1
	return sorted[min(max(i, 0), len(sorted)-1)]
}
