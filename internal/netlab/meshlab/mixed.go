package meshlab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/overlay"
)

// Mixed is the reference deployment in which the router of site 30 does not run meshd:
//
//	                     underlay 10.4.0.0/16
//	   ┌────────────┬──────────┬─────────────┬──────────────┐
//	 gw10 .90     gw20 .91   gw30 .92     gw30a .93      gw30b .94
//	 meshd        meshd      VyOS 1.4     meshd          meshd
//	   │            │          │  ╲ vtun1    │ 10.90.0.1    │
//	   │            │          │  ╲ vtun2 ───┼──────────────┘ 10.90.1.1
//	192.168.10/24 192.168.20/24 192.168.30/24
//
// gw30a and gw30b are machines of their own, certified for site 30 and its prefix; gw30 reaches the mesh through a tunnel to each
// of them. It sends through the first while that answers, as the others send to it: gw30a has the better priority.
type Mixed struct {
	*Lab
	Router *Router
}

// StartMixed builds the world, without any gateway.
func StartMixed(ctx context.Context, meshd string) (*Mixed, error) {
	lab, err := Start(ctx, netlab.ReferenceMixed(), meshd)
	if err != nil {
		return nil, err
	}
	return &Mixed{Lab: lab, Router: NewRouter(lab.World().Host("gw30"))}, nil
}

// MixedGateways are the four gateways of the mixed deployment; the first one founds the mesh.
func MixedGateways() []Gateway {
	t := netlab.ReferenceMixed()
	var out []Gateway
	for _, g := range ReferenceGateways(t) {
		if g.Host != "gw30" {
			out = append(out, g)
			continue
		}
		for _, host := range netlab.MixedGateways {
			out = append(out, Gateway{Host: host, Site: g.Site, Prefixes: g.Prefixes})
		}
	}
	return out
}

// Attachment is the tunnel between a gateway of site 30 and its router.
type Attachment struct {
	Name      string     // in the gateway's configuration
	Interface string     // on the router
	Gateway   netip.Addr // in the underlay
	Router    netip.Addr
	Port      uint16     // of the gateway
	RouterAt  uint16     // port of the router
	Local     netip.Addr // inside, the gateway's
	Peer      netip.Addr // inside, the router's
	Priority  int
	Prefix    netip.Prefix
}

// AttachmentOf is that of gw30a or gw30b.
func AttachmentOf(host string) Attachment {
	t := netlab.ReferenceMixed()
	i := map[string]int{"gw30a": 0, "gw30b": 1}[host]
	inside := func(last byte) netip.Addr { return netip.AddrFrom4([4]byte{10, 90, byte(i), last}) }
	return Attachment{
		Name: "r" + strings.TrimPrefix(host, "gw"), Interface: fmt.Sprintf("vtun%d", i+1),
		Gateway: t.Host(host).Addr(false), Router: t.Host("gw30").Addr(false),
		Port: 1195, RouterAt: uint16(1195 + i), Local: inside(1), Peer: inside(2),
		Priority: 10 * (i + 1), Prefix: netip.MustParsePrefix("192.168.30.0/24"),
	}
}

// Timers of the attachments. A router that is silent for the second one is down.
const (
	attachmentPing    = 2 * time.Second
	attachmentRestart = 10 * time.Second
)

// Config is the gateway's configuration file. announce is empty because the gateway has no network of its own: the prefix is
// announced with the attachment only.
func (a Attachment) Config() string {
	return fmt.Sprintf(`announce: []
openvpn:
  - name: %s
    mode: static
    listen: %v:%d
    remote: %v:%d
    tunnel: {local: %v, peer: %v}
    key: %s.key
    cipher: AES-256-CBC
    auth: SHA256
    ping: %v
    pingRestart: %v
    prefixes: [%v]
    priority: %d
`, a.Name, a.Gateway, a.Port, a.Router, a.RouterAt, a.Local, a.Peer, a.Name, attachmentPing, attachmentRestart, a.Prefix, a.Priority)
}

// configFile is the gateway's configuration file as its host sees it.
func (m *Mixed) configFile(host string) string {
	return filepath.Join(m.World().Host(host).Dir(), "meshd.yaml")
}

// Attach makes the key of an attachment and writes the gateway's configuration.
func (m *Mixed) Attach(ctx context.Context, host string) error {
	a, h := AttachmentOf(host), m.World().Host(host)
	if _, err := h.Run(ctx, "openvpn", "--genkey", "secret", filepath.Join(h.Dir(), a.Name+".key")); err != nil {
		return err
	}
	return h.WriteFile(m.configFile(host), []byte(a.Config()), 0o600)
}

// RunAttached starts the daemon of gw30a or gw30b with its configuration.
func (m *Mixed) RunAttached(ctx context.Context, host string) error {
	return m.Run(ctx, host, "--config", m.configFile(host))
}

// Up founds the mesh and starts the four gateways; the router is not configured yet.
func (m *Mixed) Up(ctx context.Context, mesh string) error {
	gateways := MixedGateways()
	if err := m.Lab.Up(ctx, mesh, gateways[:2]); err != nil {
		return err
	}
	for _, g := range gateways[2:] {
		ticket, err := m.Ticket(ctx, gateways[0].Host, g)
		if err != nil {
			return err
		}
		if _, err := m.Join(ctx, g.Host, ticket); err != nil {
			return err
		}
		if err := m.Attach(ctx, g.Host); err != nil {
			return err
		}
		if err := m.RunAttached(ctx, g.Host); err != nil {
			return err
		}
	}
	return nil
}

// Pings are the options to ping all pairs of the eight hosts.
func Pings() netlab.PingOptions { return netlab.PingOptions{Hosts: netlab.ReferenceHosts()} }

// Down stops what runs: the router first, then the gateways that still do.
func (m *Mixed) Down(ctx context.Context) error {
	errs := []error{m.Router.Stop(ctx)}
	for _, g := range MixedGateways() {
		p := m.Process(g.Host)
		if p == nil {
			continue
		}
		select {
		case <-p.Done(): // killed
		default:
			errs = append(errs, m.Lab.Stop(ctx, g.Host))
		}
	}
	return errors.Join(errs...)
}

// RouterSetup is what meshd prints for the router.
type RouterSetup struct {
	Host     string   // the gateway that was asked
	Args     []string // of meshd, for the commands
	Commands string   // for configuration mode, keys included
	Script   string   // checks the tunnels and moves the routes
}

// RouterSetup asks gw30a for the router's end of both attachments; gw30b's configuration and key are copied there for it. The
// daemon of gw30a must run, because it knows the prefixes of the mesh: those of other gateways are waited for.
func (m *Mixed) RouterSetup(ctx context.Context) (RouterSetup, error) {
	first, second := netlab.MixedGateways[0], netlab.MixedGateways[1]
	a, b := AttachmentOf(first), AttachmentOf(second)
	if err := m.awaitRoutes(ctx, first); err != nil {
		return RouterSetup{}, err
	}
	for _, name := range []string{"meshd.yaml", b.Name + ".key"} {
		text, err := m.World().Host(second).ReadFile(name)
		if err != nil {
			return RouterSetup{}, err
		}
		if err := m.World().Host(first).WriteFile(filepath.Join(second, name), text, 0o600); err != nil {
			return RouterSetup{}, err
		}
	}
	s := RouterSetup{Host: first, Args: []string{
		"vyos", a.Name, b.Name, "--vyos-version", "1.4", "--config", m.configFile(first),
		"--second-config", filepath.Join(m.World().Host(first).Dir(), second, "meshd.yaml"), "--show-key",
	}}
	var err error
	if s.Commands, err = m.Meshd(ctx, first, s.Args...); err != nil {
		return s, err
	}
	script := append(s.Args[:len(s.Args)-1:len(s.Args)-1], "--check-script")
	s.Script, err = m.Meshd(ctx, first, script...)
	return s, err
}

// routePoll is the time between two looks at a daemon's status.
const routePoll = 50 * time.Millisecond

// awaitRoutes waits until the gateway has routes to all sites that run meshd.
func (m *Mixed) awaitRoutes(ctx context.Context, host string) error {
	var want []netip.Prefix
	for _, g := range MixedGateways() {
		if !slices.Contains(netlab.MixedGateways, g.Host) {
			want = append(want, g.Prefixes...)
		}
	}
	for {
		s, err := m.Status(ctx, host)
		if err != nil {
			return err
		}
		missing := slices.DeleteFunc(slices.Clone(want), func(p netip.Prefix) bool {
			return slices.ContainsFunc(s.Routes, func(r overlay.RouteStatus) bool { return r.Prefix == p })
		})
		if len(missing) == 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gateway on %s has no routes to %v: %w", host, missing, ctx.Err())
		case <-time.After(routePoll):
		}
	}
}
