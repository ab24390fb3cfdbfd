package action_test

import (
	"context"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/kubeinit/internal/action"
	"github.com/planetmesh/planetmesh/kubeinit/internal/action/actiontest"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// service is a unit with a file and a setting.
func service(content, version string) action.Unit {
	return action.Unit{
		Name: "p.service", Files: []action.File{{Path: "/etc/systemd/system/p.service", Content: []byte(content)}},
		Version: version, Enabled: action.Yes, Active: action.Yes,
	}
}

func TestUnitIsRestartedOnlyWhenItHasTo(t *testing.T) {
	m := actiontest.New("a")
	steps := []struct {
		name   string
		do     func()
		unit   action.Unit
		starts int
	}{
		{"first", nil, service("one", "1"), 1},
		{"nothing changed", nil, service("one", "1"), 1},
		{"file changed", nil, service("two", "1"), 2},
		{"version changed", nil, service("two", "2"), 3},
		{"somebody changed the file", func() { m.Put("/etc/systemd/system/p.service", "x", 0o644, 0, 0) }, service("two", "2"), 4},
		{"somebody stopped it", func() { mustRun(t, m, "systemctl", "stop", "--", "p.service") }, service("two", "2"), 5},
		{"somebody disabled it", func() { mustRun(t, m, "systemctl", "disable", "--", "p.service") }, service("two", "2"), 6},
		{"killed before it was restarted", func() { mustRun(t, m, "rm", "-rf", "/var/lib/kubeinit/units/p.service") }, service("two", "2"), 7},
	}
	for _, s := range steps {
		if s.do != nil {
			s.do()
		}
		if _, err := apply(t, m, s.unit); err != nil {
			t.Fatalf("%s: %v", s.name, err)
		}
		if n := m.Starts("p.service"); n != s.starts {
			t.Errorf("%s: started %d times, want %d", s.name, n, s.starts)
		}
	}
}

// TestUnitIsRestartedAlsoAfterAKill: a file that somebody changed is put right, and
// kubeinit killed at any point around that. The unit must have been started since.
func TestUnitIsRestartedAlsoAfterAKill(t *testing.T) {
	for _, cut := range actiontest.Cuts {
		for n := 0; ; n++ {
			m := actiontest.New("a")
			if _, err := apply(t, m, service("one", "1")); err != nil {
				t.Fatal(err)
			}
			m.Put("/etc/systemd/system/p.service", "x", 0o644, 0, 0)
			m.KillAfter(n, cut)
			_, err := apply(t, m, service("one", "1"))
			m.KillAfter(-1, cut)
			if _, err := apply(t, m, service("one", "1")); err != nil {
				t.Fatal(err)
			}
			if m.Starts("p.service") < 2 {
				t.Errorf("killed at call %d, cut %v: not restarted", n, cut)
			}
			if err == nil {
				break
			}
		}
	}
}

func mustRun(t *testing.T, m *actiontest.Machine, args ...string) {
	t.Helper()
	if _, err := m.Run(t.Context(), host.Command{Args: args}); err != nil {
		t.Fatal(err)
	}
}

// TestUnitSaysTheSameBeforeAndAfterItsPackage: a package may enable and start its
// unit, which the plan could not know.
func TestUnitSaysTheSameBeforeAndAfterItsPackage(t *testing.T) {
	m := actiontest.New("a")
	u := action.Unit{Name: "c.service", Files: []action.File{{Path: "/etc/c.conf", Content: []byte("x\n")}}, Enabled: action.Yes, Active: action.Yes}
	before, err := u.Observe(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	m.SetUnit("c.service", "[Service]\n", true, true)
	after, err := u.Observe(t.Context(), m)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(before, after); diff != "" {
		t.Errorf("changes (-before +after):\n%s", diff)
	}
}

func TestUnitThatDoesNotStartShowsItsLogAndIsUndone(t *testing.T) {
	m := actiontest.New("a")
	m.SetUnit("p.service", "works\n", true, true)
	before := m.Snapshot(journal.Dir)
	m.Handle("journalctl", func([]string, []byte) (string, int) { return "p: cannot bind\n", 0 })
	e := &phase.Executor{Hosts: map[string]host.Host{"a": m}}
	result, err := e.Apply(t.Context(), []phase.Step{{ID: "prepare/a/x", Phase: phase.Prepare, Host: "a", Action: service("broken\n", ""), UndoOnFailure: true}})
	if err == nil || len(result.Failures) != 1 {
		t.Fatalf("%+v, %v", result, err)
	}
	f := result.Failures[0]
	if !slices.Equal(f.Tail, []string{"Job for p.service failed.", "p: cannot bind"}) || f.Command != "systemctl restart -- p.service" || f.Code != 1 {
		t.Errorf("failure %+v", f)
	}
	if len(f.Undone) != 1 || len(f.NotUndone) != 0 {
		t.Errorf("failure %+v", f)
	}
	if diff := cmp.Diff(before, m.Snapshot(journal.Dir)); diff != "" {
		t.Errorf("after undo:\n%s", diff)
	}
}

func TestMaskedUnitIsAFault(t *testing.T) {
	m := actiontest.New("a")
	m.Handle("systemctl", func([]string, []byte) (string, int) {
		return "UnitFileState=masked\nLoadState=masked\nActiveState=inactive\n", 0
	})
	_, err := service("x", "").Observe(t.Context(), m)
	wantHint(t, err, "masked", "systemctl unmask p.service")
}

// wantHint checks an error's text and its cure.
func wantHint(t *testing.T, err error, text, hint string) {
	t.Helper()
	var e *cli.Error
	if err == nil || !strings.Contains(err.Error(), text) {
		t.Errorf("error %v, want %q", err, text)
	}
	if !errors.As(err, &e) || !strings.Contains(e.Hint, hint) {
		t.Errorf("hint %+v, want %q", e, hint)
	}
}

func TestPackagesUpdateListsIfTheVersionIsUnknown(t *testing.T) {
	m := actiontest.New("a")
	updated := 0
	m.Handle("apt-get", func(args []string, stdin []byte) (string, int) {
		if slices.Contains(args, "update") {
			updated++
			return "", 0
		}
		if updated == 0 {
			return "E: Version '1' for 'kubelet' was not found", 100
		}
		if slices.Contains(args, "--simulate") {
			return "Inst kubelet (1 test:1 [amd64])\n", 0
		}
		return "E: held broken packages", 100
	})
	p := action.Packages{Versions: map[string]string{"kubelet": "1"}}
	_, err := apply(t, m, p)
	if updated != 1 || err == nil || !strings.Contains(err.Error(), "held broken packages") {
		t.Errorf("updated %d times, %v", updated, err)
	}
}

func TestPackagesNeverRemoveOthers(t *testing.T) {
	m := actiontest.New("a")
	m.Install("docker.io", "1")
	m.Handle("apt-get", func(args []string, _ []byte) (string, int) {
		if !slices.Contains(args, "--simulate") {
			t.Errorf("apt-get %q", args)
		}
		return "Remv docker.io [1]\nInst containerd (2 test:1 [amd64])\n", 0
	})
	_, err := apply(t, m, action.Packages{Versions: map[string]string{"containerd": "2"}})
	wantHint(t, err, "apt would remove package docker.io", "remove it on a")
}

func TestUploadSendsNothingWrong(t *testing.T) {
	m := actiontest.New("a")
	u := upload("/opt/p", "program")
	u.Open = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("progrom")), nil }
	if _, err := apply(t, m, u); err == nil || !strings.Contains(err.Error(), "sha256") {
		t.Errorf("apply = %v", err)
	}
	if strings.Contains(m.Snapshot(journal.Dir), "/opt/p") {
		t.Error("it was sent")
	}
}

func TestUploadOnceKeepsNothing(t *testing.T) {
	m := actiontest.New("a")
	m.Put("/var/lib/kubeinit/bin/p", "torn", 0o755, 0, 0)
	u := upload("/var/lib/kubeinit/bin/p", "program")
	u.Once = true
	if _, err := apply(t, m, u); err != nil {
		t.Fatal(err)
	}
	if strings.Contains(m.Snapshot(), "torn") {
		t.Error("the former content was kept")
	}
	if err := takeBack(t, m); err != nil || strings.Contains(m.Snapshot(journal.File), "/var/lib/kubeinit/bin/p") {
		t.Errorf("undo: %v\n%s", err, m.Snapshot())
	}
}

func TestImagesAreAllMissingWithoutContainerd(t *testing.T) {
	m := actiontest.New("a")
	m.Handle("ctr", func([]string, []byte) (string, int) { return "ctr: no socket", 1 })
	got, err := action.Images{Archive: "/x", Refs: []string{"a", "b"}}.Observe(t.Context(), m)
	if err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
}

func TestModuleIsToleratedWhereverItComesFrom(t *testing.T) {
	none := func([]string, []byte) (string, int) { return "modprobe: FATAL: no such directory", 1 }
	tests := []struct {
		name  string
		setup func(m *actiontest.Machine)
		want  string // error; nothing to do if empty
	}{
		{"shows itself, no files of modules", func(m *actiontest.Machine) { m.Put("/sys/module/br_netfilter/x", "", 0o444, 0, 0) }, ""},
		{"its work is done, no files of modules", func(m *actiontest.Machine) { m.Put("/proc/sys/net/bridge/x", "", 0o444, 0, 0) }, ""},
		{"nowhere", func(*actiontest.Machine) {}, "the kernel has no module br-netfilter"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := actiontest.New("a")
			m.Handle("modprobe", none)
			tt.setup(m)
			got, err := action.Module{Name: "br-netfilter", Sign: "/proc/sys/net/bridge"}.Observe(t.Context(), m)
			if tt.want != "" {
				wantHint(t, err, tt.want, "install the modules")
				return
			}
			if err != nil || len(got) > 0 {
				t.Errorf("%v, %v", got, err)
			}
		})
	}
}

func TestModuleThatStaysIsNotUnloaded(t *testing.T) {
	m := actiontest.New("a")
	if _, err := apply(t, m, action.Module{Name: "overlay", Stays: true}); err != nil {
		t.Fatal(err)
	}
	if err := takeBack(t, m); err != nil {
		t.Fatal(err)
	}
	if s := m.Snapshot(journal.Dir); !strings.Contains(s, "module overlay") || strings.Contains(s, "modules-load.d") {
		t.Errorf("after undo:\n%s", s)
	}
}

func TestModuleInUseStaysLoadedWithoutAnError(t *testing.T) {
	m := actiontest.New("a")
	if _, err := apply(t, m, action.Module{Name: "overlay"}); err != nil {
		t.Fatal(err)
	}
	m.Handle("modprobe", func([]string, []byte) (string, int) { return "modprobe: FATAL: Module overlay is in use.", 1 })
	if err := takeBack(t, m); err != nil {
		t.Error(err)
	}
}

func TestSysctlThatTheKernelLacksIsAFault(t *testing.T) {
	m := actiontest.New("a")
	_, err := apply(t, m, action.Sysctl{Name: "k8s", Values: map[string]string{"net.bridge.x": "1"}})
	wantHint(t, err, "the kernel has no parameter net.bridge.x", "load the module")
	if strings.Contains(m.Snapshot(journal.Dir), "sysctl.d/zz") {
		t.Error("the file was written")
	}
}

func TestNoSwap(t *testing.T) {
	m := actiontest.New("a")
	head := "Filename\tType\tSize\tUsed\tPriority\n"
	for _, ok := range []string{"", head} {
		if ok != "" {
			m.Put("/proc/swaps", ok, 0o444, 0, 0)
		}
		if result, err := apply(t, m, action.NoSwap()); err != nil || result.Count(phase.StateUnchanged) != 1 {
			t.Errorf("%q: %v", ok, err)
		}
	}
	m.Put("/proc/swaps", head+"/dev/sda2 partition 1 0 -2\n/swapfile file 1 0 -3\n", 0o444, 0, 0)
	_, err := apply(t, m, action.NoSwap())
	wantHint(t, err, "swap is on: /dev/sda2, /swapfile", "swapoff -a on a")
}

func TestPreinstalledNamesEveryFault(t *testing.T) {
	m := actiontest.New("a")
	m.Handle("kubelet", func([]string, []byte) (string, int) { return "Kubernetes v1.37.1\n", 0 })
	m.Handle("kubeadm", func([]string, []byte) (string, int) { return "v1.36.4\nrubbish v1.37.9\n", 0 })
	kubelet := action.Program{Args: []string{"kubelet", "--version"}, Want: "v1.37."}
	if _, err := action.Preinstalled(kubelet).Observe(t.Context(), m); err != nil {
		t.Error(err)
	}
	_, err := action.Preinstalled(kubelet, action.Program{Args: []string{"kubeadm", "version"}, Want: "v1.37."}, action.Program{Args: []string{"crictl"}, Want: "1"}).Observe(t.Context(), m)
	wantHint(t, err, `kubeadm is "v1.36.4" and must be v1.37.`, "install another version of kubeadm on a")
	wantHint(t, err, "crictl is not installed", "another version")
}

func TestCommandKeepsItsSecret(t *testing.T) {
	m := actiontest.New("a")
	done := false
	m.Handle("join", func(args []string, stdin []byte) (string, int) {
		if string(stdin) != "token" {
			t.Errorf("standard input %q", stdin)
		}
		done = true
		return "here is the token\n", 0
	})
	m.Handle("joined", func([]string, []byte) (string, int) {
		if done {
			return "", 0
		}
		return "token is missing", 1
	})
	var lines []string
	e := &phase.Executor{Hosts: map[string]host.Host{"a": m}, Events: func(ev phase.Event) { lines = append(lines, ev.Text) }}
	c := action.Command{
		Name: "join", IsSo: []string{"joined"}, Do: [][]string{{"join"}}, Secret: true, Unit: "join",
		Stdin: func() io.Reader { return strings.NewReader("token") },
	}
	if _, err := e.Apply(t.Context(), []phase.Step{{ID: "join/a/x", Phase: phase.Join, Host: "a", Action: c}}); err != nil {
		t.Fatal(err)
	}
	if text := strings.Join(lines, "\n") + m.Snapshot() + strings.Join(m.Calls(), "\n"); strings.Contains(text, "token") {
		t.Errorf("the secret is in\n%s", text)
	}
}

func TestCommandThatNeverBecomesSoIsAFailure(t *testing.T) {
	m := actiontest.New("a")
	_, err := apply(t, m, action.Command{Name: "make x", IsSo: []string{"false"}, Do: [][]string{{"true"}}})
	if err == nil || !strings.Contains(err.Error(), "prove make x") {
		t.Errorf("apply = %v", err)
	}
}

func TestActionsRefuseWhatIsInTheWay(t *testing.T) {
	m := actiontest.New("a")
	m.Put("/etc/d/x", "", 0o644, 0, 0)
	m.PutLink("/etc/link", "x")
	for _, a := range []phase.Action{
		action.File{Path: "/etc/d"}, action.Absent{Path: "/etc/d"}, action.Directory{Path: "/etc/d/x"}, action.Block{Path: "/etc/d", Mark: "us"},
		action.Block{Path: "/etc/link", Mark: "us", Text: "x"}, upload("/etc/d", "x"),
	} {
		if _, err := a.Observe(t.Context(), m); err == nil || !strings.HasPrefix(err.Error(), "a: ") {
			t.Errorf("%s: %v", a, err)
		}
	}
}

func TestDiffIsShort(t *testing.T) {
	long := strings.Repeat("line\n", 900)
	tests := []struct{ name, old, fresh, want string }{
		{"context", "1\n2\n3\n4\n5\n6\n7\n", "1\n2\n3\n4\n5\nsix\n7\n", "…\n 4\n 5\n-6\n+six\n 7"},
		{"far apart", "a\n1\n2\n3\n4\n5\nb\n", "A\n1\n2\n3\n4\n5\nB\n", "-a\n+A\n 1\n 2\n…\n 4\n 5\n-b\n+B"},
		{"last newline", "a\n", "a", "-a\n+a (no newline at the end)"},
		{"emptied", "a\n", "", "-a"},
		{"too many lines", "", long, strings.Repeat("+line\n", 40) + "… 860 more lines"},
		{"too long", "", long + long, "1800 lines instead of 0, sha256 01f1c4e41b5a9a0c"},
		{"no text", "", "a\x00b", "3 bytes, sha256 4d7e9bb0bb3a1b9b"},
		{"same", "a", "a", "1 bytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			m := actiontest.New("a")
			m.Put("/etc/x", tt.old, 0o600, 0, 0)
			got, err := action.File{Path: "/etc/x", Content: []byte(tt.fresh)}.Observe(context.Background(), m)
			if err != nil || len(got) == 0 {
				t.Fatalf("%v, %v", got, err)
			}
			if tt.name == "same" {
				if got[0].What != "mode of /etc/x" {
					t.Errorf("%v", got)
				}
				return
			}
			text, digest, hashed := strings.Cut(got[0].To, ", sha256 ")
			want, _, _ := strings.Cut(tt.want, ", sha256 ")
			if text != want || hashed && len(digest) != 64 {
				t.Errorf("diff\n%s\nwant\n%s", got[0].To, tt.want)
			}
		})
	}
}
