//go:build integration

package meshlab_test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
)

// mustFail runs meshd on gw10 by a shell line and returns its error output,
// which must be an error line and hints, with the given exit code.
func mustFail(t *testing.T, lab *meshlab.Lab, code int, script string) string {
	t.Helper()
	cmd := lab.World().Host("gw10").Command(within(t, 20*time.Second), "sh", "-c", script, "sh", meshd, lab.StateDir("gw10"))
	out, err := cmd.CombinedOutput()
	exit, ok := err.(*exec.ExitError)
	if !ok || exit.ExitCode() != code {
		t.Fatalf("%s: got %v, want exit code %d:\n%s", script, err, code, out)
	}
	errors := 0
	for line := range strings.Lines(string(out)) {
		switch {
		case strings.HasPrefix(line, "error: "):
			errors++
		case strings.HasPrefix(line, "hint: "):
		case strings.Contains(line, "level="):
		default:
			t.Errorf("%s: neither error nor hint: %q", script, line)
		}
	}
	if errors != 1 {
		t.Errorf("%s: %d error lines, want one:\n%s", script, errors, out)
	}
	return string(out)
}

func TestBadHostGivesOneClearLineAndChangesNothing(t *testing.T) {
	topology := netlab.Reference()
	lab := newLab(t, topology)
	gw10 := lab.World().Host("gw10")
	if _, err := lab.Init(within(t, 10*time.Second), "planet", gateway(t, topology, "gw10")); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, script string
		want         []string
	}{
		{"no CAP_NET_ADMIN", `exec setpriv --bounding-set=-net_admin --inh-caps=-net_admin "$1" run --state "$2"`, []string{"CAP_NET_ADMIN"}},
		{"no /dev/net/tun", `exec unshare -m sh -c 'mount -t tmpfs none /dev/net && exec "$1" run --state "$2"' sh "$1" "$2"`, []string{"/dev/net/tun"}},
		{"interface taken", `ip link add pm0 type bridge; "$1" run --state "$2"; c=$?; ip link del pm0; exit $c`, []string{"pm0"}},
		{"world-readable key", `chmod 644 "$2/wireguard.key"; "$1" run --state "$2"; c=$?; chmod 600 "$2/wireguard.key"; exit $c`, []string{"wireguard.key", "0644", "0600"}},
		{"damaged certificate", `cp "$2/certificate" /run/c; echo x >> "$2/certificate"; "$1" run --state "$2"; c=$?; cp /run/c "$2/certificate"; exit $c`, []string{"certificate", "damaged"}},
		{"damaged records", `head -c 100 /dev/urandom > "$2/records"; "$1" run --state "$2"; c=$?; rm "$2/records"; exit $c`, []string{"records", "damaged"}},
		{"full disk at init", `mkdir /run/full; mount -t tmpfs -o size=16k none /run/full; head -c 20k /dev/zero > /run/full/fill 2>/dev/null; ` +
			`"$1" init --mesh m --site s --prefix 10.1.0.0/16 --state /run/full/state; c=$?; test -e /run/full/state/certificate && c=9; umount /run/full; exit $c`, []string{"no space left"}},
		{"full disk at run", `cp -r "$2" /run/copy; mkdir /run/full2; mount -t tmpfs -o size=64k none /run/full2; cp -r /run/copy /run/full2/state; ` +
			`head -c 100k /dev/zero > /run/full2/fill 2>/dev/null; "$1" run --state /run/full2/state; c=$?; umount /run/full2; exit $c`, []string{"no space left"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, err := gw10.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			out := mustFail(t, lab, 1, c.script)
			for _, want := range c.want {
				if !strings.Contains(out, want) {
					t.Errorf("output lacks %q:\n%s", want, out)
				}
			}
			after, err := gw10.Snapshot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if diff := netlab.DiffSnapshots(before, after); diff != nil {
				t.Errorf("host changed:\n%s", strings.Join(diff, "\n"))
			}
		})
	}
	t.Run("port in use", func(t *testing.T) {
		conn, err := gw10.ListenPacket(t.Context(), "udp", "0.0.0.0:17946")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if out := mustFail(t, lab, 1, `exec "$1" run --state "$2"`); !strings.Contains(out, "17946") {
			t.Errorf("output lacks the port:\n%s", out)
		}
	})
	t.Run("second instance", func(t *testing.T) {
		if err := lab.Run(within(t, 10*time.Second), "gw10"); err != nil {
			t.Fatal(err)
		}
		if out := mustFail(t, lab, 1, `exec "$1" run --state "$2" --run /run/other`); !strings.Contains(out, "in use") {
			t.Errorf("output does not say that the state is in use:\n%s", out)
		}
		if err := lab.Stop(within(t, 10*time.Second), "gw10"); err != nil {
			t.Fatal(err)
		}
	})
}

func TestHostWithoutIPv6CarriesIPv4(t *testing.T) {
	topology := netlab.Reference()
	topology.Host("gw20").NoIPv6 = true
	lab := newMesh(t, topology)
	mustBeFull(t, lab, netlab.PingOptions{}, 15*time.Second)
	if s := mustStatus(t, lab, "gw20"); !strings.Contains(strings.Join(s.Warnings, "\n"), "ipv6 is switched off") {
		t.Errorf("no warning about IPv6: %q", s.Warnings)
	}
}

func TestForeignFirewallIsNamedWithTheRuleToAdd(t *testing.T) {
	topology := netlab.Reference()
	topology.Host("gw20").Firewall = "table inet strict {\n chain strict_forward {\n  type filter hook forward priority 0; policy drop;\n }\n}\n"
	lab := newMesh(t, topology)
	var warning string
	eventually(t, 10*time.Second, func() string {
		warning = strings.Join(mustStatus(t, lab, "gw20").Warnings, "\n")
		if strings.Contains(warning, "inet strict strict_forward") && strings.Contains(warning, "insert rule inet strict strict_forward") {
			return ""
		}
		return fmt.Sprintf("warnings %q", warning)
	})
	m, err := lab.World().PingAll(t.Context(), netlab.PingOptions{Hosts: []string{"master01", "node01"}})
	if err != nil {
		t.Fatal(err)
	}
	if m.Reached() != 0 {
		t.Fatalf("the firewall does not drop:\n%v", m)
	}
	_, cure, _ := strings.Cut(warning, "cure: ")
	if _, err := lab.World().Host("gw20").Run(t.Context(), "sh", "-c", cure); err != nil {
		t.Fatal(err)
	}
	mustBeFull(t, lab, netlab.PingOptions{}, 10*time.Second)
}

func TestPrefixThatCollidesWithALANIsRefusedLoudly(t *testing.T) {
	topology := netlab.Reference()
	gw20 := topology.Host("gw20")
	for i := range gw20.Interfaces {
		if gw20.Interfaces[i].Name == "eth1" {
			gw20.Interfaces[i].Addrs = append(gw20.Interfaces[i].Addrs, netip.MustParsePrefix("192.168.30.77/24"))
		}
	}
	for i := range topology.Nets {
		if topology.Nets[i].Name == "lan20" {
			topology.Nets[i].Prefixes = append(topology.Nets[i].Prefixes, netip.MustParsePrefix("192.168.30.0/24"))
		}
	}
	lab := newLab(t, topology)
	gateways := meshlab.ReferenceGateways(topology)
	gateways[1].Prefixes = gateways[1].Prefixes[:1]
	if err := lab.Up(within(t, 30*time.Second), "planet", gateways); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() string {
		s := mustStatus(t, lab, "gw20")
		for _, r := range s.Refused {
			if r.Prefix.String() == "192.168.30.0/24" && strings.Contains(r.Reason, "eth1") {
				return ""
			}
		}
		return fmt.Sprintf("refused %+v", s.Refused)
	})
	if routes := routesTo(t, lab, "gw20"); strings.Contains(routes, "192.168.30.0/24") {
		t.Errorf("the route was installed over the LAN:\n%s", routes)
	}
}
