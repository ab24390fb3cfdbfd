package overlay

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/overlay/internal/hostnet"
)

func TestAttachmentsAreCheckedAsAWhole(t *testing.T) {
	addr := netip.MustParseAddr
	good := Attachment{Interface: "ov-r30", MTU: 1500, ClampMTU: 1400, Local: []netip.Addr{addr("10.90.0.1")}, Peers: []netip.Addr{addr("10.90.0.2")}}
	if err := validateAttachments([]Attachment{good}, "pm0"); err != nil {
		t.Error(err)
	}
	bad := []Attachment{
		{Interface: "pm0", MTU: 1500}, good, good, {Interface: "an-interface-name", MTU: 1500}, {Interface: "a", MTU: 100},
		{Interface: "b", MTU: 1000, Local: []netip.Addr{addr("fd90::1")}}, {Interface: "c", MTU: 1500, ClampMTU: 1501},
		{Interface: "d", MTU: 1500, Peers: []netip.Addr{addr("0.0.0.0")}}, {Interface: "e", MTU: 1500, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/8")}},
	}
	err := validateAttachments(bad, "pm0")
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{
		`"pm0": interface is in use`, `"ov-r30": interface is in use`, `"an-interface-name": not the name`, `"a": mtu 100`, `"b": mtu 1000`,
		`"c": clamp to mtu 1501`, `"d": address 0.0.0.0`, `"e": prefix 10.0.0.1/8`,
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %s: %v", want, err)
		}
	}
}

func TestAttachmentBecomesAddressesAndRoutes(t *testing.T) {
	addr, prefix := netip.MustParseAddr, netip.MustParsePrefix
	a := Attachment{
		Interface: "ov-r30", MTU: 1500,
		Local: []netip.Addr{addr("10.90.0.1"), addr("fd90::1")}, Peers: []netip.Addr{addr("10.90.0.2"), addr("fd90::2")},
		Prefixes: []netip.Prefix{prefix("192.168.30.0/24"), prefix("2001:db8:30::/64")},
	}
	four := hostnet.Desired{
		MTU:       1500,
		Addresses: []netip.Prefix{prefix("10.90.0.1/32")},
		Routes: []hostnet.Route{
			{Prefix: prefix("10.90.0.2/32"), Source: addr("10.90.0.1")},
			{Prefix: prefix("192.168.30.0/24"), Source: addr("10.90.0.1")},
		},
	}
	both := hostnet.Desired{
		MTU:       1500,
		Addresses: []netip.Prefix{prefix("10.90.0.1/32"), prefix("fd90::1/128")},
		Routes: []hostnet.Route{
			{Prefix: prefix("10.90.0.2/32"), Source: addr("10.90.0.1")},
			{Prefix: prefix("fd90::2/128"), Source: addr("fd90::1")},
			{Prefix: prefix("192.168.30.0/24"), Source: addr("10.90.0.1")},
			{Prefix: prefix("2001:db8:30::/64"), Source: addr("fd90::1")},
		},
	}
	compare := cmpopts.EquateComparable(netip.Addr{}, netip.Prefix{})
	if diff := cmp.Diff(both, a.desired(true), compare); diff != "" {
		t.Errorf("with IPv6 (-want +got):\n%s", diff)
	}
	if diff := cmp.Diff(four, a.desired(false), compare); diff != "" {
		t.Errorf("without IPv6 (-want +got):\n%s", diff)
	}
}

func TestNobodyIsToldTheAddressOfAnAttachment(t *testing.T) {
	at := func(name, p string) hostnet.Interface {
		return hostnet.Interface{Name: name, Up: true, Addresses: []hostnet.Address{{Prefix: netip.MustParsePrefix(p)}}}
	}
	f := hostnet.Facts{Interfaces: []hostnet.Interface{at("eth0", "10.4.0.93/16"), at("ov-r30", "10.90.0.1/32")}}
	got := withoutAttached(f, []Attachment{{Interface: "ov-r30"}}).Candidates()
	if want := []netip.Addr{netip.MustParseAddr("10.4.0.93")}; !cmp.Equal(want, got, cmpopts.EquateComparable(netip.Addr{})) {
		t.Errorf("candidates %v, want %v", got, want)
	}
	if len(f.Interfaces) != 2 {
		t.Error("facts were changed in place")
	}
}

func TestAttachmentsNeedATUNDevice(t *testing.T) {
	h := new(quietHost)
	if err := h.attach(nil); err != nil {
		t.Error(err)
	}
	if err := h.attach([]Attachment{{Interface: "a"}}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("error %v, want ErrUnsupported", err)
	}
}
