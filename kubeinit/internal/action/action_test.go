package action_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/kubeinit/internal/action"
	"github.com/planetmesh/planetmesh/kubeinit/internal/action/actiontest"
	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/journal"
	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

func upload(name, content string) action.Upload {
	sum := sha256.Sum256([]byte(content))
	return action.Upload{
		Path: name, SHA256: hex.EncodeToString(sum[:]), Size: int64(len(content)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader(content)), nil },
	}
}

func addr(s string) netip.Addr { return netip.MustParseAddr(s) }

// cases are actions on machines on which they have something to do.
var cases = []struct {
	name   string
	setup  func(m *actiontest.Machine)
	action phase.Action
	want   []phase.Change
}{
	{
		"new file in new directories", nil,
		action.File{Path: "/etc/a/b/x", Content: []byte("one\ntwo\n"), Mode: 0o640, UID: 5, GID: 6},
		[]phase.Change{{What: "file /etc/a/b/x", To: "+one\n+two"}},
	},
	{
		"changed file",
		func(m *actiontest.Machine) { m.Put("/etc/x", "one\nold\nthree\n", 0o600, 5, 6) },
		action.File{Path: "/etc/x", Content: []byte("one\nnew\nthree\n")},
		[]phase.Change{
			{What: "file /etc/x", To: " one\n-old\n+new\n three"},
			{What: "mode of /etc/x", From: "0600", To: "0644"},
			{What: "owner of /etc/x", From: "5:6", To: "0:0"},
		},
	},
	{
		"secret file",
		func(m *actiontest.Machine) { m.Put("/etc/key", "old secret", 0o644, 0, 0) },
		action.File{Path: "/etc/key", Content: []byte("new secret"), Secret: true},
		[]phase.Change{{What: "file /etc/key", From: "(secret)", To: "(secret)"}, {What: "mode of /etc/key", From: "0644", To: "0600"}},
	},
	{
		"file instead of a link",
		func(m *actiontest.Machine) { m.PutLink("/etc/x", "/run/x") },
		action.File{Path: "/etc/x", Content: []byte("one\n")},
		[]phase.Change{{What: "file /etc/x", From: "symbolic link to /run/x", To: "+one"}},
	},
	{
		"file to be absent",
		func(m *actiontest.Machine) { m.Put("/etc/cni/old.conf", "old", 0o640, 1, 2) },
		action.Absent{Path: "/etc/cni/old.conf"},
		[]phase.Change{{What: "file /etc/cni/old.conf", From: "3 bytes"}},
	},
	{
		"link to be absent",
		func(m *actiontest.Machine) { m.PutLink("/etc/x", "/run/x") },
		action.Absent{Path: "/etc/x"},
		[]phase.Change{{What: "file /etc/x", From: "symbolic link to /run/x"}},
	},
	{
		"new directory", nil,
		action.Directory{Path: "/var/lib/a/b", Mode: 0o700, UID: 3, GID: 4},
		[]phase.Change{{What: "directory /var/lib/a/b", To: "0700 3:4"}},
	},
	{
		"directory of another mode",
		func(m *actiontest.Machine) { m.Put("/var/lib/a/file", "x", 0o600, 1, 1) },
		action.Directory{Path: "/var/lib/a", Mode: 0o700},
		[]phase.Change{{What: "mode of /var/lib/a", From: "0755", To: "0700"}},
	},
	{
		"block in a file without a newline at its end",
		func(m *actiontest.Machine) { m.Put("/etc/hosts", "127.0.0.1 localhost", 0o664, 0, 7) },
		action.Block{Path: "/etc/hosts", Mark: "us", Text: "10.0.0.1 a\n"},
		[]phase.Change{{What: `block "us" of /etc/hosts`, To: "+# begin of us, written by kubeinit\n+10.0.0.1 a\n+# end of us"}},
	},
	{
		"block in a new file", nil,
		action.Block{Path: "/etc/new/file", Mark: "us", Text: "x"},
		[]phase.Change{{What: `block "us" of /etc/new/file`, To: "+# begin of us, written by kubeinit\n+x\n+# end of us"}},
	},
	{
		"block that changes",
		func(m *actiontest.Machine) {
			m.Put("/etc/hosts", "a\n"+journal.Block("us", "old\n")+journal.Block("them", "theirs\n")+"b", 0o644, 0, 0)
		},
		action.Block{Path: "/etc/hosts", Mark: "us", Text: "new\n"},
		[]phase.Change{{What: `block "us" of /etc/hosts`, To: " # begin of us, written by kubeinit\n-old\n+new\n # end of us"}},
	},
	{
		"block that goes",
		func(m *actiontest.Machine) {
			m.Put("/etc/hosts", "a\n"+journal.Block("us", "old\n")+"b\n", 0o644, 0, 0)
		},
		action.Block{Path: "/etc/hosts", Mark: "us"},
		[]phase.Change{{What: `block "us" of /etc/hosts`, To: "-# begin of us, written by kubeinit\n-old\n-# end of us"}},
	},
	{
		"names of hosts",
		func(m *actiontest.Machine) { m.Put("/etc/hosts", "127.0.0.1 localhost\n::1 api.planet\n", 0o644, 0, 0) },
		action.Hosts{Mark: "cluster planet", Entries: []action.HostsEntry{{Addr: addr("127.0.0.1"), Names: []string{"api.planet", "x"}}}},
		[]phase.Change{{
			What: `block "cluster planet" of /etc/hosts`,
			To:   "+# begin of cluster planet, written by kubeinit\n+127.0.0.1 api.planet x\n+# end of cluster planet",
		}},
	},
	{
		"kernel parameters",
		func(m *actiontest.Machine) {
			m.SetSysctl("net.ipv4.ip_forward", "0")
			m.SetSysctl("net.ipv4.tcp_rmem", "4096\t8192\t16384")
			m.SetSysctl("vm.x", "1")
		},
		action.Sysctl{Name: "k8s", Values: map[string]string{"net.ipv4.ip_forward": "1", "net.ipv4.tcp_rmem": "1 2 3", "vm.x": "1"}},
		[]phase.Change{{
			What: "file /etc/sysctl.d/zz-kubeinit-k8s.conf",
			To:   "+# written by kubeinit; changes are overwritten\n+net.ipv4.ip_forward = 1\n+net.ipv4.tcp_rmem = 1 2 3\n+vm.x = 1",
		}},
	},
	{
		"kernel parameter that somebody changed",
		func(m *actiontest.Machine) {
			m.SetSysctl("vm.x", "0")
			m.Put("/etc/sysctl.d/zz-kubeinit-k8s.conf", "# written by kubeinit; changes are overwritten\nvm.x = 1\n", 0o644, 0, 0)
		},
		action.Sysctl{Name: "k8s", Values: map[string]string{"vm.x": "1"}},
		[]phase.Change{{What: "kernel parameter vm.x", From: "0", To: "1"}},
	},
	{
		"kernel module", nil,
		action.Module{Name: "br_netfilter"},
		[]phase.Change{
			{What: "kernel module br_netfilter", To: "loaded"},
			{What: "file /etc/modules-load.d/kubeinit-br_netfilter.conf", To: "+# written by kubeinit; changes are overwritten\n+br_netfilter"},
		},
	},
	{
		"kernel module that is loaded",
		func(m *actiontest.Machine) { m.Put("/sys/module/overlay/x", "", 0o444, 0, 0) },
		action.Module{Name: "overlay"},
		[]phase.Change{{What: "file /etc/modules-load.d/kubeinit-overlay.conf", To: "+# written by kubeinit; changes are overwritten\n+overlay"}},
	},
	{
		"kernel module that is built in and shows nowhere", nil,
		action.Module{Name: "silent"},
		[]phase.Change{{What: "file /etc/modules-load.d/kubeinit-silent.conf", To: "+# written by kubeinit; changes are overwritten\n+silent"}},
	},
	{
		"new unit", nil,
		action.Unit{
			Name: "p.service", Files: []action.File{{Path: "/etc/systemd/system/p.service", Content: []byte("[Service]\n")}, {Path: "/etc/p/p.conf", Content: []byte("x\n")}},
			Version: "1", Enabled: action.Yes, Active: action.Yes,
		},
		[]phase.Change{
			{What: "file /etc/systemd/system/p.service", To: "+[Service]"}, {What: "file /etc/p/p.conf", To: "+x"},
			{What: "unit p.service", To: "enabled, running with these settings"},
		},
	},
	{
		"unit of somebody else that gets a drop-in",
		func(m *actiontest.Machine) { m.SetUnit("c.service", "[Service]\n", true, true) },
		action.Unit{Name: "c.service", Files: []action.File{{Path: "/etc/systemd/system/c.service.d/k.conf", Content: []byte("x\n")}}, Enabled: action.Yes, Active: action.Yes},
		[]phase.Change{
			{What: "file /etc/systemd/system/c.service.d/k.conf", To: "+x"},
			{What: "unit c.service", To: "enabled, running with these settings"},
		},
	},
	{
		"unit to be stopped",
		func(m *actiontest.Machine) { m.SetUnit("f.service", "[Service]\n", true, true) },
		action.Unit{Name: "f.service", Enabled: action.No, Active: action.No},
		[]phase.Change{{What: "unit f.service", To: "disabled, stopped"}},
	},
	{
		"unit that is only enabled",
		func(m *actiontest.Machine) { m.SetUnit("kubelet.service", "[Service]\n", false, false) },
		action.Unit{Name: "kubelet.service", Enabled: action.Yes},
		[]phase.Change{{What: "unit kubelet.service", To: "enabled"}},
	},
	{
		"packages",
		func(m *actiontest.Machine) {
			m.Offer("kubelet", "1.37.1-1.1", "conntrack")
			m.Offer("kubeadm", "1.37.1-1.1")
			m.Offer("conntrack", "1.4")
			m.Offer("kubeadm", "1.36.0-1.1")
			m.Install("kubeadm", "1.36.0-1.1")
			m.Install("bash", "5")
		},
		action.Packages{Versions: map[string]string{"kubelet": "1.37.1-1.1", "kubeadm": "1.37.1-1.1"}},
		[]phase.Change{
			{What: "package kubeadm", From: "1.36.0-1.1", To: "1.37.1-1.1, held"}, {What: "package kubelet", To: "1.37.1-1.1, held"},
		},
	},
	{
		"new program", nil, upload("/opt/bin/p", "program"),
		[]phase.Change{{What: "file /opt/bin/p", To: "7 bytes, sha256 1310ca2c8932dbd1…"}},
	},
	{
		"program of another version",
		func(m *actiontest.Machine) { m.Put("/usr/local/bin/p", "progrom", 0o700, 1, 1) },
		upload("/usr/local/bin/p", "program"),
		[]phase.Change{
			{What: "file /usr/local/bin/p", From: "7 bytes, sha256 8d7752ecc102ee0b…", To: "7 bytes, sha256 1310ca2c8932dbd1…"},
			{What: "mode of /usr/local/bin/p", From: "0700", To: "0755"}, {What: "owner of /usr/local/bin/p", From: "1:1", To: "0:0"},
		},
	},
	{
		"images",
		func(m *actiontest.Machine) {
			m.Put("/var/lib/images.tar", "registry/a:1 registry/b:1 registry/c:1", 0o644, 0, 0)
			m.Put("/var/lib/theirs.tar", "registry/b:1", 0o644, 0, 0)
			_, _ = m.Run(context.Background(), host.Command{Args: []string{"ctr", "-n", "k8s.io", "images", "import", "/var/lib/theirs.tar"}})
		},
		action.Images{Archive: "/var/lib/images.tar", Refs: []string{"registry/a:1", "registry/b:1", "registry/c:1"}},
		[]phase.Change{{What: "image registry/a:1", To: "imported"}, {What: "image registry/c:1", To: "imported"}},
	},
	{
		"commands", nil,
		action.Command{
			Name: "make x", IsSo: []string{"sha256sum", "/run/x"},
			Do: [][]string{{"install", "-d", "-m", "0700", "/run/x.d"}, {"ln", "-s", "a", "/run/x"}}, Back: [][]string{{"rm", "-rf", "/run/x", "/run/x.d"}},
		},
		[]phase.Change{{What: "make x"}},
	},
}

// newMachine makes the machine of a case.
func newMachine(setup func(m *actiontest.Machine)) *actiontest.Machine {
	m := actiontest.New("a")
	if setup != nil {
		setup(m)
	}
	return m
}

// apply carries an action out as a step.
func apply(t *testing.T, m *actiontest.Machine, a phase.Action) (phase.Result, error) {
	t.Helper()
	e := &phase.Executor{Hosts: map[string]host.Host{"a": m}}
	return e.Apply(t.Context(), []phase.Step{{ID: "prepare/a/x", Phase: phase.Prepare, Host: "a", Action: a}})
}

// takeBack undoes everything, by the action or by the journal alone.
func takeBack(t *testing.T, m *actiontest.Machine, actions ...phase.Action) error {
	t.Helper()
	e := &phase.Executor{Hosts: map[string]host.Host{"a": m}}
	var steps []phase.Step
	for _, a := range actions {
		steps = append(steps, phase.Step{ID: "prepare/a/x", Phase: phase.Prepare, Host: "a", Action: a})
	}
	_, err := e.Undo(t.Context(), steps, []string{"a"})
	return err
}

func TestActionSaysWhatItWillChange(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(tt.setup)
			before := m.Snapshot()
			got, err := tt.action.Observe(t.Context(), m)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Errorf("changes (-want +got):\n%s", diff)
			}
			if diff := cmp.Diff(before, m.Snapshot()); diff != "" {
				t.Errorf("observing changed the host:\n%s", diff)
			}
			if s := tt.action.String(); s == "" || strings.Contains(s, "\n") {
				t.Errorf("String = %q", s)
			}
		})
	}
}

func TestActionIsDoneOnceAndUndoneExactly(t *testing.T) {
	for _, tt := range cases {
		for _, known := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, action known %v", tt.name, known), func(t *testing.T) {
				m := newMachine(tt.setup)
				before := m.Snapshot(journal.Dir)
				if _, err := apply(t, m, tt.action); err != nil {
					t.Fatal(err)
				}
				after := m.Snapshot()
				if after == before {
					t.Error("nothing changed")
				}
				if err := tt.action.Prove(t.Context(), m); err != nil {
					t.Error(err)
				}
				result, err := apply(t, m, tt.action)
				if err != nil || result.Count(phase.StateUnchanged) != 1 {
					t.Errorf("second run: %+v, %v", result.Steps, err)
				}
				if diff := cmp.Diff(after, m.Snapshot()); diff != "" {
					t.Errorf("second run changed the host:\n%s", diff)
				}
				if known {
					err = takeBack(t, m, tt.action)
				} else {
					err = takeBack(t, m)
				}
				if err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(before, m.Snapshot(journal.Dir)); diff != "" {
					t.Errorf("after undo:\n%s", diff)
				}
			})
		}
	}
}

// TestActionIsSafeToKill cuts the connection at every call: the next run must end
// in the same state, and undo must lead back, also right after the cut.
func TestActionIsSafeToKill(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(tt.setup)
			before := m.Snapshot(journal.Dir)
			if _, err := apply(t, m, tt.action); err != nil {
				t.Fatal(err)
			}
			want := m.Snapshot(journal.File, journal.BeforeDir)
			for _, cut := range actiontest.Cuts {
				for n := 0; ; n++ {
					m := newMachine(tt.setup)
					m.KillAfter(n, cut)
					_, err := apply(t, m, tt.action)
					if err == nil {
						break
					}
					m.KillAfter(-1, actiontest.Before)
					again := newMachine(tt.setup)
					again.KillAfter(n, cut)
					_, _ = apply(t, again, tt.action)
					again.KillAfter(-1, actiontest.Before)
					if err := takeBack(t, again); err != nil {
						t.Fatalf("undo after call %d, cut %v: %v", n, cut, err)
					}
					if diff := cmp.Diff(before, again.Snapshot(journal.Dir)); diff != "" {
						t.Fatalf("undo after call %d, cut %v:\n%s", n, cut, diff)
					}
					if _, err := apply(t, m, tt.action); err != nil {
						t.Fatalf("next run after call %d, cut %v: %v", n, cut, err)
					}
					if diff := cmp.Diff(want, m.Snapshot(journal.File, journal.BeforeDir)); diff != "" {
						t.Fatalf("next run after call %d, cut %v:\n%s", n, cut, diff)
					}
					if err := takeBack(t, m); err != nil {
						t.Fatal(err)
					}
					if diff := cmp.Diff(before, m.Snapshot(journal.Dir)); diff != "" {
						t.Fatalf("undo of the next run after call %d, cut %v:\n%s", n, cut, diff)
					}
				}
			}
		})
	}
}

func TestActionRefusesToWorkWithoutJournal(t *testing.T) {
	for _, tt := range cases {
		t.Run(tt.name, func(t *testing.T) {
			m := newMachine(tt.setup)
			before := m.Snapshot()
			if err := tt.action.Apply(t.Context(), m, func(string) {}); err == nil {
				t.Error("no error")
			}
			if diff := cmp.Diff(before, m.Snapshot()); diff != "" {
				t.Errorf("the host changed:\n%s", diff)
			}
		})
	}
}

func TestSecretsStayOutOfTheJournal(t *testing.T) {
	m := actiontest.New("a")
	m.Put("/etc/key", "first-secret", 0o600, 0, 0)
	if _, err := apply(t, m, action.File{Path: "/etc/key", Content: []byte("second-secret"), Secret: true}); err != nil {
		t.Fatal(err)
	}
	data, err := m.ReadFile(t.Context(), journal.File)
	if err != nil || bytes.Contains(data, []byte("-secret")) {
		t.Errorf("journal %s, %v", data, err)
	}
	for _, call := range m.Calls() {
		if strings.Contains(call, "-secret") {
			t.Errorf("argument %q", call)
		}
	}
}

func TestFileOfAnotherOwnerIsNeverReadableByOthers(t *testing.T) {
	m := actiontest.New("a")
	if _, err := apply(t, m, action.File{Path: "/etc/x", Content: []byte("x"), Mode: 0o640, UID: 0, GID: 42}); err != nil {
		t.Fatal(err)
	}
	info, err := m.Stat(t.Context(), "/etc/x")
	if want := (host.Info{Mode: fs.FileMode(0o640), Size: 1, GID: 42}); err != nil || info != want {
		t.Errorf("%+v, %v", info, err)
	}
}

func TestUndoOfABlockLeavesWhatOthersWrote(t *testing.T) {
	m := actiontest.New("a")
	m.Put("/etc/hosts", "127.0.0.1 localhost\n", 0o644, 0, 0)
	if _, err := apply(t, m, action.Block{Path: "/etc/hosts", Mark: "us", Text: "ours\n"}); err != nil {
		t.Fatal(err)
	}
	data, _ := m.ReadFile(t.Context(), "/etc/hosts")
	m.Put("/etc/hosts", "before\n"+string(data)+"after\n", 0o644, 0, 0)
	if err := takeBack(t, m); err != nil {
		t.Fatal(err)
	}
	data, err := m.ReadFile(t.Context(), "/etc/hosts")
	if want := "before\n127.0.0.1 localhost\nafter\n"; err != nil || string(data) != want {
		t.Errorf("%q, %v; want %q", data, err, want)
	}
}

func TestBlockRefusesTextWithItsOwnMarks(t *testing.T) {
	m := actiontest.New("a")
	for _, b := range []action.Block{
		{Path: "/etc/hosts", Mark: "us", Text: "x\n# end of us\ny\n"}, {Path: "/etc/hosts", Mark: "u\ns", Text: "x"}, {Path: "/etc/hosts", Text: "x"},
	} {
		if _, err := b.Observe(t.Context(), m); err == nil {
			t.Errorf("%+v is accepted", b)
		}
	}
}

func TestHostsRefusesContradiction(t *testing.T) {
	m := actiontest.New("a")
	a := action.Hosts{Mark: "us", Entries: []action.HostsEntry{{Addr: addr("127.0.0.1"), Names: []string{"api.planet"}}}}
	m.Put("/etc/hosts", "10.0.0.7 lb api.planet # old\n", 0o644, 0, 0)
	_, err := a.Observe(t.Context(), m)
	if err == nil || !strings.Contains(err.Error(), "10.0.0.7 instead of 127.0.0.1") {
		t.Errorf("Observe = %v", err)
	}
	m.Put("/etc/hosts", "# 10.0.0.7 api.planet\n10.0.0.7 other\nrubbish api.planet\n127.0.0.1 api.planet\n", 0o644, 0, 0)
	if _, err := a.Observe(t.Context(), m); err != nil {
		t.Error(err)
	}
}
