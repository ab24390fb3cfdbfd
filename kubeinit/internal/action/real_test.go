package action_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/kubeinit/internal/action"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// directory is a host whose root is a directory of this machine, and whose
// commands are this machine's: it shows that the commands mean what
// actiontest.Machine takes them for. Arguments that are paths are below root.
type directory struct{ root string }

func (d directory) Name() string { return "a" }
func (d directory) Close() error { return nil }

func (d directory) Run(ctx context.Context, c host.Command) (host.Output, error) {
	args := make([]string, len(c.Args))
	for i, a := range c.Args {
		prefix, name, found := strings.Cut(a, "of=/")
		switch {
		case strings.HasPrefix(a, "/"):
			a = d.root + a
		case found && prefix == "":
			a = "of=" + d.root + "/" + name
		}
		args[i] = a
	}
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = c.Stdin, &out, &errOut
	err := cmd.Run()
	if exit, ran := errors.AsType[*exec.ExitError](err); ran {
		err = &host.ExitError{Host: "a", Args: c.Args, Code: exit.ExitCode(), Tail: strings.Split(errOut.String(), "\n")}
	}
	return host.Output{Stdout: out.String(), Stderr: errOut.String()}, err
}

func (d directory) ReadFile(_ context.Context, name string) ([]byte, error) {
	return os.ReadFile(d.root + name)
}

func (d directory) Stat(_ context.Context, name string) (host.Info, error) {
	info, err := os.Lstat(d.root + name)
	if err != nil {
		return host.Info{}, err
	}
	sys := info.Sys().(*syscall.Stat_t)
	// Who runs the test stands for root.
	out := host.Info{Mode: info.Mode(), Size: info.Size(), UID: int(sys.Uid) - os.Getuid(), GID: int(sys.Gid) - os.Getgid()}
	if info.Mode()&fs.ModeSymlink != 0 {
		out.Link, err = os.Readlink(d.root + name)
	}
	return out, err
}

func (d directory) WriteFile(ctx context.Context, name string, data []byte, mode fs.FileMode) error {
	return d.Upload(ctx, name, bytes.NewReader(data), int64(len(data)), mode)
}

func (d directory) Upload(_ context.Context, name string, r io.Reader, _ int64, mode fs.FileMode) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(d.root+name), 0o755); err != nil {
		return err
	}
	fresh := d.root + name + ".new"
	if err := os.WriteFile(fresh, data, 0o600); err != nil {
		return err
	}
	return errors.Join(os.Chmod(fresh, mode), os.Rename(fresh, d.root+name))
}

func (d directory) Remove(_ context.Context, name string) error {
	if err := os.Remove(d.root + name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// tree describes everything below root except kubeinit's own files.
func (d directory) tree(t *testing.T) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(d.root, func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name = strings.TrimPrefix(name, d.root)
		if name == "/var" {
			return fs.SkipDir
		}
		info, err := d.Stat(t.Context(), name)
		if err != nil {
			return err
		}
		data := []byte(nil)
		if entry.Type().IsRegular() {
			data, err = d.ReadFile(t.Context(), name)
		}
		fmt.Fprintf(&b, "%v %d:%d %s -> %s %q\n", info.Mode, info.UID, info.GID, name, info.Link, data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestRealCommandsUndoExactly(t *testing.T) {
	setups := map[string]func(root string) error{
		"nothing is there": func(string) error { return nil },
		"files are there": func(root string) error {
			return errors.Join(os.Mkdir(root+"/etc/d", 0o700), os.WriteFile(root+"/etc/d/x", []byte("old\x00\n"), 0o640),
				os.WriteFile(root+"/etc/hosts", []byte("127.0.0.1 localhost"), 0o604), os.WriteFile(root+"/etc/gone", nil, 0o711))
		},
		"links are there": func(root string) error {
			return errors.Join(os.Mkdir(root+"/etc/d", 0o755), os.Symlink("../elsewhere -e", root+"/etc/d/x"), os.Symlink("x", root+"/etc/gone"))
		},
	}
	actions := []phase.Action{
		action.File{Path: "/etc/d/x", Content: []byte("new\n"), Mode: 0o600},
		action.Absent{Path: "/etc/gone"},
		action.Directory{Path: "/etc/d", Mode: 0o750},
		action.Directory{Path: "/etc/e/f/g", Mode: 0o700},
		action.Block{Path: "/etc/hosts", Mark: "us", Text: "10.0.0.1 a\n"},
		upload("/opt/bin/p", "program"),
	}
	for name, setup := range setups {
		t.Run(name, func(t *testing.T) {
			d := directory{t.TempDir()}
			if err := errors.Join(os.Mkdir(d.root+"/etc", 0o755), setup(d.root)); err != nil {
				t.Fatal(err)
			}
			before := d.tree(t)
			var steps []phase.Step
			for i, a := range actions {
				steps = append(steps, phase.Step{ID: fmt.Sprintf("prepare/a/%d", i), Phase: phase.Prepare, Host: "a", Action: a})
			}
			e := &phase.Executor{Hosts: map[string]host.Host{"a": mapped{d}}}
			for run := range 2 {
				result, err := e.Apply(t.Context(), steps)
				if err != nil {
					t.Fatal(err)
				}
				if n := len(result.Changes()); n > 0 == (run == 1) {
					t.Errorf("run %d changes %v", run, result.Changes())
				}
			}
			info, err := os.Stat(d.root + journal.BeforeDir)
			if err != nil || info.Mode().Perm() != 0o700 {
				t.Errorf("%v, %v", info, err)
			}
			if _, err := e.Undo(t.Context(), nil, []string{"a"}); err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(before, d.tree(t)); diff != "" {
				t.Errorf("after undo:\n%s", diff)
			}
			log, err := journal.Open(t.Context(), mapped{d})
			if err != nil {
				t.Fatal(err)
			}
			if err := log.End(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if left, err := os.ReadDir(d.root + "/var/lib"); err != nil || len(left) > 0 {
				t.Errorf("left are %v, %v", left, err)
			}
		})
	}
}

// mapped gives commands the user of the test where they name root.
type mapped struct{ directory }

func (m mapped) Run(ctx context.Context, c host.Command) (host.Output, error) {
	args := append([]string(nil), c.Args...)
	for i, a := range args {
		switch {
		case i > 0 && args[i-1] == "-o" && a == "0":
			args[i] = fmt.Sprint(os.Getuid())
		case i > 0 && args[i-1] == "-g" && a == "0":
			args[i] = fmt.Sprint(os.Getgid())
		case a == "0:0":
			args[i] = fmt.Sprintf("%d:%d", os.Getuid(), os.Getgid())
		}
	}
	c.Args = args
	return m.directory.Run(ctx, c)
}
