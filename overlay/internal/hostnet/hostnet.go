// Package hostnet keeps the network settings of this host as a gateway needs
// them: addresses and MTU of the overlay interface, one route per prefix, routes
// through hosts of the site's LANs, and the forwarding settings of the interfaces
// that carry those LANs.
//
// # Desired and actual
//
// A [Host] is opened for one overlay interface. [Host.Apply] takes the whole
// desired state, compares it with what the kernel has, and changes only the
// difference; so it may be called as often as somebody likes, and it repairs
// what others took away. [Host.Facts] says what the host has without us, and
// the methods of [Facts] are pure functions that answer the questions a gateway
// has about it. [Host.Watch] tells when it is worth to look again.
//
// # The host is handed back as found
//
// Routes are recognised by [RouteProtocol] together with the overlay interface:
// two gateways on one host do not see each other's routes as their own, and no
// route that somebody else made is ever changed. Routes through hosts of a LAN
// are on interfaces that others use as well; they, addresses and settings are
// written to a journal, which is on disk before the kernel hears of them.
// [Host.Close] undoes everything in reverse order; after a crash the next
// [Open] does it. A setting goes back only if it still has the value that we
// gave it: whoever changed it after us has the last word.
//
// The overlay interface itself belongs to somebody else, who creates and
// deletes it. Apply sets its MTU and brings it up; Close leaves both alone.
//
// # Forwarding
//
// IPv4 is forwarded if the interface on which a packet comes in says so
// (net.ipv4.conf.IF.forwarding), so the global ip_forward is never touched.
//
// With IPv6 the same setting per interface only decides whether the interface
// behaves as a router towards its neighbours. Packets are forwarded if
// net.ipv6.conf.all.forwarding is set or, since Linux 6.17, if
// net.ipv6.conf.IF.force_forwarding of the incoming interface is. Where
// force_forwarding exists it is used and nothing else changes: neither other
// interfaces nor how this host treats router advertisements. Elsewhere
// all.forwarding is switched on, which changes every interface and makes the
// kernel forget default routes that it learned from router advertisements;
// therefore accept_ra becomes 2 on every interface where it was 1 before that,
// and everything that the kernel changes on the way is journalled and goes back.
//
// Reverse path filtering needs no change: what comes in from the overlay has a
// source for which the overlay interface carries the route, so it passes in
// strict mode too. One thing cannot be handed back: a network card with large
// receive offload loses it when forwarding is switched on, by the kernel's
// doing, and this package does not switch it on again.
//
// # Namespaces
//
// Everything happens in the network namespace of the calling process. /proc/sys
// follows the namespace of the reading thread, so a process that mixes
// namespaces between its threads must not use this package.
package hostnet

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"path/filepath"
	"strings"
)

// RouteProtocol marks our routes in the kernel (rtm_protocol). 109 is assigned
// neither by the kernel (include/uapi/linux/rtnetlink.h, up to 6.18: 0–18, 42,
// 84, 99, 186–189, 192) nor by iproute2's rt_protos, nor by FRRouting (186–198).
const RouteProtocol = 109

// RouteMetric is the metric of every route of ours. It is above what people and
// programs give routes without a thought (0 for IPv4, 1024 for IPv6, which is
// the kernel's IP6_RT_PRIO_USER; 100 to 1024 by network managers), so that a
// route typed by an operator wins over ours.
const RouteMetric = 2048

// minMTU and maxMTU bound Desired.MTU: 576 is what every IPv4 host must be able
// to receive (RFC 791, section 3.1), 65535 the largest IP packet.
const (
	minMTU = 576
	maxMTU = 65535
)

// minMTU6 is the smallest MTU of a link that carries IPv6 (RFC 8200, section
// 5). The kernel takes IPv6 off an interface that goes below it.
const minMTU6 = 1280

// ErrClosed is returned by every method of a Host that was closed. It also
// matches net.ErrClosed.
var ErrClosed = fmt.Errorf("host network: %w", net.ErrClosed)

// ErrJournal marks a journal that cannot be used: damaged, or not safe because
// others could have written it. Nothing was changed. The text names the file
// and what to do.
var ErrJournal = errors.New("journal not usable")

// Config says which interface and journal this presence on the host belongs to.
type Config struct {
	// Link is the name of the overlay interface. It need not exist yet when
	// Open is called. Required.
	Link string
	// Journal is the path of the journal file. Its directory must exist. No
	// two hosts share a journal. Required.
	Journal string
	// Logger gets what is worth telling; nil discards it.
	Logger *slog.Logger
}

func (c Config) validate() error {
	var errs []error
	if !validLinkName(c.Link) {
		errs = append(errs, fmt.Errorf("link %q: not an interface name", c.Link))
	}
	if c.Journal == "" {
		errs = append(errs, errors.New("journal: no path given"))
	} else if filepath.Clean(c.Journal) != c.Journal {
		errs = append(errs, fmt.Errorf("journal %q: not a clean path", c.Journal))
	}
	return errors.Join(errs...)
}

// validLinkName follows the kernel's dev_valid_name: 1 to 15 bytes, neither "."
// nor "..", without slash, colon and white space. "all" and "default" are
// refused as well, because they mean something else among the settings.
func validLinkName(name string) bool {
	switch name {
	case "", ".", "..", "all", "default":
		return false
	}
	return len(name) < 16 && !strings.ContainsFunc(name, func(r rune) bool {
		return r == '/' || r == ':' || r <= ' ' || r == 0x7f || r == 0x85 || r == 0xa0 || r == 0xfffd
	})
}

// Desired is the whole state that a gateway wants on this host. The zero value
// wants nothing: applying it takes away everything that was applied before.
type Desired struct {
	// MTU of the overlay interface in bytes, 576 to 65535, and at least 1280
	// if it carries IPv6. 0 leaves it as it is.
	MTU int
	// Addresses of the overlay interface, with prefix length.
	Addresses []netip.Prefix
	// Routes through the overlay interface; every prefix at most once.
	Routes []Route
	// LAN are routes through hosts of the networks that this host is plugged
	// into; every prefix at most once. One that is in Routes as well is not
	// made: what the mesh decides wins.
	LAN []LANRoute
	// Forward names the interfaces between which and the overlay interface
	// packets are forwarded. They must exist.
	Forward []string
	// Forward4 and Forward6 say for which families. With both false, or
	// without a name in Forward, no setting is touched.
	Forward4, Forward6 bool
}

// Route is a prefix that is reached through the overlay interface.
type Route struct {
	// Prefix is the destination, without bits below its length.
	Prefix netip.Prefix
	// Source is the preferred source address of packets that this host sends
	// itself; it must be an address of this host. The zero value leaves the
	// choice to the kernel.
	Source netip.Addr
	// MTU of the path in bytes, 0 for that of the interface.
	MTU int
}

// LANRoute is a prefix that is reached through a host of a LAN. The interface
// is the one with the smallest network that has Via in it.
type LANRoute struct {
	// Prefix is the destination, without bits below its length. It may not be
	// a default route.
	Prefix netip.Prefix
	// Via is the next hop, of the same family, outside of Prefix, not
	// link-local.
	Via netip.Addr
}

// validate says everything that is wrong with the desired state at once.
func (d Desired) validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !validMTU(d.MTU) {
		fault("mtu %d: want 0 or %d to %d", d.MTU, minMTU, maxMTU)
	}
	has6 := false
	for _, a := range d.Addresses {
		if !a.IsValid() || a.Addr().Zone() != "" || a.Addr().Is4In6() || a.Addr().IsUnspecified() {
			fault("address %v: not an address of an interface", a)
			continue
		}
		has6 = has6 || a.Addr().Is6()
	}
	if has6 && d.MTU != 0 && d.MTU < minMTU6 {
		fault("mtu %d: ipv6 needs at least %d", d.MTU, minMTU6)
	}
	seen := make(map[netip.Prefix]bool, len(d.Routes))
	for _, r := range d.Routes {
		if err := r.validate(); err != nil {
			errs = append(errs, err)
		}
		if seen[r.Prefix] {
			fault("route %v: given twice", r.Prefix)
		}
		seen[r.Prefix] = true
	}
	seenLAN := make(map[netip.Prefix]bool, len(d.LAN))
	for _, r := range d.LAN {
		if err := r.Validate(); err != nil {
			errs = append(errs, err)
		}
		if seenLAN[r.Prefix] {
			fault("route %v: given twice", r.Prefix)
		}
		seenLAN[r.Prefix] = true
	}
	for _, name := range d.Forward {
		if !validLinkName(name) {
			fault("forward %q: not an interface name", name)
		}
	}
	return errors.Join(errs...)
}

func (r Route) validate() error {
	switch p := r.Prefix; {
	case !p.IsValid() || p.Addr().Is4In6() || p != p.Masked():
		return fmt.Errorf("route %v: not a prefix", p)
	case p.Addr().IsMulticast() || p.Addr().IsLinkLocalUnicast() || p.Addr().IsLoopback():
		return fmt.Errorf("route %v: not a prefix that can be routed", p)
	case r.Source.IsValid() && (r.Source.Is4() != p.Addr().Is4() || r.Source.Zone() != ""):
		return fmt.Errorf("route %v: source %v does not fit", p, r.Source)
	case !validMTU(r.MTU):
		return fmt.Errorf("route %v: mtu %d: want 0 or %d to %d", p, r.MTU, minMTU, maxMTU)
	}
	return nil
}

// Validate says what is wrong with the route without a look at any host.
func (r LANRoute) Validate() error {
	if err := (Route{Prefix: r.Prefix}).validate(); err != nil {
		return err
	}
	switch v := r.Via; {
	case r.Prefix.Bits() == 0:
		return fmt.Errorf("route %v via %v: a default route", r.Prefix, v)
	case !v.IsValid() || v.Zone() != "" || v.Is4In6() || !v.IsGlobalUnicast():
		return fmt.Errorf("route %v via %v: not the address of one host", r.Prefix, v)
	case v.Is4() != r.Prefix.Addr().Is4():
		return fmt.Errorf("route %v via %v: of different families", r.Prefix, v)
	case r.Prefix.Contains(v):
		return fmt.Errorf("route %v via %v: the host is inside of what it leads to", r.Prefix, v)
	}
	return nil
}

func validMTU(mtu int) bool { return mtu == 0 || mtu >= minMTU && mtu <= maxMTU }

// OnLinkError says that a route through a host of a LAN was not installed,
// because this host is in no network together with that one.
type OnLinkError struct {
	LANRoute
	// Own is set if Via is an address of this host itself.
	Own bool
}

// Error names the route and the reason.
func (e *OnLinkError) Error() string {
	if e.Own {
		return fmt.Sprintf("route %v via %v: that is an address of this host", e.Prefix, e.Via)
	}
	return fmt.Sprintf("route %v via %v: not in a network that this host is plugged into", e.Prefix, e.Via)
}

// CollisionError says that a route was not installed, because the host already
// uses that prefix for something of its own.
type CollisionError struct {
	// Prefix is what was wanted.
	Prefix netip.Prefix
	// With is what the host has: a route of somebody else, or, with protocol
	// ProtocolKernel, the network of one of its addresses.
	With HostRoute
}

// Error names both sides.
func (e *CollisionError) Error() string {
	return fmt.Sprintf("route %v collides with %v of this host", e.Prefix, e.With)
}
