package trust

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"reflect"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// ticket is a good one of organisation uni-a; its ID and seed come from a fixed
// stream of bytes.
func (w *world) ticket(t testing.TB) *Ticket {
	t.Helper()
	return &Ticket{
		RedeemerIdentity: public(newKey("identity redeemer")),
		RedeemerLink:     ExchangeKey(newExchangeKey(t, "link redeemer").PublicKey().Bytes()),
		LedgerEpoch:      [16]byte{7},
		Gateway:          "gw-a-1", Site: "a-1", Prefixes: prefixes("10.1.0.0/16", "fd10:1::/48"),
		Expiry: day0.Add(day), Root: w.root, Delegation: w.org,
		Seeds: []netip.AddrPort{netip.MustParseAddrPort("10.4.0.90:51820"), netip.MustParseAddrPort("[2001:db8::90]:51820")},
	}
}

// stream is 48 bytes of "randomness": ID and seed of a ticket.
func stream() io.Reader {
	b := make([]byte, 48)
	for i := range b {
		b[i] = byte(i + 1)
	}
	return bytes.NewReader(b)
}

func (w *world) ticketText(t testing.TB, ticket *Ticket) string {
	t.Helper()
	text, err := ticket.Sign(newKey("org"), stream())
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// rawTicket takes a text apart, so that its object can be signed in another
// way; textOf puts it together again.
func rawTicket(t testing.TB, text string) []byte {
	t.Helper()
	b, err := base64.RawURLEncoding.DecodeString(strings.TrimPrefix(text, "pm1-"))
	if err != nil {
		t.Fatal(err)
	}
	return b[:len(b)-32]
}

func textOf(raw []byte) string {
	seed := make([]byte, 32)
	for i := range seed {
		seed[i] = byte(16 + i + 1)
	}
	return "pm1-" + base64.RawURLEncoding.EncodeToString(append(bytes.Clone(raw), seed...))
}

func TestTicketComesBack(t *testing.T) {
	w := newWorld(t)
	root, err := NewRoot(w.root.Genesis.Raw(), [][]byte{w.epoch(t, 1)})
	if err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*Ticket){
		"as it should be": func(*Ticket) {},
		"bound":           func(x *Ticket) { x.Bound = public(newKey("identity a-1")) },
		"with epochs":     func(x *Ticket) { x.Root, x.Epochs = root, root.Epochs() },
		"no prefixes":     func(x *Ticket) { x.Prefixes = nil },
	} {
		t.Run(name, func(t *testing.T) {
			want := w.ticket(t)
			change(want)
			text := w.ticketText(t, want)
			for _, form := range []string{text, "\n " + text + " \r\n", text[:100] + "\n" + text[100:]} {
				got, err := ParseTicket(form)
				if err != nil {
					t.Fatal(err)
				}
				ignore := cmpopts.IgnoreUnexported(Ticket{}, Root{}, Delegation{}, Genesis{})
				if diff := cmp.Diff(want, got, byValue, ignore); diff != "" {
					t.Error(diff)
				}
				if got.seed() != want.seed() || got.Root.ID() != w.root.ID() {
					t.Error("another seed or mesh")
				}
			}
		})
	}
}

func TestTicketFitsAChatMessage(t *testing.T) {
	w := newWorld(t)
	// The smallest limit in wide use is Discord's of 2,000 characters.
	if text := w.ticketText(t, w.ticket(t)); len(text) > 2000 {
		t.Errorf("%d characters", len(text))
	}
}

func TestTicketIsRefusedOnceAnythingIsChanged(t *testing.T) {
	w := newWorld(t)
	text := w.ticketText(t, w.ticket(t))
	if _, err := ParseTicket(text); err != nil {
		t.Fatal(err)
	}
	body := strings.TrimPrefix(text, "pm1-")
	b, err := base64.RawURLEncoding.DecodeString(body)
	if err != nil {
		t.Fatal(err)
	}
	for i := range b {
		flipped := bytes.Clone(b)
		flipped[i] ^= 1 << (i % 8)
		if _, err := ParseTicket("pm1-" + base64.RawURLEncoding.EncodeToString(flipped)); err == nil {
			t.Errorf("byte %d of %d flipped: taken", i, len(b))
		}
	}
	for n := range text {
		if _, err := ParseTicket(text[:n]); err == nil {
			t.Errorf("%d of %d characters: taken", n, len(text))
		}
	}
	for name, s := range map[string]string{
		"another prefix":     "pm2-" + body,
		"no prefix":          body,
		"twice":              text + text,
		"a character more":   text + "A",
		"padding":            text + "=",
		"another alphabet":   "pm1-" + strings.NewReplacer("-", "+", "_", "/").Replace(body),
		"endless":            "pm1-" + strings.Repeat("A", 1<<20),
		"a word of greeting": "hello " + text,
	} {
		if s == text {
			continue // nothing to replace in this text
		}
		if _, err := ParseTicket(s); !errors.Is(err, ErrFormat) {
			t.Errorf("%s: got %v, want %v", name, err, ErrFormat)
		}
	}
}

// TestTicketHasOneText changes the bits of the last character that no byte of
// the ticket is in.
func TestTicketHasOneText(t *testing.T) {
	w := newWorld(t)
	for _, gateway := range []string{"gw-a-1", "gw-a-10", "gw-a-100"} { // all three remainders of the length
		ticket := w.ticket(t)
		ticket.Gateway = gateway
		text := w.ticketText(t, ticket)
		for _, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_" {
			other := text[:len(text)-1] + string(c)
			if _, err := ParseTicket(other); (err == nil) != (other == text) {
				t.Errorf("%d characters, the last of which is %c instead of %c: %v", len(text), c, text[len(text)-1], err)
			}
		}
	}
}

// TestTicketErrorsKeepTheSecret lets no part of a text into an error, since
// errors go to logs.
func TestTicketErrorsKeepTheSecret(t *testing.T) {
	w := newWorld(t)
	text := w.ticketText(t, w.ticket(t))
	tail := text[len(text)-20:]
	for _, s := range []string{text[1:], text + "!", text[:40] + text[41:], "pm1-" + tail} {
		_, err := ParseTicket(s)
		if err == nil {
			t.Fatalf("%d characters: taken", len(s))
		}
		for i := range len(s) - 8 {
			if part := s[i : i+8]; strings.Contains(err.Error(), part) {
				t.Errorf("%q is in %q", part, err)
			}
		}
	}
}

func TestTicketPrintsRedacted(t *testing.T) {
	w := newWorld(t)
	ticket := w.ticket(t)
	w.ticketText(t, ticket)
	type holder struct {
		Ticket  *Ticket
		Value   Ticket
		hidden  *Ticket
		private Ticket
	}
	h := holder{ticket, *ticket, ticket, *ticket}
	var logged bytes.Buffer
	log := slog.New(slog.NewTextHandler(&logged, nil))
	log.Info("ticket", "pointer", ticket, "value", *ticket, "holder", h)
	logged.WriteByte('\n')
	slog.New(slog.NewJSONHandler(&logged, nil)).Info("ticket", "pointer", ticket, "value", *ticket, "holder", h)
	asJSON, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	out := map[string]string{"slog": logged.String(), "json": string(asJSON), "string": ticket.String()}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%d", "%q"} {
		out[verb] = fmt.Sprintf(verb, ticket)
		out[verb+" of a value"] = fmt.Sprintf(verb, *ticket)
		out[verb+" of a holder"] = fmt.Sprintf(verb, h)
		out[verb+" of a list"] = fmt.Sprintf(verb, []*Ticket{ticket})
	}
	all := ticket.seed()
	seed := all[:8]
	forms := []string{
		hex.EncodeToString(seed), strings.ToUpper(hex.EncodeToString(seed)), string(seed),
		strings.Trim(fmt.Sprint(seed), "[]"), strings.Trim(strings.ReplaceAll(fmt.Sprintf("%#v", seed), "[]byte", ""), "{}"),
		base64.StdEncoding.EncodeToString(seed)[:8], base64.RawURLEncoding.EncodeToString(seed)[:8],
	}
	for name, text := range out {
		for _, form := range forms {
			if strings.Contains(text, form) {
				t.Errorf("%s shows the seed: %s", name, text)
			}
		}
		if !strings.Contains(name, "of a list") && !strings.Contains(name, "of a holder") && !strings.Contains(text, "[redacted]") {
			t.Errorf("%s: %q does not say that it is redacted", name, text)
		}
	}
	if reflect.TypeFor[Ticket]().NumMethod() < 4 {
		t.Error("a value of Ticket has lost its methods")
	}
}

func TestTicketIsRefused(t *testing.T) {
	w, foreign := newWorld(t), newNamedWorld(t, "foreign")
	good := fieldsOf(rawTicket(t, w.ticketText(t, w.ticket(t))))
	key := newKey("org")
	type row struct {
		raw  []byte
		want error
	}
	made := func(fields []field) []byte { return object(t, wire.Ticket, w.root.id, fields, key) }
	rows := map[string]row{
		"signed by a gateway":          {object(t, wire.Ticket, w.root.id, good, newKey("identity redeemer")), ErrSignature},
		"signed by the authority":      {object(t, wire.Ticket, w.root.id, good, w.authority), ErrSignature},
		"signed for another mesh":      {object(t, wire.Ticket, foreign.root.id, good, key), ErrSignature},
		"genesis of another mesh":      {made(with(good, 0x8000|10, foreign.root.Genesis.Raw())), ErrSignature},
		"delegation of another mesh":   {made(with(good, 0x8000|11, foreign.org.Raw())), ErrSignature},
		"delegation of another key":    {made(with(good, 0x8000|11, w.other.Raw())), ErrSignature},
		"epoch of another mesh":        {made(with(good, 0x8000|14, foreign.epoch(t, 1))), ErrSignature},
		"a genesis among its epochs":   {made(with(good, 0x8000|14, w.root.Genesis.Raw())), ErrFormat},
		"another ticket key":           {made(with(good, 0x8002, make([]byte, 32))), ErrSignature},
		"prefix out of range":          {made(with(good, 0x8008, wire.Prefixes(prefixes("192.168.0.0/24")))), ErrChain},
		"default route":                {made(with(good, 0x8008, wire.Prefixes(prefixes("0.0.0.0/0")))), ErrGrant},
		"site of another":              {made(with(good, 0x8007, []byte("b-1"))), ErrChain},
		"permission that is not there": {made(with(good, 0x8000|15, []byte{0, 0, 0, 1})), ErrChain},
		"65 prefixes":                  {made(with(good, 0x8008, manyPrefixes(65))), ErrFormat},
		"9 seeds":                      {made(with(good, 0x8000|12, wire.AddrPorts(manyAddrPorts(9)))), ErrFormat},
		"bound to zeros":               {made(with(good, 0x8000|13, make([]byte, 32))), ErrFormat},
		"unknown critical field":       {made(with(good, 0x8000|99, []byte{1})), ErrFormat},
		"a certificate as delegation":  {made(with(good, 0x8000|11, w.chain(t, w.certificate()).Certificate.Raw())), ErrFormat},
		"another object":               {w.org.Raw(), ErrFormat},
	}
	for number := uint16(1); number <= 12; number++ {
		if number != 8 {
			rows[fmt.Sprintf("no field %d", number)] = row{made(with(good, 0x8000|number, nil)), ErrFormat}
		}
	}
	for name, row := range rows {
		t.Run(name, func(t *testing.T) {
			if got, err := ParseTicket(textOf(row.raw)); !errors.Is(err, row.want) || got != nil {
				t.Errorf("got %v, %v, want %v", got, err, row.want)
			}
		})
	}
	if _, err := ParseTicket(textOf(made(with(good, 99, []byte("later"))))); err != nil {
		t.Errorf("unknown field that is not critical: %v", err)
	}
}

func manyAddrPorts(n int) []netip.AddrPort {
	var out []netip.AddrPort
	for i := range n {
		out = append(out, netip.AddrPortFrom(netip.MustParseAddr("10.4.0.90"), uint16(i+1)))
	}
	return out
}

func TestTicketThatCannotBeRedeemedIsNotSigned(t *testing.T) {
	w := newWorld(t)
	for name, change := range map[string]func(*Ticket){
		"prefix out of range": func(x *Ticket) { x.Prefixes = prefixes("192.168.0.0/24") },
		"prefixes descending": func(x *Ticket) { x.Prefixes = prefixes("10.2.0.0/16", "10.1.0.0/16") },
		"site of another":     func(x *Ticket) { x.Site = "b-1" },
		"no seeds":            func(x *Ticket) { x.Seeds = nil },
		"no gateway":          func(x *Ticket) { x.Gateway = "" },
		"another delegation":  func(x *Ticket) { x.Delegation = w.other },
	} {
		ticket := w.ticket(t)
		change(ticket)
		if text, err := ticket.Sign(newKey("org"), stream()); err == nil || text != "" {
			t.Errorf("%s: signed", name)
		}
	}
	if _, err := w.ticket(t).Sign(newKey("org"), bytes.NewReader(make([]byte, 47))); err != io.ErrUnexpectedEOF {
		t.Errorf("too little randomness: got %v", err)
	}
}

func FuzzParseTicket(f *testing.F) {
	w := newWorld(f)
	text := w.ticketText(f, w.ticket(f))
	f.Add(text)
	f.Add(text[:len(text)-1])
	f.Add("pm1-")
	f.Add("pm1-AAAA")
	f.Fuzz(func(t *testing.T, s string) {
		got, err := ParseTicket(s)
		if err == nil && (got.Root.ID() != w.root.ID() || got.Gateway != "gw-a-1") && got.Root.Genesis.Authority == public(w.authority) {
			t.Fatalf("forged: %q", s)
		}
	})
}

// FuzzDecodeTicket looks at what stands behind the signatures.
func FuzzDecodeTicket(f *testing.F) {
	w := newWorld(f)
	f.Add(rawTicket(f, w.ticketText(f, w.ticket(f))))
	f.Add(rawTicket(f, w.ticketText(f, w.ticket(f)))[:60])
	f.Fuzz(func(t *testing.T, raw []byte) {
		o, err := wire.Decode(wire.Ticket, raw)
		if err != nil {
			return
		}
		x := new(Ticket)
		if x.decode(o) != nil {
			return
		}
		again, err := x.encode(newKey("org"))
		if err != nil {
			t.Fatal(err)
		}
		mustBeCanonical(t, raw, again)
	})
}
