package host

import (
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// shells that are on the machine of the test; sh is always there.
func shells(t testing.TB) [][]string {
	t.Helper()
	out := [][]string{{"sh"}}
	for _, s := range [][]string{{"bash"}, {"dash"}, {"busybox", "sh"}, {"bash", "--posix"}} {
		if _, err := exec.LookPath(s[0]); err == nil {
			out = append(out, s)
		}
	}
	return out
}

// read returns the words that a shell reads, each followed by a byte 0.
func read(t testing.TB, shell []string, text string) string {
	t.Helper()
	args := append(slices.Clone(shell[1:]), "-c", `printf '%s\0' `+text)
	out, err := exec.Command(shell[0], args...).Output()
	if err != nil {
		t.Fatalf("%v: %v: %q", shell, err, text)
	}
	return string(out)
}

func TestShellsReadQuotedWordsAsTheyAre(t *testing.T) {
	words := []string{
		"plain", "", " ", "a b", "'", "''", `'\''`, `\`, `a\`, `"`, "$HOME", "${x}", "$(id)", "`id`", "!x", "~", "~root", "*", "?", "[a]", "{a,b}",
		"a=b", "-n", "--", "#x", ";", "&", "|", "<", ">", "(", "\n", "a\nb\n", "\t", "\r", "\x01\x7f\xff\xfe", "ümläut", "if", "%s%n", "a,b:c@d/e.f",
	}
	r := rand.New(rand.NewPCG(1, 2))
	const hard = "'\"\\$`!*?[]{}()<>|&;#~= \t\n\r-a1é"
	for range 300 {
		var w []rune
		for range r.IntN(12) {
			w = append(w, []rune(hard)[r.IntN(len([]rune(hard)))])
		}
		words = append(words, string(w))
	}
	want := strings.Join(words, "\x00") + "\x00"
	for _, shell := range shells(t) {
		if got := read(t, shell, Quote(words...)); got != want {
			t.Errorf("%v read %q, want %q", shell, got, want)
		}
	}
}

func TestPlainWordsStayReadable(t *testing.T) {
	if got, want := Quote("kubeadm", "init", "--config", "/etc/kubeinit/init.yaml", "it's"), `kubeadm init --config /etc/kubeinit/init.yaml 'it'\''s'`; got != want {
		t.Errorf("%s, want %s", got, want)
	}
}

// Words pass two shells: that of the login, and the one that begins the command.
func FuzzCommandLine(f *testing.F) {
	f.Add("a", "b c", "v")
	f.Add("'", `\'"`, "$x\n")
	f.Add("-n", "--", "'\\''")
	f.Add("\xff", "`id`", "!\r\n")
	f.Fuzz(func(t *testing.T, a, b, v string) {
		c := Command{Args: []string{"sh", "-c", `printf '%s\0' "$1" "$2" "$V"`, "sh", a, b}, Env: []string{"V=" + v}}
		line, err := c.line("mark", false)
		if strings.ContainsRune(a+b+v, 0) || len(line) > maxCommand {
			if err == nil {
				t.Fatal("accepted a byte 0 or a long line")
			}
			return
		}
		if err != nil {
			return // too long
		}
		out, err := exec.Command("sh", "-c", line).Output()
		if err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		_, got, _ := strings.Cut(string(out), "\n")
		if want := a + "\x00" + b + "\x00" + v + "\x00"; got != want {
			t.Errorf("the command got %q, want %q", got, want)
		}
	})
}
