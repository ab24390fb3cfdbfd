package link

import "sync/atomic"

// Counters are totals since Open. Every datagram that is refused or dropped is
// in exactly one of the fields below the first group. A copy; owned by the
// caller.
type Counters struct {
	Probes        uint64 `json:"probes"`         // valid probes answered
	Replies       uint64 `json:"replies"`        // valid probe replies given to the handler
	Gossip        uint64 `json:"gossip"`         // valid gossip datagrams given to the handler
	Stream        uint64 `json:"stream"`         // stream carriers queued for the reader
	ProbesSent    uint64 `json:"probes_sent"`    //
	GossipSent    uint64 `json:"gossip_sent"`    //
	StreamSent    uint64 `json:"stream_sent"`    //
	SendErrors    uint64 `json:"send_errors"`    // link datagrams and stream carriers that the socket refused
	ReceiveErrors uint64 `json:"receive_errors"` // failed reads from the socket

	Short      uint64 `json:"short"`       // shorter than its header
	Oversize   uint64 `json:"oversize"`    // longer than 1,232 bytes and no probe, in or out
	Type       uint64 `json:"type"`        // first byte unknown (checked after the tag)
	Version    uint64 `json:"version"`     // version other than ours (checked after the tag)
	Tag        uint64 `json:"tag"`         // tag of the mesh does not hold
	UnknownKey uint64 `json:"unknown_key"` // key ID of nobody, or of the other datagram type
	Seal       uint64 `json:"seal"`        // authenticated encryption does not open
	Format     uint64 `json:"format"`      // opened, but not a probe or reply
	Replay     uint64 `json:"replay"`      // gossip counter seen before, or zero
	Challenge  uint64 `json:"challenge"`   // reply that the handler did not count
	QueueFull  uint64 `json:"queue_full"`  // stream carrier dropped: the reader is too slow
	NoReader   uint64 `json:"no_reader"`   // stream carrier while the stream connection is closed
	NoHandler  uint64 `json:"no_handler"`  // reply or gossip before Handle
	NoDevice   uint64 `json:"no_device"`   // WireGuard packet while no device is open
	NoPath     uint64 `json:"no_path"`     // packet or gossip towards a peer without a path
}

// counters is the live form of Counters.
type counters struct {
	probes, replies, gossip, stream    atomic.Uint64
	probesSent, gossipSent, streamSent atomic.Uint64
	sendErrors, receiveErrors          atomic.Uint64
	short, oversize, typ, version, tag atomic.Uint64
	unknownKey, seal, format, replay   atomic.Uint64
	challenge, queueFull, noReader     atomic.Uint64
	noHandler, noDevice, noPath        atomic.Uint64
}

// Counters returns the totals so far. Safe for concurrent use.
func (p *Port) Counters() Counters {
	c := &p.counters
	return Counters{
		Probes: c.probes.Load(), Replies: c.replies.Load(), Gossip: c.gossip.Load(), Stream: c.stream.Load(),
		ProbesSent: c.probesSent.Load(), GossipSent: c.gossipSent.Load(), StreamSent: c.streamSent.Load(),
		SendErrors: c.sendErrors.Load(), ReceiveErrors: c.receiveErrors.Load(),
		Short: c.short.Load(), Oversize: c.oversize.Load(), Type: c.typ.Load(), Version: c.version.Load(), Tag: c.tag.Load(),
		UnknownKey: c.unknownKey.Load(), Seal: c.seal.Load(), Format: c.format.Load(), Replay: c.replay.Load(),
		Challenge: c.challenge.Load(), QueueFull: c.queueFull.Load(), NoReader: c.noReader.Load(),
		NoHandler: c.noHandler.Load(), NoDevice: c.noDevice.Load(), NoPath: c.noPath.Load(),
	}
}
