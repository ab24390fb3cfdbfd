// Package schedule makes up what goes wrong in a simulated mesh: sequences of
// faults, each from one seed, and smaller ones to find what matters in them.
// It is pure.
package schedule

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"
)

// Schedule is everything that a simulated run depends on besides the program.
// JSON-stable, so that a failing one can be kept.
type Schedule struct {
	Seed     uint64  `json:"seed"`
	Gateways int     `json:"gateways"`
	Pairs    int     `json:"pairs"`             // sites with two gateways
	Hidden   int     `json:"hidden,omitempty"`  // gateways behind a NAT
	NAT      string  `json:"nat,omitempty"`     // "", open or symmetric
	Carrier  string  `json:"carrier,omitempty"` // what carries packets, see overlaytest.Carrier
	Link     Link    `json:"link"`              // of all pairs, at first
	Stagger  Moment  `json:"stagger,omitempty"` // time between two starts; 0: all at once
	Events   []Event `json:"events"`            // ascending by At
}

// Link is a link of the network, as overlaytest.Link.
type Link struct {
	Delay     Moment  `json:"delay,omitempty"`
	Jitter    Moment  `json:"jitter,omitempty"`
	Loss      float64 `json:"loss,omitempty"`
	Reorder   float64 `json:"reorder,omitempty"`
	Duplicate float64 `json:"duplicate,omitempty"`
	Rate      int     `json:"rate,omitempty"` // bytes per second
}

// Moment is a duration that reads well in JSON.
type Moment time.Duration

// MarshalText implements encoding.TextMarshaler.
func (m Moment) MarshalText() ([]byte, error) { return []byte(time.Duration(m).String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (m *Moment) UnmarshalText(b []byte) error {
	d, err := time.ParseDuration(string(b))
	*m = Moment(d)
	return err
}

// Event is one fault. It begins at At, after the views became equal for the
// first time, and ends For later.
type Event struct {
	At     Moment  `json:"at"`
	Kind   Kind    `json:"kind"`
	For    Moment  `json:"for,omitempty"`
	Who    []int   `json:"who,omitempty"`    // gateways
	Parts  [][]int `json:"parts,omitempty"`  // of a partition
	Offset Moment  `json:"offset,omitempty"` // of a clock
	How    string  `json:"how,omitempty"`    // the variant
	Link   *Link   `json:"link,omitempty"`
}

// Kind is what goes wrong.
type Kind string

// The kinds of events.
const (
	Partition Kind = "partition" // Parts do not reach each other
	OneWay    Kind = "one-way"   // nothing from Who[0] reaches Who[1]
	Flap      Kind = "flap"      // the path between Who[0] and Who[1] comes and goes every 3 s
	Lossy     Kind = "lossy"     // the links from and to Who are Link
	Storm     Kind = "storm"     // all links are Link
	Crash     Kind = "crash"     // Who lose power; How: keep, restore or enrol before the start
	Stop      Kind = "stop"      // Who are stopped in good order
	Rolling   Kind = "rolling"   // Who are restarted one after the other
	Skew      Kind = "skew"      // the clocks of Who are wrong by Offset, for good
	Lie       Kind = "lie"       // Who lie; How: see overlaytest.Lie
	Hostile   Kind = "hostile"   // memberlist is hostile everywhere; How: see overlaytest.Hostility
	Withdraw  Kind = "withdraw"  // Who announce nothing
	NATLoss   Kind = "nat-loss"  // the NATs of Who forget their mappings
	Calm      Kind = "calm"      // views must become equal, and then nothing happens; what follows waits
)

// String is one line an event.
func (e Event) String() string {
	text := fmt.Sprintf("%v %s", time.Duration(e.At), e.Kind)
	if e.How != "" {
		text += " " + e.How
	}
	if len(e.Who) > 0 {
		text += fmt.Sprint(" ", e.Who)
	}
	if len(e.Parts) > 0 {
		text += fmt.Sprint(" ", e.Parts)
	}
	if e.Offset != 0 {
		text += fmt.Sprint(" by ", time.Duration(e.Offset))
	}
	if e.For != 0 {
		text += fmt.Sprint(" for ", time.Duration(e.For))
	}
	return text
}

// Options narrow what New makes up.
type Options struct {
	Gateways int
	// Longest bounds a single event; zero means a day.
	Longest time.Duration
}

// New makes up a schedule: the same for the same seed and options.
func New(seed uint64, o Options) Schedule {
	if o.Longest == 0 {
		o.Longest = 24 * time.Hour
	}
	m := maker{rand.New(rand.NewPCG(seed, uint64(o.Gateways))), o} //nolint:gosec // repeatable on purpose
	s := Schedule{Seed: seed, Gateways: o.Gateways, Link: m.link()}
	if m.chance(2) {
		s.Pairs = 1 + m.IntN(max(1, o.Gateways/10))
	}
	if m.chance(3) {
		s.Hidden = 1 + m.IntN(max(1, o.Gateways/6))
		s.NAT = m.one("", "open", "symmetric")
	}
	if m.chance(3) {
		s.Stagger = m.between(time.Millisecond, 500*time.Millisecond)
	}
	switch {
	case o.Gateways <= 8:
		s.Carrier = "wireguard"
	case m.chance(2):
		s.Carrier = "model"
	}
	m.fill(&s)
	return s
}

type maker struct {
	*rand.Rand
	o Options
}

// chance is true once in n times.
func (m maker) chance(n int) bool { return m.IntN(n) == 0 }

func (m maker) one(of ...string) string { return of[m.IntN(len(of))] }

// between draws a duration, each order of magnitude as likely as any other
// would take an exponent: linear is enough within one.
func (m maker) between(a, b time.Duration) Moment {
	return Moment((a + time.Duration(m.Int64N(int64(b-a)+1))).Round(time.Millisecond))
}

// length draws how long a fault lasts: mostly 10 s to a minute, now and then
// up to five, seldom up to an hour or a day.
func (m maker) length() Moment {
	limit := time.Minute
	switch n := m.IntN(2000); {
	case n == 0:
		limit = 24 * time.Hour
	case n < 10:
		limit = time.Hour
	case n < 200:
		limit = 5 * time.Minute
	}
	return m.between(10*time.Second, min(limit, m.o.Longest))
}

// link is a network between universities on one to all continents.
func (m maker) link() Link {
	l := Link{Delay: m.between(time.Millisecond, 150*time.Millisecond)}
	l.Jitter = m.between(0, time.Duration(l.Delay)/3)
	if m.chance(2) {
		l.Loss = float64(m.IntN(20)) / 1000
	}
	if m.chance(3) {
		l.Reorder, l.Duplicate = float64(m.IntN(50))/1000, float64(m.IntN(20))/1000
	}
	return l
}

// badLink is one that hardly works.
func (m maker) badLink(from Link) *Link {
	l := from
	l.Loss = 0.05 + float64(m.IntN(40))/100
	l.Reorder, l.Duplicate = float64(m.IntN(30))/100, float64(m.IntN(30))/100
	l.Jitter = l.Delay * 2
	if m.chance(4) {
		l.Rate = 20_000 + m.IntN(200_000)
	}
	return &l
}

// fill adds events: three to eight of them, some at the same time, then calm.
func (m maker) fill(s *Schedule) {
	at := time.Duration(0)
	rounds := 1 + m.IntN(2)
	for range rounds {
		end := at
		for range 1 + m.IntN(4) {
			e := m.event(s)
			e.At = Moment(at) + m.between(0, 20*time.Second)
			end = max(end, time.Duration(e.At+e.For))
			s.Events = append(s.Events, e)
		}
		s.Events = append(s.Events, Event{At: Moment(end), Kind: Calm, For: Moment(calm)})
		at = end
	}
	slices.SortStableFunc(s.Events, func(a, b Event) int { return int(a.At - b.At) })
}

// calm is how long nothing happens once the views are equal: two of the longer
// intervals of a gateway.
const calm = 10 * time.Second

func (m maker) event(s *Schedule) Event {
	kinds := []Kind{
		Partition, Partition, Partition, OneWay, Flap, Lossy, Storm, Crash, Crash, Stop, Rolling,
		Skew, Lie, Lie, Lie, Hostile, Withdraw,
	}
	if s.Hidden > 0 {
		kinds = append(kinds, NATLoss, NATLoss)
	}
	e := Event{Kind: kinds[m.IntN(len(kinds))], For: m.length()}
	switch e.Kind {
	case Partition:
		e.Parts = m.parts(s.Gateways)
	case OneWay, Flap:
		e.Who = m.some(s.Gateways, 2, 0)
		e.For = min(e.For, Moment(5*time.Minute))
	case Lossy:
		e.Who, e.Link = m.some(s.Gateways, 1+m.IntN(3), 0), m.badLink(s.Link)
	case Storm:
		e.Link, e.For = m.badLink(s.Link), min(e.For, Moment(2*time.Minute))
	case Crash:
		e.Who = m.some(s.Gateways, 1+m.IntN(max(1, s.Gateways/2)), 0)
		if e.How = m.one("keep", "keep", "restore", "enrol"); e.How != "keep" {
			// The first is the one that issues: what it must not forget is its
			// ledger, and an old copy of that is a fault of its operator.
			e.Who = m.some(s.Gateways, 1+m.IntN(max(1, s.Gateways/5)), 1)
		}
	case Stop:
		e.Who = m.some(s.Gateways, 1+m.IntN(max(1, s.Gateways/3)), 0)
	case Rolling:
		e.Who = m.some(s.Gateways, 1+m.IntN(s.Gateways), 0)
		e.For = m.between(10*time.Second, time.Minute)
	case Skew:
		e.Who = m.some(s.Gateways, 1+m.IntN(max(1, s.Gateways/3)), 0)
		e.Offset = m.between(-time.Hour, time.Hour)
		e.For = 0
	case Lie:
		e.Who = m.some(s.Gateways, 1+m.IntN(max(1, s.Gateways/10)), 1)
		e.How = m.one("death", "replay", "garbage", "oversize", "drip", "flood", "steal", "equivocate")
		e.For = min(e.For, Moment(2*time.Minute))
	case Hostile:
		e.How = m.one("silent", "deaths", "noise")
		e.For = min(e.For, Moment(5*time.Minute))
	case Withdraw:
		e.Who = m.some(s.Gateways, 1+m.IntN(max(1, s.Gateways/5)), 0)
	case NATLoss:
		e.Who, e.For = m.hidden(s), 0
	}
	return e
}

// some draws n different gateways of index from and above.
func (m maker) some(gateways, n, from int) []int {
	all := m.Perm(gateways - from)
	out := all[:min(n, len(all))]
	for i := range out {
		out[i] += from
	}
	slices.Sort(out)
	return out
}

// hidden are the gateways behind NATs, see overlaytest.WorldOptions.
func (m maker) hidden(s *Schedule) []int {
	var out []int
	for i := range s.Hidden {
		if at := s.Gateways - s.Pairs - 1 - i; at > 0 && m.chance(2) {
			out = append(out, at)
		}
	}
	return out
}

// parts divides all gateways into two to five parts.
func (m maker) parts(gateways int) [][]int {
	parts := make([][]int, 2+m.IntN(4))
	for _, i := range m.Perm(gateways) {
		at := m.IntN(len(parts))
		parts[at] = append(parts[at], i)
	}
	for _, part := range parts {
		slices.Sort(part)
	}
	return slices.DeleteFunc(parts, func(p []int) bool { return len(p) == 0 })
}
