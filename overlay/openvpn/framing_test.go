package openvpn

import (
	"bytes"
	"testing"
)

func TestFramingsSurviveARoundTrip(t *testing.T) {
	for f := range framingCount {
		for _, body := range [][]byte{{}, {1}, {0x50, 2, 3}, {0xfa}, bytes.Repeat([]byte{0x45, 7}, 700)} {
			p := plaintext{body: body}
			f.frame(&p)
			framed := p.appendTo(nil)
			if len(framed) != p.size() {
				t.Errorf("%s: size %d, got %d bytes", f, p.size(), len(framed))
			}
			got, err := f.unframe(framed, make([]byte, 0, 1600))
			if err != nil || !bytes.Equal(got, body) {
				t.Errorf("%s: %x came back as %x, %v", f, body, got, err)
			}
		}
	}
}

func TestFramingRefusesTheOtherKinds(t *testing.T) {
	for _, row := range []struct {
		f Framing
		p []byte
	}{
		{FramingLZO, []byte{framePlainSwp, 1, 2}},
		{FramingLZO, []byte{0x45, 0, 0}},
		{FramingStub, []byte{framePlain, 1, 2}},
		{FramingStub, []byte{frameLZO, 0x11, 0, 0}},
		{FramingLZ4, []byte{frameLZO, 0x11, 0, 0}},
		{FramingStubV2, []byte{frameV2, frameV2LZ4, 0x10, 1}},
		{FramingStubV2, []byte{frameV2}},
		{FramingLZ4V2, []byte{frameV2, 7, 1}},
	} {
		if got, err := row.f.unframe(row.p, make([]byte, 0, 100)); err != ReasonCompress {
			t.Errorf("%s: %x gave %x, %v", row.f, row.p, got, err)
		}
	}
}

// The blocks were made by hand from the instruction table, one per instruction.
func TestLZOInstructions(t *testing.T) {
	long := bytes.Repeat([]byte{'x'}, 300)
	for name, row := range map[string]struct {
		src  []byte
		want []byte
	}{
		"empty":                {[]byte{0x11, 0, 0}, nil},
		"first literals":       {[]byte{17 + 3, 'a', 'b', 'c', 0x11, 0, 0}, []byte("abc")},
		"long first literals":  {append(append([]byte{17 + 238}, long[:238]...), 0x11, 0, 0), long[:238]},
		"run":                  {[]byte{1, 'a', 'b', 'c', 'd', 0x11, 0, 0}, []byte("abcd")},
		"extended run":         {append(append([]byte{0, 0, 300 - 18 - 255}, long...), 0x11, 0, 0), long},
		"match 1LL":            {[]byte{1, 'a', 'b', 'c', 'd', 0x80 | 3<<2 | 1, 0, 'z', 0x11, 0, 0}, []byte("abcdabcdaz")},
		"match 01L":            {[]byte{1, 'a', 'b', 'c', 'd', 0x40 | 1<<5 | 0<<2, 0, 0x11, 0, 0}, []byte("abcddddd")},
		"match 001":            {[]byte{1, 'a', 'b', 'c', 'd', 0x20 | 4, 3<<2 | 2, 0, 'y', 'z', 0x11, 0, 0}, []byte("abcdabcdabyz")},
		"extended match":       {[]byte{1, 'a', 'b', 'c', 'd', 0x20, 20, 0, 0, 0x11, 0, 0}, append([]byte("abcd"), bytes.Repeat([]byte{'d'}, 53)...)},
		"two after a literal":  {[]byte{17 + 2, 'a', 'b', 1 << 2, 0, 0x11, 0, 0}, []byte("abab")},
		"three after literals": {append(append(append([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 1}, bytes.Repeat([]byte{'q'}, 18+7*255+1)...), bytes.Repeat([]byte{'q'}, 0)...), 0, 0, 0x11, 0, 0), nil},
	} {
		got, err := lzoDecompress(make([]byte, 0, 1600), row.src)
		if name == "three after literals" {
			// 1804 bytes do not fit into 1600.
			if err != ReasonCompress {
				t.Errorf("%s: %d bytes accepted", name, len(got))
			}
			got, err = lzoDecompress(make([]byte, 0, 4000), row.src)
			// A run of 1804 is too short for distance 2049.
			if err != ReasonCompress {
				t.Errorf("%s: distance beyond the start gave %d bytes", name, len(got))
			}
			continue
		}
		if err != nil || !bytes.Equal(got, row.want) {
			t.Errorf("%s: got %q, %v; want %q", name, got, err, row.want)
		}
	}
}

func TestLZOFarMatches(t *testing.T) {
	// 20,000 different enough bytes as one run, then a far match.
	run := make([]byte, 20000)
	for i := range run {
		run[i] = byte(i ^ i>>8)
	}
	rest := len(run) - 18
	src := []byte{0}
	for ; rest > 255; rest -= 255 {
		src = append(src, 0)
	}
	src = append(append(src, byte(rest)), run...)
	far := append(bytes.Clone(src), 0x10|3, byte(9<<2), 0, 0x11, 0, 0)        // 5 bytes, distance 16384+9
	near := append(bytes.Clone(src), 1<<2|2, 5, 'y', 'z', 0x11, 0, 0)         // 3 bytes, distance 2049+1+20, after a run
	overlong := append(bytes.Clone(src), 0x10|8|3, 0xff, 0xff, 0x11, 0, 0, 0) // distance 49151
	got, err := lzoDecompress(make([]byte, 0, 20100), far)
	if want := append(bytes.Clone(run), run[20000-16393:][:5]...); err != nil || !bytes.Equal(got, want) {
		t.Errorf("far match: %d bytes, %v", len(got), err)
	}
	got, err = lzoDecompress(make([]byte, 0, 20100), near)
	if want := append(append(bytes.Clone(run), run[20000-2070:][:3]...), 'y', 'z'); err != nil || !bytes.Equal(got, want) {
		t.Errorf("near match: %d bytes, %v", len(got), err)
	}
	if _, err := lzoDecompress(make([]byte, 0, 20100), overlong); err != ReasonCompress {
		t.Errorf("distance before the start: %v", err)
	}
}

func TestDamagedCompressionIsRefused(t *testing.T) {
	for name, src := range map[string][]byte{
		"nothing": nil, "no end": {18, 'a'}, "trailing": {18, 'a', 0x11, 0, 0, 0}, "early match": {0x40, 0},
		"endless length": bytes.Repeat([]byte{0}, 50), "literals beyond the end": {200, 'a'},
	} {
		if got, err := lzoDecompress(make([]byte, 0, 100), src); err != ReasonCompress {
			t.Errorf("lzo %s: %x, %v", name, got, err)
		}
	}
	for name, src := range map[string][]byte{
		"nothing": nil, "distance zero": {0x10, 'a', 0, 0}, "distance beyond": {0x10, 'a', 2, 0},
		"ends in a match": {0x10, 'a', 1, 0}, "ends in a length": {0xf0, 255, 255}, "too large": {0x1f, 'a', 1, 0, 255, 255, 0, 0x10, 'b'},
	} {
		if got, err := lz4Decompress(make([]byte, 0, 100), src); err != ReasonCompress {
			t.Errorf("lz4 %s: %x, %v", name, got, err)
		}
	}
}

func FuzzUnframe(f *testing.F) {
	var v framingVectors
	mustVectors(f, "framing.json", &v)
	for _, row := range v.Vectors {
		f.Add(uint8(framingOf(row.Options)), []byte(row.Payload))
	}
	f.Fuzz(func(t *testing.T, kind uint8, payload []byte) {
		const limit = 1600
		framing := Framing(kind) % framingCount
		got, err := framing.unframe(bytes.Clone(payload), make([]byte, 0, limit))
		if err != nil && err != ReasonCompress {
			t.Errorf("error %v", err)
		}
		if len(got) > max(limit, len(payload)) {
			t.Errorf("%d bytes", len(got))
		}
	})
}
