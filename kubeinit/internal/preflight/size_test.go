package preflight

import (
	"errors"
	"testing"
)

func TestSearchMTUFindsEveryLimit(t *testing.T) {
	for _, link := range []int{576, 577, 1280, 1420, 1421, 1500, 9000, 65535} {
		for limit := 500; limit <= link; limit += 1 + limit/97 {
			for _, speaks := range []bool{false, true} {
				tried := 0
				said := 0
				got, err := searchMTU(minMTU, link, func() int { return said }, func(size int) (bool, error) {
					tried++
					if size > limit && speaks {
						said = limit
					}
					return size <= limit, nil
				})
				want := limit
				if limit < minMTU {
					want = 0
				}
				if err != nil || got != want {
					t.Errorf("limit %d of %d: got %d, %v", limit, link, got, err)
				}
				if most := map[bool]int{false: 20, true: 4}[speaks]; tried > most {
					t.Errorf("limit %d of %d: %d tries", limit, link, tried)
				}
			}
		}
	}
	broken := errors.New("broken")
	if _, err := searchMTU(minMTU, 1500, func() int { return 0 }, func(size int) (bool, error) { return size < 1000, brokenAbove(size, broken) }); !errors.Is(err, broken) {
		t.Errorf("got %v, want %v", err, broken)
	}
	if got, _ := searchMTU(minMTU, 500, nil, nil); got != 0 {
		t.Errorf("a link below the smallest size has MTU %d, want 0", got)
	}
}

func brokenAbove(size int, err error) error {
	if size > 576 && size < 1500 {
		return err
	}
	return nil
}
