package gossip

// Types of memberlist's messages (memberlist 0.7, net.go). The first byte of each message is one of these.
const (
	typePing         = 0
	typeIndirectPing = 1
	typeAck          = 2
	typeSuspect      = 3
	typeAlive        = 4
	typeDead         = 5
	typePushPull     = 6
	typeCompound     = 7
	typeUser         = 8
	typeCompressed   = 9
	typeEncrypted    = 10
	typeNack         = 11
	typeChecksum     = 12
	typeError        = 13
	typeLabel        = 244
)

// Limits of fields. memberlist has a limit for metadata only.
const (
	nameLen = 32 // a gateway ID in hex
	addrLen = 16
	vsnLen  = 6
)

// ping asks for an ack. The source is where the ack shall go.
type ping struct {
	seq        uint32
	node       string
	sourceAddr []byte
	sourcePort uint16
	sourceNode string
}

func (p *ping) fields() []field {
	return []field{
		{"Node", &p.node, nameLen},
		{"SeqNo", &p.seq, 0},
		{"SourceAddr", &p.sourceAddr, addrLen},
		{"SourceNode", &p.sourceNode, nameLen},
		{"SourcePort", &p.sourcePort, 0},
	}
}

// indirectPing asks somebody to ping a third gateway.
type indirectPing struct {
	ping
	target []byte
	port   uint16
	nack   bool
}

func (p *indirectPing) fields() []field {
	return append(p.ping.fields(),
		field{"Nack", &p.nack, 0},
		field{"Port", &p.port, 0},
		field{"Target", &p.target, addrLen},
	)
}

// ack answers a ping. Its payload is for a delegate that we do not have, and is left out.
type ack struct{ seq uint32 }

func (a *ack) fields() []field { return []field{{"SeqNo", &a.seq, 0}} }

// accusation says that a gateway is suspect or dead.
type accusation struct {
	incarnation uint32
	node, from  string
}

func (a *accusation) fields() []field {
	return []field{
		{"From", &a.from, nameLen},
		{"Incarnation", &a.incarnation, 0},
		{"Node", &a.node, nameLen},
	}
}

// member is what an alive message and an entry of the state exchange say about a gateway.
type member struct {
	name        string
	addr        []byte
	port        uint16
	meta        []byte
	incarnation uint32
	vsn         []byte
	state       int
}

// aliveFields are those of an alive message.
func (m *member) aliveFields() []field {
	return append(m.commonFields(), field{"Node", &m.name, nameLen})
}

// stateFields are those of an entry of the state exchange. State goes from alive to left.
func (m *member) stateFields() []field {
	return append(m.commonFields(), field{"Name", &m.name, nameLen}, field{"State", &m.state, 3})
}

func (m *member) commonFields() []field {
	return []field{
		{"Addr", &m.addr, addrLen},
		{"Incarnation", &m.incarnation, 0},
		{"Meta", &m.meta, MaxMeta},
		{"Port", &m.port, 0},
		{"Vsn", &m.vsn, vsnLen},
	}
}

// stateHeader opens a state exchange. We never send user state and accept none.
type stateHeader struct {
	nodes     int
	userState int
	join      bool
}

func (h *stateHeader) fields() []field {
	return []field{
		{"Join", &h.join, 0},
		{"Nodes", &h.nodes, maxStateNodes},
		{"UserStateLen", &h.userState, 0},
	}
}
