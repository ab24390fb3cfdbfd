package netlab

import (
	"errors"
	"flag"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "rewrite golden files")

func TestReferenceDeploymentsAreDrawnAsAgreed(t *testing.T) {
	for name, topology := range map[string]Topology{
		"reference": Reference(), "reference6": Reference6(), "referencedual": ReferenceDual(), "referencemixed": ReferenceMixed(),
	} {
		t.Run(name, func(t *testing.T) {
			if err := topology.Validate(); err != nil {
				t.Fatal(err)
			}
			golden := "testdata/" + name + ".txt"
			if *update {
				if err := os.WriteFile(golden, []byte(topology.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), topology.String()); diff != "" {
				t.Errorf("drawing (-want +got):\n%s", diff)
			}
		})
	}
}

func TestReferenceNamesLeavesAndRouters(t *testing.T) {
	r := Reference()
	leaves := []string{"lb", "master01", "master02", "master03", "node01", "node02", "node03", "node04"}
	if diff := cmp.Diff(leaves, r.Leaves()); diff != "" {
		t.Errorf("leaves (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff([]string{"gw10", "gw20", "gw30"}, r.Routers()); diff != "" {
		t.Errorf("routers (-want +got):\n%s", diff)
	}
}

func TestFourthSiteGetsTheNextAddresses(t *testing.T) {
	topology := ReferenceDual()
	topology.AddSite(Site{Number: 140, LAN: DualStack, Underlay: DualStack, Hosts: []SiteHost{{"node05", 101}}})
	if err := topology.Validate(); err != nil {
		t.Fatal(err)
	}
	gw, node := topology.Host("gw140"), topology.Host("node05")
	got := []string{
		gw.Addr(false).String(), gw.Addr(true).String(),
		joinPrefixes(gw.Interfaces[1].Addrs), joinPrefixes(node.Interfaces[0].Addrs),
		node.Gateways[0].String(), node.Gateways[1].String(),
	}
	want := []string{
		"10.4.0.93", "2001:db8:4::93",
		"192.168.140.1/24, fd10:0:0:140::1/64", "192.168.140.101/24, fd10:0:0:140::101/64",
		"192.168.140.1", "fd10:0:0:140::1",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("addresses (-want +got):\n%s", diff)
	}
}

func TestDrawingShowsWhatIsSpecial(t *testing.T) {
	got := Topology{
		Nets: []Net{{Name: "wan", Prefixes: prefixes("203.0.113.0/24")}, {Name: "empty"}},
		Hosts: []HostSpec{{
			Name:       "home",
			Interfaces: []Iface{{Net: "wan", Name: "eth0", Addrs: prefixes("203.0.113.7/24"), MTU: 1400}},
			Gateways:   []netip.Addr{netip.MustParseAddr("203.0.113.1")},
			Routes:     []Route{{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("203.0.113.2")}},
			Forward:    true,
			NAT:        []NAT{{Out: "eth0", Ports: RandomPorts}},
			Firewall:   "table inet f {\n}\n",
			Sysctls:    map[string]string{"net.ipv4.conf.all.rp_filter": "1"},
			NoIPv6:     true,
		}},
	}.String()
	want := `wan  203.0.113.0/24
└── home  eth0  203.0.113.7/24  default via 203.0.113.1, 10.0.0.0/8 via 203.0.113.2, mtu 1400
empty
home: forwards; NAT out of eth0, ports random; firewall of 2 lines; no IPv6; net.ipv4.conf.all.rp_filter=1
`
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("drawing (-want +got):\n%s", diff)
	}
}

func TestValidateNamesHostAndField(t *testing.T) {
	for _, c := range []struct {
		name   string
		damage func(*Topology)
		want   string
	}{
		{"duplicate host", func(t *Topology) { t.Hosts[1].Name = "gw10" }, "host gw10: Name: used twice"},
		{"host name", func(t *Topology) { t.Host("lb").Name = "l_b" }, "host l_b: Name: want letters, digits and hyphens, at most 63"},
		{"duplicate net", func(t *Topology) { t.Nets[1].Name = "underlay" }, "net underlay: Name: used twice"},
		{"net without name", func(t *Topology) { t.Nets = append(t.Nets, Net{}) }, "net: Name: empty"},
		{"net prefix not masked", func(t *Topology) { t.Nets[1].Prefixes = prefixes("192.168.10.1/24") },
			"net lan10: Prefixes: 192.168.10.1/24 is not a prefix in masked form"},
		{"no such net", func(t *Topology) { t.Host("lb").Interfaces[0].Net = "lan11" },
			`host lb interface eth0: Net: no net "lan11"`},
		{"long interface name", func(t *Topology) { t.Host("lb").Interfaces[0].Name = "sixteen-letters0" },
			"host lb interface sixteen-letters0: Name: has 16 characters, at most 15 are allowed"},
		{"interface name", func(t *Topology) { t.Host("lb").Interfaces[0].Name = "../x" },
			`host lb interface ../x: Name: "../x" is not an interface name`},
		{"duplicate interface", func(t *Topology) { t.Host("gw10").Interfaces[1].Name = "eth0" },
			"host gw10 interface eth0: Name: used twice on this host"},
		{"loopback", func(t *Topology) { t.Host("lb").Interfaces[0].Name = "lo" },
			"host lb interface lo: Name: used twice on this host"},
		{"MTU", func(t *Topology) { t.Host("lb").Interfaces[0].MTU = 67 }, "host lb interface eth0: MTU: 67 is not within 68 to 65535"},
		{"foreign address", func(t *Topology) { t.Host("lb").Interfaces[0].Addrs = prefixes("192.168.10.253/24", "10.5.0.1/16") },
			"host lb interface eth0: Addrs: 10.5.0.1/16 is outside of net lan10 (192.168.10.0/24)"},
		{"shorter prefix length", func(t *Topology) { t.Host("lb").Interfaces[0].Addrs = prefixes("192.168.10.253/16") },
			"host lb interface eth0: Addrs: 192.168.10.253/16 is outside of net lan10 (192.168.10.0/24)"},
		{"invalid address", func(t *Topology) {
			t.Host("lb").Interfaces[0].Addrs = append(t.Host("lb").Interfaces[0].Addrs, netip.Prefix{})
		}, "host lb interface eth0: Addrs: invalid Prefix is not an address with prefix length"},
		{"address twice", func(t *Topology) { t.Host("lb").Interfaces[0].Addrs = prefixes("192.168.10.101/24") },
			"host master01 interface eth0: Addrs: 192.168.10.101 is already the address of host lb"},
		{"far gateway", func(t *Topology) { t.Host("lb").Gateways[0] = netip.MustParseAddr("192.168.20.1") },
			"host lb: Gateways: 192.168.20.1 is on no link of this host"},
		{"own gateway", func(t *Topology) { t.Host("lb").Gateways[0] = netip.MustParseAddr("192.168.10.253") },
			"host lb: Gateways: 192.168.10.253 is on no link of this host"},
		{"two gateways", func(t *Topology) {
			t.Host("lb").Gateways = append(t.Host("lb").Gateways, netip.MustParseAddr("192.168.10.101"))
		}, "host lb: Gateways: 192.168.10.101 is the second default route of its address family"},
		{"far next hop", func(t *Topology) {
			t.Host("lb").Routes = []Route{{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParseAddr("10.4.0.90")}}
		}, "host lb: Routes: 10.0.0.0/8 via 10.4.0.90: the next hop is on no link of this host"},
		{"mixed route", func(t *Topology) {
			t.Host("lb").Routes = []Route{{netip.MustParsePrefix("fd00::/8"), netip.MustParseAddr("192.168.10.1")}}
		}, "host lb: Routes: fd00::/8 via 192.168.10.1 mixes address families"},
		{"route not masked", func(t *Topology) {
			t.Host("lb").Routes = []Route{{netip.MustParsePrefix("10.1.0.0/8"), netip.MustParseAddr("192.168.10.1")}}
		}, "host lb: Routes: 10.1.0.0/8 is not a prefix in masked form"},
		{"NAT out of nothing", func(t *Topology) { t.Host("lb").NAT = []NAT{{Out: "wan0"}} }, `host lb: NAT: no interface "wan0"`},
		{"NAT of a kind that is none", func(t *Topology) { t.Host("lb").NAT = []NAT{{Out: "eth0", Ports: 7}} },
			"host lb: NAT: no port mapping 7"},
		{"foreign sysctl", func(t *Topology) { t.Host("lb").Sysctls = map[string]string{"kernel.hostname": "x"} },
			`host lb: Sysctls: "kernel.hostname" is not a setting below net`},
		{"sysctl that climbs", func(t *Topology) { t.Host("lb").Sysctls = map[string]string{"net/../kernel/hostname": "x"} },
			`host lb: Sysctls: "net/../kernel/hostname" is not a setting below net`},
	} {
		t.Run(c.name, func(t *testing.T) {
			topology := Reference()
			c.damage(&topology)
			err := topology.Validate()
			if err == nil {
				t.Fatalf("valid, want %q", c.want)
			}
			if got := strings.Split(err.Error(), "\n"); got[0] != c.want && !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %q\nwant %q", got, c.want)
			}
			var fault *TopologyError
			if !errors.As(err, &fault) || fault.Object == "" || fault.Field == "" {
				t.Errorf("got %#v, want a TopologyError with object and field", err)
			}
		})
	}
}

func TestValidateRefusesIPv6AddressOnHostWithoutIPv6(t *testing.T) {
	topology := Reference6()
	topology.Host("lb").NoIPv6 = true
	want := "host lb interface eth0: Addrs: fd10:0:0:10::253/64 on a host with NoIPv6"
	if err := topology.Validate(); err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
}

func TestValidateReportsAllFaultsAtOnce(t *testing.T) {
	topology := Reference()
	topology.Host("lb").Interfaces[0].MTU = -1
	topology.Host("gw30").NAT = []NAT{{Out: "eth7"}}
	err := topology.Validate()
	if err == nil || !strings.Contains(err.Error(), "host lb") || !strings.Contains(err.Error(), "host gw30") {
		t.Errorf("got %v, want faults of lb and gw30", err)
	}
}

func prefixes(s ...string) []netip.Prefix {
	var p []netip.Prefix
	for _, s := range s {
		p = append(p, netip.MustParsePrefix(s))
	}
	return p
}
