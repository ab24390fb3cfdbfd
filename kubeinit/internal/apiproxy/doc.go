// Package apiproxy is a small TCP proxy that every host of a cluster runs on a
// loopback address, so that one name and port lead to a working API server from
// everywhere. It replaces a load balancer where hosts have no common LAN.
//
// # What it does
//
// A new connection goes to the best API server: one that says it is ready,
// before others that only answer; among these the one on the own host, then one
// in the own site, then the one with the shortest round trip. If a dial fails or
// takes long, the next one is tried while the client waits, side by side with
// the first: within five seconds there is a connection or there is no API
// server. TLS is not opened, so clients verify the API server themselves, and
// nothing here is secret.
//
// Connections that exist stay where they are, even if a better server comes
// back. They are closed when their server cannot be connected to any more and
// another one answers; the clients then come back through the other one. A
// server that is not ready but answers keeps its connections: it ends them
// itself when it stops.
//
// # How health is known
//
// Each server is asked for /readyz over TLS, on a connection that is kept and
// renewed every now and then: every second while connections go through it or
// would go to it, or it is not ready, otherwise every three. Status 200 is ready; 401 and 403 count
// as ready, too, because a server without anonymous access says nothing else;
// any other answer is live, which is still better than none. The certificate
// must come from the cluster's authority as soon as the host has its ca.crt. Its
// names are not compared: which of them a server carries is not this proxy's
// business, and clients compare the one they asked for. Before that, on a host
// that has not joined, any certificate will do: joining pins the authority by
// itself.
//
// # Goroutines
//
//	Run ──┬── accept, one per listener ── serve, one per connection ── dial, copy
//	      ├── watch, one per server
//	      └── answer, on the status socket
//
// All of them end before Run returns. The configuration file, the list of
// learned servers and ca.crt are read again every two seconds; inotify is not
// used, because hosts have few instances of it to share.
package apiproxy
