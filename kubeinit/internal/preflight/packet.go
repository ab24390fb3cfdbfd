package preflight

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"net/netip"
	"sync"
)

// A datagram between agents, numbers in network order:
//
//	 0  4  magic "kip1"
//	 4  1  kind
//	 5  1  TTL with which the request arrived (answers)
//	 6  2  index of the sender
//	 8  2  index of the receiver
//	10  2  length of the IP packet that is tried (size, sizeAck)
//	12  8  run
//	20  4  sequence number of the request
//	24  4  how many requests of the run had arrived (answers)
//	28  8  clock of the asking host when it sent the request
//	36  8  clock of the answering host when the request arrived
//	44  8  clock of the answering host when it sent the answer
//	52 16  source address of the request (answers)
//	68  4  zero
//	72 16  HMAC-SHA256 of all the rest with the pair's key, its first half
//	88  …  zeros (size)
//
// Clocks are the kernels' CLOCK_REALTIME in nanoseconds. Sender, receiver and
// kind are authenticated, so a datagram cannot be returned to its sender
// as an answer, nor sent to somebody else.
type packet struct {
	kind     packetKind
	ttl      uint8
	from, to uint16
	size     uint16
	run      uint64
	seq      uint32
	count    uint32
	asked    int64
	arrived  int64
	answered int64
	seen     netip.Addr
	padding  int // bytes after the MAC
}

type packetKind uint8

const (
	kindEcho packetKind = 1 + iota
	kindEchoReply
	kindSize
	kindSizeAck
)

const (
	packetMagic = "kip1"
	macOffset   = 72
	macLen      = 16 // half of SHA-256: RFC 2104, section 5
	packetLen   = macOffset + macLen
)

// pairKey authenticates what passes between two agents. It is safe for
// concurrent use.
type pairKey struct {
	mu  sync.Mutex // guards mac and sum
	mac hash.Hash
	sum [sha256.Size]byte
}

func newPairKey(key []byte) *pairKey { return &pairKey{mac: hmac.New(sha256.New, key)} }

// tag computes the MAC over parts.
func (k *pairKey) tag(parts ...[]byte) (tag [macLen]byte) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mac.Reset()
	for _, p := range parts {
		k.mac.Write(p)
	}
	copy(tag[:], k.mac.Sum(k.sum[:0]))
	return tag
}

// derivePairKey makes the key of two hosts out of the secret of the run, the same in
// either order.
func derivePairKey(secret []byte, a, b uint16) []byte {
	mac := hmac.New(sha256.New, secret)
	mac.Write([]byte("kubeinit probe pair"))
	mac.Write(binary.BigEndian.AppendUint16(nil, min(a, b)))
	mac.Write(binary.BigEndian.AppendUint16(nil, max(a, b)))
	return mac.Sum(nil)
}

// append writes the datagram behind b.
func (p *packet) append(b []byte, key *pairKey) []byte {
	start := len(b)
	b = append(b, packetMagic...)
	b = append(b, byte(p.kind), p.ttl)
	b = binary.BigEndian.AppendUint16(b, p.from)
	b = binary.BigEndian.AppendUint16(b, p.to)
	b = binary.BigEndian.AppendUint16(b, p.size)
	b = binary.BigEndian.AppendUint64(b, p.run)
	b = binary.BigEndian.AppendUint32(b, p.seq)
	b = binary.BigEndian.AppendUint32(b, p.count)
	b = binary.BigEndian.AppendUint64(b, uint64(p.asked))
	b = binary.BigEndian.AppendUint64(b, uint64(p.arrived))
	b = binary.BigEndian.AppendUint64(b, uint64(p.answered))
	seen := netip.IPv6Unspecified().As16()
	if p.seen.IsValid() {
		seen = p.seen.As16()
	}
	b = append(b, seen[:]...)
	b = append(b, 0, 0, 0, 0)
	b = append(b, make([]byte, macLen+p.padding)...)
	own := b[start:]
	tag := key.tag(own[:macOffset], own[packetLen:])
	copy(own[macOffset:], tag[:])
	return b
}

var errForeign = errors.New("not a datagram of this run")

// parsePacket reads a datagram and checks that it is for the host with
// index self and comes from one whose key keys knows. The error is errForeign
// in all cases.
func parsePacket(b []byte, self uint16, keys func(from uint16) *pairKey) (packet, error) {
	if len(b) < packetLen || string(b[:4]) != packetMagic {
		return packet{}, errForeign
	}
	p := packet{
		kind:     packetKind(b[4]),
		ttl:      b[5],
		from:     binary.BigEndian.Uint16(b[6:]),
		to:       binary.BigEndian.Uint16(b[8:]),
		size:     binary.BigEndian.Uint16(b[10:]),
		run:      binary.BigEndian.Uint64(b[12:]),
		seq:      binary.BigEndian.Uint32(b[20:]),
		count:    binary.BigEndian.Uint32(b[24:]),
		asked:    int64(binary.BigEndian.Uint64(b[28:])),
		arrived:  int64(binary.BigEndian.Uint64(b[36:])),
		answered: int64(binary.BigEndian.Uint64(b[44:])),
		padding:  len(b) - packetLen,
	}
	if seen := netip.AddrFrom16([16]byte(b[52:68])).Unmap(); !seen.IsUnspecified() {
		p.seen = seen
	}
	if p.to != self || p.kind < kindEcho || p.kind > kindSizeAck {
		return packet{}, errForeign
	}
	key := keys(p.from)
	if key == nil {
		return packet{}, errForeign
	}
	tag := key.tag(b[:macOffset], b[packetLen:])
	if !hmac.Equal(tag[:], b[macOffset:packetLen]) {
		return packet{}, errForeign
	}
	return p, nil
}
