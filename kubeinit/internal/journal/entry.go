package journal

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Entry is one line of the journal.
type Entry struct {
	// Seq is the number of the deed, from 1. Later deeds have higher numbers.
	Seq  int64     `json:"seq"`
	Kind Kind      `json:"kind"`
	Time time.Time `json:"time"`
	// Step is the ID of the step, Action what it does and Changes what it was
	// going to change; only an intent has them. No secret is among them.
	Step    string   `json:"step,omitempty"`
	Action  string   `json:"action,omitempty"`
	Changes []string `json:"changes,omitempty"`
	// Before is how one thing was; only Kept has it.
	Before *Before `json:"before,omitempty"`
	// Torn says that the line above was not written to its end.
	Torn bool `json:"torn,omitempty"`
}

// Kind says what a line is about.
type Kind string

// The kinds of lines.
const (
	Intended Kind = "intent"
	Kept     Kind = "before"
	Done     Kind = "done"
	Undone   Kind = "undone"
)

// Deed is what one step did to a host.
type Deed struct {
	Seq     int64
	Time    time.Time // of the intent
	Step    string
	Action  string
	Changes []string
	Before  []Before // in the order in which they were kept
	State   Kind     // Intended (interrupted), Done or Undone
}

// decode reads the lines of a journal. A last line that was not written to its
// end is left out, and torn says so: it is the only damage that a crash can do.
// The line after such a line says that it knows; other damage is an error.
func decode(data []byte) (entries []Entry, torn bool, err error) {
	lines := bytes.Split(data, []byte("\n"))
	for n, line := range lines {
		last := n == len(lines)-1
		if last && len(line) == 0 {
			return entries, torn, nil
		}
		var e Entry
		fault := json.Unmarshal(line, &e)
		if torn && fault == nil && !e.Torn {
			return nil, false, fmt.Errorf("line %d is damaged", n)
		}
		if torn = fault != nil; !torn {
			entries = append(entries, e)
		}
	}
	// Without a newline at its end, the last line may be whole or not; what
	// comes next must begin on a line of its own.
	return entries, true, nil
}

// fold turns lines into deeds, in the order of their numbers.
func fold(entries []Entry) ([]Deed, error) {
	var deeds []Deed
	for _, e := range entries {
		if e.Kind == Intended {
			if n := len(deeds); e.Seq < 1 || n > 0 && e.Seq <= deeds[n-1].Seq {
				return nil, fmt.Errorf("deed %d begins out of order", e.Seq)
			}
			deeds = append(deeds, Deed{Seq: e.Seq, Time: e.Time, Step: e.Step, Action: e.Action, Changes: e.Changes, State: Intended})
			continue
		}
		i, found := slices.BinarySearchFunc(deeds, e.Seq, func(d Deed, seq int64) int { return int(min(max(d.Seq-seq, -1), 1)) })
		if !found {
			return nil, fmt.Errorf("deed %d was never begun", e.Seq)
		}
		if err := deeds[i].add(e); err != nil {
			return nil, err
		}
	}
	return deeds, nil
}

// add continues a deed by a line that is not its first.
func (d *Deed) add(e Entry) error {
	switch {
	case d.State == Undone && e.Kind != Undone:
		return fmt.Errorf("deed %d goes on after it was undone", d.Seq)
	case e.Kind == Kept && e.Before != nil:
		if err := e.Before.check(); err != nil {
			return fmt.Errorf("deed %d: %w", d.Seq, err)
		}
		d.Before = append(d.Before, *e.Before)
	case e.Kind == Done, e.Kind == Undone:
		d.State = e.Kind
	default:
		return fmt.Errorf("deed %d has a line of unknown kind %q", d.Seq, e.Kind)
	}
	return nil
}

// encode writes lines as they stand in the file.
func encode(entries []Entry) ([]byte, error) {
	var b bytes.Buffer
	for _, e := range entries {
		line, err := json.Marshal(e)
		if err != nil {
			return nil, fmt.Errorf("write deed %d: %w", e.Seq, err)
		}
		b.Write(append(line, '\n'))
	}
	return b.Bytes(), nil
}
