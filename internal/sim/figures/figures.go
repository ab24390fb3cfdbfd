// Package figures describes what the simulator measures: cases, what came of
// them, and the part of docs/performance.md that shows it.
//
// A [Case] says which system is measured in which scenario, with how many
// gateways and from which seed; its [Setup] is the same for every system. What
// comes of it is a [Figure], one line of JSON. [WriteReport] turns any number
// of them into tables and a plot.
package figures

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"time"
)

// Figure is one measurement. JSON-stable.
type Figure struct {
	System   System   `json:"system"`
	Scenario Scenario `json:"scenario"`
	N        int      `json:"n"`
	Seed     uint64   `json:"seed"`
	// Took is from the event until what the scenario asks for; virtual time, except for Real. In nanoseconds.
	Took time.Duration `json:"took"`
	// Reached is false if that did not happen before the limit of the scenario; then Took is the limit.
	Reached bool `json:"reached"`
	// Idle is what a gateway sends while nothing happens, in bytes per second; zero: not measured.
	Idle float64 `json:"idle,omitempty"`
	// During is what a gateway sends from the event until Took, in bytes per second; zero: not measured.
	During float64 `json:"during,omitempty"`
	// Parts and Lasted describe the partition that healed.
	Parts  int           `json:"parts,omitempty"`
	Lasted time.Duration `json:"lasted,omitempty"`
	// Notes are for people; they are not in the report.
	Notes string `json:"notes,omitempty"`
}

// System says whose control plane was measured.
type System string

// The systems.
const (
	Planetmesh    System = "planetmesh"
	MemberlistLAN System = "memberlist-lan" // its DefaultLANConfig
	MemberlistWAN System = "memberlist-wan" // its DefaultWANConfig
	// Model is Planetmesh in virtual time on the network of Real.
	Model System = "planetmesh-model"
	// Real is meshd processes in network namespaces, in real time.
	Real System = "planetmesh-real"
)

// Scenario says what happens, and what is waited for.
type Scenario string

// The scenarios. Views are what every running gateway says about all others;
// they are full and identical if every gateway lists exactly the running ones,
// all with the same contents.
const (
	// MassStart starts all gateways at once; all know the same one other. Until views are full and identical.
	MassStart Scenario = "mass-start"
	// Join adds one gateway to N-1. Until views are full and identical.
	Join Scenario = "join"
	// Heal ends a partition. Until views are full and identical.
	Heal Scenario = "heal"
	// CrashViews takes a tenth of the gateways away without a word. Until views are full and identical.
	CrashViews Scenario = "crash-views"
	// CrashRoutes is the same event. Until every route of a crashed gateway with a standby leads through that, at everybody.
	CrashRoutes Scenario = "crash-routes"
	// Idle lets nothing happen: Idle is the result and Took means nothing.
	Idle Scenario = "idle"
)

var (
	systems   = []System{Planetmesh, MemberlistLAN, MemberlistWAN, Model, Real}
	scenarios = []Scenario{MassStart, Join, Heal, CrashViews, CrashRoutes, Idle}
)

// ErrFigure is what Read returns, wrapped, for a line that is no figure.
var ErrFigure = errors.New("not a figure")

func (f Figure) check() error {
	switch {
	case !slices.Contains(systems, f.System):
		return fmt.Errorf("%w: system %q", ErrFigure, f.System)
	case !slices.Contains(scenarios, f.Scenario):
		return fmt.Errorf("%w: scenario %q", ErrFigure, f.Scenario)
	case f.N < 1 || f.Took < 0 || f.Idle < 0 || f.During < 0 || f.Parts < 0 || f.Lasted < 0:
		return fmt.Errorf("%w: numbers below what there can be", ErrFigure)
	}
	return nil
}

// maxLine is the longest line that Read takes, in bytes.
const maxLine = 64 << 10

// Read returns the figures in r, one JSON object a line; empty lines are
// skipped. Its errors name the line; those about its text wrap ErrFigure.
func Read(r io.Reader) ([]Figure, error) {
	var out []Figure
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, maxLine)
	n := 0
	for lines.Scan() {
		n++
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			continue
		}
		var f Figure
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		if err := d.Decode(&f); err != nil {
			return nil, fmt.Errorf("line %d: %w: %w", n, ErrFigure, err)
		}
		if d.More() {
			return nil, fmt.Errorf("line %d: %w: something follows it", n, ErrFigure)
		}
		if err := f.check(); err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		out = append(out, f)
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("line %d: %w", n+1, err)
	}
	return out, nil
}

// ReadFiles returns the figures of all files.
func ReadFiles(paths ...string) ([]Figure, error) {
	var out []Figure
	for _, path := range paths {
		b, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		figures, err := Read(bytes.NewReader(b))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, figures...)
	}
	return out, nil
}

// Write writes figures as Read takes them.
func Write(w io.Writer, figures ...Figure) error {
	e := json.NewEncoder(w) // ends each with a newline
	for _, f := range figures {
		if err := e.Encode(f); err != nil {
			return err
		}
	}
	return nil
}

// Sort orders figures by system, scenario, N and seed, so that files do not
// depend on which run ended first.
func Sort(figures []Figure) {
	slices.SortStableFunc(figures, func(a, b Figure) int {
		return cmp.Or(
			cmp.Compare(slices.Index(systems, a.System), slices.Index(systems, b.System)),
			cmp.Compare(slices.Index(scenarios, a.Scenario), slices.Index(scenarios, b.Scenario)),
			cmp.Compare(a.N, b.N), cmp.Compare(a.Seed, b.Seed),
		)
	})
}
