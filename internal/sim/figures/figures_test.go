package figures

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// some returns figures of one kind that took the given times; a negative one
// is a miss.
func some(system System, s Scenario, n int, took ...time.Duration) []Figure {
	var out []Figure
	for i, d := range took {
		f := Case{system, s, n, uint64(i + 1)}.Figure() //nolint:gosec // small
		f.Took, f.Reached, f.Idle, f.During = max(d, -d), d >= 0, 100, 1000
		out = append(out, f)
	}
	return out
}

func TestFiguresSurviveWritingAndReading(t *testing.T) {
	want := some(Planetmesh, MassStart, 64, time.Second, -time.Minute)
	want[1].Parts, want[1].Lasted, want[1].Notes = 3, time.Hour, "a note\nof two lines"
	var b bytes.Buffer
	if err := Write(&b, want...); err != nil {
		t.Fatal(err)
	}
	if lines := strings.Count(b.String(), "\n"); lines != len(want) {
		t.Errorf("got %d lines, want %d", lines, len(want))
	}
	got, err := Read(&b)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestReadRefusesWhatIsNoFigure(t *testing.T) {
	good := `{"system":"planetmesh","scenario":"join","n":2,"seed":1,"took":5,"reached":true}`
	for name, line := range map[string]string{
		"no JSON": "planetmesh join", "two": good + good, "a foreign field": `{"system":"planetmesh","scenario":"join","n":2,"nodes":1}`,
		"a foreign system": strings.Replace(good, "planetmesh", "carrier-pigeon", 1),
		"no gateways":      strings.Replace(good, `"n":2`, `"n":0`, 1),
		"negative time":    strings.Replace(good, `"took":5`, `"took":-5`, 1),
	} {
		_, err := Read(strings.NewReader(good + "\n\n" + line + "\n"))
		if !errors.Is(err, ErrFigure) || !strings.Contains(err.Error(), "line 3") {
			t.Errorf("%s: got %v, want line 3 named and %v", name, err, ErrFigure)
		}
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte(`{"system":"planetmesh","scenario":"join","n":2,"seed":1,"took":5,"reached":true}` + "\n"))
	f.Add([]byte(`{"system":"memberlist-wan","scenario":"heal","n":50,"seed":3,"took":600000000000,"idle":1.5,"parts":2,"lasted":10}`))
	f.Add([]byte("\n\n{}"))
	f.Fuzz(func(t *testing.T, text []byte) {
		figures, err := Read(bytes.NewReader(text))
		if err != nil {
			return
		}
		var b bytes.Buffer
		if err := Write(&b, figures...); err != nil {
			t.Fatal(err)
		}
		again, err := Read(&b)
		if err != nil || !slices.Equal(figures, again) {
			t.Errorf("got %v, %v the second time, want %v", again, err, figures)
		}
		goalTable(figures)
		lengthTable(figures)
	})
}

func TestSummaryOfFewFiguresHasNoP99(t *testing.T) {
	var took []time.Duration
	for i := range 200 {
		took = append(took, time.Duration(i+1)*time.Second)
	}
	few := Summarise(some(Planetmesh, Join, 200, took[:50]...))
	if worst, ok := few.Worst(); few.Median != 25*time.Second || few.Max != 50*time.Second || worst != few.Max || !ok {
		t.Errorf("of 50: median %v, max %v, worst %v %v", few.Median, few.Max, worst, ok)
	}
	many := Summarise(some(Planetmesh, Join, 200, took...))
	if worst, ok := many.Worst(); many.P99 != 198*time.Second || worst != many.P99 || !ok {
		t.Errorf("of 200: p99 %v, worst %v %v", many.P99, worst, ok)
	}
	table := scenarioTable(some(Planetmesh, Join, 200, took[:50]...), Join)
	if want := "| 200 | planetmesh | 50 | 25 s | – | 50 s | 0 | 100 | 1000 |"; !strings.Contains(table, want) {
		t.Errorf("got %s\nwant in it %s", table, want)
	}
}

func TestMissesComeLastAndAreLowerBounds(t *testing.T) {
	s := Summarise(some(MemberlistLAN, Heal, 50, time.Second, -10*time.Minute, 11*time.Minute))
	if s.Misses != 1 || s.Median != 11*time.Minute || !s.AtLeast(1) || s.AtLeast(0.5) {
		t.Errorf("got %+v", s)
	}
	if _, ok := s.Worst(); ok {
		t.Error("a miss counts as reached")
	}
	if got, want := s.text(Heal, 1), "> 600 s"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestIdleTrafficComesFromAllScenarios(t *testing.T) {
	figures := slices.Concat(some(Planetmesh, Join, 25, time.Second), some(Planetmesh, Heal, 25, time.Second), some(Planetmesh, Idle, 25, 0))
	figures[0].Idle, figures[1].Idle, figures[2].Idle = 30, 0, 10
	if table, want := scenarioTable(figures, Idle), "| 25 | planetmesh | 2 | 20 |"; !strings.Contains(table, want) {
		t.Errorf("got %s\nwant in it %s", table, want)
	}
	if n := len(pick(figures, Join, Planetmesh, 25)); n != 1 {
		t.Errorf("got %d figures of a join, want 1", n)
	}
}

func TestGoalsAreMetMissedOrNotMeasured(t *testing.T) {
	figures := slices.Concat(
		some(Planetmesh, MassStart, 64, time.Second, 10*time.Second),
		some(MemberlistLAN, MassStart, 64, time.Hour), // no goal is about that
		some(Planetmesh, Heal, 25, time.Second),
		some(Planetmesh, Heal, 50, time.Second, -time.Second),
		some(Planetmesh, CrashRoutes, 30, 1001*time.Millisecond),
	)
	got := goalTable(figures)
	for _, want := range []string{
		"| mass start | 64 | ≤ 10 s | 2 | max 10 s | met |",
		"| one join | 200 | ≤ 3 s | 0 | – | not measured |",
		"| healing of a partition | 25 | ≤ 10 s | 1 | max 1 s | met |",
		"| healing of a partition | 50 | ≤ 10 s | 2 | max > 1 s | missed |",
		"| crash of 10 %, routes with a standby | 30 | ≤ 1 s | 1 | max 1.001 s | missed |",
	} {
		if !strings.Contains(got, want+"\n") {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
}

func TestSetupIsTheSameForEverySystem(t *testing.T) {
	for seed := range uint64(40) {
		for _, n := range []int{4, 25, 200} {
			for _, s := range scenarios {
				c := Case{Planetmesh, s, n, seed}
				one := c.Setup()
				c.System = MemberlistWAN
				if diff := cmp.Diff(one, c.Setup()); diff != "" {
					t.Fatal(diff)
				}
				checkSetup(t, c, one)
			}
		}
	}
}

func checkSetup(t *testing.T, c Case, s Setup) {
	t.Helper()
	if s.Delay < 5*time.Millisecond || s.Delay > 100*time.Millisecond || s.Loss < 0 || s.Loss > 0.02 {
		t.Errorf("%v: network %v, %v", c, s.Delay, s.Loss)
	}
	switch c.Scenario {
	case Heal:
		all := slices.Sorted(slices.Values(slices.Concat(s.Parts...)))
		if len(s.Parts) < 2 || len(s.Parts) > 5 || s.Lasts == 0 || slices.ContainsFunc(s.Parts, func(p []int) bool { return len(p) == 0 }) {
			t.Errorf("%v: %d parts for %v", c, len(s.Parts), s.Lasts)
		}
		if len(all) != c.N || len(slices.Compact(all)) != c.N {
			t.Errorf("%v: parts %v are not all gateways once", c, s.Parts)
		}
	case CrashViews, CrashRoutes:
		if len(s.Crashed) != max(1, c.N/10) || s.Crashed[0] == 0 || s.Crashed[len(s.Crashed)-1] >= c.N {
			t.Errorf("%v: %v crash", c, s.Crashed)
		}
	}
}

func TestSeedsCoverAllLengthsAndParts(t *testing.T) {
	seen := make(map[[2]int64]bool)
	for seed := range uint64(16) {
		s := Case{Planetmesh, Heal, 50, seed}.Setup()
		seen[[2]int64{int64(s.Lasts), int64(len(s.Parts))}] = true
	}
	if len(seen) != 16 {
		t.Errorf("got %d pairs of length and parts from 16 seeds, want 16", len(seen))
	}
}

// document writes a document with places for what is generated.
func document(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "doc.md")
	text := "head\n\n<!-- generated by make sim-report: begin -->\nold\n<!-- generated by make sim-report: end -->\n\n" +
		"middle\n\n<!-- generated by make sim-real: begin -->\n<!-- generated by make sim-real: end -->\n\ntail\n"
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestReportReplacesOnlyItsOwnPlace(t *testing.T) {
	doc := document(t)
	var figures []Figure
	for i, n := range []int{25, 50, 100, 200, 400} {
		d := time.Duration(i+1) * time.Second
		for _, s := range scenarios {
			figures = slices.Concat(figures, some(Planetmesh, s, n, d, 2*d), some(MemberlistLAN, s, n, 20*d, -10*time.Minute), some(MemberlistWAN, s, n, -10*time.Minute))
		}
	}
	for i := range figures {
		if figures[i].Scenario == Heal {
			figures[i].Lasted = time.Minute
		}
	}
	figures = append(figures, some(Real, MassStart, 12, time.Second)...)
	o := Options{Command: "make sim-report", Day: time.Date(2026, 11, 22, 0, 0, 0, 0, time.UTC), Machine: "none", Plot: "plot.svg"}
	for range 2 { // the second time over the first
		if err := WriteReport(doc, figures, o); err != nil {
			t.Fatal(err)
		}
	}
	if err := WriteReal(doc, figures, o); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(doc)
	if err != nil {
		t.Fatal(err)
	}
	got := string(b)
	for _, want := range []string{
		"head\n\n<!-- generated by make sim-report: begin -->\n\nCommand: `make sim-report`, 2026-11-22.\n", "(plot.svg)\n\n<!-- generated by make sim-report: end -->\n\nmiddle",
		"| 25 | memberlist-wan | 1 | > 600 s | – | > 600 s | 1 | 100 | 1000 |", "| 1m0s | planetmesh | 10 | 4 s | 10 s | 0 |",
		"| mass start | 12 | planetmesh-real | 1 | 1 s | 1 s to 1 s | 0 | 100 | 1000 |\n\n<!-- generated by make sim-real: end -->\n\ntail\n",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in\n%s", want, got)
		}
	}
	if strings.Contains(got, "old") || strings.Count(got, "Goals of") != 1 {
		t.Errorf("something older is left in\n%s", got)
	}
	checkSVG(t, filepath.Join(filepath.Dir(doc), "plot.svg"))
}

// checkSVG asks for well-formed XML with some lines of the diagrams in it.
func checkSVG(t *testing.T, path string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	paths := 0
	for d := xml.NewDecoder(bytes.NewReader(b)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := token.(xml.StartElement); ok && e.Name.Local == "path" {
			paths++
		}
	}
	if paths < 2*len(panels)*len(simulated) || !bytes.Contains(b, []byte("B/s per gateway")) {
		t.Errorf("%d paths in the plot, or no label", paths)
	}
}

func TestReportNeedsItsPlace(t *testing.T) {
	doc := filepath.Join(t.TempDir(), "doc.md")
	if err := os.WriteFile(doc, []byte("nothing"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := WriteReport(doc, nil, Options{}); !errors.Is(err, ErrNoPlace) {
		t.Errorf("got %v, want %v", err, ErrNoPlace)
	}
	if b, err := os.ReadFile(doc); err != nil || string(b) != "nothing" {
		t.Errorf("the document became %q, %v", b, err)
	}
}
