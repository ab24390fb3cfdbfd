package etcdtune

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Limits of the verdict, from what others have run: up to 50 ms stretched etcd
// behaves, to 100 ms writes are slow but elections are calm, above that a write
// that crosses twice takes longer than clients of the API expect.
const (
	GoodRTT   = 50 * time.Millisecond
	MaxRTT    = 100 * time.Millisecond
	MaxFsync  = 10 * time.Millisecond // 99th percentile; the limit of etcd's own documentation
	MinProbes = 200                   // for a 99th percentile that stands on two values
)

// Member is a control plane that will run an etcd member.
type Member struct {
	Host string
	Site string
	// Fsync is the 99th percentile of the time of an fsync on the disk of etcd;
	// 0 means that it was not measured.
	Fsync time.Duration
}

// Pair is what was measured between two members. The order of A and B means
// nothing; if both orders are given, the worse one counts.
type Pair struct {
	A, B     string
	P50, P99 time.Duration
	Probes   int // answered
}

// Input is what Judge judges.
type Input struct {
	Members []Member
	Pairs   []Pair
	// Heartbeat and Election are wanted by a person; 0: from the measurement.
	Heartbeat, Election time.Duration
	// AcceptSlow turns the refusal of slow round trips into a warning. It
	// changes nothing about layouts that cannot survive the loss of a site.
	AcceptSlow bool
}

// Level says how much a verdict weighs.
type Level int

// The levels, from light to heavy.
const (
	Good Level = iota
	Warn
	Refuse
)

// String returns "good", "warn" or "refuse".
func (l Level) String() string {
	switch l {
	case Good:
		return "good"
	case Warn:
		return "warn"
	default:
		return "refuse"
	}
}

// Verdict is one judgement.
type Verdict struct {
	Level  Level
	Reason string // one sentence, without a full stop
	Cure   string // what to do about it; empty if Level is Good
}

// Result is what Judge found.
type Result struct {
	// Heartbeat and Election are the timers of every member.
	Heartbeat, Election time.Duration
	// Worst is the pair with the largest median; the zero Pair if there is none.
	Worst Pair
	// P99 is the largest 99th percentile of all pairs.
	P99 time.Duration
	// Leader is the member with the least sum of medians to the others, where
	// leadership costs least. It is also the best first host. The first in the
	// order of Input.Members wins a draw. Empty without members.
	Leader string
	// Verdicts has at least one element, heaviest first.
	Verdicts []Verdict
}

// Level returns the heaviest level of all verdicts.
func (r Result) Level() Level {
	heaviest := Good
	for _, v := range r.Verdicts {
		heaviest = max(heaviest, v.Level)
	}
	return heaviest
}

// Judge decides the timers, the place of the leader and whether etcd can run
// like that.
func Judge(in Input) Result {
	m := measure(in)
	r := Result{Worst: m.worst, P99: m.p99, Leader: m.leader(in.Members)}
	r.Heartbeat, r.Election = Timers(m.worst.P50, m.p99)
	if in.Heartbeat > 0 {
		r.Heartbeat = in.Heartbeat
		r.Election = max(r.Election, min(trips*in.Heartbeat, MaxElection))
	}
	if in.Election > 0 {
		r.Election = in.Election
	}
	r.Verdicts = slices.Concat(
		judgeLayout(in.Members),
		judgeMeasurement(in.Members, m),
		judgeTrips(m.worst, in.AcceptSlow),
		judgeTimers(r.Heartbeat, r.Election, m),
		judgeDisks(in.Members),
	)
	if len(r.Verdicts) == 0 {
		r.Verdicts = []Verdict{{Level: Good, Reason: praise(in.Members, m.worst)}}
	}
	slices.SortStableFunc(r.Verdicts, func(a, b Verdict) int { return cmp.Compare(b.Level, a.Level) })
	return r
}

func praise(members []Member, worst Pair) string {
	if len(members) < 2 {
		return "etcd has one member, so no round trip matters"
	}
	return fmt.Sprintf("the slowest pair of control planes, %s and %s, has a round trip of %s", worst.A, worst.B, worst.P50)
}

// judgeLayout looks at how many members there are and where. It needs no
// measurement.
func judgeLayout(members []Member) []Verdict {
	var sites []string
	at := map[string]int{}
	for _, m := range members {
		if at[m.Site]++; at[m.Site] == 1 {
			sites = append(sites, m.Site)
		}
	}
	majority := len(members)/2 + 1
	switch {
	case len(members) == 0:
		return []Verdict{{Refuse, "there is no control plane", "give at least one host the role control-plane"}}
	case len(members) == 1:
		return nil
	case len(sites) == 2:
		return []Verdict{{Refuse,
			fmt.Sprintf("etcd over two sites, %s and %s, stops when the one with the majority is cut off: it is no safer than one site and slower", sites[0], sites[1]),
			"put a control plane into a third site, or all of them into one"}}
	}
	var out []Verdict
	if len(members)%2 == 0 {
		out = append(out, Verdict{Warn,
			fmt.Sprintf("%d members survive the loss of %d, just as %d would", len(members), len(members)-majority, len(members)-1),
			"use an odd number of control planes"})
	}
	for _, s := range sites {
		if len(sites) > 1 && len(members)-at[s] < majority {
			out = append(out, Verdict{Warn,
				fmt.Sprintf("site %s has %d of %d members: without it there is no majority", s, at[s], len(members)),
				"spread the control planes more evenly over the sites"})
		}
	}
	return out
}

func judgeMeasurement(members []Member, m measurement) []Verdict {
	var out []Verdict
	if len(m.missing) > 0 {
		out = append(out, Verdict{Refuse,
			"no round trip was measured between " + strings.Join(m.missing, ", "),
			"see what the reachability matrix says about these hosts"})
	}
	if len(members) > 1 && len(m.missing) == 0 && m.fewest < MinProbes {
		out = append(out, Verdict{Warn,
			fmt.Sprintf("a pair has only %d answered probes, and %d are needed for a 99th percentile", m.fewest, MinProbes),
			"measure again; if it stays so, look for loss between the sites"})
	}
	return out
}

func judgeTrips(worst Pair, acceptSlow bool) []Verdict {
	text := fmt.Sprintf("the round trip between %s and %s is %s", worst.A, worst.B, worst.P50)
	const oneSite = "put all control planes into one site: workers elsewhere bear slow links better than etcd does"
	switch {
	case worst.P50 <= GoodRTT:
		return nil
	case worst.P50 <= MaxRTT:
		return []Verdict{{Warn, text + ": every write of the API waits for it", oneSite}}
	case acceptSlow:
		return []Verdict{{Warn, text + ", which etcd should not be stretched over; accepted by the inventory", oneSite}}
	}
	return []Verdict{{Refuse, fmt.Sprintf("%s, and etcd should not be stretched over more than %s", text, MaxRTT),
		oneSite + "; etcd.acceptSlow builds it all the same"}}
}

// judgeTimers refuses what etcd would refuse at its start, and names wanted
// timers that the network does not bear.
func judgeTimers(heartbeat, election time.Duration, m measurement) []Verdict {
	const cure = "leave etcd.heartbeat and etcd.election out, and they follow the measurement"
	switch {
	case heartbeat%time.Millisecond != 0 || election%time.Millisecond != 0:
		return []Verdict{{Refuse, "etcd takes whole milliseconds only", cure}}
	case election < heartbeats*heartbeat:
		return []Verdict{{Refuse, fmt.Sprintf("etcd wants an election timeout of at least five heartbeats, and %s is less than 5 × %s", election, heartbeat), cure}}
	case election > MaxElection:
		return []Verdict{{Refuse, fmt.Sprintf("etcd takes no election timeout above %s", MaxElection), cure}}
	case election < trips*m.p99:
		return []Verdict{{Warn, fmt.Sprintf("an election timeout of %s is less than ten slow round trips of %s: leaders will change without need", election, m.p99), cure}}
	case heartbeat < m.worst.P50:
		return []Verdict{{Warn, fmt.Sprintf("a heartbeat of %s is shorter than the round trip of %s", heartbeat, m.worst.P50), cure}}
	}
	return nil
}

func judgeDisks(members []Member) []Verdict {
	var out []Verdict
	for _, m := range members {
		if m.Fsync > MaxFsync {
			out = append(out, Verdict{Warn,
				fmt.Sprintf("an fsync on %s takes %s (99th percentile), and etcd wants %s", m.Host, m.Fsync, MaxFsync),
				"give /var/lib/etcd a faster disk"})
		}
	}
	return out
}

// measurement is what the pairs say about the members; pairs of other hosts are
// left out.
type measurement struct {
	median  map[[2]string]time.Duration // by both orders
	worst   Pair
	p99     time.Duration
	fewest  int
	missing []string
}

func measure(in Input) measurement {
	best := map[[2]string]Pair{} // by the order of Input.Members
	place := map[string]int{}
	for i, m := range in.Members {
		place[m.Host] = i
	}
	for _, p := range in.Pairs {
		a, okA := place[p.A]
		b, okB := place[p.B]
		if !okA || !okB || a == b {
			continue
		}
		if a > b {
			p.A, p.B = p.B, p.A
		}
		key := [2]string{p.A, p.B}
		if old, ok := best[key]; ok {
			p.P50, p.P99, p.Probes = max(p.P50, old.P50), max(p.P99, old.P99), min(p.Probes, old.Probes)
		}
		best[key] = p
	}
	m := measurement{median: map[[2]string]time.Duration{}, fewest: MinProbes}
	for i, a := range in.Members {
		for _, b := range in.Members[i+1:] {
			p, ok := best[[2]string{a.Host, b.Host}]
			if !ok || p.Probes <= 0 {
				m.missing = append(m.missing, a.Host+" and "+b.Host)
				continue
			}
			m.add(p)
		}
	}
	return m
}

func (m *measurement) add(p Pair) {
	m.median[[2]string{p.A, p.B}], m.median[[2]string{p.B, p.A}] = p.P50, p.P50
	m.p99 = max(m.p99, p.P99, p.P50)
	m.fewest = min(m.fewest, p.Probes)
	if m.worst.A == "" || p.P50 > m.worst.P50 {
		m.worst = p
	}
}

// leader returns the member with the least sum. A pair that was not measured
// counts as an hour, so that a host that cannot be reached is not chosen.
func (m measurement) leader(members []Member) string {
	var name string
	var least time.Duration
	for _, a := range members {
		var sum time.Duration
		for _, b := range members {
			if a.Host == b.Host {
				continue
			}
			d, ok := m.median[[2]string{a.Host, b.Host}]
			if !ok {
				d = time.Hour
			}
			sum += d
		}
		if name == "" || sum < least {
			name, least = a.Host, sum
		}
	}
	return name
}
