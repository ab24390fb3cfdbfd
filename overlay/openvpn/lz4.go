package openvpn

// lz4Decompress appends the content of one LZ4 block to dst, which must not
// grow beyond its capacity: that is the limit on the size. A damaged block and
// one that is too large give ReasonCompress.
//
// A block is a row of sequences: a token with two lengths of 4 bits, literals,
// a distance of 16 bits little endian, and a match of at least 4 bytes. The last
// sequence ends after its literals.
func lz4Decompress(dst, src []byte) ([]byte, error) {
	for len(src) > 0 {
		token := src[0]
		n, rest, ok := lz4Length(int(token>>4), src[1:])
		if !ok || n > len(rest) || n > cap(dst)-len(dst) {
			return nil, ReasonCompress
		}
		dst = append(dst, rest[:n]...)
		src = rest[n:]
		if len(src) == 0 {
			return dst, nil
		}
		if len(src) < 2 {
			return nil, ReasonCompress
		}
		distance := int(src[0]) | int(src[1])<<8
		n, src, ok = lz4Length(int(token&15), src[2:])
		n += 4
		if !ok || distance == 0 || distance > len(dst) || n > cap(dst)-len(dst) {
			return nil, ReasonCompress
		}
		for from := len(dst) - distance; n > 0; n-- {
			dst = append(dst, dst[from])
			from++
		}
	}
	// The block was empty, or ended after a match.
	return nil, ReasonCompress
}

// lz4Length extends a length of 15: bytes of 255 follow, and one that is not.
func lz4Length(n int, src []byte) (int, []byte, bool) {
	if n < 15 {
		return n, src, true
	}
	for i, b := range src {
		n += int(b)
		if b != 255 {
			return n, src[i+1:], true
		}
	}
	return 0, nil, false
}
