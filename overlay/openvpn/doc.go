// Package openvpn is a point-to-point OpenVPN endpoint at the IP level: it
// ends the site-to-site connection of a router that already speaks OpenVPN,
// inside this process and without its program.
//
// # What it speaks
//
// Static key mode (--secret) with CBC ciphers, and TLS mode between exactly
// two peers in both generations: the older one with a configured cipher,
// P_DATA_V1 and keys from the key method 2 PRF, and the negotiated one with
// P_DATA_V2 and keys from the TLS exporter. Control packets may be bare, under
// tls-auth or under tls-crypt. Both run over UDP and over TCP, listening or
// connecting. Compressed packets of the peer are understood; nothing is ever
// sent compressed.
//
// There is no tap mode, no address pool, no pushed configuration and no
// tls-crypt-v2.
//
// # How to use it
//
// Fill a [Config] and call [Open]. Inner packets pass through the [Device]
// of the Config: a TUN ([OpenTUN]), a network stack in the process, or a channel. Open
// binds the local socket and returns; the peer may come later, go away and
// come back. [Endpoint.Status] says what is going on, [Endpoint.Changes]
// wakes a watcher, [Endpoint.Close] ends it.
//
// # What a stranger can do
//
// Packets that fail a check are dropped without an answer and counted by
// [Reason]. In TLS mode without tls-auth or tls-crypt anybody who can send from
// the peer's address can start handshakes; they are few at a time, limited in
// rate, and never disturb the keys in use.
//
// Static key mode has no forward secrecy: who learns the key reads
// everything ever recorded. Prefer TLS mode where the router offers it.
package openvpn
