package action

import (
	"context"
	"errors"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// Images are container images that containerd has, for the kubelet to use.
type Images struct {
	// Archive is the file on the host that has them; see Upload.
	Archive string
	// Refs are their names, as ctr images ls prints them.
	Refs []string
}

// ctr begins every command; the namespace is the one of the kubelet.
var ctr = []string{"ctr", "-n", "k8s.io", "images"}

// String names the archive.
func (i Images) String() string { return "images of " + i.Archive }

// missing returns the images that containerd does not have: all, as long as it
// does not run.
func (i Images) missing(ctx context.Context, h host.Host) ([]string, error) {
	out, err := h.Run(ctx, host.Command{Args: append(slices.Clip(ctr), "ls", "-q"), Limit: 8 << 20})
	if _, ran := errors.AsType[*host.ExitError](err); ran {
		return i.Refs, nil
	}
	if err != nil {
		return nil, err
	}
	have := strings.Fields(out.Stdout)
	return slices.DeleteFunc(slices.Clone(i.Refs), func(ref string) bool { return slices.Contains(have, ref) }), nil
}

// Observe looks which images are missing.
func (i Images) Observe(ctx context.Context, h host.Host) ([]phase.Change, error) {
	missing, err := i.missing(ctx, h)
	var changes []phase.Change
	for _, ref := range missing {
		changes = append(changes, phase.Change{What: "image " + ref, To: "imported"})
	}
	return changes, err
}

// Apply imports the archive.
func (i Images) Apply(ctx context.Context, h host.Host, log func(string)) error {
	intent, err := journal.From(ctx)
	if err != nil {
		return err
	}
	missing, err := i.missing(ctx, h)
	if err != nil {
		return err
	}
	// Whoever removed one of them, or containerd, meanwhile did it for us.
	err = intent.Keep(ctx, journal.Before{
		Type: journal.TypeCommand, Name: i.String(), Commands: [][]string{append(append(slices.Clip(ctr), "rm"), missing...)}, Tolerant: true,
	})
	if err != nil {
		return err
	}
	_, err = h.Run(ctx, host.Command{Args: append(slices.Clip(ctr), "import", i.Archive), Output: log})
	return err
}

// Prove looks again.
func (i Images) Prove(ctx context.Context, h host.Host) error { return prove(ctx, h, i) }

// Undo removes the images that were not there.
func (i Images) Undo(ctx context.Context, _ host.Host) error { return undo(ctx) }
