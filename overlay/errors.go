package overlay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
)

// The conditions that a caller may want to branch on. Test with errors.Is.
var (
	// ErrClosed says that the Mesh was closed. It is also net.ErrClosed.
	ErrClosed = fmt.Errorf("mesh is closed: %w", net.ErrClosed)

	// ErrNoState says that the store holds no gateway yet: Init or Join come first.
	ErrNoState = errors.New("no gateway in this state")

	// ErrStateExists says that the store holds a gateway already.
	ErrStateExists = errors.New("state holds a gateway already")

	// ErrStateInUse says that another process works on the same state.
	ErrStateInUse = errors.New("state is in use by another process")

	// ErrStateCorrupt says that a stored file is not what was written.
	ErrStateCorrupt = errors.New("state file is damaged")

	// ErrStateExposed says that a key file may be read by others.
	ErrStateExposed = errors.New("key file is readable by others")

	// ErrNotIssuer says that this gateway holds no issuing key.
	ErrNotIssuer = errors.New("this gateway holds no issuing key")

	// ErrTicketExpired says that the redeemer judged the ticket too old.
	ErrTicketExpired = errors.New("ticket has expired")

	// ErrTicketUsed says that another identity redeemed the ticket before.
	ErrTicketUsed = errors.New("ticket was used")

	// ErrTicketRefused says that the redeemer does not honour the ticket.
	ErrTicketRefused = errors.New("ticket was refused")

	// ErrNoPath says that no path to a gateway is proven at present.
	ErrNoPath = errors.New("no path")

	// ErrUnknownGateway says that no record fits a name, site or ID.
	ErrUnknownGateway = errors.New("unknown gateway")

	// ErrUnsupported says that this host or build cannot do it. It is also
	// errors.ErrUnsupported.
	ErrUnsupported = fmt.Errorf("not supported here: %w", errors.ErrUnsupported)
)

// GrantError says that a prefix lies outside what the gateway's certificate
// grants.
type GrantError struct {
	Prefix  netip.Prefix   // what was asked for
	Granted []netip.Prefix // what the certificate has
}

// Error names the prefix and what would have been right.
func (e *GrantError) Error() string {
	return fmt.Sprintf("prefix %v is not granted to this gateway (granted: %v)", e.Prefix, e.Granted)
}

// OverlapError says that a prefix is held by another site already.
type OverlapError struct {
	Prefix netip.Prefix // what was asked for
	Other  netip.Prefix // what it overlaps with
	Site   string       // the site that holds Other
}

// Error names both prefixes and the site that holds the other one.
func (e *OverlapError) Error() string {
	return fmt.Sprintf("prefix %v overlaps %v, which site %s holds", e.Prefix, e.Other, e.Site)
}
