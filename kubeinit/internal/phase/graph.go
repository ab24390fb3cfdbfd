package phase

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// graph is a list of steps that is in order: every ID is there once, every host
// is known, and there is an order in which everything comes after its needs.
type graph struct {
	steps []Step
	needs [][]int // for each step, the places of those it needs
}

// newGraph checks steps and returns every fault.
func newGraph(steps []Step, hosts map[string]host.Host) (*graph, error) {
	g := &graph{steps: steps, needs: make([][]int, len(steps))}
	var errs []error
	place := map[string]int{}
	for i, s := range steps {
		if _, twice := place[s.ID]; twice {
			errs = append(errs, fmt.Errorf("step %s is there twice", s.ID))
		}
		place[s.ID] = i
		errs = append(errs, checkStep(s, hosts))
	}
	for i, s := range steps {
		for _, need := range s.Needs {
			found, err := g.resolve(place, i, need)
			errs = append(errs, err)
			g.needs[i] = append(g.needs[i], found...)
		}
		slices.Sort(g.needs[i])
		g.needs[i] = slices.Compact(g.needs[i])
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return g, g.checkOrder()
}

func checkStep(s Step, hosts map[string]host.Host) error {
	name, rooted := strings.CutPrefix(s.ID, string(s.Phase)+"/"+s.Host+"/")
	switch {
	case !rooted || name == "" || s.Phase == "" || s.Host == "":
		return fmt.Errorf("step %q is not named phase/host/name, here %s/%s/…", s.ID, s.Phase, s.Host)
	case !slices.Contains(Order, s.Phase):
		return fmt.Errorf("step %s has an unknown phase", s.ID)
	case hosts[s.Host] == nil:
		return fmt.Errorf("step %s is for a host that is not connected", s.ID)
	case s.Action == nil:
		return fmt.Errorf("step %s has no action", s.ID)
	}
	return nil
}

// resolve finds the steps that a need of step i stands for.
func (g *graph) resolve(place map[string]int, i int, need string) ([]int, error) {
	if !strings.HasSuffix(need, "/") {
		j, found := place[need]
		if !found {
			return nil, fmt.Errorf("step %s needs %s, which is not there", g.steps[i].ID, need)
		}
		return []int{j}, nil
	}
	var found []int
	for j, s := range g.steps {
		if j != i && strings.HasPrefix(s.ID, need) {
			found = append(found, j)
		}
	}
	if len(found) == 0 && !slices.Contains(Order, Name(strings.TrimSuffix(need, "/"))) {
		return nil, fmt.Errorf("step %s needs %s, under which there is nothing", g.steps[i].ID, need)
	}
	return found, nil
}

// checkOrder finds steps that need each other.
func (g *graph) checkOrder() error {
	const (
		unseen = iota
		open
		closed
	)
	state := make([]int, len(g.steps))
	var way []int
	var visit func(i int) error
	visit = func(i int) error {
		state[i] = open
		way = append(way, i)
		for _, j := range g.needs[i] {
			if state[j] == open {
				return g.cycle(append(way[slices.Index(way, j):], j))
			}
			if state[j] == unseen {
				if err := visit(j); err != nil {
					return err
				}
			}
		}
		state[i] = closed
		way = way[:len(way)-1]
		return nil
	}
	for i := range g.steps {
		if state[i] == unseen {
			if err := visit(i); err != nil {
				return err
			}
		}
	}
	return nil
}

func (g *graph) cycle(way []int) error {
	var ids []string
	for _, i := range way {
		ids = append(ids, g.steps[i].ID)
	}
	return fmt.Errorf("steps need each other: %s", strings.Join(ids, " -> "))
}
