// Package action has the kinds of changes of which the steps of kubeinit consist.
//
// Each is a struct that says how something shall be. It keeps in the journal how
// things were before it changes them, so that Undo, and the journal alone,
// restore exactly that: content, mode, owner or absence. A secret appears neither
// in changes nor in arguments of commands.
//
// What an action finds before the steps that it needs were done is what it finds
// after them, so that a plan shows what its execution does: each looks only at
// what itself changes.
package action

import (
	"context"
	"fmt"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Every action of this package.
var _ = []phase.Action{
	File{}, Absent{}, Directory{}, Block{}, Hosts{}, Sysctl{}, Module{}, Unit{}, Packages{}, Upload{}, Images{}, Check{}, Command{},
}

// undo puts back what the journal kept for the step.
func undo(ctx context.Context) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	return intent.Restore(ctx)
}

// prove looks again and finds nothing to do.
func prove(ctx context.Context, h host.Host, a phase.Action) error {
	changes, err := a.Observe(ctx, h)
	if err != nil {
		return err
	}
	if len(changes) == 0 {
		return nil
	}
	var what []string
	for _, c := range changes {
		what = append(what, c.What)
	}
	return fmt.Errorf("still not so: %s", strings.Join(what, ", "))
}

// run runs a command whose output goes to log.
func run(ctx context.Context, h host.Host, log func(string), args ...string) error {
	_, err := h.Run(ctx, host.Command{Args: args, Output: log})
	return err
}

// runLong runs a command that outlives the connection.
func runLong(ctx context.Context, h host.Host, unit string, c host.Command) (host.Output, error) {
	if r, ok := h.(interface {
		RunUnit(ctx context.Context, unit string, c host.Command) (host.Output, error)
	}); ok {
		return r.RunUnit(ctx, unit, c)
	}
	return host.RunUnit(ctx, h, unit, c)
}
