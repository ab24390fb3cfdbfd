//go:build linux

package kubelab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

func TestReleasesAreThoseOfTheirModules(t *testing.T) {
	for _, r := range releases {
		t.Run(r.minor, func(t *testing.T) {
			if !strings.HasPrefix(r.version, "v"+r.minor+".") {
				t.Errorf("version %s is none of %s", r.version, r.minor)
			}
			if containerdConfig[r.containerd] == "" {
				t.Errorf("no configuration for containerd %d", r.containerd)
			}
			for module, programs := range r.programs {
				text, err := os.ReadFile(filepath.Join("mod", module, "go.mod"))
				if err != nil {
					t.Fatal(err)
				}
				if _, err := os.Stat(filepath.Join("mod", module, "go.sum")); err != nil {
					t.Error(err)
				}
				for _, p := range programs {
					if strings.HasPrefix(p.pkg, "k8s.io/") && !strings.Contains(string(text), "k8s.io/kubernetes "+r.version+"\n") {
						t.Errorf("module %s does not have Kubernetes %s", module, r.version)
					}
				}
			}
			want := []string{"coredns", "etcd", "etcdctl", "kube-apiserver", "kube-controller-manager", "kube-proxy",
				"kube-scheduler", "kubeadm", "kubectl", "kubelet"}
			for _, name := range want {
				if !slices.Contains(r.names(), name) {
					t.Errorf("no program %s", name)
				}
			}
			if stamp := r.stamp(); !strings.Contains(stamp, "component-base/version.gitVersion="+r.version+" ") {
				t.Errorf("stamp %q does not say %s", stamp, r.version)
			}
		})
	}
}

func TestUnknownReleaseNamesTheKnown(t *testing.T) {
	t.Setenv(VersionVariable, "")
	if r, err := findRelease(""); err != nil || r.minor != defaultVersion {
		t.Errorf("no version: got %s, %v; want %s", r.minor, err, defaultVersion)
	}
	t.Setenv(VersionVariable, "1.2")
	if _, err := findRelease(""); err == nil || !strings.Contains(err.Error(), `"1.2"`) || !strings.Contains(err.Error(), defaultVersion) {
		t.Errorf("version 1.2 of the environment: got %v", err)
	}
	if r, err := findRelease(defaultVersion); err != nil || r.minor != defaultVersion {
		t.Errorf("version of the options beside another of the environment: got %s, %v", r.minor, err)
	}
}

const status = "Name:\tsystemd\nPPid:\t%d\nNSpid:\t%s\n"

func TestParseStatusFindsProcessOneOfTheBox(t *testing.T) {
	for _, c := range []struct {
		name      string
		text      string
		pid, near int
		ok        bool
	}{
		{"first process", fmt.Sprintf(status, 7, "4711\t12\t1"), 4711, 12, true},
		{"this program is in a namespace", fmt.Sprintf(status, 7, "12\t1"), 12, 12, true},
		{"child of another", fmt.Sprintf(status, 8, "4711\t12\t1"), 0, 0, false},
		{"no namespace of its own", fmt.Sprintf(status, 7, "4711\t12"), 0, 0, false},
		{"no namespaces at all", "PPid:\t7\n", 0, 0, false},
		{"no number", fmt.Sprintf(status, 7, "x\t12\t1"), 0, 0, false},
		{"empty", "", 0, 0, false},
	} {
		pid, near, ok := parseStatus(c.text, 7)
		if pid != c.pid || near != c.near || ok != c.ok {
			t.Errorf("%s: got %d, %d, %v; want %d, %d, %v", c.name, pid, near, ok, c.pid, c.near, c.ok)
		}
	}
}

func FuzzParseStatus(f *testing.F) {
	f.Add(fmt.Sprintf(status, 7, "4711\t12\t1"))
	f.Add("NSpid:\nPPid:\t7\n")
	f.Fuzz(func(t *testing.T, text string) {
		if pid, near, ok := parseStatus(text, 7); !ok && (pid != 0 || near != 0) {
			t.Errorf("%q: numbers %d and %d of no process", text, pid, near)
		}
	})
}

const mountinfo = `24 1 0:5 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
25 24 0:6 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
26 24 0:7 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
27 24 0:8 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
28 24 0:9 / /sys/fs/cgroup/memory/inner rw,relatime - cgroup cgroup rw,memory
29 24 0:9 / /sys/fs/cgroup/bpf rw,relatime - bpf bpf rw
broken
`

func TestParseHierarchies(t *testing.T) {
	if diff := cmp.Diff([]string{"cpu,cpuacct", "systemd", "unified"}, parseHierarchies(mountinfo)); diff != "" {
		t.Error(diff)
	}
	if got := parseHierarchies("25 24 0:6 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"); got != nil {
		t.Errorf("a machine with version 2 alone: got %q, want none", got)
	}
}

func FuzzParseHierarchies(f *testing.F) {
	f.Add(mountinfo)
	f.Add("0 0 0 0 /sys/fs/cgroup/ - cgroup")
	f.Fuzz(func(t *testing.T, text string) {
		for _, name := range parseHierarchies(text) {
			if name == "" || strings.Contains(name, "/") {
				t.Errorf("%q: %q is not the name of a folder", text, name)
			}
		}
	})
}

func TestImageHoldsItsFiles(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "program"), []byte("machine code"), 0o755); err != nil {
		t.Fatal(err)
	}
	i := image{
		ref: "lab/x:1", entry: "/usr/bin/x",
		files: map[string]string{"/usr/bin/x": filepath.Join(dir, "program")},
		links: map[string]string{"/bin": "usr/bin"},
	}
	var first, second bytes.Buffer
	if err := errors.Join(i.write(&first), i.write(&second)); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first.Bytes(), second.Bytes()) {
		t.Error("the same files made two images")
	}
	archive := readTar(t, first.Bytes())
	var manifest []struct {
		Config   string
		RepoTags []string
	}
	if err := json.Unmarshal([]byte(archive["manifest.json"]), &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 || !slices.Equal(manifest[0].RepoTags, []string{"lab/x:1"}) {
		t.Fatalf("manifest %+v", manifest)
	}
	var config struct {
		Config struct{ Entrypoint []string }
		RootFS struct {
			DiffIDs []string `json:"diff_ids"`
		}
	}
	if err := json.Unmarshal([]byte(archive[manifest[0].Config]), &config); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256([]byte(archive["layer.tar"]))
	if want := []string{"sha256:" + hex.EncodeToString(sum[:])}; !slices.Equal(config.RootFS.DiffIDs, want) {
		t.Errorf("layer %q, want %q", config.RootFS.DiffIDs, want)
	}
	if !slices.Equal(config.Config.Entrypoint, []string{"/usr/bin/x"}) {
		t.Errorf("entry point %q", config.Config.Entrypoint)
	}
	want := map[string]string{"usr/": "", "usr/bin/": "", "etc/": "", "tmp/": "", "usr/bin/x": "machine code", "bin": "→ usr/bin"}
	if diff := cmp.Diff(want, readTar(t, []byte(archive["layer.tar"]))); diff != "" {
		t.Error(diff)
	}
}

// readTar is the content of files by their names; links are what they say behind an arrow.
func readTar(t *testing.T, data []byte) map[string]string {
	t.Helper()
	files := make(map[string]string)
	r := tar.NewReader(bytes.NewReader(data))
	for {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		content, err := io.ReadAll(r)
		if err != nil {
			t.Fatal(err)
		}
		files[h.Name] = string(content)
		if h.Typeflag == tar.TypeSymlink {
			files[h.Name] = "→ " + h.Linkname
		}
	}
}

func newCache(t *testing.T) cache { return cache{dir: t.TempDir(), logf: t.Logf} }

func TestCacheEntryIsWholeOrAbsent(t *testing.T) {
	c := newCache(t)
	broken := errors.New("broken")
	_, err := c.entry("bin", "a thing", []string{"a"}, func(dir string) error {
		return errors.Join(os.WriteFile(filepath.Join(dir, "half"), nil, 0o644), broken)
	})
	if !errors.Is(err, broken) {
		t.Fatalf("got %v, want the error of the function", err)
	}
	if left, err := os.ReadDir(c.dir); err != nil || len(left) != 0 {
		t.Fatalf("left after a failure: %v, %v", left, err)
	}
	fills := 0
	fill := func(dir string) error {
		fills++
		return os.WriteFile(filepath.Join(dir, "whole"), nil, 0o644)
	}
	dir, err := c.entry("bin", "a thing", []string{"a"}, fill)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "whole")); err != nil {
		t.Error(err)
	}
	if again, err := c.entry("bin", "a thing", []string{"a"}, fill); err != nil || again != dir || fills != 1 {
		t.Errorf("the second time: %s, %v after %d fills; want %s after one", again, err, fills, dir)
	}
	if other, err := c.entry("bin", "a thing", []string{"", "a"}, fill); err != nil || other == dir {
		t.Errorf("another recipe: %s, %v; want another folder", other, err)
	}
}

func TestPruneRemovesWhatIsUnusedAndHalves(t *testing.T) {
	c := newCache(t)
	now := time.Now()
	for name, age := range map[string]time.Duration{
		"bin-old": keepUnused + time.Hour, "bin-new": time.Hour, "root-new.part": time.Hour,
		"own": keepUnused + time.Hour, "lock-old": keepUnused + time.Hour,
	} {
		dir := filepath.Join(c.dir, name)
		if err := errors.Join(os.Mkdir(dir, 0o755), os.Chtimes(dir, now.Add(-age), now.Add(-age))); err != nil {
			t.Fatal(err)
		}
	}
	if err := c.prune(now); err != nil {
		t.Fatal(err)
	}
	left, err := filepath.Glob(filepath.Join(c.dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range left {
		left[i] = filepath.Base(left[i])
	}
	if diff := cmp.Diff([]string{"bin-new", "lock-old", "own"}, left); diff != "" {
		t.Error(diff)
	}
}

func TestLockIsForOne(t *testing.T) {
	dir := t.TempDir()
	first, err := takeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := takeLock(dir); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("the second: got %v, want an error that names this process", err)
	}
	if err := first.release(); err != nil {
		t.Fatal(err)
	}
	again, err := takeLock(dir)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.release(); err != nil {
		t.Error(err)
	}
}

func TestForeignProgramsMustBeComplete(t *testing.T) {
	dir := t.TempDir()
	for _, name := range releases[0].names() {
		script := "#!/bin/sh\necho v1.2.3\n"
		if name == "kube-proxy" {
			continue
		}
		if err := os.WriteFile(filepath.Join(dir, name), []byte(script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv(BinariesVariable, dir)
	if _, _, err := newCache(t).programs(t.Context(), "", releases[0]); err == nil || !strings.HasSuffix(err.Error(), "lacks kube-proxy") {
		t.Errorf("without kube-proxy: got %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "kube-proxy"), nil, 0o755); err != nil {
		t.Fatal(err)
	}
	if _, _, err := newCache(t).programs(t.Context(), "", releases[0]); err == nil || !strings.Contains(err.Error(), "has Kubernetes v1.2.3") {
		t.Errorf("of another version: got %v", err)
	}
}

func TestTopologyHasTheChosenHostsAndTheOperator(t *testing.T) {
	w := &World{options: Options{Hosts: []string{"master01", "node03"}, Routed: true}}
	topology := w.topology()
	if err := topology.Validate(); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, h := range topology.Hosts {
		names = append(names, h.Name)
	}
	if diff := cmp.Diff([]string{"gw10", "master01", "gw20", "gw30", "node03", "operator"}, names); diff != "" {
		t.Error(diff)
	}
	gw20 := topology.Host("gw20")
	if !gw20.Forward || len(gw20.Routes) != 2 || fmt.Sprint(gw20.Routes[0]) != "{192.168.10.0/24 10.4.0.90}" {
		t.Errorf("routed gw20 %+v", gw20)
	}
	if got := netlab.Reference(); got.Host("gw20").Forward {
		t.Error("the reference deployment itself was changed")
	}
}

func TestKnownHostsHaveEveryHost(t *testing.T) {
	topology := (&World{options: Options{Hosts: netlab.ReferenceHosts()}}).topology()
	k, err := newKeys(topology)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "known_hosts")
	if err := os.WriteFile(file, []byte(k.known), 0o600); err != nil {
		t.Fatal(err)
	}
	check, err := knownhosts.New(file)
	if err != nil {
		t.Fatal(err)
	}
	for address, name := range map[string]string{"192.168.10.101": "master01", "192.168.20.1": "gw20", "10.4.0.91": "gw20", "192.168.30.102": "node04"} {
		remote := &net.TCPAddr{IP: net.ParseIP(address), Port: 22}
		if err := check(address+":22", remote, k.hosts[name].signer.PublicKey()); err != nil {
			t.Errorf("%s as %s: %v", address, name, err)
		}
		if err := check(address+":22", remote, k.operator.signer.PublicKey()); err == nil {
			t.Errorf("%s may have a foreign key", address)
		}
	}
}

func TestDiffAllNamesMachines(t *testing.T) {
	before := map[string]string{"a": "# files\nx\n", "b": "# files\nx\n", "c": ""}
	after := map[string]string{"a": "# files\ny\n", "b": "# files\nx\n", "d": ""}
	want := []string{"a: + files: y", "a: - files: x", "c: no snapshot after", "d: no snapshot before"}
	if diff := cmp.Diff(want, DiffAll(before, after)); diff != "" {
		t.Error(diff)
	}
	if diff := DiffAll(before, before); diff != nil {
		t.Errorf("equal snapshots: %q", diff)
	}
}

func TestRestartingUnitsAreAsIfActive(t *testing.T) {
	for in, want := range map[string]string{
		"kubelet.service loaded activating auto-restart": "kubelet.service loaded active",
		"kubelet.service loaded active running":          "kubelet.service loaded active",
		"kubelet.service loaded failed failed":           "kubelet.service loaded failed failed",
		"kubelet.service loaded inactive dead":           "kubelet.service loaded inactive dead",
	} {
		if got := restarting.ReplaceAllString(in, "$1 active"); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}

func TestMissingLibraryIsNamed(t *testing.T) {
	root := t.TempDir()
	if _, err := findLibrary(root, "libc.so.6"); err == nil || !strings.Contains(err.Error(), "libc.so.6") {
		t.Errorf("an empty root: got %v", err)
	}
}

func TestCheckNamesWhatTheMachineLacks(t *testing.T) {
	err := check(newCache(t), 10000)
	if err == nil {
		t.Fatal("a machine with room for ten thousand")
	}
	for _, want := range []string{"10000 machines want 4500512 MiB", "fs.inotify.max_user_instances"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%v\ndoes not say %q", err, want)
		}
	}
}
