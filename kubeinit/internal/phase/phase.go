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

// Change is one difference between what is and what shall be. Values that are
// secret are written as "(secret)".
type Change struct {
	What string `json:"what"` // "file /etc/hosts"
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Action makes one thing on a host so. Every method looks at the host itself;
// between calls nothing is remembered but what the journal on the host says.
type Action interface {
	// String is one line: "file /etc/containerd/config.toml".
	String() string
	// Observe returns what differs; nothing means that nothing is to be done.
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
	// for all steps whose ID begins so.
	Needs []string
	// Retry is how often Apply and Prove are tried again.
	Retry int
}

// EventKind says what an event is about.
type EventKind string

// The kinds of events.
const (
	Started   EventKind = "started"
	Line      EventKind = "output"
	Done      EventKind = "done"
	Unchanged EventKind = "unchanged"
	Failed    EventKind = "error"
	Undone    EventKind = "undone"
	PhaseDone EventKind = "phase-done"
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
}
