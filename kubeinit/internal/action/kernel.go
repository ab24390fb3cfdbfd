package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// ours begins every generated file that may have comments.
const ours = "# written by kubeinit; changes are overwritten\n"

// Sysctl are kernel parameters, now and after a restart.
type Sysctl struct {
	// Name names the file /etc/sysctl.d/zz-kubeinit-NAME.conf, which is read after
	// all that distributions have there.
	Name   string
	Values map[string]string
}

func (s Sysctl) file() File {
	var text strings.Builder
	text.WriteString(ours)
	for _, key := range slices.Sorted(maps.Keys(s.Values)) {
		text.WriteString(key + " = " + s.Values[key] + "\n")
	}
	return File{Path: "/etc/sysctl.d/zz-kubeinit-" + s.Name + ".conf", Content: []byte(text.String())}
}

// String names the file.
func (s Sysctl) String() string { return "kernel parameters " + s.Name }

// Observe compares the file and, if it is as it shall be, the live values. If it
// is not, all parameters count as to be set: which values they have may depend on
// a module that an earlier step loads.
func (s Sysctl) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	changes, err := s.file().Observe(ctx, h)
	if err != nil || len(changes) > 0 {
		return changes, err
	}
	live, err := s.live(ctx, h)
	if err != nil {
		return nil, err
	}
	for _, key := range slices.Sorted(maps.Keys(s.Values)) {
		if live[key] != words(s.Values[key]) {
			changes = append(changes, phase.Change{What: "kernel parameter " + key, From: live[key], To: s.Values[key]})
		}
	}
	return changes, nil
}

// live reads the values of those parameters that exist.
func (s Sysctl) live(ctx context.Context, h host.Host) (map[string]string, error) {
	args := append([]string{"sysctl", "-e", "--"}, slices.Sorted(maps.Keys(s.Values))...)
	out, err := h.Run(ctx, host.Command{Args: args})
	if err != nil {
		return nil, err
	}
	values := map[string]string{}
	for line := range strings.Lines(out.Stdout) {
		if key, value, ok := strings.Cut(line, "="); ok {
			values[strings.TrimSpace(key)] = words(value)
		}
	}
	return values, nil
}

// words brings values with several numbers into one form.
func words(s string) string { return strings.Join(strings.Fields(s), " ") }

// Apply writes the file and sets the live values.
func (s Sysctl) Apply(ctx context.Context, h host.Host, log func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	live, err := s.live(ctx, h)
	if err != nil {
		return err
	}
	var set [][]string
	var before []journal.Before
	for _, key := range slices.Sorted(maps.Keys(s.Values)) {
		old, found := live[key]
		if !found {
			return cli.Hint(fmt.Errorf("%s: the kernel has no parameter %s", h.Name(), key), "load the module it belongs to")
		}
		if old == words(s.Values[key]) {
			continue
		}
		before = append(before, journal.Before{
			Type: journal.TypeCommand, Name: "kernel parameter", Mark: key, Commands: [][]string{{"sysctl", "-e", "-q", "-w", "--", key + "=" + old}},
		})
		set = append(set, []string{"sysctl", "-q", "-w", "--", key + "=" + s.Values[key]})
	}
	if err := intent.Keep(ctx, before...); err != nil {
		return err
	}
	if err := s.file().Apply(ctx, h, log); err != nil {
		return err
	}
	for _, args := range set {
		if err := run(ctx, h, log, args...); err != nil {
			return err
		}
	}
	return nil
}

// Prove looks again.
func (s Sysctl) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, s) }

// Undo restores the file and the live values.
func (s Sysctl) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }

// Module is a module of the kernel, now and after a restart. It may as well be
// built in.
type Module struct {
	Name string
	// Sign is a path that exists if the module's work is done by whatever, such as
	// /proc/sys/net/bridge: on hosts without files of modules. May be empty.
	Sign string
	// Stays leaves the module loaded when the step is taken back, for hosts that
	// share a kernel with others.
	Stays bool
}

// String names the module.
func (m Module) String() string { return "kernel module " + m.Name }

// file has the module loaded when the host starts.
func (m Module) file() File {
	return File{Path: "/etc/modules-load.d/kubeinit-" + m.Name + ".conf", Content: []byte(ours + m.Name + "\n")}
}

// state finds out whether the module is there, and whether modprobe knows it.
func (m Module) state(ctx context.Context, h host.Host) (loaded, known bool, err error) {
	for _, sign := range []string{"/sys/module/" + strings.ReplaceAll(m.Name, "-", "_"), m.Sign} {
		if sign == "" {
			continue
		}
		_, err := h.Stat(ctx, sign)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return false, false, err
		}
		loaded = loaded || err == nil
	}
	out, err := h.Run(ctx, host.Command{Args: []string{"modprobe", "-n", "-v", "--", m.Name}})
	if _, ran := errors.AsType[*host.ExitError](err); ran && loaded {
		return true, false, nil
	}
	if err != nil {
		return false, false, cli.Hint(fmt.Errorf("%s: the kernel has no module %s: %w", h.Name(), m.Name, err),
			"install the modules of the running kernel on "+h.Name()+" (Debian: linux-image, Ubuntu: linux-modules-extra), or restart it into the newest one")
	}
	// What is built in and has no parameters shows nowhere: nothing is to be loaded.
	return loaded || !strings.Contains(out.Stdout, "insmod"), true, nil
}

// Observe looks whether the module is there, and whether it will be.
func (m Module) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	loaded, known, err := m.state(ctx, h)
	if err != nil {
		return nil, err
	}
	var changes []phase.Change
	if !loaded {
		changes = append(changes, phase.Change{What: m.String(), To: "loaded"})
	}
	if !known {
		return changes, nil
	}
	file, err := m.file().Observe(ctx, h)
	return append(changes, file...), err
}

// Apply loads the module and has it loaded when the host starts.
func (m Module) Apply(ctx context.Context, h host.Host, log func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	loaded, known, err := m.state(ctx, h)
	if err != nil {
		return err
	}
	if known {
		if err := m.file().Apply(ctx, h, log); err != nil {
			return err
		}
	}
	if loaded {
		return nil
	}
	if !m.Stays {
		// A module that is in use by then stays, which is no fault.
		err := intent.Keep(ctx, journal.Before{
			Type: journal.TypeCommand, Name: m.String(), Commands: [][]string{{"modprobe", "-q", "-r", "--", m.Name}}, Tolerant: true,
		})
		if err != nil {
			return err
		}
	}
	return run(ctx, h, log, "modprobe", "--", m.Name)
}

// Prove looks again.
func (m Module) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, m) }

// Undo unloads the module if it was not loaded and nobody uses it.
func (m Module) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }
