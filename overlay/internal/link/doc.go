// Package link is the one UDP port of a gateway (docs/protocol.md, section 3).
//
// A [Port] owns the socket and shares it between three users:
//
//   - WireGuard, through the conn.Bind of [Port.Bind]. Its packets pass
//     untouched, in the batches of the library's own bind, so that the kernel's
//     segmentation and receive offloads stay in use.
//   - Link datagrams: probes and gossip, sealed under the key of a pair of
//     gateways. A probe is answered by the Port itself without keeping any
//     state; replies and gossip go to a [Handler].
//   - Stream carriers: QUIC packets, in and out of the net.PacketConn of
//     [Port.StreamConn].
//
// # What a stranger gets
//
// Whatever is not WireGuard must carry the tag of the mesh. It is checked
// first, costs no memory and no public-key work, and a datagram that fails is
// counted and dropped in silence. Key agreement happens in [Port.SetPeer] only.
//
// # Peers are identities
//
// WireGuard peers are configured with a virtual endpoint, the text of
// [EndpointText]. Where it leads is decided by [Port.SetPath] alone, which the
// path prover calls after an authenticated answer. For that to hold WireGuard
// must not move endpoints by itself: whoever configures the device calls
// DisableSomeRoamingForBrokenMobileSemantics before the first peer is added and
// names the endpoint in the same operation that creates the peer; otherwise
// wireguard-go replaces the endpoint by the source of any packet that it
// accepts, among them replayed handshakes.
//
// # Source addresses
//
// Answers go to the endpoint that a datagram came with, and so leave from the
// local address that was asked, where the library tells us that address. With
// the kernel's receive offload (Linux 5.12 and newer) it does not: then answers,
// like everything else, leave from the address that the kernel's routing picks.
package link
