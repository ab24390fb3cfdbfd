package containerd

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files anew")

// golden compares got with a file of testdata, which -update writes.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}

const pause = "registry.k8s.io/pause:3.10.1"

const extra2 = `oom_score = -1 # of the root

[plugins.'io.containerd.grpc.v1.cri']
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".registry]
  config_path = """/etc/containerd/certs.d"""
[ plugins . "io.containerd.gc.v1.scheduler" ]
pause_threshold = 0.03
`

const extra3 = `[plugins."io.containerd.cri.v1.runtime"]
restrict_oom_score_adj = true
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc]
privileged_without_host_devices = false
[plugins."io.containerd.cri.v1.images".registry]
config_path = '/etc/containerd/certs.d'
`

func TestConfigurationsByVersion(t *testing.T) {
	for _, tt := range []struct {
		name string
		c    Config
	}{
		{"1.6.toml", Config{Version: Version{1, 6, 20}, Sandbox: pause}},
		{"1.6-extra.toml", Config{Version: Version{1, 6, 20}, Sandbox: pause, ExtraTOML: extra2}},
		{"1.7.toml", Config{Version: Version{1, 7, 27}, Sandbox: pause, CNIPlugins: "/usr/lib/cni", CNIConfigs: "/etc/cni/other.d"}},
		{"2.0.toml", Config{Version: Version{2, 0, 5}, Sandbox: pause}},
		{"2.3.toml", Config{Version: Version{2, 3, 7}, Sandbox: pause}},
		{"2.3-extra.toml", Config{Version: Version{2, 3, 7}, Sandbox: pause, ExtraTOML: extra3}},
	} {
		got, err := Render(tt.c)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, tt.name, got)
		if _, err := parse(string(got)); err != nil {
			t.Errorf("%s: %v", tt.name, err)
		}
	}
}

func TestRenderRefuses(t *testing.T) {
	v2 := Config{Version: Version{1, 7, 0}, Sandbox: pause}
	for _, tt := range []struct {
		name, extra string
		want        []string
	}{
		{"our key", "\n[plugins.'io.containerd.grpc.v1.cri']\na = 1\nsandbox_image = \"x\"", []string{"extraToml:4", "sandbox_image: kubeinit sets"}},
		{"our key, dotted", "plugins.\"io.containerd.grpc.v1.cri\".cni.bin_dir = \"x\"", []string{"bin_dir: kubeinit sets"}},
		{"our key, quoted", "\"version\" = 2", []string{"version: kubeinit sets"}},
		{"all of our tables", "plugins = {}", []string{"kubeinit sets"}},
		{"an array of our tables", "[[plugins.\"io.containerd.grpc.v1.cri\".cni]]", []string{"kubeinit sets"}},
		{"a table where our value is", "[plugins.\"io.containerd.grpc.v1.cri\".cni.bin_dir]", []string{"kubeinit sets"}},
		{"our table by dots", "[plugins.\"io.containerd.grpc.v1.cri\"]\ncni.max_conf_num = 2", []string{`write it below [plugins."io.containerd.grpc.v1.cri".cni]`}},
		{"a table twice", "[a]\n[b]\n[a]", []string{"extraToml:3: a: is there twice"}},
		{"a key twice", "[a]\nb.c = 1\n\nb.\"c\" = 2", []string{"extraToml:4", "twice"}},
		{"several", "version = 2\n[metrics]\naddress = 1\naddress = 2", []string{"extraToml:1", "extraToml:4"}},
		{"no value", "a =  # b", []string{"no value"}},
		{"no equals", "a", []string{"want ="}},
		{"open string", "a = \"b", []string{"no end"}},
		{"string over lines", "a = \"b\nc\"", []string{"no end"}},
		{"open long string", "a = '''b\n", []string{"no end"}},
		{"open array", "a = [1,\n[2]", []string{"want ]"}},
		{"wrong bracket", "a = [1}", []string{"} without"}},
		{"header with more", "[a] b = 1", []string{"end of the line"}},
		{"open header", "[a\nb = 1", []string{"want ]"}},
		{"escape", `"a\u0062" = 1`, []string{"without escapes"}},
		{"a control character", "a = 1\nb = 0\r ", []string{"extraToml:2", "control"}},
		{"no text", "a = '\xff'", []string{"control"}},
		{"a shell command", "$(reboot)", []string{"want a key"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			v2.ExtraTOML = tt.extra
			got, err := Render(v2)
			for _, w := range tt.want {
				if err == nil || !strings.Contains(err.Error(), w) {
					t.Errorf("got %v, want %q\n%s", err, w, got)
				}
			}
		})
	}
	_, err := Render(Config{Version: Version{1, 5, 9}, Sandbox: "a\"\nb", CNIPlugins: "x", CNIConfigs: "./y"})
	for _, w := range []string{"1.5.9", "sandbox image", `"x"`, `"./y"`} {
		if err == nil || !strings.Contains(err.Error(), w) {
			t.Errorf("got %v, want %q", err, w)
		}
	}
}

func TestExtraKeepsValuesAsTheyAre(t *testing.T) {
	extra := "[a]\r\n# gone\nb = [ # one\n  [\"]\"], '[x]', \"\\\"\" ] # two\nc = '''\n[z]\n''''\nd = \"\"\"\n\\\"\"\"\\\\\"\"\"\ne = {f = \"}\"}\n[[x.y]]\nk = 1\n[[x.y]]\nk = 2\n"
	got, err := Render(Config{Version: Version{2, 1, 0}, Sandbox: pause, ExtraTOML: extra})
	if err != nil {
		t.Fatal(err)
	}
	_, tail, _ := strings.Cut(string(got), "SystemdCgroup = true\n")
	want := "\n[a]\nb = [ # one\n  [\"]\"], '[x]', \"\\\"\" ] # two\nc = '''\n[z]\n''''\nd = \"\"\"\n\\\"\"\"\\\\\"\"\"\ne = {f = \"}\"}\n\n[[x.y]]\nk = 1\n\n[[x.y]]\nk = 2\n"
	if diff := cmp.Diff(want, tail); diff != "" {
		t.Error(diff)
	}
}

func FuzzExtra(f *testing.F) {
	f.Add(extra2)
	f.Add(extra3)
	f.Add("[a]\nb = [\"x\", '''y''']\n")
	f.Add("a.b=\"\"\"\\")
	f.Add("0=\r ")
	f.Fuzz(func(t *testing.T, extra string) {
		c := Config{Version: Version{1, 7, 0}, Sandbox: pause, ExtraTOML: extra}
		got, err := Render(c)
		if err != nil {
			return
		}
		// What was accepted stays readable and cannot touch what we set.
		all, err := parse(string(got))
		if err != nil {
			t.Fatalf("%v\n%s", err, got)
		}
		n := 0
		for _, s := range all {
			if s.kind == assignment && joined(s.path) == joined([]string{"plugins", "io.containerd.grpc.v1.cri", "sandbox_image"}) {
				n++
			}
		}
		if n != 1 {
			t.Fatalf("sandbox_image is there %d times\n%s", n, got)
		}
	})
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string]Version{
		"containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u3\n":                            {1, 6, 20},
		"containerd containerd.io 1.7.27 05044ec0a9a75232cad458027ca83437aae3f4da\n":                               {1, 7, 27},
		"containerd github.com/containerd/containerd/v2 v2.3.7 \n":                                                 {2, 3, 7},
		"containerd github.com/containerd/containerd/v2 2.2.0-rc.1+unknown 05044ec0a9a75232cad458027ca83437aae3f4": {2, 2, 0},
	} {
		if got, err := ParseVersion(text); err != nil || got != want {
			t.Errorf("%q: %v, %v", text, got, err)
		}
	}
	for _, text := range []string{"", "containerd", "containerd x 1.6", "runc version 1.1.5", "containerd x v1.2.99999", "docker x 1.6.20"} {
		if got, err := ParseVersion(text); err == nil {
			t.Errorf("%q is %v", text, got)
		}
	}
}

func FuzzParseVersion(f *testing.F) {
	f.Add("containerd containerd.io 1.7.27 05044ec0")
	f.Fuzz(func(t *testing.T, text string) {
		if v, err := ParseVersion(text); err == nil && (v.Major < 0 || v.Major > 9999) {
			t.Errorf("%q: %v", text, v)
		}
	})
}

func TestSupported(t *testing.T) {
	for _, tt := range []struct {
		minor int
		v     Version
		ok    bool
	}{
		{34, Version{1, 5, 18}, false},
		{34, Version{1, 6, 0}, true},
		{35, Version{1, 7, 30}, true},
		{36, Version{1, 7, 30}, false},
		{34, Version{2, 0, 0}, true},
		{37, Version{2, 3, 7}, true},
		{37, Version{3, 0, 0}, false},
		{34, Version{}, false},
	} {
		if err := Supported(tt.minor, tt.v); (err == nil) != tt.ok {
			t.Errorf("1.%d on %s: %v", tt.minor, tt.v, err)
		}
	}
}
