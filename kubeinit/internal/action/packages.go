package action

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Packages are Debian packages from the archives that the host knows, in exact
// versions, and held so that no upgrade takes them along.
type Packages struct {
	// Versions are by name, as dpkg writes them: "kubelet": "1.37.1-1.1".
	Versions map[string]string
}

func (p Packages) names() []string { return slices.Sorted(maps.Keys(p.Versions)) }

func (p Packages) specs() []string {
	var specs []string
	for _, n := range p.names() {
		specs = append(specs, n+"="+p.Versions[n])
	}
	return specs
}

// String names the packages.
func (p Packages) String() string { return "packages " + strings.Join(p.names(), " ") }

// installed are the packages that are on a host.
type installed struct {
	version map[string]string
	held    map[string]bool
}

func look(ctx context.Context, h host.Host) (installed, error) {
	in := installed{map[string]string{}, map[string]bool{}}
	out, err := h.Run(ctx, host.Command{Args: []string{"dpkg-query", "-W", "-f", "${Package} ${Version} ${db:Status-Status}\n"}, Limit: 8 << 20})
	if err != nil {
		return in, err
	}
	for line := range strings.Lines(out.Stdout) {
		if f := strings.Fields(line); len(f) == 3 && f[2] == "installed" {
			in.version[f[0]] = f[1]
		}
	}
	out, err = h.Run(ctx, host.Command{Args: []string{"apt-mark", "showhold"}})
	if err != nil {
		return in, err
	}
	for name := range strings.FieldsSeq(out.Stdout) {
		in.held[name] = true
	}
	return in, nil
}

// Observe compares versions and holds.
func (p Packages) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	in, err := look(ctx, h)
	if err != nil {
		return nil, err
	}
	var changes []phase.Change
	for _, n := range p.names() {
		if in.version[n] != p.Versions[n] || !in.held[n] {
			changes = append(changes, phase.Change{What: "package " + n, From: in.version[n], To: p.Versions[n] + ", held"})
		}
	}
	return changes, nil
}

// aptGet begins every command of apt: no questions, configuration files stay as
// they are, and whoever else installs something now is waited for.
var aptGet = []string{
	"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-y", "-q", "-o", "DPkg::Lock::Timeout=300", "-o", "Dpkg::Options::=--force-confold",
}

// installing begins the commands that install exact versions.
var installing = append(slices.Clip(aptGet), "--no-install-recommends", "--allow-downgrades", "--allow-change-held-packages", "install")

// Apply installs and holds.
func (p Packages) Apply(ctx context.Context, h host.Host, log func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	in, err := look(ctx, h)
	if err != nil {
		return err
	}
	touched, err := p.simulate(ctx, h, log)
	if err != nil {
		return err
	}
	before := journal.Before{Type: journal.TypeCommand, Name: p.String(), Commands: p.back(in, touched)}
	if err := intent.Keep(ctx, before); err != nil {
		return err
	}
	install := append(slices.Clip(installing), p.specs()...)
	if _, err := runLong(ctx, h, "apt", host.Command{Args: install, Output: log}); err != nil {
		return err
	}
	return run(ctx, h, log, append([]string{"apt-mark", "hold"}, p.names()...)...)
}

// simulate asks apt which packages it would install, and brings its lists up to
// date if it does not know the versions.
func (p Packages) simulate(ctx context.Context, h host.Host, log func(string)) ([]string, error) {
	args := append(append(slices.Clip(installing), "--simulate"), p.specs()...)
	out, err := h.Run(ctx, host.Command{Args: args})
	if _, ran := errors.AsType[*host.ExitError](err); ran {
		if _, err := runLong(ctx, h, "apt-update", host.Command{Args: append(slices.Clip(aptGet), "update"), Output: log}); err != nil {
			return nil, err
		}
		out, err = h.Run(ctx, host.Command{Args: args, Output: log})
	}
	if err != nil {
		return nil, cli.Hint(err, "apt-cache policy "+strings.Join(p.names(), " ")+" on "+h.Name()+" shows which versions its archives have")
	}
	var touched []string
	for line := range strings.Lines(out.Stdout) {
		f := strings.Fields(line)
		switch {
		case len(f) >= 2 && f[0] == "Remv":
			return nil, cli.Hint(fmt.Errorf("%s: apt would remove package %s", h.Name(), f[1]), "remove it on "+h.Name()+" if nobody needs it")
		case len(f) >= 2 && f[0] == "Inst":
			touched = append(touched, f[1])
		}
	}
	return touched, nil
}

// back are the commands that restore former packages, versions and holds.
func (p Packages) back(in installed, touched []string) [][]string {
	var unhold, purge, downgrade, hold []string
	for _, n := range p.names() {
		if in.held[n] {
			hold = append(hold, n)
		} else {
			unhold = append(unhold, n)
		}
	}
	for _, n := range touched {
		if v := in.version[n]; v != "" {
			downgrade = append(downgrade, n+"="+v)
		} else {
			purge = append(purge, n)
		}
	}
	var commands [][]string
	for _, c := range []struct{ command, names []string }{
		{[]string{"apt-mark", "unhold"}, unhold},
		{append(slices.Clip(aptGet), "--allow-change-held-packages", "purge"), purge},
		{installing, downgrade},
		{[]string{"apt-mark", "hold"}, hold},
	} {
		if len(c.names) > 0 {
			commands = append(commands, append(slices.Clip(c.command), c.names...))
		}
	}
	return commands
}

// Prove looks again.
func (p Packages) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, p) }

// Undo removes what was not there, with what came along, and restores versions
// and holds.
func (p Packages) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }
