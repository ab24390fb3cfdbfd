package overlay

import (
	"net/netip"
	"time"
)

// EventKind says what happened; the values are stable.
type EventKind string

// What Watch reports.
const (
	EventPeerUp       EventKind = "peer-up"       // a path to a gateway was proven
	EventPeerDown     EventKind = "peer-down"     // a gateway stopped answering probes
	EventPathChanged  EventKind = "path-changed"  // packets to a gateway take another path
	EventPeerRestart  EventKind = "peer-restart"  // a gateway speaks with a new boot ID
	EventRouteAdded   EventKind = "route-added"   // a prefix became reachable through the mesh
	EventRouteRemoved EventKind = "route-removed" // a prefix is no longer reachable through the mesh
	EventRouteMoved   EventKind = "route-moved"   // a prefix is reached through another gateway
	EventConflict     EventKind = "conflict"      // two sites claim overlapping prefixes
	EventRefused      EventKind = "refused"       // something was not believed or not installed
	EventGranted      EventKind = "granted"       // the own certificate grants other prefixes than before
	EventRedeemed     EventKind = "redeemed"      // a ticket was redeemed here
	EventDuplicate    EventKind = "duplicate"     // another machine speaks with this gateway's identity
)

// Event is one change, as an operator would note it down. JSON-stable.
type Event struct {
	Time    time.Time      `json:"time"`
	Kind    EventKind      `json:"kind"`
	Gateway string         `json:"gateway,omitempty"` // name of the gateway concerned
	Site    string         `json:"site,omitempty"`
	Prefix  netip.Prefix   `json:"prefix,omitzero"`
	Path    netip.AddrPort `json:"path,omitzero"`
	Text    string         `json:"text,omitempty"` // the reason, for people
}
