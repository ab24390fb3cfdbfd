package preflight

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// protocolVersion is in every line. Both ends are the same binary, so there is
// never a reason to speak an older one.
const protocolVersion = 1

// Bounds of what one side accepts from the other.
const (
	maxLine    = 256 << 10 // bytes of a line; 512 peers need 60 KiB
	maxPeers   = 512
	maxPorts   = 64
	maxProbes  = 10_000
	maxRunning = 32 // commands at once in one agent
)

// request is a line from the coordinator. Exactly one of the pointers is set.
type request struct {
	Version int         `json:"v"`
	ID      uint64      `json:"id"`
	Setup   *setup      `json:"setup,omitempty"`
	Peers   *peers      `json:"peers,omitempty"`
	Connect *connectJob `json:"connect,omitempty"`
	Echo    *echoJob    `json:"echo,omitempty"`
	Count   *countJob   `json:"count,omitempty"`
	Size    *sizeJob    `json:"size,omitempty"`
}

// reply is a line from the agent. Error says why there is no answer.
type reply struct {
	Version int         `json:"v"`
	ID      uint64      `json:"id"`
	Error   string      `json:"error,omitempty"`
	Ready   *ready      `json:"ready,omitempty"`
	Ports   []PortCheck `json:"ports,omitempty"`
	Echo    *echoResult `json:"echo,omitempty"`
	Count   *countHeard `json:"count,omitempty"`
	Size    *sizeResult `json:"size,omitempty"`
}

// setup is the first request: who the agent is and what it opens.
type setup struct {
	Self      uint16     `json:"self"` // index of the host
	Addr      netip.Addr `json:"addr"` // node address
	ProbePort uint16     `json:"probePort"`
	Ports     []uint16   `json:"ports"` // TCP
	// FsyncDir is where the disk is tried; empty: not at all.
	FsyncDir string `json:"fsyncDir,omitempty"`
}

// ready answers setup.
type ready struct {
	ProbePort uint16   `json:"probePort"`
	Listening []uint16 `json:"listening,omitempty"` // opened by the agent
	Busy      []uint16 `json:"busy,omitempty"`      // used by somebody else
	// Failed says why the others could not be opened.
	Failed []string `json:"failed,omitempty"`
	// Duplicates are the hardware addresses of other machines that have the
	// node address too.
	Duplicates []string `json:"duplicates,omitempty"`
	// ClockNanos is what the host's date command is ahead of its kernel's
	// clock; ClockError says why it is not known.
	ClockNanos int64  `json:"clockNanos"`
	ClockError string `json:"clockError,omitempty"`
	// FsyncNanos is the 99th percentile of FsyncCount writes.
	FsyncNanos int64  `json:"fsyncNanos,omitempty"`
	FsyncCount int    `json:"fsyncCount,omitempty"`
	FsyncError string `json:"fsyncError,omitempty"`
}

// peers are the other agents.
type peers struct {
	Peers []peer `json:"peers"`
}

type peer struct {
	Index     uint16     `json:"index"`
	Addr      netip.Addr `json:"addr"`
	ProbePort uint16     `json:"probePort"`
	Key       []byte     `json:"key"` // of this pair alone
}

// connectJob connects to TCP ports of a peer. Ports in Hello are held by
// its agent, which is to prove itself.
type connectJob struct {
	Peer  uint16   `json:"peer"`
	Ports []uint16 `json:"ports"`
	Hello []uint16 `json:"hello,omitempty"`
	Wait  int64    `json:"waitNanos"`
}

// echoJob sends datagrams that the peer's agent returns.
type echoJob struct {
	Peer     uint16 `json:"peer"`
	Run      uint64 `json:"run"` // chosen by the coordinator, unique
	Probes   int    `json:"probes"`
	Interval int64  `json:"intervalNanos"`
	Linger   int64  `json:"lingerNanos"` // wait for the last answers
}

// echoResult is what came of it.
type echoResult struct {
	Sent      int     `json:"sent"`
	Answered  int     `json:"answered"`
	Reordered int     `json:"reordered"` // answers that others overtook on the way back
	RTTs      quantum `json:"rtt"`
	// OffsetNanos is what the peer's kernel clock is ahead of the own one, from the
	// fastest exchange; it is wrong by OffsetErrorNanos at most.
	OffsetNanos      int64 `json:"offsetNanos"`
	OffsetErrorNanos int64 `json:"offsetErrorNanos"`
	HopsOut          int   `json:"hopsOut"` // routers on the way there
	HopsBack         int   `json:"hopsBack"`
	// SeenAs is the source address that the peer saw; AnsweredBy is the one
	// that answers came from.
	SeenAs     netip.Addr `json:"seenAs,omitzero"`
	AnsweredBy netip.Addr `json:"answeredBy,omitzero"`
	// SendError is why the own kernel refused to send.
	SendError string `json:"sendError,omitempty"`
}

// quantum is a distribution of round trips, in nanoseconds.
type quantum struct {
	Min int64 `json:"min"`
	P50 int64 `json:"p50"`
	P90 int64 `json:"p90"`
	P99 int64 `json:"p99"`
	Max int64 `json:"max"`
}

// countJob asks what was received in a run that the peer began.
type countJob struct {
	Peer uint16 `json:"peer"`
	Run  uint64 `json:"run"`
}

type countHeard struct {
	Received  int        `json:"received"`
	Reordered int        `json:"reordered"`
	From      netip.Addr `json:"from,omitzero"` // source address
}

// sizeJob searches the largest packet that reaches the peer.
type sizeJob struct {
	Peer uint16 `json:"peer"`
	Run  uint64 `json:"run"`
	Wait int64  `json:"waitNanos"` // for the answer to one size
}

// sizeResult: MTU is the length of the largest IP packet that arrived, 0 if not even
// the smallest did. Assumed is what the own kernel takes the path's MTU
// for afterwards; Link is the MTU of the interface.
type sizeResult struct {
	MTU     int `json:"mtu"`
	Assumed int `json:"assumed"`
	Link    int `json:"link"`
}

// check refuses values that no honest agent sends.
func (e *echoResult) check(probes int) error {
	q := e.RTTs
	ordered := 0 <= q.Min && q.Min <= q.P50 && q.P50 <= q.P90 && q.P90 <= q.P99 && q.P99 <= q.Max && q.Max <= int64(time.Minute)
	switch {
	case e.Sent < 0 || e.Sent > probes || e.Answered < 0 || e.Answered > e.Sent || e.Reordered < 0 || e.Reordered > e.Answered:
		return errors.New("counts of probes contradict each other")
	case !ordered:
		return errors.New("round trips are not in order")
	case e.OffsetErrorNanos < 0 || e.OffsetErrorNanos > int64(time.Minute):
		return errors.New("uncertainty of the clock is out of range")
	case e.HopsOut < 0 || e.HopsOut > 255 || e.HopsBack < 0 || e.HopsBack > 255:
		return errors.New("number of routers is out of range")
	}
	return nil
}

func (c *countHeard) check(sent int) error {
	if c.Received < 0 || c.Received > sent || c.Reordered < 0 || c.Reordered > c.Received {
		return errors.New("counts of received probes contradict each other")
	}
	return nil
}

func (s *sizeResult) check() error {
	for _, n := range []int{s.MTU, s.Assumed, s.Link} {
		if n < 0 || n > 65535+40 { // the payload of IPv6 is 65535
			return errors.New("a packet length is out of range")
		}
	}
	return nil
}

func (r *ready) check() error {
	switch {
	case r.ProbePort == 0:
		return errors.New("no probe port")
	case len(r.Listening)+len(r.Busy) > maxPorts || len(r.Failed) > maxPorts || len(r.Duplicates) > maxPorts:
		return errors.New("more ports than were asked for")
	case r.FsyncNanos < 0 || r.FsyncCount < 0:
		return errors.New("time of fsync is out of range")
	}
	for _, d := range r.Duplicates {
		if _, err := net.ParseMAC(d); err != nil {
			return errors.New("a duplicate has no hardware address")
		}
	}
	const year = int64(365 * 24 * time.Hour)
	if r.ClockNanos < -100*year || r.ClockNanos > 100*year {
		return errors.New("clock is out of range")
	}
	return nil
}

// readLines calls f with each line of r. A line that is too long is an error.
func readLines(r io.Reader, f func([]byte) error) error {
	s := bufio.NewScanner(r)
	s.Buffer(make([]byte, 0, 4096), maxLine)
	for s.Scan() {
		if err := f(s.Bytes()); err != nil {
			return err
		}
	}
	if errors.Is(s.Err(), bufio.ErrTooLong) {
		return fmt.Errorf("read line: longer than %d bytes", maxLine)
	}
	return s.Err()
}

func parseRequest(line []byte) (request, error) {
	var r request
	if err := json.Unmarshal(line, &r); err != nil {
		return request{}, fmt.Errorf("parse request: %w", err)
	}
	if r.Version != protocolVersion {
		return request{}, fmt.Errorf("request has version %d, want %d", r.Version, protocolVersion)
	}
	return r, nil
}

func parseReply(line []byte) (reply, error) {
	var r reply
	if len(line) > maxLine {
		return reply{}, fmt.Errorf("line of %d bytes, at most %d are accepted", len(line), maxLine)
	}
	if err := json.Unmarshal(line, &r); err != nil {
		return reply{}, fmt.Errorf("parse reply: %w", err)
	}
	if r.Version != protocolVersion {
		return reply{}, fmt.Errorf("reply has version %d, want %d", r.Version, protocolVersion)
	}
	return r, nil
}

// lineWriter writes JSON lines. It is safe for concurrent use.
type lineWriter struct {
	mu sync.Mutex // guards w
	w  io.Writer
}

func (l *lineWriter) write(v any) error {
	line, err := json.Marshal(v)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	_, err = l.w.Write(append(line, '\n'))
	return err
}
