//go:build linux

package main

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/meshlab"
)

// variant is one way to connect the two LANs.
type variant struct {
	// open makes a world whose LANs are about to be connected. Its processes are those that carry packets.
	open func(ctx context.Context, p programs) (bed, error)
	// processes is how many there are.
	processes int
}

// bed is a world to measure in.
type bed struct {
	world     *netlab.World
	processes []*netlab.Process
	profiled  bool // processes write profiles at their end
}

// Names of the variants, for the command line and the table.
const (
	none      = "none"
	wireguard = "wireguard-go"
	meshd     = "meshd"
	openvpn   = "openvpn"
)

// gateways compares ways to connect two sites.
var gateways = suite{
	name: "gateways", target: "make bench", bind: true,
	groups: []group{{order: []string{none, wireguard, meshd, openvpn}, baseline: wireguard, goals: map[string]float64{meshd: 0.97}}},
	variants: map[string]variant{
		none:      {open: plain(upNone)},
		wireguard: {open: plain(upWireGuard), processes: 2},
		meshd:     {open: openMeshd, processes: 2},
		openvpn:   {open: plain(upOpenVPN), processes: 2},
	},
}

// upTimeout bounds how long a variant may take to carry the first packet.
const upTimeout = 30 * time.Second

// The two hosts between which everything is measured.
const (
	near = "host1"
	far  = "host2"
)

// side is one of the two gateways.
type side struct {
	host, underlay, lan string
	far                 *side
}

// sides are the gateways of topology.
func sides() []*side {
	a := &side{host: "gw1", underlay: "10.4.0.90", lan: "192.168.1.0/24"}
	b := &side{host: "gw2", underlay: "10.4.0.91", lan: "192.168.2.0/24", far: a}
	a.far = b
	return []*side{a, b}
}

// topology has two routers on an underlay and one host on the LAN behind each;
// every interface has the MTU 1500.
func topology() netlab.Topology {
	t := netlab.Topology{Nets: []netlab.Net{{Name: "underlay", Prefixes: []netip.Prefix{netlab.Underlay4}}}}
	for i, s := range sides() {
		n, number := fmt.Sprint(i+1), byte(i+1)
		lan := netip.MustParsePrefix(s.lan)
		router, host := netip.AddrFrom4([4]byte{192, 168, number, 1}), netip.AddrFrom4([4]byte{192, 168, number, 10})
		t.Nets = append(t.Nets, netlab.Net{Name: "lan" + n, Prefixes: []netip.Prefix{lan}})
		t.Hosts = append(t.Hosts,
			netlab.HostSpec{Name: s.host, Interfaces: []netlab.Iface{
				{Net: "underlay", Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(netip.MustParseAddr(s.underlay), netlab.Underlay4.Bits())}},
				{Net: "lan" + n, Name: "eth1", Addrs: []netip.Prefix{netip.PrefixFrom(router, lan.Bits())}},
			}},
			netlab.HostSpec{Name: "host" + n, Gateways: []netip.Addr{router}, Interfaces: []netlab.Iface{
				{Net: "lan" + n, Name: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(host, lan.Bits())}},
			}})
	}
	return t
}

// openMeshd runs two real gateways, which switch on forwarding and clamp TCP
// by themselves.
func openMeshd(ctx context.Context, p programs) (bed, error) {
	lab, err := meshlab.Start(ctx, topology(), p.meshd)
	if err != nil {
		return bed{}, err
	}
	b := bed{world: lab.World()}
	var gateways []meshlab.Gateway
	for _, s := range sides() {
		gateways = append(gateways, meshlab.Gateway{Host: s.host, Site: s.host, Prefixes: []netip.Prefix{netip.MustParsePrefix(s.lan)}})
	}
	if err := lab.Up(ctx, "bench", gateways); err != nil {
		return b, err
	}
	for _, g := range gateways {
		b.processes = append(b.processes, lab.Process(g.Host))
	}
	return b, nil
}

// plain is for variants whose routers forward without meshd.
func plain(up func(ctx context.Context, w *netlab.World, p programs) ([]*netlab.Process, error)) func(context.Context, programs) (bed, error) {
	return func(ctx context.Context, p programs) (bed, error) {
		t := topology()
		for _, s := range sides() {
			t.Host(s.host).Forward = true
		}
		w, err := netlab.Start(ctx, t)
		if err != nil {
			return bed{}, err
		}
		processes, err := up(ctx, w, p)
		return bed{world: w, processes: processes, profiled: p.profiles != ""}, err
	}
}

// runAll runs commands on a host; the first that does not work ends it.
func runAll(ctx context.Context, w *netlab.World, host string, commands ...string) error {
	for _, c := range commands {
		args := strings.Fields(c)
		if _, err := w.Host(host).Run(ctx, args[0], args[1:]...); err != nil {
			return err
		}
	}
	return nil
}

// await repeats a command on a host until it works, as long as the process
// that makes it work lives.
func await(ctx context.Context, w *netlab.World, host string, p *netlab.Process, command string) error {
	for {
		err := runAll(ctx, w, host, command)
		if err == nil {
			return nil
		}
		select {
		case <-p.Done():
			return fmt.Errorf("%w: process ended", err)
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", err, ctx.Err())
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func upNone(ctx context.Context, w *netlab.World, _ programs) ([]*netlab.Process, error) {
	for _, s := range sides() {
		if err := runAll(ctx, w, s.host, fmt.Sprintf("ip route add %s via %s", s.far.lan, s.far.underlay)); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// innerMTU is that of meshd and wireguard-go. OpenVPN cannot have it: in this
// mode it adds 32 bytes of HMAC, 16 of IV, 8 of packet ID and pads to 16, and
// UDP and IPv4 add 28, so that 1420 becomes 1516 on a link of 1500 and 1400
// becomes exactly 1500.
const (
	innerMTU   = 1420
	openvpnMTU = 1400
)

// clamp makes TCP between the LANs fit, as meshd does by itself.
const clamp = `table inet bench {
	chain forward {
		type filter hook forward priority 0;
		tcp flags syn tcp option maxseg size set rt mtu
	}
}
`

// through sends what is for the other LAN into a device, and clamps.
func through(ctx context.Context, w *netlab.World, s *side, device string) error {
	if err := w.Host(s.host).WriteFile("clamp", []byte(clamp), 0o600); err != nil {
		return err
	}
	return runAll(ctx, w, s.host, "ip route add "+s.far.lan+" dev "+device, "nft -f clamp")
}

func upWireGuard(ctx context.Context, w *netlab.World, p programs) ([]*netlab.Process, error) {
	var processes []*netlab.Process
	public := make(map[string]string)
	for _, s := range sides() {
		// The daemon outlives ctx, which bounds its start: the world ends it.
		cmd := w.Host(s.host).Command(context.WithoutCancel(ctx), p.wireguard, "-f", "wg0")
		cmd.Env = append(cmd.Environ(), "LOG_LEVEL=error", "WG_PROCESS_FOREGROUND=1")
		daemon, err := w.Host(s.host).StartCommand(cmd)
		if err != nil {
			return processes, err
		}
		processes = append(processes, daemon)
		key, err := w.Host(s.host).Run(ctx, "sh", "-ec", "umask 077; wg genkey > key; wg pubkey < key")
		if err != nil {
			return processes, err
		}
		public[s.host] = strings.TrimSpace(key)
	}
	for i, s := range sides() {
		if err := await(ctx, w, s.host, processes[i], "wg show wg0"); err != nil {
			return processes, err
		}
		if err := runAll(ctx, w, s.host,
			fmt.Sprintf("wg set wg0 private-key key listen-port 51820 peer %s endpoint %s:51820 allowed-ips %s", public[s.far.host], s.far.underlay, s.far.lan),
			fmt.Sprintf("ip link set wg0 mtu %d up", innerMTU)); err != nil {
			return processes, err
		}
		if err := through(ctx, w, s, "wg0"); err != nil {
			return processes, err
		}
	}
	return processes, nil
}

// staticKeyConsent is the option without which OpenVPN 2.7 refuses static keys,
// and which 2.6 does not know.
func staticKeyConsent(ctx context.Context, h *netlab.Host) []string {
	const option = "--allow-deprecated-insecure-static-crypto"
	// The exit status of --version differs between versions; the text decides.
	text, _ := h.Command(ctx, "openvpn", option, "--version").CombinedOutput()
	if strings.Contains(string(text), "Unrecognized option") {
		return nil
	}
	return []string{option}
}

func upOpenVPN(ctx context.Context, w *netlab.World, _ programs) ([]*netlab.Process, error) {
	ends := sides()
	if err := runAll(ctx, w, ends[0].host, "openvpn --genkey secret key"); err != nil {
		return nil, err
	}
	key, err := w.Host(ends[0].host).ReadFile("key")
	if err != nil {
		return nil, err
	}
	if err := w.Host(ends[1].host).WriteFile("key", key, 0o600); err != nil {
		return nil, err
	}
	var processes []*netlab.Process
	consent := staticKeyConsent(ctx, w.Host(ends[0].host))
	for i, s := range ends {
		args := slices.Concat(consent, []string{"--dev", "tun0", "--dev-type", "tun", "--proto", "udp", "--port", "1194", "--remote", s.far.underlay,
			"--ifconfig", fmt.Sprintf("10.99.0.%d", i+1), fmt.Sprintf("10.99.0.%d", 2-i),
			"--secret", "key", "--cipher", "AES-256-CBC", "--auth", "SHA256",
			"--tun-mtu", fmt.Sprint(openvpnMTU), "--mssfix", "0", "--verb", "1"})
		daemon, err := w.Host(s.host).Start(context.WithoutCancel(ctx), "openvpn", args...)
		if err != nil {
			return processes, err
		}
		processes = append(processes, daemon)
	}
	for i, s := range ends {
		// OpenVPN says this when the device has its addresses.
		if err := processes[i].WaitLog(ctx, "UDPv4 link remote"); err != nil {
			return processes, err
		}
		if err := through(ctx, w, s, "tun0"); err != nil {
			return processes, err
		}
	}
	return processes, nil
}
