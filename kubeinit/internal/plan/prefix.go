package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// masked says whether p is a prefix without host bits.
func masked(p netip.Prefix) bool { return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6() }

// within says whether all of p lies in of.
func within(p, of netip.Prefix) bool {
	return p.Bits() >= of.Bits() && of.Contains(p.Addr())
}

// distinct refuses prefixes that overlap.
func distinct(prefixes map[string]netip.Prefix) error {
	names := slices.SortedFunc(maps.Keys(prefixes), func(a, b string) int {
		return cmp.Or(prefixes[a].Addr().Compare(prefixes[b].Addr()), cmp.Compare(a, b))
	})
	for i := 1; i < len(names); i++ {
		// Masked prefixes overlap only if one holds the other, and then they are
		// neighbours in this order, or a smaller one between them overlaps as well.
		if a, b := prefixes[names[i-1]], prefixes[names[i]]; a.Overlaps(b) {
			return fmt.Errorf("%s of %s overlaps %s of %s", b, names[i], a, names[i-1])
		}
	}
	return nil
}

// part returns the n-th prefix of a length in p. n is small enough to be in it.
func part(p netip.Prefix, bits, n int) netip.Prefix {
	b := p.Addr().AsSlice()
	width := 8 * len(b)
	// n is added from the bit at which the prefix ends, upwards.
	for i, carry := (bits-1)/8, uint64(n)<<((width-bits)%8); i >= 0 && carry > 0; i-- {
		carry += uint64(b[i])
		b[i] = byte(carry)
		carry >>= 8
	}
	a, _ := netip.AddrFromSlice(b) // has the length that AsSlice gave it
	return netip.PrefixFrom(a, bits)
}

// parts is how many prefixes of a length p has; at most 2^20.
func parts(p netip.Prefix, bits int) int {
	if bits < p.Bits() {
		return 0
	}
	return 1 << min(bits-p.Bits(), 20)
}

// free returns the first prefix of a length in p that no prefix in use overlaps.
func free(p netip.Prefix, bits int, used []netip.Prefix) (netip.Prefix, bool) {
	for n := range parts(p, bits) {
		candidate := part(p, bits, n)
		if !slices.ContainsFunc(used, candidate.Overlaps) {
			return candidate, true
		}
	}
	return netip.Prefix{}, false
}

// tenth is the address that kubeadm gives to the cluster's DNS.
func tenth(p netip.Prefix) netip.Addr {
	a := p.Addr()
	for range 10 {
		a = a.Next()
	}
	return a
}
