package phase

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// State is how far a step came.
type State string

// The states in which a run leaves a step.
const (
	StateDone        State = "done"
	StateUnchanged   State = "unchanged"
	StateFailed      State = "failed"
	StateBlocked     State = "blocked"     // not begun, because of another one
	StateInterrupted State = "interrupted" // the run was ended meanwhile
	StateUndone      State = "undone"      // taken back
	StateUndoFailed  State = "undo-failed" // it could not be taken back as a whole
)

// Result is everything that a run did. Durations are in nanoseconds.
type Result struct {
	Began    time.Time     `json:"began"`
	Duration time.Duration `json:"duration"`
	// Steps are in the order of the list that was given.
	Steps []StepResult `json:"steps"`
	// Phases are in the order in which they began.
	Phases   []Timing  `json:"phases"`
	Failures []Failure `json:"failures,omitempty"`
}

// StepResult is what a run did about one step.
type StepResult struct {
	ID       string        `json:"id"`
	Phase    Name          `json:"phase"`
	Host     string        `json:"host"`
	Action   string        `json:"action"`
	State    State         `json:"state"`
	Changes  []Change      `json:"changes,omitempty"` // made, or begun
	Tries    int           `json:"tries,omitempty"`   // of Apply
	Began    time.Time     `json:"began,omitzero"`
	Duration time.Duration `json:"duration,omitempty"`
	// Reason says why the step is not done.
	Reason string `json:"reason,omitempty"`
}

// Timing is how long a phase took, from its first step's beginning to its
// last one's end, and how many of its steps came how far.
type Timing struct {
	Phase    Name          `json:"phase"`
	Began    time.Time     `json:"began"`
	Duration time.Duration `json:"duration"`
	Steps    map[State]int `json:"steps"`
}

// Failure is a step that did not succeed, with what a person needs to go on.
type Failure struct {
	Step  string `json:"step"`
	Host  string `json:"host"`
	Error string `json:"error"`
	// Command and Code are of the command that did not succeed, if it was one.
	Command string `json:"command,omitempty"`
	Code    int    `json:"code,omitempty"`
	// Tail are the last lines that were written, at most 20.
	Tail []string `json:"tail,omitempty"`
	Hint string   `json:"hint"`
	// Undone are the steps that were taken back on the host, in that order, and
	// NotUndone those for which that went wrong, with the reason.
	Undone    []string `json:"undone,omitempty"`
	NotUndone []string `json:"notUndone,omitempty"`
}

// tailLines is how many lines of output a failure shows.
const tailLines = 20

// Count returns how many steps are in a state.
func (r *Result) Count(s State) int {
	n := 0
	for _, step := range r.Steps {
		if step.State == s {
			n++
		}
	}
	return n
}

// Changes returns all changes that were made, by the ID of the step.
func (r *Result) Changes() map[string][]Change {
	out := map[string][]Change{}
	for _, s := range r.Steps {
		if s.State == StateDone {
			out[s.ID] = s.Changes
		}
	}
	return out
}

// Err is nil if nothing failed. It names the failed steps, and carries the first
// one's hint.
func (r *Result) Err() error {
	if len(r.Failures) == 0 {
		return nil
	}
	var lines []string
	for _, f := range r.Failures {
		lines = append(lines, f.Step+": "+f.Error)
	}
	return cli.Hint(errors.New(strings.Join(lines, "\n")), r.Failures[0].Hint)
}

// newFailure says of a step's error what people need. lines are the step's last
// lines.
func newFailure(s Step, err error, lines []string) Failure {
	f := Failure{Step: s.ID, Host: s.Host, Error: err.Error(), Tail: lines, Hint: hint(err)}
	if exit, ran := errors.AsType[*host.ExitError](err); ran {
		f.Command, f.Code = strings.Join(exit.Args, " "), exit.Code
		if n := len(exit.Tail); n > 0 && !slices.Contains(lines, exit.Tail[n-1]) {
			f.Tail = append(slices.Clip(lines), exit.Tail...) // they were not among what the step said
		}
	}
	f.Tail = f.Tail[max(0, len(f.Tail)-tailLines):]
	if f.Hint == "" {
		f.Hint = fmt.Sprintf("kubeinit apply goes on where this stopped; kubeinit reset %s takes everything on that host back", s.Host)
	}
	return f
}

// hint returns the outermost hint of an error.
func hint(err error) string {
	for {
		e, found := errors.AsType[*cli.Error](err)
		if !found || e.Hint != "" {
			if found {
				return e.Hint
			}
			return ""
		}
		err = e.Err
	}
}
