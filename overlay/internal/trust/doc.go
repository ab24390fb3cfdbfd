// Package trust decides who may say what in a mesh: genesis, delegations,
// gateway certificates and their chains, prefix ownership, tickets and
// enrolment, revocations, introductions (docs/protocol.md, section 2).
//
// It is pure: times are arguments, nothing is read or written. A decoded
// object keeps its exact bytes, since signatures and hashes cover those.
package trust
