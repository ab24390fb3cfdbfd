package record

import "net/netip"

// ground says which sites hold an address, without looking at all grants: one
// map lookup for each prefix length that occurs. The zero value is empty.
type ground struct {
	sites   map[netip.Prefix]map[string]int // how many gateways of a site were granted a prefix
	lengths [2][129]int                     // how many such prefixes there are, by family and length
}

// add counts the grants of a record by n: 1, or -1 to take them back.
func (g *ground) add(r *Record, n int) {
	if g.sites == nil {
		g.sites = make(map[netip.Prefix]map[string]int)
	}
	site := r.Chain.Certificate.Site
	for _, grant := range r.Chain.Certificate.Grants {
		p := grant.Prefix
		holders := g.sites[p]
		if holders == nil {
			holders = make(map[string]int)
			g.sites[p] = holders
			g.lengths[family(p.Addr())][p.Bits()]++
		}
		if holders[site] += n; holders[site] == 0 {
			delete(holders, site)
		}
		if len(holders) == 0 {
			delete(g.sites, p)
			g.lengths[family(p.Addr())][p.Bits()]--
		}
	}
}

// at calls yield for sites that were granted a prefix with addr in it, until
// that returns false. A site may come more than once.
func (g *ground) at(addr netip.Addr, yield func(site string) bool) {
	if addr.Zone() != "" {
		return // no prefix contains it
	}
	for bits, n := range g.lengths[family(addr)][:addr.BitLen()+1] {
		if n == 0 {
			continue
		}
		for site := range g.sites[netip.PrefixFrom(addr, bits).Masked()] {
			if !yield(site) {
				return
			}
		}
	}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}
