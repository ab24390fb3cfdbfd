package figures

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Options are what a report says about how its figures were made.
type Options struct {
	// Command is what to type for the same; required.
	Command string
	// Day is when it was.
	Day time.Time
	// Machine matters for Real only; empty leaves it out.
	Machine string
	// Plot is the name of the SVG file that WriteReport puts beside the document; empty makes none.
	Plot string
}

// Goal is what Planetmesh shall reach in a scenario.
type Goal struct {
	Scenario Scenario
	N        int // zero: at every N that was measured
	// Limit holds for 99 % of the figures, for all if there are fewer than 100.
	Limit time.Duration
}

// Goals are those of the control plane.
var Goals = []Goal{
	{MassStart, 64, 10 * time.Second},
	{Join, 200, 3 * time.Second},
	{Heal, 0, 10 * time.Second},
	{CrashRoutes, 0, time.Second},
	{CrashViews, 0, 15 * time.Second},
}

// The targets of the Makefile that write the generated parts of a document.
const (
	reportTarget = "make sim-report"
	realTarget   = "make sim-real"
)

// ErrNoPlace is what WriteReport and WriteReal return, wrapped, for a document without the
// lines between which they write.
var ErrNoPlace = errors.New("no place for what is generated")

// WriteReport replaces what `make sim-report` generated in a document, and its
// plot. Figures of Real and Model are left to WriteReal.
func WriteReport(doc string, figures []Figure, o Options) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Command: `%s`, %s.\n", o.Command, o.Day.Format(time.DateOnly))
	b.WriteString(goalTable(figures))
	for _, s := range scenarios {
		b.WriteString(scenarioTable(figures, s))
	}
	b.WriteString(lengthTable(figures))
	if o.Plot != "" {
		if err := Plot(filepath.Join(filepath.Dir(doc), o.Plot), figures); err != nil {
			return err
		}
		fmt.Fprintf(&b, "\n![Times and traffic against the number of gateways](%s)\n", o.Plot)
	}
	return replace(doc, reportTarget, b.String())
}

// WriteReal replaces what `make sim-real` generated in a document: real
// processes beside the model of their network.
func WriteReal(doc string, figures []Figure, o Options) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Command: `%s`, %s. Machine: %s.\n", o.Command, o.Day.Format(time.DateOnly), o.Machine)
	b.WriteString(heading("what happens", "gateways", "system", "runs", "median", "smallest to largest", "not reached", "idle B/s", "during B/s"))
	for _, s := range scenarios[:len(scenarios)-1] { // Idle is a column
		for _, n := range sizes(figures, s) {
			for _, system := range []System{Real, Model} {
				sum := Summarise(pick(figures, s, system, n))
				if sum.Count == 0 {
					continue
				}
				row(&b, title(s), strconv.Itoa(n), string(system), strconv.Itoa(sum.Count), sum.text(s, 0.5),
					seconds(sum.quantile(0).Took, sum.AtLeast(0))+" to "+sum.text(s, 1), misses(sum), rate(sum.Idle), rate(sum.During))
			}
		}
	}
	return replace(doc, realTarget, b.String())
}

// goalTable holds what was measured against the goals.
func goalTable(figures []Figure) string {
	var rows strings.Builder
	for _, g := range Goals {
		for _, n := range g.sizes(figures) {
			sum := Summarise(pick(figures, g.Scenario, Planetmesh, n))
			verdict := "missed"
			if worst, ok := sum.Worst(); ok && worst <= g.Limit {
				verdict = "met"
			}
			value := "max " + sum.text(g.Scenario, 1)
			if sum.Count >= enoughForP99 {
				value = "p99 " + sum.text(g.Scenario, 0.99)
			}
			if sum.Count == 0 {
				verdict, value = "not measured", none
			}
			row(&rows, title(g.Scenario), strconv.Itoa(n), "≤ "+seconds(g.Limit, false), strconv.Itoa(sum.Count), value, verdict)
		}
	}
	if rows.Len() == 0 {
		return ""
	}
	return "\nGoals of Planetmesh, p99 over the seeds, or the largest of fewer than 100:\n" +
		heading("what happens", "gateways", "goal", "seeds", "measured", "goal is") + rows.String()
}

// sizes are the numbers of gateways that a goal is about.
func (g Goal) sizes(figures []Figure) []int {
	if g.N != 0 {
		return []int{g.N}
	}
	return sizes(slices.DeleteFunc(slices.Clone(figures), func(f Figure) bool { return f.System != Planetmesh }), g.Scenario)
}

// simulated are the systems of the tables and the plot.
var simulated = []System{Planetmesh, MemberlistLAN, MemberlistWAN}

// scenarioTable shows how a scenario grows with the number of gateways.
func scenarioTable(figures []Figure, s Scenario) string {
	var rows strings.Builder
	for _, n := range sizes(figures, s) {
		for _, system := range simulated {
			sum := Summarise(pick(figures, s, system, n))
			switch {
			case sum.Count == 0:
			case s == Idle:
				row(&rows, strconv.Itoa(n), string(system), strconv.Itoa(sum.Count), rate(sum.Idle))
			default:
				p99 := none
				if sum.Count >= enoughForP99 {
					p99 = sum.text(s, 0.99)
				}
				row(&rows, strconv.Itoa(n), string(system), strconv.Itoa(sum.Count), sum.text(s, 0.5), p99, sum.text(s, 1),
					misses(sum), rate(sum.Idle), rate(sum.During))
			}
		}
	}
	if rows.Len() == 0 {
		return ""
	}
	columns := []string{"gateways", "system", "seeds", "p50", "p99", "max", "not reached", "idle B/s", "during B/s"}
	if s == Idle {
		columns = []string{"gateways", "system", "runs", "idle B/s"}
	}
	return "\n" + strings.ToUpper(title(s)[:1]) + title(s)[1:] + ":\n" + heading(columns...) + rows.String()
}

// lengthTable shows what the length of a partition does to its healing, at all N together.
func lengthTable(figures []Figure) string {
	healed := slices.DeleteFunc(slices.Clone(figures), func(f Figure) bool { return f.Scenario != Heal || f.Lasted == 0 })
	var lasted []time.Duration
	for _, f := range healed {
		lasted = append(lasted, f.Lasted)
	}
	slices.Sort(lasted)
	var rows strings.Builder
	for _, l := range slices.Compact(lasted) {
		for _, system := range simulated {
			sum := Summarise(slices.DeleteFunc(slices.Clone(healed), func(f Figure) bool { return f.Lasted != l || f.System != system }))
			if sum.Count > 0 {
				row(&rows, l.String(), string(system), strconv.Itoa(sum.Count), sum.text(Heal, 0.5), sum.text(Heal, 1), misses(sum))
			}
		}
	}
	if rows.Len() == 0 {
		return ""
	}
	return "\nHealing by how long the partition was, all numbers of gateways together:\n" +
		heading("partition", "system", "seeds", "p50", "max", "not reached") + rows.String()
}

// title is what a scenario is called in a table.
func title(s Scenario) string {
	switch s {
	case MassStart:
		return "mass start"
	case Join:
		return "one join"
	case Heal:
		return "healing of a partition"
	case CrashViews:
		return "crash of 10 %, views"
	case CrashRoutes:
		return "crash of 10 %, routes with a standby"
	}
	return "nothing happens, in the runs of all scenarios"
}

// none stands where there is no value.
const none = "–"

func heading(columns ...string) string {
	return "\n| " + strings.Join(columns, " | ") + " |\n" + strings.Repeat("|---", len(columns)) + "|\n"
}

func row(b *strings.Builder, cells ...string) {
	b.WriteString("| " + strings.Join(cells, " | ") + " |\n")
}

// text is a quantile of Took.
func (s Summary) text(scenario Scenario, q float64) string {
	if s.Count == 0 || scenario == Idle {
		return none
	}
	return seconds(s.quantile(q).Took, s.AtLeast(q))
}

// seconds is "1.25 s", or "> 600 s" for a lower bound.
func seconds(d time.Duration, atLeast bool) string {
	precision := 3
	switch {
	case d >= 100*time.Second:
		precision = 0
	case d >= 10*time.Second:
		precision = 1
	}
	text := strconv.FormatFloat(d.Seconds(), 'f', precision, 64)
	if strings.Contains(text, ".") {
		text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	}
	if atLeast {
		return "> " + text + " s"
	}
	return text + " s"
}

func misses(s Summary) string { return fmt.Sprintf("%d", s.Misses) }

// rate is bytes per second without digits that mean nothing.
func rate(v float64) string {
	if v == 0 {
		return none
	}
	return strconv.FormatFloat(v, 'f', 0, 64)
}

// in reports whether a figure says something about a scenario: those of others
// say something about Idle too, if they measured it before their event.
func (f Figure) in(s Scenario) bool {
	return f.Scenario == s || s == Idle && f.Idle > 0
}

// pick returns the figures of one kind.
func pick(figures []Figure, s Scenario, system System, n int) []Figure {
	return slices.DeleteFunc(slices.Clone(figures), func(f Figure) bool {
		return !f.in(s) || f.System != system || f.N != n
	})
}

// sizes returns the numbers of gateways at which a scenario was measured, in order.
func sizes(figures []Figure, s Scenario) []int {
	var out []int
	for _, f := range figures {
		if f.in(s) {
			out = append(out, f.N)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// replace puts text between the lines that mark what a target generates.
func replace(path, target, text string) error {
	b, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- generated by "+target+": begin -->", "<!-- generated by "+target+": end -->"
	head, rest, begins := bytes.Cut(b, []byte(begin))
	_, tail, ends := bytes.Cut(rest, []byte(end))
	if !begins || !ends {
		return fmt.Errorf("%s: %w: the lines %q and %q", path, ErrNoPlace, begin, end)
	}
	out := slices.Concat(head, []byte(begin+"\n\n"+strings.Trim(text, "\n")+"\n\n"+end), tail)
	return os.WriteFile(path, out, 0o644) //nolint:gosec // a document
}
