package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
)

// table is aligned text for people. The first row is its head.
type table struct {
	rows  [][]cell
	right []bool // columns aligned to the right
}

// cell is one field of a table.
type cell struct {
	text  string
	style style
}

// style is an SGR sequence of a terminal (ECMA-48); empty is plain text.
type style string

const (
	plain style = ""
	bold  style = "\x1b[1m"
	dim   style = "\x1b[2m"
	good  style = "\x1b[32m"
	poor  style = "\x1b[33m"
	bad   style = "\x1b[31m"
	reset style = "\x1b[0m"
)

// head sets the head; a name that begins with ">" makes a column that is
// aligned to the right.
func (t *table) head(names ...string) {
	row := make([]cell, len(names))
	t.right = make([]bool, len(names))
	for i, name := range names {
		name, t.right[i] = strings.CutPrefix(name, ">")
		row[i] = cell{name, dim}
	}
	t.rows = append(t.rows, row)
}

func (t *table) add(row ...cell) { t.rows = append(t.rows, row) }

// text is a cell in plain text. What comes from other machines ends up on a
// terminal, so control characters are replaced.
func text(s string) cell { return styled(s, plain) }

func styled(s string, st style) cell {
	s = strings.Map(func(r rune) rune {
		if !strconv.IsPrint(r) {
			return utf8.RuneError
		}
		return r
	}, s)
	if s == "" {
		s = "–"
	}
	return cell{s, st}
}

// print writes t with two spaces between columns.
func (t *table) print(w io.Writer, colour bool) {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c.text))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		var line strings.Builder
		for i, c := range row {
			pad := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(c.text))
			shown := paint(c.text, c.style, colour)
			if i < len(t.right) && t.right[i] {
				shown, pad = pad+shown, ""
			}
			if i > 0 {
				line.WriteString("  ")
			}
			line.WriteString(shown + pad)
		}
		b.WriteString(strings.TrimRight(line.String(), " ") + "\n")
	}
	_, _ = io.WriteString(w, b.String())
}

func paint(s string, st style, colour bool) string {
	if !colour || st == plain {
		return s
	}
	return string(st) + s + string(reset)
}

// coloured reports whether standard output is for eyes that want colours
// (https://no-color.org).
func coloured(cmd *cobra.Command) bool {
	std := cli.StdOf(cmd)
	return cli.IsTerminal(std.Out) && std.Getenv("NO_COLOR") == "" && std.Getenv("TERM") != "dumb"
}

// milliseconds shows a round trip time: 0.42, 23.4, 156.
func milliseconds(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	switch {
	case ms < 9.995:
		return strconv.FormatFloat(ms, 'f', 2, 64)
	case ms < 99.95:
		return strconv.FormatFloat(ms, 'f', 1, 64)
	default:
		return strconv.FormatFloat(ms, 'f', 0, 64)
	}
}

// size shows a number of bytes in powers of 1000: 0 B, 999 B, 1.2 kB, 34 MB.
func size(n uint64) string {
	if n < 1000 {
		return strconv.FormatUint(n, 10) + " B"
	}
	value, unit := float64(n), 0
	for value >= 999.5 && unit < 6 {
		value /= 1000
		unit++
	}
	digits := 0
	if value < 9.95 {
		digits = 1
	}
	return strconv.FormatFloat(value, 'f', digits, 64) + " " + string("BkMGTPE"[unit]) + "B"
}

// age shows how long ago t was, in its two largest units; "–" for no time.
func age(now, t time.Time) string {
	if t.IsZero() {
		return "–"
	}
	d := max(now.Sub(t), 0)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	default:
		return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
	}
}
