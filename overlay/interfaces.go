package overlay

import (
	"net"
	"net/netip"
)

// interfaceAddrs returns the global unicast addresses of all interfaces that
// are up; where there is none but the loopback, that.
func interfaceAddrs() []netip.Addr {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	var found, loopback []netip.Addr
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue
		}
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			switch {
			case err != nil:
			case p.Addr().IsLoopback():
				loopback = append(loopback, p.Addr())
			case p.Addr().IsGlobalUnicast():
				found = append(found, p.Addr())
			}
		}
	}
	if len(found) == 0 {
		return loopback
	}
	return found
}
