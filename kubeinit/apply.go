package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"strings"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
	"github.com/planetmesh/planetmesh/kubeinit/internal/plan"
	"github.com/planetmesh/planetmesh/kubeinit/internal/ui"
)

func newPlan() *cobra.Command {
	var (
		file, out        string
		redecide, asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "plan -f FILE [-o PLAN]",
		Short: "Show what apply would change, and change nothing",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) (err error) {
			inv, err := readInventory(file)
			if err != nil {
				return err
			}
			hosts, closeAll, err := connect(cmd.Context(), inv, cli.StdOf(cmd).Env)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeAll()) }()
			view := newView(cmd, inv, asJSON)
			defer view.Close()
			b, err := newBuild(cmd.Context(), inv, hosts, building{redecide: redecide}, view.Warn)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, b.takeBack(context.WithoutCancel(cmd.Context()))) }()
			p, err := (&phase.Executor{Hosts: hosts}).Plan(cmd.Context(), b.steps)
			view.Plan(p)
			if err != nil || out == "" {
				return err
			}
			text, err := b.file(p).Encode()
			if err != nil {
				return err
			}
			return os.WriteFile(out, text, 0o600)
		},
	}
	flags := cmd.Flags()
	addInventory(cmd, &file)
	flags.StringVarP(&out, "out", "o", "", "`FILE` that keeps the plan for apply --plan")
	flags.BoolVar(&redecide, "redecide", false, "decide anew what was measured: timers, MTU, leader, version")
	flags.BoolVar(&asJSON, "json", false, "print JSON lines")
	return cmd
}

// applying are the options of apply.
type applying struct {
	file, plan                       string
	yes, redecide, asJSON, breakLock bool
	keepFailed                       bool
	parallel                         int
}

func newApply() *cobra.Command {
	var a applying
	cmd := &cobra.Command{
		Use:   "apply -f FILE [--plan PLAN] [--yes]",
		Short: "Build the cluster, or bring it to what the inventory says",
		Long: `Apply looks at the hosts, shows what it would change, asks, and does it. It may be run again at any
time: it goes on where it was ended, and changes nothing where nothing differs. A host that does not
succeed is put back as it was, alone.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return a.run(cmd) },
	}
	flags := cmd.Flags()
	addInventory(cmd, &a.file)
	flags.StringVar(&a.plan, "plan", "", "`FILE` of a plan; nothing is done if more or something else would be changed")
	flags.BoolVar(&a.yes, "yes", false, "do not ask")
	flags.BoolVar(&a.redecide, "redecide", false, "decide anew what was measured: timers, MTU, leader, version")
	flags.BoolVar(&a.asJSON, "json", false, "print JSON lines")
	flags.BoolVar(&a.breakLock, "break-lock", false, "take the cluster's lock from whoever has it")
	flags.BoolVar(&a.keepFailed, "keep-failed", false, "do not put back a host that did not succeed")
	flags.IntVar(&a.parallel, "parallel", 0, "how many `HOSTS` work at the same time (default 16)")
	return cmd
}

func (a *applying) run(cmd *cobra.Command) (err error) {
	ctx := cmd.Context()
	inv, err := readInventory(a.file)
	if err != nil {
		return err
	}
	hosts, closeAll, err := connect(ctx, inv, cli.StdOf(cmd).Env)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll()) }()
	view := newView(cmd, inv, a.asJSON)
	defer view.Close()
	ctx, release, err := a.lock(ctx, inv, hosts, view)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, release()) }()
	planned, err := a.planned()
	if err != nil {
		return err
	}
	b, err := newBuild(ctx, inv, hosts, building{redecide: a.redecide, planned: planned}, view.Warn)
	if err != nil {
		return err
	}
	if a.keepFailed {
		for i := range b.steps {
			b.steps[i].UndoOnFailure = false
		}
	}
	e := &phase.Executor{Hosts: hosts, Parallel: a.parallel}
	p, err := e.Plan(ctx, b.steps)
	if err == nil {
		err = a.agree(cmd, view, b, p, planned)
	}
	if err != nil {
		return errors.Join(err, b.takeBack(context.WithoutCancel(ctx)))
	}
	e.Events = view.Event
	r, err := e.Apply(ctx, b.steps)
	view.Result(r)
	return err
}

// planned is the plan that was kept, nil if none was named.
func (a *applying) planned() (*plan.File, error) {
	if a.plan == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	text, err := os.ReadFile(a.plan)
	if err != nil {
		return nil, err
	}
	kept, err := plan.DecodeFile(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", a.plan, err)
	}
	return kept, nil
}

// lock keeps others away from the cluster as long as the context lasts.
func (a *applying) lock(ctx context.Context, inv *inventory.Inventory, hosts map[string]host.Host, view *ui.View) (context.Context, func() error, error) {
	first := inv.With(inventory.ControlPlane)[0]
	l, warning, err := phase.Acquire(ctx, hosts[first.Name], phase.LockOptions{Cluster: inv.Cluster.Name, Holder: holder(), Break: a.breakLock})
	if err != nil {
		return nil, nil, err
	}
	if warning != "" {
		view.Warn(warning)
	}
	held, release := l.Hold(ctx)
	return held, release, nil
}

func holder() string {
	name := "somebody"
	if u, err := user.Current(); err == nil {
		name = u.Username
	}
	machine, err := os.Hostname()
	if err != nil {
		machine = "somewhere"
	}
	return name + "@" + machine
}

// agree compares the plan with the one that was kept, or shows it and asks.
func (a *applying) agree(cmd *cobra.Command, view *ui.View, b *build, p phase.Plan, planned *plan.File) error {
	if planned != nil {
		if d := plan.Compare(planned, b.file(p)); len(d) > 0 {
			lines := make([]string, len(d))
			for i, x := range d {
				lines[i] = x.String()
			}
			return cli.Hint(fmt.Errorf("%s is not what would be done now:\n%s", a.plan, strings.Join(lines, "\n")), "kubeinit plan -f "+a.file+" -o "+a.plan)
		}
		return nil
	}
	if p.Changes() == 0 || a.yes {
		return nil
	}
	view.Plan(p)
	std := cli.StdOf(cmd)
	if !cli.IsTerminal(std.In) {
		return cli.Usage(cli.Hint(errors.New("nobody is there to agree"), "kubeinit apply --yes, or kubeinit plan -o PLAN and apply --plan PLAN"))
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "Make these %d changes on %d hosts? [y/N] ", p.Changes(), len(b.hosts))
	answer, err := bufio.NewReader(std.In).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	if a := strings.ToLower(strings.TrimSpace(answer)); a != "y" && a != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

// newView shows events on standard output.
func newView(cmd *cobra.Command, inv *inventory.Inventory, asJSON bool) *ui.View {
	std := cli.StdOf(cmd)
	o := ui.For(std.Out, std.Env, asJSON)
	for _, h := range inv.Hosts {
		o.Hosts = append(o.Hosts, h.Name)
	}
	return ui.New(std.Out, o)
}
