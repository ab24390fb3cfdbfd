//go:build openvpn || openvpnversions

package openvpn

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"
)

// pingUntil pings the peer's inner address until it answers and returns how long
// that took.
func (l *lab) pingUntil(within time.Duration) time.Duration {
	l.t.Helper()
	began := time.Now()
	p := l.newPinger(false, l.inner(2), 56)
	defer func() { _ = p.conn.Close() }()
	for {
		p.send()
		time.Sleep(100 * time.Millisecond)
		if _, back := p.count(); back > 0 {
			return time.Since(began)
		}
		if time.Since(began) > within {
			l.t.Fatalf("no ping came back within %v", within)
		}
	}
}

// pings reports whether a ping of the peer comes back.
func (l *lab) pings() bool {
	p := l.newPinger(true, l.inner(1), 56)
	defer func() { _ = p.conn.Close() }()
	p.send()
	<-time.After(2 * time.Second)
	_, back := p.count()
	return back > 0
}

// ping sends five pings from here or there, all of which must come back.
func (l *lab) ping(there bool, to netip.Addr, size int) {
	l.t.Helper()
	p := l.newPinger(there, to, size)
	defer func() { _ = p.conn.Close() }()
	for range 5 {
		p.send()
		time.Sleep(20 * time.Millisecond)
	}
	p.settle()
}

// checkTraffic waits for the connection, pings both ways, small and large, and
// moves bytes over TCP.
func (l *lab) checkTraffic() {
	l.t.Helper()
	l.pingUntil(labPatience)
	ours, peers := l.inner(1), l.inner(2)
	for _, size := range []int{56, 1472} {
		l.ping(false, peers, size)
		l.ping(true, ours, size)
	}
	l.checkTCP(1 << 20)
}

// pingWhile pings until done. No ping may be lost.
func (l *lab) pingWhile(done func() bool) {
	l.t.Helper()
	p := l.newPinger(false, l.inner(2), 56)
	defer func() { _ = p.conn.Close() }()
	deadline := time.Now().Add(5 * time.Minute) // not reached, unless something is wrong
	for !done() && time.Now().Before(deadline) {
		p.send()
		time.Sleep(100 * time.Millisecond)
	}
	p.settle()
}

// transfers bounds the TCP transfers at once, so that what a test measures is not
// the load of the others.
var transfers = make(chan struct{}, 4)

// checkTCP sends bytes to an echo server behind the peer and compares.
func (l *lab) checkTCP(size int) {
	l.t.Helper()
	transfers <- struct{}{}
	defer func() { <-transfers }()
	addr := net.JoinHostPort(l.inner(2).String(), "7007")
	var server net.Listener
	l.inside(func() {
		var lc net.ListenConfig
		var err error
		if server, err = lc.Listen(l.t.Context(), "tcp", addr); err != nil {
			l.t.Error(err)
		}
	})
	if server == nil {
		return
	}
	defer func() { _ = server.Close() }()
	go func() { // ends with the connection
		c, err := server.Accept()
		if err != nil {
			return
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}()
	d := net.Dialer{Timeout: labPatience}
	conn, err := d.DialContext(l.t.Context(), "tcp", addr)
	if err != nil {
		l.t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(labPatience))
	want := make([]byte, size)
	for i := range want {
		want[i] = byte(i * i >> 7)
	}
	go func() { _, _ = conn.Write(want) }() // ends with the deadline at the latest
	got := make([]byte, size)
	if n, err := io.ReadFull(conn, got); err != nil || !bytes.Equal(got, want) {
		l.t.Fatalf("echo: %d of %d bytes, %v", n, size, err)
	}
}

// prove does what every row of the matrix must withstand: traffic, more than the
// restart timeout without any, and a restart of either side. Before the restarts
// it calls check, if there is one.
func (s *staticLab) prove(start func() *realPeer, check func()) {
	s.t.Helper()
	p := start()
	s.checkTraffic()
	if n := s.e.Status().Restarts; n > 0 && s.cfg.Transport != TCPConnect { // which may be there before its peer
		s.t.Errorf("%d restarts before the first connection", n)
	}
	s.checkIdle(p, idleTime)
	s.checkContent(p)
	if check != nil {
		check()
	}
	p.stop(syscall.SIGKILL)
	start()
	peer := s.pingUntil(s.keepalive())
	s.checkTraffic()
	s.reopen()
	ours := s.pingUntil(s.keepalive())
	s.checkTraffic()
	s.note("back %s after a kill of openvpn, %s after ours", seconds(peer), seconds(ours))
}

// idleTime is longer than the restart timeout of both sides.
const idleTime = 70 * time.Second

// keepalive is how long a recovery may take.
func (s *staticLab) keepalive() time.Duration {
	if s.cfg.PingRestart > 0 {
		return s.cfg.PingRestart + 10*time.Second
	}
	return defaultPingRestart + 10*time.Second
}

// checkIdle says nothing for a while, in which only keepalives pass.
func (s *staticLab) checkIdle(p *realPeer, long time.Duration) {
	s.t.Helper()
	before := s.e.Status()
	<-time.After(long)
	after := s.e.Status()
	if after.Restarts != before.Restarts || after.State != StateUp {
		s.t.Errorf("the idle connection ended: %+v", after)
	}
	if strings.Contains(p.log.String(), "Inactivity timeout") {
		s.t.Error("the peer gave the idle connection up")
	}
	s.ping(false, s.inner(2), 56)
	s.ping(true, s.inner(1), 56)
}

// checkContent looks for complaints in the log of the peer.
func (s *staticLab) checkContent(p *realPeer) {
	s.t.Helper()
	for _, bad := range []string{"Bad ", "Authenticate/Decrypt", "FRAG_IN error", "decrypt error", "TLS Error", "inconsistent", "is present in"} {
		if strings.Contains(p.log.String(), bad) {
			s.t.Errorf("the peer complains: %q", bad)
		}
	}
}

func seconds(d time.Duration) string { return d.Round(time.Second).String() }

// reopen ends our side without a word and starts it again at once.
func (s *staticLab) reopen() {
	s.t.Helper()
	if s.cfg.ExitNotify {
		s.t.Fatal("it would say goodbye")
	}
	_ = s.e.Close()
	s.device.reuse()
	s.e = mustReopen(s.t, s.cfg)
	e := s.e
	s.t.Cleanup(func() { _ = e.Close() })
}

// mustReopen opens where another endpoint was just closed. A process that is being
// forked elsewhere in this program holds the old socket for an instant.
func mustReopen(t testing.TB, cfg Config) *Endpoint {
	t.Helper()
	var e *Endpoint
	eventuallyLab(t, "open", func() (ok bool) {
		var err error
		if e, err = Open(t.Context(), cfg); err != nil && !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatal(err)
		}
		return err == nil
	})
	return e
}
