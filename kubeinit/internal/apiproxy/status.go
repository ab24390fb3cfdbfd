package apiproxy

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"
	"time"
)

// Status is what the proxy says of itself.
type Status struct {
	Version     int              `json:"version"` // of this form: 1
	Listen      []netip.AddrPort `json:"listen"`
	CA          bool             `json:"ca"` // whether certificates are verified
	Upstreams   []UpstreamStatus `json:"upstreams"`
	Connections int              `json:"connections"` // now
	Accepted    int64            `json:"accepted"`    // since the start, as the next two
	Refused     int64            `json:"refused"`     // because of the limits
	Failed      int64            `json:"failed"`      // no server could be connected to
	// Faults are why the configuration as it is now is not in use.
	Faults []string `json:"faults,omitempty"`
}

// UpstreamStatus is a server, and what is known of it. They are in the order in
// which new connections would try them.
type UpstreamStatus struct {
	Upstream
	State       State     `json:"state"`
	Since       time.Time `json:"since"`
	RTTMicros   int64     `json:"rttMicros,omitempty"`
	Connections int       `json:"connections"` // now
	Total       int64     `json:"total"`       // connections of clients so far
	Failed      int64     `json:"failed"`      // dials for clients that failed so far
	Error       string    `json:"error,omitempty"`
}

// maxStatus is the largest status in bytes that ReadStatus takes: 64 servers
// with long errors.
const maxStatus = 256 << 10

// ReadStatus asks the proxy behind a status socket.
func ReadStatus(ctx context.Context, path string) (Status, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return Status{}, fmt.Errorf("read status of the proxy: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { _ = c.Close() })
	defer stop()
	b, err := io.ReadAll(io.LimitReader(c, maxStatus))
	if err != nil {
		return Status{}, fmt.Errorf("read status of the proxy: %w", errors.Join(err, ctx.Err()))
	}
	return ParseStatus(b)
}

// ParseStatus reads what the status socket wrote.
func ParseStatus(b []byte) (Status, error) {
	var s Status
	if err := json.Unmarshal(b, &s); err != nil {
		return Status{}, fmt.Errorf("read status of the proxy: %w", err)
	}
	if s.Version != 1 {
		return Status{}, fmt.Errorf("read status of the proxy: version %d: want 1", s.Version)
	}
	return s, nil
}

// status is how it is now.
func (p *proxy) status() Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := Status{
		Version: 1, CA: p.roots.Load() != nil, Connections: len(p.clients),
		Accepted: p.accepted.Load(), Refused: p.refused.Load(), Failed: p.failed.Load(),
	}
	for a := range p.listeners {
		s.Listen = append(s.Listen, a)
	}
	slices.SortFunc(s.Listen, netip.AddrPort.Compare)
	for _, u := range *p.order.Load() {
		v := UpstreamStatus{
			Upstream: u.Upstream, State: u.state, Since: u.since, RTTMicros: u.smooth.Microseconds(),
			Connections: len(u.sessions), Total: u.total, Failed: u.failed,
		}
		if u.err != nil {
			v.Error = u.err.Error()
		}
		s.Upstreams = append(s.Upstreams, v)
	}
	for _, err := range []error{p.badFile, p.badListen} {
		if err != nil {
			s.Faults = append(s.Faults, err.Error())
		}
	}
	return s
}

// listenStatus opens the status socket, for root and the proxy's user only. It
// takes the place of one that a killed proxy left. Without a path it returns
// nil.
func (p *proxy) listenStatus() (net.Listener, error) {
	path := p.config.Status
	if path == "" {
		return nil, nil
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() == fs.ModeSocket {
		if err := os.Remove(path); err != nil {
			return nil, fmt.Errorf("open status socket: %w", err)
		}
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open status socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("open status socket: %w", err)
	}
	return l, nil
}

// answer writes the status to whoever connects, one after the other, until the
// listener is closed.
func (p *proxy) answer(l net.Listener) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		b := indented(p.status())
		_ = c.SetDeadline(time.Now().Add(time.Second)) // whoever does not read gets nothing
		if _, err := c.Write(b); err != nil {
			p.log.Debug("status not read", "err", err)
		}
		_ = c.Close()
	}
}

// notify tells systemd that clients can connect, as sd_notify(3) does. Without
// a socket it does nothing; if systemd does not listen, it will see for itself.
func notify(socket string) {
	if socket == "" {
		return
	}
	c, err := net.Dial("unixgram", socket) // a leading @ means an abstract socket here, too
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte("READY=1"))
}
