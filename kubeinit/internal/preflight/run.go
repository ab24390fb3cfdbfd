package preflight

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// DefaultProbePort is the UDP port of agents: that of the API proxy, which
// uses TCP, so that no further number has to be known in firewalls.
const DefaultProbePort = ProxyPort

// Options of Run. The zero value of each field but Agent means its default.
type Options struct {
	// Agent is the command that runs the agent on a host, such as
	// {"/var/lib/kubeinit/bin/kubeinit-0123456789abcdef", "agent", "probe"}. If it is
	// empty, only facts are read.
	Agent []string
	// Probes is how many round trips are measured for a pair, at most 10000; 0 means
	// 200, what a 99th percentile needs to stand on two values.
	Probes int
	// Interval is the time between two of them; 0 means 2.5 ms, which is 0.4
	// Mbit/s in each direction.
	Interval time.Duration
	// Linger is how long the last answers are waited for; 0 means a second.
	Linger time.Duration
	// ConnectWait is how long a TCP connection may take to come about; 0 means 2.5 s,
	// so that one lost SYN is repeated.
	ConnectWait time.Duration
	// PerHost is how many measurements a host takes part in at once; 0 means 3.
	PerHost int
	// ProbePort is the agents' UDP port; 0 means DefaultProbePort.
	ProbePort uint16
	// Timeout is the limit for one pair, and for the preparation of one agent; 0 means
	// 30 s. What takes longer is reported, and the others go on.
	Timeout time.Duration
	// FsyncDir is where the disk is tried; empty means /var/lib/etcd, or what exists above.
	FsyncDir string
	// Progress is told how many pairs are done. It may be nil, is called from one
	// goroutine at a time and must not block.
	Progress func(done, all int)
}

func (o Options) withDefaults() Options {
	o.Probes = min(cmp.Or(o.Probes, 200), maxProbes)
	o.Interval = cmp.Or(o.Interval, 2500*time.Microsecond)
	o.Linger = cmp.Or(o.Linger, time.Second)
	o.ConnectWait = cmp.Or(o.ConnectWait, 2500*time.Millisecond)
	o.PerHost = cmp.Or(o.PerHost, 3)
	o.ProbePort = cmp.Or(o.ProbePort, DefaultProbePort)
	o.Timeout = cmp.Or(o.Timeout, 30*time.Second)
	o.FsyncDir = cmp.Or(o.FsyncDir, "/var/lib/etcd")
	return o
}

// Run reads the facts of all hosts of the inventory and measures between those that the
// cluster will have (gateways without another role are only looked at). A host
// that cannot be reached or misbehaves is in the report as such. A host that is missing in hosts
// counts as one that cannot be reached. The error is ctx's if that ended
// before the report was complete; it is then not to be used.
func Run(ctx context.Context, inv *inventory.Inventory, hosts map[string]host.Host, o Options) (Report, error) {
	if len(inv.Hosts) > maxPeers {
		return Report{}, fmt.Errorf("%d hosts, at most %d can be measured", len(inv.Hosts), maxPeers)
	}
	c := &coordinator{inv: inv, options: o.withDefaults(), secret: make([]byte, 32)}
	rand.Read(c.secret)
	began := time.Now()
	c.report = Report{Version: ReportVersion, Cluster: inv.Cluster.Name, Began: began.UTC().Round(0), Hosts: make([]HostReport, len(inv.Hosts))}
	c.sessions = make([]*session, len(inv.Hosts))
	for i, h := range inv.Hosts {
		c.report.Hosts[i] = HostReport{Name: h.Name, Site: h.Site}
	}
	// Facts come first: later the agents would be among the listening processes.
	c.each(func(i int) { c.gather(ctx, i, hosts[inv.Hosts[i].Name]) })
	if len(o.Agent) > 0 {
		c.measureAll(ctx, hosts)
	}
	c.report.Took = time.Since(began)
	return c.report, ctx.Err()
}

// coordinator works on one report.
type coordinator struct {
	inv      *inventory.Inventory
	options  Options
	secret   []byte
	report   Report
	sessions []*session // by index of the host; nil where there is no agent
}

// parallelHosts is how many hosts are prepared at once: that many SSH sessions
// start without one waiting for the other.
const parallelHosts = 64

// each calls f for all hosts, many at once.
func (c *coordinator) each(f func(i int)) {
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallelHosts)
	for i := range c.inv.Hosts {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			f(i)
		})
	}
	wg.Wait()
}

func (c *coordinator) gather(ctx context.Context, i int, h host.Host) {
	r := &c.report.Hosts[i]
	if h == nil {
		r.Error = "no connection"
		return
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	facts, err := Gather(ctx, h)
	var bad *FactsError
	switch {
	case errors.As(err, &bad):
		r.FactsError = bad.Error()
	case err != nil:
		r.Error = err.Error()
		return
	}
	r.Facts = facts
}

// joins says whether the cluster will have the host.
func joins(h *inventory.Host) bool { return h.IsNode() || h.Is(inventory.LoadBalancer) }

func (c *coordinator) measureAll(ctx context.Context, hosts map[string]host.Host) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	c.each(func(i int) {
		if joins(&c.inv.Hosts[i]) && c.report.Hosts[i].Error == "" {
			c.startAgent(ctx, i, hosts[c.inv.Hosts[i].Name], &work)
		}
	})
	c.each(func(i int) { c.introduce(ctx, i) })
	c.measurePairs(ctx)
	for _, s := range c.sessions {
		if s != nil {
			s.end()
		}
	}
}

// startAgent starts an agent and has it open its ports.
func (c *coordinator) startAgent(ctx context.Context, i int, h host.Host, work *sync.WaitGroup) {
	r, spec := &c.report.Hosts[i], &c.inv.Hosts[i]
	s := startSession(ctx, h, c.options.Agent, work)
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	got, err := s.call(ctx, request{Setup: &setup{
		Self: uint16(i), Addr: spec.NodeIP, ProbePort: c.options.ProbePort, Ports: listenPorts(c.inv, spec), FsyncDir: c.options.FsyncDir,
	}})
	if err == nil && got.Ready == nil {
		err = errOther
	}
	if err == nil {
		err = got.Ready.check()
	}
	if err != nil {
		r.AgentError = plain(err.Error())
		s.end()
		return
	}
	a := got.Ready
	r.Agent = &AgentReport{
		ProbePort: a.ProbePort, Listening: a.Listening, Busy: a.Busy, Failed: shorten(a.Failed), Duplicates: a.Duplicates,
		ClockError: short(a.ClockError), Fsync: time.Duration(a.FsyncNanos), FsyncCount: a.FsyncCount, FsyncError: short(a.FsyncError),
		ahead: time.Duration(a.ClockNanos),
	}
	c.sessions[i] = s
}

// short bounds text from an agent.
func short(s string) string { return fmt.Sprintf("%.200s", s) }

func shorten(list []string) []string {
	for i := range list {
		list[i] = short(list[i])
	}
	return list
}

// introduce tells an agent about all the others.
func (c *coordinator) introduce(ctx context.Context, i int) {
	if c.sessions[i] == nil {
		return
	}
	p := &peers{}
	for j := range c.inv.Hosts {
		if j != i && c.sessions[j] != nil {
			p.Peers = append(p.Peers, peer{
				Index: uint16(j), Addr: c.inv.Hosts[j].NodeIP, ProbePort: c.report.Hosts[j].Agent.ProbePort,
				Key: derivePairKey(c.secret, uint16(i), uint16(j)),
			})
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.options.Timeout)
	defer cancel()
	if _, err := c.sessions[i].call(ctx, request{Peers: p}); err != nil {
		c.report.Hosts[i].AgentError = plain(err.Error())
	}
}
