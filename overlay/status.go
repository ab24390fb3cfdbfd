package overlay

import (
	"net/netip"
	"time"
)

// StatusVersion is the version of the JSON form of Status: it grows when a
// field changes its meaning or goes away.
const StatusVersion = 1

// Status is a snapshot of what this gateway knows. Nobody changes it after
// Mesh.Status returned it. JSON-stable.
type Status struct {
	Version   int               `json:"version"`
	Time      time.Time         `json:"time"`
	Mesh      MeshStatus        `json:"mesh"`
	Self      SelfStatus        `json:"self"`
	Peers     []PeerStatus      `json:"peers"`               // ascending by site, then name
	Routes    []RouteStatus     `json:"routes"`              // ascending by prefix
	Conflicts []ConflictStatus  `json:"conflicts,omitempty"` // overlapping grants
	Refused   []RefusedStatus   `json:"refused,omitempty"`   // routes that are not installed here
	Warnings  []string          `json:"warnings,omitempty"`  // what is degraded, with the cure
	Counters  map[string]uint64 `json:"counters"`            // refusals and drops by reason, since the start
}

// MeshStatus names the mesh.
type MeshStatus struct {
	Name string `json:"name"`
	ID   string `json:"id"`
}

// SelfStatus describes this gateway.
type SelfStatus struct {
	Gateway   string           `json:"gateway"`
	Site      string           `json:"site"`
	ID        string           `json:"id"`
	Overlay   netip.Addr       `json:"overlay"`
	Interface string           `json:"interface,omitempty"`
	Port      uint16           `json:"port"`
	MTU       int              `json:"mtu"`
	Endpoints []netip.AddrPort `json:"endpoints"`
	Routes    []Route          `json:"routes"`
	Granted   []netip.Prefix   `json:"granted"`
	NotAfter  time.Time        `json:"notAfter"` // end of the certificate
	Started   time.Time        `json:"started"`
	Issuer    bool             `json:"issuer"`   // holds an issuing key
	Sequence  uint64           `json:"sequence"` // of the own record
}

// PeerStatus describes another gateway.
type PeerStatus struct {
	Gateway       string           `json:"gateway"`
	Site          string           `json:"site"`
	ID            string           `json:"id"`
	Overlay       netip.Addr       `json:"overlay"`
	State         PeerState        `json:"state"`
	Path          netip.AddrPort   `json:"path,omitzero"`     // proven underlay address in use
	Relayed       bool             `json:"relayed,omitempty"` // through another gateway
	RTT           time.Duration    `json:"rttNanos,omitempty"`
	Loss          float64          `json:"loss"` // of recent probes, 0…1
	MTU           int              `json:"mtu,omitempty"`
	Since         time.Time        `json:"since,omitzero"`         // of the state
	LastSeen      time.Time        `json:"lastSeen,omitzero"`      // last answered probe
	LastHandshake time.Time        `json:"lastHandshake,omitzero"` // of the WireGuard session
	RxBytes       uint64           `json:"rxBytes"`
	TxBytes       uint64           `json:"txBytes"`
	Endpoints     []netip.AddrPort `json:"endpoints"`
	Software      string           `json:"software,omitempty"`
	Generation    uint64           `json:"generation"`
	Sequence      uint64           `json:"sequence"`
	NotAfter      time.Time        `json:"notAfter"`
}

// PeerState is how things stand with a peer; the values are stable.
type PeerState string

// The states of a peer.
const (
	PeerKnown       PeerState = "known"       // its record is stored, no path was proven since the start
	PeerUp          PeerState = "up"          // it answers probes
	PeerUnreachable PeerState = "unreachable" // it answered once; its routes stay installed
	PeerLeft        PeerState = "left"        // it left the mesh
	PeerExpired     PeerState = "expired"     // its certificate is over
	PeerRevoked     PeerState = "revoked"     // its certificate was withdrawn
)

// RouteStatus says how a prefix is reached.
type RouteStatus struct {
	Prefix  netip.Prefix `json:"prefix"`
	Site    string       `json:"site"`
	Gateway string       `json:"gateway"`
	Local   bool         `json:"local,omitempty"`   // announced by this gateway
	Standby []string     `json:"standby,omitempty"` // other gateways of the site that offer it, best first
	Why     string       `json:"why"`
}

// ConflictStatus names two overlapping grants of different sites.
type ConflictStatus struct {
	Prefix netip.Prefix `json:"prefix"`
	Winner string       `json:"winner"`
	Loser  string       `json:"loser"`
	Reason string       `json:"reason"`
}

// RefusedStatus names a route that another site announces and that is not
// installed here.
type RefusedStatus struct {
	Prefix  netip.Prefix `json:"prefix"`
	Gateway string       `json:"gateway"`
	Reason  string       `json:"reason"`
}
