package overlay

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"time"
)

// DeviceKind says what carries the packets of a Mesh.
type DeviceKind string

// The kinds of devices.
const (
	// DeviceTUN is a network interface of the host: needs Linux, root (or
	// CAP_NET_ADMIN) and /dev/net/tun. For site gateways.
	DeviceTUN DeviceKind = "tun"
	// DeviceNetstack is a network stack inside the process: needs no
	// privilege. DialContext, Listen and ListenPacket use it. For programs.
	DeviceNetstack DeviceKind = "netstack"
	// DeviceNone carries no packets: the control plane alone, for
	// simulations and observers.
	DeviceNone DeviceKind = "none"
)

// Defaults of Config.
const (
	// DefaultPort is the UDP port of a gateway. It lies outside the usual
	// ephemeral ranges (IANA 49152–65535, Linux 32768–60999).
	DefaultPort = 17946
	// DefaultInterface is the name of the TUN device.
	DefaultInterface = "pm0"
	// DefaultMTU is the largest inner packet, in bytes: 1500 − 40 (IPv6) − 8
	// (UDP) − 32 (WireGuard), the value wg-quick uses as well.
	DefaultMTU = 1420
	// minMTU is what IPv6 demands of every link (RFC 8200, section 5).
	minMTU = 1280
	// maxMTU leaves room for the outer headers in a 65,535-byte datagram.
	maxMTU = 65535 - 80
	// maxRoutes is the limit of a record (docs/protocol.md, section 2).
	maxRoutes = 64
	// maxEndpoints is the limit of a record (docs/protocol.md, section 2).
	maxEndpoints = 8
)

// Config is what Open needs to know. The zero value of every field but Store
// is usable. Nothing in it may be changed after Open.
type Config struct {
	// Store holds the gateway that Init or Join made. Required. The Mesh
	// locks it until Close.
	Store Store

	// Device says what carries the packets; empty means DeviceNetstack.
	Device DeviceKind

	// Interface names the TUN device; empty means DefaultInterface. At most
	// 15 bytes (Linux, IFNAMSIZ). Ignored by other devices.
	Interface string

	// MTU is the size of the largest inner packet in bytes, 1280 to 65455;
	// zero means DefaultMTU.
	MTU int

	// Port is the UDP port; zero means DefaultPort for a TUN device and a
	// free port for others.
	Port uint16

	// Endpoints are underlay addresses under which this gateway is reached
	// from outside, such as the public side of a forwarded port. They are
	// announced before those that are found. At most 8.
	Endpoints []netip.AddrPort

	// Seeds are underlay addresses of other gateways to introduce ourselves
	// to, besides those of the ticket and of stored records.
	Seeds []netip.AddrPort

	// Routes are the prefixes to announce at first, each within the grant of
	// the certificate. Nil means all granted prefixes, also when the grant
	// changes; an empty slice none. SetRoutes changes them later.
	Routes []Route

	// Accept narrows what may be installed from other sites: a route must
	// lie within one of these. Empty means all that is authorised.
	Accept []netip.Prefix

	// KeepHost leaves sysctls and nftables of the host alone: the operator
	// has set forwarding and MSS clamping. Ignored without a TUN device.
	KeepHost bool

	// LocalAddrs returns the underlay addresses of this host; nil means
	// those of its interfaces.
	LocalAddrs func() []netip.Addr

	// ListenPacket opens the one UDP port; nil means a real one. In-process
	// networks put theirs here. Addresses must be *net.UDPAddr.
	ListenPacket func(ctx context.Context, port uint16) (net.PacketConn, error)

	// Now reads the wall clock that validity is judged by; nil means
	// time.Now.
	Now func() time.Time

	// Logger receives what happens; nil means nothing is logged.
	Logger *slog.Logger

	// Software is shown to other gateways, at most 64 printable ASCII
	// characters; empty shows nothing.
	Software string
}

// Validate reports all faults of c that can be seen without the host and the
// store, joined.
func (c Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if c.Store == nil {
		fault("store: want one, such as OpenDir(dir)")
	}
	switch c.Device {
	case "", DeviceTUN, DeviceNetstack, DeviceNone:
	default:
		fault("device %q: want tun, netstack or none", c.Device)
	}
	if len(c.Interface) > 15 {
		fault("interface %q: want at most 15 bytes", c.Interface)
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		fault("mtu %d: want %d to %d", c.MTU, minMTU, maxMTU)
	}
	if len(c.Endpoints) > maxEndpoints {
		fault("endpoints: %d, want at most %d", len(c.Endpoints), maxEndpoints)
	}
	for _, e := range c.Endpoints {
		if err := checkEndpoint(e); err != nil {
			fault("endpoint %v: %w", e, err)
		}
	}
	for _, e := range c.Seeds {
		if err := checkEndpoint(e); err != nil {
			fault("seed %v: %w", e, err)
		}
	}
	errs = append(errs, validateRoutes(c.Routes))
	for _, p := range c.Accept {
		if !p.IsValid() || p != p.Masked() {
			fault("accept %v: want a prefix without host bits", p)
		}
	}
	return errors.Join(errs...)
}

// validateRoutes reports every fault of routes that needs no certificate.
func validateRoutes(routes []Route) error {
	var errs []error
	if len(routes) > maxRoutes {
		errs = append(errs, fmt.Errorf("routes: %d, want at most %d", len(routes), maxRoutes))
	}
	for i, r := range routes {
		if !r.Prefix.IsValid() || r.Prefix != r.Prefix.Masked() {
			errs = append(errs, fmt.Errorf("route %v: want a prefix without host bits", r.Prefix))
			continue
		}
		for _, other := range routes[:i] {
			if other.Prefix.Overlaps(r.Prefix) {
				errs = append(errs, fmt.Errorf("route %v: overlaps %v", r.Prefix, other.Prefix))
			}
		}
	}
	return errors.Join(errs...)
}

// checkEndpoint refuses underlay addresses that can be nobody's endpoint.
func checkEndpoint(e netip.AddrPort) error {
	addr := e.Addr()
	switch {
	case !e.IsValid() || e.Port() == 0:
		return errors.New("want an address and a port above zero")
	case addr.IsUnspecified(), addr.IsMulticast():
		return errors.New("want the address of one host")
	}
	return nil
}

// withDefaults returns a copy of c with every default filled in.
func (c Config) withDefaults() Config {
	if c.Device == "" {
		c.Device = DeviceNetstack
	}
	if c.Interface == "" {
		c.Interface = DefaultInterface
	}
	if c.MTU == 0 {
		c.MTU = DefaultMTU
	}
	if c.Port == 0 && c.Device == DeviceTUN {
		c.Port = DefaultPort
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return c
}
