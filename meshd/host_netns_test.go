//go:build integration

package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
	"github.com/planetmesh/planetmesh/internal/netlab/netlabtest"
	"github.com/planetmesh/planetmesh/overlay"
)

// The world of these tests: two routers, and nobody on their LANs.
//
//	lan10 ── gw10 ── underlay ── gw20 ── lan20
//	192.168.10.0/24  10.4.0.0/16  192.168.20.0/24
func newTopology() netlab.Topology {
	t := netlab.Topology{Nets: []netlab.Net{{Name: "underlay", Prefixes: []netip.Prefix{netlab.Underlay4}}}}
	t.AddSite(netlab.Site{Number: 10})
	t.AddSite(netlab.Site{Number: 20})
	return t
}

func elevate() error { return netlab.Elevate() }

// program is the path of a link named meshd to this test binary, which then
// plays the program.
func program(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "meshd")
	if err := os.Symlink(self, path); err != nil {
		t.Fatal(err)
	}
	return path
}

// shell runs a script on a host; $meshd is the program. It returns exit code
// and output.
func shell(t *testing.T, h *netlab.Host, meshd, script string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c := h.Command(ctx, "sh", "-euc", script)
	c.Env = append(os.Environ(), "meshd="+meshd)
	var out, err strings.Builder
	c.Stdout, c.Stderr = &out, &err
	runErr := c.Run()
	if exit, ok := errors.AsType[*exec.ExitError](runErr); ok {
		return exit.ExitCode(), out.String(), err.String()
	}
	if runErr != nil {
		t.Fatalf("%s: %v", script, runErr)
	}
	return 0, out.String(), err.String()
}

const initGateway = `"$meshd" init --mesh planet --site 10 --prefix 192.168.10.0/24 --state state >recovery
`

func TestHostileHostIsNamedAndLeftAlone(t *testing.T) {
	tests := []struct {
		name   string
		script string   // after initGateway; its last command is the program
		stderr []string // each in standard error
	}{
		{
			"interface name in use",
			`ip link add pm0 type bridge; trap 'ip link del pm0' EXIT; "$meshd" run --state state`,
			[]string{"interface pm0", "hint: ip link shows who has the interface"},
		},
		{
			"no CAP_NET_ADMIN",
			`exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin "$meshd" run --state state`,
			[]string{"no permission to change the network", "CAP_NET_ADMIN"},
		},
		{
			"no TUN device",
			`exec unshare -m sh -ec 'mount -t tmpfs tmpfs /dev/net; exec "$meshd" run --state state'`,
			[]string{"/dev/net/tun: no such file or directory", "modprobe tun"},
		},
		{
			"unreadable key",
			`chmod 000 state/identity.key; exec setpriv --bounding-set=-dac_override,-dac_read_search --inh-caps=-dac_override,-dac_read_search "$meshd" run --state state`,
			[]string{"state/identity.key: permission denied", "hint: do it as the owner of "},
		},
		{
			"key that others may read",
			`chmod 644 state/identity.key; exec "$meshd" run --state state`,
			[]string{"state/identity.key has mode 0644, want 0600", "hint: chmod 600 "},
		},
		{
			"damaged state",
			`echo >>state/certificate; exec "$meshd" run --state state`,
			[]string{"state/certificate: checksum differs: state file is damaged", "hint: restore "},
		},
	}
	meshd := program(t)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			w := netlabtest.Start(t, newTopology())
			netlabtest.Snapshots(t, w, "gw10")
			code, _, stderr := shell(t, w.Host("gw10"), meshd, initGateway+tt.script)
			if code != 1 {
				t.Errorf("exit code %d, want 1; standard error:\n%s", code, stderr)
			}
			if n := strings.Count(stderr, "error: "); n != 1 {
				t.Errorf("%d error lines, want one:\n%s", n, stderr)
			}
			for _, want := range tt.stderr {
				if !strings.Contains(stderr, want) {
					t.Errorf("standard error lacks %q:\n%s", want, stderr)
				}
			}
		})
	}
}

func TestPortInUseIsNamed(t *testing.T) {
	w := netlabtest.Start(t, newTopology())
	netlabtest.Snapshots(t, w, "gw10")
	conn, err := w.Host("gw10").ListenPacket(t.Context(), "udp", ":17946")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	code, _, stderr := shell(t, w.Host("gw10"), program(t), initGateway+`"$meshd" run --state state`)
	if code != 1 || !strings.Contains(stderr, "port 17946") || !strings.Contains(stderr, "hint: ss -lunp") {
		t.Errorf("exit code %d, standard error:\n%s", code, stderr)
	}
}

func TestFullDiskChangesNothing(t *testing.T) {
	w := netlabtest.Start(t, newTopology())
	netlabtest.Snapshots(t, w, "gw10")
	// A gateway of which some kilobytes remain free, and one that never had room.
	const script = `
mkdir small; mount -t tmpfs -o size=256k tmpfs small
"$meshd" init --mesh planet --site 10 --prefix 192.168.10.0/24 --state small/state >recovery
dd if=/dev/zero of=small/filler bs=1k 2>dd.err || true
sha256sum small/state/* >before
set +e
"$meshd" run --state small/state 2>run.err; echo run $?
"$meshd" init --mesh planet --site 10 --prefix 192.168.10.0/24 --state small/other >out 2>init.err; echo init $?
set -e
sha256sum -c --quiet before
ls small/other 2>/dev/null | grep -v lock || true
grep -h '' run.err init.err >&2
umount small
`
	code, stdout, stderr := shell(t, w.Host("gw10"), program(t), script)
	if diff := cmp.Diff("run 1\ninit 1\n", stdout); code != 0 || diff != "" {
		t.Errorf("exit code %d, exit codes of the commands and what is left (-want +got):\n%s\n%s", code, diff, stderr)
	}
	if errs, hints := strings.Count(stderr, "no space left on device"), strings.Count(stderr, "hint: df -h "); errs != 2 || hints != 2 {
		t.Errorf("%d errors and %d hints, want two of each:\n%s", errs, hints, stderr)
	}
}

// waitStatus waits until gw20 reaches the other gateway and its status is as
// wanted.
func waitStatus(t *testing.T, lab *meshlab.Lab, want string, ok func(overlay.Status) bool) overlay.Status {
	const host = "gw20"
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		s, err := lab.Status(ctx, host)
		if err == nil && ok(s) {
			return s
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			b, _ := json.MarshalIndent(s, "", "  ")
			t.Fatalf("%s: no %s: %v\n%s\n%s", host, want, err, b, lab.Process(host).Log())
		}
	}
}

func peerUp(s overlay.Status) bool { return len(s.Peers) == 1 && s.Peers[0].State == overlay.PeerUp }

// newLab is a mesh of the two routers, whose hosts must be as before afterwards.
func newLab(t *testing.T, topology netlab.Topology) *meshlab.Lab {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	lab, err := meshlab.Start(ctx, topology, program(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	netlabtest.Snapshots(t, lab.World(), "gw10", "gw20")
	gateways := []meshlab.Gateway{
		{Host: "gw10", Site: "10", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.10.0/24")}},
		{Host: "gw20", Site: "20", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.20.0/24")}},
	}
	t.Cleanup(func() { // before the snapshots are compared
		for _, g := range gateways {
			if lab.Process(g.Host) == nil {
				continue
			}
			if err := lab.Stop(context.Background(), g.Host); err != nil {
				t.Errorf("stop %s: %v", g.Host, err)
			}
		}
	})
	if err := lab.Up(ctx, "planet", gateways); err != nil {
		t.Fatal(err)
	}
	return lab
}

func TestDegradedHostSaysWhatIsWrong(t *testing.T) {
	topology := newTopology()
	for i := range topology.Hosts {
		if h := &topology.Hosts[i]; h.Name == "gw20" {
			h.NoIPv6 = true
			h.Firewall = "table inet strict {\n chain forward {\n type filter hook forward priority 0; policy drop;\n }\n}\n"
			// Another network of this host is numbered like site 10.
			h.Interfaces = append(h.Interfaces, netlab.Iface{
				Net: "other", Name: "eth2", Addrs: []netip.Prefix{netip.MustParsePrefix("192.168.10.77/24")},
			})
		}
	}
	topology.Nets = append(topology.Nets, netlab.Net{Name: "other", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.10.0/24")}})
	lab := newLab(t, topology)
	s := waitStatus(t, lab, "refused route", func(s overlay.Status) bool { return peerUp(s) && len(s.Refused) == 1 })
	if r := s.Refused[0]; r.Prefix.String() != "192.168.10.0/24" || r.Gateway != "gw-10" || !strings.Contains(r.Reason, "eth2") {
		t.Errorf("refused %+v, want 192.168.10.0/24 of gw-10 because of eth2", r)
	}
	out, err := lab.Meshd(t.Context(), "gw20", "status")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"warning: 192.168.10.0/24 of gw-10 is not installed here: ",
		"ipv6 is switched off on this host",
		"strict", // the table that drops, and the rule to add
	} {
		if !strings.Contains(out, want) {
			t.Errorf("status lacks %q:\n%s", want, out)
		}
	}
	routes, err := lab.World().Host("gw20").Run(t.Context(), "ip", "route", "show", "192.168.10.0/24")
	if err != nil || strings.Contains(routes, "pm0") {
		t.Errorf("routes to 192.168.10.0/24: %q, %v, want only that of eth2", routes, err)
	}
}

func TestStandardToolReadsTheDevice(t *testing.T) {
	lab := newLab(t, newTopology())
	waitStatus(t, lab, "peer", peerUp)
	out, err := lab.World().Host("gw20").Run(t.Context(), "wg", "show", "pm0")
	if err != nil || !strings.Contains(out, "allowed ips:") || !strings.Contains(out, "192.168.10.0/24") || !strings.Contains(out, "endpoint: 10.4.0.90:17946") {
		t.Errorf("wg show: %v\n%s", err, out)
	}
}

func TestKilledDaemonLeavesNothingBehindAfterTheNext(t *testing.T) {
	lab := newLab(t, newTopology())
	waitStatus(t, lab, "peer", peerUp)
	if err := lab.Kill("gw20"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	if err := lab.Run(ctx, "gw20"); err != nil {
		t.Fatal(err)
	}
	waitStatus(t, lab, "peer after the restart", peerUp)
	// newLab stops both and compares the hosts.
}
