package baseline

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/internal/sim/figures"
)

func measure(t *testing.T, c figures.Case) figures.Figure {
	t.Helper()
	var f figures.Figure
	synctest.Test(t, func(t *testing.T) { f = Measure(t, c) })
	t.Logf("%+v", f)
	return f
}

func TestMembersOfBothProfilesFindEachOther(t *testing.T) {
	for _, profile := range []figures.System{figures.MemberlistLAN, figures.MemberlistWAN} {
		for _, s := range []figures.Scenario{figures.MassStart, figures.Join} {
			f := measure(t, figures.Case{System: profile, Scenario: s, N: 12, Seed: 1})
			if !f.Reached || f.Took < figures.Step || f.During <= 0 {
				t.Errorf("%s, %s: got %+v", profile, s, f)
			}
			if s == figures.Join && f.Idle <= 0 {
				t.Errorf("%s, %s: nobody sent anything while nothing happened", profile, s)
			}
		}
	}
}

func TestMembersNoticeACrash(t *testing.T) {
	lan := measure(t, figures.Case{System: figures.MemberlistLAN, Scenario: figures.CrashViews, N: 12, Seed: 1})
	wan := measure(t, figures.Case{System: figures.MemberlistWAN, Scenario: figures.CrashViews, N: 12, Seed: 1})
	// A suspect has four times the probe interval at least on the LAN settings, six on those for the WAN: 4 s and 30 s.
	if !lan.Reached || !wan.Reached || lan.Took < 4*time.Second || wan.Took < 30*time.Second {
		t.Errorf("got %v on the LAN settings, %v on those for the WAN", lan.Took, wan.Took)
	}
}

// A short partition heals by itself, and a long one does not: each half has
// forgotten the other.
func TestMembersForgetEachOtherInALongPartition(t *testing.T) {
	short := figures.Case{System: figures.MemberlistLAN, Scenario: figures.Heal, N: 10, Seed: 16}
	long := short
	long.Seed = 18
	if short.Setup().Lasts != 10*time.Second || long.Setup().Lasts != 5*time.Minute {
		t.Fatalf("partitions of %v and %v", short.Setup().Lasts, long.Setup().Lasts)
	}
	if f := measure(t, short); !f.Reached || f.Lasted != 10*time.Second || f.Parts < 2 {
		t.Errorf("short: got %+v", f)
	}
	if f := measure(t, long); f.Reached || f.Took != figures.Limit || f.Notes == "" {
		t.Errorf("long: got %+v", f)
	}
}

func TestViewsTellMetadataApart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMesh(t, figures.Case{System: figures.MemberlistLAN, Scenario: figures.Idle, N: 3, Seed: 1})
		defer m.close()
		m.start(0, 3)
		m.converge()
		was := m.members[1].line
		m.members[1].line = line("member1", m.members[1].transport.addr.AsSlice(), port, newMeta(2, 1))
		if m.differ() == nil {
			t.Error("views with other metadata count as identical")
		}
		m.members[1].line = was
		m.members[2].crashed = true
		if m.differ() == nil {
			t.Error("views with one too many count as identical")
		}
	})
}
