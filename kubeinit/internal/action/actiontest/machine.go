// Package actiontest has a machine that exists only in memory and understands
// the few commands that actions use. Tests change it by actions, kill it between
// any two calls, and compare what it was with what it is.
package actiontest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// Machine is a host.Host in memory. It is safe for concurrent use.
type Machine struct {
	name string

	mu       sync.Mutex
	files    map[string]node
	sysctls  map[string]string
	modules  map[string]bool
	units    map[string]unit
	packages map[string]string // installed versions
	held     map[string]bool
	archive  map[string][]string // what apt could install: name -> versions
	depends  map[string][]string
	images   map[string]bool
	commands map[string]Program
	calls    []string
	left     int // calls until the machine dies; negative: never
	cut      Cut
	blip     bool // it lives again after that
}

// Cut says how much of a call is done whose answer never comes.
type Cut int

// The cuts. Torn is half a line where something is added to the journal, and
// otherwise the same as After: no other call can be done by half.
const (
	Before Cut = iota
	Torn
	After
)

// Cuts are all of them.
var Cuts = []Cut{Before, Torn, After}

// Program is what a command does: it gets its arguments without its name and its
// standard input, and returns its output and exit status.
type Program func(args []string, stdin []byte) (stdout string, code int)

type node struct {
	mode     fs.FileMode
	uid, gid int
	link     string
	data     string
}

type unit struct {
	enabled bool
	active  bool
	masked  bool
	loaded  string // content of the unit file when systemd read it last
	starts  int
}

// ErrDead is what a machine returns once it was killed.
var ErrDead = errors.New("connection lost")

// New returns a machine with the directories that every Linux has.
func New(name string) *Machine {
	m := &Machine{
		name: name, files: map[string]node{}, sysctls: map[string]string{}, modules: map[string]bool{},
		units: map[string]unit{}, packages: map[string]string{}, held: map[string]bool{}, archive: map[string][]string{},
		depends: map[string][]string{}, images: map[string]bool{}, commands: map[string]Program{}, left: -1,
	}
	for _, dir := range []string{"/", "/etc", "/var", "/var/lib", "/usr", "/usr/local", "/usr/local/bin", "/run", "/tmp", "/etc/systemd", "/etc/systemd/system", "/sys", "/sys/module"} {
		m.files[dir] = node{mode: fs.ModeDir | 0o755}
	}
	return m
}

// Name is the name given to New.
func (m *Machine) Name() string { return m.name }

// Close does nothing.
func (m *Machine) Close() error { return nil }

// Handle adds a command, or replaces one.
func (m *Machine) Handle(name string, p Program) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.commands[name] = p
}

// Put makes a file, with the directories above it.
func (m *Machine) Put(name, data string, mode fs.FileMode, uid, gid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parents(name)
	m.files[name] = node{mode: mode, uid: uid, gid: gid, data: data}
}

// PutLink makes a symbolic link.
func (m *Machine) PutLink(name, target string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.parents(name)
	m.files[name] = node{mode: fs.ModeSymlink | 0o777, link: target}
}

// SetSysctl makes a kernel parameter.
func (m *Machine) SetSysctl(key, value string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sysctls[key] = value
}

// SetUnit makes a unit with a file of its own.
func (m *Machine) SetUnit(name, content string, enabled, active bool) {
	m.Put("/etc/systemd/system/"+name, content, 0o644, 0, 0)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.units[name] = unit{enabled: enabled, active: active, loaded: content}
}

// Starts is how often a unit was started or restarted.
func (m *Machine) Starts(unit string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.units[unit].starts
}

// Offer makes a package available to apt, with what it depends on.
func (m *Machine) Offer(name, version string, depends ...string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.archive[name] = append(m.archive[name], version)
	m.depends[name] = depends
}

// Install makes a package installed.
func (m *Machine) Install(name, version string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.packages[name] = version
}

// KillAfter lets the machine do n more calls. The one after them is done as far as
// cut says, but never answered, and the machine answers no more. A negative n
// revives it.
func (m *Machine) KillAfter(n int, cut Cut) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.left, m.cut, m.blip = n, cut, false
	if n >= 0 {
		m.left++
	}
}

// LoseAfter lets the connection break once, at the call after n more, which is done
// as far as cut says.
func (m *Machine) LoseAfter(n int, cut Cut) {
	m.KillAfter(n, cut)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.blip = true
}

// Dead tells whether the machine was killed.
func (m *Machine) Dead() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.left == 0
}

// Calls returns what was asked of the machine, one line each, and forgets it.
func (m *Machine) Calls() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	calls := m.calls
	m.calls = nil
	return calls
}

// Snapshot describes the machine, except what is below one of the paths in
// without. Two machines with the same description are alike.
func (m *Machine) Snapshot(without ...string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(m.files)) {
		if slices.ContainsFunc(without, func(w string) bool { return name == w || strings.HasPrefix(name, w+"/") }) {
			continue
		}
		n := m.files[name]
		fmt.Fprintf(&b, "%v %d:%d %s %q %q\n", n.mode, n.uid, n.gid, name, n.link, n.data)
	}
	for _, k := range slices.Sorted(maps.Keys(m.sysctls)) {
		fmt.Fprintf(&b, "sysctl %s=%s\n", k, m.sysctls[k])
	}
	for _, k := range slices.Sorted(maps.Keys(m.modules)) {
		fmt.Fprintf(&b, "module %s\n", k)
	}
	for _, k := range slices.Sorted(maps.Keys(m.units)) {
		u := m.units[k]
		if _, found := m.files["/etc/systemd/system/"+k]; !found && !u.enabled && !u.active {
			continue
		}
		fmt.Fprintf(&b, "unit %s enabled=%v active=%v %q\n", k, u.enabled, u.active, u.loaded)
	}
	for _, k := range slices.Sorted(maps.Keys(m.packages)) {
		fmt.Fprintf(&b, "package %s=%s held=%v\n", k, m.packages[k], m.held[k])
	}
	for _, k := range slices.Sorted(maps.Keys(m.images)) {
		fmt.Fprintf(&b, "image %s\n", k)
	}
	return b.String()
}

// call counts a call and does it, unless the machine is dead. The caller holds mu.
func (m *Machine) call(ctx context.Context, what string, do func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.calls = append(m.calls, what)
	if m.left < 0 {
		return do()
	}
	if m.left == 0 {
		return ErrDead
	}
	if m.left--; m.left > 0 {
		return do()
	}
	if m.cut != Before {
		_ = do() // done, and nobody hears of it
	}
	if m.blip {
		m.left = -1
		return fmt.Errorf("%s: %s: %w", m.name, what, host.ErrLost)
	}
	return ErrDead
}

// ReadFile implements host.Host.
func (m *Machine) ReadFile(ctx context.Context, name string) (data []byte, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	err = m.call(ctx, "read "+name, func() error {
		n, found := m.files[name]
		for range 8 {
			if n.link == "" {
				break
			}
			n, found = m.files[path.Join(path.Dir(name), n.link)]
		}
		if !found || !n.mode.IsRegular() {
			return &fs.PathError{Op: "read", Path: name, Err: fs.ErrNotExist}
		}
		data = []byte(n.data)
		return nil
	})
	return data, err
}

// Stat implements host.Host.
func (m *Machine) Stat(ctx context.Context, name string) (info host.Info, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	err = m.call(ctx, "stat "+name, func() error {
		n, found := m.files[name]
		if !found {
			return &fs.PathError{Op: "stat", Path: name, Err: fs.ErrNotExist}
		}
		info = host.Info{Mode: n.mode, Size: int64(len(n.data)), UID: n.uid, GID: n.gid, Link: n.link}
		return nil
	})
	return info, err
}

// WriteFile implements host.Host.
func (m *Machine) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.call(ctx, "write "+name, func() error { return m.write(name, string(data), mode) })
}

// Upload implements host.Host.
func (m *Machine) Upload(ctx context.Context, name string, r io.Reader, size int64, mode fs.FileMode) error {
	data, err := io.ReadAll(io.LimitReader(r, size+1))
	if err != nil {
		return err
	}
	if int64(len(data)) != size {
		return fmt.Errorf("upload %s: %d bytes instead of %d", name, len(data), size)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.call(ctx, "upload "+name, func() error { return m.write(name, string(data), mode) })
}

// Remove implements host.Host.
func (m *Machine) Remove(ctx context.Context, name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.call(ctx, "remove "+name, func() error {
		if m.files[name].mode.IsDir() && len(m.below(name)) > 0 {
			return &fs.PathError{Op: "remove", Path: name, Err: errors.New("directory not empty")}
		}
		delete(m.files, name)
		return nil
	})
}

// Run implements host.Host.
func (m *Machine) Run(ctx context.Context, c host.Command) (out host.Output, err error) {
	var stdin []byte
	if c.Stdin != nil {
		if stdin, err = io.ReadAll(c.Stdin); err != nil {
			return out, err
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	err = m.call(ctx, "run "+strings.Join(c.Args, " "), func() error {
		args := c.Args
		for args[0] == "env" || strings.Contains(args[0], "=") {
			args = args[1:]
		}
		program, found := m.program(args[0])
		if !found {
			return m.exit(c, "command not found", 127)
		}
		stdout, code := program(args[1:], stdin)
		out.Stdout = stdout
		if code != 0 {
			return m.exit(c, stdout, code)
		}
		return nil
	})
	if c.Output != nil && !errors.Is(err, ErrDead) {
		for line := range strings.Lines(out.Stdout) {
			c.Output(strings.TrimSuffix(line, "\n"))
		}
	}
	return out, err
}

// RunUnit runs a command at once, instead of as a transient unit.
func (m *Machine) RunUnit(ctx context.Context, _ string, c host.Command) (host.Output, error) {
	return m.Run(ctx, c)
}

func (m *Machine) exit(c host.Command, text string, code int) error {
	e := &host.ExitError{Host: m.name, Args: c.Args, Code: code}
	if text != "" && !c.Secret {
		lines := strings.Split(strings.TrimSpace(text), "\n")
		e.Tail = lines[max(0, len(lines)-20):]
	}
	return e
}

func (m *Machine) write(name, data string, mode fs.FileMode) error {
	if m.files[name].mode.IsDir() {
		return &fs.PathError{Op: "write", Path: name, Err: errors.New("is a directory")}
	}
	m.parents(name)
	m.files[name] = node{mode: mode, data: data}
	return nil
}

func (m *Machine) parents(name string) {
	for dir := path.Dir(name); dir != "/"; dir = path.Dir(dir) {
		if _, found := m.files[dir]; found {
			return
		}
		m.files[dir] = node{mode: fs.ModeDir | 0o755}
	}
}

func (m *Machine) below(dir string) []string {
	var names []string
	for name := range m.files {
		if strings.HasPrefix(name, strings.TrimSuffix(dir, "/")+"/") && name != "/" {
			names = append(names, name)
		}
	}
	return names
}

// append adds to a file, half of it if the machine dies meanwhile.
func (m *Machine) append(name string, data []byte) {
	n := m.files[name]
	if m.left == 0 && m.cut == Torn {
		data = data[:len(data)/2]
	}
	n.data += string(bytes.Clone(data))
	m.files[name] = n
}
