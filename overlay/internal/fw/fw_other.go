//go:build !linux

package fw

import (
	"errors"
	"fmt"
	"runtime"
)

// Firewall does not exist on this system: Open always returns an error.
type Firewall struct{}

// Open returns an error that matches errors.ErrUnsupported.
func Open(Config) (*Firewall, error) { return nil, unsupported() }

// Apply returns an error that matches errors.ErrUnsupported.
func (*Firewall) Apply(Desired) error { return unsupported() }

// Close has nothing to remove.
func (*Firewall) Close() error { return nil }

// Diagnose returns an error that matches errors.ErrUnsupported.
func Diagnose(string) ([]Finding, error) { return nil, unsupported() }

func unsupported() error {
	return fmt.Errorf("firewall on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
