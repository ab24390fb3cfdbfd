//go:build integration

package vyos

import (
	"fmt"
	"os"
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
