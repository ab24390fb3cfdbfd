package openvpn

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
)

// StaticKey is the 2048 bit key of an OpenVPN static key file. The same kind
// of file keys static key mode, tls-auth and tls-crypt. It prints as
// [redacted]. The zero value is no key and is refused by [Config.Validate].
type StaticKey struct{ b [staticKeySize]byte }

const (
	staticKeySize = 256
	slotSize      = 64
	// maxKeyFile bounds the text that ParseStaticKey looks at. Real files are
	// smaller than 1 KiB.
	maxKeyFile = 64 << 10

	keyBegin = "-----BEGIN OpenVPN Static key V1-----"
	keyEnd   = "-----END OpenVPN Static key V1-----"
)

// Direction tells which halves of a static key protect which direction of
// traffic. The two sides must use DirectionNone both, or 0 and 1.
type Direction uint8

const (
	// DirectionNone uses the first half both ways. It is the zero value and
	// what VyOS routers do.
	DirectionNone Direction = iota
	// Direction0 sends with the first half and receives with the second.
	Direction0
	// Direction1 sends with the second half and receives with the first.
	Direction1
)

// String returns "none", "0" or "1".
func (d Direction) String() string {
	switch d {
	case DirectionNone:
		return "none"
	case Direction0:
		return "0"
	case Direction1:
		return "1"
	}
	return "Direction(" + strconv.Itoa(int(d)) + ")"
}

// ParseStaticKey reads the text of a static key file. Everything before the
// begin line and all white space between the lines are ignored, so that the
// 512 digits may stand in one line.
func ParseStaticKey(text []byte) (StaticKey, error) {
	var k StaticKey
	if len(text) > maxKeyFile {
		return k, fmt.Errorf("parse static key: %d bytes is too long for a key file", len(text))
	}
	_, rest, found := bytes.Cut(text, []byte(keyBegin))
	if !found {
		return k, errors.New("parse static key: no line " + strconv.Quote(keyBegin))
	}
	body, _, found := bytes.Cut(rest, []byte(keyEnd))
	if !found {
		return k, errors.New("parse static key: no line " + strconv.Quote(keyEnd))
	}
	digits := bytes.Join(bytes.Fields(body), nil)
	if len(digits) != 2*staticKeySize {
		return k, fmt.Errorf("parse static key: %d hexadecimal digits, want %d", len(digits), 2*staticKeySize)
	}
	if _, err := hex.Decode(k.b[:], digits); err != nil {
		// The error of hex names a byte of the key: it stays here.
		return StaticKey{}, errors.New("parse static key: a character is not a hexadecimal digit")
	}
	if k.IsZero() {
		return k, errors.New("parse static key: all digits are zero")
	}
	return k, nil
}

// GenerateStaticKey returns a fresh random key.
func GenerateStaticKey() StaticKey {
	var k StaticKey
	rand.Read(k.b[:]) // never fails: crypto/rand ends the process instead
	return k
}

// Encode returns the key as the text of a key file, 16 lines of 32 digits.
// The text is secret.
func (k StaticKey) Encode() []byte {
	var out bytes.Buffer
	out.WriteString("#\n# 2048 bit OpenVPN static key\n#\n" + keyBegin + "\n")
	for i := 0; i < staticKeySize; i += 16 {
		out.WriteString(hex.EncodeToString(k.b[i:i+16]) + "\n")
	}
	out.WriteString(keyEnd + "\n")
	return out.Bytes()
}

// IsZero reports whether k is the zero value, which is no key.
func (k StaticKey) IsZero() bool { return k == StaticKey{} }

// Format writes [redacted] for every verb.
func (k StaticKey) Format(f fmt.State, _ rune) { io.WriteString(f, "[redacted]") }

// LogValue returns [redacted].
func (k StaticKey) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// keyHalf is one of the two halves of 256 bytes of key material: a slot for
// the cipher and one for the HMAC, of which the first bytes are used as they are.
type keyHalf struct {
	cipher [slotSize]byte
	hmac   [slotSize]byte
}

// halves cuts 256 bytes into cipher and HMAC slots: A.cipher, A.hmac,
// B.cipher, B.hmac, 64 bytes each.
func (k *StaticKey) halves() (a, b keyHalf) {
	copy(a.cipher[:], k.b[0:64])
	copy(a.hmac[:], k.b[64:128])
	copy(b.cipher[:], k.b[128:192])
	copy(b.hmac[:], k.b[192:256])
	return a, b
}

// directed returns the halves to send and to receive with.
func (k *StaticKey) directed(d Direction) (send, recv keyHalf) {
	a, b := k.halves()
	switch d {
	case Direction0:
		return a, b
	case Direction1:
		return b, a
	default:
		return a, a
	}
}

// xor returns the two keys combined byte by byte.
func (k StaticKey) xor(o StaticKey) StaticKey {
	for i := range k.b {
		k.b[i] ^= o.b[i]
	}
	return k
}
