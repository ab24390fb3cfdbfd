//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// defaultMTU is that of Ethernet.
const defaultMTU = 1500

// plug makes a bridge for every network and a veth pair for every interface, one end as a port of the bridge, the
// other in the host. All of it is done from the namespace of the bridges, one after the other: the kernel has one lock for it.
func (w *World) plug() error {
	return onThread(func() error {
		if err := w.base.enterNet(); err != nil {
			return err
		}
		// Bridges only switch: they speak no IPv6 of their own.
		if err := writeSysctl("net.ipv6.conf.default.disable_ipv6", "1"); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		indexes, names := make(map[string]int), make(map[string]string)
		for i, n := range w.topology.Nets {
			name := fmt.Sprintf("net%d", i)
			index, err := addBridge(name)
			if err != nil {
				return fmt.Errorf("net %s: %w", n.Name, err)
			}
			indexes[n.Name], names[n.Name] = index, name
		}
		for i, spec := range w.topology.Hosts {
			h := w.hosts[spec.Name]
			for j, iface := range spec.Interfaces {
				c := &cable{iface: iface, port: fmt.Sprintf("h%di%d", i, j), net: names[iface.Net]}
				if err := addVeth(c.port, indexes[iface.Net], iface, h.ns.net); err != nil {
					return fmt.Errorf("host %s interface %s: %w", spec.Name, iface.Name, err)
				}
				h.cables[iface.Name] = c
				w.cables = append(w.cables, c)
			}
		}
		return nil
	})
}

func addBridge(name string) (index int, err error) {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.Flags = name, net.FlagUp
	snooping := false // there is no querier on these networks
	bridge := &netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}
	if err := netlink.LinkAdd(bridge); err != nil {
		return 0, fmt.Errorf("add bridge: %w", err)
	}
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, fmt.Errorf("find bridge: %w", err)
	}
	return link.Attrs().Index, nil
}

func (i Iface) mtu() int {
	if i.MTU == 0 {
		return defaultMTU
	}
	return i.MTU
}

func addVeth(port string, bridge int, iface Iface, host int) error {
	mtu := iface.mtu()
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.MasterIndex, attrs.Flags = port, mtu, bridge, net.FlagUp
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: iface.Name, PeerNamespace: netlink.NsFd(host), PeerMTU: uint32(mtu),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("add veth: %w", err)
	}
	return nil
}

// configure gives the host its settings, addresses, routes and firewall, and waits until its links are up.
func (h *Host) configure(ctx context.Context) error {
	if err := h.onHost(h.configureNet); err != nil {
		return err
	}
	for _, rules := range []string{natRules(h.spec.NAT), h.spec.Firewall} {
		if rules == "" {
			continue
		}
		if _, err := h.runInput(ctx, rules, "nft", "-f", "-"); err != nil {
			return err
		}
	}
	return h.onHost(func() error { return awaitLinks(ctx, h.spec) })
}

// onHost is [Host.Do] with the host's own /proc, whose settings can be written even where those of the machine's cannot.
func (h *Host) onHost(f func() error) error {
	err := onThread(func() error {
		if err := h.enter(); err != nil {
			return err
		}
		return f()
	})
	if err != nil {
		return fmt.Errorf("host %s: %w", h.spec.Name, err)
	}
	return nil
}

func (h *Host) configureNet() error {
	if err := writeSysctls(h.spec.settings()); err != nil {
		return err
	}
	for _, iface := range append([]Iface{{Name: "lo"}}, h.spec.Interfaces...) {
		if err := configureIface(iface); err != nil {
			return fmt.Errorf("interface %s: %w", iface.Name, err)
		}
	}
	var routes []Route
	for _, g := range h.spec.Gateways {
		routes = append(routes, Route{Dst: netip.PrefixFrom(unspecified(g), 0), Via: g})
	}
	for _, r := range append(routes, h.spec.Routes...) {
		if err := netlink.RouteAdd(&netlink.Route{Dst: ipNet(r.Dst), Gw: r.Via.AsSlice()}); err != nil {
			return fmt.Errorf("route %v via %v: %w", r.Dst, r.Via, err)
		}
	}
	return nil
}

func configureIface(iface Iface) error {
	link, err := netlink.LinkByName(iface.Name)
	if err != nil {
		return fmt.Errorf("find link: %w", err)
	}
	for _, a := range iface.Addrs {
		addr := &netlink.Addr{IPNet: ipNet(a), Flags: unix.IFA_F_NODAD}
		if err := netlink.AddrAdd(link, addr); err != nil {
			return fmt.Errorf("address %v: %w", a, err)
		}
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	return nil
}

// setting is one sysctl.
type setting struct{ key, value string }

// settings are the sysctls of a host in the order in which they have to be written. The first ones undo what the kernel copies
// from the machine's namespace into a new one (all of net.ipv4.conf, see net.core.devconf_inherit_init_net).
func (h HostSpec) settings() []setting {
	s := []setting{
		{"net.ipv4.ip_forward", "0"},
		{"net.ipv4.conf.all.rp_filter", "0"},
		{"net.ipv4.conf.default.rp_filter", "0"},
		{"net.ipv6.conf.all.forwarding", "0"},
	}
	for _, conf := range h.confs() {
		s = append(s, setting{"net/ipv4/conf/" + conf + "/rp_filter", "0"}, setting{"net/ipv6/conf/" + conf + "/accept_dad", "0"})
	}
	if h.Forward {
		s = append(s, setting{"net.ipv4.ip_forward", "1"}, setting{"net.ipv6.conf.all.forwarding", "1"})
	}
	if h.NoIPv6 {
		s = append(s, setting{"net.ipv6.conf.all.disable_ipv6", "1"}, setting{"net.ipv6.conf.default.disable_ipv6", "1"})
	}
	var own []setting
	for key, value := range h.Sysctls {
		own = append(own, setting{key, value})
	}
	// "all" and "default" change the interfaces, so what is for one interface comes after them.
	slices.SortFunc(own, func(a, b setting) int {
		if n := boolInt(general(b.key)) - boolInt(general(a.key)); n != 0 {
			return n
		}
		return strings.Compare(a.key, b.key)
	})
	return append(s, own...)
}

func (h HostSpec) confs() []string {
	confs := []string{"all", "default"}
	for _, i := range h.Interfaces {
		confs = append(confs, i.Name)
	}
	return confs
}

func general(key string) bool {
	key = strings.ReplaceAll(key, "/", ".")
	return !strings.Contains(key, ".conf.") || strings.Contains(key, ".conf.all.") || strings.Contains(key, ".conf.default.")
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// writeSysctls writes settings to the calling thread's namespace. Settings of IPv6 that do not exist are passed
// over where the kernel has no IPv6 at all.
func writeSysctls(settings []setting) error {
	_, err := os.Stat("/proc/sys/net/ipv6")
	noIPv6 := errors.Is(err, os.ErrNotExist)
	for _, s := range settings {
		if noIPv6 && strings.HasPrefix(strings.ReplaceAll(s.key, ".", "/"), "net/ipv6/") {
			continue
		}
		if err := writeSysctl(s.key, s.value); err != nil {
			return err
		}
	}
	return nil
}

func writeSysctl(key, value string) error {
	if !strings.Contains(key, "/") {
		key = strings.ReplaceAll(key, ".", "/")
	}
	if err := os.WriteFile(filepath.Join("/proc/sys", key), []byte(value), 0); err != nil {
		return fmt.Errorf("sysctl: %w", err)
	}
	return nil
}

// natRules is the nftables text for NATs, in a table of their own.
func natRules(nats []NAT) string {
	if len(nats) == 0 {
		return ""
	}
	var masquerade, filter strings.Builder
	for _, n := range nats {
		flags := ""
		if n.Ports == RandomPorts {
			flags = " random,fully-random"
		}
		fmt.Fprintf(&masquerade, "\t\toifname %q meta nfproto ipv4 masquerade%s\n", n.Out, flags)
		fmt.Fprintf(&filter, "\t\tiifname %q ct state established,related accept\n\t\tiifname %q drop\n", n.Out, n.Out)
	}
	return fmt.Sprintf(`table inet nat_router {
	chain postrouting {
		type nat hook postrouting priority srcnat; policy accept;
%s	}
	chain forward {
		type filter hook forward priority filter; policy accept;
%s	}
}
`, masquerade.String(), filter.String())
}

// linkTimeout is how long links may take to come up; it is some milliseconds.
const linkTimeout = 5 * time.Second

// awaitLinks polls until the interfaces carry packets and their IPv6 link-local addresses are there, so that later nothing
// changes by itself.
func awaitLinks(ctx context.Context, h HostSpec) error {
	ctx, cancel := context.WithTimeout(ctx, linkTimeout)
	defer cancel()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for _, iface := range h.Interfaces {
		for {
			up, err := linkReady(iface.Name)
			if err != nil {
				return fmt.Errorf("interface %s: %w", iface.Name, err)
			}
			if up {
				break
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return fmt.Errorf("interface %s does not come up: %w", iface.Name, ctx.Err())
			}
		}
	}
	return nil
}

func linkReady(name string) (bool, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return false, err
	}
	if link.Attrs().OperState != netlink.OperUp {
		return false, nil
	}
	off, err := os.ReadFile(filepath.Join("/proc/sys/net/ipv6/conf", name, "disable_ipv6"))
	if errors.Is(err, os.ErrNotExist) || strings.TrimSpace(string(off)) != "0" {
		return true, nil // no IPv6 on this interface: the MTU is too small, or it is switched off
	}
	addrs, err := netlink.AddrList(link, netlink.FAMILY_V6)
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(addrs, func(a netlink.Addr) bool {
		return a.IP.IsLinkLocalUnicast() && a.Flags&unix.IFA_F_TENTATIVE == 0
	}), nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func unspecified(a netip.Addr) netip.Addr {
	if a.Is6() {
		return netip.IPv6Unspecified()
	}
	return netip.IPv4Unspecified()
}
