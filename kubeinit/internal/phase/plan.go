package phase

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// Plan is what an execution would do, step by step in the order of the list.
type Plan struct {
	Steps []PlanStep `json:"steps"`
}

// PlanStep is what one step would change; nothing if it is so already.
type PlanStep struct {
	ID      string   `json:"id"`
	Phase   Name     `json:"phase"`
	Host    string   `json:"host"`
	Action  string   `json:"action"`
	Changes []Change `json:"changes,omitempty"`
}

// Changes returns how many changes there are.
func (p *Plan) Changes() int {
	n := 0
	for _, s := range p.Steps {
		n += len(s.Changes)
	}
	return n
}

// Plan looks at every step and changes nothing. It goes on where a step cannot be
// looked at, and returns all such errors together with what it could see.
func (e *Executor) Plan(ctx context.Context, steps []Step) (Plan, error) {
	g, err := newGraph(steps, e.Hosts)
	if err != nil {
		return Plan{}, err
	}
	p := Plan{Steps: make([]PlanStep, len(steps))}
	errs := make([]error, len(steps))
	byHost := map[string][]int{}
	var order []string
	for i, s := range steps {
		p.Steps[i] = PlanStep{ID: s.ID, Phase: s.Phase, Host: s.Host, Action: s.Action.String()}
		if len(byHost[s.Host]) == 0 {
			order = append(order, s.Host)
		}
		byHost[s.Host] = append(byHost[s.Host], i)
	}
	places := make(chan struct{}, e.parallel())
	var wg sync.WaitGroup
	for _, name := range order {
		wg.Go(func() { // ends with its host's last step or with ctx
			places <- struct{}{}
			defer func() { <-places }()
			for _, i := range byHost[name] {
				p.Steps[i].Changes, errs[i] = e.look(ctx, g.steps[i])
			}
		})
	}
	wg.Wait()
	if ctx.Err() != nil {
		return p, context.Cause(ctx)
	}
	return p, errors.Join(errs...)
}

// look observes one step for a plan.
func (e *Executor) look(ctx context.Context, s Step) ([]Change, error) {
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	began := time.Now()
	e.emit(s, Event{Kind: Started, Text: s.Action.String()})
	var changes []Change
	err := persist(ctx, func() (err error) {
		changes, err = s.Action.Observe(ctx, e.Hosts[s.Host])
		return err
	})
	if err != nil {
		err = fmt.Errorf("%s: look at %s: %w", s.ID, s.Action, err)
		e.emit(s, Event{Kind: Failed, Text: err.Error(), Duration: time.Since(began)})
		return nil, err
	}
	e.emit(s, Event{Kind: Observed, Changes: changes, Duration: time.Since(began)})
	return changes, nil
}
