package hostnet

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// journal is what has to be undone. Its file is text, one fact a line:
//
//	planetmesh host journal 1
//	link pm0
//	address fd5e:1::1/128
//	route 10.128.1.0/24 192.168.10.101 lan0
//	set net/ipv6/conf/wan0/accept_ra 1 2
//	set net/ipv4/conf/lan0/forwarding 0 1
//	sum <SHA-256 of all lines before, hexadecimal>
//
// Every file has exactly one encoding, and one that differs from the encoding
// of its own content is refused. Only settings that this package changes are
// accepted, because undoing a journal writes to /proc/sys as root.
type journal struct {
	link      string
	addresses []netip.Prefix // added to link, in that order
	lan       []lanRoute     // added, in that order
	settings  []change       // in the order of writing
}

// change is one setting, with the value it had and the value that we gave it.
// The two are equal for a setting that was right but that undoing another one
// would change.
type change struct {
	key      setting
	old, new string
}

// lanRoute is a route through a host of a LAN and the interface of that LAN.
type lanRoute struct {
	prefix netip.Prefix
	via    netip.Addr
	link   string
}

const (
	journalHeader = "planetmesh host journal 1"
	// journalLimit bounds the file: a host with 10,000 interfaces needs two
	// lines of less than 64 bytes for each.
	journalLimit = 4 << 20
)

// empty reports whether there is nothing to undo.
func (j *journal) empty() bool { return len(j.addresses)+len(j.lan)+len(j.settings) == 0 }

// find returns the entry of a setting, nil if there is none. It is valid until
// the journal changes.
func (j *journal) find(key setting) *change {
	for i := range j.settings {
		if j.settings[i].key == key {
			return &j.settings[i]
		}
	}
	return nil
}

// note adds a setting to the journal unless it is there already: the value
// before our first write is the one to go back to. Router advertisements come
// first, so that they are restored last.
func (j *journal) note(w wish, now string) {
	if j.find(w.key) != nil {
		return
	}
	c := change{key: w.key, old: now, new: w.value}
	if strings.HasSuffix(string(w.key), "/"+acceptRA) {
		i := slices.IndexFunc(j.settings, func(c change) bool { return !strings.HasSuffix(string(c.key), "/"+acceptRA) })
		if i >= 0 {
			j.settings = slices.Insert(j.settings, i, c)
			return
		}
	}
	j.settings = append(j.settings, c)
}

// wish is a setting as Apply wants it.
type wish struct {
	key   setting
	value string
	// keep journals the setting although it is right already, because taking
	// back another one would change it.
	keep bool
}

// clone returns a copy that shares nothing.
func (j *journal) clone() *journal {
	return &journal{
		link: j.link, addresses: slices.Clone(j.addresses), lan: slices.Clone(j.lan), settings: slices.Clone(j.settings),
	}
}

// encode returns the one encoding of j.
func (j *journal) encode() []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nlink %s\n", journalHeader, j.link)
	for _, a := range j.addresses {
		fmt.Fprintf(&b, "address %s\n", a)
	}
	for _, r := range j.lan {
		fmt.Fprintf(&b, "route %s %s %s\n", r.prefix, r.via, r.link)
	}
	for _, c := range j.settings {
		fmt.Fprintf(&b, "set %s %s %s\n", c.key, c.old, c.new)
	}
	sum := sha256.Sum256(b.Bytes())
	fmt.Fprintf(&b, "sum %s\n", hex.EncodeToString(sum[:]))
	return b.Bytes()
}

// decodeJournal is the inverse of encode.
func decodeJournal(data []byte) (*journal, error) {
	if len(data) > journalLimit {
		return nil, fmt.Errorf("longer than %d bytes", journalLimit)
	}
	text, ok := strings.CutSuffix(string(data), "\n")
	if !ok {
		return nil, errors.New("last line is cut off")
	}
	lines := strings.Split(text, "\n")
	if lines[0] != journalHeader || len(lines) < 2 {
		return nil, errors.New("first line is unknown or the only one")
	}
	j := &journal{}
	for n, line := range lines[1 : len(lines)-1] {
		if err := j.decodeLine(line); err != nil {
			return nil, fmt.Errorf("line %d: %w", n+2, err)
		}
	}
	if !validLinkName(j.link) {
		return nil, errors.New("no link named")
	}
	if !bytes.Equal(j.encode(), data) {
		return nil, errors.New("checksum or order of lines is wrong")
	}
	return j, nil
}

func (j *journal) decodeLine(line string) error {
	fields := strings.Split(line, " ")
	switch {
	case fields[0] == "link" && len(fields) == 2 && j.link == "" && validLinkName(fields[1]):
		j.link = fields[1]
	case fields[0] == "address" && len(fields) == 2:
		p, err := netip.ParsePrefix(fields[1])
		if err != nil {
			return errors.New("not an address")
		}
		j.addresses = append(j.addresses, p)
	case fields[0] == "route" && len(fields) == 4:
		r, err := decodeLANRoute(fields[1:])
		if err != nil {
			return err
		}
		j.lan = append(j.lan, r)
	case fields[0] == "set" && len(fields) == 4:
		c := change{key: setting(fields[1]), old: fields[2], new: fields[3]}
		if !c.key.ours() || !validValue(c.old) || !validValue(c.new) {
			return errors.New("not a setting of ours")
		}
		j.settings = append(j.settings, c)
	default:
		return errors.New("unknown")
	}
	return nil
}

func decodeLANRoute(fields []string) (lanRoute, error) {
	prefix, err1 := netip.ParsePrefix(fields[0])
	via, err2 := netip.ParseAddr(fields[1])
	r := lanRoute{prefix, via, fields[2]}
	if err1 != nil || err2 != nil || !validLinkName(r.link) {
		return r, errors.New("not a route")
	}
	return r, LANRoute{Prefix: prefix, Via: via}.Validate()
}

// setting is the path of a kernel setting below /proc/sys.
type setting string

const (
	forwarding      = "forwarding"
	forceForwarding = "force_forwarding"
	acceptRA        = "accept_ra"

	allForwarding6 = setting("net/ipv6/conf/all/forwarding")
)

func setting4(link, leaf string) setting { return setting("net/ipv4/conf/" + link + "/" + leaf) }
func setting6(link, leaf string) setting { return setting("net/ipv6/conf/" + link + "/" + leaf) }

// String is the name that people know from sysctl, as far as that is possible.
func (s setting) String() string { return string(s) }

// ours reports whether s is a setting that this package may change.
func (s setting) ours() bool {
	parts := strings.Split(string(s), "/")
	if len(parts) != 5 || parts[0] != "net" || parts[2] != "conf" {
		return false
	}
	family, link, leaf := parts[1], parts[3], parts[4]
	switch {
	case family == "ipv4":
		return leaf == forwarding && validLinkName(link)
	case family != "ipv6":
		return false
	case s == allForwarding6:
		return true
	case leaf == forwarding && link == "default":
		return true
	}
	return (leaf == forwarding || leaf == forceForwarding || leaf == acceptRA) && validLinkName(link)
}

// validValue accepts whole numbers as the kernel prints them; settings of ours
// are not longer than an int32.
func validValue(v string) bool {
	n, err := strconv.ParseInt(v, 10, 32)
	return err == nil && strconv.FormatInt(n, 10) == v
}
