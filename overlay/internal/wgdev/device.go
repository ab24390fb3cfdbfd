package wgdev

import (
	"cmp"
	"context"
	"crypto/ecdh"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"regexp"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Device is an open WireGuard device. All methods are safe for concurrent use;
// see the package comment for who must not call them.
type Device interface {
	// Apply makes changes, in their order, all of them or none. Changes that
	// are in effect already are no fault, so a list may be applied again. It
	// returns ErrClosed, the error of ctx (which counts until the first change
	// is made), or what is wrong with a change.
	Apply(ctx context.Context, changes engine.Changes) error
	// Peers returns what is configured, ascending by ID.
	Peers() []Peer
	// Stats returns how each peer does. Empty when closed, and for None.
	Stats() map[trust.ExchangeKey]PeerStats
	// Restart throws away the session with a peer that has lost its own and
	// begins a new one. It does not wait for that. It returns ErrClosed, or
	// ErrNoPeer for a key that is not configured.
	Restart(key trust.ExchangeKey) error
	// Initiate begins a session with a peer unless there is one. It does not
	// wait for that. Errors as with Restart.
	Initiate(key trust.ExchangeKey) error
	// Netstack returns the network stack of an InProcess device, nil for others.
	Netstack() *Netstack
	// Name is the name of the network interface, empty if there is none.
	Name() string
	// MTU is the largest inner packet in bytes that the device was opened with.
	MTU() int
	// Done is closed when the device has ended: after Close, or because its
	// interface went away.
	Done() <-chan struct{}
	// Err says why the device ended by itself; nil if it did not.
	Err() error
	// Close ends everything and waits for it. It may be called again.
	Close() error
}

// Peer is a configured peer.
type Peer struct {
	ID      trust.GatewayID
	Key     trust.ExchangeKey
	Allowed []netip.Prefix // ascending
}

// PeerStats is what a device counted for a peer since it was added.
type PeerStats struct {
	Rx, Tx        uint64    // bytes of WireGuard packets
	LastHandshake time.Time // zero if there was none
}

// with adds what was counted before.
func (s PeerStats) with(before PeerStats) PeerStats {
	s.Rx += before.Rx
	s.Tx += before.Tx
	if s.LastHandshake.IsZero() {
		s.LastHandshake = before.LastHandshake
	}
	return s
}

// Errors that callers branch on.
var (
	// ErrClosed is returned by a device that has ended. It also matches
	// net.ErrClosed.
	ErrClosed = fmt.Errorf("wireguard device: %w", net.ErrClosed)
	// ErrNoPeer is returned for a key that no peer has. It also matches
	// os.ErrNotExist.
	ErrNoPeer = fmt.Errorf("no such peer: %w", os.ErrNotExist)
)

// Kind says what carries the packets of a device.
type Kind string

// The kinds of devices.
const (
	// TUN is a network interface of the host; needs Linux, CAP_NET_ADMIN and
	// /dev/net/tun. It carries packets once the interface is up, which is left
	// to whoever configures the host.
	TUN Kind = "tun"
	// InProcess is a network stack inside of this process, on every platform.
	InProcess Kind = "netstack"
	// Given is the tun.Device in Config.Device.
	Given Kind = "given"
	// None carries nothing.
	None Kind = "none"
)

// DefaultMTU is the MTU if none is configured: 1500 − 40 (IPv6) − 8 (UDP) − 32
// (WireGuard), the value of wg-quick.
const DefaultMTU = 1420

const (
	// minMTU is what IPv6 demands of every link (RFC 8200, section 5).
	minMTU = 1280
	// maxMTU leaves room for the headers of WireGuard, UDP and IPv6 in the
	// largest datagram.
	maxMTU = 65535 - 80
)

// Config is what Open needs.
type Config struct {
	// Kind of the device. Required.
	Kind Kind
	// Name of the network interface: 1 to 15 of the characters that wg-quick
	// allows. Required for TUN; others have one only for the control socket.
	Name string
	// MTU in bytes, 1280 to 65455; 0 means DefaultMTU. For Given, 0 means that
	// of the device.
	MTU int
	// Addresses of the InProcess network stack; see Netstack.SetAddresses.
	Addresses []netip.Addr
	// Device for Given. The device that Open returns owns it and closes it,
	// also when Open fails.
	Device tun.Device
	// Bind sends and receives for the device. Required except for None, which
	// leaves it alone.
	Bind conn.Bind
	// PrivateKey is the X25519 key of this gateway. Required except for None.
	PrivateKey *ecdh.PrivateKey
	// EndpointText returns what Bind.ParseEndpoint understands as the endpoint
	// of a gateway. Required except for None.
	EndpointText func(trust.GatewayID) string
	// ControlSocket offers the state of the device to wg(8), readable only by
	// the user of this process and root. The private key is part of what can
	// be read, as with every WireGuard device. Where the socket cannot be
	// made, a warning is logged and the device works without; so it does on
	// platforms other than Linux.
	ControlSocket bool
	// Bubble must be set for a Given device that is opened in a
	// testing/synctest bubble: otherwise a garbage collection during or after
	// the bubble ends the process.
	Bubble bool
	// Logger gets what is worth telling; nil discards it.
	Logger *slog.Logger
}

// validName is what wg-quick accepts as the name of an interface: it goes into
// the path of the control socket. 15 is IFNAMSIZ − 1.
var validName = regexp.MustCompile(`^[a-zA-Z0-9_=+.-]{1,15}$`)

func (c Config) validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch c.Kind {
	case TUN, InProcess, None:
	case Given:
		if c.Device == nil {
			fault("device: want one, for kind given")
		}
	default:
		fault("kind %q: want tun, netstack, given or none", c.Kind)
	}
	if (c.Name != "" || c.Kind == TUN) && (!validName.MatchString(c.Name) || c.Name == "." || c.Name == "..") {
		fault("interface %q: want 1 to 15 of a–z A–Z 0–9 _ = + . -", c.Name)
	}
	if c.MTU != 0 && (c.MTU < minMTU || c.MTU > maxMTU) {
		fault("mtu %d: want %d to %d", c.MTU, minMTU, maxMTU)
	}
	if c.Kind == None {
		return errors.Join(errs...)
	}
	if c.Bind == nil {
		fault("bind: want one")
	}
	if c.PrivateKey == nil || c.PrivateKey.Curve() != ecdh.X25519() {
		fault("private key: want one of x25519")
	}
	if c.EndpointText == nil {
		fault("endpoint text: want a function")
	}
	return errors.Join(errs...)
}

// Open makes a device without peers. It returns what is wrong with the
// configuration, errors.ErrUnsupported for a TUN device on another platform
// than Linux, os.ErrPermission without CAP_NET_ADMIN, os.ErrNotExist without
// /dev/net/tun, os.ErrExist for an interface name that is in use, or an error
// of Bind.Open.
func Open(c Config) (Device, error) {
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if err := c.validate(); err != nil {
		if c.Kind == Given && c.Device != nil {
			err = errors.Join(err, c.Device.Close())
		}
		return nil, err
	}
	mtu := cmp.Or(c.MTU, DefaultMTU)
	switch c.Kind {
	case TUN:
		t, err := openTUN(c.Name, mtu)
		if err != nil {
			return nil, fmt.Errorf("open interface %s: %w", c.Name, err)
		}
		return openUserspace(c, t, nil, mtu)
	case InProcess:
		s, err := newNetstack(mtu)
		if err != nil {
			return nil, fmt.Errorf("open network stack: %w", err)
		}
		if err := s.SetAddresses(c.Addresses); err != nil {
			return nil, errors.Join(err, s.close())
		}
		return openUserspace(c, &stackDevice{s}, s, mtu)
	case Given:
		if c.MTU == 0 {
			var err error
			if mtu, err = c.Device.MTU(); err != nil {
				return nil, errors.Join(fmt.Errorf("mtu of the given device: %w", err), c.Device.Close())
			}
		}
		return openUserspace(c, c.Device, nil, mtu)
	}
	return newNone(mtu), nil
}
