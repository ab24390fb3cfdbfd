//go:build integration

package netlabtest

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

func TestMain(m *testing.M) {
	if err := netlab.Elevate(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// recorder is a test whose errors and clean-ups are only written down.
type recorder struct {
	testing.TB
	errors   []string
	cleanups []func()
}

func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}
func (r *recorder) Error(args ...any) { r.errors = append(r.errors, fmt.Sprint(args...)) }
func (r *recorder) Cleanup(f func())  { r.cleanups = append(r.cleanups, f) }

func (r *recorder) end() {
	for _, f := range slices.Backward(r.cleanups) {
		f()
	}
}

func TestWorldIsClosedAtTheEndOfTheTest(t *testing.T) {
	r := &recorder{TB: t}
	w := Start(r, netlab.Reference())
	Snapshots(r, w, w.Topology().Routers()...)
	r.end()
	if r.errors != nil {
		t.Errorf("got %q, want no errors", r.errors)
	}
	if _, err := w.Host("lb").Run(t.Context(), "true"); !errors.Is(err, netlab.ErrClosed) {
		t.Errorf("got %v, want %v", err, netlab.ErrClosed)
	}
}

func TestLeftoversFailTheTest(t *testing.T) {
	r := &recorder{TB: t}
	w := Start(r, netlab.Reference())
	Snapshots(r, w, "gw10", "gw20")
	if _, err := w.Host("gw20").Run(t.Context(), "ip", "route", "add", "10.9.0.0/16", "via", "10.4.0.90"); err != nil {
		t.Fatal(err)
	}
	l, err := w.Host("gw10").Listen(t.Context(), "tcp", "10.4.0.90:80")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r.end()
	for _, want := range []string{"host gw20 is not as it was: + routes: 10.9.0.0/16 via 10.4.0.90", "in net namespace of gw10"} {
		if !slices.ContainsFunc(r.errors, func(e string) bool { return strings.Contains(e, want) }) {
			t.Errorf("got %q\nwithout %q", r.errors, want)
		}
	}
}
