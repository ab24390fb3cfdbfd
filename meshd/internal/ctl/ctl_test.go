package ctl

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

// newDir is a run directory whose path is short enough for a socket.
func newDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ctl")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return filepath.Join(dir, "run")
}

// serve runs a server for m and returns its client and what ends it.
func serve(t testing.TB, m Mesh) (client *Client, dir string, stop func() error) {
	t.Helper()
	dir = newDir(t)
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{
		Mesh:  m,
		About: About{Software: "meshd test", PID: 42, State: "/var/lib/meshd"},
		Hint:  func(err error) string { return "cure for: " + err.Error() },

		RouteSets: new(fakeKeeper),
		Origin:    func(p netip.Prefix) string { return "origin of " + p.String() },
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }() // ends with stop
	var once error
	done := false
	stop = func() error {
		if !done {
			done = true
			cancel()
			once = <-ended
		}
		return once
	}
	t.Cleanup(func() { _ = stop() })
	return NewClient(dir), dir, stop
}

func TestAttachedRoutersAreInTheStatus(t *testing.T) {
	dir := newDir(t)
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := []attach.Status{{
		Name: "r30", State: attach.StateUp, Peer: netip.MustParseAddrPort("10.4.0.92:1195"), Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.30.0/24")},
		Counters: attach.Counters{RxBytes: 5, Dropped: map[string]uint64{attach.DropSource: 1}},
	}}
	s := &Server{Mesh: newFakeMesh(t), Attachments: func() []attach.Status { return want }}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Serve(ctx, l) }()
	got, err := NewClient(dir).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, got.Attachments, cmpopts.EquateComparable(netip.AddrPort{}, netip.Prefix{})); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
	if got.Version != overlay.StatusVersion || got.Mesh.Name != "planet" {
		t.Errorf("status %+v, want that of the mesh beside the attachments", got)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// contract holds for every mesh of which this gateway is site 10 with an
// issuing key.
func contract(t *testing.T, m Mesh) {
	client, _, stop := serve(t, m)
	ctx := t.Context()

	status, err := client.Status(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if status.Version != overlay.StatusVersion || status.Mesh.Name != "planet" || status.Self.Site != "10" {
		t.Errorf("status %+v, want version %d of gateway of site 10 in planet", status, overlay.StatusVersion)
	}
	routes, err := client.Routes(ctx)
	if err != nil || routes.Version != Version || routes.Routes == nil {
		t.Errorf("routes %+v, %v, want version %d and a list", routes, err, Version)
	}
	if diff := cmp.Diff(len(status.Routes), len(routes.Routes)); diff != "" {
		t.Errorf("number of routes in status and routes (-status +routes):\n%s", diff)
	}
	matrix, err := client.Matrix(ctx)
	if err != nil || len(matrix.Gateways) == 0 || matrix.Gateways[0].Gateway != "gw-10" || matrix.Cells[0][0].State != overlay.CellSelf {
		t.Errorf("matrix %+v, %v, want gw-10 first and its own cell", matrix, err)
	}
	host := netip.MustParseAddr("192.168.10.101")
	hosts, err := client.MatrixHosts(ctx, []netip.Addr{host})
	if err != nil || !slices.Equal(hosts.Hosts, []netip.Addr{host}) || len(hosts.Cells) != len(hosts.Gateways) || len(hosts.Cells[0]) != 1 {
		t.Errorf("host matrix %+v, %v, want a cell for each gateway and %v", hosts, err, host)
	}
	_, err = client.Ping(ctx, "nowhere")
	expectError(t, err, http.StatusNotFound, overlay.ErrUnknownGateway.Error())

	before := time.Now()
	ticket, err := client.Ticket(ctx, TicketRequest{Site: "20", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.20.0/24")}, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := overlay.ParseTicket(ticket.Text)
	if err != nil || parsed.Site() != "20" || parsed.Gateway() != ticket.Gateway || len(ticket.Seeds) == 0 {
		t.Errorf("ticket %+v parsed to %v, %v, want one for site 20 with seeds", ticket, parsed, err)
	}
	if life := ticket.Expiry.Sub(before); life < 55*time.Minute || life > 65*time.Minute {
		t.Errorf("ticket lives %v, want the hour that was asked for", life)
	}
	_, err = client.Ticket(ctx, TicketRequest{Site: "30", Prefixes: []netip.Prefix{netip.MustParsePrefix("192.168.20.128/25")}})
	expectError(t, err, http.StatusConflict, "192.168.20.0/24")
	_, err = client.Grant(ctx, GrantRequest{Gateway: "gw-77", Prefixes: []netip.Prefix{netip.MustParsePrefix("10.128.0.0/18")}})
	expectError(t, err, http.StatusNotFound, overlay.ErrUnknownGateway.Error())

	events, err := client.send(ctx, http.MethodGet, "/v1/events", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	if err := stop(); err != nil {
		t.Errorf("server ended with %v", err)
	}
	if _, err := io.Copy(io.Discard, events.Body); err != nil {
		t.Errorf("event stream ended with %v, want a proper end", err)
	}
	if _, err := client.Status(ctx); !errors.Is(err, ErrNotRunning) {
		t.Errorf("status of a stopped server: %v, want ErrNotRunning", err)
	}
}

// expectError checks that the daemon refused with a status, a text and its hint.
func expectError(t *testing.T, err error, status int, text string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Status != status || !strings.Contains(e.Message, text) || e.Hint != "cure for: "+e.Message {
		t.Errorf("error %#v, want status %d, %q and its hint", err, status, text)
	}
}

func TestFakeMeshKeepsTheContract(t *testing.T) { contract(t, newFakeMesh(t)) }

func TestAboutSaysWhoAnswers(t *testing.T) {
	client, _, _ := serve(t, newFakeMesh(t))
	got, err := client.About(t.Context())
	want := About{Version: Version, Software: "meshd test", PID: 42, State: "/var/lib/meshd"}
	if err != nil || got != want {
		t.Errorf("about %+v, %v, want %+v", got, err, want)
	}
}

func TestRoutesTellWhatIsRefused(t *testing.T) {
	client, _, _ := serve(t, newFakeMesh(t))
	routes, err := client.Routes(t.Context())
	if err != nil || len(routes.Routes) != 1 || len(routes.Refused) != 1 || routes.Refused[0].Gateway != "gw-30" {
		t.Errorf("routes %+v, %v, want one and one refused", routes, err)
	}
}

func TestRoutesTellWhereTheyComeFrom(t *testing.T) {
	m := newFakeMesh(t)
	m.local = true
	client, _, _ := serve(t, m)
	routes, err := client.Routes(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	status, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, list := range [][]overlay.RouteStatus{routes.Routes, status.Routes} {
		for _, r := range list {
			want := "only offer"
			if r.Local {
				want = "announced here (origin of 192.168.10.0/24)"
			}
			if r.Why != want {
				t.Errorf("%v: %q, want %q", r.Prefix, r.Why, want)
			}
		}
	}
}

func TestRouteSetsAreKept(t *testing.T) {
	client, _, _ := serve(t, newFakeMesh(t))
	ctx := t.Context()
	if all, err := client.RouteSets(ctx); err != nil || all.Version != Version || all.RouteSets == nil || len(all.RouteSets) != 0 {
		t.Errorf("no sets: %+v, %v, want an empty list", all, err)
	}
	pods, err := routeset.Parse("pods", []byte(`{"announce":["10.128.0.0/18"],"lan":[{"prefix":"10.128.1.0/24","via":"192.168.10.101"}]}`))
	if err != nil {
		t.Fatal(err)
	}
	for _, changed := range []bool{true, false} {
		got, err := client.PutRouteSet(ctx, pods)
		if err != nil || !got.Equal(pods) || got.Changed == nil || *got.Changed != changed {
			t.Errorf("put: %+v, %v, want the set and changed %v", got, err, changed)
		}
	}
	if got, err := client.RouteSet(ctx, "pods"); err != nil || !got.Equal(pods) || got.Version != Version || got.Changed != nil {
		t.Errorf("get: %+v, %v", got, err)
	}
	if all, err := client.RouteSets(ctx); err != nil || len(all.RouteSets) != 1 || !all.RouteSets[0].Equal(pods) {
		t.Errorf("list: %+v, %v", all, err)
	}
	if s, err := client.Status(ctx); err != nil || len(s.RouteSets) != 1 {
		t.Errorf("status: %+v, %v, want the set in it", s.RouteSets, err)
	}
	if got, err := client.DeleteRouteSet(ctx, "pods"); err != nil || !got.Equal(pods) {
		t.Errorf("delete: %+v, %v, want what was deleted", got, err)
	}
	_, err = client.DeleteRouteSet(ctx, "pods")
	expectError(t, err, http.StatusNotFound, "no such route set")
}

func TestGrantsTellWhatIsPending(t *testing.T) {
	client, _, _ := serve(t, newFakeMesh(t))
	more := []netip.Prefix{netip.MustParsePrefix("10.128.0.0/18")}
	got, err := client.Grant(t.Context(), GrantRequest{Gateway: "gw-20", Prefixes: more})
	if err != nil || got.Version != Version || got.Site != "20" || !slices.Equal(got.Added, more) || got.Pending != "" {
		t.Errorf("grant %+v, %v", got, err)
	}
	if got, err = client.Grant(t.Context(), GrantRequest{Gateway: "gw-30", Prefixes: more}); err != nil || got.Pending != overlay.ErrNoPath.Error() {
		t.Errorf("grant of a member that is away: %+v, %v", got, err)
	}
	_, err = client.Grant(t.Context(), GrantRequest{Gateway: "gw-20", Site: "30", Prefixes: more})
	expectError(t, err, http.StatusConflict, "which site 30 holds")
}

func TestPingAsksEveryGatewayThatIsMeant(t *testing.T) {
	client, _, _ := serve(t, newFakeMesh(t))
	ping, err := client.Ping(t.Context(), "all")
	if err != nil || len(ping.Probes) != 3 {
		t.Fatalf("ping %+v, %v, want three probes", ping, err)
	}
	if p := ping.Probes[0]; p.Gateway != "gw-30" || p.Site != "30" || p.Error != overlay.ErrNoPath.Error() {
		t.Errorf("probe %+v, want gw-30 named although it has no path", p)
	}
	if p := ping.Probes[1]; p.Gateway != "gw-20" || p.Error != "" || p.RTT != 12*time.Millisecond || p.Via != "data" {
		t.Errorf("probe %+v, want the answer of gw-20", p)
	}
	if p := ping.Probes[2]; p.Error != "no answer within 2s" {
		t.Errorf("probe %+v, want that it took too long", p)
	}
}

func TestEventsArriveOneByOne(t *testing.T) {
	m := newFakeMesh(t)
	client, _, _ := serve(t, m)
	want := []overlay.Event{
		{Kind: overlay.EventPeerUp, Gateway: "gw-20", Path: netip.MustParseAddrPort("10.4.0.91:17946")},
		{Kind: overlay.EventRouteAdded, Prefix: netip.MustParsePrefix("192.168.20.0/24")},
	}
	enough := errors.New("enough")
	got := make(chan overlay.Event)
	ended := make(chan error, 1)
	go func() { // ends after as many events as are wanted
		n := 0
		ended <- client.Events(t.Context(), func(e overlay.Event) error {
			got <- e
			if n++; n == len(want) {
				return enough
			}
			return nil
		})
	}()
	waitFor(t, "a watcher", func() bool { return m.watching() == 1 })
	for _, e := range want {
		m.emit(e)
		if g := <-got; g != e {
			t.Errorf("event %+v, want %+v", g, e)
		}
	}
	if err := <-ended; !errors.Is(err, enough) {
		t.Errorf("events ended with %v, want the reader's error", err)
	}
	waitFor(t, "no watcher after the reader left", func() bool { return m.watching() == 0 })
}

func TestServerEndsWhileEventsAndRequestsAreOpen(t *testing.T) {
	m := newFakeMesh(t)
	m.blocked = make(chan struct{})
	client, _, stop := serve(t, m)
	events, matrix := make(chan error, 1), make(chan error, 1)
	go func() { events <- client.Events(t.Context(), func(overlay.Event) error { return nil }) }() // ends with the server
	waitFor(t, "a watcher", func() bool { return m.watching() == 1 })
	go func() { // ends with the server
		_, err := client.Matrix(t.Context())
		matrix <- err
	}()
	<-m.blocked
	start := time.Now()
	if err := stop(); err != nil {
		t.Errorf("server ended with %v", err)
	}
	if took := time.Since(start); took < shutdownGrace || took > 10*shutdownGrace {
		t.Errorf("server took %v to end, want the %v that a request has", took, shutdownGrace)
	}
	if err := <-events; err != nil {
		t.Errorf("event stream ended with %v, want nil", err)
	}
	if err := <-matrix; err == nil {
		t.Error("request that takes for ever got an answer")
	}
}

// raw sends a request as no client of ours would.
func raw(t *testing.T, dir, method, path, body string) (int, failure) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://x"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	resp, err := NewClient(dir).http.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var f failure
	if err := json.Unmarshal(b, &f); err != nil {
		t.Fatalf("%s %s: answer %q: %v", method, path, b, err)
	}
	return resp.StatusCode, f
}

func TestWrongRequestsAreRefusedInJSON(t *testing.T) {
	m := newFakeMesh(t)
	_, dir, _ := serve(t, m)
	tooMany := `{"hosts":["10.0.0.1"` + strings.Repeat(`,"10.0.0.1"`, MaxHosts) + `]}`
	set := func(n int) string {
		return `{"announce":["10.128.0.0/18"` + strings.Repeat(`,"10.129.0.0/18"`, n) + `]}`
	}
	tests := []struct {
		name, method, path, body string
		status                   int
		text                     string
	}{
		{"set with a bad name", "PUT", "/v1/routesets/Pods", set(0), 400, `route set "Pods": not a name`},
		{"set with a path for a name", "PUT", "/v1/routesets/..%2Fa", set(0), 400, "not a name"},
		{"set without a name", "PUT", "/v1/routesets/", set(0), 404, "no such request"},
		{"set with an unknown key", "PUT", "/v1/routesets/pods", `{"routes":[]}`, 400, `unknown key "routes"`},
		{"set with host bits", "PUT", "/v1/routesets/pods", `{"announce":["10.128.0.1/18"]}`, 400, "want 10.128.0.0/18"},
		{"huge set", "PUT", "/v1/routesets/pods", set(maxBody), 413, "larger than 65536 bytes"},
		{"set that does not fit", "PUT", "/v1/routesets/bad", set(0), 409, "route set bad: does not fit"},
		{"set that is not granted", "PUT", "/v1/routesets/foreign", set(0), 403, "10.128.0.0/18 is not granted"},
		{"unknown set", "GET", "/v1/routesets/pods", "", 404, `"pods": no such route set`},
		{"unknown set to delete", "DELETE", "/v1/routesets/pods", "", 404, `"pods": no such route set`},
		{"set that is posted", "POST", "/v1/routesets/pods", set(0), 404, "no such request"},
		{"grant with an unknown field", "POST", "/v1/grants", `{"gateway":"gw-20","prefix":"10.128.0.0/18"}`, 400, "unknown field"},
		{"grant to nobody", "POST", "/v1/grants", `{"gateway":"gw-77","prefixes":["10.128.0.0/18"]}`, 404, "unknown gateway"},
		{"unknown path", "GET", "/v2/status", "", 404, "no such request: GET /v2/status"},
		{"wrong method", "POST", "/v1/status", "", 404, "no such request: POST /v1/status"},
		{"no body", "POST", "/v1/ping", "", 400, "EOF"},
		{"not JSON", "POST", "/v1/ping", "to=20", 400, "invalid character"},
		{"unknown field", "POST", "/v1/ping", `{"too":"20"}`, 400, `unknown field "too"`},
		{"two values", "POST", "/v1/ping", `{"to":"20"}{"to":"30"}`, 400, "something after"},
		{"bad prefix", "POST", "/v1/tickets", `{"site":"20","prefixes":["lan"]}`, 400, "lan"},
		{"huge body", "POST", "/v1/ping", `{"to":"` + strings.Repeat("x", maxBody) + `"}`, 413, "larger than 65536 bytes"},
		{"no hosts", "POST", "/v1/matrix/hosts", `{"hosts":[]}`, 400, "0 hosts: want 1 to 256"},
		{"too many hosts", "POST", "/v1/matrix/hosts", tooMany, 400, "257 hosts: want 1 to 256"},
		{"empty host", "POST", "/v1/matrix/hosts", `{"hosts":[""]}`, 400, "an empty host"},
		{"nobody of that name", "POST", "/v1/ping", `{"to":""}`, 404, "unknown gateway"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			status, f := raw(t, dir, tt.method, tt.path, tt.body)
			if status != tt.status || !strings.Contains(f.Error, tt.text) || f.Hint == "" {
				t.Errorf("answer %d %+v, want %d, %q and a hint", status, f, tt.status, tt.text)
			}
		})
	}
	if m.hosts != nil {
		t.Errorf("a refused request reached the mesh with %v", m.hosts)
	}
}

func TestSocketIsForItsOwnerOnly(t *testing.T) {
	dir := newDir(t)
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for path, want := range map[string]fs.FileMode{dir: 0o700, filepath.Join(dir, socketName): 0o600} {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, error %v, want %04o", path, info.Mode(), err, want)
		}
	}
}

func TestOpenRunDirectoryIsRefusedAndLeftAlone(t *testing.T) {
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	_, err := Listen(dir)
	if !errors.Is(err, ErrExposed) {
		t.Errorf("error %v, want ErrExposed", err)
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o755 {
		t.Errorf("directory is %v, %v, want it unchanged", info, err)
	}
}

func TestSecondDaemonIsRefusedAndHarmsNobody(t *testing.T) {
	client, dir, _ := serve(t, newFakeMesh(t))
	if _, err := Listen(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v, want ErrInUse", err)
	}
	if _, err := client.Status(t.Context()); err != nil {
		t.Errorf("first daemon after that: %v", err)
	}
}

func TestForeignSocketThatAnswersIsLeftAlone(t *testing.T) {
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	foreign, err := net.Listen("unix", filepath.Join(dir, socketName))
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if _, err := Listen(dir); !errors.Is(err, ErrInUse) {
		t.Errorf("error %v, want ErrInUse", err)
	}
}

func TestSocketOfAKilledDaemonIsReplaced(t *testing.T) {
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, socketName)})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false) // as kill -9 leaves it
	if err := stale.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := NewClient(dir).Status(t.Context()); !errors.Is(err, ErrNotRunning) {
		t.Errorf("stale socket: %v, want ErrNotRunning", err)
	}
	for range 2 { // and the directory can be used again
		l, err := Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := os.Lstat(filepath.Join(dir, socketName)); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("socket after close: %v, want it gone", err)
		}
	}
}

func TestFileInPlaceOfTheSocketIsLeftAlone(t *testing.T) {
	dir := newDir(t)
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, socketName)
	if err := os.WriteFile(path, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if l, err := Listen(dir); err == nil {
		l.Close()
		t.Error("a file was taken for a socket")
	}
	if b, err := os.ReadFile(path); string(b) != "mine" {
		t.Errorf("file holds %q, %v, want it unchanged", b, err)
	}
}

func TestTooLongPathIsExplained(t *testing.T) {
	_, err := Listen(filepath.Join(t.TempDir(), strings.Repeat("x", 100)))
	if err == nil || !strings.Contains(err.Error(), "want at most 107") {
		t.Errorf("error %v, want the limit named", err)
	}
}

func TestClientOfAnotherUserIsToldSo(t *testing.T) {
	c := NewClient("/run/meshd")
	err := c.explain(&net.OpError{Op: "dial", Err: os.NewSyscallError("connect", fs.ErrPermission)})
	if !errors.Is(err, fs.ErrPermission) || !strings.Contains(err.Error(), "/run/meshd/meshd.sock") {
		t.Errorf("error %v, want the socket and fs.ErrPermission", err)
	}
}

func TestClientBoundsWhatItReads(t *testing.T) {
	dir := newDir(t)
	l, err := Listen(dir)
	if err != nil {
		t.Fatal(err)
	}
	endless := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		block := []byte(strings.Repeat(" ", 1<<20))
		for {
			if _, err := w.Write(block); err != nil {
				return
			}
		}
	})}
	go func() { _ = endless.Serve(l) }() // ends with the test
	t.Cleanup(func() { _ = endless.Close() })
	if _, err := NewClient(dir).Status(t.Context()); err == nil {
		t.Error("an endless answer was a status")
	}
}

// waitFor polls until ok, for ten seconds at most.
func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("no %s within 10 s", what)
		}
	}
}
