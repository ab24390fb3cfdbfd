package openvpn

import (
	"bytes"
	"crypto/hmac"
	"crypto/md5"
	"crypto/rand"
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"hash"
	"slices"
	"strconv"
	"strings"
)

// keyMessage is the key method 2 message, which both sides send once per key
// inside TLS, the client first:
//
//	zero (4) | method 2 (1) | [pre-master (48)] | random1 (32) | random2 (32)
//	options | user name | password | peer info
//
// The pre-master is the client's only. Strings are a length (2) that counts the
// NUL at their end; an absent one is just a length of 0.
type keyMessage struct {
	preMaster        [48]byte
	random1, random2 [32]byte
	options          string
	peerInfo         string
}

const (
	keyMethod = 2
	// maxKeyMessage bounds the message. Real ones have less than 600 bytes.
	maxKeyMessage = 16 << 10
)

func newKeyMessage(options, peerInfo string) keyMessage {
	m := keyMessage{options: options, peerInfo: peerInfo}
	rand.Read(m.preMaster[:])
	rand.Read(m.random1[:])
	rand.Read(m.random2[:])
	return m
}

// encode returns the message as the role sends it.
func (m *keyMessage) encode(role Role) []byte {
	out := []byte{0, 0, 0, 0, keyMethod}
	if role == TLSClient {
		out = append(out, m.preMaster[:]...)
	}
	out = append(append(out, m.random1[:]...), m.random2[:]...)
	for _, s := range []string{m.options, "", "", m.peerInfo} {
		if s == "" {
			out = append(out, 0, 0)
			continue
		}
		out = binary.BigEndian.AppendUint16(out, uint16(len(s)+1))
		out = append(append(out, s...), 0)
	}
	return out
}

// errIncomplete is returned by parseKeyMessage while bytes are missing.
var errIncomplete = errors.New("key message is incomplete")

// parseKeyMessage reads the message of a sender in that role from the start of
// in, and returns its length.
func parseKeyMessage(role Role, in []byte) (m keyMessage, size int, err error) {
	rest := in
	take := func(dst []byte) bool {
		if len(rest) < len(dst) {
			return false
		}
		rest = rest[copy(dst, rest):]
		return true
	}
	var head [5]byte
	if !take(head[:]) {
		return m, 0, errIncomplete
	}
	if head != [5]byte{4: keyMethod} {
		return m, 0, ReasonMalformed
	}
	if role == TLSClient && !take(m.preMaster[:]) || !take(m.random1[:]) || !take(m.random2[:]) {
		return m, 0, errIncomplete
	}
	for _, field := range []*string{&m.options, new(string), new(string), &m.peerInfo} {
		s, left, err := parseKeyString(rest)
		if err != nil {
			return m, 0, err
		}
		*field, rest = s, left
	}
	return m, len(in) - len(rest), nil
}

func parseKeyString(in []byte) (string, []byte, error) {
	if len(in) < 2 {
		return "", nil, errIncomplete
	}
	n, rest := int(binary.BigEndian.Uint16(in)), in[2:]
	if n > maxKeyMessage {
		return "", nil, ReasonMalformed
	}
	if len(rest) < n {
		return "", nil, errIncomplete
	}
	text, _, _ := bytes.Cut(rest[:n], []byte{0})
	return string(text), rest[n:], nil
}

// Bits of IV_PROTO that this package knows.
const (
	protoDataV2    = 1 << 1
	protoExporter  = 1 << 3
	protoP2P       = 1 << 5
	protoExit      = 1 << 7
	protoDynWrap   = 1 << 9
	protoSupported = protoDataV2 | protoExporter | protoP2P | protoExit | protoDynWrap
)

// peerInfo is what the two variables of a peer info say.
type peerInfo struct {
	ciphers []Cipher // empty: the peer does not negotiate
	proto   uint32
}

func (p peerInfo) encode() string {
	names := make([]string, len(p.ciphers))
	for i, c := range p.ciphers {
		names[i] = string(c)
	}
	return "IV_CIPHERS=" + strings.Join(names, ":") + "\nIV_PROTO=" + strconv.FormatUint(uint64(p.proto), 10) + "\n"
}

// parsePeerInfo never fails: what it does not understand says nothing.
func parsePeerInfo(text string) peerInfo {
	var p peerInfo
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\n"), "=")
		switch name {
		case "IV_CIPHERS":
			p.ciphers = nil
			for c := range strings.SplitSeq(value, ":") {
				p.ciphers = append(p.ciphers, Cipher(strings.ToUpper(c)))
			}
		case "IV_PROTO":
			n, err := strconv.ParseUint(value, 10, 32)
			if err == nil {
				p.proto = uint32(n)
			}
		}
	}
	return p
}

// agreement is what two sides settle at key 0 and keep for the session.
type agreement struct {
	cipher   cipherSpec
	dataV2   bool
	exporter bool
	exit     bool // EXIT over the control channel
	dynWrap  bool // dynamic tls-crypt for renegotiations
}

// agree settles cipher and formats. Each side uses only what both announced.
func agree(role Role, ours, theirs peerInfo, fallback Cipher) (agreement, error) {
	var a agreement
	if both := ours.proto & theirs.proto; both&protoP2P != 0 {
		a.dataV2 = both&protoDataV2 != 0
		a.exporter = both&protoExporter != 0
		a.exit = both&protoExit != 0
		a.dynWrap = both&protoDynWrap != 0
	}
	server, client := ours.ciphers, theirs.ciphers
	if role == TLSClient {
		server, client = client, server
	}
	name := fallback
	if at := slices.IndexFunc(server, func(c Cipher) bool { return slices.Contains(client, c) }); at >= 0 {
		name = server[at]
	}
	spec, known := cipherSpecOf(name)
	if !known {
		return a, ReasonCipher
	}
	a.cipher = spec
	return a, nil
}

// Labels of the TLS exporter.
const (
	labelDataKeys = "EXPORTER-OpenVPN-datakeys"
	labelPeerID   = "EXPORTER-OpenVPN-p2p-peerid"
	labelDynWrap  = "EXPORTER-OpenVPN-dynamic-tls-crypt"
	// prfPeerID is the peer id without exporter ("vpn").
	prfPeerID = 0x76706e
)

// prfKeys derives the key block of the older generation from both messages.
func prfKeys(client, server *keyMessage, clientSID, serverSID sessionID) StaticKey {
	master := tls10PRF(client.preMaster[:], "OpenVPN master secret", 48, client.random1[:], server.random1[:])
	var k StaticKey
	copy(k.b[:], tls10PRF(master, "OpenVPN key expansion", staticKeySize, client.random2[:], server.random2[:], clientSID[:], serverSID[:]))
	return k
}

// tls10PRF is the pseudo-random function of TLS 1.0 (RFC 2246, section 5).
func tls10PRF(secret []byte, label string, n int, seeds ...[]byte) []byte {
	seed := append([]byte(label), bytes.Join(seeds, nil)...)
	half := (len(secret) + 1) / 2
	out := pHash(md5.New, secret[:half], seed, n)
	for i, b := range pHash(sha1.New, secret[len(secret)-half:], seed, n) {
		out[i] ^= b
	}
	return out
}

// pHash is P_hash of RFC 2246, section 5.
func pHash(h func() hash.Hash, secret, seed []byte, n int) []byte {
	m := hmac.New(h, secret)
	next := func(parts ...[]byte) []byte {
		m.Reset()
		for _, p := range parts {
			m.Write(p)
		}
		return m.Sum(nil)
	}
	var out []byte
	for a := next(seed); len(out) < n; a = next(a) {
		out = append(out, next(a, seed)...)
	}
	return out[:n]
}
