package hostnet

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func fullJournal() *journal {
	return &journal{
		link:      "pm0",
		addresses: []netip.Prefix{netip.MustParsePrefix("fd5e::1/128"), netip.MustParsePrefix("10.5.0.1/32")},
		lan: []lanRoute{
			{netip.MustParsePrefix("10.128.1.0/24"), netip.MustParseAddr("192.168.10.101"), "lan0"},
			{netip.MustParsePrefix("fd00:128:1::/64"), netip.MustParseAddr("fd10::101"), "lan0"},
		},
		settings: []change{
			{"net/ipv6/conf/wan0/accept_ra", "1", "2"},
			{"net/ipv6/conf/default/forwarding", "0", "1"},
			{"net/ipv6/conf/all/forwarding", "0", "1"},
			{"net/ipv6/conf/lan0/force_forwarding", "0", "1"},
			{"net/ipv4/conf/eth0.100/forwarding", "0", "1"},
		},
	}
}

func TestJournalSurvivesItsEncoding(t *testing.T) {
	for _, j := range []*journal{fullJournal(), {link: "x"}} {
		got, err := decodeJournal(j.encode())
		if err != nil {
			t.Fatalf("decode: %v\n%s", err, j.encode())
		}
		if diff := cmp.Diff(j, got, cmp.AllowUnexported(journal{}, change{}), cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
			cmp.Comparer(func(a, b lanRoute) bool { return a == b })); diff != "" {
			t.Errorf("journal (-want +got):\n%s", diff)
		}
	}
}

// sealed appends the right checksum to lines that an attacker chose.
func sealed(lines ...string) []byte {
	text := strings.Join(lines, "\n") + "\n"
	return fmt.Appendf(nil, "%ssum %x\n", text, sha256.Sum256([]byte(text)))
}

func TestJournalRefusesWhatItWouldNotWrite(t *testing.T) {
	good := fullJournal().encode()
	tests := []struct {
		name string
		data []byte
	}{
		{"empty", nil},
		{"cut off", good[:len(good)-1]},
		{"a line is missing", bytes.Replace(good, []byte("set net/ipv6/conf/all/forwarding 0 1\n"), nil, 1)},
		{"a value differs", bytes.Replace(good, []byte("accept_ra 1 2"), []byte("accept_ra 0 2"), 1)},
		{"binary", bytes.Repeat([]byte{0}, 4096)},
		{"too long", bytes.Repeat([]byte("x"), journalLimit+1)},
		{"later version", sealed("planetmesh host journal 2", "link pm0")},
		{"no link", sealed(journalHeader)},
		{"two links", sealed(journalHeader, "link pm0", "link pm1")},
		{"setting outside the network", sealed(journalHeader, "link pm0", "set kernel/core_pattern 0 1")},
		{"setting of another kind", sealed(journalHeader, "link pm0", "set net/ipv4/conf/lan0/rp_filter 0 1")},
		{"global IPv4 forwarding", sealed(journalHeader, "link pm0", "set net/ipv4/conf/all/forwarding 0 1")},
		{"path upwards", sealed(journalHeader, "link pm0", "set net/ipv4/conf/../forwarding 0 1")},
		{"longer path", sealed(journalHeader, "link pm0", "set net/ipv4/conf/a/b/forwarding 0 1")},
		{"value that is not a number", sealed(journalHeader, "link pm0", "set net/ipv4/conf/lan0/forwarding 0 |sh")},
		{"number in another form", sealed(journalHeader, "link pm0", "set net/ipv4/conf/lan0/forwarding 0 01")},
		{"bad address", sealed(journalHeader, "link pm0", "address fd00::1")},
		{"other order", sealed(journalHeader, "address fd00::1/128", "link pm0")},
		{"route without a link", sealed(journalHeader, "link pm0", "route 10.128.1.0/24 192.168.10.101 ")},
		{"route with host bits", sealed(journalHeader, "link pm0", "route 10.128.1.1/24 192.168.10.101 lan0")},
		{"default route", sealed(journalHeader, "link pm0", "route 0.0.0.0/0 192.168.10.101 lan0")},
		{"route of two families", sealed(journalHeader, "link pm0", "route 10.128.1.0/24 fd10::1 lan0")},
		{"route in another form", sealed(journalHeader, "link pm0", "route fd00:0::/64 fd10::1 lan0")},
		{"unknown line", sealed(journalHeader, "link pm0", "run rm")},
		{"checksum twice", append(good, good[len(good)-69:]...)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if j, err := decodeJournal(tt.data); err == nil {
				t.Errorf("accepted as %+v", j)
			}
		})
	}
}

func FuzzDecodeJournal(f *testing.F) {
	f.Add(fullJournal().encode())
	f.Add((&journal{link: "x"}).encode())
	f.Add(sealed(journalHeader, "link pm0", "set net/ipv4/conf/lan0/forwarding 0 1"))
	f.Add(sealed(journalHeader, "link pm0", "route 10.128.1.0/24 192.168.10.101 lan0"))
	f.Add(sealed(journalHeader, "link pm0", "set kernel/core_pattern 0 1"))
	f.Add([]byte("planetmesh host journal 1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		// The fuzzer cannot guess a checksum, so it gets the right one as well.
		for _, b := range [][]byte{data, sealed(strings.TrimSuffix(string(data), "\n"))} {
			j, err := decodeJournal(b)
			if err != nil {
				continue
			}
			if !bytes.Equal(j.encode(), b) {
				t.Errorf("%q is accepted, but its encoding is %q", b, j.encode())
			}
			for _, c := range j.settings {
				if !strings.HasPrefix(string(c.key), "net/ipv") || strings.Contains(string(c.key), "..") {
					t.Errorf("setting %q is accepted", c.key)
				}
			}
		}
	})
}

func TestRouterAdvertisementsAreRestoredLast(t *testing.T) {
	j := &journal{link: "pm0"}
	for _, k := range []setting{"net/ipv6/conf/a/accept_ra", "net/ipv6/conf/a/forwarding", allForwarding6, "net/ipv6/conf/b/accept_ra", "net/ipv6/conf/a/accept_ra"} {
		j.note(wish{key: k, value: "2"}, "1")
	}
	var got []string
	for _, c := range j.settings {
		got = append(got, string(c.key))
	}
	want := []string{"net/ipv6/conf/a/accept_ra", "net/ipv6/conf/b/accept_ra", "net/ipv6/conf/a/forwarding", "net/ipv6/conf/all/forwarding"}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("order of the journal (-want +got):\n%s", diff)
	}
}

func TestDesiredNamesAllFaultsAtOnce(t *testing.T) {
	p := netip.MustParsePrefix
	d := Desired{
		MTU:       1000,
		Addresses: []netip.Prefix{p("fd5e::1/128"), p("::ffff:10.0.0.1/128"), {}},
		Routes: []Route{
			{Prefix: p("10.1.2.3/8")},
			{Prefix: p("224.0.0.0/4")},
			{Prefix: p("fe80::/64")},
			{Prefix: p("192.168.1.0/24"), Source: netip.MustParseAddr("fd00::1")},
			{Prefix: p("192.168.2.0/24"), MTU: 70000},
			{Prefix: p("192.168.3.0/24")},
			{Prefix: p("192.168.3.0/24")},
		},
		LAN: []LANRoute{
			{p("0.0.0.0/0"), netip.MustParseAddr("192.168.10.1")},
			{p("10.128.1.0/24"), netip.MustParseAddr("fd10::1")},
			{p("10.128.2.0/24"), netip.MustParseAddr("10.128.2.1")},
			{p("fd00::/64"), netip.MustParseAddr("fe80::1")},
			{p("10.128.3.0/24"), netip.Addr{}},
			{p("10.128.4.0/24"), netip.MustParseAddr("192.168.10.1")},
			{p("10.128.4.0/24"), netip.MustParseAddr("192.168.10.2")},
		},
		Forward: []string{"lan0", "../x", "all"},
	}
	err := d.validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		"mtu 1000: ipv6 needs", "address ::ffff:10.0.0.1/128", "address invalid Prefix",
		"route 10.1.2.3/8: not a prefix", "route 224.0.0.0/4", "route fe80::/64", "source fd00::1 does not fit",
		"route 0.0.0.0/0 via 192.168.10.1: a default route", "via fd10::1: of different families",
		"via 10.128.2.1: the host is inside", "via fe80::1: not the address of one host", "via invalid IP: not the address",
		"route 10.128.4.0/24: given twice",
		"mtu 70000", "route 192.168.3.0/24: given twice", `forward "../x"`, `forward "all"`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q:\n%v", want, err)
		}
	}
	good := Desired{MTU: 1420, Addresses: d.Addresses[:1], Routes: []Route{
		{Prefix: p("192.168.3.0/24"), Source: netip.MustParseAddr("10.0.0.1"), MTU: 1400}, {Prefix: p("fd20::/48")},
	}, Forward: []string{"lan0", "eth0.100"}}
	if err := good.validate(); err != nil {
		t.Errorf("refused: %v", err)
	}
}

func TestOpenRefusesBadConfig(t *testing.T) {
	for _, cfg := range []Config{
		{},
		{Link: "pm0"},
		{Link: "all", Journal: "/x/j"},
		{Link: "a/b", Journal: "/x/j"},
		{Link: "sixteen-letters-", Journal: "/x/j"},
		{Link: "pm0", Journal: "/x/../j"},
	} {
		if h, err := Open(cfg); err == nil {
			_ = h.Close()
			t.Errorf("Open(%+v) succeeded", cfg)
		}
	}
}

func TestErrClosedIsNetErrClosed(t *testing.T) {
	if !errors.Is(ErrClosed, net.ErrClosed) {
		t.Error("ErrClosed does not match net.ErrClosed")
	}
}
