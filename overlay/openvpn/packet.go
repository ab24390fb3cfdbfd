package openvpn

import (
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash"
	"slices"
)

// plaintext is one payload on its way into a packet: a few bytes of framing
// before the body, the body as its owner has it, and at most one byte after.
type plaintext struct {
	head    [8]byte
	headLen int
	body    []byte
	tail    byte
	hasTail bool
}

func (p *plaintext) size() int {
	n := p.headLen + len(p.body)
	if p.hasTail {
		n++
	}
	return n
}

func (p *plaintext) appendTo(dst []byte) []byte {
	dst = append(dst, p.head[:p.headLen]...)
	dst = append(dst, p.body...)
	if p.hasTail {
		dst = append(dst, p.tail)
	}
	return dst
}

// pushHead puts a byte in front. The head has room for all framing there is:
// a fragment header and two bytes of compression.
func (p *plaintext) pushHead(b ...byte) {
	copy(p.head[len(b):], p.head[:p.headLen])
	copy(p.head[:], b)
	p.headLen += len(b)
}

// errIDsUsed is returned by seal when the packet ids of a key have run out.
var errIDsUsed = errors.New("packet ids of this key are used up")

// maxPacketID is the last id that is used. Rekeying starts long before.
const maxPacketID = 1<<32 - 1

// sealer makes packets out of payloads; it is not safe for concurrent use.
type sealer interface {
	// seal appends one packet to dst.
	seal(dst []byte, p *plaintext) ([]byte, error)
	// take reserves the next n ids for sealAs, or for more than one returns an
	// error if fewer are left.
	take(n int) (stamp, error)
	// sealAs appends one packet with a reserved id to dst.
	sealAs(dst []byte, p *plaintext, s stamp) []byte
	// twin returns a sealer of the same key for another goroutine, or nil if a
	// packet is sealed before another goroutine even wakes up. Only its sealAs may
	// be used.
	twin() sealer
	// sealedSize returns the length of the packet of a payload of n bytes.
	sealedSize(n int) int
	// used returns the last packet id that was given out.
	used() uint32
}

// stamp is what makes a packet unique under its key.
type stamp struct{ id, time uint32 }

// plus returns the stamp of the n-th packet after this one.
func (s stamp) plus(n int) stamp { return stamp{s.id + uint32(n), s.time} }

// opener checks packets and takes them apart; it is not safe for concurrent
// use. It does not look at replays: it returns the id for the caller to do so.
type opener interface {
	// open decrypts in place. The payload lies within packet.
	open(packet []byte) (opened, error)
}

// opened is an authentic packet.
type opened struct {
	time    uint32 // net time in static mode, else 0
	id      uint32
	payload []byte
}

// cbcBox is both directions of the CBC packet format (and of cipher none):
//
//	header | HMAC | IV | CBC( id (4) | [time (4)] | payload | padding )
//	               \----------- under the HMAC -----------/
//
// The header is op/key and peer id in TLS mode, nothing in static mode; the
// time is there in static mode only. One cbcBox serves one direction.
type cbcBox struct {
	header  []byte
	long    bool // the id is followed by the time
	block   int  // 0: cipher none
	cipher  cipher.Block
	mode    cipher.BlockMode
	encrypt bool
	mac     hash.Hash // nil: auth none
	newMAC  func() hash.Hash
	macSize int
	sum     []byte // scratch for the HMAC of received packets

	id   uint32
	time uint32
	// renew gives the next net time when the ids are used up, nil in TLS mode.
	renew func() (uint32, error)
	// fillIV is crypto/rand except in tests against captured packets.
	fillIV func([]byte)
}

// newCBC builds one direction of a CBC cipher from its half of the key.
func newCBC(spec cipherSpec, d Digest, half keyHalf, encrypt bool) (*cbcBox, error) {
	b := &cbcBox{block: spec.block, encrypt: encrypt, macSize: d.size(), fillIV: fillRandom}
	if spec.name != CipherNone {
		block, err := spec.newBlock(half.cipher[:spec.keySize])
		if err != nil {
			return nil, err
		}
		b.cipher = block
	}
	if h := d.newHash(); h != nil {
		key := half.hmac[:b.macSize]
		b.newMAC = func() hash.Hash { return hmac.New(h, key) }
		b.mac = b.newMAC()
		b.sum = make([]byte, 0, b.macSize)
	}
	return b, nil
}

func fillRandom(b []byte) { rand.Read(b) }

// crypt runs the block mode over whole blocks with that IV, in place.
func (b *cbcBox) crypt(iv, data []byte) {
	if set, ok := b.mode.(interface{ SetIV(iv []byte) }); ok {
		set.SetIV(iv)
	} else if b.encrypt {
		b.mode = cipher.NewCBCEncrypter(b.cipher, iv)
	} else {
		b.mode = cipher.NewCBCDecrypter(b.cipher, iv)
	}
	b.mode.CryptBlocks(data, data)
}

func (b *cbcBox) idSize() int {
	if b.long {
		return 8
	}
	return 4
}

func (b *cbcBox) sealedSize(n int) int {
	n += b.idSize()
	if b.block > 0 {
		n = b.block + (n/b.block+1)*b.block
	}
	return len(b.header) + b.macSize + n
}

func (b *cbcBox) used() uint32 { return b.id }

func (b *cbcBox) seal(dst []byte, p *plaintext) ([]byte, error) {
	s, err := b.take(1)
	if err != nil {
		return dst, err
	}
	return b.sealAs(dst, p, s), nil
}

func (b *cbcBox) take(n int) (stamp, error) {
	if n > 1 && maxPacketID-b.id < uint32(n) {
		return stamp{}, errIDsUsed
	}
	if b.id == maxPacketID {
		if b.renew == nil {
			return stamp{}, errIDsUsed
		}
		t, err := b.renew()
		if err != nil {
			return stamp{}, err
		}
		b.id, b.time = 0, t
	}
	s := stamp{b.id + 1, b.time}
	b.id += uint32(n)
	return s, nil
}

func (b *cbcBox) twin() sealer {
	t := &cbcBox{header: b.header, long: b.long, block: b.block, cipher: b.cipher, encrypt: b.encrypt, macSize: b.macSize, fillIV: b.fillIV}
	if b.newMAC != nil {
		t.newMAC = b.newMAC
		t.mac = b.newMAC()
	}
	return t
}

func (b *cbcBox) sealAs(dst []byte, p *plaintext, s stamp) []byte {
	dst = slices.Grow(dst, b.sealedSize(p.size()))
	dst = append(dst, b.header...)
	macAt := len(dst)
	dst = dst[:macAt+b.macSize]
	ivAt := len(dst)
	dst = dst[:ivAt+b.block]
	b.fillIV(dst[ivAt:])
	textAt := len(dst)
	dst = binary.BigEndian.AppendUint32(dst, s.id)
	if b.long {
		dst = binary.BigEndian.AppendUint32(dst, s.time)
	}
	dst = p.appendTo(dst)
	if b.block > 0 {
		for pad, n := byte(b.block-(len(dst)-textAt)%b.block), 0; n < int(pad); n++ {
			dst = append(dst, pad)
		}
		b.crypt(dst[ivAt:textAt], dst[textAt:])
	}
	if b.mac != nil {
		b.mac.Reset()
		b.mac.Write(dst[ivAt:])
		b.mac.Sum(dst[:macAt])
	}
	return dst
}

func (b *cbcBox) open(packet []byte) (opened, error) {
	if len(packet) < len(b.header)+b.macSize {
		return opened{}, ReasonShort
	}
	tag, rest := packet[len(b.header):len(b.header)+b.macSize], packet[len(b.header)+b.macSize:]
	if b.mac != nil {
		b.mac.Reset()
		b.mac.Write(rest)
		if !hmac.Equal(tag, b.mac.Sum(b.sum[:0])) {
			return opened{}, ReasonAuth
		}
	}
	text, err := b.decrypt(rest)
	if err != nil {
		return opened{}, err
	}
	if len(text) < b.idSize() {
		return opened{}, ReasonShort
	}
	o := opened{id: binary.BigEndian.Uint32(text), payload: text[b.idSize():]}
	if b.long {
		o.time = binary.BigEndian.Uint32(text[4:])
	}
	return o, nil
}

// decrypt removes IV, cipher and padding from an authentic packet.
func (b *cbcBox) decrypt(rest []byte) ([]byte, error) {
	if b.block == 0 {
		return rest, nil
	}
	if len(rest) <= b.block {
		return nil, ReasonShort
	}
	iv, text := rest[:b.block], rest[b.block:]
	if len(text)%b.block != 0 {
		return nil, ReasonDecrypt
	}
	b.crypt(iv, text)
	// The HMAC was right, so that an early end here tells a stranger nothing;
	// with auth none there is nothing to protect.
	pad := int(text[len(text)-1])
	if pad == 0 || pad > b.block {
		return nil, ReasonDecrypt
	}
	for _, c := range text[len(text)-pad:] {
		if int(c) != pad {
			return nil, ReasonDecrypt
		}
	}
	return text[:len(text)-pad], nil
}

// aeadBox is both directions of the AEAD packet format of TLS mode:
//
//	header (1 or 4) | id (4) | tag (16) | ciphertext
//
// The nonce is the id and the first 8 bytes of the sender's HMAC slot. The
// additional data is the id, with P_DATA_V2 the header before it as well.
type aeadBox struct {
	header []byte // op/key, with P_DATA_V2 also the peer id
	aead   cipher.AEAD
	nonce  [12]byte
	id     uint32
}

const (
	aeadTag    = 16
	dataV1Size = 1 // header of P_DATA_V1
	dataV2Size = 4 // header of P_DATA_V2
)

func newAEAD(spec cipherSpec, half keyHalf) (*aeadBox, error) {
	aead, err := spec.newAEAD(half.cipher[:spec.keySize])
	if err != nil {
		return nil, err
	}
	b := &aeadBox{aead: aead}
	copy(b.nonce[4:], half.hmac[:8])
	return b, nil
}

func (b *aeadBox) sealedSize(n int) int { return len(b.header) + 4 + aeadTag + n }

func (b *aeadBox) used() uint32 { return b.id }

func (b *aeadBox) seal(dst []byte, p *plaintext) ([]byte, error) {
	s, err := b.take(1)
	if err != nil {
		return dst, err
	}
	return b.sealAs(dst, p, s), nil
}

func (b *aeadBox) take(n int) (stamp, error) {
	if maxPacketID-b.id < uint32(n) {
		return stamp{}, errIDsUsed
	}
	s := stamp{id: b.id + 1}
	b.id += uint32(n)
	return s, nil
}

// twin returns nil: these ciphers take less time than waking a goroutine.
func (b *aeadBox) twin() sealer { return nil }

func (b *aeadBox) sealAs(dst []byte, p *plaintext, s stamp) []byte {
	// The library puts the tag last, the format puts it first.
	dst = slices.Grow(dst, b.sealedSize(p.size())+aeadTag)
	start := len(dst)
	dst = append(dst, b.header...)
	dst = binary.BigEndian.AppendUint32(dst, s.id)
	tagAt := len(dst)
	dst = dst[:tagAt+aeadTag]
	textAt := len(dst)
	dst = p.appendTo(dst)
	binary.BigEndian.PutUint32(b.nonce[:], s.id)
	sealed := b.aead.Seal(dst[textAt:textAt], b.nonce[:], dst[textAt:], b.additional(dst[start:tagAt]))
	copy(dst[tagAt:textAt], sealed[len(sealed)-aeadTag:])
	return dst
}

// additional returns the additional data out of header and id.
func (b *aeadBox) additional(headerAndID []byte) []byte {
	if len(b.header) == dataV2Size {
		return headerAndID
	}
	return headerAndID[len(b.header):]
}

func (b *aeadBox) open(packet []byte) (opened, error) {
	idAt := len(b.header)
	tagAt := idAt + 4
	if len(packet) < tagAt+aeadTag {
		return opened{}, ReasonShort
	}
	id := binary.BigEndian.Uint32(packet[idAt:])
	var tag [aeadTag]byte
	copy(tag[:], packet[tagAt:])
	text := packet[tagAt:]
	copy(text, text[aeadTag:])
	copy(text[len(text)-aeadTag:], tag[:])
	binary.BigEndian.PutUint32(b.nonce[:], id)
	payload, err := b.aead.Open(text[:0], b.nonce[:], text, b.additional(packet[:tagAt]))
	if err != nil {
		return opened{}, ReasonAuth
	}
	return opened{id: id, payload: payload}, nil
}
