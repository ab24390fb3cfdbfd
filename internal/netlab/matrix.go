package netlab

import (
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"
)

// Matrix is the result of every host pinging every other one.
type Matrix struct {
	// Hosts are the names, in the order of rows and columns.
	Hosts []string
	// RTT is the round-trip time of the first answer, RTT[from][to]. It is negative where no answer came,
	// and 0 on the diagonal, which is not measured.
	RTT [][]time.Duration
}

func newMatrix(hosts []string) *Matrix {
	m := &Matrix{Hosts: slices.Clone(hosts), RTT: make([][]time.Duration, len(hosts))}
	for i := range m.RTT {
		m.RTT[i] = slices.Repeat([]time.Duration{-1}, len(hosts))
		m.RTT[i][i] = 0
	}
	return m
}

// Total is the number of ordered pairs of different hosts.
func (m *Matrix) Total() int { return len(m.Hosts) * (len(m.Hosts) - 1) }

// Reached is the number of ordered pairs that answered.
func (m *Matrix) Reached() int { return m.Total() - len(m.Missing()) }

// Missing are the ordered pairs that did not answer, each as "from→to".
func (m *Matrix) Missing() []string {
	var missing []string
	for i, from := range m.Hosts {
		for j, to := range m.Hosts {
			if i != j && m.RTT[i][j] < 0 {
				missing = append(missing, from+"→"+to)
			}
		}
	}
	return missing
}

// String is the matrix as a table for people, RTTs in milliseconds.
//
//	from\to   master01  node01
//	master01         ·    0.41
//	node01           ✗       ·
//	1/2 host pairs answer (ms)
func (m *Matrix) String() string {
	const corner = `from\to`
	first := len(corner)
	for _, h := range m.Hosts {
		first = max(first, len(h))
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%-*s", first, corner)
	for _, h := range m.Hosts {
		fmt.Fprintf(&b, "  %*s", columnWidth(h), h)
	}
	b.WriteByte('\n')
	for i, from := range m.Hosts {
		fmt.Fprintf(&b, "%-*s", first, from)
		for j, to := range m.Hosts {
			cell := m.cell(i, j)
			b.WriteString(strings.Repeat(" ", 2+max(0, columnWidth(to)-utf8.RuneCountInString(cell))))
			b.WriteString(cell)
		}
		b.WriteByte('\n')
	}
	fmt.Fprintf(&b, "%d/%d host pairs answer (ms)\n", m.Reached(), m.Total())
	return b.String()
}

// columnWidth leaves room for "999.99".
func columnWidth(host string) int { return max(len(host), len("999.99")) }

func (m *Matrix) cell(from, to int) string {
	switch rtt := m.RTT[from][to]; {
	case from == to:
		return "·"
	case rtt < 0:
		return "✗"
	default:
		return fmt.Sprintf("%.2f", float64(rtt)/float64(time.Millisecond))
	}
}
