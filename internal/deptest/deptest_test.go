package deptest

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/planetmesh/planetmesh"
	root   = "../.." // of the module, seen from this package
)

// A rule says what the packages in its scope may not import. Patterns are import paths, those of this module without
// the module's path; "x" is exactly x, "x/..." is x and everything below it.
type rule struct {
	name  string
	scope []string // packages that the rule is about; none means all
	spare []string // of these, packages that it leaves alone
	files string   // path.Match pattern of file names that it leaves alone; "" means none
	own   bool     // true: about imports from this module; false: about all others
	deny  []string // what is refused; none means everything
	allow []string // of these, what is allowed all the same
}

const testFiles = "*_test.go"

// effects is what a pure function has no use for. Package time is not in the list, see TestPurePackagesReadNoClock.
var effects = []string{
	"net", "net/http/...", "os/...", "syscall/...", "golang.org/x/sys/...", "golang.org/x/net/...",
	"github.com/vishvananda/...", "github.com/google/nftables/...", "github.com/hashicorp/memberlist/...",
	"github.com/quic-go/...", "golang.zx2c4.com/...",
}

var pure = []string{
	"overlay/internal/engine", "overlay/internal/record", "overlay/internal/trust", "overlay/internal/wire",
	"kubeinit/internal/plan", "kubeinit/internal/etcdtune",
}

// foreign is what a program that embeds overlay must never get with it.
var foreign = []string{
	"github.com/spf13/...", "golang.org/x/crypto/ssh/...", "go.yaml.in/yaml/...", "gopkg.in/yaml.v2/...",
	"gopkg.in/yaml.v3/...", "sigs.k8s.io/...", "k8s.io/...", "github.com/prometheus/...", "go.opentelemetry.io/...",
}

var rules = []rule{
	{
		name: "nothing imports meshd", own: true, spare: []string{"meshd/..."},
		deny: []string{"meshd/..."},
	},
	{
		name: "nothing imports kubeinit", own: true, spare: []string{"kubeinit/..."},
		deny: []string{"kubeinit/..."},
	},
	{
		name: "examples import overlay, and netlab at most", own: true, scope: []string{"examples/..."},
		allow: []string{"overlay", "overlay/openvpn", "overlay/overlaytest", "internal/netlab/...", "examples/..."},
	},
	{
		name: "examples/embed can be copied out of the module", own: true, scope: []string{"examples/embed/..."},
		deny: []string{"internal/..."},
	},
	{
		name: "meshd imports overlay and internal", own: true, scope: []string{"meshd/..."},
		allow: []string{"overlay", "overlay/openvpn", "overlay/overlaytest", "meshd/internal/...", "internal/..."},
	},
	{
		name: "kubeinit imports internal, and overlay for its types", own: true, scope: []string{"kubeinit/..."},
		allow: []string{"overlay", "kubeinit/internal/...", "internal/..."},
	},
	{
		name: "overlay imports overlay/internal and internal/version", own: true, files: testFiles,
		scope: []string{"overlay/..."}, spare: []string{"overlay/openvpn/...", "overlay/overlaytest/..."},
		allow: []string{"overlay/internal/...", "internal/version"},
	},
	{
		name: "overlaytest imports overlay and what overlay may", own: true, files: testFiles,
		scope: []string{"overlay/overlaytest/..."},
		allow: []string{"overlay", "overlay/internal/...", "internal/version"},
	},
	{
		name: "openvpn stands alone", own: true, files: testFiles, scope: []string{"overlay/openvpn/..."},
		allow: []string{"overlay/openvpn/..."},
	},
	{
		name: "cli, netlab and version stand on nothing of the module", own: true,
		scope: []string{"internal/cli/...", "internal/netlab/...", "internal/version/..."},
		spare: []string{"internal/netlab/meshlab"}, // reads what meshd prints into overlay's types
		allow: []string{"internal/..."},
	},
	{
		name: "overlay has no flags, metrics, SSH, YAML or Kubernetes", files: testFiles, scope: []string{"overlay/..."},
		deny: append([]string{"flag", "expvar", "github.com/hashicorp/go-metrics/..."}, foreign...),
	},
	{
		name: "pure packages have no sockets, files or netlink", files: testFiles, scope: pure,
		deny: effects,
	},
	{
		name: "netlink belongs to hostnet and netlab", spare: []string{"overlay/internal/hostnet/...", "internal/netlab/..."},
		deny: []string{"github.com/vishvananda/..."},
	},
	{
		// internal/sim/baseline measures memberlist as it is.
		name: "memberlist belongs to gossip", spare: []string{"overlay/internal/gossip/...", "internal/sim/baseline"},
		deny: []string{"github.com/hashicorp/memberlist/..."},
	},
	{
		name: "system calls belong to the packages beside the kernel", files: testFiles,
		spare: []string{
			"overlay/internal/hostnet/...", "overlay/internal/fw/...", "overlay/internal/gossip/...",
			"overlay/internal/link/...", "overlay/internal/wgdev/...", "overlay/openvpn/...", "internal/netlab/...", "internal/cli/...",
			"kubeinit/internal/preflight/...",
		},
		deny: []string{"golang.org/x/sys/unix"},
	},
}

// refuses reports whether the rule forbids what f imports.
func (r rule) refuses(f source, imp string) bool {
	imp, own := relative(imp)
	spared, err := path.Match(r.files, path.Base(f.name))
	switch {
	case err != nil, spared, own != r.own, own && imp == f.pkg:
		return false
	case len(r.scope) > 0 && !matchAny(r.scope, f.pkg), matchAny(r.spare, f.pkg):
		return false
	case len(r.deny) > 0 && !matchAny(r.deny, imp):
		return false
	}
	return !matchAny(r.allow, imp)
}

// relative takes the module's path off an import path and reports whether it was there.
func relative(imp string) (string, bool) {
	rest, ok := strings.CutPrefix(imp, module+"/")
	if !ok {
		return imp, false
	}
	return rest, true
}

func matchAny(patterns []string, p string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		tree, isTree := strings.CutSuffix(pattern, "/...")
		return p == tree || isTree && strings.HasPrefix(p, tree+"/")
	})
}

// source is one parsed Go file of the module.
type source struct {
	name string // slash-separated, relative to the module's root
	pkg  string // directory of name
	ast  *ast.File
}

func (f source) imports() []string {
	var paths []string
	for _, spec := range f.ast.Imports {
		if p, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, p)
		}
	}
	return paths
}

// sources parses every Go file of the module, whatever its build constraints.
func sources(t *testing.T, mode parser.Mode) []source {
	t.Helper()
	var files []source
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && name != root && leftOut(name, d.Name()):
			return filepath.SkipDir
		case d.IsDir(), filepath.Ext(name) != ".go":
			return nil
		}
		// Read through package os, so that the go command notices a change and does not answer from its test cache.
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		f, err := parse(filepath.ToSlash(strings.TrimPrefix(name, filepath.FromSlash(root)+string(filepath.Separator))), text, mode)
		files = append(files, f)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if !slices.ContainsFunc(files, func(f source) bool { return f.pkg == "internal/deptest" }) {
		t.Fatalf("%d files found below %s, and not this one", len(files), root)
	}
	return files
}

// leftOut reports whether the go command skips a directory too: it is hidden, test data, or another module.
func leftOut(name, base string) bool {
	_, err := os.Stat(filepath.Join(name, "go.mod"))
	return err == nil || base == "testdata" || strings.HasPrefix(base, ".") || strings.HasPrefix(base, "_")
}

func parse(name string, text []byte, mode parser.Mode) (source, error) {
	f, err := parser.ParseFile(token.NewFileSet(), name, text, mode)
	return source{name: name, pkg: path.Dir(name), ast: f}, err
}

func TestImportsFollowTheDirections(t *testing.T) {
	for _, f := range sources(t, parser.ImportsOnly) {
		for _, imp := range f.imports() {
			for _, r := range rules {
				if r.refuses(f, imp) {
					t.Errorf("%s imports %s: %s", f.name, imp, r.name)
				}
			}
		}
	}
}

func TestOverlayBringsNothingForeignIntoItsEmbedder(t *testing.T) {
	out, err := goList(t, "-deps", "./overlay/...")
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Contains(out, "net/netip") {
		t.Fatalf("go list -deps ./overlay/... gave %d packages without net/netip: %q", len(out), out)
	}
	// Two that the rules refuse as direct imports do come in: go-metrics through memberlist, flag through other libraries.
	for _, p := range out {
		if matchAny(foreign, p) {
			t.Errorf("./overlay/... depends on %s", p)
		}
		if rel, own := relative(p); own && matchAny([]string{"meshd/...", "kubeinit/...", "internal/cli/..."}, rel) {
			t.Errorf("./overlay/... depends on %s", rel)
		}
	}
}

func goList(t *testing.T, args ...string) ([]string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"list"}, args...)...)
	cmd.Dir = root
	out, err := cmd.Output()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		return nil, fmt.Errorf("go list %s: %w: %s", strings.Join(args, " "), err, exit.Stderr)
	}
	return strings.Fields(string(out)), err
}

// clock lists the functions of package time whose result depends on more than their arguments.
var clock = []string{"After", "AfterFunc", "NewTicker", "NewTimer", "Now", "Since", "Sleep", "Tick", "Until"}

func TestPurePackagesReadNoClock(t *testing.T) {
	for _, f := range sources(t, parser.SkipObjectResolution) {
		if strings.HasSuffix(f.name, "_test.go") || !matchAny(pure, f.pkg) {
			continue
		}
		for _, name := range f.clockReads() {
			t.Errorf("%s uses time.%s: pure packages are given the time", f.name, name)
		}
	}
}

// clockReads lists the functions in clock that the file mentions.
func (f source) clockReads() []string {
	local := ""
	for _, spec := range f.ast.Imports {
		if spec.Path.Value == `"time"` {
			local = "time"
			if spec.Name != nil {
				local = spec.Name.Name
			}
		}
	}
	var names []string
	ast.Inspect(f.ast, func(n ast.Node) bool {
		if sel, ok := n.(*ast.SelectorExpr); ok && slices.Contains(clock, sel.Sel.Name) {
			if x, ok := sel.X.(*ast.Ident); ok && local != "" && x.Name == local {
				names = append(names, sel.Sel.Name)
			}
		}
		return true
	})
	return names
}

// The rules are tested too: a pattern that matches nothing would let everything pass.
func TestRulesRefuseWhatTheyAreFor(t *testing.T) {
	cases := []struct {
		file, imp string
		refused   bool
	}{
		{"overlay/mesh.go", module + "/overlay/internal/engine", false},
		{"overlay/mesh.go", module + "/internal/version", false},
		{"overlay/mesh.go", module + "/internal/cli", true},
		{"overlay/mesh.go", module + "/overlay/openvpn", true},
		{"overlay/mesh.go", "flag", true},
		{"overlay/mesh.go", "go.yaml.in/yaml/v3", true},
		{"overlay/mesh_test.go", module + "/overlay", false},
		{"overlay/mesh_test.go", module + "/overlay/overlaytest", false},
		{"overlay/mesh_test.go", module + "/meshd", true},
		{"overlay/internal/relay/relay.go", module + "/overlay", true},
		{"overlay/internal/relay/relay.go", "golang.org/x/crypto/ssh", true},
		{"overlay/internal/relay/relay.go", "golang.org/x/crypto/blake2s", false},
		{"overlay/internal/relay/relay.go", "golang.org/x/sys/unix", true},
		{"overlay/internal/link/link.go", "golang.org/x/sys/unix", false},
		{"overlay/internal/engine/engine.go", "net", true},
		{"overlay/internal/engine/engine.go", "net/netip", false},
		{"overlay/internal/engine/engine.go", "time", false},
		{"overlay/internal/engine/engine.go", "os/exec", true},
		{"overlay/internal/engine/engine_test.go", "os", false},
		{"overlay/internal/trust/chain.go", "os", true},
		{"overlay/internal/trust/chain.go", "crypto/rand", false},
		{"overlay/ledger.go", "os", false},
		{"overlay/internal/gossip/gossip.go", "github.com/hashicorp/memberlist", false},
		{"overlay/internal/path/path.go", "github.com/hashicorp/memberlist", true},
		{"overlay/internal/hostnet/route.go", "github.com/vishvananda/netlink", false},
		{"overlay/internal/wgdev/device.go", "github.com/vishvananda/netlink", true},
		{"overlay/mesh_netns_test.go", "github.com/vishvananda/netlink", true},
		{"overlay/openvpn/tls.go", module + "/overlay/internal/link", true},
		{"overlay/openvpn/tls.go", module + "/internal/version", true},
		{"overlay/openvpn/tls_test.go", module + "/internal/netlab", false},
		{"overlay/overlaytest/world.go", module + "/overlay", false},
		{"overlay/overlaytest/world.go", module + "/internal/netlab", true},
		{"examples/embed/main.go", module + "/overlay", false},
		{"examples/embed/main.go", module + "/internal/netlab", true},
		{"examples/three-sites/main.go", module + "/internal/netlab", false},
		{"examples/three-sites/main.go", module + "/internal/version", true},
		{"meshd/main.go", module + "/internal/cli", false},
		{"meshd/internal/attach/attach.go", module + "/overlay/openvpn", false},
		{"meshd/main.go", module + "/kubeinit/internal/plan", true},
		{"kubeinit/main.go", module + "/overlay", false},
		{"kubeinit/main.go", module + "/overlay/openvpn", true},
		{"kubeinit/internal/plan/plan.go", "os", true},
		{"internal/netlab/world.go", module + "/overlay", true},
		{"internal/netlab/meshlab/meshlab.go", module + "/overlay", false},
		{"internal/netlab/meshlab/meshlab.go", module + "/meshd/internal/ctl", true},
		{"internal/netlab/world.go", "github.com/vishvananda/netlink", false},
		{"internal/bench/main.go", module + "/overlay", false},
		{"internal/bench/main.go", module + "/meshd/internal/ctl", true},
	}
	used := make(map[string]bool)
	for _, c := range cases {
		f := source{name: c.file, pkg: path.Dir(c.file)}
		refused := false
		for _, r := range rules {
			if r.refuses(f, c.imp) {
				refused, used[r.name] = true, true
			}
		}
		if refused != c.refused {
			t.Errorf("%s imports %s: refused = %v, want %v", c.file, c.imp, refused, c.refused)
		}
	}
	for _, r := range rules {
		if !used[r.name] {
			t.Errorf("no case shows the rule %q", r.name)
		}
	}
}

func TestClockReadsSeesRenamedImport(t *testing.T) {
	tests := []struct {
		name, text string
		want       []string
	}{
		{"plain", "package p\nimport \"time\"\nvar d = time.Now().Add(time.Second)", []string{"Now"}},
		{"renamed, as a value", "package p\nimport stdtime \"time\"\nvar now = stdtime.Now", []string{"Now"}},
		{"duration only", "package p\nimport \"time\"\nvar d = time.Second", nil},
		{"a namesake", "package p\nimport \"x/time\"\nvar d = time.Now()", nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f, err := parse("p/p.go", []byte(tt.text), parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if got := f.clockReads(); !slices.Equal(got, tt.want) {
				t.Errorf("clockReads(%q) = %q, want %q", tt.text, got, tt.want)
			}
		})
	}
}
