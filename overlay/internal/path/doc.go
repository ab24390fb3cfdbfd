// Package path finds out where the other gateways are and which way to each is
// best.
//
// A [Prover] is given candidates: addresses at which a gateway may be. It asks at
// them with probes (docs/protocol.md, section 3) and believes answers only: a
// reply that echoes an outstanding challenge under the key of the pair proves
// that this identity is behind that address. Of the proven addresses of a peer
// one is its path.
//
// Both gateways of a pair ask at all candidates at once, which also opens the
// address translators on the way.
//
// # What strangers are spared
//
// Records name addresses, and records can lie. An address that did not prove
// itself gets small probes only, five of them, then one in ten minutes; one per
// second for each destination, whichever peers name it, and fifty per second in
// all. Some addresses are not asked at all, see [Config.Allowed].
//
// # Time
//
// The package uses timers and the monotonic clock of package time only, so that
// it runs in a testing/synctest bubble.
package path
