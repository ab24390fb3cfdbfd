package netlab

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
)

// String draws the topology for people: every network with what is plugged into it, then what is special about hosts.
//
//	lan20  192.168.20.0/24
//	├── gw20    eth1  192.168.20.1/24
//	├── node01  eth0  192.168.20.101/24  default via 192.168.20.1
//	└── node02  eth0  192.168.20.102/24  default via 192.168.20.1
func (t Topology) String() string {
	var b strings.Builder
	for _, n := range t.Nets {
		fmt.Fprintln(&b, strings.TrimRight(n.Name+"  "+joinPrefixes(n.Prefixes), " "))
		drawNet(&b, n.Name, t.Hosts)
	}
	for _, h := range t.Hosts {
		if traits := h.traits(); len(traits) > 0 {
			fmt.Fprintf(&b, "%s: %s\n", h.Name, strings.Join(traits, "; "))
		}
	}
	return b.String()
}

func drawNet(b *strings.Builder, name string, hosts []HostSpec) {
	var rows []string
	for _, h := range hosts {
		for _, i := range h.Interfaces {
			if i.Net == name {
				rows = append(rows, h.row(i))
			}
		}
	}
	var table strings.Builder
	tw := tabwriter.NewWriter(&table, 0, 0, 2, ' ', 0)
	for i, row := range rows {
		branch := "├── "
		if i == len(rows)-1 {
			branch = "└── "
		}
		fmt.Fprintln(tw, branch+row)
	}
	tw.Flush() //nolint:errcheck // writes to memory
	for line := range strings.Lines(table.String()) {
		fmt.Fprintln(b, strings.TrimRight(line, " \n"))
	}
}

// row is one interface: host, name, addresses, next hops and MTU in columns.
func (h HostSpec) row(i Iface) string {
	var notes []string
	for _, g := range h.Gateways {
		if onLink(i.Addrs, g) {
			notes = append(notes, "default via "+g.String())
		}
	}
	for _, r := range h.Routes {
		if onLink(i.Addrs, r.Via) {
			notes = append(notes, r.Dst.String()+" via "+r.Via.String())
		}
	}
	if i.MTU != 0 {
		notes = append(notes, fmt.Sprintf("mtu %d", i.MTU))
	}
	if i.Out == i.In && i.Out != (Link{}) {
		notes = append(notes, fmt.Sprintf("both ways: %v", i.Out))
	} else {
		for _, l := range []struct {
			name string
			link Link
		}{{"out", i.Out}, {"in", i.In}} {
			if l.link != (Link{}) {
				notes = append(notes, fmt.Sprintf("%s: %v", l.name, l.link))
			}
		}
	}
	return strings.Join([]string{h.Name, i.Name, joinPrefixes(i.Addrs), strings.Join(notes, ", ")}, "\t")
}

func (h HostSpec) traits() []string {
	var traits []string
	if h.Forward {
		traits = append(traits, "forwards")
	}
	for _, n := range h.NAT {
		traits = append(traits, fmt.Sprintf("NAT out of %s, %v", n.Out, n.Ports))
	}
	if h.Firewall != "" {
		traits = append(traits, fmt.Sprintf("firewall of %d lines", strings.Count(strings.TrimSpace(h.Firewall), "\n")+1))
	}
	if h.NoIPv6 {
		traits = append(traits, "no IPv6")
	}
	var sysctls []string
	for key, value := range h.Sysctls {
		sysctls = append(sysctls, key+"="+value)
	}
	slices.Sort(sysctls)
	return append(traits, sysctls...)
}
