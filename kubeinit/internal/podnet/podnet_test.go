package podnet

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

var update = flag.Bool("update", false, "write golden files anew")

// golden compares got with a file of testdata, which -update writes.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), string(got)); diff != "" {
		t.Errorf("%s: %s", name, diff)
	}
}

var (
	pfx  = netip.MustParsePrefix
	addr = netip.MustParseAddr
)

// network has three sites; node03 is the gateway of its own, and nobody runs
// meshd on a node otherwise.
func network() Network {
	return Network{
		Cluster: "planet", Supernet: pfx("10.128.0.0/14"), Services: pfx("10.96.0.0/16"), MTU: 1380,
		Sites: []Site{
			{Name: "s10", LANs: []netip.Prefix{pfx("192.168.10.0/24")}, Block: pfx("10.128.0.0/20"), Gateway: addr("192.168.10.1")},
			{Name: "s20", LANs: []netip.Prefix{pfx("192.168.20.0/24")}, Block: pfx("10.128.16.0/20"), Gateway: addr("192.168.20.1"), Foreign: []netip.Prefix{pfx("172.20.0.0/16")}},
			{Name: "s30", LANs: []netip.Prefix{pfx("192.168.30.0/24"), pfx("192.168.31.0/24")}, Block: pfx("10.128.32.0/20"), Gateway: addr("192.168.30.101")},
		},
		Nodes: []Node{
			{"node02", "s20", addr("192.168.20.102"), pfx("10.128.17.0/24")},
			{"master01", "s10", addr("192.168.10.101"), pfx("10.128.0.0/24")},
			{"node01", "s20", addr("192.168.20.101"), pfx("10.128.16.0/24")},
			{"node03", "s30", addr("192.168.30.101"), pfx("10.128.32.0/24")},
			{"node04", "s30", addr("192.168.30.102"), pfx("10.128.33.0/24")},
		},
	}
}

// six is all IPv6.
func six() Network {
	return Network{
		Cluster: "six", Supernet: pfx("fd00:128::/32"), Services: pfx("fd00:96::/112"), MTU: 1400,
		Sites: []Site{
			{Name: "a", LANs: []netip.Prefix{pfx("2001:db8:a::/64")}, Block: pfx("fd00:128:a::/48"), Gateway: addr("2001:db8:a::1")},
			{Name: "b", LANs: []netip.Prefix{pfx("2001:db8:b::/64")}, Block: pfx("fd00:128:b::/48"), Gateway: addr("2001:db8:b::1")},
		},
		Nodes: []Node{
			{"a1", "a", addr("2001:db8:a::a1"), pfx("fd00:128:a:1::/64")},
			{"a2", "a", addr("2001:db8:a::a2"), pfx("fd00:128:a:2::/64")},
			{"b1", "b", addr("2001:db8:b::b1"), pfx("fd00:128:b:1::/64")},
		},
	}
}

func TestFilesOfNodes(t *testing.T) {
	for _, tt := range []struct {
		n    Network
		node string
	}{{network(), "node01"}, {network(), "node03"}, {six(), "a1"}} {
		files, err := Files(tt.n, tt.node)
		if err != nil {
			t.Fatal(err)
		}
		var all strings.Builder
		for _, f := range files {
			if f.Data[len(f.Data)-1] != '\n' || !strings.HasSuffix(f.Path, ".conflist") && !strings.Contains(string(f.Data), header) {
				t.Errorf("%s: no header or no end", f.Path)
			}
			fmt.Fprintf(&all, "==> %s %v\n%s", f.Path, f.Mode, f.Data)
		}
		golden(t, tt.node+".txt", []byte(all.String()))
		if files[len(files)-1].Path != ConflistFile {
			t.Errorf("a node would be Ready before %s is there", files[len(files)-1].Path)
		}
	}
}

func TestRoutesOfAnAloneSiteHaveNoGateway(t *testing.T) {
	n := network()
	n.Sites[1].Gateway = netip.Addr{}
	got, err := Routes(n, "node01")
	want := []Route{{Prefix: pfx("10.128.16.0/24")}, {Prefix: pfx("10.128.17.0/24"), Via: addr("192.168.20.102")}}
	if diff := cmp.Diff(want, got, cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }), cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestOrderOfInputMakesNoDifference(t *testing.T) {
	a, b := network(), network()
	slices.Reverse(b.Nodes)
	slices.Reverse(b.Sites)
	fa, _ := Files(a, "node01")
	fb, err := Files(b, "node01")
	if diff := cmp.Diff(fa, fb); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestMarkFollowsRoutesAndTable(t *testing.T) {
	mark := func(change func(*Network)) string {
		n := network()
		change(&n)
		f, err := Files(n, "node01")
		if err != nil {
			t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(f[1].Data), "comment \"kubeinit ")
		rest, _, _ = strings.Cut(rest, "\"")
		if len(rest) != 16 || !strings.Contains(string(f[2].Data), rest) {
			t.Fatalf("mark %q", rest)
		}
		return rest
	}
	plain := mark(func(*Network) {})
	if mark(func(n *Network) { n.Services = pfx("10.97.0.0/16") }) == plain || mark(func(n *Network) { n.MTU = 1300 }) == plain || mark(func(*Network) {}) != plain {
		t.Error("the mark does not follow the contents")
	}
}

func TestRouteSets(t *testing.T) {
	for _, site := range []string{"s20", "s30"} {
		set, err := RouteSetOf(network(), site)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "routeset-"+site+".json", set.JSON())
		var again RouteSet
		if err := json.Unmarshal(set.JSON(), &again); err != nil {
			t.Error(err)
		}
	}
	if _, err := RouteSetOf(network(), "s40"); err == nil {
		t.Error("route set of nowhere")
	}
	if got := RouteSetName("planet"); got != "kubeinit-planet" {
		t.Error(got)
	}
}

func TestInstructionsForOpenVPN(t *testing.T) {
	o := OpenVPN{Gateway: "gw30a", Attachment: "r30a", Prefixes: []netip.Prefix{pfx("192.168.30.0/24"), pfx("192.168.31.0/24")}, Interface: "vtun0"}
	n := network()
	n.Sites[2].Gateway = addr("192.168.30.1")
	for _, vyos := range []bool{true, false} {
		o.VyOS = vyos
		got, err := Instructions(n, "s30", o)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, fmt.Sprintf("openvpn-vyos-%v.txt", vyos), []byte(got))
	}
	o.VyOS = true
	got, err := Instructions(six(), "b", o)
	if err != nil || !strings.Contains(got, "set protocols static route6 fd00:128:b:1::/64 next-hop 2001:db8:b::b1") {
		t.Error(err, got)
	}
}

func TestNetworksThatCannotWork(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Network)
		want   string
	}{
		{"mtu", func(n *Network) { n.MTU = 500 }, "mtu 500"},
		{"supernet", func(n *Network) { n.Supernet = pfx("10.128.0.1/14") }, "pod supernet"},
		{"services", func(n *Network) { n.Services = netip.Prefix{} }, "service subnet"},
		{"block outside", func(n *Network) { n.Sites[0].Block = pfx("10.132.0.0/20") }, "does not lie in 10.128.0.0/14"},
		{"blocks overlap", func(n *Network) { n.Sites[0].Block = pfx("10.128.0.0/19") }, "site s10 and the pod block of site s20 overlap"},
		{"range outside", func(n *Network) { n.Nodes[0].Range = pfx("10.128.0.0/24") }, "does not lie in 10.128.16.0/20"},
		{"ranges overlap", func(n *Network) { n.Nodes[0].Range = pfx("10.128.16.0/23") }, "node02 and the range of node node01 overlap"},
		{"range too small", func(n *Network) { n.Nodes[0].Range = pfx("10.128.17.0/31") }, "room for pods"},
		{"address elsewhere", func(n *Network) { n.Nodes[0].Address = addr("192.168.10.2") }, "no LAN of site s20"},
		{"gateway elsewhere", func(n *Network) { n.Sites[0].Gateway = addr("192.168.20.1") }, "in none of its LANs"},
		{"pods over a LAN", func(n *Network) { n.Supernet = pfx("0.0.0.0/0") }, "the pod supernet and a LAN of site s10 overlap"},
		{"services over a LAN", func(n *Network) { n.Services = pfx("192.168.0.0/16") }, "service subnet and a LAN"},
		{"two sites with one LAN", func(n *Network) { n.Sites[0].LANs = n.Sites[1].LANs }, "a LAN of site s10 and a LAN of site s20"},
		{"no site", func(n *Network) { n.Nodes[0].Site = "s99" }, `no site "s99"`},
		{"twice", func(n *Network) { n.Nodes[0].Name = "node01" }, "twice"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := network()
			tt.change(&n)
			for _, err := range []error{n.Check(), func() error { _, err := Files(n, "node01"); return err }()} {
				if err == nil || !strings.Contains(err.Error(), tt.want) {
					t.Errorf("got %v, want %q", err, tt.want)
				}
			}
		})
	}
	if _, err := Files(network(), "node99"); err == nil {
		t.Error("files of a node that is not there")
	}
}
