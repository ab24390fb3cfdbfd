package main

import (
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
)

func FuzzReadHosts(f *testing.F) {
	f.Add("192.168.20.101\n# comment\n2001:db8::1 # lb\n")
	f.Add("lan\n192.168.20.101\n192.168.20.101\n")
	f.Add("fe80::1%eth0\n::ffff:10.0.0.1\n")
	f.Add(strings.Repeat("x", 100_000))
	f.Fuzz(func(t *testing.T, text string) {
		hosts, err := readHosts(strings.NewReader(text), "-")
		if err != nil {
			if !strings.Contains(err.Error(), "standard input") {
				t.Errorf("error %q does not say where", err)
			}
			return
		}
		if len(hosts) == 0 || len(hosts) > ctl.MaxHosts {
			t.Errorf("%d hosts out of %q", len(hosts), text)
		}
		for _, h := range hosts {
			if !h.IsValid() || h.Is4In6() || h.Zone() != "" {
				t.Errorf("host %v out of %q", h, text)
			}
		}
	})
}
