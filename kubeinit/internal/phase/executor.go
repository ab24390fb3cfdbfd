package phase

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
)

// Executor carries out steps. Each host does one step at a time; hosts work side
// by side. It is for one call at a time.
type Executor struct {
	// Hosts are the connected machines by their names in the inventory.
	Hosts map[string]host.Host
	// Events gets what happens, one event at a time, from several goroutines; it
	// must not block for long. May be nil.
	Events func(Event)
	// Parallel is how many hosts work at the same time; 0 means 16.
	Parallel int

	mu sync.Mutex // one event at a time
}

// Waits between two tries of a step: two seconds more each time, so that what
// settles by itself has settled, up to a quarter of a minute.
const (
	waitStep = 2 * time.Second
	waitMost = 15 * time.Second
)

func (e *Executor) parallel() int {
	if e.Parallel > 0 {
		return e.Parallel
	}
	return 16
}

// emit tells of something about a step.
func (e *Executor) emit(s Step, ev Event) {
	if e.Events == nil {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	ev.Time, ev.Host, ev.Phase, ev.Step = time.Now(), s.Host, s.Phase, s.ID
	e.Events(ev)
}

// Apply carries out steps: it looks, writes the intent into the journal of the
// host, changes, proves and writes that it is done. A step of which nothing
// differs writes nothing.
//
// A host whose step fails stops, and takes back those of its steps of this run
// that say so; other hosts go on, except for what needs a step that is not done.
// The error is that of Result.Err, or why nothing was begun, or the cause of ctx
// if the run was ended; then nothing is taken back, and the next run goes on.
func (e *Executor) Apply(ctx context.Context, steps []Step) (Result, error) {
	g, err := newGraph(steps, e.Hosts)
	if err != nil {
		return Result{}, err
	}
	r := newRun(e, g)
	for r.start(ctx); r.running > 0; r.start(ctx) {
		r.settle(ctx, <-r.outcomes)
	}
	r.finish(ctx)
	if ctx.Err() != nil {
		return r.result, errors.Join(context.Cause(ctx), r.result.Err())
	}
	return r.result, r.result.Err()
}

// attempt is the work on one step, in a goroutine of its own.
type attempt struct {
	e     *Executor
	step  Step
	out   *StepResult // nobody else touches it meanwhile
	log   *journal.Log
	tail  []string // last lines of output
	began bool     // the journal has an intent
}

// lostTries is how often something is begun anew whose connection broke, and
// lostWait how long the first pause before that is. host.RunUnit has its own.
const (
	lostTries = 4
	lostWait  = time.Second
)

// persist does something again whose connection broke: it may have happened or
// not, so do must look first.
func persist(ctx context.Context, do func() error) error {
	for n := range lostTries {
		err := do()
		if !errors.Is(err, host.ErrLost) || pause(ctx, lostWait<<n) != nil {
			return err
		}
	}
	return do()
}

// carryOut does one step on its host. It returns why the step is not done.
func (a *attempt) carryOut(ctx context.Context) error {
	a.out.Began = time.Now()
	defer func() { a.out.Duration = time.Since(a.out.Began) }()
	a.e.emit(a.step, Event{Kind: Started, Text: a.step.Action.String()})
	return persist(ctx, func() error { return a.once(ctx) })
}

// once looks at a step and does what there is to do.
func (a *attempt) once(ctx context.Context) (err error) {
	h, action := a.e.Hosts[a.step.Host], a.step.Action
	if a.log == nil {
		if a.log, err = journal.Open(ctx, h); err != nil {
			return err
		}
	}
	changes, err := action.Observe(ctx, h)
	if err != nil {
		return fmt.Errorf("look at %s: %w", action, err)
	}
	if len(changes) == 0 {
		a.out.State = StateUnchanged
		if a.began { // before the connection broke
			a.out.State = StateDone
		}
		return a.endInterrupted(ctx)
	}
	if a.out.Changes == nil {
		a.out.Changes = changes
	}
	intent, err := a.log.Begin(ctx, a.step.ID, action.String(), texts(changes))
	if err != nil {
		return err
	}
	a.began = true
	ctx = journal.With(ctx, intent)
	for {
		a.out.Tries++
		if err = a.try(ctx, h); err == nil || a.out.Tries > a.step.Retry || ctx.Err() != nil || errors.Is(err, host.ErrLost) {
			break
		}
		a.line(fmt.Sprintf("try %d of %d: %v", a.out.Tries, a.step.Retry+1, err))
		if pause(ctx, min(time.Duration(a.out.Tries)*waitStep, waitMost)) != nil {
			break
		}
	}
	if err != nil {
		return err
	}
	a.out.State = StateDone
	return intent.Done(ctx)
}

func (a *attempt) try(ctx context.Context, h host.Host) error {
	if err := a.step.Action.Apply(ctx, h, a.line); err != nil {
		return fmt.Errorf("%s: %w", a.step.Action, err)
	}
	if err := a.step.Action.Prove(ctx, h); err != nil {
		return fmt.Errorf("prove %s: %w", a.step.Action, err)
	}
	return nil
}

// endInterrupted ends the intent of an earlier run that did everything but say so.
func (a *attempt) endInterrupted(ctx context.Context) error {
	if !a.log.Interrupted(a.step.ID) {
		return nil
	}
	intent, err := a.log.Begin(ctx, a.step.ID, "", nil)
	if err != nil {
		return err
	}
	return intent.Done(ctx)
}

// line takes a line of output.
func (a *attempt) line(text string) {
	a.e.mu.Lock()
	a.tail = append(a.tail, text)
	a.tail = a.tail[max(0, len(a.tail)-tailLines):]
	a.e.mu.Unlock()
	a.e.emit(a.step, Event{Kind: Line, Text: text})
}

// lastLines returns the last lines of output.
func (a *attempt) lastLines() []string {
	a.e.mu.Lock()
	defer a.e.mu.Unlock()
	return a.tail
}

// pause waits for d. The error says that ctx ended before.
func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func texts(changes []Change) []string {
	var out []string
	for _, c := range changes {
		out = append(out, c.String())
	}
	return out
}
