package meshlab

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// digits is a key that nobody uses.
var digits = strings.Repeat("0123456789abcdef", 32)

// twoTunnels are commands as "meshd vyos" prints them.
func twoTunnels() string {
	return `# VyOS 1.4, the router's end of r30a and r30b.

set pki openvpn shared-secret meshd-vtun1 key '` + digits + `'
set pki openvpn shared-secret meshd-vtun1 version '1'
set interfaces openvpn vtun1 shared-secret-key 'meshd-vtun1'
set interfaces openvpn vtun1 description 'meshd r30a'
set interfaces openvpn vtun1 mode 'site-to-site'
set interfaces openvpn vtun1 protocol 'udp'
set interfaces openvpn vtun1 local-port '1196'
set interfaces openvpn vtun1 remote-host '198.51.100.10'
set interfaces openvpn vtun1 remote-port '1195'
set interfaces openvpn vtun1 persistent-tunnel
set interfaces openvpn vtun1 local-address 10.90.0.2
set interfaces openvpn vtun1 remote-address '10.90.0.1'
set interfaces openvpn vtun1 local-address fd90::2
set interfaces openvpn vtun1 remote-address 'fd90::1'
set interfaces openvpn vtun1 encryption cipher 'aes256'
set interfaces openvpn vtun1 hash 'sha256'
set interfaces openvpn vtun1 keep-alive interval '2'
set interfaces openvpn vtun1 keep-alive failure-count '10'

set pki openvpn shared-secret second key '` + digits + `'
set interfaces openvpn vtun2 mode 'site-to-site'
set interfaces openvpn vtun2 shared-secret-key 'second'
set interfaces openvpn vtun2 protocol 'tcp-passive'
set interfaces openvpn vtun2 local-address 10.91.0.2
set interfaces openvpn vtun2 remote-address '10.91.0.1'

set protocols static route 192.168.10.0/24 interface vtun2 distance '10'
set protocols static route 192.168.10.0/24 interface vtun1 distance '1'
set protocols static route 192.168.20.0/24 interface vtun1
set system task-scheduler task meshd-check interval '1m'
set system task-scheduler task meshd-check executable path '/config/scripts/meshd-check'
set system task-scheduler task meshd-check executable arguments '-r 5 -s 7'
`
}

func TestOptionFileIsWhatVyOSRenders(t *testing.T) {
	c, err := parseVyOS(twoTunnels())
	if err != nil {
		t.Fatal(err)
	}
	want := []string{`verb 3
dev-type tun
dev vtun1
persist-key
proto udp
lport 1196
rport 1195
remote 198.51.100.10
secret /run/openvpn/vtun1_shared.key
persist-tun
disable-dco
ping 2
ping-restart 10
ifconfig 10.90.0.2 10.90.0.1
ifconfig-ipv6 fd90::2 fd90::1
cipher AES-256-CBC
providers legacy default
auth sha256
`, `verb 3
dev-type tun
dev vtun2
persist-key
proto tcp-server
secret /run/openvpn/vtun2_shared.key
disable-dco
ping 10
ping-restart 60
ifconfig 10.91.0.2 10.91.0.1
providers legacy default
`}
	var got []string
	for _, tunnel := range c.tunnels {
		got = append(got, tunnel.options())
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("option files (-want +got):\n%s", diff)
	}
	if want := "-----BEGIN OpenVPN Static key V1-----\n" + digits + "\n-----END OpenVPN Static key V1-----\n"; c.tunnels[0].secretText() != want {
		t.Errorf("key file %q, want %q", c.tunnels[0].secretText(), want)
	}
	routes := []vyosRoute{
		{netip.MustParsePrefix("192.168.10.0/24"), "vtun1", 1},
		{netip.MustParsePrefix("192.168.20.0/24"), "vtun1", 1},
	}
	if diff := cmp.Diff(routes, c.bestRoutes(), cmp.AllowUnexported(vyosRoute{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	if want := (vyosTask{"1m", "/config/scripts/meshd-check", "-r 5 -s 7"}); c.task != want {
		t.Errorf("task %v, want %v", c.task, want)
	}
}

func TestRouterRefusesWhatVyOSWould(t *testing.T) {
	for _, c := range []struct{ name, from, to, want string }{
		{"unknown command", "set system task", "set system tusk", "line 32: not a command of this router"},
		{"unknown setting", "vtun1 hash", "vtun1 hush", "not a command of this interface"},
		{"command of another version", "vtun1 encryption cipher 'aes256'", "vtun1 encryption 'aes256'", "not a command of this interface"},
		{"open quote", "'udp'", "'udp", "a quote is open"},
		{"bad prefix", "route 192.168.20.0/24", "route 192.168.20.0", "192.168.20.0"},
		{"bad distance", "distance '10'", "distance '0'", "distance \"0\""},
		{"bad address", "10.90.0.2", "10.90.0.256", "10.90.0.256"},
		{"cipher that does not start", "'aes256'", "'bf128'", "cipher \"bf128\""},
		{"no key", "shared-secret second key", "shared-secret third key", "vtun2: no shared secret \"second\""},
		{"short key", digits, "0123", "vtun1: no shared secret"},
		{"no mode", "set interfaces openvpn vtun2 mode 'site-to-site'", "", "vtun2: mode \"\""},
		{"connects to nobody", "tcp-passive", "tcp-active", "vtun2: tcp-active without remote-host"},
		{"no address", "set interfaces openvpn vtun2 remote-address '10.91.0.1'", "", "1 local and 0 remote"},
	} {
		t.Run(c.name, func(t *testing.T) {
			text := strings.Replace(twoTunnels(), c.from, c.to, 1)
			if text == twoTunnels() {
				t.Fatalf("nothing to replace: %q", c.from)
			}
			if _, err := parseVyOS(text); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want an error with %q", err, c.want)
			}
		})
	}
}
