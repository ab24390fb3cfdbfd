// Package meshlab runs real meshd processes on the routers of a laboratory
// world: what the demonstration, the end-to-end tests and the benchmarks share.
package meshlab

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/overlay"
)

// Lab is a world with meshd on some of its hosts. It is safe for concurrent use.
type Lab struct {
	// RunArgs are added to every "meshd run". Set it before the first Run.
	RunArgs []string

	world *netlab.World
	meshd string

	mu    sync.Mutex // guards procs
	procs map[string]*netlab.Process
}

// Gateway says which host is which gateway.
type Gateway struct {
	Host     string         // name in the topology
	Site     string         // site name
	Prefixes []netip.Prefix // what it announces
}

// ReferenceGateways are the three routers of the reference deployment with the
// IPv4 and IPv6 prefixes of their LANs as far as the topology t has them.
func ReferenceGateways(t netlab.Topology) []Gateway {
	var out []Gateway
	for _, router := range t.Routers() {
		site, ok := strings.CutPrefix(router, "gw")
		if !ok {
			continue
		}
		for _, n := range t.Nets {
			if n.Name == "lan"+site {
				out = append(out, Gateway{Host: router, Site: site, Prefixes: n.Prefixes})
			}
		}
	}
	return out
}

// Start builds the world and remembers the meshd program that will run in it.
func Start(ctx context.Context, t netlab.Topology, meshd string) (*Lab, error) {
	path, err := filepath.Abs(meshd)
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("meshd program: %w", err)
	}
	world, err := netlab.Start(ctx, t)
	if err != nil {
		return nil, err
	}
	return &Lab{world: world, meshd: path, procs: make(map[string]*netlab.Process)}, nil
}

// World returns the world.
func (l *Lab) World() *netlab.World { return l.world }

// Close ends every process and the world; the error names what is left.
func (l *Lab) Close() error { return l.world.Close() }

// stateDir is where the gateway on host keeps its state.
func (l *Lab) stateDir(host string) string {
	return filepath.Join(l.world.Host(host).Dir(), "state")
}

// StateDir returns the state directory of the gateway on host, as that host
// sees it.
func (l *Lab) StateDir(host string) string { return l.stateDir(host) }

// Meshd runs one command of meshd on a host and returns its standard output.
func (l *Lab) Meshd(ctx context.Context, host string, args ...string) (string, error) {
	return l.world.Host(host).Run(ctx, l.meshd, args...)
}

// Init founds the mesh on g's host.
func (l *Lab) Init(ctx context.Context, mesh string, g Gateway) (string, error) {
	args := []string{"init", "--mesh", mesh, "--site", g.Site, "--state", l.stateDir(g.Host)}
	return l.Meshd(ctx, g.Host, append(args, prefixArgs(g.Prefixes)...)...)
}

// Ticket asks the gateway on host for a ticket for g.
func (l *Lab) Ticket(ctx context.Context, host string, g Gateway, more ...string) (string, error) {
	args := []string{"ticket", "--site", g.Site, "--state", l.stateDir(host)}
	out, err := l.Meshd(ctx, host, append(append(args, prefixArgs(g.Prefixes)...), more...)...)
	return strings.TrimSpace(out), err
}

// Join redeems a ticket on host. The ticket goes through standard input, so
// that it stands in no process list.
func (l *Lab) Join(ctx context.Context, host, ticket string) (string, error) {
	cmd := l.world.Host(host).Command(ctx, l.meshd, "join", "--state", l.stateDir(host), "-")
	cmd.Stdin = strings.NewReader(ticket + "\n")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("join on %s: %w: %s", host, err, out)
	}
	return string(out), nil
}

// Run starts the daemon on host and returns when its control socket answers.
func (l *Lab) Run(ctx context.Context, host string, more ...string) error {
	args := slices.Concat([]string{"run", "--state", l.stateDir(host)}, l.RunArgs, more)
	// The daemon outlives ctx, which bounds its start: the world ends it.
	p, err := l.world.Host(host).Start(context.WithoutCancel(ctx), l.meshd, args...)
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.procs[host] = p
	l.mu.Unlock()
	for {
		if _, err := l.Status(ctx, host); err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("meshd on %s ended: %s", host, p.Log())
		case <-ctx.Done():
			return fmt.Errorf("meshd on %s does not answer: %w: %s", host, ctx.Err(), p.Log())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// Process returns the daemon that Run started on host last, or nil.
func (l *Lab) Process(host string) *netlab.Process {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.procs[host]
}

// Stop ends the daemon on host with SIGTERM and waits for it.
func (l *Lab) Stop(ctx context.Context, host string) error { return l.Process(host).Stop(ctx) }

// Kill ends the daemon on host with SIGKILL and waits for it.
func (l *Lab) Kill(host string) error { return l.Process(host).Kill() }

// Reload sends SIGHUP to the daemon on host.
func (l *Lab) Reload(host string) error { return l.Process(host).Signal(syscall.SIGHUP) }

// Status asks the daemon on host.
func (l *Lab) Status(ctx context.Context, host string) (overlay.Status, error) {
	var s overlay.Status
	out, err := l.Meshd(ctx, host, "status", "--json")
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		return s, fmt.Errorf("status of %s: %w", host, err)
	}
	return s, nil
}

// Add makes g a gateway of the mesh that the gateway on issuer founded, and
// starts it.
func (l *Lab) Add(ctx context.Context, issuer string, g Gateway) error {
	ticket, err := l.Ticket(ctx, issuer, g)
	if err != nil {
		return err
	}
	if _, err := l.Join(ctx, g.Host, ticket); err != nil {
		return err
	}
	return l.Run(ctx, g.Host)
}

// Up founds a mesh on the first gateway, starts it, and adds the others.
func (l *Lab) Up(ctx context.Context, mesh string, gateways []Gateway) error {
	if _, err := l.Init(ctx, mesh, gateways[0]); err != nil {
		return err
	}
	if err := l.Run(ctx, gateways[0].Host); err != nil {
		return err
	}
	for _, g := range gateways[1:] {
		if err := l.Add(ctx, gateways[0].Host, g); err != nil {
			return err
		}
	}
	return nil
}

// WaitFull pings all pairs of leaves until every one answers, and returns the
// last table and how long it took. progress, if not nil, hears of every round.
func (l *Lab) WaitFull(ctx context.Context, o netlab.PingOptions, progress func(*netlab.Matrix, time.Duration)) (*netlab.Matrix, time.Duration, error) {
	start := time.Now()
	for {
		m, err := l.world.PingAll(ctx, o)
		if err != nil {
			return m, time.Since(start), err
		}
		if progress != nil {
			progress(m, time.Since(start))
		}
		if m.Reached() == m.Total() {
			return m, time.Since(start), nil
		}
		if err := ctx.Err(); err != nil {
			return m, time.Since(start), fmt.Errorf("pairs without answer: %v: %w", m.Missing(), err)
		}
	}
}

func prefixArgs(prefixes []netip.Prefix) []string {
	var args []string
	for _, p := range prefixes {
		args = append(args, "--prefix", p.String())
	}
	return args
}
