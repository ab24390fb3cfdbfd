package ui

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// screen is a terminal with a line for each host below everything else. It moves
// the cursor up over its own lines and clears from there on, and changes nothing
// that would have to be restored. Its methods are not safe for concurrent use.
type screen struct {
	w     io.Writer
	o     Options
	began time.Time

	hosts   []*hostLine
	settled map[string]bool // steps
	news    []string        // lines to come above the hosts
	drawn   int             // lines of the last drawing
	width   int             // at the last drawing
	last    time.Time
}

// hostLine is what is known of a host.
type hostLine struct {
	name  string
	phase phase.Name
	step  string // empty: it waits
	began time.Time
	text  string // last output
	state string // what became of it, empty while all is well
}

// soon is the least time between two drawings that output alone calls for.
const soon = 100 * time.Millisecond

func newScreen(w io.Writer, o Options) *screen {
	s := &screen{w: w, o: o, began: time.Now(), settled: map[string]bool{}}
	for _, h := range o.Hosts {
		s.hosts = append(s.hosts, &hostLine{name: h})
	}
	return s
}

func (s *screen) host(name string) *hostLine {
	for _, h := range s.hosts {
		if h.name == name {
			return h
		}
	}
	h := &hostLine{name: name}
	s.hosts = append(s.hosts, h)
	return h
}

// event takes an event, and draws unless it was only output that comes quickly.
func (s *screen) event(e phase.Event) {
	if e.Kind == phase.PhaseDone {
		s.above(paint(s.o.Color, green, string(e.Phase)) + " " + short(e.Duration) + "  " + harmless(e.Text))
		s.draw(e.Time)
		return
	}
	h := s.host(e.Host)
	h.phase = e.Phase
	switch e.Kind {
	case phase.Started:
		h.step, h.began, h.text = stepName(e), e.Time, ""
	case phase.Line:
		h.text = e.Text
		if e.Time.Sub(s.last) < soon {
			return
		}
	case phase.Done, phase.Unchanged, phase.Observed:
		s.settled[e.Step] = true
		h.step, h.text = "", ""
	case phase.Failed:
		s.settled[e.Step] = true
		h.step, h.state = "", "failed at "+stepName(e)
		s.above(paint(s.o.Color, red, "failed: "+harmless(e.Step)) + " " + harmless(e.Text))
	case phase.Blocked:
		s.settled[e.Step] = true
		if h.state == "" {
			h.state = "stops: " + e.Text
		}
	case phase.Undone:
		s.above(paint(s.o.Color, yellow, "taken back: "+harmless(e.Step)))
	}
	s.draw(e.Time)
}

// above has a line stay on the terminal, above the hosts.
func (s *screen) above(line string) { s.news = append(s.news, line) }

// draw draws all anew.
func (s *screen) draw(now time.Time) {
	width, height := s.size()
	var b strings.Builder
	b.WriteString(s.back(width))
	for _, line := range s.news {
		b.WriteString(line + "\n")
	}
	s.news = nil
	lines := s.lines(now, width, height)
	for _, line := range lines {
		b.WriteString(line + "\n")
	}
	s.drawn, s.width, s.last = len(lines), width, now
	_, _ = io.WriteString(s.w, b.String()) // see View.line
}

// back goes to the first of the drawn lines and clears all. A terminal whose width
// has changed may have broken them in its own way: there the drawing starts below.
func (s *screen) back(width int) string {
	if s.drawn == 0 || width != s.width {
		return "\r\x1b[J"
	}
	return fmt.Sprintf("\r\x1b[%dA\x1b[J", s.drawn)
}

// clear removes the lines of the hosts.
func (s *screen) clear() {
	width, _ := s.size()
	text := s.back(width)
	if len(s.news) > 0 {
		text += strings.Join(s.news, "\n") + "\n"
	}
	s.news, s.drawn = nil, 0
	_, _ = io.WriteString(s.w, text) // see View.line
}

func (s *screen) size() (width, height int) {
	if s.o.Size != nil {
		width, height = s.o.Size()
	}
	if width <= 0 || height <= 0 {
		return 80, 24
	}
	return width, height
}

// lines are the lines of the hosts, and one about all. They are shorter than the
// terminal is wide, and fewer than it is high: what is drawn must neither break
// nor scroll.
func (s *screen) lines(now time.Time, width, height int) []string {
	total := fmt.Sprintf("%d steps", len(s.settled))
	if s.o.Steps > 0 {
		total = fmt.Sprintf("%d of %d steps", len(s.settled), s.o.Steps)
	}
	total += ", " + short(now.Sub(s.began).Truncate(time.Second))
	shown := s.pick(max(height-2, 0))
	if hidden := len(s.hosts) - len(shown); hidden > 0 {
		total += fmt.Sprintf(", %d more hosts", hidden)
	}
	names, phases := 0, 0
	for _, h := range shown {
		names = max(names, utf8.RuneCountInString(h.name))
		phases = max(phases, len(h.phase))
	}
	var lines []string
	for _, h := range shown {
		lines = append(lines, s.paintHost(h, cut(h.line(now, names, phases), width-1)))
	}
	return append(lines, paint(s.o.Color, dim, cut(total, width-1)))
}

func (s *screen) paintHost(h *hostLine, line string) string {
	switch {
	case h.state != "" && strings.HasPrefix(h.state, "failed"):
		return paint(s.o.Color, red, line)
	case h.state != "":
		return paint(s.o.Color, yellow, line)
	case h.step == "":
		return paint(s.o.Color, dim, line)
	}
	return line
}

// pick chooses the hosts for which there is room: those that work or stopped
// before those that wait, in their order.
func (s *screen) pick(room int) []*hostLine {
	if len(s.hosts) <= room {
		return s.hosts
	}
	var shown []*hostLine
	for _, busy := range []bool{true, false} {
		for _, h := range s.hosts {
			if (h.step != "" || h.state != "") == busy && len(shown) < room {
				shown = append(shown, h)
			}
		}
	}
	slices.SortStableFunc(shown, func(a, b *hostLine) int { return slices.Index(s.hosts, a) - slices.Index(s.hosts, b) })
	return shown
}

// line is a host's line: name, phase, step, how long, last output.
func (h *hostLine) line(now time.Time, names, phases int) string {
	line := fmt.Sprintf("%-*s  %-*s  ", names, harmless(h.name), phases, h.phase)
	switch {
	case h.step != "":
		line += fmt.Sprintf("%s  %s  %s", harmless(h.step), short(now.Sub(h.began).Truncate(time.Second)), harmless(h.text))
	case h.state != "":
		line += harmless(h.state)
	default:
		line += "waits"
	}
	return strings.TrimRight(line, " ")
}

// cut shortens a line to a width.
func cut(line string, width int) string {
	if utf8.RuneCountInString(line) <= width {
		return line
	}
	if width < 1 {
		return ""
	}
	return string([]rune(line)[:width-1]) + "…"
}
