package overlay_test

import (
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/internal/link"
	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/stream"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wire"
	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// attacker is a hostile program with the real keys of a member. It speaks the
// protocol with the parts that gateways use, and says with them what it wants.
// It answers probes, so that others prove a path to it, and takes part in
// nothing else.
type attacker struct {
	t        testing.TB
	root     *trust.Root
	mesh     trust.MeshID // whose tag its datagrams have: its own mesh's, unless changed before run
	id       trust.GatewayID
	identity ed25519.PrivateKey
	link, wg *ecdh.PrivateKey
	chain    trust.Chain
	boot     trust.BootID
	addr     netip.AddrPort
	port     *link.Port
	streams  *stream.Transport
	enrol    func(ctx context.Context, sealed []byte, from netip.AddrPort) ([]byte, error) // nil: refuses
	halt     func()

	mu    sync.Mutex // guards all below
	intro []byte     // record to introduce itself with
	peers map[trust.GatewayID]netip.AddrPort
}

// newAttacker makes one with the keys in store, of a gateway that does not run.
func newAttacker(t testing.TB, store overlay.Store) *attacker {
	t.Helper()
	a := &attacker{
		t:        t,
		identity: ed25519.NewKeyFromSeed(mustLoadKey(t, store, "identity.key")),
		link:     mustExchangeKey(t, store, "link.key"),
		wg:       mustExchangeKey(t, store, "wireguard.key"),
		root:     mustRoot(t, store),
		peers:    make(map[trust.GatewayID]netip.AddrPort),
	}
	chain, err := trust.DecodeChain(mustLoad(t, store, "delegation"), mustLoad(t, store, "certificate"))
	if err != nil {
		t.Fatal(err)
	}
	a.chain = chain
	a.mesh = a.root.ID()
	a.id = trust.IDOf(a.root.ID(), trust.IdentityKey(a.identity.Public().(ed25519.PublicKey)))
	_, _ = rand.Read(a.boot[:])
	return a
}

// run opens the attacker's port on a host and serves until stop.
func (a *attacker) run(host *overlaytest.Host, port uint16) {
	a.t.Helper()
	a.runOn(host, port, host.ListenPacket)
}

// listener opens the socket of a gateway.
type listener func(ctx context.Context, port uint16) (net.PacketConn, error)

func (a *attacker) runOn(host *overlaytest.Host, port uint16, listen listener) {
	a.t.Helper()
	var err error
	a.port, err = link.Open(a.t.Context(), link.Config{
		Mesh: a.mesh, Port: port, ListenPacket: listen,
		Own: link.OwnKeys{ID: a.id, Identity: a.chain.Certificate.Identity, Boot: a.boot, Link: a.link, WireGuard: a.wg},
	})
	if err != nil {
		a.t.Fatal(err)
	}
	a.addr = netip.AddrPortFrom(host.Addrs()[0], a.port.LocalPort())
	ignore := func(context.Context, trust.GatewayID, stream.Stream) {}
	a.streams, err = stream.New(stream.Config{
		Conn: a.port.StreamConn(), Identity: a.identity, Introduce: a.introduction, Verify: a.verify,
		Addr: a.pathTo, Enrol: a.enrol, Proven: func(netip.AddrPort) bool { return true },
		Handlers: map[byte]stream.Handler{stream.TypeAntiEntropy: ignore, stream.TypeGossip: ignore},
	})
	if err != nil {
		a.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = a.port.Run(ctx) })
	wg.Go(func() { _ = a.streams.Run(ctx) })
	a.halt = sync.OnceFunc(func() {
		cancel()
		wg.Wait()
		_ = a.port.Close()
	})
}

func (a *attacker) stop() { a.halt() }

// verify believes everybody and remembers how to reach them.
func (a *attacker) verify(_ trust.IdentityKey, b []byte, from netip.AddrPort) (trust.GatewayID, error) {
	intro, err := trust.DecodeIntroduction(b)
	if err != nil {
		return trust.GatewayID{}, err
	}
	r, err := record.Decode(intro.Record)
	if err != nil {
		return trust.GatewayID{}, err
	}
	identity := r.Chain.Certificate.Identity
	id := trust.IDOf(a.root.ID(), identity)
	err = a.port.SetPeer(link.PeerKeys{ID: id, Identity: identity, Link: r.Link, WireGuard: r.WireGuard})
	if err == nil {
		err = a.port.SetBoot(id, intro.Boot)
	}
	a.port.SetPath(id, from)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.peers[id] = from
	return id, err
}

func (a *attacker) introduction() []byte {
	a.mu.Lock()
	defer a.mu.Unlock()
	b, err := trust.Introduction{Record: a.intro, Boot: a.boot}.Encode()
	if err != nil {
		a.t.Error(err)
	}
	return b
}

func (a *attacker) pathTo(id trust.GatewayID) (netip.AddrPort, bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	addr, ok := a.peers[id]
	return addr, ok
}

// draft is the record that an honest gateway with these keys would publish.
func (a *attacker) draft(sequence uint64) record.Record {
	r := record.Record{
		Chain: a.chain, Sequence: sequence, Software: "hostile",
		WireGuard: trust.ExchangeKey(a.wg.PublicKey().Bytes()), Link: trust.ExchangeKey(a.link.PublicKey().Bytes()),
	}
	if a.addr.IsValid() {
		r.Endpoints = []netip.AddrPort{a.addr}
	}
	for _, g := range a.chain.Certificate.Grants {
		r.Routes = append(r.Routes, record.Route{Prefix: g.Prefix})
	}
	return r
}

// sign signs a record with the attacker's own identity, whatever it says.
func (a *attacker) sign(r record.Record) []byte {
	a.t.Helper()
	raw, err := r.Sign(a.root.ID(), a.identity)
	if err != nil {
		a.t.Fatal(err)
	}
	return raw
}

// introduce shows raw as the own record to the gateway at an address, and to
// whoever dials meanwhile. If it is refused, the record before stands again.
func (a *attacker) introduce(to netip.AddrPort, raw []byte) error {
	before := a.show(raw)
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	_, err := a.streams.Introduce(ctx, to)
	if err != nil && before != nil {
		a.show(before)
	}
	return err
}

// show sets the record that introductions show, and returns the one before.
func (a *attacker) show(raw []byte) (before []byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	before, a.intro = a.intro, raw
	return before
}

func (a *attacker) mustIntroduce(to netip.AddrPort, raw []byte) {
	a.t.Helper()
	if err := a.introduce(to, raw); err != nil {
		a.t.Fatal(err)
	}
}

// Kinds of anti-entropy messages (docs/protocol.md, section 4).
const (
	kindSummary     = 1
	kindDigest      = 2
	kindRecords     = 3
	kindWant        = 4
	kindRevocations = 5
)

// push hands raws to a peer by anti-entropy and returns the records that the
// peer has.
func (a *attacker) push(peer trust.GatewayID, raws ...[]byte) (has []*record.Record, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := a.streams.OpenStream(ctx, peer, stream.TypeAntiEntropy)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	send := func(kind byte, body ...[]byte) {
		err = errors.Join(err, wire.WriteFrame(s, slices.Concat(append([][]byte{{kind}}, body...)...)))
	}
	send(kindSummary, make([]byte, 64))
	send(kindRevocations)
	send(kindDigest) // we know nobody: the peer sends all that it has
	for want := false; err == nil && !want; {
		var b []byte
		if b, err = wire.ReadFrame(s, 1<<20); err != nil {
			return nil, err
		}
		want = b[0] == kindWant
		if b[0] != kindRecords {
			continue
		}
		theirs, _ := wire.SplitObjects(b[1:])
		for _, raw := range theirs {
			r, err := record.Decode(raw)
			if err != nil {
				return nil, err
			}
			has = append(has, r)
		}
	}
	if len(raws) > 0 {
		send(kindRecords, raws...)
	}
	send(kindRecords)
	_ = s.CloseWrite()
	_, _ = io.ReadAll(s) // until the peer has read all
	return has, err
}

// gossip broadcasts raw to a peer as memberlist would.
func (a *attacker) gossip(peer trust.GatewayID, raw []byte) error {
	const typeUser = 8 // memberlist 0.7, net.go
	return a.port.SendGossip(peer, append([]byte{typeUser}, raw...))
}

func mustLoad(t testing.TB, store overlay.Store, name string) []byte {
	t.Helper()
	b, err := store.Load(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func mustLoadKey(t testing.TB, store overlay.Store, name string) []byte {
	t.Helper()
	key, err := base64.StdEncoding.DecodeString(strings.TrimSpace(string(mustLoad(t, store, name))))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func mustExchangeKey(t testing.TB, store overlay.Store, name string) *ecdh.PrivateKey {
	t.Helper()
	k, err := ecdh.X25519().NewPrivateKey(mustLoadKey(t, store, name))
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func mustRoot(t testing.TB, store overlay.Store) *trust.Root {
	t.Helper()
	root, err := trust.NewRoot(mustLoad(t, store, "genesis"), nil)
	if err != nil {
		t.Fatal(err)
	}
	return root
}

// endpoint is where gateway i of a world listens.
func endpoint(i int) netip.AddrPort { return netip.AddrPortFrom(underlay(i), overlay.DefaultPort) }

// ids returns the gateway ID of a running gateway.
func mustID(t testing.TB, m *overlay.Mesh) trust.GatewayID {
	t.Helper()
	id, err := trust.ParseGatewayID(m.Status().Self.ID)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

// picture is what a gateway shows of others, routes and conflicts, as text.
func picture(m *overlay.Mesh) string {
	s := m.Status()
	var b strings.Builder
	for _, p := range s.Peers {
		fmt.Fprintln(&b, "peer", p.Gateway, p.Site, p.ID, p.State, p.Path, p.Generation, p.Sequence, p.Software)
	}
	for _, r := range s.Routes {
		fmt.Fprintln(&b, "route", r.Prefix, r.Gateway, r.Standby)
	}
	for _, c := range s.Conflicts {
		fmt.Fprintln(&b, "conflict", c.Prefix, c.Winner, c.Loser)
	}
	for _, r := range s.Refused {
		fmt.Fprintln(&b, "refused", r.Prefix, r.Gateway, r.Reason)
	}
	return b.String()
}

// pictures of all running gateways.
func (w *world) pictures() []string {
	var out []string
	for _, m := range w.meshes {
		if m != nil {
			out = append(out, picture(m))
		}
	}
	return out
}

func (w *world) mustLookLike(before []string) {
	w.t.Helper()
	for i, now := range w.pictures() {
		if now != before[i] {
			w.t.Errorf("gateway %d shows\n%swant, as before\n%s", i, now, before[i])
		}
	}
}

// until lets virtual time pass until ok.
func (w *world) until(limit time.Duration, what string, ok func() bool) {
	w.t.Helper()
	for start := time.Now(); ; time.Sleep(50 * time.Millisecond) { // virtual
		synctest.Wait()
		if ok() {
			return
		}
		if time.Since(start) > limit {
			w.t.Fatalf("not within %v: %s\n%s", limit, what, strings.Join(w.pictures(), "\n"))
		}
	}
}

func count(m *overlay.Mesh, name string) uint64 { return m.Status().Counters[name] }

// peerStatus returns what m shows of a gateway, by name.
func peerStatus(m *overlay.Mesh, gateway string) overlay.PeerStatus {
	for _, p := range m.Status().Peers {
		if p.Gateway == gateway {
			return p
		}
	}
	return overlay.PeerStatus{}
}

// carrier returns the gateway that carries a prefix on m, empty for nobody.
func carrier(m *overlay.Mesh, prefix string) string {
	for _, r := range m.Status().Routes {
		if r.Prefix.String() == prefix {
			return r.Gateway
		}
	}
	return ""
}

// newSiege starts n gateways and gives the last one's keys to an attacker at
// its address. The world has settled.
func newSiege(t testing.TB, n int) (*world, *attacker) {
	t.Helper()
	w := newWorld(t, n, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: uint64(n)})
	for i := 1; i < n-1; i++ {
		w.start(i)
	}
	w.mustConverge(n-1, time.Minute)
	time.Sleep(10 * time.Second) // virtual: all have said what they have to say
	m := newAttacker(t, w.stores[n-1])
	m.run(w.network.Host(underlay(n-1)), overlay.DefaultPort)
	return w, m
}

func (w *world) end(m *attacker) {
	m.stop()
	w.stop()
}

// Everything that a member's real keys can sign and that no one must believe,
// by every way that a record can take.
func TestRecordsThatMustNotBeBelievedChangeNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newSiege(t, 4)
		defer w.end(m)
		w.mustAdmit(m)
		for name, raw := range w.lies(m) {
			w.mustRefuse(m, name, raw)
		}
	})
}

// mustAdmit makes the attacker a peer of all running gateways, with an honest
// record.
func (w *world) mustAdmit(m *attacker) {
	w.t.Helper()
	for i, mesh := range w.meshes {
		if mesh != nil {
			m.mustIntroduce(endpoint(i), m.sign(m.draft(1)))
		}
	}
	w.until(30*time.Second, "attacker is a peer", func() bool {
		for _, mesh := range w.meshes {
			if mesh != nil && peerStatus(mesh, m.chain.Certificate.Gateway).State != overlay.PeerUp {
				return false
			}
		}
		return true
	})
	time.Sleep(10 * time.Second) // virtual
}

// lies are records that gateways must refuse, by what is wrong with them.
func (w *world) lies(m *attacker) map[string][]byte {
	victim := mustRecord(w.t, m, mustID(w.t, w.meshes[1]))
	ahead := func(change func(*record.Record)) []byte {
		r := m.draft(1000)
		change(&r)
		return m.sign(r)
	}
	flipped := slices.Clone(victim.Raw)
	flipped[len(flipped)-1] ^= 1
	newer := slices.Clone(m.sign(m.draft(1001)))
	newer[len(newer)/2] ^= 1
	stranger := newAttacker(w.t, mustInit(w.t, "site3", "10.3.0.0/16"))
	return map[string][]byte{
		"signature of another":       flipped,
		"signature over other bytes": newer,
		"certificate of the victim":  ahead(func(r *record.Record) { r.Chain = victim.Chain; r.Routes = nil }),
		"prefix of the victim":       ahead(func(r *record.Record) { r.Routes = routes("10.1.0.0/16") }),
		"part of the victim's":       ahead(func(r *record.Record) { r.Routes = routes("10.1.2.0/24") }),
		"wider than the own grant":   ahead(func(r *record.Record) { r.Routes = routes("10.0.0.0/8") }),
		"default route":              ahead(func(r *record.Record) { r.Routes = routes("0.0.0.0/0") }),
		"another mesh":               stranger.sign(stranger.draft(1)),
		"certified by itself":        ahead(func(r *record.Record) { r.Chain, r.Routes = m.selfCertified("10.1.0.0/16"), routes("10.1.0.0/16") }),
		"delegated by itself":        ahead(func(r *record.Record) { r.Chain, r.Routes = m.selfDelegated("10.1.0.0/16"), routes("10.1.0.0/16") }),
	}
}

// Every member has the records of all others: they are no introduction.
func TestRecordOfAnotherIsNoIntroduction(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newSiege(t, 4)
		defer w.end(m)
		w.mustAdmit(m)
		victim, before := mustRecord(t, m, mustID(t, w.meshes[1])), w.pictures()
		for _, i := range []int{0, 2} {
			if err := m.introduce(endpoint(i), victim.Raw); !errors.Is(err, stream.ErrRefused) {
				t.Errorf("gateway %d: got %v, want it refused", i, err)
			}
			if got := count(w.meshes[i], "introduction.identity"); got < 1 { // more if it dials the attacker
				t.Errorf("gateway %d counted %d introductions of another, want 1 at least", i, got)
			}
		}
		if err := m.introduce(endpoint(1), victim.Raw); !errors.Is(err, stream.ErrRefused) {
			t.Errorf("the victim itself: got %v, want it refused", err)
		}
		time.Sleep(20 * time.Second) // virtual
		w.mustLookLike(before)
	})
}

func routes(prefixes ...string) []record.Route {
	var out []record.Route
	for _, p := range prefixes {
		out = append(out, record.Route{Prefix: netip.MustParsePrefix(p)})
	}
	return out
}

// mustRecord asks gateway 0 for the record of another.
func mustRecord(t testing.TB, m *attacker, id trust.GatewayID) *record.Record {
	t.Helper()
	m.mu.Lock()
	var from trust.GatewayID
	for peer, addr := range m.peers {
		if addr == endpoint(0) {
			from = peer
		}
	}
	m.mu.Unlock()
	has, err := m.push(from)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range has {
		if trust.IDOf(m.root.ID(), r.Chain.Certificate.Identity) == id {
			return r
		}
	}
	t.Fatalf("gateway 0 has no record of %s", id)
	return nil
}

// selfCertified is the attacker's certificate with other grants, signed by its
// own identity instead of the issuer.
func (a *attacker) selfCertified(prefix string) trust.Chain {
	a.t.Helper()
	c := *a.chain.Certificate
	c.Grants = []trust.Grant{{Prefix: netip.MustParsePrefix(prefix), Number: 1}}
	c.Generation++
	signed, err := c.Sign(a.root.ID(), a.chain.Delegation, a.identity)
	if err != nil {
		a.t.Fatal(err)
	}
	return trust.Chain{Delegation: a.chain.Delegation, Certificate: signed}
}

// selfDelegated is a chain that begins with the attacker's identity instead of
// the authority.
func (a *attacker) selfDelegated(prefix string) trust.Chain {
	a.t.Helper()
	d := *a.chain.Delegation
	d.Key = [32]byte(a.identity.Public().(ed25519.PublicKey))
	own, err := d.Sign(a.root.ID(), a.identity)
	if err != nil {
		a.t.Fatal(err)
	}
	c := *a.chain.Certificate
	c.Grants = []trust.Grant{{Prefix: netip.MustParsePrefix(prefix), Number: 1}}
	c.Generation++
	signed, err := c.Sign(a.root.ID(), own, a.identity)
	if err != nil {
		a.t.Fatal(err)
	}
	return trust.Chain{Delegation: own, Certificate: signed}
}

// mustRefuse says raw to every gateway in every way: each counts it, none
// changes.
func (w *world) mustRefuse(m *attacker, name string, raw []byte) {
	w.t.Helper()
	before := w.pictures()
	for i := range 3 {
		mesh, id := w.meshes[i], mustID(w.t, w.meshes[i])
		refused := count(mesh, "record.refused")
		if _, err := m.push(id, raw); err != nil {
			w.t.Errorf("%s: anti-entropy: %v", name, err)
		}
		if err := m.gossip(id, raw); err != nil {
			w.t.Errorf("%s: gossip: %v", name, err)
		}
		time.Sleep(time.Second) // virtual
		if got := count(mesh, "record.refused") - refused; got != 2 {
			w.t.Errorf("%s: gateway %d counted %d refused records, want 2", name, i, got)
		}
		refused = count(mesh, "introduction.record") + count(mesh, "introduction.identity")
		if err := m.introduce(endpoint(i), raw); !errors.Is(err, stream.ErrRefused) {
			w.t.Errorf("%s: introduction: got %v, want it refused", name, err)
		}
		if got := count(mesh, "introduction.record") + count(mesh, "introduction.identity") - refused; got < 1 {
			// A gateway that dials the attacker at this moment refuses it as well.
			w.t.Errorf("%s: gateway %d counted %d refused introductions, want 1 at least", name, i, got)
		}
		time.Sleep(time.Second) // virtual: connections that were refused are gone
	}
	time.Sleep(20 * time.Second) // virtual: nothing spreads either
	w.mustLookLike(before)
}

// issue signs a certificate as the issuing gateway 0 would never do: with any
// prefix, grant number and generation.
func (w *world) issue(m *attacker, prefix string, number, generation uint64) trust.Chain {
	w.t.Helper()
	issuer := ed25519.NewKeyFromSeed(mustLoadKey(w.t, w.stores[0], "issuer.key"))
	c := *m.chain.Certificate
	c.Grants = []trust.Grant{{Prefix: netip.MustParsePrefix(prefix), Number: number}}
	c.Generation = generation
	signed, err := c.Sign(m.root.ID(), m.chain.Delegation, issuer)
	if err != nil {
		w.t.Fatal(err)
	}
	return trust.Chain{Delegation: m.chain.Delegation, Certificate: signed}
}

func TestOverlappingGrantOfAnotherSiteIsAConflictThatTheLowerNumberWins(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newSiege(t, 4)
		defer w.end(m)
		say := func(prefix string, number, generation uint64) {
			m.chain = w.issue(m, prefix, number, generation)
			w.mustAdmit(m)
		}
		// A later grant of a part: the route stays with the earlier owner, and the
		// part is not installed, though it is longer.
		say("10.1.2.0/24", 1000, 2)
		for i, mesh := range []*overlay.Mesh{w.meshes[0], w.meshes[2]} {
			if got := carrier(mesh, "10.1.2.0/24"); got != "" {
				t.Errorf("observer %d routes the loser's prefix to %s", i, got)
			}
			if got := carrier(mesh, "10.1.0.0/16"); got != "gw-site1" {
				t.Errorf("observer %d routes the winner's prefix to %q", i, got)
			}
			mustConflict(t, mesh, "10.1.2.0/24", "gw-site1", "gw-site3")
		}
		// An earlier grant wins the same way: the number alone decides.
		say("10.1.2.0/24", 0, 3)
		for i, mesh := range []*overlay.Mesh{w.meshes[0], w.meshes[2]} {
			if got := carrier(mesh, "10.1.2.0/24"); got != "gw-site3" {
				t.Errorf("observer %d routes the winner's prefix to %q", i, got)
			}
			if got := carrier(mesh, "10.1.0.0/16"); got != "" {
				t.Errorf("observer %d routes the loser's prefix to %s", i, got)
			}
			mustConflict(t, mesh, "10.1.0.0/16", "gw-site3", "gw-site1")
		}
	})
}

func mustConflict(t testing.TB, m *overlay.Mesh, prefix, winner, loser string) {
	t.Helper()
	for _, c := range m.Status().Conflicts {
		if c.Prefix.String() == prefix && c.Winner == winner && c.Loser == loser {
			return
		}
	}
	t.Errorf("conflicts: got %+v, want %s with winner %s and loser %s", m.Status().Conflicts, prefix, winner, loser)
}

// siegeOf starts gateways 0 and 1 of five. Of the other three, victim and thief
// are such that the thief has the lower gateway ID, which is what would win if
// keys were not proven.
func siegeOf(t testing.TB) (w *world, victim int, m *attacker) {
	t.Helper()
	w = newWorld(t, 4, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 4})
	w.start(1)
	w.mustConverge(2, time.Minute)
	victim, thief := 2, 3
	a, b := newAttacker(t, w.stores[2]), newAttacker(t, w.stores[3])
	if a.id.String() < b.id.String() {
		victim, thief, b = 3, 2, a
	}
	b.run(w.network.Host(underlay(thief)), overlay.DefaultPort)
	return w, victim, b
}

// mustStandAgainst checks that the victim is up at both observers, and that
// the thief has no path and no route.
func (w *world) mustStandAgainst(m *attacker, victim int) {
	w.t.Helper()
	name, prefix := fmt.Sprint("gw-site", victim), fmt.Sprintf("10.%d.0.0/16", victim)
	for i := range 2 {
		if got := peerStatus(w.meshes[i], name).State; got != overlay.PeerUp {
			w.t.Errorf("observer %d: victim is %s", i, got)
		}
		if got := carrier(w.meshes[i], prefix); got != name {
			w.t.Errorf("observer %d: victim's prefix goes to %q", i, got)
		}
		thief := m.chain.Certificate.Gateway
		if got := carrier(w.meshes[i], m.chain.Certificate.Grants[0].Prefix.String()); got != "" {
			w.t.Errorf("observer %d: a route to %s with the victim's key is installed", i, thief)
		}
		if got := peerStatus(w.meshes[i], thief).State; got == overlay.PeerUp {
			w.t.Errorf("observer %d: thief is %s", i, got)
		}
	}
}

func TestVictimsWireGuardKeyPublishedFirstGainsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, victim, m := siegeOf(t)
		defer w.end(m)
		r := m.draft(1)
		r.WireGuard = trust.ExchangeKey(mustExchangeKey(t, w.stores[victim], "wireguard.key").PublicKey().Bytes())
		for i := range 2 {
			m.mustIntroduce(endpoint(i), m.sign(r))
		}
		time.Sleep(30 * time.Second) // virtual: M tries to prove what it does not have
		w.start(victim)
		w.until(time.Minute, "victim is up", func() bool {
			return peerStatus(w.meshes[0], fmt.Sprint("gw-site", victim)).State == overlay.PeerUp &&
				peerStatus(w.meshes[1], fmt.Sprint("gw-site", victim)).State == overlay.PeerUp
		})
		time.Sleep(time.Minute) // virtual
		w.mustStandAgainst(m, victim)
	})
}

func TestVictimsWireGuardKeyPublishedLaterGainsNothing(t *testing.T) {
	for name, previous := range map[string]bool{"alone": false, "with the own key as the previous one": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, victim, m := siegeOf(t)
				defer w.end(m)
				w.start(victim)
				// M is an honest peer first: its path is proven, its route installed.
				w.mustAdmit(m)
				r := m.draft(2)
				r.WireGuard = trust.ExchangeKey(mustExchangeKey(t, w.stores[victim], "wireguard.key").PublicKey().Bytes())
				if previous {
					r.PreviousWireGuard = m.draft(2).WireGuard
				}
				for i := range 2 {
					m.mustIntroduce(endpoint(i), m.sign(r))
				}
				time.Sleep(time.Minute) // virtual
				name, prefix := fmt.Sprint("gw-site", victim), fmt.Sprintf("10.%d.0.0/16", victim)
				for i := range 2 {
					if got := peerStatus(w.meshes[i], name).State; got != overlay.PeerUp {
						t.Errorf("observer %d: victim is %s", i, got)
					}
					if got := carrier(w.meshes[i], prefix); got != name {
						t.Errorf("observer %d: victim's prefix goes to %q", i, got)
					}
				}
				if !previous {
					w.mustStandAgainst(m, victim)
				}
			})
		})
	}
}

func TestEquivocationEndsWithOneRecordEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newSiege(t, 5)
		defer w.end(m)
		w.mustAdmit(m)
		one, two := m.draft(7), m.draft(7)
		one.Software, two.Software = "one", "two"
		m.mustPush(w.meshes[0], m.sign(one))
		m.mustPush(w.meshes[2], m.sign(two))
		w.until(time.Minute, "one record everywhere", func() bool {
			first := peerStatus(w.meshes[0], "gw-site4")
			for _, mesh := range w.meshes[:4] {
				if p := peerStatus(mesh, "gw-site4"); p.Sequence != 7 || p.Software != first.Software {
					return false
				}
			}
			return true
		})
		winner, loser := m.sign(one), m.sign(two)
		if bodyHash(t, winner) > bodyHash(t, loser) {
			winner = loser
		}
		want, err := record.Decode(winner)
		if err != nil {
			t.Fatal(err)
		}
		var proofs uint64
		for i, mesh := range w.meshes[:4] {
			if got := peerStatus(mesh, "gw-site4").Software; got != want.Software {
				t.Errorf("gateway %d has the record of %q, want %q: the smaller hash", i, got, want.Software)
			}
			proofs += count(mesh, "record.conflict") + count(mesh, "record.lost")
		}
		if proofs == 0 {
			t.Error("nobody counted the equivocation")
		}
	})
}

func bodyHash(t testing.TB, raw []byte) string {
	t.Helper()
	o, err := wire.Decode(wire.Record, raw)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sha256.Sum256(o.Body))
}

func (a *attacker) mustPush(to *overlay.Mesh, raws ...[]byte) {
	a.t.Helper()
	if _, err := a.push(mustID(a.t, to), raws...); err != nil {
		a.t.Fatal(err)
	}
}

func TestStolenKeyAtTheLastSequenceIsCuredByRenewal(t *testing.T) {
	for _, sequence := range []uint64{record.MaxSequence, record.MaxSequence - 1, record.MaxSequence - 2000} {
		t.Run(fmt.Sprint(sequence), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w, m := newSiege(t, 4)
				defer w.end(m)
				thief := newAttacker(t, w.stores[1])
				last := thief.draft(sequence)
				last.Routes, last.Software = nil, "thief"
				m.mustIntroduce(endpoint(0), m.sign(m.draft(1)))
				m.mustPush(w.meshes[0], thief.sign(last))
				back := func() bool {
					for _, i := range []int{0, 2} {
						if carrier(w.meshes[i], "10.1.0.0/16") != "gw-site1" || peerStatus(w.meshes[i], "gw-site1").Software == "thief" {
							return false
						}
					}
					return true
				}
				w.until(5*time.Minute, "owner's record is believed again", back)
				// And the owner can be started again.
				if err := w.meshes[1].Close(); err != nil {
					t.Fatal(err)
				}
				w.start(1)
				time.Sleep(time.Minute) // virtual
				if !back() {
					t.Errorf("after a restart:\n%s", picture(w.meshes[0]))
				}
				if got := peerStatus(w.meshes[0], "gw-site1").State; got != overlay.PeerUp {
					t.Errorf("after a restart the owner is %s", got)
				}
			})
		})
	}
}

func TestRestoredSnapshotJumpsPastAndPublishesAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		defer w.stop()
		w.start(1)
		w.start(2)
		w.mustConverge(3, time.Minute)
		backup := w.stores[1].Clone()
		// What happens after the backup: restarts, each of which reserves a block.
		for range 3 {
			if err := w.meshes[1].Close(); err != nil {
				t.Fatal(err)
			}
			w.start(1)
			time.Sleep(20 * time.Second) // virtual
		}
		ahead := w.meshes[1].Status().Self.Sequence
		if err := w.meshes[1].Close(); err != nil {
			t.Fatal(err)
		}
		w.stores[1] = backup
		w.start(1)
		w.mustConverge(3, time.Minute)
		time.Sleep(20 * time.Second) // virtual
		s := w.meshes[1].Status()
		if s.Self.Sequence <= ahead {
			t.Errorf("sequence after the restore: got %d, want above %d", s.Self.Sequence, ahead)
		}
		if got := s.Counters["record.own-ahead"]; got == 0 {
			t.Error("own record from outside was not counted")
		}
		for _, warning := range s.Warnings {
			t.Errorf("warning after one restore: %s", warning)
		}
		if got := peerStatus(w.meshes[0], "gw-site1").Sequence; got != s.Self.Sequence {
			t.Errorf("others have sequence %d, the gateway says %d", got, s.Self.Sequence)
		}
	})
}

func TestClonedMachineIsNamedAndOneStopsAnnouncing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 3})
		w.meshes = append(w.meshes, nil)
		w.stores = append(w.stores, w.stores[1].Clone())
		defer w.stop()
		w.start(1)
		w.start(2)
		w.mustConverge(3, time.Minute)
		events := w.meshes[1].Watch(t.Context())
		w.start(3)
		cloneEvents := w.meshes[3].Watch(t.Context())
		time.Sleep(time.Minute) // virtual
		said := 0
		for _, c := range []<-chan overlay.Event{events, cloneEvents} {
			for len(c) > 0 {
				if e := <-c; e.Kind == overlay.EventDuplicate {
					said++
				}
			}
		}
		warned := 0
		for _, i := range []int{1, 3} {
			for _, warning := range w.meshes[i].Status().Warnings {
				if strings.Contains(warning, "duplicate identity") {
					warned++
				}
			}
		}
		if said == 0 || warned == 0 {
			t.Errorf("%d events and %d warnings name the duplicate, want at least one of each", said, warned)
		}
		// The race has an end: sequences stand still.
		before := peerStatus(w.meshes[0], "gw-site1").Sequence
		time.Sleep(30 * time.Second) // virtual
		if after := peerStatus(w.meshes[0], "gw-site1").Sequence; after != before {
			t.Errorf("sequence still rises: %d, then %d", before, after)
		}
	})
}

func TestRecordFloodOfAMemberIsLimitedAndTheNewestStands(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newSiege(t, 4)
		defer w.end(m)
		w.mustAdmit(m)
		var flood [][]byte
		for n := range uint64(300) {
			flood = append(flood, m.sign(m.draft(10+n)))
		}
		var before [3]uint64
		for i := range 3 {
			before[i] = count(w.meshes[i], "record.accepted")
		}
		start := time.Now()
		for chunk := range slices.Chunk(flood, 100) {
			for i := range 3 {
				m.mustPush(w.meshes[i], chunk...)
			}
			time.Sleep(time.Second) // virtual
		}
		w.until(time.Minute, "newest of the flood stands", func() bool {
			for i := range 3 {
				if peerStatus(w.meshes[i], "gw-site3").Sequence != 309 {
					return false
				}
			}
			return true
		})
		const burst = 10 // security decision 5
		allowed := burst + uint64(time.Since(start).Seconds()) + 1
		for i := range 3 {
			if got := count(w.meshes[i], "record.accepted") - before[i]; got > allowed {
				t.Errorf("gateway %d accepted %d changes in %v, want at most %d", i, got, time.Since(start), allowed)
			}
			if got := count(w.meshes[i], "record.limited"); got == 0 {
				t.Errorf("gateway %d counted no limited record", i)
			}
			if got := carrier(w.meshes[i], "10.1.0.0/16"); got != "gw-site1" {
				t.Errorf("gateway %d: prefix of another goes to %q", i, got)
			}
		}
	})
}
