package preflight

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"unicode"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// Fault is something that keeps the cluster from working, or may.
type Fault struct {
	// ID names the kind; it is stable.
	ID       string   `json:"id"`
	Severity Severity `json:"severity"`
	// Hosts are those that the fault concerns, in the order of the inventory; empty
	// for one of the inventory itself.
	Hosts []string `json:"hosts,omitempty"`
	// Pairs are the directions that it concerns, for a fault of the network.
	Pairs []Direction `json:"pairs,omitempty"`
	// Text is the cause in one sentence, and Cure what to type or to do.
	Text string `json:"text"`
	Cure string `json:"cure"`
}

// Direction is the way from one host to another.
type Direction struct {
	From string `json:"from"`
	To   string `json:"to"`
}

// Severity says how much a fault weighs.
type Severity string

// The severities.
const (
	SeverityFault   Severity = "fault"   // nothing is to be built before it is cured
	SeverityWarning Severity = "warning" // the cluster works, less well or less surely
	SeverityNote    Severity = "note"    // worth to know
)

func (s Severity) rank() int {
	return slices.Index([]Severity{SeverityFault, SeverityWarning, SeverityNote}, s)
}

// Faults judges a report. It looks at nothing else, so the same report and inventory
// always have the same faults, worst first. Where all pairs of hosts between two sites
// have the same fault, it is one that names the sites.
func Faults(r *Report, inv *inventory.Inventory) []Fault {
	j := newJudge(r, inv)
	j.inventory()
	for i := range inv.Hosts {
		j.host(&inv.Hosts[i])
	}
	j.duplicates()
	j.overlaps()
	j.mesh()
	j.network()
	j.clocks()
	for i := range j.faults {
		j.faults[i].Text, j.faults[i].Cure = plain(j.faults[i].Text), plain(j.faults[i].Cure)
	}
	slices.SortStableFunc(j.faults, func(a, b Fault) int {
		return cmp.Or(a.Severity.rank()-b.Severity.rank(), strings.Compare(a.ID, b.ID))
	})
	return j.faults
}

// judge collects faults.
type judge struct {
	report  *Report
	inv     *inventory.Inventory
	order   map[string]int // place of a host in the inventory
	pairs   map[Direction]*Pair
	reports map[string]*HostReport
	ours    bool // kubeinit has worked on some host
	faults  []Fault
}

func newJudge(r *Report, inv *inventory.Inventory) *judge {
	j := &judge{
		report: r, inv: inv, order: make(map[string]int), pairs: make(map[Direction]*Pair), reports: make(map[string]*HostReport),
	}
	for i := range inv.Hosts {
		j.order[inv.Hosts[i].Name] = i
		j.reports[inv.Hosts[i].Name] = &HostReport{Name: inv.Hosts[i].Name, Site: inv.Hosts[i].Site, Error: "not looked at"}
	}
	for i := range r.Hosts {
		h := &r.Hosts[i]
		if _, known := j.order[h.Name]; known {
			j.reports[h.Name] = h
			j.ours = j.ours || h.Facts != nil && h.Facts.Ours
		}
	}
	for i := range r.Pairs {
		p := &r.Pairs[i]
		if inv.Host(p.From) != nil && inv.Host(p.To) != nil {
			j.pairs[Direction{p.From, p.To}] = p
		}
	}
	return j
}

// add notes a fault of hosts.
func (j *judge) add(id string, s Severity, hosts []string, text, cure string) {
	slices.SortFunc(hosts, func(a, b string) int { return j.order[a] - j.order[b] })
	j.faults = append(j.faults, Fault{ID: id, Severity: s, Hosts: slices.Compact(hosts), Text: text, Cure: cure})
}

// inventory judges what needs no measurement.
func (j *judge) inventory() {
	var sites []string
	for _, h := range j.inv.With(inventory.ControlPlane) {
		if !slices.Contains(sites, h.Site) {
			sites = append(sites, h.Site)
		}
	}
	if len(sites) == 2 {
		j.add("quorum-two-sites", SeverityFault, nil,
			fmt.Sprintf("the control planes are in two sites, %s and %s: etcd has no majority when the one with more members is lost, and no majority is gained by the other", sites[0], sites[1]),
			"in the inventory, give the role control-plane to a host in a third site, or only to hosts of one site")
	}
}

// plain takes what moves the cursor, or worse, out of text that hosts have sent.
func plain(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, text)
}

// list joins names: "a, b and c"; of many, the first ones are named.
func list(names []string) string {
	const shown = 6
	if more := len(names) - shown; more > 1 {
		return strings.Join(names[:shown], ", ") + fmt.Sprintf(" and %d more", more)
	}
	if len(names) < 2 {
		return strings.Join(names, "")
	}
	return strings.Join(names[:len(names)-1], ", ") + " and " + names[len(names)-1]
}
