package haproxy

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
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

var addr = netip.MustParseAddr

func reference() Config {
	return Config{
		Listen: []netip.Addr{addr("192.168.10.253")},
		Servers: []Server{
			{Name: "master01", Address: addr("192.168.10.101")},
			{Name: "master02", Address: addr("192.168.10.102")},
			{Name: "master03", Address: addr("192.168.10.103")},
		},
	}
}

// everything has what reference leaves out.
func everything() Config {
	c := reference()
	c.Listen, c.Port, c.Check, c.Stats = nil, 7443, CheckTCP, 8404
	c.Servers[2].Address, c.Servers[2].Port = addr("2001:db8::3"), 6444
	return c
}

func TestConfigurations(t *testing.T) {
	for name, c := range map[string]Config{"reference.cfg": reference(), "everything.cfg": everything()} {
		got, err := Render(c)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, name, got)
	}
}

func TestConfigurationsThatCannotWork(t *testing.T) {
	for _, tt := range []struct {
		name   string
		change func(*Config)
		want   string
	}{
		{"nobody", func(c *Config) { c.Servers = nil }, "no control plane"},
		{"check", func(c *Config) { c.Check = "ping" }, "want ready or tcp"},
		{"stats on the API's port", func(c *Config) { c.Stats = 6443 }, "port 6443"},
		{"listen nowhere", func(c *Config) { c.Listen = []netip.Addr{{}} }, "listen address"},
		{"a name that is a line", func(c *Config) { c.Servers[0].Name = "a 1.2.3.4:1\n\tserver b" }, "want letters"},
		{"no address", func(c *Config) { c.Servers[0].Address = netip.Addr{} }, "want one to connect to"},
		{"a zone", func(c *Config) { c.Servers[0].Address = addr("fe80::1%a b") }, "want one to connect to"},
		{"a name twice", func(c *Config) { c.Servers[0].Name = "master02" }, "twice"},
		{"an address twice", func(c *Config) { c.Servers[0].Address = c.Servers[1].Address }, "another one has 192.168.10.102:6443"},
		{"a circle", func(c *Config) { c.Listen = []netip.Addr{addr("192.168.10.101")} }, "HAProxy itself"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := reference()
			tt.change(&c)
			if got, err := Render(c); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q\n%s", err, tt.want, got)
			}
		})
	}
}
