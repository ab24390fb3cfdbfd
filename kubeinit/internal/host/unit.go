package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// UnitDir is the directory of the files of units. It is in memory: after a
// restart of the machine no unit has run.
const UnitDir = "/run/kubeinit"

// ErrUnitBusy is the cause if a unit of that name runs another command.
var ErrUnitBusy = errors.New("it runs another command")

// RunUnit runs a long command as the transient unit kubeinit-<unit> of systemd,
// and follows it to its end. Both outputs come as Output.Stdout. A unit outlives
// the connection and kubeinit itself: if the same command (arguments and
// environment) runs already, RunUnit follows that one; if it succeeded while
// nobody looked, RunUnit returns what it wrote then. What failed unseen is run
// again.
//
// If ctx ends, RunUnit returns and the unit goes on; StopUnit ends it. A broken
// connection is made anew a few times. c.Stdin travels in a file of mode 0600
// that the unit removes when it begins.
func RunUnit(ctx context.Context, h Host, unit string, c Command) (Output, error) {
	if !unitForm.MatchString(unit) {
		return Output{}, fmt.Errorf("%s: unit %q: want letters, digits, \"-\", \"_\" and \".\"", h.Name(), unit)
	}
	if err := c.check(); err != nil {
		return Output{}, fmt.Errorf("%s: %w", h.Name(), err)
	}
	if f, ok := h.(*Fake); ok {
		return f.runUnit(ctx, unit, c)
	}
	u := &unitRun{h: h, name: unit, dir: UnitDir, c: c, pause: time.Second}
	return u.run(ctx)
}

// StopUnit ends a unit and all its processes, and removes its files. It is no
// error if there is none.
func StopUnit(ctx context.Context, h Host, unit string) error {
	if !unitForm.MatchString(unit) {
		return fmt.Errorf("%s: unit %q: want letters, digits, \"-\", \"_\" and \".\"", h.Name(), unit)
	}
	if f, ok := h.(*Fake); ok {
		return f.stopUnit(unit)
	}
	u := &unitRun{h: h, name: unit, dir: UnitDir}
	return u.stop(ctx)
}

var unitForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$`)

// unitRun is one call of RunUnit.
type unitRun struct {
	h     Host
	name  string
	dir   string
	c     Command
	pause time.Duration // between looks
}

func (u *unitRun) file(ext string) string { return path.Join(u.dir, u.name+"."+ext) }

// program is the shell script that the unit runs. The command stands in it
// because systemd would expand "$" in arguments. The exit status is written to
// its file last, and at once.
func (u *unitRun) program() string {
	var b strings.Builder
	b.WriteString("# written by kubeinit; changes are overwritten\n")
	fmt.Fprintf(&b, "exec >>%s 2>&1 </dev/null\n", Quote(u.file("out")))
	fmt.Fprintf(&b, "in=%s status=%s\n", Quote(u.file("in")), Quote(u.file("status")))
	b.WriteString("if [ -e \"$in\" ]; then exec <\"$in\"; rm -f \"$in\"; fi\n")
	b.WriteString("umask 022\nexport HOME=/root LC_ALL=C PATH=\"$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\"\n")
	for _, e := range u.c.Env {
		key, value, _ := strings.Cut(e, "=")
		b.WriteString("export " + key + "=" + Quote(value) + "\n")
	}
	b.WriteString("set -- " + Quote(u.c.Args...) + "\n\"$@\"\n")
	b.WriteString("s=$?\necho \"$s\" >\"$status.new\" && mv -f \"$status.new\" \"$status\"\nexit \"$s\"\n")
	return b.String()
}

// The scripts around a unit; $1 is the path of its files without extension, $2
// its name. lookScript prints the state first and reads the status after it, so
// that a unit that has ended is never seen without its status.
const (
	lookScript = `a=$(systemctl show --property=ActiveState --value "$2.service") || exit
s=
[ ! -e "$1.status" ] || s=$(cat "$1.status")
printf '%s %s\n' "$a" "$s"
[ ! -e "$1.out" ] || tail -c "+$3" "$1.out" | head -c "$4"`

	cleanScript = `rm -f "$1.out" "$1.status" "$1.status.new" "$1.in" "$1.sh"`

	startScript = `umask 077
: >"$1.out"
exec systemd-run --quiet --collect --unit="$2.service" --description="kubeinit $2" /bin/sh "$1.sh"`

	stopScript = `systemctl stop "$2.service" 2>/dev/null
[ "$(systemctl show --property=ActiveState --value "$2.service")" != active ] || exit 1
` + cleanScript
)

func (u *unitRun) script(text string, more ...string) Command {
	args := append([]string{path.Join(u.dir, u.name), "kubeinit-" + u.name}, more...)
	return Command{Args: script(text, args...), Secret: u.c.Secret}
}

// chunk is how much output is fetched at a time.
const chunk = 256 << 10

// look is the state of a unit.
type look struct {
	running bool
	code    int // -1: no status
	output  string
}

// look asks for the state and for output from an offset on.
func (u *unitRun) look(ctx context.Context, offset int) (look, error) {
	c := u.script(lookScript, strconv.Itoa(offset+1), strconv.Itoa(chunk))
	c.Limit = chunk + 1024
	out, err := u.h.Run(ctx, c)
	if err != nil {
		return look{}, fmt.Errorf("unit kubeinit-%s: %w", u.name, err)
	}
	line, text, ok := strings.Cut(out.Stdout, "\n")
	state, code, _ := strings.Cut(line, " ")
	l := look{running: state != "inactive" && state != "failed", code: -1, output: text}
	if n, err := strconv.Atoi(code); err == nil {
		l.code = n
	}
	if !ok || state == "" {
		return look{}, fmt.Errorf("%s: unit kubeinit-%s: systemctl printed %.80q", u.h.Name(), u.name, line)
	}
	return l, nil
}

func (u *unitRun) run(ctx context.Context) (Output, error) {
	follow, err := u.found(ctx)
	if err != nil {
		return Output{}, err
	}
	if !follow {
		if err := u.start(ctx); err != nil {
			return Output{}, err
		}
	}
	return u.follow(ctx)
}

// found says whether the unit runs this command, or has succeeded with it.
func (u *unitRun) found(ctx context.Context) (bool, error) {
	l, err := u.look(ctx, 0)
	if err != nil {
		return false, err
	}
	if !l.running && l.code != 0 {
		return false, nil
	}
	program, err := u.h.ReadFile(ctx, u.file("sh"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fmt.Errorf("unit kubeinit-%s: %w", u.name, err)
	}
	same := string(program) == u.program()
	if l.running && !same {
		return false, fmt.Errorf("%s: unit kubeinit-%s: %w", u.h.Name(), u.name, ErrUnitBusy)
	}
	return same, nil
}

// start starts the unit. What an earlier one left is removed before the new
// program is written: an old status beside it would look like its own.
func (u *unitRun) start(ctx context.Context) error {
	if _, err := u.h.Run(ctx, u.script(cleanScript)); err != nil {
		return fmt.Errorf("unit kubeinit-%s: %w", u.name, err)
	}
	if _, err := u.h.Run(ctx, Command{Args: []string{"mkdir", "-p", "-m", "0700", u.dir}}); err != nil {
		return fmt.Errorf("unit kubeinit-%s: %w", u.name, err)
	}
	if u.c.Stdin != nil {
		in, err := io.ReadAll(u.c.Stdin)
		if err != nil {
			return fmt.Errorf("unit kubeinit-%s: standard input: %w", u.name, err)
		}
		if err := u.h.WriteFile(ctx, u.file("in"), in, 0o600); err != nil {
			return err
		}
	}
	err := u.h.WriteFile(ctx, u.file("sh"), []byte(u.program()), 0o600)
	if err == nil {
		_, err = u.h.Run(ctx, u.script(startScript))
	}
	if err == nil || errors.Is(err, ErrLost) { // it may have been started
		return err
	}
	// The secret must not stay behind.
	removeErr := u.h.Remove(context.WithoutCancel(ctx), u.file("in"))
	return errors.Join(fmt.Errorf("unit kubeinit-%s: %w", u.name, err), removeErr)
}

// lostLooks is how many looks in a row may fail for a broken connection. With
// the pauses between them, which double, that is about a minute.
const lostLooks = 6

// follow collects output until the unit has ended.
func (u *unitRun) follow(ctx context.Context) (Output, error) {
	all := newCollector(u.c.Output)
	stdout := all.stream("", u.c.Limit)
	offset, lost := 0, 0
	for {
		l, err := u.look(ctx, offset)
		switch {
		case err == nil:
			lost = 0
		case ctx.Err() == nil && !isExit(err) && lost < lostLooks:
			lost++
		case ctx.Err() == nil:
			return u.done(stdout), err
		}
		offset += len(l.output)
		_, _ = io.WriteString(stdout, l.output) // never fails
		switch {
		case err == nil && len(l.output) == chunk: // there is more
			continue
		case err == nil && !l.running:
			return u.ended(ctx, l, stdout, all)
		}
		if err := sleep(ctx, u.pause<<max(lost-1, 0)); err != nil {
			return u.done(stdout), fmt.Errorf("%s: unit kubeinit-%s goes on without us: %w", u.h.Name(), u.name, err)
		}
	}
}

func isExit(err error) bool {
	_, ok := errors.AsType[*ExitError](err)
	return ok
}

func (u *unitRun) done(stdout *stream) Output {
	text, _ := stdout.end()
	return Output{Stdout: text, Truncated: stdout.cut}
}

// ended removes the files, so that the result is given once, and returns it.
func (u *unitRun) ended(ctx context.Context, l look, stdout *stream, all *collector) (Output, error) {
	out := u.done(stdout)
	if _, err := u.h.Run(ctx, u.script(cleanScript)); err != nil {
		return out, fmt.Errorf("unit kubeinit-%s: %w", u.name, err)
	}
	if l.code == 0 {
		return out, nil
	}
	if l.code < 0 {
		return out, fmt.Errorf("%s: unit kubeinit-%s was ended from outside: systemctl status or the journal may say why", u.h.Name(), u.name)
	}
	e := &ExitError{Host: u.h.Name(), Args: u.c.Args, Code: l.code}
	if !u.c.Secret {
		e.Tail = all.tail
	}
	return out, e
}

func (u *unitRun) stop(ctx context.Context) error {
	if _, err := u.h.Run(ctx, u.script(stopScript)); err != nil {
		return fmt.Errorf("stop unit kubeinit-%s: %w", u.name, err)
	}
	return nil
}

// sleep waits, or returns why ctx ended.
func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// fakeUnit is a unit of a Fake.
type fakeUnit struct {
	program string
	stop    context.CancelFunc
	done    chan struct{} // closed when result is there
	result  Result
}

// runUnit is RunUnit on a Fake. The scripted command runs on when ctx ends.
func (f *Fake) runUnit(ctx context.Context, unit string, c Command) (Output, error) {
	u, err := f.unit(ctx, unit, c)
	if err != nil {
		return Output{}, err
	}
	select {
	case <-u.done:
	case <-ctx.Done():
		return Output{}, fmt.Errorf("%s: unit kubeinit-%s goes on without us: %w", f.name, unit, context.Cause(ctx))
	}
	f.mu.Lock()
	if f.units[unit] == u {
		delete(f.units, unit)
	}
	f.mu.Unlock()
	r := u.result
	r.Stdout, r.Stderr = r.Stdout+r.Stderr, ""
	return f.result(ctx, c, r)
}

// unit returns the unit that runs c, or starts it.
func (f *Fake) unit(ctx context.Context, unit string, c Command) (*fakeUnit, error) {
	if err := f.begin(ctx, "run", strings.Join(c.Args, " ")); err != nil {
		return nil, err
	}
	program := (&unitRun{name: unit, dir: UnitDir, c: c}).program()
	f.mu.Lock()
	old := f.units[unit]
	f.mu.Unlock()
	if old != nil {
		running := true
		select {
		case <-old.done:
			running = false
		default:
		}
		switch {
		case running && old.program != program:
			return nil, fmt.Errorf("%s: unit kubeinit-%s: %w", f.name, unit, ErrUnitBusy)
		case old.program == program && (running || old.result.Code == 0 && old.result.Err == nil):
			return old, nil
		}
	}
	var stdin bytes.Buffer
	if c.Stdin != nil {
		if _, err := stdin.ReadFrom(c.Stdin); err != nil {
			return nil, fmt.Errorf("unit kubeinit-%s: standard input: %w", unit, err)
		}
	}
	own, stop := context.WithCancel(context.WithoutCancel(ctx))
	u := &fakeUnit{program: program, stop: stop, done: make(chan struct{})}
	f.mu.Lock()
	f.units[unit] = u
	f.mu.Unlock()
	run := f.script(c)
	go func() { // ends with the script, which StopUnit can end
		defer close(u.done)
		defer stop()
		u.result = run(own, Call{Host: f, Args: c.Args, Env: c.Env, Stdin: stdin.String()})
	}()
	return u, nil
}

func (f *Fake) stopUnit(unit string) error {
	f.mu.Lock()
	u := f.units[unit]
	delete(f.units, unit)
	f.mu.Unlock()
	if u != nil {
		u.stop()
		<-u.done
	}
	return nil
}
