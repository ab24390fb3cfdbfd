package routeset

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/overlay"
)

var byValue = cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{}, overlay.LANRoute{})

func prefixes(texts ...string) []netip.Prefix {
	out := []netip.Prefix{}
	for _, text := range texts {
		out = append(out, netip.MustParsePrefix(text))
	}
	return out
}

// lan reads "PREFIX VIA" lines.
func lan(lines ...string) []overlay.LANRoute {
	out := []overlay.LANRoute{}
	for _, line := range lines {
		p, via, _ := strings.Cut(line, " ")
		out = append(out, overlay.LANRoute{Prefix: netip.MustParsePrefix(p), Via: netip.MustParseAddr(via)})
	}
	return out
}

func TestSetIsReadAndSorted(t *testing.T) {
	got, err := Parse("pods", []byte(`{"lan": [{"prefix": "10.128.2.0/24", "via": "192.168.10.102"}, {"via": "192.168.10.101", "prefix": "10.128.1.0/24"},
		{"prefix": "fd00:128:1::/64", "via": "fd10::101"}], "announce": ["fd00:128::/32", "10.128.0.0/18"]}`))
	want := Set{
		Name: "pods", Announce: prefixes("10.128.0.0/18", "fd00:128::/32"),
		LAN: lan("10.128.1.0/24 192.168.10.101", "10.128.2.0/24 192.168.10.102", "fd00:128:1::/64 fd10::101"),
	}
	if diff := cmp.Diff(want, got, byValue); err != nil || diff != "" {
		t.Errorf("set (-want +got), error %v:\n%s", err, diff)
	}
}

// many is a JSON list of n items.
func many(n int, item func(i int) string) string {
	var items []string
	for i := range n {
		items = append(items, item(i))
	}
	return "[" + strings.Join(items, ",") + "]"
}

func TestWrongSetsAreRefused(t *testing.T) {
	for _, tt := range []struct{ name, body, want string }{
		{"empty", ``, "want an object"},
		{"list", `["10.0.0.0/8"]`, "want an object"},
		{"null", `null`, "want an object"},
		{"nothing in it", `{}`, "nothing in it"},
		{"nothing in its lists", `{"announce": [], "lan": null}`, "nothing in it"},
		{"cut short", `{"announce": ["10.128.0.0/18"]`, "EOF"},
		{"two values", `{"announce": ["10.128.0.0/18"]} {}`, "something after the object"},
		{"unknown key", `{"anounce": ["10.128.0.0/18"]}`, `unknown key "anounce"`},
		{"key in capitals", `{"Announce": ["10.128.0.0/18"]}`, `unknown key "Announce"`},
		{"key twice", `{"announce": ["10.128.0.0/18"], "announce": []}`, `key "announce" is there twice`},
		{"unknown key within", `{"lan": [{"prefix": "10.128.1.0/24", "via": "192.168.10.1", "dev": "eth0"}]}`, `unknown key "dev"`},
		{"key twice within", `{"lan": [{"prefix": "10.128.1.0/24", "via": "192.168.10.1", "via": "192.168.10.2"}]}`, `key "via" is there twice`},
		{"outer key within", `{"lan": [{"announce": []}]}`, `unknown key "announce"`},
		{"object for a list", `{"announce": {"prefix": "10.128.0.0/18"}}`, "cannot unmarshal object"},
		{"deeper", `{"lan": [{"prefix": {"via": 1}}]}`, `unknown key "via"`},
		{"list in a list", `{"announce": [["10.128.0.0/18"]]}`, "a list within a list"},
		{"number", `{"announce": [10]}`, "cannot unmarshal number"},
		{"not a prefix", `{"announce": ["pods"]}`, `announce[0]: "pods": want a prefix`},
		{"address", `{"announce": ["10.128.0.0"]}`, "want a prefix"},
		{"host bits", `{"announce": ["10.128.0.1/18"]}`, "10.128.0.1/18 has host bits; want 10.128.0.0/18"},
		{"everything", `{"announce": ["0.0.0.0/0"]}`, "is everything"},
		{"mapped", `{"announce": ["::ffff:10.128.0.0/120"]}`, "want the IPv4 prefix"},
		{"twice", `{"announce": ["10.128.0.0/18", "10.128.0.0/18"]}`, "announce[1]: 10.128.0.0/18 overlaps 10.128.0.0/18"},
		{"overlap", `{"announce": ["10.128.1.0/24", "10.128.0.0/18"]}`, "10.128.0.0/18 overlaps 10.128.1.0/24"},
		{"route twice", `{"lan": [{"prefix": "10.128.1.0/24", "via": "192.168.10.1"}, {"prefix": "10.128.1.0/24", "via": "192.168.10.1"}]}`, "lan[1]: 10.128.1.0/24 is there twice"},
		{"route with host bits", `{"lan": [{"prefix": "10.128.1.1/24", "via": "192.168.10.1"}]}`, "lan[0]: prefix: 10.128.1.1/24 has host bits"},
		{"no next hop", `{"lan": [{"prefix": "10.128.1.0/24"}]}`, `lan[0]: 10.128.1.0/24: via "": want the address of a host`},
		{"link-local next hop", `{"lan": [{"prefix": "fd00::/64", "via": "fe80::1"}]}`, "want the address of a host"},
		{"next hop with zone", `{"lan": [{"prefix": "fd00::/64", "via": "fd10::1%eth0"}]}`, "want the address of a host"},
		{"loopback next hop", `{"lan": [{"prefix": "10.128.1.0/24", "via": "127.0.0.1"}]}`, "want the address of a host"},
		{"other family", `{"lan": [{"prefix": "10.128.1.0/24", "via": "fd10::1"}]}`, "same family"},
		{"inside", `{"lan": [{"prefix": "10.128.1.0/24", "via": "10.128.1.7"}]}`, "inside of what it leads to"},
		{"many prefixes", `{"announce": ` + many(MaxAnnounce+1, func(i int) string { return fmt.Sprintf(`"10.%d.0.0/16"`, i) }) + `}`, "want at most 64 and 256"},
		{"many routes", `{"lan": ` + many(MaxLAN+1, func(i int) string {
			return fmt.Sprintf(`{"prefix": "10.%d.%d.0/24", "via": "192.168.0.1"}`, i/256, i%256)
		}) + `}`, "257 routes"},
		{"all at once", `{"announce": ["x"], "lan": [{"prefix": "y", "via": "z"}]}`, `"y": want a prefix`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Parse("pods", []byte(tt.body))
			fault, ok := errors.AsType[*Fault](err)
			if !ok || !strings.Contains(fault.Reason, tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	for _, name := range []string{"", "Pods", "a b", "-a", "a-", "../a", "a/b", "ä", strings.Repeat("a", 64)} {
		if _, err := Parse(name, []byte(`{"announce": ["10.128.0.0/18"]}`)); err == nil || !strings.Contains(err.Error(), "not a name") {
			t.Errorf("name %q: error %v", name, err)
		}
	}
}

func TestFit(t *testing.T) {
	around := Around{
		Granted:   prefixes("192.168.10.0/24", "10.128.0.0/16", "10.130.0.0/16", "10.30.0.0/24"),
		Announced: prefixes("192.168.10.0/24", "10.128.0.0/16"),
		Attached:  []Attached{{Name: "r30", Prefixes: prefixes("10.30.0.0/24")}},
	}
	set := func(name string, announce []netip.Prefix, routes ...string) Set {
		return Set{Name: name, Announce: announce, LAN: lan(routes...)}
	}
	for _, tt := range []struct {
		name   string
		sets   []Set
		fits   string
		faults map[string]string
	}{
		{"alone", []Set{set("a", prefixes("10.130.0.0/18"), "10.130.1.0/24 192.168.10.101")}, "a", nil},
		{"within what the configuration announces", []Set{set("a", nil, "10.128.1.0/24 192.168.10.101")}, "a", nil},
		{"within what another set announces", []Set{set("a", nil, "10.130.1.0/24 192.168.10.101"), set("b", prefixes("10.130.0.0/16"))}, "a b", nil},
		{"not granted", []Set{set("a", prefixes("10.129.0.0/18"))}, "", map[string]string{"a": "10.129.0.0/18 is not granted"}},
		{"wider than granted", []Set{set("a", prefixes("10.0.0.0/8"))}, "", map[string]string{"a": "10.0.0.0/8 is not granted"}},
		{"route not granted", []Set{set("a", nil, "10.129.1.0/24 192.168.10.101")}, "", map[string]string{"a": "10.129.1.0/24 is not granted"}},
		{"route not announced", []Set{set("a", prefixes("10.130.0.0/18"), "10.130.64.0/24 192.168.10.101")}, "", map[string]string{"a": "not within anything"}},
		{"behind a router", []Set{set("a", prefixes("10.30.0.0/25"))}, "", map[string]string{"a": "of the attached router r30"}},
		{"same route, other hosts", []Set{set("a", nil, "10.128.1.0/24 192.168.10.101"), set("b", nil, "10.128.1.0/24 192.168.10.102")}, "a",
			map[string]string{"b": "route set a has it via 192.168.10.101"}},
		{"same route, same host", []Set{set("a", nil, "10.128.1.0/24 192.168.10.101"), set("b", nil, "10.128.1.0/24 192.168.10.101")}, "a b", nil},
		{"one takes another with it", []Set{set("a", nil, "10.130.1.0/24 192.168.10.101"), set("b", prefixes("10.130.0.0/16", "10.129.0.0/16"))}, "",
			map[string]string{"a": "not within anything", "b": "is not granted"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			fitting, problems := Fit(tt.sets, around)
			var names []string
			for _, s := range fitting {
				names = append(names, s.Name)
			}
			if got := strings.Join(names, " "); got != tt.fits {
				t.Errorf("fitting: %q, want %q (%v)", got, tt.fits, problems)
			}
			if len(problems) != len(tt.faults) {
				t.Errorf("problems %v, want %v", problems, tt.faults)
			}
			for name, want := range tt.faults {
				if err := problems[name]; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "route set "+name) {
					t.Errorf("problem of %s: %v, want %q", name, err, want)
				}
			}
		})
	}
	part := Around{Granted: around.Granted, Announced: prefixes("10.130.0.0/18")}
	if _, problems := Fit([]Set{set("a", prefixes("10.130.0.0/16"))}, part); problems["a"] == nil || !strings.Contains(problems["a"].Error(), "which is a part of it") {
		t.Errorf("set around a part that the configuration announces: %v", problems)
	}
	part.NoLAN = "no interface"
	if fitting, _ := Fit([]Set{set("a", nil, "10.130.1.0/24 192.168.10.101"), set("b", prefixes("10.130.0.0/24"))}, part); len(fitting) != 1 || fitting[0].Name != "b" {
		t.Errorf("without an interface: %v fit, want the one without routes", fitting)
	}
}

func TestSetsAreBoundedTogether(t *testing.T) {
	around := Around{Granted: prefixes("10.128.0.0/9"), Announced: prefixes("10.128.0.0/9")}
	var sets []Set
	for i := range MaxSets + 2 {
		sets = append(sets, Set{Name: fmt.Sprintf("s%02d", i), Announce: prefixes("10.128.0.0/16")})
	}
	if fitting, problems := Fit(sets, around); len(fitting) != MaxSets || len(problems) != 2 {
		t.Errorf("%d of %d sets fit", len(fitting), len(sets))
	}
	sets = nil
	for i := range 5 {
		s := Set{Name: fmt.Sprint("s", i)}
		for j := range MaxLAN {
			s.LAN = append(s.LAN, overlay.LANRoute{Prefix: netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(130 + i), byte(j), 0}), 24), Via: netip.MustParseAddr("192.168.10.7")})
		}
		sets = append(sets, s)
	}
	if fitting, _ := Fit(sets, around); len(LAN(fitting)) != MaxAllLAN {
		t.Errorf("%d routes fit, want %d", len(LAN(fitting)), MaxAllLAN)
	}
}

func TestMergeAnnouncesNothingTwice(t *testing.T) {
	sets := []Set{
		{Announce: prefixes("10.128.1.0/24", "10.129.0.0/24")}, {Announce: prefixes("10.128.0.0/16", "10.130.0.0/16")}, {Announce: prefixes("10.130.0.0/16")},
	}
	before := []overlay.Route{{Prefix: netip.MustParsePrefix("10.129.0.0/16"), Priority: 7}}
	var got []string
	for _, r := range Merge(before, sets) {
		got = append(got, fmt.Sprint(r.Prefix, " ", r.Priority))
	}
	if diff := cmp.Diff([]string{"10.129.0.0/16 7", "10.128.0.0/16 0", "10.130.0.0/16 0"}, got); diff != "" {
		t.Errorf("routes (-want +got):\n%s", diff)
	}
	if len(before) != 1 {
		t.Error("the list of the caller was changed")
	}
}

func TestStoreKeepsSets(t *testing.T) {
	store := new(overlay.MemStore)
	if got, err := Load(store); err != nil || len(got) != 0 {
		t.Errorf("nothing stored: %v, %v", got, err)
	}
	want := []Set{
		{Name: "a", Announce: prefixes("10.128.0.0/18"), LAN: lan("10.128.1.0/24 192.168.10.101")},
		{Name: "b", Announce: prefixes("10.129.0.0/18"), LAN: lan()},
	}
	if err := Save(store, []Set{want[1], want[0]}); err != nil {
		t.Fatal(err)
	}
	got, err := Load(store)
	if diff := cmp.Diff(want, got, byValue); err != nil || diff != "" {
		t.Errorf("stored (-want +got), error %v:\n%s", err, diff)
	}
	if err := Save(store, nil); err != nil {
		t.Fatal(err)
	}
	if got, err := Load(store); err != nil || len(got) != 0 {
		t.Errorf("none stored: %v, %v", got, err)
	}
	for _, damaged := range []string{
		"", "{}", `{"version":2,"sets":[]}`, `{"version":1,"sets":[{"name":"../a","announce":["10.0.0.0/16"]}]}`,
		`{"version":1,"sets":[{"name":"a","lan":[{"prefix":"0.0.0.0/0","via":"192.168.10.1"}]}]}`,
		`{"version":1,"sets":[{"name":"b","announce":["10.0.0.0/16"]},{"name":"a","announce":["10.0.0.0/16"]}]}`,
	} {
		if err := store.Save(File, []byte(damaged)); err != nil {
			t.Fatal(err)
		}
		if got, err := Load(store); !errors.Is(err, overlay.ErrStateCorrupt) {
			t.Errorf("%q: %v, %v, want ErrStateCorrupt", damaged, got, err)
		}
	}
}

// What is accepted says only what the checks allow, and survives its storage.
func FuzzParse(f *testing.F) {
	f.Add("pods", []byte(`{"announce": ["10.128.0.0/18"], "lan": [{"prefix": "10.128.1.0/24", "via": "192.168.10.101"}]}`))
	f.Add("a", []byte(`{"announce": ["fd00::/32"]}`))
	f.Add("a.b-c", []byte(`{"lan": [{"prefix": "fd00::/64", "via": "fd10::1"}], "announce": null}`))
	f.Add("a", []byte(`{"Announce": ["10.0.0.0/8"], "lan": [[]]}`))
	f.Add("a", []byte(`{"lan":[{"prefix":"0.0.0.0/0","via":"::1"}]}`))
	f.Fuzz(func(t *testing.T, name string, b []byte) {
		s, err := Parse(name, b)
		if err != nil {
			if _, ok := errors.AsType[*Fault](err); !ok {
				t.Errorf("error %T", err)
			}
			return
		}
		for i, p := range s.Announce {
			if p != p.Masked() || p.Bits() == 0 || i > 0 && s.Announce[i-1].Overlaps(p) {
				t.Errorf("accepted %v", s.Announce)
			}
		}
		for i, r := range s.LAN {
			if r.Prefix != r.Prefix.Masked() || r.Prefix.Contains(r.Via) || r.Via.Is4() != r.Prefix.Addr().Is4() || i > 0 && s.LAN[i-1].Prefix == r.Prefix {
				t.Errorf("accepted %v", s.LAN)
			}
		}
		stored, err := json.Marshal(stored{storedVersion, []Set{s}})
		if err != nil {
			t.Fatal(err)
		}
		again, err := decode(stored)
		if err != nil || len(again) != 1 || !again[0].Equal(s) || !slices.Equal(again[0].Announce, s.Announce) {
			t.Errorf("%s came back as %v, %v", stored, again, err)
		}
	})
}
