package overlay

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/overlay/internal/fw"
	"github.com/planetmesh/planetmesh/overlay/internal/hostnet"
)

// Attachment is an interface of this host with a part of its site behind it:
// the inside of a tunnel to a router that is not a gateway.
type Attachment struct {
	// Interface is its name. It belongs to the caller of SetAttachments, who
	// creates it before and deletes it after it is named there.
	Interface string

	// MTU of the interface in bytes, 576 to 65455. With IPv6 at least 1280.
	MTU int

	// ClampMTU is the size of the largest packet, in bytes, that TCP
	// connections through the interface are told to send; zero means MTU.
	// Smaller than MTU, it leaves room for what the tunnel adds.
	ClampMTU int

	// Local are the addresses of this host on the interface, Peers those at
	// the other end.
	Local, Peers []netip.Addr

	// Prefixes are routed to the interface. Announcing them is up to
	// SetRoutes: other gateways believe no prefix for being here.
	Prefixes []netip.Prefix
}

// SetAttachments replaces the attached interfaces: all, or none if one of them
// is not valid in itself. The host follows within a second: addresses, routes,
// forwarding between the interface, the overlay and the LANs, and rules that
// let a router send into the overlay, to other attachments and to what this
// gateway announces, and nowhere else. What the host refuses shows as a warning
// in Status. The interfaces themselves stay; Close takes all the rest away.
// Returns ErrUnsupported without DeviceTUN, and ErrClosed.
func (m *Mesh) SetAttachments(list []Attachment) error {
	if err := m.ended(); err != nil {
		return err
	}
	if err := validateAttachments(list, m.cfg.Interface); err != nil {
		return err
	}
	if err := m.host.attach(list); err != nil {
		return err
	}
	wake(m.dirty)
	return nil
}

// validateAttachments reports every fault of the list.
func validateAttachments(list []Attachment, mesh string) error {
	var errs []error
	for i, a := range list {
		fault := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("attachment %q: "+format, append([]any{a.Interface}, args...)...))
		}
		if a.Interface == "" || len(a.Interface) > 15 || strings.ContainsAny(a.Interface, "/: \t\n*") {
			fault("not the name of an interface")
		}
		if a.Interface == mesh || slices.ContainsFunc(list[:i], func(b Attachment) bool { return b.Interface == a.Interface }) {
			fault("interface is in use")
		}
		if a.MTU < 576 || a.MTU > maxMTU || a.has6() && a.MTU < minMTU {
			fault("mtu %d: want 576 to %d, with ipv6 at least %d", a.MTU, maxMTU, minMTU)
		}
		if a.ClampMTU != 0 && (a.ClampMTU < 576 || a.ClampMTU > a.MTU) {
			fault("clamp to mtu %d: want 576 to %d", a.ClampMTU, a.MTU)
		}
		for _, addr := range slices.Concat(a.Local, a.Peers) {
			if !addr.IsValid() || addr.Is4In6() || addr.Zone() != "" || addr.IsUnspecified() || addr.IsMulticast() {
				fault("address %v: want that of one host", addr)
			}
		}
		for _, p := range a.Prefixes {
			if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() {
				fault("prefix %v: want a prefix without host bits", p)
			}
		}
	}
	return errors.Join(errs...)
}

func (a Attachment) has6() bool {
	return slices.ContainsFunc(a.Local, netip.Addr.Is6)
}

// desired is what the interface shall have. The other end is a route to one
// host, which does the same as a point-to-point address.
func (a Attachment) desired(ipv6 bool) hostnet.Desired {
	d := hostnet.Desired{MTU: a.MTU}
	source := func(p netip.Prefix) netip.Addr {
		i := slices.IndexFunc(a.Local, func(addr netip.Addr) bool { return addr.Is4() == p.Addr().Is4() })
		if i < 0 {
			return netip.Addr{}
		}
		return a.Local[i]
	}
	for _, addr := range a.Local {
		if addr.Is4() || ipv6 {
			d.Addresses = append(d.Addresses, netip.PrefixFrom(addr, addr.BitLen()))
		}
	}
	var prefixes []netip.Prefix
	for _, addr := range a.Peers {
		prefixes = append(prefixes, netip.PrefixFrom(addr, addr.BitLen()))
	}
	for _, p := range slices.Concat(prefixes, a.Prefixes) {
		if p.Addr().Is4() || ipv6 {
			d.Routes = append(d.Routes, hostnet.Route{Prefix: p, Source: source(p)})
		}
	}
	return d
}

// attachments are the attached interfaces of a host. Its methods are called by
// one goroutine at a time: Open, the control loop and the end of the mesh.
type attachments struct {
	dir   string // for the journals
	hosts map[string]*hostnet.Host
}

const (
	journalPrefix = "hostnet-"
	journalSuffix = ".journal"
)

// heal takes away what a run that was killed left for interfaces that may not
// be attached again.
func (a *attachments) heal(m *Mesh) error {
	a.hosts = make(map[string]*hostnet.Host)
	journals, err := filepath.Glob(filepath.Join(a.dir, journalPrefix+"*"+journalSuffix))
	if err != nil {
		return err
	}
	var errs []error
	for _, path := range journals {
		name := strings.TrimSuffix(strings.TrimPrefix(filepath.Base(path), journalPrefix), journalSuffix)
		h, err := a.open(m, name)
		if err == nil {
			err = h.Close()
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (a *attachments) open(m *Mesh, name string) (*hostnet.Host, error) {
	return hostnet.Open(hostnet.Config{
		Link: name, Journal: filepath.Join(a.dir, journalPrefix+name+journalSuffix), Logger: m.log.With("interface", name),
	})
}

// apply brings every interface in line and lets go of those that are no longer
// attached. It goes on after errors.
func (a *attachments) apply(ctx context.Context, m *Mesh, want []Attachment, ipv6 bool) error {
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(a.hosts)) {
		if !slices.ContainsFunc(want, func(w Attachment) bool { return w.Interface == name }) {
			errs = append(errs, a.hosts[name].Close())
			delete(a.hosts, name)
		}
	}
	for _, w := range want {
		h := a.hosts[w.Interface]
		if h == nil {
			var err error
			if h, err = a.open(m, w.Interface); err != nil {
				errs = append(errs, err)
				continue
			}
			a.hosts[w.Interface] = h
		}
		if err := h.Apply(ctx, w.desired(ipv6)); err != nil {
			errs = append(errs, fmt.Errorf("attachment %s: %w", w.Interface, err))
		}
	}
	return errors.Join(errs...)
}

func (a *attachments) close() error {
	var errs []error
	for _, h := range a.hosts {
		errs = append(errs, h.Close())
	}
	clear(a.hosts)
	return errors.Join(errs...)
}

// rules is what the firewall must know of the interfaces.
func rules(list []Attachment) []fw.Attached {
	var out []fw.Attached
	for _, a := range list {
		mtu := a.ClampMTU
		if mtu == 0 {
			mtu = a.MTU
		}
		out = append(out, fw.Attached{Link: a.Interface, MTU: mtu})
	}
	return out
}

// withoutAttached leaves out the attached interfaces: nobody reaches this
// gateway through the tunnel of a router.
func withoutAttached(f hostnet.Facts, list []Attachment) hostnet.Facts {
	f.Interfaces = slices.DeleteFunc(slices.Clone(f.Interfaces), func(i hostnet.Interface) bool {
		return slices.ContainsFunc(list, func(a Attachment) bool { return a.Interface == i.Name })
	})
	return f
}

func (h *kernelHost) attach(list []Attachment) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.wanted = slices.Clone(list)
	return nil
}

func (h *kernelHost) attachedNow() []Attachment {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.wanted
}

func (h *quietHost) attach(list []Attachment) error {
	if len(list) == 0 {
		return nil
	}
	return fmt.Errorf("attachments without device tun: %w", ErrUnsupported)
}
