package link

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"sync"

	"golang.org/x/crypto/blake2s"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Datagrams that are not WireGuard (docs/protocol.md, section 3):
//
//	0      1         2                10
//	+------+---------+-----------------+------
//	| type | version |   mesh tag[8]   | …
//	+------+---------+-----------------+------
const (
	typeProbe  = 0x80
	typeGossip = 0x90
	typeStream = 0xB0

	version = 1

	tagAt     = 2
	tagSize   = 8
	headerLen = tagAt + tagSize
	keyIDLen  = 8

	// MaxDatagram is the longest datagram of ours in bytes, MTU probes
	// excepted: 1,280 (the smallest MTU of IPv6, RFC 8200 section 5) less 48
	// for the headers of IPv6 and UDP.
	MaxDatagram = 1232

	// MaxGossip is the longest plaintext of SendGossip in bytes.
	MaxGossip = MaxDatagram - headerLen - keyIDLen - counterLen - sealOverhead

	// MaxStream is the longest packet that the stream connection carries in
	// bytes.
	MaxStream = MaxDatagram - headerLen
)

// isWireGuard reports whether b is for the WireGuard device: message types 1 to
// 4, a byte followed by three zeros (WireGuard paper, section 5.4).
func isWireGuard(b []byte) bool {
	return len(b) >= 4 && binary.LittleEndian.Uint32(b)-1 < 4
}

// tagger computes the tag of a mesh: the first 8 bytes of keyed BLAKE2s-128 over
// everything but the tag itself. It allocates nothing in the steady state. Safe
// for concurrent use.
type tagger struct{ states sync.Pool }

type tagState struct {
	mac hash.Hash
	sum [blake2s.Size128]byte
}

func newTagger(mesh trust.MeshID) *tagger {
	key := sha256.Sum256(append([]byte("planetmesh/1/tag-key\x00"), mesh[:]...))
	t := &tagger{}
	t.states.New = func() any {
		mac, err := blake2s.New128(key[:])
		if err != nil {
			panic(err) // only for keys longer than 32 bytes
		}
		return &tagState{mac: mac}
	}
	return t
}

// sum writes the tag of b into st. b is at least headerLen long. A hash never
// returns an error.
func (st *tagState) compute(b []byte) []byte {
	st.mac.Reset()
	_, _ = st.mac.Write(b[:tagAt])
	_, _ = st.mac.Write(b[headerLen:])
	return st.mac.Sum(st.sum[:0])[:tagSize]
}

// holds reports whether the tag in b is right. b is at least headerLen long.
func (t *tagger) holds(b []byte) bool {
	st := t.states.Get().(*tagState)
	ok := subtle.ConstantTimeCompare(st.compute(b), b[tagAt:headerLen]) == 1
	t.states.Put(st)
	return ok
}

// put writes the tag into b.
func (t *tagger) put(b []byte) {
	st := t.states.Get().(*tagState)
	copy(b[tagAt:headerLen], st.compute(b))
	t.states.Put(st)
}

// associated makes the associated data of a sealed datagram out of everything
// before its ciphertext: with zeros in the place of the tag, which itself covers
// the ciphertext and therefore is written last and checked first.
func associated(header []byte) []byte {
	clear(header[tagAt:headerLen])
	return header
}

// packet is the memory of one datagram of ours on its way out or in the queue
// of the stream connection.
type packet struct {
	data [MaxDatagram]byte
	list [1][]byte // what a socket's send takes
}

var packets = sync.Pool{New: func() any { return new(packet) }}

// begin writes the header without the tag.
func begin(b []byte, typ byte) {
	b[0], b[1] = typ, version
}
