package openvpn

import (
	"net/netip"
	"strconv"
	"sync/atomic"
	"time"
)

// State is where an endpoint stands.
type State uint8

const (
	// StateConnecting means that nothing authentic came from the peer yet, or no
	// longer.
	StateConnecting State = iota
	// StateUp means that the peer is there and inner packets pass.
	StateUp
	// StateClosed means that the endpoint has ended.
	StateClosed
)

// String returns "connecting", "up" or "closed".
func (s State) String() string {
	switch s {
	case StateConnecting:
		return "connecting"
	case StateUp:
		return "up"
	case StateClosed:
		return "closed"
	}
	return "State(" + strconv.Itoa(int(s)) + ")"
}

// MarshalText returns the text of String.
func (s State) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// Status is a snapshot of an endpoint.
type Status struct {
	// State and the wall clock time since which it holds.
	State State     `json:"state"`
	Since time.Time `json:"since"`
	// Mode is "static", "tls-client" or "tls-server".
	Mode string `json:"mode"`
	// Transport is the text of the configured transport.
	Transport string `json:"transport"`
	// Local and Peer are the outer addresses, invalid while not known.
	Local netip.AddrPort `json:"local"`
	Peer  netip.AddrPort `json:"peer"`
	// Cipher and Digest protect the packets now. In TLS mode Cipher is empty
	// before the negotiation; AEAD ciphers have no digest.
	Cipher Cipher `json:"cipher,omitempty"`
	Digest Digest `json:"digest,omitempty"`
	// KeyID is the number of the current key in TLS mode, Keys how many were
	// agreed on since Open.
	KeyID uint8  `json:"keyId"`
	Keys  uint64 `json:"keys"`
	// TLSVersion is that of the current key, "" in static key mode.
	TLSVersion string `json:"tlsVersion,omitempty"`
	// DataV2 says that packets carry a peer id; PeerID is it.
	DataV2 bool   `json:"dataV2,omitempty"`
	PeerID uint32 `json:"peerId,omitempty"`
	// PeerOptions is the options string of the peer in TLS mode.
	PeerOptions string `json:"peerOptions,omitempty"`
	// Restarts counts the connections that ended since Open, LastError says why
	// the last one did or a negotiation failed, "" if none did.
	Restarts  uint64 `json:"restarts"`
	LastError string `json:"lastError,omitempty"`
	// Heard is when the last authentic packet came, zero if none did.
	Heard    time.Time `json:"heard"`
	Counters Counters  `json:"counters"`
}

// Counters count since Open. Bytes are those of inner packets for In and Out,
// of UDP payloads or TCP frames for the others.
type Counters struct {
	// InPackets came from the peer and went to the Device.
	InPackets uint64 `json:"inPackets"`
	InBytes   uint64 `json:"inBytes"`
	// OutPackets came from the Device and went to the peer.
	OutPackets uint64 `json:"outPackets"`
	OutBytes   uint64 `json:"outBytes"`
	// ReceivedPackets and SentPackets are those outside, of every kind.
	ReceivedPackets uint64 `json:"receivedPackets"`
	ReceivedBytes   uint64 `json:"receivedBytes"`
	SentPackets     uint64 `json:"sentPackets"`
	SentBytes       uint64 `json:"sentBytes"`
	// Dropped counts what was dropped, by reason. Reasons without any are left out.
	Dropped map[Reason]uint64 `json:"dropped,omitempty"`
}

// counters are the live Counters.
type counters struct {
	inPackets, inBytes, outPackets, outBytes                     atomic.Uint64
	receivedPackets, receivedBytes, sentPackets, sentBytes, keys atomic.Uint64
	dropped                                                      [reasonCount]atomic.Uint64
}

func (c *counters) snapshot() Counters {
	s := Counters{
		InPackets: c.inPackets.Load(), InBytes: c.inBytes.Load(),
		OutPackets: c.outPackets.Load(), OutBytes: c.outBytes.Load(),
		ReceivedPackets: c.receivedPackets.Load(), ReceivedBytes: c.receivedBytes.Load(),
		SentPackets: c.sentPackets.Load(), SentBytes: c.sentBytes.Load(),
		Dropped: map[Reason]uint64{},
	}
	for r := range c.dropped {
		if n := c.dropped[r].Load(); n > 0 {
			s.Dropped[Reason(r)] = n
		}
	}
	return s
}
