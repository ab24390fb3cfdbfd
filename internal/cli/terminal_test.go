//go:build linux

package cli

import (
	"bytes"
	"os"
	"testing"
)

func TestIsTerminal(t *testing.T) {
	tty, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tty.Close() })
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = null.Close() })
	tests := []struct {
		name   string
		stream any
		want   bool
	}{
		{"terminal", tty, true},
		{"/dev/null", null, false},
		{"terminal behind a command's output", &output{w: tty}, true},
		{"buffer behind a command's output", &output{w: &bytes.Buffer{}}, false},
		{"buffer", &bytes.Buffer{}, false},
		{"nil", nil, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := IsTerminal(tt.stream); got != tt.want {
				t.Errorf("IsTerminal = %v, want %v", got, tt.want)
			}
		})
	}
}
