// Package gossip spreads small messages between gateways and tells when one of
// them seems to have gone or come. It is hashicorp's memberlist with its own
// way to the network and with a filter before it (docs/protocol.md, section 5).
//
// # A hint, never a verdict
//
// memberlist believes every member. So nothing but hints comes out of here:
// [Config].OnHint and [Gossip.Members] may make somebody look sooner; they must
// never add or remove a path, a peer or a route. Messages ([Config].OnUser) are
// signed records, which their receiver verifies.
//
// # The filter
//
// memberlist never sees a byte that came from the network. Packets and the
// state exchange on streams are parsed here, judged, and written anew; memberlist
// gets what this package has written:
//
//	link datagram ─ Packet ─ parse ─ judge ─┬─ write anew ─ queue ─ memberlist
//	                                        └─ user messages ─ queue ─ OnUser
//	stream ─ Stream ─ parse ─ judge ─ write anew ─ memberlist
//
// Structure that no honest memberlist of our version produces loses the whole
// packet: compression, encryption, labels, deep nesting, wrong checksums. A
// message about a gateway that is not in the record store, or with another
// address, port or protocol version than the store and this version demand, is
// left out; the rest of the packet passes. Everything left out is counted.
//
// Packets and streams come from authenticated peers and go to them: memberlist
// can reach a gateway under its name and overlay address and nothing else.
package gossip
