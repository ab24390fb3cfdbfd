package fw

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Diagnose returns the firewall chains of others that drop packets which are
// forwarded into or out of the overlay interface. It reads the rules and
// follows a new TCP connection through them, once in each direction; it changes
// nothing. What it cannot decide, such as rules about particular addresses,
// makes a finding uncertain. The interface need not exist. Errors are those of
// Open, except ErrForeignTable; findings that were made before an error are
// returned with it.
func Diagnose(link string) ([]Finding, error) {
	if err := checkLink(link); err != nil {
		return nil, fmt.Errorf("firewall: %w", err)
	}
	found := legacy(link)
	c, err := nftables.New()
	if err != nil {
		return found, fmt.Errorf("firewall: %w", kernelError(err))
	}
	chains, err := c.ListChains()
	if err != nil {
		return found, fmt.Errorf("firewall: list chains: %w", kernelError(err))
	}
	rs := newRuleset(c, chains)
	for _, base := range chains {
		if !forwards(base) || base.Table.Name == TableName(link) {
			continue
		}
		if f, ok := diagnoseChain(rs, base, link); ok {
			found = append(found, f)
		}
	}
	if err := errors.Join(rs.errs...); err != nil {
		return found, fmt.Errorf("firewall: %w", err)
	}
	return found, nil
}

// forwards reports whether a chain sees forwarded IP packets.
func forwards(c *nftables.Chain) bool {
	switch c.Table.Family {
	case nftables.TableFamilyIPv4, nftables.TableFamilyIPv6, nftables.TableFamilyINet:
		return c.Hooknum != nil && *c.Hooknum == *nftables.ChainHookForward
	}
	return false
}

// diagnoseChain follows packets of both directions and of every family that
// the chain sees.
func diagnoseChain(rs *ruleset, base *nftables.Chain, link string) (Finding, bool) {
	f := Finding{Family: familyName(base.Table.Family), Table: base.Table.Name, Chain: base.Name}
	var in, out bool
	var why string
	for _, p := range packetsFor(base.Table.Family, link) {
		o := rs.follow(base, p)
		if !o.drop {
			continue
		}
		in, out = in || p.in == link, out || p.out == link
		f.Certain = f.Certain || !o.maybe
		if why == "" {
			why = o.why
		}
	}
	if !in && !out {
		return Finding{}, false
	}
	f.Why = fmt.Sprintf("%s drops packets forwarded %s", why, direction(in, out, link))
	if !f.Certain {
		f.Why += ", unless one of its rules about particular packets accepts them"
	}
	f.Cure = cure(rs, base, link, in, out)
	return f, true
}

func direction(in, out bool, link string) string {
	switch {
	case in && out:
		return "from and to " + link
	case in:
		return "from " + link
	}
	return "to " + link
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprint(byte(f))
}

func packetsFor(family nftables.TableFamily, link string) []packet {
	families := []byte{unix.NFPROTO_IPV4, unix.NFPROTO_IPV6}
	switch family {
	case nftables.TableFamilyIPv4:
		families = families[:1]
	case nftables.TableFamilyIPv6:
		families = families[1:]
	}
	var index uint32
	if i, err := net.InterfaceByName(link); err == nil {
		index = uint32(i.Index)
	}
	var all []packet
	for _, family := range families {
		all = append(all,
			packet{family: family, in: link, inIndex: index},
			packet{family: family, out: link, outIndex: index})
	}
	return all
}

// cure returns the command that lets the given directions pass, in the words of
// whoever manages the chain.
func cure(rs *ruleset, base *nftables.Chain, link string, in, out bool) string {
	iptables := map[nftables.TableFamily]string{
		nftables.TableFamilyIPv4: "iptables", nftables.TableFamilyIPv6: "ip6tables",
	}[base.Table.Family]
	isFilter := iptables != "" && base.Table.Name == "filter" && base.Name == "FORWARD"
	switch {
	case base.Table.Name == "firewalld":
		return fmt.Sprintf("firewall-cmd --permanent --zone=trusted --add-interface=%s && "+
			"firewall-cmd --permanent --new-policy=planetmesh && "+
			"firewall-cmd --permanent --policy=planetmesh --add-ingress-zone=ANY --add-egress-zone=trusted --set-target=ACCEPT && "+
			"firewall-cmd --reload", link)
	case isFilter && rs.has(base, "ufw-user-forward"), isFilter && rs.has(base, "ufw6-user-forward"):
		return both("ufw route allow in on "+link, "ufw route allow out on "+link, in, out)
	case isFilter && rs.has(base, "DOCKER-USER"):
		return insertCommands(iptables, "DOCKER-USER", link, in, out)
	case isFilter:
		return insertCommands(iptables, "FORWARD", link, in, out)
	}
	nft := fmt.Sprintf("nft 'insert rule %s %s %s %%s \"%s\" accept'", familyName(base.Table.Family), base.Table.Name, base.Name, link)
	return both(fmt.Sprintf(nft, "iifname"), fmt.Sprintf(nft, "oifname"), in, out)
}

func insertCommands(iptables, chain, link string, in, out bool) string {
	return both(
		fmt.Sprintf("%s -I %s -i %s -j ACCEPT", iptables, chain, link),
		fmt.Sprintf("%s -I %s -o %s -j ACCEPT", iptables, chain, link), in, out)
}

func both(forIn, forOut string, in, out bool) string {
	switch {
	case in && out:
		return forIn + " && " + forOut
	case in:
		return forIn
	}
	return forOut
}

// legacy finds rules of the iptables kernel interface from before nftables.
// They cannot be read through nftables, so a filter table is enough for an
// uncertain finding.
func legacy(link string) []Finding {
	var found []Finding
	for _, v := range []struct{ file, command string }{
		{"/proc/net/ip_tables_names", "iptables-legacy"},
		{"/proc/net/ip6_tables_names", "ip6tables-legacy"},
	} {
		b, err := os.ReadFile(v.file)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			continue // without the permission to see it there is more to worry about
		}
		if slices.Contains(strings.Fields(string(b)), "filter") {
			found = append(found, Finding{
				Family: v.command, Table: "filter", Chain: "FORWARD",
				Why:  "rules of the old iptables interface are loaded and may drop packets forwarded from and to " + link,
				Cure: insertCommands(v.command, "FORWARD", link, true, true),
			})
		}
	}
	return found
}

// ruleset is what the kernel has, read when it is needed.
type ruleset struct {
	conn   *nftables.Conn
	chains map[chainKey]*nftables.Chain
	rules  map[chainKey][]*nftables.Rule
	sets   map[setKey][]nftables.SetElement
	errs   []error
}

type chainKey struct {
	family      nftables.TableFamily
	table, name string
}

type setKey chainKey

func newRuleset(c *nftables.Conn, chains []*nftables.Chain) *ruleset {
	rs := &ruleset{
		conn:   c,
		chains: make(map[chainKey]*nftables.Chain),
		rules:  make(map[chainKey][]*nftables.Rule),
		sets:   make(map[setKey][]nftables.SetElement),
	}
	for _, ch := range chains {
		rs.chains[keyOf(ch.Table, ch.Name)] = ch
	}
	return rs
}

func keyOf(t *nftables.Table, name string) chainKey { return chainKey{t.Family, t.Name, name} }

// has reports whether a chain of that name is in the same table.
func (rs *ruleset) has(beside *nftables.Chain, name string) bool {
	return rs.chains[keyOf(beside.Table, name)] != nil
}

func (rs *ruleset) rulesOf(c *nftables.Chain) []*nftables.Rule {
	k := keyOf(c.Table, c.Name)
	rules, ok := rs.rules[k]
	if !ok {
		var err error
		if rules, err = rs.conn.GetRules(c.Table, c); err != nil {
			rs.errs = append(rs.errs, fmt.Errorf("list rules of %s %s %s: %w", familyName(k.family), k.table, k.name, err))
		}
		rs.rules[k] = rules
	}
	return rules
}

func (rs *ruleset) elementsOf(t *nftables.Table, set string) []nftables.SetElement {
	k := setKey(keyOf(t, set))
	elements, ok := rs.sets[k]
	if !ok {
		var err error
		if elements, err = rs.conn.GetSetElements(&nftables.Set{Table: t, Name: set}); err != nil {
			rs.errs = append(rs.errs, fmt.Errorf("list set %s of %s %s: %w", set, familyName(k.family), k.table, err))
		}
		rs.sets[k] = elements
	}
	return elements
}

// verdictOf says what a rule does once it matches; ok is false for a rule that
// only counts, logs or changes the packet. A verdict that comes out of a map is
// not among these.
func verdictOf(r *nftables.Rule) (v expr.Verdict, ok bool) {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Verdict:
			return *e, true
		case *expr.Reject:
			return expr.Verdict{Kind: expr.VerdictDrop}, true
		case *expr.Queue:
			return expr.Verdict{Kind: expr.VerdictQueue}, true
		case *expr.Target:
			if e.Name == "REJECT" {
				return expr.Verdict{Kind: expr.VerdictDrop}, true
			}
			if e.Name == "NFQUEUE" {
				return expr.Verdict{Kind: expr.VerdictQueue}, true
			}
		}
	}
	return expr.Verdict{}, false
}
