package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
	"github.com/planetmesh/planetmesh/kubeinit/internal/plan"
	"github.com/planetmesh/planetmesh/kubeinit/internal/preflight"
	"github.com/planetmesh/planetmesh/kubeinit/internal/steps"
)

// addInventory adds the flag that names the inventory.
func addInventory(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "", "inventory `FILE`")
	if err := cmd.MarkFlagRequired("file"); err != nil {
		panic(err) // the flag is there
	}
}

// readInventory reads an inventory. Files that it names are looked for beside it.
func readInventory(file string) (*inventory.Inventory, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	inv, err := inventory.Parse(file, text)
	if err != nil {
		return nil, cli.Faults(err)
	}
	c := &inv.Cluster
	for _, name := range []*string{&c.Bundle, &c.CNI.Manifest} {
		if *name != "" && !filepath.IsAbs(*name) {
			*name = filepath.Join(filepath.Dir(file), *name)
		}
	}
	return inv, nil
}

// connect returns the hosts of an inventory, all of which answer.
func connect(ctx context.Context, inv *inventory.Inventory, env []string) (hosts map[string]host.Host, closeAll func() error, err error) {
	hosts, closeAll, err = host.FromInventory(inv, host.UserOf(env))
	if err != nil {
		return nil, nil, err
	}
	var (
		wg   sync.WaitGroup
		errs = make([]error, len(inv.Hosts))
	)
	for i, h := range inv.Hosts {
		wg.Go(func() {
			_, err := hosts[h.Name].Run(ctx, host.Command{Args: []string{"true"}})
			if err != nil {
				errs[i] = fmt.Errorf("connect to %s: %w", h.Name, err)
			}
		})
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, nil, errors.Join(err, closeAll())
	}
	return hosts, closeAll, nil
}

// ownProgram is this program, for the hosts.
func ownProgram() (steps.Program, error) {
	file, err := os.Executable()
	if err != nil {
		return steps.Program{}, err
	}
	open := func() (io.ReadCloser, error) { return os.Open(file) }
	f, err := open()
	if err != nil {
		return steps.Program{}, err
	}
	defer f.Close()
	sum := sha256.New()
	size, err := io.Copy(sum, f)
	return steps.Program{SHA256: hex.EncodeToString(sum.Sum(nil)), Size: size, Open: open}, err
}

// uploads is how many hosts get the program at the same time.
const uploads = 4

// lend puts the program on hosts that do not have it, and returns a function
// that takes it away again from those.
func lend(ctx context.Context, hosts map[string]host.Host, p steps.Program) (takeBack func(context.Context) error, err error) {
	var (
		mu   sync.Mutex
		lent []host.Host
		g    errgroup.Group
	)
	g.SetLimit(uploads)
	for _, h := range hosts {
		g.Go(func() error {
			_, err := h.Stat(ctx, p.Path())
			if err == nil || !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			mu.Lock()
			lent = append(lent, h)
			mu.Unlock()
			f, err := p.Open()
			if err != nil {
				return err
			}
			defer f.Close()
			return h.Upload(ctx, p.Path(), f, p.Size, 0o755)
		})
	}
	err = g.Wait()
	takeBack = func(ctx context.Context) error {
		var g errgroup.Group
		for _, h := range lent {
			g.Go(func() error {
				if err := h.Remove(ctx, p.Path()); err != nil {
					return err
				}
				// Only if they are empty, and what made them was this.
				_, err := h.Run(ctx, host.Command{Args: []string{"sh", "-c", "rmdir " + host.Quote(path.Dir(p.Path())) + " && rmdir " + host.Quote(steps.Dir) + "; true"}})
				return err
			})
		}
		return g.Wait()
	}
	if err != nil {
		return nil, errors.Join(err, takeBack(context.WithoutCancel(ctx)))
	}
	return takeBack, nil
}

// observe looks at the hosts, and lets them measure the ways between them.
func observe(ctx context.Context, inv *inventory.Inventory, hosts map[string]host.Host, p steps.Program, progress func(done, all int)) (preflight.Report, error) {
	return preflight.Run(ctx, inv, hosts, preflight.Options{Agent: []string{p.Path(), "agent", "probe"}, Progress: progress})
}

// observed is what package plan wants to know of a report.
func observed(r *preflight.Report) plan.Observed {
	o := plan.Observed{Hosts: map[string]plan.HostFacts{}}
	for _, h := range r.Hosts {
		var f plan.HostFacts
		if h.Facts != nil {
			f.Kubernetes = strings.TrimPrefix(h.Facts.Versions["kubeadm"], "v")
		}
		if h.Agent != nil {
			f.Fsync = h.Agent.Fsync
		}
		o.Hosts[h.Name] = f
	}
	for _, p := range r.Pairs {
		x := plan.Pair{From: p.From, To: p.To, Probes: p.Answered, MTU: p.MTU}
		if p.RTT != nil {
			x.P50, x.P99 = p.RTT.P50, p.RTT.P99
		}
		o.Pairs = append(o.Pairs, x)
	}
	return o
}
