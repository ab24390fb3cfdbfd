package record

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// TestGroundIsWhatGrantsSay compares the index with a look at all grants while records come and go.
func TestGroundIsWhatGrantsSay(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2)) //nolint:gosec // repeatable on purpose
	address := func() netip.Addr {
		if random.IntN(2) == 0 {
			return netip.AddrFrom4([4]byte{10, byte(random.IntN(2)), byte(random.IntN(4)), byte(random.IntN(256))})
		}
		return netip.AddrFrom16([16]byte{0xfd, 15: byte(random.IntN(256)), 3: byte(random.IntN(4))})
	}
	var all []*Record
	var g ground
	for range 2000 {
		if len(all) > 0 && random.IntN(2) == 0 {
			i := random.IntN(len(all))
			g.add(all[i], -1)
			all = slices.Delete(all, i, i+1)
		} else {
			r := &Record{Chain: trust.Chain{Certificate: &trust.Certificate{Site: string(rune('a' + random.IntN(3)))}}}
			for range random.IntN(4) {
				a := address()
				p, err := a.Prefix(random.IntN(a.BitLen() + 1))
				if err != nil {
					t.Fatal(err)
				}
				r.Chain.Certificate.Grants = append(r.Chain.Certificate.Grants, trust.Grant{Prefix: p})
			}
			g.add(r, 1)
			all = append(all, r)
		}
		addr := address()
		var got, want []string
		g.at(addr, func(site string) bool { got = append(got, site); return true })
		for _, r := range all {
			for _, grant := range r.Chain.Certificate.Grants {
				if grant.Prefix.Contains(addr) {
					want = append(want, r.Chain.Certificate.Site)
				}
			}
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(slices.Compact(got), slices.Compact(want)) {
			t.Fatalf("%v is granted to %v, want %v", addr, got, want)
		}
	}
	for _, r := range all {
		g.add(r, -1)
	}
	if len(g.sites) > 0 || g.lengths != [2][129]int{} {
		t.Errorf("%d prefixes are left of nobody", len(g.sites))
	}
}

func TestGroundHoldsNoAddressWithZone(t *testing.T) {
	var g ground
	g.add(&Record{Chain: trust.Chain{Certificate: &trust.Certificate{Site: "a", Grants: []trust.Grant{{Prefix: netip.MustParsePrefix("fe80::/10")}}}}}, 1)
	g.at(netip.MustParseAddr("fe80::1%eth0"), func(string) bool { t.Error("found"); return true })
}
