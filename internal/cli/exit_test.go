package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
)

func TestExitCodeAndPrintFollowTheErrorTree(t *testing.T) {
	base := errors.New("open state /var/lib/meshd: permission denied")
	tests := []struct {
		name string
		err  error
		code int
		want string
	}{
		{"nil", nil, ExitDone, ""},
		{"plain", base, ExitFailed, "error: open state /var/lib/meshd: permission denied\n"},
		{
			"hint under context", fmt.Errorf("run: %w", Hint(base, "sudo meshd run")), ExitFailed,
			"error: run: open state /var/lib/meshd: permission denied\nhint: sudo meshd run\n",
		},
		{"usage", Usage(errors.New("no ticket")), ExitUsage, "error: no ticket\n"},
		{
			"usage around hint", Usage(Hint(errors.New("no ticket"), "meshd join TICKET")), ExitUsage,
			"error: no ticket\nhint: meshd join TICKET\n",
		},
		{
			"hint around faults", Hint(Faults(errors.New("one fault")), "meshd doctor"), ExitFaults,
			"error: one fault\nhint: meshd doctor\n",
		},
		{"outermost code wins", Usage(Faults(base)), ExitUsage, "error: open state /var/lib/meshd: permission denied\n"},
		{
			"joined faults: a line each, hints in order and once",
			Faults(errors.Join(
				Hint(errors.New("meshd.yaml:3: unknown key \"sites\""), "write site"),
				errors.New("meshd.yaml:9: prefix 10.0.0.1/8 has host bits"),
				Hint(errors.New("meshd.yaml:12: unknown key \"sites\""), "write site"),
				Hint(errors.New("meshd.yaml:13: no port"), "port: 51820"),
			)), ExitFaults,
			"error: meshd.yaml:3: unknown key \"sites\"\n" +
				"error: meshd.yaml:9: prefix 10.0.0.1/8 has host bits\n" +
				"error: meshd.yaml:12: unknown key \"sites\"\n" +
				"error: meshd.yaml:13: no port\n" +
				"hint: write site\nhint: port: 51820\n",
		},
		{
			"code inside a joined error", errors.Join(base, Usage(errors.New("bad word"))), ExitUsage,
			"error: open state /var/lib/meshd: permission denied\nerror: bad word\n",
		},
		{
			"two wrapped errors in one line",
			fmt.Errorf("%w; then %w", Hint(errors.New("a"), "first"), Hint(errors.New("b"), "second")), ExitFailed,
			"error: a; then b\nhint: first\nhint: second\n",
		},
		{"empty lines vanish", errors.New(strings.Join([]string{"a\r", "", "", "b", ""}, "\n")), ExitFailed, "error: a\nerror: b\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if code := ExitCode(tt.err); code != tt.code {
				t.Errorf("ExitCode = %d, want %d", code, tt.code)
			}
			var b strings.Builder
			Print(&b, tt.err)
			if b.String() != tt.want {
				t.Errorf("Print = %q\nwant    %q", b.String(), tt.want)
			}
		})
	}
}

func TestAnnotationsKeepNil(t *testing.T) {
	for name, err := range map[string]error{"Hint": Hint(nil, "x"), "Usage": Usage(nil), "Faults": Faults(nil)} {
		if err != nil {
			t.Errorf("%s(nil) = %v, want nil", name, err)
		}
	}
}

func TestAnnotationsAreTransparent(t *testing.T) {
	err := fmt.Errorf("read: %w", Hint(Usage(Faults(io.ErrUnexpectedEOF)), "again"))
	if !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("errors.Is(%v, io.ErrUnexpectedEOF) = false", err)
	}
	if got, want := err.Error(), "read: unexpected EOF"; got != want {
		t.Errorf("text = %q, want %q", got, want)
	}
}

func TestPrintEscapesWhatWouldDriveTheTerminal(t *testing.T) {
	var b strings.Builder
	Print(&b, Hint(errors.New("site \x1b]0;owned\a\u202eevil\rerror: none"), "say \x9b2J"))
	want := "error: site \\u001b]0;owned\\u0007\\u202eevil\\u000derror: none\nhint: say \ufffd2J\n"
	if b.String() != want {
		t.Errorf("Print = %q\nwant    %q", b.String(), want)
	}
}
