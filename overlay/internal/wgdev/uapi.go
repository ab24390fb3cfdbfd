package wgdev

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// render writes changes in WireGuard's configuration protocol
// (https://www.wireguard.com/xplatform/, with wireguard-go's sign for removing
// one allowed prefix).
func render(changes engine.Changes, endpoint func(trust.GatewayID) string) string {
	var b strings.Builder
	var current trust.ExchangeKey // of the peer that lines are about
	begin := func(key trust.ExchangeKey) {
		fmt.Fprintf(&b, "public_key=%x\n", key[:])
		current = key
	}
	for _, c := range changes {
		if c.Op == engine.AddPeer {
			// Roaming is switched off when the first block ends. A packet
			// that came in before that may have moved the endpoint; the
			// second block puts it back, and there it stays.
			begin(c.Key)
			fmt.Fprintf(&b, "endpoint=%s\n", endpoint(c.Peer))
			begin(c.Key)
			fmt.Fprintf(&b, "endpoint=%s\n", endpoint(c.Peer))
			continue
		}
		if c.Key != current {
			begin(c.Key)
			b.WriteString("update_only=true\n")
		}
		switch c.Op {
		case engine.RemovePeer:
			b.WriteString("remove=true\n")
			current = trust.ExchangeKey{}
		case engine.AddPrefix:
			fmt.Fprintf(&b, "allowed_ip=%v\n", c.Prefix)
		case engine.RemovePrefix:
			fmt.Fprintf(&b, "allowed_ip=-%v\n", c.Prefix)
		}
	}
	return b.String()
}

// state is what a device says of a peer.
type state struct {
	endpoint string
	stats    PeerStats
	allowed  []netip.Prefix
}

// parse reads the answer of a device to "get". Keys that it does not know are
// left out.
func parse(text []byte) (map[trust.ExchangeKey]*state, error) {
	out := make(map[trust.ExchangeKey]*state)
	var peer *state
	var sec, nsec int64
	end := func() {
		if peer != nil && (sec != 0 || nsec != 0) {
			peer.stats.LastHandshake = time.Unix(sec, nsec)
		}
		sec, nsec = 0, 0
	}
	lines := bufio.NewScanner(bytes.NewReader(text))
	for lines.Scan() {
		key, value, _ := strings.Cut(lines.Text(), "=")
		if key == "public_key" {
			end()
			var k trust.ExchangeKey
			if n, err := hex.Decode(k[:], []byte(value[:min(len(value), 2*len(k))])); err != nil || n != len(k) || len(value) != 2*n {
				return nil, fmt.Errorf("public key of a peer is not %d hex digits", 2*len(k))
			}
			peer = new(state)
			out[k] = peer
			continue
		}
		if peer == nil {
			continue
		}
		var err error
		switch key {
		case "endpoint":
			peer.endpoint = value
		case "rx_bytes":
			peer.stats.Rx, err = strconv.ParseUint(value, 10, 64)
		case "tx_bytes":
			peer.stats.Tx, err = strconv.ParseUint(value, 10, 64)
		case "last_handshake_time_sec":
			sec, err = strconv.ParseInt(value, 10, 64)
		case "last_handshake_time_nsec":
			nsec, err = strconv.ParseInt(value, 10, 64)
		case "allowed_ip":
			var p netip.Prefix
			p, err = netip.ParsePrefix(value)
			peer.allowed = append(peer.allowed, p)
		}
		if err != nil {
			return nil, fmt.Errorf("%s of a peer: %w", key, err)
		}
	}
	end()
	return out, lines.Err()
}
