package figures

import (
	"math/rand/v2"
	"slices"
	"time"
)

// Case is a measurement to make.
type Case struct {
	System   System   `json:"system"`
	Scenario Scenario `json:"scenario"`
	N        int      `json:"n"`
	Seed     uint64   `json:"seed"`
}

// Figure returns the case without a result.
func (c Case) Figure() Figure {
	return Figure{System: c.System, Scenario: c.Scenario, N: c.N, Seed: c.Seed}
}

// Setup is what happens in a case. It depends on scenario, N and seed, not on
// the system.
type Setup struct {
	// Delay, Jitter and Loss are those of every link, in one direction, as overlaytest.Link has them.
	Delay, Jitter time.Duration
	Loss          float64
	// Parts are the indices of the gateways on each side of the partition; Heal only.
	Parts [][]int
	// Lasts is how long the partition lasts; Heal only.
	Lasts time.Duration
	// Crashed are the indices of the gateways that crash, in order; never 0. CrashViews and CrashRoutes only.
	Crashed []int
}

// Times of every case. Before the event all gateways start and are waited for
// until views are full and identical (MassStart: that is the event; Join: all
// but the last gateway).
const (
	// Settle is how long nothing happens then, before Idle is measured: state
	// exchanges and retries that the start brought about end.
	Settle = time.Minute
	// IdleWindow is how long Idle is measured. The event follows right after.
	IdleWindow = time.Minute
	// Limit is how long what a scenario asks for is waited for. That the start before the event takes longer is an error, not a figure.
	Limit = 10 * time.Minute
	// Step is how often views are compared.
	Step = 50 * time.Millisecond
)

// lengths are those of partitions: shorter and longer than the half to whole
// minute after which memberlist forgets who died.
var lengths = []time.Duration{10 * time.Second, time.Minute, 5 * time.Minute, 30 * time.Minute}

// Setup returns what happens. Of four seeds in a row each has another length
// of the partition, of sixteen each another pair of length and number of parts.
func (c Case) Setup() Setup {
	random := rand.New(rand.NewPCG(c.Seed, uint64(c.N))) //nolint:gosec // repeatable on purpose
	s := Setup{Delay: 5*time.Millisecond + time.Duration(random.Int64N(int64(95*time.Millisecond)))}
	s.Delay = s.Delay.Round(time.Millisecond)
	s.Jitter = s.Delay / 5
	s.Loss = float64(random.IntN(21)) / 1000
	switch c.Scenario {
	case Heal:
		s.Lasts = lengths[c.Seed%4]
		s.Parts = divide(random.Perm(c.N), min(c.N, 2+int(c.Seed/4%4)), random)
	case CrashViews, CrashRoutes:
		for _, i := range random.Perm(max(1, c.N-1))[:min(c.N-1, max(1, c.N/10))] {
			s.Crashed = append(s.Crashed, i+1)
		}
		slices.Sort(s.Crashed)
	}
	return s
}

// divide cuts a permutation into parts of any sizes, one at least.
func divide(all []int, parts int, random *rand.Rand) [][]int {
	out := make([][]int, parts)
	for n, i := range all {
		at := n // one for each first
		if n >= parts {
			at = random.IntN(parts)
		}
		out[at] = append(out[at], i)
	}
	for _, part := range out {
		slices.Sort(part)
	}
	return out
}
