package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/spf13/cobra"
)

// newTree is a small meshd: commands with flags, arguments and a group.
func newTree() *cobra.Command {
	root := &cobra.Command{Use: "meshd", Version: "v1.2.3"}
	root.PersistentFlags().String("state", "", "state directory")
	ticket := &cobra.Command{
		Use:  "ticket",
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprintln(cmd.OutOrStdout(), "a ticket")
			return err
		},
	}
	ticket.Flags().String("site", "", "site")
	ticket.Flags().Duration("ttl", 0, "lifetime")
	if err := ticket.MarkFlagRequired("site"); err != nil {
		panic(err)
	}
	check := &cobra.Command{
		Use:  "check FILE",
		Args: cobra.ExactArgs(1),
		RunE: func(_ *cobra.Command, args []string) error {
			switch args[0] {
			case "faulty":
				return Faults(errors.New("faulty:1: unknown key"))
			case "missing":
				return Hint(errors.New("open missing: no such file"), "ls")
			case "wrong":
				return Usage(errors.New("wrong word"))
			}
			return nil
		},
	}
	env := &cobra.Command{Use: "env", Run: func(cmd *cobra.Command, _ []string) {
		cmd.Println(StdOf(cmd).Getenv("PLACE"))
	}}
	prepared := &cobra.Command{
		Use:               "prepared",
		PersistentPreRunE: func(*cobra.Command, []string) error { return errors.New("no configuration") },
		Run:               func(*cobra.Command, []string) {},
	}
	wait := &cobra.Command{Use: "wait", RunE: func(cmd *cobra.Command, _ []string) error {
		<-cmd.Context().Done()
		return fmt.Errorf("wait: %w", cmd.Context().Err())
	}}
	certificate := &cobra.Command{Use: "certificate", Short: "certificates"}
	certificate.AddCommand(&cobra.Command{Use: "show", Run: func(*cobra.Command, []string) {}})
	root.AddCommand(ticket, check, env, prepared, wait, certificate)
	return root
}

func TestMainMapsOutcomesToExitCodesAndLines(t *testing.T) {
	tests := []struct {
		name string
		args string
		code int
		out  string // whole standard output
		err  string // whole standard error
	}{
		{"done", "ticket --site delft", ExitDone, "a ticket\n", ""},
		{"failed with hint", "check missing", ExitFailed, "", "error: open missing: no such file\nhint: ls\n"},
		{"faults", "check faulty", ExitFaults, "", "error: faulty:1: unknown key\n"},
		{"usage found by the command itself", "check wrong", ExitUsage, "", "error: wrong word\n"},
		{"error of a preparing hook is not usage", "prepared", ExitFailed, "", "error: no configuration\n"},
		{"environment", "env", ExitDone, "here\n", ""},
		{"version", "--version", ExitDone, "meshd version v1.2.3\n", ""},

		{"unknown flag", "ticket --sight x", ExitUsage, "", "error: unknown flag: --sight\nhint: meshd ticket --help\n"},
		{"unknown flag before any command", "--sight", ExitUsage, "", "error: unknown flag: --sight\nhint: meshd --help\n"},
		{
			"bad flag value", "ticket --site x --ttl soon", ExitUsage, "",
			"error: invalid argument \"soon\" for \"--ttl\" flag: time: invalid duration \"soon\"\nhint: meshd ticket --help\n",
		},
		{"required flag", "ticket", ExitUsage, "", "error: required flag(s) \"site\" not set\nhint: meshd ticket --help\n"},
		{"missing argument", "check", ExitUsage, "", "error: accepts 1 arg(s), received 0\nhint: meshd check --help\n"},
		{
			"misspelt command", "tikcet", ExitUsage, "",
			"error: unknown command \"tikcet\" for \"meshd\"\nhint: meshd ticket\nhint: meshd --help\n",
		},
		{"foreign command", "frobnicate", ExitUsage, "", "error: unknown command \"frobnicate\" for \"meshd\"\nhint: meshd --help\n"},
		{
			"misspelt command of a group", "certificate shwo", ExitUsage, "",
			"error: unknown command \"shwo\" for \"meshd certificate\"\nhint: meshd certificate show\nhint: meshd certificate --help\n",
		},
		{"group alone", "certificate", ExitUsage, "", "error: meshd certificate needs a command\nhint: meshd certificate --help\n"},
		{"group with a flag", "certificate --state x", ExitUsage, "", "error: meshd certificate needs a command\nhint: meshd certificate --help\n"},
		{"no command", "", ExitUsage, "", "error: meshd needs a command\nhint: meshd --help\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, err bytes.Buffer
			std := Std{In: strings.NewReader(""), Out: &out, Err: &err, Env: []string{"PLACE=there", "PLACE=here"}}
			code := Main(t.Context(), newTree(), strings.Fields(tt.args), std)
			if code != tt.code || out.String() != tt.out || err.String() != tt.err {
				t.Errorf("meshd %s:\n got %d, out %q, err %q\nwant %d, out %q, err %q",
					tt.args, code, out.String(), err.String(), tt.code, tt.out, tt.err)
			}
		})
	}
}

func TestHelpGoesToStandardOutputAndOffersNoBareGroup(t *testing.T) {
	for _, args := range []string{"--help", "help", "certificate --help", "help certificate"} {
		var out, err bytes.Buffer
		code := Main(t.Context(), newTree(), strings.Fields(args), Std{In: strings.NewReader(""), Out: &out, Err: &err})
		if code != ExitDone || err.Len() > 0 || !strings.Contains(out.String(), "[command]\n") {
			t.Errorf("meshd %s: code %d, err %q, out:\n%s", args, code, err.String(), out.String())
		}
		if strings.Contains(out.String(), "meshd [flags]") || strings.Contains(out.String(), "certificate [flags]") {
			t.Errorf("meshd %s offers a group as a command:\n%s", args, out.String())
		}
	}
}

func TestMainNamesWhatInterruptedTheCommand(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errors.New("terminated signal received"))
	var out, err bytes.Buffer
	code := Main(ctx, newTree(), []string{"wait"}, Std{In: strings.NewReader(""), Out: &out, Err: &err})
	if want := "error: interrupted: terminated signal received\n"; code != ExitFailed || err.String() != want {
		t.Errorf("got %d, %q, want %d, %q", code, err.String(), ExitFailed, want)
	}
}

func TestMainTakesNilArgsAsNone(t *testing.T) {
	var out, err bytes.Buffer
	code := Main(t.Context(), newTree(), nil, Std{In: strings.NewReader(""), Out: &out, Err: &err})
	if code != ExitUsage || !strings.HasPrefix(err.String(), "error: meshd needs a command\n") {
		t.Errorf("got %d, %q, want %d and that a command is needed", code, err.String(), ExitUsage)
	}
}

func TestStdOfOutsideMainIsTheProcess(t *testing.T) {
	t.Setenv("PLACE", "outside")
	std := StdOf(&cobra.Command{})
	if std.Out != os.Stdout || std.Getenv("PLACE") != "outside" {
		t.Errorf("StdOf = %+v, want the process's own", std)
	}
}

func TestGetenvOfUnsetNameIsEmpty(t *testing.T) {
	if got := (Std{Env: []string{"PLACES=x", "broken"}}).Getenv("PLACE"); got != "" {
		t.Errorf("Getenv = %q, want nothing", got)
	}
}

// fullDisk takes the first write and refuses the others.
type fullDisk struct{ bytes.Buffer }

func (d *fullDisk) Write(p []byte) (int, error) {
	if d.Len() > 0 {
		return 0, syscall.ENOSPC
	}
	return d.Buffer.Write(p)
}

func TestLostOutputIsAFailure(t *testing.T) {
	verbose := &cobra.Command{Use: "verbose", Run: func(cmd *cobra.Command, _ []string) {
		for range 3 {
			fmt.Fprintln(cmd.OutOrStdout(), "line")
		}
	}}
	var err bytes.Buffer
	code := Main(t.Context(), verbose, nil, Std{In: strings.NewReader(""), Out: &fullDisk{}, Err: &err})
	if want := "error: write standard output: no space left on device\n"; code != ExitFailed || err.String() != want {
		t.Errorf("got %d, %q, want %d, %q", code, err.String(), ExitFailed, want)
	}
}
