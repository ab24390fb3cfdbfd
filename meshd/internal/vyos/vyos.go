// Package vyos speaks the configuration language of VyOS routers: it prints
// the commands for the router's end of an attachment, and reads a router's
// commands back into attachments. Everything in it is a function of its
// arguments; no file is read and no daemon asked.
//
// What each version makes of its commands is said where it matters. Versions
// are 1.2 (OpenVPN 2.3 or 2.4), 1.3 (2.5), 1.4 (2.6) and 1.5 (2.6, later
// perhaps 2.7).
package vyos

import (
	"fmt"
	"strings"
)

// Version is a release line of VyOS. The zero value is none.
type Version uint8

// The release lines.
const (
	V12 Version = iota + 1 // crux
	V13                    // equuleus
	V14                    // sagitta
	V15                    // circinus, and the rolling releases before it
)

// ParseVersion reads 1.2, 1.3, 1.4 or 1.5; a third number is ignored.
func ParseVersion(s string) (Version, error) {
	for v := V12; v <= V15; v++ {
		if s == v.String() || strings.HasPrefix(s, v.String()+".") {
			return v, nil
		}
	}
	return 0, fmt.Errorf("vyos version %q; want 1.2, 1.3, 1.4 or 1.5", s)
}

// String is the number, such as 1.4.
func (v Version) String() string { return fmt.Sprintf("1.%d", v+1) }

// hasPKI reports whether keys stand in the configuration itself (pki …), and
// not in files that it names.
func (v Version) hasPKI() bool { return v >= V14 }

// A Refusal says why no commands of a router can do what an attachment asks
// for.
type Refusal struct {
	Attachment string // its name; empty if it is about all of them
	Problem    string
	Cure       string // what to change
}

// Error is one line without the cure.
func (r *Refusal) Error() string {
	if r.Attachment == "" {
		return r.Problem
	}
	return r.Attachment + ": " + r.Problem
}

// Refusals are all reasons at once. Unwrap gives each as a *Refusal.
type Refusals []*Refusal

// Error has a line for each.
func (r Refusals) Error() string {
	lines := make([]string, len(r))
	for i, one := range r {
		lines[i] = one.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap gives each reason.
func (r Refusals) Unwrap() []error {
	errs := make([]error, len(r))
	for i, one := range r {
		errs[i] = one
	}
	return errs
}
