package trust

import (
	"bytes"
	"crypto/ecdh"
	"crypto/ed25519"
	"crypto/hpke"
	"crypto/sha256"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// EnrolRequest asks a redeemer for the certificate that a ticket promises.
type EnrolRequest struct {
	TicketID [16]byte
	Identity IdentityKey
	ReplyKey ExchangeKey // fresh, for this request alone
	object   wire.Object
}

// EnrolReply is the redeemer's answer.
type EnrolReply struct {
	Status      EnrolStatus
	Reason      string // for people, at most 512 bytes
	Delegation  []byte // granted
	Certificate []byte // granted
	Records     [][]byte
	Epochs      [][]byte
}

// EnrolStatus says how a request was judged.
type EnrolStatus uint8

// The answers (docs/protocol.md, section 2).
const (
	EnrolGranted EnrolStatus = 1
	EnrolUsed    EnrolStatus = 2
	EnrolExpired EnrolStatus = 3
	EnrolVoid    EnrolStatus = 4
	EnrolRefused EnrolStatus = 5
)

// Labels of the sealing (docs/protocol.md, section 2).
const (
	infoRequest = "planetmesh/1/enrol-request\x00"
	infoReply   = "planetmesh/1/enrol-reply\x00"
)

// sealedHeader is ticket ID and redeemer gateway ID, in the clear.
const sealedHeader = 32

// MaxSealedRequest bounds a sealed request (docs/protocol.md, section 4).
const MaxSealedRequest = 4 << 10

// MaxSealedReply bounds a sealed reply (docs/protocol.md, section 4).
const MaxSealedReply = 64 << 10

// maxReason bounds the text of a reply (docs/protocol.md, section 2).
const maxReason = 512

var (
	errSealed = fmt.Errorf("%w: sealed message", ErrFormat)
	suiteKDF  = hpke.HKDFSHA256()
	suiteAEAD = hpke.ChaCha20Poly1305()
)

// SealRequest makes the request for ticket t by an identity. The reply opens
// with replyKey.
func SealRequest(t *Ticket, identity ed25519.PrivateKey, replyKey *ecdh.PrivateKey) ([]byte, error) {
	var w wire.Writer
	w.Field(1, t.ID[:])
	w.Field(2, identity.Public().(ed25519.PublicKey))
	w.Field(3, replyKey.PublicKey().Bytes())
	raw, err := encode(wire.EnrolRequest, t.Root.id, &w, t.key(), identity)
	if err != nil {
		return nil, err
	}
	redeemer := IDOf(t.Root.id, t.RedeemerIdentity)
	header := append(bytes.Clone(t.ID[:]), redeemer[:]...)
	sealed, err := seal(t.RedeemerLink[:], infoRequest+string(t.Root.id[:]), header, raw)
	if err != nil {
		return nil, err
	}
	return append(header, sealed...), nil
}

// Redeemer says for whom a sealed request is.
func Redeemer(sealed []byte) (GatewayID, error) {
	if len(sealed) < sealedHeader || len(sealed) > MaxSealedRequest {
		return GatewayID{}, errSealed
	}
	return GatewayID(sealed[16:32]), nil
}

// OpenRequest opens a request sealed to the link key. Its signatures are not
// checked yet: Verify does.
func OpenRequest(mesh MeshID, link *ecdh.PrivateKey, sealed []byte) (*EnrolRequest, error) {
	if len(sealed) < sealedHeader || len(sealed) > MaxSealedRequest {
		return nil, errSealed
	}
	header := sealed[:sealedHeader]
	raw, err := open(link, infoRequest+string(mesh[:]), header, sealed[sealedHeader:])
	if err != nil {
		return nil, err
	}
	q, err := decodeRequest(raw)
	if err != nil {
		return nil, wrap("enrolment request", err)
	}
	if !bytes.Equal(q.TicketID[:], header[:16]) {
		return nil, errSealed
	}
	return q, nil
}

// decodeRequest reads an enrolment request; no signature is checked.
func decodeRequest(raw []byte) (*EnrolRequest, error) {
	o, err := wire.Decode(wire.EnrolRequest, raw)
	if err != nil {
		return nil, err
	}
	q := &EnrolRequest{object: o}
	r := wire.NewReader(o.Body)
	r.RequiredFixed(1, q.TicketID[:])
	r.RequiredFixed(2, q.Identity[:])
	r.RequiredFixed(3, q.ReplyKey[:])
	return q, r.Close()
}

// Verify checks that the holders of the ticket's seed and of the identity key
// made the request.
func (q *EnrolRequest) Verify(mesh MeshID, ticketKey ed25519.PublicKey) error {
	if !q.object.Verify(mesh, 0, ticketKey) || !q.object.Verify(mesh, 1, q.Identity[:]) {
		return fmt.Errorf("enrolment request: %w", ErrSignature)
	}
	return nil
}

// SealReply answers the request that came as sealed. A reason that is too long
// is cut.
func SealReply(mesh MeshID, q *EnrolRequest, sealed []byte, reply EnrolReply) ([]byte, error) {
	raw, err := reply.encode()
	if err != nil {
		return nil, wrap("enrolment reply", err)
	}
	if len(raw)+sealOverhead > MaxSealedReply {
		return nil, wrap("enrolment reply", errSealed)
	}
	return seal(q.ReplyKey[:], replyInfo(mesh, sealed), nil, raw)
}

func (reply EnrolReply) encode() ([]byte, error) {
	if err := reply.checkForm(); err != nil {
		return nil, err
	}
	var w wire.Writer
	w.Uint8(1, uint8(reply.Status))
	reason := reply.Reason[:min(len(reply.Reason), maxReason)]
	w.Optional(2, []byte(strings.ToValidUTF8(reason, "")))
	w.Field(3, reply.Delegation)
	w.Field(4, reply.Certificate)
	w.Optional(5, concat(reply.Records))
	w.Field(6, concat(reply.Epochs))
	return encode(wire.EnrolReply, MeshID{}, &w)
}

func replyInfo(mesh MeshID, request []byte) string {
	sum := sha256.Sum256(request)
	return infoReply + string(mesh[:]) + string(sum[:])
}

// OpenReply opens the answer to the request that was sent as sealed.
func OpenReply(mesh MeshID, replyKey *ecdh.PrivateKey, sealed, answer []byte) (*EnrolReply, error) {
	if len(answer) > MaxSealedReply {
		return nil, errSealed
	}
	raw, err := open(replyKey, replyInfo(mesh, sealed), nil, answer)
	if err != nil {
		return nil, err
	}
	reply, err := decodeReply(raw)
	if err != nil {
		return nil, wrap("enrolment reply", err)
	}
	return reply, nil
}

// decodeReply reads an enrolment reply; the objects in it are not verified.
func decodeReply(raw []byte) (*EnrolReply, error) {
	o, err := wire.Decode(wire.EnrolReply, raw)
	if err != nil {
		return nil, err
	}
	reply := new(EnrolReply)
	r := wire.NewReader(o.Body)
	reply.Status = EnrolStatus(r.Uint8(1))
	reply.Reason = string(r.Optional(2))
	if len(reply.Reason) > maxReason || !utf8.ValidString(reply.Reason) {
		r.Fail(fmt.Errorf("%w: reason", ErrFormat))
	}
	reply.Delegation, reply.Certificate = r.Field(3), r.Field(4)
	reply.Records, err = wire.SplitList(wire.Record, r.Optional(5))
	r.Fail(err)
	reply.Epochs, err = wire.SplitList(wire.Epoch, r.Field(6))
	r.Fail(err)
	r.Fail(reply.checkForm())
	return reply, r.Close()
}

// checkForm refuses unknown answers, and a chain without a grant or the other
// way round.
func (reply EnrolReply) checkForm() error {
	granted := reply.Status == EnrolGranted
	switch {
	case reply.Status < EnrolGranted, reply.Status > EnrolRefused:
		return fmt.Errorf("%w: status %d", ErrFormat, reply.Status)
	case (reply.Delegation != nil) != granted, (reply.Certificate != nil) != granted:
		return fmt.Errorf("%w: status %d with %d bytes of chain", ErrFormat, reply.Status, len(reply.Delegation)+len(reply.Certificate))
	}
	return nil
}

// VerifyReply checks that a granted reply is exactly what the ticket promised
// to this identity, and returns the chain. Validity in time is not looked at:
// VerifyChain does. The delegation may be a renewed one; its number, which the
// authority alone gives out, and its organisation, which the overlay address
// depends on, are those of the ticket's.
func VerifyReply(t *Ticket, identity IdentityKey, reply *EnrolReply) (Chain, error) {
	ch, err := DecodeChain(reply.Delegation, reply.Certificate)
	if err != nil {
		return Chain{}, err
	}
	if err := t.Root.VerifyChainForm(ch); err != nil {
		return Chain{}, err
	}
	c, d := ch.Certificate, ch.Delegation
	switch {
	case c.Identity != identity:
		return Chain{}, fmt.Errorf("certificate is for another identity: %w", ErrPromise)
	case c.Ticket != t.ID:
		return Chain{}, fmt.Errorf("certificate is for another ticket: %w", ErrPromise)
	case c.Gateway != t.Gateway, c.Site != t.Site:
		return Chain{}, fmt.Errorf("certificate is for %s at %s: %w", c.Gateway, c.Site, ErrPromise)
	case c.Permissions != t.Permissions:
		return Chain{}, fmt.Errorf("certificate has permissions %#x: %w", c.Permissions, ErrPromise)
	case d.Number != t.Delegation.Number, d.Organisation != t.Delegation.Organisation:
		return Chain{}, fmt.Errorf("certificate is by another issuer than the ticket: %w", ErrPromise)
	case !slices.EqualFunc(c.Grants, t.Prefixes, func(g Grant, p netip.Prefix) bool { return g.Prefix == p }):
		return Chain{}, fmt.Errorf("certificate grants other prefixes: %w", ErrPromise)
	}
	return ch, nil
}

// seal encrypts to an X25519 public key: enc ‖ ciphertext (RFC 9180, base mode).
func seal(public []byte, info string, aad, plain []byte) ([]byte, error) {
	key, err := ecdh.X25519().NewPublicKey(public)
	if err != nil {
		return nil, err
	}
	to, err := hpke.NewDHKEMPublicKey(key)
	if err != nil {
		return nil, err
	}
	enc, sender, err := hpke.NewSender(to, suiteKDF, suiteAEAD, []byte(info))
	if err != nil {
		return nil, err
	}
	ciphertext, err := sender.Seal(aad, plain)
	if err != nil {
		return nil, err
	}
	return append(enc, ciphertext...), nil
}

// encLen is the length of an encapsulated X25519 key (RFC 9180, section 7.1).
const encLen = 32

// sealOverhead is by how much seal makes a message longer: enc, and the tag of
// ChaCha20-Poly1305 (RFC 8439, section 2.8).
const sealOverhead = encLen + 16

// open decrypts what seal made.
func open(key *ecdh.PrivateKey, info string, aad, sealed []byte) ([]byte, error) {
	if len(sealed) < encLen {
		return nil, errSealed
	}
	from, err := hpke.NewDHKEMPrivateKey(key)
	if err != nil {
		return nil, err
	}
	recipient, err := hpke.NewRecipient(sealed[:encLen], from, suiteKDF, suiteAEAD, []byte(info))
	if err != nil {
		return nil, errSealed
	}
	plain, err := recipient.Open(aad, sealed[encLen:])
	if err != nil {
		return nil, errSealed
	}
	return plain, nil
}
