package journal

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"
)

// Before is how one thing was. Which fields have a meaning depends on Type.
type Before struct {
	Type Type `json:"type"`
	// Name is a path, the name of a unit, or words that describe commands.
	Name string `json:"name"`
	// Mark tells several blocks of a file, or commands of one name, apart.
	Mark string `json:"mark,omitempty"`

	// Absent is a file that was not there.
	Absent bool `json:"absent,omitempty"`
	// Made are directories that were not there, the outermost first.
	Made []string    `json:"made,omitempty"`
	Mode fs.FileMode `json:"mode,omitempty"` // of a file or directory
	UID  int         `json:"uid,omitempty"`
	GID  int         `json:"gid,omitempty"`
	Link string      `json:"link,omitempty"` // what a symbolic link points to
	// Copy is the name of the file under BeforeDir that has the former content.
	Copy string `json:"copy,omitempty"`

	// Text is the former block, with its marks; empty if there was none.
	Text string `json:"text,omitempty"`
	// At is where the former block began, in bytes.
	At int `json:"at,omitempty"`
	// Glued says that the file did not end in a newline before the block.
	Glued bool `json:"glued,omitempty"`

	// Enabled is what systemctl is-enabled said of a unit, and Active whether it
	// ran.
	Enabled string `json:"enabled,omitempty"`
	Active  bool   `json:"active,omitempty"`

	// Commands take something back, one after another. Tolerant ones may fail.
	Commands [][]string `json:"commands,omitempty"`
	Tolerant bool       `json:"tolerant,omitempty"`
}

// Type says what kind of thing a Before is about, and so how it is put back.
type Type string

// The types. Things are put back in the reverse order of keeping.
const (
	// TypeFile is a file, symbolic link or directory as a whole.
	TypeFile Type = "file"
	// TypeBlock is a part of a file that others may change, too.
	TypeBlock Type = "block"
	// TypeUnit is a unit of systemd, to be put back once its files are as they
	// were. It is kept before the files.
	TypeUnit Type = "unit"
	// TypeStop stops a unit, and disables it if it was not enabled. It is kept
	// after the unit's files.
	TypeStop Type = "stop"
	// TypeCommand is anything else.
	TypeCommand Type = "command"
)

// check finds what must not be acted upon.
func (b *Before) check() error {
	paths := slices.Clone(b.Made)
	switch b.Type {
	case TypeFile, TypeBlock:
		paths = append(paths, b.Name)
	case TypeUnit, TypeStop:
		if b.Name == "" || strings.HasPrefix(b.Name, "-") || strings.Contains(b.Name, "/") {
			return fmt.Errorf("%q is no name of a unit", b.Name)
		}
	case TypeCommand:
		for _, c := range b.Commands {
			if len(c) == 0 || c[0] == "" {
				return fmt.Errorf("%s has an empty command", b.Name)
			}
		}
	default:
		return fmt.Errorf("unknown type %q of what was before", b.Type)
	}
	for _, p := range paths {
		if !path.IsAbs(p) || path.Clean(p) != p || p == "/" {
			return fmt.Errorf("%q is no clean absolute path", p)
		}
	}
	if strings.ContainsAny(b.Copy, "/\x00") || b.Copy == "." || b.Copy == ".." {
		return fmt.Errorf("%q is no name of a kept file", b.Copy)
	}
	return nil
}
