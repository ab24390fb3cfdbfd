// Demo-vyos builds the reference deployment with a router that cannot run
// meshd: at site 30 stands one that speaks OpenVPN site-to-site, as VyOS does,
// and two gateways beside it take it into the mesh. The router gets the
// commands and the check script that meshd prints for it, and runs the real
// openvpn. Then one of the two gateways is killed.
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
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
)

func main() {
	if err := netlab.Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, "demo-vyos:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "demo-vyos:", err)
		stop()
		os.Exit(1)
	}
}

// limit is how long all of it may take; it takes about 40 seconds.
const limit = 3 * time.Minute

func run(ctx context.Context, args []string, out io.Writer) error {
	flags := flag.NewFlagSet("demo-vyos", flag.ContinueOnError)
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
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	world, err := meshlab.StartMixed(ctx, *meshd)
	if err != nil {
		return err
	}
	d := &demo{Mixed: world, out: out}
	fmt.Fprintf(out, "The world: three LANs behind gw10, gw20 and gw30. gw30 is a VyOS router, gw30a and gw30b are machines beside it.\n\n%s\n", world.World().Topology())
	err = d.show(ctx)
	closeErr := world.Close()
	d.leftovers = append(d.leftovers, world.World().Leftovers()...)
	for _, l := range d.leftovers {
		fmt.Fprintln(out, "left over:", l)
	}
	if err := errors.Join(err, closeErr); err != nil {
		return err
	}
	last := fmt.Sprintf("demo-vyos: before %s after %s failover %s leftovers %d", ratio(d.before), ratio(d.after), ratio(d.failover), len(d.leftovers))
	fmt.Fprintln(out, last)
	if want := "demo-vyos: before 16/56 after 56/56 failover 56/56 leftovers 0"; last != want {
		return errors.New("that is not what it should be: " + want)
	}
	return nil
}

func ratio(m *netlab.Matrix) string { return fmt.Sprintf("%d/%d", m.Reached(), m.Total()) }

// demo is the world and what was seen in it.
type demo struct {
	*meshlab.Mixed
	out                     io.Writer
	before, after, failover *netlab.Matrix
	leftovers               []string
}

// section prints a heading.
func (d *demo) section(format string, args ...any) {
	fmt.Fprintf(d.out, "\n== "+format+"\n\n", args...)
}

// show does everything, in order.
func (d *demo) show(ctx context.Context) error {
	found, err := d.snapshots(ctx)
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{d.ask, d.connect, d.configure, d.complete, d.tour, d.kill, d.heal, d.stop} {
		if err := step(ctx); err != nil {
			return errors.Join(err, d.logs())
		}
	}
	left, err := d.snapshots(ctx)
	if err != nil {
		return err
	}
	for host := range found {
		for _, line := range netlab.DiffSnapshots(found[host], left[host]) {
			d.leftovers = append(d.leftovers, host+": "+line)
		}
	}
	return nil
}

// snapshots describes the kernel state of gateways and router.
func (d *demo) snapshots(ctx context.Context) (map[string]string, error) {
	out := make(map[string]string)
	for _, host := range slices.Concat(d.World().Topology().Routers(), netlab.MixedGateways) {
		text, err := d.World().Host(host).Snapshot(ctx)
		if err != nil {
			return nil, err
		}
		out[host] = text
	}
	return out, nil
}

// ask pings all pairs before anything is there.
func (d *demo) ask(ctx context.Context) (err error) {
	d.section("Before: every host pings every other host (ms, ✗ = no answer)")
	d.before, err = d.World().PingAll(ctx, meshlab.Pings())
	if err == nil {
		fmt.Fprint(d.out, d.before)
	}
	return err
}

// connect founds the mesh and starts the four gateways.
func (d *demo) connect(ctx context.Context) error {
	d.section("A mesh of gw10, gw20, gw30a and gw30b: meshd init, then ticket and join for each further one")
	if err := d.Up(ctx, "planet"); err != nil {
		return err
	}
	for _, g := range meshlab.MixedGateways() {
		fmt.Fprintf(d.out, "meshd runs on %-5s  site %s  may announce %v\n", g.Host, g.Site, g.Prefixes[0])
	}
	for _, host := range netlab.MixedGateways {
		d.section("%s$ cat meshd.yaml", host)
		fmt.Fprint(d.out, meshlab.AttachmentOf(host).Config())
	}
	return nil
}

// configure gives the router what meshd prints for it.
func (d *demo) configure(ctx context.Context) error {
	setup, err := d.RouterSetup(ctx)
	if err != nil {
		return err
	}
	d.section("%s$ meshd %s", setup.Host, strings.Join(setup.Args, " "))
	fmt.Fprint(d.out, withoutKeys(setup.Commands))
	if err := d.Router.Commit(ctx, setup.Commands); err != nil {
		return err
	}
	for _, host := range netlab.MixedGateways {
		tunnel := meshlab.AttachmentOf(host).Interface
		file, err := d.Router.OptionFile(tunnel)
		if err != nil {
			return err
		}
		d.section("gw30$ cat /run/openvpn/%s.conf        (what VyOS 1.4 makes of it, read by openvpn)", tunnel)
		fmt.Fprint(d.out, file)
	}
	d.section("gw30: the printed check script runs every %v", checkPause)
	return d.Router.Schedule(ctx, setup.Script, checkPause)
}

// checkPause is the time between two runs of the check script. The task
// scheduler of VyOS cannot do less than a minute, and lets one run check
// several times.
const checkPause = time.Second

// withoutKeys shortens what nobody wants to read.
func withoutKeys(commands string) string {
	var b strings.Builder
	for line := range strings.Lines(commands) {
		if i := strings.Index(line, " key '"); strings.HasPrefix(line, "set pki ") && i > 0 && len(line) > i+20 {
			line = line[:i+14] + "…'\n"
		}
		b.WriteString(line)
	}
	return b.String()
}

// complete waits until all pairs answer.
func (d *demo) complete(ctx context.Context) error {
	d.section("Converging")
	took, err := d.wait(ctx)
	if err != nil {
		return err
	}
	// The first answers waited for handshakes: these did not.
	if d.after, err = d.World().PingAll(ctx, meshlab.Pings()); err != nil {
		return err
	}
	d.section("After: every host pings every other host (ms), complete %.1f s after the router's commit", took.Seconds())
	fmt.Fprint(d.out, d.after)
	return nil
}

// wait pings until the table is complete and shows how it grows.
func (d *demo) wait(ctx context.Context) (time.Duration, error) {
	last := ""
	_, took, err := d.WaitFull(ctx, meshlab.Pings(), func(m *netlab.Matrix, at time.Duration) {
		if r := ratio(m); r != last {
			fmt.Fprintf(d.out, "%5.1f s  %s pairs answer\n", at.Seconds(), r)
			last = r
		}
	})
	return took, err
}

// tour shows the mesh and the router as a person would look at them.
func (d *demo) tour(ctx context.Context) error {
	d.section("TCP from node03, behind the router, to master01")
	if err := d.World().CheckTCP(ctx, "node03", "master01", d.World().Host("master01").Addr(), 8<<20); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "8 MiB went there and back unharmed")
	return d.look(ctx, "gw30a", "status")
}

// look shows one command of meshd, the routes of the mesh and those of the router.
func (d *demo) look(ctx context.Context, host, command string) error {
	for _, c := range [][2]string{{host, command}, {"gw10", "routes"}} {
		d.section("%s$ meshd %s", c[0], c[1])
		text, err := d.Meshd(ctx, c[0], c[1])
		if err != nil {
			return err
		}
		fmt.Fprint(d.out, text)
	}
	d.section("gw30$ ip route")
	text, err := d.World().Host("gw30").Run(ctx, "ip", "route")
	fmt.Fprint(d.out, text)
	return err
}

// kill is the accident.
func (d *demo) kill(ctx context.Context) error {
	d.section("gw30a# kill -9 $(pidof meshd)")
	if err := d.Kill("gw30a"); err != nil {
		return err
	}
	took, err := d.wait(ctx)
	if err != nil {
		return err
	}
	if d.failover, err = d.World().PingAll(ctx, meshlab.Pings()); err != nil {
		return err
	}
	d.section("After the failover: every host pings every other host (ms), complete again %.1f s after the kill", took.Seconds())
	fmt.Fprint(d.out, d.failover)
	d.section("gw30: what the check script did")
	fmt.Fprint(d.out, d.Router.TaskLog())
	return d.look(ctx, "gw30b", "status")
}

// heal starts the killed gateway again: it takes away what it left and takes over.
func (d *demo) heal(ctx context.Context) error {
	d.section("gw30a# meshd run &")
	if err := d.RunAttached(ctx, "gw30a"); err != nil {
		return err
	}
	start := time.Now()
	for !strings.Contains(d.Router.TaskLog(), "vtun1 is up") {
		select {
		case <-ctx.Done():
			return fmt.Errorf("the router does not come back to gw30a: %w", ctx.Err())
		case <-time.After(100 * time.Millisecond):
		}
	}
	if _, err := d.wait(ctx); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "the router sends through gw30a again after %.1f s\n", time.Since(start).Seconds())
	return nil
}

// stop ends everything in order.
func (d *demo) stop(ctx context.Context) error {
	d.section("Down")
	if err := d.Down(ctx); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "openvpn and the check script on gw30 stopped, meshd on gw10, gw20, gw30a and gw30b stopped")
	return nil
}

// logs collects the end of every daemon's log, for the error.
func (d *demo) logs() error {
	errs := []error{fmt.Errorf("the check script said:\n%s", d.Router.TaskLog())}
	for _, g := range meshlab.MixedGateways() {
		if p := d.Process(g.Host); p != nil {
			text := p.Log()
			errs = append(errs, fmt.Errorf("log of %s: …%s", g.Host, text[max(0, len(text)-2000):]))
		}
	}
	for _, host := range netlab.MixedGateways {
		tunnel := meshlab.AttachmentOf(host).Interface
		if p := d.Router.Tunnel(tunnel); p != nil {
			text := p.Log()
			errs = append(errs, fmt.Errorf("log of openvpn for %s: …%s", tunnel, text[max(0, len(text)-2000):]))
		}
	}
	return errors.Join(errs...)
}

// build compiles meshd into a temporary directory.
func build(ctx context.Context) (path string, remove func(), err error) {
	dir, err := os.MkdirTemp("", "demo-vyos-")
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
