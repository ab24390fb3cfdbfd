// Package host works on remote machines: it runs commands and reads and writes
// files.
package host

import (
	"context"
	"fmt"
	"io"
	"io/fs"
	"strings"
)

// Host is a machine that is worked on as root. All methods are safe for
// concurrent use.
type Host interface {
	// Name is the host's name in the inventory.
	Name() string
	// Run runs a command to its end. The error is *ExitError if it ended with
	// another status than 0.
	Run(ctx context.Context, c Command) (Output, error)
	// ReadFile reads a file of at most 16 MiB. The error matches
	// fs.ErrNotExist if there is none.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// Stat describes a file and does not follow a symbolic link. The error
	// matches fs.ErrNotExist if there is none.
	Stat(ctx context.Context, path string) (Info, error)
	// WriteFile replaces a file as a whole or not at all, and makes the
	// directories that it needs, with mode 0755.
	WriteFile(ctx context.Context, path string, data []byte, mode fs.FileMode) error
	// Upload does the same for a big file of which size is known.
	Upload(ctx context.Context, path string, r io.Reader, size int64, mode fs.FileMode) error
	// Remove removes a file, symbolic link or empty directory. It is no error
	// if there is none.
	Remove(ctx context.Context, path string) error
	// Close ends the connection.
	Close() error
}

// Command is what Run runs.
type Command struct {
	// Args are the program and its arguments. They never hold a secret, because
	// every user of the host can see them.
	Args []string
	// Env is added to the environment, as KEY=value; no secrets either.
	Env []string
	// Stdin may hold secrets. Nil is an empty one.
	Stdin io.Reader
	// Output gets each line of both outputs as it comes, in one goroutine at a
	// time. May be nil.
	Output func(line string)
	// Secret keeps the output out of logs and errors.
	Secret bool
	// Limit is how many bytes of each output are kept; 0 means 1 MiB.
	Limit int
}

// Output is what a command wrote.
type Output struct{ Stdout, Stderr string }

// Info describes a file.
type Info struct {
	Mode     fs.FileMode
	Size     int64
	UID, GID int
	Link     string // what a symbolic link points to
}

// ExitError is a command that ran and did not succeed.
type ExitError struct {
	Host string
	Args []string
	Code int
	// Tail are the last lines, at most 20, of both outputs.
	Tail []string
}

// Error names the command and its last words.
func (e *ExitError) Error() string {
	text := fmt.Sprintf("%s: %s: exit status %d", e.Host, strings.Join(e.Args, " "), e.Code)
	if len(e.Tail) > 0 {
		text += ": " + e.Tail[len(e.Tail)-1]
	}
	return text
}
