//go:build linux

package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay"
)

// statuses are those of n gateways that agree.
func statuses(n int) []overlay.Status {
	out := make([]overlay.Status, n)
	for i := range out {
		s := &out[i]
		for j := range n {
			name := string(rune('a' + j))
			p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(j)}), 16)
			s.Routes = append(s.Routes, overlay.RouteStatus{Prefix: p, Gateway: name, Local: i == j})
			if i == j {
				s.Self = overlay.SelfStatus{Gateway: name, Sequence: uint64(j), Routes: []overlay.Route{{Prefix: p}}} //nolint:gosec // small
				continue
			}
			s.Peers = append(s.Peers, overlay.PeerStatus{Gateway: name, Sequence: uint64(j), State: overlay.PeerUp}) //nolint:gosec // small
		}
	}
	return out
}

func TestViewsDifferByWhatMatters(t *testing.T) {
	for name, c := range map[string]struct {
		change func(s *overlay.Status) // of the last of three gateways
		fault  string                  // in the error; empty: none
	}{
		"nothing":           {func(*overlay.Status) {}, ""},
		"another time":      {func(s *overlay.Status) { s.Peers[0].RTT = 5 }, ""},
		"a peer is away":    {func(s *overlay.Status) { s.Peers[0].State = overlay.PeerUnreachable }, "sees 2 of 3"},
		"an older record":   {func(s *overlay.Status) { s.Peers[1].Sequence = 0 }, "another view"},
		"a missing route":   {func(s *overlay.Status) { s.Routes = s.Routes[1:] }, "another view"},
		"a foreign owner":   {func(s *overlay.Status) { s.Routes[0].Gateway = "b" }, "another view"},
		"nothing of itself": {func(s *overlay.Status) { s.Self.Routes = nil }, "another view"},
	} {
		all := statuses(3)
		c.change(&all[2])
		var views [][]string
		for _, s := range all {
			views = append(views, view(s))
		}
		err := differ(views)
		if (err == nil) != (c.fault == "") || err != nil && !strings.Contains(err.Error(), c.fault) {
			t.Errorf("%s: got %v, want %q", name, err, c.fault)
		}
	}
}

func TestViewDoesNotDependOnOrder(t *testing.T) {
	s := statuses(4)[1]
	want := view(s)
	slices.Reverse(s.Peers)
	slices.Reverse(s.Routes)
	if diff := cmp.Diff(want, view(s)); diff != "" {
		t.Error(diff)
	}
}

func TestSeedsAreNumbersWithCommas(t *testing.T) {
	if got, err := parseSeeds("4, 5,18446744073709551615"); err != nil || !slices.Equal(got, []uint64{4, 5, 1<<64 - 1}) {
		t.Errorf("got %v, %v", got, err)
	}
	for _, list := range []string{"", "4,", "4 5", "-1", "x"} {
		if got, err := parseSeeds(list); err == nil {
			t.Errorf("%q: got %v, want an error", list, got)
		}
	}
}
