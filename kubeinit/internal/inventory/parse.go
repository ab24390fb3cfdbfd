package inventory

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// MaxSize is the size of the largest inventory in bytes. A host needs about a
// hundred.
const MaxSize = 512 << 10

// Parse reads and checks an inventory. name is what faults call the file, and
// relative paths in the file begin in its directory; no other file is read. The
// error is always a Faults.
func Parse(name string, data []byte) (*Inventory, error) {
	p := &parser{report: report{file: name, lines: map[string]int{}}}
	inv := new(Inventory)
	if len(data) > MaxSize {
		p.fault("", fmt.Sprintf("larger than %d bytes", MaxSize), "an inventory of some kilobytes")
	} else if root := p.document(data); root != nil {
		p.inventory(inv, root)
		fill(inv)
		check(inv, &p.report)
	}
	if err := p.err(); err != nil {
		return nil, err
	}
	inv.Warnings = p.warnings
	return inv, nil
}

// report collects faults by the path of their field, such as hosts[3].nodeIP.
type report struct {
	file             string
	lines            map[string]int // of what stands in the file
	faults, warnings Faults
	at, above        map[string]bool // the fields of faults, and what they are part of
}

// fault notes what is wrong with a field.
func (r *report) fault(field, problem, want string) {
	r.mark(field)
	r.faults = append(r.faults, Fault{File: r.file, Line: r.line(field), Field: field, Problem: problem, Want: want})
}

// warn notes what is allowed and yet not wise.
func (r *report) warn(field, problem, want string) {
	r.warnings = append(r.warnings, Fault{File: r.file, Line: r.line(field), Field: field, Problem: problem, Want: want})
}

func (r *report) mark(field string) {
	if r.at == nil {
		r.at, r.above = map[string]bool{}, map[string]bool{}
	}
	r.at[field] = true
	for up, ok := parent(field); ok; up, ok = parent(up) {
		r.above[up] = true
	}
}

// broken says whether a field, something in it, or something that it is part
// of, has a fault already, so that its value means nothing.
func (r *report) broken(field string) bool {
	if r.at[field] || r.above[field] {
		return true
	}
	for up, ok := parent(field); ok; up, ok = parent(up) {
		if r.at[up] {
			return true
		}
	}
	return false
}

// line is the line of a field, or of the nearest thing that it is part of.
func (r *report) line(field string) int {
	for ok := true; ok; field, ok = parent(field) {
		if n, known := r.lines[field]; known {
			return n
		}
	}
	return 0
}

// parent cuts the last key or index off a path. It reports false for a path
// that has only one.
func parent(field string) (string, bool) {
	i := strings.LastIndexAny(field, ".[")
	if i < 0 {
		return "", false
	}
	return field[:i], true
}

func (r *report) err() error {
	byLine := func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) }
	slices.SortStableFunc(r.faults, byLine)
	slices.SortStableFunc(r.warnings, byLine)
	if len(r.faults) > 0 {
		return r.faults
	}
	return nil
}

// parser collects faults while it walks the nodes of a file.
type parser struct{ report }

// document returns the mapping that the file consists of, or nil.
func (p *parser) document(b []byte) *yaml.Node {
	const want = "\"cluster:\", \"sites:\" and \"hosts:\""
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, second yaml.Node
	switch err := decode(dec, &doc); {
	case errors.Is(err, io.EOF):
		p.fault("", "the file is empty", want)
		return nil
	case err != nil:
		p.syntax(b, err)
		return nil
	}
	switch err := decode(dec, &second); {
	case errors.Is(err, io.EOF):
	case err != nil:
		p.syntax(b, err)
		return nil
	default:
		p.lines[""] = second.Line
		p.fault("", "a second document begins here", "one document in a file")
		return nil
	}
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		p.fault("", "the file is empty", want)
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		p.lines[""] = root.Line
		p.fault("", "the file is "+describe(root), want)
		return nil
	}
	return root
}

// decode is dec.Decode without its panics: the parser is not ours, and the
// file may be anything.
func decode(dec *yaml.Decoder, n *yaml.Node) (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("not readable as YAML: %v", r)
		}
	}()
	return dec.Decode(n)
}

var yamlLine = regexp.MustCompile(`^line ([0-9]+): `)

// syntax notes an error of the YAML parser. A tab in the indentation is looked
// for first, because the parser never calls it by its name.
func (p *parser) syntax(b []byte, err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	line := 0
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1])
		text = text[len(m[0]):]
	}
	problem, want := "not YAML: "+text, ""
	if tab := tabbedLine(b); tab > 0 {
		line, problem, want = tab, "a tab in the indentation", "spaces"
	}
	p.lines[""] = line
	p.fault("", problem, want)
}

// tabbedLine returns the first line that is indented with a tab, or 0.
func tabbedLine(b []byte) int {
	n := 0
	for line := range bytes.Lines(b) {
		n++
		text := bytes.TrimLeft(line, " \t")
		if bytes.ContainsRune(line[:len(line)-len(text)], '\t') && len(bytes.TrimSpace(text)) > 0 {
			return n
		}
	}
	return 0
}

// key is a key of a mapping and what reads its value.
type key struct {
	name string
	need string // what to write if the key is missing; empty: it may be
	read func(n *yaml.Node, field string)
}

// mapping reads the values of n by their keys. Unknown, repeated and missing
// keys are faults. field is the path of n; what says what n should be.
func (p *parser) mapping(n *yaml.Node, field, what string, keys []key) {
	if n.Kind != yaml.MappingNode {
		p.fault(field, describe(n), what)
		return
	}
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, value := n.Content[i], n.Content[i+1]
		if k.Kind != yaml.ScalarNode {
			p.fault(field, fmt.Sprintf("a key that is %s in line %d", describe(k), k.Line), "one of "+names(keys))
			continue
		}
		path := join(field, k.Value)
		if first, ok := seen[k.Value]; ok {
			p.lines[path] = k.Line
			p.fault(path, fmt.Sprintf("stands in line %d already", first), "each key once")
			continue
		}
		seen[k.Value] = k.Line
		j := slices.IndexFunc(keys, func(c key) bool { return c.name == k.Value })
		if j < 0 {
			path = join(field, short(k.Value))
			p.lines[path] = k.Line
			p.unknown(path, k.Value, keys)
			continue
		}
		p.lines[path] = k.Line
		keys[j].read(value, path)
	}
	for _, k := range keys {
		if _, ok := seen[k.name]; !ok && k.need != "" {
			p.mark(join(field, k.name))
			p.faults = append(p.faults, Fault{File: p.file, Line: p.line(field), Field: field, Problem: "has no " + k.name, Want: k.need})
		}
	}
}

func join(field, name string) string {
	if field == "" {
		return name
	}
	return field + "." + name
}

func names(keys []key) string {
	out := make([]string, len(keys))
	for i, k := range keys {
		out[i] = k.name
	}
	return strings.Join(out, ", ")
}

func (p *parser) unknown(field, word string, keys []key) {
	known := make([]string, len(keys))
	for i, k := range keys {
		known[i] = k.name
	}
	want := "one of " + names(keys)
	if near := nearest(word, known); near != "" {
		want = near
	}
	p.fault(field, "unknown key", want)
}

// list calls read for every item of the list n.
func (p *parser) list(n *yaml.Node, field, want string, most int, read func(item *yaml.Node, field string)) {
	if n.Kind != yaml.SequenceNode {
		p.fault(field, describe(n), want)
		return
	}
	if len(n.Content) > most {
		p.fault(field, fmt.Sprintf("%d entries", len(n.Content)), fmt.Sprintf("at most %d", most))
		return
	}
	for i, item := range n.Content {
		path := fmt.Sprintf("%s[%d]", field, i)
		p.lines[path] = item.Line
		read(item, path)
	}
}

// scalar returns the text of n, or notes that it is not a single value.
func (p *parser) scalar(n *yaml.Node, field, want string) (string, bool) {
	if n.Kind != yaml.ScalarNode || isNull(n) || n.Value == "" {
		p.fault(field, describe(n), want)
		return "", false
	}
	return n.Value, true
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe says what n is, for a fault.
func describe(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Kind == yaml.AliasNode:
		return "an alias (*" + n.Value + ")"
	case isNull(n), n.Value == "":
		return "empty"
	default:
		return strconv.Quote(short(n.Value))
	}
}

// short bounds what of a value is repeated in a fault.
func short(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
