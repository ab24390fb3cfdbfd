package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// Restore puts back everything that the deed kept, in reverse order. It may be
// called again: what is as it was stays so. It goes on after an error, and
// returns all. It does not write that the deed is undone.
func (in *Intent) Restore(ctx context.Context) error {
	d, err := in.Deed()
	if err != nil || d.State == Undone {
		return err
	}
	var errs []error
	for _, b := range slices.Backward(d.Before) {
		if err := restore(ctx, in.log.h, b); err != nil {
			errs = append(errs, fmt.Errorf("put back %s %s: %w", b.Type, b.Name, err))
		}
	}
	return errors.Join(errs...)
}

func restore(ctx context.Context, h host.Host, b Before) error {
	switch b.Type {
	case TypeFile:
		return restoreFile(ctx, h, b)
	case TypeBlock:
		return restoreBlock(ctx, h, b)
	case TypeUnit:
		return restoreUnit(ctx, h, b)
	case TypeStop:
		return stopUnit(ctx, h, b)
	case TypeCommand:
		return restoreByCommands(ctx, h, b)
	}
	return fmt.Errorf("unknown type %q", b.Type)
}

func restoreByCommands(ctx context.Context, h host.Host, b Before) error {
	var errs []error
	for _, args := range b.Commands {
		err := run(ctx, h, args...)
		if _, ran := errors.AsType[*host.ExitError](err); ran && b.Tolerant {
			continue
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func restoreFile(ctx context.Context, h host.Host, b Before) error {
	owner := fmt.Sprintf("%d:%d", b.UID, b.GID)
	switch {
	case b.Absent:
		return removeWithParents(ctx, h, b)
	case b.Mode.IsDir():
		return errors.Join(run(ctx, h, "chown", "--", owner, b.Name), run(ctx, h, "chmod", "--", Octal(b.Mode), b.Name))
	case b.Link != "":
		return replace(ctx, h, b.Name, []string{"ln", "-s", "-f", "-T", "--", b.Link}, []string{"chown", "-h", "--", owner})
	case b.Copy == "":
		return fmt.Errorf("a file of mode %v cannot be put back", b.Mode)
	}
	return replace(ctx, h, b.Name, []string{
		"install", "-D", "-m", Octal(b.Mode), "-o", strconv.Itoa(b.UID), "-g", strconv.Itoa(b.GID), "-T", "--", path.Join(BeforeDir, b.Copy),
	}, []string{"sync", "--"})
}

// replace makes a new file by commands that take its name as last argument, and
// puts it in the place of the old one at one go.
func replace(ctx context.Context, h host.Host, name string, commands ...[]string) error {
	fresh := name + ".kubeinit-undo"
	for _, c := range append(commands, []string{"mv", "-f", "-T", "--"}) {
		args := append(slices.Clone(c), fresh)
		if c[0] == "mv" {
			args = append(args, name)
		}
		if err := run(ctx, h, args...); err != nil {
			return err
		}
	}
	return nil
}

// removeWithParents removes a file or directory that was not there before, and
// the directories that were made for it; directories only if nothing is in them.
func removeWithParents(ctx context.Context, h host.Host, b Before) error {
	for _, name := range slices.Backward(append(slices.Clip(b.Made), b.Name)) {
		info, err := h.Stat(ctx, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			continue
		case err != nil:
		case info.Mode.IsDir():
			err = run(ctx, h, "rmdir", "--ignore-fail-on-non-empty", "--", name)
		case name == b.Name:
			err = h.Remove(ctx, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func restoreBlock(ctx context.Context, h host.Host, b Before) error {
	if err := h.Remove(ctx, b.Name+freshSuffix); err != nil {
		return err
	}
	data, err := h.ReadFile(ctx, b.Name)
	if errors.Is(err, fs.ErrNotExist) && (b.Absent || b.Text == "") {
		return nil
	}
	if err != nil {
		return err
	}
	text := string(data)
	if b.Glued && FindBlock(text, b.Mark) != "" && strings.HasSuffix(text, "\n"+FindBlock(text, b.Mark)) {
		text = text[:BlockAt(text, b.Mark)-1]
	}
	if at := b.At; FindBlock(text, b.Mark) == "" && at >= 0 && at < len(text) && (at == 0 || text[at-1] == '\n') {
		text = text[:at] + b.Text + text[at:]
	} else {
		text, _ = PutBlock(text, b.Mark, b.Text)
	}
	switch {
	case text == string(data):
		return nil
	case text == "" && b.Absent:
		return removeWithParents(ctx, h, b)
	}
	return Rewrite(ctx, h, b.Name, []byte(text))
}

// freshSuffix ends the name of a file that is about to replace another.
const freshSuffix = ".kubeinit-new"

// Rewrite gives a file another content at one go, and leaves its mode and owner.
func Rewrite(ctx context.Context, h host.Host, name string, data []byte) error {
	info, err := h.Stat(ctx, name)
	if err != nil {
		return err
	}
	if info.UID == 0 && info.GID == 0 {
		return h.WriteFile(ctx, name, data, info.Mode)
	}
	fresh := name + freshSuffix
	if err := h.WriteFile(ctx, fresh, data, info.Mode.Perm()&0o700); err != nil {
		return err
	}
	for _, args := range [][]string{
		{"chown", "--", fmt.Sprintf("%d:%d", info.UID, info.GID), fresh}, {"chmod", "--", Octal(info.Mode), fresh}, {"mv", "-f", "-T", "--", fresh, name},
	} {
		if err := run(ctx, h, args...); err != nil {
			return err
		}
	}
	return nil
}

// stopUnit stops a unit whose files are about to change back.
func stopUnit(ctx context.Context, h host.Host, b Before) error {
	enabled, active, err := UnitState(ctx, h, b.Name)
	if err != nil {
		return err
	}
	var errs []error
	if active {
		errs = append(errs, run(ctx, h, "systemctl", "stop", "--", b.Name))
	}
	if enabled == "enabled" && b.Enabled != "enabled" {
		errs = append(errs, run(ctx, h, "systemctl", "disable", "--", b.Name))
	}
	return errors.Join(errs...)
}

// restoreUnit brings a unit to its former state, after its files are as they
// were.
func restoreUnit(ctx context.Context, h host.Host, b Before) error {
	if err := run(ctx, h, "systemctl", "daemon-reload"); err != nil {
		return err
	}
	enabled, active, err := UnitState(ctx, h, b.Name)
	if err != nil {
		return err
	}
	var errs []error
	if b.Enabled == "enabled" && enabled != "enabled" {
		errs = append(errs, run(ctx, h, "systemctl", "enable", "--", b.Name))
	}
	if b.Enabled != "enabled" && enabled == "enabled" {
		errs = append(errs, run(ctx, h, "systemctl", "disable", "--", b.Name))
	}
	switch {
	case b.Active && !active:
		errs = append(errs, run(ctx, h, "systemctl", "start", "--", b.Name))
	case !b.Active && active:
		errs = append(errs, run(ctx, h, "systemctl", "stop", "--", b.Name))
	}
	return errors.Join(errs...)
}

// UnitState returns what systemctl is-enabled says of a unit, "not-found" if there
// is none, and whether the unit runs or is about to.
func UnitState(ctx context.Context, h host.Host, unit string) (enabled string, active bool, err error) {
	out, err := h.Run(ctx, host.Command{Args: []string{"systemctl", "show", "--property=LoadState,UnitFileState,ActiveState", "--", unit}})
	if err != nil {
		return "", false, err
	}
	enabled = "disabled"
	for line := range strings.Lines(out.Stdout) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
		switch {
		case key == "LoadState" && (value == "not-found" || value == "masked"):
			enabled = value
		case key == "UnitFileState" && value != "" && enabled == "disabled":
			enabled = value
		case key == "ActiveState":
			active = slices.Contains([]string{"active", "activating", "reloading", "refreshing"}, value)
		}
	}
	return enabled, active, nil
}

// Octal writes the permission bits of a mode as chmod takes them.
func Octal(m fs.FileMode) string {
	bits := uint32(m.Perm())
	for flag, bit := range map[fs.FileMode]uint32{fs.ModeSetuid: 0o4000, fs.ModeSetgid: 0o2000, fs.ModeSticky: 0o1000} {
		if m&flag != 0 {
			bits |= bit
		}
	}
	return fmt.Sprintf("%04o", bits)
}

func run(ctx context.Context, h host.Host, args ...string) error {
	_, err := h.Run(ctx, host.Command{Args: args})
	return err
}
