package inventory

import (
	"fmt"
	"strings"
)

// Fault is one thing that is wrong in an inventory.
type Fault struct {
	File    string
	Line    int    // from 1; 0 means the file as a whole
	Field   string // such as hosts[3].nodeIP; empty means no field in particular
	Problem string // what is wrong
	Want    string // what would be right; empty if the problem says it
}

// Error is the fault in one line: FILE:LINE: field: problem; want ...
func (f Fault) Error() string {
	var b strings.Builder
	b.WriteString(f.File)
	if f.Line > 0 {
		fmt.Fprintf(&b, ":%d", f.Line)
	}
	if f.Field != "" {
		b.WriteString(": " + f.Field)
	}
	b.WriteString(": " + f.Problem)
	if f.Want != "" {
		b.WriteString("; want " + f.Want)
	}
	return b.String()
}

// Faults is everything that is wrong in an inventory, by line. It is never
// empty where it is returned as an error.
type Faults []Fault

// Error gives one line for each fault.
func (f Faults) Error() string {
	lines := make([]string, len(f))
	for i, fault := range f {
		lines[i] = fault.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives the faults one by one.
func (f Faults) Unwrap() []error {
	errs := make([]error, len(f))
	for i, fault := range f {
		errs[i] = fault
	}
	return errs
}
