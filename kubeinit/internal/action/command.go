package action

import (
	"context"
	"errors"
	"io"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Command is what no other action can do, as commands of the host.
type Command struct {
	// Name is what people see: "kubeadm init".
	Name string
	// IsSo ends with status 0 if there is nothing to do, and with another one if
	// there is, also if the program is not installed yet.
	IsSo []string
	// Do are carried out one after another.
	Do [][]string
	// Back take it back, one after another, also after half of Do. They stand in
	// the journal and must work without anything that kubeinit knows; they are run
	// by sh -c if one needs more than arguments.
	Back [][]string
	// Stdin is the standard input of the last command of Do, which may be secret.
	// May be nil.
	Stdin func() io.Reader
	// Secret hides the output.
	Secret bool
	// Unit, if not empty, has Do run as the transient unit kubeinit-UNIT, to
	// outlive the connection and kubeinit. Do has one command then.
	Unit string
	// Env is the environment of Do, as KEY=value. No secrets.
	Env []string
}

// String is the name.
func (c Command) String() string { return c.Name }

// Observe runs IsSo.
func (c Command) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	_, err := h.Run(ctx, host.Command{Args: c.IsSo, Secret: c.Secret})
	if _, ran := errors.AsType[*host.ExitError](err); ran {
		return []phase.Change{{What: c.Name}}, nil
	}
	return nil, err
}

// Apply runs Do.
func (c Command) Apply(ctx context.Context, h host.Host, log func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	if c.Unit != "" && len(c.Do) != 1 {
		return errors.New("a unit runs one command")
	}
	if len(c.Back) > 0 {
		if err := intent.Keep(ctx, journal.Before{Type: journal.TypeCommand, Name: c.Name, Commands: c.Back}); err != nil {
			return err
		}
	}
	for i, args := range c.Do {
		command := host.Command{Args: args, Env: c.Env, Output: log, Secret: c.Secret}
		if c.Secret {
			command.Output = nil
		}
		if i == len(c.Do)-1 && c.Stdin != nil {
			command.Stdin = c.Stdin()
		}
		if c.Unit != "" {
			_, err = runLong(ctx, h, c.Unit, command)
		} else {
			_, err = h.Run(ctx, command)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Prove runs IsSo again.
func (c Command) Prove(ctx context.Context, h host.Host) error {
	_, err := h.Run(ctx, host.Command{Args: c.IsSo, Secret: c.Secret})
	return err
}

// Undo runs Back.
func (c Command) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }

// Check is something that must be so and that kubeinit does not change.
type Check struct {
	// Name is what people see: "no swap".
	Name string
	// Look returns why it is not so, with cause and cure (cli.Hint).
	Look func(ctx context.Context, h host.Host) error
}

// String is the name.
func (c Check) String() string { return c.Name }

// Observe looks. There is never anything to change.
func (c Check) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	return nil, c.Look(ctx, h)
}

// Apply has nothing to do.
func (c Check) Apply(context.Context, host.Host, func(string)) error { return nil }

// Prove looks again.
func (c Check) Prove(ctx context.Context, h host.Host) error { return c.Look(ctx, h) }

// Undo has nothing to do.
func (c Check) Undo(context.Context, host.Host) error { return nil }

// firstLine is the first line of an output, for messages.
func firstLine(s string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(s), "\n")
	return line
}
