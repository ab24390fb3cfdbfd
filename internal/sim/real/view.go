//go:build linux

package main

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/overlay"
)

// view is what a gateway says about all that it reaches, itself included: for each the
// sequence number of its record and its prefixes, in order.
func view(s overlay.Status) []string {
	var own []netip.Prefix
	for _, r := range s.Self.Routes {
		own = append(own, r.Prefix)
	}
	routes := make(map[string][]netip.Prefix)
	for _, r := range s.Routes {
		routes[r.Gateway] = append(routes[r.Gateway], r.Prefix)
	}
	lines := []string{viewLine(s.Self.Gateway, s.Self.Sequence, own)}
	for _, p := range s.Peers {
		if p.State == overlay.PeerUp {
			lines = append(lines, viewLine(p.Gateway, p.Sequence, routes[p.Gateway]))
		}
	}
	slices.Sort(lines)
	return lines
}

func viewLine(gateway string, sequence uint64, prefixes []netip.Prefix) string {
	prefixes = slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare)
	return fmt.Sprint(gateway, " ", sequence, " ", prefixes)
}

// differ says why views, one of each gateway, are not full and identical.
func differ(views [][]string) error {
	for i, v := range views {
		if len(v) != len(views) {
			return fmt.Errorf("gateway %d sees %d of %d", i, len(v), len(views))
		}
		if !slices.Equal(v, views[0]) {
			return fmt.Errorf("gateway %d has another view than gateway 0:\n%s\nwant:\n%s", i, strings.Join(v, "\n"), strings.Join(views[0], "\n"))
		}
	}
	return nil
}
