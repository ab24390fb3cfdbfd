package trust

import (
	"crypto/ed25519"
	"encoding/base64"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Ticket lets one gateway enrol with one redeemer. It holds the seed of the
// ticket key, so it prints as "[redacted]". Nobody changes a parsed one; safe
// for concurrent use.
type Ticket struct {
	ID               [16]byte
	Key              [32]byte // Ed25519 public key of the seed
	RedeemerIdentity IdentityKey
	RedeemerLink     ExchangeKey
	LedgerEpoch      [16]byte
	Gateway          string
	Site             string
	Prefixes         []netip.Prefix // ascending
	Expiry           time.Time
	Root             *Root
	Delegation       *Delegation
	Seeds            []netip.AddrPort
	Bound            IdentityKey // zero: whoever comes first
	Epochs           [][]byte
	Permissions      Permissions
	// seed is in a function, because package fmt prints what others hold in
	// unexported fields without asking our methods, but no function's variables.
	seed func() [32]byte
}

// ticketPrefix begins every ticket's text (docs/protocol.md, section 2).
const ticketPrefix = "pm1-"

// maxTicketText bounds what is decoded: 8 KiB and the seed in base64.
const maxTicketText = 12 << 10

// String returns "[redacted]".
func (t Ticket) String() string { return "[redacted]" }

// Format implements fmt.Formatter for every verb.
func (t Ticket) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// LogValue implements slog.LogValuer.
func (t Ticket) LogValue() slog.Value { return slog.StringValue("[redacted]") }

// MarshalText implements encoding.TextMarshaler, so that JSON is safe too.
func (t Ticket) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

// Sign draws ID and key of the ticket and returns its secret text. The error is
// that of random, or what ParseTicket would say of the text.
func (t *Ticket) Sign(issuer ed25519.PrivateKey, random io.Reader) (string, error) {
	var seed [32]byte
	for _, b := range [][]byte{t.ID[:], seed[:]} {
		if _, err := io.ReadFull(random, b); err != nil {
			return "", err
		}
	}
	t.seed = func() [32]byte { return seed }
	t.Key = [32]byte(t.key().Public().(ed25519.PublicKey))
	raw, err := t.encode(issuer)
	if err != nil {
		return "", wrap("ticket", err)
	}
	text := ticketPrefix + base64.RawURLEncoding.EncodeToString(append(raw, seed[:]...))
	// What cannot be redeemed is not handed out: a bad name, a prefix out of range.
	if _, err := ParseTicket(text); err != nil {
		return "", err
	}
	return text, nil
}

// encode returns the ticket object, without the seed.
func (t *Ticket) encode(issuer ed25519.PrivateKey) ([]byte, error) {
	var w wire.Writer
	w.Field(1, t.ID[:])
	w.Field(2, t.Key[:])
	w.Field(3, t.RedeemerIdentity[:])
	w.Field(4, t.RedeemerLink[:])
	w.Field(5, t.LedgerEpoch[:])
	w.Name(6, t.Gateway)
	w.Name(7, t.Site)
	w.Field(8, wire.Prefixes(t.Prefixes))
	w.Time(9, t.Expiry)
	w.Field(10, t.Root.Genesis.raw)
	w.Field(11, t.Delegation.raw)
	w.Field(12, wire.AddrPorts(t.Seeds))
	if t.Bound != (IdentityKey{}) {
		w.Field(13, t.Bound[:])
	}
	w.Field(14, concat(t.Epochs))
	w.Uint32(15, uint32(t.Permissions))
	return encode(wire.Ticket, t.Root.id, &w, issuer)
}

func concat(list [][]byte) []byte {
	var b []byte
	for _, item := range list {
		b = append(b, item...)
	}
	return b
}

// key is the key pair that signs the enrolment request.
func (t *Ticket) key() ed25519.PrivateKey {
	seed := t.seed()
	return ed25519.NewKeyFromSeed(seed[:])
}

var errTicketText = fmt.Errorf("not a ticket, want the whole text from pm1- to its end: %w", ErrFormat)

// ParseTicket reads the text of a ticket, around which white space and within
// which line breaks are ignored, and verifies the signatures in it. Whether it
// has expired is for the redeemer to judge. The errors are those of errors.go;
// none repeats the text.
func ParseTicket(text string) (*Ticket, error) {
	text, ok := strings.CutPrefix(strings.TrimSpace(text), ticketPrefix)
	if !ok || len(text) > maxTicketText {
		return nil, errTicketText
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(text)
	if err != nil || len(b) < 32 {
		return nil, errTicketText
	}
	raw, seed := b[:len(b)-32], [32]byte(b[len(b)-32:])
	t := &Ticket{seed: func() [32]byte { return seed }}
	o, err := wire.Decode(wire.Ticket, raw)
	if err != nil {
		return nil, errTicketText
	}
	if err := t.decode(o); err != nil {
		return nil, wrap("ticket", err)
	}
	if err := t.verify(o); err != nil {
		return nil, wrap("ticket", err)
	}
	return t, nil
}

func (t *Ticket) decode(o wire.Object) error {
	r := wire.NewReader(o.Body)
	r.RequiredFixed(1, t.ID[:])
	r.RequiredFixed(2, t.Key[:])
	r.RequiredFixed(3, t.RedeemerIdentity[:])
	r.RequiredFixed(4, t.RedeemerLink[:])
	r.RequiredFixed(5, t.LedgerEpoch[:])
	t.Gateway, t.Site = r.RequiredName(6), r.RequiredName(7)
	var err error
	t.Prefixes, err = wire.DecodePrefixes(r.Field(8), MaxGrants)
	r.Fail(err)
	t.Expiry = r.Time(9)
	genesis, delegation := r.Required(10), r.Required(11)
	t.Seeds, err = wire.DecodeAddrPorts(r.Required(12), MaxEndpoints)
	r.Fail(err)
	r.NonZero(13, t.Bound[:])
	t.Epochs, err = wire.SplitList(wire.Epoch, r.Field(14))
	r.Fail(err)
	t.Permissions = Permissions(r.Uint32(15))
	if err := r.Close(); err != nil {
		return err
	}
	if t.Root, err = NewRoot(genesis, t.Epochs); err != nil {
		return err
	}
	t.Delegation, err = DecodeDelegation(delegation)
	return err
}

func (t *Ticket) verify(o wire.Object) error {
	if err := t.Root.VerifyDelegation(t.Delegation); err != nil {
		return err
	}
	if !o.Verify(t.Root.id, 0, t.Delegation.Key[:]) {
		return ErrSignature
	}
	if [32]byte(t.key().Public().(ed25519.PublicKey)) != t.Key {
		return fmt.Errorf("secret part does not fit: %w", ErrSignature)
	}
	block := OverlayBlock(t.Root.id)
	for _, p := range t.Prefixes {
		if err := CheckGrant(p, block); err != nil {
			return err
		}
		if !within(p, t.Delegation.Ranges) {
			return fmt.Errorf("prefix %v: %w", p, ErrChain)
		}
	}
	if !strings.HasPrefix(t.Site, t.Delegation.SitePrefix) || t.Permissions&^t.Delegation.Permissions != 0 {
		return ErrChain
	}
	return nil
}
