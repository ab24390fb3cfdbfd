//go:build integration

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
	"github.com/planetmesh/planetmesh/internal/netlab/netlabtest"
	"github.com/planetmesh/planetmesh/meshd/internal/attach"
	"github.com/planetmesh/planetmesh/meshd/internal/ctl"
	"github.com/planetmesh/planetmesh/overlay"
	"github.com/planetmesh/planetmesh/overlay/openvpn"
)

// The world of these tests. meshd runs on gw10, gw30a and gw30b, the router of
// site 30 runs the real openvpn with a tunnel to each of its two gateways:
//
//	                   underlay 10.4.0.0/16
//	   ┌────────────────┬────────┴───┬─────────────┐
//	 gw10 .90      router30 .91   gw30a .93     gw30b .94
//	   │                │  ╲ 10.90.0.0 ╱  10.90.1.0 ╱
//	192.168.10/24  192.168.30/24
//	  h10 .101        h30 .101
const (
	router30 = "gw30" // as the laboratory names it
	h10, h30 = "192.168.10.101", "192.168.30.101"
)

func newAttachTopology() netlab.Topology {
	t := netlab.Topology{Nets: []netlab.Net{{Name: "underlay", Prefixes: []netip.Prefix{netlab.Underlay4}}}}
	t.AddSite(netlab.Site{Number: 10, Hosts: []netlab.SiteHost{{Name: "h10", Number: 101}}})
	t.AddSite(netlab.Site{Number: 30, Hosts: []netlab.SiteHost{{Name: "h30", Number: 101}}})
	t.Host(router30).Forward = true
	for i, name := range []string{"gw30a", "gw30b"} {
		t.Hosts = append(t.Hosts, netlab.HostSpec{Name: name, Interfaces: []netlab.Iface{
			{Net: "underlay", Name: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.4.0.%d/16", 93+i))}},
		}})
	}
	return t
}

// attachWorld is the world with everything running.
type attachWorld struct {
	*meshlab.Lab
	t    *testing.T
	keys [2]openvpn.StaticKey
}

func newAttachWorld(t *testing.T) *attachWorld {
	t.Helper()
	w := &attachWorld{t: t}
	lab, err := meshlab.Start(w.within(30*time.Second), newAttachTopology(), program(t))
	if err != nil {
		t.Fatal(err)
	}
	w.Lab = lab
	t.Cleanup(func() {
		if err := lab.Close(); err != nil {
			t.Error(err)
		}
	})
	hosts := []string{"gw10", "gw30a", "gw30b"}
	netlabtest.Snapshots(t, lab.World(), hosts...)
	t.Cleanup(func() { // before the snapshots are compared
		for _, h := range hosts {
			p := lab.Process(h)
			if t.Failed() && p != nil {
				t.Logf("log of %s:\n%s", h, p.Log())
			}
			if p == nil {
				continue
			}
			if err := lab.Stop(context.Background(), h); err != nil {
				t.Errorf("stop %s: %v", h, err)
			}
		}
	})
	prefix := func(s string) []netip.Prefix { return []netip.Prefix{netip.MustParsePrefix(s)} }
	if err := lab.Up(w.within(30*time.Second), "planet", []meshlab.Gateway{{Host: "gw10", Site: "10", Prefixes: prefix("192.168.10.0/24")}}); err != nil {
		t.Fatal(err)
	}
	for i, host := range []string{"gw30a", "gw30b"} {
		w.keys[i] = openvpn.GenerateStaticKey()
		ticket, err := lab.Ticket(w.within(20*time.Second), "gw10", meshlab.Gateway{Host: host, Site: "30", Prefixes: prefix("192.168.30.0/24")})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := lab.Join(w.within(20*time.Second), host, ticket); err != nil {
			t.Fatal(err)
		}
		w.write(host, "r30.key", string(w.keys[i].Encode()))
		w.write(host, "meshd.yaml", w.conf(i))
		if err := w.runGateway(host); err != nil {
			t.Fatal(err)
		}
		w.startRouter(i)
	}
	return w
}

// on is the same world for a subtest.
func (w *attachWorld) on(t *testing.T) *attachWorld {
	sub := *w
	sub.t = t
	return &sub
}

func (w *attachWorld) within(d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(w.t.Context(), d)
	w.t.Cleanup(cancel)
	return ctx
}

func (w *attachWorld) write(host, name, text string) {
	w.t.Helper()
	if err := w.World().Host(host).WriteFile(name, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *attachWorld) sh(host, script string) string {
	w.t.Helper()
	out, err := w.World().Host(host).Run(w.within(20*time.Second), "sh", "-euc", script)
	if err != nil {
		w.t.Fatal(err)
	}
	return out
}

// conf is the configuration of gateway i.
func (w *attachWorld) conf(i int) string {
	return fmt.Sprintf(`openvpn:
  - name: r30
    mode: static
    listen: 10.4.0.%d:1195
    remote: 10.4.0.91:%d
    tunnel: {local: 10.90.%d.1, peer: 10.90.%d.2}
    key: r30.key
    cipher: AES-256-CBC
    auth: SHA256
    ping: 1s
    pingRestart: 5s
    prefixes: [192.168.30.0/24]
    priority: %d
`, 93+i, 1195+i, i, i, 10*(i+1))
}

func (w *attachWorld) runGateway(host string) error {
	return w.Run(w.within(30*time.Second), host, "--config", w.World().Host(host).Dir()+"/meshd.yaml")
}

// startRouter starts the router's openvpn towards gateway i, with what VyOS
// renders for it, and its static route.
func (w *attachWorld) startRouter(i int) {
	w.t.Helper()
	w.write(router30, fmt.Sprintf("vtun%d.key", i), string(w.keys[i].Encode()))
	w.write(router30, fmt.Sprintf("vtun%d.conf", i), fmt.Sprintf(`verb 3
dev vtun%d
dev-type tun
persist-key
persist-tun
proto udp
lport %d
rport 1195
remote 10.4.0.%d
ifconfig 10.90.%d.2 10.90.%d.1
secret vtun%d.key
cipher AES-256-CBC
auth SHA256
ping 1
ping-restart 5
disable-dco
`, i, 1195+i, 93+i, i, i, i))
	h := w.World().Host(router30)
	p, err := h.Start(w.t.Context(), "openvpn", "--cd", h.Dir(), "--config", fmt.Sprintf("vtun%d.conf", i))
	if err != nil {
		w.t.Fatal(err)
	}
	if err := p.WaitLog(w.within(20*time.Second), "Initialization Sequence Completed"); err != nil {
		w.t.Fatal(err)
	}
	w.sh(router30, fmt.Sprintf("ip route add 192.168.10.0/24 dev vtun%d metric %d", i, 10*(i+1)))
}

// mustPing pings both ways between the hosts behind gw10 and behind the router.
func (w *attachWorld) mustPing(when string) {
	w.t.Helper()
	for from, to := range map[string]string{"h10": h30, "h30": h10} {
		if _, err := w.World().Host(from).Ping(w.within(60*time.Second), netip.MustParseAddr(to)); err != nil {
			w.t.Fatalf("%s: %v", when, err)
		}
	}
}

func (w *attachWorld) status(host string) ctl.Status {
	w.t.Helper()
	out, err := w.Meshd(w.within(20*time.Second), host, "status", "--json")
	if err != nil {
		w.t.Fatal(err)
	}
	var s ctl.Status
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		w.t.Fatal(err)
	}
	return s
}

// await polls until ok finds the status of gw10 as wanted.
func (w *attachWorld) await(what string, ok func(ctl.Status) bool) {
	const host = "gw10"
	w.t.Helper()
	deadline := time.NewTimer(60 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		s := w.status(host)
		if ok(s) {
			return
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			b, _ := json.MarshalIndent(s, "", "  ")
			w.t.Fatalf("%s: no %s\n%s", host, what, b)
		}
	}
}

// via is the gateway that gw10 sends site 30's packets to.
func via(s ctl.Status) string {
	for _, r := range s.Routes {
		if r.Prefix.String() == "192.168.30.0/24" && !r.Local {
			return r.Gateway
		}
	}
	return ""
}

func routerUp(s ctl.Status) bool {
	return len(s.Attachments) == 1 && s.Attachments[0].State == attach.StateUp
}

func TestRouterThatSpeaksOpenVPNIsInTheMesh(t *testing.T) {
	w := newAttachWorld(t)
	w.mustPing("at first")
	first := w.status("gw30a")
	if !routerUp(first) || len(first.Self.Routes) != 1 || first.Self.Routes[0] != (overlay.Route{Prefix: netip.MustParsePrefix("192.168.30.0/24"), Priority: 10}) {
		t.Errorf("status of gw30a: attachments %+v, announced %v", first.Attachments, first.Self.Routes)
	}
	if got := via(w.status("gw10")); got != first.Self.Gateway {
		t.Errorf("gw10 sends by %s, want %s, which has the better priority", got, first.Self.Gateway)
	}
	for _, e := range first.Self.Endpoints {
		if e.Addr().String() == "10.90.0.1" {
			t.Errorf("the tunnel's address is announced as an endpoint: %v", first.Self.Endpoints)
		}
	}
	if routes := w.sh("gw30a", "ip route show dev ov-r30"); !strings.Contains(routes, "192.168.30.0/24 proto 109 scope link src 10.90.0.1") {
		t.Errorf("routes of the tunnel:\n%s", routes)
	}

	t.Run("a packet from a source of another site is dropped", func(t *testing.T) {
		w := w.on(t)
		w.sh(router30, "ip address add 192.168.99.1/32 dev lo; ping -q -c 3 -i 0.2 -W 1 -I 192.168.99.1 -m 0 192.168.10.101 || true; ip address del 192.168.99.1/32 dev lo")
		s := w.status("gw30a")
		if n := s.Attachments[0].Dropped[attach.DropSource]; n != 3 {
			t.Errorf("dropped %v, want 3 for their source", s.Attachments[0].Dropped)
		}
	})
	t.Run("the router cannot use the gateway for anything but the mesh", func(t *testing.T) {
		w := w.on(t)
		w.sh(router30, "ip route add 10.4.0.99/32 dev vtun0; ! ping -q -c 3 -i 0.2 -W 1 -I 192.168.30.1 10.4.0.99; ip route del 10.4.0.99/32")
		chain := w.sh("gw30a", "nft list chain inet planetmesh-pm0 attached")
		if !strings.Contains(chain, "counter packets 3 ") {
			t.Errorf("3 packets are not counted:\n%s", chain)
		}
	})
	t.Run("what the router sends through the standby is not believed", func(t *testing.T) {
		w := w.on(t)
		w.sh(router30, "ip route del 192.168.10.0/24 dev vtun0")
		out := w.sh("h30", "ping -q -c 3 -i 0.2 -W 1 "+h10+" || true")
		if !strings.Contains(out, "3 packets transmitted, 0 received") {
			t.Errorf("the documentation says that these are dropped:\n%s", out)
		}
		w.sh(router30, "ip route add 192.168.10.0/24 dev vtun0 metric 10")
		w.mustPing("with the route back")
	})
	t.Run("the prefix is withdrawn when the attachment is taken out", func(t *testing.T) {
		w := w.on(t)
		w.write("gw30a", "meshd.yaml", "announce: []\n") // without it everything granted is announced
		if err := w.Reload("gw30a"); err != nil {
			t.Fatal(err)
		}
		w.await("route by the other gateway", func(s ctl.Status) bool { return via(s) == w.status("gw30b").Self.Gateway })
		if links := w.sh("gw30a", "ip -br link"); strings.Contains(links, "ov-r30") {
			t.Errorf("the interface is still there:\n%s", links)
		}
		w.write("gw30a", "meshd.yaml", w.conf(0))
		if err := w.Reload("gw30a"); err != nil {
			t.Fatal(err)
		}
		w.await("route by the first gateway", func(s ctl.Status) bool { return via(s) == first.Self.Gateway })
		w.mustPing("after it came back")
	})
	t.Run("a grant violation changes nothing", func(t *testing.T) {
		w := w.on(t)
		w.write("gw30a", "meshd.yaml", strings.Replace(w.conf(0), "192.168.30.0/24", "192.168.31.0/24", 1))
		if err := w.Reload("gw30a"); err != nil {
			t.Fatal(err)
		}
		if err := w.Process("gw30a").WaitLog(w.within(20*time.Second), "openvpn r30: prefix 192.168.31.0/24 is not granted"); err != nil {
			t.Fatal(err)
		}
		if s := w.status("gw30a"); !routerUp(s) || s.Attachments[0].Restarts != 0 || len(s.Self.Routes) != 1 {
			t.Errorf("something changed: %+v, announced %v", s.Attachments, s.Self.Routes)
		}
		w.write("gw30a", "meshd.yaml", w.conf(0))
	})
}

func TestKilledGatewayIsReplacedAndHealed(t *testing.T) {
	w := newAttachWorld(t)
	w.mustPing("at first")
	first, second := w.status("gw30a").Self.Gateway, w.status("gw30b").Self.Gateway
	if err := w.Kill("gw30a"); err != nil {
		t.Fatal(err)
	}
	w.await("route by the second gateway", func(s ctl.Status) bool { return via(s) == second })
	w.sh(router30, "ip route del 192.168.10.0/24 dev vtun0") // what its check script does
	w.mustPing("after the failover")

	if err := w.runGateway("gw30a"); err != nil { // what the killed one left does not keep it from starting
		t.Fatal(err)
	}
	w.await("route by the first gateway", func(s ctl.Status) bool { return via(s) == first })
	w.sh(router30, "ip route add 192.168.10.0/24 dev vtun0 metric 10")
	w.mustPing("after the return")
	// Stopping both, the test compares the hosts with how they were.
}
