package preflight

import (
	"cmp"
	"fmt"
	"slices"
)

// scope is a set of directions that can be named in few words.
type scope struct {
	directions []Direction
	// from and to name the ends: "site a", "every host", "node01". Of a scope
	// without direction it is between the two. to is empty if from names all.
	from, to string
	// hosts are those that the fault is probably about; empty: both ends.
	hosts []string
}

// phrase is "from a to b", or "between a and b".
func (s *scope) phrase(directed bool) string {
	if s.to == "" {
		return "between " + s.from
	}
	if directed {
		return "from " + s.from + " to " + s.to
	}
	return "between " + s.from + " and " + s.to
}

// targets are the hosts at the receiving end.
func (s *scope) targets() []string {
	var hosts []string
	for _, d := range s.directions {
		if !slices.Contains(hosts, d.To) {
			hosts = append(hosts, d.To)
		}
	}
	return hosts
}

// scopes names the affected ones of the directions that could have been
// affected, with as few scopes as there are larger things to name: all hosts, those of
// one site, two sites, one site and all others, one host and all others. A larger thing is named only
// if all its directions are affected. Where directed is false the
// caller gives both directions of what is affected.
func (j *judge) scopes(affected, possible []Direction, directed bool) []scope {
	if len(affected) == 0 {
		return nil
	}
	is := make(map[Direction]bool, len(affected))
	for _, d := range affected {
		is[d] = true
	}
	left := make(map[Direction]bool, len(affected))
	for _, d := range affected {
		left[d] = true
	}
	candidates := slices.DeleteFunc(j.candidates(possible, directed), func(s scope) bool {
		return slices.ContainsFunc(s.directions, func(d Direction) bool { return !is[d] })
	})
	var named []scope
	for {
		best, most := -1, 1
		if !directed {
			most = 2 // both directions of one pair
		}
		for i, c := range candidates {
			n := 0
			for _, d := range c.directions {
				if left[d] {
					n++
				}
			}
			if n > most {
				best, most = i, n
			}
		}
		if best < 0 {
			break
		}
		named = append(named, candidates[best])
		for _, d := range candidates[best].directions {
			delete(left, d)
		}
	}
	return append(named, j.singles(affected, left, directed)...)
}

// singles names what is left one by one.
func (j *judge) singles(affected []Direction, left map[Direction]bool, directed bool) []scope {
	var named []scope
	for _, d := range affected {
		if !left[d] || !directed && j.order[d.From] > j.order[d.To] {
			continue
		}
		s := scope{directions: []Direction{d}, from: d.From, to: d.To}
		if !directed {
			s.directions = append(s.directions, Direction{d.To, d.From})
		}
		named = append(named, s)
	}
	return named
}

// candidates are all larger things, in an order that prefers sites to hosts.
func (j *judge) candidates(possible []Direction, directed bool) []scope {
	groups := make(map[[2]string]*scope)
	var order [][2]string
	put := func(d Direction, from, to string, about ...string) {
		key := [2]string{from, to}
		if !directed && to < from {
			key = [2]string{to, from}
		}
		g := groups[key]
		if g == nil {
			g = &scope{from: key[0], to: key[1], hosts: about}
			groups[key] = g
			order = append(order, key)
		}
		g.directions = append(g.directions, d)
	}
	const sites, hosts = "all other sites", "all other hosts"
	for pass := range 4 {
		for _, d := range possible {
			from, to := j.siteOf(d.From), j.siteOf(d.To)
			if pass == 0 {
				put(d, "all hosts", "")
			}
			switch {
			case pass == 0 && from == to:
				put(d, "the hosts of site "+from, "")
			case pass == 0 && from != to:
				put(d, "site "+from, "site "+to)
			case pass == 1 && from != to:
				put(d, "site "+from, sites)
				put(d, sites, "site "+to)
			case pass == 2:
				put(d, d.From, "site "+to, d.From)
				put(d, "site "+from, d.To, d.To)
			case pass == 3:
				put(d, d.From, hosts, d.From)
				put(d, hosts, d.To, d.To)
			}
		}
	}
	var all []scope
	for _, key := range order {
		g := groups[key]
		if !directed { // "site a" and "all other sites", not the other way round
			if g.from == sites || g.from == hosts || g.from == "" {
				g.from, g.to = g.to, g.from
			}
		}
		all = append(all, *g)
	}
	return all
}

func (j *judge) siteOf(host string) string { return j.reports[host].Site }

// addNetwork notes a fault of the network for each scope. The text may hold one %s for
// the phrase; cure gets the scope.
func (j *judge) addNetwork(id string, severity Severity, scopes []scope, directed bool, text string, cure func(*scope) string) {
	for _, s := range scopes {
		f := Fault{ID: id, Severity: severity, Pairs: s.directions, Text: fmt.Sprintf(text, s.phrase(directed)), Cure: cure(&s)}
		slices.SortFunc(f.Pairs, func(a, b Direction) int {
			return cmp.Or(j.order[a.From]-j.order[b.From], j.order[a.To]-j.order[b.To])
		})
		if f.Hosts = slices.Clone(s.hosts); len(f.Hosts) == 0 {
			for _, d := range f.Pairs {
				f.Hosts = append(f.Hosts, d.From, d.To)
			}
		}
		slices.SortFunc(f.Hosts, func(a, b string) int { return j.order[a] - j.order[b] })
		f.Hosts = slices.Compact(f.Hosts)
		j.faults = append(j.faults, f)
	}
}
