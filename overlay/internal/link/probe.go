package link

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/crypto/chacha20poly1305"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Probe is the content of a probe or a reply:
//
//	0      1              17            33
//	+------+--------------+-------------+------------------------------+---------
//	| kind | challenge[16]| boot ID[16] | observed addrport, 19 (reply)| padding
//	+------+--------------+-------------+------------------------------+---------
type Probe struct {
	// Challenge is chosen by the asker and echoed by the answer.
	Challenge [16]byte
	// Boot names the present start of the sender.
	Boot trust.BootID
	// Observed is, in a reply, the address that the probe came from as the
	// other side saw it. Not valid in a probe.
	Observed netip.AddrPort
	// WireGuard is, in a reply that was received, the WireGuard key of the
	// peer whose private half made it: the present or the previous one.
	WireGuard trust.ExchangeKey
}

const (
	kindProbe = 1
	kindReply = 2

	challengeAt = 1
	bootAt      = challengeAt + 16
	observedAt  = bootAt + 16
	observedLen = 1 + 2 + 16
	probeMin    = observedAt + observedLen

	sealOverhead = chacha20poly1305.Overhead

	nonceAt      = headerLen + keyIDLen
	sealedAt     = nonceAt + chacha20poly1305.NonceSizeX
	probeHeader  = sealedAt + sealOverhead
	probePayload = ProbeSize - probeHeader

	// ProbeSize is the length in bytes of every reply and of every probe
	// towards an address that is not proven.
	ProbeSize = 128

	// MaxProbe is the longest MTU probe in bytes: a jumbo frame of 9,000 less
	// the headers of IPv4 and UDP.
	MaxProbe = 9000 - 28
)

var errFormat = errors.New("bad format")

// encodeProbe fills b, which is zero, with a probe or a reply.
func encodeProbe(b []byte, kind byte, pr *Probe) {
	b[0] = kind
	copy(b[challengeAt:], pr.Challenge[:])
	copy(b[bootAt:], pr.Boot[:])
	if kind != kindReply || !pr.Observed.IsValid() {
		return
	}
	o := b[observedAt : observedAt+observedLen]
	addr := pr.Observed.Addr().Unmap()
	binary.BigEndian.PutUint16(o[1:], pr.Observed.Port())
	if addr.Is4() {
		o[0] = 4
		a := addr.As4()
		copy(o[3:], a[:])
		return
	}
	o[0] = 6
	a := addr.As16()
	copy(o[3:], a[:])
}

// decodeProbe reads what encodeProbe wrote. Padding is not looked at: it is
// sealed, and only its length matters.
func decodeProbe(b []byte) (kind byte, pr Probe, err error) {
	if len(b) < probeMin {
		return 0, pr, errFormat
	}
	copy(pr.Challenge[:], b[challengeAt:])
	copy(pr.Boot[:], b[bootAt:])
	switch b[0] {
	case kindProbe:
		return kindProbe, pr, nil
	case kindReply:
		pr.Observed, err = decodeObserved(b[observedAt : observedAt+observedLen])
		return kindReply, pr, err
	}
	return 0, pr, errFormat
}

func decodeObserved(o []byte) (netip.AddrPort, error) {
	port := binary.BigEndian.Uint16(o[1:])
	var addr netip.Addr
	switch o[0] {
	case 4:
		addr = netip.AddrFrom4([4]byte(o[3:7]))
		if [12]byte(o[7:19]) != [12]byte{} {
			return netip.AddrPort{}, errFormat
		}
	case 6:
		addr = netip.AddrFrom16([16]byte(o[3:19]))
	}
	if !addr.IsValid() || addr.Is4In6() || port == 0 {
		return netip.AddrPort{}, errFormat
	}
	return netip.AddrPortFrom(addr, port), nil
}

// sealProbe makes b, which is zero and as long as the datagram shall be, a probe
// or a reply under keys.
func (p *Port) sealProbe(b []byte, keys *pairKeys, kind byte, pr *Probe) {
	begin(b, typeProbe)
	copy(b[headerLen:], keys.sendID[:])
	_, _ = rand.Read(b[nonceAt:sealedAt]) // never fails (crypto/rand)
	plain := b[sealedAt : len(b)-sealOverhead]
	encodeProbe(plain, kind, pr)
	keys.send.Seal(plain[:0], b[nonceAt:sealedAt], plain, associated(b[:sealedAt]))
	p.tags.put(b)
}

// SendProbe asks a peer at an address: the reply, if one comes, goes to the
// handler. challenge must be fresh and unpredictable. size is the length of the
// datagram in bytes, ProbeSize at least and MaxProbe at most; everything above
// ProbeSize is an MTU probe, for proven addresses only. While keys change, probes
// take turns over them, and once the peer has answered there are two per call.
//
// Errors: ErrUnknownPeer, net.ErrClosed, what the socket reports. Safe for
// concurrent use.
func (p *Port) SendProbe(peer trust.GatewayID, to netip.AddrPort, challenge [16]byte, size int) error {
	if size < ProbeSize || size > MaxProbe {
		return fmt.Errorf("probe of %d bytes: want %d to %d", size, ProbeSize, MaxProbe)
	}
	pe := p.peer(peer)
	if pe == nil {
		return ErrUnknownPeer
	}
	if !to.IsValid() || to.Port() == 0 {
		return fmt.Errorf("probe to %v: no address", to)
	}
	first, second := pe.probeKeys()
	err := p.sendProbe(first, unmap(to), challenge, size)
	if second != nil {
		err = errors.Join(err, p.sendProbe(second, unmap(to), challenge, size))
	}
	return err
}

func (p *Port) sendProbe(keys *pairKeys, to netip.AddrPort, challenge [16]byte, size int) error {
	pk := packets.Get().(*packet)
	defer packets.Put(pk)
	b := pk.data[:min(size, MaxDatagram)]
	if size > MaxDatagram {
		b = make([]byte, size)
	}
	clear(b)
	p.sealProbe(b, keys, kindProbe, &Probe{Challenge: challenge, Boot: p.own.Boot})
	return p.write(pk, b, p.sock.endpoint(to), &p.counters.probesSent)
}

// receiveProbe handles a probe or a reply whose tag holds.
func (p *Port) receiveProbe(b []byte, from conn.Endpoint) {
	if len(b) < ProbeSize {
		p.counters.short.Add(1)
		return
	}
	owner, ok := p.lookup(keyID(b[headerLen:nonceAt]))
	if !ok || owner.session != nil {
		p.counters.unknownKey.Add(1)
		return
	}
	keys := owner.keys
	plain, err := keys.receive.Open(b[sealedAt:sealedAt], b[nonceAt:sealedAt], b[sealedAt:], associated(b[:sealedAt]))
	if err != nil {
		p.counters.seal.Add(1)
		return
	}
	kind, pr, err := decodeProbe(plain)
	switch {
	case err != nil:
		p.counters.format.Add(1)
	case kind == kindProbe:
		owner.peer.asked.Store(time.Now().UnixNano())
		p.reply(keys, &pr, from)
		if h := p.handler.Load(); h != nil {
			(*h).Heard(owner.peer.id)
		}
	case len(b) != ProbeSize:
		p.counters.format.Add(1)
	default:
		pr.WireGuard = keys.peerWireGuard
		p.receiveReply(owner, pr, from)
	}
}

// reply answers a probe to where it came from. Only that the peer asked is
// remembered, not from where. The answer has 128 bytes and is never longer than the probe.
func (p *Port) reply(keys *pairKeys, asked *Probe, from conn.Endpoint) {
	observed := endpointAddr(from)
	if !observed.IsValid() || observed.Port() == 0 {
		return
	}
	p.counters.probes.Add(1)
	pk := packets.Get().(*packet)
	defer packets.Put(pk)
	b := pk.data[:ProbeSize]
	clear(b)
	p.sealProbe(b, keys, kindReply, &Probe{Challenge: asked.Challenge, Boot: p.own.Boot, Observed: observed})
	_ = p.write(pk, b, from, nil) // counted; a lost answer is asked for again
}

// receiveReply gives a reply to the handler. If it counts, the peer holds these
// keys, and what we send uses them from now on.
func (p *Port) receiveReply(owner keyOwner, pr Probe, from conn.Endpoint) {
	h := p.handler.Load()
	if h == nil {
		p.counters.noHandler.Add(1)
		return
	}
	if !(*h).Probe(endpointAddr(from), owner.peer.id, pr) {
		p.counters.challenge.Add(1)
		return
	}
	p.counters.replies.Add(1)
	owner.peer.hear(owner.keys)
}
