//go:build openvpn || openvpnversions

package openvpn

import (
	"cmp"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
)

// tableEnv names the file whose table a run replaces, if all its tests passed.
const tableEnv = "OPENVPN_TABLE"

// tableLine is what one test found out about one row of the matrix.
type tableLine struct {
	id, what, version, role, transport string

	mu         sync.Mutex
	result     string // guarded by mu
	sent, back int    // guarded by mu: pings
	notes      []string
}

// table collects the lines of a run.
type table struct {
	mu    sync.Mutex
	lines []*tableLine // guarded by mu
}

var theTable table

// record gives the test of this lab a line; what depends on the configuration is
// asked for at the end.
func (l *lab) record(id, what string, facts func() (role, transport string)) {
	line := &tableLine{id: id, what: what, version: l.bin.version, result: "up"}
	l.line = line
	l.t.Cleanup(func() {
		if l.t.Failed() {
			line.result = "**failed**"
		}
		line.role, line.transport = facts()
		theTable.mu.Lock()
		defer theTable.mu.Unlock()
		theTable.lines = append(theTable.lines, line)
	})
}

// result is what the row ended with, if not with a connection that is up.
func (l *lab) result(text string) {
	l.line.mu.Lock()
	defer l.line.mu.Unlock()
	l.line.result = text
}

// note adds a remark to the line.
func (l *lab) note(format string, args ...any) {
	if l.line == nil {
		return
	}
	l.line.mu.Lock()
	defer l.line.mu.Unlock()
	l.line.notes = append(l.line.notes, fmt.Sprintf(format, args...))
}

// counted adds pings to the line.
func (l *lab) counted(sent, back int) {
	if l.line == nil {
		return
	}
	l.line.mu.Lock()
	defer l.line.mu.Unlock()
	l.line.sent, l.line.back = l.line.sent+sent, l.line.back+back
}

// cells are the columns of the line.
func (l *tableLine) cells() []string {
	lost := "–"
	if l.sent > 0 {
		lost = fmt.Sprintf("%d of %d", l.sent-l.back, l.sent)
	}
	return []string{l.id, l.what, l.version, l.role, l.transport, l.result, lost, strings.Join(l.notes, "; ")}
}

// save puts the lines of the run between the marks of its section.
func (t *table) save(path string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	slices.SortStableFunc(t.lines, func(a, b *tableLine) int {
		return cmp.Or(compareIDs(a.id, b.id), strings.Compare(a.what, b.what), strings.Compare(a.version, b.version),
			strings.Compare(a.transport, b.transport), strings.Compare(a.role, b.role))
	})
	var b strings.Builder
	b.WriteString("\n| Row | Configured | openvpn | Our side | Our transport | Result | Pings lost | Notes |\n|---|---|---|---|---|---|---|---|\n")
	for _, l := range t.lines {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(l.cells(), " | "))
	}
	b.WriteString("\n")
	old, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	begin, end := "<!-- begin "+tableSection+" -->\n", "<!-- end "+tableSection+" -->\n"
	before, rest, ok := strings.Cut(string(old), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no marks of section %s", path, tableSection)
	}
	return os.WriteFile(path, []byte(before+begin+b.String()+end+after), 0o644)
}

// compareIDs sorts S2 before S10.
func compareIDs(a, b string) int {
	return cmp.Or(strings.Compare(a[:1], b[:1]), cmp.Compare(len(strings.Fields(a)[0]), len(strings.Fields(b)[0])), strings.Compare(a, b))
}
