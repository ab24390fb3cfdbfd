package phase

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
)

// Undo takes back everything that the journals of the named hosts know of, the
// newest first, whichever run did it; hosts side by side. Of steps it uses the
// actions; a deed whose step is not among them is taken back by what the journal
// kept, which suffices for every action of package action.
//
// A host stops at the first deed that cannot be taken back, because older ones
// may be what it stands on. The journal itself stays; journal.Log.End removes it.
func (e *Executor) Undo(ctx context.Context, steps []Step, hosts []string) (Result, error) {
	for _, name := range hosts {
		if e.Hosts[name] == nil {
			return Result{}, fmt.Errorf("host %s is not connected", name)
		}
	}
	byID := map[string]Step{}
	for _, s := range steps {
		byID[s.ID] = s
	}
	began := time.Now()
	parts := make([]Result, len(hosts))
	places := make(chan struct{}, e.parallel())
	var wg sync.WaitGroup
	for n, name := range hosts {
		wg.Go(func() { // ends with the host's oldest deed or with ctx
			places <- struct{}{}
			defer func() { <-places }()
			e.undoHost(ctx, e.Hosts[name], byID, &parts[n])
		})
	}
	wg.Wait()
	all := Result{Began: began, Duration: time.Since(began)}
	for _, p := range parts {
		all.Steps = append(all.Steps, p.Steps...)
		all.Failures = append(all.Failures, p.Failures...)
	}
	if ctx.Err() != nil {
		return all, errors.Join(context.Cause(ctx), all.Err())
	}
	return all, all.Err()
}

// undoHost takes back all deeds of one host.
func (e *Executor) undoHost(ctx context.Context, h host.Host, byID map[string]Step, r *Result) {
	var log *journal.Log
	err := persist(ctx, func() (err error) {
		log, err = journal.Open(ctx, h)
		return err
	})
	if err != nil {
		r.Failures = append(r.Failures, newFailure(Step{ID: "journal", Host: h.Name()}, err, nil))
		return
	}
	for _, d := range log.ToUndo() {
		s, known := byID[d.Step]
		if !known {
			s = Step{ID: d.Step, Host: h.Name(), Action: kept(d.Action)}
			if phase, _, found := strings.Cut(d.Step, "/"); found && slices.Contains(Order, Name(phase)) {
				s.Phase = Name(phase)
			}
		}
		out := StepResult{ID: s.ID, Phase: s.Phase, Host: s.Host, Action: d.Action, State: StateUndone, Began: time.Now()}
		err := e.undoStep(ctx, log, s)
		out.Duration = time.Since(out.Began)
		if err != nil {
			out.State, out.Reason = StateUndoFailed, err.Error()
			r.Failures = append(r.Failures, newFailure(s, err, nil))
		}
		r.Steps = append(r.Steps, out)
		if err != nil {
			return
		}
	}
}

// undoStep takes the newest deed of a step back, and writes that into the journal.
func (e *Executor) undoStep(ctx context.Context, log *journal.Log, s Step) error {
	began := time.Now()
	err := undoNewest(ctx, log, s, e.Hosts[s.Host])
	if err != nil {
		e.emit(s, Event{Kind: Failed, Text: "take back: " + err.Error(), Duration: time.Since(began)})
		return err
	}
	e.emit(s, Event{Kind: Undone, Text: s.Action.String(), Duration: time.Since(began)})
	return nil
}

func undoNewest(ctx context.Context, log *journal.Log, s Step, h host.Host) error {
	for _, d := range log.ToUndo() {
		if d.Step != s.ID {
			continue
		}
		intent := log.Resume(d)
		return persist(ctx, func() error {
			if err := s.Action.Undo(journal.With(ctx, intent), h); err != nil {
				return fmt.Errorf("take back %s: %w", s.Action, err)
			}
			return intent.Undone(ctx)
		})
	}
	return errors.New("the journal does not know of it")
}

// kept is the action of a deed of which only the journal knows. It can do nothing
// but be undone.
type kept string

func (k kept) String() string { return string(k) }

func (k kept) Observe(context.Context, host.Host) ([]Change, error) { return nil, nil }

func (k kept) Apply(context.Context, host.Host, func(string)) error {
	return errors.New("nothing but the journal is known of this step")
}

func (k kept) Prove(context.Context, host.Host) error { return nil }

// Undo puts back what the journal kept.
func (k kept) Undo(ctx context.Context, _ host.Host) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	return intent.Restore(ctx)
}
