package hostnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Facts returns what the host has without us. It returns ErrClosed after Close,
// and otherwise errors of netlink only.
func (h *Host) Facts() (Facts, error) {
	if err := h.take(context.Background()); err != nil {
		return Facts{}, err
	}
	defer h.release()
	f, err := h.facts()
	if err != nil {
		return Facts{}, fmt.Errorf("host network: %w", err)
	}
	return f, nil
}

func (h *Host) facts() (Facts, error) {
	f := Facts{IPv6: h.sys.ipv6(h.cfg.Link)}
	links, err := retry(h.nl.LinkList)
	if err != nil {
		return Facts{}, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return h.nl.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return Facts{}, fmt.Errorf("list addresses: %w", err)
	}
	names := make(map[int]string, len(links))
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
		f.Interfaces = append(f.Interfaces, h.interfaceOf(l.Attrs(), addrs))
	}
	slices.SortFunc(f.Interfaces, func(a, b Interface) int { return cmp.Compare(a.Index, b.Index) })
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retry(func() ([]netlink.Route, error) { return h.nl.RouteListFiltered(family, &netlink.Route{}, 0) })
		if err != nil {
			return Facts{}, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			hr := hostRoute(r, family, names)
			switch {
			case r.Protocol == RouteProtocol && hr.Interface == h.cfg.Link:
			case h.ownsLAN(hr):
				f.LAN = append(f.LAN, hr)
			default:
				f.Routes = append(f.Routes, hr)
			}
		}
	}
	return f, nil
}

func (h *Host) interfaceOf(a *netlink.LinkAttrs, addrs []netlink.Addr) Interface {
	i := Interface{
		Name:     a.Name,
		Index:    a.Index,
		Up:       a.Flags&net.FlagUp != 0,
		MTU:      a.MTU,
		Loopback: a.Flags&net.FlagLoopback != 0,
		Ours:     a.Name == h.cfg.Link,
	}
	for _, addr := range addrs {
		if addr.LinkIndex != a.Index || addr.IPNet == nil {
			continue
		}
		i.Addresses = append(i.Addresses, Address{
			Prefix: prefixOf(addr.IPNet, netlink.FAMILY_ALL),
			// An optimistic address is tentative too, but in use.
			Tentative: addr.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 &&
				addr.Flags&unix.IFA_F_OPTIMISTIC == 0,
			Deprecated: addr.Flags&unix.IFA_F_DEPRECATED != 0,
			// The flag is called IFA_F_SECONDARY for IPv4 and means
			// something harmless there.
			Temporary: addr.Flags&unix.IFA_F_TEMPORARY != 0 && addr.IP.To4() == nil,
		})
	}
	return i
}

func hostRoute(r netlink.Route, family int, names map[int]string) HostRoute {
	hr := HostRoute{
		Prefix:    prefixOf(r.Dst, family),
		Interface: names[r.LinkIndex],
		NextHop:   addrOf(r.Gw),
		Metric:    r.Priority,
		Protocol:  int(r.Protocol),
		Scope:     int(r.Scope),
	}
	if via, ok := r.Via.(*netlink.Via); ok {
		hr.NextHop = addrOf(via.Addr)
	}
	if len(r.MultiPath) > 0 {
		hr.Interface, hr.NextHop = names[r.MultiPath[0].LinkIndex], addrOf(r.MultiPath[0].Gw)
	}
	return hr
}

func addrOf(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// dumpTries is how often a listing is taken again that changed while the kernel
// was writing it.
const dumpTries = 8

// retry repeats a netlink listing that was interrupted by a change.
func retry[T any](list func() (T, error)) (T, error) {
	var result T
	var err error
	for range dumpTries {
		if result, err = list(); !errors.Is(err, netlink.ErrDumpInterrupted) {
			break
		}
	}
	return result, err
}
