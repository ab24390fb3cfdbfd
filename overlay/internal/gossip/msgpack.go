package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math"
)

// errFormat means that something is not what memberlist writes.
var errFormat = errors.New("not a message of memberlist")

// decoder reads the part of msgpack that memberlist's messages use: maps from
// names to strings, bytes, unsigned numbers and booleans. Lengths are checked
// before anything is allocated. The first error stays.
type decoder struct {
	r    byteReader
	left int // bytes that may still be read
	err  error
}

func newDecoder(b []byte) *decoder { return &decoder{r: bytes.NewReader(b), left: len(b)} }

type byteReader interface {
	io.Reader
	io.ByteReader
}

// field describes one entry of a map: its name and where its value goes:
// *string, *[]byte, *uint16, *uint32, *int or *bool. limit is the greatest
// length of a string; numbers are limited by their type, *int by limit.
type field struct {
	name  string
	value any
	limit int
}

const (
	maxFields = 16 // of a map; memberlist has at most 8
	maxName   = 32 // of a field
	maxDepth  = 4  // of the value of an unknown field
)

// message reads one map into fields. Unknown names are skipped, a name that
// occurs twice is refused: decoders differ on which one counts.
func (d *decoder) message(fields []field) error {
	n := d.mapLen()
	if n > maxFields {
		d.fail()
	}
	var seen uint32
	for range n {
		name := d.text(maxName)
		i := indexOf(fields, name)
		if d.err != nil || i >= 0 && seen&(1<<i) != 0 {
			d.fail()
			return d.err
		}
		if i < 0 {
			d.skip(maxDepth)
			continue
		}
		seen |= 1 << i
		d.value(fields[i])
	}
	return d.err
}

func indexOf(fields []field, name string) int {
	for i := range fields {
		if fields[i].name == name {
			return i
		}
	}
	return -1
}

func (d *decoder) value(f field) {
	switch v := f.value.(type) {
	case *string:
		*v = d.text(f.limit)
	case *[]byte:
		*v = d.bytes(f.limit)
	case *uint16:
		*v = uint16(d.number(math.MaxUint16))
	case *uint32:
		*v = uint32(d.number(math.MaxUint32))
	case *int:
		*v = int(d.number(uint64(f.limit)))
	case *bool:
		*v = d.boolean()
	default:
		d.fail()
	}
}

func (d *decoder) fail() {
	if d.err == nil {
		d.err = errFormat
	}
}

func (d *decoder) byte() byte {
	if d.err != nil {
		return 0
	}
	if d.left < 1 {
		d.fail()
		return 0
	}
	b, err := d.r.ReadByte()
	if err != nil {
		d.err = err
		return 0
	}
	d.left--
	return b
}

// uint reads a big-endian number of size bytes.
func (d *decoder) uint(size int) uint64 {
	var n uint64
	for range size {
		n = n<<8 | uint64(d.byte())
	}
	return n
}

func (d *decoder) mapLen() int {
	switch b := d.byte(); {
	case b&0xf0 == 0x80:
		return int(b & 0x0f)
	case b == 0xde:
		return int(d.uint(2))
	}
	d.fail()
	return 0
}

func (d *decoder) number(limit uint64) uint64 {
	var n uint64
	switch b := d.byte(); {
	case b < 0x80:
		n = uint64(b)
	case b >= 0xcc && b <= 0xcf: // unsigned, 1 to 8 bytes
		n = d.uint(1 << (b - 0xcc))
	case b >= 0xd0 && b <= 0xd3: // signed, 1 to 8 bytes
		size := 1 << (b - 0xd0)
		n = d.uint(size)
		if n>>(8*size-1) != 0 { // negative
			d.fail()
		}
	default:
		d.fail()
	}
	if n > limit {
		d.fail()
	}
	return n
}

func (d *decoder) boolean() bool {
	switch d.byte() {
	case 0xc2:
		return false
	case 0xc3:
		return true
	}
	d.fail()
	return false
}

func (d *decoder) text(limit int) string { return string(d.bytes(limit)) }

// bytes reads a string or bytes, both of which memberlist writes in the old raw format. nil is empty.
func (d *decoder) bytes(limit int) []byte {
	b := d.byte()
	if d.err != nil || b == 0xc0 {
		return nil
	}
	n, ok := d.length(b)
	if !ok || n > uint64(limit) || n > uint64(d.left) {
		d.fail()
		return nil
	}
	out := make([]byte, n)
	if _, err := io.ReadFull(d.r, out); err != nil {
		d.err = err
		return nil
	}
	d.left -= int(n)
	return out
}

// length reads the length of a string or of bytes that begin with b.
func (d *decoder) length(b byte) (uint64, bool) {
	switch {
	case b&0xe0 == 0xa0:
		return uint64(b & 0x1f), d.err == nil
	case b == 0xd9 || b == 0xc4:
		return d.uint(1), d.err == nil
	case b == 0xda || b == 0xc5:
		return d.uint(2), d.err == nil
	case b == 0xdb || b == 0xc6:
		return d.uint(4), d.err == nil
	}
	return 0, false
}

// skip passes over any value.
func (d *decoder) skip(depth int) {
	if depth == 0 {
		d.fail()
	}
	if d.err != nil {
		return
	}
	switch b := d.byte(); {
	case b < 0x80, b >= 0xe0, b == 0xc0, b == 0xc2, b == 0xc3: // small numbers, nil, booleans
	case b >= 0xcc && b <= 0xcf:
		d.discard(1 << (b - 0xcc))
	case b >= 0xd0 && b <= 0xd3:
		d.discard(1 << (b - 0xd0))
	case b&0xf0 == 0x80:
		d.skipAll(2*int(b&0x0f), depth)
	case b&0xf0 == 0x90:
		d.skipAll(int(b&0x0f), depth)
	default:
		n, ok := d.length(b)
		if !ok {
			d.fail()
			return
		}
		d.discard(n)
	}
}

func (d *decoder) skipAll(n, depth int) {
	for range n {
		d.skip(depth - 1)
	}
}

func (d *decoder) discard(n uint64) {
	if d.err != nil || n > uint64(d.left) {
		d.fail()
		return
	}
	if _, err := io.CopyN(io.Discard, d.r, int64(n)); err != nil {
		d.err = err
	}
	d.left -= int(n)
}

// appendFields writes a map in the way that memberlist does.
func appendFields(b []byte, fields []field) []byte {
	b = append(b, 0x80|byte(len(fields)))
	for _, f := range fields {
		b = appendRaw(b, f.name)
		switch v := f.value.(type) {
		case *string:
			b = appendRaw(b, *v)
		case *[]byte:
			b = appendRaw(b, *v)
		case *uint16:
			b = appendNumber(b, uint32(*v))
		case *uint32:
			b = appendNumber(b, *v)
		case *int:
			b = appendNumber(b, uint32(*v))
		case *bool:
			b = append(b, 0xc2)
			if *v {
				b[len(b)-1] = 0xc3
			}
		}
	}
	return b
}

func appendRaw[T string | []byte](b []byte, v T) []byte {
	if len(v) < 32 {
		b = append(b, 0xa0|byte(len(v)))
	} else {
		b = binary.BigEndian.AppendUint16(append(b, 0xda), uint16(len(v)))
	}
	return append(b, v...)
}

func appendNumber(b []byte, v uint32) []byte {
	if v < 0x80 {
		return append(b, byte(v))
	}
	return binary.BigEndian.AppendUint32(append(b, 0xce), v)
}
