package stream

import "sync/atomic"

// counters has one counter for each event.
type counters [numEvents]atomic.Uint64

type event int

const (
	dialled event = iota
	dialFailed
	accepted
	handshakes
	introduced
	replaced
	crossed
	streamsOpened
	streamsServed
	enrolments
	refusedPacket
	refusedSource
	refusedPending
	refusedIntroduction
	refusedEnrolment
	refusedFirstStream
	refusedStream
	refusedBytes
	numEvents
)

// eventNames are what Counters shows.
var eventNames = [numEvents]string{
	dialled:             "dialled",              // own connections whose introduction was accepted
	dialFailed:          "dial_failed",          // own dials that ended otherwise
	accepted:            "accepted",             // connections of others whose handshake was complete
	handshakes:          "handshakes",           // handshakes of others that were begun: public-key work
	introduced:          "introduced",           // introductions of others that were accepted
	replaced:            "replaced",             // connections that a newer one of the same peer replaced
	crossed:             "crossed",              // own dials given up for the peer's dial at the same time
	streamsOpened:       "streams_opened",       // streams opened to peers
	streamsServed:       "streams_served",       // streams of peers that a handler served
	enrolments:          "enrolments",           // enrolment requests that were answered
	refusedPacket:       "refused_packet",       // not a QUIC version 1 packet
	refusedSource:       "refused_source",       // source opens connections too often: dropped unanswered
	refusedPending:      "refused_pending",      // too many clients without accepted introduction
	refusedIntroduction: "refused_introduction", // introduction of somebody did not verify, or was no introduction
	refusedEnrolment:    "refused_enrolment",    // enrolment not answered
	refusedFirstStream:  "refused_first_stream", // first stream missing, too slow, or neither introduction nor enrolment
	refusedStream:       "refused_stream",       // stream of a type that nobody serves, or without a type in time
	refusedBytes:        "refused_bytes",        // stream beyond its byte limit
}

func (c *counters) add(e event) { c[e].Add(1) }

func (c *counters) snapshot() map[string]uint64 {
	m := make(map[string]uint64, numEvents)
	for e, name := range eventNames {
		m[name] = c[e].Load()
	}
	return m
}
