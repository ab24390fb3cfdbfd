package netlab

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestMatrixIsATable(t *testing.T) {
	m := newMatrix([]string{"lb", "master01", "n"})
	m.RTT[0][1] = 412 * time.Microsecond
	m.RTT[1][0] = 1234567 * time.Microsecond
	m.RTT[2][0] = 0
	want := `from\to       lb  master01       n
lb             ·      0.41       ✗
master01  1234.57         ·       ✗
n           0.00         ✗       ·
3/6 host pairs answer (ms)
`
	if diff := cmp.Diff(want, m.String()); diff != "" {
		t.Errorf("table (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"lb→n", "master01→n", "n→master01"}, m.Missing()); diff != "" {
		t.Errorf("missing (-want +got):\n%s", diff)
	}
}

func TestEmptyMatrixHasNoPairs(t *testing.T) {
	m := newMatrix(nil)
	if m.Total() != 0 || m.Reached() != 0 {
		t.Errorf("got %d/%d, want 0/0", m.Reached(), m.Total())
	}
}
