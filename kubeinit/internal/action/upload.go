package action

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Upload is a big file, such as a program or an archive of images, that is known
// by its digest. It belongs to root.
type Upload struct {
	Path   string
	SHA256 string // in hexadecimal, lower case
	Size   int64
	// Mode are the permission bits; 0 means 0755, as for a program.
	Mode fs.FileMode
	// Open opens the content. It is called only if the host has another file, and
	// twice then: nothing is sent before the digest is right.
	Open func() (io.ReadCloser, error)
	// Once does not keep what was there before: it is for files under kubeinit's
	// own directory that are named by their digest.
	Once bool
}

func (u Upload) mode() fs.FileMode {
	if u.Mode == 0 {
		return 0o755
	}
	return u.Mode
}

// String names the file.
func (u Upload) String() string { return "file " + u.Path }

// Observe compares digest, mode and owner.
func (u Upload) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	fresh := phase.Change{What: u.String(), To: fmt.Sprintf("%d bytes, sha256 %.16s…", u.Size, u.SHA256)}
	info, err := h.Stat(ctx, u.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []phase.Change{fresh}, nil
	case err != nil:
		return nil, err
	case info.Mode&fs.ModeSymlink != 0:
		fresh.From = "symbolic link to " + info.Link
		return []phase.Change{fresh}, nil
	case !info.Mode.IsRegular():
		return nil, fmt.Errorf("%s: %s is there and is no file (%v)", h.Name(), u.Path, info.Mode)
	}
	var changes []phase.Change
	if info.Size != u.Size {
		fresh.From = fmt.Sprintf("%d bytes", info.Size)
		changes = append(changes, fresh)
	} else if digest, err := remoteDigest(ctx, h, u.Path); err != nil {
		return nil, err
	} else if digest != u.SHA256 {
		fresh.From = fmt.Sprintf("%d bytes, sha256 %.16s…", info.Size, digest)
		changes = append(changes, fresh)
	}
	return append(changes, differences(u.Path, info, u.mode(), 0, 0)...), nil
}

func remoteDigest(ctx context.Context, h host.Host, name string) (string, error) {
	out, err := h.Run(ctx, host.Command{Args: []string{"sha256sum", "--", name}})
	if err != nil {
		return "", err
	}
	digest, _, _ := strings.Cut(out.Stdout, " ")
	return strings.TrimPrefix(digest, `\`), nil // a backslash comes before odd file names
}

// Apply sends the file.
func (u Upload) Apply(ctx context.Context, h host.Host, _ func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	if err := u.check(); err != nil {
		return err
	}
	if u.Once {
		err = intent.Keep(ctx, journal.Before{Type: journal.TypeFile, Name: u.Path, Absent: true})
	} else {
		err = intent.KeepFile(ctx, u.Path)
	}
	if err != nil {
		return err
	}
	r, err := u.Open()
	if err != nil {
		return fmt.Errorf("open the content of %s: %w", u.Path, err)
	}
	defer r.Close()
	return h.Upload(ctx, u.Path, r, u.Size, u.mode())
}

// check compares the content at hand with the digest.
func (u Upload) check() error {
	r, err := u.Open()
	if err != nil {
		return fmt.Errorf("open the content of %s: %w", u.Path, err)
	}
	defer r.Close()
	sum := sha256.New()
	n, err := io.Copy(sum, r)
	if err != nil {
		return fmt.Errorf("read the content of %s: %w", u.Path, err)
	}
	if digest := hex.EncodeToString(sum.Sum(nil)); n != u.Size || digest != u.SHA256 {
		return fmt.Errorf("the content of %s has %d bytes and sha256 %s instead of %d and %s", u.Path, n, digest, u.Size, u.SHA256)
	}
	return nil
}

// Prove looks again.
func (u Upload) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, u) }

// Undo restores the file that was there, or its absence.
func (u Upload) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }
