package main

import (
	"bytes"
	"flag"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

var update = flag.Bool("update", false, "rewrite golden files")

// golden compares what write writes with a file in testdata.
func golden(t *testing.T, name string, write func(w io.Writer)) {
	t.Helper()
	var got bytes.Buffer
	write(&got)
	path := filepath.Join("testdata", name+".golden")
	if *update {
		if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got.String()); diff != "" {
		t.Errorf("%s (-want +got):\n%s", path, diff)
	}
}

var now = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

// newStatusOfMany is a status with one peer in every state.
func newStatusOfMany() ctl.Status {
	peer := func(site string, state overlay.PeerState) overlay.PeerStatus {
		return overlay.PeerStatus{
			Gateway: "gw-" + site, Site: site, ID: strings.Repeat("0", 30) + site, State: state,
			Since: now.Add(-90 * time.Minute), MTU: 1420,
		}
	}
	up := peer("20", overlay.PeerUp)
	up.Path, up.RTT, up.RxBytes, up.TxBytes = netip.MustParseAddrPort("10.4.0.91:17946"), 23400*time.Microsecond, 3_400_000_000, 999
	lossy := peer("30", overlay.PeerUp)
	lossy.Path, lossy.RTT, lossy.Loss, lossy.Relayed = netip.MustParseAddrPort("[2001:db8::92]:17946"), 156*time.Millisecond, 0.25, true
	unreachable := peer("40", overlay.PeerUnreachable)
	unreachable.Path = netip.MustParseAddrPort("10.4.0.93:17946")
	known := peer("50", overlay.PeerKnown)
	known.Since, known.MTU = time.Time{}, 0
	hostile := peer("80", overlay.PeerRevoked)
	hostile.Gateway = "gw\x1b[2J"
	return ctl.Status{Status: overlay.Status{
		Version: overlay.StatusVersion,
		Time:    now,
		Mesh:    overlay.MeshStatus{Name: "planet", ID: strings.Repeat("0123456789abcdef", 4)},
		Self: overlay.SelfStatus{
			Gateway: "gw-10", Site: "10", Overlay: netip.MustParseAddr("fd12::1"), Interface: "pm0", Port: 17946, MTU: 1420,
			Endpoints: []netip.AddrPort{netip.MustParseAddrPort("10.4.0.90:17946"), netip.MustParseAddrPort("[2001:db8::90]:17946")},
			Routes: []overlay.Route{
				{Prefix: netip.MustParsePrefix("192.168.10.0/24")},
				{Prefix: netip.MustParsePrefix("2001:db8:10::/64"), Priority: 100},
			},
			NotAfter: now.Add(15*24*time.Hour + 5*time.Hour), Started: now.Add(-26 * time.Hour), Issuer: true,
		},
		Peers: []overlay.PeerStatus{up, lossy, unreachable, known, peer("60", overlay.PeerLeft), peer("70", overlay.PeerExpired), hostile},
		Conflicts: []overlay.ConflictStatus{
			{Prefix: netip.MustParsePrefix("192.168.20.0/24"), Winner: "20", Loser: "30", Reason: "lower grant number"},
		},
		Refused:  []overlay.RefusedStatus{{Prefix: netip.MustParsePrefix("192.168.40.0/24"), Gateway: "gw-40", Reason: "collides with 192.168.40.0/24 on eth1 of this host"}},
		Warnings: []string{"ipv6 is switched off on this host"},
	}}
}

// newAttachments is one router in every state.
func newAttachments() []attach.Status {
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	return []attach.Status{
		{
			Name: "r30a", Interface: "ov-r30a", State: attach.StateUp, Since: now.Add(-3 * time.Hour), Mode: "static", Transport: "udp",
			Cipher: "AES-256-CBC", Digest: "SHA256", Peer: netip.MustParseAddrPort("10.4.0.92:1195"), Prefixes: prefix("192.168.30.0/24"), Priority: 10,
			Counters: attach.Counters{RxBytes: 2_000_000, TxBytes: 3_000_000, Dropped: map[string]uint64{"source": 3, "replay": 1}},
		},
		{
			Name: "r40", Interface: "ov-r40", State: attach.StateConnecting, Since: now.Add(-20 * time.Second), Mode: "tls-server", Transport: "tcp-listen",
			Prefixes: prefix("192.168.40.0/24"),
		},
		{
			Name: "r50", Interface: "ov-r50", State: attach.StateDown, Since: now.Add(-2 * time.Minute), Mode: "tls-client", Transport: "udp",
			Cipher: "AES-256-GCM", Prefixes: prefix("192.168.50.0/24"), LastError: "nothing authentic from the peer within the restart timeout",
		},
	}
}

func TestStatusForPeople(t *testing.T) {
	s := newStatusOfMany()
	golden(t, "status", func(w io.Writer) { printStatus(w, s, nil, false) })
	golden(t, "status-colour", func(w io.Writer) { printStatus(w, s, nil, true) })
	golden(t, "status-alone", func(w io.Writer) {
		printStatus(w, ctl.Status{Status: overlay.Status{Time: now, Mesh: s.Mesh, Self: overlay.SelfStatus{Gateway: "gw-10", Site: "10", Overlay: s.Self.Overlay, Port: 17946, MTU: 1420}}}, nil, false)
	})
}

func TestWatchedStatusShowsRates(t *testing.T) {
	before := newStatusOfMany()
	after := newStatusOfMany()
	after.Time = now.Add(2 * time.Second)
	after.Peers[0].RxBytes += 5_000_000
	after.Peers[0].TxBytes = 500 // the session began anew
	after.Peers = append(after.Peers, overlay.PeerStatus{Gateway: "gw-new", Site: "90", ID: "new", State: overlay.PeerUp})
	golden(t, "status-watch", func(w io.Writer) { printStatus(w, after, &before, false) })
}

func TestAttachedRoutersForPeople(t *testing.T) {
	before, after := newStatusOfMany(), newStatusOfMany()
	before.Peers, before.Conflicts, before.Refused, before.Warnings = nil, nil, nil, nil
	after.Peers, after.Conflicts, after.Refused, after.Warnings = nil, nil, nil, nil
	before.Attachments, after.Attachments = newAttachments(), newAttachments()
	after.Time = now.Add(2 * time.Second)
	after.Attachments[0].RxBytes += 5_000_000
	golden(t, "status-attachments", func(w io.Writer) { printStatus(w, before, nil, false) })
	golden(t, "status-attachments-watch", func(w io.Writer) { printStatus(w, after, &before, false) })
}

func TestRouteSetsForPeople(t *testing.T) {
	pods, err := routeset.Parse("pods", []byte(`{"announce": ["10.128.0.0/18"], "lan": [
		{"prefix": "10.128.1.0/24", "via": "192.168.10.101"}, {"prefix": "10.128.2.0/24", "via": "192.168.10.102"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	one, err := routeset.Parse("one", []byte(`{"announce": ["10.130.0.0/24", "10.131.0.0/24"], "lan": [{"prefix": "10.130.0.0/24", "via": "192.168.10.101"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	sets := []routeset.Status{{Set: one, Problem: "route set one: prefix 10.130.0.0/24 is not granted"}, {Set: pods}}
	golden(t, "routesets", func(w io.Writer) { printRouteSets(w, sets, false) })
	golden(t, "routesets-none", func(w io.Writer) { printRouteSets(w, nil, false) })
	golden(t, "routeset", func(w io.Writer) { printRouteSet(w, ctl.RouteSet{Status: sets[1]}, false) })
	golden(t, "routeset-refused", func(w io.Writer) { printRouteSet(w, ctl.RouteSet{Status: sets[0]}, false) })
	s := newStatusOfMany()
	s.Peers, s.Conflicts, s.Refused, s.Warnings = nil, nil, nil, nil
	s.RouteSets = sets
	golden(t, "status-routesets", func(w io.Writer) { printStatus(w, s, nil, false) })
}

func TestGrantsForPeople(t *testing.T) {
	g := ctl.Grant{Gateway: "gw-20", Site: "20", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.128.64.0/18"), netip.MustParsePrefix("192.168.20.0/24")}}
	golden(t, "grant-again", func(w io.Writer) { printGrant(w, g) })
	g.Added = g.Prefixes[:1]
	golden(t, "grant", func(w io.Writer) { printGrant(w, g) })
	g.Pending = "no path"
	golden(t, "grant-pending", func(w io.Writer) { printGrant(w, g) })
}

func TestRoutesForPeople(t *testing.T) {
	s := newStatusOfMany()
	golden(t, "routes", func(w io.Writer) {
		printRoutes(w, ctl.Routes{
			Routes: []overlay.RouteStatus{
				{Prefix: netip.MustParsePrefix("192.168.10.0/24"), Site: "10", Gateway: "gw-10", Local: true, Why: "announced here"},
				{Prefix: netip.MustParsePrefix("192.168.20.0/24"), Site: "20", Gateway: "gw-20", Standby: []string{"gw-20-2", "gw-20-3"}, Why: "lowest priority value"},
			},
			Conflicts: s.Conflicts, Refused: s.Refused,
		}, false)
	})
	golden(t, "routes-none", func(w io.Writer) { printRoutes(w, ctl.Routes{}, false) })
}

func TestMatrixForPeople(t *testing.T) {
	gateways := []overlay.MatrixGateway{{Gateway: "gw-10", Site: "10"}, {Gateway: "gw-20", Site: "20"}, {Gateway: "gw-30", Site: "30"}}
	self := overlay.MatrixCell{State: overlay.CellSelf}
	up := func(d time.Duration) overlay.MatrixCell { return overlay.MatrixCell{State: overlay.CellUp, RTT: d} }
	relayed := up(250 * time.Millisecond)
	relayed.Relayed = true
	down, unknown := overlay.MatrixCell{State: overlay.CellDown}, overlay.MatrixCell{State: overlay.CellUnknown}
	golden(t, "matrix", func(w io.Writer) {
		printMatrix(w, overlay.Matrix{Gateways: gateways, Cells: [][]overlay.MatrixCell{
			{self, up(420 * time.Microsecond), relayed},
			{up(23400 * time.Microsecond), self, down},
			{unknown, unknown, self},
		}}, false)
	})
	golden(t, "matrix-hosts", func(w io.Writer) {
		printHostMatrix(w, overlay.HostMatrix{
			Gateways: gateways,
			Hosts:    []netip.Addr{netip.MustParseAddr("192.168.20.101"), netip.MustParseAddr("2001:db8:10::65")},
			Cells:    [][]overlay.MatrixCell{{up(time.Millisecond), down}, {up(2 * time.Second), unknown}}, // the third row was left out
		}, false)
	})
}

func TestProbesForPeople(t *testing.T) {
	answered := overlay.PingResult{
		Gateway: "gw-20", Site: "20", Path: netip.MustParseAddrPort("10.4.0.91:17946"),
		PathRTT: 10 * time.Millisecond, RTT: 12 * time.Millisecond, Via: "data",
	}
	relayed := answered
	relayed.Relayed, relayed.Via = true, "probe"
	golden(t, "ping", func(w io.Writer) {
		var total tally
		for n, probe := range []ctl.Probe{
			{PingResult: answered},
			{PingResult: relayed},
			{PingResult: overlay.PingResult{Gateway: "gw-30"}, Error: "no path\x07"},
		} {
			printProbe(w, n+1, probe)
			total.add(probe)
		}
		total.print(w)
	})
}

func TestUnitsAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "0.00", 420 * time.Microsecond: "0.42", 9994 * time.Microsecond: "9.99", 9996 * time.Microsecond: "10.0",
		23400 * time.Microsecond: "23.4", 99940 * time.Microsecond: "99.9", 99960 * time.Microsecond: "100", 2 * time.Second: "2000",
	} {
		if got := milliseconds(d); got != want {
			t.Errorf("milliseconds(%v) = %q, want %q", d, got, want)
		}
	}
	for n, want := range map[uint64]string{
		0: "0 B", 999: "999 B", 1000: "1.0 kB", 9949: "9.9 kB", 9950: "10 kB", 999_499: "999 kB", 999_500: "1.0 MB", 3_400_000_000: "3.4 GB", 1<<64 - 1: "18 EB",
	} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m01s", 90 * time.Minute: "1h30m", 49 * time.Hour: "2d01h",
	} {
		if got := age(now, now.Add(-d)); got != want {
			t.Errorf("age of %v = %q, want %q", d, got, want)
		}
	}
	if got := age(now, time.Time{}); got != "–" {
		t.Errorf("age of no time = %q, want a dash", got)
	}
}

func TestShellWordSurvivesAShell(t *testing.T) {
	for word, want := range map[string]string{
		"/var/lib/meshd": "/var/lib/meshd", "": "''", "my dir": "'my dir'", "it's": `'it'\''s'`, "a;b": "'a;b'", "$x": "'$x'",
	} {
		if got := shellWord(word); got != want {
			t.Errorf("shellWord(%q) = %s, want %s", word, got, want)
		}
	}
}
