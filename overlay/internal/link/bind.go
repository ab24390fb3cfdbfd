package link

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"

	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Endpoint is the virtual endpoint of a peer: WireGuard keeps it for ever, and
// where it leads follows SetPath. One per gateway and Port.
type Endpoint struct {
	peer trust.GatewayID
	path atomic.Pointer[route]
}

// endpointPrefix begins the text of a virtual endpoint.
const endpointPrefix = "peer:"

// EndpointText is the virtual endpoint of a peer as text: what WireGuard's
// configuration takes as endpoint.
func EndpointText(peer trust.GatewayID) string { return endpointPrefix + peer.String() }

// EndpointText is the function of the same name.
func (*Port) EndpointText(peer trust.GatewayID) string { return EndpointText(peer) }

// ClearSrc does nothing: no source is kept for a path.
func (*Endpoint) ClearSrc() {}

// SrcToString is empty: the kernel picks the source.
func (*Endpoint) SrcToString() string { return "" }

// SrcIP is not valid: the kernel picks the source.
func (*Endpoint) SrcIP() netip.Addr { return netip.Addr{} }

// DstToString is the address of the path, for people and for programs that read
// WireGuard's configuration. Without a path it is 0.0.0.0:0, which they can
// parse.
func (e *Endpoint) DstToString() string { return e.addr().String() }

// DstToBytes is the address of the path.
func (e *Endpoint) DstToBytes() []byte { return addrPortBytes(e.addr()) }

// DstIP is the address of the path.
func (e *Endpoint) DstIP() netip.Addr { return e.addr().Addr() }

func (e *Endpoint) addr() netip.AddrPort {
	if r := e.path.Load(); r != nil {
		return r.addr
	}
	return netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
}

// endpointAddr is the address of an endpoint that a socket made.
func endpointAddr(e conn.Endpoint) netip.AddrPort {
	switch e := e.(type) {
	case *conn.StdNetEndpoint:
		return unmap(e.AddrPort)
	case *packetEndpoint:
		return e.addr
	}
	return netip.AddrPort{}
}

func (p *Port) endpointLocked(id trust.GatewayID) *Endpoint {
	e := p.endpoints[id]
	if e == nil {
		e = &Endpoint{peer: id}
		p.endpoints[id] = e
	}
	return e
}

// Bind is the Port as wireguard-go sees it. Open hands out receive functions
// and Close stops them; the socket stays open until Port.Close.
func (p *Port) Bind() conn.Bind { return &p.bind }

// bind implements conn.Bind.
type bind struct {
	port *Port

	mu   sync.Mutex // guards open; Open and Close are rare
	open *opening
}

// opening is the time between an Open and the next Close.
type opening struct {
	port   *Port
	closed chan struct{}
}

func (o *opening) isClosed() bool {
	select {
	case <-o.closed:
		return true
	case <-o.port.done:
		return true
	default:
		return false
	}
}

// Open gives the receive functions to the device. The port is the one that the
// Port has; another one cannot be asked for.
func (b *bind) Open(port uint16) ([]conn.ReceiveFunc, uint16, error) {
	p := b.port
	if port != 0 && port != p.LocalPort() {
		return nil, 0, fmt.Errorf("listen on port %d: the mesh uses port %d", port, p.LocalPort())
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if p.isClosed() {
		return nil, 0, net.ErrClosed
	}
	if b.open != nil {
		return nil, 0, conn.ErrBindAlreadyOpen
	}
	b.open = &opening{port: p, closed: make(chan struct{})}
	p.setDevice(true)
	fns := make([]conn.ReceiveFunc, len(p.lanes))
	for i := range fns {
		r := &receiver{opening: b.open, lane: p.lanes[i], number: i}
		fns[i] = r.receive
	}
	return fns, p.LocalPort(), nil
}

// Close stops the receive functions; they return net.ErrClosed. On a real socket that
// takes closing it, and it is opened again on the same port before Close
// returns.
func (b *bind) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.open == nil {
		return nil
	}
	close(b.open.closed)
	b.open = nil
	b.port.setDevice(false)
	if b.port.isClosed() {
		return nil
	}
	err := b.port.sock.renew()
	if errors.Is(err, net.ErrClosed) && b.port.isClosed() {
		return nil
	}
	return err
}

// SetMark marks what the socket sends.
func (b *bind) SetMark(mark uint32) error { return b.port.sock.setMark(mark) }

// BatchSize is the most that one call of a receive function or of Send handles.
func (b *bind) BatchSize() int { return b.port.batch }

// ParseEndpoint reads the text of a virtual endpoint; there are no others.
func (b *bind) ParseEndpoint(s string) (conn.Endpoint, error) {
	text, ok := strings.CutPrefix(s, endpointPrefix)
	if !ok {
		return nil, fmt.Errorf("endpoint %q: want %s and a gateway id: paths are found by probes, not configured", s, endpointPrefix)
	}
	id, err := trust.ParseGatewayID(text)
	if err != nil {
		return nil, fmt.Errorf("endpoint %q: %w", s, err)
	}
	b.port.mu.Lock()
	defer b.port.mu.Unlock()
	return b.port.endpointLocked(id), nil
}

// Send sends packets of WireGuard to a peer, or back to where a packet came
// from. Without a path they are dropped, as a network does; that is counted and
// no error, because WireGuard would log each.
func (b *bind) Send(bufs [][]byte, to conn.Endpoint) error {
	p := b.port
	if e, ok := to.(*Endpoint); ok {
		r := e.path.Load()
		if r == nil {
			p.counters.noPath.Add(uint64(len(bufs)))
			return nil
		}
		to = r.endpoint
	}
	return p.sock.send(bufs, to)
}

// receiver is one receive function of an opening. Used by one goroutine.
type receiver struct {
	opening *opening
	lane    *lane
	number  int

	holds      bool // the lane
	raw        conn.ReceiveFunc
	generation uint64
}

// receive is a conn.ReceiveFunc: what is not WireGuard is taken out of the
// batch by setting its size to zero.
func (r *receiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	p := r.opening.port
	if err := r.acquire(); err != nil {
		return 0, err
	}
	if len(r.lane.left) > 0 {
		return r.lane.take(bufs, sizes, eps), nil
	}
	for {
		n, err := r.raw(bufs, sizes, eps)
		if err == nil {
			p.sift(bufs, sizes[:n], eps)
			return n, nil
		}
		if r.opening.isClosed() {
			r.release()
			return 0, net.ErrClosed
		}
		// The socket was renewed for another reason than closing us.
		if errors.Is(err, net.ErrClosed) && r.refresh() {
			continue
		}
		p.counters.receiveErrors.Add(1)
		r.release()
		return 0, err
	}
}

// acquire waits until the lane is ours, once.
func (r *receiver) acquire() error {
	if r.opening.isClosed() {
		r.release()
		return net.ErrClosed
	}
	if r.holds {
		return nil
	}
	select {
	case <-r.lane.turn:
	case <-r.opening.closed:
		return net.ErrClosed
	case <-r.opening.port.done:
		return net.ErrClosed
	}
	r.holds = true
	if r.opening.isClosed() || !r.refresh() {
		r.release()
		return net.ErrClosed
	}
	return nil
}

// refresh takes the receive function of the present generation of the socket
// and reports whether it is another than before.
func (r *receiver) refresh() bool {
	raw, generation, err := r.opening.port.sock.receiver(r.number)
	if err != nil || generation == r.generation {
		return false
	}
	r.raw, r.generation = raw, generation
	return true
}

func (r *receiver) release() {
	if r.holds {
		r.holds = false
		r.generation = 0
		r.lane.turn <- struct{}{}
	}
}
