// Package haproxy writes haproxy.cfg for a load-balancer host in front of the
// API servers. It runs nothing and opens nothing.
package haproxy

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
)

// File is where HAProxy reads its configuration on a host.
const File = "/etc/haproxy/haproxy.cfg"

// DefaultPort is the port of the API, in front of HAProxy and behind it.
const DefaultPort = 6443

// Check is how HAProxy finds out whether an API server is there.
type Check string

// The ways to check.
const (
	// CheckReady asks for /readyz over TLS and wants status 200. An API server
	// that starts or stops gets no connections. The certificate is not looked at,
	// because nothing secret is sent; clients verify it end to end.
	CheckReady Check = "ready"
	// CheckTCP only connects. It is for API servers that do not let anonymous
	// clients read /readyz.
	CheckTCP Check = "tcp"
)

// Config is what goes into haproxy.cfg.
type Config struct {
	// Listen are addresses of this host; none means all of them, IPv6 too.
	Listen []netip.Addr
	Port   uint16 // 0: DefaultPort
	// Servers are the control planes, in the order in which they take turns.
	Servers []Server
	Check   Check // empty: CheckReady
	// Stats serves HAProxy's own page on 127.0.0.1 at this port; 0: nowhere.
	Stats uint16
}

// Server is a control plane.
type Server struct {
	Name    string
	Address netip.Addr
	Port    uint16 // 0: DefaultPort
}

var nameForm = regexp.MustCompile(`^[A-Za-z0-9_.:-]{1,64}$`)

// Render returns the file. The error names every fault.
//
// Watches of the API are silent for as long as nothing happens. The API server
// ends them after at most ten minutes and HTTP/2 clients ping every 30 s, so the
// idle limits of 15 minutes catch only the dead; TCP keepalives find those
// behind a broken path sooner. When a server goes down its connections are
// closed, so that clients come back through another one.
func Render(c Config) ([]byte, error) {
	if c.Port == 0 {
		c.Port = DefaultPort
	}
	if c.Check == "" {
		c.Check = CheckReady
	}
	if err := c.check(); err != nil {
		return nil, err
	}
	var b strings.Builder
	b.WriteString(`# written by kubeinit; changes are overwritten
global
	log /dev/log local0 notice
	user haproxy
	group haproxy
	maxconn 4000

defaults
	mode tcp
	log global
	option dontlognull
	option clitcpka
	option srvtcpka
	option redispatch
	retries 2
	timeout connect 2s
	timeout client 15m
	timeout server 15m
	timeout client-fin 30s
	timeout tunnel 15m
	timeout check 2s

frontend kube-api
`)
	for _, bind := range c.binds() {
		fmt.Fprintf(&b, "\tbind %s\n", bind)
	}
	b.WriteString(`	default_backend kube-api

backend kube-api
	balance roundrobin
`)
	if c.Check == CheckReady {
		b.WriteString(`	option httpchk GET /readyz
	http-check expect status 200
	default-server check check-ssl verify none inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
`)
	} else {
		b.WriteString(`	option tcp-check
	default-server check inter 1s fall 2 rise 1 on-marked-down shutdown-sessions
`)
	}
	for _, s := range c.Servers {
		fmt.Fprintf(&b, "\tserver %s %s\n", s.Name, s.addrPort())
	}
	if c.Stats != 0 {
		fmt.Fprintf(&b, `
frontend stats
	mode http
	bind 127.0.0.1:%d
	stats enable
	stats uri /
	timeout client 10s
`, c.Stats)
	}
	return []byte(b.String()), nil
}

func (c Config) binds() []string {
	if len(c.Listen) == 0 {
		return []string{fmt.Sprintf("[::]:%d v4v6", c.Port)}
	}
	var out []string
	for _, a := range c.Listen {
		out = append(out, netip.AddrPortFrom(a, c.Port).String())
	}
	return out
}

func (s Server) addrPort() netip.AddrPort {
	if s.Port == 0 {
		s.Port = DefaultPort
	}
	return netip.AddrPortFrom(s.Address, s.Port)
}

func (c Config) check() error {
	var errs []error
	add := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	add(len(c.Servers) > 0, "no control plane to balance over")
	add(c.Check == CheckReady || c.Check == CheckTCP, "check %q: want %s or %s", c.Check, CheckReady, CheckTCP)
	add(c.Stats != c.Port, "port %d is that of the API, not of statistics", c.Stats)
	for _, a := range c.Listen {
		add(a.IsValid() && a.Zone() == "", "listen address %s: want an address without a zone", a)
	}
	names, addrs := map[string]bool{}, map[netip.AddrPort]bool{}
	for _, s := range c.Servers {
		add(nameForm.MatchString(s.Name), "server name %q: want letters, digits, . _ : -", s.Name)
		add(s.Address.IsValid() && !s.Address.IsUnspecified() && s.Address.Zone() == "", "server %q: address %s: want one to connect to", s.Name, s.Address)
		add(!names[s.Name], "server %q: is there twice", s.Name)
		add(!addrs[s.addrPort()], "server %q: another one has %s", s.Name, s.addrPort())
		names[s.Name], addrs[s.addrPort()] = true, true
		// Otherwise HAProxy would connect to itself.
		for _, a := range c.Listen {
			add(s.addrPort() != netip.AddrPortFrom(a, c.Port), "server %q: %s is where HAProxy itself listens", s.Name, s.addrPort())
		}
	}
	return errors.Join(errs...)
}
