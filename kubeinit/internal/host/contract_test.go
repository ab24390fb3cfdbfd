package host

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// contract is what every Host keeps. root is a directory on it that is the
// test's own. The commands of the test are those of scriptContract.
func contract(t *testing.T, open func(t *testing.T) (h Host, root string)) {
	for name, test := range map[string]func(t *testing.T, h Host, root string){
		"files":             contractFiles,
		"absent files":      contractAbsent,
		"modes":             contractModes,
		"binary content":    contractBinary,
		"odd names":         contractNames,
		"bad paths":         contractPaths,
		"short upload":      contractShort,
		"symbolic links":    contractLinks,
		"directories":       contractDirectories,
		"commands":          contractRun,
		"exit status":       contractExit,
		"bad commands":      contractBadCommands,
		"limits":            contractLimit,
		"broken input":      contractInput,
		"cancel":            contractCancel,
		"many at once":      contractParallel,
		"use after closing": contractClose,
	} {
		t.Run(name, func(t *testing.T) {
			h, root := open(t)
			test(t, h, root)
		})
	}
}

// scriptContract makes a Fake run the commands of the contract as a real
// machine does.
func scriptContract(f *Fake) {
	f.On("cat", func(_ context.Context, c Call) Result { return Result{Stdout: c.Stdin} })
	f.On("sh -c "+bothScript, func(_ context.Context, c Call) Result {
		v := ""
		for _, e := range c.Env {
			v = strings.TrimPrefix(e, "V=")
		}
		return Result{Stdout: "out " + v + "\nlast", Stderr: "err\r\n"}
	})
	f.On("sh -c "+failScript, func(context.Context, Call) Result {
		var b strings.Builder
		for i := range 30 {
			b.WriteString("line " + string(rune('A'+i)) + "\n")
		}
		return Result{Stdout: b.String(), Code: 7}
	})
	f.On("sh -c "+longScript, func(context.Context, Call) Result { return Result{Stdout: strings.Repeat("x", 3000)} })
	f.On("sh -c exit 3", func(context.Context, Call) Result { return Result{Code: 3} })
	f.On("sh -c "+waitScript, func(ctx context.Context, c Call) Result {
		<-ctx.Done()
		return Result{}
	})
	f.On("ln -s *", func(_ context.Context, c Call) Result {
		f.Symlink(c.Args[2], c.Args[3])
		return Result{}
	})
}

const (
	bothScript = `echo "out $V"; printf 'err\r\n' >&2; printf last`
	failScript = `for i in A B C D E F G H I J K L M N O P Q R S T U V W X Y Z '[' '\' ']' '^'; do printf 'line %s\n' "$i"; done; exit 7`
	longScript = `head -c 3000 /dev/zero | tr '\0' x`
	waitScript = `echo begun; sleep 300; echo ended`
)

func contractFiles(t *testing.T, h Host, root string) {
	name := root + "/a/b/file"
	for _, text := range []string{"one\n", "a longer second one\n", ""} {
		if err := h.WriteFile(t.Context(), name, []byte(text), 0o640); err != nil {
			t.Fatal(err)
		}
		got, err := h.ReadFile(t.Context(), name)
		if err != nil || string(got) != text {
			t.Fatalf("read %q, %v; want %q", got, err, text)
		}
		info, err := h.Stat(t.Context(), name)
		want := Info{Mode: 0o640, Size: int64(len(text))}
		if _, fake := h.(*Fake); !fake {
			want.UID, want.GID = os.Getuid(), os.Getgid() // where the server runs as we do
		}
		if err != nil || info != want {
			t.Errorf("stat %+v, %v; want %+v", info, err, want)
		}
	}
	if info, err := h.Stat(t.Context(), root+"/a"); err != nil || info.Mode != fs.ModeDir|0o755 {
		t.Errorf("directory made: %v, %v; want mode 0755", info.Mode, err)
	}
	if err := h.Remove(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Stat(t.Context(), name); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after Remove: %v, want fs.ErrNotExist", err)
	}
	if err := h.Remove(t.Context(), root+"/a/b"); err != nil {
		t.Errorf("remove the directory, in which no temporary file may be left: %v", err)
	}
}

func contractAbsent(t *testing.T, h Host, root string) {
	name := root + "/none/at/all"
	_, readErr := h.ReadFile(t.Context(), name)
	_, statErr := h.Stat(t.Context(), name)
	for _, err := range []error{readErr, statErr} {
		if !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), h.Name()) || !strings.Contains(err.Error(), name) {
			t.Errorf("error %v, want fs.ErrNotExist with host and path", err)
		}
	}
	if err := h.Remove(t.Context(), name); err != nil {
		t.Errorf("remove what is not there: %v", err)
	}
}

func contractModes(t *testing.T, h Host, root string) {
	for _, mode := range []fs.FileMode{0o600, 0o755, 0o444, 0o777, fs.ModeSetuid | 0o755, fs.ModeSetgid | fs.ModeSticky | 0o700} {
		if err := h.WriteFile(t.Context(), root+"/f", []byte("x"), mode); err != nil {
			t.Fatal(err)
		}
		if info, err := h.Stat(t.Context(), root+"/f"); err != nil || info.Mode != mode {
			t.Errorf("mode %v, %v; want %v", info.Mode, err, mode)
		}
	}
}

func contractBinary(t *testing.T, h Host, root string) {
	data := make([]byte, 300_000)
	for i := range data {
		data[i] = byte(i * 7 >> (i % 5))
	}
	if err := h.Upload(t.Context(), root+"/blob", bytes.NewReader(data), int64(len(data)), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := h.ReadFile(t.Context(), root+"/blob")
	if err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d bytes came back, %v; want the %d that were sent", len(got), err, len(data))
	}
}

func contractNames(t *testing.T, h Host, root string) {
	for _, base := range []string{"with space", "-n", `quote'and"and\`, "$HOME", "`id`", "new\nline", "*", "ümläut", ";true"} {
		name := root + "/" + base + "/" + base
		if err := h.WriteFile(t.Context(), name, []byte(base), 0o600); err != nil {
			t.Errorf("write %q: %v", base, err)
			continue
		}
		if got, err := h.ReadFile(t.Context(), name); err != nil || string(got) != base {
			t.Errorf("read %q: %q, %v", base, got, err)
		}
		if err := h.Remove(t.Context(), name); err != nil {
			t.Errorf("remove %q: %v", base, err)
		}
	}
}

func contractPaths(t *testing.T, h Host, root string) {
	for _, name := range []string{"", "relative", root + "/../x", root + "//x", root + "/x/", root + "/\x00", "-rf"} {
		_, readErr := h.ReadFile(t.Context(), name)
		_, statErr := h.Stat(t.Context(), name)
		writeErr := h.WriteFile(t.Context(), name, nil, 0o600)
		removeErr := h.Remove(t.Context(), name)
		for _, err := range []error{readErr, statErr, writeErr, removeErr} {
			if !errors.Is(err, fs.ErrInvalid) {
				t.Errorf("path %q: error %v, want fs.ErrInvalid", name, err)
			}
		}
	}
}

func contractShort(t *testing.T, h Host, root string) {
	if err := h.WriteFile(t.Context(), root+"/f", []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, r := range map[string]io.Reader{
		"shorter": strings.NewReader("shor"), "longer": strings.NewReader("much longer"),
		"broken": io.MultiReader(strings.NewReader("abc"), errReader{errors.New("disk on fire")}),
	} {
		if err := h.Upload(t.Context(), root+"/f", r, 5, 0o644); err == nil {
			t.Errorf("%s: no error", name)
		}
		if got, err := h.ReadFile(t.Context(), root+"/f"); err != nil || string(got) != "before" {
			t.Errorf("%s: file is %q, %v; want it as it was", name, got, err)
		}
	}
	if err := h.Remove(t.Context(), root+"/f"); err != nil {
		t.Fatal(err)
	}
	if err := h.Remove(t.Context(), root); err != nil {
		t.Errorf("a temporary file was left: %v", err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

func contractLinks(t *testing.T, h Host, root string) {
	if err := h.WriteFile(t.Context(), root+"/target", []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	for target, link := range map[string]string{"target": root + "/link", root + "/none": root + "/dangling"} {
		if _, err := h.Run(t.Context(), Command{Args: []string{"ln", "-s", target, link}}); err != nil {
			t.Fatal(err)
		}
		if info, err := h.Stat(t.Context(), link); err != nil || info.Mode.Type() != fs.ModeSymlink || info.Link != target {
			t.Errorf("stat %s: %+v, %v; want a link to %s", link, info, err, target)
		}
	}
	if got, err := h.ReadFile(t.Context(), root+"/link"); err != nil || string(got) != "text" {
		t.Errorf("read through the link: %q, %v", got, err)
	}
	if _, err := h.ReadFile(t.Context(), root+"/dangling"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read through a dangling link: %v, want fs.ErrNotExist", err)
	}
	if err := h.WriteFile(t.Context(), root+"/link", []byte("own"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := h.ReadFile(t.Context(), root+"/target"); err != nil || string(got) != "text" {
		t.Errorf("the target of the replaced link is %q, %v; want it as it was", got, err)
	}
	if err := h.Remove(t.Context(), root+"/dangling"); err != nil {
		t.Errorf("remove a dangling link: %v", err)
	}
}

func contractDirectories(t *testing.T, h Host, root string) {
	if err := h.WriteFile(t.Context(), root+"/dir/file", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := h.WriteFile(t.Context(), root+"/dir", nil, 0o600); err == nil {
		t.Error("wrote a file over a directory")
	}
	if _, err := h.ReadFile(t.Context(), root+"/dir"); err == nil || errors.Is(err, fs.ErrNotExist) {
		t.Errorf("read a directory: %v, want another error", err)
	}
	if err := h.WriteFile(t.Context(), root+"/dir/file/below", nil, 0o600); err == nil {
		t.Error("wrote below a file")
	}
	if err := h.Remove(t.Context(), root+"/dir"); err == nil {
		t.Error("removed a directory that is not empty")
	}
}

func contractRun(t *testing.T, h Host, _ string) {
	var mu sync.Mutex
	var lines []string
	out, err := h.Run(t.Context(), Command{Args: []string{"sh", "-c", bothScript}, Env: []string{"V=a 'b' $c"}, Output: func(line string) {
		mu.Lock()
		defer mu.Unlock()
		lines = append(lines, line)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Output{Stdout: "out a 'b' $c\nlast", Stderr: "err\r\n"}, out); diff != "" {
		t.Errorf("output (-want +got):\n%s", diff)
	}
	for _, want := range []string{"out a 'b' $c", "err", "last"} {
		if n := strings.Count("\n"+strings.Join(lines, "\n")+"\n", "\n"+want+"\n"); n != 1 {
			t.Errorf("lines %q have %q %d times, want once", lines, want, n)
		}
	}
	out, err = h.Run(t.Context(), Command{Args: []string{"cat"}, Stdin: strings.NewReader("secret\n")})
	if err != nil || out.Stdout != "secret\n" {
		t.Errorf("cat gave %q, %v", out.Stdout, err)
	}
	if out, err = h.Run(t.Context(), Command{Args: []string{"cat"}}); err != nil || out.Stdout != "" {
		t.Errorf("cat without input gave %q, %v", out.Stdout, err)
	}
}

func contractExit(t *testing.T, h Host, _ string) {
	args := []string{"sh", "-c", failScript}
	out, err := h.Run(t.Context(), Command{Args: args})
	exit, ok := errors.AsType[*ExitError](err)
	if !ok || exit.Code != 7 || exit.Host != h.Name() || !cmp.Equal(exit.Args, args) {
		t.Fatalf("error %#v, want exit status 7", err)
	}
	if len(exit.Tail) != 20 || exit.Tail[19] != "line ^" || exit.Tail[0] != "line K" {
		t.Errorf("tail %q, want the last 20 of 30 lines", exit.Tail)
	}
	if !strings.HasPrefix(out.Stdout, "line A\n") {
		t.Errorf("output %q, want all of it beside the error", out.Stdout)
	}
	_, err = h.Run(t.Context(), Command{Args: args, Secret: true})
	if exit, ok := errors.AsType[*ExitError](err); !ok || len(exit.Tail) > 0 || strings.Contains(err.Error(), "line ^") {
		t.Errorf("secret output in error %v", err)
	}
	_, err = h.Run(t.Context(), Command{Args: []string{"no-such-program-here"}})
	if exit, ok := errors.AsType[*ExitError](err); !ok || exit.Code != 127 || !strings.Contains(err.Error(), "not found") {
		t.Errorf("error %v, want exit status 127, not found", err)
	}
}

func contractBadCommands(t *testing.T, h Host, _ string) {
	for name, c := range map[string]Command{
		"nothing": {}, "empty program": {Args: []string{""}}, "option": {Args: []string{"-c", "id"}}, "byte 0": {Args: []string{"echo", "a\x00b"}},
		"environment": {Args: []string{"true"}, Env: []string{"a b=c"}}, "environment with byte 0": {Args: []string{"true"}, Env: []string{"A=\x00"}},
	} {
		_, err := h.Run(t.Context(), c)
		if _, ran := errors.AsType[*ExitError](err); err == nil || ran {
			t.Errorf("%s: error %v, want the command refused", name, err)
		}
	}
}

func contractLimit(t *testing.T, h Host, _ string) {
	n := 0
	out, err := h.Run(t.Context(), Command{Args: []string{"sh", "-c", longScript}, Limit: 1000, Output: func(line string) { n += len(line) }})
	if err != nil || len(out.Stdout) != 1000 || !out.Truncated {
		t.Errorf("kept %d bytes, truncated %v, %v; want the first 1000", len(out.Stdout), out.Truncated, err)
	}
	if n != 3000 {
		t.Errorf("%d bytes in lines, want all 3000", n)
	}
}

func contractInput(t *testing.T, h Host, _ string) {
	broken := errors.New("disk on fire")
	if _, err := h.Run(t.Context(), Command{Args: []string{"cat"}, Stdin: errReader{broken}}); !errors.Is(err, broken) {
		t.Errorf("error %v, want that of the input", err)
	}
}

func contractCancel(t *testing.T, h Host, _ string) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	if _, fake := h.(*Fake); fake {
		go cancel(why) // whether before the command or while it waits
	}
	begun := time.Now()
	_, err := h.Run(ctx, Command{Args: []string{"sh", "-c", waitScript}, Output: func(line string) {
		if line == "begun" {
			cancel(why)
		}
	}})
	if !errors.Is(err, why) || time.Since(begun) > time.Minute {
		t.Errorf("error %v after %s, want the cause at once", err, time.Since(begun))
	}
	if _, err := h.ReadFile(ctx, "/etc/hostname"); !errors.Is(err, why) {
		t.Errorf("a call with an ended context: %v, want its cause", err)
	}
}

func contractParallel(t *testing.T, h Host, root string) {
	var wg sync.WaitGroup
	for i := range 30 {
		wg.Go(func() {
			name := root + "/" + string(rune('a'+i))
			if err := h.WriteFile(t.Context(), name, []byte(name), 0o600); err != nil {
				t.Error(err)
				return
			}
			if got, err := h.ReadFile(t.Context(), name); err != nil || string(got) != name {
				t.Errorf("read %q, %v; want %q", got, err, name)
			}
		})
	}
	wg.Wait()
}

func contractClose(t *testing.T, h Host, _ string) {
	for range 2 {
		if err := h.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
	}
	if _, err := h.Run(t.Context(), Command{Args: []string{"cat"}}); !errors.Is(err, net.ErrClosed) {
		t.Errorf("after Close: %v, want net.ErrClosed", err)
	}
}

func TestFakeKeepsTheContract(t *testing.T) {
	contract(t, func(*testing.T) (Host, string) {
		f := NewFake("fake")
		scriptContract(f)
		return f, "/srv/test"
	})
}
