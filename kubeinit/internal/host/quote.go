package host

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
)

// Quote writes words so that a POSIX shell reads exactly these words, whatever
// is in them. A shell's word cannot hold the byte 0; Quote leaves it in, and
// commands that have one are refused before.
func Quote(words ...string) string {
	var b strings.Builder
	for i, w := range words {
		if i > 0 {
			b.WriteByte(' ')
		}
		if plain.MatchString(w) {
			b.WriteString(w)
			continue
		}
		b.WriteString("'" + strings.ReplaceAll(w, "'", `'\''`) + "'")
	}
	return b.String()
}

// plain are words that mean themselves to every shell, so that what is logged
// is easy to read. A "=" is not among them: it can begin an assignment.
var plain = regexp.MustCompile(`^[A-Za-z0-9_./:@%,-]+$`)

// maxCommand is the length of the longest command line in bytes. A server hands
// it to the shell as one argument, and Linux takes no longer one than 128 KiB
// (MAX_ARG_STRLEN).
const maxCommand = 128<<10 - 1

var envForm = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*=`)

// check refuses commands that no host could run as they are meant.
func (c Command) check() error {
	if len(c.Args) == 0 || c.Args[0] == "" {
		return errors.New("a command without a program")
	}
	if strings.HasPrefix(c.Args[0], "-") {
		return fmt.Errorf("program %q: want a name that does not begin with \"-\"", c.Args[0])
	}
	for _, a := range c.Args {
		if strings.ContainsRune(a, 0) {
			return fmt.Errorf("argument %q: want no byte 0", a)
		}
	}
	for _, e := range c.Env {
		if !envForm.MatchString(e) || strings.ContainsRune(e, 0) {
			return fmt.Errorf("environment %q: want KEY=value without a byte 0", e)
		}
	}
	return nil
}

// preamble begins every command on a host. It says, on both outputs and behind a
// word that nobody else uses, that the command begins now, and which process
// group has to be ended to end it. What came before, such as greetings of the
// user's start-up files, is not the command's.
const preamble = `read -r _ _ _ _ g _ </proc/$$/stat
printf '%s %s\n' "$1" "${g:-$$}"
printf '%s %s\n' "$1" "${g:-$$}" >&2
shift
PATH=$PATH:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C
export PATH LC_ALL
`

// line is the command line that a server gets for c. mark is the word of the
// preamble.
func (c Command) line(mark string, sudo bool) (string, error) {
	if err := c.check(); err != nil {
		return "", err
	}
	var b strings.Builder
	b.WriteString(preamble)
	for _, e := range c.Env {
		key, value, _ := strings.Cut(e, "=")
		b.WriteString("export " + key + "=" + Quote(value) + "\n")
	}
	b.WriteString(`exec "$@"`)
	words := append([]string{"sh", "-c", b.String(), "sh", mark}, c.Args...)
	if sudo {
		words = append([]string{"sudo", "-n", "--"}, words...)
	}
	text := "exec " + Quote(words...)
	if len(text) > maxCommand {
		return "", fmt.Errorf("a command of %d bytes: want at most %d; what is long goes through standard input", len(text), maxCommand)
	}
	return text, nil
}
