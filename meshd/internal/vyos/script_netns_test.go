//go:build integration

package vyos

import (
	"context"
	"errors"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/netlabtest"
)

// The world of these tests: two links stand in for the tunnels. A link whose
// far end dropped its addresses is what a tunnel with persist-tun is when the
// far end is dead: the interface is up and nobody answers.
//
//	router vtun1 ── tunnel1 ── gwa 10.90.0.1
//	       vtun2 ── tunnel2 ── gwb 10.91.0.1
func newTunnels(t *testing.T) *lab {
	t.Helper()
	prefixes := func(words ...string) []netip.Prefix {
		var out []netip.Prefix
		for _, w := range words {
			out = append(out, netip.MustParsePrefix(w))
		}
		return out
	}
	iface := func(net, name string, addrs ...string) []netlab.Iface {
		return []netlab.Iface{{Net: net, Name: name, Addrs: prefixes(addrs...)}}
	}
	w := netlabtest.Start(t, netlab.Topology{
		Nets: []netlab.Net{
			{Name: "tunnel1", Prefixes: prefixes("10.90.0.0/30", "fd90::/126")},
			{Name: "tunnel2", Prefixes: prefixes("10.91.0.0/30", "fd91::/126")},
		},
		Hosts: []netlab.HostSpec{
			{Name: "router", Interfaces: append(iface("tunnel1", "vtun1", "10.90.0.2/30", "fd90::2/126"), iface("tunnel2", "vtun2", "10.91.0.2/30", "fd91::2/126")...)},
			{Name: "gwa", Interfaces: iface("tunnel1", "eth0", "10.90.0.1/30", "fd90::1/126")},
			{Name: "gwb", Interfaces: iface("tunnel2", "eth0", "10.91.0.1/30", "fd91::1/126")},
		},
	})
	r := newPair()
	script, err := r.CheckScript()
	if err != nil {
		t.Fatal(err)
	}
	l := &lab{t: t, world: w}
	if err := w.Host("router").WriteFile("meshd-check", []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return l
}

type lab struct {
	t     *testing.T
	world *netlab.World
}

func (l *lab) run(host string, words ...string) string {
	l.t.Helper()
	out, err := l.world.Host(host).Run(l.t.Context(), words[0], words[1:]...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// check runs the script once and returns what it said.
func (l *lab) check(args ...string) string {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), time.Minute)
	defer cancel()
	c := l.world.Host("router").Command(ctx, "sh", append([]string{"meshd-check"}, args...)...)
	out, err := c.CombinedOutput()
	if err != nil {
		l.t.Fatalf("meshd-check %q: %v\n%s", args, err, out)
	}
	return string(out)
}

// expect compares the devices of all routes that the script made.
func (l *lab) expect(when, device string) {
	l.t.Helper()
	var got []string
	for _, prefix := range meshPrefixes() {
		version := "-4"
		if prefix.Addr().Is6() {
			version = "-6"
		}
		fields := strings.Fields(l.run("router", "ip", version, "route", "show", "exact", prefix.String(), "proto", "122"))
		for i, word := range fields {
			if word == "dev" {
				got = append(got, fields[i+1])
			}
		}
	}
	want := ""
	if device != "" {
		want = strings.Join([]string{device, device, device}, " ")
	}
	if strings.Join(got, " ") != want {
		l.t.Errorf("%s: routes go to %q, want %q", when, got, want)
	}
}

// silence makes a gateway deaf, or wakes it.
func (l *lab) silence(gateway string, silent bool) {
	l.t.Helper()
	state := "up"
	if silent {
		state = "down"
	}
	l.run(gateway, "ip", "link", "set", "eth0", state)
	if !silent && gateway == "gwa" {
		l.run(gateway, "ip", "-6", "address", "replace", "fd90::1/126", "dev", "eth0", "nodad")
	}
}

func TestRoutesFollowTheTunnelThatWorks(t *testing.T) {
	t.Parallel() // most of the time is waiting for answers that do not come
	l := newTunnels(t)
	l.check()
	l.expect("both alive", "vtun1")
	if out := l.check(); out != "" {
		t.Errorf("a run without news says %q", out)
	}

	// The active one dies: the routes move within two runs.
	l.silence("gwa", true)
	l.check()
	l.expect("one failure", "vtun1")
	if out := l.check(); !strings.Contains(out, "vtun1 is down (10.90.0.1)") || !strings.Contains(out, "192.168.10.0/24 goes to vtun2") {
		t.Errorf("the move says %q", out)
	}
	l.expect("two failures", "vtun2")

	// It comes back: the routes return after three answers, once.
	l.silence("gwa", false)
	for range 2 {
		l.check()
		l.expect("not yet trusted", "vtun2")
	}
	l.check()
	l.expect("trusted again", "vtun1")
	l.check()
	l.expect("and stays", "vtun1")

	// Both dead: the routes stay, so that packets end in a tunnel and not elsewhere.
	l.silence("gwa", true)
	l.silence("gwb", true)
	for range 3 {
		l.check()
		l.expect("nobody there", "vtun1")
	}

	// Taken away, nothing of it remains.
	l.check("-u")
	l.expect("removed", "")
	if _, err := l.world.Host("router").ReadFile("/run/meshd-check/vtun1"); err == nil {
		t.Error("state remains")
	}
}

func TestRoutesDoNotFlap(t *testing.T) {
	t.Parallel() // most of the time is waiting for answers that do not come
	l := newTunnels(t)
	l.check()
	// Every other check fails: never two failures in a row.
	for range 3 {
		l.silence("gwa", true)
		l.check()
		l.expect("one failure", "vtun1")
		l.silence("gwa", false)
		l.check()
		l.expect("an answer", "vtun1")
	}
	// Given up, and then every third check fails: never three answers in a row.
	l.silence("gwa", true)
	l.check()
	l.check()
	for range 2 {
		l.silence("gwa", false)
		l.check()
		l.check()
		l.expect("two answers", "vtun2")
		l.silence("gwa", true)
		l.check()
		l.expect("and a failure", "vtun2")
	}
}

func TestLostDeviceIsLeftAtOnce(t *testing.T) {
	t.Parallel() // most of the time is waiting for answers that do not come
	l := newTunnels(t)
	l.check()
	l.expect("both alive", "vtun1")
	l.run("router", "ip", "link", "del", "vtun1")
	if out := l.check(); !strings.Contains(out, "vtun1 is down") {
		t.Errorf("says %q", out)
	}
	l.expect("the device is gone", "vtun2")
}

func TestRoundsFitSeveralChecksInARun(t *testing.T) {
	t.Parallel() // most of the time is waiting for answers that do not come
	l := newTunnels(t)
	l.check()
	l.silence("gwa", true)
	if out := l.check("-r", "2", "-s", "0", "-v"); strings.Count(out, "vtun1 10.90.0.1 down") != 2 {
		t.Errorf("two rounds say %q", out)
	}
	l.expect("two rounds", "vtun2")
	// A run of a period checks until it is over, however long that takes.
	l.silence("gwa", false)
	if out := l.check("-t", "15", "-s", "0", "-v"); strings.Count(out, "vtun1 10.90.0.1 up") < 2 {
		t.Errorf("15 seconds say %q", out)
	}
}

func TestForeignRoutesAreLeftAlone(t *testing.T) {
	t.Parallel() // most of the time is waiting for answers that do not come
	l := newTunnels(t)
	// As VyOS has static routes in the kernel, and one of a list before.
	l.run("router", "ip", "route", "add", "192.168.10.0/24", "dev", "vtun2", "metric", "20", "proto", "196")
	l.run("router", "ip", "route", "add", "172.16.0.0/12", "dev", "vtun2", "metric", "20")
	l.run("router", "ip", "route", "add", "192.168.99.0/24", "dev", "vtun1", "metric", "1", "proto", "122")
	if out := l.check(); !strings.Contains(out, "no route to 192.168.99.0/24") {
		t.Errorf("says %q", out)
	}
	l.expect("beside the static one", "vtun1")
	if got := l.run("router", "ip", "route", "get", "192.168.10.5"); !strings.Contains(got, "dev vtun1") {
		t.Errorf("the static route wins: %s", got)
	}
	l.run("router", "ip", "route", "add", "192.168.20.0/24", "dev", "vtun2")
	if out := l.check(); !strings.Contains(out, "another route wins because it has no metric") || !strings.Contains(out, "192.168.20.0/24 dev vtun2") {
		t.Errorf("a route that wins is not named: %q", out)
	}
	l.check("-u")
	all := l.run("router", "ip", "route")
	for _, want := range []string{"192.168.10.0/24 dev vtun2 proto", "172.16.0.0/12 dev vtun2", "192.168.20.0/24 dev vtun2"} {
		if !strings.Contains(all, want) {
			t.Errorf("no %q after -u in\n%s", want, all)
		}
	}
}

func TestOneRunAtATime(t *testing.T) {
	t.Parallel() // most of the time is waiting for answers that do not come
	l := newTunnels(t)
	// The first run sits in its pause, holding the lock.
	p, err := l.world.Host("router").Start(t.Context(), "sh", "meshd-check", "-r", "2", "-s", "600", "-v")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := p.WaitLog(ctx, "vtun2 10.91.0.1 up"); err != nil {
		t.Fatal(err)
	}
	if out := l.check("-v"); out != "" {
		t.Errorf("a second run at the same time says %q", out)
	}
	if err := p.Kill(); err != nil {
		if _, ok := errors.AsType[*exec.ExitError](err); !ok {
			t.Error(err)
		}
	}
}
