package action

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Bounds of what people see of a change.
const (
	diffLines   = 40   // shown
	diffCompare = 1000 // of each side, compared line by line
	diffAround  = 2    // unchanged lines around changes
)

// diff shows how a file becomes another: lines that go, come or stay, behind "-",
// "+" or a blank. It is short: of long files and differences it shows a part, of
// what is no text only a digest.
func diff(old, fresh []byte) string {
	if bytes.Equal(old, fresh) {
		return fmt.Sprintf("%d bytes", len(fresh))
	}
	for _, side := range [][]byte{old, fresh} {
		if !utf8.Valid(side) || bytes.IndexByte(side, 0) >= 0 {
			return fmt.Sprintf("%d bytes, sha256 %x", len(fresh), sha256.Sum256(fresh))
		}
	}
	a, b := splitLines(old), splitLines(fresh)
	if len(a) > diffCompare || len(b) > diffCompare {
		return fmt.Sprintf("%d lines instead of %d, sha256 %x", len(b), len(a), sha256.Sum256(fresh))
	}
	lines := excerpt(compare(a, b))
	if more := len(lines) - diffLines; more > 0 {
		lines = append(lines[:diffLines], fmt.Sprintf("… %d more lines", more))
	}
	return strings.Join(lines, "\n")
}

func splitLines(text []byte) []string {
	lines := strings.SplitAfter(string(text), "\n")
	if last := len(lines) - 1; lines[last] == "" {
		lines = lines[:last]
	} else {
		lines[last] += " (no newline at the end)"
	}
	for i := range lines {
		lines[i] = strings.TrimSuffix(lines[i], "\n")
	}
	return lines
}

// compare marks lines that are in both, only in a, or only in b, so that as many
// as possible are in both.
func compare(a, b []string) []string {
	common := make([][]int, len(a)+1) // length of what the rests have in common
	for i := range common {
		common[i] = make([]int, len(b)+1)
	}
	for i := range slices.Backward(a) {
		for j := range slices.Backward(b) {
			if a[i] == b[j] {
				common[i][j] = common[i+1][j+1] + 1
			} else {
				common[i][j] = max(common[i+1][j], common[i][j+1])
			}
		}
	}
	var out []string
	i, j := 0, 0
	for i < len(a) || j < len(b) {
		switch {
		case i < len(a) && j < len(b) && a[i] == b[j]:
			out = append(out, " "+a[i])
			i, j = i+1, j+1
		case i < len(a) && (j == len(b) || common[i+1][j] >= common[i][j+1]):
			out = append(out, "-"+a[i])
			i++
		default:
			out = append(out, "+"+b[j])
			j++
		}
	}
	return out
}

// excerpt leaves out unchanged lines that are far from a change.
func excerpt(lines []string) []string {
	near := make([]bool, len(lines))
	for i, line := range lines {
		if line[0] == ' ' {
			continue
		}
		for j := max(0, i-diffAround); j <= min(len(lines)-1, i+diffAround); j++ {
			near[j] = true
		}
	}
	var out []string
	for i, line := range lines {
		switch {
		case near[i]:
			out = append(out, line)
		case i == 0 || near[i-1]:
			out = append(out, "…")
		}
	}
	return out
}
