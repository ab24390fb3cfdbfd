package preflight

import (
	"net/netip"
	"time"
)

// ReportVersion is the version of the JSON form of Report. It changes when a
// field changes its meaning or goes away, not when one is added.
const ReportVersion = 1

// Report is what was seen and measured. It is plain data, and says nothing about
// what is good or bad: see [Faults].
type Report struct {
	Version int           `json:"version"`
	Cluster string        `json:"cluster"`
	Began   time.Time     `json:"began"`
	Took    time.Duration `json:"tookNanos"`
	Hosts   []HostReport  `json:"hosts"` // as in the inventory
	// Pairs are the ordered pairs of hosts that the cluster will have, in the order
	// of the inventory: From, then To.
	Pairs []Pair `json:"pairs"`
}

// HostReport is one host.
type HostReport struct {
	Name string `json:"name"`
	Site string `json:"site"`
	// Error says why the host could not be looked at; empty if it could.
	Error string `json:"error,omitempty"`
	// Facts are nil if they could not be read; FactsError says why.
	Facts      *Facts `json:"facts,omitempty"`
	FactsError string `json:"factsError,omitempty"`
	// Agent is nil where none came up; AgentError says why that is so, or why it
	// failed later. Both are empty where none was wanted.
	Agent      *AgentReport `json:"agent,omitempty"`
	AgentError string       `json:"agentError,omitempty"`
}

// AgentReport is what an agent found out about its own host.
type AgentReport struct {
	ProbePort uint16   `json:"probePort"`           // UDP
	Listening []uint16 `json:"listening,omitempty"` // TCP ports that were free
	Busy      []uint16 `json:"busy,omitempty"`      // TCP ports that others use
	Failed    []string `json:"failed,omitempty"`    // why further ports could not be opened
	// Duplicates are hardware addresses of other machines with the node address.
	Duplicates []string `json:"duplicates,omitempty"`
	ClockError string   `json:"clockError,omitempty"` // why the host's date is not known
	// Fsync is the 99th percentile of the time in which FsyncCount small writes
	// reached the disk of /var/lib; 0 if FsyncError says why there is none.
	Fsync      time.Duration `json:"fsyncNanos,omitempty"`
	FsyncCount int           `json:"fsyncCount,omitempty"`
	FsyncError string        `json:"fsyncError,omitempty"`

	ahead time.Duration // of the host's date before its kernel's clock
}

// RTT is a distribution of round trips.
type RTT struct {
	Min time.Duration `json:"minNanos"`
	P50 time.Duration `json:"p50Nanos"`
	P90 time.Duration `json:"p90Nanos"`
	P99 time.Duration `json:"p99Nanos"`
	Max time.Duration `json:"maxNanos"`
}

// Pair is what is known of the way from one host to another. The round trip
// belongs to both directions and is the same in both; all else
// is of this direction alone.
type Pair struct {
	From string `json:"from"`
	To   string `json:"to"`
	// Error says why the pair could not be measured, in whole or in part: an agent that
	// did not answer in time, for example. That says nothing about the network.
	Error string `json:"error,omitempty"`
	// Sent datagrams went this way, Received arrived, Reordered of them after a later one.
	// Sent is 0 if it is not known, which it is not where nothing came back
	// and nothing could be asked.
	Sent      int `json:"sent"`
	Received  int `json:"received"`
	Reordered int `json:"reordered,omitempty"`
	// Answered is how many round trips RTT describes; RTT is nil if none.
	Answered int  `json:"answered"`
	RTT      *RTT `json:"rtt,omitempty"`
	// SendError is why the kernel of From refused to send, such as "network is
	// unreachable".
	SendError string `json:"sendError,omitempty"`
	// MTU is the length of the largest IP packet that arrives, 0 if not known. Assumed
	// is what the kernel of From takes it for after it was tried, Link is the
	// MTU of the interface. Where Assumed is more than MTU, long packets vanish.
	MTU     int `json:"mtu,omitempty"`
	Assumed int `json:"assumedMTU,omitempty"`
	Link    int `json:"linkMTU,omitempty"`
	// Hops is the number of routers on the way, -1 if not known.
	Hops int `json:"hops"`
	// Offset is how far the clock of To is ahead of that of From, wrong by
	// OffsetError at most; nil if not known.
	Offset      *time.Duration `json:"offsetNanos,omitempty"`
	OffsetError time.Duration  `json:"offsetErrorNanos,omitempty"`
	// SeenAs is the source address with which packets of From arrive.
	SeenAs netip.Addr  `json:"seenAs,omitzero"`
	Ports  []PortCheck `json:"ports,omitempty"` // of To, ascending
}

// Loss is the share of datagrams that did not arrive; ok is false if it is not known.
func (p *Pair) Loss() (loss float64, ok bool) {
	if p.Sent == 0 {
		return 0, false
	}
	return 1 - float64(p.Received)/float64(p.Sent), true
}

// Host returns the host of that name, nil if there is none.
func (r *Report) Host(name string) *HostReport {
	for i := range r.Hosts {
		if r.Hosts[i].Name == name {
			return &r.Hosts[i]
		}
	}
	return nil
}

// Pair returns the pair of that direction, nil if there is none.
func (r *Report) Pair(from, to string) *Pair {
	for i := range r.Pairs {
		if r.Pairs[i].From == from && r.Pairs[i].To == to {
			return &r.Pairs[i]
		}
	}
	return nil
}
