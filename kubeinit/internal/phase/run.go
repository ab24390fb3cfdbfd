package phase

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
)

// run is one execution. Its fields belong to the goroutine of Apply; steps work in
// goroutines of their own and send their outcomes.
type run struct {
	e        *Executor
	g        *graph
	result   Result
	hosts    map[string]*hostRun
	phases   map[Name]*phaseRun
	running  int
	outcomes chan outcome
}

// hostRun is a host during an execution.
type hostRun struct {
	log     *journal.Log // nil until the first step
	busy    bool
	stopped string // the step that failed
	done    []int  // steps that changed something, in that order
}

// phaseRun is a phase during an execution.
type phaseRun struct {
	left  int // steps that are not settled
	place int // in Result.Phases, -1 until it begins
}

// outcome is how a step ended, or that a host took back what it did.
type outcome struct {
	step    int
	attempt *attempt
	err     error
	log     *journal.Log

	undone  bool     // step's host took back what it did
	failure *Failure // with what was taken back
	left    []int    // steps for which that went wrong
}

func newRun(e *Executor, g *graph) *run {
	r := &run{
		e: e, g: g, hosts: map[string]*hostRun{}, phases: map[Name]*phaseRun{},
		outcomes: make(chan outcome), result: Result{Began: time.Now(), Steps: make([]StepResult, len(g.steps))},
	}
	for i, s := range g.steps {
		r.result.Steps[i] = StepResult{ID: s.ID, Phase: s.Phase, Host: s.Host, Action: s.Action.String()}
		if r.hosts[s.Host] == nil {
			r.hosts[s.Host] = &hostRun{}
		}
		if r.phases[s.Phase] == nil {
			r.phases[s.Phase] = &phaseRun{place: -1}
		}
		r.phases[s.Phase].left++
	}
	return r
}

// start begins every step that can begin now.
func (r *run) start(ctx context.Context) {
	if ctx.Err() != nil {
		return
	}
	r.block()
	for i, s := range r.g.steps {
		h := r.hosts[s.Host]
		if r.running >= r.e.parallel() {
			return
		}
		if r.result.Steps[i].State != "" || h.busy || h.stopped != "" || !r.ready(i) {
			continue
		}
		r.begin(ctx, i)
	}
}

// ready tells whether all needs of a step are met.
func (r *run) ready(i int) bool {
	for _, n := range r.g.needs[i] {
		if s := r.result.Steps[n].State; s != StateDone && s != StateUnchanged {
			return false
		}
	}
	return true
}

// begin starts a step in a goroutine, which ends with the step; Apply waits for
// its outcome.
func (r *run) begin(ctx context.Context, i int) {
	s := r.g.steps[i]
	h := r.hosts[s.Host]
	h.busy = true
	r.running++
	p := r.phases[s.Phase]
	if p.place < 0 {
		p.place = len(r.result.Phases)
		r.result.Phases = append(r.result.Phases, Timing{Phase: s.Phase, Began: time.Now(), Steps: map[State]int{}})
	}
	out := r.result.Steps[i]
	a := &attempt{e: r.e, step: s, out: &out, log: h.log}
	go func() {
		err := a.carryOut(ctx)
		r.outcomes <- outcome{step: i, attempt: a, err: err, log: a.log}
	}()
}

// settle takes an outcome and decides what follows from it.
func (r *run) settle(ctx context.Context, o outcome) {
	r.running--
	s := r.g.steps[o.step]
	h := r.hosts[s.Host]
	h.busy = false
	if o.undone {
		r.tookBack(o)
		return
	}
	h.log = o.log
	out := *o.attempt.out
	switch {
	case o.err == nil:
		r.succeed(o.step, out)
	case ctx.Err() != nil:
		out.State, out.Reason = StateInterrupted, o.err.Error()
		r.leave(o.step, out)
	default:
		out.State, out.Reason = StateFailed, o.err.Error()
		h.stopped = s.ID
		r.e.emit(s, Event{Kind: Failed, Text: o.err.Error(), Duration: out.Duration})
		r.leave(o.step, out)
		r.takeBack(ctx, o)
	}
}

func (r *run) succeed(i int, out StepResult) {
	s := r.g.steps[i]
	kind := Unchanged
	if out.State == StateDone {
		kind = Done
		h := r.hosts[s.Host]
		h.done = append(h.done, i)
	}
	r.e.emit(s, Event{Kind: kind, Changes: out.Changes, Duration: out.Duration})
	r.leave(i, out)
}

// leave settles a step, and its phase if it was the last.
func (r *run) leave(i int, out StepResult) {
	r.result.Steps[i] = out
	p := r.phases[out.Phase]
	p.left--
	if p.place < 0 {
		return
	}
	res := &r.result.Phases[p.place]
	res.Duration = time.Since(res.Began)
	if p.left > 0 {
		return
	}
	r.count(res)
	r.e.emit(Step{Phase: out.Phase}, Event{Kind: PhaseDone, Text: res.text(), Duration: res.Duration})
}

// count counts the steps of a phase by their states.
func (r *run) count(p *Timing) {
	clear(p.Steps)
	for _, s := range r.result.Steps {
		if s.Phase == p.Phase {
			p.Steps[s.State]++
		}
	}
}

// text says how many steps came how far.
func (p *Timing) text() string {
	text := ""
	for _, s := range []State{StateDone, StateUnchanged, StateFailed, StateBlocked, StateInterrupted, StateUndone, StateUndoFailed} {
		if p.Steps[s] == 0 {
			continue
		}
		if text != "" {
			text += ", "
		}
		text += fmt.Sprintf("%d %s", p.Steps[s], s)
	}
	return text
}

// takeBack undoes what the failed step's host did in this run, as far as the
// steps say so, the newest first. The host is busy until then.
func (r *run) takeBack(ctx context.Context, o outcome) {
	s := r.g.steps[o.step]
	h := r.hosts[s.Host]
	f := newFailure(s, o.err, o.attempt.lastLines())
	var back []int
	if o.attempt.began {
		back = append(back, o.step)
	}
	for _, i := range slices.Backward(h.done) {
		if !r.g.steps[i].Stays {
			back = append(back, i)
		}
	}
	back = slices.DeleteFunc(back, func(i int) bool { return !r.g.steps[i].UndoOnFailure })
	if len(back) == 0 {
		r.result.Failures = append(r.result.Failures, f)
		return
	}
	for _, i := range back {
		if i != o.step {
			r.result.Steps[i].State = StateUndone // from now on nobody may rely on it
		}
	}
	h.busy = true
	r.running++
	log := h.log
	go func() { // ends when everything is tried; Apply waits for its outcome
		over := outcome{step: o.step, undone: true, failure: &f}
		for _, i := range back {
			step := r.g.steps[i]
			if err := r.e.undoStep(ctx, log, step); err != nil {
				f.NotUndone = append(f.NotUndone, step.ID+": "+err.Error())
				over.left = append(over.left, i)
				continue
			}
			f.Undone = append(f.Undone, step.ID)
		}
		r.outcomes <- over
	}()
}

// tookBack takes the outcome of takeBack.
func (r *run) tookBack(o outcome) {
	r.result.Failures = append(r.result.Failures, *o.failure)
	for _, i := range o.left {
		if i != o.step {
			r.result.Steps[i].State = StateUndoFailed
		}
	}
}

// block settles the steps that cannot begin any more.
func (r *run) block() {
	for again := true; again; {
		again = false
		for i, s := range r.g.steps {
			reason := r.blocked(i)
			if r.result.Steps[i].State != "" || reason == "" {
				continue
			}
			again = true
			out := r.result.Steps[i]
			out.State, out.Reason = StateBlocked, reason
			r.e.emit(s, Event{Kind: Blocked, Text: reason})
			r.leave(i, out)
		}
	}
}

// blocked says why a step can never begin.
func (r *run) blocked(i int) string {
	for _, n := range r.g.needs[i] {
		switch need := r.result.Steps[n]; need.State {
		case StateFailed, StateBlocked, StateUndone, StateUndoFailed, StateInterrupted:
			return "needs " + need.ID
		}
	}
	if stopped := r.hosts[r.g.steps[i].Host].stopped; stopped != "" {
		return "the host stopped at " + stopped
	}
	return ""
}

// finish settles what is left when nothing runs any more.
func (r *run) finish(ctx context.Context) {
	r.block()
	for i := range r.result.Steps {
		if out := r.result.Steps[i]; out.State == "" {
			out.State, out.Reason = StateInterrupted, fmt.Sprint("not begun: ", context.Cause(ctx))
			r.leave(i, out)
		}
	}
	for i := range r.result.Phases {
		r.count(&r.result.Phases[i]) // some may have been undone since
	}
	r.result.Duration = time.Since(r.result.Began)
}
