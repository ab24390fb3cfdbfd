package preflight

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

var update = flag.Bool("update", false, "write the golden files")

// golden compares text with a file below testdata.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

// faultyReport has something for every kind of cell.
func faultyReport(inv *inventory.Inventory) *Report {
	x := &faulty{inv, cleanReport(inv)}
	x.both("node03", "node01", func(p *Pair) { p.RTT.P50 = 140 * time.Millisecond })
	x.pairs("node01", "node02", setLoss(199))
	x.pairs("node02", "node01", setLoss(190))
	x.pairs("master01", "node01", setLoss(100))
	x.both("node04", "s10", cut)
	x.pairs("node03", "s10", func(p *Pair) { p.MTU = 1300 })
	x.pairs("node02", "lb", func(p *Pair) { p.MTU = 0 })
	x.both("node02", "node03", func(p *Pair) { *p = Pair{From: p.From, To: p.To, Hops: -1, Error: "silent"} })
	x.facts("node01").Swap = []string{"/dev/sda2 100"}
	x.facts("node02").Units = nil
	return x.r
}

func TestRender(t *testing.T) {
	inv := reference()
	many, hosts := loopback(40, 3)
	if len(hosts) != 40 {
		t.Fatal(len(hosts))
	}
	for _, tt := range []struct {
		name   string
		r      *Report
		inv    *inventory.Inventory
		colour bool
	}{
		{"clean.txt", cleanReport(inv), inv, false},
		{"faulty.txt", faultyReport(inv), inv, false},
		{"faulty-colour.txt", faultyReport(inv), inv, true},
		{"sites.txt", cleanReport(many), many, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var b strings.Builder
			if err := Render(&b, tt.r, tt.inv, Faults(tt.r, tt.inv), tt.colour); err != nil {
				t.Fatal(err)
			}
			if !tt.colour && strings.Contains(b.String(), "\x1b") {
				t.Error("colours where none are wanted")
			}
			golden(t, "render-"+tt.name, b.String())
		})
	}
}

func TestReportJSONIsStable(t *testing.T) {
	inv := reference()
	inv.Hosts = inv.Hosts[3:5]
	x := &faulty{inv, cleanReport(inv)}
	x.both("lb", "master01", setLoss(150))
	var b strings.Builder
	if err := RenderJSON(&b, x.r, Faults(x.r, inv)); err != nil {
		t.Fatal(err)
	}
	golden(t, "report.json", b.String())
}

func TestStoredReportIsJudgedAgain(t *testing.T) {
	inv := reference()
	r := faultyReport(inv)
	var again Report
	if err := json.Unmarshal([]byte(mustJSON(t, r)), &again); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(Faults(r, inv), Faults(&again, inv)); diff != "" {
		t.Error(diff)
	}
}

func TestFirewall(t *testing.T) {
	for _, kind := range []FirewallKind{FirewallNFT, FirewallVyOS} {
		for _, mode := range []inventory.Endpoint{inventory.EndpointProxy, inventory.EndpointHAProxy} {
			inv := reference()
			inv.Cluster.Endpoint = mode
			got, err := Firewall(inv, kind)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "firewall-"+string(kind)+"-"+string(mode)+".txt", got)
		}
	}
	if _, err := Firewall(reference(), "pf"); err == nil || !strings.Contains(err.Error(), "want nft or vyos") {
		t.Errorf("unknown kind: %v", err)
	}
}
