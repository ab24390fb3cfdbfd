// Package preflight looks at the hosts of an inventory before anything is
// changed on them, and says what would keep a cluster from working: with the
// cause in one sentence and the command that cures it.
//
// # What is looked at
//
// [Gather] reads the facts of one host with one shell script. [Run] does so on
// all hosts, then starts an agent on each of those that the cluster will
// have, and lets the agents measure every pair of hosts between themselves: TCP
// ports, round trips, loss and order in each direction, the path MTU in each
// direction, clocks, and which address the other side sees. The outcome is
// a [Report]. [Faults] judges it and nothing else, so a stored report
// can be judged again.
//
// # The agent
//
// [Serve] is the agent: "kubeinit agent probe" on the host, spoken to over its
// standard input and output, one JSON object per line (see protocol.go). It binds
// the host's node address alone, opens those of the wanted TCP ports that nobody
// uses, and answers nobody but the other agents of the same run: each pair
// of hosts shares a key that no third host knows, and every datagram and
// every hello on TCP is authenticated with it (see packet.go). It ends
// with its standard input and leaves nothing behind.
//
// What a host says is not believed further than it reaches: a hostile agent can
// spoil what is said about its own pairs, but it cannot stall the others, and what it
// sends is bounded in length, number and value.
package preflight
