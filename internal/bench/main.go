//go:build linux

// Bench measures LAN to LAN through two gateways: meshd beside the plain
// wireguard-go program, OpenVPN and no tunnel, interleaved in one run, and
// writes the tables of docs/performance.md.
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
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

func main() {
	if err := netlab.Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		stop()
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	rounds   int
	duration time.Duration
	out      string
	bind     bool
}

func run(ctx context.Context, args []string, out io.Writer) error {
	var o options
	flags := flag.NewFlagSet("bench", flag.ContinueOnError)
	flags.IntVar(&o.rounds, "rounds", 5, "rounds over all variants")
	flags.DurationVar(&o.duration, "duration", 2*time.Second, "length of one throughput measurement")
	flags.StringVar(&o.out, "out", "docs/performance.md", "file whose generated part is replaced; empty: none")
	flags.BoolVar(&o.bind, "bind", true, "compare our Bind with the library's as well")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for _, program := range []string{"openvpn", "wg", "ping", "nft", "ip"} {
		if _, err := exec.LookPath(program); err != nil {
			return fmt.Errorf("%s is missing; make deps installs it", program)
		}
	}
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	programs, err := build(ctx, dir)
	if err != nil {
		return err
	}
	results, err := measureAll(ctx, o, variants(programs), out)
	if err != nil {
		return err
	}
	report := report{options: o, machine: machine(), results: results}
	if o.bind {
		if report.bind, err = measureBind(ctx, out); err != nil {
			return err
		}
	}
	text := report.markdown()
	fmt.Fprintln(out, text)
	if o.out == "" {
		return nil
	}
	return replaceGenerated(o.out, text)
}

// measureAll goes round after round over all variants, each time beginning
// with another one, so that a machine that changes its speed treats all alike.
func measureAll(ctx context.Context, o options, all []variant, out io.Writer) (map[string][]sample, error) {
	results := make(map[string][]sample)
	for round := range o.rounds {
		for i := range all {
			v := all[(round+i)%len(all)]
			s, err := measure(ctx, v, o.duration)
			if err != nil {
				return nil, fmt.Errorf("round %d, %s: %w", round+1, v.name, err)
			}
			results[v.name] = append(results[v.name], s)
			fmt.Fprintf(out, "round %d/%d  %-12s %s\n", round+1, o.rounds, v.name, s)
		}
	}
	return results, nil
}

// build compiles meshd and the wireguard-go program of the module that meshd
// uses.
func build(ctx context.Context, dir string) (programs, error) {
	p := programs{meshd: filepath.Join(dir, "meshd"), wireguard: filepath.Join(dir, "wireguard-go")}
	for path, pkg := range map[string]string{
		p.meshd:     "github.com/planetmesh/planetmesh/meshd",
		p.wireguard: "golang.zx2c4.com/wireguard",
	} {
		cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", path, pkg)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		if text, err := cmd.CombinedOutput(); err != nil {
			return p, fmt.Errorf("build %s: %w: %s", pkg, err, text)
		}
	}
	return p, nil
}

// programs are the built ones.
type programs struct{ meshd, wireguard string }

var errNoAnswer = errors.New("the far host does not answer")
