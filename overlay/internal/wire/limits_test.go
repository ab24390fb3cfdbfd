package wire

import (
	"bytes"
	"testing"
	"time"
)

func TestLargestValuesComeBack(t *testing.T) {
	longest := bytes.Repeat([]byte{7}, 0xffff)
	last := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)
	var w Writer
	w.Time(1, last)
	w.Field(0x7fff, longest)
	body, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader(body)
	if got := r.Time(1); !got.Equal(last) {
		t.Errorf("got %v, want %v", got, last)
	}
	if got := r.Field(0x7fff); !bytes.Equal(got, longest) {
		t.Errorf("got %d bytes, want %d", len(got), len(longest))
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}
