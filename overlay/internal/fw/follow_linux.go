package fw

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/xt"
	"golang.org/x/sys/unix"
)

// packet is what we know about the first packet of a TCP connection that is
// forwarded. The interface on the other side, the addresses and the ports are
// not known.
type packet struct {
	family            byte   // NFPROTO_IPV4 or NFPROTO_IPV6
	in, out           string // "" is not known
	inIndex, outIndex uint32 // 0 is not known
}

// outcome is what a chain does with a packet. With neither accept nor drop it
// goes on after the chain.
type outcome struct {
	accept, drop bool
	maybe        bool   // a rule that we cannot decide may have accepted it before
	why          string // what drops it
}

// answer is the result of a match.
type answer int

const (
	no answer = iota
	perhaps
	yes
)

func answerOf(b bool) answer {
	if b {
		return yes
	}
	return no
}

func (a answer) inverted() answer { return yes - a }

// ruleLimit bounds the work for rulesets whose chains jump to each other in
// ever new combinations; such a packet counts as not dropped.
const ruleLimit = 1 << 20

// depthLimit is the kernel's NFT_JUMP_STACK_SIZE.
const depthLimit = 16

// follow sends a packet through a base chain.
func (rs *ruleset) follow(base *nftables.Chain, p packet) outcome {
	w := &walk{rs: rs, p: p, left: ruleLimit}
	o := w.chain(base, depthLimit)
	o.maybe = o.maybe || w.maybe
	if !o.accept && !o.drop && base.Policy != nil && *base.Policy == nftables.ChainPolicyDrop {
		o.drop, o.why = true, "its policy"
	}
	return o
}

// walk is the way of one packet.
type walk struct {
	rs    *ruleset
	p     packet
	left  int
	maybe bool // some rule may have accepted it
}

func (w *walk) chain(c *nftables.Chain, depth int) outcome {
	for n, r := range w.rs.rulesOf(c) {
		if w.left--; w.left < 0 || depth == 0 {
			w.maybe = true
			return outcome{accept: true}
		}
		m := &matcher{walk: w, table: c.Table, regs: make(map[uint32]value)}
		matched := m.rule(r)
		v, ok := verdictOf(r)
		if m.verdict != nil {
			v, ok = *m.verdict, true
		}
		if !ok || matched == no {
			continue
		}
		o, done := w.verdict(c, v, matched == yes, depth)
		if o.drop && o.why == "" {
			o.why = fmt.Sprintf("rule %d of chain %s", n+1, c.Name)
		}
		if done {
			return o
		}
	}
	return outcome{}
}

// verdict carries out what a rule says. done is false if the chain goes on.
func (w *walk) verdict(c *nftables.Chain, v expr.Verdict, certain bool, depth int) (o outcome, done bool) {
	switch v.Kind {
	case expr.VerdictAccept, expr.VerdictQueue, expr.VerdictStolen, expr.VerdictStop:
		w.maybe = w.maybe || !certain
		return outcome{accept: true}, certain
	case expr.VerdictDrop:
		return outcome{drop: true}, certain
	case expr.VerdictReturn:
		w.maybe = w.maybe || !certain // a drop that follows may not be reached
		return outcome{}, certain
	case expr.VerdictJump, expr.VerdictGoto:
		target := w.rs.chains[keyOf(c.Table, v.Chain)]
		if target == nil {
			return outcome{}, false
		}
		o := w.chain(target, depth-1)
		if !certain {
			w.maybe = w.maybe || o.accept
			return outcome{}, false
		}
		return o, o.accept || o.drop || v.Kind == expr.VerdictGoto
	}
	return outcome{}, false
}

// kind is what a register holds.
type kind int

const (
	unknown kind = iota
	exactly      // data is the value
	ifname       // data is the value, padded to IFNAMSIZ
	ctState      // conntrack state of a new connection
	l4proto
)

type value struct {
	kind kind
	data []byte
}

// matcher decides about one rule.
type matcher struct {
	walk    *walk
	table   *nftables.Table
	regs    map[uint32]value
	verdict *expr.Verdict // from a map
}

// rule returns no if any match fails, yes if all hold. A match on something
// that is not known makes it perhaps.
func (m *matcher) rule(r *nftables.Rule) answer {
	result := yes
	for _, e := range r.Exprs {
		result = min(result, m.expression(e))
		if result == no {
			return no
		}
	}
	return result
}

func (m *matcher) expression(e expr.Any) answer {
	switch e := e.(type) {
	case *expr.Meta:
		if !e.SourceRegister {
			m.regs[e.Register] = m.meta(e.Key)
		}
	case *expr.Ct:
		if !e.SourceRegister {
			m.regs[e.Register] = ctValue(e.Key)
		}
	case *expr.Payload:
		if e.DestRegister != 0 {
			m.regs[e.DestRegister] = m.payload(e)
		}
	case *expr.Bitwise:
		m.regs[e.DestRegister] = m.regs[e.SourceRegister].masked(e.Mask, e.Xor)
	case *expr.Exthdr:
		delete(m.regs, e.DestRegister)
	case *expr.Fib:
		delete(m.regs, e.Register)
	case *expr.Hash:
		delete(m.regs, e.DestRegister)
	case *expr.Numgen:
		delete(m.regs, e.Register)
	case *expr.Cmp:
		return m.take(e.Register).compare(e.Op, e.Data)
	case *expr.Lookup:
		return m.lookup(e)
	case *expr.Match:
		return xtMatch(e)
	case *expr.Range, *expr.Limit, *expr.Quota, *expr.Connlimit, *expr.Dynset:
		return perhaps
	}
	return yes // counts, logs, changes, or is the verdict
}

// take returns a register and forgets it: a load that the library does not
// know leaves no trace, and a stale value must not be taken for it.
func (m *matcher) take(register uint32) value {
	v := m.regs[register]
	delete(m.regs, register)
	return v
}

func (m *matcher) meta(key expr.MetaKey) value {
	p := m.walk.p
	switch key {
	case expr.MetaKeyIIFNAME:
		return ifnameValue(p.in)
	case expr.MetaKeyOIFNAME:
		return ifnameValue(p.out)
	case expr.MetaKeyIIF:
		return indexValue(p.inIndex)
	case expr.MetaKeyOIF:
		return indexValue(p.outIndex)
	case expr.MetaKeyNFPROTO:
		return value{kind: exactly, data: []byte{p.family}}
	case expr.MetaKeyL4PROTO:
		return value{kind: l4proto}
	}
	return value{}
}

func ifnameValue(name string) value {
	if name == "" {
		return value{}
	}
	data := make([]byte, unix.IFNAMSIZ)
	copy(data, name)
	return value{kind: ifname, data: data}
}

func indexValue(index uint32) value {
	if index == 0 {
		return value{}
	}
	return value{kind: exactly, data: binary.NativeEndian.AppendUint32(nil, index)}
}

// Conntrack bits as nftables sees them: NF_CT_STATE_BIT and IPS_* of
// nf_conntrack_common.h.
const ctStateNew = 8

func ctValue(key expr.CtKey) value {
	switch key {
	case expr.CtKeySTATE:
		return value{kind: ctState, data: binary.NativeEndian.AppendUint32(nil, ctStateNew)}
	case expr.CtKeySTATUS: // neither answered nor translated yet
		return value{kind: exactly, data: make([]byte, 4)}
	}
	return value{}
}

// payload knows the protocol field of the network header: byte 9 for IPv4 (RFC
// 791), byte 6 for IPv6 (RFC 8200).
func (m *matcher) payload(e *expr.Payload) value {
	at := uint32(9)
	if m.walk.p.family == unix.NFPROTO_IPV6 {
		at = 6
	}
	if e.Base == expr.PayloadBaseNetworkHeader && e.Len == 1 && e.Offset == at {
		return value{kind: l4proto}
	}
	return value{}
}

func (v value) masked(mask, xor []byte) value {
	if (v.kind != exactly && v.kind != ctState) || len(mask) != len(v.data) || len(xor) != len(v.data) {
		return value{}
	}
	data := make([]byte, len(v.data))
	for i := range data {
		data[i] = v.data[i]&mask[i] ^ xor[i]
	}
	return value{kind: exactly, data: data}
}

func (v value) compare(op expr.CmpOp, data []byte) answer {
	if op != expr.CmpOpEq && op != expr.CmpOpNeq {
		return perhaps
	}
	a := v.equals(data)
	if op == expr.CmpOpNeq {
		return a.inverted()
	}
	return a
}

func (v value) equals(data []byte) answer {
	switch v.kind {
	case ifname: // shorter data is a name with a wildcard
		return answerOf(len(data) <= len(v.data) && bytes.HasPrefix(v.data, data))
	case exactly, ctState:
		if len(data) != len(v.data) {
			return perhaps
		}
		return answerOf(bytes.Equal(v.data, data))
	case l4proto:
		// Rules for TCP or UDP alone are rules about particular packets.
		if len(data) == 1 && data[0] != unix.IPPROTO_TCP && data[0] != unix.IPPROTO_UDP {
			return no
		}
	}
	return perhaps
}

// lookup decides about sets and maps of single values. In a map of verdicts it
// finds that of the packet; if it cannot, any accept in it may be meant.
func (m *matcher) lookup(e *expr.Lookup) answer {
	v := m.take(e.SourceRegister)
	elements := m.walk.rs.elementsOf(m.table, e.SetName)
	toVerdict := e.IsDestRegSet && e.DestRegister == unix.NFT_REG_VERDICT
	for _, el := range elements {
		if len(v.data) == 0 || len(el.Key) != len(v.data) || el.IntervalEnd || len(el.KeyEnd) > 0 {
			m.walk.maybe = m.walk.maybe || toVerdict && hasAccept(elements)
			if e.IsDestRegSet {
				delete(m.regs, e.DestRegister)
			}
			return perhaps
		}
		if bytes.Equal(el.Key, v.data) {
			if v, ok := decodeVerdict(el.Val); toVerdict && ok {
				m.verdict = &v
			}
			return answerOf(!e.Invert)
		}
	}
	return answerOf(e.Invert)
}

func hasAccept(elements []nftables.SetElement) bool {
	for _, el := range elements {
		if v, ok := decodeVerdict(el.Val); ok && v.Kind != expr.VerdictDrop && v.Kind != expr.VerdictReturn {
			return true // jumps may lead to an accept
		}
	}
	return false
}

// decodeVerdict reads the verdict in an element of a map, which the library
// leaves as it is: netlink attributes (a length and a type of 16 bits, data,
// padding to 4 bytes), NFTA_VERDICT_CODE with a big-endian number and
// NFTA_VERDICT_CHAIN with a name that ends with a zero.
func decodeVerdict(b []byte) (v expr.Verdict, ok bool) {
	const header = 4
	for len(b) >= header {
		size := int(binary.NativeEndian.Uint16(b))
		if size < header || size > len(b) {
			return expr.Verdict{}, false
		}
		data := b[header:size]
		switch binary.NativeEndian.Uint16(b[2:]) &^ unix.NLA_F_NESTED {
		case unix.NFTA_VERDICT_CODE:
			if len(data) != 4 {
				return expr.Verdict{}, false
			}
			v.Kind, ok = expr.VerdictKind(int32(binary.BigEndian.Uint32(data))), true
		case unix.NFTA_VERDICT_CHAIN:
			v.Chain = string(bytes.TrimRight(data, "\x00"))
		}
		b = b[min(len(b), (size+header-1)&^(header-1)):]
	}
	return v, ok
}

// xtMatch decides about matches of iptables that have no nftables form.
func xtMatch(e *expr.Match) answer {
	switch info := e.Info.(type) {
	case *xt.Comment:
		return yes
	case *xt.ConntrackMtinfo1:
		return conntrack(info.ConntrackMtinfoBase, uint16(info.StateMask))
	case *xt.ConntrackMtinfo2:
		return conntrack(info.ConntrackMtinfoBase, info.StateMask)
	case *xt.ConntrackMtinfo3:
		return conntrack(info.ConntrackMtinfoBase, info.StateMask)
	}
	if e.Name == "comment" {
		return yes
	}
	return perhaps
}

// conntrackNew is XT_CONNTRACK_STATE_BIT(IP_CT_NEW) of xt_conntrack.h.
const conntrackNew = 1 << 3

func conntrack(info xt.ConntrackMtinfoBase, states uint16) answer {
	if info.MatchFlags&^uint16(xt.ConntrackStateAlias) != uint16(xt.ConntrackState) {
		return perhaps
	}
	a := answerOf(states&conntrackNew != 0)
	if info.InvertFlags&uint16(xt.ConntrackState) != 0 {
		return a.inverted()
	}
	return a
}
