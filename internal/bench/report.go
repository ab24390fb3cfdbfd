//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strings"
	"time"
)

// report is everything that was measured in a run.
type report struct {
	options options
	machine string
	day     time.Time
	results map[string][]sample // by variant, in the order of rounds
	bind    map[string][]bindSample
}

// markdown renders the tables.
func (r report) markdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Machine: %s. Command: `%s`, %s; %d rounds, %v for each throughput measurement.\n",
		r.machine, r.options.command(), r.day.Format(time.DateOnly), r.options.rounds, r.options.duration)
	for _, g := range r.options.suite.groups {
		b.WriteString(r.group(g))
	}
	if len(r.bind) > 0 {
		fmt.Fprintf(&b, "\nOur Bind against the library's own, batches of %d full packets over loopback, medians of %d interleaved runs of `go test -bench '^BenchmarkBind$' ./overlay/internal/link`:\n\n",
			bindBatch, len(r.bind["ours"]))
		b.WriteString(bindTable(r.bind))
	}
	return strings.TrimRight(b.String(), "\n")
}

// group renders the tables of variants that are compared with each other.
func (r report) group(g group) string {
	g.order = slices.DeleteFunc(slices.Clone(g.order), func(name string) bool { return len(r.results[name]) == 0 })
	if len(g.order) == 0 {
		return ""
	}
	var b strings.Builder
	if g.title != "" {
		fmt.Fprintf(&b, "\n%s\n", g.title)
	}
	b.WriteString("\nMedians of the rounds, TCP in Gbit/s:\n\n")
	b.WriteString(r.absolute(g))
	if table := r.relative(g); table != "" {
		fmt.Fprintf(&b, "\nRatios to %s round by round, median (smallest to largest):\n\n", g.baseline)
		b.WriteString(table)
	}
	for _, name := range g.order {
		if goal := g.goals[name]; goal > 0 && r.paired(g, name) {
			b.WriteString("\n" + r.verdict(g, name, goal) + "\n")
		}
	}
	return b.String()
}

// heading is the first two lines of a table, with a column for each flow.
func heading(first string, more ...string) string {
	columns := []string{first}
	for _, f := range flows {
		columns = append(columns, f.name)
	}
	columns = append(columns, more...)
	return "| " + strings.Join(columns, " | ") + " |\n|---|" + strings.Repeat("---:|", len(columns)-1) + "\n"
}

// absolute is the table of what was measured.
func (r report) absolute(g group) string {
	var b strings.Builder
	more := []string{"RTT median µs", "RTT p99 µs", "CPU s/GB"}
	if g.split {
		more = append(more, "of it gw1")
	}
	b.WriteString(heading("variant", more...))
	for _, name := range g.order {
		of := func(value func(sample) float64) float64 { return median(values(r.results[name], value)) }
		fmt.Fprintf(&b, "| %s |", name)
		for i := range flows {
			fmt.Fprintf(&b, " %.2f |", of(func(s sample) float64 { return s.rate[i] / 1e9 }))
		}
		fmt.Fprintf(&b, " %.0f | %.0f |",
			of(func(s sample) float64 { return float64(s.rttMed) / 1e3 }), of(func(s sample) float64 { return float64(s.rttP99) / 1e3 }))
		if r.options.suite.variants[name].processes == 0 {
			b.WriteString(" – |\n")
			continue
		}
		fmt.Fprintf(&b, " %.2f |", of(func(s sample) float64 { return s.cpuPerGB }))
		if g.split {
			fmt.Fprintf(&b, " %.2f |", of(func(s sample) float64 { return s.cpuShare }))
		}
		b.WriteString("\n")
	}
	return b.String()
}

// relative is the table of ratios; empty if there is nothing to compare.
func (r report) relative(g group) string {
	var rows strings.Builder
	for _, name := range g.order {
		if name == g.baseline || !r.paired(g, name) {
			continue
		}
		fmt.Fprintf(&rows, "| %s |", name)
		for i := range flows {
			fmt.Fprintf(&rows, " %s |", r.ratio(g, name, func(s sample) float64 { return s.rate[i] }))
		}
		fmt.Fprintf(&rows, " %s | %s |", r.ratio(g, name, sample.total), r.ratio(g, name, func(s sample) float64 { return float64(s.rttMed) }))
		if r.options.suite.variants[name].processes == 0 {
			rows.WriteString(" – |\n")
			continue
		}
		fmt.Fprintf(&rows, " %s |\n", r.ratio(g, name, func(s sample) float64 { return s.cpuPerGB }))
	}
	if rows.Len() == 0 {
		return ""
	}
	return heading("variant / "+g.baseline, "all four", "RTT", "CPU") + rows.String()
}

// paired says whether every round measured the variant and the baseline.
func (r report) paired(g group, name string) bool {
	return len(r.results[name]) > 0 && len(r.results[name]) == len(r.results[g.baseline])
}

// verdict holds a variant against its goal.
func (r report) verdict(g group, name string, goal float64) string {
	met := 0
	for i := range flows {
		if r.ratio(g, name, func(s sample) float64 { return s.rate[i] }).median >= goal {
			met++
		}
	}
	word := "missed"
	if r.ratio(g, name, sample.total).median >= goal {
		word = "met"
	}
	return fmt.Sprintf("Goal: the throughput of %s is at least %.2f of %s's. Over all four flows: %s; single flows: met in %d of %d.",
		name, goal, g.baseline, word, met, len(flows))
}

// ratio compares a variant with the baseline, each round with itself.
func (r report) ratio(g group, name string, value func(sample) float64) spread {
	var ratios []float64
	for i, s := range r.results[name] {
		if w := value(r.results[g.baseline][i]); w > 0 {
			ratios = append(ratios, value(s)/w)
		}
	}
	if len(ratios) == 0 {
		return spread{}
	}
	return spread{least: slices.Min(ratios), median: median(ratios), most: slices.Max(ratios)}
}

// spread sums up values; zero means that there were none.
type spread struct{ least, median, most float64 }

// String is "0.984 (0.95–1.02)".
func (s spread) String() string {
	return fmt.Sprintf("%.3f (%.2f–%.2f)", s.median, s.least, s.most)
}

// values takes one value out of every sample.
func values[S any](samples []S, value func(S) float64) []float64 {
	var out []float64
	for _, s := range samples {
		out = append(out, value(s))
	}
	return out
}

// median of an empty list is zero.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}

// machine describes processor, kernel and toolchain.
func machine() string {
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo") // without it the model is unknown
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease")
	return fmt.Sprintf("%s, %d processors, Linux %s, %s",
		model(string(cpuinfo)), runtime.NumCPU(), strings.TrimSpace(string(kernel)), runtime.Version())
}

// model is the processor's name in /proc/cpuinfo.
func model(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if key, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(key) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown processor (" + runtime.GOARCH + ")"
}

// marks are the lines between which the generated part of the file stands, for
// the make target that writes it.
func marks(target string) (begin, end string) {
	return "<!-- generated by " + target + ": begin -->", "<!-- generated by " + target + ": end -->"
}

// replaceGenerated returns the content of a file with text between the marks.
func replaceGenerated(path, target, text string) ([]byte, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	begin, end := marks(target)
	head, rest, begins := bytes.Cut(b, []byte(begin))
	_, tail, ends := bytes.Cut(rest, []byte(end))
	if !begins || !ends {
		return nil, fmt.Errorf("%s: the lines %q and %q are missing", path, begin, end)
	}
	return slices.Concat(head, []byte(begin+"\n\n"+text+"\n\n"+end), tail), nil
}
