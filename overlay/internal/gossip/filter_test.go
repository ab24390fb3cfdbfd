package gossip

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"strings"
	"testing"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// The gateways of the filter's tests: we, the peer that sends, and a third one. Others are not stored.
var (
	selfID    = testID(0)
	peerID    = testID(1)
	victimID  = testID(2)
	unknownID = testID(99)
)

func newFilter() *filter {
	return &filter{self: selfID, name: selfID.String(), count: new(counters), addr: func(id trust.GatewayID) (netip.Addr, bool) {
		return testAddr(id), id == selfID || id == peerID || id == victimID
	}}
}

func encode(typ byte, fields []field) []byte { return appendFields([]byte{typ}, fields) }

func testMember(id trust.GatewayID) *member {
	return &member{
		name: id.String(), addr: testAddr(id).AsSlice(), port: Port, incarnation: 7,
		vsn: bytes.Clone(versions), meta: []byte{1, 2, 3, 4, 5, 6, 7, 8},
	}
}

func testPing(from, to trust.GatewayID) *ping {
	return &ping{seq: 300, node: to.String(), sourceAddr: testAddr(from).AsSlice(), sourcePort: Port, sourceNode: from.String()}
}

func testIndirect(from, to trust.GatewayID) *indirectPing {
	return &indirectPing{ping: *testPing(from, to), target: testAddr(to).AsSlice(), port: Port, nack: true}
}

func testAccusation(id trust.GatewayID, incarnation uint32) *accusation {
	return &accusation{incarnation: incarnation, node: id.String(), from: peerID.String()}
}

func compound(messages ...[]byte) []byte {
	b := []byte{typeCompound, byte(len(messages))}
	for _, m := range messages {
		b = binary.BigEndian.AppendUint16(b, uint16(len(m)))
	}
	return append(b, bytes.Join(messages, nil)...)
}

func checksummed(b []byte) []byte {
	return append(binary.BigEndian.AppendUint32([]byte{typeChecksum}, crc32.ChecksumIEEE(b)), b...)
}

func with[T any](v *T, change func(*T)) *T {
	change(v)
	return v
}

func TestFilterPassesWhatMembersSay(t *testing.T) {
	alive := encode(typeAlive, testMember(victimID).aliveFields())
	for name, b := range map[string][]byte{
		"ping":          encode(typePing, testPing(peerID, selfID).fields()),
		"indirect ping": encode(typeIndirectPing, testIndirect(peerID, victimID).fields()),
		"ack":           encode(typeAck, (&ack{9}).fields()),
		"nack":          encode(typeNack, (&ack{70000}).fields()),
		"suspect":       encode(typeSuspect, testAccusation(victimID, maxIncarnation).fields()),
		"dead":          encode(typeDead, testAccusation(selfID, maxRefuted).fields()),
		"alive":         alive,
		"alive peer":    encode(typeAlive, testMember(peerID).aliveFields()),
		"no metadata":   encode(typeAlive, with(testMember(peerID), func(m *member) { m.meta = nil }).aliveFields()),
	} {
		for _, packet := range [][]byte{b, checksummed(b), compound(b), checksummed(compound(compound(b)))} {
			f := newFilter()
			v, err := f.packet(peerID, packet)
			if err != nil || len(v.messages) != 1 || !bytes.Equal(v.messages[0], b) {
				t.Errorf("%s: %x became %x, %v, want %x", name, packet, v.messages, err, b)
			}
		}
	}
	f := newFilter()
	user := append([]byte{typeUser}, bytes.Repeat([]byte{1}, MaxBroadcast)...)
	v, err := f.packet(peerID, compound(user, alive, user, alive))
	if err != nil || len(v.messages) != 2 || len(v.users) != 2 || len(v.users[0]) != MaxBroadcast {
		t.Errorf("mixed compound: got %d messages, %d user messages, %v", len(v.messages), len(v.users), err)
	}
}

// fields returns an ack with n fields, all but one of which are unknown.
func fields(n int) []byte {
	b := appendNumber(appendRaw([]byte{typeAck, 0xde, 0, byte(n)}, "SeqNo"), 1)
	for i := range n - 1 {
		b = append(appendRaw(b, string(rune('a'+i))), 0)
	}
	return b
}

func TestDecoderReadsNoMoreThanItMay(t *testing.T) {
	b := appendRaw(appendRaw([]byte{0x81}, "Error"), "more than a few bytes")
	for left := range len(b) + 1 {
		r := bytes.NewReader(b)
		d := decoder{r: r, left: left}
		var text string
		err := d.message([]field{{"Error", &text, 100}})
		if (err == nil) != (left == len(b)) || len(b)-r.Len() > left || d.left < 0 {
			t.Errorf("%d bytes: got %q, %v, after reading %d bytes", left, text, err, len(b)-r.Len())
		}
	}
}

func TestFilterDropsWholePackets(t *testing.T) {
	alive := encode(typeAlive, testMember(victimID).aliveFields())
	many := make([][]byte, maxMessages+1)
	for i := range many {
		many[i] = encode(typeAck, (&ack{1}).fields())
	}
	twice := append([]byte{typeAck, 0x82}, bytes.Repeat(appendNumber(appendRaw(nil, "SeqNo"), 1), 2)...)
	array := []byte{typeAck, 0x91, 1}
	badSum := checksummed(alive)
	badSum[1] ^= 1
	for name, tc := range map[string]struct {
		b    []byte
		want event
	}{
		"empty":                    {nil, dropMalformed},
		"compressed":               {[]byte{typeCompressed, 0x82}, dropType},
		"encrypted":                {append([]byte{typeEncrypted}, alive...), dropType},
		"compressed in compound":   {compound(alive, []byte{typeCompressed, 1}), dropType},
		"compressed, two deep":     {compound(compound([]byte{typeCompressed, 1})), dropType},
		"encrypted, two deep":      {checksummed(compound(compound([]byte{typeEncrypted, 1}))), dropType},
		"checksum inside":          {compound(checksummed(alive)), dropType},
		"two checksums":            {checksummed(checksummed(alive)), dropType},
		"labelled":                 {append([]byte{typeLabel, 1, 'x'}, alive...), dropType},
		"state exchange":           {[]byte{typePushPull, 0x80}, dropType},
		"error":                    {[]byte{typeError, 0x80}, dropType},
		"unknown type":             {[]byte{77}, dropType},
		"wrong checksum":           {badSum, dropChecksum},
		"short checksum":           {[]byte{typeChecksum, 0, 0, 0, 0}, dropChecksum},
		"three deep":               {compound(compound(compound(alive))), dropNesting},
		"too many messages":        {compound(many...), dropNesting},
		"compound without count":   {[]byte{typeCompound}, dropMalformed},
		"compound without lengths": {[]byte{typeCompound, 2, 0, 1}, dropMalformed},
		"compound cut off":         {compound(alive)[:50], dropMalformed},
		"empty part":               {[]byte{typeCompound, 1, 0, 0}, dropMalformed},
		"message cut off":          {alive[:len(alive)-1], dropMalformed},
		"bytes after message":      {append(bytes.Clone(alive), 0), dropMalformed},
		"field twice":              {twice, dropMalformed},
		"array for map":            {array, dropMalformed},
		"endless map":              {[]byte{typeAck, 0xde, 0xff, 0xff}, dropMalformed},
		"huge string":              {[]byte{typeAck, 0x81, 0xdb, 0xff, 0xff, 0xff, 0xff}, dropMalformed},
		"string for number":        {append(append([]byte{typeAck, 0x81}, appendRaw(nil, "SeqNo")...), 0xa1, 'x'), dropMalformed},
		"negative number":          {append(append([]byte{typeAck, 0x81}, appendRaw(nil, "SeqNo")...), 0xd0, 0xff), dropMalformed},
		"deep unknown field":       {append(append(append([]byte{typeAck, 0x81}, appendRaw(nil, "New")...), bytes.Repeat([]byte{0x91}, 9)...), 0), dropMalformed},
		"too many fields":          {fields(maxFields + 1), dropMalformed},
		"large metadata":           {encode(typeAlive, with(testMember(victimID), func(m *member) { m.meta = make([]byte, MaxMeta+1) }).aliveFields()), dropMalformed},
		"long name":                {encode(typeAlive, with(testMember(victimID), func(m *member) { m.name += "0" }).aliveFields()), dropMalformed},
	} {
		f := newFilter()
		v, err := f.packet(peerID, tc.b)
		if err == nil || len(v.messages)+len(v.users) > 0 {
			t.Errorf("%s: %x became %x and %x, want nothing", name, tc.b, v.messages, v.users)
			continue
		}
		if got := reason(err); got != tc.want {
			t.Errorf("%s: got %s, want %s", name, eventNames[got], eventNames[tc.want])
		}
	}
}

func TestFilterLeavesOutSingleMessages(t *testing.T) {
	changed := func(change func(*member)) []byte {
		return encode(typeAlive, with(testMember(victimID), change).aliveFields())
	}
	accused := func(id trust.GatewayID, incarnation uint32, from string) []byte {
		return encode(typeDead, (&accusation{incarnation, id.String(), from}).fields())
	}
	pinged := func(change func(*ping)) []byte {
		return encode(typePing, with(testPing(peerID, selfID), change).fields())
	}
	indirect := func(change func(*indirectPing)) []byte {
		return encode(typeIndirectPing, with(testIndirect(peerID, victimID), change).fields())
	}
	ok := encode(typeAck, (&ack{1}).fields())
	for name, tc := range map[string]struct {
		b    []byte
		want event
	}{
		"alive: unknown gateway":      {encode(typeAlive, testMember(unknownID).aliveFields()), dropNode},
		"alive: no gateway":           {changed(func(m *member) { m.name = "host" }), dropNode},
		"alive: upper case":           {changed(func(m *member) { m.name = strings.ToUpper(testID(0xab).String()) }), dropNode},
		"alive: address of another":   {changed(func(m *member) { m.addr = testAddr(peerID).AsSlice() }), dropNode},
		"alive: IPv4 address":         {changed(func(m *member) { m.addr = []byte{192, 0, 2, 1} }), dropNode},
		"alive: no address":           {changed(func(m *member) { m.addr = nil }), dropNode},
		"alive: other port":           {changed(func(m *member) { m.port = 53 }), dropNode},
		"alive: no port":              {changed(func(m *member) { m.port = 0 }), dropNode},
		"alive: other versions":       {changed(func(m *member) { m.vsn[1] = 4 }), dropVersion},
		"alive: version not spoken":   {changed(func(m *member) { m.vsn[2] = 2 }), dropVersion},
		"alive: no versions":          {changed(func(m *member) { m.vsn = nil }), dropVersion},
		"alive: delegate version":     {changed(func(m *member) { m.vsn[3] = 200 }), dropVersion},
		"alive: high incarnation":     {changed(func(m *member) { m.incarnation = maxIncarnation + 1 }), dropIncarnation},
		"alive: we, high incarnation": {encode(typeAlive, with(testMember(selfID), func(m *member) { m.incarnation = maxRefuted + 1 }).aliveFields()), dropIncarnation},
		"dead: high incarnation":      {accused(victimID, maxIncarnation+1, peerID.String()), dropIncarnation},
		"dead: highest incarnation":   {accused(victimID, 1<<32-1, peerID.String()), dropIncarnation},
		"dead: we, high incarnation":  {accused(selfID, maxRefuted+1, peerID.String()), dropIncarnation},
		"dead: unknown gateway":       {accused(unknownID, 1, peerID.String()), dropNode},
		"dead: unknown accuser":       {accused(victimID, 1, unknownID.String()), dropNode},
		"dead: no accuser":            {accused(victimID, 1, ""), dropNode},
		"ping: for another":           {pinged(func(p *ping) { p.node = victimID.String() }), dropSource},
		"ping: for nobody":            {pinged(func(p *ping) { p.node = "" }), dropSource},
		"ping: from another":          {encode(typePing, testPing(victimID, selfID).fields()), dropSource},
		"ping: to another address":    {pinged(func(p *ping) { p.sourceAddr = testAddr(victimID).AsSlice() }), dropSource},
		"ping: to another port":       {pinged(func(p *ping) { p.sourcePort = 53 }), dropSource},
		"ping: without source":        {pinged(func(p *ping) { p.sourceNode, p.sourceAddr, p.sourcePort = "", nil, 0 }), dropSource},
		"indirect: from another":      {encode(typeIndirectPing, testIndirect(victimID, peerID).fields()), dropSource},
		"indirect: unknown target":    {encode(typeIndirectPing, testIndirect(peerID, unknownID).fields()), dropNode},
		"indirect: foreign address":   {indirect(func(p *indirectPing) { p.target = []byte{8, 8, 8, 8} }), dropNode},
		"indirect: foreign port":      {indirect(func(p *indirectPing) { p.port = 53 }), dropNode},
		"user: empty":                 {[]byte{typeUser}, dropUser},
		"user: too large":             {append([]byte{typeUser}, make([]byte, MaxBroadcast+1)...), dropUser},
	} {
		f := newFilter()
		v, err := f.packet(peerID, compound(ok, tc.b, ok))
		if err != nil || len(v.messages) != 2 || len(v.users) != 0 {
			t.Errorf("%s: got %d messages, %d user messages, %v; want the two others", name, len(v.messages), len(v.users), err)
		}
		if got := f.count[tc.want].Load(); got != 1 {
			t.Errorf("%s: %s: got %d, want 1", name, eventNames[tc.want], got)
		}
	}
}

func TestFilterWritesAnewWhatItDoesNotKnow(t *testing.T) {
	if v, err := newFilter().packet(peerID, fields(maxFields)); err != nil || len(v.messages) != 1 {
		t.Errorf("%d fields: got %x, %v", maxFields, v.messages, err)
	}
	b := []byte{typeAck, 0x84}
	b = append(appendRaw(b, "New"), 0x92, 0x81, 0xa1, 'k', 0xcd, 1, 2, 0xc0)
	b = append(appendRaw(b, "SeqNo"), 0xd1, 1, 2)
	b = appendRaw(appendRaw(b, "Payload"), strings.Repeat("x", 40))
	b = append(appendRaw(b, "Flag"), 0xc3)
	v, err := newFilter().packet(peerID, b)
	want := encode(typeAck, (&ack{0x102}).fields())
	if err != nil || len(v.messages) != 1 || !bytes.Equal(v.messages[0], want) {
		t.Errorf("got %x, %v, want %x", v.messages, err, want)
	}
}

func stateOf(h stateHeader, members ...*member) []byte {
	b := encode(typePushPull, h.fields())
	for _, m := range members {
		b = appendFields(b, m.stateFields())
	}
	return b
}

func TestFilterKeepsKnownMembersOfAState(t *testing.T) {
	dead := with(testMember(victimID), func(m *member) { m.state = 2 })
	b := stateOf(stateHeader{nodes: 5, join: true},
		testMember(peerID),
		testMember(unknownID),
		with(testMember(victimID), func(m *member) { m.vsn[1] = 9 }),
		with(testMember(victimID), func(m *member) { m.incarnation = maxIncarnation + 1 }),
		dead,
	)
	f := newFilter()
	got, err := f.state(bytes.NewReader(append(b, "and more"...)))
	want := stateOf(stateHeader{nodes: 2, join: true}, testMember(peerID), dead)
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %x, %v, want %x", got, err, want)
	}
	for _, e := range []event{dropNode, dropVersion, dropIncarnation} {
		if got := f.count[e].Load(); got != 1 {
			t.Errorf("%s: got %d, want 1", eventNames[e], got)
		}
	}
}

func TestFilterRefusesStates(t *testing.T) {
	header := func(name string, number []byte) []byte {
		b := []byte{typePushPull, 0x83}
		for _, f := range []string{"Join", "Nodes", "UserStateLen"} {
			b = appendRaw(b, f)
			switch {
			case f == name:
				b = append(b, number...)
			case f == "Join":
				b = append(b, 0xc2)
			default:
				b = append(b, 0)
			}
		}
		return b
	}
	odd := with(testMember(peerID), func(m *member) { m.state = 4 })
	endless := append([]byte{typePushPull, 0x81}, appendRaw(nil, "New")...)
	endless = append(endless, 0xdb, 0xff, 0xff, 0xff, 0xff) // 4 GiB of an unknown field
	for name, b := range map[string][]byte{
		"empty":              {},
		"ping":               encode(typePing, testPing(peerID, selfID).fields()),
		"user message":       append([]byte{typeUser, 0x81}, appendNumber(appendRaw(nil, "UserMsgLen"), 1<<20)...),
		"compressed":         {typeCompressed, 0x82},
		"encrypted":          {typeEncrypted, 0, 0, 0, 1, 2},
		"labelled":           {typeLabel, 1, 'x', typePushPull},
		"error":              {typeError, 0x80},
		"million nodes":      header("Nodes", []byte{0xce, 0, 0x10, 0, 0}),
		"4097 nodes":         header("Nodes", []byte{0xcd, 0x10, 1}),
		"negative nodes":     header("Nodes", []byte{0xd3, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}),
		"user state":         header("UserStateLen", []byte{1}),
		"too few nodes":      stateOf(stateHeader{nodes: 2}, testMember(peerID)),
		"unknown node state": stateOf(stateHeader{nodes: 1}, odd),
		"huge unknown field": endless,
	} {
		if got, err := newFilter().state(bytes.NewReader(b)); err == nil {
			t.Errorf("%s: %x became %x, want an error", name, b, got)
		}
	}
}

func TestFilterRefusesStatesBeyondFourMebibytes(t *testing.T) {
	padded := func() []byte { // a member with fields that nobody knows
		b := []byte{0x80 | 15}
		for i := range 15 {
			b = appendRaw(b, strings.Repeat(string(rune('a'+i)), 8))
			b = append(b, 0xda, 0x01, 0x00)
			b = append(b, make([]byte, 0x100)...)
		}
		return b
	}()
	b := stateOf(stateHeader{nodes: maxStateNodes})
	b = append(b, bytes.Repeat(padded, maxStateNodes)...)
	if len(b) <= maxStateBytes {
		t.Fatalf("state of %d bytes is not large enough for this test", len(b))
	}
	r := bytes.NewReader(b)
	if _, err := newFilter().state(r); err == nil {
		t.Error("got no error")
	}
	if read := len(b) - r.Len(); read > maxStateBytes {
		t.Errorf("read %d bytes, want at most %d", read, maxStateBytes)
	}
}

func FuzzPacket(f *testing.F) {
	alive := encode(typeAlive, testMember(victimID).aliveFields())
	user := append([]byte{typeUser}, "record"...)
	for _, b := range [][]byte{
		encode(typePing, testPing(peerID, selfID).fields()),
		encode(typeIndirectPing, testIndirect(peerID, victimID).fields()),
		encode(typeSuspect, testAccusation(victimID, 1).fields()),
		checksummed(compound(alive, user, compound(alive))),
		{typeCompressed, 1}, {typeAck, 0x81, 0xdb, 0xff, 0xff, 0xff, 0xff}, nil,
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		v, err := newFilter().packet(peerID, b)
		if err != nil || len(v.messages) == 0 {
			return
		}
		if len(v.messages)+len(v.users) > maxMessages {
			t.Fatalf("%d messages", len(v.messages)+len(v.users))
		}
		// What passed passes again, unchanged, and nothing is left out of it.
		joined := join(v.messages)
		second := newFilter()
		again, err := second.packet(peerID, joined)
		if err != nil || !bytes.Equal(join(again.messages), joined) {
			t.Fatalf("%x became %x, which became %x, %v", b, joined, again.messages, err)
		}
		for e := range second.count {
			if second.count[e].Load() > 0 {
				t.Fatalf("%x became %x, of which something was dropped: %s", b, joined, eventNames[e])
			}
		}
	})
}

func FuzzState(f *testing.F) {
	f.Add(stateOf(stateHeader{nodes: 2, join: true}, testMember(peerID), testMember(unknownID)))
	f.Add(stateOf(stateHeader{nodes: 4096}))
	f.Add([]byte{typePushPull, 0x80})
	f.Add([]byte{typeError})
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := newFilter().state(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := newFilter().state(bytes.NewReader(got))
		if err != nil || !bytes.Equal(again, got) {
			t.Fatalf("%x became %x, which became %x, %v", b, got, again, err)
		}
	})
}
