package trust

import (
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

func newIntroduction(t testing.TB) Introduction {
	t.Helper()
	w := newWorld(t)
	return Introduction{
		Record: []byte("a record: not looked at here"),
		Boot:   BootID{1, 2},
		Epochs: [][]byte{w.epoch(t, 1), w.epoch(t, 2)},
		Revocations: [][]byte{
			w.revoke(t, Revocation{Kind: RevokeSerial, Target: make([]byte, 16)}, w.authority),
			w.revoke(t, Revocation{Kind: RevokeIdentity, Target: make([]byte, 32)}, w.authority),
		},
	}
}

func TestIntroductionComesBack(t *testing.T) {
	full := newIntroduction(t)
	for name, want := range map[string]Introduction{
		"full":  full,
		"short": {Record: full.Record, Boot: full.Boot},
	} {
		raw, err := want.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := DecodeIntroduction(raw)
		if err != nil {
			t.Fatal(err)
		}
		clear(raw)
		if diff := cmp.Diff(&want, got); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
}

func TestIntroductionIsRefused(t *testing.T) {
	w := newWorld(t)
	raw, err := newIntroduction(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	good := fieldsOf(raw)
	for name, fields := range map[string][]field{
		"no record":                  with(good, 0x8001, nil),
		"no boot ID":                 with(good, 0x8002, nil),
		"boot ID of zeros":           with(good, 0x8002, make([]byte, 16)),
		"short boot ID":              with(good, 0x8002, []byte{1}),
		"revocations as epochs":      with(good, 0x8003, good[3].value),
		"epochs as revocations":      with(good, 0x8004, good[2].value),
		"revocation cut short":       with(good, 0x8004, good[3].value[:len(good[3].value)-1]),
		"a genesis among the epochs": with(good, 0x8003, append(w.root.Genesis.Raw(), good[2].value...)),
		"unknown critical field":     with(good, 0x8005, []byte{1}),
	} {
		if in, err := DecodeIntroduction(object(t, wire.Introduction, MeshID{}, fields)); !errors.Is(err, ErrFormat) || in != nil {
			t.Errorf("%s: got %v, %v, want %v", name, in, err, ErrFormat)
		}
	}
	if _, err := DecodeIntroduction(make([]byte, 16<<10+1)); !errors.Is(err, ErrFormat) {
		t.Errorf("oversized: got %v", err)
	}
	if _, err := (Introduction{Record: make([]byte, 16<<10), Boot: BootID{1}}).Encode(); !errors.Is(err, ErrFormat) {
		t.Errorf("oversized: encoded, %v", err)
	}
}

func FuzzDecodeIntroduction(f *testing.F) {
	raw, err := newIntroduction(f).Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(raw)
	f.Add(raw[:100])
	f.Fuzz(func(t *testing.T, raw []byte) {
		in, err := DecodeIntroduction(raw)
		if err != nil {
			return
		}
		again, err := in.Encode()
		if err != nil {
			t.Fatal(err)
		}
		mustBeCanonical(t, raw, again)
	})
}
