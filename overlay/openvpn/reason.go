package openvpn

import "strconv"

// Reason says why a packet was dropped. It is an error, so that decoders
// return it without allocating. The zero value means "not dropped" and is
// never returned.
type Reason uint8

// The reasons, in the order in which a packet meets the checks.
const (
	_ Reason = iota
	// ReasonAddress is a packet that came from another address than the peer's.
	ReasonAddress
	// ReasonFraming is a TCP frame of length zero or beyond the limit.
	ReasonFraming
	// ReasonOversize is a packet larger than the receive buffer or the inner limit.
	ReasonOversize
	// ReasonShort is a packet that ends before its HMAC, IV or tag does.
	ReasonShort
	// ReasonOpcode is an unknown or obsolete opcode in TLS mode.
	ReasonOpcode
	// ReasonRole is a reset of a peer that has the same TLS role as we.
	ReasonRole
	// ReasonSession is a control packet of an unknown session that starts none.
	ReasonSession
	// ReasonMalformed is a control packet or key message that does not parse.
	ReasonMalformed
	// ReasonNoKey is a data packet under a key that is not (yet) there.
	ReasonNoKey
	// ReasonAuth is a wrong HMAC or tag: another key, direction or digest, or damage.
	ReasonAuth
	// ReasonDecrypt is authentic, but no ciphertext of the cipher.
	ReasonDecrypt
	// ReasonReplay is authentic, but seen before, too old, or of an older time.
	ReasonReplay
	// ReasonFragment is a fragment that fits no packet, or a packet never completed.
	ReasonFragment
	// ReasonCompress is a wrong compression byte or damaged compressed data.
	ReasonCompress
	// ReasonPayload is authentic, but neither IP nor a message of the protocol.
	ReasonPayload
	// ReasonTLS is an attempt that ended with a TLS error.
	ReasonTLS
	// ReasonCertificate is an attempt that ended because of the peer's certificate.
	ReasonCertificate
	// ReasonCipher is an attempt that ended without a cipher that both sides have.
	ReasonCipher
	// ReasonLimit is a new session refused because there are too many just now.
	ReasonLimit
	// ReasonNoPeer is an inner packet that arrived while there was no way to the peer.
	ReasonNoPeer
	// ReasonSend is a packet that the socket did not take.
	ReasonSend
	reasonCount
)

var reasonNames = [reasonCount]string{
	ReasonAddress: "addr", ReasonFraming: "framing", ReasonOversize: "oversize", ReasonShort: "short",
	ReasonOpcode: "opcode", ReasonRole: "role", ReasonSession: "sid", ReasonMalformed: "malformed",
	ReasonNoKey: "nokey", ReasonAuth: "auth", ReasonDecrypt: "decrypt", ReasonReplay: "replay",
	ReasonFragment: "fragment", ReasonCompress: "compress", ReasonPayload: "payload", ReasonTLS: "tls",
	ReasonCertificate: "cert", ReasonCipher: "cipher", ReasonLimit: "limit", ReasonNoPeer: "nopeer",
	ReasonSend: "send",
}

// String returns the short name under which the reason is counted.
func (r Reason) String() string {
	if r < reasonCount && reasonNames[r] != "" {
		return reasonNames[r]
	}
	return "Reason(" + strconv.Itoa(int(r)) + ")"
}

// Error returns the text of the reason as an error.
func (r Reason) Error() string { return "dropped: " + r.String() }

// MarshalText returns the short name, so that a map by Reason becomes JSON.
func (r Reason) MarshalText() ([]byte, error) { return []byte(r.String()), nil }
