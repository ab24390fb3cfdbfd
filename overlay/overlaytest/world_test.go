package overlaytest

import (
	"testing"
	"testing/synctest"
	"time"
)

var wide = Options{Link: Link{Delay: 25 * time.Millisecond, Jitter: 10 * time.Millisecond}, Seed: 1}

func TestWorldHealsAfterPartition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, WorldOptions{Gateways: 12, Pairs: 2, Network: wide})
		defer w.Close()
		w.StartAll()
		t.Log("mass start", w.MustConverge(time.Minute))
		w.Partition([]int{0, 1, 2, 3}, []int{4, 5, 6})
		time.Sleep(5 * time.Minute)
		t.Log("parts", w.MustConverge(time.Minute))
		w.Heal()
		t.Log("healed", w.MustConverge(time.Minute))
	})
}

func TestWorldHealsAfterCrashes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := NewWorld(t, WorldOptions{Gateways: 10, Hidden: 3, Network: wide})
		defer w.Close()
		w.StartAll()
		t.Log("mass start", w.MustConverge(time.Minute))
		for i := 4; i < 9; i++ {
			w.Gateway(i).Crash()
		}
		time.Sleep(time.Minute)
		w.Gateway(4).Restore()
		if err := w.Gateway(5).Enrol(); err != nil {
			t.Fatal(err)
		}
		w.StartAll()
		t.Log("restarted", w.MustConverge(time.Minute))
	})
}

func TestLiarsChangeNothingForOthers(t *testing.T) {
	for _, lie := range Lies {
		t.Run(string(lie), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, WorldOptions{Gateways: 8, Pairs: 1, Network: wide})
				defer w.Close()
				w.StartAll()
				w.MustConverge(time.Minute)
				w.Lie(3, lie)
				time.Sleep(time.Minute)
				w.Honest(3)
				w.Gateway(5).Crash()
				time.Sleep(5 * time.Second)
				w.StartAll()
				t.Log("converged", w.MustConverge(time.Minute))
			})
		})
	}
}

func TestHostileMemberlistDelaysViewsOnly(t *testing.T) {
	for _, h := range []Hostility{HostileSilent, HostileDeaths, HostileNoise} {
		t.Run(string(h), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, WorldOptions{Gateways: 10, Network: wide})
				defer w.Close()
				w.SetHostility(h)
				w.StartAll()
				t.Log("mass start", w.MustConverge(time.Minute))
				w.Partition([]int{1, 2, 3})
				time.Sleep(3 * time.Minute)
				w.Heal()
				t.Log("healed", w.MustConverge(time.Minute))
			})
		})
	}
}

func TestDataFlowsOverModelAndWireGuard(t *testing.T) {
	for _, c := range []Carrier{Model, WireGuard} {
		t.Run(string(c), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := NewWorld(t, WorldOptions{Gateways: 5, Pairs: 1, Carrier: c, Network: wide})
				defer w.Close()
				w.StartAll()
				w.MustConverge(time.Minute)
				time.Sleep(10 * time.Second)
				before := w.Arrived()
				time.Sleep(10 * time.Second)
				if got := w.Arrived() - before; got < 45 {
					t.Errorf("%d packets arrived in 10 s, want nearly 10 for each of 3 gateways, twice", got)
				}
				w.Gateway(2).Crash()
				time.Sleep(time.Minute)
				w.StartAll()
				w.MustConverge(time.Minute)
				time.Sleep(time.Minute) // rules watch
			})
		})
	}
}
