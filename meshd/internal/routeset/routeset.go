// Package routeset keeps the named route sets of a gateway: prefixes that it
// announces, and routes through hosts of its LANs, that programs and operators
// add while meshd runs. They are merged with what the configuration and
// attached routers announce, and outlive restarts.
//
// Parse reads a set as it arrives; Fit says which sets go together with each
// other and with what is around them; Load and Save keep them. All of it is
// without effect on the mesh and the host.
package routeset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/overlay"
)

// Set is a route set.
type Set struct {
	// Name has 1 to 63 lower-case letters, digits, dots and hyphens, with a
	// letter or digit at both ends.
	Name string `json:"name"`
	// Announce are prefixes to announce, in ascending order; none overlaps
	// another one.
	Announce []netip.Prefix `json:"announce"`
	// LAN are routes through hosts of the LANs, ascending by prefix.
	LAN []overlay.LANRoute `json:"lan"`
}

// Equal reports whether two sets say the same.
func (s Set) Equal(o Set) bool {
	return s.Name == o.Name && slices.Equal(s.Announce, o.Announce) && slices.Equal(s.LAN, o.LAN)
}

// Status is a set and whether it is in effect.
type Status struct {
	Set
	// Problem says why it is not; empty means that it is.
	Problem string `json:"problem,omitempty"`
}

// Bounds. A record announces 64 prefixes, so no set needs more; a LAN has
// seldom more than 256 hosts.
const (
	MaxSets     = 32
	MaxAnnounce = 64
	MaxLAN      = 256
	MaxAllLAN   = 1024 // of all sets, overlay's bound
	maxName     = 63
)

// Fault is a set that is wrong in itself.
type Fault struct {
	Name   string
	Reason string // everything that is wrong, separated by semicolons
}

// Error names the set and says what is wrong.
func (f *Fault) Error() string { return fmt.Sprintf("route set %q: %s", f.Name, f.Reason) }

// Error is a set that does not go with what is around it.
type Error struct {
	Name string
	Err  error
}

// Error names the set.
func (e *Error) Error() string { return fmt.Sprintf("route set %s: %v", e.Name, e.Err) }

// Unwrap returns Err.
func (e *Error) Unwrap() error { return e.Err }

// ErrUnknown says that there is no set of that name.
var ErrUnknown = errors.New("no such route set")

// content is the JSON form of a set without its name. The words are read as
// text, so that what is wrong with them can be told.
type content struct {
	Announce []string `json:"announce"`
	LAN      []struct {
		Prefix string `json:"prefix"`
		Via    string `json:"via"`
	} `json:"lan"`
}

// Parse reads the set of that name from JSON:
//
//	{"announce": ["10.128.0.0/18"], "lan": [{"prefix": "10.128.1.0/24", "via": "192.168.10.101"}]}
//
// A set that is not exactly so is a *Fault.
func Parse(name string, b []byte) (Set, error) {
	if err := CheckName(name); err != nil {
		return Set{}, err
	}
	if err := checkKeys(b); err != nil {
		return Set{}, &Fault{name, err.Error()}
	}
	var c content
	if err := json.Unmarshal(b, &c); err != nil {
		return Set{}, &Fault{name, err.Error()}
	}
	s, faults := c.set(name)
	if len(faults) > 0 {
		return Set{}, &Fault{name, strings.Join(faults, "; ")}
	}
	return s, nil
}

// CheckName says what is wrong with the name of a set, as a *Fault.
func CheckName(name string) error {
	alnum := func(r rune) bool { return r >= 'a' && r <= 'z' || r >= '0' && r <= '9' }
	ends := name != "" && alnum(rune(name[0])) && alnum(rune(name[len(name)-1]))
	if !ends || len(name) > maxName || strings.ContainsFunc(name, func(r rune) bool { return !alnum(r) && r != '.' && r != '-' }) {
		return &Fault{name, fmt.Sprintf("not a name; want 1 to %d lower-case letters, digits, dots and hyphens", maxName)}
	}
	return nil
}

// set reads the words of c. It goes on after faults.
func (c content) set(name string) (Set, []string) {
	var faults []string
	fault := func(format string, args ...any) { faults = append(faults, fmt.Sprintf(format, args...)) }
	switch n, m := len(c.Announce), len(c.LAN); {
	case n+m == 0:
		return Set{}, []string{`nothing in it; want "announce" or "lan", deleting it takes it away`}
	case n > MaxAnnounce || m > MaxLAN:
		return Set{}, []string{fmt.Sprintf("%d prefixes to announce and %d routes; want at most %d and %d", n, m, MaxAnnounce, MaxLAN)}
	}
	s := Set{Name: name, Announce: []netip.Prefix{}, LAN: []overlay.LANRoute{}}
	for i, word := range c.Announce {
		p, err := parsePrefix(word)
		if err != nil {
			fault("announce[%d]: %v", i, err)
			continue
		}
		for _, q := range s.Announce {
			if q.Overlaps(p) {
				fault("announce[%d]: %v overlaps %v", i, p, q)
			}
		}
		s.Announce = append(s.Announce, p)
	}
	for i, route := range c.LAN {
		p, err := parsePrefix(route.Prefix)
		if err != nil {
			fault("lan[%d]: prefix: %v", i, err)
			continue
		}
		via, err := parseVia(route.Via, p)
		if err != nil {
			fault("lan[%d]: %v: %v", i, p, err)
			continue
		}
		if slices.ContainsFunc(s.LAN, func(r overlay.LANRoute) bool { return r.Prefix == p }) {
			fault("lan[%d]: %v is there twice", i, p)
		}
		s.LAN = append(s.LAN, overlay.LANRoute{Prefix: p, Via: via})
	}
	slices.SortFunc(s.Announce, netip.Prefix.Compare)
	slices.SortFunc(s.LAN, func(a, b overlay.LANRoute) int { return a.Prefix.Compare(b.Prefix) })
	return s, faults
}

func parsePrefix(word string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(word)
	switch {
	case err != nil:
		return p, fmt.Errorf("%q: want a prefix, such as 10.128.0.0/18", word)
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%v: want the IPv4 prefix, not its IPv6 form", p)
	case p != p.Masked():
		return p, fmt.Errorf("%v has host bits; want %v", p, p.Masked())
	case p.Bits() == 0:
		return p, fmt.Errorf("%v is everything; want a prefix of this site", p)
	}
	return p, nil
}

func parseVia(word string, p netip.Prefix) (netip.Addr, error) {
	via, err := netip.ParseAddr(word)
	switch {
	case err != nil || via.Zone() != "" || via.Is4In6() || !via.IsGlobalUnicast():
		return via, fmt.Errorf("via %q: want the address of a host of a LAN, such as 192.168.10.101", word)
	case via.Is4() != p.Addr().Is4():
		return via, fmt.Errorf("via %v: want an address of the same family", via)
	case p.Contains(via):
		return via, fmt.Errorf("via %v: the host is inside of what it leads to", via)
	}
	return via, nil
}

// knownKeys are the keys of each object, by its depth.
var knownKeys = [][]string{{"announce", "lan"}, {"prefix", "via"}}

// checkKeys refuses what encoding/json lets pass: keys that are written in
// another way or twice, and anything after the one value.
func checkKeys(b []byte) error {
	dec := json.NewDecoder(bytes.NewReader(b))
	if t, err := dec.Token(); err != nil || t != json.Delim('{') {
		return errors.New(`want an object: {"announce": […], "lan": […]}`)
	}
	if err := checkObject(dec, 0); err != nil {
		return err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something after the object")
	}
	return nil
}

// checkObject reads the rest of an object.
func checkObject(dec *json.Decoder, depth int) error {
	seen := make(map[string]bool)
	for dec.More() {
		t, err := dec.Token()
		if err != nil {
			return err
		}
		key, _ := t.(string)
		switch {
		case depth >= len(knownKeys) || !slices.Contains(knownKeys[depth], key):
			return fmt.Errorf("unknown key %q", key)
		case seen[key]:
			return fmt.Errorf("key %q is there twice", key)
		}
		seen[key] = true
		if err := checkValue(dec, depth+1); err != nil {
			return err
		}
	}
	_, err := dec.Token()
	return err
}

// checkValue reads a value with all that is in it.
func checkValue(dec *json.Decoder, depth int) error {
	t, err := dec.Token()
	switch {
	case err != nil:
		return err
	case t == json.Delim('{'):
		return checkObject(dec, depth)
	case t != json.Delim('['):
		return nil
	}
	for dec.More() {
		if err := checkElement(dec, depth); err != nil {
			return err
		}
	}
	_, err = dec.Token()
	return err
}

// checkElement reads an element of a list; lists hold no lists.
func checkElement(dec *json.Decoder, depth int) error {
	t, err := dec.Token()
	switch {
	case err != nil:
		return err
	case t == json.Delim('{'):
		return checkObject(dec, depth)
	case t == json.Delim('['):
		return errors.New("a list within a list")
	}
	return nil
}
