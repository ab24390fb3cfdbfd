package engine

import (
	"iter"
	"net/netip"
	"slices"
	"sort"
)

// index finds the prefixes that overlap a prefix without looking at all.
type index[T any] struct {
	entries []entry[T]
	first   map[netip.Prefix]int // of equal prefixes, the first in entries
	lengths [2][129]bool         // which prefix lengths occur, by family
}

type entry[T any] struct {
	prefix netip.Prefix
	value  T
}

// newIndex takes over entries. Prefixes must be well formed.
func newIndex[T any](entries []entry[T]) *index[T] {
	slices.SortStableFunc(entries, func(a, b entry[T]) int { return a.prefix.Compare(b.prefix) })
	x := &index[T]{entries: entries, first: make(map[netip.Prefix]int, len(entries))}
	for i, e := range slices.Backward(entries) {
		x.first[e.prefix] = i
		x.lengths[family(e.prefix)][e.prefix.Bits()] = true
	}
	return x
}

// covering yields the values of all prefixes that contain p or equal it, the
// shortest first.
func (x *index[T]) covering(p netip.Prefix) iter.Seq[T] {
	return func(yield func(T) bool) {
		for bits, occurs := range x.lengths[family(p)][:p.Bits()+1] {
			if !occurs {
				continue
			}
			q := netip.PrefixFrom(p.Addr(), bits).Masked()
			i, ok := x.first[q]
			if !ok {
				continue
			}
			for ; i < len(x.entries) && x.entries[i].prefix == q; i++ {
				if !yield(x.entries[i].value) {
					return
				}
			}
		}
	}
}

// overlapping yields the values of all prefixes that share an address with p.
func (x *index[T]) overlapping(p netip.Prefix) iter.Seq[T] {
	return func(yield func(T) bool) {
		for v := range x.covering(p) {
			if !yield(v) {
				return
			}
		}
		// What lies inside of p follows p in the order of prefixes.
		i := sort.Search(len(x.entries), func(i int) bool { return x.entries[i].prefix.Compare(p) > 0 })
		for ; i < len(x.entries) && p.Contains(x.entries[i].prefix.Addr()); i++ {
			if !yield(x.entries[i].value) {
				return
			}
		}
	}
}

// overlap returns the value of one prefix that shares an address with p: of
// those that contain p the shortest, else the first inside of p.
func (x *index[T]) overlap(p netip.Prefix) (found T, ok bool) {
	x.overlapping(p)(func(v T) bool {
		found, ok = v, true
		return false
	})
	return found, ok
}

func family(p netip.Prefix) int {
	if p.Addr().Is4() {
		return 0
	}
	return 1
}

// wellFormed reports whether p is a prefix without host bits that is not
// written as an IPv4-mapped IPv6 address.
func wellFormed(p netip.Prefix) bool {
	return p.IsValid() && p == p.Masked() && !p.Addr().Is4In6()
}
