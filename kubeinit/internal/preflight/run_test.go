package preflight

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// agentCommand is what the hosts of tests run an agent by.
var agentCommand = []string{"kubeinit", "agent", "probe"}

// testHost is a host that runs in this process. Only what package
// preflight uses of host.Host works.
type testHost struct {
	name  string
	facts string
	// agent runs instead of Serve if it is not nil.
	agent func(ctx context.Context, in io.Reader, out io.Writer) error
}

func (h *testHost) Name() string { return h.name }

func (h *testHost) Run(ctx context.Context, c host.Command) (host.Output, error) {
	switch c.Args[0] {
	case "sh":
		return host.Output{Stdout: h.facts}, nil
	case agentCommand[0]:
		agent := h.agent
		if agent == nil {
			agent = Serve
		}
		r, w := io.Pipe()
		done := make(chan struct{})
		go func() { // ends with the agent, which closes w
			defer close(done)
			lines(r, c.Output)
		}()
		err := agent(ctx, c.Stdin, w)
		w.Close()
		<-done
		return host.Output{}, err
	}
	return host.Output{}, &host.ExitError{Host: h.name, Args: c.Args, Code: 127}
}

// lines hands over lines of any length.
func lines(r io.Reader, f func(string)) {
	var rest strings.Builder
	buf := make([]byte, 65536)
	for {
		n, err := r.Read(buf)
		text := rest.String() + string(buf[:n])
		rest.Reset()
		for {
			line, after, ok := strings.Cut(text, "\n")
			if !ok {
				break
			}
			f(line)
			text = after
		}
		rest.WriteString(text)
		if err != nil {
			return
		}
	}
}

var errNotUsed = errors.New("not used here")

func (h *testHost) ReadFile(context.Context, string) ([]byte, error) { return nil, errNotUsed }
func (h *testHost) Stat(context.Context, string) (host.Info, error)  { return host.Info{}, errNotUsed }
func (h *testHost) WriteFile(context.Context, string, []byte, fs.FileMode) error {
	return errNotUsed
}
func (h *testHost) Upload(context.Context, string, io.Reader, int64, fs.FileMode) error {
	return errNotUsed
}
func (h *testHost) Remove(context.Context, string) error { return errNotUsed }
func (h *testHost) Close() error                         { return nil }

// loopback is an inventory of n hosts in sites of 8, at addresses of the loopback
// interface, with as many control planes.
func loopback(n, controlPlanes int) (*inventory.Inventory, map[string]host.Host) {
	inv := &inventory.Inventory{Cluster: inventory.Cluster{Name: "test", Version: "1.37"}}
	hosts := make(map[string]host.Host)
	for i := range n {
		site := fmt.Sprintf("s%d", i/8)
		if i%8 == 0 {
			inv.Sites = append(inv.Sites, inventory.Site{Name: site, Mesh: "none"})
		}
		role := inventory.Worker
		if i < controlPlanes {
			role = inventory.ControlPlane
		}
		h := inventory.Host{
			Name: fmt.Sprintf("h%02d", i), Site: site, Roles: []inventory.Role{role},
			NodeIP: netip.AddrFrom4([4]byte{127, 77, byte(i / 200), byte(i%200 + 1)}),
		}
		inv.Hosts = append(inv.Hosts, h)
		hosts[h.Name] = &testHost{name: h.Name, facts: cleanFacts(&h)}
	}
	return inv, hosts
}

// cleanFacts is what the script says on a host without faults.
func cleanFacts(h *inventory.Host) string {
	return strings.NewReplacer("HOST", h.Name, "ADDR", h.NodeIP.String()).Replace(cleanFactsText)
}

func testOptions(t *testing.T) Options {
	return Options{Agent: agentCommand, Probes: 50, Interval: time.Millisecond, Linger: 5 * time.Second, FsyncDir: t.TempDir()}
}

func mustRunAll(t *testing.T, inv *inventory.Inventory, hosts map[string]host.Host, o Options) Report {
	t.Helper()
	r, err := Run(t.Context(), inv, hosts, o)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRunMeasuresEveryPairBothWays(t *testing.T) {
	inv, hosts := loopback(5, 3)
	r := mustRunAll(t, inv, hosts, testOptions(t))
	for _, h := range r.Hosts {
		if h.Error != "" || h.AgentError != "" || h.FactsError != "" || h.Agent == nil {
			t.Fatalf("host %s: %q, %q", h.Name, h.Error, h.FactsError)
		}
		if h.Agent.FsyncCount == 0 || h.Agent.Fsync <= 0 {
			t.Errorf("host %s: fsync not tried: %s", h.Name, h.Agent.FsyncError)
		}
	}
	if len(r.Pairs) != 5*4 {
		t.Fatalf("%d pairs, want 20", len(r.Pairs))
	}
	for _, p := range r.Pairs {
		if p.Error != "" || p.Sent != 50 || p.Received != 50 || p.Answered != 50 || p.RTT == nil {
			t.Errorf("%s to %s: %+v", p.From, p.To, p)
			continue
		}
		back := r.Pair(p.To, p.From)
		if *back.RTT != *p.RTT || *back.Offset != -*p.Offset {
			t.Errorf("%s and %s: round trips %v and %v, offsets %v and %v", p.From, p.To, p.RTT, back.RTT, p.Offset, back.Offset)
		}
		if p.Hops != 0 || p.MTU != 65535 || p.SeenAs != inv.Host(p.From).NodeIP {
			t.Errorf("%s to %s: %d routers, MTU %d, seen as %v", p.From, p.To, p.Hops, p.MTU, p.SeenAs)
		}
		if want := dialPorts(inv, inv.Host(p.From), inv.Host(p.To)); len(p.Ports) != len(want) {
			t.Errorf("%s to %s: ports %v, want %v", p.From, p.To, p.Ports, want)
		}
		for _, c := range p.Ports {
			if c.State != PortOpen || !c.Agent || c.SeenAs != inv.Host(p.From).NodeIP {
				t.Errorf("%s to %s: %+v", p.From, p.To, c)
			}
		}
	}
}
