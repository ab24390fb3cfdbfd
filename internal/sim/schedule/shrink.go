package schedule

import (
	"slices"
	"time"
)

// Smaller returns schedules with something less than s, the boldest steps first. If one
// of them fails as s did, it takes its place, until none does.
func Smaller(s Schedule) []Schedule {
	var out []Schedule
	add := func(change func(*Schedule)) {
		c := s.clone()
		change(&c)
		out = append(out, c)
	}
	for size := len(s.Events) / 2; size >= 1; size /= 2 {
		for from := 0; from+size <= len(s.Events); from += size {
			add(func(c *Schedule) { c.Events = slices.Delete(c.Events, from, from+size) })
		}
	}
	if s.Gateways > 4 {
		for _, n := range []int{s.Gateways / 2, s.Gateways * 3 / 4, s.Gateways - 1} {
			add(func(c *Schedule) { c.keepGateways(max(4, n)) })
		}
	}
	if s.Hidden > 0 {
		add(func(c *Schedule) { c.Hidden, c.NAT = 0, "" })
	}
	if s.Pairs > 0 {
		add(func(c *Schedule) { c.Pairs = 0 })
	}
	if s.Stagger > 0 {
		add(func(c *Schedule) { c.Stagger = 0 })
	}
	if l := (Link{Delay: s.Link.Delay}); l != s.Link {
		add(func(c *Schedule) { c.Link = l })
	}
	for i, e := range s.Events {
		if len(e.Who) > 1 && e.Kind != OneWay && e.Kind != Flap {
			add(func(c *Schedule) { c.Events[i].Who = c.Events[i].Who[:len(e.Who)/2] })
			add(func(c *Schedule) { c.Events[i].Who = c.Events[i].Who[len(e.Who)/2:] })
		}
		if len(e.Parts) > 2 {
			add(func(c *Schedule) {
				p := c.Events[i].Parts
				c.Events[i].Parts = append([][]int{append(slices.Clone(p[0]), p[1]...)}, p[2:]...)
			})
		}
		if e.Kind != Calm && e.For > Moment(20*time.Second) {
			add(func(c *Schedule) { c.Events[i].For /= 2 })
		}
	}
	return out
}

func (s Schedule) clone() Schedule {
	s.Events = slices.Clone(s.Events)
	for i, e := range s.Events {
		s.Events[i].Who = slices.Clone(e.Who)
		s.Events[i].Parts = slices.Clone(e.Parts)
	}
	return s
}

// keepGateways leaves the first n gateways, and what still has somebody to
// happen to.
func (s *Schedule) keepGateways(n int) {
	s.Gateways, s.Pairs, s.Hidden = n, min(s.Pairs, n/10), min(s.Hidden, n/6)
	gone := func(i int) bool { return i >= n }
	s.Events = slices.DeleteFunc(s.Events, func(e Event) bool {
		had := len(e.Who)
		left := slices.DeleteFunc(slices.Clone(e.Who), gone)
		return had > 0 && (len(left) == 0 || (e.Kind == OneWay || e.Kind == Flap) && len(left) < 2)
	})
	for i := range s.Events {
		e := &s.Events[i]
		e.Who = slices.DeleteFunc(slices.Clone(e.Who), gone)
		e.Parts = slices.Clone(e.Parts)
		for j := range e.Parts {
			e.Parts[j] = slices.DeleteFunc(slices.Clone(e.Parts[j]), gone)
		}
		e.Parts = slices.DeleteFunc(e.Parts, func(p []int) bool { return len(p) == 0 })
	}
}
