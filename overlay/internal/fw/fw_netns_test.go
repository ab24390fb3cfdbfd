//go:build integration && linux

package fw

import (
	"context"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

func mustOpen(t *testing.T, link string) *Firewall {
	t.Helper()
	f, err := Open(Config{Link: link})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

func mustApply(t *testing.T, f *Firewall, d Desired) {
	t.Helper()
	if err := f.Apply(d); err != nil {
		t.Fatal(err)
	}
}

func TestSegmentsAreClampedBothWays(t *testing.T) {
	if !isolated(t) {
		return
	}
	lan, far := newWorld(t)
	check := func(when string, want4, want6 int) {
		t.Helper()
		for _, c := range []struct {
			name     string
			from, to *peer
			address  string
			want     int
		}{
			{"IPv4 from the LAN", lan, far, "192.168.20.2:0", want4},
			{"IPv4 to the LAN", far, lan, "192.168.10.2:0", want4},
			{"IPv6 from the LAN", lan, far, "[fd20::2]:0", want6},
			{"IPv6 to the LAN", far, lan, "[fd10::2]:0", want6},
		} {
			from, to, err := connect(t, c.from, c.to, c.address)
			if err != nil || from != c.want || to != c.want {
				t.Errorf("%s: %s: segments of %d and %d bytes, %v, want %d", when, c.name, from, to, err, c.want)
			}
			// Forget what the hosts learned about the path.
			lan.sh(t, "ip route flush cache; ip -6 route flush cache; ip tcp_metrics flush")
			far.sh(t, "ip route flush cache; ip -6 route flush cache; ip tcp_metrics flush")
		}
	}
	check("without a table", 1460, 1440)
	f := mustOpen(t, "pm0")
	mustApply(t, f, Desired{MTU: 1420})
	check("clamped", 1380, 1360)
	mustApply(t, f, Desired{})
	check("by routes alone", 1380, 1360)
	mtus := func(v4, v6 string) {
		sh(t, "ip route replace 192.168.20.0/24 dev pm0 proto kernel scope link src 192.168.20.1 "+v4+
			"; ip route replace fd20::/64 dev pm0 proto kernel metric 256 "+v6)
	}
	mtus("mtu 1200", "mtu 1300")
	check("by the MTU of a path", 1200-40, 1300-60)
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	mtus("", "")
	check("after Close", 1460, 1440)
}

// firstSYN returns the maximum segment size in the first SYN that arrives at a
// peer over IPv4.
func firstSYN(t *testing.T, at *peer, provoke func()) int {
	t.Helper()
	var fd int
	if err := at.do(func() (err error) {
		const ip = unix.ETH_P_IP<<8 | unix.ETH_P_IP>>8 // network byte order
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, ip&0xffff)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(fd) }()
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 3}); err != nil {
		t.Fatal(err)
	}
	provoke()
	b := make([]byte, 2048)
	for {
		n, _, err := unix.Recvfrom(fd, b, 0)
		if err != nil {
			t.Fatalf("no SYN: %v", err)
		}
		if n < 44 || b[9] != unix.IPPROTO_TCP {
			continue
		}
		tcp := b[b[0]&15*4 : n]
		if tcp[13]&2 == 0 {
			continue
		}
		if tcp[20] != tcpOptionMSS {
			t.Fatalf("first option of the SYN is %d", tcp[20])
		}
		return int(binary.BigEndian.Uint16(tcp[22:]))
	}
}

func TestClampDoesNotDependOnTheWayBack(t *testing.T) {
	if !isolated(t) {
		return
	}
	lan, far := newWorld(t)
	// The way back to the far host leads over another gateway of the site.
	sh(t, `ip route add 192.168.20.2/32 via 192.168.10.254
		for l in all lan0 pm0; do echo 0 > /proc/sys/net/ipv4/conf/$l/rp_filter; done`)
	f := mustOpen(t, "pm0")
	for _, tt := range []struct {
		name string
		d    Desired
		want int
	}{
		{"by routes alone", Desired{}, 1460},
		{"with the MTU", Desired{MTU: 1420}, 1380},
	} {
		mustApply(t, f, tt.d)
		got := firstSYN(t, lan, func() {
			_ = far.do(func() error {
				ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
				defer cancel()
				c, err := (&net.Dialer{}).DialContext(ctx, "tcp", "192.168.10.2:9")
				if err == nil {
					_ = c.Close()
				}
				return err
			})
		})
		if got != tt.want {
			t.Errorf("%s: segment size %d, want %d", tt.name, got, tt.want)
		}
	}
}

func TestRestrictionHoldsPacketsFromTheOverlay(t *testing.T) {
	if !isolated(t) {
		return
	}
	lan, far := newWorld(t)
	lan.sh(t, "ip addr add 10.1.1.1/32 dev lo; ip addr add fd99::1/128 dev lo")
	sh(t, "ip route add 10.1.1.1 via 192.168.10.2; ip route add fd99::1 via fd10::2")
	f := mustOpen(t, "pm0")
	mustApply(t, f, Desired{MTU: 1420, Restrict: true, Prefixes: []netip.Prefix{
		netip.MustParsePrefix("192.168.10.0/25"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("fd10::/48"),
	}})
	for _, tt := range []struct {
		address string
		from    *peer
		to      *peer
		passes  bool
	}{
		{"192.168.10.2:0", far, lan, true},
		{"[fd10::2]:0", far, lan, true},
		{"10.1.1.1:0", far, lan, false},
		{"[fd99::1]:0", far, lan, false},
		{"192.168.20.2:0", lan, far, true},
		{"[fd20::2]:0", lan, far, true},
	} {
		if _, _, err := connect(t, tt.from, tt.to, tt.address); (err == nil) != tt.passes {
			t.Errorf("%s: %v, want it to pass: %t", tt.address, err, tt.passes)
		}
	}
	mustApply(t, f, Desired{MTU: 1420, Restrict: true})
	if _, _, err := connect(t, far, lan, "192.168.10.2:0"); err == nil {
		t.Error("without any prefix packets pass")
	}
	mustApply(t, f, Desired{MTU: 1420})
	if _, _, err := connect(t, far, lan, "10.1.1.1:0"); err != nil {
		t.Errorf("without restriction: %v", err)
	}
}

func TestApplyReplacesTheTableOnlyIfItDiffers(t *testing.T) {
	if !isolated(t) {
		return
	}
	sh(t, "nft add table inet theirs; nft add chain inet theirs c; nft add rule inet theirs c counter")
	before := sh(t, "nft list ruleset")
	f := mustOpen(t, "pm0")
	other := mustOpen(t, "pm1")
	d := Desired{MTU: 1420, Restrict: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.10.0/24"), netip.MustParsePrefix("fd10::/48")}}
	mustApply(t, f, d)
	mustApply(t, other, Desired{MTU: 1420})
	const handles = "nft -a list table inet planetmesh-pm0"
	first := sh(t, handles)
	t.Log(first)
	if strings.Contains(first, "planetmesh-pm1") || strings.Count(first, "planetmesh ") != 8 {
		t.Errorf("rules without our comment:\n%s", first)
	}
	mustApply(t, f, d)
	if diff := cmp.Diff(first, sh(t, handles)); diff != "" {
		t.Errorf("the second Apply changed the table:\n%s", diff)
	}
	withoutHandles := sh(t, "nft list table inet planetmesh-pm0")
	for name, damage := range map[string]string{
		"flushed":      "nft flush ruleset",
		"rule deleted": "nft delete rule inet planetmesh-pm0 inbound handle $(nft -a list chain inet planetmesh-pm0 inbound | sed -n 's/.*ip daddr.*handle //p')",
		"table gone":   "nft delete table inet planetmesh-pm0",
		"chain empty":  "nft flush chain inet planetmesh-pm0 forward",
	} {
		sh(t, damage)
		mustApply(t, f, d)
		if diff := cmp.Diff(withoutHandles, sh(t, "nft list table inet planetmesh-pm0")); diff != "" {
			t.Errorf("%s: not repaired:\n%s", name, diff)
		}
	}
	sh(t, "nft list table inet theirs >/dev/null 2>&1 || { nft add table inet theirs; nft add chain inet theirs c; nft add rule inet theirs c counter; }")
	d.MTU = 1400
	mustApply(t, f, d)
	if got := sh(t, handles); !strings.Contains(got, "size set 1360") || strings.Contains(got, "size set 1380") {
		t.Errorf("the table does not follow:\n%s", got)
	}
	mustApply(t, other, Desired{MTU: 1420})
	if err := errors.Join(f.Close(), f.Close(), other.Close()); err != nil {
		t.Error(err)
	}
	if diff := cmp.Diff(before, sh(t, "nft list ruleset")); diff != "" {
		t.Errorf("ruleset is not as before:\n%s", diff)
	}
	if err := f.Apply(d); !errors.Is(err, ErrClosed) {
		t.Errorf("Apply after Close = %v", err)
	}
}

func TestOpenDeletesALeftoverTableOfOurs(t *testing.T) {
	if !isolated(t) {
		return
	}
	f, err := Open(Config{Link: "pm0"})
	if err != nil {
		t.Fatal(err)
	}
	mustApply(t, f, Desired{MTU: 1420, Restrict: true}) // and then the process is gone
	other := mustOpen(t, "pm1")
	mustApply(t, other, Desired{MTU: 1420})
	kept := sh(t, "nft list table inet planetmesh-pm1")
	mustOpen(t, "pm0")
	if diff := cmp.Diff(kept, sh(t, "nft list ruleset")); diff != "" {
		t.Errorf("ruleset (-want +got):\n%s", diff)
	}
}

func TestForeignTableOfThatNameIsLeftAlone(t *testing.T) {
	if !isolated(t) {
		return
	}
	sh(t, `nft add table inet planetmesh-pm0; nft add chain inet planetmesh-pm0 forward
		nft add rule inet planetmesh-pm0 forward counter comment mine`)
	before := sh(t, "nft list ruleset")
	if _, err := Open(Config{Link: "pm0"}); !errors.Is(err, ErrForeignTable) || !strings.Contains(err.Error(), "nft list table inet planetmesh-pm0") {
		t.Errorf("Open = %v", err)
	}
	if diff := cmp.Diff(before, sh(t, "nft list ruleset")); diff != "" {
		t.Errorf("foreign table changed:\n%s", diff)
	}
}

func TestMissingPermissionIsOneClearError(t *testing.T) {
	if !isolated(t) {
		return
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&header, &data[0])
		data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		if err = errors.Join(err, unix.Capset(&header, &data[0])); err == nil {
			_, err = Open(Config{Link: "pm0"})
		}
		done <- err
	}()
	if err := <-done; !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("Open = %v", err)
	}
}

func TestSegmentsAreClampedAtAttachedInterfaces(t *testing.T) {
	if !isolated(t) {
		return
	}
	lan, far := newWorld(t)
	f := mustOpen(t, "pm9") // an overlay interface that is not there
	mustApply(t, f, Desired{MTU: 1420, Attached: []Attached{{Link: "pm0", MTU: 1300}}})
	for _, c := range []struct {
		name     string
		from, to *peer
		address  string
		want     int
	}{
		{"IPv4 to the router", lan, far, "192.168.20.2:0", 1260},
		{"IPv4 from the router", far, lan, "192.168.10.2:0", 1260},
		{"IPv6 to the router", lan, far, "[fd20::2]:0", 1240},
		{"IPv6 from the router", far, lan, "[fd10::2]:0", 1240},
	} {
		from, to, err := connect(t, c.from, c.to, c.address)
		if err != nil || from != c.want || to != c.want {
			t.Errorf("%s: segments of %d and %d bytes, %v, want %d", c.name, from, to, err, c.want)
		}
	}
}

func TestAttachedInterfacesAreRestricted(t *testing.T) {
	if !isolated(t) {
		return
	}
	lan, far := newWorld(t)
	f := mustOpen(t, "pm9")
	attached := []Attached{{Link: "pm0", MTU: 1500}}
	reaches := func(want bool, d Desired) {
		t.Helper()
		mustApply(t, f, d)
		_, _, err := connect(t, far, lan, "192.168.10.2:0")
		if (err == nil) != want {
			t.Errorf("%+v: from behind the router to the LAN: %v, want reached %t", d, err, want)
		}
	}
	prefix := netip.MustParsePrefix
	reaches(true, Desired{Attached: attached})
	reaches(false, Desired{Restrict: true, Attached: attached})
	reaches(true, Desired{Restrict: true, Attached: attached, Prefixes: []netip.Prefix{prefix("192.168.10.0/24")}})
	reaches(false, Desired{Restrict: true, Attached: attached, Prefixes: []netip.Prefix{prefix("192.168.11.0/24"), prefix("fd10::/64")}})
}
