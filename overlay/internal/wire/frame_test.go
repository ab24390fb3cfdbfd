package wire

import (
	"bytes"
	"errors"
	"io"
	"runtime"
	"testing"
	"testing/iotest"
)

func TestFrameComesBack(t *testing.T) {
	var b bytes.Buffer
	for _, message := range []string{"one", "", "three"} {
		if err := WriteFrame(&b, []byte(message)); err != nil {
			t.Fatal(err)
		}
	}
	if want := "\x00\x00\x00\x03one\x00\x00\x00\x00\x00\x00\x00\x05three"; b.String() != want {
		t.Errorf("got %q, want %q", b.String(), want)
	}
	r := iotest.OneByteReader(&b)
	for _, want := range []string{"one", "", "three"} {
		if got, err := ReadFrame(r, 5); err != nil || string(got) != want {
			t.Errorf("got %q, %v, want %q", got, err, want)
		}
	}
	if _, err := ReadFrame(r, 5); err != io.EOF {
		t.Errorf("at the end: got %v, want %v", err, io.EOF)
	}
}

func TestReadFrameRefuses(t *testing.T) {
	for name, row := range map[string]struct {
		b    string
		want error
	}{
		"half a length":     {"\x00\x00", io.ErrUnexpectedEOF},
		"cut short":         {"\x00\x00\x00\x03ab", io.ErrUnexpectedEOF},
		"over the limit":    {"\x00\x00\x00\x05abcde", ErrFormat},
		"a length of 2^32":  {"\xff\xff\xff\xff", ErrFormat},
		"promised and gone": {"\x00\x00\x00\x04", io.ErrUnexpectedEOF},
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := ReadFrame(bytes.NewReader([]byte(row.b)), 4); !errors.Is(err, row.want) {
				t.Errorf("got %q, %v, want %v", got, err, row.want)
			}
		})
	}
	broken := errors.New("broken")
	if _, err := ReadFrame(io.MultiReader(bytes.NewReader([]byte{0, 0, 0, 4, 1}), iotest.ErrReader(broken)), 4); err != broken {
		t.Errorf("got %v, want %v", err, broken)
	}
}

// TestReadFrameTakesMemoryAsItArrives promises much and sends nothing.
func TestReadFrameTakesMemoryAsItArrives(t *testing.T) {
	head := []byte{0x10, 0, 0, 0} // 256 MiB
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := ReadFrame(bytes.NewReader(head), 1<<30); err != io.ErrUnexpectedEOF {
		t.Errorf("got %v, want %v", err, io.ErrUnexpectedEOF)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > 1<<20 {
		t.Errorf("%d bytes for a message of which nothing came", n)
	}
}

func FuzzReadFrame(f *testing.F) {
	f.Add([]byte("\x00\x00\x00\x03abc"))
	f.Add([]byte("\xff\xff\xff\xffabc"))
	f.Add([]byte("\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		message, err := ReadFrame(bytes.NewReader(b), 64)
		if err != nil {
			return
		}
		var again bytes.Buffer
		if err := WriteFrame(&again, message); err != nil || len(message) > 64 || !bytes.HasPrefix(b, again.Bytes()) {
			t.Fatalf("%x reads as %x", b, message)
		}
	})
}
