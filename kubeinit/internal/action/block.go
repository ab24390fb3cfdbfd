package action

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Block is some lines in a file that others may change, too, between two lines
// that name them. The rest of the file stays as it is, also when the block is
// taken back.
type Block struct {
	Path string
	// Mark names the block; there is one of each name in a file.
	Mark string
	// Text are the lines; without any, the block shall not be there.
	Text string
}

// block is the text with its marks.
func (b Block) block() string {
	if b.Text == "" {
		return ""
	}
	return journal.Block(b.Mark, b.Text)
}

// String names the block.
func (b Block) String() string { return fmt.Sprintf("block %q of %s", b.Mark, b.Path) }

// Observe compares the block.
func (b Block) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	text, _, err := b.read(ctx, h)
	if err != nil {
		return nil, err
	}
	old := journal.FindBlock(text, b.Mark)
	if old == b.block() {
		return nil, nil
	}
	return []phase.Change{{What: b.String(), To: diff([]byte(old), []byte(b.block()))}}, nil
}

// read returns the file, which may be absent, and checks that the block can be in
// it.
func (b Block) read(ctx context.Context, h host.Host) (text string, absent bool, err error) {
	if strings.TrimSpace(b.Mark) != b.Mark || b.Mark == "" || strings.ContainsAny(b.Mark, "\n\r") || b.Text != "" && journal.FindBlock(b.block(), b.Mark) != b.block() {
		return "", false, fmt.Errorf("%q cannot mark a block of this text", b.Mark)
	}
	info, err := h.Stat(ctx, b.Path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return "", true, nil
	case err != nil:
		return "", false, err
	case !info.Mode.IsRegular():
		return "", false, fmt.Errorf("%s: %s is there and is no file (%v)", h.Name(), b.Path, info.Mode)
	}
	data, err := h.ReadFile(ctx, b.Path)
	return string(data), false, err
}

// Apply puts the block into the file.
func (b Block) Apply(ctx context.Context, h host.Host, _ func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	text, absent, err := b.read(ctx, h)
	if err != nil {
		return err
	}
	fresh, glued := journal.PutBlock(text, b.Mark, b.block())
	before := journal.Before{
		Type: journal.TypeBlock, Name: b.Path, Mark: b.Mark, Absent: absent, Glued: glued, Text: journal.FindBlock(text, b.Mark),
	}
	if before.Text != "" {
		before.At = journal.BlockAt(text, b.Mark)
	}
	if absent {
		if before.Made, err = journal.Missing(ctx, h, b.Path); err != nil {
			return err
		}
	}
	if err := intent.Keep(ctx, before); err != nil {
		return err
	}
	if absent {
		return h.WriteFile(ctx, b.Path, []byte(fresh), 0o644)
	}
	return journal.Rewrite(ctx, h, b.Path, []byte(fresh))
}

// Prove looks again.
func (b Block) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, b) }

// Undo restores the block that was there, or its absence.
func (b Block) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }

// hostsFile is where glibc looks for names first.
const hostsFile = "/etc/hosts"

// HostsEntry is an address with its names.
type HostsEntry struct {
	Addr  netip.Addr
	Names []string
}

// Hosts are names in /etc/hosts.
type Hosts struct {
	// Mark names the block; see Block.
	Mark    string
	Entries []HostsEntry
}

func (e Hosts) block() Block {
	var text strings.Builder
	for _, entry := range e.Entries {
		text.WriteString(entry.Addr.String() + " " + strings.Join(entry.Names, " ") + "\n")
	}
	return Block{Path: hostsFile, Mark: e.Mark, Text: text.String()}
}

// String names the block.
func (e Hosts) String() string { return e.block().String() }

// Observe compares the block. It is an error if somebody else gives one of the
// names another address in the same file, because that would win.
func (e Hosts) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	b := e.block()
	text, _, err := b.read(ctx, h)
	if err != nil {
		return nil, err
	}
	foreign, _ := journal.PutBlock(text, b.Mark, "")
	if err := e.contradicted(h.Name(), foreign); err != nil {
		return nil, err
	}
	return b.Observe(ctx, h)
}

// contradicted finds lines of others that give a name another address of the same
// family.
func (e Hosts) contradicted(name, text string) error {
	for line := range strings.Lines(text) {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		addr, err := netip.ParseAddr(fields[0])
		if err != nil {
			continue // somebody else's mistake
		}
		for _, entry := range e.Entries {
			for _, n := range entry.Names {
				if entry.Addr != addr && entry.Addr.Is4() == addr.Is4() && slices.Contains(fields[1:], n) {
					return cli.Hint(fmt.Errorf("%s: %s gives %s the address %v instead of %v", name, hostsFile, n, addr, entry.Addr),
						fmt.Sprintf("remove the line %q from %s of %s", strings.TrimSpace(line), hostsFile, name))
				}
			}
		}
	}
	return nil
}

// Apply writes the block.
func (e Hosts) Apply(ctx context.Context, h host.Host, log func(string)) error {
	return e.block().Apply(ctx, h, log)
}

// Prove looks again.
func (e Hosts) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, e) }

// Undo restores the block that was there, or its absence.
func (e Hosts) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }
