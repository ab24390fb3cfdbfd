package journal

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// TestAppendWritesAllOrNothing runs the script with the real shell.
func TestAppendWritesAllOrNothing(t *testing.T) {
	file := filepath.Join(t.TempDir(), "journal.jsonl")
	want := ""
	for _, tt := range []struct {
		input string
		less  int // bytes that do not come
	}{
		{"{\"seq\":1,\"x\":\"$(reboot) `x` %s \\\\n 'ü…'\"}\n", 0},
		{"{\"seq\":2}\n", 4},
		{"{\"seq\":2}\n", 1},
		{"{\"seq\":2}\n", 10},
		{"\n{\"seq\":2}\n\n", 0},
		{strings.Repeat("ü", 300_000) + "\n", 0},
	} {
		cmd := exec.CommandContext(t.Context(), "sh", "-c", appendScript, "kubeinit-journal", file, strconv.Itoa(len(tt.input)))
		cmd.Env = append(os.Environ(), "LC_ALL=C") // as host.Command says
		cmd.Stdin = strings.NewReader(tt.input[:len(tt.input)-tt.less])
		out, err := cmd.CombinedOutput()
		exit, ran := errors.AsType[*exec.ExitError](err)
		switch {
		case tt.less == 0 && err == nil:
			want += tt.input
		case tt.less == 0, !ran, exit.ExitCode() != 74:
			t.Errorf("%.20q without %d bytes: %v\n%s", tt.input, tt.less, err, out)
		}
		got, err := os.ReadFile(file)
		if err != nil || string(got) != want {
			t.Fatalf("the file has %d bytes instead of %d, %v", len(got), len(want), err)
		}
	}
}
