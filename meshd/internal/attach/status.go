package attach

import (
	"maps"
	"net/netip"
	"time"

	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// State is how things stand with an attached router; the values are stable.
type State string

// The states of a router.
const (
	StateConnecting State = "connecting" // nothing authentic came from it since the start
	StateUp         State = "up"         // it is there, and its prefixes are announced
	StateDown       State = "down"       // it was there once, or its interface or socket cannot be opened
)

// Status is a snapshot of one attachment. JSON-stable. Secrets are not in it.
type Status struct {
	Name       string         `json:"name"`
	Interface  string         `json:"interface"`
	State      State          `json:"state"`
	Since      time.Time      `json:"since"`     // of the state
	Mode       string         `json:"mode"`      // static, tls-server or tls-client
	Transport  string         `json:"transport"` // udp, tcp-listen or tcp-connect
	Cipher     string         `json:"cipher,omitempty"`
	Digest     string         `json:"digest,omitempty"`
	TLSVersion string         `json:"tlsVersion,omitempty"`
	Local      netip.AddrPort `json:"local,omitzero"`
	Peer       netip.AddrPort `json:"peer,omitzero"` // the router's outer address
	Prefixes   []netip.Prefix `json:"prefixes"`
	Priority   uint16         `json:"priority"`
	Keys       uint64         `json:"keys"`     // negotiated, in the TLS modes
	Restarts   uint64         `json:"restarts"` // connections that ended
	Heard      time.Time      `json:"heard,omitzero"`
	LastError  string         `json:"lastError,omitempty"`
	Counters
}

// Counters count since the attachment was started. Packets are those inside.
type Counters struct {
	RxPackets uint64 `json:"rxPackets"` // from the router
	RxBytes   uint64 `json:"rxBytes"`
	TxPackets uint64 `json:"txPackets"` // to the router
	TxBytes   uint64 `json:"txBytes"`
	// Dropped counts by reason: those of openvpn.Reason for packets outside,
	// DropSource and DropLinkLocal for packets of the router.
	Dropped map[string]uint64 `json:"dropped,omitempty"`
}

// Reasons to drop packets of a router.
const (
	DropSource    = "source"    // neither from its prefixes nor from its tunnel addresses
	DropLinkLocal = "linklocal" // from a link-local or unspecified IPv6 address
)

func (r *router) status() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := Status{
		Name: r.conf.Name, Interface: r.conf.Device, Mode: string(r.conf.Mode), Transport: r.conf.Transport.String(),
		Prefixes: r.conf.Prefixes, Priority: r.conf.Priority,
		State: StateDown, Since: r.since,
		Counters: r.countersLocked(),
	}
	if r.endpoint == nil {
		if r.lost != nil {
			s.LastError = r.lost.Error()
		}
		return s
	}
	e := r.endpoint.Status()
	s.Since, s.Cipher, s.Digest, s.TLSVersion = e.Since, string(e.Cipher), string(e.Digest), e.TLSVersion
	s.Local, s.Peer = e.Local, e.Peer
	s.Keys, s.Restarts, s.Heard, s.LastError = e.Keys, e.Restarts, e.Heard, e.LastError
	switch {
	case e.State == openvpn.StateUp:
		s.State = StateUp
	case e.State == openvpn.StateConnecting && !r.was:
		s.State = StateConnecting
	}
	return s
}

// countersLocked adds the counters of this endpoint to those before.
func (r *router) countersLocked() Counters {
	c := r.before
	c.Dropped = make(map[string]uint64)
	maps.Copy(c.Dropped, r.before.Dropped)
	if r.endpoint == nil {
		return c
	}
	e := r.endpoint.Status().Counters
	c.RxPackets += e.InPackets
	c.RxBytes += e.InBytes
	c.TxPackets += e.OutPackets
	c.TxBytes += e.OutBytes
	for reason, n := range e.Dropped {
		c.Dropped[reason.String()] += n
	}
	for reason, n := range map[string]uint64{DropSource: r.filter.refused.Load(), DropLinkLocal: r.filter.linkLocal.Load()} {
		if n > 0 {
			c.Dropped[reason] += n
		}
	}
	return c
}
