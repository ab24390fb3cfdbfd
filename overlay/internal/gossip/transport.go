package gossip

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/hashicorp/memberlist"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

var (
	errStopped     = errors.New("gossip has ended")
	errDestination = errors.New("not a stored gateway at its own overlay address")
	errNameless    = errors.New("gateways are reached by name only")
)

// transport is memberlist's way to the network.
type transport struct {
	cfg    Config
	filter *filter
	self   netip.Addr
	count  *counters

	packets chan *memberlist.Packet // filtered, in front of handed
	handed  chan *memberlist.Packet // to memberlist, unbuffered: a packet that was taken has been seen
	streams chan net.Conn
	places  chan struct{} // holds a token for each state exchange of others
	done    chan struct{} // closed by close

	mu      sync.Mutex // guards the rest; close takes it to close done
	serving map[trust.GatewayID]struct{}
	endings map[int]func() // what close calls: dials and streams to interrupt
	serial  int            // of the latest ending
	pings   [64]uint32     // sequence numbers of the latest pings that we sent
	pinged  int            // how many pings we sent
}

func newTransport(cfg Config, f *filter, self netip.Addr) *transport {
	return &transport{
		cfg:     cfg,
		filter:  f,
		self:    self,
		count:   f.count,
		packets: make(chan *memberlist.Packet, maxQueuedPackets),
		handed:  make(chan *memberlist.Packet),
		streams: make(chan net.Conn),
		places:  make(chan struct{}, maxStreams),
		done:    make(chan struct{}),
		serving: make(map[trust.GatewayID]struct{}),
		endings: make(map[int]func()),
	}
}

// pump hands packets to memberlist until ctx ends.
func (t *transport) pump(ctx context.Context) {
	for {
		select {
		case p := <-t.packets:
			select {
			case t.handed <- p:
			case <-ctx.Done():
				return
			}
		case <-ctx.Done():
			return
		}
	}
}

// close ends all streams and lets nothing out any more. memberlist waits for
// answers to its probes for up to 20 s even after it was shut down, so they
// get an answer here; memberlist must still be running.
func (t *transport) close() {
	t.mu.Lock()
	close(t.done)
	endings := t.endings
	t.endings = nil
	t.mu.Unlock()
	for _, end := range endings {
		end()
	}
	acks := t.outstandingAcks()
	if acks == nil {
		return
	}
	self := &net.UDPAddr{IP: t.self.AsSlice(), Port: Port}
	t.handed <- &memberlist.Packet{Buf: acks, From: self, Timestamp: time.Now()}
	// memberlist takes packets one after the other: when it takes this one, which says nothing, it has seen the acks.
	t.handed <- &memberlist.Packet{Buf: []byte{typeCompound, 0}, From: self, Timestamp: time.Now()}
}

// atEnd has close call f, unless forget was called first. After close, f is called at once.
func (t *transport) atEnd(f func()) (forget func()) {
	t.mu.Lock()
	if t.endings == nil {
		t.mu.Unlock()
		f()
		return func() {}
	}
	t.serial++
	id := t.serial
	t.endings[id] = f
	t.mu.Unlock()
	return func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.endings, id)
	}
}

func (t *transport) isClosed() bool {
	select {
	case <-t.done:
		return true
	default:
		return false
	}
}

func (t *transport) outstandingAcks() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	var v verdict
	for _, seq := range t.pings[:min(t.pinged, len(t.pings))] {
		v.pass(typeAck, (&ack{seq}).fields())
	}
	if len(v.messages) == 0 {
		return nil
	}
	return join(v.messages)
}

// FinalAdvertiseAddr is our overlay address.
func (t *transport) FinalAdvertiseAddr(string, int) (net.IP, int, error) {
	return t.self.AsSlice(), Port, nil
}

// WriteTo is for nameless addresses, which do not exist here.
func (t *transport) WriteTo([]byte, string) (time.Time, error) { return time.Time{}, errNameless }

// WriteToAddress sends a packet to a stored gateway. That it cannot be sent is
// counted and otherwise the same as that it got lost: memberlist would not
// suspect a member to which sending is an error, and never forget one that was
// revoked.
func (t *transport) WriteToAddress(b []byte, to memberlist.Address) (time.Time, error) {
	if t.isClosed() {
		return time.Time{}, errStopped
	}
	t.rememberPing(b)
	peer, err := t.destination(to)
	if err == nil {
		err = t.send(peer, b)
	}
	if err == nil {
		t.count.add(packetsOut)
	}
	return time.Now(), nil
}

func (t *transport) send(peer trust.GatewayID, b []byte) error {
	if len(b) > MaxPacket {
		t.count.add(sendFailed)
		return fmt.Errorf("packet of %d bytes", len(b))
	}
	err := t.cfg.Send(peer, b)
	if err != nil {
		t.count.add(sendFailed)
	}
	return err
}

// destination finds the peer that memberlist means.
func (t *transport) destination(to memberlist.Address) (trust.GatewayID, error) {
	at, err := netip.ParseAddrPort(to.Addr)
	if err != nil || to.Name == t.filter.name || !t.filter.isNode(to.Name, at.Addr().AsSlice(), at.Port()) {
		t.count.add(dropDestination)
		return trust.GatewayID{}, errDestination
	}
	return trust.ParseGatewayID(to.Name)
}

// rememberPing keeps the sequence number of a ping, for close. memberlist puts
// a ping first in a packet.
func (t *transport) rememberPing(b []byte) {
	if len(b) > 5 && b[0] == typeChecksum {
		b = b[5:]
	}
	if len(b) > 4 && b[0] == typeCompound {
		first := 2 + 2*int(b[1])
		b = b[min(first, len(b)):]
	}
	if len(b) == 0 || b[0] != typePing {
		return
	}
	var p ping
	if d := newDecoder(b[1:]); d.message(p.fields()) != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pings[t.pinged%len(t.pings)] = p.seq
	t.pinged++
}

// PacketCh is where memberlist takes packets from.
func (t *transport) PacketCh() <-chan *memberlist.Packet { return t.handed }

// StreamCh is where memberlist takes streams of others from.
func (t *transport) StreamCh() <-chan net.Conn { return t.streams }

// DialTimeout is for nameless addresses, which do not exist here.
func (t *transport) DialTimeout(string, time.Duration) (net.Conn, error) { return nil, errNameless }

// DialAddressTimeout opens a stream to a stored gateway.
func (t *transport) DialAddressTimeout(to memberlist.Address, timeout time.Duration) (net.Conn, error) {
	peer, err := t.destination(to)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), min(timeout, streamTimeout))
	defer cancel()
	defer t.atEnd(cancel)()
	c, err := t.cfg.Open(ctx, peer)
	if err != nil {
		return nil, err
	}
	t.count.add(streamsOut)
	return t.wrap(c, time.Now().Add(streamTimeout)), nil
}

// Shutdown has nothing to do: close was called before.
func (t *transport) Shutdown() error { return nil }

// serve gives a stream of a peer to memberlist and waits until it is over.
// There is one for each peer and a few in all; whoever comes while all places
// are taken waits, within the time that the stream has.
func (t *transport) serve(ctx context.Context, peer trust.GatewayID, c net.Conn) {
	defer func() { _ = c.Close() }() // it is over either way
	if !t.enter(peer) {
		t.count.add(dropStreams)
		return
	}
	defer t.leave(peer)
	end := time.Now().Add(streamTimeout)
	ctx, cancel := context.WithDeadline(ctx, end)
	defer cancel()
	select {
	case t.places <- struct{}{}:
		defer func() { <-t.places }()
	case <-ctx.Done():
		t.count.add(dropStreams)
		return
	case <-t.done:
		return
	}
	s := t.wrap(c, end)
	defer func() { _ = s.Close() }()
	select {
	case t.streams <- s:
		t.count.add(streamsIn)
	case <-ctx.Done():
		return
	case <-t.done:
		return
	}
	select {
	case <-s.closed:
	case <-ctx.Done():
	case <-t.done:
	}
}

// enter takes the one place of a peer.
func (t *transport) enter(peer trust.GatewayID) bool {
	_, stored := t.filter.addr(peer)
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, ok := t.serving[peer]; ok || !stored || peer == t.filter.self {
		return false
	}
	t.serving[peer] = struct{}{}
	return true
}

func (t *transport) leave(peer trust.GatewayID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.serving, peer)
}

// joinName is the form of a member that memberlist's Join understands without asking anybody: name/[address]:port.
func joinName(id trust.GatewayID, addr netip.Addr) string {
	return id.String() + "/" + net.JoinHostPort(addr.String(), strconv.Itoa(Port))
}
