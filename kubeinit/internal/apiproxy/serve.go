package apiproxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// session is one connection of a client.
type session struct {
	client *net.TCPConn
	source netip.Addr
	// server and upstream are nil until a server is found; guarded by proxy.mu.
	server   *net.TCPConn
	upstream *upstream
}

// close ends the session from outside; proxy.mu is held. Closing a socket does
// not block.
func (s *session) close() {
	_ = s.client.Close()
	if s.server != nil {
		_ = s.server.Close()
	}
}

// accept takes connections until the listener is closed.
func (p *proxy) accept(ctx context.Context, l net.Listener) {
	wait := time.Duration(0)
	for {
		c, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Out of file descriptors, most likely: more of the same does not help.
			wait = min(max(2*wait, 10*time.Millisecond), time.Second)
			p.log.Warn("connection not accepted", "err", err, "wait", wait)
			pause(ctx, wait)
			continue
		}
		wait = 0
		s := &session{client: c.(*net.TCPConn), source: sourceOf(c)}
		if !p.admit(ctx, s) {
			p.refused.Add(1)
			reset(s.client)
			continue
		}
		p.accepted.Add(1)
		p.group.Go(func() { p.serve(ctx, s) })
	}
}

// pause waits, or until ctx ends.
func pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}

func sourceOf(c net.Conn) netip.Addr {
	a, _ := netip.ParseAddrPort(c.RemoteAddr().String()) // of a TCP connection it always is one
	return a.Addr().Unmap().WithZone("")
}

// admit counts a session, if the limits and ctx allow it.
func (p *proxy) admit(ctx context.Context, s *session) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	full := len(p.clients) >= p.config.MaxConnections ||
		!s.source.IsLoopback() && p.sources[s.source] >= p.config.MaxPerSource
	if full && time.Since(p.complained) > time.Minute {
		p.complained = time.Now()
		p.log.Warn("too many connections, further ones are refused", "endpoint", s.source, "count", len(p.clients))
	}
	if full || ctx.Err() != nil {
		return false
	}
	p.clients[s] = struct{}{}
	p.sources[s.source]++
	return true
}

// release undoes admit and attach.
func (p *proxy) release(s *session) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s.close()
	delete(p.clients, s)
	if p.sources[s.source]--; p.sources[s.source] == 0 {
		delete(p.sources, s.source)
	}
	if s.upstream != nil {
		delete(s.upstream.sessions, s)
	}
}

// attach gives a session its server, if both are still wanted.
func (p *proxy) attach(ctx context.Context, s *session, u *upstream, server *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ctx.Err() != nil || u.removed {
		return false
	}
	s.server, s.upstream = server, u
	u.sessions[s] = struct{}{}
	u.total++
	return true
}

// serve is the life of one session.
func (p *proxy) serve(ctx context.Context, s *session) {
	defer p.release(s)
	u, server := p.connect(ctx)
	if server == nil {
		p.failed.Add(1)
		reset(s.client)
		return
	}
	if !p.attach(ctx, s, u, server) {
		_ = server.Close()
		reset(s.client)
		return
	}
	var up sync.WaitGroup
	up.Go(func() { p.copy(server, s.client) }) // ends when copy below ends or either is closed
	p.copy(s.client, server)
	up.Wait()
}

// copy passes on what from sends, and that it has ended. The other direction
// may go on for a while then. After an error nothing goes on.
//
// io.Copy between two TCP connections happens in the kernel on Linux.
func (p *proxy) copy(to, from *net.TCPConn) {
	_, err := io.Copy(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err == nil {
		err = to.SetReadDeadline(time.Now().Add(p.timing.half))
	}
	if err != nil {
		_ = to.Close()
		_ = from.Close()
	}
}

// reset closes a connection so that the client notices at once.
func reset(c *net.TCPConn) {
	_ = c.SetLinger(0) // otherwise it is a polite end, which will do
	_ = c.Close()
}

// attempt is a dial that has ended.
type attempt struct {
	u    *upstream
	conn net.Conn
}

// connect dials servers, best first, until one takes the connection or time is
// up; then it returns nil. The next one is tried as soon as one has failed, or
// beside it when it takes longer than its round trip explains.
func (p *proxy) connect(ctx context.Context) (*upstream, *net.TCPConn) {
	ctx, cancel := context.WithTimeout(ctx, p.timing.total)
	defer cancel()
	order := *p.order.Load()
	ended := make(chan attempt)
	pending := 0
	next := time.NewTimer(0)
	defer next.Stop()
	for {
		if len(order) == 0 && pending == 0 {
			return nil, nil
		}
		select {
		case <-ctx.Done():
			return nil, nil
		case a := <-ended:
			pending--
			if a.conn != nil {
				return a.u, a.conn.(*net.TCPConn)
			}
			next.Reset(0)
		case <-next.C:
			if len(order) == 0 {
				continue
			}
			u := order[0]
			order = order[1:]
			pending++
			next.Reset(p.patience(u))
			p.group.Go(func() { p.try(ctx, u, ended) })
		}
	}
}

// patience is how long to wait for a server before the next one is tried too:
// three round trips, within bounds.
func (p *proxy) patience(u *upstream) time.Duration {
	p.mu.Lock()
	defer p.mu.Unlock()
	return min(max(p.timing.stagger, 3*u.rtt), 4*p.timing.stagger)
}

// try dials one server. It ends with ctx at the latest; a connection that comes
// too late is closed.
func (p *proxy) try(ctx context.Context, u *upstream, ended chan<- attempt) {
	dialing, cancel := context.WithTimeout(ctx, p.timing.dial)
	defer cancel()
	conn, err := p.dial(dialing, "tcp", u.address.String())
	if err != nil {
		p.missed(ctx, u)
		conn = nil
	}
	select {
	case ended <- attempt{u, conn}:
	case <-ctx.Done():
		if conn != nil {
			_ = conn.Close()
		}
	}
}

// missed counts a dial that failed and has the server asked at once. A dial that
// was given up because another was faster says nothing.
func (p *proxy) missed(ctx context.Context, u *upstream) {
	if ctx.Err() != nil {
		return
	}
	p.mu.Lock()
	u.failed++
	p.mu.Unlock()
	select {
	case u.kick <- struct{}{}:
	default:
	}
}
