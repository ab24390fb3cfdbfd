package fw

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// Firewall is our table in the kernel. Use Open to make one. Its methods may be
// called from several goroutines at once.
type Firewall struct {
	table string
	link  string
	log   *slog.Logger

	turn   chan struct{} // holds one token: whoever took it may change the table
	closed bool          // guarded by turn
}

// Open deletes a table that an earlier run left for this interface. It fails
// with an error that matches errors.ErrUnsupported if the kernel has no
// nftables, os.ErrPermission without CAP_NET_ADMIN, and ErrForeignTable if a
// table with our name is not ours.
func Open(cfg Config) (*Firewall, error) {
	if err := checkLink(cfg.Link); err != nil {
		return nil, fmt.Errorf("firewall: %w", err)
	}
	f := &Firewall{table: TableName(cfg.Link), link: cfg.Link, log: cfg.Logger, turn: make(chan struct{}, 1)}
	if f.log == nil {
		f.log = slog.New(slog.DiscardHandler)
	}
	if err := f.remove(); err != nil {
		return nil, fmt.Errorf("firewall: %w", err)
	}
	return f, nil
}

// Apply makes the table as desired, in one transaction. It does nothing if the
// table is so already, and repairs it if it is not. Errors are those of Open
// and ErrClosed; after an error the table is as it was.
func (f *Firewall) Apply(d Desired) error {
	if err := d.validate(); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if f.closed {
		return ErrClosed
	}
	if err := f.apply(d); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	return nil
}

func (f *Firewall) apply(d Desired) error {
	chains := f.chains(d)
	want := comments(d, chains)
	have, exists, err := f.comments()
	if err != nil {
		return err
	}
	if exists && slices.Equal(have, want) {
		return nil
	}
	c, err := nftables.New()
	if err != nil {
		return kernelError(err)
	}
	t := &nftables.Table{Family: nftables.TableFamilyINet, Name: f.table}
	c.AddTable(t) // so that deleting it cannot fail
	c.DelTable(t)
	c.AddTable(t)
	n := 0
	for _, ch := range chains {
		ch.chain.Table = t
		c.AddChain(ch.chain)
	}
	for _, ch := range chains {
		for _, exprs := range ch.rules {
			c.AddRule(&nftables.Rule{
				Table: t, Chain: ch.chain, Exprs: exprs,
				UserData: userdata.AppendString(nil, userdata.TypeComment, want[n]),
			})
			n++
		}
	}
	if err := c.Flush(); err != nil {
		return fmt.Errorf("set table inet %s: %w", f.table, kernelError(err))
	}
	f.log.Info("firewall table set", "table", f.table, "rules", n)
	return nil
}

// Close deletes our table. It is idempotent; later calls of Apply return
// ErrClosed.
func (f *Firewall) Close() error {
	f.turn <- struct{}{}
	defer func() { <-f.turn }()
	if f.closed {
		return nil
	}
	if err := f.remove(); err != nil {
		return fmt.Errorf("firewall: %w", err)
	}
	f.closed = true
	return nil
}

// remove deletes our table if it exists.
func (f *Firewall) remove() error {
	_, exists, err := f.comments()
	if err != nil || !exists {
		return err
	}
	c, err := nftables.New()
	if err != nil {
		return kernelError(err)
	}
	c.DelTable(&nftables.Table{Family: nftables.TableFamilyINet, Name: f.table})
	if err := c.Flush(); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("delete table inet %s: %w", f.table, kernelError(err))
	}
	return nil
}

// comments returns those of the rules in our table, in order. A table with a
// rule that has no comment of ours is not ours.
func (f *Firewall) comments() (found []string, exists bool, err error) {
	c, err := nftables.New()
	if err != nil {
		return nil, false, kernelError(err)
	}
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, false, fmt.Errorf("list tables: %w", kernelError(err))
	}
	i := slices.IndexFunc(tables, func(t *nftables.Table) bool { return t.Name == f.table })
	if i < 0 {
		return nil, false, nil
	}
	all, err := c.ListChainsOfTableFamily(nftables.TableFamilyINet)
	if err != nil {
		return nil, false, fmt.Errorf("list chains: %w", kernelError(err))
	}
	for _, ch := range all {
		if ch.Table.Name != f.table {
			continue
		}
		rules, err := c.GetRules(tables[i], ch)
		if err != nil {
			return nil, false, fmt.Errorf("list rules: %w", kernelError(err))
		}
		for _, r := range rules {
			text, _ := userdata.GetString(r.UserData, userdata.TypeComment)
			if !strings.HasPrefix(text, commentPrefix) {
				return nil, false, fmt.Errorf("%w: look at it with `nft list table inet %s` and delete or rename it",
					ErrForeignTable, f.table)
			}
			found = append(found, text)
		}
	}
	return found, true, nil
}

// chainRules is a chain with its rules.
type chainRules struct {
	chain *nftables.Chain
	rules [][]expr.Any
}

// comments returns what the rules of the chains carry, in the order in which
// the kernel lists them.
func comments(d Desired, chains []chainRules) []string {
	of := 0
	for _, ch := range chains {
		of += len(ch.rules)
	}
	var all []string
	for n := range of {
		all = append(all, d.comment(n+1, of))
	}
	return all
}

// chains turns the desired state into chains.
func (f *Firewall) chains(d Desired) []chainRules {
	accept := nftables.ChainPolicyAccept
	forward := chainRules{
		chain: &nftables.Chain{
			Name: "forward", Type: nftables.ChainTypeFilter, Policy: &accept,
			Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityMangle,
		},
		rules: [][]expr.Any{
			slices.Concat(matchLink(expr.MetaKeyOIFNAME, f.link), matchSYN(), clampToRoute()),
			slices.Concat(matchLink(expr.MetaKeyIIFNAME, f.link), matchSYN(), clampToRoute()),
		},
	}
	if d.MTU != 0 {
		forward.rules = append(forward.rules,
			slices.Concat(matchLink(expr.MetaKeyIIFNAME, f.link), matchFamily(unix.NFPROTO_IPV4), matchSYN(), clampTo(d.MTU-headers4)),
			slices.Concat(matchLink(expr.MetaKeyIIFNAME, f.link), matchFamily(unix.NFPROTO_IPV6), matchSYN(), clampTo(d.MTU-headers6)))
	}
	for _, a := range d.Attached {
		forward.rules = append(forward.rules, clampAttached(a)...)
	}
	if !d.Restrict {
		return []chainRules{forward}
	}
	jump := func(link, chain string) {
		forward.rules = append(forward.rules,
			append(matchLink(expr.MetaKeyIIFNAME, link), &expr.Verdict{Kind: expr.VerdictJump, Chain: chain}))
	}
	jump(f.link, "inbound")
	inbound := restrictTo("inbound", nil, d.Prefixes)
	if len(d.Attached) == 0 {
		return []chainRules{forward, inbound}
	}
	links := []string{f.link}
	for _, a := range d.Attached {
		links = append(links, a.Link)
		jump(a.Link, "attached")
	}
	return []chainRules{forward, inbound, restrictTo("attached", links, d.Prefixes)}
}

// clampAttached are the clamps of an attached interface.
func clampAttached(a Attached) [][]expr.Any {
	var rules [][]expr.Any
	for _, key := range []expr.MetaKey{expr.MetaKeyOIFNAME, expr.MetaKeyIIFNAME} {
		rules = append(rules,
			slices.Concat(matchLink(key, a.Link), matchSYN(), clampToRoute()),
			slices.Concat(matchLink(key, a.Link), matchFamily(unix.NFPROTO_IPV4), matchSYN(), clampTo(a.MTU-headers4)),
			slices.Concat(matchLink(key, a.Link), matchFamily(unix.NFPROTO_IPV6), matchSYN(), clampTo(a.MTU-headers6)))
	}
	return rules
}

// restrictTo is a chain that drops what leaves neither through the links nor
// to the prefixes.
func restrictTo(name string, links []string, prefixes []netip.Prefix) chainRules {
	c := chainRules{chain: &nftables.Chain{Name: name}}
	for _, l := range links {
		c.rules = append(c.rules, append(matchLink(expr.MetaKeyOIFNAME, l), &expr.Verdict{Kind: expr.VerdictReturn}))
	}
	for _, p := range prefixes {
		c.rules = append(c.rules, append(matchDestination(p), &expr.Verdict{Kind: expr.VerdictReturn}))
	}
	c.rules = append(c.rules, []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: expr.VerdictDrop}})
	return c
}

func matchLink(key expr.MetaKey, link string) []expr.Any {
	name := make([]byte, unix.IFNAMSIZ)
	copy(name, link)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: name},
	}
}

func matchFamily(family byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
	}
}

// matchSYN matches the first two segments of a TCP connection. The flags are
// byte 13 of the header (RFC 9293, section 3.1): FIN 1, SYN 2, RST 4.
func matchSYN() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: 13, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{6}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{2}},
	}
}

// matchDestination matches the destination address: byte 16 of the IPv4 (RFC
// 791) and byte 24 of the IPv6 header (RFC 8200).
func matchDestination(p netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16)
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 24
	}
	addr := p.Addr().AsSlice()
	mask := make([]byte, len(addr))
	for bit := range p.Bits() {
		mask[bit/8] |= 0x80 >> (bit % 8)
	}
	size := uint32(len(addr))
	return append(matchFamily(family),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: size},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: size, Mask: mask, Xor: make([]byte, size)},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: addr})
}

// tcpOptionMSS is the kind of the maximum segment size option, a 16-bit number
// after two bytes (RFC 9293, section 3.2).
const tcpOptionMSS = 2

var writeMSS = &expr.Exthdr{SourceRegister: 1, Type: tcpOptionMSS, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt}

func clampToRoute() []expr.Any {
	return []expr.Any{
		&expr.Rt{Register: 1, Key: expr.RtTCPMSS},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		writeMSS,
	}
}

func clampTo(size int) []expr.Any {
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: binary.BigEndian.AppendUint16(nil, uint16(size))},
		writeMSS,
	}
}

// kernelError says in words what the kernel lacks, or what we lack.
func kernelError(err error) error {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("no permission to change the firewall (run as root or grant CAP_NET_ADMIN): %w", err)
	// What an nfnetlink without nf_tables answers, and a kernel without
	// nfnetlink, without the inet family, or without a kind of expression.
	case errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EPROTONOSUPPORT),
		errors.Is(err, unix.EAFNOSUPPORT), errors.Is(err, unix.ENOENT):
		return fmt.Errorf("kernel lacks nftables, or a part that is needed (nft_rt, nft_exthdr): %w: %w", errors.ErrUnsupported, err)
	}
	return err
}
