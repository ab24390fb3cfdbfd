package overlay_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/internal/stream"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wire"
	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// newTrio is a world of three running gateways, of which the first issues.
func newTrio(t testing.TB) *world {
	t.Helper()
	w := newWorld(t, 3, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 7})
	w.start(1)
	w.start(2)
	w.mustConverge(3, time.Minute)
	return w
}

func (w *world) mustWiden(gateway string, prefixes ...string) overlay.Widened {
	w.t.Helper()
	out, err := w.meshes[0].WidenGrant(w.t.Context(), overlay.WidenRequest{Gateway: gateway, Prefixes: mustPrefixes(w.t, prefixes...)})
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

func texts(prefixes []netip.Prefix) string { return strings.Trim(fmt.Sprint(prefixes), "[]") }

func TestWiderGrantIsInForceAtOnceAndInterruptsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		birth := time.Now()
		w := newTrio(t)
		defer w.stop()
		time.Sleep(time.Minute) // virtual
		other := w.meshes[2].Watch(t.Context())
		own := w.meshes[1].Watch(t.Context())
		got := w.mustWiden("gw-site1", "10.129.0.0/18", "10.1.7.0/24", "10.128.0.0/18")
		if got.Site != "site1" || texts(got.Prefixes) != "10.1.0.0/16 10.128.0.0/18 10.129.0.0/18" ||
			texts(got.Added) != "10.128.0.0/18 10.129.0.0/18" || got.Pending != nil {
			t.Errorf("widened to %+v, want the union, without what was granted already, at once", got)
		}
		if s := w.meshes[1].Status().Self; texts(s.Granted) != texts(got.Prefixes) {
			t.Errorf("granted to the member: %v", s.Granted)
		}
		// Without a configuration it announces all that is granted.
		w.until(10*time.Second, "others follow", func() bool { return carrier(w.meshes[2], "10.129.0.0/18") == "gw-site1" })
		if g := peerStatus(w.meshes[2], "gw-site1").Generation; g != 2 {
			t.Errorf("generation %d, want the next one, 2", g)
		}
		granted := 0
		for len(own) > 0 {
			if (<-own).Kind == overlay.EventGranted {
				granted++
			}
		}
		if granted != 1 {
			t.Errorf("%d events about the grant, want one", granted)
		}
		for len(other) > 0 {
			if e := <-other; e.Kind != overlay.EventRouteAdded {
				t.Errorf("another gateway saw %+v, want added routes alone", e)
			}
		}
		// The same again changes nothing.
		again := w.mustWiden("gw-site1", "10.128.0.0/18", "10.128.63.0/24")
		time.Sleep(5 * time.Minute) // virtual: a reminder would have come
		if g := peerStatus(w.meshes[2], "gw-site1").Generation; len(again.Added) != 0 || again.Pending != nil || g != 2 {
			t.Errorf("the same again: %+v, generation %d", again, g)
		}
		// It outlives a restart of both, and the next renewal.
		w.restart(0)
		w.restart(1)
		w.until(time.Minute, "all see it again", func() bool {
			return peerStatus(w.meshes[0], "gw-site1").State == overlay.PeerUp && peerStatus(w.meshes[2], "gw-site1").State == overlay.PeerUp
		})
		if texts(w.meshes[1].Status().Self.Granted) != texts(got.Prefixes) {
			t.Errorf("granted after a restart: %v", w.meshes[1].Status().Self.Granted)
		}
		w.sleepUntil(birth.Add(15*day + time.Hour))
		for i := range 3 {
			w.start(i)
		}
		w.until(5*time.Minute, "renewal", func() bool { return peerStatus(w.meshes[2], "gw-site1").Generation == 3 })
		if s := w.meshes[1].Status().Self; texts(s.Granted) != texts(got.Prefixes) {
			t.Errorf("granted after the renewal: %v", s.Granted)
		}
	})
}

func TestIssuerWidensItsOwnGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTrio(t)
		defer w.stop()
		if got := w.mustWiden("gw-site0", "10.128.0.0/18"); got.Pending != nil || texts(w.meshes[0].Status().Self.Granted) != "10.0.0.0/16 10.128.0.0/18" {
			t.Errorf("widened to %+v, granted %v", got, w.meshes[0].Status().Self.Granted)
		}
		w.until(10*time.Second, "others follow", func() bool { return carrier(w.meshes[2], "10.128.0.0/18") == "gw-site0" })
	})
}

func TestWiderGrantWaitsForAMemberThatIsAway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTrio(t)
		defer w.stop()
		if err := w.meshes[1].Close(); err != nil {
			t.Fatal(err)
		}
		got := w.mustWiden("gw-site1", "10.128.0.0/18")
		if got.Pending == nil || texts(got.Added) != "10.128.0.0/18" {
			t.Errorf("widened to %+v, want it pending", got)
		}
		// Meanwhile it is given to nobody else, running or not.
		_, err := w.meshes[0].Ticket(overlay.TicketRequest{Site: "site9", Prefixes: mustPrefixes(t, "10.128.3.0/24")})
		if overlap, ok := errors.AsType[*overlay.OverlapError](err); !ok || overlap.Site != "site1" {
			t.Errorf("ticket of another site for the same: %v, want an overlap with site1", err)
		}
		w.restart(0)
		w.start(1)
		w.until(3*time.Minute, "it has what was granted while it was away", func() bool {
			return texts(w.meshes[1].Status().Self.Granted) == "10.1.0.0/16 10.128.0.0/18"
		})
		w.until(10*time.Second, "others follow", func() bool { return carrier(w.meshes[2], "10.128.0.0/18") == "gw-site1" })
	})
}

func TestWideningKeepsTheRulesOfTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTrio(t)
		defer w.stop()
		promised := w.mustTicket(overlay.TicketRequest{Site: "site4", Prefixes: mustPrefixes(t, "10.4.0.0/16")})
		var many []netip.Prefix
		for i := range 64 {
			many = append(many, netip.PrefixFrom(netip.AddrFrom4([4]byte{172, 16, byte(i), 0}), 24))
		}
		ledger := mustLoad(t, w.stores[0], "issuer.ledger")
		for _, tt := range []struct {
			name string
			req  overlay.WidenRequest
			want string
		}{
			{"another site's", overlay.WidenRequest{Gateway: "gw-site1", Prefixes: mustPrefixes(t, "10.128.0.0/18", "10.2.5.0/24")}, "prefix 10.2.5.0/24 overlaps 10.2.0.0/16, which site site2 holds"},
			{"promised to another site", overlay.WidenRequest{Gateway: "gw-site1", Prefixes: promised.Prefixes()}, "which site site4 holds"},
			{"everything", overlay.WidenRequest{Gateway: "gw-site1", Prefixes: mustPrefixes(t, "0.0.0.0/0")}, "0.0.0.0/0"},
			{"loopback", overlay.WidenRequest{Gateway: "gw-site1", Prefixes: mustPrefixes(t, "127.0.0.0/16")}, "127.0.0.0/16"},
			{"host bits", overlay.WidenRequest{Gateway: "gw-site1", Prefixes: mustPrefixes(t, "10.128.0.1/18")}, "host bits"},
			{"nothing", overlay.WidenRequest{Gateway: "gw-site1"}, "at least one prefix"},
			{"too many", overlay.WidenRequest{Gateway: "gw-site1", Prefixes: many}, "would have 65 prefixes, want at most 64"},
			{"nobody", overlay.WidenRequest{Gateway: "gw-site9", Prefixes: mustPrefixes(t, "10.128.0.0/18")}, "unknown gateway"},
			{"not a member yet", overlay.WidenRequest{Gateway: "gw-site4", Prefixes: mustPrefixes(t, "10.128.0.0/18")}, "unknown gateway"},
			{"of another site than was meant", overlay.WidenRequest{Gateway: "gw-site1", Site: "site2", Prefixes: mustPrefixes(t, "10.128.0.0/18")}, "is of site site1, not of site site2"},
		} {
			_, err := w.meshes[0].WidenGrant(t.Context(), tt.req)
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("%s: error %v, want %q", tt.name, err, tt.want)
			}
		}
		if after := mustLoad(t, w.stores[0], "issuer.ledger"); string(after) != string(ledger) {
			t.Error("a refused request changed the ledger")
		}
		// Gateways of one site may hold the same, as with tickets.
		twin := w.mustTicket(overlay.TicketRequest{Site: "site1", Prefixes: mustPrefixes(t, "10.1.0.0/16")})
		if _, err := w.join(joiner, new(overlay.MemStore), twin); err != nil {
			t.Fatal(err)
		}
		w.mustWiden("gw-site1", "10.128.0.0/18")
		if got := w.mustWiden("gw-site1-2", "10.128.0.0/18"); texts(got.Prefixes) != "10.1.0.0/16 10.128.0.0/18" {
			t.Errorf("the site's other gateway has %v", got.Prefixes)
		}
		// A prefix that covers others takes their place: nothing is lost.
		if got := w.mustWiden("gw-site1", "10.128.0.0/16"); texts(got.Prefixes) != "10.1.0.0/16 10.128.0.0/16" || got.Pending != nil {
			t.Errorf("widened to %+v", got)
		}
	})
}

func TestLedgerThatBeganAnewLosesNoGrant(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTrio(t)
		defer w.stop()
		if err := w.meshes[0].Close(); err != nil {
			t.Fatal(err)
		}
		if err := w.stores[0].Delete("issuer.ledger"); err != nil {
			t.Fatal(err)
		}
		w.start(0)
		w.mustConverge(3, time.Minute)
		if got := w.mustWiden("gw-site1", "10.128.0.0/18"); texts(got.Prefixes) != "10.1.0.0/16 10.128.0.0/18" || got.Pending != nil {
			t.Errorf("widened to %+v, want what the certificate had as well", got)
		}
		if g := peerStatus(w.meshes[2], "gw-site1").Generation; g > 2 {
			t.Errorf("generation %d", g)
		}
	})
}

func TestLedgerThatCannotBeWrittenWidensNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newTrio(t)
		defer w.stop()
		if err := w.meshes[0].Close(); err != nil {
			t.Fatal(err)
		}
		cfg := w.config(0)
		cfg.Store = &powerCut{MemStore: w.stores[0], name: "issuer.ledger"}
		m, err := overlay.Open(t.Context(), cfg)
		if err != nil {
			t.Fatal(err)
		}
		w.meshes[0] = m
		w.mustConverge(3, time.Minute)
		_, err = m.WidenGrant(t.Context(), overlay.WidenRequest{Gateway: "gw-site1", Prefixes: mustPrefixes(t, "10.128.0.0/18")})
		if !errors.Is(err, syscall.ENOSPC) {
			t.Errorf("error %v, want that of the disk", err)
		}
		time.Sleep(5 * time.Minute) // virtual
		if got := texts(w.meshes[1].Status().Self.Granted); got != "10.1.0.0/16" {
			t.Errorf("granted to the member: %s", got)
		}
	})
}

func TestWideningWithoutADaemon(t *testing.T) {
	store := mustInit(t, "one", "10.1.0.0/16")
	ticket, err := overlay.NewTicket(store, overlay.TicketRequest{Site: "two", Prefixes: mustPrefixes(t, "10.2.0.0/16")},
		[]netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:17946")})
	if err != nil {
		t.Fatal(err)
	}
	got, err := overlay.WidenGrant(store, overlay.WidenRequest{Gateway: "gw-one", Prefixes: mustPrefixes(t, "10.128.0.0/18")})
	if err != nil || got.Pending != nil || texts(got.Prefixes) != "10.1.0.0/16 10.128.0.0/18" {
		t.Errorf("widened to %+v, %v", got, err)
	}
	if _, err := overlay.WidenGrant(store, overlay.WidenRequest{Gateway: "gw-one", Prefixes: ticket.Prefixes()}); err == nil {
		t.Error("what a ticket promises to another site was given away")
	}
	m := mustOpen(t, overlay.Config{Store: store, Device: overlay.DeviceNone, LocalAddrs: loopback})
	if granted := texts(m.Status().Self.Granted); granted != "10.1.0.0/16 10.128.0.0/18" {
		t.Errorf("granted after the start: %s", granted)
	}
	if _, err := overlay.WidenGrant(store, overlay.WidenRequest{Gateway: "gw-one", Prefixes: mustPrefixes(t, "10.129.0.0/18")}); !errors.Is(err, overlay.ErrStateInUse) {
		t.Errorf("with a daemon: %v, want ErrStateInUse", err)
	}
}

// api sends one request to a gateway's peer API and returns its answer.
func (a *attacker) api(peer trust.GatewayID, request string) string {
	a.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	s, err := a.streams.OpenStream(ctx, peer, stream.TypeAPI)
	if err != nil {
		a.t.Fatal(err)
	}
	defer s.Close()
	if err := wire.WriteFrame(s, []byte(request)); err != nil {
		a.t.Fatal(err)
	}
	b, err := wire.ReadFrame(s, 1<<20)
	if err != nil {
		a.t.Fatal(err)
	}
	return string(b)
}

func TestOnlyTheIssuerWidens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newSiege(t, 4) // the attacker is member 3
		defer w.end(m)
		w.mustAdmit(m)
		more := mustPrefixes(t, "10.128.0.0/18")
		for _, gateway := range []string{"gw-site1", "gw-site0", "gw-site3"} {
			if _, err := w.meshes[1].WidenGrant(t.Context(), overlay.WidenRequest{Gateway: gateway, Prefixes: more}); !errors.Is(err, overlay.ErrNotIssuer) {
				t.Errorf("a member widens %s: %v, want ErrNotIssuer", gateway, err)
			}
		}
		// A member asks for more than it has, in every form that it can think of.
		for _, request := range []string{
			`{"op":"renew","prefixes":["10.128.0.0/18"],"grants":["10.128.0.0/18"]}`,
			`{"op":"widen","gateway":"gw-site3","prefixes":["10.128.0.0/18"]}`,
			`{"op":"widened","gateway":"gw-site3","prefixes":["10.128.0.0/18"]}`,
		} {
			answer := m.api(mustID(t, w.meshes[0]), request)
			var resp struct{ Delegation, Certificate []byte }
			if err := json.Unmarshal([]byte(answer), &resp); err != nil {
				t.Fatal(err)
			}
			if resp.Certificate == nil {
				continue
			}
			chain, err := trust.DecodeChain(resp.Delegation, resp.Certificate)
			if err != nil {
				t.Fatal(err)
			}
			if got := chain.Certificate.Grants; len(got) != 1 || got[0].Prefix.String() != "10.3.0.0/16" {
				t.Errorf("%s: got a certificate for %v", request, got)
			}
		}
		if got := w.mustWiden("gw-site3", "10.3.0.0/16"); len(got.Prefixes) != 1 {
			t.Errorf("the ledger has %v for the attacker", got.Prefixes)
		}
	})
}

func TestForgedPushIsIgnored(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w, m := newSiege(t, 4)
		defer w.end(m)
		w.mustAdmit(m)
		m.mustIntroduce(endpoint(1), m.sign(m.draft(2)))
		victim := mustID(t, w.meshes[1])
		before := w.generation("gw-site1")
		refused := count(w.meshes[1], "api.refused")
		// Somebody who is not the issuer says that there is a certificate; so that
		// asking for one would show, there is.
		w.network.Cut(underlay(0), underlay(1))
		if got := w.mustWiden("gw-site1", "10.128.0.0/18"); got.Pending == nil {
			t.Fatal("the member was reached over a cut link")
		}
		w.network.Mend(underlay(0), underlay(1))
		answer := m.api(victim, `{"op":"widened"}`)
		if !strings.Contains(answer, "only the gateway that issued the certificate says so") {
			t.Errorf("answer %s", answer)
		}
		if got := count(w.meshes[1], "api.refused"); got != refused+1 {
			t.Errorf("refused requests: %d, want %d", got, refused+1)
		}
		// A certificate within the push is not looked at either, even if the issuing
		// key has signed it for this gateway.
		forged := w.issue(newAttacker(t, w.stores[1]), "10.128.0.0/18", 99, before+1)
		body, err := json.Marshal(map[string]any{"op": "widened", "delegation": forged.Delegation.Raw(), "certificate": forged.Certificate.Raw()})
		if err != nil {
			t.Fatal(err)
		}
		m.api(victim, string(body))
		if got := w.generation("gw-site1"); got != before || slices.ContainsFunc(w.meshes[1].Status().Self.Granted, func(p netip.Prefix) bool { return p.Addr().As4()[1] == 128 }) {
			t.Errorf("generation %d, granted %v, want all as before", got, w.meshes[1].Status().Self.Granted)
		}
		// The true issuer is heard.
		w.until(5*time.Minute, "the issuer's reminder", func() bool { return len(w.meshes[1].Status().Self.Granted) == 2 })
	})
}

// generation is that of a gateway's certificate, as the issuer knows it.
func (w *world) generation(gateway string) uint64 {
	w.t.Helper()
	p := peerStatus(w.meshes[0], gateway)
	if p.Gateway == "" {
		w.t.Fatalf("no gateway %s", gateway)
	}
	return p.Generation
}
