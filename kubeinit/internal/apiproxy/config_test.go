package apiproxy

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const sample = `{
  "listen": ["127.0.0.1:7443", "[::1]:7443"],
  "upstreams": [
    {"address": "192.168.10.101:6443", "name": "master01", "ownHost": true, "ownSite": true},
    {"address": "[2001:db8::2]:6443"}
  ],
  "learned": "/etc/kubeinit/apiproxy-learned.json",
  "ca": "/etc/kubernetes/pki/ca.crt",
  "status": "/run/kubeinit-apiproxy/status.sock",
  "maxPerSource": 7
}`

var compareNetip = cmp.Options{
	cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
}

func TestParseConfig(t *testing.T) {
	got, err := ParseConfig([]byte(sample))
	want := Config{
		Listen: []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:7443"), netip.MustParseAddrPort("[::1]:7443")},
		Upstreams: []Upstream{
			{Address: netip.MustParseAddrPort("192.168.10.101:6443"), Name: "master01", OwnHost: true, OwnSite: true},
			{Address: netip.MustParseAddrPort("[2001:db8::2]:6443")},
		},
		Learned: LearnedFile, CA: "/etc/kubernetes/pki/ca.crt", Status: StatusSocket,
		MaxConnections: 4096, MaxPerSource: 7,
	}
	if diff := cmp.Diff(want, got, compareNetip); err != nil || diff != "" {
		t.Error(err, diff)
	}
	again, err := ParseConfig(got.JSON())
	if diff := cmp.Diff(got, again, compareNetip); err != nil || diff != "" {
		t.Error(err, diff)
	}
}

func TestFilesThatAreRefused(t *testing.T) {
	many := strings.TrimSuffix(strings.Repeat(`{"address": "10.0.0.1:6443"},`, 65), ",")
	for name, tt := range map[string]struct{ file, want string }{
		"empty":               {"", "EOF"},
		"two":                 {sample + "{}", "nothing after it"},
		"unknown key":         {`{"listn": []}`, "listn"},
		"nothing to listen":   {`{"upstreams": [{"address": "10.0.0.1:6443"}]}`, "listen: 0 addresses"},
		"no upstream":         {`{"listen": ["127.0.0.1:1"]}`, "at least one"},
		"port 0":              {`{"listen": ["127.0.0.1:0"], "upstreams": [{"address": "10.0.0.1:6443"}]}`, "listen: 127.0.0.1:0"},
		"twice":               {`{"listen": ["127.0.0.1:1"], "upstreams": [{"address": "10.0.0.1:6443"}, {"address": "10.0.0.1:6443"}]}`, "once"},
		"everywhere":          {`{"listen": ["127.0.0.1:1"], "upstreams": [{"address": "0.0.0.0:6443"}]}`, "to connect to"},
		"a name":              {`{"listen": ["127.0.0.1:1"], "upstreams": [{"address": "api:6443"}]}`, "api"},
		"itself":              {`{"listen": ["127.0.0.1:1"], "upstreams": [{"address": "127.0.0.1:1"}]}`, "itself listens"},
		"relative path":       {`{"listen": ["127.0.0.1:1"], "upstreams": [{"address": "10.0.0.1:6443"}], "ca": "ca.crt"}`, "absolute"},
		"negative":            {`{"listen": ["127.0.0.1:1"], "upstreams": [{"address": "10.0.0.1:6443"}], "maxConnections": -1}`, "negative"},
		"too many":            {`{"listen": ["127.0.0.1:1"], "upstreams": [` + many + `]}`, "at most 64"},
		"too long":            {strings.Repeat(" ", maxFile+1), "at most 65536"},
		"two faults together": {`{"listen": ["127.0.0.1:1"], "status": "x"}`, "absolute path"},
	} {
		if _, err := ParseConfig([]byte(tt.file)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
	if _, err := ParseLearned([]byte(`{"upstreams": [{"address": "224.0.0.1:6443"}]}`)); err == nil {
		t.Error("a learned server that is a group")
	}
}

func TestLearnedServersCannotCrowdOutOrLoop(t *testing.T) {
	c, err := ParseConfig([]byte(sample))
	if err != nil {
		t.Fatal(err)
	}
	l := Learned{Upstreams: []Upstream{{Address: c.Listen[0]}, {Address: c.Upstreams[0].Address}}}
	for i := range 100 {
		l.Upstreams = append(l.Upstreams, Upstream{Address: netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, 0, byte(i)}), 6443)})
	}
	got := c.merged(l)
	if len(got) != maxUpstreams || got[0] != c.Upstreams[0] || got[1] != c.Upstreams[1] || got[2].Address != l.Upstreams[2].Address {
		t.Errorf("%d: %v", len(got), got[:3])
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte(sample))
	f.Add([]byte(`{"listen": null, "upstreams": [{}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := ParseConfig(b)
		if err != nil {
			return
		}
		again, err := ParseConfig(c.JSON())
		if diff := cmp.Diff(c, again, compareNetip); err != nil || diff != "" {
			t.Error(err, diff)
		}
	})
}

func FuzzParseLearned(f *testing.F) {
	f.Add([]byte(`{"upstreams": [{"address": "10.0.0.1:6443", "name": "x", "ownSite": true}]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := ParseLearned(b)
		if err != nil {
			return
		}
		for _, u := range l.Upstreams {
			if !u.Address.IsValid() || u.Address.Port() == 0 {
				t.Errorf("%v", u)
			}
		}
		if _, err := ParseLearned(l.JSON()); err != nil {
			t.Error(err)
		}
	})
}

func FuzzParseStatus(f *testing.F) {
	f.Add([]byte(`{"version": 1, "upstreams": [{"address": "10.0.0.1:6443", "state": "silent"}]}`))
	f.Add([]byte(`{"version": 2}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := ParseStatus(b)
		if err != nil {
			return
		}
		if _, err := ParseStatus(indented(s)); err != nil {
			t.Error(err)
		}
	})
}
