package action

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// File is a regular file as a whole.
type File struct {
	Path    string // absolute
	Content []byte
	// Mode are the permission bits; 0 means 0644, or 0600 for a secret.
	Mode fs.FileMode
	// UID and GID are the owner; root by default.
	UID, GID int
	// Secret hides the content in changes.
	Secret bool
}

func (f File) mode() fs.FileMode {
	switch {
	case f.Mode != 0:
		return f.Mode
	case f.Secret:
		return 0o600
	}
	return 0o644
}

// String names the file.
func (f File) String() string { return "file " + f.Path }

// Observe compares content, mode and owner.
func (f File) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	info, err := h.Stat(ctx, f.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []phase.Change{{What: f.String(), To: f.shown(nil)}}, nil
	case err != nil:
		return nil, err
	case info.Mode&fs.ModeSymlink != 0:
		return []phase.Change{{What: f.String(), From: "symbolic link to " + info.Link, To: f.shown(nil)}}, nil
	case !info.Mode.IsRegular():
		return nil, fmt.Errorf("%s: %s is there and is no file (%v)", h.Name(), f.Path, info.Mode)
	}
	return f.compare(ctx, h, info)
}

// compare finds what differs in a regular file.
func (f File) compare(ctx context.Context, h host.Host, info host.Info) ([]phase.Change, error) {
	data, err := h.ReadFile(ctx, f.Path)
	if err != nil {
		return nil, err
	}
	var changes []phase.Change
	if !bytes.Equal(data, f.Content) {
		c := phase.Change{What: f.String(), To: f.shown(data)}
		if f.Secret {
			c.From = phase.Secret
		}
		changes = append(changes, c)
	}
	return append(changes, differences(f.Path, info, f.mode(), f.UID, f.GID)...), nil
}

// differences finds what differs in mode and owner.
func differences(name string, info host.Info, mode fs.FileMode, uid, gid int) []phase.Change {
	var changes []phase.Change
	if is, shall := journal.Octal(info.Mode), journal.Octal(mode); is != shall {
		changes = append(changes, phase.Change{What: "mode of " + name, From: is, To: shall})
	}
	if is, shall := owner(info.UID, info.GID), owner(uid, gid); is != shall {
		changes = append(changes, phase.Change{What: "owner of " + name, From: is, To: shall})
	}
	return changes
}

func owner(uid, gid int) string { return strconv.Itoa(uid) + ":" + strconv.Itoa(gid) }

// shown is what people see of the new content.
func (f File) shown(old []byte) string {
	if f.Secret {
		return phase.Secret
	}
	return diff(old, f.Content)
}

// Apply writes the file.
func (f File) Apply(ctx context.Context, h host.Host, _ func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	if err := intent.KeepFile(ctx, f.Path); err != nil {
		return err
	}
	return f.write(ctx, h)
}

// write writes the file, whose former state is kept.
func (f File) write(ctx context.Context, h host.Host) error {
	if f.UID == 0 && f.GID == 0 {
		return h.WriteFile(ctx, f.Path, f.Content, f.mode())
	}
	// Nobody but root may read it until its owner is right.
	if err := h.WriteFile(ctx, f.Path, f.Content, f.mode()&0o700); err != nil {
		return err
	}
	if err := run(ctx, h, nil, "chown", "--", owner(f.UID, f.GID), f.Path); err != nil {
		return err
	}
	return run(ctx, h, nil, "chmod", "--", journal.Octal(f.mode()), f.Path)
}

// Prove looks again.
func (f File) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, f) }

// Undo restores the file that was there, or its absence.
func (f File) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }

// Absent is a file or symbolic link that shall not be there.
type Absent struct{ Path string }

// String names the file.
func (a Absent) String() string { return "no file " + a.Path }

// Observe looks whether it is there.
func (a Absent) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	info, err := h.Stat(ctx, a.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case info.Mode&fs.ModeSymlink != 0:
		return []phase.Change{{What: "file " + a.Path, From: "symbolic link to " + info.Link}}, nil
	case !info.Mode.IsRegular():
		return nil, fmt.Errorf("%s: %s is no file (%v)", h.Name(), a.Path, info.Mode)
	}
	return []phase.Change{{What: "file " + a.Path, From: fmt.Sprintf("%d bytes", info.Size)}}, nil
}

// Apply removes it.
func (a Absent) Apply(ctx context.Context, h host.Host, _ func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	if err := intent.KeepFile(ctx, a.Path); err != nil {
		return err
	}
	return h.Remove(ctx, a.Path)
}

// Prove looks again.
func (a Absent) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, a) }

// Undo puts it back.
func (a Absent) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }

// Directory is a directory with its mode and owner. Those above it are made with
// mode 0755.
type Directory struct {
	Path string
	// Mode are the permission bits; 0 means 0755.
	Mode     fs.FileMode
	UID, GID int
}

func (d Directory) mode() fs.FileMode {
	if d.Mode == 0 {
		return 0o755
	}
	return d.Mode
}

// String names the directory.
func (d Directory) String() string { return "directory " + d.Path }

// Observe compares mode and owner.
func (d Directory) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	info, err := h.Stat(ctx, d.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []phase.Change{{What: d.String(), To: journal.Octal(d.mode()) + " " + owner(d.UID, d.GID)}}, nil
	case err != nil:
		return nil, err
	case !info.Mode.IsDir():
		return nil, fmt.Errorf("%s: %s is there and is no directory (%v)", h.Name(), d.Path, info.Mode)
	}
	return differences(d.Path, info, d.mode(), d.UID, d.GID), nil
}

// Apply makes the directory, or changes its mode and owner.
func (d Directory) Apply(ctx context.Context, h host.Host, log func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	if err := intent.KeepFile(ctx, d.Path); err != nil {
		return err
	}
	return run(ctx, h, log, "install", "-d", "-m", journal.Octal(d.mode()), "-o", strconv.Itoa(d.UID), "-g", strconv.Itoa(d.GID), "--", d.Path)
}

// Prove looks again.
func (d Directory) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, d) }

// Undo restores mode and owner, or removes a directory that was not there unless
// something is in it.
func (d Directory) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }
