//go:build linux

package main

// suite is a set of variants that are measured in one run and reported
// together. Its figures stand in the file between the marks of its target.
type suite struct {
	name     string
	target   string // command of a complete run
	groups   []group
	variants map[string]variant
	bind     bool // our Bind belongs to it
}

// group is a part of a suite whose variants are compared with one of them.
type group struct {
	title    string // line before its tables; may be empty
	order    []string
	baseline string
	goals    map[string]float64 // least part of the baseline's throughput
	split    bool               // say which side used the processor
}

// suites are all there are, by name.
var suites = map[string]suite{gateways.name: gateways, endpoints.name: endpoints}

// order is that of the tables.
func (s suite) order() (names []string) {
	for _, g := range s.groups {
		names = append(names, g.order...)
	}
	return names
}
