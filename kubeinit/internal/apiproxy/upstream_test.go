package apiproxy

import (
	"bufio"
	"context"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

const ms = time.Millisecond

func TestRoundTripsMoveTheOrderOnlyWhenTheyDiffer(t *testing.T) {
	for _, tt := range []struct {
		name  string
		trips []time.Duration
		want  time.Duration
	}{
		{"the first counts", []time.Duration{40 * ms}, 40 * ms},
		{"noise does not", []time.Duration{40 * ms, 44 * ms, 36 * ms, 45 * ms, 38 * ms}, 40 * ms},
		{"one that is far off does", []time.Duration{40 * ms, 120 * ms}, 60 * ms},
		{"a lasting change does", slices.Concat([]time.Duration{40 * ms}, slices.Repeat([]time.Duration{80 * ms}, 40)), 76876847 * time.Nanosecond},
		{"a factor of a little does not", []time.Duration{200 * time.Microsecond, 4 * ms}, 200 * time.Microsecond},
	} {
		u := &upstream{}
		for _, d := range tt.trips {
			u.measured(d)
		}
		if (u.rtt - tt.want).Abs() > ms {
			t.Errorf("%s: %v (smooth %v), want %v", tt.name, u.rtt, u.smooth, tt.want)
		}
	}
}

func TestOrder(t *testing.T) {
	mk := func(name string, s State, host, site bool, rtt time.Duration) *upstream {
		return &upstream{Upstream: Upstream{Name: name, OwnHost: host, OwnSite: site}, state: s, rtt: rtt}
	}
	list := []*upstream{
		mk("own host, down", Down, true, true, 1),
		mk("unknown", Unknown, false, false, 0),
		mk("far", Ready, false, false, 80*ms),
		mk("near", Ready, false, false, 8*ms),
		mk("as near", Ready, false, false, 8*ms),
		mk("own host, live", Live, true, false, 1),
		mk("own site", Ready, false, true, 90*ms),
		mk("own host", Ready, true, false, 95*ms),
		mk("silent", Silent, false, true, 1),
	}
	want := []string{"own host", "own site", "near", "as near", "far", "own host, live", "unknown", "silent", "own host, down"}
	slices.SortStableFunc(list, better)
	for i, u := range list {
		if u.Name != want[i] {
			t.Errorf("place %d: %s, want %s", i, u.Name, want[i])
		}
	}
}

func TestStatesAreWords(t *testing.T) {
	for s := Ready; s <= Down; s++ {
		text, _ := s.MarshalText()
		var again State
		if err := again.UnmarshalText(text); err != nil || again != s {
			t.Errorf("%d: %s, %v, %v", s, text, again, err)
		}
	}
	var s State
	if err := s.UnmarshalText([]byte("fine")); err == nil {
		t.Error("fine is a state")
	}
}

// hostile is a TLS server that answers a question with anything.
func newHostile(t *testing.T, a *authority, answer func(net.Conn)) netip.AddrPort {
	t.Helper()
	cert := a.issue(t, &x509.Certificate{DNSNames: []string{"x"}})
	l, err := tls.Listen("tcp", "127.0.9.50:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			if _, err := http.ReadRequest(bufio.NewReader(c)); err == nil {
				answer(c)
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { l.Close(); <-ended })
	return netip.MustParseAddrPort(l.Addr().String())
}

// What a server answers costs little, whatever it is, and is not ready.
func TestAnswersOfHostileServers(t *testing.T) {
	a := newAuthority(t)
	for name, answer := range map[string]func(net.Conn){
		"nothing": func(net.Conn) {},
		"no HTTP": func(c net.Conn) { _, _ = io.WriteString(c, "SSH-2.0-x\r\n\r\n") },
		"an endless line": func(c net.Conn) {
			for _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\nX: "); err == nil; {
				_, err = c.Write(make([]byte, 4096))
			}
		},
		"endless headers": func(c net.Conn) {
			for _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n"); err == nil; {
				_, err = io.WriteString(c, "X: "+strings.Repeat("y", 1000)+"\r\n")
			}
		},
		"another step first": func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 100 Continue\r\n\r\n") },
		"a server's error":   func(c net.Conn) { _, _ = io.WriteString(c, "HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n") },
	} {
		p := &probe{address: newHostile(t, a, answer), dial: (&net.Dialer{}).DialContext, timing: patient}
		if r := p.ask(t.Context(), roots(a)); r.state < Live || r.err != nil && len(r.err.Error()) > maxError+3 {
			t.Errorf("%s: %+v", name, r)
		}
		p.close()
	}
}

func TestAnAnswerWithoutEndIsCutOff(t *testing.T) {
	a := newAuthority(t)
	sent := 0
	p := &probe{dial: (&net.Dialer{}).DialContext, timing: patient, address: newHostile(t, a, func(c net.Conn) {
		for _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n"); err == nil && sent < 1<<30; {
			var n int
			n, err = io.WriteString(c, "X: "+strings.Repeat("y", 1000)+"\r\n")
			sent += n
		}
	})}
	if r := p.ask(t.Context(), roots(a)); r.state != Silent || r.err == nil || !strings.Contains(r.err.Error(), "no end") {
		t.Errorf("%+v", r)
	}
}

func TestAnEndlessBodyIsNotReadTwice(t *testing.T) {
	a := newAuthority(t)
	p := &probe{dial: (&net.Dialer{}).DialContext, timing: patient, address: newHostile(t, a, func(c net.Conn) {
		for _, err := io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n"); err == nil; {
			_, err = c.Write(make([]byte, 4096))
		}
	})}
	defer p.close()
	for range 2 {
		if r := p.ask(t.Context(), roots(a)); r.err != nil || r.rtt == 0 {
			t.Errorf("%+v: want a new connection each time", r)
		}
	}
}

func TestQuestionsShareAConnection(t *testing.T) {
	a := newAuthority(t)
	s := newAPIServer(t, a, "a", "127.0.9.51")
	dials := 0
	p := &probe{address: s.address, timing: patient, dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		dials++
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}
	defer p.close()
	pool := roots(a)
	for range 2 * keep {
		if r := p.ask(t.Context(), pool); r.state != Ready {
			t.Fatalf("%+v", r)
		}
	}
	if dials != 2 {
		t.Errorf("%d dials for %d questions", dials, 2*keep)
	}
	if p.ask(t.Context(), roots(a)); dials != 3 {
		t.Errorf("another authority does not look at the certificate again: %d dials", dials)
	}
	// A connection that the server closed says nothing about the server.
	s.CloseClientConnections()
	if r := p.ask(t.Context(), p.roots); r.state != Ready || dials != 4 {
		t.Errorf("%+v after %d dials", r, dials)
	}
}

func TestCertificatesForClientsAreNoServers(t *testing.T) {
	a := newAuthority(t)
	cert := a.issue(t, &x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	l, err := tls.Listen("tcp", "127.0.9.52:0", &tls.Config{Certificates: []tls.Certificate{cert}})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_ = c.(*tls.Conn).Handshake()
			c.Close()
		}
	}()
	p := &probe{address: netip.MustParseAddrPort(l.Addr().String()), dial: (&net.Dialer{}).DialContext, timing: patient}
	if r := p.ask(t.Context(), roots(a)); r.state != Silent || r.err == nil {
		t.Errorf("a node's own certificate passes for an API server: %+v", r)
	}
}
