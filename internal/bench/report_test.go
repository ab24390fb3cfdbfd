//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestMedian(t *testing.T) {
	for _, c := range []struct {
		in   []float64
		want float64
	}{{nil, 0}, {[]float64{3}, 3}, {[]float64{9, 1, 5}, 5}, {[]float64{4, 1, 2, 3}, 2.5}} {
		if got := median(c.in); got != c.want {
			t.Errorf("median(%v): got %v, want %v", c.in, got, c.want)
		}
	}
}

func TestRatioComparesRoundByRound(t *testing.T) {
	at := func(rate float64) sample { return sample{rate: map[string]float64{"1 →": rate}} }
	r := report{results: map[string][]sample{
		meshd:     {at(10), at(1), at(30)},
		wireguard: {at(10), at(2), at(10)},
	}}
	if got := r.ratio(wireguard, func(s sample) float64 { return s.rate["1 →"] }); got != 1 {
		t.Errorf("ratio: got %v, want 1 (of 1, 0.5, 3)", got)
	}
}

func TestParsePings(t *testing.T) {
	got := parsePings("64 bytes from 1.2.3.4: icmp_seq=1 ttl=62 time=0.487 ms\nno answer yet for icmp_seq=2\n64 bytes from 1.2.3.4: icmp_seq=3 ttl=62 time=12 ms\n")
	if len(got) != 2 || got[0] != 487*time.Microsecond || got[1] != 12*time.Millisecond {
		t.Errorf("parsePings: got %v", got)
	}
}

func TestParseBind(t *testing.T) {
	got := parseBind("goos: linux\nBenchmarkBind/library-2 \t 100\t 25261 ns/op\t3243.25 MB/s\t 5468 B/op\t 68 allocs/op\nBenchmarkBind/ours-2 \t 100\t 25000 ns/op\t3300 MB/s\t 1 B/op\t 64 allocs/op\nPASS\n")
	if len(got["library"]) != 1 || got["library"][0] != (bindSample{25261, 3243.25, 68}) || len(got["ours"]) != 1 {
		t.Errorf("parseBind: got %+v", got)
	}
}

func TestReplaceGeneratedKeepsTheRest(t *testing.T) {
	path := filepath.Join(t.TempDir(), "p.md")
	if err := os.WriteFile(path, []byte("before\n"+beginMark+"\nold\n"+endMark+"\nafter\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceGenerated(path, "new"); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := string(b), "before\n"+beginMark+"\n\nnew\n\n"+endMark+"\nafter\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
	if err := os.WriteFile(path, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := replaceGenerated(path, "new"); err == nil || !strings.Contains(err.Error(), path) {
		t.Errorf("file without marks: got %v", err)
	}
}
