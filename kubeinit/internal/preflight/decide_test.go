package preflight

import (
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/etcdtune"
)

func TestReportAnswersWhatIsDecidedFromIt(t *testing.T) {
	inv := reference()
	x := &faulty{inv, cleanReport(inv)}
	x.both("master01", "master03", func(p *Pair) { p.RTT.P50, p.RTT.P99 = 80*time.Millisecond, 95*time.Millisecond })
	in := x.r.EtcdInput(inv)
	if len(in.Members) != 3 || len(in.Pairs) != 6 || in.Members[0] != (etcdtune.Member{Host: "master01", Site: "s10", Fsync: 2 * time.Millisecond}) {
		t.Errorf("input %+v", in)
	}
	if got := etcdtune.Judge(in); got.Heartbeat != 120*time.Millisecond || got.Election != 1200*time.Millisecond {
		t.Errorf("timers %v, %v", got.Heartbeat, got.Election)
	}
	if mtu := x.r.NodeMTU(inv); mtu != 1420 {
		t.Errorf("MTU %d, want 1420", mtu)
	}
	x.pairs("node01", "node04", func(p *Pair) { p.MTU = 1380 })
	x.pairs("lb", "node04", func(p *Pair) { p.MTU = 1300 }) // not a node
	if mtu := x.r.NodeMTU(inv); mtu != 1380 {
		t.Errorf("MTU %d, want 1380", mtu)
	}
	if rtt, ok := x.r.RTT("master01", "master03"); !ok || rtt != 80*time.Millisecond {
		t.Errorf("round trip %v, %v", rtt, ok)
	}
	x.both("master01", "master03", cut)
	if _, ok := x.r.RTT("master01", "master03"); ok || len(x.r.EtcdInput(inv).Pairs) != 4 {
		t.Error("a pair that was not measured has a round trip")
	}
	if mtu := (&Report{}).NodeMTU(inv); mtu != 0 {
		t.Errorf("MTU of nothing is %d", mtu)
	}
}
