package overlay

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
	"github.com/planetmesh/planetmesh/overlay/internal/wire"
)

// Lifetimes and clock tolerance of what is signed.
const (
	// delegationLifetime is that of an issuing delegation: the life of a test bed.
	delegationLifetime = 10 * 365 * 24 * time.Hour
	// certificateLifetime is that of a gateway certificate; gateways renew at
	// half of it (security decision 8).
	certificateLifetime = 30 * 24 * time.Hour
	// DefaultTicketTTL is how long a ticket is good for unless it says otherwise.
	DefaultTicketTTL = 24 * time.Hour
)

// InitRequest says what Init founds.
type InitRequest struct {
	// Mesh is the name of the mesh, for people: labels of lower-case letters,
	// digits and hyphens, joined by dots, at most 63 characters. Required.
	Mesh string
	// Site is the name of the first site, formed like Mesh. Required.
	Site string
	// Gateway is the name of its first gateway; empty means "gw-" and the site.
	Gateway string
	// Prefixes are what the first gateway may announce.
	Prefixes []netip.Prefix
	// Now reads the wall clock; nil means time.Now.
	Now func() time.Time
}

// InitResult is what Init made.
type InitResult struct {
	Mesh      string
	MeshID    MeshID
	Gateway   string
	Site      string
	GatewayID GatewayID
	// Recovery is shown to the operator once and stored nowhere. It is the
	// only thing that can replace a lost or stolen authority key.
	Recovery Secret
}

// Init founds a mesh: an authority, an issuing key delegated by it, and a first
// gateway certified by that. The store must be empty: else ErrStateExists. If
// it returns an error, the store holds no gateway.
func Init(store Store, req InitRequest) (InitResult, error) {
	if req.Now == nil {
		req.Now = time.Now
	}
	if req.Gateway == "" {
		req.Gateway = "gw-" + req.Site
	}
	unlock, err := lockEmpty(store)
	if err != nil {
		return InitResult{}, err
	}
	result, err := initialise(store, req)
	return result, errors.Join(err, unlock())
}

// lockEmpty locks a store that holds no gateway.
func lockEmpty(store Store) (unlock func() error, err error) {
	if unlock, err = store.Lock(); err != nil {
		return nil, err
	}
	_, err = store.Load(fileCertificate)
	if errors.Is(err, fs.ErrNotExist) {
		return unlock, nil
	}
	if err == nil {
		err = ErrStateExists
	}
	return nil, errors.Join(err, unlock())
}

func initialise(store Store, req InitRequest) (InitResult, error) {
	now := req.Now()
	_, authorityKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return InitResult{}, err
	}
	recoveryPublic, recoveryKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return InitResult{}, err
	}
	_, issuerKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return InitResult{}, err
	}
	k, err := newKeys()
	if err != nil {
		return InitResult{}, err
	}
	genesis := trust.Genesis{
		Name:         req.Mesh,
		Authority:    [32]byte(authorityKey.Public().(ed25519.PublicKey)),
		RecoveryHash: trust.RecoveryHash(recoveryPublic),
	}
	rawGenesis, err := genesis.Encode()
	if err != nil {
		return InitResult{}, err
	}
	root, err := trust.NewRoot(rawGenesis, nil)
	if err != nil {
		return InitResult{}, err
	}
	delegation, err := trust.Delegation{
		Kind:        trust.KindIssuer,
		Number:      1,
		Key:         [32]byte(issuerKey.Public().(ed25519.PublicKey)),
		Ranges:      []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")},
		NotBefore:   now,
		NotAfter:    now.Add(delegationLifetime),
		Permissions: trust.MayRelay,
	}.Sign(root.ID(), authorityKey)
	if err != nil {
		return InitResult{}, err
	}
	if err := checkRequest(root, req); err != nil {
		return InitResult{}, err
	}
	l, err := loadLedger(store)
	if err != nil {
		return InitResult{}, err
	}
	a := &authority{store: store, root: root, key: issuerKey, delegation: delegation, ledger: l}
	identity := trust.IdentityKey(k.identity.Public().(ed25519.PublicKey))
	chain, err := a.certify(certifyRequest{
		gateway: req.Gateway, site: req.Site, prefixes: req.Prefixes, identity: identity, relay: true,
	}, now)
	if err != nil {
		return InitResult{}, err
	}
	err = saveFiles(store, append(k.files(),
		keyFile(fileAuthority, authorityKey.Seed()),
		keyFile(fileIssuer, issuerKey.Seed()),
		stateFile{fileGenesis, rawGenesis},
		stateFile{fileIssuing, delegation.Raw()},
		stateFile{fileDelegation, delegation.Raw()},
		stateFile{fileCertificate, chain.Certificate.Raw()}, // last: with it the state is a gateway
	)...)
	if err != nil {
		return InitResult{}, err
	}
	return InitResult{
		Mesh:      req.Mesh,
		MeshID:    root.ID(),
		Gateway:   req.Gateway,
		Site:      req.Site,
		GatewayID: trust.IDOf(root.ID(), identity),
		Recovery:  Secret{base64.RawURLEncoding.EncodeToString(recoveryKey.Seed())},
	}, nil
}

// checkRequest reports what is wrong with a request before anything is written.
func checkRequest(root *trust.Root, req InitRequest) error {
	var errs []error
	for _, name := range []string{req.Site, req.Gateway} {
		if err := wire.CheckName(name); err != nil {
			errs = append(errs, err)
		}
	}
	for _, p := range req.Prefixes {
		if err := trust.CheckGrant(p, trust.OverlayBlock(root.ID())); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// TicketRequest says what a ticket is for.
type TicketRequest struct {
	// Site that the new gateway belongs to. Required.
	Site string
	// Gateway is its name; empty means a free one: "gw-" and the site, with
	// "-2", "-3" and so on for further ones. An existing name replaces that
	// gateway when the ticket is redeemed.
	Gateway string
	// Prefixes are what it may announce, at most 64.
	Prefixes []netip.Prefix
	// TTL is how long the ticket can be redeemed; zero means DefaultTicketTTL.
	TTL time.Duration
	// Relay lets the gateway forward packets for two others.
	Relay bool
	// For binds the ticket to one identity key, in base64; empty means the
	// first gateway that comes with it.
	For string
}

// Ticket lets one gateway join. Whoever has its text may do so: it prints as
// "[redacted]" except by Text.
type Ticket struct {
	Secret
	t *trust.Ticket
}

// Text is the ticket as it is handed to the operator of the new site.
func (t Ticket) Text() string { return t.Reveal() }

// Gateway returns the name of the gateway that the ticket makes.
func (t Ticket) Gateway() string { return t.t.Gateway }

// Site returns the site of that gateway.
func (t Ticket) Site() string { return t.t.Site }

// Mesh returns the name of the mesh.
func (t Ticket) Mesh() string { return t.t.Root.Genesis.Name }

// MeshID returns the ID of the mesh.
func (t Ticket) MeshID() MeshID { return t.t.Root.ID() }

// Prefixes returns what that gateway may announce.
func (t Ticket) Prefixes() []netip.Prefix { return slices.Clone(t.t.Prefixes) }

// Expiry returns when the ticket ends, by the clock of its redeemer.
func (t Ticket) Expiry() time.Time { return t.t.Expiry }

// Seeds returns where the new gateway knocks first.
func (t Ticket) Seeds() []netip.AddrPort { return slices.Clone(t.t.Seeds) }

// ParseTicket reads a ticket's text and checks every signature in it. The
// error never repeats the text.
func ParseTicket(text string) (Ticket, error) {
	t, err := trust.ParseTicket(text)
	if err != nil {
		return Ticket{}, err
	}
	return Ticket{Secret{text}, t}, nil
}

// authority is the issuing side of a gateway that holds an issuing key.
type authority struct {
	store      Store
	root       *trust.Root
	key        ed25519.PrivateKey
	delegation *trust.Delegation
	records    func() []*record.Record // what the mesh knows; nil: nothing
	log        *slog.Logger            // nil: nothing is logged
	redeemed   func(gateway, site string)

	mu     sync.Mutex // guards ledger
	ledger *ledger
}

// loadAuthority returns the issuing side of the gateway in the store, or nil
// if it has none.
func loadAuthority(store Store, root *trust.Root) (*authority, error) {
	key, err := loadSigningKey(store, fileIssuer)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil //nolint:nilnil // most gateways are no issuers
	}
	if err != nil {
		return nil, err
	}
	raw, err := store.Load(fileIssuing)
	if err != nil {
		return nil, err
	}
	delegation, err := trust.DecodeDelegation(raw)
	if err != nil {
		return nil, fmt.Errorf("%s: %w: %w", fileIssuing, err, ErrStateCorrupt)
	}
	if err := root.VerifyDelegation(delegation); err != nil {
		return nil, fmt.Errorf("%s: %w", fileIssuing, err)
	}
	l, err := loadLedger(store)
	if err != nil {
		return nil, err
	}
	return &authority{store: store, root: root, key: key, delegation: delegation, ledger: l}, nil
}

// known returns the records that the mesh has.
func (a *authority) known() []*record.Record {
	if a.records == nil {
		return nil
	}
	return a.records()
}

// overlap refuses what another site holds, by the ledger or by a stored record.
func (a *authority) overlap(site string, prefixes []netip.Prefix, now time.Time) error {
	if e := a.ledger.overlap(site, prefixes, now); e != nil {
		return e
	}
	for _, r := range a.known() {
		c := r.Chain.Certificate
		if c.Site == site || !r.ValidAt(now) {
			continue
		}
		var held []netip.Prefix
		for _, g := range c.Grants {
			held = append(held, g.Prefix)
		}
		if e := overlapOf(c.Site, held, prefixes); e != nil {
			return e
		}
	}
	return nil
}

// ticket makes a ticket that only this gateway redeems, on disk first.
func (a *authority) ticket(req TicketRequest, self *self, seeds []netip.AddrPort, now time.Time) (Ticket, error) {
	bound, err := boundIdentity(req.For)
	if err != nil {
		return Ticket{}, err
	}
	if req.TTL == 0 {
		req.TTL = DefaultTicketTTL
	}
	if req.TTL < 0 {
		return Ticket{}, fmt.Errorf("ticket lifetime %v: want more than zero", req.TTL)
	}
	if len(seeds) == 0 {
		return Ticket{}, errors.New("ticket: no endpoint of this gateway is known; name one that the new site can reach")
	}
	prefixes := slices.Clone(req.Prefixes)
	slices.SortFunc(prefixes, netip.Prefix.Compare)
	prefixes = slices.Compact(prefixes)

	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.overlap(req.Site, prefixes, now); err != nil {
		return Ticket{}, err
	}
	if req.Gateway == "" {
		req.Gateway = a.ledger.freeName(req.Site, a.nameTaken)
	}
	epoch, err := hex.DecodeString(a.ledger.Epoch)
	if err != nil {
		return Ticket{}, fmt.Errorf("%s: %w", ledgerFile, ErrStateCorrupt)
	}
	t := &trust.Ticket{
		RedeemerIdentity: trust.IdentityKey(self.keys.identity.Public().(ed25519.PublicKey)),
		RedeemerLink:     trust.ExchangeKey(self.keys.link.PublicKey().Bytes()),
		LedgerEpoch:      [16]byte(epoch),
		Gateway:          req.Gateway,
		Site:             req.Site,
		Prefixes:         prefixes,
		Expiry:           now.Add(req.TTL).Truncate(time.Second),
		Root:             a.root,
		Delegation:       a.delegation,
		Seeds:            seeds[:min(len(seeds), maxEndpoints)],
		Bound:            bound,
		Epochs:           self.epochs,
	}
	if req.Relay {
		t.Permissions |= trust.MayRelay
	}
	text, err := t.Sign(a.key, rand.Reader)
	if err != nil {
		return Ticket{}, err
	}
	entry := &ledgerTicket{
		Gateway: t.Gateway, Site: t.Site, Prefixes: t.Prefixes, Relay: req.Relay, Key: t.Key[:], Expiry: t.Expiry,
	}
	if bound != (trust.IdentityKey{}) {
		entry.Bound = bound[:]
	}
	id := hex.EncodeToString(t.ID[:])
	a.ledger.prune(now)
	a.ledger.Tickets[id] = entry
	if err := a.ledger.save(a.store); err != nil {
		delete(a.ledger.Tickets, id)
		return Ticket{}, err
	}
	return Ticket{Secret{text}, t}, nil
}

func (a *authority) nameTaken(name string) bool {
	return slices.ContainsFunc(a.known(), func(r *record.Record) bool { return r.Chain.Certificate.Gateway == name })
}

// boundIdentity reads the identity key that a ticket is bound to.
func boundIdentity(text string) (trust.IdentityKey, error) {
	if text == "" {
		return trust.IdentityKey{}, nil
	}
	b, err := base64.StdEncoding.DecodeString(text)
	if err != nil || len(b) != len(trust.IdentityKey{}) || trust.IdentityKey(b) == (trust.IdentityKey{}) {
		return trust.IdentityKey{}, errors.New("identity key: want 32 bytes in base64")
	}
	return trust.IdentityKey(b), nil
}

// redeem answers a sealed enrolment request that was made for this gateway. The
// answer is sealed too, whatever it says; an error means that there is nobody
// to answer.
func (a *authority) redeem(sealed []byte, self *self, now time.Time) ([]byte, error) {
	req, err := trust.OpenRequest(self.mesh, self.keys.link, sealed)
	if err != nil {
		return nil, err
	}
	reply := a.judge(req, now)
	return trust.SealReply(self.mesh, req, sealed, reply)
}

// judge decides about a request whose signatures are still to be checked.
func (a *authority) judge(req *trust.EnrolRequest, now time.Time) trust.EnrolReply {
	a.mu.Lock()
	defer a.mu.Unlock()
	id := hex.EncodeToString(req.TicketID[:])
	entry, ok := a.ledger.Tickets[id]
	if !ok {
		return trust.EnrolReply{Status: trust.EnrolVoid, Reason: "the redeemer does not know this ticket: its ledger began anew, or the ticket is long over"}
	}
	// Only the holder of the ticket's seed and of the identity key gets an answer
	// that says more.
	if err := req.Verify(a.root.ID(), ed25519.PublicKey(entry.Key)); err != nil {
		return trust.EnrolReply{Status: trust.EnrolRefused, Reason: "signature does not hold"}
	}
	if entry.Bound != nil && !bytes.Equal(entry.Bound, req.Identity[:]) {
		return trust.EnrolReply{Status: trust.EnrolRefused, Reason: "the ticket is bound to another identity"}
	}
	if by, at := a.redeemer(entry, req.TicketID); by != nil && !bytes.Equal(by, req.Identity[:]) {
		return trust.EnrolReply{Status: trust.EnrolUsed, Reason: fmt.Sprintf("used by %s at %s",
			trust.IDOf(a.root.ID(), trust.IdentityKey(by)).Short(), at.UTC().Format(time.DateTime))}
	}
	if entry.Certificate != nil {
		// The reply was lost on the way: the same identity gets the same again.
		return a.granted(entry.Certificate)
	}
	if now.After(entry.Expiry) {
		return trust.EnrolReply{Status: trust.EnrolExpired, Reason: fmt.Sprintf("ended %s, it is %s here",
			entry.Expiry.UTC().Format(time.DateTime), now.UTC().Format(time.DateTime))}
	}
	if err := a.overlap(entry.Site, entry.Prefixes, now); err != nil {
		return trust.EnrolReply{Status: trust.EnrolRefused, Reason: err.Error()}
	}
	chain, err := a.certifyLocked(certifyRequest{
		gateway: entry.Gateway, site: entry.Site, prefixes: entry.Prefixes, identity: req.Identity,
		relay: entry.Relay, ticket: req.TicketID,
	}, now, func(c *trust.Certificate) {
		entry.Identity, entry.Redeemed, entry.Certificate = req.Identity[:], now, c.Raw()
	})
	if err != nil {
		return trust.EnrolReply{Status: trust.EnrolRefused, Reason: err.Error()}
	}
	if a.redeemed != nil {
		a.redeemed(entry.Gateway, entry.Site)
	}
	return a.granted(chain.Certificate.Raw())
}

// redeemer says who redeemed a ticket: by the ledger, or, if that was restored
// from a backup and has forgotten, by a stored certificate that names it.
func (a *authority) redeemer(entry *ledgerTicket, id [16]byte) (identity []byte, at time.Time) {
	if entry.Identity != nil {
		return entry.Identity, entry.Redeemed
	}
	for _, r := range a.known() {
		if c := r.Chain.Certificate; c.Ticket == id {
			return c.Identity[:], c.NotBefore
		}
	}
	return nil, time.Time{}
}

func (a *authority) granted(certificate []byte) trust.EnrolReply {
	reply := trust.EnrolReply{Status: trust.EnrolGranted, Delegation: a.delegation.Raw(), Certificate: certificate}
	for _, r := range a.known() {
		if len(reply.Records) < enrolRecords {
			reply.Records = append(reply.Records, r.Raw)
		}
	}
	return reply
}

// enrolRecords bounds how many records a reply carries: a few are enough to
// begin with, the rest follows by anti-entropy, and 4 × 8 KiB fit the message.
const enrolRecords = 4

// certifyRequest says what a certificate is for.
type certifyRequest struct {
	gateway, site string
	prefixes      []netip.Prefix
	identity      trust.IdentityKey
	relay         bool
	ticket        [16]byte // zero: none
}

func (a *authority) certify(req certifyRequest, now time.Time) (trust.Chain, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.certifyLocked(req, now, func(*trust.Certificate) {})
}

// certifyLocked signs a certificate of the next generation. The ledger, with
// what note adds to it, is on disk before the certificate is returned.
func (a *authority) certifyLocked(req certifyRequest, now time.Time, note func(*trust.Certificate)) (trust.Chain, error) {
	generation := uint64(1)
	if g := a.ledger.Gateways[req.gateway]; g != nil {
		generation = g.Generation + 1
	}
	for _, r := range a.known() {
		if c := r.Chain.Certificate; c.Gateway == req.gateway {
			generation = max(generation, c.Generation+1)
		}
	}
	chain, err := a.signLocked(req, generation, now)
	if err != nil {
		return trust.Chain{}, err
	}
	a.ledger.Gateways[req.gateway] = &ledgerGateway{
		Site: req.site, Identity: req.identity[:], Generation: generation, Prefixes: sorted(req.prefixes), Relay: req.relay,
	}
	note(chain.Certificate)
	return chain, a.ledger.save(a.store)
}

// sorted returns prefixes in the order of a certificate, each once.
func sorted(prefixes []netip.Prefix) []netip.Prefix {
	out := slices.Clone(prefixes)
	slices.SortFunc(out, netip.Prefix.Compare)
	return slices.Compact(out)
}

// signLocked makes a certificate; the numbers of its grants are taken, but
// nothing is on disk.
func (a *authority) signLocked(req certifyRequest, generation uint64, now time.Time) (trust.Chain, error) {
	c := trust.Certificate{
		Gateway:    req.gateway,
		Site:       req.site,
		Identity:   req.identity,
		Generation: generation,
		NotBefore:  now.Truncate(time.Second),
		NotAfter:   now.Add(certificateLifetime).Truncate(time.Second),
		Ticket:     req.ticket,
	}
	if c.NotAfter.After(a.delegation.NotAfter) {
		c.NotAfter = a.delegation.NotAfter
	}
	if req.relay {
		c.Permissions |= trust.MayRelay
	}
	if _, err := rand.Read(c.Serial[:]); err != nil {
		return trust.Chain{}, err
	}
	for _, g := range a.ledger.grantNumbers(req.site, sorted(req.prefixes)) {
		c.Grants = append(c.Grants, trust.Grant{Prefix: g.Prefix, Number: g.Number})
	}
	signed, err := c.Sign(a.root.ID(), a.delegation, a.key)
	if err != nil {
		return trust.Chain{}, err
	}
	chain := trust.Chain{Delegation: a.delegation, Certificate: signed}
	return chain, a.root.VerifyChain(chain, now)
}

// renew gives the holder of a chain that was issued here its next certificate,
// with the same name, site and permissions, and with its grants and those that
// were added since.
func (a *authority) renew(chain trust.Chain, now time.Time) (trust.Chain, error) {
	c := chain.Certificate
	if !bytes.Equal(chain.Delegation.Raw(), a.delegation.Raw()) {
		return trust.Chain{}, errors.New("certificate was issued by another key")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.ledger.Gateways[c.Gateway]
	if g != nil && !bytes.Equal(g.Identity, c.Identity[:]) {
		return trust.Chain{}, fmt.Errorf("gateway %s was enrolled again with another identity", c.Gateway)
	}
	prefixes := grantsOf(c)
	if g != nil && len(without(g.Prefixes, prefixes)) > 0 {
		prefixes = normal(slices.Concat(prefixes, g.Prefixes))
	}
	return a.certifyLocked(certifyRequest{
		gateway: c.Gateway, site: c.Site, prefixes: prefixes, identity: c.Identity,
		relay: c.Permissions&trust.MayRelay != 0, ticket: c.Ticket,
	}, now, func(*trust.Certificate) {})
}

// Ticket makes a ticket for a new gateway, which this gateway redeems when it
// is used. ErrNotIssuer without an issuing key, an *OverlapError if another
// site holds one of the prefixes.
func (m *Mesh) Ticket(req TicketRequest) (Ticket, error) {
	if err := m.ended(); err != nil {
		return Ticket{}, err
	}
	if m.authority == nil {
		return Ticket{}, ErrNotIssuer
	}
	m.mu.Lock()
	seeds := m.endpointsLocked()
	m.mu.Unlock()
	return m.authority.ticket(req, m.self, seeds, m.now())
}

// NewTicket makes a ticket from the state of a gateway that is not running;
// seeds are addresses at which it will be reached. Errors as Mesh.Ticket, and
// ErrStateInUse if it is running after all.
func NewTicket(store Store, req TicketRequest, seeds []netip.AddrPort) (_ Ticket, err error) {
	unlock, err := store.Lock()
	if err != nil {
		return Ticket{}, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	s, err := loadSelf(store, time.Now())
	if err != nil {
		return Ticket{}, err
	}
	a, err := loadAuthority(store, s.root)
	if err != nil {
		return Ticket{}, err
	}
	if a == nil {
		return Ticket{}, ErrNotIssuer
	}
	return a.ticket(req, s, seeds, time.Now())
}
