package gossip

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"net/netip"

	"github.com/hashicorp/memberlist"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

const (
	maxNesting    = 2       // of compound messages; memberlist writes one
	maxMessages   = 64      // in one packet
	maxStateNodes = 4096    // in one state exchange
	maxStateBytes = 4 << 20 // of one state exchange

	// Incarnations count refutations, one above what is refuted, and wrap. What is said about others may go to
	// maxIncarnation. What is said about us is refuted up to maxRefuted only, so that nobody can push our own
	// number so high that others drop what we say about ourselves.
	maxIncarnation = 1 << 31
	maxRefuted     = 1 << 30
)

// versions is what every member of ours says about itself: memberlist's range
// of protocol versions, the one it speaks, and no version of the delegate. One
// member with other versions makes memberlist refuse every state exchange.
var versions = []byte{memberlist.ProtocolVersionMin, memberlist.ProtocolVersionMax, protocolVersion, 0, 0, 0}

// filter judges messages of one peer and writes those that may pass anew. It
// keeps no state and is safe for concurrent use.
type filter struct {
	self  trust.GatewayID
	name  string // of self
	addr  func(trust.GatewayID) (netip.Addr, bool)
	count *counters
}

// verdict is what became of a packet.
type verdict struct {
	messages  [][]byte // for memberlist
	users     [][]byte // for OnUser; they alias the packet
	indirects int      // indirect pings among messages
}

// Reasons to lose a whole packet.
var (
	errType     = errors.New("message type is not accepted")
	errNesting  = errors.New("too many messages or levels")
	errChecksum = errors.New("wrong checksum")
)

// packet judges a packet. An error means that nothing of it may pass.
//
//	12 ‖ CRC-32[4] ‖ message          outermost only
//	7 ‖ n ‖ length u16 × n ‖ messages  compound
//	type ‖ msgpack                     all others; user messages have no msgpack
func (f *filter) packet(peer trust.GatewayID, b []byte) (verdict, error) {
	var v verdict
	if len(b) > 0 && b[0] == typeChecksum {
		if len(b) < 6 || binary.BigEndian.Uint32(b[1:]) != crc32.ChecksumIEEE(b[5:]) {
			return verdict{}, errChecksum
		}
		b = b[5:]
	}
	if err := f.message(peer, b, maxNesting, &v); err != nil {
		return verdict{}, err
	}
	return v, nil
}

func (f *filter) message(peer trust.GatewayID, b []byte, levels int, v *verdict) error {
	if len(b) == 0 {
		return errFormat
	}
	if len(v.messages)+len(v.users) >= maxMessages {
		return errNesting
	}
	body := b[1:]
	switch b[0] {
	case typeCompound:
		return f.compound(peer, body, levels, v)
	case typePing:
		return f.ping(peer, body, v)
	case typeIndirectPing:
		return f.indirectPing(peer, body, v)
	case typeAck, typeNack:
		return f.ack(b[0], body, v)
	case typeSuspect, typeDead:
		return f.accusation(b[0], body, v)
	case typeAlive:
		return f.alive(body, v)
	case typeUser:
		return f.user(body, v)
	}
	return errType
}

func (f *filter) compound(peer trust.GatewayID, b []byte, levels int, v *verdict) error {
	if levels == 0 {
		return errNesting
	}
	if len(b) < 1 || len(b)-1 < 2*int(b[0]) {
		return errFormat
	}
	lengths, parts := b[1:1+2*int(b[0])], b[1+2*int(b[0]):]
	for ; len(lengths) > 0; lengths = lengths[2:] {
		n := int(binary.BigEndian.Uint16(lengths))
		if n > len(parts) {
			return errFormat
		}
		if err := f.message(peer, parts[:n], levels-1, v); err != nil {
			return err
		}
		parts = parts[n:]
	}
	return nil
}

// decode reads the one map that b is.
func decode(b []byte, fields []field) error {
	d := newDecoder(b)
	if err := d.message(fields); err != nil || d.left > 0 {
		return errFormat
	}
	return nil
}

// pass hands a message to memberlist as we write it.
func (v *verdict) pass(typ byte, fields []field) {
	v.messages = append(v.messages, appendFields([]byte{typ}, fields))
}

func (f *filter) ping(peer trust.GatewayID, b []byte, v *verdict) error {
	var p ping
	if err := decode(b, p.fields()); err != nil {
		return err
	}
	if p.node != f.name || !f.isSource(peer, &p) {
		f.count.add(dropSource)
		return nil
	}
	v.pass(typePing, p.fields())
	return nil
}

func (f *filter) indirectPing(peer trust.GatewayID, b []byte, v *verdict) error {
	var p indirectPing
	if err := decode(b, p.fields()); err != nil {
		return err
	}
	if !f.isSource(peer, &p.ping) {
		f.count.add(dropSource)
		return nil
	}
	if !f.isNode(p.node, p.target, p.port) {
		f.count.add(dropNode)
		return nil
	}
	v.indirects++
	v.pass(typeIndirectPing, p.fields())
	return nil
}

func (f *filter) ack(typ byte, b []byte, v *verdict) error {
	var a ack
	if err := decode(b, a.fields()); err != nil {
		return err
	}
	v.pass(typ, a.fields())
	return nil
}

func (f *filter) accusation(typ byte, b []byte, v *verdict) error {
	var a accusation
	if err := decode(b, a.fields()); err != nil {
		return err
	}
	if a.incarnation > f.incarnationLimit(a.node) {
		f.count.add(dropIncarnation)
		return nil
	}
	if !f.knows(a.node) || !f.knows(a.from) {
		f.count.add(dropNode)
		return nil
	}
	v.pass(typ, a.fields())
	return nil
}

func (f *filter) alive(b []byte, v *verdict) error {
	var m member
	if err := decode(b, m.aliveFields()); err != nil {
		return err
	}
	if f.accepts(&m) {
		v.pass(typeAlive, m.aliveFields())
	}
	return nil
}

func (f *filter) user(b []byte, v *verdict) error {
	if len(b) == 0 || len(b) > MaxBroadcast {
		f.count.add(dropUser)
		return nil
	}
	v.users = append(v.users, b)
	return nil
}

// accepts judges what is said about a member, and counts why not.
func (f *filter) accepts(m *member) bool {
	switch {
	case m.incarnation > f.incarnationLimit(m.name):
		f.count.add(dropIncarnation)
	case !bytes.Equal(m.vsn, versions):
		f.count.add(dropVersion)
	case !f.isNode(m.name, m.addr, m.port):
		f.count.add(dropNode)
	default:
		return true
	}
	return false
}

func (f *filter) incarnationLimit(name string) uint32 {
	if name == f.name {
		return maxRefuted
	}
	return maxIncarnation
}

// isSource reports whether a ping names the peer that sent it as its source.
func (f *filter) isSource(peer trust.GatewayID, p *ping) bool {
	return p.sourceNode == peer.String() && f.isNode(p.sourceNode, p.sourceAddr, p.sourcePort)
}

// isNode reports whether a name belongs to a stored gateway with this overlay address, and the port is ours.
func (f *filter) isNode(name string, addr []byte, port uint16) bool {
	if port != Port {
		return false
	}
	want, ok := f.lookup(name)
	got, isAddr := netip.AddrFromSlice(addr)
	return ok && isAddr && got == want
}

func (f *filter) knows(name string) bool {
	_, ok := f.lookup(name)
	return ok
}

func (f *filter) lookup(name string) (netip.Addr, bool) {
	id, err := trust.ParseGatewayID(name)
	if err != nil {
		return netip.Addr{}, false
	}
	return f.addr(id)
}

// join makes one packet of messages that passed: at least one, at most maxMessages.
func join(messages [][]byte) []byte {
	if len(messages) == 1 {
		return messages[0]
	}
	b := []byte{typeCompound, byte(len(messages))}
	for _, m := range messages {
		b = binary.BigEndian.AppendUint16(b, uint16(len(m)))
	}
	return append(b, bytes.Join(messages, nil)...)
}

// state reads a state exchange, or the error that memberlist sends in place of
// one, and returns it as we write it, with the members that may pass.
//
//	6 ‖ header ‖ member × nodes
//	13 ‖ map
func (f *filter) state(r byteReader) ([]byte, error) {
	d := decoder{r: r, left: maxStateBytes}
	if typ := d.byte(); d.err != nil || typ != typePushPull {
		d.fail()
		return nil, d.err
	}
	var h stateHeader
	if err := d.message(h.fields()); err != nil {
		return nil, err
	}
	nodes, body := 0, []byte(nil)
	for range h.nodes {
		var m member
		if err := d.message(m.stateFields()); err != nil {
			return nil, err
		}
		if f.accepts(&m) {
			nodes++
			body = appendFields(body, m.stateFields())
		}
	}
	h.nodes = nodes
	return append(appendFields([]byte{typePushPull}, h.fields()), body...), nil
}
