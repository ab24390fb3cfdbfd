package attach

import (
	"log/slog"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// filter is a Device that takes packets of the router from allowed sources
// only, and counts the others. It allocates nothing for packets that pass.
type filter struct {
	openvpn.Device
	name    string
	log     *slog.Logger
	allowed []netip.Prefix

	refused, linkLocal atomic.Uint64
	warned             atomic.Int64 // Unix nanoseconds of the last line in the log
}

// warnInterval is the least time between two lines about forbidden sources.
const warnInterval = time.Minute

func newFilter(d openvpn.Device, o *conf.OpenVPN, log *slog.Logger) *filter {
	f := &filter{Device: d, name: o.Name, log: log}
	f.allowed = append(f.allowed, o.Prefixes...)
	for _, peer := range valid(o.Tunnel.Peer, o.Tunnel.Peer6) {
		f.allowed = append(f.allowed, netip.PrefixFrom(peer, peer.BitLen()))
	}
	return f
}

// Batch hands on what the Device wants, as openvpn.Batcher says.
func (f *filter) Batch() (packets, size int) {
	if b, ok := f.Device.(interface{ Batch() (packets, size int) }); ok {
		return b.Batch()
	}
	return 64, 0 // what an endpoint does without a wish
}

// WritePackets passes on what comes from allowed sources.
func (f *filter) WritePackets(packets [][]byte) error {
	for i, p := range packets {
		if f.allows(p) {
			continue
		}
		rest := make([][]byte, i, len(packets)) // the caller's list is not ours to change
		copy(rest, packets[:i])
		for _, p := range packets[i+1:] {
			if f.allows(p) {
				rest = append(rest, p)
			}
		}
		if len(rest) == 0 {
			return nil
		}
		return f.Device.WritePackets(rest)
	}
	return f.Device.WritePackets(packets)
}

// allows looks at the source of a packet: bytes 12 to 16 of the IPv4 (RFC 791),
// 8 to 24 of the IPv6 header (RFC 8200).
func (f *filter) allows(p []byte) bool {
	var source netip.Addr
	switch {
	case len(p) >= 20 && p[0]>>4 == 4:
		source = netip.AddrFrom4([4]byte(p[12:16]))
	case len(p) >= 40 && p[0]>>4 == 6:
		source = netip.AddrFrom16([16]byte(p[8:24]))
	}
	for _, a := range f.allowed {
		if a.Contains(source) {
			return true
		}
	}
	// Hosts look for neighbours and routers on every interface: not worth a line.
	if source.Is6() && (source.IsLinkLocalUnicast() || source.IsUnspecified()) {
		f.linkLocal.Add(1)
		return false
	}
	f.refused.Add(1)
	now, last := time.Now().UnixNano(), f.warned.Load()
	if now-last >= int64(warnInterval) && f.warned.CompareAndSwap(last, now) {
		f.log.Warn("packet from a source that is not behind the router", "attachment", f.name, "source", source)
	}
	return false
}
