package host

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"path"
	"slices"
	"strings"
	"sync"
	"syscall"
)

// Fake is a machine in memory, for tests. It has files and directories, and
// runs commands that were scripted with On; others end as if there were no such
// program. It is safe for concurrent use.
type Fake struct {
	name string

	mu       sync.Mutex // guards all below, and is not held while a script runs
	files    map[string]fakeFile
	scripts  []fakeScript
	calls    []Command
	breaks   func(op, what string) error
	units    map[string]*fakeUnit
	closed   bool
	canceled chan struct{} // closed with the machine
}

type fakeFile struct {
	data []byte
	info Info
}

type fakeScript struct {
	pattern string
	run     func(context.Context, Call) Result
}

// Call is a command that a Fake is asked to run.
type Call struct {
	Host  *Fake
	Args  []string
	Env   []string
	Stdin string
}

// Result is what a scripted command does.
type Result struct {
	Stdout, Stderr string
	Code           int
	// Err is returned by Run as it is, such as ErrLost.
	Err error
}

var _ Host = (*Fake)(nil)

// NewFake returns a machine with the directories / and /etc and no scripts.
func NewFake(name string) *Fake {
	f := &Fake{name: name, files: map[string]fakeFile{}, units: map[string]*fakeUnit{}, canceled: make(chan struct{})}
	f.mkdir("/etc")
	return f
}

// On scripts commands whose arguments, joined by spaces, are pattern, in which
// "*" stands for anything. The script that was added last wins. It must end when
// its context does.
func (f *Fake) On(pattern string, script func(context.Context, Call) Result) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.scripts = append(f.scripts, fakeScript{pattern, script})
}

// OnOutput scripts commands that print something and succeed.
func (f *Fake) OnOutput(pattern, stdout string) {
	f.On(pattern, func(context.Context, Call) Result { return Result{Stdout: stdout} })
}

// Break makes every call that begins ask whether it fails. op is "run", "read",
// "stat", "write" or "remove"; what is the command or the path. A nil fails
// takes that back.
func (f *Fake) Break(fails func(op, what string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.breaks = fails
}

// Calls returns the commands that were run, in their order, with their
// arguments joined by spaces. Units are among them.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := make([]string, len(f.calls))
	for i, c := range f.calls {
		out[i] = strings.Join(c.Args, " ")
	}
	return out
}

// Files returns the content of all regular files, by path.
func (f *Fake) Files() map[string]string {
	f.mu.Lock()
	defer f.mu.Unlock()
	out := map[string]string{}
	for name, file := range f.files {
		if file.info.Mode.IsRegular() {
			out[name] = string(file.data)
		}
	}
	return out
}

// Symlink makes a symbolic link, and the directories that it needs.
func (f *Fake) Symlink(target, name string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.mkdir(path.Dir(name))
	f.files[name] = fakeFile{info: Info{Mode: fs.ModeSymlink | 0o777, Size: int64(len(target)), Link: target}}
}

// Name returns the name that NewFake got.
func (f *Fake) Name() string { return f.name }

// Run runs a scripted command.
func (f *Fake) Run(ctx context.Context, c Command) (Output, error) {
	if err := c.check(); err != nil {
		return Output{}, fmt.Errorf("%s: %w", f.name, err)
	}
	if err := f.begin(ctx, "run", strings.Join(c.Args, " ")); err != nil {
		return Output{}, err
	}
	var stdin []byte
	if c.Stdin != nil {
		var err error
		if stdin, err = io.ReadAll(c.Stdin); err != nil {
			return Output{}, fmt.Errorf("%s: %s: standard input: %w", f.name, c.Args[0], err)
		}
	}
	ctx, stop := f.bounded(ctx)
	defer stop()
	r := f.script(c)(ctx, Call{Host: f, Args: slices.Clone(c.Args), Env: slices.Clone(c.Env), Stdin: string(stdin)})
	return f.result(ctx, c, r)
}

// bounded ends with ctx or with the machine.
func (f *Fake) bounded(ctx context.Context) (context.Context, func()) {
	ctx, cancel := context.WithCancelCause(ctx)
	go func() { // ends with the call
		select {
		case <-f.canceled:
			cancel(net.ErrClosed)
		case <-ctx.Done():
		}
	}()
	return ctx, func() { cancel(nil) }
}

// result passes output on as a real machine would.
func (f *Fake) result(ctx context.Context, c Command, r Result) (Output, error) {
	all := newCollector(c.Output)
	stdout, stderr := all.stream("", c.Limit), all.stream("", c.Limit)
	_, _ = io.WriteString(stdout, r.Stdout) // never fails
	_, _ = io.WriteString(stderr, r.Stderr) // never fails
	var out Output
	out.Stdout, _ = stdout.end()
	out.Stderr, _ = stderr.end()
	out.Truncated = stdout.cut || stderr.cut
	switch {
	case ctx.Err() != nil:
		return out, fmt.Errorf("%s: %s: %w", f.name, c.Args[0], context.Cause(ctx))
	case r.Err != nil:
		return out, fmt.Errorf("%s: %w", f.name, r.Err)
	case r.Code != 0:
		e := &ExitError{Host: f.name, Args: c.Args, Code: r.Code}
		if !c.Secret {
			e.Tail = all.tail
		}
		return out, e
	}
	return out, nil
}

func (f *Fake) script(c Command) func(context.Context, Call) Result {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, c)
	text := strings.Join(c.Args, " ")
	for _, s := range slices.Backward(f.scripts) {
		if matches(s.pattern, text) {
			return s.run
		}
	}
	return func(context.Context, Call) Result {
		return Result{Stderr: "sh: 1: exec: " + c.Args[0] + ": not found\n", Code: 127}
	}
}

// matches says whether text is pattern, in which "*" stands for anything.
func matches(pattern, text string) bool {
	parts := strings.Split(pattern, "*")
	if len(parts) == 1 {
		return pattern == text
	}
	if !strings.HasPrefix(text, parts[0]) {
		return false
	}
	text = text[len(parts[0]):]
	last := parts[len(parts)-1]
	for _, p := range parts[1 : len(parts)-1] {
		i := strings.Index(text, p)
		if i < 0 {
			return false
		}
		text = text[i+len(p):]
	}
	return strings.HasSuffix(text, last)
}

// begin is the start of every call.
func (f *Fake) begin(ctx context.Context, op, what string) error {
	f.mu.Lock()
	breaks, closed := f.breaks, f.closed
	f.mu.Unlock()
	if closed {
		return fmt.Errorf("%s: %w", f.name, net.ErrClosed)
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%s: %s %s: %w", f.name, op, what, context.Cause(ctx))
	}
	if breaks != nil {
		if err := breaks(op, what); err != nil {
			return fmt.Errorf("%s: %s %s: %w", f.name, op, what, err)
		}
	}
	return nil
}

func (f *Fake) fileError(op, name string, err error) error {
	return fmt.Errorf("%s: %w", f.name, &fs.PathError{Op: op, Path: name, Err: err})
}

// ReadFile reads a file, and follows symbolic links.
func (f *Fake) ReadFile(ctx context.Context, name string) ([]byte, error) {
	if err := f.file(ctx, "read", name); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	at := name
	for range 40 { // as many as Linux follows
		file, ok := f.files[at]
		switch {
		case !ok:
			return nil, f.fileError("read", name, fs.ErrNotExist)
		case file.info.Mode&fs.ModeSymlink != 0:
			if at = path.Join(path.Dir(at), file.info.Link); path.IsAbs(file.info.Link) {
				at = path.Clean(file.info.Link)
			}
		case file.info.Mode.IsDir():
			return nil, f.fileError("read", name, syscall.EISDIR)
		case len(file.data) > maxFile:
			return nil, tooBig(f, name)
		default:
			return bytes.Clone(file.data), nil
		}
	}
	return nil, f.fileError("read", name, fs.ErrNotExist)
}

func (f *Fake) file(ctx context.Context, op, name string) error {
	if err := checkPath(f, op, name); err != nil {
		return err
	}
	return f.begin(ctx, op, name)
}

// Stat describes a file.
func (f *Fake) Stat(ctx context.Context, name string) (Info, error) {
	if err := f.file(ctx, "stat", name); err != nil {
		return Info{}, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	file, ok := f.files[name]
	if !ok {
		return Info{}, f.fileError("stat", name, fs.ErrNotExist)
	}
	return file.info, nil
}

// WriteFile replaces a file.
func (f *Fake) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode) error {
	return f.Upload(ctx, name, bytes.NewReader(data), int64(len(data)), mode)
}

// Upload replaces a file with what r gives.
func (f *Fake) Upload(ctx context.Context, name string, r io.Reader, size int64, mode fs.FileMode) error {
	if err := f.file(ctx, "write", name); err != nil {
		return err
	}
	data, err := io.ReadAll(r)
	if err != nil {
		return f.fileError("write", name, err)
	}
	if int64(len(data)) != size {
		return f.fileError("write", name, fmt.Errorf("%d bytes came instead of %d", len(data), size))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.files[name].info.Mode.IsDir() {
		return f.fileError("write", name, syscall.EISDIR)
	}
	if !f.mkdir(path.Dir(name)) {
		return f.fileError("write", name, syscall.ENOTDIR)
	}
	f.files[name] = fakeFile{data, Info{Mode: mode & (fs.ModePerm | fs.ModeSetuid | fs.ModeSetgid | fs.ModeSticky), Size: size}}
	return nil
}

// mkdir makes a directory and those above. It reports false if one of them is
// something else.
func (f *Fake) mkdir(name string) bool {
	for ; ; name = path.Dir(name) {
		if file, ok := f.files[name]; ok {
			return file.info.Mode.IsDir()
		}
		f.files[name] = fakeFile{info: Info{Mode: fs.ModeDir | 0o755}}
		if name == "/" {
			return true
		}
	}
}

// Remove removes a file, symbolic link or empty directory.
func (f *Fake) Remove(ctx context.Context, name string) error {
	if err := f.file(ctx, "remove", name); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for other := range maps.Keys(f.files) {
		if strings.HasPrefix(other, name+"/") {
			return f.fileError("remove", name, syscall.ENOTEMPTY)
		}
	}
	delete(f.files, name)
	return nil
}

// Close makes every further call fail, and ends those under way.
func (f *Fake) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !f.closed {
		f.closed = true
		close(f.canceled)
	}
	return nil
}
