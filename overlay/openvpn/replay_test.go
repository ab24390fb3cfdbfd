package openvpn

import "testing"

func TestReplayWindowFollowsTheTableOfVerdicts(t *testing.T) {
	type step struct {
		time, id uint32
		want     bool
	}
	for name, steps := range map[string][]step{
		"id zero":            {{5, 0, false}, {5, 1, true}, {5, 0, false}},
		"same id":            {{5, 1, true}, {5, 1, false}},
		"63 behind":          {{5, 100, true}, {5, 37, true}, {5, 37, false}},
		"64 behind":          {{5, 100, true}, {5, 36, false}},
		"jump":               {{5, 1, true}, {5, 1_000_001, true}, {5, 1, false}, {5, 1_000_000, true}},
		"shift of 63 and 64": {{5, 1, true}, {5, 64, true}, {5, 1, false}, {5, 2, true}, {5, 128, true}, {5, 65, true}, {5, 64, false}},
		"newer time":         {{5, 9, true}, {6, 1, true}, {6, 1, false}, {5, 10, false}},
		"time zero":          {{0, 7, true}, {0, 7, false}, {0, 8, true}},
		"end of the ids":     {{5, 1<<32 - 1, true}, {5, 1<<32 - 1, false}, {5, 1<<32 - 64, true}, {6, 1, true}},
	} {
		var w replayWindow
		var g replayGuard
		for i, s := range steps {
			if got := w.accept(s.time, s.id); got != s.want {
				t.Errorf("%s, step %d: window accept(%d, %d) = %v", name, i, s.time, s.id, got)
			}
			if got := g.accept(s.time, s.id); got != s.want {
				t.Errorf("%s, step %d: guard accept(%d, %d) = %v", name, i, s.time, s.id, got)
			}
		}
	}
}

func TestReplayGuardRefusesRecordedPacketsAfterARestart(t *testing.T) {
	var g replayGuard
	for _, p := range [][2]uint32{{100, 1}, {100, 2}, {200, 1}, {200, 2}} {
		g.accept(p[0], p[1])
	}
	g.relax()
	for _, p := range [][2]uint32{{200, 1}, {200, 2}, {100, 1}, {100, 2}} {
		if g.accept(p[0], p[1]) {
			t.Errorf("replayed time %d id %d accepted after a restart", p[0], p[1])
		}
	}
}

func TestReplayGuardHearsAPeerWhoseClockWentBack(t *testing.T) {
	var g replayGuard
	g.accept(1000, 7)
	if g.accept(900, 1) {
		t.Fatal("older time accepted while the peer was heard")
	}
	g.relax()
	for id := uint32(1); id < 4; id++ {
		if !g.accept(900, id) {
			t.Fatalf("id %d of the older time refused after silence", id)
		}
	}
	if g.accept(800, 1) {
		t.Error("a second older time accepted without silence")
	}
	if g.accept(1000, 7) || !g.accept(1000, 8) {
		t.Error("the window of the former time was lost")
	}
	if g.accept(900, 3) {
		t.Error("id of the former time accepted again")
	}
}

func TestReplayGuardMemoryIsBounded(t *testing.T) {
	var g replayGuard
	for i := range uint32(1000) {
		g.accept(i+1, 1)
	}
	if len(g.former) > maxFormer {
		t.Errorf("%d former windows kept", len(g.former))
	}
}
