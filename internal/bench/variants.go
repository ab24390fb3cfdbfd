//go:build linux

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
)

// variant is one way to connect the two LANs.
type variant struct {
	name string
	// forward: the routers forward from the start; meshd switches that on itself.
	forward bool
	// up connects gw10 and gw20 and returns the processes that carry packets.
	up func(ctx context.Context, lab *meshlab.Lab) ([]*netlab.Process, error)
	// meshd is the program that the laboratory runs.
	meshd string
}

// Names of the variants, as the table shows them.
const (
	noTunnel  = "no tunnel"
	wireguard = "wireguard-go"
	openvpn   = "openvpn"
	meshd     = "meshd"
)

func variants(p programs) []variant {
	return []variant{
		{name: noTunnel, forward: true, up: upNone, meshd: p.meshd},
		{name: wireguard, forward: true, up: func(ctx context.Context, lab *meshlab.Lab) ([]*netlab.Process, error) {
			return upWireGuard(ctx, lab.World(), p.wireguard)
		}, meshd: p.meshd},
		{name: meshd, up: upMeshd, meshd: p.meshd},
		{name: openvpn, forward: true, up: upOpenVPN, meshd: p.meshd},
	}
}

// side is one of the two gateways.
type side struct {
	host, underlay, lan string
	far                 *side
}

func sides() (a, b *side) {
	a = &side{host: "gw10", underlay: "10.4.0.90", lan: "192.168.10.0/24"}
	b = &side{host: "gw20", underlay: "10.4.0.91", lan: "192.168.20.0/24", far: a}
	a.far = b
	return a, b
}

// script runs shell commands on a host; the first that does not work ends it.
func script(ctx context.Context, w *netlab.World, host, text string) error {
	_, err := w.Host(host).Run(ctx, "sh", "-ec", text)
	return err
}

func upNone(ctx context.Context, lab *meshlab.Lab) ([]*netlab.Process, error) {
	a, b := sides()
	for _, s := range []*side{a, b} {
		if err := script(ctx, lab.World(), s.host, fmt.Sprintf("ip route add %s via %s", s.far.lan, s.far.underlay)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// innerMTU is that of meshd and wireguard-go. OpenVPN adds up to 100 bytes in
// this mode (16 IV, 32 HMAC, 8 packet ID, 16 padding, 28 UDP and IP), so it has
// 1400 and no packet of it is fragmented either.
const (
	innerMTU   = 1420
	openvpnMTU = 1400
)

// clamp makes TCP on both LANs fit: meshd has the same rule of its own.
const clamp = `nft -f - <<'RULES'
table inet bench {
	chain forward {
		type filter hook forward priority 0;
		tcp flags syn tcp option maxseg size set rt mtu
	}
}
RULES
`

func upWireGuard(ctx context.Context, w *netlab.World, program string) ([]*netlab.Process, error) {
	a, b := sides()
	var processes []*netlab.Process
	public := make(map[string]string)
	for _, s := range []*side{a, b} {
		cmd := w.Host(s.host).Command(context.WithoutCancel(ctx), program, "-f", "wg0")
		cmd.Env = append(cmd.Environ(), "LOG_LEVEL=error", "WG_PROCESS_FOREGROUND=1")
		p, err := w.Host(s.host).StartCommand(cmd)
		if err != nil {
			return nil, err
		}
		processes = append(processes, p)
		key, err := w.Host(s.host).Run(ctx, "sh", "-ec", "umask 077; wg genkey > key; wg pubkey < key")
		if err != nil {
			return nil, err
		}
		public[s.host] = strings.TrimSpace(key)
	}
	for _, s := range []*side{a, b} {
		if err := script(ctx, w, s.host, fmt.Sprintf(`
			n=0; while ! wg show wg0 >/dev/null 2>&1; do n=$((n+1)); test $n -lt 100; sleep 0.05; done
			wg set wg0 private-key key listen-port 51820 peer %s endpoint %s:51820 allowed-ips %s
			ip link set wg0 mtu %d up
			ip route add %s dev wg0
			%s`, public[s.far.host], s.far.underlay, s.far.lan, innerMTU, s.far.lan, clamp)); err != nil {
			return nil, err
		}
	}
	return processes, nil
}

func upOpenVPN(ctx context.Context, lab *meshlab.Lab) ([]*netlab.Process, error) {
	w := lab.World()
	a, b := sides()
	if err := script(ctx, w, a.host, "openvpn --genkey secret key"); err != nil {
		return nil, err
	}
	key, err := w.Host(a.host).ReadFile("key")
	if err != nil {
		return nil, err
	}
	if err := w.Host(b.host).WriteFile("key", key, 0o600); err != nil {
		return nil, err
	}
	var processes []*netlab.Process
	for i, s := range []*side{a, b} {
		p, err := w.Host(s.host).Start(context.WithoutCancel(ctx), "openvpn",
			"--dev", "tun0", "--dev-type", "tun", "--proto", "udp", "--port", "1194", "--remote", s.far.underlay,
			"--ifconfig", fmt.Sprintf("10.99.0.%d", i+1), fmt.Sprintf("10.99.0.%d", 2-i),
			"--secret", "key", "--cipher", "AES-256-CBC", "--auth", "SHA256",
			"--tun-mtu", fmt.Sprint(openvpnMTU), "--mssfix", "0", "--txqueuelen", "1000", "--verb", "1")
		if err != nil {
			return nil, err
		}
		processes = append(processes, p)
	}
	for _, s := range []*side{a, b} {
		if err := script(ctx, w, s.host, fmt.Sprintf(`
			n=0; while ! ip -o link show tun0 2>/dev/null | grep -q LOWER_UP; do n=$((n+1)); test $n -lt 100; sleep 0.05; done
			ip route add %s dev tun0
			%s`, s.far.lan, clamp)); err != nil {
			return nil, err
		}
	}
	return processes, nil
}

func upMeshd(ctx context.Context, lab *meshlab.Lab) ([]*netlab.Process, error) {
	gateways := meshlab.ReferenceGateways(lab.World().Topology())
	if err := lab.Up(ctx, "bench", gateways); err != nil {
		return nil, err
	}
	var processes []*netlab.Process
	for _, g := range gateways {
		processes = append(processes, lab.Process(g.Host))
	}
	return processes, nil
}

// topology is the reference deployment without its third site.
func topology(forward bool) netlab.Topology {
	t := netlab.Reference()
	var hosts []netlab.HostSpec
	for _, h := range t.Hosts {
		if h.Name == "gw30" || h.Name == "node03" || h.Name == "node04" {
			continue
		}
		h.Forward = forward && len(h.Interfaces) > 1
		hosts = append(hosts, h)
	}
	var nets []netlab.Net
	for _, n := range t.Nets {
		if n.Name != "lan30" {
			nets = append(nets, n)
		}
	}
	return netlab.Topology{Nets: nets, Hosts: hosts}
}

// upTimeout bounds how long a variant may take to carry the first packet.
const upTimeout = 20 * time.Second
