// Package phase has the steps of which the building of a cluster consists, and
// carries them out: in order, side by side where that is possible, undone where
// one does not succeed.
package phase

import (
	"context"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// Name is the name of a phase.
type Name string

// The phases, in their order.
const (
	Connect Name = "connect"
	Mesh    Name = "mesh"
	Matrix  Name = "matrix"
	Decide  Name = "decide"
	Prepare Name = "prepare"
	Proxy   Name = "proxy"
	Init    Name = "init"
	JoinCP  Name = "join-cp"
	Join    Name = "join"
	PodNet  Name = "podnet"
	Policy  Name = "policy"
	Prove   Name = "prove"
	Report  Name = "report"
)

// Order lists all phases in their order.
var Order = []Name{Connect, Mesh, Matrix, Decide, Prepare, Proxy, Init, JoinCP, Join, PodNet, Policy, Prove, Report}

// Secret stands in a Change for a value that nobody is to see.
const Secret = "(secret)"

// Change is one difference between what is and what shall be. Values that are
// secret are written as "(secret)".
type Change struct {
	What string `json:"what"` // "file /etc/hosts"
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// String is the change on one line, unless its values have more.
func (c Change) String() string {
	switch {
	case c.From == "" && c.To == "":
		return c.What
	case c.From == "":
		return c.What + ": " + c.To
	case c.To == "":
		return c.What + ": " + c.From + " -> nothing"
	}
	return c.What + ": " + c.From + " -> " + c.To
}

// Action makes one thing on a host so. Every method looks at the host itself;
// between calls nothing is remembered but what the journal on the host says: Apply
// and Undo find it in their context, see journal.From. An action is used for one
// host at a time.
type Action interface {
	// String is one line: "file /etc/containerd/config.toml".
	String() string
	// Observe returns what differs; nothing means that nothing is to be done. It
	// changes nothing. It says the same before and after the steps that the
	// action's step needs: what they will have done by then is not its matter, or
	// a plan would not show what its execution does.
	Observe(ctx context.Context, h host.Host) ([]Change, error)
	// Apply is called if Observe returned something.
	Apply(ctx context.Context, h host.Host, log func(line string)) error
	// Prove is called after Apply and returns why it is not so.
	Prove(ctx context.Context, h host.Host) error
	// Undo puts back what was before Apply. It may be called after half an
	// Apply, and twice.
	Undo(ctx context.Context, h host.Host) error
}

// Step is an action at its place.
type Step struct {
	// ID is phase/host/name, once in a plan.
	ID     string
	Phase  Name
	Host   string // name in the inventory
	Action Action
	// Needs are IDs of steps that come before. One that ends in a slash stands
	// for all other steps whose ID begins so; there must be some, unless it is the
	// name of a whole phase. Steps of one host that are ready are done in the order
	// of the list.
	Needs []string
	// Retry is how often Apply and Prove are tried again.
	Retry int
	// UndoOnFailure has the step taken back if it fails, or if one fails that
	// comes later on the same host in the same run. What was done by others stays,
	// and the next run goes on from there.
	UndoOnFailure bool
	// Stays keeps a step with UndoOnFailure once it is done, whatever fails later.
	Stays bool
}

// EventKind says what an event is about.
type EventKind string

// The kinds of events.
const (
	Started   EventKind = "started"    // a step is being looked at
	Observed  EventKind = "observed"   // a plan knows the step's changes
	Line      EventKind = "output"     // Text is a line that a command wrote
	Done      EventKind = "done"       // the step's changes are made and proven
	Unchanged EventKind = "unchanged"  // there was nothing to do
	Failed    EventKind = "error"      // Text says why; the step's host stops
	Blocked   EventKind = "blocked"    // the step is left out; Text says why
	Undone    EventKind = "undone"     // the step was taken back
	PhaseDone EventKind = "phase-done" // no step of the phase is left
)

// Event is something that people and machines may want to watch.
type Event struct {
	Time    time.Time `json:"time"`
	Host    string    `json:"host,omitempty"`
	Phase   Name      `json:"phase,omitempty"`
	Step    string    `json:"step,omitempty"`
	Kind    EventKind `json:"kind"`
	Text    string    `json:"text,omitempty"`
	Changes []Change  `json:"changes,omitempty"`
	// Duration is how long the step or phase took, in nanoseconds, at its end.
	Duration time.Duration `json:"duration,omitempty"`
}
