//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
)

// sample is what one round measured of one variant.
type sample struct {
	rate     map[string]float64 // bit/s, by the names of flows
	rttMed   time.Duration
	rttP99   time.Duration
	cpuPerGB float64 // processor seconds of both tunnel processes for each 10^9 bytes
}

// String is one line of progress.
func (s sample) String() string {
	var b strings.Builder
	for _, f := range flows {
		fmt.Fprintf(&b, "%s %.2f Gbit/s  ", f.name, s.rate[f.name]/1e9)
	}
	fmt.Fprintf(&b, "rtt %v  cpu %.2f s/GB", s.rttMed, s.cpuPerGB)
	return b.String()
}

// flows are the throughput measurements of a round. From is a host of site 10.
var flows = []struct {
	name    string
	streams int
	reverse bool
}{
	{"1 →", 1, false},
	{"1 ←", 1, true},
	{"4 →", 4, false},
	{"4 ←", 4, true},
}

// The two hosts between which everything is measured.
const (
	near = "master01"
	far  = "node01"
)

// measure builds a world, connects its LANs in one way and measures.
func measure(ctx context.Context, v variant, duration time.Duration) (_ sample, err error) {
	lab, err := meshlab.Start(ctx, topology(v.forward), v.meshd)
	if err != nil {
		return sample{}, err
	}
	defer func() { err = errors.Join(err, lab.Close()) }()
	up, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	processes, err := v.up(up, lab)
	if err != nil {
		return sample{}, err
	}
	w := lab.World()
	if _, err := w.Host(near).Ping(up, w.Host(far).Addr()); err != nil {
		return sample{}, fmt.Errorf("%w: %w", errNoAnswer, err)
	}
	s := sample{rate: make(map[string]float64)}
	if s.rttMed, s.rttP99, err = roundTrips(ctx, w); err != nil {
		return sample{}, err
	}
	before, err := cpu(processes)
	if err != nil {
		return sample{}, err
	}
	var bytes int64
	for _, f := range flows {
		t, err := w.Throughput(ctx, netlab.ThroughputOptions{From: near, To: far, Streams: f.streams, Reverse: f.reverse, Duration: duration})
		if err != nil {
			return sample{}, err
		}
		s.rate[f.name] = t.BitsPerSecond()
		bytes += t.Bytes
	}
	after, err := cpu(processes)
	if err != nil {
		return sample{}, err
	}
	s.cpuPerGB = (after - before).Seconds() / (float64(bytes) / 1e9)
	return s, nil
}

// cpu is the processor time that the processes have used so far.
func cpu(processes []*netlab.Process) (time.Duration, error) {
	var sum time.Duration
	for _, p := range processes {
		t, err := p.CPU()
		if err != nil {
			return 0, err
		}
		sum += t
	}
	return sum, nil
}

// pings is how many round trips are measured, 10 ms apart.
const pings = 200

// roundTrips returns median and 99th percentile of real pings.
func roundTrips(ctx context.Context, w *netlab.World) (median, p99 time.Duration, err error) {
	text, err := w.Host(near).Run(ctx, "ping", "-n", "-c", strconv.Itoa(pings), "-i", "0.01", w.Host(far).Addr().String())
	if err != nil {
		return 0, 0, err
	}
	rtts := parsePings(text)
	if len(rtts) < pings*9/10 {
		return 0, 0, fmt.Errorf("%d of %d pings were answered", len(rtts), pings)
	}
	slices.Sort(rtts)
	return rtts[len(rtts)/2], rtts[len(rtts)*99/100], nil
}

// parsePings reads the round-trip times out of ping's output.
func parsePings(text string) []time.Duration {
	var out []time.Duration
	for line := range strings.Lines(text) {
		_, rest, ok := strings.Cut(line, "time=")
		if !ok {
			continue
		}
		ms, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
		if err == nil {
			out = append(out, time.Duration(ms*float64(time.Millisecond)))
		}
	}
	return out
}
