//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
	"github.com/planetmesh/planetmesh/internal/sim/figures"
	"github.com/planetmesh/planetmesh/overlay"
)

// firstSite is the number of the first gateway's site; the next ones follow.
const firstSite = 10

// uplink is the interface of every gateway on the underlay.
const uplink = "eth0"

// socketPath is that of meshd's control socket, on each host its own.
const socketPath = "/run/meshd/meshd.sock"

// poll is how often all gateways are asked.
const poll = 100 * time.Millisecond

// field is a world with real gateways.
type field struct {
	lab      *meshlab.Lab
	gateways []*gateway
	setup    figures.Setup
	seed     uint64
}

// gateway is one real gateway with a connection to its control socket.
type gateway struct {
	meshlab.Gateway
	host *netlab.Host
	http *http.Client
}

// measure measures a mass start and the healing of a partition, in one world.
func measure(ctx context.Context, meshd string, seed uint64, o options) (out []figures.Figure, err error) {
	c := figures.Case{System: figures.Real, Scenario: figures.Heal, N: o.gateways, Seed: seed}
	f := &field{setup: c.Setup(), seed: seed}
	topology := f.topology(o.gateways)
	if f.lab, err = meshlab.Start(ctx, topology, meshd); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.lab.Close()) }()
	for _, g := range meshlab.ReferenceGateways(topology) {
		f.gateways = append(f.gateways, newGateway(g, f.lab.World().Host(g.Host)))
	}
	if err := f.found(ctx); err != nil {
		return nil, err
	}
	start, err := f.massStart(ctx, meshd)
	if err != nil {
		return nil, err
	}
	heal, err := f.heal(ctx, o)
	if err != nil {
		return nil, err
	}
	start.Idle = heal.Idle
	return []figures.Figure{start, heal}, nil
}

// topology is n routers on an underlay whose links are those of the setup.
// The simulator adds jitter to the delay, netlab varies the delay by it.
func (f *field) topology(n int) netlab.Topology {
	t := netlab.Topology{Nets: []netlab.Net{{Name: "underlay", Prefixes: []netip.Prefix{netlab.Underlay4}}}}
	for i := range n {
		t.AddSite(netlab.Site{Number: firstSite + i})
	}
	half := f.setup.Jitter / 2
	for _, name := range t.Routers() {
		t.Host(name).Interfaces[0].Out = netlab.Link{Delay: f.setup.Delay + half, Jitter: half, Loss: f.setup.Loss}
	}
	return t
}

func newGateway(g meshlab.Gateway, h *netlab.Host) *gateway {
	dial := func(ctx context.Context, _, _ string) (c net.Conn, err error) {
		err = h.Do(func() error {
			c, err = (&net.Dialer{}).DialContext(ctx, "unix", socketPath)
			return err
		})
		return c, err
	}
	return &gateway{Gateway: g, host: h, http: &http.Client{Transport: &http.Transport{DialContext: dial}}}
}

// found makes a mesh of all gateways and leaves the first one running.
func (f *field) found(ctx context.Context) error {
	first := f.gateways[0]
	if _, err := f.lab.Init(ctx, "field", first.Gateway); err != nil {
		return err
	}
	if err := f.lab.Run(ctx, first.Host); err != nil {
		return err
	}
	for _, g := range f.gateways[1:] {
		ticket, err := f.lab.Ticket(ctx, first.Host, g.Gateway)
		if err != nil {
			return err
		}
		if _, err := f.lab.Join(ctx, g.Host, ticket); err != nil {
			return err
		}
	}
	return nil
}

// massStart starts all gateways but the first at once.
func (f *field) massStart(ctx context.Context, meshd string) (figures.Figure, error) {
	c := figures.Case{System: figures.Real, Scenario: figures.MassStart, N: len(f.gateways), Seed: f.seed}
	return f.until(ctx, c, func() error {
		var wg errgroup.Group
		for _, g := range f.gateways[1:] {
			wg.Go(func() error {
				_, err := g.host.Start(ctx, meshd, "run", "--state", f.lab.StateDir(g.Host)) // the world ends it
				return err
			})
		}
		return wg.Wait()
	})
}

// heal lets the gateways be for a while, cuts them into parts, and ends that.
func (f *field) heal(ctx context.Context, o options) (figures.Figure, error) {
	c := figures.Case{System: figures.Real, Scenario: figures.Heal, N: len(f.gateways), Seed: f.seed}
	if err := sleep(ctx, o.settle); err != nil {
		return figures.Figure{}, err
	}
	idle, err := f.traffic(func() error { return sleep(ctx, o.idle) })
	if err != nil {
		return figures.Figure{}, err
	}
	if fault := f.differ(ctx); fault != nil {
		return figures.Figure{}, fmt.Errorf("views differ though nothing happened: %w", fault)
	}
	if err := f.cut(ctx); err != nil {
		return figures.Figure{}, err
	}
	if err := sleep(ctx, f.setup.Lasts); err != nil {
		return figures.Figure{}, err
	}
	out, err := f.until(ctx, c, func() error { return f.nft(ctx, func(int) string { return "delete table inet sim\n" }) })
	out.Idle, out.Parts, out.Lasted = idle, len(f.setup.Parts), f.setup.Lasts
	return out, err
}

// cut makes every gateway deaf to those of other parts. Who sends notices nothing.
func (f *field) cut(ctx context.Context) error {
	part := make(map[int]int)
	for n, members := range f.setup.Parts {
		for _, i := range members {
			part[i] = n
		}
	}
	return f.nft(ctx, func(i int) string {
		var foreign []string
		for j, g := range f.gateways {
			if part[j] != part[i] {
				foreign = append(foreign, g.host.Addr().String())
			}
		}
		return fmt.Sprintf("table inet sim {\n chain in {\n  type filter hook prerouting priority raw; policy accept;\n  iifname %q ip saddr { %s } drop\n }\n}\n",
			uplink, strings.Join(foreign, ", "))
	})
}

// nft applies rules at all gateways at once.
func (f *field) nft(ctx context.Context, rules func(i int) string) error {
	var wg errgroup.Group
	for i, g := range f.gateways {
		wg.Go(func() error {
			cmd := g.host.Command(ctx, "nft", "-f", "-")
			cmd.Stdin = strings.NewReader(rules(i))
			if said, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("nft on %s: %w: %s", g.Host, err, said)
			}
			return nil
		})
	}
	return wg.Wait()
}

// until measures the time from right before an event until views are full and identical.
func (f *field) until(ctx context.Context, c figures.Case, event func() error) (figures.Figure, error) {
	out := c.Figure()
	var err error
	out.During, err = f.traffic(func() error {
		start := time.Now()
		if err := event(); err != nil {
			return err
		}
		for ; ; time.Sleep(poll) {
			asked := time.Since(start)
			fault := f.differ(ctx)
			switch {
			case fault == nil:
				out.Took, out.Reached = time.Since(start), true
				return nil
			case ctx.Err() != nil:
				return ctx.Err()
			case asked > figures.Limit:
				out.Took, out.Notes = figures.Limit, fault.Error()
				return nil
			}
		}
	})
	return out, err
}

// differ asks all gateways at once and says why their views are not full and
// identical; nil means that they are.
func (f *field) differ(ctx context.Context) error {
	views := make([][]string, len(f.gateways))
	var wg errgroup.Group
	for i, g := range f.gateways {
		wg.Go(func() error {
			s, err := g.status(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", g.Host, err)
			}
			views[i] = view(s)
			return nil
		})
	}
	if err := wg.Wait(); err != nil {
		return err
	}
	return differ(views)
}

// status asks the gateway over its control socket.
func (g *gateway) status(ctx context.Context) (overlay.Status, error) {
	var s overlay.Status
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://meshd/v1/status", nil)
	if err != nil {
		return s, err
	}
	answer, err := g.http.Do(r)
	if err != nil {
		return s, err
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		return s, fmt.Errorf("status: %s", answer.Status)
	}
	return s, json.NewDecoder(answer.Body).Decode(&s)
}

// traffic returns what a gateway sent while f ran, in bytes per second.
func (f *field) traffic(during func() error) (float64, error) {
	before, err := f.sent()
	if err != nil {
		return 0, err
	}
	start := time.Now()
	if err := during(); err != nil {
		return 0, err
	}
	took := time.Since(start)
	after, err := f.sent()
	return float64(after-before) / float64(len(f.gateways)) / took.Seconds(), err
}

// frame is what a datagram over IPv4 has before its payload: Ethernet 14, IPv4 20, UDP 8 bytes.
const frame = 42

// sent is the payload that all gateways sent on the underlay so far, ARP counted as if it were none.
func (f *field) sent() (int64, error) {
	total := int64(0)
	for _, g := range f.gateways {
		for name, weight := range map[string]int64{"tx_bytes": 1, "tx_packets": -frame} {
			text, err := g.host.ReadFile("/sys/class/net/" + uplink + "/statistics/" + name)
			if err != nil {
				return 0, err
			}
			n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("%s of %s: %w", name, g.Host, err)
			}
			total += weight * n
		}
	}
	return total, nil
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
