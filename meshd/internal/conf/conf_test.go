package conf

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"flag"
	"io/fs"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

var update = flag.Bool("update", false, "rewrite golden files")

// equal compares configurations and faults; netip types have unexported fields.
var equal = cmp.Options{
	cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{}),
}

func TestEverySettingIsRead(t *testing.T) {
	got, err := Load(filepath.Join("testdata", "full.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	want := &Config{
		File:      filepath.Join("testdata", "full.yaml"),
		State:     "/srv/meshd",
		Device:    overlay.DeviceNetstack,
		Interface: "mesh-0.1",
		Port:      51820,
		MTU:       1380,
		Endpoints: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.7:17946"), netip.MustParseAddrPort("[2001:db8::7]:17946")},
		Seeds:     []netip.AddrPort{netip.MustParseAddrPort("198.51.100.9:17946")},
		Announce: []overlay.Route{
			{Prefix: netip.MustParsePrefix("192.168.10.0/24")},
			{Prefix: netip.MustParsePrefix("2001:db8:10::/64"), Priority: 100},
		},
		Accept:   []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("192.168.20.0/24")},
		KeepHost: true,
		Log:      Log{Level: slog.LevelDebug, Format: LogJSON},
	}
	if diff := cmp.Diff(want, got, equal); diff != "" {
		t.Errorf("configuration (-want +got):\n%s", diff)
	}
	wantOverlay := overlay.Config{
		Device: overlay.DeviceNetstack, Interface: "mesh-0.1", MTU: 1380, Port: 51820,
		Endpoints: want.Endpoints, Seeds: want.Seeds, Routes: want.Announce, Accept: want.Accept, KeepHost: true,
	}
	if diff := cmp.Diff(wantOverlay, got.Overlay(), equal); diff != "" {
		t.Errorf("configuration of overlay (-want +got):\n%s", diff)
	}
}

func TestNothingConfiguredMeansDefaults(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "comments": "# nothing\n\n# here\n", "null": "~\n", "marker": "---\n", "byte order mark": "\ufeff# x\n",
	} {
		t.Run(name, func(t *testing.T) {
			got, err := Parse("meshd.yaml", []byte(text))
			if err != nil {
				t.Fatal(err)
			}
			want := Default()
			want.File = "meshd.yaml"
			if diff := cmp.Diff(want, got, equal); diff != "" {
				t.Errorf("configuration of %q (-want +got):\n%s", text, diff)
			}
		})
	}
	c := Default().Overlay()
	c.Store = new(overlay.MemStore)
	if err := c.Validate(); err != nil {
		t.Errorf("defaults are not valid: %v", err)
	}
	if c.Routes != nil || c.Device != overlay.DeviceTUN {
		t.Errorf("defaults: device %q, routes %v, want tun and nil for all that is granted", c.Device, c.Routes)
	}
}

func TestEmptyAnnounceIsNotAbsentAnnounce(t *testing.T) {
	c, err := Parse("meshd.yaml", []byte("announce: []\n"))
	if err != nil {
		t.Fatal(err)
	}
	if c.Announce == nil || len(c.Announce) != 0 {
		t.Errorf("announce: [] gave %#v, want an empty list that is not nil", c.Announce)
	}
}

func TestFaultsAreNamedWithLineFieldAndCure(t *testing.T) {
	tests := []struct {
		name string
		text string
		want string // all faults, one a line
	}{
		{"unknown key with a near miss", "\nanounce: []\n", "f:2: anounce: unknown key; want announce"},
		{"key in another spelling", "keep_host: true\n", "f:1: keep_host: unknown key; want keepHost"},
		{"key of another program", "listenPort: 1\n", "f:1: listenPort: unknown key; want port"},
		{
			"unknown key far from all", "colour: blue\n",
			"f:1: colour: unknown key; want one of state, interface, port, mtu, device, endpoints, seeds, announce, accept, openvpn, keepHost, log",
		},
		{"unknown key below another", "log:\n  levle: info\n", "f:2: log.levle: unknown key; want level"},
		{"duplicate key", "port: 1\nmtu: 1400\nport: 2\n", "f:3: port: stands in line 1 already; want each key once"},
		{"key that is a list", "[a]: 1\n", "f:1: a key that is a list; want one of state, interface, port, mtu, device, endpoints, seeds, announce, accept, openvpn, keepHost, log"},

		{"port too large", "port: 65536\n", "f:1: port: 65536; want a number from 1 to 65535"},
		{"port zero", "port: 0\n", "f:1: port: 0; want a number from 1 to 65535"},
		{"port as a word", "port: http\n", "f:1: port: http; want a number from 1 to 65535"},
		{"port as a list", "port: [1]\n", "f:1: port: a list; want a number from 1 to 65535"},
		{"port without value", "port:\n", "f:1: port: empty; want a number from 1 to 65535"},
		{"mtu below what IPv6 needs", "mtu: 1279\n", "f:1: mtu: 1279; want a number from 1280 to 65455"},

		{"relative state", "state: var/lib\n", `f:1: state: "var/lib"; want the absolute path of a directory, such as /var/lib/meshd`},
		{"long interface name", "interface: planetmesh000000\n", `f:1: interface: "planetmesh000000"; want 1 to 15 letters, digits, ".", "_" or "-", such as pm0`},
		{"interface pattern", "interface: pm%d\n", `f:1: interface: "pm%d"; want 1 to 15 letters, digits, ".", "_" or "-", such as pm0`},
		{"device", "device: tunn\n", `f:1: device: "tunn"; want tun`},
		{"device far from all", "device: wireguard\n", `f:1: device: "wireguard"; want tun, netstack or none`},
		{"boolean in words", "keepHost: yes\n", `f:1: keepHost: "yes"; want true or false`},
		{"log level", "log: {level: trace}\n", `f:1: log.level: "trace"; want debug, info, warn or error`},
		{"log as a word", "log: debug\n", `f:1: log: "debug"; want "level:" and "format:" below it`},

		{
			"endpoint without port", "endpoints:\n  - 203.0.113.7\n",
			"f:2: endpoints[0]: 203.0.113.7 has no port; want ADDRESS:PORT, such as 203.0.113.7:17946 or [2001:db8::7]:17946",
		},
		{
			"endpoint with a name", "seeds: [gw.example.org:17946]\n",
			`f:1: seeds[0]: "gw.example.org:17946" is no address with a port (names are not looked up); want ADDRESS:PORT, such as 203.0.113.7:17946 or [2001:db8::7]:17946`,
		},
		{
			"endpoint of everybody", "endpoints: ['0.0.0.0:1', '224.0.0.1:1', '10.0.0.1:0']\n",
			"f:1: endpoints[0]: 0.0.0.0:1 is not the address of one host; want ADDRESS:PORT, such as 203.0.113.7:17946 or [2001:db8::7]:17946\n" +
				"f:1: endpoints[1]: 224.0.0.1:1 is not the address of one host; want ADDRESS:PORT, such as 203.0.113.7:17946 or [2001:db8::7]:17946\n" +
				"f:1: endpoints[2]: 10.0.0.1:0 has port 0; want ADDRESS:PORT, such as 203.0.113.7:17946 or [2001:db8::7]:17946",
		},
		{
			"endpoint twice, once as mapped address", "endpoints:\n- 10.0.0.1:5\n- '[::ffff:10.0.0.1]:5'\n",
			"f:3: endpoints[1]: 10.0.0.1:5 stands in line 2 already; want each address once",
		},
		{
			"too many endpoints", "endpoints: ['10.0.0.1:1','10.0.0.1:2','10.0.0.1:3','10.0.0.1:4','10.0.0.1:5','10.0.0.1:6','10.0.0.1:7','10.0.0.1:8','10.0.0.1:9']\n",
			"f:1: endpoints: 9 entries; want at most 8",
		},

		{"host bits", "announce:\n  - 192.168.10.1/24\n", "f:2: announce[0]: 192.168.10.1/24 has host bits; want 192.168.10.0/24"},
		{"address instead of prefix", "accept: [10.1.2.3]\n", "f:1: accept[0]: 10.1.2.3 has no length; want 10.1.2.3/32 for one host, or the prefix of its LAN"},
		{"no prefix at all", "announce: [lan]\n", `f:1: announce[0]: "lan"; want a prefix, such as 192.168.10.0/24 or 2001:db8:10::/64`},
		{"mapped prefix", "announce: ['::ffff:10.0.0.0/104']\n", "f:1: announce[0]: ::ffff:10.0.0.0/104 is an IPv4 address in IPv6 form; want the IPv4 prefix"},
		{
			"overlapping prefixes", "announce:\n  - 10.0.0.0/8\n  - 192.168.10.0/24\n  - prefix: 10.20.0.0/16\n    priority: 5\n",
			"f:4: announce[2]: 10.20.0.0/16 overlaps 10.0.0.0/8 in line 2; want prefixes that do not overlap",
		},
		{"default route", "announce: [0.0.0.0/0]\n", "f:1: announce[0]: 0.0.0.0/0 is too wide to announce; want the prefix of a LAN, /8 or longer"},
		{"wide IPv6 prefix", "announce: ['2000::/3']\n", "f:1: announce[0]: 2000::/3 is too wide to announce; want the prefix of a LAN, /16 or longer"},
		{"link-local prefix", "announce: ['fe80::/64']\n", "f:1: announce[0]: fe80::/64 never leaves its host or link; want the prefix of a LAN, /16 or longer"},
		{
			"announce without value", "announce:\n",
			"f:1: announce: empty; want a list of prefixes; [] announces none, and without this line all granted ones are announced",
		},
		{"route without prefix", "announce:\n  - priority: 5\n", `f:2: announce[0]: has no prefix; want "prefix:" with a prefix, such as 192.168.10.0/24 or 2001:db8:10::/64`},
		{"priority", "announce:\n  - prefix: 10.0.0.0/8\n    priority: -1\n", "f:3: announce[0].priority: -1; want a number from 0 to 65535"},
		{"key of a route", "announce:\n  - prefix: 10.0.0.0/8\n    metric: 1\n", "f:3: announce[0].metric: unknown key; want priority"},
		{"accept twice", "accept:\n- 10.0.0.0/8\n- 10.0.0.0/8\n", "f:3: accept[1]: 10.0.0.0/8 stands in line 2 already; want each prefix once"},
		{"accept nothing", "accept: []\n", "f:1: accept: an empty list; want prefixes that may be installed; without this line all authorised ones may"},

		{"tab in the indentation", "log:\n\tlevel: info\n", "f:2: a tab in the indentation; want spaces"},
		{"tab after spaces", "announce:\n - 10.0.0.0/8\n \t- x\n", "f:3: a tab in the indentation; want spaces"},
		{"list instead of settings", "- a\n", `f:1: the file is a list; want lines such as "port: 17946"`},
		{"word instead of settings", "\nhello\n", `f:2: the file is "hello"; want lines such as "port: 17946"`},
		{"second document", "port: 1\n---\nport: 2\n", "f:2: a second document begins here; want one document in a file"},
		{"alias", "announce: &a [10.0.0.0/8]\naccept: *a\n", "f:2: accept: an alias (*a); want a list of prefixes"},
		{"huge file", strings.Repeat("# padding\n", MaxSize/10+1), "f: larger than 262144 bytes; want a configuration of a few kilobytes"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := Parse("f", []byte(tt.text))
			if _, ok := errors.AsType[Faults](err); !ok {
				t.Fatalf("configuration %q gave %+v and error %v, want faults", tt.text, c, err)
			}
			if diff := cmp.Diff(tt.want, err.Error()); diff != "" {
				t.Errorf("faults (-want +got):\n%s", diff)
			}
		})
	}
}

func TestSyntaxErrorNamesItsLine(t *testing.T) {
	for name, text := range map[string]string{
		"unclosed list":      "port: 1\nannounce: [10.0.0.0/8\n",
		"unclosed quote":     "port: 1\nstate: \"x\n",
		"wrong indentation":  "log:\n   level: info\n  format: text\n",
		"two values":         "port: 1: 2\n",
		"control characters": "port: \x01\n",
		"not UTF-8":          "state: \xff\xfe\n",
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse("f", []byte(text))
			faults, ok := errors.AsType[Faults](err)
			if !ok || len(faults) != 1 || !strings.Contains(faults[0].Problem, "not YAML: ") {
				t.Fatalf("%q gave %v, want one fault about YAML", text, err)
			}
			if strings.Contains(faults[0].Problem, "line ") && faults[0].Line == 0 {
				t.Errorf("fault %q has its line in the text only", faults[0])
			}
		})
	}
}

func TestAllFaultsOfAFileAreReportedInOrder(t *testing.T) {
	path := filepath.Join("testdata", "faults.yaml")
	_, err := Load(path)
	faults, ok := errors.AsType[Faults](err)
	if !ok {
		t.Fatalf("error %v, want faults", err)
	}
	golden := filepath.Join("testdata", "faults.golden")
	got := filepath.ToSlash(faults.Error()) + "\n"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("faults of %s (-want +got):\n%s", path, diff)
	}
	for i := 1; i < len(faults); i++ {
		if faults[i].Line < faults[i-1].Line {
			t.Errorf("line %d is reported after line %d", faults[i].Line, faults[i-1].Line)
		}
	}
}

func TestMissingFileIsNotADefault(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "meshd.yaml"))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("error %v, want fs.ErrNotExist", err)
	}
}

func TestNearestOffersNothingFarFetched(t *testing.T) {
	names := []string{"mtu", "port", "seeds", "announce"}
	for word, want := range map[string]string{
		"mut": "mtu", "MTU": "mtu", "prot": "port", "seed": "seeds", "announces": "announce", "an-nounce": "announce",
		"x": "", "": "", "user": "", "abc": "", "loglevel": "",
	} {
		if got := nearest(word, names); got != want {
			t.Errorf("nearest(%q) = %q, want %q", word, got, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, name := range []string{"full.yaml", "faults.yaml", "openvpn.yaml", "openvpn-faults.yaml"} {
		b, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Add([]byte("announce: [10.0.0.0/8, {prefix: '::/0', priority: 65536}]"))
	f.Add([]byte("a: &a [*a]\n<<: *a\n"))
	f.Add([]byte("log:\n\tlevel: x"))
	f.Add([]byte("? [port]\n: !!binary aGk=\n--- |\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse("f", b)
		if err == nil {
			o := c.Overlay()
			o.Store = new(overlay.MemStore)
			if err := o.Validate(); err != nil {
				t.Errorf("what passed the check is refused later: %v", err)
			}
			for _, a := range c.OpenVPN {
				a.Keys = Keys{Static: openvpn.GenerateStaticKey(), Wrap: openvpn.GenerateStaticKey(), Certificate: tls.Certificate{Certificate: [][]byte{{0}}}, CAs: x509.NewCertPool()}
				endpoint := a.Endpoint()
				endpoint.Device = nullDevice{}
				if err := endpoint.Validate(); err != nil {
					t.Errorf("attachment %q passed the check and is refused later: %v", a.Name, err)
				}
			}
			return
		}
		faults, ok := errors.AsType[Faults](err)
		if !ok || len(faults) == 0 {
			t.Fatalf("error %v, want faults", err)
		}
		lines := 1 // YAML 1.1 breaks lines at more than "\n"
		for _, end := range []string{"\n", "\r", "\u0085", "\u2028", "\u2029"} {
			lines += strings.Count(string(b), end)
		}
		for _, fault := range faults {
			if fault.Line < 0 || fault.Line > lines+1 {
				t.Errorf("fault %q has a line that the file of %d lines has not", fault, lines)
			}
		}
	})
}
