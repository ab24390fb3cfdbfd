// Package etcdtune turns measured round trips between control planes into the
// timers of etcd, and into a verdict on whether etcd should be stretched over
// these hosts at all. It is a set of pure functions.
package etcdtune

import "time"

// Bounds of the timers. The lower ones are etcd's own defaults, below which
// nothing is gained; the upper one is what etcd refuses to exceed
// (--election-timeout, at most 50 s and at least five heartbeats).
const (
	MinHeartbeat = 100 * time.Millisecond
	MinElection  = time.Second
	MaxElection  = 50 * time.Second

	// heartbeats is how many heartbeats etcd wants in an election timeout.
	heartbeats = 5
	// trips is how many round trips etcd's tuning guide wants in one.
	trips = 10
	// step is what timers are rounded up to, so that two measurements of the
	// same network tend to give the same figure.
	step = 10 * time.Millisecond
)

// Timers returns the heartbeat interval and the election timeout for members
// whose worst pair has the median round trip p50 and the 99th percentile p99.
// Both are whole multiples of 10 ms. They are the same on every member.
//
// The heartbeat is one and a half round trips, so that an answer is back before
// the next one leaves. The election timeout bears ten round trips of the slow
// kind, as etcd's tuning guide asks. Negative durations count as 0.
func Timers(p50, p99 time.Duration) (heartbeat, election time.Duration) {
	p50 = min(max(p50, 0), MaxElection)
	p99 = min(max(p99, 0), MaxElection)
	heartbeat = min(max(MinHeartbeat, roundUp(p50+p50/2)), MaxElection/heartbeats)
	election = max(MinElection, trips*max(heartbeat, roundUp(p99)), heartbeats*heartbeat)
	return heartbeat, min(election, MaxElection)
}

func roundUp(d time.Duration) time.Duration {
	return (d + step - 1) / step * step
}
