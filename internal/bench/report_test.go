//go:build linux

package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/internal/cli"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 3}, 2.5}} {
		in := slices.Clone(c.in)
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v): got %v, want %v", c.in, got, c.want)
		}
		if !slices.Equal(in, c.in) {
			t.Errorf("median changed its input %v to %v", in, c.in)
		}
	}
}

func TestPercentileIsNearestRank(t *testing.T) {
	var hundred []time.Duration
	for i := range 100 {
		hundred = append(hundred, time.Duration(100-i))
	}
	for _, c := range []struct {
		name string
		in   []time.Duration
		p    int
		want time.Duration
	}{
		{"median of none", nil, 50, 0},
		{"p99 of one", []time.Duration{7}, 99, 7},
		{"median of hundred", hundred, 50, 50},
		{"p99 of hundred leaves the slowest out", hundred, 99, 99},
		{"p99 of two", []time.Duration{8, 3}, 99, 8},
		{"p0", []time.Duration{8, 3}, 0, 3},
	} {
		if got := percentile(c.in, c.p); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}

// at is a sample whose flows all have the same rate.
func at(rate float64) sample {
	return sample{rate: [len(flows)]float64{rate, rate, rate, rate}, rttMed: 500 * time.Microsecond, rttP99: time.Millisecond, cpuPerGB: 2}
}

func TestRatioComparesRoundByRound(t *testing.T) {
	g := gateways.groups[0]
	r := report{results: map[string][]sample{
		meshd:     {at(10), at(1), at(30)},
		wireguard: {at(10), at(2), at(10)},
	}}
	if got, want := r.ratio(g, meshd, sample.total), (spread{0.5, 1, 3}); got != want {
		t.Errorf("got %v, want %v", got, want)
	}
	none := report{results: map[string][]sample{meshd: {at(1)}, wireguard: {at(0)}}}
	if got := none.ratio(g, meshd, sample.total); got != (spread{}) {
		t.Errorf("ratio to nothing: got %v", got)
	}
}

func TestReportHasTablesAndVerdict(t *testing.T) {
	o, err := parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	r := report{
		options: o, machine: "one machine", day: time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC),
		results: map[string][]sample{
			none:      {{rate: at(20e9).rate, rttMed: 50 * time.Microsecond, rttP99: time.Millisecond}},
			wireguard: {at(2e9)},
			meshd:     {at(1.95e9)},
			openvpn:   {at(0.5e9)},
		},
		bind: map[string][]bindSample{"library": {{64000, 3000, 640, 64}}, "ours": {{32000, 6000, 0, 0}}},
	}
	text := r.markdown()
	for _, want := range []string{
		"Machine: one machine. Command: `make bench`, 2026-03-01; 5 rounds, 2s for each throughput measurement.",
		"| none | 20.00 | 20.00 | 20.00 | 20.00 | 50 | 1000 | – |",
		"| meshd | 1.95 | 1.95 | 1.95 | 1.95 | 500 | 1000 | 2.00 |",
		"| meshd | 0.975 (0.97–0.97) |",
		"Ratios to wireguard-go round by round",
		"Goal: the throughput of meshd is at least 0.97 of wireguard-go's. Over all four flows: met; single flows: met in 4 of 4.",
		"| library | 1.00 | 3000 | 1.00 | 10 |",
		"| ours | 0.50 | 6000 | 0.00 | 0 |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("missing %q in\n%s", want, text)
		}
	}
	checkColumns(t, text)
	r.results[meshd] = []sample{at(1.9e9)}
	if text := r.markdown(); !strings.Contains(text, "missed; single flows: met in 0 of 4") {
		t.Errorf("0.95 is called something else than missed:\n%s", text)
	}
}

// checkColumns demands that all rows of a table have as many cells.
func checkColumns(t *testing.T, text string) {
	t.Helper()
	columns := 0
	for line := range strings.Lines(text) {
		n := strings.Count(line, "|")
		if n > 0 && columns > 0 && n != columns {
			t.Errorf("row with %d bars in a table of %d: %s", n, columns, line)
		}
		columns = n
	}
}

func TestReportOfSomeVariants(t *testing.T) {
	o, err := parse([]string{"-variants", "openvpn,none", "-bind=false"})
	if err != nil {
		t.Fatal(err)
	}
	text := report{options: o, results: map[string][]sample{none: {at(2)}, openvpn: {at(1)}}}.markdown()
	if !strings.Contains(text, "`go run ./internal/bench -variants openvpn,none -bind=false`") {
		t.Errorf("command is missing in\n%s", text)
	}
	for _, not := range []string{"Ratios", "Goal", "Bind", "| meshd", "| wireguard-go"} {
		if strings.Contains(text, not) {
			t.Errorf("%q was not measured, but is in\n%s", not, text)
		}
	}
}

func TestOnlyCompleteRunsWriteUnasked(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, defaultOut},
		{[]string{"-rounds", "9"}, defaultOut},
		{[]string{"-quick"}, ""},
		{[]string{"-bind=false"}, ""},
		{[]string{"-variants", "none,meshd"}, ""},
		{[]string{"-quick", "-out", "x.md"}, "x.md"},
		{[]string{"-out", ""}, ""},
		{[]string{"-suite", "endpoint"}, defaultOut},
		{[]string{"-suite", "endpoint", "-variants", staticPair}, ""},
	} {
		o, err := parse(c.args)
		if err != nil {
			t.Errorf("%v: %v", c.args, err)
		}
		if o.out != c.want {
			t.Errorf("%v: writes %q, want %q", c.args, o.out, c.want)
		}
	}
}

func TestQuickLeavesWhatIsGiven(t *testing.T) {
	o, err := parse([]string{"-quick", "-rounds", "2", "-variants", "meshd,none,none"})
	if err != nil {
		t.Fatal(err)
	}
	if o.rounds != 2 || o.duration != 300*time.Millisecond {
		t.Errorf("got %d rounds of %v", o.rounds, o.duration)
	}
	if diff := cmp.Diff([]string{none, meshd}, o.variants); diff != "" {
		t.Errorf("variants (-want +got):\n%s", diff)
	}
}

func TestBadCommandLines(t *testing.T) {
	for _, args := range [][]string{{"-rounds", "0"}, {"-duration", "-1s"}, {"-variants", "meshd,ipsec"}, {"-variants", ""}, {"more"}, {"-suite", "x"}, {"-suite", "endpoint", "-variants", "meshd"}} {
		if _, err := parse(args); cli.ExitCode(err) != cli.ExitUsage {
			t.Errorf("%q: got %v", args, err)
		}
	}
	if _, err := parse([]string{"-h"}); !errors.Is(err, flag.ErrHelp) {
		t.Errorf("-h: got %v", err)
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := installed(options{variants: []string{openvpn}})
	if err == nil || !strings.Contains(err.Error(), "openvpn") || strings.Contains(err.Error(), "wg") {
		t.Fatalf("got %v", err)
	}
	if hint, ok := errors.AsType[*cli.Error](err); !ok || hint.Hint != "make deps" {
		t.Errorf("hint: got %+v", hint)
	}
}

func TestTopologyIsValid(t *testing.T) {
	topology := topology()
	if err := topology.Validate(); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{near, far}, topology.Leaves()); diff != "" {
		t.Errorf("hosts (-want +got):\n%s", diff)
	}
	for _, s := range sides() {
		if got := topology.Host(s.host).Addr(false).String(); got != s.underlay {
			t.Errorf("%s has %s, want %s", s.host, got, s.underlay)
		}
	}
}

func TestEveryVariantIsInOrder(t *testing.T) {
	for _, s := range suites {
		for _, name := range s.order() {
			if _, ok := s.variants[name]; !ok {
				t.Errorf("%s: %s has no variant", s.name, name)
			}
		}
		if len(s.order()) != len(s.variants) {
			t.Errorf("%s: %d names for %d variants", s.name, len(s.order()), len(s.variants))
		}
		for _, g := range s.groups {
			for name := range g.goals {
				if !slices.Contains(g.order, name) || !slices.Contains(g.order, g.baseline) {
					t.Errorf("%s: goal of %s for %s is not in its group", s.name, g.baseline, name)
				}
			}
		}
	}
}

func TestParsePings(t *testing.T) {
	got := parsePings("64 bytes from 1.2.3.4: icmp_seq=1 ttl=62 time=0.487 ms\nno answer yet for icmp_seq=2\n64 bytes from 1.2.3.4: icmp_seq=3 ttl=62 time=12 ms\n" +
		"64 bytes: time=\n100 packets transmitted, 100 received, 0% packet loss, time 1001ms\n")
	if diff := cmp.Diff([]time.Duration{487 * time.Microsecond, 12 * time.Millisecond}, got); diff != "" {
		t.Errorf("round trips (-want +got):\n%s", diff)
	}
}

func TestParseFragments(t *testing.T) {
	got, err := parseFragments("Ip: Forwarding DefaultTTL FragFails FragCreates\nIp: 1 64 2 7\nIcmp: InMsgs FragCreates\nIcmp: 9 9\n")
	if err != nil || got != 7 {
		t.Errorf("got %d, %v", got, err)
	}
	for _, text := range []string{"", "Ip: A FragCreates\n", "Ip: A FragCreates\nIp: 1\n", "Ip: A B\nIp: 1 2\n", "Ip: FragCreates\nIp: x\n"} {
		if got, err := parseFragments(text); err == nil {
			t.Errorf("%q: got %d without error", text, got)
		}
	}
}

func TestParseBind(t *testing.T) {
	got := parseBind("goos: linux\nBenchmarkBind/library-2 \t 100\t 25261 ns/op\t3243.25 MB/s\t 5468 B/op\t 68 allocs/op\n" +
		"BenchmarkBind/ours \t 100\t 25000 ns/op\t3300 MB/s\t 1 B/op\t 64 allocs/op\nBenchmarkBind/broken-2 \t 1\t x ns/op\nPASS\n")
	want := map[string]bindSample{"library": {25261, 3243.25, 5468, 68}, "ours": {25000, 3300, 1, 64}}
	if diff := cmp.Diff(want, got, cmp.AllowUnexported(bindSample{})); diff != "" {
		t.Errorf("results (-want +got):\n%s", diff)
	}
}

func TestModel(t *testing.T) {
	if got := model("processor\t: 0\nmodel name\t: Some CPU @ 2 GHz\nmodel name\t: other\n"); got != "Some CPU @ 2 GHz" {
		t.Errorf("got %q", got)
	}
	if got := model(""); !strings.HasPrefix(got, "unknown") {
		t.Errorf("nothing known: got %q", got)
	}
}

func TestReplaceGeneratedKeepsTheRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.md")
	begin, end := marks("make bench")
	if err := os.WriteFile(path, []byte("before\n"+begin+"\nold\n"+end+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := replaceGenerated(path, "make bench", "new")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff("before\n"+begin+"\n\nnew\n\n"+end+"\nafter\n", string(got)); diff != "" {
		t.Errorf("content (-want +got):\n%s", diff)
	}
	for _, content := range []string{"nothing", end + begin, begin} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := replaceGenerated(path, "make bench", "new"); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%q: got %v", content, err)
		}
	}
}
