package engine

import (
	"net/netip"
	"time"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Inputs is everything that Compute looks at. Compute changes nothing in it.
type Inputs struct {
	// Self is this gateway, Site the name of its site.
	Self trust.GatewayID
	Site string
	// Announcements are those of all gateways whose records are verified and
	// not revoked, this one's included, in any order, one per ID. Gateways
	// that left belong to them: they own their prefixes until their
	// certificates end.
	Announcements []Announcement
	// Proven says which gateways have answered a challenge under their pair
	// key; the others get no peer and no route.
	Proven map[trust.GatewayID]bool
	// Alive says which gateways answer probes now. It decides between
	// gateways of one site only.
	Alive map[trust.GatewayID]bool
	// Accept narrows what is installed: a route must lie within one of these.
	// Empty accepts all that is authorised.
	Accept []netip.Prefix
	// Local is what no route of the overlay may overlap.
	Local []Local
	// Overlay is the block of the overlay addresses. The zero value does not
	// check against it.
	Overlay netip.Prefix
	// Now is what Announcement.NotAfter is compared with. The zero value
	// lets nothing expire.
	Now time.Time
}

// Announcement is what the engine needs of a verified record.
type Announcement struct {
	ID trust.GatewayID
	// Name is the gateway's, unique in the mesh; Site and Org (organisation,
	// empty if there is none) together name its site.
	Name, Site, Org string
	WireGuard       trust.ExchangeKey
	// Overlay is its overlay address.
	Overlay netip.Addr
	Grants  []Grant
	Routes  []AnnouncedRoute
	// Left marks a gateway that left the mesh: no peer and no routes, but its
	// grants count.
	Left bool
	// NotAfter is when its grants end, with any tolerance; zero means that
	// the caller has judged that.
	NotAfter time.Time
}

// Grant is a prefix that a gateway may announce.
type Grant struct {
	Prefix netip.Prefix
	Claim  trust.Claim
}

// AnnouncedRoute is a prefix that a gateway announces. A lower priority value
// is preferred.
type AnnouncedRoute struct {
	Prefix   netip.Prefix
	Priority uint16
}

// Local is a prefix of this host that the overlay must stay away from: the
// network of an interface, a next hop or an endpoint in use (these two as
// host prefixes). Reason is shown to people as it is.
type Local struct {
	Prefix netip.Prefix
	Reason string
}

// Desired is what a gateway should have. All lists are sorted, so equal inputs
// give equal values. The zero value is the state of a device without peers.
type Desired struct {
	// Peers are the peers of the WireGuard device, ascending by ID.
	Peers []Peer
	// Routes are the prefixes of other sites, ascending by prefix. Each
	// prefix is there once.
	Routes []Route
	// Standby are announcements that are not in use though nothing is wrong
	// with them, ascending by prefix, best first.
	Standby []Standby
	// Conflicts are routes that lost to a better claim, ascending by prefix,
	// then by the loser's name. All observers have the same.
	Conflicts []Conflict
	// Refused are routes that are not installed on this gateway, ascending by
	// prefix, then by name.
	Refused []Refused
}

// Peer is one peer of the WireGuard device.
type Peer struct {
	ID        trust.GatewayID
	Name      string
	Site      string
	WireGuard trust.ExchangeKey
	// Overlay is the peer's overlay address; not valid if it must not be used.
	Overlay netip.Addr
	// Allowed is what may come from the peer and is sent to it: its routes in
	// use and its overlay address, ascending. No two peers share a prefix.
	Allowed []netip.Prefix
}

// Route is a prefix of another site and the gateway that carries it.
type Route struct {
	Prefix netip.Prefix
	Peer   trust.GatewayID
	Name   string // of the peer
	Site   string
	// Standby names the other gateways of the site that announce the prefix,
	// best first.
	Standby []string
	// Why says why this gateway carries it.
	Why string
}

// Standby is an announcement that is not in use. Comparable.
type Standby struct {
	Prefix netip.Prefix
	Peer   trust.GatewayID
	Name   string
	Site   string
	Why    string
}

// Conflict is a route that is installed nowhere because another site has the
// better claim. Comparable.
type Conflict struct {
	Prefix     netip.Prefix // the loser's route
	Winner     string       // name of the gateway with the better claim
	WinnerSite string
	Loser      string // name of the gateway that announces the route
	LoserSite  string
	Reason     string
}

// Refused is a route that this gateway does not install. Comparable.
type Refused struct {
	Prefix netip.Prefix
	Peer   trust.GatewayID
	Name   string
	Site   string
	Reason string
}
