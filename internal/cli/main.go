package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/spf13/cobra"
)

// Std is what a command sees of its process. Every field must be set; OS fills them from the real process.
type Std struct {
	In  io.Reader
	Out io.Writer // results
	Err io.Writer // errors, hints, progress
	Env []string  // NAME=value, as os.Environ gives it; a later one of the same name wins
}

// OS is the Std of the running process.
func OS() Std {
	return Std{In: os.Stdin, Out: os.Stdout, Err: os.Stderr, Env: os.Environ()}
}

// Getenv is the value of a variable in s.Env, and "" if it is not set.
func (s Std) Getenv(name string) string {
	for _, kv := range slices.Backward(s.Env) {
		if key, value, ok := strings.Cut(kv, "="); ok && key == name {
			return value
		}
	}
	return ""
}

// Main runs the command that args (without the program's name) select below root, prints its error and hints to
// std.Err, and returns the exit code. Everything that is wrong before a command runs (flags, arguments, unknown or missing
// subcommand) is exit code 2 and points at --help; afterwards the command's error decides, see ExitCode. If ctx was
// cancelled and the command gave that back, the error line says what cancelled it. Commands may ignore errors of writing
// to std.Out: the first one makes a command that was done a failed one.
//
// Main changes root (streams, error handling, wrapped run functions), so root is used once. Commands find the Std again
// with StdOf.
func Main(ctx context.Context, root *cobra.Command, args []string, std Std) int {
	out := &output{w: std.Out}
	std.Out = out
	root.SetIn(std.In)
	root.SetOut(std.Out)
	root.SetErr(std.Err)
	root.SetArgs(append([]string{}, args...)) // not nil: cobra would take os.Args
	root.SilenceErrors, root.SilenceUsage, root.DisableSuggestions = true, true, true
	ctx = context.WithValue(ctx, stdKey{}, std)

	err := execute(ctx, root)
	if err == nil {
		err = out.failure()
	}
	if cause := context.Cause(ctx); cause != nil && errors.Is(err, context.Canceled) {
		err = fmt.Errorf("interrupted: %w", cause)
	}
	Print(std.Err, err)
	return ExitCode(err)
}

type stdKey struct{}

// StdOf is the Std that Main was given, and the real process's outside of Main.
func StdOf(cmd *cobra.Command) Std {
	if ctx := cmd.Context(); ctx != nil {
		if std, ok := ctx.Value(stdKey{}).(Std); ok {
			return std
		}
	}
	return OS()
}

// output remembers the first error of writing, so that nobody has to check every print: a full disk behind
// "meshd status > file" is a failure. It is as safe for concurrent use as the writer in it.
type output struct {
	w     io.Writer
	first atomic.Pointer[error]
}

func (o *output) Write(p []byte) (int, error) {
	n, err := o.w.Write(p)
	if err != nil {
		o.first.CompareAndSwap(nil, &err)
	}
	return n, err
}

// Fd lets IsTerminal look through o. It is no descriptor at all if o is not about a file.
func (o *output) Fd() uintptr {
	if f, ok := o.w.(interface{ Fd() uintptr }); ok {
		return f.Fd()
	}
	return ^uintptr(0)
}

func (o *output) failure() error {
	if err := o.first.Load(); err != nil {
		return fmt.Errorf("write standard output: %w", *err)
	}
	return nil
}

// execute runs the command and tells its own errors from cobra's complaints about the command line.
func execute(ctx context.Context, root *cobra.Command) error {
	requireSubcommand(root)
	// A group is runnable to cobra (requireSubcommand), but its usage shall not offer to run it alone.
	root.SetUsageTemplate(strings.Replace(root.UsageTemplate(),
		"{{if .Runnable}}", "{{if and .Runnable (not .HasAvailableSubCommands)}}", 1))
	own := false
	watchHooks(root, &own)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil || own {
		return err
	}
	return usageError(cmd, err)
}

// watchHooks wraps the functions through which a command can return an error, so that *own tells whether one did.
// Functions without an error result need no wrapping.
func watchHooks(cmd *cobra.Command, own *bool) {
	watch := func(f *func(*cobra.Command, []string) error) {
		run := *f
		if run == nil {
			return
		}
		*f = func(cmd *cobra.Command, args []string) error {
			err := run(cmd, args)
			*own = err != nil
			return err
		}
	}
	watch(&cmd.PersistentPreRunE)
	watch(&cmd.PreRunE)
	watch(&cmd.RunE)
	watch(&cmd.PostRunE)
	watch(&cmd.PersistentPostRunE)
	for _, sub := range cmd.Commands() {
		watchHooks(sub, own)
	}
}

// requireSubcommand makes it a mistake to stop at a command that only groups others. Cobra would print the help text
// on standard output and call that a success, even for an unknown word below such a group.
func requireSubcommand(cmd *cobra.Command) {
	for _, sub := range cmd.Commands() {
		requireSubcommand(sub)
	}
	if !cmd.HasSubCommands() || cmd.Runnable() {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return fmt.Errorf("unknown command %q for %q", args[0], cmd.CommandPath())
		}
		return fmt.Errorf("%s needs a command", cmd.CommandPath())
	}
	// Cobra checks the arguments of runnable commands only. Args refuses all, so that this is never reached.
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

func usageError(cmd *cobra.Command, err error) error {
	err = Usage(Hint(err, cmd.CommandPath()+" --help"))
	if word, ok := unknownWord(err); ok {
		cmd.SuggestionsMinimumDistance = 2 // edits: cobra's own default
		for _, name := range cmd.SuggestionsFor(word) {
			err = Hint(err, cmd.CommandPath()+" "+name)
		}
	}
	return err
}

// unknownWord takes the word out of cobra's "unknown command %q for %q", which is not a typed error.
func unknownWord(err error) (string, bool) {
	rest, ok := strings.CutPrefix(err.Error(), `unknown command "`)
	if !ok {
		return "", false
	}
	word, _, ok := strings.Cut(rest, `"`)
	return word, ok
}
