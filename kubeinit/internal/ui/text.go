package ui

import (
	"fmt"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Colours, as SGR parameters (ECMA-48).
const (
	red    = "31"
	green  = "32"
	yellow = "33"
	dim    = "2"
	bold   = "1"
)

// paint colours text if that is wanted.
func paint(wanted bool, color, text string) string {
	if !wanted || text == "" {
		return text
	}
	return "\x1b[" + color + "m" + text + "\x1b[0m"
}

// short is a duration for people.
func short(d time.Duration) string {
	switch {
	case d < 0:
		return "0s"
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 10*time.Second:
		return d.Round(100 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// stepName is the part of an ID that the host and the phase do not say.
func stepName(e phase.Event) string {
	name := strings.TrimPrefix(e.Step, string(e.Phase)+"/")
	return strings.TrimPrefix(name, e.Host+"/")
}

// logLine is an event as one line of a log.
func logLine(e phase.Event) string {
	host, step := e.Host, string(e.Phase)+"/"+stepName(e)
	if e.Kind == phase.PhaseDone {
		host, step = "-", string(e.Phase)
	}
	line := e.Time.Format(time.TimeOnly) + " " + host + " " + step
	if e.Kind == phase.Line {
		return line + " | " + harmless(e.Text)
	}
	line += " " + string(e.Kind)
	if e.Duration > 0 {
		line += " (" + short(e.Duration) + ")"
	}
	if e.Text != "" {
		line += ": " + harmless(e.Text)
	}
	if len(e.Changes) > 0 {
		line += ": " + changesText(e.Changes)
	}
	return line
}

// changesText is what changes, without long values.
func changesText(changes []phase.Change) string {
	var out []string
	for _, c := range changes {
		text := c.String()
		if strings.Contains(text, "\n") || len(text) > 120 {
			text = c.What
		}
		out = append(out, harmless(text))
	}
	return strings.Join(out, "; ")
}

// planText is a plan for people, with differences line by line.
func planText(p phase.Plan, color bool) string {
	var b strings.Builder
	hosts := map[string]bool{}
	steps := 0
	for _, s := range p.Steps {
		if len(s.Changes) == 0 {
			continue
		}
		steps++
		hosts[s.Host] = true
		b.WriteString(paint(color, bold, harmless(s.ID)) + "  " + paint(color, dim, harmless(s.Action)) + "\n")
		for _, c := range s.Changes {
			writeChange(&b, c, color)
		}
	}
	if steps == 0 {
		return fmt.Sprintf("nothing to do: all %d steps are as they shall be\n", len(p.Steps))
	}
	fmt.Fprintf(&b, "%d changes in %d of %d steps on %d hosts\n", p.Changes(), steps, len(p.Steps), len(hosts))
	return b.String()
}

func writeChange(b *strings.Builder, c phase.Change, color bool) {
	if !strings.Contains(c.To, "\n") && !strings.HasPrefix(c.To, "+") && !strings.HasPrefix(c.To, "-") {
		b.WriteString("    " + harmless(c.String()) + "\n")
		return
	}
	from := ""
	if c.From != "" {
		from = " (" + c.From + ")"
	}
	b.WriteString("    " + harmless(c.What+from) + "\n")
	for line := range strings.Lines(c.To) {
		line = harmless(line)
		switch {
		case strings.HasPrefix(line, "+"):
			line = paint(color, green, line)
		case strings.HasPrefix(line, "-"):
			line = paint(color, red, line)
		}
		b.WriteString("      " + line + "\n")
	}
}

// resultText is a result for people.
func resultText(r phase.Result, color bool) string {
	var b strings.Builder
	width := 0
	for _, p := range r.Phases {
		width = max(width, len(p.Phase))
	}
	for _, p := range r.Phases {
		fmt.Fprintf(&b, "%-*s  %7s  %s\n", width, p.Phase, short(p.Duration), countText(func(s phase.State) int { return p.Steps[s] }))
	}
	for _, f := range r.Failures {
		writeFailure(&b, f, color)
	}
	word := paint(color, green, "done")
	if len(r.Failures) > 0 {
		word = paint(color, red, "failed")
	} else if r.Count(phase.StateInterrupted) > 0 {
		word = paint(color, yellow, "interrupted")
	}
	changes := 0
	for _, c := range r.Changes() {
		changes += len(c)
	}
	counts := countText(r.Count)
	if counts == "" {
		counts = "no steps"
	}
	fmt.Fprintf(&b, "%s after %s: %d changes; %s\n", word, short(r.Duration), changes, counts)
	return b.String()
}

// countText says how many steps are in which state.
func countText(count func(phase.State) int) string {
	var out []string
	for _, s := range []phase.State{
		phase.StateDone, phase.StateUnchanged, phase.StateFailed, phase.StateBlocked, phase.StateInterrupted, phase.StateUndone, phase.StateUndoFailed,
	} {
		if n := count(s); n > 0 {
			out = append(out, fmt.Sprintf("%d %s", n, s))
		}
	}
	return strings.Join(out, ", ")
}

// writeFailure says of a failure what people need to go on.
func writeFailure(b *strings.Builder, f phase.Failure, color bool) {
	b.WriteString(paint(color, red, "failed: "+harmless(f.Step)) + " on " + harmless(f.Host) + "\n")
	if f.Command != "" {
		fmt.Fprintf(b, "    command: %s\n    exit status: %d\n", harmless(f.Command), f.Code)
	}
	b.WriteString("    error: " + harmless(f.Error) + "\n")
	for _, line := range f.Tail {
		b.WriteString("    | " + harmless(line) + "\n")
	}
	switch {
	case len(f.Undone) > 0:
		b.WriteString("    taken back: " + harmless(strings.Join(f.Undone, ", ")) + "\n")
	case len(f.NotUndone) == 0:
		b.WriteString("    taken back: nothing\n")
	}
	for _, n := range f.NotUndone {
		b.WriteString("    " + paint(color, red, "not taken back: ") + harmless(n) + "\n")
	}
	b.WriteString("    hint: " + harmless(f.Hint) + "\n")
}
