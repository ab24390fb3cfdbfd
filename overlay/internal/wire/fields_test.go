package wire

import (
	"bytes"
	"encoding/hex"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func mustHex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestWriterWritesFieldsAsDrawn(t *testing.T) {
	var w Writer
	w.Name(1, "ab")
	w.Uint8(2, 7)
	w.Uint32(3, 0x01020304)
	w.Uint64(4, 5)
	w.Time(5, time.Unix(6, 999).UTC())
	w.Optional(12, []byte("x"))
	got, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	want := mustHex(t, "8001 0002 6162  8002 0001 07  8003 0004 01020304  8004 0008 0000000000000005  8005 0008 0000000000000006  000c 0001 78")
	if !bytes.Equal(got, want) {
		t.Errorf("got %x\nwant %x", got, want)
	}
}

func TestWriterLeavesOutWhatIsEmpty(t *testing.T) {
	var w Writer
	w.Field(1, nil)
	w.Optional(2, []byte{})
	w.Uint8(3, 0)
	w.Uint32(4, 0)
	w.Uint64(5, 0)
	w.Time(6, time.Time{})
	w.Time(7, time.Unix(-5, 0)) // before 1970: nothing that a reader would take
	w.Name(8, "")
	if got, err := w.Bytes(); err != nil || len(got) != 0 {
		t.Errorf("got %x, %v, want nothing", got, err)
	}
}

func TestWriterRefuses(t *testing.T) {
	for name, write := range map[string]func(*Writer){
		"descending fields": func(w *Writer) { w.Uint8(2, 1); w.Uint8(1, 1) },
		"a field twice":     func(w *Writer) { w.Uint8(2, 1); w.Optional(2, []byte{1}) },
		"a long field":      func(w *Writer) { w.Field(1, make([]byte, 1<<16)) },
		"no name":           func(w *Writer) { w.Name(1, "A") },
	} {
		t.Run(name, func(t *testing.T) {
			var w Writer
			write(&w)
			w.Uint8(9, 1)
			if _, err := w.Bytes(); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestReaderReturnsWhatWasWritten(t *testing.T) {
	var w Writer
	w.Name(1, "gw-10.site")
	w.Uint8(2, 7)
	w.Uint32(3, 1<<31)
	w.Uint64(4, 1<<63)
	w.Time(5, time.Unix(1700000000, 0))
	w.Field(6, []byte{0, 0})
	w.Optional(7, []byte("hello"))
	w.Optional(8, []byte{1, 2})
	body, err := w.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	r := NewReader(body)
	var zero, two [2]byte
	r.RequiredFixed(6, zero[:])
	type all struct {
		Name      string
		A         uint8
		B         uint32
		C         uint64
		Time      time.Time
		Optional  string
		Two       bool
		Missing   []byte
		NoName    string
		NoNumber  uint32
		NotThere  bool
		NotThere2 bool
	}
	got := all{
		Name: r.RequiredName(1), A: r.Uint8(2), B: r.Uint32(3), C: r.Uint64(4), Time: r.Time(5),
		Optional: string(r.Optional(7)), Two: r.OptionalNonZero(8, two[:]),
		Missing: r.Field(20), NoName: r.Name(21), NoNumber: r.Uint32(22),
		NotThere: r.Fixed(23, zero[:]), NotThere2: r.NonZero(24, zero[:]),
	}
	want := all{
		Name: "gw-10.site", A: 7, B: 1 << 31, C: 1 << 63, Time: time.Unix(1700000000, 0).UTC(), Optional: "hello", Two: true,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := r.Close(); err != nil {
		t.Error(err)
	}
}

// TestReaderRefuses holds every way to write a body that is not canonical.
func TestReaderRefuses(t *testing.T) {
	none := func(*Reader) {}
	for name, row := range map[string]struct {
		body string
		read func(*Reader)
	}{
		"header cut short":              {"8001 00", none},
		"value cut short":               {"0001 0003 0102", none},
		"length past the end":           {"0001 ffff 01", none},
		"present and empty":             {"0001 0000", none},
		"a field twice":                 {"0001 0001 01 0001 0001 01", none},
		"both bits of one number":       {"0001 0001 01 8001 0001 01", none},
		"descending":                    {"0002 0001 01 0001 0001 01", none},
		"number zero":                   {"0000 0001 01", none},
		"critical number zero":          {"8000 0001 01", none},
		"trailing bytes":                {"0001 0001 01 00", none},
		"unknown critical field":        {"8001 0001 01", none},
		"known field not critical":      {"0001 0001 01", func(r *Reader) { r.Field(1) }},
		"optional field critical":       {"8001 0001 01", func(r *Reader) { r.Optional(1) }},
		"required field missing":        {"0002 0001 01", func(r *Reader) { r.Required(1) }},
		"required fixed missing":        {"", func(r *Reader) { r.RequiredFixed(1, make([]byte, 1)) }},
		"required name missing":         {"", func(r *Reader) { r.RequiredName(1) }},
		"fixed too short":               {"8001 0001 01", func(r *Reader) { r.Fixed(1, make([]byte, 2)) }},
		"fixed too long":                {"8001 0003 010203", func(r *Reader) { r.Fixed(1, make([]byte, 2)) }},
		"number with too many bytes":    {"8001 0002 0001", func(r *Reader) { r.Uint8(1) }},
		"u32 in eight bytes":            {"8001 0008 0000000000000001", func(r *Reader) { r.Uint32(1) }},
		"number present and zero":       {"8001 0004 00000000", func(r *Reader) { r.Uint32(1) }},
		"bytes present and zero":        {"8001 0002 0000", func(r *Reader) { r.NonZero(1, make([]byte, 2)) }},
		"other bytes present and zero":  {"0001 0002 0000", func(r *Reader) { r.OptionalNonZero(1, make([]byte, 2)) }},
		"time missing":                  {"", func(r *Reader) { r.Time(1) }},
		"time after the year 9999":      {"8001 0008 0000003afff44180", func(r *Reader) { r.Time(1) }},
		"time that overflows":           {"8001 0008 ffffffffffffffff", func(r *Reader) { r.Time(1) }},
		"name with a capital":           {"8001 0001 41", func(r *Reader) { r.Name(1) }},
		"failed by its caller":          {"", func(r *Reader) { r.Fail(ErrFormat) }},
		"an error before the last word": {"0001 0000", func(r *Reader) { r.Fail(nil) }},
	} {
		t.Run(name, func(t *testing.T) {
			r := NewReader(mustHex(t, row.body))
			row.read(r)
			if err := r.Close(); !errors.Is(err, ErrFormat) {
				t.Errorf("%s: got %v, want %v", row.body, err, ErrFormat)
			}
		})
	}
}

func TestReaderIgnoresUnknownFieldsThatAreNotCritical(t *testing.T) {
	r := NewReader(mustHex(t, "8001 0001 07 7fff 0003 010203"))
	if got, err := r.Uint8(1), r.Close(); got != 7 || err != nil {
		t.Errorf("got %d, %v, want 7", got, err)
	}
}

func TestCheckName(t *testing.T) {
	for name, ok := range map[string]bool{
		"a": true, "0": true, "gw-10": true, "a.b-c.9": true, strings.Repeat("a", 63): true, "a--b": true,
		"": false, strings.Repeat("a", 64): false, "-a": false, "a-": false, ".a": false, "a.": false, "a..b": false,
		"a.-b": false, "a-.b": false, "A": false, "a_b": false, "a b": false, "ä": false, "a\x00": false, "a\n": false,
	} {
		if err := CheckName(name); (err == nil) != ok {
			t.Errorf("%q: got %v, want ok %t", name, err, ok)
		}
	}
}

func TestPrefixesAreWrittenAsDrawn(t *testing.T) {
	list := []netip.Prefix{
		netip.MustParsePrefix("0.0.0.0/0"),
		netip.MustParsePrefix("10.0.0.0/8"),
		netip.MustParsePrefix("10.0.0.0/16"),
		netip.MustParsePrefix("192.168.10.1/32"),
		netip.MustParsePrefix("::/0"),
		netip.MustParsePrefix("2001:db8::/32"),
	}
	b := Prefixes(list)
	want := mustHex(t, "0400 00000000  0408 0a000000  0410 0a000000  0420 c0a80a01"+
		"0600 00000000000000000000000000000000  0620 20010db8000000000000000000000000")
	if !bytes.Equal(b, want) {
		t.Errorf("got %x\nwant %x", b, want)
	}
	got, err := DecodePrefixes(b, len(list))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(list, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if _, err := DecodePrefixes(b, len(list)-1); !errors.Is(err, ErrFormat) {
		t.Errorf("one more than the limit: got %v", err)
	}
}

func TestPrefixesAreRefused(t *testing.T) {
	for name, b := range map[string]string{
		"cut before the address":  "04",
		"cut within the address":  "0408 0a0000",
		"family 5":                "0508 0a000000",
		"family 0":                "0008 0a000000",
		"33 bits":                 "0421 0a000000",
		"129 bits":                "0681 20010db8000000000000000000000000",
		"255 bits":                "04ff 0a000000",
		"host bits":               "0408 0a000001",
		"host bits of IPv6":       "0620 20010db8000000000000000000000001",
		"IPv4-mapped":             "0678 00000000000000000000ffff0a000000",
		"twice":                   "0408 0a000000 0408 0a000000",
		"longer before shorter":   "0410 0a000000 0408 0a000000",
		"higher address first":    "0408 0b000000 0408 0a000000",
		"IPv6 before IPv4":        "0600 00000000000000000000000000000000 0400 00000000",
		"trailing byte":           "0408 0a000000 04",
		"IPv4 in sixteen bytes":   "0408 0a000000000000000000000000000000",
		"IPv6 in only four bytes": "0608 20010db8",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := DecodePrefixes(mustHex(t, b), 8); !errors.Is(err, ErrFormat) {
				t.Errorf("%s: got %v, %v", b, got, err)
			}
		})
	}
}

func TestAddrPortsAreWrittenAsDrawn(t *testing.T) {
	list := []netip.AddrPort{
		netip.MustParseAddrPort("[2001:db8::1]:51820"),
		netip.MustParseAddrPort("10.4.0.90:1"),
		netip.MustParseAddrPort("10.4.0.90:2"),
	}
	b := AddrPorts(list)
	want := mustHex(t, "06 ca6c 20010db8000000000000000000000001  04 0001 0a04005a  04 0002 0a04005a")
	if !bytes.Equal(b, want) {
		t.Errorf("got %x\nwant %x", b, want)
	}
	got, err := DecodeAddrPorts(b, len(list))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(list, got, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
		t.Error(diff)
	}
	if _, err := DecodeAddrPorts(b, len(list)-1); !errors.Is(err, ErrFormat) {
		t.Errorf("one more than the limit: got %v", err)
	}
}

func TestAddrPortsAreRefused(t *testing.T) {
	for name, b := range map[string]string{
		"cut before the address": "04 00",
		"cut within the address": "04 0001 0a0400",
		"family 9":               "09 0001 0a04005a",
		"port 0":                 "04 0000 0a04005a",
		"IPv4-mapped":            "06 0001 00000000000000000000ffff0a04005a",
		"twice":                  "04 0001 0a04005a 04 0002 0a04005a 04 0001 0a04005a",
		"trailing byte":          "04 0001 0a04005a 00",
	} {
		t.Run(name, func(t *testing.T) {
			if got, err := DecodeAddrPorts(mustHex(t, b), 8); !errors.Is(err, ErrFormat) {
				t.Errorf("%s: got %v, %v", b, got, err)
			}
		})
	}
}

// FuzzReader checks that a body that is taken has one encoding only: written
// again field by field it is the same.
func FuzzReader(f *testing.F) {
	f.Add(mustHex(f, "8001 0002 6162 8002 0001 07 000c 0001 78"))
	f.Add(mustHex(f, "0001 0001 01 8001 0001 01"))
	f.Add(mustHex(f, "0001 0000"))
	f.Add(mustHex(f, "0001 ffff 01"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, body []byte) {
		r := NewReader(body)
		var w Writer
		for _, field := range r.fields {
			if number := field.tag &^ critical; field.tag&critical != 0 {
				w.Field(number, r.Field(number))
			} else {
				w.Optional(number, r.Optional(number))
			}
		}
		if r.Close() != nil {
			return
		}
		if again, err := w.Bytes(); err != nil || !bytes.Equal(again, body) {
			t.Fatalf("%x reads, and is written as %x, %v", body, again, err)
		}
	})
}

func FuzzDecodePrefixes(f *testing.F) {
	f.Add(mustHex(f, "0408 0a000000 0620 20010db8000000000000000000000000"))
	f.Add(mustHex(f, "0408 0a000001"))
	f.Add(mustHex(f, "0678 00000000000000000000ffff0a000000"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := DecodePrefixes(b, 64)
		if err != nil {
			return
		}
		if again := Prefixes(list); !bytes.Equal(again, b) {
			t.Fatalf("%x reads as %v, which is written as %x", b, list, again)
		}
	})
}

func FuzzDecodeAddrPorts(f *testing.F) {
	f.Add(mustHex(f, "06 ca6c 20010db8000000000000000000000001 04 0001 0a04005a"))
	f.Add(mustHex(f, "04 0000 0a04005a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		list, err := DecodeAddrPorts(b, 8)
		if err != nil {
			return
		}
		if again := AddrPorts(list); !bytes.Equal(again, b) {
			t.Fatalf("%x reads as %v, which is written as %x", b, list, again)
		}
	})
}
