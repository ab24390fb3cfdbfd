package ctl

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

// fakeMesh is a mesh of three gateways that exist only in its answers: gw-10
// is this one, gw-20 answers, gw-30 does not. Tickets come from a real
// authority in memory.
type fakeMesh struct {
	store *overlay.MemStore
	local bool // Status has a route that is announced here

	mu       sync.Mutex // guards all below
	watchers []chan overlay.Event
	hosts    []netip.Addr
	blocked  chan struct{} // if not nil, Matrix sends on it and waits for its context
}

var (
	id20 = overlay.GatewayID{15: 20}
	id30 = overlay.GatewayID{15: 30}
	id40 = overlay.GatewayID{15: 40} // takes probes and never answers
)

func newFakeMesh(t testing.TB) *fakeMesh {
	t.Helper()
	f := &fakeMesh{store: new(overlay.MemStore)}
	_, err := overlay.Init(f.store, overlay.InitRequest{
		Mesh: "planet", Site: "10", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.10.0/24")},
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fakeMesh) Status() overlay.Status {
	s := overlay.Status{
		Version: overlay.StatusVersion,
		Mesh:    overlay.MeshStatus{Name: "planet", ID: "00"},
		Self:    overlay.SelfStatus{Gateway: "gw-10", Site: "10", Overlay: netip.MustParseAddr("fd00::1")},
		Peers: []overlay.PeerStatus{
			{Gateway: "gw-20", Site: "20", ID: id20.String(), State: overlay.PeerUp, RTT: 12 * time.Millisecond},
			{Gateway: "gw-30", Site: "30", ID: id30.String(), State: overlay.PeerKnown},
		},
		Routes: []overlay.RouteStatus{{Prefix: netip.MustParsePrefix("192.168.20.0/24"), Site: "20", Gateway: "gw-20", Why: "only offer"}},
		Refused: []overlay.RefusedStatus{
			{Prefix: netip.MustParsePrefix("192.168.30.0/24"), Gateway: "gw-30", Reason: "collides"},
		},
	}
	if f.local {
		s.Routes = append(s.Routes, overlay.RouteStatus{Prefix: netip.MustParsePrefix("192.168.10.0/24"), Site: "10", Gateway: "gw-10", Local: true, Why: "announced here"})
	}
	return s
}

func (f *fakeMesh) Matrix(ctx context.Context) overlay.Matrix {
	f.mu.Lock()
	blocked := f.blocked
	f.mu.Unlock()
	if blocked != nil {
		blocked <- struct{}{}
		<-ctx.Done()
	}
	return overlay.Matrix{
		Version:  1,
		Gateways: []overlay.MatrixGateway{{Gateway: "gw-10", Site: "10"}},
		Cells:    [][]overlay.MatrixCell{{{State: overlay.CellSelf}}},
	}
}

func (f *fakeMesh) MatrixHosts(_ context.Context, hosts []netip.Addr) (overlay.HostMatrix, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hosts = hosts
	cells := make([]overlay.MatrixCell, len(hosts))
	for i := range cells {
		cells[i].State = overlay.CellDown
	}
	return overlay.HostMatrix{
		Version:  1,
		Gateways: []overlay.MatrixGateway{{Gateway: "gw-10", Site: "10"}},
		Hosts:    hosts,
		Cells:    [][]overlay.MatrixCell{cells},
	}, nil
}

func (f *fakeMesh) Resolve(name string) ([]overlay.GatewayID, error) {
	switch name {
	case "gw-20", "20":
		return []overlay.GatewayID{id20}, nil
	case "all":
		return []overlay.GatewayID{id30, id20, id40}, nil
	}
	return nil, fmt.Errorf("%q: %w", name, overlay.ErrUnknownGateway)
}

func (f *fakeMesh) Ping(ctx context.Context, id overlay.GatewayID) (overlay.PingResult, error) {
	switch id {
	case id30:
		return overlay.PingResult{}, overlay.ErrNoPath
	case id40:
		<-ctx.Done()
		return overlay.PingResult{}, fmt.Errorf("ping gw-40: %w", ctx.Err())
	}
	return overlay.PingResult{
		Gateway: "gw-20", Site: "20", Path: netip.MustParseAddrPort("10.4.0.91:17946"),
		PathRTT: 11 * time.Millisecond, RTT: 12 * time.Millisecond, Via: "data",
	}, nil
}

func (f *fakeMesh) Ticket(req overlay.TicketRequest) (overlay.Ticket, error) {
	return overlay.NewTicket(f.store, req, []netip.AddrPort{netip.MustParseAddrPort("10.4.0.90:17946")})
}

func (f *fakeMesh) Watch(ctx context.Context) <-chan overlay.Event {
	c := make(chan overlay.Event, 8)
	f.mu.Lock()
	defer f.mu.Unlock()
	f.watchers = append(f.watchers, c)
	context.AfterFunc(ctx, func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		close(c)
		for i := range f.watchers {
			if f.watchers[i] == c {
				f.watchers = append(f.watchers[:i], f.watchers[i+1:]...)
				break
			}
		}
	})
	return c
}

func (f *fakeMesh) emit(e overlay.Event) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.watchers {
		c <- e
	}
}

func (f *fakeMesh) watching() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.watchers)
}

// WidenGrant takes what it is asked for: the member gw-20 is there, gw-30 is away.
func (f *fakeMesh) WidenGrant(_ context.Context, req overlay.WidenRequest) (overlay.Widened, error) {
	out := overlay.Widened{Gateway: req.Gateway, Site: "20", Prefixes: req.Prefixes, Added: req.Prefixes}
	switch {
	case req.Gateway == "gw-30":
		out.Site, out.Pending = "30", overlay.ErrNoPath
	case req.Gateway != "gw-20":
		return overlay.Widened{}, overlay.ErrUnknownGateway
	case req.Site != "" && req.Site != "20":
		return overlay.Widened{}, &overlay.OverlapError{Prefix: req.Prefixes[0], Other: req.Prefixes[0], Site: req.Site}
	}
	return out, nil
}

// fakeKeeper keeps sets in a map; the set "bad" does not fit.
type fakeKeeper struct {
	mu   sync.Mutex
	sets map[string]routeset.Set
}

func (k *fakeKeeper) Put(_ context.Context, set routeset.Set) (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if set.Name == "bad" {
		return false, &routeset.Error{Name: "bad", Err: errors.New("does not fit")}
	}
	if set.Name == "foreign" {
		return false, &routeset.Error{Name: "foreign", Err: &overlay.GrantError{Prefix: set.Announce[0]}}
	}
	if k.sets == nil {
		k.sets = make(map[string]routeset.Set)
	}
	changed := !k.sets[set.Name].Equal(set)
	k.sets[set.Name] = set
	return changed, nil
}

func (k *fakeKeeper) Delete(_ context.Context, name string) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if _, ok := k.sets[name]; !ok {
		return routeset.ErrUnknown
	}
	delete(k.sets, name)
	return nil
}

func (k *fakeKeeper) List() []routeset.Status {
	k.mu.Lock()
	defer k.mu.Unlock()
	out := []routeset.Status{}
	for _, name := range slices.Sorted(maps.Keys(k.sets)) {
		out = append(out, routeset.Status{Set: k.sets[name]})
	}
	return out
}
