package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// Where things are on a host.
const (
	Dir       = "/var/lib/kubeinit"
	File      = Dir + "/journal.jsonl"
	BeforeDir = Dir + "/before" // mode 0700, its files 0600
)

// Bounds of a journal. host.Host reads files of at most 16 MiB, and a cluster's
// host has some fifty steps of a few hundred bytes each.
const (
	compactAt = 1 << 20 // bytes; a bigger file is written anew without what has no meaning any more
	maxFile   = 8 << 20 // bytes; a bigger one is refused
	maxKept   = 1 << 30 // bytes of a file that is kept before it changes; programs have some 100 MiB
	maxText   = 200     // bytes of one change
	maxTexts  = 50      // changes of one deed
)

// Log is the journal of one host. It is safe for concurrent use, by one process:
// who changes a cluster holds its lock.
type Log struct {
	h   host.Host
	now func() time.Time

	mu    sync.Mutex
	deeds []Deed
	size  int
	torn  bool // the file does not end in a newline
	ready bool // file and directories are there
	lost  bool // a line was perhaps written: what is known may not be what is there
}

// Open reads the journal of a host, and changes nothing. A host without one has
// an empty journal.
func Open(ctx context.Context, h host.Host) (*Log, error) {
	l := &Log{h: h, now: time.Now}
	if err := l.load(ctx); err != nil {
		return nil, err
	}
	return l, nil
}

// load reads the file. The caller holds mu or has the log for itself.
func (l *Log) load(ctx context.Context) error {
	data, err := l.h.ReadFile(ctx, File)
	if errors.Is(err, fs.ErrNotExist) {
		data, err = nil, nil
	}
	if err != nil {
		return fmt.Errorf("%s: read journal: %w", l.h.Name(), err)
	}
	entries, torn, err := decode(data)
	var deeds []Deed
	if err == nil {
		deeds, err = fold(entries)
	}
	if err != nil {
		return cli.Hint(fmt.Errorf("%s: journal %s: %w", l.h.Name(), File, err),
			"look at the file; without it kubeinit cannot take back what it did on this host")
	}
	l.deeds, l.size, l.torn, l.lost = deeds, len(data), torn, false
	return nil
}

// reload reads the file again if what is in it is not known. The caller holds mu.
func (l *Log) reload(ctx context.Context) error {
	if !l.lost {
		return nil
	}
	return l.load(ctx)
}

// Deeds returns all deeds, the oldest first.
func (l *Log) Deeds() []Deed {
	l.mu.Lock()
	defer l.mu.Unlock()
	deeds := slices.Clone(l.deeds)
	for i := range deeds {
		deeds[i].Before = slices.Clone(deeds[i].Before)
	}
	return deeds
}

// ToUndo returns what must be taken back to have the host as it was before the
// first deed, in the order in which that is to be done: the newest first.
func (l *Log) ToUndo() []Deed {
	deeds := slices.DeleteFunc(l.Deeds(), func(d Deed) bool { return d.State == Undone })
	slices.Reverse(deeds)
	return deeds
}

// Interrupted tells whether step began and never came to its end.
func (l *Log) Interrupted(step string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.openDeed(step) != nil
}

// openDeed finds the interrupted deed of a step. The caller holds mu.
func (l *Log) openDeed(step string) *Deed {
	for i := range l.deeds {
		if d := &l.deeds[i]; d.Step == step && d.State == Intended {
			return d
		}
	}
	return nil
}

// Begin writes down that step is about to change something, and returns once
// that is on the disk. A step that was interrupted goes on with its old intent,
// so that undoing it leads to what was before its first try.
func (l *Log) Begin(ctx context.Context, step, action string, changes []string) (*Intent, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.prepare(ctx); err != nil {
		return nil, err
	}
	if err := l.reload(ctx); err != nil {
		return nil, err
	}
	if d := l.openDeed(step); d != nil {
		return &Intent{log: l, seq: d.Seq}, nil
	}
	seq := int64(1)
	if n := len(l.deeds); n > 0 {
		seq = l.deeds[n-1].Seq + 1
	}
	e := Entry{Seq: seq, Kind: Intended, Step: step, Action: action, Changes: shorten(changes)}
	if err := l.append(ctx, e); err != nil {
		return nil, err
	}
	return &Intent{log: l, seq: seq}, nil
}

// Resume returns the intent of a deed that Deeds or ToUndo returned.
func (l *Log) Resume(d Deed) *Intent { return &Intent{log: l, seq: d.Seq} }

// shorten bounds what an intent says about its changes.
func shorten(changes []string) []string {
	var out []string
	for _, c := range changes[:min(len(changes), maxTexts)] {
		if len(c) > maxText {
			c = c[:maxText] + "…"
		}
		out = append(out, c)
	}
	return out
}

// prepare makes the file and the directories, and the file smaller if it is too
// big. The caller holds mu.
func (l *Log) prepare(ctx context.Context) error {
	if l.ready {
		return nil
	}
	if _, err := l.h.Run(ctx, host.Command{Args: []string{"install", "-d", "-m", "0755", "--", Dir}}); err != nil {
		return fmt.Errorf("prepare journal: %w", err)
	}
	if _, err := l.h.Run(ctx, host.Command{Args: []string{"install", "-d", "-m", "0700", "--", BeforeDir}}); err != nil {
		return fmt.Errorf("prepare journal: %w", err)
	}
	_, err := l.h.Stat(ctx, File)
	if errors.Is(err, fs.ErrNotExist) {
		err = l.h.WriteFile(ctx, File, nil, 0o600)
	}
	if err == nil && l.size > compactAt {
		err = l.compact(ctx)
	}
	if err != nil {
		return fmt.Errorf("%s: prepare journal: %w", l.h.Name(), err)
	}
	l.ready = true
	return nil
}

// appendScript adds its input of $2 bytes to the file $1, and has it on the disk
// when it ends. It writes nothing if the input is shorter: a script whose
// connection broke may find that out late, when others have written already. The
// status is EX_IOERR of sysexits.h then.
const appendScript = `set -e
data=$(cat; echo .)
[ "${#data}" -eq "$(($2 + 1))" ] || exit 74
printf '%s' "${data%.}" >>"$1"
sync -- "$1"
`

// append writes lines, all of the same deed, and remembers them once they are on
// the disk. The caller holds mu.
func (l *Log) append(ctx context.Context, entries ...Entry) error {
	if err := l.reload(ctx); err != nil {
		return err
	}
	for i := range entries {
		entries[i].Time = l.now().UTC().Truncate(time.Millisecond)
		entries[i].Torn = l.torn && i == 0
	}
	data, err := encode(entries)
	if err != nil {
		return err
	}
	if l.torn {
		data = append([]byte{'\n'}, data...)
	}
	if l.size+len(data) > maxFile {
		return cli.Hint(fmt.Errorf("%s: journal %s is full", l.h.Name(), File), "kubeinit reset "+l.h.Name())
	}
	_, err = l.h.Run(ctx, host.Command{
		Args:  []string{"sh", "-c", appendScript, "kubeinit-journal", File, strconv.Itoa(len(data))},
		Stdin: bytes.NewReader(data),
	})
	if err != nil {
		l.lost = true
		return fmt.Errorf("write journal: %w", err)
	}
	l.size += len(data)
	l.torn = false
	return l.remember(entries)
}

// remember adds lines to what is known.
func (l *Log) remember(entries []Entry) error {
	for _, e := range entries {
		if e.Kind == Intended {
			deed, err := fold([]Entry{e})
			if err != nil {
				return err
			}
			l.deeds = append(l.deeds, deed...)
			continue
		}
		d, err := l.find(e.Seq)
		if err == nil {
			err = d.add(e)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (l *Log) find(seq int64) (*Deed, error) {
	for i := range l.deeds {
		if l.deeds[i].Seq == seq {
			return &l.deeds[i], nil
		}
	}
	return nil, fmt.Errorf("%s: journal has no deed %d", l.h.Name(), seq)
}

// compact writes the file anew without deeds that are undone, and without
// records of what an older deed of the same step has kept before: to take
// everything back, only the oldest is needed. Former contents that nobody needs
// any more are removed last; those that a crash leaves go with the journal. The
// caller holds mu.
func (l *Log) compact(ctx context.Context) error {
	kept, dropped := squash(l.deeds)
	var entries []Entry
	for _, d := range kept {
		entries = append(entries, d.entries()...)
	}
	data, err := encode(entries)
	if err != nil {
		return err
	}
	if err := l.h.WriteFile(ctx, File, data, 0o600); err != nil {
		return err
	}
	l.deeds, l.size, l.torn = kept, len(data), false
	for _, b := range dropped {
		if err := l.dropCopy(ctx, b); err != nil {
			return err
		}
	}
	return nil
}

// squash decides what compact keeps and drops.
func squash(deeds []Deed) (kept []Deed, dropped []Before) {
	oldest := map[[4]string]bool{}
	known := map[string]bool{}
	for _, d := range deeds {
		if d.State == Undone {
			dropped = append(dropped, d.Before...)
			continue
		}
		var before []Before
		for _, b := range d.Before {
			key := [4]string{d.Step, string(b.Type), b.Name, b.Mark}
			if d.State == Done && oldest[key] {
				dropped = append(dropped, b)
				continue
			}
			before, oldest[key] = append(before, b), true
		}
		// A deed that keeps nothing may still have to be undone, once.
		if d.State == Intended || len(before) > 0 || len(d.Before) == 0 && !known[d.Step] {
			d.Before = before
			kept = append(kept, d)
		}
		known[d.Step] = true
	}
	return kept, dropped
}

// entries are the lines of a deed that is not undone.
func (d *Deed) entries() []Entry {
	out := []Entry{{Seq: d.Seq, Kind: Intended, Time: d.Time, Step: d.Step, Action: d.Action, Changes: d.Changes}}
	for _, b := range d.Before {
		out = append(out, Entry{Seq: d.Seq, Kind: Kept, Time: d.Time, Before: &b})
	}
	if d.State == Done {
		out = append(out, Entry{Seq: d.Seq, Kind: Done, Time: d.Time})
	}
	return out
}

func (l *Log) dropCopy(ctx context.Context, b Before) error {
	if b.Copy == "" {
		return nil
	}
	return l.h.Remove(ctx, path.Join(BeforeDir, b.Copy))
}

// ErrNotUndone is returned by End while there is something to take back.
var ErrNotUndone = errors.New("not everything is taken back")

// End removes the journal and everything else of kubeinit under Dir. It is the
// last act of a reset. The error matches ErrNotUndone if a deed is left, unless
// force is set.
func (l *Log) End(ctx context.Context, force bool) error {
	if left := l.ToUndo(); len(left) > 0 && !force {
		return fmt.Errorf("%s: %w: %d steps are left, the last is %s", l.h.Name(), ErrNotUndone, len(left), left[0].Step)
	}
	if _, err := l.h.Run(ctx, host.Command{Args: []string{"rm", "-rf", "--one-file-system", "--", Dir}}); err != nil {
		return fmt.Errorf("remove journal: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.deeds, l.size, l.torn, l.ready = nil, 0, false, false
	return nil
}
