// Package engine decides which peers and routes a gateway should have. It is a
// pure function: [Compute] turns what is known (verified announcements, the
// configuration, measurements) into a [Desired] state, and [Diff] turns two of
// those into the smallest ordered list of changes. Nothing here looks at the
// clock, at the host or at the network, so whatever is decided can be decided
// again in a test.
//
// # Who owns a prefix
//
// Ownership follows from grants alone, never from who announces a prefix or
// who answers. A site is an organisation and a site name. Of two sites with
// overlapping grants, equal or one inside the other, the one with the better
// claim wins (docs/protocol.md, section 2): every route of the other that
// overlaps the winning grant is left out everywhere and shown as a [Conflict].
// The claim of a site to a prefix is the best of the grants of its gateways
// that cover the prefix. So two routes of different sites never overlap.
//
// # Which gateway of a site
//
// Where several gateways of one site announce the same prefix, one that
// answers probes is preferred to one that does not, then the lower priority
// value, then the lower gateway ID. Observers that measure the same choose the
// same. If none answers, the best stays in use: traffic for a site that is
// unreachable ends in the overlay and does not leak to the default route.
//
// # What is never installed
//
// Anything outside of the grants of the gateway that announces it; anything of
// the own site; anything that overlaps what the own site announces, the overlay
// block, or the networks, next hops and endpoints in [Inputs].Local; anything
// outside of the accept list; and anything of a peer whose path is not proven.
package engine
