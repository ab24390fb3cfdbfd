// Package overlay joins LANs that are scattered over the planet into one
// network, with no centre.
//
// A mesh is made of sites. At each site one or more gateways hold a Mesh value
// and announce the prefixes that they were granted; every other gateway then
// carries packets to these prefixes over WireGuard, straight to the gateway
// that announced them.
//
// # Making a mesh
//
// [Init] founds a mesh and its first gateway in a [Store]. [Open] starts it.
// The running gateway hands out tickets with [Mesh.Ticket]; a ticket's text is
// all that another site needs for [Join], after which it calls [Open] too.
//
// # With and without root
//
// A site gateway uses a network interface of the host ([DeviceTUN]). A program
// that only wants to talk to others uses the network stack inside its process
// ([DeviceNetstack]): [Mesh.DialContext], [Mesh.Listen] and [Mesh.ListenPacket]
// work like those of package net and need no privilege.
//
// # What is believed
//
// Nothing without a signature. A gateway's certificate names the prefixes that
// it may announce; every receiver checks every record. A peer is configured
// only after it answered a challenge on the very address that packets will be
// sent to. See docs/security.md.
//
// All methods of a Mesh are safe for concurrent use.
package overlay
