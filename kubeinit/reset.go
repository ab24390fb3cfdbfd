package main

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/spf13/cobra"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
	"github.com/planetmesh/planetmesh/kubeinit/internal/steps"
)

func newReset() *cobra.Command {
	var (
		a    applying
		dead bool
	)
	cmd := &cobra.Command{
		Use:   "reset -f FILE [HOST...]",
		Short: "Take back what kubeinit did, on some hosts or on all",
		Long: `Reset takes the hosts out of the cluster and puts them back as they were before kubeinit came: files,
units, kernel parameters, routes, firewall tables. What it does is in the journal of each host, so it also works after
an apply that was killed. With --dead the hosts are not touched: a control plane that lives removes their Node and
their member of etcd.`,
		RunE: func(cmd *cobra.Command, args []string) (err error) {
			ctx := cmd.Context()
			inv, err := readInventory(a.file)
			if err != nil {
				return err
			}
			for _, name := range args {
				if inv.Host(name) == nil {
					return cli.Usage(fmt.Errorf("%s is not in %s", name, a.file))
				}
			}
			if dead && len(args) == 0 {
				return cli.Usage(errors.New("--dead wants the names of the hosts"))
			}
			if !a.yes && len(args) == 0 {
				return cli.Usage(cli.Hint(errors.New("this ends the whole cluster"), "kubeinit reset -f "+a.file+" --yes"))
			}
			reached := inv
			if dead {
				reached = without(inv, args)
			}
			hosts, closeAll, err := connect(ctx, reached, cli.StdOf(cmd).Env)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, closeAll()) }()
			view := newView(cmd, inv, a.asJSON)
			defer view.Close()
			ctx, release, err := a.lock(ctx, reached, hosts, view)
			if err != nil {
				return err
			}
			defer func() { err = errors.Join(err, release()) }()
			if dead {
				return steps.Bury(ctx, reached, hosts, args)
			}
			e := &phase.Executor{Hosts: hosts, Events: view.Event, Parallel: a.parallel}
			return takeBack(ctx, e, inv, args)
		},
	}
	flags := cmd.Flags()
	addInventory(cmd, &a.file)
	flags.BoolVar(&a.yes, "yes", false, "reset all hosts")
	flags.BoolVar(&dead, "dead", false, "the hosts do not answer, and will not come back")
	flags.BoolVar(&a.asJSON, "json", false, "print JSON lines")
	flags.BoolVar(&a.breakLock, "break-lock", false, "take the cluster's lock from whoever has it")
	return cmd
}

// without is the inventory without some hosts.
func without(inv *inventory.Inventory, names []string) *inventory.Inventory {
	out := *inv
	out.Hosts = slices.DeleteFunc(slices.Clone(inv.Hosts), func(h inventory.Host) bool { return slices.Contains(names, h.Name) })
	return &out
}

// takeBack undoes everything on the named hosts, on all if there are none.
func takeBack(ctx context.Context, e *phase.Executor, inv *inventory.Inventory, names []string) error {
	for _, group := range groups(inv, names) {
		if _, err := e.Undo(ctx, steps.Members(inv, e.Hosts), group); err != nil {
			return err
		}
		for _, name := range group {
			if err := forget(ctx, e.Hosts[name]); err != nil {
				return err
			}
		}
	}
	return nil
}

// groups are the hosts that leave at the same time, in their order: workers,
// then the control planes one after another, the oldest last, so that each can
// leave etcd while others are there, then what leads to them.
func groups(inv *inventory.Inventory, names []string) (out [][]string) {
	var workers, planes, others []string
	for _, h := range inv.Hosts {
		switch {
		case len(names) > 0 && !slices.Contains(names, h.Name):
		case h.Is(inventory.ControlPlane):
			planes = append(planes, h.Name)
		case h.IsNode():
			workers = append(workers, h.Name)
		default:
			others = append(others, h.Name)
		}
	}
	if len(workers) > 0 {
		out = append(out, workers)
	}
	for _, name := range slices.Backward(planes) {
		out = append(out, []string{name})
	}
	if len(others) > 0 {
		out = append(out, others)
	}
	return out
}

// forget ends the journal of a host, the last that kubeinit leaves there.
func forget(ctx context.Context, h host.Host) error {
	log, err := journal.Open(ctx, h)
	if err != nil {
		return err
	}
	if err := log.End(ctx, false); err != nil {
		return err
	}
	_, err = h.Run(ctx, host.Command{Args: []string{"rm", "-rf", host.UnitDir}})
	return err
}
