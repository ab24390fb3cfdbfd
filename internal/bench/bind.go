//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os/exec"
	"slices"
	"strconv"
	"strings"
)

// bindSample is one result of BenchmarkBind: a batch of packets over loopback.
type bindSample struct{ ns, mbps, bytes, allocs float64 }

const (
	// bindPackage has BenchmarkBind, which runs the library's Bind and ours in turn.
	bindPackage = "github.com/planetmesh/planetmesh/overlay/internal/link"
	// bindRuns is how often it runs, as a whole each time, so that the two are interleaved.
	bindRuns = 6
	// bindBatch is the number of packets of one operation in it.
	bindBatch = 64
)

// measureBind runs BenchmarkBind out of a built test program.
func measureBind(ctx context.Context, o options, program string, out io.Writer) (map[string][]bindSample, error) {
	runs, each := bindRuns, "1s"
	if o.quick {
		runs, each = 1, "50ms"
	}
	all := make(map[string][]bindSample)
	for i := range runs {
		fmt.Fprintf(out, "our Bind beside the library's, run %d/%d\n", i+1, runs)
		cmd := exec.CommandContext(ctx, program, "-test.run", "^$", "-test.bench", "^BenchmarkBind$", "-test.benchmem", "-test.benchtime", each)
		text, err := cmd.CombinedOutput()
		if err != nil {
			return nil, fmt.Errorf("benchmark of the Bind: %w: %s", err, text)
		}
		results := parseBind(string(text))
		if len(results) < 2 {
			return nil, fmt.Errorf("benchmark of the Bind: two results expected, not: %s", text)
		}
		for name, s := range results {
			all[name] = append(all[name], s)
		}
	}
	return all, nil
}

// parseBind reads the results of one run by name, out of lines like
//
//	BenchmarkBind/library-2  43  25261 ns/op  3243 MB/s  5468 B/op  68 allocs/op
func parseBind(text string) map[string]bindSample {
	out := make(map[string]bindSample)
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 {
			continue
		}
		name, ok := strings.CutPrefix(fields[0], "BenchmarkBind/")
		if !ok {
			continue
		}
		name, _, _ = strings.Cut(name, "-") // the number of processors
		if s, err := parseBindFields(fields[2:]); err == nil {
			out[name] = s
		}
	}
	return out
}

// parseBindFields reads pairs of value and unit.
func parseBindFields(fields []string) (s bindSample, err error) {
	units := map[string]*float64{"ns/op": &s.ns, "MB/s": &s.mbps, "B/op": &s.bytes, "allocs/op": &s.allocs}
	for pair := range slices.Chunk(fields, 2) {
		if len(pair) < 2 {
			return s, errors.New("value without unit")
		}
		to, ok := units[pair[1]]
		if !ok {
			continue
		}
		if *to, err = strconv.ParseFloat(pair[0], 64); err != nil {
			return s, err
		}
	}
	return s, nil
}

// bindTable renders the medians.
func bindTable(all map[string][]bindSample) string {
	var b strings.Builder
	b.WriteString("| Bind | µs per packet | MB/s | allocations per packet | bytes allocated per packet |\n|---|---:|---:|---:|---:|\n")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		of := func(value func(bindSample) float64) float64 { return median(values(all[name], value)) }
		fmt.Fprintf(&b, "| %s | %.2f | %.0f | %.2f | %.0f |\n", name,
			of(func(s bindSample) float64 { return s.ns })/bindBatch/1e3,
			of(func(s bindSample) float64 { return s.mbps }),
			of(func(s bindSample) float64 { return s.allocs })/bindBatch,
			of(func(s bindSample) float64 { return s.bytes })/bindBatch)
	}
	return b.String()
}
