// Package stream carries streams between gateways: QUIC connections whose two
// ends have proven an identity key (docs/protocol.md, section 4).
//
// # Who is at the other end
//
// TLS proves possession of an identity key and nothing more: the X.509
// certificates are throw-away wrappers that each [Transport] makes for itself.
// What the identity means is decided by the introduction, the first message on
// the first stream, which the owner verifies ([Config].Verify). Before that no
// other stream is read. The one exception is enrolment, which has a connection
// of its own that lives for half a minute at most and carries one stream.
//
// # One connection for each peer
//
// A connection is made when somebody asks for a stream, or by
// [Transport.Introduce], and closes after a minute without traffic. The newer
// connection wins. The one it replaces goes on for some seconds, a minute at
// most, until its streams have ended, and takes over again if the newer one
// dies. When
// two gateways dial each other at the same time, both connections would be the
// newer one for somebody; then the dial of the smaller identity key stays and
// the dialler of the other one closes it:
//
//	dial of A finishes while a connection that B dialled was accepted
//	during the dial: A closes its own if B's key is smaller.
//
// Whoever accepts never closes anything at once, so at no time both ends close
// different connections.
//
// # What a stranger can cost
//
// A packet reaches QUIC only if it looks like version 1; the packets that can
// open a connection pass a bucket for each source first. An address that is
// not proven gets a stateless Retry and no more. Only a client that answers it
// (or comes from a proven address) causes public-key work, and only a bounded
// number of such clients exists at a time, in all and for each source, from the
// first packet until their introduction is accepted.
package stream
