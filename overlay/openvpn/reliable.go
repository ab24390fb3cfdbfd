package openvpn

import (
	"slices"
	"time"
)

// reliable makes a byte stream out of the control packets of one key: it numbers
// and repeats what is sent, and orders and acknowledges what arrives. It does no
// I/O and is not safe for concurrent use.
type reliable struct {
	nextID   uint32
	inFlight []*message // not acknowledged, by id

	expect  uint32            // the id that is delivered next
	early   map[uint32][]byte // arrived before their turn
	unacked []uint32          // arrived and not yet acknowledged by us
}

// message is one control message on its way out.
type message struct {
	id       uint32
	op       uint8
	payload  []byte
	due      time.Time
	interval time.Duration
	overtook int // acknowledgements of later messages since the last sending
}

const (
	// sendWindow fits the receive buffer of every version of real peers.
	sendWindow = 4
	// receiveWindow is how far ahead of its turn a message may come.
	receiveWindow = 12
	// firstRetry doubles up to maxRetry. Real peers begin with 2 s and have no
	// limit; at 10 % loss these values halve the time of a handshake.
	firstRetry = time.Second
	maxRetry   = 4 * time.Second
	// earlyRetry is after how many later acknowledgements a message is repeated.
	earlyRetry = 3
	// maxAckBacklog bounds unacked; a peer has no more than its window in flight.
	maxAckBacklog = 64
	// acksPerMessage is how many acknowledgements ride on a message.
	acksPerMessage = 4
)

// room reports whether another message may be sent.
func (r *reliable) room() bool { return len(r.inFlight) < sendWindow }

// idle reports whether everything sent was acknowledged.
func (r *reliable) idle() bool { return len(r.inFlight) == 0 }

// push puts a message in flight. It keeps the payload.
func (r *reliable) push(op uint8, payload []byte, now time.Time) {
	r.inFlight = append(r.inFlight, &message{id: r.nextID, op: op, payload: payload, due: now, interval: firstRetry})
	r.nextID++
}

// acked takes an acknowledgement and reports whether it was news.
func (r *reliable) acked(id uint32, now time.Time) bool {
	at := slices.IndexFunc(r.inFlight, func(m *message) bool { return m.id == id })
	if at < 0 {
		return false
	}
	for _, m := range r.inFlight[:at] {
		if m.overtook++; m.overtook == earlyRetry {
			m.due = now
		}
	}
	r.inFlight = slices.Delete(r.inFlight, at, at+1)
	return true
}

// repeatNow makes everything in flight due.
func (r *reliable) repeatNow(now time.Time) {
	for _, m := range r.inFlight {
		m.due = now
	}
}

// receive takes a message. It returns the payloads whose turn has come, whether
// the message was news, and false at the end if it is too far ahead, in which case
// it must not be acknowledged.
func (r *reliable) receive(id uint32, payload []byte) (ready [][]byte, news, ok bool) {
	if ahead := id - r.expect; int32(ahead) < 0 {
		r.acknowledge(id) // the acknowledgement was lost
		return nil, false, true
	} else if ahead >= receiveWindow {
		return nil, false, false
	}
	r.acknowledge(id)
	if _, dup := r.early[id]; dup {
		return nil, false, true
	}
	if r.early == nil {
		r.early = map[uint32][]byte{}
	}
	r.early[id] = append([]byte(nil), payload...)
	for {
		p, here := r.early[r.expect]
		if !here {
			return ready, true, true
		}
		delete(r.early, r.expect)
		r.expect++
		ready = append(ready, p)
	}
}

func (r *reliable) acknowledge(id uint32) {
	if !slices.Contains(r.unacked, id) && len(r.unacked) < maxAckBacklog {
		r.unacked = append(r.unacked, id)
	}
}

// takeAcks removes up to n acknowledgements for a packet.
func (r *reliable) takeAcks(n int) []uint32 {
	n = min(n, len(r.unacked))
	acks := slices.Clone(r.unacked[:n])
	r.unacked = slices.Delete(r.unacked, 0, n)
	return acks
}

// takeDue returns the messages to send now and sets their next time.
func (r *reliable) takeDue(now time.Time) []*message {
	var due []*message
	for _, m := range r.inFlight {
		if now.Before(m.due) {
			continue
		}
		m.due = now.Add(m.interval)
		m.interval = min(2*m.interval, maxRetry)
		m.overtook = 0
		due = append(due, m)
	}
	return due
}

// nextDue returns when takeDue has something next, zero for never.
func (r *reliable) nextDue() time.Time {
	var next time.Time
	for _, m := range r.inFlight {
		next = earlier(next, m.due)
	}
	return next
}
