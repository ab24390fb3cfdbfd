// Package wire is the one canonical encoding of everything that is signed: a
// sequence of numbered fields inside an object (docs/protocol.md, sections 1
// and 2), and the framing of messages on streams (section 4).
package wire

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

// critical is the bit of a tag that lets unknown fields refuse an object
// (docs/protocol.md, section 1).
const critical = 0x8000

// ErrFormat is behind every error of a decoder.
var ErrFormat = errors.New("malformed")

func malformed(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrFormat, fmt.Sprintf(format, args...))
}

// Writer builds the body of an object, field by field in ascending order. A
// zero or empty value leaves its field out. The zero value is ready.
type Writer struct {
	b    []byte
	last uint16
	err  error
}

// Field adds a critical field; an empty value is left out.
func (w *Writer) Field(number uint16, value []byte) { w.add(number, number|critical, value) }

// Optional adds a field that readers may ignore; an empty value is left out.
func (w *Writer) Optional(number uint16, value []byte) { w.add(number, number, value) }

func (w *Writer) add(number, tag uint16, value []byte) {
	switch {
	case len(value) == 0 || w.err != nil:
		return
	case number <= w.last:
		w.err = fmt.Errorf("field %d after field %d", number, w.last)
		return
	case len(value) > 0xffff:
		w.err = fmt.Errorf("field %d has %d bytes, want at most 65535", number, len(value))
		return
	}
	w.last = number
	w.b = binary.BigEndian.AppendUint16(w.b, tag)
	w.b = binary.BigEndian.AppendUint16(w.b, uint16(len(value)))
	w.b = append(w.b, value...)
}

// Uint8 adds a number; zero is left out.
func (w *Writer) Uint8(number uint16, v uint8) {
	if v != 0 {
		w.Field(number, []byte{v})
	}
}

// Uint32 adds a number; zero is left out.
func (w *Writer) Uint32(number uint16, v uint32) {
	if v != 0 {
		w.Field(number, binary.BigEndian.AppendUint32(nil, v))
	}
}

// Uint64 adds a number; zero is left out.
func (w *Writer) Uint64(number uint16, v uint64) {
	if v != 0 {
		w.Field(number, binary.BigEndian.AppendUint64(nil, v))
	}
}

// Time adds a time in whole seconds since 1970; the zero time is left out.
func (w *Writer) Time(number uint16, t time.Time) {
	if !t.IsZero() {
		w.Uint64(number, uint64(max(t.Unix(), 0)))
	}
}

// Name adds a name, which must be well formed unless it is empty.
func (w *Writer) Name(number uint16, name string) {
	if name == "" {
		return
	}
	if err := CheckName(name); err != nil && w.err == nil {
		w.err = err
		return
	}
	w.Field(number, []byte(name))
}

// Bytes returns the body.
func (w *Writer) Bytes() ([]byte, error) { return w.b, w.err }

// Reader takes a body apart. Its methods return zero values for fields that
// are not there; Close tells what was wrong. Values point into the body.
type Reader struct {
	fields []field
	err    error
}

type field struct {
	tag   uint16
	value []byte
	taken bool
}

// NewReader splits a body into its fields.
func NewReader(body []byte) *Reader {
	r := new(Reader)
	last := 0
	for len(body) > 0 {
		if len(body) < 4 {
			r.fail("field header of %d bytes", len(body))
			return r
		}
		tag, n := binary.BigEndian.Uint16(body), int(binary.BigEndian.Uint16(body[2:]))
		number := int(tag &^ critical)
		switch {
		case number <= last:
			r.fail("field %d after field %d", number, last)
			return r
		case n == 0:
			r.fail("field %d is empty", number)
			return r
		case n > len(body)-4:
			r.fail("field %d has %d bytes, %d are left", number, n, len(body)-4)
			return r
		}
		last = number
		r.fields = append(r.fields, field{tag: tag, value: body[4 : 4+n : 4+n]})
		body = body[4+n:]
	}
	return r
}

func (r *Reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = malformed(format, args...)
	}
}

// Fail makes Close return err, unless something was wrong before.
func (r *Reader) Fail(err error) {
	if r.err == nil && err != nil {
		r.err = err
	}
}

// take returns the value of a field with exactly this tag.
func (r *Reader) take(tag uint16) []byte {
	for i := range r.fields {
		f := &r.fields[i]
		if f.tag&^critical == tag&^critical {
			if f.tag != tag {
				r.fail("field %d has the wrong critical bit", tag&^critical)
				return nil
			}
			f.taken = true
			return f.value
		}
	}
	return nil
}

// Field returns a critical field, nil if it is not there.
func (r *Reader) Field(number uint16) []byte { return r.take(number | critical) }

// Optional returns a field that is not critical, nil if it is not there.
func (r *Reader) Optional(number uint16) []byte { return r.take(number) }

// Required returns a critical field that must be there.
func (r *Reader) Required(number uint16) []byte {
	v := r.Field(number)
	if v == nil {
		r.fail("field %d is missing", number)
	}
	return v
}

// Fixed copies a critical field into out; it must have exactly that length.
// It reports whether the field is there.
func (r *Reader) Fixed(number uint16, out []byte) bool { return r.fixed(number, out, r.Field(number)) }

// NonZero is Fixed for a field that is left out where all its bytes are zero.
func (r *Reader) NonZero(number uint16, out []byte) bool {
	return r.nonZero(number, out, r.Field(number))
}

// OptionalNonZero is NonZero for a field that is not critical.
func (r *Reader) OptionalNonZero(number uint16, out []byte) bool {
	return r.nonZero(number, out, r.Optional(number))
}

func (r *Reader) nonZero(number uint16, out, v []byte) bool {
	ok := r.fixed(number, out, v)
	if ok && strings.Trim(string(v), "\x00") == "" {
		r.fail("field %d is present and zero", number)
	}
	return ok
}

// RequiredFixed is Fixed for a field that must be there.
func (r *Reader) RequiredFixed(number uint16, out []byte) {
	if !r.Fixed(number, out) {
		r.fail("field %d is missing", number)
	}
}

func (r *Reader) fixed(number uint16, out, v []byte) bool {
	if v == nil {
		return false
	}
	if len(v) != len(out) {
		r.fail("field %d has %d bytes, want %d", number, len(v), len(out))
		return false
	}
	copy(out, v)
	return true
}

// Uint8 returns a number that is zero where the field is left out.
func (r *Reader) Uint8(number uint16) uint8 { return uint8(r.number(number, 1)) }

// Uint32 returns a number that is zero where the field is left out.
func (r *Reader) Uint32(number uint16) uint32 { return uint32(r.number(number, 4)) }

// Uint64 returns a number that is zero where the field is left out.
func (r *Reader) Uint64(number uint16) uint64 { return r.number(number, 8) }

func (r *Reader) number(number uint16, size int) uint64 {
	var b [8]byte
	if !r.Fixed(number, b[8-size:]) {
		return 0
	}
	v := binary.BigEndian.Uint64(b[:])
	if v == 0 {
		r.fail("field %d is present and zero", number)
	}
	return v
}

// maxTime bounds times to the year 9999, so that arithmetic cannot overflow.
const maxTime = 253402300799

// Time returns a time that must be there.
func (r *Reader) Time(number uint16) time.Time {
	v := r.Uint64(number)
	if v == 0 || v > maxTime {
		r.fail("field %d is not a time", number)
		return time.Time{}
	}
	return time.Unix(int64(v), 0).UTC()
}

// Name returns a name, empty where the field is left out.
func (r *Reader) Name(number uint16) string {
	v := r.Field(number)
	if v == nil {
		return ""
	}
	r.Fail(CheckName(string(v)))
	return string(v)
}

// RequiredName returns a name that must be there.
func (r *Reader) RequiredName(number uint16) string {
	name := r.Name(number)
	if name == "" {
		r.fail("field %d is missing", number)
	}
	return name
}

// Close returns what was wrong, counting unknown critical fields.
func (r *Reader) Close() error {
	for _, f := range r.fields {
		if f.tag&critical != 0 && !f.taken {
			r.fail("unknown critical field %d", f.tag&^critical)
		}
	}
	return r.err
}

// maxName is the length of a label in the DNS (RFC 1035, section 2.3.4), taken
// for whole names so that they fit everywhere.
const maxName = 63

// CheckName refuses what is no name: labels of a–z, 0–9 and hyphen, beginning
// and ending with a letter or digit, joined by single dots, at most 63 bytes.
func CheckName(name string) error {
	if name == "" || len(name) > maxName {
		return malformed("name %q: want 1 to %d characters", name, maxName)
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' ||
			strings.Trim(label, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
			return malformed("name %q: want lower-case letters, digits and hyphens, in labels joined by dots", name)
		}
	}
	return nil
}

// AppendPrefix appends a prefix in its encoding.
func AppendPrefix(b []byte, p netip.Prefix) []byte {
	b = append(b, family(p.Addr()), byte(p.Bits()))
	return append(b, p.Addr().AsSlice()...)
}

// CutPrefix reads a prefix off the front of b.
func CutPrefix(b []byte) (netip.Prefix, []byte, error) {
	if len(b) < 2 {
		return netip.Prefix{}, nil, malformed("prefix cut short")
	}
	bits := int(b[1])
	addr, rest, err := cutAddr(b[0], b[2:])
	if err != nil {
		return netip.Prefix{}, nil, err
	}
	p := netip.PrefixFrom(addr, bits)
	if !p.IsValid() || p.Masked() != p || addr.Is4In6() {
		return netip.Prefix{}, nil, malformed("prefix %v/%d", addr, bits)
	}
	return p, rest, nil
}

// AppendAddrPort appends an address and port in their encoding.
func AppendAddrPort(b []byte, a netip.AddrPort) []byte {
	b = append(b, family(a.Addr()))
	b = binary.BigEndian.AppendUint16(b, a.Port())
	return append(b, a.Addr().AsSlice()...)
}

// CutAddrPort reads an address and port off the front of b.
func CutAddrPort(b []byte) (netip.AddrPort, []byte, error) {
	if len(b) < 3 {
		return netip.AddrPort{}, nil, malformed("address cut short")
	}
	port := binary.BigEndian.Uint16(b[1:])
	addr, rest, err := cutAddr(b[0], b[3:])
	if err != nil {
		return netip.AddrPort{}, nil, err
	}
	if addr.Is4In6() || port == 0 {
		return netip.AddrPort{}, nil, malformed("endpoint %v port %d", addr, port)
	}
	return netip.AddrPortFrom(addr, port), rest, nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return 4
	}
	return 6
}

func cutAddr(family byte, b []byte) (netip.Addr, []byte, error) {
	n := 0
	switch family {
	case 4:
		n = 4
	case 6:
		n = 16
	}
	if n == 0 || len(b) < n {
		return netip.Addr{}, nil, malformed("address of family %d in %d bytes", family, len(b))
	}
	addr, _ := netip.AddrFromSlice(b[:n])
	return addr, b[n:], nil
}

// Prefixes encodes a list of prefixes, which must be ascending.
func Prefixes(list []netip.Prefix) []byte {
	var b []byte
	for _, p := range list {
		b = AppendPrefix(b, p)
	}
	return b
}

// ComparePrefixes orders prefixes by family, address, then length.
func ComparePrefixes(a, b netip.Prefix) int {
	if c := a.Addr().Compare(b.Addr()); c != 0 {
		return c
	}
	return a.Bits() - b.Bits()
}

// DecodePrefixes reads a strictly ascending list of at most limit prefixes.
func DecodePrefixes(b []byte, limit int) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for len(b) > 0 {
		p, rest, err := CutPrefix(b)
		if err != nil {
			return nil, err
		}
		if n := len(out); n > 0 && ComparePrefixes(out[n-1], p) >= 0 {
			return nil, malformed("prefix %v after %v", p, out[n-1])
		}
		if len(out) == limit {
			return nil, malformed("more than %d prefixes", limit)
		}
		out, b = append(out, p), rest
	}
	return out, nil
}

// AddrPorts encodes a list of endpoints.
func AddrPorts(list []netip.AddrPort) []byte {
	var b []byte
	for _, a := range list {
		b = AppendAddrPort(b, a)
	}
	return b
}

// DecodeAddrPorts reads at most limit endpoints without duplicates.
func DecodeAddrPorts(b []byte, limit int) ([]netip.AddrPort, error) {
	var out []netip.AddrPort
	for len(b) > 0 {
		a, rest, err := CutAddrPort(b)
		if err != nil {
			return nil, err
		}
		if slices.Contains(out, a) {
			return nil, malformed("endpoint %v twice", a)
		}
		if len(out) == limit {
			return nil, malformed("more than %d endpoints", limit)
		}
		out, b = append(out, a), rest
	}
	return out, nil
}
