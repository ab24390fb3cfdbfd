package openvpn

import (
	"bytes"
	"fmt"
	"net/netip"
	"strings"
)

// Payloads that are no inner packets. Both magic numbers begin with a nibble
// that no IP version has.
var (
	pingMagic = [16]byte{0x2a, 0x18, 0x7b, 0xf3, 0x64, 0x1e, 0xb4, 0xcb, 0x07, 0xed, 0x2d, 0x0a, 0x98, 0x1f, 0xc7, 0x48}
	occMagic  = [16]byte{0x28, 0x7f, 0x34, 0x6b, 0xd4, 0xef, 0x7a, 0x81, 0x2d, 0x56, 0xb8, 0xd3, 0xaf, 0xc5, 0x45, 0x9c}
)

// Opcodes of options consistency messages. 2 to 5 measure the MTU and are
// ignored.
const (
	occRequest = 0
	occReply   = 1
	occExit    = 6
)

// payloadKind says what a payload is, once all framing is off.
type payloadKind uint8

const (
	payloadEmpty payloadKind = iota
	payloadPing
	payloadOCC
	payloadIP
	payloadUnknown
)

// classify looks at the first bytes of a payload.
func classify(p []byte) payloadKind {
	switch {
	case len(p) == 0:
		return payloadEmpty
	case bytes.Equal(p, pingMagic[:]):
		return payloadPing
	case len(p) > len(occMagic) && bytes.HasPrefix(p, occMagic[:]):
		return payloadOCC
	case p[0]>>4 == 4 && len(p) >= 20, p[0]>>4 == 6 && len(p) >= 40:
		return payloadIP
	}
	return payloadUnknown
}

// occMessage builds an options consistency message.
func occMessage(op byte, body string) []byte {
	msg := append([]byte(nil), occMagic[:]...)
	msg = append(msg, op)
	if op == occReply {
		msg = append(append(msg, body...), 0)
	}
	return msg
}

// maxOptions bounds the options string of a peer. Real ones have 150 bytes.
const maxOptions = 1024

// parseOCCReply returns the options string of a reply.
func parseOCCReply(p []byte) (string, error) {
	body := p[min(len(p), len(occMagic)+1):]
	text, _, found := bytes.Cut(body, []byte{0})
	if !found || len(text) > maxOptions {
		return "", ReasonMalformed
	}
	return string(text), nil
}

// optionFacts is what goes into an options string.
type optionFacts struct {
	transport     Transport
	mtu           int
	local, remote netip.Addr // IPv4, may be invalid
	ipv6          bool
	framing       Framing
	fragment      bool
	direction     Direction
	cipher        cipherSpec
	digest        Digest
	tls           bool
	tlsAuth       bool
	role          Role
}

// optionsString returns what the peer compares with its own configuration. A
// mismatch makes real peers warn and nothing else.
func optionsString(f optionFacts) string {
	items := []string{"V4", "dev-type tun", fmt.Sprintf("link-mtu %d", f.linkMTU()), fmt.Sprintf("tun-mtu %d", f.mtu), "proto " + f.proto()}
	add := func(when bool, item string) {
		if when {
			items = append(items, item)
		}
	}
	add(f.ipv6, "tun-ipv6")
	add(f.local.Is4() && f.remote.Is4(), fmt.Sprintf("ifconfig %s %s", f.remote, f.local))
	add(f.framing != FramingNone, "comp-lzo")
	add(f.fragment, "mtu-dynamic")
	add(f.direction != DirectionNone, "keydir "+f.direction.String())
	cipherName, digestName := string(f.cipher.name), string(f.digest)
	if f.cipher.name == CipherNone {
		cipherName = "[null-cipher]"
	}
	if f.digest == DigestNone || f.cipher.aead {
		digestName = "[null-digest]"
	}
	items = append(items, "cipher "+cipherName, "auth "+digestName, fmt.Sprintf("keysize %d", 8*f.cipher.keySize))
	if !f.tls {
		return strings.Join(append(items, "secret"), ",")
	}
	add(f.tlsAuth, "tls-auth")
	return strings.Join(append(items, "key-method 2", f.role.option()), ",")
}

func (f optionFacts) proto() string {
	switch f.transport {
	case TCPListen:
		return "TCPv4_SERVER"
	case TCPConnect:
		return "TCPv4_CLIENT"
	default:
		return "UDPv4"
	}
}

// linkMTU is the number that real peers compute, from static maxima.
func (f optionFacts) linkMTU() int {
	n := f.mtu
	switch {
	case f.cipher.aead:
		n += dataV1Size + 4 + aeadTag + 12 + 16
	case f.tls:
		n += dataV1Size + 4 + 2*f.cipher.block + f.digest.size()
	default:
		n += 8 + 2*f.cipher.block + f.digest.size()
	}
	if f.transport != UDP {
		n += frameHeaderSize
	}
	if f.framing.firstVersion() {
		n++
	}
	if f.fragment {
		n += fragmentHeaderSize
	}
	return n
}
