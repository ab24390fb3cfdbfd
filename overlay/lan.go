package overlay

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/planetmesh/planetmesh/overlay/internal/hostnet"
)

// LANRoute is a prefix of this site that lies behind a host of one of its LANs,
// such as the pods of a Kubernetes node: packets for it go to that host.
type LANRoute struct {
	// Prefix is the destination, masked. Announcing it, or one that covers it,
	// is up to SetRoutes: other gateways believe no prefix for being here.
	Prefix netip.Prefix `json:"prefix"`
	// Via is the host: an address of the same family, outside of Prefix, in a
	// network that this gateway is plugged into.
	Via netip.Addr `json:"via"`
}

// maxLANRoutes bounds what one gateway routes within its site: a /24 for each
// of as many hosts as a /14 of pods has room for.
const maxLANRoutes = 1024

// CheckLANRoutes reports every reason why this host cannot have the routes now,
// joined: a next hop that it is in no network with, a prefix that it has or
// routes elsewhere itself. Nothing changes. Returns ErrUnsupported without
// DeviceTUN unless there are none, and ErrClosed.
func (m *Mesh) CheckLANRoutes(routes []LANRoute) error {
	if err := m.ended(); err != nil {
		return err
	}
	return errors.Join(m.checkLANRoutes(routes), m.host.checkLAN(routes))
}

// SetLANRoutes replaces the routes through hosts of the LANs: all, or none if
// one is not valid in itself, given twice, or not within the grant, which is a
// *GrantError. The host follows within a second, and repairs what others change;
// what it refuses shows as a warning in Status. Close takes the routes away.
// Returns ErrUnsupported without DeviceTUN unless there are none, and ErrClosed.
func (m *Mesh) SetLANRoutes(routes []LANRoute) error {
	if err := m.ended(); err != nil {
		return err
	}
	if len(routes) > 0 && m.cfg.Device != DeviceTUN {
		return errLANUnsupported
	}
	if err := m.checkLANRoutes(routes); err != nil {
		return err
	}
	m.mu.Lock()
	m.lan = slices.Clone(routes)
	m.mu.Unlock()
	wake(m.dirty)
	return nil
}

// LANRoutes returns the routes through hosts of the LANs.
func (m *Mesh) LANRoutes() []LANRoute {
	m.mu.Lock()
	defer m.mu.Unlock()
	return slices.Clone(m.lan)
}

var errLANUnsupported = fmt.Errorf("routes through hosts of a lan without device tun: %w", ErrUnsupported)

// checkLANRoutes reports what is wrong with routes without a look at the host.
func (m *Mesh) checkLANRoutes(routes []LANRoute) error {
	if len(routes) > maxLANRoutes {
		return fmt.Errorf("lan routes: %d, want at most %d", len(routes), maxLANRoutes)
	}
	granted := m.self.granted()
	seen := make(map[netip.Prefix]bool, len(routes))
	var errs []error
	for _, r := range routes {
		err := hostnet.LANRoute(r).Validate()
		switch {
		case err != nil:
		case seen[r.Prefix]:
			err = fmt.Errorf("lan route %v: given twice", r.Prefix)
		case !slices.ContainsFunc(granted, func(g netip.Prefix) bool { return covers(g, r.Prefix) }):
			err = &GrantError{Prefix: r.Prefix, Granted: granted}
		}
		seen[r.Prefix] = true
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// checkLAN looks at the host afresh: it may have changed a moment ago.
func (h *kernelHost) checkLAN(routes []LANRoute) error {
	if len(routes) == 0 {
		return nil
	}
	if err := h.look(); err != nil {
		return err
	}
	facts := withoutAttached(h.seen(), h.attachedNow()) // a tunnel to a router is no LAN
	var errs []error
	for _, r := range routes {
		_, err := facts.CheckLAN(hostnet.LANRoute(r))
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (h *quietHost) checkLAN(routes []LANRoute) error {
	if len(routes) == 0 {
		return nil
	}
	return errLANUnsupported
}
