//go:build linux

// Bench measures LAN to LAN through two gateways, interleaved in one run: meshd
// beside the plain wireguard-go program, OpenVPN and no tunnel, and our Bind beside
// the library's; or, as -suite endpoint, overlay/openvpn beside OpenVPN. It writes
// the tables of docs/performance.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/internal/netlab"
)

func main() {
	if len(os.Args) == 3 && os.Args[1] == endpointCommand {
		err := runEndpoint(os.Args[2])
		cli.Print(os.Stderr, err)
		os.Exit(cli.ExitCode(err))
	}
	if err := netlab.Elevate(); err != nil {
		cli.Print(os.Stderr, err)
		os.Exit(cli.ExitFailed)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if errors.Is(err, flag.ErrHelp) {
		return // the flag set has printed it
	}
	cli.Print(os.Stderr, err)
	stop()
	os.Exit(cli.ExitCode(err))
}

func run(ctx context.Context, args []string, out io.Writer) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	if err := installed(o); err != nil {
		return err
	}
	if o.out != "" { // now, not after minutes
		if _, err := replaceGenerated(o.out, o.suite.target, ""); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, o.limit())
	defer cancel()
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	fmt.Fprintln(out, "building the programs")
	p, err := build(ctx, dir, o)
	if err != nil {
		return err
	}
	r := report{options: o, machine: machine(), day: time.Now().UTC()}
	if r.results, err = measureAll(ctx, o, p, out); err != nil {
		return err
	}
	if o.bind {
		if r.bind, err = measureBind(ctx, o, p.bind, out); err != nil {
			return err
		}
	}
	text := r.markdown()
	fmt.Fprintf(out, "\n%s\n", text)
	if o.out == "" {
		return nil
	}
	changed, err := replaceGenerated(o.out, o.suite.target, text)
	if err != nil {
		return err
	}
	return os.WriteFile(o.out, changed, 0o644)
}

// measureAll goes round after round over all variants, each time beginning
// with another one, so that a machine that changes its speed treats all alike.
func measureAll(ctx context.Context, o options, p programs, out io.Writer) (map[string][]sample, error) {
	results := make(map[string][]sample)
	for round := range o.rounds {
		for i := range o.variants {
			name := o.variants[(round+i)%len(o.variants)]
			s, err := measure(ctx, o.suite.variants[name], p, o.duration)
			if err != nil {
				return nil, fmt.Errorf("round %d, %s: %w", round+1, name, err)
			}
			results[name] = append(results[name], s)
			fmt.Fprintf(out, "round %d/%d  %-14s  %s\n", round+1, o.rounds, name, s)
		}
	}
	return results, nil
}

// installed says which program of the machine is missing.
func installed(o options) error {
	need := []string{"ip", "nft", "ping"}
	if slices.Contains(o.variants, wireguard) {
		need = append(need, "wg")
	}
	if o.suite.name == endpoints.name || slices.Contains(o.variants, openvpn) {
		need = append(need, "openvpn")
	}
	var missing []string
	for _, program := range need {
		if _, err := exec.LookPath(program); err != nil {
			missing = append(missing, program)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return cli.Hint(fmt.Errorf("not installed: %s", strings.Join(missing, ", ")), "make deps")
}

// programs are the built ones, as paths; empty means not needed.
type programs struct {
	meshd, wireguard, bind string
	self                   string // this one, which is also an endpoint
	profiles               string // folder for CPU profiles of our endpoints; empty means none
}

// build compiles meshd, the wireguard-go program of the module version that
// meshd uses too, both in the same way, and the benchmark of the Bind.
func build(ctx context.Context, dir string, o options) (programs, error) {
	p := programs{profiles: o.profiles}
	self, err := os.Executable()
	if err != nil {
		return p, err
	}
	p.self = self
	compile := func(to *string, name string, args ...string) error {
		*to = filepath.Join(dir, name)
		cmd := exec.CommandContext(ctx, "go", append([]string{args[0], "-trimpath", "-o", *to}, args[1:]...)...)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("go %s: %w: %s", strings.Join(args, " "), err, text)
		}
		return nil
	}
	if slices.Contains(o.variants, meshd) {
		if err := compile(&p.meshd, "meshd", "build", "github.com/planetmesh/planetmesh/meshd"); err != nil {
			return p, err
		}
	}
	if slices.Contains(o.variants, wireguard) {
		if err := compile(&p.wireguard, "wireguard-go", "build", "golang.zx2c4.com/wireguard"); err != nil {
			return p, err
		}
	}
	if o.bind {
		if err := compile(&p.bind, "link.test", "test", "-c", bindPackage); err != nil {
			return p, err
		}
	}
	return p, nil
}
