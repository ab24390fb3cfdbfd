package preflight

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

// PortState is what came of an attempt to connect to a TCP port.
type PortState string

// The states of ports.
const (
	PortOpen        PortState = "open"
	PortRefused     PortState = "refused"     // a reset: nobody listens, or a firewall rejects
	PortFiltered    PortState = "filtered"    // no answer at all: a firewall drops, or nobody is there
	PortUnreachable PortState = "unreachable" // a router or a firewall says that there is no way
	PortForeign     PortState = "foreign"     // somebody else answers than the host's agent
)

// PortCheck is one attempt.
type PortCheck struct {
	Port  uint16    `json:"port"`
	State PortState `json:"state"`
	// Agent says that the host's agent held the port; otherwise it was a service
	// of which no more than the connection is known.
	Agent bool `json:"agent,omitempty"`
	// SeenAs is the source address that the agent saw.
	SeenAs netip.Addr `json:"seenAs,omitzero"`
}

func (c PortCheck) check() error {
	switch c.State {
	case PortOpen, PortRefused, PortFiltered, PortUnreachable, PortForeign:
		return nil
	}
	return errors.New("state of a port is none of the known ones")
}

// connect tries all ports at once.
func (a *agent) connect(ctx context.Context, job *connectJob) ([]PortCheck, error) {
	p, err := a.peer(job.Peer)
	if err != nil {
		return nil, err
	}
	if len(job.Ports) > maxPorts || job.Wait < int64(time.Millisecond) || job.Wait > int64(30*time.Second) {
		return nil, errors.New("number of ports or waiting time is out of range")
	}
	checks := make([]PortCheck, len(job.Ports))
	var wg sync.WaitGroup
	for i, port := range job.Ports {
		wg.Go(func() {
			checks[i] = a.connectPort(ctx, p, job, port, slices.Contains(job.Hello, port))
		})
	}
	wg.Wait()
	return checks, ctx.Err()
}

func (a *agent) connectPort(ctx context.Context, p *peerState, job *connectJob, port uint16, hello bool) PortCheck {
	check := PortCheck{Port: port, Agent: hello}
	ctx, cancel := context.WithTimeout(ctx, time.Duration(job.Wait))
	defer cancel()
	// From the node address, as the services will: an answer then comes to where
	// answers to them will come.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: a.addr.AsSlice(), Zone: a.addr.Zone()}}
	c, err := d.DialContext(ctx, "tcp", netip.AddrPortFrom(p.addr.Addr(), port).String())
	check.State = portState(err)
	if err != nil {
		return check
	}
	defer c.Close()
	if !hello {
		return check
	}
	deadline, _ := ctx.Deadline()
	c.SetDeadline(deadline) //nolint:errcheck // c is open
	if check.SeenAs, err = sayHello(c, p.key, a.self, job.Peer, port); err != nil {
		check.State = PortForeign // connected, and then not the agent's answer
	}
	return check
}

// A hello is what one agent says to another on TCP, and its answer:
//
//	0  4  magic "kih1"                 0  4  magic "kih2"
//	4  2  index of the caller          4 16  address of the caller as seen
//	6  2  index of the called         20 16  MAC over this and the whole hello
//	8  2  port
//	10 16 random
//	26 16 MAC over the above
const (
	helloMagic  = "kih1"
	answerMagic = "kih2"
	helloLen    = 26 + macLen
	answerLen   = 20 + macLen
)

func sayHello(c net.Conn, key *pairKey, self, to, port uint16) (netip.Addr, error) {
	hello := append(make([]byte, 0, helloLen), helloMagic...)
	hello = binary.BigEndian.AppendUint16(hello, self)
	hello = binary.BigEndian.AppendUint16(hello, to)
	hello = binary.BigEndian.AppendUint16(hello, port)
	hello = append(hello, make([]byte, 16)...)
	rand.Read(hello[10:])
	tag := key.tag(hello)
	hello = append(hello, tag[:]...)
	if _, err := c.Write(hello); err != nil {
		return netip.Addr{}, err
	}
	answer := make([]byte, answerLen)
	if _, err := io.ReadFull(c, answer); err != nil {
		return netip.Addr{}, err
	}
	tag = key.tag(answer[:20], hello)
	if string(answer[:4]) != answerMagic || !hmac.Equal(tag[:], answer[20:]) {
		return netip.Addr{}, errForeign
	}
	return netip.AddrFrom16([16]byte(answer[4:20])).Unmap(), nil
}

// answerHello answers a peer; anybody else gets nothing.
func (a *agent) answerHello(c net.Conn, port uint16) error {
	hello := make([]byte, helloLen)
	if _, err := io.ReadFull(c, hello); err != nil {
		return err
	}
	from, to, at := binary.BigEndian.Uint16(hello[4:]), binary.BigEndian.Uint16(hello[6:]), binary.BigEndian.Uint16(hello[8:])
	key := a.key(from)
	if string(hello[:4]) != helloMagic || to != a.self || at != port || key == nil {
		return errForeign
	}
	tag := key.tag(hello[:26])
	if !hmac.Equal(tag[:], hello[26:]) {
		return errForeign
	}
	seen := c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().WithZone("").As16()
	answer := append(append(make([]byte, 0, answerLen), answerMagic...), seen[:]...)
	tag = key.tag(answer, hello)
	_, err := c.Write(append(answer, tag[:]...))
	return err
}

// accept answers hellos until l is closed. More than maxClients at once are
// turned away.
func (a *agent) accept(ctx context.Context, l net.Listener, work *sync.WaitGroup) {
	port := l.Addr().(*net.TCPAddr).AddrPort().Port()
	slots := make(chan struct{}, maxClients)
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond) // out of file descriptors: the others go away within clientLimit
			continue
		}
		select {
		case slots <- struct{}{}:
		default:
			c.Close() //nolint:errcheck // one too many
			continue
		}
		work.Go(func() {
			defer func() { <-slots }()
			defer c.Close()
			stop := context.AfterFunc(ctx, func() { c.Close() }) //nolint:errcheck // only to end the reading
			defer stop()
			c.SetDeadline(time.Now().Add(clientLimit)) //nolint:errcheck // c is open
			a.answerHello(c, port)                     //nolint:errcheck // a stranger, or gone
		})
	}
}
