package host

import (
	"errors"
	"io/fs"
	"strconv"
	"strings"
	"testing"
)

func FuzzStream(f *testing.F) {
	f.Add([]byte("noise\nmark 12\nout\nlast"), 3, 10)
	f.Add([]byte("mark 1\n\r\n\xff\n"), 1, 0)
	f.Add([]byte("mark"), 2, 5)
	f.Add([]byte(strings.Repeat("x", 70_000)), 1000, 100)
	f.Fuzz(func(t *testing.T, b []byte, step, limit int) {
		if step <= 0 || limit < 0 {
			return
		}
		var lines []string
		c := newCollector(func(line string) { lines = append(lines, line) })
		s := c.stream("mark", limit)
		for rest := b; len(rest) > 0; {
			n := min(step, len(rest))
			if _, err := s.Write(rest[:n]); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		text, began := s.end()
		_, after, found := strings.Cut(string(b), "mark ")
		_, want, ended := strings.Cut(after, "\n")
		if began != (found && ended) {
			t.Fatalf("began %v with %q", began, b)
		}
		if limit == 0 {
			limit = defaultLimit
		}
		if began && text != want[:min(len(want), limit)] {
			t.Errorf("kept %q of %q", text, want)
		}
		if len(text) > limit || len(c.tail) > tailLines {
			t.Errorf("kept %d bytes and %d lines", len(text), len(c.tail))
		}
		for _, l := range lines {
			if strings.Contains(l, "\n") || len(l) > 3*(maxLine+step) {
				t.Errorf("line of %d bytes", len(l))
			}
		}
	})
}

func FuzzParseStat(f *testing.F) {
	f.Add("81a4 12 0 0\n")
	f.Add("a1ff 6 0 0\ntarget\nwith line")
	f.Add("81a4 -1 0 0\n")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		info, err := parseStat(text)
		if err == nil && (info.Size < 0 || info.UID < 0 || info.GID < 0) {
			t.Errorf("%q gave %+v", text, info)
		}
	})
}

func TestModesOfTheKernelAreUnderstood(t *testing.T) {
	for raw, want := range map[uint32]fs.FileMode{
		0o100644: 0o644, 0o104755: fs.ModeSetuid | 0o755, 0o041777: fs.ModeDir | fs.ModeSticky | 0o777, 0o120777: fs.ModeSymlink | 0o777,
		0o140755: fs.ModeSocket | 0o755, 0o010600: fs.ModeNamedPipe | 0o600, 0o060660: fs.ModeDevice | 0o660, 0o020666: fs.ModeDevice | fs.ModeCharDevice | 0o666,
	} {
		got := fileMode(raw)
		if got != want {
			t.Errorf("mode %o is %v, want %v", raw, got, want)
		}
		if want.IsRegular() && octal(want) != "0"+strconv.FormatUint(uint64(raw&0o7777), 8) && octal(want) != strconv.FormatUint(uint64(raw&0o7777), 8) {
			t.Errorf("octal(%v) = %s", want, octal(want))
		}
	}
}

func TestFakeBreaksOnDemand(t *testing.T) {
	f := NewFake("h")
	f.Break(func(op, what string) error {
		if op == "read" && what == "/etc/x" {
			return ErrLost
		}
		return nil
	})
	if _, err := f.ReadFile(t.Context(), "/etc/x"); !errors.Is(err, ErrLost) {
		t.Errorf("error %v, want ErrLost", err)
	}
	if _, err := f.ReadFile(t.Context(), "/etc/y"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
	f.Break(nil)
	if _, err := f.ReadFile(t.Context(), "/etc/x"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
}

func TestFakePatterns(t *testing.T) {
	for _, tt := range []struct {
		pattern, text string
		want          bool
	}{
		{"a b", "a b", true}, {"a b", "a b c", false}, {"a *", "a b c", true}, {"*c", "a b c", true}, {"a*b*c", "a b c", true}, {"a*d*c", "a b c", false}, {"ab*ba", "aba", false}, {"*", "", true},
	} {
		if got := matches(tt.pattern, tt.text); got != tt.want {
			t.Errorf("matches(%q, %q) = %v", tt.pattern, tt.text, got)
		}
	}
}
