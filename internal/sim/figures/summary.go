package figures

import (
	"math"
	"slices"
	"time"
)

// Summary is what a group of figures comes to.
type Summary struct {
	Count  int // figures
	Misses int // of these, those that did not reach what was waited for
	// Median, P99 and Max are quantiles of Took, by nearest rank. A miss counts with its limit, so that those above
	// the share of figures without it are lower bounds; see AtLeast.
	Median, P99, Max time.Duration
	// Idle and During are medians in bytes per gateway per second, of the figures that have them.
	Idle, During float64

	took []Figure // in order of Took
}

// Summarise sums up figures of one kind; the zero Summary if there are none.
func Summarise(figures []Figure) Summary {
	s := Summary{Count: len(figures), took: slices.Clone(figures)}
	if s.Count == 0 {
		return s
	}
	slices.SortStableFunc(s.took, func(a, b Figure) int {
		switch {
		case a.Reached != b.Reached && a.Reached:
			return -1
		case a.Reached != b.Reached:
			return 1
		}
		return int(a.Took - b.Took)
	})
	var idle, during []float64
	for _, f := range figures {
		if !f.Reached {
			s.Misses++
		}
		if f.Idle > 0 {
			idle = append(idle, f.Idle)
		}
		if f.During > 0 {
			during = append(during, f.During)
		}
	}
	s.Median, s.P99, s.Max = s.quantile(0.5).Took, s.quantile(0.99).Took, s.quantile(1).Took
	s.Idle, s.During = median(idle), median(during)
	return s
}

// quantile returns the figure of nearest rank; misses come last.
func (s Summary) quantile(q float64) Figure {
	rank := int(math.Ceil(q * float64(len(s.took))))
	return s.took[max(rank, 1)-1]
}

// AtLeast reports whether the quantile q of Took is the limit of a miss.
func (s Summary) AtLeast(q float64) bool {
	return s.Count > 0 && !s.quantile(q).Reached
}

// enoughForP99 is how many figures it takes for one in a hundred to exist.
const enoughForP99 = 100

// Worst is what a goal is held against: the 99th percentile, or the largest of
// fewer than 100 figures. ok is false if that is a miss or nothing was measured.
func (s Summary) Worst() (took time.Duration, ok bool) {
	switch {
	case s.Count == 0:
		return 0, false
	case s.Count < enoughForP99:
		return s.Max, !s.AtLeast(1)
	}
	return s.P99, !s.AtLeast(0.99)
}

// median of an empty list is zero.
func median(v []float64) float64 {
	if len(v) == 0 {
		return 0
	}
	v = slices.Sorted(slices.Values(v))
	if n := len(v); n%2 == 0 {
		return (v[n/2-1] + v[n/2]) / 2
	}
	return v[len(v)/2]
}
