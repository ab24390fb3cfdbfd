//go:build integration && linux

package hostnet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// newHost builds the host of world_netns_test.go, without peers behind the
// cables.
func newHost(t *testing.T) Config {
	t.Helper()
	ip(t, "link add lan0 type veth peer name lanp")
	ip(t, "link add wan0 type veth peer name wanp")
	for _, l := range []string{"lan0", "lanp", "wan0", "wanp"} {
		ip(t, "link set "+l+" up")
	}
	ip(t, "addr add 192.168.10.1/24 dev lan0")
	ip(t, "addr add fd10::1/64 dev lan0 nodad")
	ip(t, "addr add 10.4.0.90/16 dev wan0")
	ip(t, "route add default via 10.4.0.1")
	ip(t, "route add 192.168.50.0/24 via 192.168.10.254")
	tun(t, "pm0")
	return Config{Link: "pm0", Journal: filepath.Join(stateDirectory(t), "hostnet.journal")}
}

// fullDesired uses everything there is.
func fullDesired() Desired {
	p := netip.MustParsePrefix
	return Desired{
		MTU:       1420,
		Addresses: []netip.Prefix{p("fd5e::1/128")},
		Routes: []Route{
			{Prefix: p("192.168.20.0/24"), Source: netip.MustParseAddr("192.168.10.1")},
			{Prefix: p("192.168.30.0/24"), Source: netip.MustParseAddr("192.168.10.1"), MTU: 1300},
			{Prefix: p("fd20::/48"), Source: netip.MustParseAddr("fd5e::1")},
			{Prefix: p("fd5e::2/128"), MTU: 1380},
		},
		LAN: []LANRoute{
			{p("10.128.1.0/24"), netip.MustParseAddr("192.168.10.101")},
			{p("fd00:128:1::/64"), netip.MustParseAddr("fd10::101")},
		},
		Forward:  []string{"lan0"},
		Forward4: true, Forward6: true,
	}
}

// fullRoutes is how the ip command shows the routes of fullDesired.
const fullRoutes = `192.168.20.0/24 dev pm0 proto 109 scope link src 192.168.10.1 metric 2048
192.168.30.0/24 dev pm0 proto 109 scope link src 192.168.10.1 metric 2048 mtu 1300
fd20::/48 dev pm0 proto 109 src fd5e::1 metric 2048 pref medium
fd5e::2 dev pm0 proto 109 metric 2048 mtu 1380 pref medium
`

func ourRoutes(t *testing.T, link string) string {
	t.Helper()
	var lines []string
	for line := range strings.Lines(ip(t, "-4 route") + ip(t, "-6 route")) {
		if strings.Contains(line, " dev "+link+" ") && strings.Contains(line, " proto 109 ") {
			lines = append(lines, strings.Join(strings.Fields(line), " ")+"\n")
		}
	}
	return strings.Join(lines, "")
}

// bothKinds runs a test for kernels with and without force_forwarding. Each
// kind starts from a fresh host.
var bothKinds = map[string]sysctls{"force": {}, "all": {withoutForce: true}}

func TestCloseLeavesTheHostAsFound(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	before := settled(t)
	check := mustNotLeak(t)
	defer check()
	for name, sys := range bothKinds {
		h := mustOpen(t, cfg, sys)
		mustApply(t, h, fullDesired())
		if diff := cmp.Diff(fullRoutes, ourRoutes(t, "pm0")); diff != "" {
			t.Errorf("%s: routes (-want +got):\n%s", name, diff)
		}
		if got := ip(t, "-6 addr show dev pm0 to fd5e::1"); !strings.Contains(got, "fd5e::1/128") || strings.Contains(got, "tentative") {
			t.Errorf("%s: address of pm0: %s", name, got)
		}
		sysctlIs(t, "net/ipv4/conf/lan0/forwarding", "1")
		sysctlIs(t, "net/ipv4/conf/pm0/forwarding", "1")
		sysctlIs(t, "net/ipv4/conf/wan0/forwarding", "0")
		sysctlIs(t, "net/ipv4/ip_forward", "0")
		if sys.withoutForce {
			sysctlIs(t, "net/ipv6/conf/all/forwarding", "1")
			sysctlIs(t, "net/ipv6/conf/wan0/accept_ra", "2")
		} else {
			sysctlIs(t, "net/ipv6/conf/all/forwarding", "0")
			sysctlIs(t, "net/ipv6/conf/lan0/force_forwarding", "1")
			sysctlIs(t, "net/ipv6/conf/wan0/force_forwarding", "0")
			sysctlIs(t, "net/ipv6/conf/wan0/accept_ra", "1")
		}
		if info, err := os.Stat(cfg.Journal); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: journal: %v, %v", name, info, err)
		}
		mustClose(t, h)
		mustClose(t, h)
		mustEqual(t, before)
		if names, _ := os.ReadDir(filepath.Dir(cfg.Journal)); len(names) != 0 {
			t.Errorf("%s: files are left: %v", name, names)
		}
		if err := h.Apply(t.Context(), Desired{}); !errors.Is(err, ErrClosed) {
			t.Errorf("%s: Apply after Close = %v", name, err)
		}
		if _, err := h.Facts(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("%s: Facts after Close = %v", name, err)
		}
	}
}

func TestApplyingNothingTakesEverythingBack(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	before := settled(t)
	for _, sys := range bothKinds {
		h := mustOpen(t, cfg, sys)
		mustApply(t, h, fullDesired())
		mustApply(t, h, Desired{})
		mustEqual(t, before)
		if _, err := os.Stat(cfg.Journal); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("journal: %v", err)
		}
		mustClose(t, h)
	}
}

// events subscribes to everything that Watch looks at and returns a function
// that counts what came since the last call.
func events(t *testing.T) func() int {
	t.Helper()
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, watchGroups...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	if err := s.SetReceiveTimeout(&unix.Timeval{Usec: 100_000}); err != nil {
		t.Fatal(err)
	}
	return func() int {
		for n := 0; ; n++ {
			if _, _, err := s.Receive(); err != nil {
				return n
			}
		}
	}
}

func TestApplyTwiceChangesNothing(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	settled(t)
	for name, sys := range bothKinds {
		h := mustOpen(t, cfg, sys)
		count := events(t)
		mustApply(t, h, fullDesired())
		if count() == 0 {
			t.Errorf("%s: the first Apply changed nothing", name)
		}
		first, err := os.Stat(cfg.Journal)
		if err != nil {
			t.Fatal(err)
		}
		mustApply(t, h, fullDesired())
		if n := count(); n != 0 {
			t.Errorf("%s: the second Apply made %d changes", name, n)
		}
		if second, err := os.Stat(cfg.Journal); err != nil || !os.SameFile(first, second) {
			t.Errorf("%s: the second Apply wrote the journal again: %v", name, err)
		}
		mustClose(t, h)
	}
}

func TestRoutesChangeOneByOne(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	h := mustOpen(t, cfg, sysctls{})
	d := fullDesired()
	mustApply(t, h, d)
	d.Routes[0].MTU = 1200    // changed
	d.Routes[1] = d.Routes[2] // 192.168.30.0/24 goes
	d.Routes[2] = Route{Prefix: netip.MustParsePrefix("192.168.40.0/24")}
	mustApply(t, h, d)
	want := `192.168.20.0/24 dev pm0 proto 109 scope link src 192.168.10.1 metric 2048 mtu 1200
192.168.40.0/24 dev pm0 proto 109 scope link metric 2048
fd20::/48 dev pm0 proto 109 src fd5e::1 metric 2048 pref medium
fd5e::2 dev pm0 proto 109 metric 2048 mtu 1380 pref medium
`
	if diff := cmp.Diff(want, ourRoutes(t, "pm0")); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}

func startVictim(t *testing.T, mode, journal string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+mode+":"+journal)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	start(t, cmd)
	return cmd
}

func kill(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	var exit *exec.ExitError
	if err := cmd.Wait(); !errors.As(err, &exit) || exit.Exited() {
		t.Fatalf("process was not killed: %v", err)
	}
}

func TestOpenHealsAfterKill(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	before := settled(t)
	for _, mode := range []string{"force", "all"} {
		kill(t, startVictim(t, mode, cfg.Journal))
		if diff := cmp.Diff(fullRoutes, ourRoutes(t, "pm0")); diff != "" {
			t.Fatalf("%s: the killed process left other routes (-want +got):\n%s", mode, diff)
		}
		sysctlIs(t, "net/ipv4/conf/lan0/forwarding", "1")
		h := mustOpen(t, cfg, sysctls{withoutForce: mode == "all"})
		mustEqual(t, before)
		mustClose(t, h)
		mustEqual(t, before)
	}
}

func TestOpenHealsAfterKillAtAnyMoment(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	before := settled(t)
	for n := range 16 {
		mode := []string{"force-loop", "all-loop"}[n%2]
		cmd := startVictim(t, mode, cfg.Journal)
		time.Sleep(time.Duration(n*n) * 300 * time.Microsecond) // the moment is the point of the test
		kill(t, cmd)
		mustClose(t, mustOpen(t, cfg, sysctls{withoutForce: n%2 == 1}))
		mustEqual(t, before)
		if t.Failed() {
			t.Fatalf("round %d, %s", n, mode)
		}
	}
}

func TestHealingFollowsTheJournalToAnotherLink(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	tun(t, "pm9")
	before := settled(t)
	kill(t, startVictim(t, "force", cfg.Journal)) // on pm0
	cfg.Link = "pm9"
	mustOpen(t, cfg, sysctls{})
	mustEqual(t, before)
}

func TestForeignChangesHaveTheLastWord(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	settled(t)
	setSysctl(t, "net/ipv4/conf/pm0/forwarding", "1") // right already: never ours
	for _, sys := range bothKinds {
		h := mustOpen(t, cfg, sys)
		mustApply(t, h, fullDesired())
		if sys.withoutForce {
			setSysctl(t, "net/ipv6/conf/wan0/accept_ra", "0")
		}
		setSysctl(t, "net/ipv4/conf/lan0/forwarding", "0")
		ip(t, "route add 192.168.77.0/24 dev pm0") // through our link, but not ours
		mustClose(t, h)
		sysctlIs(t, "net/ipv4/conf/pm0/forwarding", "1")
		sysctlIs(t, "net/ipv4/conf/lan0/forwarding", "0")
		if sys.withoutForce {
			sysctlIs(t, "net/ipv6/conf/wan0/accept_ra", "0")
		}
		if got := ip(t, "route show 192.168.77.0/24"); !strings.Contains(got, "dev pm0") {
			t.Errorf("foreign route is gone: %q", got)
		}
		ip(t, "route del 192.168.77.0/24")
	}
}

func TestAllForwardingThatWasOnStaysOn(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	setSysctl(t, "net/ipv6/conf/all/forwarding", "1")
	before := settled(t)
	for _, sys := range bothKinds {
		h := mustOpen(t, cfg, sys)
		mustApply(t, h, fullDesired())
		sysctlIs(t, "net/ipv6/conf/wan0/accept_ra", "1")
		sysctlIs(t, "net/ipv6/conf/lan0/force_forwarding", "0")
		mustClose(t, h)
		mustEqual(t, before)
	}
}

func TestSwitchingAllOffKeepsInterfacesThatWereOn(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	setSysctl(t, "net/ipv6/conf/lan0/forwarding", "1")
	before := settled(t)
	h := mustOpen(t, cfg, sysctls{withoutForce: true})
	mustApply(t, h, fullDesired())
	mustApply(t, h, fullDesired())
	mustClose(t, h)
	mustEqual(t, before)
}

func TestForeignRouteIsRefusedAndUntouched(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	ip(t, "route add 192.168.20.0/24 via 10.4.0.91 metric 2048") // our metric, too
	ip(t, "-6 route add fd20::/48 via fd10::9 metric 2048")
	before := settled(t)
	h := mustOpen(t, cfg, sysctls{})
	d := fullDesired()
	d.Routes = append(d.Routes, Route{Prefix: netip.MustParsePrefix("192.168.10.0/25")})
	err := h.Apply(t.Context(), d)
	for _, want := range []string{
		"route 192.168.20.0/24 collides with 192.168.20.0/24 via 10.4.0.91 dev wan0 proto boot of this host",
		"route fd20::/48 collides with fd20::/48 via fd10::9 dev lan0 proto boot of this host",
		"route 192.168.10.0/25 collides with 192.168.10.0/24 dev lan0 proto kernel of this host",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q: %v", want, err)
		}
	}
	collision, ok := errors.AsType[*CollisionError](err)
	if !ok || collision.Prefix != d.Routes[0].Prefix || collision.With.Interface != "wan0" {
		t.Errorf("first collision is %+v", collision)
	}
	if got := ourRoutes(t, "pm0"); strings.Count(got, "\n") != 2 {
		t.Errorf("routes without a collision are not there alone:\n%s", got)
	}
	mustClose(t, h)
	mustEqual(t, before)
}

func TestOperatorsRouteDisplacesOurs(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	h := mustOpen(t, cfg, sysctls{})
	mustApply(t, h, fullDesired())
	ip(t, "route add 192.168.20.0/24 via 10.4.0.91")
	var collision *CollisionError
	if err := h.Apply(t.Context(), fullDesired()); !errors.As(err, &collision) {
		t.Fatalf("Apply = %v, want a collision", err)
	}
	if got := ip(t, "route show 192.168.20.0/24"); strings.Contains(got, "pm0") || !strings.Contains(got, "10.4.0.91") {
		t.Errorf("routes are %q", got)
	}
	ip(t, "route del 192.168.20.0/24")
	mustApply(t, h, fullDesired())
	if diff := cmp.Diff(fullRoutes, ourRoutes(t, "pm0")); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
}

func TestDriftIsNoticedAndRepaired(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	settled(t)
	h := mustOpen(t, cfg, sysctls{})
	mustApply(t, h, fullDesired())
	want := settled(t)
	changes := make(chan struct{}, 1)
	go func() { // ends when the host is closed
		_ = h.Watch(t.Context(), func() {
			select {
			case changes <- struct{}{}:
			default:
			}
		})
	}()
	<-changes // it listens
	for name, damage := range map[string]func(){
		"route deleted":      func() { ip(t, "route del 192.168.20.0/24") },
		"route changed":      func() { ip(t, "route replace 192.168.30.0/24 dev pm0 proto 109 metric 2048") },
		"route doubled":      func() { ip(t, "route add 192.168.30.0/24 dev pm0 proto 109 metric 7") },
		"IPv6 route deleted": func() { ip(t, "-6 route del fd20::/48") },
		"address deleted":    func() { ip(t, "addr del fd5e::1/128 dev pm0") },
		"source lost": func() {
			ip(t, "addr del 192.168.10.1/24 dev lan0")
			ip(t, "addr add 192.168.10.1/24 dev lan0")
			ip(t, "route add 192.168.50.0/24 via 192.168.10.254")
		},
		"LAN route deleted":      func() { ip(t, "route del 10.128.1.0/24") },
		"LAN route bent":         func() { ip(t, "route change 10.128.1.0/24 via 192.168.10.102 proto 109 metric 2048") },
		"IPv6 LAN route deleted": func() { ip(t, "-6 route del fd00:128:1::/64") },
		"IPv4 forwarding":        func() { setSysctl(t, "net/ipv4/conf/lan0/forwarding", "0") },
		"IPv6 forwarding":        func() { setSysctl(t, "net/ipv6/conf/lan0/force_forwarding", "0") },
		"MTU":                    func() { ip(t, "link set pm0 mtu 1400") },
	} {
		for len(changes) > 0 {
			<-changes
		}
		damage()
		select {
		case <-changes:
		case <-time.After(5 * time.Second):
			t.Errorf("%s: not noticed", name)
		}
		mustApply(t, h, fullDesired())
		mustEqual(t, want)
		if t.Failed() {
			t.Fatal(name)
		}
	}
	ip(t, "link set pm0 down") // takes the routes and IPv6 addresses with it
	mustApply(t, h, fullDesired())
	if diff := cmp.Diff(fullRoutes, ourRoutes(t, "pm0")); diff != "" {
		t.Errorf("link was down: routes (-want +got):\n%s", diff)
	}
}

func TestTwoLinksDoNotDisturbEachOther(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	tun(t, "pm1")
	other := Config{Link: "pm1", Journal: filepath.Join(stateDirectory(t), "hostnet.journal")}
	before := settled(t)
	a, b := mustOpen(t, cfg, sysctls{}), mustOpen(t, other, sysctls{})
	mustApply(t, a, fullDesired())
	p := netip.MustParsePrefix
	mine := Desired{
		Addresses: []netip.Prefix{p("fd5f::1/128")},
		Routes:    []Route{{Prefix: p("172.16.1.0/24")}, {Prefix: p("fd30::/48")}},
		Forward:   []string{"lan0"}, Forward4: true, Forward6: true,
	}
	mustApply(t, b, mine)
	want := "172.16.1.0/24 dev pm1 proto 109 scope link metric 2048\nfd30::/48 dev pm1 proto 109 metric 2048 pref medium\n"
	if diff := cmp.Diff(want, ourRoutes(t, "pm1")); diff != "" {
		t.Errorf("routes of pm1 (-want +got):\n%s", diff)
	}
	taken := mine
	taken.Routes = append(taken.Routes, Route{Prefix: p("192.168.20.0/24")})
	if err := b.Apply(t.Context(), taken); err == nil || !strings.Contains(err.Error(), "dev pm0 proto planetmesh") {
		t.Errorf("a route of the other one is not refused: %v", err)
	}
	if diff := cmp.Diff(fullRoutes, ourRoutes(t, "pm0")); diff != "" {
		t.Errorf("routes of pm0 (-want +got):\n%s", diff)
	}
	mustClose(t, mustOpen(t, Config{Link: "pm2", Journal: filepath.Join(stateDirectory(t), "j")}, sysctls{})) // heals nothing of theirs
	mustClose(t, a)
	if diff := cmp.Diff(want, ourRoutes(t, "pm1")); diff != "" {
		t.Errorf("after the other closed: routes of pm1 (-want +got):\n%s", diff)
	}
	mustApply(t, b, mine) // closing the other one took forwarding away from the LAN
	sysctlIs(t, "net/ipv4/conf/lan0/forwarding", "1")
	mustClose(t, b)
	mustEqual(t, before)
}

func TestHostWithoutIPv6CarriesIPv4(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	setSysctl(t, "net/ipv6/conf/all/disable_ipv6", "1")
	before := settled(t)
	h := mustOpen(t, cfg, sysctls{})
	if f, err := h.Facts(); err != nil || f.IPv6 {
		t.Errorf("Facts().IPv6 = %v, %v", f.IPv6, err)
	}
	err := h.Apply(t.Context(), fullDesired())
	if !errors.Is(err, errors.ErrUnsupported) || !strings.Contains(err.Error(), "1 addresses and 3 routes left out") {
		t.Errorf("Apply = %v", err)
	}
	if got := ourRoutes(t, "pm0"); strings.Count(got, "\n") != 2 {
		t.Errorf("routes:\n%s", got)
	}
	d := fullDesired()
	d.Addresses, d.Routes, d.LAN, d.Forward6 = nil, d.Routes[:2], d.LAN[:1], false
	mustApply(t, h, d)
	mustClose(t, h)
	mustEqual(t, before)
}

func TestLinkWithIPv6OffIsAFact(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	h := mustOpen(t, cfg, sysctls{})
	for key, want := range map[string]bool{"pm0": false, "lan0": true} {
		setSysctl(t, "net/ipv6/conf/"+key+"/disable_ipv6", "1")
		if f, err := h.Facts(); err != nil || f.IPv6 != want {
			t.Errorf("%s without IPv6: Facts().IPv6 = %v, %v, want %v", key, f.IPv6, err, want)
		}
		setSysctl(t, "net/ipv6/conf/"+key+"/disable_ipv6", "0")
	}
}

func TestFactsAreThoseOfTheHost(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	ip(t, "link set wanp down") // then wan0 has no carrier, but is up
	ip(t, "addr add 10.9.0.1 peer 10.9.0.2 dev wan0")
	ip(t, "route add 10.50.0.0/16 nexthop via 192.168.10.8 nexthop via 192.168.10.9")
	ip(t, "route add blackhole 10.60.0.0/16")
	ip(t, "addr add fd10::dead/64 dev lan0 nodad preferred_lft 0")
	h := mustOpen(t, cfg, sysctls{})
	mustApply(t, h, fullDesired())
	f, err := h.Facts()
	if err != nil {
		t.Fatal(err)
	}
	var routes []string
	for _, r := range f.Routes {
		if !r.Prefix.Addr().IsLinkLocalUnicast() && !r.Prefix.Addr().IsMulticast() {
			routes = append(routes, r.String())
		}
	}
	want := []string{
		"0.0.0.0/0 via 10.4.0.1 dev wan0 proto boot",
		"10.4.0.0/16 dev wan0 proto kernel",
		"10.9.0.2/32 dev wan0 proto kernel",
		"10.50.0.0/16 via 192.168.10.8 dev lan0 proto boot",
		"10.60.0.0/16 proto boot",
		"192.168.10.0/24 dev lan0 proto kernel",
		"192.168.50.0/24 via 192.168.10.254 dev lan0 proto boot",
		"fd10::/64 dev lan0 proto kernel",
		"fd5e::1/128 dev pm0 proto kernel",
	}
	if diff := cmp.Diff(want, routes); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	lo, _ := f.Interface("lo")
	lan, _ := f.Interface("lan0")
	pm, _ := f.Interface("pm0")
	if !lo.Loopback || lan.Loopback || lan.Ours || !pm.Ours || !pm.Up || pm.MTU != 1420 || lan.MTU != 1500 || !f.IPv6 {
		t.Errorf("interfaces: %+v", f.Interfaces)
	}
	var candidates []string
	for _, c := range f.Candidates() {
		candidates = append(candidates, c.String())
	}
	if diff := cmp.Diff([]string{"192.168.10.1", "fd10::1", "10.4.0.90", "10.9.0.1"}, candidates); diff != "" {
		t.Errorf("candidates (-want +got):\n%s", diff)
	}
	if r, ok := f.Collision(netip.MustParsePrefix("192.168.20.0/24")); ok {
		t.Errorf("our own route collides: %v", r)
	}
	if r, ok := f.Collision(netip.MustParsePrefix("10.60.0.0/16")); !ok {
		t.Errorf("a blackhole does not collide: %v", r)
	}
}

func TestForwardingWorksBothWays(t *testing.T) {
	if !isolated(t) {
		return
	}
	a, b := newPeer(t, "lan0"), newPeer(t, "pm0") // what comes out of pm0 is another site
	ip(t, "addr add 192.168.10.1/24 dev lan0")
	ip(t, "addr add fd10::1/64 dev lan0 nodad")
	a.ip(t, "addr add 192.168.10.2/24 dev e0")
	a.ip(t, "addr add fd10::2/64 dev e0 nodad")
	a.ip(t, "route add default via 192.168.10.1")
	a.ip(t, "-6 route add default via fd10::1")
	b.ip(t, "addr add 192.168.20.2/24 dev e0")
	b.ip(t, "addr add fd20::2/48 dev e0 nodad")
	b.ip(t, "route add default dev e0")
	b.ip(t, "-6 route add default dev e0")
	// A cable needs neighbours, which a TUN has not: everybody behind pm0 is
	// at its address.
	pm0, err := net.InterfaceByName("pm0")
	if err != nil {
		t.Fatal(err)
	}
	b.ip(t, "neigh add 192.168.10.2 dev e0 lladdr "+pm0.HardwareAddr.String())
	b.ip(t, "neigh add fd10::2 dev e0 lladdr "+pm0.HardwareAddr.String())
	for _, l := range []string{"all", "lan0", "pm0"} {
		setSysctl(t, "net/ipv4/conf/"+l+"/rp_filter", "1") // strict
	}
	before := settled(t)
	for name, sys := range bothKinds {
		h := mustOpen(t, Config{Link: "pm0", Journal: filepath.Join(stateDirectory(t), "j")}, sys)
		d := fullDesired()
		d.MTU = 1500
		d.Forward = nil
		mustApply(t, h, d)
		if echo(t, a, b, "192.168.20.2:7000") == nil || echo(t, a, b, "[fd20::2]:7000") == nil {
			t.Errorf("%s: forwarded without being asked", name)
		}
		d.Forward = []string{"lan0"}
		mustApply(t, h, d)
		for _, try := range []struct {
			from, to *peer
			address  string
		}{
			{a, b, "192.168.20.2:7001"}, {b, a, "192.168.10.2:7001"},
			{a, b, "[fd20::2]:7001"}, {b, a, "[fd10::2]:7001"},
		} {
			eventually(t, func() error {
				if err := echo(t, try.from, try.to, try.address); err != nil {
					return fmt.Errorf("%s: %s: %w", name, try.address, err)
				}
				return nil
			})
		}
		for _, l := range []string{"all", "lan0", "pm0"} {
			sysctlIs(t, "net/ipv4/conf/"+l+"/rp_filter", "1")
		}
		mustClose(t, h)
		settled(t)
	}
	if diff := cmp.Diff(before, settled(t)); diff != "" {
		t.Errorf("host is not as before (-before +now):\n%s", diff)
	}
}

// advertise sends a router advertisement (RFC 4861, section 4.2) from the peer:
// a default router for half an hour, and a prefix for addresses.
func advertise(t *testing.T, p *peer) {
	t.Helper()
	prefix := netip.MustParseAddr("2001:db8:1::").As16()
	ra := []byte{134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0}
	ra = append(ra, 3, 4, 64, 0xc0, 0, 0, 14, 16, 0, 0, 7, 8, 0, 0, 0, 0) // lifetimes 3600 and 1800 s
	ra = append(ra, prefix[:]...)
	p.do(t, func() error {
		fd, err := unix.Socket(unix.AF_INET6, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMPV6)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_HOPS, 255); err != nil {
			return err
		}
		e0, err := net.InterfaceByName("e0")
		if err != nil {
			return err
		}
		to := &unix.SockaddrInet6{Addr: netip.MustParseAddr("ff02::1").As16(), ZoneId: uint32(e0.Index)}
		return unix.Sendto(fd, ra, 0, to)
	})
}

func TestUplinkKeepsWhatRoutersAdvertise(t *testing.T) {
	if !isolated(t) {
		return
	}
	router := newPeer(t, "wan0")
	newPeer(t, "lan0")
	tun(t, "pm0")
	ip(t, "addr add 192.168.10.1/24 dev lan0")
	settled(t)
	hasUplink := func() error {
		if got := ip(t, "-6 route show default"); !strings.Contains(got, "dev wan0 proto ra") {
			return fmt.Errorf("default route is %q", got)
		}
		if got := ip(t, "-6 addr show dev wan0 scope global"); !strings.Contains(got, "2001:db8:1:") {
			return fmt.Errorf("address is %q", got)
		}
		return nil
	}
	eventually(t, func() error { advertise(t, router); return hasUplink() })
	before := settled(t)

	// What happens without care, so that this test can fail.
	setSysctl(t, "net/ipv6/conf/all/forwarding", "1")
	if hasUplink() == nil {
		t.Error("this kernel keeps advertised routes by itself")
	}
	setSysctl(t, "net/ipv6/conf/all/forwarding", "0")
	eventually(t, func() error { advertise(t, router); return hasUplink() })

	for name, sys := range bothKinds {
		h := mustOpen(t, Config{Link: "pm0", Journal: filepath.Join(stateDirectory(t), "j")}, sys)
		d := fullDesired()
		d.LAN = d.LAN[:1] // this LAN has no IPv6
		mustApply(t, h, d)
		if err := hasUplink(); err != nil {
			t.Errorf("%s: after Apply: %v", name, err)
		}
		// It also goes on listening to routers.
		ip(t, "-6 route del default")
		eventually(t, func() error { advertise(t, router); return hasUplink() })
		mustClose(t, h)
		if err := hasUplink(); err != nil {
			t.Errorf("%s: after Close: %v", name, err)
		}
		mustEqual(t, before)
	}
}

func TestInterfaceThatComesLaterIsHandedBackToo(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	settled(t)
	h := mustOpen(t, cfg, sysctls{withoutForce: true})
	mustApply(t, h, fullDesired())
	ip(t, "link add usb0 type veth peer name usbp")
	mustApply(t, h, fullDesired())
	sysctlIs(t, "net/ipv6/conf/usb0/accept_ra", "2")
	ip(t, "link del lanp") // lan0 goes with it
	mustClose(t, h)
	for key, want := range map[string]string{"accept_ra": "1", "forwarding": "0"} {
		sysctlIs(t, "net/ipv6/conf/usb0/"+key, want)
		sysctlIs(t, "net/ipv6/conf/default/"+key, want)
	}
}

func TestMissingInterfaceIsNamed(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	h := mustOpen(t, cfg, sysctls{})
	d := fullDesired()
	d.Forward = append(d.Forward, "nosuch0")
	err := h.Apply(t.Context(), d)
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "nosuch0") {
		t.Errorf("Apply = %v", err)
	}
	if diff := cmp.Diff(fullRoutes, ourRoutes(t, "pm0")); diff != "" {
		t.Errorf("one missing interface kept the routes away (-want +got):\n%s", diff)
	}
	sysctlIs(t, "net/ipv4/conf/lan0/forwarding", "1")
	h2 := mustOpen(t, Config{Link: "pm7", Journal: filepath.Join(stateDirectory(t), "j")}, sysctls{})
	if err := h2.Apply(t.Context(), Desired{}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "pm7") {
		t.Errorf("Apply without the link = %v", err)
	}
	ip(t, "link del pm0")
	mustClose(t, h) // its owner was faster
	sysctlIs(t, "net/ipv4/conf/lan0/forwarding", "0")
}

func TestSourceThatIsNotOursIsAnError(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	h := mustOpen(t, cfg, sysctls{})
	d := fullDesired()
	d.Routes[0].Source = netip.MustParseAddr("192.168.10.77")
	err := h.Apply(t.Context(), d)
	if err == nil || !strings.Contains(err.Error(), "add route 192.168.20.0/24: 192.168.10.77 is not a usable address of this host") {
		t.Errorf("Apply = %v", err)
	}
	if got := ourRoutes(t, "pm0"); strings.Count(got, "\n") != 3 {
		t.Errorf("the other routes are not there:\n%s", got)
	}
}

func TestInvalidDesiredChangesNothing(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	h := mustOpen(t, cfg, sysctls{})
	before := settled(t)
	d := fullDesired()
	d.Routes = append(d.Routes, Route{Prefix: netip.MustParsePrefix("192.168.99.1/24")})
	if err := h.Apply(t.Context(), d); err == nil {
		t.Error("accepted")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := h.Apply(ctx, fullDesired()); !errors.Is(err, context.Canceled) {
		t.Errorf("Apply with a context that ended = %v", err)
	}
	mustEqual(t, before)
}

func TestUnsafeJournalIsRefused(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	evil := (&journal{link: "pm0", settings: []change{{"net/ipv4/conf/lan0/forwarding", "0", "1"}}}).encode()
	setSysctl(t, "net/ipv4/conf/lan0/forwarding", "1")
	before := settled(t)
	write := func(path string, data []byte, mode os.FileMode) {
		if err := errors.Join(os.WriteFile(path, data, 0o600), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
	}
	for name, prepare := range map[string]func(path string){
		"corrupt":        func(path string) { write(path, evil[:len(evil)-9], 0o600) },
		"empty":          func(path string) { write(path, nil, 0o600) },
		"world-writable": func(path string) { write(path, evil, 0o666) },
		"group-writable": func(path string) { write(path, evil, 0o620) },
		"of another user": func(path string) {
			write(path, evil, 0o600)
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Fatal(err)
			}
		},
		"symbolic link": func(path string) {
			write(path+".real", evil, 0o600)
			if err := os.Symlink(path+".real", path); err != nil {
				t.Fatal(err)
			}
		},
		"FIFO": func(path string) {
			if err := unix.Mkfifo(path, 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"directory of others": func(path string) {
			if err := os.Chmod(filepath.Dir(path), 0o777); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			cfg.Journal = filepath.Join(stateDirectory(t), "hostnet.journal")
			prepare(cfg.Journal)
			_, err := Open(cfg)
			if !errors.Is(err, ErrJournal) || !strings.Contains(err.Error(), filepath.Dir(cfg.Journal)) {
				t.Errorf("Open = %v", err)
			}
			t.Log(err)
			mustEqual(t, before)
		})
	}
}

func TestLeftoverOfSavingIsNoTrap(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	target := filepath.Join(t.TempDir(), "target")
	if err := os.WriteFile(target, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, cfg.Journal+".new"); err != nil {
		t.Fatal(err)
	}
	h := mustOpen(t, cfg, sysctls{})
	mustApply(t, h, fullDesired())
	mustClose(t, h)
	if b, err := os.ReadFile(target); err != nil || string(b) != "precious" {
		t.Errorf("file behind the link: %q, %v", b, err)
	}
}

func TestFullDiskKeepsSettingsAsTheyAre(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	dir := filepath.Dir(cfg.Journal)
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=16k,mode=0700"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, 0) })
	before := settled(t)
	h := mustOpen(t, cfg, sysctls{})
	filler := filepath.Join(dir, "filler")
	if err := os.WriteFile(filler, make([]byte, 64<<10), 0o600); !errors.Is(err, unix.ENOSPC) {
		t.Fatalf("disk is not full: %v", err)
	}
	d := fullDesired()
	d.Routes = nil
	if err := h.Apply(t.Context(), d); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("Apply on a full disk = %v", err)
	}
	mustEqual(t, before)
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	mustApply(t, h, fullDesired())
	_ = os.WriteFile(filler, make([]byte, 64<<10), 0o600)
	mustClose(t, h) // needs no space
	mustEqual(t, before)
}

func TestReadOnlySettingsAreAnError(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	before := settled(t)
	if err := unix.Mount("/proc/sys", "/proc/sys", "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", "/proc/sys", "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	h := mustOpen(t, cfg, sysctls{})
	err := h.Apply(t.Context(), fullDesired())
	if !errors.Is(err, unix.EROFS) || !strings.Contains(err.Error(), "read-only here") {
		t.Errorf("Apply = %v", err)
	}
	if diff := cmp.Diff(fullRoutes, ourRoutes(t, "pm0")); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	mustClose(t, h)
	mustEqual(t, before)
}

func TestMissingPermissionIsOneClearError(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	before := settled(t)
	done := make(chan error)
	go func() {
		lockForEver()
		if err := dropNetAdmin(); err != nil {
			done <- err
			return
		}
		_, err := Open(cfg)
		done <- err
	}()
	err := <-done
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("Open = %v", err)
	}
	mustEqual(t, before)
}

func TestWatchSurvivesAFlood(t *testing.T) {
	if !isolated(t) {
		return
	}
	cfg := newHost(t)
	check := mustNotLeak(t)
	defer check()
	h := mustOpen(t, cfg, sysctls{})
	var calls atomic.Int64
	called, release := make(chan struct{}, 1), make(chan struct{})
	result := make(chan error)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		result <- h.Watch(ctx, func() {
			if calls.Add(1) == 1 {
				called <- struct{}{}
				<-release // against the rules, so that the socket overflows
			}
		})
	}()
	<-called
	var batch strings.Builder
	for n := range 4000 {
		fmt.Fprintf(&batch, "route add 10.%d.%d.0/24 dev lan0\n", 100+n/250, n%250)
	}
	cmd := exec.Command("ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(batch.String())
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	close(release)
	eventually(t, func() error {
		if n := calls.Load(); n < 2 {
			return fmt.Errorf("%d calls", n)
		}
		return nil
	})
	var last int64
	eventually(t, func() error { // it has read everything
		if n := calls.Load(); n != last {
			last = n
			return errors.New("still busy")
		}
		return nil
	})
	if last > 3999 {
		t.Errorf("%d calls: nothing was lost, so this test tests nothing", last)
	}
	ip(t, "route del 10.100.0.0/24")
	eventually(t, func() error {
		if calls.Load() == last {
			return errors.New("not called after the flood")
		}
		return nil
	})
	cancel()
	if err := <-result; !errors.Is(err, context.Canceled) {
		t.Errorf("Watch = %v", err)
	}
	go func() { result <- h.Watch(t.Context(), func() { called <- struct{}{} }) }()
	<-called
	mustClose(t, h)
	if err := <-result; !errors.Is(err, ErrClosed) {
		t.Errorf("Watch of a closed host = %v", err)
	}
}
