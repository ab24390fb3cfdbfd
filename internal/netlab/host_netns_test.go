//go:build integration

package netlab

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestHostHasItsOwnRunNameAndDevices(t *testing.T) {
	w := mustStart(t, Reference())
	gw10, gw20 := w.Host("gw10"), w.Host("gw20")
	if err := gw10.WriteFile("/var/run/wireguard/wg0.sock", []byte("ten"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := gw10.WriteFile("state/key", []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"/run/wireguard/wg0.sock", "/run/netlab/state/key"} {
		if _, err := gw20.ReadFile(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("gw20 reads %s of gw10: %v", name, err)
		}
		if _, err := os.Stat(name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("the machine has %s of gw10: %v", name, err)
		}
	}
	if got := mustRun(t, gw10, "cat", "/run/wireguard/wg0.sock", "state/key"); got != "tensecret" {
		t.Errorf("gw10 reads %q", got)
	}
	if got := mustRun(t, gw10, "sh", "-c", "echo out >from-inside; hostname; pwd; ls /sys/class/net"); got != "gw10\n/run/netlab\neth0\neth1\nlo\n" {
		t.Errorf("got %q", got)
	}
	if got, err := gw10.ReadFile("from-inside"); err != nil || string(got) != "out\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

func TestProcessesOfAWorldSeeOneAnotherAndNotTheMachine(t *testing.T) {
	w := mustStart(t, Reference())
	p, err := w.Host("lb").Start(t.Context(), "sleep", "1000")
	if err != nil {
		t.Fatal(err)
	}
	got := mustRun(t, w.Host("gw10"), "sh", "-c", "cat /proc/[0-9]*/comm; readlink /proc/self")
	if !strings.Contains(got, "sleep\n") || strings.Count(got, "\n") > 6 {
		t.Errorf("processes of the world: %q", got)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
}

func TestDoRunsOnTheHostAndNowhereElse(t *testing.T) {
	w := mustStart(t, Reference())
	own := mustReadlink(t, "/proc/self/ns/net")
	for range 50 {
		var names []string
		var inside, route string
		err := w.Host("gw10").Do(func() error {
			links, err := net.Interfaces()
			for _, l := range links {
				names = append(names, l.Name)
			}
			if err != nil {
				return err
			}
			table, err := os.ReadFile("/proc/thread-self/net/route")
			route = string(table)
			if err != nil {
				return err
			}
			inside, err = os.Readlink("/proc/thread-self/ns/net")
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(names, []string{"lo", "eth0", "eth1"}) || !strings.Contains(route, "eth1") || inside == own {
			t.Fatalf("got interfaces %q, namespace %s, routes %s", names, inside, route)
		}
		if now := mustReadlink(t, "/proc/self/ns/net"); now != own {
			t.Fatalf("the program is in %s, was in %s", now, own)
		}
		if now := mustReadlink(t, "/proc/thread-self/ns/mnt"); now != mustReadlink(t, "/proc/self/ns/mnt") {
			t.Fatalf("this thread is in %s", now)
		}
	}
}

func mustReadlink(t *testing.T, name string) string {
	t.Helper()
	link, err := os.Readlink(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func TestDoReturnsErrorsAndSurvivesGoexit(t *testing.T) {
	w := mustStart(t, Reference())
	cause := errors.New("cause")
	if err := w.Host("lb").Do(func() error { return cause }); !errors.Is(err, cause) {
		t.Errorf("got %v, want %v", err, cause)
	}
	if err := w.Host("lb").Do(func() error { runtime.Goexit(); return nil }); err == nil {
		t.Error("a function that ended its goroutine is no error")
	}
}

func TestRunErrorSaysWhatAndWhere(t *testing.T) {
	w := mustStart(t, Reference())
	_, err := w.Host("gw10").Run(t.Context(), "sh", "-c", "echo broken >&2; exit 3")
	want := "host gw10: sh -c echo broken >&2; exit 3: exit status 3: broken"
	if err == nil || err.Error() != want {
		t.Errorf("got %v\nwant %s", err, want)
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 3 {
		t.Errorf("got %#v, want exit status 3", err)
	}
	if _, err := w.Host("gw10").Run(t.Context(), "no-such-program"); !errors.Is(err, exec.ErrNotFound) {
		t.Errorf("got %v, want %v", err, exec.ErrNotFound)
	}
}

func TestProcessHasLogSignalsAndEnd(t *testing.T) {
	w := mustStart(t, Reference())
	script := "trap 'echo bye; exit 0' TERM; echo started >&2; while :; do sleep 0.01; done"
	var tee bytes.Buffer
	c := w.Host("gw10").Command(t.Context(), "sh", "-c", script)
	c.Stdout = &tee
	p, err := w.Host("gw10").StartCommand(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitLog(t.Context(), "started"); err != nil {
		t.Fatal(err)
	}
	if _, err := p.CPU(); err != nil {
		t.Error(err)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Error(err)
	}
	if got := p.Log(); got != "started\nbye\n" {
		t.Errorf("log is %q", got)
	}
	if got := tee.String(); got != "bye\n" {
		t.Errorf("standard output is %q", got)
	}
	err = p.WaitLog(t.Context(), "never")
	if err == nil || !strings.Contains(err.Error(), `host gw10: wait for "never" in the log of sh: process has ended`) || !strings.Contains(err.Error(), "bye") {
		t.Errorf("got %v", err)
	}
	if err := p.Signal(os.Interrupt); !errors.Is(err, os.ErrProcessDone) {
		t.Errorf("got %v, want %v", err, os.ErrProcessDone)
	}
	if err := p.Stop(t.Context()); err != nil {
		t.Errorf("stop after the end: %v", err)
	}
}

func TestKillEndsAtOnceAndStopHonoursContext(t *testing.T) {
	w := mustStart(t, Reference())
	p, err := w.Host("gw10").Start(t.Context(), "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 0.01; done")
	if err != nil {
		t.Fatal(err)
	}
	if err := p.WaitLog(t.Context(), "deaf"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := p.Stop(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v, want %v", err, context.DeadlineExceeded)
	}
	if err := p.Kill(); err != nil {
		t.Error(err)
	}
	if err := p.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("got %v, want signal: killed", err)
	}
}

func TestTUNDeviceBelongsToItsHost(t *testing.T) {
	if f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0); err != nil {
		t.Fatalf("this test needs a /dev/net/tun that it may open: %v", err)
	} else {
		f.Close()
	}
	w := mustStart(t, Reference())
	mustRun(t, w.Host("gw10"), "ip", "tuntap", "add", "mesh0", "mode", "tun")
	if got := mustRun(t, w.Host("gw10"), "ls", "/sys/class/net"); got != "eth0\neth1\nlo\nmesh0\n" {
		t.Errorf("gw10 has %q", got)
	}
	if got := mustRun(t, w.Host("gw20"), "ls", "/sys/class/net"); got != "eth0\neth1\nlo\n" {
		t.Errorf("gw20 has %q", got)
	}
}

func TestHostSettingsAreAsDeclared(t *testing.T) {
	topology := Reference()
	topology.Host("gw10").Forward = true
	topology.Host("gw20").NoIPv6 = true
	topology.Host("gw20").Sysctls = map[string]string{"net.ipv4.conf.eth0.rp_filter": "2", "net/ipv4/conf/all/rp_filter": "1"}
	w := mustStart(t, topology)
	const names = "net.ipv4.ip_forward net.ipv6.conf.all.forwarding net.ipv4.conf.all.rp_filter net.ipv4.conf.eth0.rp_filter net.ipv6.conf.eth1.disable_ipv6"
	for host, want := range map[string]string{"gw10": "1 1 0 0 0", "gw20": "0 0 1 2 1", "gw30": "0 0 0 0 0"} {
		out := mustRun(t, w.Host(host), "sh", "-c", "for n in "+names+"; do cat /proc/sys/$(echo $n | tr . /); done")
		if got := strings.Join(strings.Fields(out), " "); got != want {
			t.Errorf("%s: %s are %s, want %s", host, names, got, want)
		}
	}
	if got := mustRun(t, w.Host("gw20"), "ip", "-6", "addr"); got != "" {
		t.Errorf("gw20 without IPv6 has %s", got)
	}
}

func TestSnapshotIsStableAndSeesChanges(t *testing.T) {
	w := mustStart(t, ReferenceDual())
	gw := w.Host("gw10")
	before := mustSnapshot(t, gw)
	if diff := cmp.Diff(before, mustSnapshot(t, gw)); diff != "" {
		t.Fatalf("two snapshots of one state differ:\n%s", diff)
	}
	for _, c := range []struct{ name, do, undo, want string }{
		{"link", "ip link add name d0 type bridge", "ip link del d0", "+ links: d0: "},
		{"tun", "ip tuntap add t0 mode tun", "ip link del t0", "+ links: t0: "},
		{"mtu", "ip link set eth1 mtu 1400", "ip link set eth1 mtu 1500", "+ links: eth1: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu 1400"},
		{"address", "ip addr add 10.9.9.9/32 dev eth1", "ip addr del 10.9.9.9/32 dev eth1", "+ addresses: eth1    inet 10.9.9.9/32"},
		{"route", "ip route add 10.77.0.0/16 via 10.4.0.91 table 77", "ip route flush table 77", "+ routes: 10.77.0.0/16 via 10.4.0.91 dev eth0 table 77"},
		{"IPv6 route", "ip route add fd77::/16 via 2001:db8:4::91", "ip route del fd77::/16", "+ routes: fd77::/16 via 2001:db8:4::91 dev eth0"},
		{"rule", "ip rule add fwmark 7 table 77 prio 100", "ip rule del prio 100", "+ rules: 100:"},
		{"nftables", "nft add table inet mine", "nft delete table inet mine", "+ nftables: table inet mine {"},
		{"forwarding", "echo 1 >/proc/sys/net/ipv4/conf/eth1/forwarding", "echo 0 >/proc/sys/net/ipv4/conf/eth1/forwarding",
			"+ settings: net/ipv4/conf/eth1/forwarding=1"},
		{"accept_ra", "echo 2 >/proc/sys/net/ipv6/conf/eth0/accept_ra", "echo 1 >/proc/sys/net/ipv6/conf/eth0/accept_ra",
			"+ settings: net/ipv6/conf/eth0/accept_ra=2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			mustRun(t, gw, "sh", "-ec", c.do)
			diff := DiffSnapshots(before, mustSnapshot(t, gw))
			if !slices.ContainsFunc(diff, func(line string) bool { return strings.HasPrefix(line, c.want) }) {
				t.Errorf("got %q\nwithout %q", diff, c.want)
			}
			mustRun(t, gw, "sh", "-ec", c.undo)
			if diff := DiffSnapshots(before, mustSnapshot(t, gw)); diff != nil {
				t.Errorf("after undoing it: %q", diff)
			}
		})
	}
}
