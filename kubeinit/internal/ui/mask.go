package ui

import (
	"regexp"
	"strings"
	"unicode"

	"github.com/planetmesh/planetmesh/kubeinit/internal/phase"
)

// mask hides secrets in what is shown. It is for one goroutine at a time.
type mask struct {
	known *strings.Replacer
	inKey map[string]bool // steps that are writing a private key, line by line
}

// masked stands for a secret.
const masked = "(secret)"

// shortest secret that is looked for.
const shortest = 6

// patterns find secrets of kubeadm wherever they come from: bootstrap tokens (6 and
// 16 characters of the base 36), certificate keys (64 hexadecimal digits after
// their option) and what stands in PEM files. The first group, if any, stays.
var patterns = []*regexp.Regexp{
	regexp.MustCompile(`()\b[a-z0-9]{6}\.[a-z0-9]{16}\b`),
	regexp.MustCompile(`(?i)(certificate-?key["']?[ :=]+["']?)[0-9a-f]{64}\b`),
	regexp.MustCompile(`(?s)(-----BEGIN [A-Z ]*PRIVATE KEY-----).*?(?:-----END [A-Z ]*PRIVATE KEY-----|$)`),
	regexp.MustCompile(`((?:client-key-data|token|password)["']?[:=] *["']?)[A-Za-z0-9+/=._-]{16,}`),
}

// keyBegin and keyEnd are the first and the last line of a private key.
var (
	keyBegin = regexp.MustCompile(`-----BEGIN [A-Z ]*PRIVATE KEY-----`)
	keyEnd   = regexp.MustCompile(`-----END [A-Z ]*PRIVATE KEY-----`)
)

func newMask(secrets []string) *mask {
	var pairs []string
	for _, s := range secrets {
		if len(s) >= shortest {
			pairs = append(pairs, s, masked)
		}
	}
	return &mask{known: strings.NewReplacer(pairs...), inKey: map[string]bool{}}
}

func (m *mask) text(s string) string {
	s = m.known.Replace(s)
	for _, p := range patterns {
		s = p.ReplaceAllString(s, "${1}"+masked)
	}
	return s
}

func (m *mask) changes(in []phase.Change) []phase.Change {
	var out []phase.Change
	for _, c := range in {
		out = append(out, phase.Change{What: m.text(c.What), From: m.text(c.From), To: m.text(c.To)})
	}
	return out
}

func (m *mask) event(e phase.Event) phase.Event {
	within := m.inKey[e.Step] && e.Kind == phase.Line
	m.inKey[e.Step] = (within || keyBegin.MatchString(e.Text)) && !keyEnd.MatchString(e.Text)
	if within {
		e.Text = masked
	}
	e.Text = m.text(e.Text)
	e.Changes = m.changes(e.Changes)
	return e
}

func (m *mask) plan(p phase.Plan) phase.Plan {
	steps := make([]phase.PlanStep, len(p.Steps))
	for i, s := range p.Steps {
		s.Action, s.Changes = m.text(s.Action), m.changes(s.Changes)
		steps[i] = s
	}
	return phase.Plan{Steps: steps}
}

func (m *mask) result(r phase.Result) phase.Result {
	steps := make([]phase.StepResult, len(r.Steps))
	for i, s := range r.Steps {
		s.Action, s.Reason, s.Changes = m.text(s.Action), m.text(s.Reason), m.changes(s.Changes)
		steps[i] = s
	}
	failures := make([]phase.Failure, len(r.Failures))
	for i, f := range r.Failures {
		f.Error, f.Command, f.Hint = m.text(f.Error), m.text(f.Command), m.text(f.Hint)
		f.Tail, f.NotUndone = m.lines(f.Tail), m.lines(f.NotUndone)
		failures[i] = f
	}
	r.Steps, r.Failures = steps, failures
	return r
}

// lines masks lines one by one, but a private key over several of them.
func (m *mask) lines(in []string) []string {
	if len(in) == 0 {
		return nil
	}
	return strings.Split(m.text(strings.Join(in, "\n")), "\n")
}

// harmless replaces what would move the cursor or change the terminal. Lines that
// follow each other stand on one.
func harmless(s string) string {
	return strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case !unicode.IsPrint(r):
			return '·'
		}
		return r
	}, strings.TrimRight(s, "\r\n"))
}
