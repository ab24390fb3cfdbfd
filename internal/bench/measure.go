//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

// sample is what one round measured of one variant.
type sample struct {
	rate     [len(flows)]float64 // bit/s
	rttMed   time.Duration
	rttP99   time.Duration
	cpuPerGB float64 // processor seconds of all tunnel processes for each 10^9 bytes; 0 without processes
	cpuShare float64 // of cpuPerGB, the part of the first site's process
}

// flows are the throughput measurements of a round. The host of site 1 sends
// in those that are not reversed.
var flows = [...]struct {
	name    string
	streams int
	reverse bool
}{
	{"1 stream →", 1, false},
	{"1 stream ←", 1, true},
	{"4 streams →", 4, false},
	{"4 streams ←", 4, true},
}

// total is the sum over all flows.
func (s sample) total() float64 {
	sum := 0.0
	for _, r := range s.rate {
		sum += r
	}
	return sum
}

// String is one line of progress.
func (s sample) String() string {
	var b strings.Builder
	for i, f := range flows {
		fmt.Fprintf(&b, "%s %.2f  ", f.name, s.rate[i]/1e9)
	}
	fmt.Fprintf(&b, "Gbit/s  rtt %v  cpu %.2f s/GB", s.rttMed, s.cpuPerGB)
	return b.String()
}

// measure builds a world, connects its LANs in one way, and measures.
func measure(ctx context.Context, v variant, p programs, duration time.Duration) (s sample, err error) {
	up, cancel := context.WithTimeout(ctx, upTimeout)
	defer cancel()
	b, err := v.open(up, p)
	if b.world != nil {
		defer func() { err = errors.Join(err, b.world.Close()) }()
	}
	if err != nil {
		return s, fmt.Errorf("%w%s", err, b.logs())
	}
	if len(b.processes) != v.processes {
		return s, fmt.Errorf("%d tunnel processes, not %d", len(b.processes), v.processes)
	}
	if _, err := b.world.Host(near).Ping(up, b.world.Host(far).Addr()); err != nil {
		return s, fmt.Errorf("%s does not answer %s: %w%s", far, near, err, b.logs())
	}
	if s.rttMed, s.rttP99, err = roundTrips(ctx, b.world); err != nil {
		return s, err
	}
	if err := b.throughput(ctx, duration, &s); err != nil {
		return s, fmt.Errorf("%w%s", err, b.logs())
	}
	return s, nil
}

// throughput measures all flows and the processor time that they cost.
func (b bed) throughput(ctx context.Context, duration time.Duration, s *sample) error {
	before, err := b.cpu()
	if err != nil {
		return err
	}
	var bytes int64
	defer b.stop()
	for i, f := range flows {
		t, err := b.world.Throughput(ctx, netlab.ThroughputOptions{From: near, To: far, Streams: f.streams, Reverse: f.reverse, Duration: duration})
		if err != nil {
			return err
		}
		if t.Bytes == 0 {
			return fmt.Errorf("%s: nothing arrived", f.name)
		}
		s.rate[i] = t.BitsPerSecond()
		bytes += t.Bytes
	}
	after, err := b.cpu()
	if err != nil {
		return err
	}
	n, err := b.fragments()
	if err != nil {
		return err
	}
	if n > 0 {
		return fmt.Errorf("the gateways made %d fragments: the MTU is wrong", n)
	}
	if len(b.processes) == 0 {
		return nil
	}
	used := func(i int) float64 { return (after[i] - before[i]).Seconds() }
	for i := range after {
		s.cpuPerGB += used(i) / (float64(bytes) / 1e9)
	}
	if s.cpuPerGB == 0 {
		return errors.New("the tunnel processes did nothing: packets take another way")
	}
	s.cpuShare = used(0) / (float64(bytes) / 1e9)
	return nil
}

// cpu is the processor time that each process has used so far.
func (b bed) cpu() ([]time.Duration, error) {
	var all []time.Duration
	for _, p := range b.processes {
		t, err := p.CPU()
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// stopTimeout is how long a process may take to write its profile.
const stopTimeout = 5 * time.Second

// stop lets processes that write profiles do so. The world ends them in any case.
func (b bed) stop() {
	if !b.profiled {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
	defer cancel()
	for _, p := range b.processes {
		_ = p.Stop(ctx) // OpenVPN says on SIGTERM what is no error
	}
}

// fragments is how many the gateways have made out of packets that were too
// long.
func (b bed) fragments() (sum int, err error) {
	for _, s := range sides() {
		err := b.world.Host(s.host).Do(func() error {
			// Of this thread, which Do has moved to the host.
			text, err := os.ReadFile("/proc/thread-self/net/snmp")
			if err != nil {
				return err
			}
			n, err := parseFragments(string(text))
			sum += n
			return err
		})
		if err != nil {
			return 0, err
		}
	}
	return sum, nil
}

// parseFragments reads FragCreates of IPv4 out of /proc/net/snmp, where a line
// of names precedes a line of values.
func parseFragments(text string) (int, error) {
	var names []string
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) == 0 || fields[0] != "Ip:" {
			continue
		}
		if names == nil {
			names = fields
			continue
		}
		if i := slices.Index(names, "FragCreates"); i > 0 && i < len(fields) {
			return strconv.Atoi(fields[i])
		}
	}
	return 0, errors.New("no FragCreates in the kernel's statistics")
}

// logs is the end of what the processes wrote, for errors.
func (b bed) logs() string {
	const most = 1000
	var out strings.Builder
	for _, p := range b.processes {
		if l := strings.TrimSpace(p.Log()); l != "" {
			fmt.Fprintf(&out, "\n%s", l[max(0, len(l)-most):])
		}
	}
	return out.String()
}

// Round trips: how many, and how long all of them may take.
const (
	pings       = 100
	pingTimeout = 20 * time.Second
)

// roundTrips returns median and 99th percentile of real pings, 10 ms apart.
func roundTrips(ctx context.Context, w *netlab.World) (med, p99 time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	text, err := w.Host(near).Run(ctx, "ping", "-n", "-c", strconv.Itoa(pings), "-i", "0.01", w.Host(far).Addr().String())
	if err != nil {
		return 0, 0, err
	}
	rtts := parsePings(text)
	if len(rtts) != pings {
		return 0, 0, fmt.Errorf("%d of %d pings were answered", len(rtts), pings)
	}
	return percentile(rtts, 50), percentile(rtts, 99), nil
}

// percentile is the smallest value that at least p percent of all do not
// exceed; of an empty list it is zero.
func percentile(v []time.Duration, p int) time.Duration {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	return v[max((len(v)*p+99)/100, 1)-1]
}

// parsePings reads the round-trip times out of ping's output.
func parsePings(text string) []time.Duration {
	var out []time.Duration
	for line := range strings.Lines(text) {
		_, rest, ok := strings.Cut(line, " time=")
		if !ok {
			continue
		}
		number, _, _ := strings.Cut(rest, " ")
		if ms, err := strconv.ParseFloat(number, 64); err == nil {
			out = append(out, time.Duration(ms*float64(time.Millisecond)))
		}
	}
	return out
}
