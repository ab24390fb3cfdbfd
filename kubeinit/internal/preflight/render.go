package preflight

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// maxGridHosts is the largest grid of hosts that fits on a screen; beyond
// it, sites are shown, each cell being the worst pair.
const maxGridHosts = 24

// Colours of terminals (ECMA-48, SGR).
const (
	sgrRed    = "\x1b[31m"
	sgrGreen  = "\x1b[32m"
	sgrYellow = "\x1b[33m"
	sgrBold   = "\x1b[1m"
	sgrDim    = "\x1b[2m"
	sgrReset  = "\x1b[0m"
)

// Render writes a report for people: a grid of round trips, one of loss and one of path MTUs,
// the way from the row to the column, and the faults. With colour it uses those of terminals.
// The error is that of w.
func Render(w io.Writer, r *Report, inv *inventory.Inventory, faults []Fault, colour bool) error {
	p := &painter{colour: colour}
	g := newGrid(r, inv)
	if len(g.rows) > 1 {
		g.write(p, "round trip, ms", cellRTT)
		g.write(p, "packets lost, %", cellLoss)
		g.write(p, "path MTU, bytes", cellMTU)
		p.line(sgrDim, "from the row to the column; X: nothing passes; ?: not known")
		p.line("", "")
	}
	p.faults(faults)
	_, err := io.WriteString(w, p.text.String())
	return err
}

// painter collects text.
type painter struct {
	colour bool
	text   strings.Builder
}

func (p *painter) put(colour, text string) {
	if p.colour && colour != "" {
		text = colour + text + sgrReset
	}
	p.text.WriteString(text)
}

func (p *painter) line(colour, text string) { p.put(colour, text); p.text.WriteByte('\n') }

// grid has hosts, or sites where there are many, as rows and as columns.
type grid struct {
	rows []gridRow
	// pairs are those of a cell.
	pairs map[[2]int][]*Pair
}

type gridRow struct {
	name  string
	group string // site; a new one is set apart
}

func newGrid(r *Report, inv *inventory.Inventory) *grid {
	g := &grid{pairs: make(map[[2]int][]*Pair)}
	var hosts []*inventory.Host
	for _, s := range inv.Sites {
		for i := range inv.Hosts {
			if h := &inv.Hosts[i]; h.Site == s.Name && joins(h) {
				hosts = append(hosts, h)
			}
		}
	}
	place := make(map[string]int)
	for _, h := range hosts {
		row := gridRow{h.Name, h.Site}
		if len(hosts) > maxGridHosts {
			row = gridRow{h.Site, ""}
		}
		at := slices.Index(g.rows, row)
		if at < 0 {
			at = len(g.rows)
			g.rows = append(g.rows, row)
		}
		place[h.Name] = at
	}
	for i := range r.Pairs {
		p := &r.Pairs[i]
		a, okA := place[p.From]
		b, okB := place[p.To]
		if okA && okB {
			g.pairs[[2]int{a, b}] = append(g.pairs[[2]int{a, b}], p)
		}
	}
	return g
}

// cell is a text and how bad it is: 0 good, 1 doubtful, 2 bad.
type cell struct {
	text string
	bad  int
}

func (g *grid) write(p *painter, title string, of func([]*Pair) cell) {
	cells := make([][]cell, len(g.rows))
	var width, left int
	same, first := true, ""
	for a, row := range g.rows {
		left = max(left, utf8.RuneCountInString(row.name))
		for b, column := range g.rows {
			c := cell{text: "·"}
			if pairs := g.pairs[[2]int{a, b}]; len(pairs) > 0 {
				c = of(pairs)
				if first == "" {
					first = c.text
				}
				same = same && c.text == first
			}
			cells[a] = append(cells[a], c)
			width = max(width, utf8.RuneCountInString(c.text), utf8.RuneCountInString(column.name))
		}
	}
	if same && first != "" && first != "X" && first != "?" {
		p.put(sgrBold, title)
		p.line("", ": "+first+" everywhere")
		p.line("", "")
		return
	}
	p.put(sgrBold, title)
	p.line("", "")
	p.text.WriteString(strings.Repeat(" ", left))
	g.each(p, func(b int) { p.put(sgrDim, fmt.Sprintf("%*s", width, g.rows[b].name)) })
	for a, row := range g.rows {
		if a > 0 && row.group != g.rows[a-1].group {
			p.line("", "")
		}
		p.put(sgrDim, fmt.Sprintf("%-*s", left, row.name))
		g.each(p, func(b int) {
			c := cells[a][b]
			colour := []string{sgrGreen, sgrYellow, sgrRed}[c.bad]
			if a == b && c.text == "·" {
				colour = sgrDim
			}
			p.text.WriteString(strings.Repeat(" ", width-utf8.RuneCountInString(c.text)))
			p.put(colour, c.text)
		})
	}
	p.line("", "")
}

// each writes the columns of a line.
func (g *grid) each(p *painter, column func(b int)) {
	for b, row := range g.rows {
		if b > 0 && row.group != g.rows[b-1].group {
			p.text.WriteString("  ")
		}
		p.text.WriteString(" ")
		column(b)
	}
	p.line("", "")
}

// worst returns the cell that is worst, and of those the one with the largest value.
func worst(pairs []*Pair, of func(*Pair) (c cell, value float64)) cell {
	var out cell
	most := -1.0
	for i, p := range pairs {
		c, value := of(p)
		if i == 0 || c.bad > out.bad || c.bad == out.bad && value > most {
			out, most = c, value
		}
	}
	return out
}

func cellRTT(pairs []*Pair) cell {
	return worst(pairs, func(p *Pair) (cell, float64) {
		switch {
		case p.RTT == nil && (dead(p) || p.Sent > 0):
			return cell{"X", 2}, 0
		case p.RTT == nil:
			return cell{"?", 1}, 0
		}
		ms := float64(p.RTT.P50) / float64(time.Millisecond)
		c := cell{text: fmt.Sprintf("%.1f", ms)}
		if ms >= 10 {
			c.text = fmt.Sprintf("%.0f", ms)
		}
		if ms > 100 {
			c.bad = 1
		}
		return c, ms
	})
}

func cellLoss(pairs []*Pair) cell {
	return worst(pairs, func(p *Pair) (cell, float64) {
		loss, ok := p.Loss()
		switch {
		case !ok:
			return cell{"?", 1}, 0
		case dead(p):
			return cell{"X", 2}, 1
		case loss == 0:
			return cell{"0", 0}, 0
		case loss > lossFault:
			return cell{fmt.Sprintf("%.0f", 100*loss), 2}, loss
		case loss > lossWarning:
			return cell{fmt.Sprintf("%.1f", 100*loss), 1}, loss
		}
		return cell{fmt.Sprintf("%.1f", 100*loss), 0}, loss
	})
}

func cellMTU(pairs []*Pair) cell {
	return worst(pairs, func(p *Pair) (cell, float64) {
		switch {
		case p.Link == 0 && dead(p):
			return cell{"X", 2}, 0
		case p.Link == 0:
			return cell{"?", 1}, 0
		case p.MTU == 0:
			return cell{fmt.Sprintf("<%d", minMTU), 2}, 1
		case p.MTU < p.Assumed:
			return cell{fmt.Sprintf("%d!", p.MTU), 2}, 1 / float64(p.MTU)
		case p.MTU < minUsefulMTU:
			return cell{fmt.Sprint(p.MTU), 2}, 1 / float64(p.MTU)
		}
		return cell{fmt.Sprint(p.MTU), 0}, 1 / float64(p.MTU)
	})
}

// faults lists faults with their cures.
func (p *painter) faults(faults []Fault) {
	if len(faults) == 0 {
		p.line(sgrGreen, "no faults")
		return
	}
	counts := make(map[Severity]int)
	for _, f := range faults {
		counts[f.Severity]++
		colour := map[Severity]string{SeverityFault: sgrRed, SeverityWarning: sgrYellow}[f.Severity]
		p.put(colour, fmt.Sprintf("%-8s", f.Severity))
		p.line("", f.Text)
		p.put(sgrDim, "  cure  ")
		p.line("", f.Cure)
	}
	p.line("", "")
	var parts []string
	for _, s := range []Severity{SeverityFault, SeverityWarning, SeverityNote} {
		if n := counts[s]; n == 1 {
			parts = append(parts, "1 "+string(s))
		} else if n > 1 {
			parts = append(parts, fmt.Sprintf("%d %ss", n, s))
		}
	}
	p.line("", strings.Join(parts, ", "))
}
