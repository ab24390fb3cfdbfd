// Package fw keeps one nftables table of our own for an overlay interface, and
// finds firewalls of others that stand in its way.
//
// The table clamps the maximum segment size of TCP connections that are
// forwarded into and out of the overlay, because the hosts at both ends do not
// know that a piece of the path carries less than their LAN. On request it
// also limits what packets out of the overlay may be forwarded to. It has one
// base chain, "forward", at the priority of mangle:
//
//	oifname LINK, SYN            maximum segment size to that of the route
//	iifname LINK, SYN            the same; the kernel looks at the route back, too
//	iifname LINK, SYN, IPv4      ... and at most MTU - 40
//	iifname LINK, SYN, IPv6      ... and at most MTU - 60
//	iifname LINK                 jump to chain "inbound", if restricted
//
// Every attached interface has rules of the same kind, with its own number in
// both directions, and a jump to chain "attached" instead of "inbound".
//
// The rules with a number hold where the route back leads elsewhere, as with
// several gateways at one site. The kernel only ever lowers a segment size.
//
// Chain "inbound" returns for the allowed destinations and drops the rest, and
// so does chain "attached", for which the overlay and other attached interfaces
// are allowed too. An
// accept of ours would not help against a chain of somebody else that drops:
// every base chain of a hook has to let a packet pass. Diagnose names such
// chains and what to type.
//
// Everything happens in the network namespace of the calling thread.
package fw

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"strings"
)

// TableName returns the name of our table, of family inet, for an overlay
// interface.
func TableName(link string) string { return "planetmesh-" + link }

// ErrForeignTable says that a table with our name exists that we did not make.
// It is left alone.
var ErrForeignTable = errors.New("table of that name was made by somebody else")

// ErrClosed is returned by Apply after Close.
var ErrClosed = errors.New("firewall closed")

// Config says whose firewall it is.
type Config struct {
	// Link is the name of the overlay interface. It need not exist. Required.
	Link string
	// Logger gets what is worth telling; nil discards it.
	Logger *slog.Logger
}

// Desired is the whole state of our table.
type Desired struct {
	// MTU of the overlay interface in bytes, for the clamp that does not
	// depend on a route; 0 for none. At least 576.
	MTU int
	// Restrict says that packets out of the overlay are forwarded to
	// Prefixes only. Packets for this host itself are not concerned.
	Restrict bool
	// Prefixes are the destinations that are allowed with Restrict, normally
	// what this site announces. Without Restrict they mean nothing.
	Prefixes []netip.Prefix
	// Attached are interfaces with routers behind them.
	Attached []Attached
}

// Attached is an interface with a router behind it that may use the overlay.
type Attached struct {
	// Link is the name of the interface. It need not exist.
	Link string
	// MTU in bytes, for the clamp; at least 576.
	MTU int
}

func (d Desired) validate() error {
	var errs []error
	if d.MTU != 0 && (d.MTU < minMTU || d.MTU > maxMTU) {
		errs = append(errs, fmt.Errorf("mtu %d: want 0 or %d to %d", d.MTU, minMTU, maxMTU))
	}
	for _, a := range d.Attached {
		if a.MTU < minMTU || a.MTU > maxMTU {
			errs = append(errs, fmt.Errorf("mtu %d of %s: want %d to %d", a.MTU, a.Link, minMTU, maxMTU))
		}
		errs = append(errs, checkLink(a.Link))
	}
	for _, p := range d.Prefixes {
		if !p.IsValid() || p.Addr().Is4In6() || p != p.Masked() {
			errs = append(errs, fmt.Errorf("prefix %v: not a prefix", p))
		}
	}
	return errors.Join(errs...)
}

// minMTU is what every IPv4 host must be able to receive (RFC 791, section
// 3.1), maxMTU the largest IP packet.
const (
	minMTU = 576
	maxMTU = 65535
)

// Headers without options before a TCP segment: IPv4 20 (RFC 791), IPv6 40
// (RFC 8200), TCP 20 bytes (RFC 9293).
const (
	headers4 = 20 + 20
	headers6 = 40 + 20
)

// digest names a desired state. It is part of the comment of every rule of
// ours, so that a table tells which state it is.
func (d Desired) digest() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%s %d %t %v %v", tableVersion, d.MTU, d.Restrict, d.Prefixes, d.Attached))
	return fmt.Sprintf("%x", sum[:6])
}

// tableVersion changes whenever the same desired state is made into other rules.
const tableVersion = "1"

// commentPrefix begins the comment of every rule of ours.
const commentPrefix = "planetmesh "

// comment is that of rule n out of the given number.
func (d Desired) comment(n, of int) string {
	return fmt.Sprintf("%s%s %d/%d", commentPrefix, d.digest(), n, of)
}

// Finding is a foreign firewall chain that drops packets which are forwarded
// into or out of the overlay.
type Finding struct {
	// Family and Table are the nftables names, as in `nft list table`.
	// For rules of the old iptables kernel interface the family is
	// "iptables-legacy" or "ip6tables-legacy".
	Family, Table string
	// Chain is the base chain at the forward hook.
	Chain string
	// Certain is false if some rule accepts a part of the packets, or may
	// do so, or if the rules could not be read.
	Certain bool
	// Why is one line for people.
	Why string
	// Cure is the exact command to type in a shell.
	Cure string
}

// String is one line that names the chain, the reason and the cure.
func (f Finding) String() string {
	return fmt.Sprintf("%s %s %s: %s; cure: %s", f.Family, f.Table, f.Chain, f.Why, f.Cure)
}

// checkLink refuses what cannot be an interface name, before it gets into rules
// and commands.
func checkLink(link string) error {
	if link == "" || len(link) > 15 || link == "." || link == ".." ||
		strings.ContainsFunc(link, func(r rune) bool { return r <= ' ' || r > '~' || strings.ContainsRune("/:\"'\\*$`;&|<>(){}", r) }) {
		return fmt.Errorf("link %q: not an interface name that can stand in a rule", link)
	}
	return nil
}
