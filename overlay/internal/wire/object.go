package wire

import (
	"crypto/ed25519"
	"encoding/binary"
)

// Type says what an object is (docs/protocol.md, section 2).
type Type uint8

// The types of objects.
const (
	Genesis      Type = 1
	Epoch        Type = 2
	Delegation   Type = 3
	Certificate  Type = 4
	Record       Type = 5
	Ticket       Type = 6
	EnrolRequest Type = 7
	EnrolReply   Type = 8
	Revocation   Type = 9
	Introduction Type = 10
)

// Version is the version of every object (docs/protocol.md, section 2).
const Version = 1

// headerLen is type, version and body length.
const headerLen = 6

// kind is what the table of docs/protocol.md, section 2 says of a type.
type kind struct {
	label      string
	signatures int
	limit      int
}

var kinds = map[Type]kind{
	Genesis:      {"genesis", 0, 1 << 10},
	Epoch:        {"epoch", 2, 1 << 10},
	Delegation:   {"delegation", 1, 2 << 10},
	Certificate:  {"certificate", 1, 4 << 10},
	Record:       {"record", 1, 8 << 10},
	Ticket:       {"ticket", 1, 8 << 10},
	EnrolRequest: {"enrol-request", 2, 2 << 10},
	EnrolReply:   {"enrol-reply", 0, 64 << 10},
	Revocation:   {"revocation", 1, 2 << 10},
	Introduction: {"introduction", 0, 16 << 10},
}

// Object is an object taken apart. Its slices point into the raw bytes.
type Object struct {
	Type       Type
	Body       []byte
	signed     []byte // type … body
	signatures []byte
}

// Encode puts a body into an object and signs it with keys, in their order.
func Encode(t Type, mesh [32]byte, body []byte, keys ...ed25519.PrivateKey) ([]byte, error) {
	k := kinds[t]
	if len(keys) != k.signatures {
		return nil, malformed("%s wants %d signatures, not %d", k.label, k.signatures, len(keys))
	}
	raw := append(make([]byte, 0, headerLen+len(body)+len(keys)*ed25519.SignatureSize), byte(t), Version)
	raw = binary.BigEndian.AppendUint32(raw, uint32(len(body)))
	raw = append(raw, body...)
	message := signedBytes(k.label, mesh, raw)
	for _, key := range keys {
		raw = append(raw, ed25519.Sign(key, message)...)
	}
	if len(raw) > k.limit {
		return nil, malformed("%s of %d bytes, want at most %d", k.label, len(raw), k.limit)
	}
	return raw, nil
}

// Decode takes an object of the given type apart; nothing may follow it. No
// signature is checked.
func Decode(t Type, raw []byte) (Object, error) {
	o, rest, err := Cut(raw)
	if err != nil {
		return Object{}, err
	}
	if o.Type != t {
		return Object{}, malformed("%s where %s is wanted", kinds[o.Type].label, kinds[t].label)
	}
	if len(rest) > 0 {
		return Object{}, malformed("%d bytes after %s", len(rest), kinds[t].label)
	}
	return o, nil
}

// Cut takes the object at the front of b apart. Limits are checked before
// anything else is looked at.
func Cut(b []byte) (Object, []byte, error) {
	if len(b) < headerLen {
		return Object{}, nil, malformed("object of %d bytes", len(b))
	}
	k, known := kinds[Type(b[0])]
	if !known || b[1] != Version {
		return Object{}, nil, malformed("object of type %d version %d", b[0], b[1])
	}
	n := uint64(binary.BigEndian.Uint32(b[2:]))
	total := headerLen + n + uint64(k.signatures)*ed25519.SignatureSize
	if total > uint64(k.limit) {
		return Object{}, nil, malformed("%s of %d bytes, want at most %d", k.label, total, k.limit)
	}
	if total > uint64(len(b)) {
		return Object{}, nil, malformed("%s cut short", k.label)
	}
	body := headerLen + int(n)
	return Object{
		Type:       Type(b[0]),
		Body:       b[headerLen:body:body],
		signed:     b[:body:body],
		signatures: b[body:total:total],
	}, b[total:], nil
}

// Verify reports whether the signature number i is that of key.
func (o Object) Verify(mesh [32]byte, i int, key []byte) bool {
	if len(key) != ed25519.PublicKeySize || len(o.signatures) < (i+1)*ed25519.SignatureSize {
		return false
	}
	signature := o.signatures[i*ed25519.SignatureSize:][:ed25519.SignatureSize]
	return ed25519.Verify(key, signedBytes(kinds[o.Type].label, mesh, o.signed), signature)
}

// signedBytes is what a signature covers.
func signedBytes(label string, mesh [32]byte, signed []byte) []byte {
	b := append([]byte("planetmesh/1/"+label+"\x00"), mesh[:]...)
	return append(b, signed...)
}

// SplitObjects cuts a sequence of objects of any type into their raw bytes,
// copied. Nothing in them is looked at.
func SplitObjects(b []byte) ([][]byte, error) { return split(b, 0) }

// SplitList is SplitObjects for a list of one type.
func SplitList(t Type, b []byte) ([][]byte, error) { return split(b, t) }

func split(b []byte, want Type) ([][]byte, error) {
	b = append([]byte(nil), b...)
	var out [][]byte
	for len(b) > 0 {
		o, rest, err := Cut(b)
		if err != nil {
			return nil, err
		}
		if want != 0 && o.Type != want {
			return nil, malformed("%s in a list of %s", kinds[o.Type].label, kinds[want].label)
		}
		n := len(b) - len(rest)
		out = append(out, b[:n:n])
		b = rest
	}
	return out, nil
}
