package overlay

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/record"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// WidenRequest says by what the grant of a member grows.
type WidenRequest struct {
	// Gateway is the name of the member. Required.
	Gateway string
	// Site guards against mistakes: if it is not empty, the member must be of
	// that site.
	Site string
	// Prefixes are what it may announce besides what it may already. One that
	// covers prefixes that it has takes their place. At least one.
	Prefixes []netip.Prefix
}

// Widened is what became of a WidenRequest.
type Widened struct {
	Gateway string
	Site    string
	// Prefixes are all that the member may announce from now on.
	Prefixes []netip.Prefix
	// Added are those that it might not announce before; none if the request
	// changed nothing.
	Added []netip.Prefix
	// Pending says why the member does not have its new certificate yet; nil if
	// it has it. It gets it when it is back, or renews.
	Pending error
}

// WidenGrant lets a member that this gateway certified announce more. The wider
// grant is on disk before it returns; nothing that was granted is taken away.
// The member, which may be this gateway, is told and fetches a certificate of
// the next generation, without an interruption; if it cannot be reached that is
// Widened.Pending and no error. ctx bounds telling it.
//
// Errors: ErrNotIssuer without an issuing key, ErrUnknownGateway if the member
// was not certified here, an *OverlapError if another site holds a prefix, or
// what is wrong with the request.
func (m *Mesh) WidenGrant(ctx context.Context, req WidenRequest) (Widened, error) {
	if err := m.ended(); err != nil {
		return Widened{}, err
	}
	if m.authority == nil {
		return Widened{}, ErrNotIssuer
	}
	for _, r := range m.book.All() {
		if r.Chain.Certificate.Gateway == req.Gateway && m.revocations.Revoked(r.Chain) {
			return Widened{}, fmt.Errorf("gateway %s: its certificate was withdrawn: %w", req.Gateway, ErrUnknownGateway)
		}
	}
	out, identity, err := m.authority.widen(req, m.now())
	if err != nil {
		return Widened{}, err
	}
	if len(out.Added) > 0 {
		m.log.Info("grant widened", "peer", out.Gateway, "site", out.Site, "routes", out.Added)
	}
	out.Pending = m.deliver(ctx, trust.IDOf(m.self.mesh, identity), out.Prefixes)
	return out, nil
}

// WidenGrant does the same from the state of a gateway that is not running. If
// it is itself the member, it has the new certificate when WidenGrant returns.
// Errors as Mesh.WidenGrant, and ErrStateInUse if it is running after all.
func WidenGrant(store Store, req WidenRequest) (_ Widened, err error) {
	unlock, err := store.Lock()
	if err != nil {
		return Widened{}, err
	}
	defer func() { err = errors.Join(err, unlock()) }()
	s, err := loadSelf(store, time.Now())
	if err != nil {
		return Widened{}, err
	}
	a, err := loadAuthority(store, s.root)
	if err != nil {
		return Widened{}, err
	}
	if a == nil {
		return Widened{}, ErrNotIssuer
	}
	out, identity, err := a.widen(req, s.floor)
	if err != nil {
		return Widened{}, err
	}
	if identity != s.certificate().Identity {
		out.Pending = errNotRunning
		return out, nil
	}
	if len(without(out.Prefixes, s.granted())) == 0 {
		return out, nil
	}
	chain, err := a.renew(*s.current.Load(), s.floor)
	if err != nil {
		return out, err
	}
	return out, s.adopt(store, chain.Delegation.Raw(), chain.Certificate.Raw(), s.floor)
}

var errNotRunning = errors.New("this gateway does not run; the member is told when it does")

// widen notes a wider grant in the ledger, from which the next certificate of
// that gateway is made.
func (a *authority) widen(req WidenRequest, now time.Time) (Widened, trust.IdentityKey, error) {
	var nobody trust.IdentityKey
	if len(req.Prefixes) == 0 {
		return Widened{}, nobody, errors.New("widen grant: want at least one prefix")
	}
	for _, p := range req.Prefixes {
		if err := trust.CheckGrant(p, trust.OverlayBlock(a.root.ID())); err != nil {
			return Widened{}, nobody, err
		}
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	g := a.memberLocked(req.Gateway)
	if g == nil {
		return Widened{}, nobody, fmt.Errorf("no gateway %q was certified here: %w", req.Gateway, ErrUnknownGateway)
	}
	if req.Site != "" && req.Site != g.Site {
		return Widened{}, nobody, fmt.Errorf("gateway %s is of site %s, not of site %s", req.Gateway, g.Site, req.Site)
	}
	identity := trust.IdentityKey(g.Identity)
	out := Widened{Gateway: req.Gateway, Site: g.Site, Added: without(normal(req.Prefixes), g.Prefixes)}
	if err := a.overlap(g.Site, out.Added, now); err != nil {
		return Widened{}, nobody, err
	}
	out.Prefixes = normal(slices.Concat(g.Prefixes, out.Added))
	if n := len(out.Prefixes); n > trust.MaxGrants {
		return Widened{}, nobody, fmt.Errorf("gateway %s would have %d prefixes, want at most %d", req.Gateway, n, trust.MaxGrants)
	}
	if len(out.Added) == 0 {
		return out, identity, nil
	}
	// What no certificate can say must not be in the ledger.
	if _, err := a.signLocked(certifyRequest{
		gateway: req.Gateway, site: g.Site, prefixes: out.Prefixes, identity: identity, relay: g.Relay,
	}, g.Generation+1, now); err != nil {
		return Widened{}, nobody, err
	}
	before, known := a.ledger.Gateways[req.Gateway]
	wider := *g
	wider.Prefixes = out.Prefixes
	a.ledger.Gateways[req.Gateway] = &wider
	if err := a.ledger.save(a.store); err != nil {
		delete(a.ledger.Gateways, req.Gateway)
		if known {
			a.ledger.Gateways[req.Gateway] = before
		}
		return Widened{}, nobody, err
	}
	return out, identity, nil
}

// memberLocked is what was last certified for a name, with all that its
// certificate grants; nil if nothing was, here. A ledger that was restored or
// began anew learns it from the record of the gateway.
func (a *authority) memberLocked(name string) *ledgerGateway {
	g := a.ledger.Gateways[name]
	for _, r := range a.known() {
		c := r.Chain.Certificate
		if c.Gateway != name || !bytes.Equal(r.Chain.Delegation.Raw(), a.delegation.Raw()) {
			continue
		}
		if g == nil {
			g = &ledgerGateway{
				Site: c.Site, Identity: c.Identity[:], Generation: c.Generation, Relay: c.Permissions&trust.MayRelay != 0,
			}
		}
		if bytes.Equal(g.Identity, c.Identity[:]) {
			more := *g
			more.Prefixes = normal(slices.Concat(g.Prefixes, grantsOf(c)))
			g = &more
		}
	}
	return g
}

// normal sorts prefixes and leaves out those that lie within others.
func normal(prefixes []netip.Prefix) []netip.Prefix {
	var out []netip.Prefix
	for i, p := range prefixes {
		if !slices.ContainsFunc(prefixes, func(q netip.Prefix) bool { return q != p && covers(q, p) }) &&
			!slices.Contains(prefixes[:i], p) {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, netip.Prefix.Compare)
	return out
}

// without returns the prefixes that lie within none of held.
func without(prefixes, held []netip.Prefix) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(prefixes), func(p netip.Prefix) bool {
		return slices.ContainsFunc(held, func(h netip.Prefix) bool { return covers(h, p) })
	})
}

func grantsOf(c *trust.Certificate) []netip.Prefix {
	var out []netip.Prefix
	for _, g := range c.Grants {
		out = append(out, g.Prefix)
	}
	return out
}

// deliver sees to it that a gateway has a certificate with these prefixes. The
// error says why it does not have it yet.
func (m *Mesh) deliver(ctx context.Context, id GatewayID, prefixes []netip.Prefix) error {
	if id == m.self.id {
		if len(without(prefixes, m.self.granted())) == 0 {
			return nil
		}
		return m.renew(ctx)
	}
	r, ok := m.book.Get(id)
	if !ok {
		return fmt.Errorf("nothing was heard of it: %w", ErrNoPath)
	}
	if len(without(prefixes, grantsOf(r.Chain.Certificate))) == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*apiTimeout) // it asks back before it answers
	defer cancel()
	_, err := m.ask(ctx, id, apiRequest{Op: opWidened})
	return err
}

// opWidened says to a gateway that its issuer has a wider certificate for it.
// There is nothing else in it: the gateway fetches the certificate itself.
const opWidened = "widened"

var errNotItsIssuer = errors.New("only the gateway that issued the certificate says so")

// answerWidened fetches the certificate that the issuer has. Whatever others
// say about it is not looked at.
func (m *Mesh) answerWidened(ctx context.Context, from GatewayID) error {
	issuer, err := m.issuer()
	if err != nil || from != issuer {
		m.count("api.refused")
		return errNotItsIssuer
	}
	return m.renew(ctx)
}

// remind tells members that are there of wider certificates that they have not
// fetched: they were away, or the message was lost.
func (m *Mesh) remind(ctx context.Context) {
	if m.authority == nil {
		return
	}
	for _, r := range m.book.All() {
		if ctx.Err() != nil {
			return
		}
		m.mu.Lock()
		p := m.peers[r.ID]
		there := p != nil && p.alive
		m.mu.Unlock()
		held := m.authority.heldBy(r)
		if !there && r.ID != m.self.id || m.revocations.Revoked(r.Chain) || len(without(held, grantsOf(r.Chain.Certificate))) == 0 {
			continue
		}
		if err := m.deliver(ctx, r.ID, held); err != nil {
			m.log.Debug("wider grant not delivered", "peer", r.Chain.Certificate.Gateway, "err", err)
		}
	}
}

// heldBy is what the ledger has for the gateway of a record.
func (a *authority) heldBy(r *record.Record) []netip.Prefix {
	a.mu.Lock()
	defer a.mu.Unlock()
	c := r.Chain.Certificate
	g := a.ledger.Gateways[c.Gateway]
	if g == nil || !bytes.Equal(g.Identity, c.Identity[:]) {
		return nil
	}
	return g.Prefixes
}

// regranted puts into effect what a new certificate grants besides that before.
func (m *Mesh) regranted(before []netip.Prefix) {
	granted := m.self.granted()
	if slices.Equal(before, granted) {
		return
	}
	m.mu.Lock()
	if m.announceAll {
		m.routes = routesTo(granted)
	}
	m.mu.Unlock()
	c := m.self.certificate()
	m.log.Info("grant changed", "routes", granted)
	m.events.emit(Event{Kind: EventGranted, Gateway: c.Gateway, Site: c.Site})
	wake(m.dirty)
	wake(m.republish)
}

// routesTo announces each prefix with the highest preference.
func routesTo(prefixes []netip.Prefix) []Route {
	var out []Route
	for _, p := range prefixes {
		out = append(out, Route{Prefix: p})
	}
	return out
}
