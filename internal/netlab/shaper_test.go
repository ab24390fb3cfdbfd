package netlab

import (
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// departure is a frame, by its number, and the time at which it left.
type departure struct {
	Number int
	At     time.Duration
}

// shape sends count numbered frames of the given size through a link, one every gap, and returns how they leave.
func shape(l Link, count, size int, gap time.Duration) []departure {
	s := shaper{rand: rand.New(rand.NewPCG(1, 2))}
	var left []departure
	leave := func(now time.Duration) {
		for {
			at, ok := s.next()
			if !ok || at > now {
				return
			}
			frames := s.leave(l, at, batchMax)
			for _, f := range frames {
				left = append(left, departure{int(binary.BigEndian.Uint32(f.data)), at})
			}
			s.recycle(len(frames))
		}
	}
	data := make([]byte, size)
	for i := range count {
		now := time.Duration(i) * gap
		leave(now)
		binary.BigEndian.PutUint32(data, uint32(i))
		s.arrive(l, now, data)
	}
	leave(time.Hour)
	if s.bytes != 0 {
		panic("bytes left")
	}
	return left
}

const batchMax = 7

func TestShaperWithoutFaultsPassesAtOnce(t *testing.T) {
	want := []departure{{0, 0}, {1, time.Millisecond}, {2, 2 * time.Millisecond}}
	if diff := cmp.Diff(want, shape(Link{}, 3, 100, time.Millisecond)); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestShaperDelaysEachFrame(t *testing.T) {
	for _, d := range shape(Link{Delay: 30 * time.Millisecond}, 3000, 1514, 10*time.Microsecond) {
		if want := time.Duration(d.Number)*10*time.Microsecond + 30*time.Millisecond; d.At != want {
			t.Fatalf("frame %d leaves at %v, want %v", d.Number, d.At, want)
		}
	}
}

func TestShaperJitterStaysInItsBoundsAndKeepsOrder(t *testing.T) {
	const gap = 100 * time.Millisecond // more than the jitter, so that no frame waits for another
	left := shape(Link{Delay: 20 * time.Millisecond, Jitter: 10 * time.Millisecond}, 2000, 100, gap)
	var delays []time.Duration
	for i, d := range left {
		if d.Number != i {
			t.Fatalf("frame %d leaves as number %d", d.Number, i)
		}
		delays = append(delays, d.At-time.Duration(i)*gap)
	}
	slices.Sort(delays)
	low, middle, high := delays[0], delays[1000], delays[1999]
	if low < 10*time.Millisecond || low > 10500*time.Microsecond || high > 30*time.Millisecond || high < 29500*time.Microsecond {
		t.Errorf("delays from %v to %v, want 10ms to 30ms", low, high)
	}
	if middle < 19*time.Millisecond || middle > 21*time.Millisecond {
		t.Errorf("median %v, want 20ms", middle)
	}
	dense := shape(Link{Delay: 20 * time.Millisecond, Jitter: 30 * time.Millisecond}, 2000, 100, time.Microsecond)
	if !slices.IsSortedFunc(dense, func(a, b departure) int { return a.Number - b.Number }) {
		t.Error("jitter changes the order of a dense stream")
	}
}

func TestShaperReordersByThree(t *testing.T) {
	const count = 100_000
	left := shape(Link{Reorder: 0.02}, count, 100, time.Microsecond)
	if len(left) != count {
		t.Fatalf("%d frames leave, want %d", len(left), count)
	}
	highest, late, byThree := -1, 0, 0
	for i, d := range left {
		if d.Number > highest {
			highest = d.Number
			continue
		}
		late++
		if i-d.Number == overtakers {
			byThree++
		}
	}
	// Standard deviation: sqrt(100000 * 0.02 * 0.98) = 44.
	if late < 2000-5*44 || late > 2000+5*44 {
		t.Errorf("%d of %d frames are overtaken, want 2000 ± 220", late, count)
	}
	// Frames that are held at the same time shift one another.
	if byThree < late*8/10 {
		t.Errorf("%d of %d overtaken frames were so by three", byThree, late)
	}
}

func TestShaperHoldsALoneFrameBriefly(t *testing.T) {
	left := shape(Link{Reorder: 1, Delay: time.Millisecond}, 2, 100, time.Second)
	want := []departure{{0, 11 * time.Millisecond}, {1, time.Second + 11*time.Millisecond}}
	if diff := cmp.Diff(want, left); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestShaperSendsAtItsRate(t *testing.T) {
	// 1250 bytes at 10 Mbit/s take a millisecond. What comes in twice as fast fills the queue of 100 ms and then
	// loses every second frame.
	const count = 2000
	left := shape(Link{Rate: 10_000_000}, count, 1250, 500*time.Microsecond)
	for i := range left {
		if want := time.Duration(i+1) * time.Millisecond; left[i].At != want {
			t.Fatalf("frame %d leaves at %v, want %v", left[i].Number, left[i].At, want)
		}
	}
	if len(left) < 1095 || len(left) > 1105 {
		t.Errorf("%d frames pass, want 1000 and the 100 in the queue", len(left))
	}
	if got := len(shape(Link{Rate: 10_000}, 100, fullFrame, 0)); got != rateFrames+1 {
		t.Errorf("%d frames of a burst pass a slow link, want %d", got, rateFrames+1)
	}
}

func TestShaperBoundsItsMemory(t *testing.T) {
	left := shape(Link{Delay: time.Minute}, 60_000, fullFrame, 0)
	if want := shaperBytes / fullFrame; len(left) != want {
		t.Errorf("%d frames pass, want %d", len(left), want)
	}
}

func TestShaperReusesItsBuffers(t *testing.T) {
	s := shaper{rand: rand.New(rand.NewPCG(1, 2))}
	l, data, now := Link{Delay: time.Millisecond, Reorder: 0.1}, make([]byte, fullFrame), time.Duration(0)
	step := func() {
		now += 100 * time.Microsecond
		s.arrive(l, now, data)
		s.recycle(len(s.leave(l, now, batchMax)))
	}
	for range 5000 {
		step()
	}
	if got := testing.AllocsPerRun(5000, step); got > 0.01 {
		t.Errorf("%v allocations per frame, want none", got)
	}
}

func TestLinkFaultsNameTheField(t *testing.T) {
	if got := (Link{Delay: time.Second, Jitter: time.Second, Loss: 1, Reorder: 1, Rate: minLinkRate, MTU: 68}).faults(); got != nil {
		t.Errorf("got %q for a good link", got)
	}
	bad := Link{Delay: -1, Jitter: time.Hour, Loss: 1.5, Reorder: -0.1, Rate: 10, MTU: 20}
	got := bad.faults()
	for i, field := range []string{"Delay", "Jitter", "Loss", "Reorder", "Rate", "MTU"} {
		if i >= len(got) || !strings.HasPrefix(got[i], field+" ") {
			t.Errorf("got %q, want a fault of each field", got)
		}
	}
	topology := Reference()
	topology.Host("gw10").Interfaces[1].Out.Loss = 2
	topology.Host("gw20").Interfaces[0].In.MTU = 7
	err := topology.Validate()
	for _, want := range []string{"host gw10 interface eth1: Out: Loss 2", "host gw20 interface eth0: In: MTU 7"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v\nwithout %q", err, want)
		}
	}
}

func TestLinkTellsWhatItDoes(t *testing.T) {
	for _, c := range []struct {
		link Link
		want string
	}{
		{Link{}, "no faults"},
		{Cut, "loss 100%"},
		{Link{Delay: 20 * time.Millisecond}, "delay 20ms"},
		{
			Link{Delay: 20 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.01, Reorder: 0.002, Rate: 2_500_000, MTU: 1300},
			"delay 20ms ±5ms, loss 1%, reorder 0.2%, 2.5 Mbit/s, mtu 1300",
		},
	} {
		if got := c.link.String(); got != c.want {
			t.Errorf("got %q, want %q", got, c.want)
		}
	}
	topology := Reference()
	topology.Host("gw10").Interfaces[0].Out = Link{Loss: 0.5}
	lan := &topology.Host("gw10").Interfaces[1]
	lan.Out, lan.In = Link{MTU: 900}, Link{MTU: 900}
	for _, want := range []string{"out: loss 50%", "both ways: mtu 900"} {
		if got := topology.String(); strings.Count(got, want) != 1 {
			t.Errorf("got\n%s\nwithout %q", got, want)
		}
	}
}
