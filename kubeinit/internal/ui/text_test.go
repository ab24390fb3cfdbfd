package ui

import (
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// FuzzOutput has a hostile host write, and looks for what moves a cursor.
func FuzzOutput(f *testing.F) {
	f.Add("plain")
	f.Add("\x1b[2J\x1b]0;title\x07\r\n\u202eabc\u009b31m")
	f.Add("-----BEGIN PRIVATE KEY-----")
	f.Add("\xff\xfe")
	f.Fuzz(func(t *testing.T, text string) {
		e := phase.Event{Time: time.Unix(0, 0), Host: "a", Phase: phase.Join, Step: "join/a/x", Kind: phase.Line, Text: text}
		line := logLine(newMask(nil).event(e))
		e.Kind, e.Changes = phase.Done, []phase.Change{{What: text, To: text}}
		plan := planText(phase.Plan{Steps: []phase.PlanStep{{ID: "join/a/x", Host: "a", Action: text, Changes: e.Changes}}}, false)
		result := resultText(phase.Result{Failures: []phase.Failure{{Step: text, Error: text, Tail: []string{text}, Hint: text}}}, false)
		for _, shown := range []string{line, logLine(e), strings.ReplaceAll(plan, "\n", ""), strings.ReplaceAll(result, "\n", ""), cut(line, 10)} {
			if i := strings.IndexFunc(shown, func(r rune) bool { return !unicode.IsPrint(r) }); i >= 0 {
				t.Errorf("%q is shown at %d of %q", shown[i], i, shown)
			}
		}
	})
}
