//go:build linux

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestLookPathUsesTheGivenEnvironment(t *testing.T) {
	dir := t.TempDir()
	for name, mode := range map[string]os.FileMode{"program": 0o755, "text": 0o644} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, mode); err != nil {
			t.Fatal(err)
		}
	}
	env := []string{"HOME=/", "PATH=/nowhere:" + dir}
	if got, err := lookPath("program", env); err != nil || got != filepath.Join(dir, "program") {
		t.Errorf("got %q, %v", got, err)
	}
	for _, name := range []string{"text", "sh"} {
		if got, err := lookPath(name, env); err == nil {
			t.Errorf("%s: got %q, want an error", name, got)
		}
	}
	if got, err := lookPath("./x", nil); err != nil || got != "./x" {
		t.Errorf("a path: got %q, %v", got, err)
	}
}

func TestArgumentsAreChecked(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "want boot BOX"},
		{[]string{"boot", "{"}, "read the argument of boot"},
		{[]string{"fly", "{}"}, `no command "fly"`},
	} {
		if err := run(c.args); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: got %v, want %s", c.args, err, c.want)
		}
	}
}
