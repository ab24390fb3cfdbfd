package fw

import (
	"net/netip"
	"strings"
	"testing"
)

func TestLinkNamesThatCouldBecomeCommandsAreRefused(t *testing.T) {
	for _, good := range []string{"pm0", "eth0.100", "mesh-a", "fifteen-letters", "wg_1", "a@b"} {
		if err := checkLink(good); err != nil {
			t.Errorf("checkLink(%q) = %v", good, err)
		}
	}
	for _, bad := range []string{"", ".", "..", "sixteen-letters-", "a b", "a/b", `a"b`, "a'b", "$(id)", "a;id", "a|b", "a`b", "pm*", "ä", "a\nb"} {
		if checkLink(bad) == nil {
			t.Errorf("checkLink(%q) accepts it", bad)
		}
		if _, err := Open(Config{Link: bad}); err == nil {
			t.Errorf("Open accepts link %q", bad)
		}
		if _, err := Diagnose(bad); err == nil {
			t.Errorf("Diagnose accepts link %q", bad)
		}
	}
}

func TestDesiredIsChecked(t *testing.T) {
	good := Desired{MTU: 1420, Restrict: true, Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}}
	if err := good.validate(); err != nil {
		t.Error(err)
	}
	bad := Desired{MTU: 100, Attached: []Attached{{"ov-a", 500}, {"ov$a", 1500}}, Prefixes: []netip.Prefix{{}, netip.MustParsePrefix("10.0.0.1/8"), netip.MustParsePrefix("::ffff:10.0.0.0/104")}}
	err := bad.validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, want := range []string{"mtu 100", "mtu 500 of ov-a", `link "ov$a"`, "prefix invalid Prefix", "prefix 10.0.0.1/8", "prefix ::ffff:10.0.0.0/104"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %q: %v", want, err)
		}
	}
}

func TestCommentTellsDesiredStatesApart(t *testing.T) {
	p := netip.MustParsePrefix
	seen := make(map[string]Desired)
	for _, d := range []Desired{
		{}, {MTU: 1420}, {MTU: 1400}, {Restrict: true}, {Restrict: true, MTU: 1420},
		{Restrict: true, Prefixes: []netip.Prefix{p("10.0.0.0/8")}}, {Restrict: true, Prefixes: []netip.Prefix{p("10.0.0.0/9")}},
		{Attached: []Attached{{"ov-a", 1500}}}, {Attached: []Attached{{"ov-b", 1500}}}, {Attached: []Attached{{"ov-a", 1400}}},
	} {
		c := d.comment(1, 4)
		if other, ok := seen[c]; ok {
			t.Errorf("%+v and %+v have the comment %q", d, other, c)
		}
		if !strings.HasPrefix(c, commentPrefix) || len(c) > 120 { // nft refuses more than 128 bytes
			t.Errorf("comment %q", c)
		}
		seen[c] = d
	}
}
