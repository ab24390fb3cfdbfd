package preflight

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// Mesh is the part of meshd's status that concerns a cluster.
type Mesh struct {
	Site      string         `json:"site"`
	Gateway   string         `json:"gateway"`
	MTU       int            `json:"mtu,omitempty"`
	Announced []netip.Prefix `json:"announced,omitempty"`
	Routes    []MeshRoute    `json:"routes,omitempty"`
	Peers     []MeshPeer     `json:"peers,omitempty"`
}

// MeshRoute is a prefix of another site.
type MeshRoute struct {
	Prefix netip.Prefix `json:"prefix"`
	Site   string       `json:"site"`
}

// MeshPeer is another gateway.
type MeshPeer struct {
	Gateway string        `json:"gateway"`
	Site    string        `json:"site"`
	State   string        `json:"state"`
	Relayed bool          `json:"relayed,omitempty"`
	RTT     time.Duration `json:"rttNanos,omitempty"`
}

// meshStatus is what "meshd status --json" prints, version 1, as far as it is of use.
type meshStatus struct {
	Version int `json:"version"`
	Self    struct {
		Gateway string `json:"gateway"`
		Site    string `json:"site"`
		MTU     int    `json:"mtu"`
		Routes  []struct {
			Prefix netip.Prefix `json:"prefix"`
		} `json:"routes"`
	} `json:"self"`
	Peers  []MeshPeer `json:"peers"`
	Routes []struct {
		MeshRoute
		Local bool `json:"local"`
	} `json:"routes"`
}

func parseMesh(data []byte) (*Mesh, error) {
	var s meshStatus
	if err := json.Unmarshal(data, &s); err != nil {
		return nil, fmt.Errorf("status of meshd: %w", err)
	}
	if s.Version != 1 {
		return nil, fmt.Errorf("status of meshd has version %d, want 1", s.Version)
	}
	m := &Mesh{Site: s.Self.Site, Gateway: s.Self.Gateway, MTU: s.Self.MTU, Peers: s.Peers}
	for _, r := range s.Self.Routes {
		m.Announced = append(m.Announced, r.Prefix)
	}
	for _, r := range s.Routes {
		if !r.Local {
			m.Routes = append(m.Routes, r.MeshRoute)
		}
	}
	return m, nil
}

// network takes a line of ip, ss or nft.
func (p *factsParser) network(key, value string) error {
	f := p.f
	switch key {
	case "address":
		a, err := parseAddress(value)
		if err != nil || len(f.Addresses) >= maxEntry {
			return errors.Join(err)
		}
		f.Addresses = append(f.Addresses, a)
	case "link":
		name, mac := parseLink(value)
		if mac != "" && len(f.MACs) < maxEntry {
			f.MACs[name] = mac
		}
	case "route", "route6":
		r, ok, err := parseRoute(value, key == "route6")
		if err != nil || !ok || len(f.Routes) >= maxEntry {
			return err
		}
		f.Routes = append(f.Routes, r)
	case "listen":
		l, err := parseListener(value)
		if err != nil || len(f.Listening) >= maxEntry {
			return err
		}
		f.Listening = append(f.Listening, l)
	case "nft":
		p.chain(value)
	case "legacy":
		p.old = true
	}
	return nil
}

// parseAddress reads a line of "ip -o address":
//
//	2: eth0    inet 10.0.0.1/24 brd 10.0.0.255 scope global eth0\ valid_lft ...
func parseAddress(line string) (Address, error) {
	fields := strings.Fields(line)
	if len(fields) < 4 || fields[2] != "inet" && fields[2] != "inet6" {
		return Address{}, fmt.Errorf("%.80q is no address", line)
	}
	text := fields[3]
	if len(fields) > 5 && fields[4] == "peer" { // point to point: the prefix stands with the peer
		if _, bits, ok := strings.Cut(fields[5], "/"); ok && !strings.Contains(text, "/") {
			text += "/" + bits
		}
	}
	if !strings.Contains(text, "/") {
		text += map[string]string{"inet": "/32", "inet6": "/128"}[fields[2]]
	}
	prefix, err := netip.ParsePrefix(text)
	if err != nil {
		return Address{}, fmt.Errorf("%.80q is no address", line)
	}
	if !isName(fields[1]) {
		return Address{}, fmt.Errorf("%.80q names no interface", line)
	}
	return Address{Interface: fields[1], Prefix: prefix, Refused: strings.Contains(line, " dadfailed ")}, nil
}

// isName says whether a word can stand in a command as it is: names of
// interfaces, tables and chains do, and what a hostile host says may not.
func isName(word string) bool {
	return word != "" && len(word) <= 64 && !strings.HasPrefix(word, "-") && strings.Trim(word, nameLetters) == ""
}

const nameLetters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-@:"

// parseLink reads a line of "ip -o link" and returns the interface's name and
// hardware address; the latter is empty where there is none.
func parseLink(line string) (name, mac string) {
	fields := strings.Fields(line)
	if len(fields) < 2 {
		return "", ""
	}
	name, _, _ = strings.Cut(strings.TrimSuffix(fields[1], ":"), "@") // what follows is the other end
	for i, field := range fields[:len(fields)-1] {
		if field == "link/ether" {
			return name, fields[i+1]
		}
	}
	return name, ""
}

// parseRoute reads a line of "ip route". Lines that name no unicast route, such as
// further next hops, are not ok.
func parseRoute(line string, ipv6 bool) (r HostRoute, ok bool, err error) {
	fields := strings.Fields(line)
	if len(fields) == 0 || fields[0] == "nexthop" {
		return HostRoute{}, false, nil
	}
	switch fields[0] {
	case "unicast":
		fields = fields[1:]
	case "blackhole", "unreachable", "prohibit", "throw", "multicast", "local", "broadcast", "anycast":
		return HostRoute{}, false, nil
	}
	if len(fields) == 0 {
		return HostRoute{}, false, nil
	}
	if r.Prefix, err = parseDestination(fields[0], ipv6); err != nil {
		return HostRoute{}, false, fmt.Errorf("%.80q is no route", line)
	}
	for i, field := range fields[:len(fields)-1] {
		switch field {
		case "via":
			next := fields[i+1]
			if next == "inet6" && i+2 < len(fields) {
				next = fields[i+2]
			}
			if r.Via, err = netip.ParseAddr(next); err != nil {
				return HostRoute{}, false, fmt.Errorf("%.80q is no route", line)
			}
		case "dev":
			r.Device = fields[i+1]
		case "proto":
			r.Protocol = fields[i+1]
		}
	}
	return r, true, nil
}

func parseDestination(text string, ipv6 bool) (netip.Prefix, error) {
	if text == "default" {
		if ipv6 {
			return netip.PrefixFrom(netip.IPv6Unspecified(), 0), nil
		}
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0), nil
	}
	if !strings.Contains(text, "/") {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return netip.Prefix{}, err
		}
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	return netip.ParsePrefix(text)
}

// parseListener reads a line of "ss -Htlnp":
//
//	LISTEN 0 4096 127.0.0.53%lo:53 0.0.0.0:* users:(("systemd-resolve",pid=1,fd=14))
func parseListener(line string) (Listener, error) {
	fields := strings.Fields(line)
	if len(fields) < 5 {
		return Listener{}, fmt.Errorf("%.80q is no listener", line)
	}
	colon := strings.LastIndexByte(fields[3], ':')
	if colon < 0 {
		return Listener{}, fmt.Errorf("%.80q is no listener", line)
	}
	port, err := strconv.ParseUint(fields[3][colon+1:], 10, 16)
	if err != nil {
		return Listener{}, fmt.Errorf("%.80q has no port", line)
	}
	l := Listener{Port: uint16(port), Addr: netip.IPv6Unspecified()}
	text, _, _ := strings.Cut(strings.Trim(fields[3][:colon], "[]"), "%")
	if text = strings.Trim(text, "[]"); text != "*" {
		if l.Addr, err = netip.ParseAddr(text); err != nil {
			return Listener{}, fmt.Errorf("%.80q has no address", line)
		}
	}
	if _, after, ok := strings.Cut(line, `(("`); ok {
		l.Process, _, _ = strings.Cut(after, `"`)
	}
	return l, nil
}

// chain takes a line of "nft list chains": "table ip filter {", "chain FORWARD {"
// and "type filter hook forward priority filter; policy drop;".
func (p *factsParser) chain(line string) {
	fields := strings.Fields(line)
	for _, word := range fields[:min(len(fields), 3)] {
		if word != "{" && word != "}" && fields[0] != "type" && !isName(word) {
			p.table = Chain{Family: p.table.Family} // it drops all the same, without a name
			return
		}
	}
	switch {
	case len(fields) >= 3 && fields[0] == "table":
		p.table = Chain{Family: fields[1], Table: fields[2]}
	case len(fields) >= 2 && fields[0] == "chain":
		p.table.Chain = fields[1]
	case strings.Contains(line, "hook forward") && strings.Contains(line, "policy drop") && len(p.f.ForwardDrops) < maxEntry:
		p.f.ForwardDrops = append(p.f.ForwardDrops, p.table)
	}
}
