package conf

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

// Parse reads a configuration from b; name is what faults call the file, and
// relative paths begin in its directory. The error is always a Faults. Key
// files are not read.
func Parse(name string, b []byte) (*Config, error) {
	return parse(name, b, func(*parser, *attachment) {})
}

// parse calls keys for every attachment.
func parse(name string, b []byte, keys func(*parser, *attachment)) (*Config, error) {
	p := &parser{file: name, keys: keys}
	c := Default()
	c.File = name
	if len(b) > MaxSize {
		p.fault(nil, "", fmt.Sprintf("larger than %d bytes", MaxSize), "a configuration of a few kilobytes")
	} else if root := p.document(b); root != nil {
		p.config(c, root)
	}
	if len(p.faults) > 0 {
		slices.SortStableFunc(p.faults, func(a, b Fault) int { return cmp.Compare(a.Line, b.Line) })
		return nil, p.faults
	}
	return c, nil
}

// parser collects faults while it walks the nodes of a file.
type parser struct {
	file   string
	keys   func(*parser, *attachment)
	faults Faults
}

// fault notes what is wrong at node n; nil means the file as a whole.
func (p *parser) fault(n *yaml.Node, field, problem, want string) {
	line := 0
	if n != nil {
		line = n.Line
	}
	p.faults = append(p.faults, Fault{File: p.file, Line: line, Field: field, Problem: problem, Want: want})
}

// document returns the mapping that the file consists of, or nil if there is
// none, which is no fault in an empty file.
func (p *parser) document(b []byte) *yaml.Node {
	dec := yaml.NewDecoder(bytes.NewReader(b))
	var doc, second yaml.Node
	switch err := decode(dec, &doc); {
	case errors.Is(err, io.EOF):
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
		p.fault(&second, "", "a second document begins here", "one document in a file")
		return nil
	}
	if len(doc.Content) == 0 || isNull(doc.Content[0]) {
		return nil
	}
	root := doc.Content[0]
	if root.Kind != yaml.MappingNode {
		p.fault(root, "", "the file is "+describe(root), "lines such as \"port: 17946\"")
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

// syntax notes an error of the YAML parser. What it says about tabs depends on
// where the tab stands, and never says tab; so that is looked for first.
func (p *parser) syntax(b []byte, err error) {
	text := strings.TrimPrefix(err.Error(), "yaml: ")
	f := Fault{File: p.file}
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		f.Line, _ = strconv.Atoi(m[1])
		text = text[len(m[0]):]
	}
	f.Problem, f.Want = "not YAML: "+text, ""
	if line := tabbedLine(b); line > 0 {
		f.Line, f.Problem, f.Want = line, "a tab in the indentation", "spaces"
	}
	p.faults = append(p.faults, f)
}

// tabbedLine returns the first line that is indented with a tab, or 0.
func tabbedLine(b []byte) int {
	n := 0
	for line := range bytes.Lines(b) {
		n++
		indent := line[:len(line)-len(bytes.TrimLeft(line, " \t"))]
		if bytes.ContainsRune(indent, '\t') && len(bytes.TrimSpace(line)) > 0 {
			return n
		}
	}
	return 0
}

// field is one key of a mapping and what reads its value.
type field struct {
	name string
	read func(n *yaml.Node, field string)
}

// mapping reads the values of n by their keys. Unknown and repeated keys are
// faults. path is what stands before the names of the fields, such as "log.".
func (p *parser) mapping(n *yaml.Node, path string, fields []field) {
	names := make([]string, len(fields))
	for i, f := range fields {
		names[i] = f.name
	}
	lines := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			p.fault(key, strings.TrimSuffix(path, "."), "a key that is "+describe(key), "one of "+strings.Join(names, ", "))
			continue
		}
		name := path + key.Value
		if first, ok := lines[key.Value]; ok {
			p.fault(key, name, fmt.Sprintf("stands in line %d already", first), "each key once")
			continue
		}
		lines[key.Value] = key.Line
		j := slices.IndexFunc(fields, func(f field) bool { return f.name == key.Value })
		if j < 0 {
			p.unknown(key, name, names)
			continue
		}
		fields[j].read(value, name)
	}
}

// unknown notes a key that no field has.
func (p *parser) unknown(key *yaml.Node, name string, names []string) {
	want := "one of " + strings.Join(names, ", ")
	if near := nearest(key.Value, names); near != "" {
		want = near
	}
	p.fault(key, name, "unknown key", want)
}

// list calls read for every item of the list n.
func (p *parser) list(n *yaml.Node, name, want string, read func(item *yaml.Node, name string)) {
	if n.Kind != yaml.SequenceNode {
		p.fault(n, name, describe(n), want)
		return
	}
	for i, item := range n.Content {
		read(item, fmt.Sprintf("%s[%d]", name, i))
	}
}

// scalar returns the text of n, or notes that it is not a single value.
func (p *parser) scalar(n *yaml.Node, name, want string) (string, bool) {
	if n.Kind != yaml.ScalarNode || isNull(n) || n.Value == "" {
		p.fault(n, name, describe(n), want)
		return "", false
	}
	return n.Value, true
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe says what n is, for an error.
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

// short bounds what of a value is repeated in an error.
func short(s string) string {
	const most = 60
	if r := []rune(s); len(r) > most {
		return string(r[:most]) + "…"
	}
	return s
}
