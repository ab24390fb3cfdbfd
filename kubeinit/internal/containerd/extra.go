package containerd

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// statement is a table header or an assignment of extra TOML. Values are not
// understood, only where they end; containerd says what is wrong with them.
type statement struct {
	kind kind
	path []string // of a header as written, of an assignment from the root
	text string
	line int
}

type kind int

const (
	assignment kind = iota
	table
	tables // an element of an array of tables
)

// merge puts assignments to tables that are there into them and returns the
// rest. It refuses what would set a key of ours or open a table in two places.
func merge(sections []*section, extra []statement) ([]statement, error) {
	ours := map[string]*section{}
	var keys [][]string
	for _, s := range sections {
		path := mustPath(s.name)
		ours[joined(path)] = s
		for _, k := range s.keys {
			keys = append(keys, append(slices.Clone(path), k.name))
		}
	}
	var rest []statement
	var errs []error
	into := sections[0]
	at := []string{}
	seen := map[string]bool{}
	for _, e := range extra {
		if e.kind != assignment {
			if into = ours[joined(e.path)]; into == nil || e.kind == tables {
				rest = append(rest, e)
			}
			at = e.path
		}
		if err := refuse(e, at, ours, keys, seen); err != nil {
			errs = append(errs, fmt.Errorf("extraToml:%d: %w", e.line, err))
		}
		switch {
		case e.kind != assignment:
		case into != nil:
			into.extra = append(into.extra, e)
		default:
			rest = append(rest, e)
		}
	}
	return rest, errors.Join(errs...)
}

func refuse(e statement, at []string, ours map[string]*section, keys [][]string, seen map[string]bool) error {
	if e.kind == tables {
		// Elements of an array repeat, and each starts with nothing set.
		for s := range seen {
			if s == joined(e.path) || strings.HasPrefix(s, joined(e.path)+"\x00") {
				delete(seen, s)
			}
		}
	} else if seen[joined(e.path)+string(rune('0'+e.kind))] {
		return fmt.Errorf("%s: is there twice", strings.Join(e.path, "."))
	} else {
		seen[joined(e.path)+string(rune('0'+e.kind))] = true
	}
	for _, k := range keys {
		if e.kind != table && (begins(e.path, k) || begins(k, e.path)) || e.kind == table && begins(e.path, k) {
			return fmt.Errorf("%s: kubeinit sets this itself", strings.Join(k, "."))
		}
	}
	if e.kind == assignment {
		// a.b = 1 opens table a, which must not be one that has a header.
		for n := len(at) + 1; n < len(e.path); n++ {
			if s := ours[joined(e.path[:n])]; s != nil {
				return fmt.Errorf("%s: write it below [%s]", strings.Join(e.path, "."), s.name)
			}
		}
	}
	return nil
}

func begins(path, with []string) bool {
	return len(path) >= len(with) && slices.Equal(path[:len(with)], with)
}

func joined(path []string) string { return strings.Join(path, "\x00") }

// mustPath reads a name of our own; it has no quotes inside quotes.
func mustPath(name string) []string {
	if name == "" {
		return []string{}
	}
	s := scanner{text: name, line: 1}
	path, _ := s.path()
	return path
}

// parse divides TOML into its statements. Comments stay with the statement that
// they follow on the same line; others are left out.
func parse(text string) ([]statement, error) {
	s := scanner{text: strings.ReplaceAll(text, "\r\n", "\n"), line: 1}
	if i := strings.IndexFunc(s.text, isControl); i >= 0 || !utf8.ValidString(s.text) {
		return nil, fmt.Errorf("extraToml:%d: want text without control characters", 1+strings.Count(s.text[:max(i, 0)], "\n"))
	}
	var out []statement
	at := []string{}
	for {
		s.skipBlank()
		if s.done() {
			return out, nil
		}
		start := s.pos
		e := statement{line: s.line}
		var err error
		if s.peek() == '[' {
			if e.kind, e.path, err = s.header(); err == nil {
				at = e.path
			}
		} else {
			var path []string
			path, err = s.assign()
			e.path = append(slices.Clone(at), path...)
		}
		if err != nil {
			return nil, fmt.Errorf("extraToml:%d: %w", s.line, err)
		}
		e.text = strings.TrimRight(s.text[start:s.pos], " \t\n")
		out = append(out, e)
	}
}

// isControl is true for what TOML allows nowhere.
func isControl(r rune) bool { return r != '\t' && r != '\n' && unicode.IsControl(r) }

type scanner struct {
	text string
	pos  int
	line int
}

func (s *scanner) done() bool { return s.pos >= len(s.text) }

// peek returns 0 at the end.
func (s *scanner) peek() byte {
	if s.done() {
		return 0
	}
	return s.text[s.pos]
}

func (s *scanner) next() byte {
	c := s.peek()
	if c == '\n' {
		s.line++
	}
	s.pos++
	return c
}

func (s *scanner) has(prefix string) bool {
	return strings.HasPrefix(s.text[min(s.pos, len(s.text)):], prefix)
}

func (s *scanner) skipSpace() {
	for s.peek() == ' ' || s.peek() == '\t' {
		s.pos++
	}
}

func (s *scanner) skipBlank() {
	for !s.done() && strings.IndexByte(" \t\n#", s.peek()) >= 0 {
		if s.peek() == '#' {
			s.skipComment()
		} else {
			s.next()
		}
	}
}

func (s *scanner) skipComment() {
	for !s.done() && s.peek() != '\n' {
		s.pos++
	}
}

// lineEnd wants nothing but a comment before the next line.
func (s *scanner) lineEnd() error {
	s.skipSpace()
	if s.peek() == '#' {
		s.skipComment()
	}
	if !s.done() && s.peek() != '\n' {
		return fmt.Errorf("%q: want the end of the line", s.rest())
	}
	return nil
}

func (s *scanner) rest() string {
	rest, _, _ := strings.Cut(s.text[min(s.pos, len(s.text)):], "\n")
	return rest[:min(len(rest), 20)]
}

func (s *scanner) header() (kind, []string, error) {
	k, end := table, "]"
	if s.has("[[") {
		k, end = tables, "]]"
	}
	s.pos += len(end)
	path, err := s.path()
	if err != nil {
		return k, nil, err
	}
	if !s.has(end) {
		return k, nil, fmt.Errorf("%q: want %s", s.rest(), end)
	}
	s.pos += len(end)
	return k, path, s.lineEnd()
}

func (s *scanner) assign() ([]string, error) {
	path, err := s.path()
	if err != nil {
		return nil, err
	}
	if s.next() != '=' {
		return nil, fmt.Errorf("%s: want = and a value", strings.Join(path, "."))
	}
	s.skipSpace()
	if s.done() || s.peek() == '\n' || s.peek() == '#' {
		return nil, fmt.Errorf("%s: has no value", strings.Join(path, "."))
	}
	if err := s.value(); err != nil {
		return nil, fmt.Errorf("%s: %w", strings.Join(path, "."), err)
	}
	return path, nil
}

// path reads a.b."c.d" and the white space around it.
func (s *scanner) path() ([]string, error) {
	var path []string
	for {
		s.skipSpace()
		part, err := s.key()
		if err != nil {
			return nil, err
		}
		path = append(path, part)
		s.skipSpace()
		if s.peek() != '.' {
			return path, nil
		}
		s.pos++
	}
}

func (s *scanner) key() (string, error) {
	start := s.pos
	switch q := s.peek(); q {
	case '"', '\'':
		if err := s.quoted(); err != nil {
			return "", err
		}
		part := s.text[start+1 : s.pos-1]
		if q == '"' && strings.Contains(part, `\`) {
			return "", fmt.Errorf("key %q: want it without escapes", part)
		}
		return part, nil
	}
	for c := s.peek(); c == '-' || c == '_' || c >= '0' && c <= '9' || c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z'; c = s.peek() {
		s.pos++
	}
	if start == s.pos {
		return "", fmt.Errorf("%q: want a key", s.rest())
	}
	return s.text[start:s.pos], nil
}

// quoted reads a string on one line.
func (s *scanner) quoted() error {
	for q := s.next(); ; {
		switch c := s.next(); {
		case c == q:
			return nil
		case c == '\\' && q == '"' && s.peek() != '\n' && !s.done():
			s.pos++
		case c == '\n' || c == 0:
			return errors.New("a string has no end")
		}
	}
}

// value reads to the end of the line on which the value ends.
func (s *scanner) value() error {
	var open []byte
	for {
		switch c := s.peek(); {
		case s.done() || c == '\n' && len(open) == 0:
			if len(open) > 0 {
				return fmt.Errorf("want %c", open[len(open)-1])
			}
			return nil
		case s.has(`"""`) || s.has(`'''`):
			if err := s.long(); err != nil {
				return err
			}
		case c == '"' || c == '\'':
			if err := s.quoted(); err != nil {
				return err
			}
		case c == '#':
			s.skipComment()
		case c == '[' || c == '{':
			open = append(open, c+2) // ']' and '}' are two behind
			s.pos++
		case c == ']' || c == '}':
			if len(open) == 0 || open[len(open)-1] != c {
				return fmt.Errorf("%c without its beginning", c)
			}
			open = open[:len(open)-1]
			s.pos++
		default:
			s.next()
		}
	}
}

// long reads a string of several lines. Up to two more quotes may stand before
// the three that end it; they belong to it and make no difference here.
func (s *scanner) long() error {
	end := s.text[s.pos : s.pos+3]
	s.pos += 3
	for !s.has(end) {
		if s.done() {
			return errors.New("a string has no end")
		}
		if s.next() == '\\' && end[0] == '"' && !s.done() {
			s.next()
		}
	}
	s.pos += 3
	for range 2 {
		if s.peek() == end[0] {
			s.pos++
		}
	}
	return nil
}
