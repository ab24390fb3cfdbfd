package ctl

import (
	"context"
	"net/netip"
	"time"

	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/routeset"
	"github.com/planetmesh/planetmesh/overlay"
)

// Mesh is what the socket needs of a mesh; *overlay.Mesh is one. All methods
// must be safe for concurrent use.
type Mesh interface {
	Status() overlay.Status
	Matrix(ctx context.Context) overlay.Matrix
	MatrixHosts(ctx context.Context, hosts []netip.Addr) (overlay.HostMatrix, error)
	// Resolve gives at least one ID or an error that is overlay.ErrUnknownGateway.
	Resolve(name string) ([]overlay.GatewayID, error)
	Ping(ctx context.Context, id overlay.GatewayID) (overlay.PingResult, error)
	Ticket(req overlay.TicketRequest) (overlay.Ticket, error)
	WidenGrant(ctx context.Context, req overlay.WidenRequest) (overlay.Widened, error)
	// Watch gives a channel that is closed when ctx or the mesh ends.
	Watch(ctx context.Context) <-chan overlay.Event
}

var _ Mesh = (*overlay.Mesh)(nil)

// Version is the version of the JSON forms of this package.
const Version = 1

// About says which daemon answers.
type About struct {
	Version  int       `json:"version"`
	Software string    `json:"software"`
	PID      int       `json:"pid"`
	State    string    `json:"state"` // state directory, absolute
	Started  time.Time `json:"started"`
}

// Status is overlay.Status, the routers that are attached to this gateway, and
// its route sets. In the routes, Why of those that are announced here says what
// they come from.
type Status struct {
	overlay.Status
	Attachments []attach.Status   `json:"attachments,omitempty"` // in the order of the configuration
	RouteSets   []routeset.Status `json:"routeSets,omitempty"`   // in the order of their names
}

// SetKeeper keeps route sets. All methods must be safe for concurrent use.
type SetKeeper interface {
	// Put stores a set and puts it into effect, or changes nothing. It reports
	// whether the set is another one than before.
	Put(ctx context.Context, set routeset.Set) (changed bool, err error)
	// Delete takes a set away, or returns routeset.ErrUnknown.
	Delete(ctx context.Context, name string) error
	// List returns all sets in the order of their names.
	List() []routeset.Status
}

// RouteSets are all route sets, in the order of their names.
type RouteSets struct {
	Version   int               `json:"version"`
	RouteSets []routeset.Status `json:"routeSets"`
}

// RouteSet is one route set. Changed answers PUT: whether the set is another
// one than before.
type RouteSet struct {
	Version int `json:"version"`
	routeset.Status
	Changed *bool `json:"changed,omitempty"`
}

// GrantRequest asks to let a member announce more; see overlay.WidenRequest.
type GrantRequest struct {
	Gateway  string         `json:"gateway"`
	Site     string         `json:"site,omitempty"`
	Prefixes []netip.Prefix `json:"prefixes"`
}

// Grant is what a member may announce now; see overlay.Widened.
type Grant struct {
	Version  int            `json:"version"`
	Gateway  string         `json:"gateway"`
	Site     string         `json:"site"`
	Prefixes []netip.Prefix `json:"prefixes"`
	Added    []netip.Prefix `json:"added"`
	Pending  string         `json:"pending,omitempty"` // why it does not have the certificate yet
}

// GrantOf is the JSON form of w.
func GrantOf(w overlay.Widened) Grant {
	g := Grant{Version: Version, Gateway: w.Gateway, Site: w.Site, Prefixes: w.Prefixes, Added: w.Added}
	if g.Added == nil {
		g.Added = []netip.Prefix{}
	}
	if w.Pending != nil {
		g.Pending = w.Pending.Error()
	}
	return g
}

// Routes is the part of overlay.Status that says where packets go.
type Routes struct {
	Version   int                      `json:"version"`
	Routes    []overlay.RouteStatus    `json:"routes"` // ascending by prefix
	Conflicts []overlay.ConflictStatus `json:"conflicts,omitempty"`
	Refused   []overlay.RefusedStatus  `json:"refused,omitempty"`
}

// HostsRequest names hosts that every gateway shall measure to.
type HostsRequest struct {
	Hosts []netip.Addr `json:"hosts"` // 1 to MaxHosts
}

// MaxHosts is how many hosts fit in one request: as many as a gateway measures
// to for another one (overlay.Mesh.MatrixHosts).
const MaxHosts = 256

// PingRequest names a site, a gateway or a gateway ID.
type PingRequest struct {
	To string `json:"to"`
}

// Ping is one probe to each gateway that was meant.
type Ping struct {
	Version int     `json:"version"`
	Probes  []Probe `json:"probes"`
}

// Probe is what came of one probe. Error is empty if it was answered.
type Probe struct {
	overlay.PingResult
	Error string `json:"error,omitempty"`
}

// TicketRequest asks for a ticket; see overlay.TicketRequest.
type TicketRequest struct {
	Site     string         `json:"site"`
	Gateway  string         `json:"gateway,omitempty"`
	Prefixes []netip.Prefix `json:"prefixes"`
	TTL      time.Duration  `json:"ttlNanos,omitempty"` // 0 means the default of overlay
	Relay    bool           `json:"relay,omitempty"`
	For      string         `json:"for,omitempty"`
}

// Ticket is a ticket and what it says. Text is a secret.
type Ticket struct {
	Version  int              `json:"version"`
	Text     string           `json:"text"`
	Gateway  string           `json:"gateway"`
	Site     string           `json:"site"`
	Prefixes []netip.Prefix   `json:"prefixes"`
	Expiry   time.Time        `json:"expiry"`
	Seeds    []netip.AddrPort `json:"seeds"`
}

// TicketOf is the JSON form of t, secret included.
func TicketOf(t overlay.Ticket) Ticket {
	return Ticket{
		Version:  Version,
		Text:     t.Text(),
		Gateway:  t.Gateway(),
		Site:     t.Site(),
		Prefixes: t.Prefixes(),
		Expiry:   t.Expiry(),
		Seeds:    t.Seeds(),
	}
}

// failure is the body of an error.
type failure struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"`
}
