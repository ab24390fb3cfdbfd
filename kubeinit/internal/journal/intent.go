package journal

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"strconv"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// Intent is a deed in the making: what an action uses to remember how things
// were, and to put them back. It is safe for concurrent use.
type Intent struct {
	log *Log
	seq int64
}

type intentKey struct{}

// With returns a context that carries in.
func With(ctx context.Context, in *Intent) context.Context {
	return context.WithValue(ctx, intentKey{}, in)
}

// From returns the intent that ctx carries. It is an error if there is none:
// nothing is to be changed that could not be taken back.
func From(ctx context.Context) (*Intent, error) {
	in, ok := ctx.Value(intentKey{}).(*Intent)
	if !ok {
		return nil, errors.New("nothing may be changed without a journal")
	}
	return in, nil
}

// Deed returns what is known of the deed.
func (in *Intent) Deed() (Deed, error) {
	in.log.mu.Lock()
	defer in.log.mu.Unlock()
	d, err := in.log.find(in.seq)
	if err != nil {
		return Deed{}, err
	}
	return *d, nil
}

// Keep writes down how things are before they are changed, and returns once that
// is on the disk. What the deed has kept already stays as it was kept first, so
// that a second try does not take the half-changed for the original.
func (in *Intent) Keep(ctx context.Context, before ...Before) error {
	l := in.log
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.reload(ctx); err != nil {
		return err
	}
	d, err := l.find(in.seq)
	if err != nil {
		return err
	}
	var entries []Entry
	for _, b := range before {
		if err := b.check(); err != nil {
			return err
		}
		if d.has(b) {
			continue
		}
		entries = append(entries, Entry{Seq: in.seq, Kind: Kept, Before: &b})
	}
	if len(entries) == 0 {
		return nil
	}
	return l.append(ctx, entries...)
}

// KeepFile keeps a file, symbolic link or the absence of either, with mode, owner
// and content, and which directories above it are missing. Of a directory it
// keeps mode and owner.
func (in *Intent) KeepFile(ctx context.Context, name string) error {
	d, err := in.Deed()
	if err != nil {
		return err
	}
	b := Before{Type: TypeFile, Name: name}
	if d.has(b) {
		return nil
	}
	info, err := in.log.h.Stat(ctx, name)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		b.Absent = true
		if b.Made, err = Missing(ctx, in.log.h, name); err != nil {
			return err
		}
	case err != nil:
		return fmt.Errorf("keep %s: %w", name, err)
	default:
		b.Mode, b.UID, b.GID, b.Link = info.Mode, info.UID, info.GID, info.Link
	}
	if info.Size > maxKept && info.Mode.IsRegular() {
		return cli.Hint(fmt.Errorf("%s: %s has %d bytes, too many to keep a copy", in.log.h.Name(), name, info.Size), "move it away")
	}
	if !b.Absent && info.Mode.IsRegular() {
		b.Copy = strconv.FormatInt(in.seq, 10) + "-" + strconv.Itoa(len(d.Before))
		if err := in.copyFile(ctx, name, b.Copy); err != nil {
			return err
		}
	}
	return in.Keep(ctx, b)
}

// copyFile keeps the content of a file, unseen by anyone but root.
func (in *Intent) copyFile(ctx context.Context, name, copied string) error {
	to := path.Join(BeforeDir, copied)
	for _, args := range [][]string{
		{"install", "-m", "0600", "-T", "--", name, to},
		{"sync", "--", to},
	} {
		if _, err := in.log.h.Run(ctx, host.Command{Args: args}); err != nil {
			return fmt.Errorf("keep %s: %w", name, err)
		}
	}
	return nil
}

// Missing returns the directories above name that do not exist, the outermost
// first.
func Missing(ctx context.Context, h host.Host, name string) ([]string, error) {
	var missing []string
	for dir := path.Dir(name); dir != "/" && dir != "."; dir = path.Dir(dir) {
		_, err := h.Stat(ctx, dir)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("look at %s: %w", dir, err)
		}
		missing = append([]string{dir}, missing...)
	}
	return missing, nil
}

// Done writes down that the deed is done.
func (in *Intent) Done(ctx context.Context) error { return in.end(ctx, Done) }

// Undone writes down that the deed is taken back, and removes what was kept for
// that. It may be called again.
func (in *Intent) Undone(ctx context.Context) error {
	d, err := in.Deed()
	if err != nil {
		return err
	}
	if d.State != Undone {
		if err := in.end(ctx, Undone); err != nil {
			return err
		}
	}
	for _, b := range d.Before {
		if err := in.log.dropCopy(ctx, b); err != nil {
			return fmt.Errorf("remove what was kept: %w", err)
		}
	}
	return nil
}

func (in *Intent) end(ctx context.Context, kind Kind) error {
	in.log.mu.Lock()
	defer in.log.mu.Unlock()
	return in.log.append(ctx, Entry{Seq: in.seq, Kind: kind})
}

// has tells whether the same thing was kept before.
func (d *Deed) has(b Before) bool {
	for _, k := range d.Before {
		if k.Type == b.Type && k.Name == b.Name && k.Mark == b.Mark {
			return true
		}
	}
	return false
}
