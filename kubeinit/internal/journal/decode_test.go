package journal

import (
	"testing"
)

func FuzzDecode(f *testing.F) {
	f.Add([]byte(`{"seq":1,"kind":"intent","step":"one"}` + "\n" + `{"seq":1,"kind":"done"}` + "\n"))
	f.Add([]byte(`{"seq":1,"kind":"intent"}` + "\n" + `{"seq":1,"kind":"before","before":{"type":"file","name":"/etc/x","copy":"1-0","made":["/etc"]}}` + "\n"))
	f.Add([]byte(`{"seq":1,"kind":"intent"}` + "\n" + `{"seq":`))
	f.Add([]byte(`{"seq":` + "\n" + `{"seq":9,"kind":"intent","torn":true}`))
	f.Add([]byte("\n\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		entries, torn, err := decode(data)
		if err != nil {
			return
		}
		if !torn && len(data) > 0 && data[len(data)-1] != '\n' {
			t.Error("a last line without its newline is not called torn")
		}
		before, foldErr := fold(entries)
		again, err := encode(entries)
		if err != nil {
			t.Fatal(err)
		}
		entries, torn, err = decode(again)
		if err != nil || torn {
			t.Fatalf("what was read and written cannot be read: %v, torn %v\n%s", err, torn, again)
		}
		after, err := fold(entries)
		if (err == nil) != (foldErr == nil) || len(before) != len(after) {
			t.Errorf("%d deeds (%v) became %d (%v)", len(before), foldErr, len(after), err)
		}
		for _, d := range before {
			for _, b := range d.Before {
				if b.check() != nil {
					t.Errorf("deed %d has %+v", d.Seq, b)
				}
			}
		}
	})
}

func FuzzBlock(f *testing.F) {
	f.Add("127.0.0.1 localhost\n", "endpoint", "127.0.0.1 api.x\n")
	f.Add("no newline", "m", "x")
	f.Add(Block("m", "old"), "m", "")
	f.Add("a\n"+blockBegin("m")+"x\n", "m", "y")
	f.Fuzz(func(t *testing.T, text, mark, lines string) {
		block := Block(mark, lines)
		with, glued := PutBlock(text, mark, block)
		if FindBlock(block, mark) != block {
			return // lines hold a mark; actions refuse those
		}
		if got := FindBlock(with, mark); got != block {
			t.Fatalf("found %q instead of %q in %q", got, block, with)
		}
		old := FindBlock(text, mark)
		back, _ := PutBlock(with, mark, old)
		if glued {
			back = back[:len(back)-1]
		}
		if old != "" || mark == "" {
			return // an old block may be without its last newline
		}
		if back != text {
			t.Errorf("%q became %q and then %q", text, with, back)
		}
	})
}
