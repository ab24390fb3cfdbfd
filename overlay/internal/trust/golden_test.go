package trust

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
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

// asHex is lines of 32 bytes.
func asHex(b []byte) []byte {
	var out strings.Builder
	for len(b) > 0 {
		n := min(32, len(b))
		fmt.Fprintf(&out, "%x\n", b[:n])
		b = b[n:]
	}
	return []byte(out.String())
}

func readHex(t *testing.T, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	b, err := hex.DecodeString(strings.ReplaceAll(string(text), "\n", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestGoldenObjects pins the bytes of every object: with these files a second
// implementation can be checked, and a change of format cannot slip in.
func TestGoldenObjects(t *testing.T) {
	w := newWorld(t)
	ch := w.chain(t, w.certificate())
	relay := w.certificate()
	relay.Site, relay.Permissions, relay.Ticket, relay.Grants = "m", MayRelay, [16]byte{1}, []Grant{{prefixes("192.168.10.0/24")[0], 1}}
	ticket := w.ticket(t)
	text := w.ticketText(t, ticket)
	e := newEnrolment(t)
	reply := e.granted(t, e.promised())
	reply.Reason = "welcome"
	replyObject, err := reply.encode()
	if err != nil {
		t.Fatal(err)
	}
	introduction, err := newIntroduction(t).Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, raw := range map[string][]byte{
		"genesis.hex":                 w.root.Genesis.Raw(),
		"epoch-1.hex":                 w.epoch(t, 1),
		"epoch-2.hex":                 w.epoch(t, 2),
		"delegation-issuer.hex":       w.issuer.Raw(),
		"delegation-organisation.hex": w.org.Raw(),
		"certificate.hex":             ch.Certificate.Raw(),
		"certificate-relay.hex":       w.chainBy(t, relay, w.issuer, newKey("issuer")).Certificate.Raw(),
		"ticket.hex":                  rawTicket(t, text),
		"enrol-request.hex":           object(t, wire.EnrolRequest, w.root.id, e.requestFields(), e.ticket.key(), e.identity),
		"enrol-reply.hex":             replyObject,
		"revocation-authority.hex":    w.revoke(t, Revocation{Kind: RevokeOrganisation, Target: []byte("uni-a")}, w.authority),
		"revocation-organisation.hex": w.revoke(t, Revocation{Kind: RevokeSerial, Target: ch.Certificate.Serial[:], Delegation: w.org}, newKey("org")),
		"introduction.hex":            introduction,
	} {
		golden(t, name, asHex(raw))
	}
	golden(t, "ticket.txt", []byte(text+"\n"))
}

// TestGoldenNames pins everything that is computed and not sent, and the keys
// behind the other golden files.
func TestGoldenNames(t *testing.T) {
	w := newWorld(t)
	identity := public(newKey("identity a-1"))
	var b strings.Builder
	for _, label := range []string{
		"authority", "authority1", "authority2", "recovery", "recovery1", "recovery2", "issuer", "org", "identity a-1", "identity redeemer",
	} {
		fmt.Fprintf(&b, "seed of %s: %x\n", label, newKey(label).Seed())
	}
	for _, label := range []string{"link redeemer", "reply"} {
		fmt.Fprintf(&b, "X25519 private key %s: %x\n", label, newExchangeKey(t, label).Bytes())
	}
	seed := func() [32]byte { x := w.ticket(t); w.ticketText(t, x); return x.seed() }()
	fmt.Fprintf(&b, "seed of the ticket: %x\n", seed)
	fmt.Fprintf(&b, "mesh ID: %v\n", w.root.ID())
	fmt.Fprintf(&b, "recovery hash: %x\n", RecoveryHash(w.recovery.Public().(ed25519.PublicKey)))
	fmt.Fprintf(&b, "gateway ID of identity a-1: %v\n", IDOf(w.root.ID(), identity))
	fmt.Fprintf(&b, "overlay block: %v\n", OverlayBlock(w.root.ID()))
	fmt.Fprintf(&b, "overlay address of identity a-1 in uni-a: %v\n", OverlayAddr(w.root.ID(), "uni-a", identity))
	fmt.Fprintf(&b, "overlay address of identity a-1 without organisation: %v\n", OverlayAddr(w.root.ID(), "", identity))
	s := NewRevocations(w.root)
	fmt.Fprintf(&b, "digest of no revocations: %x\n", s.Digest())
	mustAdd(t, s, w.revoke(t, Revocation{Kind: RevokeOrganisation, Target: []byte("uni-a")}, w.authority))
	fmt.Fprintf(&b, "digest of revocation-authority: %x\n", s.Digest())
	golden(t, "names.txt", []byte(b.String()))
}

// TestGoldenSealedMessagesOpen opens messages that were sealed once: HPKE draws
// a key each time, so they cannot be written again.
func TestGoldenSealedMessagesOpen(t *testing.T) {
	e := newEnrolment(t)
	reply := EnrolReply{Status: EnrolUsed, Reason: "used by somebody"}
	if *update {
		answer, err := SealReply(e.root.id, e.request(t), e.sealed, reply)
		if err != nil {
			t.Fatal(err)
		}
		golden(t, "sealed-request.hex", asHex(e.sealed))
		golden(t, "sealed-reply.hex", asHex(answer))
	}
	sealed, answer := readHex(t, "sealed-request.hex"), readHex(t, "sealed-reply.hex")
	q, err := OpenRequest(e.root.id, e.link, sealed)
	if err != nil {
		t.Fatal(err)
	}
	if err := q.Verify(e.root.id, e.ticket.Key[:]); err != nil || !bytes.Equal(q.TicketID[:], e.ticket.ID[:]) {
		t.Errorf("ticket %x, %v", q.TicketID, err)
	}
	got, err := OpenReply(e.root.id, e.reply, sealed, answer)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&reply, got); diff != "" {
		t.Error(diff)
	}
}
