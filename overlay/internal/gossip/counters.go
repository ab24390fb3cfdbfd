package gossip

import "sync/atomic"

// counters has one counter for each event.
type counters [numEvents]atomic.Uint64

type event int

const (
	packetsIn event = iota
	packetsOut
	streamsIn
	streamsOut
	usersIn
	sendFailed
	dropPeer
	dropRate
	dropQueue
	dropUserQueue
	dropMalformed
	dropChecksum
	dropNesting
	dropType
	dropNode
	dropVersion
	dropIncarnation
	dropSource
	dropUser
	dropDestination
	dropStreams
	dropState
	numEvents
)

// eventNames are what Counters shows.
var eventNames = [numEvents]string{
	packetsIn:       "packets_in",
	packetsOut:      "packets_out",
	streamsIn:       "streams_in",
	streamsOut:      "streams_out",
	usersIn:         "user_messages_in",
	sendFailed:      "send_failed",         // the link did not take a packet: no path, mostly
	dropPeer:        "dropped_peer",        // from a gateway that is not in the record store
	dropRate:        "dropped_rate",        // a peer sends too much
	dropQueue:       "dropped_queue",       // memberlist is too slow
	dropUserQueue:   "dropped_user_queue",  // OnUser is too slow
	dropMalformed:   "dropped_malformed",   // packet that does not parse
	dropChecksum:    "dropped_checksum",    // packet with a wrong checksum
	dropNesting:     "dropped_nesting",     // packet with messages in messages in messages, or too many
	dropType:        "dropped_type",        // packet with a message of a type that is not accepted: compressed, encrypted …
	dropNode:        "dropped_node",        // message about an unknown gateway or another address than its own
	dropVersion:     "dropped_version",     // message with other protocol versions
	dropIncarnation: "dropped_incarnation", // message with an incarnation that cannot be refuted
	dropSource:      "dropped_source",      // ping in somebody else's name
	dropUser:        "dropped_user",        // user message that is empty or too large
	dropDestination: "dropped_destination", // memberlist wanted to send to somebody who is not in the record store
	dropStreams:     "dropped_streams",     // stream beyond the number allowed
	dropState:       "dropped_state",       // stream whose state exchange was refused
}

func (c *counters) add(e event) { c[e].Add(1) }

func (c *counters) snapshot() map[string]uint64 {
	m := make(map[string]uint64, numEvents)
	for e, name := range eventNames {
		m[name] = c[e].Load()
	}
	return m
}
