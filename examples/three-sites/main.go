// Three-sites builds the reference deployment out of network namespaces of this
// machine, three isolated LANs with eight hosts, and makes one network of them
// with a real meshd on each router. It prints what it does, and takes
// everything down again.
//
// It needs root, or an ordinary user where user namespaces are allowed and
// /dev/net/tun may be opened by everyone. Nothing of the machine's own network
// is touched.
package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
)

func main() {
	if err := netlab.Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, "three-sites:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "three-sites:", err)
		stop()
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("three-sites", flag.ContinueOnError)
	meshd := flags.String("meshd", "", "meshd program to run; empty builds one")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *meshd == "" {
		path, remove, err := build(ctx)
		if err != nil {
			return err
		}
		defer remove()
		*meshd = path
	}
	ctx, cancel := context.WithTimeout(ctx, 55*time.Second)
	defer cancel()

	topology := netlab.Reference()
	fmt.Fprintf(out, "The world: three LANs, and routers that reach each other over an underlay.\n\n%s\n", topology)
	lab, err := meshlab.Start(ctx, topology, *meshd)
	if err != nil {
		return err
	}
	before, after, leftovers, err := demonstrate(ctx, lab, out)
	closeErr := lab.Close()
	leftovers = append(leftovers, lab.World().Leftovers()...)
	for _, l := range leftovers {
		fmt.Fprintln(out, "left over:", l)
	}
	if err := errors.Join(err, closeErr); err != nil {
		return err
	}
	last := fmt.Sprintf("demo: before %s after %s leftovers %d", ratio(before), ratio(after), len(leftovers))
	fmt.Fprintln(out, last)
	if last != "demo: before 16/56 after 56/56 leftovers 0" {
		return errors.New("that is not what it should be: before 16/56 after 56/56 leftovers 0")
	}
	return nil
}

func ratio(m *netlab.Matrix) string { return fmt.Sprintf("%d/%d", m.Reached(), m.Total()) }

// demonstrate shows the network before, makes the mesh, and shows it after.
// leftovers is what the kernels of the routers have afterwards and did not have before.
func demonstrate(ctx context.Context, lab *meshlab.Lab, out io.Writer) (before, after *netlab.Matrix, leftovers []string, err error) {
	found, err := snapshots(ctx, lab)
	if err != nil {
		return nil, nil, nil, err
	}
	if before, after, err = connect(ctx, lab, out); err != nil {
		return before, after, nil, err
	}
	if err := tour(ctx, lab, out); err != nil {
		return before, after, nil, err
	}
	left, err := snapshots(ctx, lab)
	if err != nil {
		return before, after, nil, err
	}
	for host := range found {
		for _, line := range netlab.DiffSnapshots(found[host], left[host]) {
			leftovers = append(leftovers, host+": "+line)
		}
	}
	return before, after, leftovers, nil
}

// snapshots describes the kernel state of every router.
func snapshots(ctx context.Context, lab *meshlab.Lab) (map[string]string, error) {
	out := make(map[string]string)
	for _, router := range lab.World().Topology().Routers() {
		text, err := lab.World().Host(router).Snapshot(ctx)
		if err != nil {
			return nil, err
		}
		out[router] = text
	}
	return out, nil
}

// section prints a heading.
func section(out io.Writer, format string, args ...any) {
	fmt.Fprintf(out, "\n== "+format+"\n\n", args...)
}

// connect pings all pairs, founds the mesh, and pings them again.
func connect(ctx context.Context, lab *meshlab.Lab, out io.Writer) (before, after *netlab.Matrix, err error) {
	world := lab.World()

	section(out, "Before: every host pings every other host (ms, ✗ = no answer)")
	if before, err = world.PingAll(ctx, netlab.PingOptions{}); err != nil {
		return nil, nil, err
	}
	fmt.Fprint(out, before)

	section(out, "One command founds the mesh, one ticket brings in each further site")
	gateways := meshlab.ReferenceGateways(world.Topology())
	first := gateways[0]
	show := func(host, format string, args ...any) {
		fmt.Fprintf(out, "%s$ %s\n", host, fmt.Sprintf(format, args...))
	}
	show(first.Host, "meshd init --mesh planet --site %s --prefix %v && meshd run &", first.Site, first.Prefixes[0])
	if _, err := lab.Init(ctx, "planet", first); err != nil {
		return nil, nil, err
	}
	if err := lab.Run(ctx, first.Host); err != nil {
		return nil, nil, err
	}
	for _, g := range gateways[1:] {
		show(first.Host, "meshd ticket --site %s --prefix %v", g.Site, g.Prefixes[0])
		ticket, err := lab.Ticket(ctx, first.Host, g)
		if err != nil {
			return nil, nil, err
		}
		fmt.Fprintf(out, "%s…  (%d characters)\n", ticket[:24], len(ticket))
		show(g.Host, "meshd join TICKET && meshd run &")
		text, err := lab.Join(ctx, g.Host, ticket)
		if err != nil {
			return nil, nil, err
		}
		fmt.Fprintln(out, strings.SplitN(text, "\n", 2)[0])
		if err := lab.Run(ctx, g.Host); err != nil {
			return nil, nil, err
		}
	}

	section(out, "Converging")
	after, took, err := lab.WaitFull(ctx, netlab.PingOptions{}, func(m *netlab.Matrix, d time.Duration) {
		fmt.Fprintf(out, "%5.1f s  %s pairs answer\n", d.Seconds(), ratio(m))
	})
	if err != nil {
		return before, after, errors.Join(err, logs(lab, gateways))
	}
	// The first answers waited for handshakes: these did not.
	if after, err = world.PingAll(ctx, netlab.PingOptions{}); err != nil {
		return before, after, err
	}
	section(out, "After: every host pings every other host (ms), complete %.1f s after the last start", took.Seconds())
	fmt.Fprint(out, after)
	return before, after, nil
}

// tour shows the running mesh as a person would look at it.
func tour(ctx context.Context, lab *meshlab.Lab, out io.Writer) error {
	world := lab.World()
	section(out, "master01$ ping node01")
	text, err := world.Host("master01").Run(ctx, "ping", "-c", "5", "-i", "0.2", world.Host("node01").Addr().String())
	if err != nil {
		return err
	}
	fmt.Fprint(out, text)
	for _, command := range []string{"status", "routes", "matrix"} {
		section(out, "gw10$ meshd %s", command)
		if text, err = lab.Meshd(ctx, "gw10", command); err != nil {
			return err
		}
		fmt.Fprint(out, text)
	}
	section(out, "TCP from master01 to node01, through both gateways")
	rate, err := world.Throughput(ctx, netlab.ThroughputOptions{From: "master01", To: "node01", Duration: 2 * time.Second})
	if err != nil {
		return err
	}
	fmt.Fprintln(out, rate)
	section(out, "Down")
	for _, g := range meshlab.ReferenceGateways(world.Topology()) {
		if err := lab.Stop(ctx, g.Host); err != nil {
			return fmt.Errorf("stop meshd on %s: %w", g.Host, err)
		}
		fmt.Fprintf(out, "meshd on %s stopped\n", g.Host)
	}
	return nil
}

// logs collects the end of every daemon's log, for the error.
func logs(lab *meshlab.Lab, gateways []meshlab.Gateway) error {
	var errs []error
	for _, g := range gateways {
		if p := lab.Process(g.Host); p != nil {
			text := p.Log()
			errs = append(errs, fmt.Errorf("log of %s: …%s", g.Host, text[max(0, len(text)-2000):]))
		}
	}
	return errors.Join(errs...)
}

// build compiles meshd into a temporary directory.
func build(ctx context.Context) (path string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "three-sites-")
	if err != nil {
		return "", nil, err
	}
	remove = func() { _ = os.RemoveAll(dir) }
	path = filepath.Join(dir, "meshd")
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, "github.com/planetmesh/planetmesh/meshd")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		remove()
		return "", nil, fmt.Errorf("build meshd: %w: %s", err, stderr.Bytes())
	}
	return path, remove, nil
}
