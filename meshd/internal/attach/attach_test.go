package attach

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

var equal = cmpopts.EquateComparable(netip.Addr{}, netip.AddrPort{}, netip.Prefix{})

// fakeMesh grants 192.168.0.0/16 and 10.30.0.0/16 and remembers what it was told.
type fakeMesh struct {
	mu          sync.Mutex
	routes      []overlay.Route
	attachments []overlay.Attachment
	calls       int
	lan         []overlay.LANRoute
	refuse      error
	refuseLAN   error
	changed     chan struct{}
}

func newFakeMesh() *fakeMesh { return &fakeMesh{changed: make(chan struct{}, 1)} }

var testGrants = []netip.Prefix{netip.MustParsePrefix("192.168.0.0/16"), netip.MustParsePrefix("10.30.0.0/16")}

func (m *fakeMesh) Status() overlay.Status {
	return overlay.Status{Self: overlay.SelfStatus{Granted: testGrants}}
}

func (m *fakeMesh) SetRoutes(_ context.Context, routes []overlay.Route) error {
	for _, r := range routes {
		if !within(r.Prefix, testGrants) {
			return &overlay.GrantError{Prefix: r.Prefix, Granted: testGrants}
		}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.routes = slices.Clone(routes)
	m.note()
	return nil
}

func (m *fakeMesh) SetAttachments(list []overlay.Attachment) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuse != nil {
		return m.refuse
	}
	m.attachments = slices.Clone(list)
	m.note()
	return nil
}

func (m *fakeMesh) SetLANRoutes(routes []overlay.LANRoute) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.refuseLAN != nil && len(routes) > 0 {
		return m.refuseLAN
	}
	m.lan = slices.Clone(routes)
	m.note()
	return nil
}

func (m *fakeMesh) note() {
	m.calls++
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// announced is the routes as text, such as "192.168.30.0/24 10".
func (m *fakeMesh) announced() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var words []string
	for _, r := range m.routes {
		words = append(words, r.Prefix.String())
	}
	return strings.Join(words, " ")
}

func (m *fakeMesh) routed() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var words []string
	for _, a := range m.attachments {
		words = append(words, a.Interface)
		for _, p := range a.Prefixes {
			words = append(words, p.String())
		}
	}
	return strings.Join(words, " ")
}

const patience = 30 * time.Second

// await waits until ok, looking whenever the mesh is told something.
func (m *fakeMesh) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for !ok() {
		select {
		case <-m.changed:
		case <-deadline.C:
			t.Fatalf("%s: announced %q, attached %q", what, m.announced(), m.routed())
		}
	}
}

// fakeDevice is an interface in memory.
type fakeDevice struct {
	name     string
	toRouter chan []byte
	got      chan []byte
	fail     chan error
	closed   chan struct{}
	once     sync.Once
}

func newFakeDevice(name string) *fakeDevice {
	return &fakeDevice{name: name, toRouter: make(chan []byte, 16), got: make(chan []byte, 16), fail: make(chan error, 1), closed: make(chan struct{})}
}

func (d *fakeDevice) ReadPackets(bufs [][]byte, sizes []int) (int, error) {
	select {
	case p := <-d.toRouter:
		sizes[0] = copy(bufs[0], p)
		return 1, nil
	case err := <-d.fail:
		return 0, err
	case <-d.closed:
		return 0, net.ErrClosed
	}
}

func (d *fakeDevice) WritePackets(packets [][]byte) error {
	for _, p := range packets {
		d.got <- slices.Clone(p)
	}
	return nil
}

func (d *fakeDevice) Close() error {
	d.once.Do(func() { close(d.closed) })
	return nil
}

func (d *fakeDevice) isClosed() bool {
	select {
	case <-d.closed:
		return true
	default:
		return false
	}
}

// world is a Set with interfaces in memory.
type world struct {
	mesh *fakeMesh
	set  *Set
	dir  string

	mu      sync.Mutex
	devices []*fakeDevice
	noTUN   error
}

func newWorld(t *testing.T) *world {
	w := &world{mesh: newFakeMesh(), dir: t.TempDir()}
	w.set = New(Config{Mesh: w.mesh, Dir: w.dir, Device: w.open, Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	t.Cleanup(func() {
		if err := w.set.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

func (w *world) open(name string, _ int) (openvpn.Device, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noTUN != nil {
		return nil, w.noTUN
	}
	d := newFakeDevice(name)
	w.devices = append(w.devices, d)
	return d, nil
}

// device returns the newest interface of a name.
func (w *world) device(name string) *fakeDevice {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range slices.Backward(w.devices) {
		if d.name == name {
			return d
		}
	}
	return nil
}

func (w *world) mustApply(t *testing.T, want Desired) {
	t.Helper()
	if err := w.set.Apply(t.Context(), want); err != nil {
		t.Fatal(err)
	}
}

// status returns that of one attachment.
func (w *world) status(name string) Status {
	for _, s := range w.set.Status() {
		if s.Name == name {
			return s
		}
	}
	return Status{}
}

func freePort(t *testing.T) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

// newEntry is an attachment with a key of its own.
func newEntry(t *testing.T, name, prefix string, n byte) conf.OpenVPN {
	return conf.OpenVPN{
		Name: name, Mode: conf.ModeStatic, Listen: freePort(t), Device: "ov-" + name,
		Tunnel: conf.Tunnel{Local: netip.AddrFrom4([4]byte{10, 90, n, 1}), Peer: netip.AddrFrom4([4]byte{10, 90, n, 2}), MTU: 1500},
		Cipher: openvpn.CipherAES256CBC, Auth: openvpn.DigestSHA256, Ping: 100 * time.Millisecond, PingRestart: time.Second,
		Prefixes: []netip.Prefix{netip.MustParsePrefix(prefix)}, Priority: 10,
		Keys: conf.Keys{Static: openvpn.GenerateStaticKey()},
	}
}

// newRouter is the other end of an attachment.
func newRouter(t *testing.T, o conf.OpenVPN) (*openvpn.Endpoint, *fakeDevice) {
	t.Helper()
	d := newFakeDevice("router")
	e, err := openvpn.Open(t.Context(), openvpn.Config{
		Local: freePort(t), Remote: o.Listen.String(), Digest: o.Auth, Device: d,
		Static: &openvpn.Static{Key: o.Keys.Static, Cipher: o.Cipher},
		Ping:   100 * time.Millisecond, PingRestart: 500 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e, d
}

// packet4 is an IPv4 header.
func packet4(source, destination string) []byte {
	p := make([]byte, 20)
	p[0], p[3], p[8] = 0x45, 20, 64
	copy(p[12:], netip.MustParseAddr(source).AsSlice())
	copy(p[16:], netip.MustParseAddr(destination).AsSlice())
	return p
}

func TestPrefixIsAnnouncedOnlyWhileTheRouterIsThere(t *testing.T) {
	w := newWorld(t)
	o := newEntry(t, "r30", "192.168.30.0/24", 1)
	lan := []overlay.Route{{Prefix: netip.MustParsePrefix("10.30.0.0/24")}}
	w.mustApply(t, Desired{Announce: lan, OpenVPN: []conf.OpenVPN{o}})
	if got := w.mesh.announced(); got != "10.30.0.0/24" {
		t.Fatalf("announced %q before the router is there, want the LAN alone", got)
	}
	if s := w.status("r30"); s.State != StateConnecting {
		t.Errorf("state %q, want connecting", s.State)
	}
	router, _ := newRouter(t, o)
	up := func() bool { return w.mesh.announced() == "10.30.0.0/24 192.168.30.0/24" }
	w.mesh.await(t, "router is there", up)
	w.mesh.await(t, "route to the router", func() bool { return w.mesh.routed() == "ov-r30 192.168.30.0/24" })
	want := []overlay.Attachment{{
		Interface: "ov-r30", MTU: 1500, ClampMTU: 1492 - 48 - 32 - 40,
		Local: []netip.Addr{o.Tunnel.Local}, Peers: []netip.Addr{o.Tunnel.Peer}, Prefixes: o.Prefixes,
	}}
	if diff := cmp.Diff(want, w.mesh.attachments, equal); diff != "" {
		t.Errorf("attachments (-want +got):\n%s", diff)
	}
	if r := w.mesh.routes[1]; r.Priority != 10 {
		t.Errorf("priority %d, want 10", r.Priority)
	}
	if s := w.status("r30"); s.State != StateUp || !s.Peer.IsValid() || s.Mode != "static" || s.Cipher != "AES-256-CBC" || s.Heard.IsZero() {
		t.Errorf("status %+v", s)
	}

	router.Close()
	w.mesh.await(t, "router is gone", func() bool { return w.mesh.announced() == "10.30.0.0/24" })
	w.mesh.await(t, "no route", func() bool { return w.mesh.routed() == "ov-r30" })
	if s := w.status("r30"); s.State != StateDown || s.LastError == "" || s.Restarts == 0 {
		t.Errorf("status %+v, want down with a reason", s)
	}
	newRouter(t, o)
	w.mesh.await(t, "router is back", up)
}

func TestChangedAttachmentRestartsAndOthersKeepTheirSession(t *testing.T) {
	w := newWorld(t)
	a, b, c := newEntry(t, "a", "192.168.1.0/24", 1), newEntry(t, "b", "192.168.2.0/24", 2), newEntry(t, "c", "192.168.3.0/24", 3)
	none := []overlay.Route{}
	w.mustApply(t, Desired{Announce: none, OpenVPN: []conf.OpenVPN{a, b, c}})
	for _, o := range []conf.OpenVPN{a, b, c} {
		newRouter(t, o)
	}
	w.mesh.await(t, "all", func() bool { return w.mesh.announced() == "192.168.1.0/24 192.168.2.0/24 192.168.3.0/24" })
	kept, since := w.device("ov-a"), w.status("a").Since
	oldB, oldC := w.device("ov-b"), w.device("ov-c")

	changed := b
	changed.Prefixes = []netip.Prefix{netip.MustParsePrefix("192.168.20.0/24")}
	d := newEntry(t, "d", "192.168.4.0/24", 4)
	w.mustApply(t, Desired{Announce: none, OpenVPN: []conf.OpenVPN{d, changed, a}})
	w.mesh.await(t, "changed", func() bool { return w.mesh.announced() == "192.168.20.0/24 192.168.1.0/24" })
	if s := w.status("a"); w.device("ov-a") != kept || kept.isClosed() || s.Since != since || s.Restarts != 0 {
		t.Errorf("a was touched: %+v", s)
	}
	if !oldB.isClosed() || !oldC.isClosed() || w.device("ov-b") == oldB || w.device("ov-b").isClosed() {
		t.Error("b was not started again, or c not stopped")
	}
	var names []string
	for _, s := range w.set.Status() {
		names = append(names, s.Name)
	}
	if diff := cmp.Diff([]string{"d", "b", "a"}, names); diff != "" {
		t.Errorf("status is not in the order of the configuration (-want +got):\n%s", diff)
	}
}

func TestForeignPrefixChangesNothing(t *testing.T) {
	w := newWorld(t)
	a := newEntry(t, "a", "192.168.1.0/24", 1)
	w.mustApply(t, Desired{OpenVPN: []conf.OpenVPN{a}})
	newRouter(t, a)
	w.mesh.await(t, "router", func() bool { return strings.Contains(w.mesh.announced(), "192.168.1.0/24") })
	before, calls := w.mesh.announced(), w.mesh.calls
	evil := newEntry(t, "evil", "172.16.0.0/24", 2)
	err := w.set.Apply(t.Context(), Desired{Announce: []overlay.Route{}, OpenVPN: []conf.OpenVPN{evil}})
	grant, ok := errors.AsType[*overlay.GrantError](err)
	if !ok || grant.Prefix != evil.Prefixes[0] || !strings.Contains(err.Error(), "openvpn evil: prefix 172.16.0.0/24 is not granted") {
		t.Errorf("error %v, want one that names attachment and prefix", err)
	}
	if w.mesh.announced() != before || w.mesh.calls != calls || w.device("ov-evil") != nil || w.device("ov-a").isClosed() {
		t.Error("something changed")
	}
	// The other list is checked as well.
	err = w.set.Apply(t.Context(), Desired{Announce: []overlay.Route{{Prefix: evil.Prefixes[0]}}, OpenVPN: []conf.OpenVPN{a}})
	if _, ok := errors.AsType[*overlay.GrantError](err); !ok || w.mesh.announced() != before || w.device("ov-a").isClosed() {
		t.Errorf("announce of a foreign prefix: error %v, announced %q", err, w.mesh.announced())
	}
}

func TestAttachmentThatCannotStartLeavesAllAsItWas(t *testing.T) {
	w := newWorld(t)
	a := newEntry(t, "a", "192.168.1.0/24", 1)
	first := Desired{Announce: []overlay.Route{}, OpenVPN: []conf.OpenVPN{a}}
	w.mustApply(t, first)
	newRouter(t, a)
	up := func() bool { return w.mesh.announced() == "192.168.1.0/24" }
	w.mesh.await(t, "router", up)

	taken, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	b, c := newEntry(t, "b", "192.168.2.0/24", 2), newEntry(t, "c", "192.168.3.0/24", 3)
	c.Listen = taken.LocalAddr().(*net.UDPAddr).AddrPort()
	err = w.set.Apply(t.Context(), Desired{OpenVPN: []conf.OpenVPN{b, c}})
	if err == nil || !strings.HasPrefix(err.Error(), "openvpn c: ") || !strings.Contains(err.Error(), "address already in use") {
		t.Fatalf("error %v, want one about the port of c", err)
	}
	if !w.device("ov-b").isClosed() || !w.device("ov-c").isClosed() {
		t.Error("an interface was left behind")
	}
	w.mesh.await(t, "as before", up) // a was started again
	if s := w.set.Status(); len(s) != 1 || s[0].Name != "a" {
		t.Errorf("status %+v, want a alone", s)
	}
}

func TestForbiddenSourcesAreDroppedAndCounted(t *testing.T) {
	w := newWorld(t)
	o := newEntry(t, "r30", "192.168.30.0/24", 1)
	o.Prefixes = append(o.Prefixes, netip.MustParsePrefix("2001:db8:30::/64"))
	f := newFilter(newFakeDevice("x"), &o, w.set.log)
	packet6 := make([]byte, 40)
	packet6[0] = 0x60
	copy(packet6[8:], netip.MustParseAddr("2001:db8:30::5").AsSlice())
	linkLocal := slices.Clone(packet6)
	copy(linkLocal[8:], netip.MustParseAddr("fe80::1").AsSlice())
	foreign6 := slices.Clone(packet6)
	foreign6[8] = 0x21
	good := [][]byte{packet4("192.168.30.101", "192.168.10.1"), packet4("10.90.1.2", "10.90.1.1"), packet6}
	bad := [][]byte{
		packet4("192.168.10.101", "192.168.20.1"), packet4("10.90.1.1", "10.90.1.1"), packet4("127.0.0.1", "10.90.1.1"), packet4("0.0.0.0", "1.1.1.1"),
		foreign6, linkLocal, packet6[:39], {0x45}, {},
	}
	batch := [][]byte{good[0], bad[0], good[1], bad[1], bad[2], good[2], bad[3], bad[4], bad[5], bad[6], bad[7], bad[8]}
	kept := slices.Clone(batch)
	if err := f.WritePackets(batch); err != nil {
		t.Fatal(err)
	}
	d := f.Device.(*fakeDevice)
	for _, want := range good {
		if diff := cmp.Diff(want, <-d.got); diff != "" {
			t.Errorf("packet (-want +got):\n%s", diff)
		}
	}
	if len(d.got) > 0 {
		t.Errorf("%d packets too many", len(d.got))
	}
	if diff := cmp.Diff(kept, batch); diff != "" {
		t.Errorf("the list of the endpoint was changed (-want +got):\n%s", diff)
	}
	if f.refused.Load() != 8 || f.linkLocal.Load() != 1 {
		t.Errorf("counted %d and %d, want 8 and 1", f.refused.Load(), f.linkLocal.Load())
	}
	if n := testing.AllocsPerRun(100, func() { f.allows(good[0]) }); n != 0 {
		t.Errorf("%v allocations for a packet", n)
	}
}

func TestSpoofedPacketOfARouterShowsInItsStatus(t *testing.T) {
	w := newWorld(t)
	o := newEntry(t, "r30", "192.168.30.0/24", 1)
	w.mustApply(t, Desired{OpenVPN: []conf.OpenVPN{o}})
	_, router := newRouter(t, o)
	w.mesh.await(t, "router", func() bool { return strings.Contains(w.mesh.announced(), "192.168.30.0/24") })
	router.toRouter <- packet4("192.168.10.5", "192.168.20.1")
	router.toRouter <- packet4("192.168.30.5", "192.168.20.1")
	got := <-w.device("ov-r30").got
	if diff := cmp.Diff(packet4("192.168.30.5", "192.168.20.1"), got); diff != "" {
		t.Errorf("first packet that passed (-want +got):\n%s", diff)
	}
	s := w.status("r30")
	if s.Dropped[DropSource] != 1 || s.RxPackets < 1 {
		t.Errorf("status %+v, want one packet dropped for its source", s)
	}
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Status
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(s, back, equal, cmpopts.EquateApproxTime(0)); diff != "" {
		t.Errorf("status does not survive JSON (-want +got):\n%s", diff)
	}
}

func TestEndpointThatEndsByItselfStartsAgain(t *testing.T) {
	w := newWorld(t)
	o := newEntry(t, "r30", "192.168.30.0/24", 1)
	w.mustApply(t, Desired{Announce: []overlay.Route{}, OpenVPN: []conf.OpenVPN{o}})
	newRouter(t, o)
	up := func() bool { return w.mesh.announced() == "192.168.30.0/24" }
	w.mesh.await(t, "router", up)
	first := w.device("ov-r30")
	rx := w.status("r30").RxPackets
	first.fail <- errors.New("somebody deleted the interface")
	w.mesh.await(t, "withdrawn", func() bool { return w.mesh.announced() == "" && w.mesh.routed() == "" })
	w.mesh.await(t, "back", up)
	if w.device("ov-r30") == first || w.status("r30").RxPackets < rx {
		t.Error("no new interface, or counters fell")
	}
}

func TestGrantThatARouterHasAPartOfIsNotAnnouncedByDefault(t *testing.T) {
	w := newWorld(t)
	w.mustApply(t, Desired{})
	if got := w.mesh.announced(); got != "192.168.0.0/16 10.30.0.0/16" {
		t.Errorf("without attachments %q is announced, want all that is granted", got)
	}
	w.mustApply(t, Desired{OpenVPN: []conf.OpenVPN{newEntry(t, "a", "192.168.1.0/24", 1)}})
	if got := w.mesh.announced(); got != "10.30.0.0/16" {
		t.Errorf("%q is announced, want what no router has a part of", got)
	}
}

func TestCloseWithdrawsAndCleansUp(t *testing.T) {
	w := newWorld(t)
	o := newEntry(t, "r30", "192.168.30.0/24", 1)
	w.mustApply(t, Desired{Announce: []overlay.Route{}, OpenVPN: []conf.OpenVPN{o}})
	newRouter(t, o)
	w.mesh.await(t, "router", func() bool { return w.mesh.announced() == "192.168.30.0/24" })
	if err := w.set.Close(); err != nil {
		t.Fatal(err)
	}
	if w.mesh.announced() != "" || w.mesh.routed() != "" || !w.device("ov-r30").isClosed() || len(w.set.Status()) != 0 {
		t.Errorf("after Close: announced %q, attached %q, interface closed %v", w.mesh.announced(), w.mesh.routed(), w.device("ov-r30").isClosed())
	}
	if err := w.set.Apply(t.Context(), Desired{}); !errors.Is(err, overlay.ErrClosed) {
		t.Errorf("Apply after Close: %v, want ErrClosed", err)
	}
	if err := w.set.Close(); err != nil {
		t.Error(err)
	}
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(o.Listen))
	if err != nil {
		t.Errorf("the port is still taken: %v", err)
	} else {
		conn.Close()
	}
}

func TestStartTimesAreKeptInTheStateDirectory(t *testing.T) {
	w := newWorld(t)
	o := newEntry(t, "r30", "192.168.30.0/24", 1)
	// Left by a run whose clock was an hour ahead.
	ahead := uint32(time.Now().Add(time.Hour).Unix())
	if err := openvpn.TimeFile(filepath.Join(w.dir, "openvpn-r30.time")).Save(ahead); err != nil {
		t.Fatal(err)
	}
	w.mustApply(t, Desired{Announce: []overlay.Route{}, OpenVPN: []conf.OpenVPN{o}})
	newRouter(t, o)
	w.mesh.await(t, "router", func() bool { return w.mesh.announced() == "192.168.30.0/24" })
	if got, err := w.set.times("r30").Load(); err != nil || got <= ahead {
		t.Errorf("stored time %d, %v, want more than %d", got, err, ahead)
	}
	entries, err := os.ReadDir(w.dir)
	if err != nil || len(entries) != 1 {
		t.Errorf("state directory has %v, %v, want the time alone", entries, err)
	}
}

func TestInterfaceThatCannotBeMadeIsNamed(t *testing.T) {
	w := newWorld(t)
	w.noTUN = fs.ErrPermission
	err := w.set.Apply(t.Context(), Desired{OpenVPN: []conf.OpenVPN{newEntry(t, "a", "192.168.1.0/24", 1)}})
	if !errors.Is(err, fs.ErrPermission) || !strings.HasPrefix(err.Error(), "openvpn a: ") {
		t.Errorf("error %v, want one that names the attachment and is fs.ErrPermission", err)
	}
}

func mustSet(t *testing.T, name, body string) routeset.Set {
	t.Helper()
	s, err := routeset.Parse(name, []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestRouteSetsAreMergedAndRolledBack(t *testing.T) {
	w := newWorld(t)
	entry := newEntry(t, "r30", "192.168.30.0/24", 1)
	base := Desired{Announce: []overlay.Route{{Prefix: netip.MustParsePrefix("192.168.10.0/24"), Priority: 5}}, OpenVPN: []conf.OpenVPN{entry}}
	w.mustApply(t, base)
	with := base
	with.Sets = []routeset.Set{
		mustSet(t, "a", `{"announce": ["10.30.0.0/18", "192.168.10.0/25"]}`),
		mustSet(t, "b", `{"lan": [{"prefix": "10.30.1.0/24", "via": "192.168.10.101"}]}`),
	}
	w.mesh.refuseLAN = errors.New("no interface")
	if err := w.set.Apply(t.Context(), with); !errors.Is(err, w.mesh.refuseLAN) {
		t.Errorf("error %v, want that of the mesh", err)
	}
	if got := fmt.Sprint(w.mesh.routes, w.mesh.lan); got != "[{192.168.10.0/24 5}] []" {
		t.Errorf("after the refusal: %s, want all as before", got)
	}
	w.mesh.refuseLAN = nil
	w.mustApply(t, with)
	if got := fmt.Sprint(w.mesh.routes, w.mesh.lan); got != "[{192.168.10.0/24 5} {10.30.0.0/18 0}] [{10.30.1.0/24 192.168.10.101}]" {
		t.Errorf("with sets: %s", got)
	}
	calls := w.mesh.calls
	w.mustApply(t, with)
	if w.mesh.calls != calls {
		t.Errorf("the same again told the mesh %d times", w.mesh.calls-calls)
	}
	w.mustApply(t, base)
	if got := fmt.Sprint(w.mesh.routes, w.mesh.lan); got != "[{192.168.10.0/24 5}] []" {
		t.Errorf("without sets: %s", got)
	}
}
