package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/containerd"
	"github.com/planetmesh/planetmesh/kubeinit/internal/etcdtune"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
	"github.com/planetmesh/planetmesh/kubeinit/internal/plan"
	"github.com/planetmesh/planetmesh/kubeinit/internal/preflight"
	"github.com/planetmesh/planetmesh/kubeinit/internal/steps"
)

// build is a cluster in the making: what plan shows and apply carries out.
type build struct {
	inv       *inventory.Inventory
	hosts     map[string]host.Host
	report    preflight.Report
	decisions plan.Decisions
	verdicts  []plan.Verdict
	steps     []phase.Step
	// takeBack removes the program from the hosts, if nothing is built.
	takeBack func(context.Context) error
}

// building are the options of newBuild.
type building struct {
	// redecide takes over what is measured now.
	redecide bool
	// planned is a plan that was kept, nil if there is none: what it decided holds
	// as long as no cluster says something else.
	planned *plan.File
}

// newBuild looks at the hosts and decides. Faults that a cluster cannot be built
// with are an error that cli.Faults marks.
func newBuild(ctx context.Context, inv *inventory.Inventory, hosts map[string]host.Host, o building, warn func(string)) (_ *build, err error) {
	b := &build{inv: inv, hosts: hosts}
	var errs []error
	program, err := ownProgram()
	if err != nil {
		return nil, err
	}
	if b.takeBack, err = lend(ctx, hosts, program); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, b.takeBack(context.WithoutCancel(ctx)))
		}
	}()
	if b.report, err = observe(ctx, inv, hosts, program, nil); err != nil {
		return nil, err
	}
	for _, f := range preflight.Faults(&b.report, inv) {
		if f.Severity != preflight.SeverityFault {
			warn(f.Text + "; " + f.Cure)
			continue
		}
		errs = append(errs, cli.Hint(fmt.Errorf("%s: %s", strings.Join(f.Hosts, ", "), f.Text), f.Cure))
	}
	if len(errs) > 0 {
		return nil, cli.Faults(errors.Join(errs...))
	}
	earlier, err := readDecisions(ctx, inv, hosts)
	if err != nil {
		return nil, err
	}
	if earlier == nil && o.planned != nil {
		earlier = &o.planned.Decisions
	}
	b.decisions, b.verdicts = plan.Decide(inv, observed(&b.report), earlier, plan.Options{Redecide: o.redecide})
	for _, v := range b.verdicts {
		switch v.Level {
		case etcdtune.Refuse:
			errs = append(errs, cli.Hint(errors.New(v.Reason), v.Cure))
		case etcdtune.Warn:
			warn(v.Reason + "; " + v.Cure)
		}
	}
	if len(errs) > 0 {
		return nil, cli.Faults(errors.Join(errs...))
	}
	return b, b.makeSteps(program)
}

func (b *build) makeSteps(program steps.Program) error {
	in := steps.Input{
		Inventory: b.inv, Decisions: b.decisions, Program: program, Hosts: b.hosts,
		Random: rand.Reader, Containerd: map[string]containerd.Version{},
	}
	if c := b.inv.Cluster.CNI; c.Mode == inventory.CNIManifest {
		var err error
		if in.Manifest, err = os.ReadFile(c.Manifest); err != nil {
			return err
		}
	}
	for _, h := range b.report.Hosts {
		if host := b.inv.Host(h.Name); host == nil || !host.IsNode() || h.Facts == nil {
			continue
		}
		v, err := containerd.ParseVersion("containerd github.com/containerd/containerd " + h.Facts.Versions["containerd"])
		if err != nil {
			return fmt.Errorf("%s: %w", h.Name, err)
		}
		in.Containerd[h.Name] = v
	}
	var err error
	b.steps, err = steps.All(in)
	return err
}

// readDecisions returns what was decided when the cluster was built, nil if there
// is none.
func readDecisions(ctx context.Context, inv *inventory.Inventory, hosts map[string]host.Host) (*plan.Decisions, error) {
	for _, cp := range inv.With(inventory.ControlPlane) {
		text, err := hosts[cp.Name].ReadFile(ctx, steps.DecisionsFile)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		d, err := plan.DecodeDecisions(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %s: %w", cp.Name, steps.DecisionsFile, err)
		}
		return d, nil
	}
	return nil, nil //nolint:nilnil // there are none
}

// file is the form in which a plan is kept.
func (b *build) file(p phase.Plan) *plan.File {
	kept := make([]plan.Step, len(p.Steps))
	for i, s := range p.Steps {
		kept[i].ID = s.ID
		for _, c := range s.Changes {
			kept[i].Changes = append(kept[i].Changes, plan.Change{What: c.What, From: c.From, To: c.To})
		}
	}
	return plan.NewFile(b.decisions, kept)
}

// names are those of the hosts, in the order of the inventory.
func (b *build) names() []string {
	var names []string
	for _, h := range b.inv.Hosts {
		names = append(names, h.Name)
	}
	return names
}

// changing are the steps of a plan that change something.
func changing(p phase.Plan) []phase.PlanStep {
	return slices.DeleteFunc(slices.Clone(p.Steps), func(s phase.PlanStep) bool { return len(s.Changes) == 0 })
}
