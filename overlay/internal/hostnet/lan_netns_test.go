//go:build integration && linux

package hostnet

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// lanRoutes is how the ip command shows the routes through hosts of LANs.
func lanRoutes(t *testing.T) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(ip(t, "-4 route") + ip(t, "-6 route")) {
		if strings.Contains(line, " via ") && strings.Contains(line, " proto 109 ") {
			lines = append(lines, strings.Join(strings.Fields(line), " ")+"\n")
		}
	}
	return strings.Join(lines, "")
}

func lan(prefix, via string) LANRoute {
	return LANRoute{netip.MustParsePrefix(prefix), netip.MustParseAddr(via)}
}

func TestLANRoutesChangeOneByOne(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	before := settled(t)
	h := mustOpen(t, cfg, sysctls{})
	for _, step := range []struct {
		routes []LANRoute
		want   string
	}{
		{[]LANRoute{lan("10.128.1.0/24", "192.168.10.101"), lan("fd00:128:1::/64", "fd10::101")},
			"10.128.1.0/24 via 192.168.10.101 dev lan0 proto 109 metric 2048\nfd00:128:1::/64 via fd10::101 dev lan0 proto 109 metric 2048 pref medium\n"},
		{[]LANRoute{lan("10.128.1.0/24", "192.168.10.102"), lan("10.128.2.0/24", "192.168.10.102")},
			"10.128.1.0/24 via 192.168.10.102 dev lan0 proto 109 metric 2048\n10.128.2.0/24 via 192.168.10.102 dev lan0 proto 109 metric 2048\n"},
		{[]LANRoute{lan("10.128.1.0/24", "10.4.0.7")}, "10.128.1.0/24 via 10.4.0.7 dev wan0 proto 109 metric 2048\n"},
		{nil, ""},
	} {
		mustApply(t, h, Desired{LAN: step.routes})
		if diff := cmp.Diff(step.want, lanRoutes(t)); diff != "" {
			t.Errorf("routes (-want +got):\n%s", diff)
		}
		if got := h.journal.lan; len(got) != len(step.routes) {
			t.Errorf("journal has %v, want as many as there are routes: %d", got, len(step.routes))
		}
	}
	mustEqual(t, before)
	if _, err := os.Stat(cfg.Journal); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("journal: %v", err)
	}
}

func TestLANRoutesThatCannotBeLeaveTheOthersAlone(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	ip(t, "route add 10.128.9.0/24 via 192.168.10.254")
	before := settled(t)
	h := mustOpen(t, cfg, sysctls{})
	err := h.Apply(t.Context(), Desired{
		Routes: []Route{{Prefix: netip.MustParsePrefix("10.128.4.0/24")}},
		LAN: []LANRoute{
			lan("10.128.1.0/24", "192.168.10.101"), lan("10.128.2.0/24", "172.31.0.1"), lan("10.128.3.0/24", "192.168.10.1"),
			lan("10.128.4.0/24", "192.168.10.101"), lan("10.128.9.0/24", "192.168.10.101"),
		},
	})
	collision, ok := errors.AsType[*CollisionError](err)
	if !ok || collision.Prefix != netip.MustParsePrefix("10.128.9.0/24") {
		t.Errorf("error %v, want the collision of 10.128.9.0/24", err)
	}
	for _, want := range []string{
		"route 10.128.2.0/24 via 172.31.0.1: not in a network", "route 10.128.3.0/24 via 192.168.10.1: that is an address of this host",
		"route 10.128.4.0/24 via 192.168.10.101: the prefix is reached through the mesh",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q:\n%v", want, err)
		}
	}
	if diff := cmp.Diff("10.128.1.0/24 via 192.168.10.101 dev lan0 proto 109 metric 2048\n", lanRoutes(t)); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	mustClose(t, h)
	mustEqual(t, before)
}

// Two gateways on one host mark their routes alike.
func TestLANRoutesOfAnotherGatewayAreForeign(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	tun(t, "pm1")
	before := settled(t)
	a := mustOpen(t, cfg, sysctls{})
	b := mustOpen(t, Config{Link: "pm1", Journal: filepath.Join(stateDirectory(t), "hostnet.journal")}, sysctls{})
	mustApply(t, a, Desired{LAN: []LANRoute{lan("10.128.1.0/24", "192.168.10.101")}})
	err := b.Apply(t.Context(), Desired{LAN: []LANRoute{lan("10.128.1.0/24", "192.168.10.102")}})
	if _, ok := errors.AsType[*CollisionError](err); !ok {
		t.Errorf("taking the other one's prefix: %v, want a collision", err)
	}
	mustClose(t, b)
	if diff := cmp.Diff("10.128.1.0/24 via 192.168.10.101 dev lan0 proto 109 metric 2048\n", lanRoutes(t)); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	mustClose(t, a)
	mustEqual(t, before)
}

func TestLANRouteComesBackWithItsNetwork(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	settled(t)
	h := mustOpen(t, cfg, sysctls{})
	d := Desired{LAN: []LANRoute{lan("10.128.1.0/24", "192.168.10.101")}}
	mustApply(t, h, d)
	ip(t, "addr del 192.168.10.1/24 dev lan0") // the kernel takes the route away
	if err := h.Apply(t.Context(), d); err == nil || lanRoutes(t) != "" {
		t.Errorf("without the network: error %v, routes %q", err, lanRoutes(t))
	}
	ip(t, "addr add 192.168.10.1/24 dev lan0")
	mustApply(t, h, d)
	if got := lanRoutes(t); !strings.HasPrefix(got, "10.128.1.0/24 via 192.168.10.101 ") {
		t.Errorf("routes with the network again: %q", got)
	}
	ip(t, "route change 10.128.1.0/24 via 192.168.10.99 proto 109 metric 2048")
	f, err := h.Facts()
	if err != nil || len(f.LAN) != 1 {
		t.Errorf("facts about a route of ours that somebody bent: %+v, %v", f.LAN, err)
	}
	mustClose(t, h)
	if got := lanRoutes(t); !strings.Contains(got, "192.168.10.99") {
		t.Errorf("routes after close: %q, want that of somebody else to stay", got)
	}
}

// A journal that was lost makes our own routes look foreign; they are taken up
// again where they are exactly as wanted.
func TestLostJournalIsNoTrap(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	before := settled(t)
	ip(t, "route add 10.128.1.0/24 via 192.168.10.101 proto 109 metric 2048")
	ip(t, "route add 10.128.2.0/24 via 192.168.10.101 proto 109 metric 2048")
	h := mustOpen(t, cfg, sysctls{})
	err := h.Apply(t.Context(), Desired{LAN: []LANRoute{lan("10.128.1.0/24", "192.168.10.101"), lan("10.128.2.0/24", "192.168.10.102")}})
	if c, ok := errors.AsType[*CollisionError](err); !ok || c.Prefix != netip.MustParsePrefix("10.128.2.0/24") || strings.Contains(err.Error(), "10.128.1.0/24 collides") {
		t.Errorf("error %v, want the collision of 10.128.2.0/24 alone", err)
	}
	mustClose(t, h)
	ip(t, "route del 10.128.2.0/24")
	mustEqual(t, before)
}
