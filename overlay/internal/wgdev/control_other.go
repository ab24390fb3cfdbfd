//go:build !linux

package wgdev

import (
	"errors"
	"fmt"
	"io"
	"runtime"
)

// openControl says that there is none: wg(8) has other ways elsewhere.
func openControl(string, string, func(io.Writer) error) (*control, error) {
	return nil, fmt.Errorf("control socket on %s: %w", runtime.GOOS, errors.ErrUnsupported)
}
