// Package wgdev is one WireGuard device: wireguard-go in this process, on a TUN
// device of the host, on a network stack inside the process, or on nothing.
//
// Peers are configured by difference; a session that does not change is never
// disturbed. Endpoints are virtual and never roam: the text that EndpointText
// gives is set when a peer is created, and the conn.Bind decides where it leads.
package wgdev

import (
	"context"
	"crypto/ecdh"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"
	"golang.zx2c4.com/wireguard/tun"

	"github.com/planetmesh/planetmesh/overlay/internal/engine"
	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Device carries packets between this gateway and its peers. Implementations
// are safe for concurrent use.
type Device interface {
	// Apply takes the steps in their order. It goes on after a step that does
	// not succeed, and joins the errors.
	Apply(ctx context.Context, steps engine.Changes) error
	// Stats returns the counters of every peer, by its key.
	Stats() map[trust.ExchangeKey]PeerStats
	// Restart drops the session with a peer and starts a new handshake: the
	// other side has lost it. A peer that is not there is no error.
	Restart(key trust.ExchangeKey) error
	// Initiate starts a handshake unless there was one in the last minutes.
	Initiate(key trust.ExchangeKey) error
	// Name is the interface's name, "" without one.
	Name() string
	// Close ends the device and waits for its goroutines. Further calls do nothing.
	Close() error
}

// PeerStats are counters of one peer.
type PeerStats struct {
	Rx, Tx        uint64    // bytes, with WireGuard's own overhead
	LastHandshake time.Time // zero: none yet
}

// ErrClosed is returned after Close.
var ErrClosed = errors.New("device is closed")

// Config is what a userspace device is made from.
type Config struct {
	// Bind carries the encrypted packets. Required; the device opens and closes it.
	Bind conn.Bind
	// TUN carries the plain packets. Required; the device closes it.
	TUN tun.Device
	// PrivateKey is the WireGuard key. Required.
	PrivateKey *ecdh.PrivateKey
	// EndpointText returns what the Bind parses as the endpoint of a peer. Required.
	EndpointText func(trust.GatewayID) string
	// Logger receives what wireguard-go says, at debug; nil: nothing.
	Logger *slog.Logger
}

// Userspace is wireguard-go.
type Userspace struct {
	cfg  Config
	name string
	dev  *device.Device

	mu     sync.Mutex // guards all below; held over UAPI calls, so that Close waits for them
	closed bool
}

var _ Device = (*Userspace)(nil)

// New starts a device. On an error the TUN device is closed.
func New(cfg Config) (*Userspace, error) {
	name, err := cfg.TUN.Name()
	if err != nil {
		return nil, errors.Join(err, cfg.TUN.Close())
	}
	u := &Userspace{cfg: cfg, name: name}
	u.dev = device.NewDevice(cfg.TUN, cfg.Bind, newLogger(cfg.Logger))
	// Endpoints are virtual: only the Bind moves them.
	u.dev.DisableSomeRoamingForBrokenMobileSemantics()
	if err := u.dev.IpcSet("private_key=" + hex.EncodeToString(cfg.PrivateKey.Bytes()) + "\n"); err != nil {
		u.dev.Close()
		return nil, fmt.Errorf("set private key of %s: %w", name, err)
	}
	if err := u.dev.Up(); err != nil {
		u.dev.Close()
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	return u, nil
}

// newLogger bridges wireguard-go's log.
func newLogger(log *slog.Logger) *device.Logger {
	if log == nil {
		return device.NewLogger(device.LogLevelSilent, "")
	}
	print := func(format string, args ...any) {
		if log.Enabled(context.Background(), slog.LevelDebug) {
			log.Debug("wireguard", "text", fmt.Sprintf(format, args...))
		}
	}
	return &device.Logger{Verbosef: print, Errorf: print}
}

// Name implements Device.
func (u *Userspace) Name() string { return u.name }

// Apply implements Device.
func (u *Userspace) Apply(_ context.Context, steps engine.Changes) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return ErrClosed
	}
	var errs []error
	for _, s := range steps {
		if err := u.dev.IpcSet(u.command(s)); err != nil {
			errs = append(errs, fmt.Errorf("%v of peer %s: %w", s.Op, s.Peer.Short(), err))
		}
	}
	return errors.Join(errs...)
}

// command is one step in WireGuard's configuration protocol
// (https://www.wireguard.com/xplatform/).
func (u *Userspace) command(s engine.Change) string {
	peer := fmt.Sprintf("public_key=%x\n", s.Key[:])
	switch s.Op {
	case engine.AddPeer:
		// Once, at creation: the endpoint is the peer's identity.
		return peer + "endpoint=" + u.cfg.EndpointText(s.Peer) + "\n"
	case engine.RemovePeer:
		return peer + "remove=true\n"
	case engine.AddPrefix:
		return peer + "update_only=true\nallowed_ip=" + s.Prefix.String() + "\n"
	case engine.RemovePrefix:
		return peer + "update_only=true\nallowed_ip=-" + s.Prefix.String() + "\n"
	}
	return peer + "update_only=true\n"
}

// peerLocked returns wireguard-go's peer, nil if there is none.
func (u *Userspace) peerLocked(key trust.ExchangeKey) *device.Peer {
	if u.closed {
		return nil
	}
	return u.dev.LookupPeer(device.NoisePublicKey(key))
}

// Restart implements Device.
func (u *Userspace) Restart(key trust.ExchangeKey) error {
	u.mu.Lock()
	p := u.peerLocked(key)
	u.mu.Unlock()
	if p == nil {
		return nil
	}
	p.ExpireCurrentKeypairs()
	return p.SendHandshakeInitiation(false)
}

// Initiate implements Device.
func (u *Userspace) Initiate(key trust.ExchangeKey) error {
	u.mu.Lock()
	p := u.peerLocked(key)
	u.mu.Unlock()
	if p == nil {
		return nil
	}
	// wireguard-go sends none within 5 s of the last (REKEY_TIMEOUT).
	return p.SendHandshakeInitiation(false)
}

// Stats implements Device.
func (u *Userspace) Stats() map[trust.ExchangeKey]PeerStats {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil
	}
	text, err := u.dev.IpcGet()
	if err != nil {
		return nil
	}
	return parseStats(text)
}

// parseStats reads the counters out of WireGuard's configuration protocol.
func parseStats(text string) map[trust.ExchangeKey]PeerStats {
	out := make(map[trust.ExchangeKey]PeerStats)
	var key trust.ExchangeKey
	var sec, nsec int64
	for line := range strings.SplitSeq(text, "\n") {
		k, v, _ := strings.Cut(line, "=")
		s := out[key]
		switch k {
		case "public_key":
			key, sec, nsec = trust.ExchangeKey{}, 0, 0
			_, _ = hex.Decode(key[:], []byte(v[:min(len(v), 64)]))
			out[key] = PeerStats{}
			continue
		case "last_handshake_time_sec":
			_, _ = fmt.Sscan(v, &sec)
		case "last_handshake_time_nsec":
			_, _ = fmt.Sscan(v, &nsec)
			if sec != 0 || nsec != 0 {
				s.LastHandshake = time.Unix(sec, nsec)
			}
		case "rx_bytes":
			_, _ = fmt.Sscan(v, &s.Rx)
		case "tx_bytes":
			_, _ = fmt.Sscan(v, &s.Tx)
		default:
			continue
		}
		out[key] = s
	}
	return out
}

// Close implements Device.
func (u *Userspace) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed {
		return nil
	}
	u.closed = true
	u.dev.Close()
	return nil
}

// None carries no packets: the control plane alone.
type None struct {
	mu    sync.Mutex // guards peers
	peers map[trust.ExchangeKey]PeerStats
}

var _ Device = (*None)(nil)

// Apply implements Device.
func (n *None) Apply(_ context.Context, steps engine.Changes) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.peers == nil {
		n.peers = make(map[trust.ExchangeKey]PeerStats)
	}
	for _, s := range steps {
		switch s.Op {
		case engine.AddPeer:
			n.peers[s.Key] = PeerStats{}
		case engine.RemovePeer:
			delete(n.peers, s.Key)
		}
	}
	return nil
}

// Stats implements Device.
func (n *None) Stats() map[trust.ExchangeKey]PeerStats {
	n.mu.Lock()
	defer n.mu.Unlock()
	out := make(map[trust.ExchangeKey]PeerStats, len(n.peers))
	for k, v := range n.peers {
		out[k] = v
	}
	return out
}

// Restart implements Device.
func (n *None) Restart(trust.ExchangeKey) error { return nil }

// Initiate implements Device.
func (n *None) Initiate(trust.ExchangeKey) error { return nil }

// Name implements Device.
func (n *None) Name() string { return "" }

// Close implements Device.
func (n *None) Close() error { return nil }
