package main

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
)

func readDoc(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "docs", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestDocumentedConfigurationHasNoFaults(t *testing.T) {
	blocks := strings.Split(readDoc(t, "configuration.md"), "```yaml\n")[1:]
	if len(blocks) < 2 {
		t.Fatalf("docs/configuration.md has %d yaml blocks, want that of everything and that of attachments", len(blocks))
	}
	for _, block := range blocks {
		text, _, _ := strings.Cut(block, "```")
		if _, err := conf.Parse("docs/configuration.md", []byte(text)); err != nil {
			t.Error(err)
		}
	}
}

func TestDocumentedCommandsAndFlagsExist(t *testing.T) {
	command := regexp.MustCompile("(?:^|[`$;&] *|    )meshd ([a-z]+)([^\n`|#&]*)")
	flag := regexp.MustCompile(`--([a-z-]+)`)
	for _, name := range []string{"configuration.md", "operations.md"} {
		matches := command.FindAllStringSubmatch(readDoc(t, name), -1)
		if len(matches) < 3 {
			t.Errorf("docs/%s: found %d commands, want more", name, len(matches))
		}
		for _, m := range matches {
			if m[1] == "is" { // "meshd is not running here", a message
				continue
			}
			cmd, _, err := newRoot().Find(append(m[1:2:2], strings.Fields(m[2])...)) // with subcommands
			if err != nil {
				t.Errorf("docs/%s: %q: %v", name, m[0], err)
				continue
			}
			for _, f := range flag.FindAllStringSubmatch(m[2], -1) {
				if cmd.Flags().Lookup(f[1]) == nil {
					t.Errorf("docs/%s: %q: no flag --%s", name, m[0], f[1])
				}
			}
		}
	}
}
