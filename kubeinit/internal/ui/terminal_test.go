package ui_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
)

// terminal is as much of a terminal as a View needs: it keeps lines, breaks those
// that are too long, and knows three sequences. Others are an error.
type terminal struct {
	t  *testing.T
	mu sync.Mutex // guards all below: a View writes from two goroutines, and a test looks on

	width, height int
	lines         [][]rune // all that was ever shown
	row, col      int      // of the cursor, in lines
	color         string   // SGR that is on
}

func newTerminal(t *testing.T, width, height int) *terminal {
	return &terminal{t: t, width: width, height: height, lines: [][]rune{nil}}
}

func (s *terminal) size() (int, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.width, s.height
}

func (s *terminal) resize(width, height int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.width, s.height = width, height
}

func (s *terminal) Write(data []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for text := string(data); text != ""; {
		if rest, found := strings.CutPrefix(text, "\x1b["); found {
			end := strings.IndexFunc(rest, func(r rune) bool { return r >= '@' })
			s.sequence(rest[:end], rest[end])
			text = rest[end+1:]
			continue
		}
		r := []rune(text)[0]
		s.put(r)
		text = text[len(string(r)):]
	}
	return len(data), nil
}

func (s *terminal) sequence(arg string, what byte) {
	switch what {
	case 'A':
		var n int
		if _, err := fmt.Sscan(arg, &n); err != nil {
			s.t.Fatal(err)
		}
		top := max(0, len(s.lines)-s.height) // what scrolled away cannot be reached
		if s.row-n < top {
			s.t.Errorf("the cursor goes %d up from line %d of %d", n, s.row-top, s.height)
		}
		s.row = max(top, s.row-n)
	case 'J':
		s.lines = s.lines[:s.row+1]
		s.lines[s.row] = s.lines[s.row][:min(s.col, len(s.lines[s.row]))]
	case 'm':
		s.color = strings.TrimPrefix(arg, "0")
	default:
		s.t.Fatalf("unknown sequence %q%c", arg, what)
	}
}

func (s *terminal) put(r rune) {
	switch {
	case r == '\n':
		s.newline()
		return
	case r == '\r':
		s.col = 0
		return
	case r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0:
		s.t.Errorf("control character %q", r)
		return
	}
	if s.col == s.width {
		s.newline()
	}
	line := s.lines[s.row]
	for len(line) <= s.col {
		line = append(line, ' ')
	}
	line[s.col] = r
	s.lines[s.row] = line
	s.col++
}

func (s *terminal) newline() {
	s.row, s.col = s.row+1, 0
	if s.row == len(s.lines) {
		s.lines = append(s.lines, nil)
	}
}

// String is all that was ever shown and not cleared.
func (s *terminal) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var b strings.Builder
	for _, line := range s.lines[:len(s.lines)-1] {
		b.WriteString(strings.TrimRight(string(line), " ") + "\n")
	}
	return b.String() + strings.TrimRight(string(s.lines[len(s.lines)-1]), " ")
}
