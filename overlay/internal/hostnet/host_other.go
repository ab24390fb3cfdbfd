//go:build !linux

package hostnet

import (
	"context"
	"errors"
	"fmt"
	"runtime"
)

// Host does not exist on this system: Open always returns an error.
type Host struct{}

// Open returns an error that matches errors.ErrUnsupported.
func Open(Config) (*Host, error) { return nil, unsupported() }

// Apply returns an error that matches errors.ErrUnsupported.
func (*Host) Apply(context.Context, Desired) error { return unsupported() }

// Facts returns an error that matches errors.ErrUnsupported.
func (*Host) Facts() (Facts, error) { return Facts{}, unsupported() }

// Watch returns an error that matches errors.ErrUnsupported.
func (*Host) Watch(context.Context, func()) error { return unsupported() }

// Close has nothing to undo.
func (*Host) Close() error { return nil }

func unsupported() error {
	return fmt.Errorf("host network on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
