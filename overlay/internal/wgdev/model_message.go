package wgdev

import (
	"crypto/subtle"
	"encoding/binary"
	"hash/crc32"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Messages of the model have the types, the sizes and the places of the fields
// of WireGuard's (whitepaper, section 5.4); what is encrypted there is in the
// clear here, and where a tag is there, a seal is here:
//
//	initiation        response          data
//	0   type 1        0   type 2        0   type 4
//	4   sender        4   sender        4   receiver
//	8   nonce    32   8   receiver      8   counter   8
//	40  key      48   12  nonce    32   16  packet, padded
//	88  time     28   44  zero     16   end-16 seal   16
//	116 seal     16   60  seal     16
//	132 zero     16   76  zero     16
//
// Numbers are little endian. A key and a time have 16 zero bytes behind them.
// There is no cookie reply (type 3): the model is never under load.
const (
	typeInitiation = 1
	typeResponse   = 2
	typeData       = 4

	initiationSize = 148
	responseSize   = 92
	headerSize     = 16 // of data
	sealSize       = 16
	dataOverhead   = headerSize + sealSize // also the size of a keepalive
)

// timestamp is a TAI64N label (https://cr.yp.to/libtai/tai64.html), as
// wireguard-go makes it: the lowest 24 bits of the nanoseconds are zero, so that
// it tells less about the clock. Two within 17 ms may be equal.
type timestamp [12]byte

func stamp(t time.Time) (s timestamp) {
	const base, whitener = 0x400000000000000a, 1<<24 - 1
	binary.BigEndian.PutUint64(s[:], base+uint64(t.Unix()))
	binary.BigEndian.PutUint32(s[8:], uint32(t.Nanosecond())&^whitener)
	return s
}

// secret stands for an ephemeral key, and combined with another for the keys of
// a session: nobody guesses it. Who reads the packets knows it, though.
type secret [16]byte

// join is what both ends make of their secrets.
func (s secret) join(other secret) secret {
	subtle.XORBytes(s[:], s[:], other[:])
	return s
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// seal is what a holder of key writes for text: another key or another text
// has another one.
func seal(to, key, text []byte) {
	n := copy(to, key[:sealSize-4])
	binary.LittleEndian.PutUint32(to[n:], crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, text))
}

func sealed(tag, key, text []byte) bool {
	var want [sealSize]byte
	seal(want[:], key, text)
	return [sealSize]byte(tag) == want
}

// initiation is the first message of a handshake.
type initiation struct {
	sender uint32
	nonce  secret
	from   trust.ExchangeKey
	at     timestamp
}

// marshal writes the message for the owner of a key.
func (i *initiation) marshal(to trust.ExchangeKey) []byte {
	b := make([]byte, initiationSize)
	binary.LittleEndian.PutUint32(b, typeInitiation)
	binary.LittleEndian.PutUint32(b[4:], i.sender)
	copy(b[8:], i.nonce[:])
	copy(b[40:], i.from[:])
	copy(b[88:], i.at[:])
	seal(b[116:], to[:], b[:116])
	return b
}

// parseInitiation reports false for what is not meant for the owner of a key.
func parseInitiation(b []byte, own trust.ExchangeKey) (i initiation, ok bool) {
	if len(b) != initiationSize || !sealed(b[116:132], own[:], b[:116]) {
		return i, false
	}
	i.sender = binary.LittleEndian.Uint32(b[4:])
	copy(i.nonce[:], b[8:])
	copy(i.from[:], b[40:])
	copy(i.at[:], b[88:])
	return i, true
}

// response is the second message of a handshake.
type response struct {
	sender, receiver uint32
	nonce            secret
}

// marshal writes the response to an initiation with a nonce.
func (r *response) marshal(initiator secret) []byte {
	b := make([]byte, responseSize)
	binary.LittleEndian.PutUint32(b, typeResponse)
	binary.LittleEndian.PutUint32(b[4:], r.sender)
	binary.LittleEndian.PutUint32(b[8:], r.receiver)
	copy(b[12:], r.nonce[:])
	key := r.nonce.join(initiator)
	seal(b[60:], key[:], b[:60])
	return b
}

// parseResponse does not check the seal; see answers.
func parseResponse(b []byte) (r response, ok bool) {
	if len(b) != responseSize {
		return r, false
	}
	r.sender = binary.LittleEndian.Uint32(b[4:])
	r.receiver = binary.LittleEndian.Uint32(b[8:])
	copy(r.nonce[:], b[12:])
	return r, true
}

// answers reports whether b is r, and r responds to an initiation with a nonce.
func (r *response) answers(b []byte, initiator secret) bool {
	key := r.nonce.join(initiator)
	return sealed(b[60:76], key[:], b[:60])
}

// sealData makes a data message in place: b holds the header and the packet,
// and has capacity for padding and seal.
func sealData(b []byte, receiver uint32, counter uint64, key *secret, mtu int) []byte {
	binary.LittleEndian.PutUint32(b, typeData)
	binary.LittleEndian.PutUint32(b[4:], receiver)
	binary.LittleEndian.PutUint64(b[8:], counter)
	n := len(b)
	b = b[:n+padding(n-headerSize, mtu)+sealSize]
	end := len(b) - sealSize
	clear(b[n:end])
	seal(b[end:], key[:], b[:end])
	return b
}

// openData reports false for a message that was not sealed with key.
func openData(b []byte, key *secret) (counter uint64, packet []byte, ok bool) {
	end := len(b) - sealSize
	if end < headerSize || !sealed(b[end:], key[:], b[:end]) {
		return 0, nil, false
	}
	return binary.LittleEndian.Uint64(b[8:]), b[headerSize:end], true
}

// padding is how many zero bytes follow a packet of n bytes: up to a multiple
// of 16, but not beyond the MTU.
func padding(n, mtu int) int {
	return max(min((n+15)&^15, mtu)-n, 0)
}
