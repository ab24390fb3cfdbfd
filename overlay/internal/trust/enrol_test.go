package trust

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"errors"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// enrolment is a joiner with a ticket, on its way to the redeemer.
type enrolment struct {
	*world
	ticket   *Ticket // as the joiner parsed it
	identity ed25519.PrivateKey
	reply    *ecdh.PrivateKey
	link     *ecdh.PrivateKey // of the redeemer
	sealed   []byte
}

func newEnrolment(t testing.TB) *enrolment {
	t.Helper()
	w := newWorld(t)
	e := &enrolment{
		world: w, identity: newKey("identity a-1"),
		reply: newExchangeKey(t, "reply"), link: newExchangeKey(t, "link redeemer"),
	}
	var err error
	if e.ticket, err = ParseTicket(w.ticketText(t, w.ticket(t))); err != nil {
		t.Fatal(err)
	}
	if e.sealed, err = SealRequest(e.ticket, e.identity, e.reply); err != nil {
		t.Fatal(err)
	}
	return e
}

func (e *enrolment) request(t testing.TB) *EnrolRequest {
	t.Helper()
	q, err := OpenRequest(e.root.id, e.link, e.sealed)
	if err != nil {
		t.Fatal(err)
	}
	return q
}

// promised is the certificate that the ticket promises.
func (e *enrolment) promised() Certificate {
	c := e.certificate()
	c.Ticket = e.ticket.ID
	return c
}

func (e *enrolment) granted(t testing.TB, c Certificate) EnrolReply {
	t.Helper()
	ch := e.chain(t, c)
	return EnrolReply{Status: EnrolGranted, Delegation: ch.Delegation.Raw(), Certificate: ch.Certificate.Raw()}
}

func TestEnrolmentGoesThereAndBack(t *testing.T) {
	e := newEnrolment(t)
	to, err := Redeemer(e.sealed)
	if err != nil || to != IDOf(e.root.id, e.ticket.RedeemerIdentity) {
		t.Errorf("redeemer %v, %v", to, err)
	}
	q := e.request(t)
	want := EnrolRequest{TicketID: e.ticket.ID, Identity: public(e.identity), ReplyKey: ExchangeKey(e.reply.PublicKey().Bytes())}
	if q.TicketID != want.TicketID || q.Identity != want.Identity || q.ReplyKey != want.ReplyKey {
		t.Errorf("got %v, want %v", q, want)
	}
	if err := q.Verify(e.root.id, e.ticket.Key[:]); err != nil {
		t.Error(err)
	}
	record := object(t, wire.Record, e.root.id, []field{{0x8001, []byte{1}}}, newKey("x"))
	reply := e.granted(t, e.promised())
	reply.Reason, reply.Records, reply.Epochs = "welcome", [][]byte{record, record}, [][]byte{e.epoch(t, 1)}
	answer, err := SealReply(e.root.id, q, e.sealed, reply)
	if err != nil {
		t.Fatal(err)
	}
	got, err := OpenReply(e.root.id, e.reply, e.sealed, answer)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&reply, got); diff != "" {
		t.Error(diff)
	}
	ch, err := VerifyReply(e.ticket, public(e.identity), got)
	if err != nil {
		t.Fatal(err)
	}
	if err := e.root.VerifyChain(ch, day0.Add(2*day)); err != nil {
		t.Error(err)
	}
}

func TestRefusalsCarryTheirReason(t *testing.T) {
	e := newEnrolment(t)
	q := e.request(t)
	for status := EnrolUsed; status <= EnrolRefused; status++ {
		answer, err := SealReply(e.root.id, q, e.sealed, EnrolReply{Status: status, Reason: "because"})
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenReply(e.root.id, e.reply, e.sealed, answer)
		if err != nil || got.Status != status || got.Reason != "because" {
			t.Errorf("status %d: got %v, %v", status, got, err)
		}
		if _, err := VerifyReply(e.ticket, public(e.identity), got); err == nil {
			t.Errorf("status %d: verified", status)
		}
	}
}

func TestLongReasonsAreCutBetweenCharacters(t *testing.T) {
	e := newEnrolment(t)
	for name, reason := range map[string]string{
		"too long":               strings.Repeat("x", 600),
		"cut within a letter":    "x" + strings.Repeat("ä", 400),
		"cut within a sign":      "xx" + strings.Repeat("✗", 400),
		"bytes that are no text": "bad \xff\xfe bytes",
	} {
		answer, err := SealReply(e.root.id, e.request(t), e.sealed, EnrolReply{Status: EnrolRefused, Reason: reason})
		if err != nil {
			t.Fatal(err)
		}
		got, err := OpenReply(e.root.id, e.reply, e.sealed, answer)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if len(got.Reason) > 512 || len(got.Reason) < 10 || !utf8.ValidString(got.Reason) {
			t.Errorf("%s: %q", name, got.Reason)
		}
	}
}

func TestRequestIsOpaqueToEverybodyElse(t *testing.T) {
	e, foreign := newEnrolment(t), newNamedWorld(t, "foreign")
	open := func(mesh MeshID, link *ecdh.PrivateKey, sealed []byte) error {
		_, err := OpenRequest(mesh, link, sealed)
		return err
	}
	// A gateway on the way learns the ticket ID and the redeemer, no more.
	seed := e.ticket.seed()
	for name, secret := range map[string][]byte{"seed": seed[:], "identity": e.identity.Public().(ed25519.PublicKey), "ticket key": e.ticket.Key[:]} {
		if bytes.Contains(e.sealed, secret) {
			t.Errorf("%s is in the sealed request", name)
		}
	}
	if err := open(e.root.id, newExchangeKey(t, "link of another"), e.sealed); !errors.Is(err, ErrFormat) {
		t.Errorf("another link key: got %v", err)
	}
	if err := open(foreign.root.id, e.link, e.sealed); !errors.Is(err, ErrFormat) {
		t.Errorf("another mesh: got %v", err)
	}
	for i := range e.sealed {
		flipped := bytes.Clone(e.sealed)
		flipped[i] ^= 0x40
		if open(e.root.id, e.link, flipped) == nil {
			t.Errorf("byte %d flipped: opens", i)
		}
	}
	for n := range e.sealed {
		if open(e.root.id, e.link, e.sealed[:n]) == nil {
			t.Errorf("%d bytes of it: opens", n)
		}
	}
	if err := open(e.root.id, e.link, make([]byte, MaxSealedRequest+1)); !errors.Is(err, ErrFormat) {
		t.Errorf("oversized: got %v", err)
	}
	for _, sealed := range [][]byte{nil, e.sealed[:31], make([]byte, MaxSealedRequest+1)} {
		if _, err := Redeemer(sealed); !errors.Is(err, ErrFormat) {
			t.Errorf("redeemer of %d bytes: got %v", len(sealed), err)
		}
	}
	if bytes.Equal(e.sealed, newEnrolment(t).sealed) {
		t.Error("two requests are the same bytes: not sealed freshly")
	}
}

// sealRaw seals any bytes as a request, as somebody could who has the ticket.
func (e *enrolment) sealRaw(t testing.TB, id [16]byte, raw []byte) []byte {
	t.Helper()
	redeemer := IDOf(e.root.id, e.ticket.RedeemerIdentity)
	header := append(bytes.Clone(id[:]), redeemer[:]...)
	sealed, err := seal(e.ticket.RedeemerLink[:], infoRequest+string(e.root.id[:]), header, raw)
	if err != nil {
		t.Fatal(err)
	}
	return append(header, sealed...)
}

func (e *enrolment) requestFields() []field {
	return []field{
		{0x8001, e.ticket.ID[:]},
		{0x8002, e.identity.Public().(ed25519.PublicKey)},
		{0x8003, e.reply.PublicKey().Bytes()},
	}
}

func TestForgedRequestsAreRefused(t *testing.T) {
	e, foreign := newEnrolment(t), newNamedWorld(t, "foreign")
	good, mallory := e.requestFields(), newKey("mallory")
	for name, raw := range map[string][]byte{
		"without the seed":        object(t, wire.EnrolRequest, e.root.id, good, mallory, e.identity),
		"for another's identity":  object(t, wire.EnrolRequest, e.root.id, good, e.ticket.key(), mallory),
		"signatures exchanged":    object(t, wire.EnrolRequest, e.root.id, good, e.identity, e.ticket.key()),
		"signed for another mesh": object(t, wire.EnrolRequest, foreign.root.id, good, e.ticket.key(), e.identity),
		"another identity put in": object(t, wire.EnrolRequest, e.root.id, with(good, 0x8002, mallory.Public().(ed25519.PublicKey)), e.ticket.key(), e.identity),
	} {
		q, err := OpenRequest(e.root.id, e.link, e.sealRaw(t, e.ticket.ID, raw))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if err := q.Verify(e.root.id, e.ticket.Key[:]); !errors.Is(err, ErrSignature) {
			t.Errorf("%s: got %v, want %v", name, err, ErrSignature)
		}
	}
	keys := []ed25519.PrivateKey{e.ticket.key(), e.identity}
	for name, sealed := range map[string][]byte{
		"no identity":              e.sealRaw(t, e.ticket.ID, object(t, wire.EnrolRequest, e.root.id, with(good, 0x8002, nil), keys...)),
		"no reply key":             e.sealRaw(t, e.ticket.ID, object(t, wire.EnrolRequest, e.root.id, with(good, 0x8003, nil), keys...)),
		"unknown critical field":   e.sealRaw(t, e.ticket.ID, object(t, wire.EnrolRequest, e.root.id, with(good, 0x8009, []byte{1}), keys...)),
		"header of another ticket": e.sealRaw(t, [16]byte{1}, object(t, wire.EnrolRequest, e.root.id, good, keys...)),
		"another object":           e.sealRaw(t, e.ticket.ID, e.org.Raw()),
		"nothing":                  e.sealRaw(t, e.ticket.ID, nil),
	} {
		if _, err := OpenRequest(e.root.id, e.link, sealed); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v, want %v", name, err, ErrFormat)
		}
	}
	q := e.request(t)
	if err := q.Verify(e.root.id, nil); !errors.Is(err, ErrSignature) {
		t.Errorf("no ticket key: got %v", err)
	}
}

func TestReplyOpensForItsRequestOnly(t *testing.T) {
	e, foreign := newEnrolment(t), newNamedWorld(t, "foreign")
	answer, err := SealReply(e.root.id, e.request(t), e.sealed, e.granted(t, e.promised()))
	if err != nil {
		t.Fatal(err)
	}
	again, err := SealRequest(e.ticket, e.identity, e.reply)
	if err != nil {
		t.Fatal(err)
	}
	for name, open := range map[string]func() (*EnrolReply, error){
		"another reply key": func() (*EnrolReply, error) { return OpenReply(e.root.id, e.link, e.sealed, answer) },
		"another request":   func() (*EnrolReply, error) { return OpenReply(e.root.id, e.reply, again, answer) },
		"another mesh":      func() (*EnrolReply, error) { return OpenReply(foreign.root.id, e.reply, e.sealed, answer) },
		"cut short":         func() (*EnrolReply, error) { return OpenReply(e.root.id, e.reply, e.sealed, answer[:len(answer)-1]) },
		"nothing":           func() (*EnrolReply, error) { return OpenReply(e.root.id, e.reply, e.sealed, nil) },
		"oversized": func() (*EnrolReply, error) {
			return OpenReply(e.root.id, e.reply, e.sealed, make([]byte, MaxSealedReply+1))
		},
	} {
		if got, err := open(); !errors.Is(err, ErrFormat) || got != nil {
			t.Errorf("%s: got %v, %v", name, got, err)
		}
	}
	for i := range answer {
		flipped := bytes.Clone(answer)
		flipped[i] ^= 0x40
		if _, err := OpenReply(e.root.id, e.reply, e.sealed, flipped); err == nil {
			t.Errorf("byte %d flipped: opens", i)
		}
	}
}

// TestReplyMustKeepThePromise has the redeemer, or whoever has its key, answer
// with something else than the ticket said.
func TestReplyMustKeepThePromise(t *testing.T) {
	e, foreign := newEnrolment(t), newNamedWorld(t, "foreign")
	me := IdentityKey(public(e.identity))
	narrower := *e.org
	narrower.NotAfter = narrower.NotAfter.Add(-day)
	renewed := e.delegate(t, narrower)
	issued := func(change func(*Certificate)) EnrolReply {
		c := e.promised()
		change(&c)
		return e.granted(t, c)
	}
	by := func(d *Delegation, key ed25519.PrivateKey, mesh *world) EnrolReply {
		ch := mesh.chainBy(t, e.promised(), d, key)
		return EnrolReply{Status: EnrolGranted, Delegation: d.Raw(), Certificate: ch.Certificate.Raw()}
	}
	wide := e.delegate(t, Delegation{
		Kind: KindIssuer, Number: 7, Key: public(newKey("issuer")), Ranges: prefixes("0.0.0.0/0", "::/0"),
		NotBefore: day0, NotAfter: day0.Add(365 * day),
	})
	moved := *e.org
	moved.Organisation = "uni-c"
	for name, row := range map[string]struct {
		reply EnrolReply
		want  error
	}{
		"as promised":                 {issued(func(*Certificate) {}), nil},
		"by a renewed delegation":     {by(renewed, newKey("org"), e.world), nil},
		"for another identity":        {issued(func(c *Certificate) { c.Identity = public(newKey("mallory")) }), ErrPromise},
		"for another ticket":          {issued(func(c *Certificate) { c.Ticket[0]++ }), ErrPromise},
		"for no ticket":               {issued(func(c *Certificate) { c.Ticket = [16]byte{} }), ErrPromise},
		"another gateway":             {issued(func(c *Certificate) { c.Gateway = "gw-a-2" }), ErrPromise},
		"another site":                {issued(func(c *Certificate) { c.Site = "a-2" }), ErrPromise},
		"another prefix":              {issued(func(c *Certificate) { c.Grants[0].Prefix = prefixes("10.2.0.0/16")[0] }), ErrPromise},
		"a longer prefix":             {issued(func(c *Certificate) { c.Grants[0].Prefix = prefixes("10.1.0.0/17")[0] }), ErrPromise},
		"a prefix less":               {issued(func(c *Certificate) { c.Grants = c.Grants[:1] }), ErrPromise},
		"a prefix more":               {issued(func(c *Certificate) { c.Grants = append(c.Grants, Grant{prefixes("fd10:2::/48")[0], 3}) }), ErrPromise},
		"by another issuer":           {by(wide, newKey("issuer"), e.world), ErrPromise},
		"into another organisation":   {by(e.delegate(t, moved), newKey("org"), e.world), ErrPromise},
		"in another mesh":             {by(foreign.org, newKey("org"), foreign), ErrSignature},
		"signed by nobody":            {by(e.org, newKey("mallory"), e.world), ErrSignature},
		"more than the delegation":    {issued(func(c *Certificate) { c.Permissions = MayRelay }), ErrChain},
		"refused, with a certificate": {EnrolReply{Status: EnrolGranted, Delegation: e.org.Raw()}, ErrFormat},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := VerifyReply(e.ticket, me, &row.reply); !errors.Is(err, row.want) {
				t.Errorf("got %v, want %v", err, row.want)
			}
		})
	}
}

func TestReplyWithOtherPermissionsIsRefused(t *testing.T) {
	e := newEnrolment(t)
	ticket := e.world.ticket(t)
	ticket.Delegation, ticket.Prefixes = e.issuer, prefixes("192.168.10.0/24")
	ticket.Permissions = MayRelay
	text, err := ticket.Sign(newKey("issuer"), stream())
	if err != nil {
		t.Fatal(err)
	}
	if e.ticket, err = ParseTicket(text); err != nil {
		t.Fatal(err)
	}
	for permissions, want := range map[Permissions]error{MayRelay: nil, 0: ErrPromise} {
		c := e.promised()
		c.Grants, c.Permissions = []Grant{{prefixes("192.168.10.0/24")[0], 1}}, permissions
		ch := e.chainBy(t, c, e.issuer, newKey("issuer"))
		reply := &EnrolReply{Status: EnrolGranted, Delegation: ch.Delegation.Raw(), Certificate: ch.Certificate.Raw()}
		if _, err := VerifyReply(e.ticket, public(e.identity), reply); !errors.Is(err, want) {
			t.Errorf("permissions %d: got %v, want %v", permissions, err, want)
		}
	}
}

func TestReplyIsRefused(t *testing.T) {
	e := newEnrolment(t)
	raw, err := e.granted(t, e.promised()).encode()
	if err != nil {
		t.Fatal(err)
	}
	good := fieldsOf(raw)
	for name, fields := range map[string][]field{
		"no status":                   with(good, 0x8001, nil),
		"status 6":                    with(good, 0x8001, []byte{6}),
		"refused with a chain":        with(good, 0x8001, []byte{5}),
		"granted without delegation":  with(good, 0x8003, nil),
		"granted without certificate": with(good, 0x8004, nil),
		"reason of 513 bytes":         with(good, 2, bytes.Repeat([]byte("x"), 513)),
		"reason that is no text":      with(good, 2, []byte{0xff}),
		"records that are none":       with(good, 5, e.org.Raw()),
		"records cut short":           with(good, 5, []byte{5, 1}),
		"epochs that are none":        with(good, 0x8006, e.org.Raw()),
		"unknown critical field":      with(good, 0x8007, []byte{1}),
	} {
		if _, err := decodeReply(object(t, wire.EnrolReply, MeshID{}, fields)); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v, want %v", name, err, ErrFormat)
		}
	}
	if _, err := decodeReply(object(t, wire.EnrolReply, MeshID{}, with(good, 9, []byte("later")))); err != nil {
		t.Errorf("unknown field that is not critical: %v", err)
	}
}

func TestReplyThatCannotBeReadIsNotSealed(t *testing.T) {
	e := newEnrolment(t)
	q := e.request(t)
	record := func(n int) []byte {
		return object(t, wire.Record, e.root.id, []field{{0x8001, make([]byte, n)}}, newKey("x"))
	}
	for name, reply := range map[string]EnrolReply{
		"no status":        {},
		"half a chain":     {Status: EnrolGranted, Delegation: e.org.Raw()},
		"ten long records": {Status: EnrolRefused, Records: repeat(record(8000), 10)},
		"all that fits the object but not the seal": {Status: EnrolRefused, Records: append(repeat(record(8000), 8), record(64<<10-6-5-4-8*8074-74-20))},
	} {
		if sealed, err := SealReply(e.root.id, q, e.sealed, reply); err == nil {
			t.Errorf("%s: sealed in %d bytes", name, len(sealed))
		}
	}
	q.ReplyKey = ExchangeKey{} // all results of X25519 with it are zero
	if _, err := SealReply(e.root.id, q, e.sealed, EnrolReply{Status: EnrolRefused}); err == nil {
		t.Error("sealed to a key of zeros")
	}
}

func repeat(b []byte, n int) [][]byte {
	var out [][]byte
	for range n {
		out = append(out, b)
	}
	return out
}

func FuzzDecodeEnrolRequest(f *testing.F) {
	e := newEnrolment(f)
	f.Add(object(f, wire.EnrolRequest, e.root.id, e.requestFields(), e.ticket.key(), e.identity))
	f.Add(e.sealed)
	f.Fuzz(func(t *testing.T, raw []byte) {
		q, err := decodeRequest(raw)
		if err != nil {
			return
		}
		mustBeCanonical(t, raw, object(t, wire.EnrolRequest, e.root.id, []field{
			{0x8001, q.TicketID[:]}, {0x8002, q.Identity[:]}, {0x8003, q.ReplyKey[:]},
		}, e.ticket.key(), e.identity))
	})
}

// FuzzOpenRequest gives a redeemer what anybody can send to it.
func FuzzOpenRequest(f *testing.F) {
	e := newEnrolment(f)
	f.Add(e.sealed)
	f.Add(e.sealed[:40])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, sealed []byte) {
		q, err := OpenRequest(e.root.id, e.link, sealed)
		if err == nil && q.Verify(e.root.id, e.ticket.Key[:]) == nil && q.Identity != public(e.identity) {
			t.Fatalf("forged: %x", sealed)
		}
		if _, err := OpenReply(e.root.id, e.reply, e.sealed, sealed); err == nil {
			t.Fatalf("forged: %x", sealed)
		}
	})
}

func FuzzDecodeEnrolReply(f *testing.F) {
	e := newEnrolment(f)
	record := object(f, wire.Record, e.root.id, []field{{0x8001, []byte{1}}}, newKey("x"))
	reply := e.granted(f, e.promised())
	reply.Records, reply.Epochs = [][]byte{record, record}, [][]byte{e.epoch(f, 1)}
	for _, reply := range []EnrolReply{reply, {Status: EnrolUsed, Reason: "used by x"}} {
		raw, err := reply.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		reply, err := decodeReply(raw)
		if err != nil {
			return
		}
		again, err := reply.encode()
		if err != nil {
			t.Fatal(err)
		}
		mustBeCanonical(t, raw, again, 2, 5)
	})
}
