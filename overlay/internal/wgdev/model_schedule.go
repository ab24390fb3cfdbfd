package wgdev

import (
	"container/heap"
	"time"
)

// schedule are the peers that have timers, the first to be looked at in front.
// It implements heap.Interface.
type schedule []*modelPeer

func (s schedule) Len() int           { return len(s) }
func (s schedule) Less(i, j int) bool { return s[i].wake < s[j].wake }

func (s schedule) Swap(i, j int) {
	s[i], s[j] = s[j], s[i]
	s[i].slot, s[j].slot = int32(i), int32(j)
}

// Push implements heap.Interface.
func (s *schedule) Push(x any) {
	p := x.(*modelPeer)
	p.slot = int32(len(*s))
	*s = append(*s, p)
}

// Pop implements heap.Interface.
func (s *schedule) Pop() any {
	last := len(*s) - 1
	p := (*s)[last]
	(*s)[last] = nil
	*s = (*s)[:last]
	p.slot = -1
	return p
}

// after sets a deadline of a peer. One that is taken back is set to zero and
// nothing else: the schedule finds out when its time comes.
func (m *model) after(p *modelPeer, deadline *int64, d time.Duration) {
	*deadline = m.now() + int64(d)
	switch {
	case p.slot < 0:
		p.wake = *deadline
		heap.Push(&m.schedule, p)
	case *deadline < p.wake:
		p.wake = *deadline
		heap.Fix(&m.schedule, int(p.slot))
	}
	if m.schedule[0] == p && p.wake < m.sleeping {
		m.sleeping = p.wake
		select {
		case m.earlier <- struct{}{}:
		default:
		}
	}
}

// unschedule takes a peer out of the schedule.
func (m *model) unschedule(p *modelPeer) {
	if p.slot >= 0 {
		heap.Remove(&m.schedule, int(p.slot))
	}
}

// fire does what is due and returns when to come back.
func (m *model) fire() (next time.Duration, some bool) {
	now := m.now()
	for len(m.schedule) > 0 && m.schedule[0].wake <= now {
		p := m.schedule[0]
		m.expired(p, now)
		if p.wake = p.due(); p.wake == 0 {
			heap.Pop(&m.schedule)
		} else {
			heap.Fix(&m.schedule, int(p.slot))
		}
	}
	if len(m.schedule) == 0 {
		m.sleeping = never
		return 0, false
	}
	m.sleeping = m.schedule[0].wake
	return time.Duration(m.sleeping - now), true
}
