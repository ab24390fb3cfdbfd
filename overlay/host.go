package overlay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/planetmesh/planetmesh/overlay/internal/fw"
	"github.com/planetmesh/planetmesh/overlay/internal/hostnet"
)

// host is the machine around the mesh: its addresses, routes and settings.
type host interface {
	// candidates returns local addresses that others may try.
	candidates() []netip.Addr
	// onLink reports whether addr is in a network that this host is plugged into.
	onLink(addr netip.Addr) bool
	// collision says what on this host a route for p would get in the way of,
	// and why it matters.
	collision(p netip.Prefix) (with netip.Prefix, reason string, collides bool)
	// checkLAN reports which routes through hosts of LANs cannot be made now.
	checkLAN(routes []LANRoute) error
	// attach replaces the attached interfaces; apply puts them into effect.
	attach(list []Attachment) error
	// apply makes the host carry packets as wanted.
	apply(ctx context.Context, want hostState) error
	// watch wakes the mesh when addresses or routes of the host change.
	watch(ctx context.Context) error
	// close hands the host back as it was found.
	close() error
}

// hostState is what the mesh wants of the host.
type hostState struct {
	overlay   netip.Addr
	mtu       int
	routes    []netip.Prefix // reached through the overlay
	announced []netip.Prefix // behind this gateway
	lan       []LANRoute     // reached through hosts of the LANs
}

// openHost returns the host of a gateway with a TUN device, or one that leaves
// the machine alone.
func openHost(m *Mesh) (host, error) {
	local := m.cfg.LocalAddrs
	if m.cfg.Device != DeviceTUN {
		if local == nil && m.cfg.ListenPacket == nil {
			local = interfaceAddrs
		}
		return &quietHost{addrs: local}, nil
	}
	dir, ok := m.cfg.Store.(*DirStore)
	if !ok {
		return nil, errors.New("device tun: want a store in a directory, for the journal of host settings")
	}
	journal := filepath.Join(filepath.Clean(dir.Dir()), "hostnet.journal")
	net, err := hostnet.Open(hostnet.Config{Link: m.cfg.Interface, Journal: journal, Logger: m.log})
	if err != nil {
		return nil, err
	}
	h := &kernelHost{m: m, net: net, addrs: local, attached: attachments{dir: filepath.Dir(journal)}}
	if err := h.attached.heal(m); err != nil {
		return nil, errors.Join(err, net.Close())
	}
	if !m.cfg.KeepHost {
		h.fw, err = fw.Open(fw.Config{Link: m.cfg.Interface, Logger: m.log})
		switch {
		case errors.Is(err, errors.ErrUnsupported):
			m.warn("firewall", fmt.Sprintf("tcp segments are not clamped, so hosts with broken path mtu discovery may stall: %v", err))
			h.fw = nil
		case err != nil:
			return nil, errors.Join(err, net.Close())
		}
	}
	if err := h.look(); err != nil {
		return nil, errors.Join(err, h.close())
	}
	return h, nil
}

// kernelHost shapes the host through netlink and nftables.
type kernelHost struct {
	m     *Mesh
	net   *hostnet.Host
	fw    *fw.Firewall // nil: left alone
	addrs func() []netip.Addr

	attached attachments

	mu     sync.Mutex // guards all below
	facts  hostnet.Facts
	wanted []Attachment
}

// look reads the facts again.
func (h *kernelHost) look() error {
	facts, err := h.net.Facts()
	if err != nil {
		return err
	}
	h.mu.Lock()
	h.facts = facts
	h.mu.Unlock()
	return nil
}

func (h *kernelHost) seen() hostnet.Facts {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.facts
}

func (h *kernelHost) candidates() []netip.Addr {
	if h.addrs != nil {
		return h.addrs()
	}
	return withoutAttached(h.seen(), h.attachedNow()).Candidates()
}

func (h *kernelHost) onLink(addr netip.Addr) bool {
	for _, i := range h.seen().Interfaces {
		if i.Ours || i.Loopback {
			continue
		}
		for _, a := range i.Addresses {
			if a.Prefix.Masked().Contains(addr) {
				return true
			}
		}
	}
	return false
}

func (h *kernelHost) collision(p netip.Prefix) (netip.Prefix, string, bool) {
	r, collides := h.seen().Collision(p)
	if !collides {
		return netip.Prefix{}, "", false
	}
	return r.Prefix, fmt.Sprintf("collides with %v on %s of this host", r.Prefix, r.Interface), true
}

func (h *kernelHost) apply(ctx context.Context, want hostState) error {
	if err := h.look(); err != nil {
		return err
	}
	attached := h.attachedNow()
	errs := []error{h.attached.apply(ctx, h.m, attached, h.seen().IPv6)}
	if len(attached) > 0 { // they may have what is announced behind them
		if err := h.look(); err != nil {
			return errors.Join(append(errs, err)...)
		}
	}
	facts := h.seen()
	d := hostnet.Desired{MTU: want.mtu}
	if facts.IPv6 {
		d.Addresses = []netip.Prefix{netip.PrefixFrom(want.overlay, 128)}
		h.m.warn("ipv6", "")
	} else {
		h.m.warn("ipv6", "ipv6 is switched off on this host: overlay addresses and ipv6 prefixes do not work here; ipv4 does")
	}
	v4, v6 := facts.SourceFor(want.announced)
	for _, p := range want.routes {
		if p.Addr().Is6() && !facts.IPv6 {
			continue
		}
		source := v4
		if p.Addr().Is6() {
			source = v6
		}
		d.Routes = append(d.Routes, hostnet.Route{Prefix: p, Source: source})
	}
	for _, r := range want.lan {
		if r.Prefix.Addr().Is4() || facts.IPv6 {
			d.LAN = append(d.LAN, hostnet.LANRoute(r))
		}
	}
	if !h.m.cfg.KeepHost {
		h.forward(&d, facts, want)
	}
	errs = append(errs, h.net.Apply(ctx, d))
	if h.fw != nil {
		errs = append(errs, h.fw.Apply(fw.Desired{MTU: want.mtu, Restrict: true, Prefixes: want.announced, Attached: rules(attached)}))
	}
	h.diagnose()
	return errors.Join(errs...)
}

// forward asks for forwarding between the overlay and the interfaces behind
// which the announced prefixes are, or hosts that lead to parts of them.
func (h *kernelHost) forward(d *hostnet.Desired, facts hostnet.Facts, want hostState) {
	add := func(i hostnet.Interface) {
		if !slices.Contains(d.Forward, i.Name) {
			d.Forward = append(d.Forward, i.Name)
		}
	}
	for _, p := range want.announced {
		for _, i := range facts.InterfaceFor(p) {
			add(i)
		}
		d.Forward4 = d.Forward4 || p.Addr().Is4()
		d.Forward6 = d.Forward6 || p.Addr().Is6() && facts.IPv6
	}
	for _, r := range d.LAN {
		if i, err := facts.OnLink(r.Via); err == nil {
			add(i)
		}
	}
}

// diagnose warns of foreign firewalls that drop what this gateway forwards.
func (h *kernelHost) diagnose() {
	findings, err := fw.Diagnose(h.m.cfg.Interface)
	if err != nil {
		h.m.log.Debug("foreign firewalls cannot be read", "err", err)
		return
	}
	var texts []string
	for _, f := range findings {
		texts = append(texts, f.String())
	}
	text := ""
	if len(texts) > 0 {
		text = "a firewall of this host drops forwarded packets: " + strings.Join(texts, " · ")
	}
	h.m.warn("foreign firewall", text)
}

func (h *kernelHost) watch(ctx context.Context) error {
	return h.net.Watch(ctx, h.m.hostChanged)
}

func (h *kernelHost) close() error {
	var errs []error
	if h.fw != nil {
		errs = append(errs, h.fw.Close())
	}
	return errors.Join(append(errs, h.attached.close(), h.net.Close())...)
}

// quietHost leaves the machine alone: its packets never meet the host's routes.
type quietHost struct {
	addrs func() []netip.Addr // nil: none
}

func (h *quietHost) candidates() []netip.Addr {
	if h.addrs == nil {
		return nil
	}
	return h.addrs()
}

// onLink reports true: without a look at the host's networks nothing is ruled out.
func (h *quietHost) onLink(netip.Addr) bool { return true }
func (h *quietHost) collision(netip.Prefix) (netip.Prefix, string, bool) {
	return netip.Prefix{}, "", false
}
func (h *quietHost) apply(context.Context, hostState) error { return nil }
func (h *quietHost) watch(ctx context.Context) error        { <-ctx.Done(); return nil }
func (h *quietHost) close() error                           { return nil }
