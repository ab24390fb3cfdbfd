package overlay_test

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/overlaytest"
)

// joiner is the host number of whoever wants to join a world.
const joiner = 20

func (w *world) mustTicket(req overlay.TicketRequest) overlay.Ticket {
	w.t.Helper()
	ticket, err := w.meshes[0].Ticket(req)
	if err != nil {
		w.t.Fatal(err)
	}
	parsed, err := overlay.ParseTicket(ticket.Text())
	if err != nil {
		w.t.Fatal(err)
	}
	return parsed
}

// join uses a ticket from host number i.
func (w *world) join(i int, store overlay.Store, ticket overlay.Ticket) (overlay.JoinResult, error) {
	ctx, cancel := context.WithTimeout(w.t.Context(), 20*time.Second)
	defer cancel()
	return overlay.Join(ctx, store, ticket, overlay.JoinOptions{ListenPacket: w.network.Host(underlay(i)).ListenPacket})
}

// newIssuer is a world of the issuing gateway alone.
func newIssuer(t testing.TB) *world {
	t.Helper()
	return newWorld(t, 1, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 1})
}

func (w *world) restart(i int) {
	w.t.Helper()
	if err := w.meshes[i].Close(); err != nil {
		w.t.Fatal(err)
	}
	w.start(i)
}

// mustHoldNoGateway checks that a store cannot be opened.
func mustHoldNoGateway(t testing.TB, store overlay.Store) {
	t.Helper()
	m, err := overlay.Open(t.Context(), overlay.Config{Store: store, Device: overlay.DeviceNone})
	if !errors.Is(err, overlay.ErrNoState) {
		t.Errorf("open: got %v, want ErrNoState", err)
	}
	if m != nil {
		_ = m.Close()
	}
}

func siteTwo(t testing.TB) overlay.TicketRequest {
	return overlay.TicketRequest{Site: "two", Prefixes: mustPrefixes(t, "10.2.0.0/16")}
}

func TestTicketIsForOneIdentity(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		events := w.meshes[0].Watch(t.Context())
		ticket := w.mustTicket(siteTwo(t))
		first, second := new(overlay.MemStore), new(overlay.MemStore)
		result, err := w.join(joiner, first, ticket)
		if err != nil {
			t.Fatal(err)
		}
		redeemed := time.Now().UTC()

		// The reply got lost: the same keys ask again, even after the expiry.
		w.restart(0)
		again := first.Clone()
		if err := again.Delete("certificate"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.join(joiner, again, ticket); err != nil {
			t.Fatalf("same identity again: %v", err)
		}
		if !bytes.Equal(mustLoad(t, again, "certificate"), mustLoad(t, first, "certificate")) {
			t.Error("same identity got another certificate")
		}

		_, err = w.join(joiner, second, ticket)
		if !errors.Is(err, overlay.ErrTicketUsed) {
			t.Fatalf("another identity: got %v, want ErrTicketUsed", err)
		}
		for _, want := range []string{result.GatewayID.Short(), redeemed.Format("2006-01-02 15:04")} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q does not name %s", err, want)
			}
		}
		mustHoldNoGateway(t, second)
		seen := 0
		for len(events) > 0 {
			if e := <-events; e.Kind == overlay.EventRedeemed && e.Site == "two" {
				seen++
			}
		}
		if seen != 1 {
			t.Errorf("%d events of a redemption, want 1", seen)
		}
		if got := count(w.meshes[0], "enrol.judged"); got != 2 {
			t.Errorf("enrol.judged since the restart: %d, want 2", got)
		}
	})
}

func TestTicketThatManyUseAtOnceMakesOneGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		ticket := w.mustTicket(siteTwo(t))
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			wg.Go(func() { _, errs[i] = w.join(joiner+i, new(overlay.MemStore), ticket) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			switch {
			case err == nil:
				won++
			case !errors.Is(err, overlay.ErrTicketUsed):
				t.Errorf("got %v, want ErrTicketUsed", err)
			}
		}
		if won != 1 {
			t.Errorf("%d joined with one ticket, want 1", won)
		}
	})
}

func TestTicketEndsByTheClockOfItsRedeemer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		req := siteTwo(t)
		req.TTL = time.Hour
		ticket := w.mustTicket(req)
		late := w.mustTicket(overlay.TicketRequest{Site: "three", TTL: time.Hour})
		early := new(overlay.MemStore)
		if _, err := w.join(joiner, early, late); err != nil {
			t.Fatal(err)
		}
		if err := w.meshes[0].Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + time.Second) // virtual
		w.start(0)
		store := new(overlay.MemStore)
		_, err := w.join(joiner, store, ticket)
		if !errors.Is(err, overlay.ErrTicketExpired) {
			t.Errorf("got %v, want ErrTicketExpired", err)
		}
		if err != nil && !strings.Contains(err.Error(), ticket.Expiry().Format(time.DateTime)) {
			t.Errorf("error %q does not say when the ticket ended", err)
		}
		mustHoldNoGateway(t, store)
		// Who redeemed in time may ask for the same again.
		if err := early.Delete("certificate"); err != nil {
			t.Fatal(err)
		}
		if _, err := w.join(joiner, early, late); err != nil {
			t.Errorf("redeemed in time, asked again later: %v", err)
		}
	})
}

func TestTamperedTicketIsNoTicket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		text := w.mustTicket(siteTwo(t)).Text()
		raw, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text, "pm1-"))
		if err != nil {
			t.Fatal(err)
		}
		for i := range raw {
			changed := bytes.Clone(raw)
			changed[i] ^= 1
			forged := "pm1-" + base64.RawURLEncoding.EncodeToString(changed)
			_, err := overlay.ParseTicket(forged)
			if err == nil {
				t.Errorf("ticket with byte %d of %d changed was read", i, len(raw))
			} else if strings.Contains(err.Error(), forged[10:40]) {
				t.Errorf("error repeats the ticket: %v", err)
			}
		}
		// Another site or prefix of the same length, as a joiner would wish for.
		site := bytes.Replace(raw, []byte("gw-two"), []byte("gw-one"), 1)
		prefix := bytes.Replace(raw, []byte{4, 16, 10, 2, 0, 0}, []byte{4, 16, 10, 9, 0, 0}, 1)
		for name, changed := range map[string][]byte{"site": site, "prefix": prefix} {
			if bytes.Equal(changed, raw) {
				t.Fatalf("%s not found in the ticket", name)
			}
			if _, err := overlay.ParseTicket("pm1-" + base64.RawURLEncoding.EncodeToString(changed)); err == nil {
				t.Errorf("ticket for another %s was read", name)
			}
		}
	})
}

// A member's own keys sign no tickets, and a ticket of another redeemer that
// was made with a stolen issuing key means nothing to this one's ledger.
func TestTicketOfAMemberOrOfAnotherLedgerIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		defer w.stop()
		w.start(1)
		w.mustConverge(2, time.Minute)
		m, issuer := newAttacker(t, w.stores[1]), newAttacker(t, w.stores[0])
		forged := &trust.Ticket{
			RedeemerIdentity: issuer.chain.Certificate.Identity,
			RedeemerLink:     trust.ExchangeKey(issuer.link.PublicKey().Bytes()),
			Gateway:          "gw-forged", Site: "forged", Prefixes: mustPrefixes(t, "10.77.0.0/16"),
			Expiry: time.Now().Add(time.Hour), Root: m.root, Delegation: m.chain.Delegation,
			Seeds: []netip.AddrPort{endpoint(0)},
		}
		_, _ = rand.Read(forged.LedgerEpoch[:])
		if text, err := forged.Sign(m.identity, rand.Reader); err == nil {
			t.Errorf("a member's key signed a ticket: %d characters", len(text))
		}
		stolen := ed25519.NewKeyFromSeed(mustLoadKey(t, w.stores[0], "issuer.key"))
		text, err := forged.Sign(stolen, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		ticket, err := overlay.ParseTicket(text)
		if err != nil {
			t.Fatal(err)
		}
		store := new(overlay.MemStore)
		if _, err := w.join(joiner, store, ticket); !errors.Is(err, overlay.ErrTicketRefused) {
			t.Errorf("ticket that the redeemer has not written: got %v, want ErrTicketRefused", err)
		}
		mustHoldNoGateway(t, store)
	})
}

func TestBoundTicketRefusesOtherIdentities(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		right, wrong := new(overlay.MemStore), new(overlay.MemStore)
		req := siteTwo(t)
		req.For = identityOf(t, w, right)
		ticket := w.mustTicket(req)
		_, err := w.join(joiner, wrong, ticket)
		if !errors.Is(err, overlay.ErrTicketRefused) || !strings.Contains(err.Error(), "another identity") {
			t.Errorf("other identity: got %v, want ErrTicketRefused", err)
		}
		mustHoldNoGateway(t, wrong)
		if _, err := w.join(joiner, right, ticket); err != nil {
			t.Errorf("bound identity: %v", err)
		}
	})
}

// identityOf lets a store make its keys, by an attempt that reaches nobody, and
// returns the identity.
func identityOf(t testing.TB, w *world, store overlay.Store) string {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := overlay.Join(ctx, store, w.mustTicket(overlay.TicketRequest{Site: "nobody"}), overlay.JoinOptions{
		ListenPacket: w.network.Host(underlay(joiner)).ListenPacket,
	})
	if err == nil {
		t.Fatal("join without time succeeded")
	}
	public := ed25519.NewKeyFromSeed(mustLoadKey(t, store, "identity.key")).Public().(ed25519.PublicKey)
	return base64.StdEncoding.EncodeToString(public)
}

func TestLostLedgerVoidsOldTickets(t *testing.T) {
	for name, lose := range map[string]func(*overlay.MemStore) error{
		"missing": func(s *overlay.MemStore) error { return s.Delete("issuer.ledger") },
		"damaged": func(s *overlay.MemStore) error { return s.Save("issuer.ledger", []byte(`{"epoch": "`)) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newIssuer(t)
				defer w.stop()
				ticket := w.mustTicket(siteTwo(t))
				if err := w.meshes[0].Close(); err != nil {
					t.Fatal(err)
				}
				if err := lose(w.stores[0]); err != nil {
					t.Fatal(err)
				}
				w.start(0)
				store := new(overlay.MemStore)
				if _, err := w.join(joiner, store, ticket); !errors.Is(err, overlay.ErrTicketRefused) {
					t.Errorf("old ticket: got %v, want ErrTicketRefused", err)
				}
				mustHoldNoGateway(t, store)
				if _, err := w.join(joiner, store, w.mustTicket(siteTwo(t))); err != nil {
					t.Errorf("new ticket: %v", err)
				}
			})
		})
	}
}

func TestLedgerRestoredFromABackupStillKnowsWhoJoined(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		w.stores, w.meshes = append(w.stores, new(overlay.MemStore)), append(w.meshes, nil)
		ticket := w.mustTicket(siteTwo(t))
		backup := mustLoad(t, w.stores[0], "issuer.ledger")
		if _, err := w.join(joiner, w.stores[1], ticket); err != nil {
			t.Fatal(err)
		}
		w.start(1)
		w.mustConverge(2, time.Minute)
		if err := w.meshes[0].Close(); err != nil {
			t.Fatal(err)
		}
		if err := w.stores[0].Save("issuer.ledger", backup); err != nil {
			t.Fatal(err)
		}
		w.start(0)
		store := new(overlay.MemStore)
		_, err := w.join(joiner, store, ticket)
		if !errors.Is(err, overlay.ErrTicketUsed) {
			t.Errorf("got %v, want ErrTicketUsed: a stored certificate names the ticket", err)
		}
		mustHoldNoGateway(t, store)
		// What the backup has forgotten is not given away either.
		_, err = w.meshes[0].Ticket(overlay.TicketRequest{Site: "three", Prefixes: mustPrefixes(t, "10.2.3.0/24")})
		if overlap, ok := errors.AsType[*overlay.OverlapError](err); !ok || overlap.Site != "two" {
			t.Errorf("ticket for a held prefix: got %v, want an *OverlapError with site two", err)
		}
	})
}

func TestIssuerRefusesOverlapsThatItKnowsOf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t) // site0 holds 10.0.0.0/16
		defer w.stop()
		req := siteTwo(t)
		req.TTL = time.Hour
		w.mustTicket(req) // promised, not redeemed
		for _, c := range []struct {
			site, prefix, holder, other string
		}{
			{"three", "10.0.0.0/16", "site0", "10.0.0.0/16"},
			{"three", "10.0.7.0/24", "site0", "10.0.0.0/16"},
			{"three", "10.0.0.0/15", "site0", "10.0.0.0/16"},
			{"three", "10.2.0.0/16", "two", "10.2.0.0/16"},
			{"three", "10.2.255.255/32", "two", "10.2.0.0/16"},
		} {
			_, err := w.meshes[0].Ticket(overlay.TicketRequest{Site: c.site, Prefixes: mustPrefixes(t, "172.20.0.0/16", c.prefix)})
			want := overlay.OverlapError{
				Prefix: netip.MustParsePrefix(c.prefix), Other: netip.MustParsePrefix(c.other), Site: c.holder,
			}
			if got, ok := errors.AsType[*overlay.OverlapError](err); !ok || *got != want {
				t.Errorf("%s for %s: got %v, want %v", c.prefix, c.site, err, &want)
			}
		}
		// Of one site, gateways share.
		w.mustTicket(overlay.TicketRequest{Site: "site0", Prefixes: mustPrefixes(t, "10.0.0.0/16")})
		for _, p := range []string{"0.0.0.0/0", "::/0", "10.0.0.0/7", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/8", "fe80::/64"} {
			if _, err := w.meshes[0].Ticket(overlay.TicketRequest{Site: "three", Prefixes: mustPrefixes(t, p)}); err == nil {
				t.Errorf("a ticket for %s was made", p)
			}
		}
		// A promise that nobody took ends with its ticket.
		if err := w.meshes[0].Close(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour + time.Second) // virtual
		w.start(0)
		w.mustTicket(overlay.TicketRequest{Site: "three", Prefixes: mustPrefixes(t, "10.2.0.0/16")})
	})
}

func TestOnlyAnIssuerMakesTickets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Seed: 2})
		defer w.stop()
		w.start(1)
		if _, err := w.meshes[1].Ticket(overlay.TicketRequest{Site: "x"}); !errors.Is(err, overlay.ErrNotIssuer) {
			t.Errorf("got %v, want ErrNotIssuer", err)
		}
	})
}

// powerCut is a store whose machine dies at a write.
type powerCut struct {
	*overlay.MemStore
	after int    // writes that still succeed
	name  string // or the name whose write fails; empty: by after
}

func (s *powerCut) Save(name string, b []byte) error {
	if s.name == name || s.name == "" && s.after == 0 {
		return fmt.Errorf("store %s: %w", name, syscall.ENOSPC)
	}
	s.after--
	return s.MemStore.Save(name, b)
}

func TestJoinerKilledAtAnyWriteJoinsWithTheSameTicket(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		cuts := 0
		for done := false; !done; cuts++ {
			ticket := w.mustTicket(overlay.TicketRequest{Site: fmt.Sprint("site-", cuts)})
			disk := new(overlay.MemStore)
			_, err := w.join(joiner, &powerCut{MemStore: disk, after: cuts}, ticket)
			if done = err == nil; done {
				break
			}
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("killed at write %d: got %v, want what the disk said", cuts, err)
			}
			mustHoldNoGateway(t, disk)
			identity, hadKeys := disk.Load("identity.key")
			link, hadAll := disk.Load("wireguard.key")
			if _, err := w.join(joiner, disk, ticket); err != nil {
				t.Errorf("killed at write %d, then again: %v", cuts, err)
				continue
			}
			if hadKeys == nil && hadAll == nil && (!bytes.Equal(identity, mustLoad(t, disk, "identity.key")) ||
				!bytes.Equal(link, mustLoad(t, disk, "wireguard.key"))) {
				t.Errorf("killed at write %d: other keys than before", cuts)
			}
		}
		if cuts < 8 {
			t.Errorf("join made %d writes, want keys, genesis, delegation, certificate and more", cuts)
		}
	})
}

func TestJoinKeepsKeysThatItCannotRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		store := new(overlay.MemStore)
		identityOf(t, w, store)
		damaged := []byte("not a key\n")
		if err := store.Save("link.key", damaged); err != nil {
			t.Fatal(err)
		}
		identity := mustLoad(t, store, "identity.key")
		if _, err := w.join(joiner, store, w.mustTicket(siteTwo(t))); !errors.Is(err, overlay.ErrStateCorrupt) {
			t.Errorf("join: got %v, want ErrStateCorrupt", err)
		}
		if !bytes.Equal(mustLoad(t, store, "identity.key"), identity) || !bytes.Equal(mustLoad(t, store, "link.key"), damaged) {
			t.Error("keys were replaced")
		}
	})
}

func TestJoinAndInitLeaveAGatewayAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		defer w.stop()
		ticket := w.mustTicket(siteTwo(t))
		busy := []struct {
			name  string
			store overlay.Store
			want  error
		}{
			{"running gateway", w.stores[0], overlay.ErrStateInUse},
			{"gateway", mustInit(t, "other"), overlay.ErrStateExists},
		}
		for _, c := range busy {
			certificate := mustLoad(t, c.store, "certificate")
			if _, err := w.join(joiner, c.store, ticket); !errors.Is(err, c.want) {
				t.Errorf("join into a %s: got %v, want %v", c.name, err, c.want)
			}
			if _, err := overlay.Init(c.store, overlay.InitRequest{Mesh: "x", Site: "x"}); !errors.Is(err, c.want) {
				t.Errorf("init into a %s: got %v, want %v", c.name, err, c.want)
			}
			if !bytes.Equal(certificate, mustLoad(t, c.store, "certificate")) {
				t.Errorf("%s has another certificate", c.name)
			}
		}
		// The ticket was not used up by that.
		if _, err := w.join(joiner, new(overlay.MemStore), ticket); err != nil {
			t.Error(err)
		}
	})
}

func TestJoinThatReachesNobodySaysSoAndLeavesNoGateway(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newIssuer(t)
		ticket := w.mustTicket(siteTwo(t))
		w.stop()
		store := new(overlay.MemStore)
		_, err := w.join(joiner, store, ticket)
		if !errors.Is(err, overlay.ErrNoPath) || !strings.Contains(fmt.Sprint(err), endpoint(0).String()) {
			t.Errorf("got %v, want ErrNoPath with the seed's address", err)
		}
		mustHoldNoGateway(t, store)
		if _, err := overlay.Join(t.Context(), store, overlay.Ticket{}, overlay.JoinOptions{}); err == nil {
			t.Error("the zero ticket was accepted")
		}
	})
}

// through returns a ticket of the issuing gateway, which must not run, whose
// only seeds are others.
func (w *world) through(req overlay.TicketRequest, seeds ...netip.AddrPort) overlay.Ticket {
	w.t.Helper()
	ticket, err := overlay.NewTicket(w.stores[0], req, seeds)
	if err != nil {
		w.t.Fatal(err)
	}
	return ticket
}

func TestSeedThatIsNotTheRedeemerPassesTheRequestOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		defer w.stop()
		if err := w.meshes[0].Close(); err != nil {
			t.Fatal(err)
		}
		ticket := w.through(siteTwo(t), endpoint(1))
		w.start(0)
		w.start(1)
		w.mustConverge(2, time.Minute)
		w.network.Cut(underlay(joiner), underlay(0)) // the seed is the only way
		if _, err := w.join(joiner, new(overlay.MemStore), ticket); err != nil {
			t.Fatal(err)
		}
		if got := count(w.meshes[1], "enrol.forwarded"); got != 1 {
			t.Errorf("seed passed on %d requests, want 1", got)
		}
		if got := count(w.meshes[0], "enrol.judged"); got != 1 {
			t.Errorf("redeemer judged %d requests, want 1", got)
		}
		// A request for a redeemer that nobody knows goes nowhere.
		stranger := newAttacker(t, mustInit(t, "elsewhere"))
		stranger.mesh = mustRoot(t, w.stores[0]).ID()
		stranger.run(w.network.Host(outside), 0)
		defer stranger.stop()
		for _, sealed := range [][]byte{noise(1, 31), noise(2, 200), noise(3, 4096)} {
			if _, err := stranger.streams.Enrol(t.Context(), endpoint(1), sealed); err == nil {
				t.Errorf("a made-up request of %d bytes was answered", len(sealed))
			}
		}
		if got := count(w.meshes[1], "enrol.format") + count(w.meshes[1], "enrol.no-path"); got != 3 {
			t.Errorf("%d made-up requests counted, want 3", got)
		}
	})
}

// hostileSeed is a member that runs as the seed of a ticket. It sees sealed
// requests and does with them what it wants.
type hostileSeed struct {
	*attacker
	mu     sync.Mutex // guards sealed
	sealed [][]byte
	answer func(ctx context.Context, sealed []byte) ([]byte, error)
}

func (w *world) hostileSeed(i int) *hostileSeed {
	s := &hostileSeed{attacker: newAttacker(w.t, w.stores[i])}
	s.enrol = func(ctx context.Context, sealed []byte, _ netip.AddrPort) ([]byte, error) {
		s.mu.Lock()
		s.sealed = append(s.sealed, bytes.Clone(sealed))
		s.mu.Unlock()
		return s.answer(ctx, sealed)
	}
	s.run(w.network.Host(underlay(i)), overlay.DefaultPort)
	return s
}

func TestHostileSeedLearnsAndChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, overlaytest.Options{Link: overlaytest.Link{Delay: 5 * time.Millisecond}, Seed: 2})
		defer w.stop()
		if err := w.meshes[0].Close(); err != nil {
			t.Fatal(err)
		}
		ticket := w.through(siteTwo(t), endpoint(1), endpoint(0))
		w.start(0)
		seed := w.hostileSeed(1)
		defer seed.stop()

		// It answers with rubbish, and with the redeemer's answer changed; the
		// joiner goes on to the next seed.
		answers := 0
		seed.answer = func(ctx context.Context, sealed []byte) ([]byte, error) {
			if answers++; answers == 1 {
				return noise(5, 500), nil
			}
			reply, err := seed.streams.Enrol(ctx, endpoint(0), sealed)
			if err == nil {
				reply[len(reply)/2] ^= 1
			}
			return reply, err
		}
		w.network.Cut(underlay(joiner), underlay(0))
		store := new(overlay.MemStore)
		if _, err := w.join(joiner, store, ticket); err == nil {
			t.Error("a changed answer was believed")
		}
		mustHoldNoGateway(t, store)
		w.network.Mend(underlay(joiner), underlay(0))
		if _, err := w.join(joiner, store, ticket); err != nil {
			t.Errorf("with the redeemer within reach: %v", err)
		}
		if answers < 2 {
			t.Fatalf("the seed answered %d times, want rubbish and a changed reply", answers)
		}

		// What it saw it cannot read, and sending it again makes nothing.
		seed.mu.Lock()
		sealed := seed.sealed[0]
		seed.mu.Unlock()
		if _, err := trust.OpenRequest(seed.root.ID(), seed.link, sealed); err == nil {
			t.Error("the seed opened the request")
		}
		identity := ed25519.NewKeyFromSeed(mustLoadKey(t, store, "identity.key"))
		text, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(ticket.Text(), "pm1-"))
		if err != nil {
			t.Fatal(err)
		}
		for what, secret := range map[string][]byte{
			"joiner's identity": identity.Public().(ed25519.PublicKey), "ticket's seed": text[len(text)-32:],
		} {
			if bytes.Contains(sealed, secret) {
				t.Errorf("the request shows the %s", what)
			}
		}
		before := ledgerOf(t, w.stores[0])
		reply, err := seed.streams.Enrol(t.Context(), endpoint(0), sealed)
		if err != nil {
			t.Fatalf("replayed request: %v", err)
		}
		key, err := ecdh.X25519().GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		for _, k := range []*ecdh.PrivateKey{seed.link, key} {
			if _, err := trust.OpenReply(seed.root.ID(), k, sealed, reply); err == nil {
				t.Error("the seed opened the reply")
			}
		}
		if after := ledgerOf(t, w.stores[0]); after != before {
			t.Errorf("a replayed request changed the ledger from\n%s\nto\n%s", before, after)
		}
	})
}

// ledgerOf returns the ledger in a store, in one form.
func ledgerOf(t testing.TB, store overlay.Store) string {
	t.Helper()
	var v any
	if err := json.Unmarshal(mustLoad(t, store, "issuer.ledger"), &v); err != nil {
		t.Fatal(err)
	}
	b, err := json.MarshalIndent(v, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
