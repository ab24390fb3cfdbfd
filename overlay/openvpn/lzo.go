package openvpn

// lzoDecompress appends the content of one LZO1X block to dst, which must not
// grow beyond its capacity: that is the limit on the size. A damaged block and
// one that is too large give ReasonCompress.
//
// A block is a row of instructions; each copies a match out of what was written
// already and then up to three literal bytes. What the smallest instructions
// mean depends on how many literals the one before copied (the state):
//
//	0000LLLL after 0 literals     run of 3+L literals (L = 0: longer)
//	0000DDSS after 1–3            match of 2, distance 1+D+4·next
//	0000DDSS after a run          match of 3, distance 2049+D+4·next
//	0001HLLL                      match of 2+L, distance 16384+…, ends the block at 16384
//	001LLLLL                      match of 2+L, distance 1+…
//	01LDDDSS                      match of 3+L, distance 1+D+8·next
//	1LLDDDSS                      match of 5+L, distance 1+D+8·next
func lzoDecompress(dst, src []byte) ([]byte, error) {
	d := lzoDecoder{dst: dst, src: src}
	if len(src) > 0 && src[0] > 17 {
		n := int(d.next()) - 17
		d.literals(n)
		d.state = min(n, lzoRun)
	}
	for !d.failed && !d.ended {
		d.step()
	}
	if d.failed || len(d.src) > 0 {
		return nil, ReasonCompress
	}
	return d.dst, nil
}

// lzoRun is the state after a run of four literals or more.
const lzoRun = 4

type lzoDecoder struct {
	dst, src      []byte
	state         int
	failed, ended bool
}

func (d *lzoDecoder) step() {
	op := int(d.next())
	switch {
	case op >= 64:
		length := op>>5 + 1
		d.match(length, 1+(op>>2&7)+int(d.next())<<3, op&3)
	case op >= 32:
		length := 2 + d.length(op&31, 31)
		low := d.next16()
		d.match(length, 1+low>>2, low&3)
	case op >= 16:
		length := 2 + d.length(op&7, 7)
		low := d.next16()
		distance := 16384 + op&8<<11 + low>>2
		if distance == 16384 {
			d.ended = true
			return
		}
		d.match(length, distance, low&3)
	case d.state == 0:
		d.literals(3 + d.length(op, 15))
		d.state = lzoRun
	case d.state == lzoRun:
		d.match(3, 2049+op>>2+int(d.next())<<2, op&3)
	default:
		d.match(2, 1+op>>2+int(d.next())<<2, op&3)
	}
}

func (d *lzoDecoder) next() byte {
	if len(d.src) == 0 {
		d.failed = true
		return 0
	}
	b := d.src[0]
	d.src = d.src[1:]
	return b
}

func (d *lzoDecoder) next16() int {
	low := int(d.next())
	return low | int(d.next())<<8
}

// length extends a length field that is zero: each zero byte adds 255, the
// first other byte ends it.
func (d *lzoDecoder) length(field, base int) int {
	if field != 0 {
		return field
	}
	for n := base; !d.failed; n += 255 {
		if b := d.next(); b != 0 {
			return n + int(b)
		}
	}
	return 0
}

func (d *lzoDecoder) literals(n int) {
	if d.failed || n > len(d.src) || n > cap(d.dst)-len(d.dst) {
		d.failed = true
		return
	}
	d.dst = append(d.dst, d.src[:n]...)
	d.src = d.src[n:]
}

// match copies byte by byte, because source and destination may overlap.
func (d *lzoDecoder) match(n, distance, literals int) {
	if d.failed || distance > len(d.dst) || n > cap(d.dst)-len(d.dst) {
		d.failed = true
		return
	}
	for from := len(d.dst) - distance; n > 0; n-- {
		d.dst = append(d.dst, d.dst[from])
		from++
	}
	d.literals(literals)
	d.state = literals
}
