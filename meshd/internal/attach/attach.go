// Package attach joins routers that speak OpenVPN to the mesh of this gateway.
//
// Each attachment of the configuration is an openvpn.Endpoint over a network
// interface of its own. While the router is there, that is while authentic
// packets come from it, the prefixes behind it are routed to that interface and
// announced with the others of this gateway; when it falls silent they are
// withdrawn, and another gateway of the site that has them carries them.
//
// A router may send from its prefixes and its own tunnel addresses only. This
// is checked here, on every packet, and so holds on hosts without nftables and
// with keepHost too. Where it may send to is the firewall's business (package
// overlay).
package attach

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"reflect"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/planetmesh/planetmesh/meshd/internal/conf"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// Set is the attachments of one gateway, and with them all that it announces
// and routes within its site.
// New makes one. All methods are safe for concurrent use.
type Set struct {
	cfg   Config
	log   *slog.Logger
	dirty chan struct{} // capacity 1: a router came or went
	stop  context.CancelFunc
	wg    sync.WaitGroup

	routers atomic.Pointer[[]*router] // for Status

	turn    chan struct{} // holds one token: whoever took it may change what is below
	closed  bool
	ready   bool // once Apply has succeeded
	want    Desired
	applied struct { // what the mesh was told last
		routes      []overlay.Route
		attachments []overlay.Attachment
		lan         []overlay.LANRoute
	}
}

// Mesh is what a Set needs of a mesh; *overlay.Mesh is one.
type Mesh interface {
	Status() overlay.Status
	SetRoutes(ctx context.Context, routes []overlay.Route) error
	SetAttachments(list []overlay.Attachment) error
	SetLANRoutes(routes []overlay.LANRoute) error
}

var _ Mesh = (*overlay.Mesh)(nil)

// Config is what New needs. All fields are required unless they say otherwise.
type Config struct {
	Mesh Mesh
	// Dir is the state directory. The last start time of every endpoint is
	// kept in it, so that a router does not take what comes after a quick
	// restart, or after the clock was set back, for a replay.
	Dir string
	// Device makes the interface; nil means openvpn.OpenTUN.
	Device func(name string, mtu int) (openvpn.Device, error)
	// Logger gets what is worth telling; nil discards it.
	Logger *slog.Logger
}

// Desired is all that a Set shall do.
type Desired struct {
	// Announce is what this gateway announces whatever its routers do. Nil
	// means all that is granted, except grants that overlap the prefixes of
	// an attachment.
	Announce []overlay.Route
	// OpenVPN are the attachments, as conf.Load read them.
	OpenVPN []conf.OpenVPN
	// Sets are the route sets, which fit (routeset.Fit).
	Sets []routeset.Set
}

// New makes a Set that does nothing until Apply is called.
func New(cfg Config) *Set {
	if cfg.Device == nil {
		cfg.Device = func(name string, mtu int) (openvpn.Device, error) { return openvpn.OpenTUN(name, mtu) }
	}
	ctx, stop := context.WithCancel(context.Background())
	s := &Set{cfg: cfg, log: cfg.Logger, dirty: make(chan struct{}, 1), stop: stop, turn: make(chan struct{}, 1)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.routers.Store(new([]*router))
	s.wg.Go(func() { s.follow(ctx) }) // ends with Close
	return s
}

// Error says which attachment cannot be.
type Error struct {
	Name string // of the attachment
	Err  error  // such as an *overlay.GrantError, or an error of a socket
}

// Error names the attachment.
func (e *Error) Error() string { return fmt.Sprintf("openvpn %s: %v", e.Name, e.Err) }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// Apply does what is wanted: attachments that are as before are left alone,
// others are stopped, started, or started again. After an error all is as it
// was before, except that routers whose attachment was to change may have been
// interrupted. It returns an *Error about an attachment: an
// *overlay.GrantError for a prefix that is not granted, or what keeps its
// interface or socket from being opened; else what Mesh.SetRoutes returns. ctx
// bounds Apply only.
func (s *Set) Apply(ctx context.Context, want Desired) error {
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.closed {
		return overlay.ErrClosed
	}
	granted := s.cfg.Mesh.Status().Self.Granted
	if err := want.check(granted); err != nil {
		return err
	}
	before := *s.routers.Load()
	kept, gone, added := compare(before, want.OpenVPN)
	if err := s.tell(ctx, want, kept, granted); err != nil {
		return errors.Join(err, s.tellBefore(ctx, before, granted))
	}
	for _, r := range gone {
		r.close()
	}
	started, err := s.start(ctx, added)
	if err != nil {
		var stopped []conf.OpenVPN
		for _, r := range gone {
			stopped = append(stopped, r.conf)
		}
		again, againErr := s.start(ctx, stopped)
		before = slices.Concat(kept, again)
		s.routers.Store(&before)
		return errors.Join(err, againErr, s.tellBefore(ctx, before, granted))
	}
	now := inOrder(slices.Concat(kept, started), want.OpenVPN)
	s.routers.Store(&now)
	s.want, s.ready = want, true
	return s.tell(ctx, want, now, granted)
}

// tellBefore takes back what an Apply that failed has told.
func (s *Set) tellBefore(ctx context.Context, routers []*router, granted []netip.Prefix) error {
	if !s.ready {
		return nil // the first one: there is no before
	}
	return s.tell(ctx, s.want, routers, granted)
}

// check finds prefixes that the certificate does not grant.
func (d Desired) check(granted []netip.Prefix) error {
	for _, o := range d.OpenVPN {
		for _, p := range o.Prefixes {
			if !within(p, granted) {
				return &Error{o.Name, &overlay.GrantError{Prefix: p, Granted: granted}}
			}
		}
	}
	return nil
}

func within(p netip.Prefix, granted []netip.Prefix) bool {
	return slices.ContainsFunc(granted, func(g netip.Prefix) bool { return g.Bits() <= p.Bits() && g.Contains(p.Addr()) })
}

// compare sorts what is wanted by what is to be done.
func compare(have []*router, want []conf.OpenVPN) (kept, gone []*router, added []conf.OpenVPN) {
	for _, r := range have {
		if slices.ContainsFunc(want, func(o conf.OpenVPN) bool { return same(o, r.conf) }) {
			kept = append(kept, r)
		} else {
			gone = append(gone, r)
		}
	}
	for _, o := range want {
		if !slices.ContainsFunc(kept, func(r *router) bool { return r.conf.Name == o.Name }) {
			added = append(added, o)
		}
	}
	return kept, gone, added
}

// same reports whether nothing changed, the content of key files included.
func same(a, b conf.OpenVPN) bool {
	equal := a.Keys.Equal(b.Keys)
	a.Keys, b.Keys = conf.Keys{}, conf.Keys{}
	return equal && reflect.DeepEqual(a, b)
}

// start opens attachments, all or none.
func (s *Set) start(ctx context.Context, list []conf.OpenVPN) ([]*router, error) {
	var started []*router
	for _, o := range list {
		r, err := openRouter(ctx, s, o)
		if err != nil {
			for _, r := range started {
				r.close()
			}
			return nil, &Error{o.Name, err}
		}
		started = append(started, r)
	}
	return started, nil
}

func inOrder(routers []*router, want []conf.OpenVPN) []*router {
	at := func(r *router) int {
		return slices.IndexFunc(want, func(o conf.OpenVPN) bool { return o.Name == r.conf.Name })
	}
	slices.SortFunc(routers, func(a, b *router) int { return at(a) - at(b) })
	return routers
}

// follow tells the mesh whenever a router came or went.
func (s *Set) follow(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.dirty:
		}
		s.turn <- struct{}{}
		if s.ready && !s.closed {
			granted := s.cfg.Mesh.Status().Self.Granted
			if err := s.tell(ctx, s.want, *s.routers.Load(), granted); err != nil && ctx.Err() == nil {
				s.log.Error("prefixes of attached routers cannot be announced", "err", err)
			}
		}
		<-s.turn
	}
}

// tell brings the mesh in line with the routers that are there. The caller has
// the turn.
func (s *Set) tell(ctx context.Context, want Desired, routers []*router, granted []netip.Prefix) error {
	routes := routeset.Merge(want.Base(granted), want.Sets)
	var list []overlay.Attachment
	for _, r := range routers {
		a, open := r.attachment()
		if !open {
			continue
		}
		if r.up() {
			for _, p := range r.conf.Prefixes {
				if !within(p, granted) { // the certificate was renewed with less
					s.log.Error("prefix of an attached router is no longer granted", "attachment", r.conf.Name, "route", p)
					continue
				}
				a.Prefixes = append(a.Prefixes, p)
				routes = append(routes, overlay.Route{Prefix: p, Priority: r.conf.Priority})
			}
		}
		list = append(list, a)
	}
	if s.applied.routes == nil || !slices.Equal(routes, s.applied.routes) {
		if err := s.cfg.Mesh.SetRoutes(ctx, routes); err != nil {
			return err
		}
		s.applied.routes = routes
	}
	if !reflect.DeepEqual(list, s.applied.attachments) {
		if err := s.cfg.Mesh.SetAttachments(list); err != nil {
			return err
		}
		s.applied.attachments = list
	}
	if lan := routeset.LAN(want.Sets); !slices.Equal(lan, s.applied.lan) {
		if err := s.cfg.Mesh.SetLANRoutes(lan); err != nil {
			return err
		}
		s.applied.lan = lan
	}
	return nil
}

// Base is what is announced without any router and any route set. It is never
// nil.
func (d Desired) Base(granted []netip.Prefix) []overlay.Route {
	if d.Announce != nil {
		return append([]overlay.Route{}, d.Announce...)
	}
	routes := []overlay.Route{}
	for _, g := range granted {
		behind := slices.ContainsFunc(d.OpenVPN, func(o conf.OpenVPN) bool { return slices.ContainsFunc(o.Prefixes, g.Overlaps) })
		if !behind {
			routes = append(routes, overlay.Route{Prefix: g})
		}
	}
	return routes
}

// wake has the mesh told soon.
func (s *Set) wake() {
	select {
	case s.dirty <- struct{}{}:
	default:
	}
}

// Status is what every attachment does, in the order of the configuration.
func (s *Set) Status() []Status {
	routers := *s.routers.Load()
	out := make([]Status, len(routers))
	for i, r := range routers {
		out[i] = r.status()
	}
	return out
}

// Close says goodbye to the routers that want it, withdraws their prefixes and
// takes their interfaces away. It waits for everything that runs, and is
// idempotent. The mesh must still be open.
func (s *Set) Close() error {
	s.stop()
	s.wg.Wait()
	s.turn <- struct{}{}
	defer func() { <-s.turn }()
	if s.closed {
		return nil
	}
	s.closed = true
	routers := *s.routers.Load()
	var err error
	if s.ready {
		err = s.tell(context.Background(), s.want, nil, s.cfg.Mesh.Status().Self.Granted)
	}
	if errors.Is(err, overlay.ErrClosed) {
		err = nil // the mesh ended by itself: there is nothing to withdraw from
	}
	var wg sync.WaitGroup
	for _, r := range routers {
		wg.Go(r.close) // at the same time: a goodbye may take a second
	}
	wg.Wait()
	s.routers.Store(new([]*router))
	return err
}

// times is where the last start time of an attachment is kept.
func (s *Set) times(name string) openvpn.TimeFile {
	return openvpn.TimeFile(filepath.Join(s.cfg.Dir, "openvpn-"+name+".time"))
}
