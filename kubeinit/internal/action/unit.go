package action

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Unit is a unit of systemd, with the files that it depends on.
//
// With which files a unit was started last stands in a file of kubeinit on the
// host, which is removed before anything changes. So a unit is restarted when it
// has to be even if kubeinit is killed in between, and only then. A unit that
// kubeinit has never handled is restarted once.
type Unit struct {
	// Name is the unit's name with its suffix: "containerd.service".
	Name string
	// Files are the unit file, drop-ins and configuration, as far as kubeinit
	// writes them. The unit is restarted when one of them changes.
	Files []File
	// Version stands for what else the unit depends on, such as the digest of its
	// program: it is restarted when this changes.
	Version string
	// Enabled and Active say whether it shall start with the host, and run now.
	Enabled, Active Setting
}

// Setting is what a unit shall be. The zero value leaves it as it is.
type Setting string

// The settings.
const (
	Leave Setting = ""
	Yes   Setting = "yes"
	No    Setting = "no"
)

// stampDir has for each unit with what it was started last.
const stampDir = journal.Dir + "/units"

// String names the unit.
func (u Unit) String() string { return "unit " + u.Name }

func (u Unit) stamp() string { return stampDir + "/" + u.Name }

// digest stands for everything that the unit depends on.
func (u Unit) digest() string {
	sum := sha256.New()
	field(sum, u.Version)
	for _, f := range u.Files {
		field(sum, f.Path)
		field(sum, string(f.Content))
	}
	return hex.EncodeToString(sum.Sum(nil)) + "\n"
}

func field(sum hash.Hash, s string) {
	fmt.Fprintf(sum, "%d:", len(s)) // a hash takes everything
	sum.Write([]byte(s))
}

// wanted says what the unit shall be.
func (u Unit) wanted() string {
	var words []string
	for _, w := range []struct {
		setting Setting
		yes, no string
	}{{u.Enabled, "enabled", "disabled"}, {u.Active, "running with these settings", "stopped"}} {
		switch w.setting {
		case Yes:
			words = append(words, w.yes)
		case No:
			words = append(words, w.no)
		}
	}
	return strings.Join(words, ", ")
}

// Observe compares the files, the settings, and with what the unit was started.
func (u Unit) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	changes, err := u.observeFiles(ctx, h)
	if err != nil {
		return nil, err
	}
	stamp, err := h.ReadFile(ctx, u.stamp())
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	enabled, active, err := journal.UnitState(ctx, h, u.Name)
	if err != nil {
		return nil, err
	}
	if enabled == "masked" && (u.Enabled == Yes || u.Active == Yes) {
		return nil, cli.Hint(fmt.Errorf("%s: unit %s is masked", h.Name(), u.Name), "systemctl unmask "+u.Name+" on "+h.Name())
	}
	// An unknown unit is to be handled, whatever its state: it may not even be
	// installed yet, and be started by its installation.
	if len(changes) > 0 || string(stamp) != u.digest() || !u.enabledAs(enabled) || !u.activeAs(active) {
		changes = append(changes, phase.Change{What: u.String(), To: u.wanted()})
	}
	return changes, nil
}

func (u Unit) observeFiles(ctx context.Context, h host.Host) ([]phase.Change, error) {
	var changes []phase.Change
	for _, f := range u.Files {
		more, err := f.Observe(ctx, h)
		if err != nil {
			return nil, err
		}
		changes = append(changes, more...)
	}
	return changes, nil
}

// enabledAs tells whether what systemctl says is as it shall be. Static units
// and the like cannot be enabled and need not be.
func (u Unit) enabledAs(is string) bool {
	switch u.Enabled {
	case Yes:
		return slices.Contains([]string{"enabled", "static", "alias", "generated", "linked"}, is)
	case No:
		return is != "enabled"
	}
	return true
}

func (u Unit) activeAs(is bool) bool { return u.Active == Leave || is == (u.Active == Yes) }

// Apply writes the files and brings the unit into its state.
func (u Unit) Apply(ctx context.Context, h host.Host, log func(string)) error {
	enabled, active, err := journal.UnitState(ctx, h, u.Name)
	if err != nil {
		return err
	}
	if err := u.keep(ctx, enabled, active); err != nil {
		return err
	}
	if err := h.Remove(ctx, u.stamp()); err != nil {
		return err
	}
	if err := u.writeFiles(ctx, h); err != nil {
		return err
	}
	if err := u.set(ctx, h, log, enabled, active); err != nil {
		u.showLog(ctx, h, log)
		return err
	}
	return h.WriteFile(ctx, u.stamp(), []byte(u.digest()), 0o600)
}

// keep remembers how the unit was. When that is put back, the unit is stopped
// first, then come the files, and then its former state.
func (u Unit) keep(ctx context.Context, enabled string, active bool) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	if err := intent.Keep(ctx, journal.Before{Type: journal.TypeUnit, Name: u.Name, Enabled: enabled, Active: active}); err != nil {
		return err
	}
	for _, f := range u.Files {
		if err := intent.KeepFile(ctx, f.Path); err != nil {
			return err
		}
	}
	if err := intent.KeepFile(ctx, u.stamp()); err != nil {
		return err
	}
	return intent.Keep(ctx, journal.Before{Type: journal.TypeStop, Name: u.Name, Enabled: enabled, Active: active})
}

func (u Unit) writeFiles(ctx context.Context, h host.Host) error {
	for _, f := range u.Files {
		changes, err := f.Observe(ctx, h)
		if err != nil {
			return err
		}
		if len(changes) == 0 {
			continue
		}
		if err := f.write(ctx, h); err != nil {
			return err
		}
	}
	return nil
}

// set enables, disables, starts, restarts and stops.
func (u Unit) set(ctx context.Context, h host.Host, log func(string), enabled string, active bool) error {
	if err := run(ctx, h, log, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	var verbs []string
	if !u.enabledAs(enabled) {
		verbs = append(verbs, map[Setting]string{Yes: "enable", No: "disable"}[u.Enabled])
	}
	switch {
	case u.Active == Yes && active:
		verbs = append(verbs, "restart")
	case u.Active == Yes:
		verbs = append(verbs, "start")
	case u.Active == No && active:
		verbs = append(verbs, "stop")
	}
	for _, verb := range verbs {
		if err := run(ctx, h, log, "systemctl", verb, "--", u.Name); err != nil {
			return err
		}
	}
	return nil
}

// showLog shows what the unit said last. That it cannot is no matter: the error
// that led here is the one to report.
func (u Unit) showLog(ctx context.Context, h host.Host, log func(string)) {
	_ = run(ctx, h, log, "journalctl", "--no-pager", "--quiet", "--output=cat", "--lines=15", "--unit="+u.Name)
}

// Prove looks again.
func (u Unit) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, u) }

// Undo restores the files, whether the unit is enabled and whether it runs.
func (u Unit) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }
