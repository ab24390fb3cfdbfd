// Package host works on remote machines: it runs commands and reads and writes
// files.
//
// SSH is a machine that is reached over SSH. It needs nothing there but a POSIX
// shell and coreutils: no SFTP server, no agent. Fake is a machine in memory,
// for tests. Both pass the same contract test. RunUnit runs long commands as
// units of systemd, which outlive the connection.
package host

import (
	"context"
	"errors"
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
	// another status than 0; what it wrote is returned then as well. The error
	// matches ErrLost if the connection broke, and the command may still run
	// then. If ctx ends, so does the command: it gets SIGTERM, and SIGKILL
	// three seconds later, with all that it has started in its process group.
	Run(ctx context.Context, c Command) (Output, error)
	// ReadFile reads a file of at most 16 MiB. The error matches
	// fs.ErrNotExist if there is none.
	ReadFile(ctx context.Context, path string) ([]byte, error)
	// Stat describes a file and does not follow a symbolic link. The error
	// matches fs.ErrNotExist if there is none.
	Stat(ctx context.Context, path string) (Info, error)
	// WriteFile replaces a file, or a symbolic link, as a whole or not at all,
	// and makes the directories that it needs, with mode 0755. The file belongs
	// to root, and has exactly this mode.
	WriteFile(ctx context.Context, path string, data []byte, mode fs.FileMode) error
	// Upload does the same for a big file of which the size is known. If r
	// gives another number of bytes, nothing is replaced.
	Upload(ctx context.Context, path string, r io.Reader, size int64, mode fs.FileMode) error
	// Remove removes a file, symbolic link or empty directory. It is no error
	// if there is none.
	Remove(ctx context.Context, path string) error
	// Close ends the connection and whatever is under way. Calls after it
	// return an error that matches net.ErrClosed.
	Close() error
}

// Command is what Run runs.
type Command struct {
	// Args are the program, which is looked up in PATH, and its arguments; no
	// shell interprets them. They never hold a secret, because
	// every user of the host can see them.
	Args []string
	// Env is added to the environment, as KEY=value; no secrets either. LC_ALL
	// is C if it does not say otherwise.
	Env []string
	// Stdin may hold secrets. Nil is an empty one. If the command ends before
	// it has read everything, a Read may still be under way when Run returns.
	Stdin io.Reader
	// Output gets each line of both outputs as it comes, in one goroutine at a
	// time. May be nil.
	// Bytes that are not UTF-8 are replaced, and lines end after 64 KiB.
	Output func(line string)
	// Secret keeps the output out of logs and errors: ExitError.Tail is empty.
	Secret bool
	// Limit is how many bytes of each output are kept; 0 means 1 MiB.
	Limit int
}

// Output is what a command wrote, from its beginning.
type Output struct {
	Stdout, Stderr string
	// Truncated says that there was more than Command.Limit.
	Truncated bool
}

// Info describes a file.
type Info struct {
	Mode     fs.FileMode
	Size     int64
	UID, GID int
	Link     string // what a symbolic link points to
}

// ErrLost is the cause of errors of calls whose connection broke. What they were
// about may have happened or not. The next call connects anew.
var ErrLost = errors.New("connection lost")

// ExitError is a command that ran and did not succeed.
type ExitError struct {
	Host string
	Args []string
	// Code is the exit status, or 128 and the number of the signal that ended
	// the command.
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
