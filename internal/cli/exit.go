package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"
)

// Exit codes of every command of this module. They are part of the contract with scripts.
const (
	ExitDone   = 0 // the command did what it was asked to
	ExitFailed = 1 // it did not; the error line says why
	ExitUsage  = 2 // the command line is wrong; nothing was tried
	ExitFaults = 3 // the command worked and found faults in what it looked at (check, doctor, preflight)
)

// Error is an error together with what the user should see and the shell should get. Commands make it with Hint,
// Usage and Faults, which can be combined in any order. It is immutable.
type Error struct {
	Err  error  // the cause, never nil
	Hint string // what to type or do next; empty means none
	Code int    // one of the Exit constants; 0 means that Error does not decide it
}

// Error is the text of the cause; the hint is not part of it.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *Error) Unwrap() error { return e.Err }

// Hint adds to err what the user should type or do next. A nil err stays nil.
func Hint(err error, next string) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Hint: next}
}

// Usage marks err as a mistake on the command line: exit code 2. A nil err stays nil.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Code: ExitUsage}
}

// Faults marks err as what a checking command found: exit code 3. A nil err stays nil.
func Faults(err error) error {
	if err == nil {
		return nil
	}
	return &Error{Err: err, Code: ExitFaults}
}

// ExitCode is the exit code for err: 0 for nil, the outermost code that Usage or Faults set, else 1.
func ExitCode(err error) int {
	if err == nil {
		return ExitDone
	}
	for e := range annotations(err) {
		if e.Code != 0 {
			return e.Code
		}
	}
	return ExitFailed
}

// Print writes err as "error: " lines, one for each line of its text (errors.Join makes several), followed by a
// "hint: " line for every distinct hint in it, the outermost first. Control characters are escaped, because parts of an
// error can come from another machine and end up on a terminal. A nil err prints nothing.
func Print(w io.Writer, err error) {
	if err == nil {
		return
	}
	var b strings.Builder
	writeLines(&b, "error: ", err.Error())
	seen := make(map[string]bool)
	for e := range annotations(err) {
		if e.Hint != "" && !seen[e.Hint] {
			seen[e.Hint] = true
			writeLines(&b, "hint: ", e.Hint)
		}
	}
	// Nobody is left to tell if standard error is gone.
	_, _ = io.WriteString(w, b.String())
}

// annotations walks the tree of err from the outside in, and parts of joined errors from first to last.
func annotations(err error) func(yield func(*Error) bool) {
	return func(yield func(*Error) bool) { walk(err, yield) }
}

func walk(err error, yield func(*Error) bool) bool {
	switch e := err.(type) {
	case nil:
		return true
	case *Error:
		return yield(e) && walk(e.Err, yield)
	case interface{ Unwrap() []error }:
		for _, part := range e.Unwrap() {
			if !walk(part, yield) {
				return false
			}
		}
		return true
	default:
		return walk(errors.Unwrap(err), yield)
	}
}

func writeLines(b *strings.Builder, prefix, text string) {
	for line := range strings.Lines(text) {
		if line = strings.TrimRight(line, "\r\n"); line != "" {
			b.WriteString(prefix)
			writeEscaped(b, line)
			b.WriteByte('\n')
		}
	}
}

func writeEscaped(b *strings.Builder, line string) {
	for _, r := range line {
		switch {
		case r == '\t', unicode.IsPrint(r):
			b.WriteRune(r)
		default:
			fmt.Fprintf(b, "\\u%04x", r)
		}
	}
}
