package host

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
)

// maxFile is the size of the largest file that ReadFile reads, in bytes.
const maxFile = 16 << 20

// absent is the exit status of our scripts if there is no such file. No program
// that they call uses it.
const absent = 200

// The scripts need a POSIX shell and coreutils; BusyBox has enough of them. The
// path is their first argument; it is absolute, so it never looks like an
// option.
const (
	readScript = `[ -e "$1" ] || exit 200
exec head -c "$2" -- "$1"`

	statScript = `[ -e "$1" ] || [ -L "$1" ] || exit 200
stat -c '%f %s %u %g' -- "$1" || exit
[ ! -L "$1" ] || exec readlink -n -- "$1"`

	// The size is checked, because a broken connection looks like the end of
	// the data. Without "sync FILE" (old BusyBox) everything is written out.
	writeScript = `set -eu
umask 022
if [ -d "$1" ] && [ ! -L "$1" ]; then echo "$1: is a directory" >&2; exit 1; fi
mkdir -p -- "$2"
umask 077
t=$(mktemp "${2%/}/.kubeinit.XXXXXXXXXX")
trap 'rm -f -- "$t"' EXIT
trap 'exit 1' HUP INT PIPE TERM
cat >"$t"
n=$(wc -c <"$t")
if [ "$n" -ne "$4" ]; then echo "$1: $n bytes came instead of $4" >&2; exit 1; fi
chmod "$3" "$t"
sync "$t" 2>/dev/null || sync
mv -fT -- "$t" "$1"
sync "$2" 2>/dev/null || sync`

	removeScript = `if [ -d "$1" ] && [ ! -L "$1" ]; then exec rmdir -- "$1"; fi
exec rm -f -- "$1"`
)

// runner is the part of a Host that the rest can be made of.
type runner interface {
	Name() string
	Run(ctx context.Context, c Command) (Output, error)
}

func script(text string, args ...string) []string {
	return append([]string{"sh", "-c", text, "kubeinit"}, args...)
}

// fileError says what was done to which file of which host.
func fileError(r runner, op, name string, out Output, err error) error {
	exit, ok := errors.AsType[*ExitError](err)
	said := strings.TrimSpace(out.Stderr)
	switch {
	case ok && exit.Code == absent:
		err = fs.ErrNotExist
	case ok && said != "":
		err = errors.New(said[strings.LastIndexByte(said, '\n')+1:])
	case ok:
		err = fmt.Errorf("exit status %d", exit.Code)
	default:
		return fmt.Errorf("%s %s: %w", op, name, err) // names the host already
	}
	return fmt.Errorf("%s: %w", r.Name(), &fs.PathError{Op: op, Path: name, Err: err})
}

// checkPath demands absolute paths without detours.
func checkPath(h interface{ Name() string }, op, name string) error {
	if !path.IsAbs(name) || path.Clean(name) != name || strings.ContainsRune(name, 0) || name == "/" && op != "stat" {
		return fmt.Errorf("%s: %w", h.Name(), &fs.PathError{Op: op, Path: name, Err: fs.ErrInvalid})
	}
	return nil
}

func readFile(ctx context.Context, r runner, name string) ([]byte, error) {
	if err := checkPath(r, "read", name); err != nil {
		return nil, err
	}
	out, err := r.Run(ctx, Command{Args: script(readScript, name, strconv.Itoa(maxFile+1)), Secret: true, Limit: maxFile + 1})
	if err != nil {
		return nil, fileError(r, "read", name, out, err)
	}
	if len(out.Stdout) > maxFile {
		return nil, tooBig(r, name)
	}
	return []byte(out.Stdout), nil
}

func tooBig(h interface{ Name() string }, name string) error {
	return fmt.Errorf("%s: %w", h.Name(), &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("larger than %d bytes", maxFile)})
}

func stat(ctx context.Context, r runner, name string) (Info, error) {
	if err := checkPath(r, "stat", name); err != nil {
		return Info{}, err
	}
	out, err := r.Run(ctx, Command{Args: script(statScript, name)})
	if err != nil {
		return Info{}, fileError(r, "stat", name, out, err)
	}
	info, err := parseStat(out.Stdout)
	if err != nil {
		return Info{}, fmt.Errorf("%s: %w", r.Name(), &fs.PathError{Op: "stat", Path: name, Err: err})
	}
	return info, nil
}

// parseStat reads a line "MODE SIZE UID GID" with the mode as the kernel's
// hexadecimal number, and after it what a symbolic link points to.
func parseStat(text string) (Info, error) {
	line, link, _ := strings.Cut(text, "\n")
	fields := strings.Fields(line)
	if len(fields) != 4 {
		return Info{}, fmt.Errorf("stat printed %.80q", line)
	}
	raw, err1 := strconv.ParseUint(fields[0], 16, 32)
	size, err2 := strconv.ParseInt(fields[1], 10, 64)
	uid, err3 := strconv.ParseUint(fields[2], 10, 32)
	gid, err4 := strconv.ParseUint(fields[3], 10, 32)
	if err := errors.Join(err1, err2, err3, err4); err != nil || size < 0 {
		return Info{}, fmt.Errorf("stat printed %.80q", line)
	}
	return Info{Mode: fileMode(uint32(raw)), Size: size, UID: int(uid), GID: int(gid), Link: link}, nil
}

// Bits of st_mode (linux/stat.h).
const (
	kindMask  = 0o170000
	kindFIFO  = 0o010000
	kindChar  = 0o020000
	kindDir   = 0o040000
	kindBlock = 0o060000
	kindLink  = 0o120000
	kindSock  = 0o140000
	bitSetuid = 0o4000
	bitSetgid = 0o2000
	bitSticky = 0o1000
)

func fileMode(raw uint32) fs.FileMode {
	m := fs.FileMode(raw & 0o777)
	switch raw & kindMask {
	case kindFIFO:
		m |= fs.ModeNamedPipe
	case kindChar:
		m |= fs.ModeDevice | fs.ModeCharDevice
	case kindDir:
		m |= fs.ModeDir
	case kindBlock:
		m |= fs.ModeDevice
	case kindLink:
		m |= fs.ModeSymlink
	case kindSock:
		m |= fs.ModeSocket
	}
	for bit, mode := range map[uint32]fs.FileMode{bitSetuid: fs.ModeSetuid, bitSetgid: fs.ModeSetgid, bitSticky: fs.ModeSticky} {
		if raw&bit != 0 {
			m |= mode
		}
	}
	return m
}

// octal is a mode as chmod takes it.
func octal(m fs.FileMode) string {
	n := uint32(m.Perm())
	for bit, mode := range map[uint32]fs.FileMode{bitSetuid: fs.ModeSetuid, bitSetgid: fs.ModeSetgid, bitSticky: fs.ModeSticky} {
		if m&mode != 0 {
			n |= bit
		}
	}
	return fmt.Sprintf("%04o", n)
}

func writeFile(ctx context.Context, r runner, name string, data io.Reader, size int64, mode fs.FileMode) error {
	if err := checkPath(r, "write", name); err != nil {
		return err
	}
	out, err := r.Run(ctx, Command{Args: script(writeScript, name, path.Dir(name), octal(mode), strconv.FormatInt(size, 10)), Stdin: data})
	if err != nil {
		return fileError(r, "write", name, out, err)
	}
	return nil
}

func remove(ctx context.Context, r runner, name string) error {
	if err := checkPath(r, "remove", name); err != nil {
		return err
	}
	if out, err := r.Run(ctx, Command{Args: script(removeScript, name)}); err != nil {
		return fileError(r, "remove", name, out, err)
	}
	return nil
}
