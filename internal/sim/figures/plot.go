package figures

import (
	"bytes"
	"fmt"
	"image/color"
	"math"
	"os"
	"slices"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/text"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
	"gonum.org/v1/plot/vg/vgsvg"
)

// panels are the columns of the plot.
var panels = []Scenario{MassStart, Join, Heal, CrashViews, Idle}

// Size of one panel of the plot.
const (
	panelWidth  = 2.1 * vg.Inch
	panelHeight = 2.3 * vg.Inch
)

// Plot writes an SVG file: for each scenario the time (above) and the bytes
// per gateway and second (below) against the number of gateways, a line for each
// system through its medians, with bars to the largest time. A triangle is a
// median that the limit cut off.
func Plot(path string, figures []Figure) error {
	const rows = 2
	grid := make([][]*plot.Plot, rows)
	for _, s := range panels {
		above, err := panel(figures, s, title(s), timePoint, true)
		if err != nil {
			return err
		}
		value, name := duringPoint, title(s)+", traffic"
		if s == Idle {
			above, value, name = legend(), idlePoint, "idle, traffic"
		}
		below, err := panel(figures, s, name, value, false)
		if err != nil {
			return err
		}
		grid[0], grid[1] = append(grid[0], above), append(grid[1], below)
	}
	grid[0][0].Y.Label.Text, grid[1][0].Y.Label.Text = "s", "B/s per gateway"
	for _, line := range grid {
		sameScale(line)
	}
	canvas := vgsvg.New(panelWidth*vg.Length(len(panels)), panelHeight*rows)
	c := draw.New(canvas)
	c.FillPolygon(color.White, []vg.Point{c.Min, {X: c.Min.X, Y: c.Max.Y}, c.Max, {X: c.Max.X, Y: c.Min.Y}})
	tiles := draw.Tiles{Rows: rows, Cols: len(panels), PadX: vg.Millimeter * 3, PadY: vg.Millimeter * 3, PadRight: vg.Millimeter * 2}
	for r, line := range plot.Align(grid, tiles, c) {
		for i, at := range line {
			grid[r][i].Draw(at)
		}
	}
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return fmt.Errorf("draw %s: %w", path, err)
	}
	const family = "font-family:Liberation Sans"
	svg := bytes.ReplaceAll(b.Bytes(), []byte(family), []byte(family+",Arial,Helvetica,sans-serif"))
	return os.WriteFile(path, svg, 0o644) //nolint:gosec // a document
}

// sameScale makes panels comparable: what is added to a plot widens its range.
func sameScale(line []*plot.Plot) {
	for _, p := range line[1:] {
		line[0].Y.Min, line[0].Y.Max = min(line[0].Y.Min, p.Y.Min), max(line[0].Y.Max, p.Y.Max)
	}
	for _, p := range line[1:] {
		p.Y.Min, p.Y.Max = line[0].Y.Min, line[0].Y.Max
	}
}

// point is the median of a group and how far above it the largest is; ok is
// false if there is nothing to draw, cut that the median is a lower bound.
type point func(Summary) (median, most float64, cut, ok bool)

func timePoint(s Summary) (median, most float64, cut, ok bool) {
	return max(s.Median.Seconds(), Step.Seconds()), max(s.Max.Seconds(), Step.Seconds()), s.AtLeast(0.5), s.Count > 0
}

func duringPoint(s Summary) (median, most float64, cut, ok bool) {
	return s.During, s.During, false, s.During > 0
}

func idlePoint(s Summary) (median, most float64, cut, ok bool) {
	return s.Idle, s.Idle, false, s.Idle > 0
}

// newPlot returns an empty plot in a sans-serif font.
func newPlot() *plot.Plot {
	p := plot.New()
	for style, size := range map[*text.Style]vg.Length{
		&p.Title.TextStyle: 10, &p.X.Label.TextStyle: 9, &p.Y.Label.TextStyle: 9,
		&p.X.Tick.Label: 8, &p.Y.Tick.Label: 8, &p.Legend.TextStyle: 9,
	} {
		style.Font.Variant, style.Font.Size = "Sans", size
	}
	return p
}

// panel draws one diagram.
func panel(figures []Figure, s Scenario, name string, value point, times bool) (*plot.Plot, error) {
	p := newPlot()
	p.Title.Text = name
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.ConstantTicks(ticks(25, 50, 100, 200, 400)), decades{}
	p.X.Label.Text = "gateways"
	p.X.Min, p.X.Max = 22, 450
	p.Y.Min, p.Y.Max = 10, 100_000
	if times {
		p.Y.Min, p.Y.Max = 0.04, 1000
	}
	p.Add(plotter.NewGrid())
	for _, system := range simulated {
		if err := curve(p, figures, s, system, value); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// curve draws what one system did.
func curve(p *plot.Plot, figures []Figure, s Scenario, system System, value point) error {
	var line, cuts plotter.XYs
	var bars plotter.YErrors
	for _, n := range sizes(figures, s) {
		median, most, cut, ok := value(Summarise(pick(figures, s, system, n)))
		if !ok {
			continue
		}
		at := plotter.XY{X: float64(n), Y: median}
		line = append(line, at)
		bars = append(bars, struct{ Low, High float64 }{0, most - median})
		if cut {
			cuts = append(cuts, at)
		}
	}
	if len(line) == 0 {
		return nil
	}
	l, points, err := plotter.NewLinePoints(line)
	if err != nil {
		return fmt.Errorf("draw %s of %s: %w", s, system, err)
	}
	look := looks[system]
	l.Color, l.Width, l.Dashes = look.color, vg.Points(1.2), look.dashes
	points.Color, points.Shape, points.Radius = look.color, draw.CircleGlyph{}, vg.Points(2)
	e, err := plotter.NewYErrorBars(struct {
		plotter.XYer
		plotter.YErrorer
	}{line, bars})
	if err != nil {
		return fmt.Errorf("draw %s of %s: %w", s, system, err)
	}
	e.Color, e.Width = look.color, vg.Points(0.5)
	p.Add(l, points, e)
	if len(cuts) == 0 {
		return nil
	}
	above, err := plotter.NewScatter(cuts)
	if err != nil {
		return fmt.Errorf("draw %s of %s: %w", s, system, err)
	}
	above.Color, above.Shape, above.Radius = look.color, draw.TriangleGlyph{}, vg.Points(4)
	p.Add(above)
	return nil
}

// look is how the lines of a system are drawn: distinct without colours too.
type look struct {
	color  color.Color
	dashes []vg.Length
}

var looks = map[System]look{
	Planetmesh:    {color.RGBA{R: 0x00, G: 0x5f, B: 0xb8, A: 0xff}, nil},
	MemberlistLAN: {color.RGBA{R: 0xc0, G: 0x5a, B: 0x00, A: 0xff}, []vg.Length{vg.Points(4), vg.Points(2)}},
	MemberlistWAN: {color.RGBA{R: 0x5c, G: 0x5c, B: 0x5c, A: 0xff}, []vg.Length{vg.Points(1.5), vg.Points(1.5)}},
}

// legend is a panel without a diagram.
func legend() *plot.Plot {
	p := newPlot()
	p.HideAxes()
	p.Legend.Top, p.Legend.Left = true, true
	p.Legend.ThumbnailWidth = vg.Points(24)
	for _, system := range simulated {
		l := &plotter.Line{XYs: plotter.XYs{{X: 0, Y: 0}, {X: 1, Y: 1}}}
		l.Color, l.Width, l.Dashes = looks[system].color, vg.Points(1.2), looks[system].dashes
		p.Legend.Add(string(system), l)
	}
	above := &plotter.Scatter{GlyphStyle: draw.GlyphStyle{Color: color.Black, Shape: draw.TriangleGlyph{}, Radius: vg.Points(4)}}
	p.Legend.Add("median > limit", above)
	return p
}

func ticks(values ...int) []plot.Tick {
	var out []plot.Tick
	for _, v := range values {
		out = append(out, plot.Tick{Value: float64(v), Label: strconv.Itoa(v)})
	}
	return out
}

// decades marks powers of ten.
type decades struct{}

// Ticks implements plot.Ticker.
func (decades) Ticks(low, high float64) []plot.Tick {
	var out []plot.Tick
	for e := math.Ceil(math.Log10(low)); math.Pow(10, e) <= high; e++ {
		v := math.Pow(10, e)
		out = append(out, plot.Tick{Value: v, Label: strconv.FormatFloat(v, 'f', max(0, int(-e)), 64)})
		for m := 2.0; m < 10 && m*v <= high; m++ {
			out = append(out, plot.Tick{Value: m * v})
		}
	}
	return slices.Clip(out)
}
