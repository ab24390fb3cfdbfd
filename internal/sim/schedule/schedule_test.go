package schedule

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestSeedsMakeTheSameScheduleEachTime(t *testing.T) {
	o := Options{Gateways: 30}
	if diff := cmp.Diff(New(7, o), New(7, o)); diff != "" {
		t.Error(diff)
	}
	if cmp.Equal(New(7, o), New(8, o)) {
		t.Error("two seeds make the same schedule")
	}
}

func TestSchedulesSurviveJSON(t *testing.T) {
	for seed := range uint64(50) {
		want := New(seed, Options{Gateways: 20})
		b, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var got Schedule
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatalf("seed %d: %s", seed, diff)
		}
	}
}

func TestSchedulesNameOnlyGatewaysThatThereAre(t *testing.T) {
	for seed := range uint64(500) {
		for _, n := range []int{4, 12, 30} {
			s := New(seed, Options{Gateways: n})
			mustFit(t, s)
			for _, small := range Smaller(s) {
				mustFit(t, small)
			}
		}
	}
}

// mustFit checks that everything in s happens to gateways that are there, in
// order.
func mustFit(t *testing.T, s Schedule) {
	t.Helper()
	if !slices.IsSortedFunc(s.Events, func(a, b Event) int { return int(a.At - b.At) }) {
		t.Fatalf("seed %d: events out of order: %v", s.Seed, s.Events)
	}
	if s.Pairs+s.Hidden >= s.Gateways {
		t.Fatalf("seed %d: %d pairs and %d hidden of %d gateways", s.Seed, s.Pairs, s.Hidden, s.Gateways)
	}
	for _, e := range s.Events {
		who := slices.Concat(append(e.Parts, e.Who)...)
		for _, i := range who {
			if i < 0 || i >= s.Gateways {
				t.Fatalf("seed %d: %v names gateway %d of %d", s.Seed, e, i, s.Gateways)
			}
		}
		if (e.Kind == OneWay || e.Kind == Flap) && len(e.Who) != 2 {
			t.Fatalf("seed %d: %v is about a path", s.Seed, e)
		}
		if (e.How == "enrol" || e.How == "restore" || e.Kind == Lie) && slices.Contains(e.Who, 0) {
			t.Fatalf("seed %d: %v happens to the issuer", s.Seed, e)
		}
	}
}

func TestSchedulesCoverEveryKindAndLength(t *testing.T) {
	kinds := make(map[Kind]int)
	how := make(map[string]int)
	var longest time.Duration
	for seed := range uint64(1000) {
		for _, e := range New(seed, Options{Gateways: 30}).Events {
			kinds[e.Kind]++
			how[string(e.Kind)+" "+e.How]++
			longest = max(longest, time.Duration(e.For))
			if e.Kind == Partition && (len(e.Parts) < 1 || len(e.Parts) > 5) {
				t.Fatalf("%d parts", len(e.Parts))
			}
		}
	}
	for _, k := range []Kind{Partition, OneWay, Flap, Lossy, Storm, Crash, Stop, Rolling, Skew, Lie, Hostile, Withdraw, NATLoss, Calm} {
		if kinds[k] == 0 {
			t.Errorf("no %s in a thousand schedules", k)
		}
	}
	for _, h := range []string{"crash keep", "crash restore", "crash enrol", "lie death", "lie replay", "lie garbage", "lie oversize", "lie drip", "lie flood", "lie steal", "lie equivocate", "hostile silent"} {
		if how[h] == 0 {
			t.Errorf("no %s in a thousand schedules", h)
		}
	}
	if longest < 30*time.Minute {
		t.Errorf("the longest of a thousand schedules' faults lasts %v", longest)
	}
	if s := New(1, Options{Gateways: 30, Longest: 20 * time.Second}); slices.ContainsFunc(s.Events, func(e Event) bool { return e.Kind == Partition && e.For > Moment(20*time.Second) }) {
		t.Error("a partition lasts longer than the options say")
	}
}

func TestSmallerSchedulesAreSmaller(t *testing.T) {
	size := func(s Schedule) int {
		b, err := json.Marshal(s.Events)
		if err != nil {
			t.Fatal(err)
		}
		n := len(b) + 1000*s.Gateways + 10*s.Pairs + 10*s.Hidden + int(s.Stagger)/1e6 + int(s.Link.Loss*1e6+s.Link.Reorder*1e6+s.Link.Duplicate*1e6) + int(s.Link.Jitter)/1e6
		for _, e := range s.Events {
			n += int(time.Duration(e.For)/time.Second) * 1000
		}
		return n
	}
	for seed := range uint64(200) {
		s := New(seed, Options{Gateways: 20})
		for _, small := range Smaller(s) {
			if size(small) >= size(s) {
				t.Fatalf("seed %d: not smaller:\n%+v\n%+v", seed, s, small)
			}
		}
	}
}

// Shrinking step by step ends, and finds the one event that matters.
func TestShrinkingFindsTheEventThatMatters(t *testing.T) {
	for seed := range uint64(100) {
		s := New(seed, Options{Gateways: 20})
		i := slices.IndexFunc(s.Events, func(e Event) bool { return e.Kind == Crash })
		if i < 0 {
			continue
		}
		fails := func(s Schedule) bool {
			return slices.ContainsFunc(s.Events, func(e Event) bool { return e.Kind == Crash })
		}
		steps := 0
		for found := true; found && steps < 500; steps++ {
			found = false
			for _, small := range Smaller(s) {
				if fails(small) {
					s, found = small, true
					break
				}
			}
		}
		if len(s.Events) != 1 || s.Gateways > 1+max(3, s.Events[0].Who[0]) || len(s.Events[0].Who) != 1 {
			t.Fatalf("seed %d: shrunk in %d steps to %d gateways and %v", seed, steps, s.Gateways, s.Events)
		}
	}
}
