package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/internal/cli"
	"github.com/planetmesh/planetmesh/meshd/internal/conf"
)

// yamlBlocks are the configurations in a document.
func yamlBlocks(t *testing.T, name string) []string {
	t.Helper()
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)```yaml\n(.*?)```").FindAllStringSubmatch(readDoc(t, name), -1) {
		blocks = append(blocks, m[1])
	}
	return blocks
}

func TestDocumentedAttachmentsHaveNoFaults(t *testing.T) {
	blocks := yamlBlocks(t, "openvpn.md")
	if len(blocks) != 2 {
		t.Fatalf("docs/openvpn.md has %d yaml blocks, want that of static keys and that of TLS", len(blocks))
	}
	for _, text := range blocks {
		if _, err := conf.Parse("docs/openvpn.md", []byte(text)); err != nil {
			t.Error(err)
		}
	}
}

func TestCommandsForMovingARouterExist(t *testing.T) {
	command := regexp.MustCompile("(?:^|[`$;&] *|    )meshd ([a-z]+)([^\n`|#&]*)")
	flag := regexp.MustCompile(`--([a-z-]+)`)
	matches := command.FindAllStringSubmatch(readDoc(t, "openvpn.md"), -1)
	if len(matches) < 15 {
		t.Errorf("found %d commands, want more", len(matches))
	}
	for _, m := range matches {
		cmd, _, err := newRoot().Find([]string{m[1]})
		if err != nil {
			t.Errorf("%q: %v", m[0], err)
			continue
		}
		for _, f := range flag.FindAllStringSubmatch(m[2], -1) {
			if cmd.Flags().Lookup(f[1]) == nil {
				t.Errorf("%q: no flag --%s", m[0], f[1])
			}
		}
	}
}

// commandLines runs the program and returns the router's commands that it
// prints.
func commandLines(t *testing.T, args ...string) []string {
	t.Helper()
	var out, errs bytes.Buffer
	if code := run(t.Context(), args, nil, strings.NewReader(""), &out, &errs); code != cli.ExitDone {
		t.Fatalf("%q: exit code %d\n%s", args, code, errs.String())
	}
	return setLines(out.String())
}

func setLines(text string) []string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); strings.HasPrefix(line, "set ") {
			lines = append(lines, line)
		}
	}
	return lines
}

func TestDocumentedRouterCommandsAreWhatIsPrinted(t *testing.T) {
	file := filepath.Join(t.TempDir(), "meshd.yaml")
	if err := os.WriteFile(file, []byte(yamlBlocks(t, "openvpn.md")[0]), 0o600); err != nil {
		t.Fatal(err)
	}
	second := filepath.Join(t.TempDir(), "meshd.yaml")
	text := strings.NewReplacer("r30a", "r30b", "10.90.", "10.91.", "198.51.100.10", "198.51.100.20", "priority: 10", "priority: 20").Replace(yamlBlocks(t, "openvpn.md")[0])
	if err := os.WriteFile(second, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	documented := setLines(readDoc(t, "openvpn.md"))
	printed := commandLines(t, "vyos", "r30a", "--config", file, "--vyos-version", "1.4", "--interface", "vtun10", "--prefix", "192.168.10.0/24")
	last := len(printed) - 1 // the route
	if diff := cmp.Diff(printed[:last], documented[:min(last, len(documented))]); diff != "" {
		t.Errorf("commands (-printed +documented):\n%s", diff)
	}
	two := commandLines(t, "vyos", "r30a", "r30b", "--config", file, "--second-config", second, "--vyos-version", "1.4", "--prefix", "192.168.10.0/24")
	if diff := cmp.Diff(two[len(two)-3:], documented[min(last, len(documented)):]); diff != "" {
		t.Errorf("schedule (-printed +documented):\n%s", diff)
	}
}
