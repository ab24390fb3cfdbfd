package routeset

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/overlay"
)

// File is the name of the state file with all sets.
const File = "routesets"

// stored is what is in the file.
type stored struct {
	Version int   `json:"version"`
	Sets    []Set `json:"sets"`
}

const storedVersion = 1

// Load reads the sets that Save stored, in the order of their names. A file
// that is not what Save writes is overlay.ErrStateCorrupt.
func Load(store overlay.Store) ([]Set, error) {
	b, err := store.Load(File)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	sets, err := decode(b)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", File, err, overlay.ErrStateCorrupt)
	}
	return sets, nil
}

// decode reads a file. Every set in it must be one that Parse lets pass.
func decode(b []byte) ([]Set, error) {
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, err
	}
	if s.Version != storedVersion {
		return nil, fmt.Errorf("version %d, want %d", s.Version, storedVersion)
	}
	if len(s.Sets) > MaxSets {
		return nil, fmt.Errorf("%d sets, want at most %d", len(s.Sets), MaxSets)
	}
	for i, set := range s.Sets {
		if i > 0 && s.Sets[i-1].Name >= set.Name {
			return nil, fmt.Errorf("route set %q is out of order", set.Name)
		}
		again, err := json.Marshal(contentOf(set))
		if err != nil {
			return nil, err
		}
		if s.Sets[i], err = Parse(set.Name, again); err != nil {
			return nil, err
		}
	}
	return s.Sets, nil
}

// contentOf is the form that Parse reads.
func contentOf(s Set) map[string]any {
	return map[string]any{"announce": s.Announce, "lan": s.LAN}
}

// Save stores all sets, on disk before it returns.
func Save(store overlay.Store, sets []Set) error {
	sorted := slices.SortedFunc(slices.Values(sets), byName)
	b, err := json.MarshalIndent(stored{storedVersion, sorted}, "", "  ")
	if err != nil {
		return err
	}
	return store.Save(File, append(b, '\n'))
}

func byName(a, b Set) int { return strings.Compare(a.Name, b.Name) }
