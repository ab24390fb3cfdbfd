package openvpn

import (
	"encoding/binary"
	"slices"
	"time"
)

// fragmentHeader is the header of 4 bytes that --fragment puts before every
// payload, from the lowest bit up:
//
//	type (2) | sequence (8) | index (5) | size in units of 4 (14) | 0 (3)
//
// The size is that of all fragments but the last; only the last carries it.
type fragmentHeader struct {
	kind  uint8
	seq   uint8
	index uint8
	size  int
}

const (
	fragmentWhole = 0
	fragmentMore  = 1 // not the last
	fragmentLast  = 2

	fragmentHeaderSize = 4
	maxFragments       = 32
	// maxPartial and partialLife bound the packets that wait for fragments, as
	// real peers do.
	maxPartial  = 25
	partialLife = 10 * time.Second
)

func (h fragmentHeader) encode() [fragmentHeaderSize]byte {
	v := uint32(h.kind) | uint32(h.seq)<<2 | uint32(h.index)<<10 | uint32(h.size/4)<<15
	return [4]byte{byte(v >> 24), byte(v >> 16), byte(v >> 8), byte(v)}
}

func decodeFragmentHeader(payload []byte) (fragmentHeader, error) {
	if len(payload) < fragmentHeaderSize {
		return fragmentHeader{}, ReasonFragment
	}
	v := binary.BigEndian.Uint32(payload)
	h := fragmentHeader{kind: uint8(v & 3), seq: uint8(v >> 2), index: uint8(v >> 10 & 31), size: int(v>>15&(1<<14-1)) * 4}
	switch {
	case h.kind == fragmentWhole && v&0xff != 0, h.kind > fragmentLast:
		return fragmentHeader{}, ReasonFragment
	case h.kind == fragmentLast && h.size == 0:
		return fragmentHeader{}, ReasonFragment
	}
	return h, nil
}

// reassembler puts fragmented payloads together. Its memory is bounded by
// maxPartial payloads of at most max bytes.
type reassembler struct {
	max      int
	partials []*partial // oldest first
	// lost counts payloads that were given up incomplete.
	lost uint64
}

// partial is one payload of which some fragments arrived.
type partial struct {
	seq   uint8
	since time.Time
	have  uint32 // bit per index
	count int    // number of fragments, 0 while the last is missing
	size  int    // of all fragments but the last
	data  []byte // up to the end of the last fragment
}

// add takes one payload with its fragment header. It returns the whole payload
// when there is one, nil while fragments are missing. A whole payload that came
// in fragments has its own memory.
func (r *reassembler) add(payload []byte, now time.Time) ([]byte, error) {
	h, err := decodeFragmentHeader(payload)
	if err != nil {
		return nil, err
	}
	body := payload[fragmentHeaderSize:]
	if h.kind == fragmentWhole {
		return body, nil
	}
	r.expire(now)
	size := len(body)
	if h.kind == fragmentLast {
		size = h.size
	}
	end := int(h.index)*size + len(body)
	if size == 0 || size%4 != 0 || len(body) > size || len(body) == 0 || end > r.max {
		return nil, ReasonFragment
	}
	p := r.find(h, size, now)
	p.store(h, body, end)
	if p.count == 0 || p.have != 1<<p.count-1 {
		return nil, nil
	}
	r.drop(p)
	return p.data, nil
}

// find returns the partial that the fragment belongs to. One that it cannot
// belong to, because the sequence number came round, makes room for a new one.
func (r *reassembler) find(h fragmentHeader, size int, now time.Time) *partial {
	at := slices.IndexFunc(r.partials, func(p *partial) bool { return p.seq == h.seq })
	if at >= 0 && r.partials[at].fits(h, size) {
		return r.partials[at]
	}
	if at < 0 && len(r.partials) == maxPartial {
		at = 0
	}
	if at >= 0 {
		r.lost++
		r.drop(r.partials[at])
	}
	p := &partial{seq: h.seq, size: size, since: now}
	r.partials = append(r.partials, p)
	return p
}

func (p *partial) fits(h fragmentHeader, size int) bool {
	if p.size != size || p.have>>h.index&1 == 1 {
		return false
	}
	if h.kind == fragmentLast {
		return p.count == 0 && p.have>>h.index == 0
	}
	return p.count == 0 || int(h.index) < p.count-1
}

func (p *partial) store(h fragmentHeader, body []byte, end int) {
	if end > len(p.data) {
		p.data = append(p.data, make([]byte, end-len(p.data))...)
	}
	copy(p.data[end-len(body):], body)
	p.have |= 1 << h.index
	if h.kind == fragmentLast {
		p.count = int(h.index) + 1
	}
}

// expire gives up what is too old.
func (r *reassembler) expire(now time.Time) {
	for len(r.partials) > 0 && now.Sub(r.partials[0].since) > partialLife {
		r.lost++
		r.drop(r.partials[0])
	}
}

func (r *reassembler) drop(p *partial) {
	r.partials = slices.DeleteFunc(r.partials, func(q *partial) bool { return p == q })
}

// fragmentSize returns the length of all fragments but the last of a payload of
// n bytes, none longer than most. It is 0 if 32 fragments are not enough.
func fragmentSize(n, most int) int {
	most &^= 3
	if most <= 0 {
		return 0
	}
	count := (n + most - 1) / most
	if count > maxFragments {
		return 0
	}
	return ((n+count-1)/count + 3) &^ 3
}
