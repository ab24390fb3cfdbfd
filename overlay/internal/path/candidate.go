package path

import "net/netip"

// Source says how an address became a candidate. A lower value is asked first.
type Source uint8

// Where candidates come from.
const (
	Proven     Source = iota // was proven in this run or the one before
	Configured               // by the operator, a ticket or a stored seed
	Observed                 // the peer wrote to us, or others, from there
	Record                   // the peer's signed record names it
	Local                    // seen on a network that we share
)

// String returns the name of the source.
func (s Source) String() string {
	switch s {
	case Proven:
		return "proven"
	case Configured:
		return "configured"
	case Observed:
		return "observed"
	case Record:
		return "record"
	case Local:
		return "local"
	}
	return "unknown"
}

// Candidate is an address at which a peer may be.
type Candidate struct {
	Addr   netip.AddrPort
	Source Source
}

// askable reports whether a candidate may be asked at all, whatever the
// configuration says about it.
func (c Candidate) askable(loopback bool) bool {
	a := c.Addr.Addr()
	switch {
	case !a.IsValid(), c.Addr.Port() == 0:
		return false
	case a.IsUnspecified(), a.IsMulticast(), a == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
		return false
	case a.IsLoopback():
		return loopback || c.Source == Configured
	case a.Is6() && a.IsLinkLocalUnicast():
		return false // needs a zone, which neither records nor sockets carry
	}
	return true
}
