package openvpn

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"hash"
)

// controlPacket is a packet of the control channel without its protection:
//
//	op<<3 | key id (1) | sender's session id (8) | body
//
// The body, in which the acknowledged session id is there only with
// acknowledgements, and the message id only with opcodes other than P_ACK_V1:
//
//	count (1) | message ids (4 each) | acknowledged session id (8) | message id (4) | TLS bytes
type controlPacket struct {
	op    uint8
	keyID uint8
	sid   sessionID

	acks    []uint32
	ackSID  sessionID
	id      uint32
	payload []byte
}

// sessionID names one side of one TLS session.
type sessionID [8]byte

func newSessionID() (s sessionID) {
	rand.Read(s[:])
	return s
}

// Opcodes. 1 and 2 are obsolete, 10 and 11 belong to tls-crypt-v2.
const (
	opSoftReset   = 3
	opControl     = 4
	opAck         = 5
	opDataV1      = 6
	opResetClient = 7
	opResetServer = 8
	opDataV2      = 9
)

const (
	controlHeader = 1 + len(sessionID{})
	// maxAcks is what real receivers take in one packet.
	maxAcks = 8
	// maxKeyID is the largest key id; after it comes 1, as 0 is for the first key only.
	maxKeyID = 7
)

func (p *controlPacket) first() byte { return p.op<<3 | p.keyID }

func (p *controlPacket) body() []byte {
	dst := []byte{byte(len(p.acks))}
	for _, id := range p.acks {
		dst = binary.BigEndian.AppendUint32(dst, id)
	}
	if len(p.acks) > 0 {
		dst = append(dst, p.ackSID[:]...)
	}
	if p.op == opAck {
		return dst
	}
	dst = binary.BigEndian.AppendUint32(dst, p.id)
	return append(dst, p.payload...)
}

// parseControl takes an unwrapped packet apart. The payload lies within body.
func parseControl(first byte, sid sessionID, body []byte) (controlPacket, error) {
	p := controlPacket{op: first >> 3, keyID: first & maxKeyID, sid: sid}
	if len(body) < 1 {
		return p, ReasonMalformed
	}
	n := int(body[0])
	body = body[1:]
	if n > maxAcks || n > 0 && len(body) < 4*n+len(p.ackSID) {
		return p, ReasonMalformed
	}
	for i := range n {
		p.acks = append(p.acks, binary.BigEndian.Uint32(body[4*i:]))
	}
	body = body[4*n:]
	if n > 0 {
		body = body[copy(p.ackSID[:], body):]
	}
	if p.op == opAck {
		if n == 0 || len(body) > 0 {
			return p, ReasonMalformed
		}
		return p, nil
	}
	if len(body) < 4 {
		return p, ReasonMalformed
	}
	p.id, p.payload = binary.BigEndian.Uint32(body), body[4:]
	return p, nil
}

// wrapping protects control packets. It holds keys and no state.
type wrapping interface {
	// overhead is how many bytes a wrapped packet is longer.
	overhead() int
	// seal returns the packet for the wire.
	seal(first byte, sid sessionID, id, time uint32, body []byte) []byte
	// open checks a packet and returns the body, which may lie within it.
	open(packet []byte) (unwrapped, error)
}

// unwrapped is a control packet whose protection was right. Without protection,
// id is 0.
type unwrapped struct {
	first    byte
	sid      sessionID
	id, time uint32
	body     []byte
}

// newWrapping builds the configured protection.
func newWrapping(t *TLS, d Digest) wrapping {
	switch t.Wrap {
	case WrapAuth:
		send, recv := t.WrapKey.directed(t.WrapDirection)
		return &authWrapping{hash: d.newHash(), size: d.size(), send: send.hmac[:d.size()], recv: recv.hmac[:d.size()]}
	case WrapCrypt:
		return newCryptWrapping(t.WrapKey, t.Role)
	default:
		return bareWrapping{}
	}
}

// bareWrapping is no protection.
type bareWrapping struct{}

func (bareWrapping) overhead() int { return 0 }

func (bareWrapping) seal(first byte, sid sessionID, _, _ uint32, body []byte) []byte {
	return append(append([]byte{first}, sid[:]...), body...)
}

func (bareWrapping) open(p []byte) (unwrapped, error) {
	if len(p) < controlHeader {
		return unwrapped{}, ReasonShort
	}
	return unwrapped{first: p[0], sid: sessionID(p[1:controlHeader]), body: p[controlHeader:]}, nil
}

// authWrapping is tls-auth:
//
//	op/key (1) | session id (8) | HMAC | id (4) | time (4) | body
//
// The HMAC is over id, time, op/key, session id, body, in this order.
type authWrapping struct {
	hash       func() hash.Hash
	size       int
	send, recv []byte
}

func (w *authWrapping) overhead() int { return w.size + 8 }

func (w *authWrapping) sum(key, header, idTime, body []byte) []byte {
	m := hmac.New(w.hash, key)
	m.Write(idTime)
	m.Write(header)
	m.Write(body)
	return m.Sum(nil)
}

func (w *authWrapping) seal(first byte, sid sessionID, id, time uint32, body []byte) []byte {
	p := append([]byte{first}, sid[:]...)
	var idTime [8]byte
	binary.BigEndian.PutUint32(idTime[:], id)
	binary.BigEndian.PutUint32(idTime[4:], time)
	p = append(p, w.sum(w.send, p, idTime[:], body)...)
	return append(append(p, idTime[:]...), body...)
}

func (w *authWrapping) open(p []byte) (unwrapped, error) {
	at := controlHeader + w.size
	if len(p) < at+8 {
		return unwrapped{}, ReasonShort
	}
	header, tag, idTime, body := p[:controlHeader], p[controlHeader:at], p[at:at+8], p[at+8:]
	if !hmac.Equal(tag, w.sum(w.recv, header, idTime, body)) {
		return unwrapped{}, ReasonAuth
	}
	return unwrapped{
		first: p[0], sid: sessionID(p[1:controlHeader]),
		id: binary.BigEndian.Uint32(idTime), time: binary.BigEndian.Uint32(idTime[4:]), body: body,
	}, nil
}

// cryptWrapping is tls-crypt:
//
//	op/key (1) | session id (8) | id (4) | time (4) | tag (32) | AES-256-CTR(body)
//
// The tag is HMAC-SHA256 over everything before it and the clear body; its first
// half is the initial counter.
type cryptWrapping struct{ send, recv keyHalf }

const cryptTag = sha256.Size

// newCryptWrapping gives the server the first half to send with.
func newCryptWrapping(k StaticKey, role Role) *cryptWrapping {
	a, b := k.halves()
	if role == TLSServer {
		return &cryptWrapping{send: a, recv: b}
	}
	return &cryptWrapping{send: b, recv: a}
}

func (w *cryptWrapping) overhead() int { return 8 + cryptTag }

func (w *cryptWrapping) tag(half *keyHalf, plain, body []byte) []byte {
	m := hmac.New(sha256.New, half.hmac[:32])
	m.Write(plain)
	m.Write(body)
	return m.Sum(nil)
}

func (w *cryptWrapping) crypt(half *keyHalf, tag, body []byte) {
	block, err := aes.NewCipher(half.cipher[:32])
	if err != nil {
		panic("openvpn: aes refused a key of 32 bytes: " + err.Error())
	}
	cipher.NewCTR(block, tag[:aes.BlockSize]).XORKeyStream(body, body)
}

func (w *cryptWrapping) seal(first byte, sid sessionID, id, time uint32, body []byte) []byte {
	p := append([]byte{first}, sid[:]...)
	p = binary.BigEndian.AppendUint32(p, id)
	p = binary.BigEndian.AppendUint32(p, time)
	tag := w.tag(&w.send, p, body)
	p = append(append(p, tag...), body...)
	w.crypt(&w.send, tag, p[len(p)-len(body):])
	return p
}

func (w *cryptWrapping) open(p []byte) (unwrapped, error) {
	const tagAt = controlHeader + 8
	if len(p) < tagAt+cryptTag {
		return unwrapped{}, ReasonShort
	}
	plain, tag := p[:tagAt], p[tagAt:tagAt+cryptTag]
	body := append([]byte(nil), p[tagAt+cryptTag:]...)
	w.crypt(&w.recv, tag, body)
	if !hmac.Equal(tag, w.tag(&w.recv, plain, body)) {
		return unwrapped{}, ReasonAuth
	}
	return unwrapped{
		first: p[0], sid: sessionID(p[1:controlHeader]),
		id: binary.BigEndian.Uint32(p[controlHeader:]), time: binary.BigEndian.Uint32(p[controlHeader+4:]), body: body,
	}, nil
}
