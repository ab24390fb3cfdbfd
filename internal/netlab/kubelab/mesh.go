//go:build linux

package kubelab

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
)

// StartMesh makes one network of the LANs: the first router founds a mesh of that name, the others join by tickets, and each
// runs meshd with the state directory that meshd has by default. It returns when all machines and the operator reach each
// other. [Options.Meshd] must have been set. The processes are those of [World.Meshd].
func (w *World) StartMesh(ctx context.Context, mesh string) error {
	if w.options.Meshd == "" {
		return errors.New("start mesh: the routers have no meshd")
	}
	gateways := meshlab.ReferenceGateways(w.net.Topology())
	first := w.Host(gateways[0].Host)
	for i, g := range gateways {
		args := []string{"--site", g.Site}
		for _, p := range g.Prefixes {
			args = append(args, "--prefix", p.String())
		}
		router := w.Host(g.Host)
		if i == 0 {
			if _, err := router.Exec(ctx, append([]string{"meshd", "init", "--mesh", mesh}, args...)...); err != nil {
				return fmt.Errorf("found mesh: %w", err)
			}
		} else if err := join(ctx, first, router, args); err != nil {
			return fmt.Errorf("join mesh: %w", err)
		}
		if err := router.runMeshd(ctx); err != nil {
			return err
		}
	}
	return w.awaitReach(ctx)
}

// join lets a router redeem a ticket that another makes.
func join(ctx context.Context, issuer, router *Host, args []string) error {
	ticket, err := issuer.Exec(ctx, append([]string{"meshd", "ticket"}, args...)...)
	if err != nil {
		return err
	}
	c := router.Command(ctx, "meshd", "join", "-")
	c.Stdin = strings.NewReader(ticket)
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("host %s: %w: %s", router.Name(), err, tail(string(out)))
	}
	return nil
}

func (h *Host) runMeshd(ctx context.Context) error {
	// The daemon outlives ctx, which bounds its start: the router's end is its end.
	p, err := h.Start(context.WithoutCancel(ctx), "meshd", "run")
	if err != nil {
		return err
	}
	h.daemon = p
	if err := h.box.await(ctx, "meshd", "status"); err != nil {
		return fmt.Errorf("%w: %s", err, tail(p.Log()))
	}
	return nil
}

// Meshd is the daemon that [World.StartMesh] has started on a router, or nil. Killing it kills labinit beside it alone; stop
// it with [netlab.Process.Stop], or with commands on the router.
func (w *World) Meshd(router string) *netlab.Process { return w.Host(router).daemon }

// awaitReach pings between all machines and the operator until all pairs answer.
func (w *World) awaitReach(ctx context.Context) error {
	names := []string{operatorName}
	for _, h := range w.Hosts() {
		names = append(names, h.Name())
	}
	for {
		m, err := w.net.PingAll(ctx, netlab.PingOptions{Hosts: names, Timeout: time.Second})
		if err != nil {
			return err
		}
		if m.Reached() == m.Total() {
			return nil
		}
		if err := ctx.Err(); err != nil {
			return fmt.Errorf("mesh: %w: no answer: %s", err, strings.Join(m.Missing(), ", "))
		}
	}
}
