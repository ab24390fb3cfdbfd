package plan

import (
	"errors"
	"fmt"
	"slices"
)

// Change is one difference between what is and what shall be, as package phase
// has it. Secrets are written as "(secret)".
type Change struct {
	What string `json:"what"`
	From string `json:"from,omitempty"`
	To   string `json:"to,omitempty"`
}

// Step is what a step would change.
type Step struct {
	ID      string   `json:"id"` // phase/host/name
	Changes []Change `json:"changes,omitempty"`
}

// File is a plan that is kept, so that what is applied is what was looked at.
type File struct {
	Format        int       `json:"format"`
	InventoryHash string    `json:"inventoryHash"`
	Decisions     Decisions `json:"decisions"`
	// Steps are all steps, in their order, also those without changes.
	Steps []Step `json:"steps"`
}

// NewFile returns a plan.
func NewFile(d Decisions, steps []Step) *File {
	return &File{Format: Format, InventoryHash: d.InventoryHash, Decisions: d, Steps: steps}
}

// Changes is how many changes the plan has.
func (f *File) Changes() int {
	n := 0
	for _, s := range f.Steps {
		n += len(s.Changes)
	}
	return n
}

// Encode gives the JSON form, which is the same for equal plans.
func (f *File) Encode() ([]byte, error) { return encode(f) }

// DecodeFile reads what Encode wrote.
func DecodeFile(b []byte) (*File, error) {
	f := new(File)
	if err := decode(b, f); err != nil {
		return nil, fmt.Errorf("plan: %w", err)
	}
	if f.Decisions.Format != Format {
		return nil, fmt.Errorf("plan: decisions of format %d", f.Decisions.Format)
	}
	if err := f.Decisions.check(); err != nil {
		return nil, fmt.Errorf("plan: decisions: %w", err)
	}
	if f.InventoryHash != f.Decisions.InventoryHash {
		return nil, errors.New("plan: its inventory is not that of its decisions")
	}
	seen := map[string]bool{}
	for _, s := range f.Steps {
		if s.ID == "" || seen[s.ID] {
			return nil, fmt.Errorf("plan: step %q is without a name or there twice", s.ID)
		}
		seen[s.ID] = true
	}
	return f, nil
}

// Difference is something in which two plans differ.
type Difference struct {
	// Where is "inventory", "decisions", or the ID of a step.
	Where string
	// Was and Is are what the kept plan has and what would be done now; one of
	// them is empty if only the other plan has it.
	Was, Is string
}

// String is one line.
func (d Difference) String() string {
	switch {
	case d.Was == "":
		return fmt.Sprintf("%s: not in the plan: %s", d.Where, d.Is)
	case d.Is == "":
		return fmt.Sprintf("%s: in the plan, and not to be done any more: %s", d.Where, d.Was)
	}
	return fmt.Sprintf("%s: the plan has %s, now it is %s", d.Where, d.Was, d.Is)
}

// Compare returns in what a kept plan differs from what would be done now;
// nothing if applying it does what it says. Steps without changes do not count.
func Compare(kept, now *File) []Difference {
	var out []Difference
	if kept.InventoryHash != now.InventoryHash {
		out = append(out, Difference{"inventory", kept.InventoryHash, now.InventoryHash})
	}
	out = append(out, compareDecisions(&kept.Decisions, &now.Decisions)...)
	then, after := kept.byID(), now.byID()
	for _, s := range kept.Steps {
		if other, ok := after[s.ID]; ok {
			out = append(out, compareChanges(s.ID, s.Changes, other.Changes)...)
		} else {
			out = append(out, compareChanges(s.ID, s.Changes, nil)...)
		}
	}
	for _, s := range now.Steps {
		if _, ok := then[s.ID]; !ok {
			out = append(out, compareChanges(s.ID, nil, s.Changes)...)
		}
	}
	return append(out, compareOrder(kept, now)...)
}

func (f *File) byID() map[string]Step {
	out := make(map[string]Step, len(f.Steps))
	for _, s := range f.Steps {
		out[s.ID] = s
	}
	return out
}

// compareChanges pairs changes by what they change.
func compareChanges(id string, was, is []Change) []Difference {
	var out []Difference
	rest := slices.Clone(is)
	for _, w := range was {
		i := slices.Index(rest, w)
		if i < 0 {
			i = slices.IndexFunc(rest, func(c Change) bool { return c.What == w.What })
		}
		if i < 0 {
			out = append(out, Difference{id, w.text(), ""})
			continue
		}
		if rest[i] != w {
			out = append(out, Difference{id, w.text(), rest[i].text()})
		}
		rest = slices.Delete(rest, i, i+1)
	}
	for _, c := range rest {
		out = append(out, Difference{id, "", c.text()})
	}
	return out
}

func (c Change) text() string {
	return fmt.Sprintf("%s: %q to %q", c.What, c.From, c.To)
}

// compareOrder looks at the order of the steps that both plans have with
// changes.
func compareOrder(kept, now *File) []Difference {
	after := now.byID()
	place := map[string]int{}
	for i, s := range now.Steps {
		place[s.ID] = i
	}
	last := ""
	for _, s := range kept.Steps {
		if other, ok := after[s.ID]; !ok || len(s.Changes) == 0 || len(other.Changes) == 0 {
			continue
		}
		if last != "" && place[s.ID] < place[last] {
			return []Difference{{s.ID, "after " + last, "before it"}}
		}
		last = s.ID
	}
	return nil
}

// compareDecisions names the fields that differ, by their JSON form.
func compareDecisions(kept, now *Decisions) []Difference {
	was, is := kept.fields(), now.fields()
	var out []Difference
	for i, w := range was {
		// The hash is compared as the inventory.
		if w.name != "inventoryHash" && w.text != is[i].text {
			out = append(out, Difference{"decisions." + w.name, w.text, is[i].text})
		}
	}
	return out
}

type fieldText struct{ name, text string }

// fields are the decisions one by one. Maps print in the order of their keys.
func (d *Decisions) fields() []fieldText {
	return []fieldText{
		{"cluster", d.Cluster},
		{"inventoryHash", d.InventoryHash},
		{"versions.kubernetes", d.Versions.Kubernetes},
		{"first", d.First},
		{"leader", d.Leader},
		{"controlPlanes", fmt.Sprint(d.ControlPlanes)},
		{"etcdHeartbeat", d.EtcdHeartbeat.String()},
		{"etcdElection", d.EtcdElection.String()},
		{"rtt", d.RTT.String()},
		{"mtu", fmt.Sprint(d.MTU)},
		{"endpoint", d.Endpoint.String()},
		{"certSANs", fmt.Sprint(d.CertSANs)},
		{"podSupernet", d.PodSupernet.String()},
		{"podBlocks", fmt.Sprint(d.PodBlocks)},
		{"nodeRanges", fmt.Sprint(d.NodeRanges)},
		{"serviceSubnet", d.ServiceSubnet.String()},
		{"dnsService", d.DNSService.String()},
		{"dnsDomain", d.DNSDomain},
		{"labels", fmt.Sprint(d.Labels)},
	}
}
