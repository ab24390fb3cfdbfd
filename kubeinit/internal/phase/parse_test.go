package phase

import (
	"strings"
	"testing"
	"time"
)

func FuzzParseLock(f *testing.F) {
	f.Add("5 60 TOKEN 2026-11-23T02:00:00Z alice@laptop pid 7\n")
	f.Add("-5 x")
	f.Add("99999999999999999999 60 a b c")
	f.Add("")
	f.Fuzz(func(t *testing.T, text string) {
		e := parseLock("a", text)
		if (e == nil) != (len(strings.Fields(text)) == 0) {
			t.Fatalf("%q became %v", text, e)
		}
		if e != nil && (e.Holder == "" || e.Since == "" || e.Age > 1<<32*time.Second || e.Lease > 1<<32*time.Second) {
			t.Errorf("%q became %+v", text, e)
		}
	})
}
