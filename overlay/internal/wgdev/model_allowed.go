package wgdev

import (
	"encoding/binary"
	"maps"
	"net/netip"
	"slices"
)

// allowed says which peer an address belongs to: that with the longest prefix.
type allowed struct {
	owner map[netip.Prefix]*modelPeer
	count [2][129]int32 // prefixes by family and length
	sizes [2][]int      // lengths in use, descending
}

func newAllowed() *allowed { return &allowed{owner: make(map[netip.Prefix]*modelPeer)} }

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

func (a *allowed) set(p netip.Prefix, peer *modelPeer) {
	if a.owner[p] == nil {
		a.add(p, 1)
	}
	a.owner[p] = peer
}

// remove takes a prefix away from a peer, if it has it.
func (a *allowed) remove(p netip.Prefix, peer *modelPeer) {
	if peer != nil && a.owner[p] == peer {
		delete(a.owner, p)
		a.add(p, -1)
	}
}

func (a *allowed) removeAll(peer *modelPeer) {
	maps.DeleteFunc(a.owner, func(p netip.Prefix, owner *modelPeer) bool {
		if owner == peer {
			a.add(p, -1)
		}
		return owner == peer
	})
}

func (a *allowed) add(p netip.Prefix, n int32) {
	f := family(p.Addr())
	count := &a.count[f][p.Bits()]
	before := *count > 0
	*count += n
	if before == (*count > 0) {
		return
	}
	a.sizes[f] = a.sizes[f][:0]
	for bits, n := range slices.Backward(a.count[f][:]) {
		if n > 0 {
			a.sizes[f] = append(a.sizes[f], bits)
		}
	}
}

// lookup returns nil if nobody owns the address.
func (a *allowed) lookup(addr netip.Addr) *modelPeer {
	for _, bits := range a.sizes[family(addr)] {
		if p, err := addr.Prefix(bits); err == nil {
			if peer := a.owner[p]; peer != nil {
				return peer
			}
		}
	}
	return nil
}

// Sizes of IP headers: RFC 791, section 3.1; RFC 8200, section 3.
const (
	ipv4Header = 20
	ipv6Header = 40
)

// destination is where an IP packet goes; not valid if it is none.
func destination(b []byte) netip.Addr {
	switch {
	case len(b) >= ipv4Header && b[0]>>4 == 4:
		return netip.AddrFrom4([4]byte(b[16:]))
	case len(b) >= ipv6Header && b[0]>>4 == 6:
		return netip.AddrFrom16([16]byte(b[24:]))
	}
	return netip.Addr{}
}

// source is where an IP packet comes from, and the packet without the padding
// behind it. The address is not valid if it is no IP packet, or cut off.
func source(b []byte) (netip.Addr, []byte) {
	switch {
	case len(b) >= ipv4Header && b[0]>>4 == 4:
		if n := int(binary.BigEndian.Uint16(b[2:])); n >= ipv4Header && n <= len(b) {
			return netip.AddrFrom4([4]byte(b[12:])), b[:n]
		}
	case len(b) >= ipv6Header && b[0]>>4 == 6:
		if n := ipv6Header + int(binary.BigEndian.Uint16(b[4:])); n <= len(b) {
			return netip.AddrFrom16([16]byte(b[8:])), b[:n]
		}
	}
	return netip.Addr{}, nil
}
