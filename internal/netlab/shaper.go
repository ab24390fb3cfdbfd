package netlab

import (
	"math/rand/v2"
	"slices"
	"time"
)

// shaper decides when frames leave one direction of a link. It is a function of the times and frames that it is given:
// no clock, no sockets. Frames leave in the order of the queue; only what Reorder holds back is overtaken.
type shaper struct {
	rand *rand.Rand

	free  time.Duration // when the sender of a limited rate will have sent everything
	last  time.Duration // when the last frame of the queue leaves; later ones do not overtake it
	queue []frame       // in the order of leaving; the first head of them are gone
	head  int
	bytes int // in queue and held
	held  []heldFrame
	spare [][]byte // buffers for reuse
}

// frame is an Ethernet frame and the time at which it leaves.
type frame struct {
	data []byte
	due  time.Duration
}

// heldFrame is one that is to be overtaken.
type heldFrame struct {
	data  []byte
	left  int           // how many more frames overtake it
	until time.Duration // when it goes in any case
}

const (
	overtakers  = 3                      // duplicate acknowledgements that make TCP resend (RFC 5681, section 3.2)
	holdTime    = 10 * time.Millisecond  // how long they are waited for
	rateQueue   = 100 * time.Millisecond // what waits at most for a limited rate
	rateFrames  = 16                     // and this many full frames always may
	fullFrame   = 1514                   // bytes
	shaperBytes = 64 << 20               // bound of memory: 500 Mbit/s for a second
)

// arrive takes a copy of a frame that came in at the given time, which does not go backwards by more than what scheduling does.
func (s *shaper) arrive(l Link, now time.Duration, data []byte) {
	sent := now
	if l.Rate > 0 {
		start := max(s.free, now)
		if start-now > max(rateQueue, airtime(l.Rate, rateFrames*fullFrame)) {
			return
		}
		sent = start + airtime(l.Rate, len(data))
		s.free = sent
	}
	if s.bytes+len(data) > shaperBytes {
		return
	}
	data = s.keep(data)
	if l.Reorder > 0 && s.rand.Float64() < l.Reorder {
		s.held = append(s.held, heldFrame{data: data, left: overtakers, until: sent + holdTime})
		return
	}
	s.push(l, sent, data)
	for i := range s.held {
		s.held[i].left--
	}
	s.release(l, sent)
}

// release moves what was overtaken, or has waited long enough, into the queue.
func (s *shaper) release(l Link, now time.Duration) {
	s.held = slices.DeleteFunc(s.held, func(h heldFrame) bool {
		if h.left > 0 && h.until > now {
			return false
		}
		s.push(l, min(now, h.until), h.data)
		return true
	})
}

// push queues a frame that was sent at the given time.
func (s *shaper) push(l Link, sent time.Duration, data []byte) {
	delay := l.Delay
	if l.Jitter > 0 {
		delay += time.Duration((s.rand.Float64()*2 - 1) * float64(l.Jitter))
	}
	s.last = max(s.last, sent+max(0, delay))
	s.queue = append(s.queue, frame{data: data, due: s.last})
}

// next is when something has to be done: a frame leaves, or has been held back for long enough.
func (s *shaper) next() (at time.Duration, ok bool) {
	if s.head < len(s.queue) {
		at, ok = s.queue[s.head].due, true
	}
	if len(s.held) > 0 && (!ok || s.held[0].until < at) {
		at, ok = s.held[0].until, true
	}
	return at, ok
}

// leave returns the frames that leave by now, at most n of them. They are valid until recycled.
func (s *shaper) leave(l Link, now time.Duration, n int) []frame {
	if len(s.held) > 0 {
		s.release(l, now)
	}
	end := s.head
	for end < len(s.queue) && end-s.head < n && s.queue[end].due <= now {
		end++
	}
	return s.queue[s.head:end]
}

// recycle takes back the first n frames of the queue, which have left.
func (s *shaper) recycle(n int) {
	for _, f := range s.queue[s.head : s.head+n] {
		s.bytes -= len(f.data)
		if len(s.spare) < maxSpare {
			s.spare = append(s.spare, f.data[:0])
		}
	}
	s.head += n
	if s.head == len(s.queue) {
		s.queue, s.head = s.queue[:0], 0
	} else if s.head > maxSpare && s.head > len(s.queue)/2 {
		s.queue, s.head = slices.Delete(s.queue, 0, s.head), 0
	}
}

// maxSpare is how many buffers are kept, 1.5 MB of them.
const maxSpare = 1000

// keep copies a frame into a buffer of ours.
func (s *shaper) keep(data []byte) []byte {
	s.bytes += len(data)
	if n := len(s.spare); n > 0 {
		buf := s.spare[n-1]
		s.spare = s.spare[:n-1]
		return append(buf, data...)
	}
	return append(make([]byte, 0, max(fullFrame, len(data))), data...)
}

// airtime is how long a sender of the given rate needs for n bytes.
func airtime(rate int64, n int) time.Duration {
	return time.Duration(float64(n) * 8 / float64(rate) * float64(time.Second))
}
