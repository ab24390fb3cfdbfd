package openvpn

import "strconv"

// Framing is the compression framing that both sides are configured with. This
// package never sends compressed packets, whatever the framing; it understands
// those of the peer.
type Framing uint8

const (
	// FramingNone is the zero value: no compression option at the peer.
	FramingNone Framing = iota
	// FramingLZO fits comp-lzo and compress lzo, and is understood compressed.
	FramingLZO
	// FramingStub fits compress and compress stub.
	FramingStub
	// FramingStubV2 fits compress stub-v2.
	FramingStubV2
	// FramingLZ4 fits compress lz4, and is understood compressed.
	FramingLZ4
	// FramingLZ4V2 fits compress lz4-v2, and is understood compressed.
	FramingLZ4V2
	framingCount
)

// String returns the option of OpenVPN that the framing fits.
func (f Framing) String() string {
	switch f {
	case FramingNone:
		return "none"
	case FramingLZO:
		return "lzo"
	case FramingStub:
		return "stub"
	case FramingStubV2:
		return "stub-v2"
	case FramingLZ4:
		return "lz4"
	case FramingLZ4V2:
		return "lz4-v2"
	}
	return "Framing(" + strconv.Itoa(int(f)) + ")"
}

// The first byte of framed payloads.
const (
	frameLZO      = 0x66
	frameLZ4Swap  = 0x69
	framePlain    = 0xfa
	framePlainSwp = 0xfb // the packet's first byte stands at its end
	frameV2       = 0x50
	frameV2Plain  = 0x00
	frameV2LZ4    = 0x01
)

// firstVersion reports whether the framing adds a byte to every payload.
func (f Framing) firstVersion() bool {
	return f == FramingLZO || f == FramingStub || f == FramingLZ4
}

// frame adds the bytes that mark a payload as not compressed.
func (f Framing) frame(p *plaintext) {
	switch f {
	case FramingLZO:
		p.pushHead(framePlain)
	case FramingStub, FramingLZ4:
		p.pushHead(framePlainSwp)
		if len(p.body) > 0 {
			p.tail, p.hasTail = p.body[0], true
			p.body = p.body[1:]
		}
	case FramingStubV2, FramingLZ4V2:
		if len(p.body) > 0 && p.body[0] == frameV2 {
			p.pushHead(frameV2, frameV2Plain)
		}
	}
}

// unframe takes the framing off a payload. The result lies within payload or,
// if that was compressed, in scratch, which bounds the size.
func (f Framing) unframe(payload, scratch []byte) ([]byte, error) {
	if f == FramingNone || len(payload) == 0 {
		return payload, nil
	}
	if !f.firstVersion() {
		return f.unframeV2(payload, scratch)
	}
	switch kind := payload[0]; {
	case kind == framePlain && f == FramingLZO:
		return payload[1:], nil
	case kind == framePlainSwp && f != FramingLZO:
		return unswap(payload), nil
	case kind == frameLZO && f == FramingLZO:
		return lzoDecompress(scratch[:0], payload[1:])
	case kind == frameLZ4Swap && f == FramingLZ4:
		return lz4Decompress(scratch[:0], unswap(payload))
	}
	return nil, ReasonCompress
}

func (f Framing) unframeV2(payload, scratch []byte) ([]byte, error) {
	if payload[0] != frameV2 {
		return payload, nil
	}
	switch {
	case len(payload) < 2:
		return nil, ReasonCompress
	case payload[1] == frameV2Plain:
		return payload[2:], nil
	case payload[1] == frameV2LZ4 && f == FramingLZ4V2:
		return lz4Decompress(scratch[:0], payload[2:])
	}
	return nil, ReasonCompress
}

// unswap overwrites the leading marker with the last byte, which is where the
// first byte of the packet went.
func unswap(payload []byte) []byte {
	payload[0] = payload[len(payload)-1]
	return payload[:len(payload)-1]
}
