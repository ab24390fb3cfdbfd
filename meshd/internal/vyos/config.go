package vyos

import (
	"maps"
	"slices"
	"strings"
)

// Bounds of what Import reads. A router's whole configuration has some
// thousand lines; the longest hold certificates.
const (
	MaxSize  = 4 << 20 // bytes of a file
	maxWords = 32      // in a line
	maxLines = 100_000
)

// node is a level of a router's configuration: what follows a word, and the
// line that it was first seen in.
type node struct {
	children map[string]*node
	line     int
}

// get follows words; nil if they are not there.
func (n *node) get(words ...string) *node {
	for _, w := range words {
		if n == nil {
			return nil
		}
		n = n.children[w]
	}
	return n
}

// values are the words that follow, in order of their lines.
func (n *node) values() []string {
	if n == nil {
		return nil
	}
	return slices.SortedFunc(maps.Keys(n.children), func(a, b string) int {
		if d := n.children[a].line - n.children[b].line; d != 0 {
			return d
		}
		return strings.Compare(a, b)
	})
}

// value is the only word that follows, or empty. The line is where it stands.
func (n *node) value(words ...string) (string, int) {
	n = n.get(words...)
	all := n.values()
	if len(all) == 0 {
		return "", 0
	}
	last := all[len(all)-1] // as a router takes a value that is set twice
	return last, n.children[last].line
}

func (n *node) at(words ...string) int {
	if n = n.get(words...); n != nil {
		return n.line
	}
	return 0
}

// add adds a line's words.
func (n *node) add(words []string, line int) {
	for _, w := range words {
		next := n.children[w]
		if next == nil {
			if n.children == nil {
				n.children = make(map[string]*node)
			}
			next = &node{line: line}
			n.children[w] = next
		}
		n = next
	}
}

// parse reads the output of "show configuration commands". Lines that are not
// commands (comments, prompts, what stands between in a saved session) are
// passed over; those that begin like one and are not are reported.
func parse(text string, report func(line int, problem string)) (root *node, commands int) {
	root = new(node)
	number := 0
	for line := range strings.Lines(text) {
		number++
		if number > maxLines {
			report(number, "there are more lines than any router has; the rest is not read")
			break
		}
		line = strings.TrimSpace(line)
		rest, isSet := strings.CutPrefix(line, "set ")
		if !isSet {
			continue
		}
		words, problem := split(rest)
		if problem == "" && len(words) == 0 {
			problem = "nothing follows set"
		}
		if problem != "" {
			report(number, problem)
			continue
		}
		commands++
		root.add(words, number)
	}
	return root, commands
}

// split cuts a line into words as a shell does: single quotes keep everything,
// double quotes all but the backslash, and # at the beginning of a word ends
// the line.
func split(line string) (words []string, problem string) {
	var word strings.Builder
	inside, quote := false, byte(0)
	for i := 0; i < len(line); i++ {
		c := line[i]
		switch {
		case quote != 0 && c == quote:
			quote = 0
		case c == '\\' && quote != '\'' && i+1 < len(line):
			i++
			word.WriteByte(line[i])
			inside = true
		case quote != 0:
			word.WriteByte(c)
		case c == '\'' || c == '"':
			quote, inside = c, true
		case c == '#' && !inside:
			return words, ""
		case c == ' ' || c == '\t':
			if inside {
				words = append(words, word.String())
				word.Reset()
				inside = false
			}
		default:
			word.WriteByte(c)
			inside = true
		}
		if len(words) > maxWords {
			return nil, "the line has more words than any command"
		}
	}
	if quote != 0 {
		return nil, "a quote is not closed"
	}
	if inside {
		words = append(words, word.String())
	}
	return words, ""
}
