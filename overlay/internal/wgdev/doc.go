// Package wgdev is the WireGuard device of a gateway, and the seam behind which
// another one may stand: a [Device] is opened, takes changes, says how its peers
// do, and is closed.
//
// There are four kinds. [TUN] is a network interface of the host with
// wireguard-go behind it. [InProcess] is the same with a network stack inside
// of this process, for programs without privileges; what it offers to them is
// a [Netstack]. [Given] takes a tun.Device that somebody else made. [None]
// carries no packets at all and only remembers what it was told, for
// simulations and observers.
//
// [OpenModel] opens a fifth kind for simulations of many gateways: it keeps
// WireGuard's rules about sessions and leaves its cryptography out. A [Tap] is
// the host of a gateway for either of the two, [Given] or model. At small
// numbers the real one runs in a testing/synctest bubble too; see
// [Config].Bubble.
//
// # Changes
//
// [Device.Apply] takes the changes that package engine computed and makes
// exactly those, prefix by prefix: a session that is not mentioned is not
// touched, and a prefix that moves is never without an owner. All of the
// changes are checked before the first is made.
//
// # Endpoints
//
// A peer is created with the virtual endpoint that [Config].EndpointText names,
// and keeps it: the device never follows the source address of a packet. Where
// the virtual endpoint leads is the business of the conn.Bind behind it, which
// learns it from proven paths (docs/protocol.md, section 3).
//
// # Handshakes
//
// A handshake that was asked for with [Device.Restart] or [Device.Initiate], or
// that begins because there is something to send and no session, is begun anew
// after 1 s or 1.7 s, up to three times, before WireGuard's own timers take
// over. The two sides wait differently long, so that handshakes that destroyed
// each other do not do so again. A session that is still good is left alone.
//
// # Goroutines
//
// A device runs those of wireguard-go, and one that starts handshakes; with a
// control socket, one that accepts and one for each program that asks. A model
// runs six, however many peers it has. All of them end in [Device.Close]. The methods may be called by anybody except, for
// Apply, Stats, Peers and Close, by the conn.Bind and the goroutines in it: the
// device waits for those while it holds what these methods need.
package wgdev
