package etcdtune

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

const ms = time.Millisecond

func TestTimersFollowRoundTrips(t *testing.T) {
	for _, tt := range []struct{ p50, p99, heartbeat, election time.Duration }{
		{0, 0, 100 * ms, 1000 * ms},
		{-5 * ms, -1, 100 * ms, 1000 * ms},
		{5 * ms, 7 * ms, 100 * ms, 1000 * ms},
		{66 * ms, 70 * ms, 100 * ms, 1000 * ms},
		{67 * ms, 70 * ms, 110 * ms, 1100 * ms},
		{80 * ms, 95 * ms, 120 * ms, 1200 * ms},
		{80 * ms, 120 * ms, 120 * ms, 1200 * ms},
		{80 * ms, 121 * ms, 120 * ms, 1300 * ms},
		{80*ms + 1, 95 * ms, 130 * ms, 1300 * ms},
		{20 * ms, 400 * ms, 100 * ms, 4000 * ms},
		{200 * ms, 350 * ms, 300 * ms, 3500 * ms},
		{90 * ms, 10 * ms, 140 * ms, 1400 * ms},
		{4 * time.Second, 6 * time.Second, 6 * time.Second, 50 * time.Second},
		{time.Hour, time.Hour, 10 * time.Second, 50 * time.Second},
		{1<<63 - 1, 1<<63 - 1, 10 * time.Second, 50 * time.Second},
	} {
		heartbeat, election := Timers(tt.p50, tt.p99)
		if heartbeat != tt.heartbeat || election != tt.election {
			t.Errorf("Timers(%v, %v) = %v, %v, want %v, %v", tt.p50, tt.p99, heartbeat, election, tt.heartbeat, tt.election)
		}
	}
}

func TestTimersAreWhatEtcdAccepts(t *testing.T) {
	for p50 := time.Duration(0); p50 < 20*time.Second; p50 += 137*ms + 1 {
		for _, p99 := range []time.Duration{0, p50, 2 * p50, 9 * p50} {
			h, e := Timers(p50, p99)
			if h < MinHeartbeat || e < 5*h || e > MaxElection || h%step != 0 || e%step != 0 {
				t.Fatalf("Timers(%v, %v) = %v, %v", p50, p99, h, e)
			}
		}
	}
}

// pairs measures all pairs of members alike.
func pairs(p50, p99 time.Duration, members ...Member) []Pair {
	var out []Pair
	for i, a := range members {
		for _, b := range members[i+1:] {
			out = append(out, Pair{A: a.Host, B: b.Host, P50: p50, P99: p99, Probes: 200})
		}
	}
	return out
}

var (
	one   = []Member{{Host: "m1", Site: "a"}}
	near  = []Member{{Host: "m1", Site: "a"}, {Host: "m2", Site: "a"}, {Host: "m3", Site: "a"}}
	three = []Member{{Host: "m1", Site: "a"}, {Host: "m2", Site: "b"}, {Host: "m3", Site: "c"}}
	two   = []Member{{Host: "m1", Site: "a"}, {Host: "m2", Site: "a"}, {Host: "m3", Site: "b"}}
	even  = []Member{{Host: "m1", Site: "a"}, {Host: "m2", Site: "b"}, {Host: "m3", Site: "c"}, {Host: "m4", Site: "d"}}
	heavy = []Member{{Host: "m1", Site: "a"}, {Host: "m2", Site: "a"}, {Host: "m3", Site: "a"}, {Host: "m4", Site: "b"}, {Host: "m5", Site: "c"}}
	slow  = []Member{{Host: "m1", Site: "a", Fsync: 11 * ms}, {Host: "m2", Site: "a", Fsync: 10 * ms}, {Host: "m3", Site: "a"}}
)

func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		name   string
		in     Input
		level  Level
		reason string // part of the first
		n      int    // verdicts
	}{
		{"nobody", Input{}, Refuse, "no control plane", 1},
		{"one", Input{Members: one}, Good, "one member", 1},
		{"one site", Input{Members: near, Pairs: pairs(ms, 2*ms, near...)}, Good, "m1 and m2", 1},
		{"three sites at the good limit", Input{Members: three, Pairs: pairs(50*ms, 60*ms, three...)}, Good, "50ms", 1},
		{"beyond it", Input{Members: three, Pairs: pairs(50*ms+1, 60*ms, three...)}, Warn, "every write", 1},
		{"at the last limit", Input{Members: three, Pairs: pairs(100*ms, 120*ms, three...)}, Warn, "every write", 1},
		{"beyond that", Input{Members: three, Pairs: pairs(101*ms, 120*ms, three...)}, Refuse, "more than 100ms", 1},
		{"accepted", Input{Members: three, Pairs: pairs(101*ms, 120*ms, three...), AcceptSlow: true}, Warn, "accepted", 1},
		{"two sites", Input{Members: two, Pairs: pairs(ms, ms, two...)}, Refuse, "two sites, a and b", 1},
		{"two sites although slow is accepted", Input{Members: two, Pairs: pairs(ms, ms, two...), AcceptSlow: true}, Refuse, "two sites", 1},
		{"two hosts in one site", Input{Members: near[:2], Pairs: pairs(ms, ms, near[:2]...)}, Warn, "2 members survive the loss of 0, just as 1", 1},
		{"even", Input{Members: even, Pairs: pairs(ms, ms, even...)}, Warn, "4 members survive the loss of 1, just as 3", 1},
		{"majority in a site", Input{Members: heavy, Pairs: pairs(ms, ms, heavy...)}, Warn, "site a has 3 of 5", 1},
		{"not measured", Input{Members: near, Pairs: pairs(ms, ms, near[:2]...)}, Refuse, "m1 and m3, m2 and m3", 1},
		{"no answer", Input{Members: near[:2], Pairs: []Pair{{A: "m1", B: "m2"}}}, Refuse, "m1 and m2", 2},
		{"few probes", Input{Members: near, Pairs: append(pairs(ms, ms, near...), Pair{A: "m2", B: "m1", P50: ms, Probes: 199})}, Warn, "only 199", 1},
		{"slow disk", Input{Members: slow, Pairs: pairs(ms, ms, slow...)}, Warn, "fsync on m1 takes 11ms", 1},
		{"wanted timers that etcd refuses", Input{Members: near, Pairs: pairs(ms, ms, near...), Heartbeat: 500 * ms, Election: 2400 * ms}, Refuse, "five heartbeats", 1},
		{"too long", Input{Members: one, Election: 51 * time.Second}, Refuse, "above 50s", 1},
		{"not milliseconds", Input{Members: one, Election: time.Second + 1}, Refuse, "whole milliseconds", 1},
		{"wanted election too short for the network", Input{Members: three, Pairs: pairs(20*ms, 200*ms, three...), Election: time.Second}, Warn, "ten slow round trips", 1},
		{"wanted heartbeat too short", Input{Members: three, Pairs: pairs(40*ms, 50*ms, three...), Heartbeat: 30 * ms}, Warn, "shorter than the round trip", 1},
		{"the worst first", Input{Members: slow, Pairs: pairs(120*ms, ms, slow...)}, Refuse, "round trip", 2},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := Judge(tt.in)
			if r.Level() != tt.level || len(r.Verdicts) != tt.n || !strings.Contains(r.Verdicts[0].Reason, tt.reason) || r.Verdicts[0].Level != tt.level {
				t.Fatalf("got %v %+v, want %v with %q in the first of %d", r.Level(), r.Verdicts, tt.level, tt.reason, tt.n)
			}
			for _, v := range r.Verdicts {
				if (v.Cure == "") != (v.Level == Good) {
					t.Errorf("cure of %v is %q", v.Level, v.Cure)
				}
			}
		})
	}
}

func TestJudgeTakesTheWorstPairAndTheBestLeader(t *testing.T) {
	r := Judge(Input{Members: three, Pairs: []Pair{
		{A: "m1", B: "m2", P50: 10 * ms, P99: 12 * ms, Probes: 300},
		{A: "m3", B: "m1", P50: 80 * ms, P99: 90 * ms, Probes: 300},
		{A: "m1", B: "m3", P50: 70 * ms, P99: 95 * ms, Probes: 250},
		{A: "m2", B: "m3", P50: 60 * ms, P99: 300 * ms, Probes: 300},
		{A: "m1", B: "worker", P50: 500 * ms, P99: 900 * ms, Probes: 1},
		{A: "m1", B: "m1", P50: 500 * ms, P99: 900 * ms, Probes: 1},
	}})
	r.Verdicts = nil
	want := Result{
		Heartbeat: 120 * ms, Election: 3 * time.Second, Leader: "m2", P99: 300 * ms,
		Worst: Pair{A: "m1", B: "m3", P50: 80 * ms, P99: 95 * ms, Probes: 250},
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Error(diff)
	}
}

func TestJudgeTakesWantedTimers(t *testing.T) {
	in := Input{Members: near, Pairs: pairs(5*ms, 8*ms, near...), Heartbeat: 300 * ms}
	if r := Judge(in); r.Heartbeat != 300*ms || r.Election != 3*time.Second || r.Level() != Good {
		t.Errorf("heartbeat alone: %+v", r)
	}
	in.Election = 2 * time.Second
	if r := Judge(in); r.Heartbeat != 300*ms || r.Election != 2*time.Second || r.Level() != Good {
		t.Errorf("both: %+v", r)
	}
}

func TestLeaderIsNotAHostThatNobodyReaches(t *testing.T) {
	r := Judge(Input{Members: near, Pairs: []Pair{{A: "m2", B: "m3", P50: 90 * ms, P99: 90 * ms, Probes: 200}}})
	if r.Leader != "m2" || r.Level() != Refuse {
		t.Errorf("leader %s, %v", r.Leader, r.Level())
	}
}
