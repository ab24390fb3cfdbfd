package apiproxy

import (
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// three are API servers a, b and c of one authority, on 127.0.9.11 to 13.
func three(t testing.TB) (*authority, map[string]*apiServer, []Upstream) {
	t.Helper()
	ca := newAuthority(t)
	servers := map[string]*apiServer{}
	var list []Upstream
	for i, name := range []string{"a", "b", "c"} {
		s := newAPIServer(t, ca, name, "127.0.9.1"+string(rune('1'+i)))
		servers[name] = s
		list = append(list, Upstream{Address: s.address, Name: name})
	}
	return ca, servers, list
}

func TestNewConnectionsGoToTheNearest(t *testing.T) {
	ca, servers, list := three(t)
	r := start(t, list, func(p *proxy, _ *Config) { p.timing.stagger = time.Minute })
	delay := func(a, b, c time.Duration) {
		r.slow(map[netip.AddrPort]time.Duration{servers["a"].address: a, servers["b"].address: b, servers["c"].address: c})
	}
	// Round trips decide, and follow what is measured. A new one is measured with
	// every thirtieth question.
	delay(400*time.Millisecond, 200*time.Millisecond, 0)
	r.expectOrder("c:ready", "b:ready", "a:ready")
	r.expectNew(ca, "c")
	delay(0, 200*time.Millisecond, 400*time.Millisecond)
	r.expectOrder("a:ready", "b:ready", "c:ready")
	r.expectNew(ca, "a")

	// The own site comes before a shorter round trip, the own host before both.
	for _, tt := range []struct{ host, site int }{{-1, 2}, {1, 2}} {
		changed := append([]Upstream{}, list...)
		changed[tt.site].OwnSite = true
		want := []string{"c:ready", "a:ready", "b:ready"}
		if tt.host >= 0 {
			changed[tt.host].OwnHost = true
			want = []string{"b:ready", "c:ready", "a:ready"}
		}
		c := r.config
		c.Upstreams = changed
		write(t, r.path, c.JSON())
		r.expectOrder(want...)
		r.expectNew(ca, want[0][:1])
	}
}

func TestConnectionsMoveWhenTheirServerDies(t *testing.T) {
	ca, servers, list := three(t)
	list[0].OwnHost, list[1].OwnSite = true, true
	r := start(t, list, nil)
	r.expectOrder("a:ready", "b:ready", "c:ready")
	old := r.expectNew(ca, "a")
	address := servers["a"].address
	servers["a"].kill()
	if got, err := old.ask(); err == nil {
		t.Errorf("a dead server answers %q", got)
	}
	eventually(t, "another answers", func() (string, bool) {
		c, err := r.connect(ca)
		if err != nil {
			return err.Error(), false // the proxy never fails while one lives, but TLS may be cut by the kill
		}
		got, err := c.ask()
		return got, err == nil && got != "a"
	})
	r.expectOrder("b:ready", "c:ready", "a:down")
	kept := r.expectNew(ca, "b")
	newAPIServer(t, ca, "a again", address.String())
	r.expectOrder("a:ready", "b:ready", "c:ready")
	r.expectNew(ca, "a again")
	kept.expect("b") // what works is left alone
}

// With the durations that are in use: a server whose host loses power answers
// nothing any more, neither on connections that exist nor to new ones.
func TestFailoverFromABlackHoleTakesFiveSeconds(t *testing.T) {
	ca, servers, list := three(t)
	list[0].OwnHost, list[1].OwnSite = true, true // whatever the round trips are
	r := start(t, list, func(p *proxy, _ *Config) { p.timing = defaults })
	eventually(t, "order", func() (string, bool) {
		s := r.status()
		return "", s.Upstreams[0].Name == "a" && s.Upstreams[0].State == Ready && s.Upstreams[1].State == Ready && s.Upstreams[2].State == Ready
	})
	old := r.expectNew(ca, "a")
	began := time.Now()
	close(servers["a"].mute)
	r.slow(map[netip.AddrPort]time.Duration{servers["a"].address: time.Hour})

	// A new connection does not wait until it is known.
	r.expectNew(ca, "b")
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("a new connection took %v", d)
	}
	if got, err := old.ask(); err == nil {
		t.Errorf("a black hole answers %q", got)
	}
	r.expectNew(ca, "b")
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("an old connection was closed after %v", d)
	} else {
		t.Logf("an old connection was closed after %v", d)
	}
	r.slow(nil)
}

// A listener whose queue is full does not answer a SYN: the kernel's own black
// hole.
func newFullListener(t testing.TB) netip.AddrPort {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 9, 30}}); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := syscall.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	in := name.(*syscall.SockaddrInet4)
	a := netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
	for range 100 {
		c, err := net.DialTimeout("tcp", a.String(), 300*time.Millisecond)
		if err != nil {
			return a
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Fatal("the queue has no end")
	return a
}

func TestABlackHoleIsTriedLast(t *testing.T) {
	ca := newAuthority(t)
	b := newAPIServer(t, ca, "b", "127.0.9.12")
	hole := newFullListener(t)
	r := start(t, []Upstream{{Address: hole, Name: "hole", OwnHost: true}, {Address: b.address, Name: "b"}}, func(p *proxy, _ *Config) { p.timing = defaults })
	began := time.Now()
	r.expectNew(ca, "b") // before anything is known
	if d := time.Since(began); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
	r.expectOrder("b:ready", "hole:down")
	r.expectNew(ca, "b")
}

func TestAHungServerLosesItsConnections(t *testing.T) {
	ca, servers, list := three(t)
	list[0].OwnHost, list[1].OwnSite = true, true
	r := start(t, list, func(p *proxy, _ *Config) {
		p.timing.kept, p.timing.fresh, p.timing.hung = 2*time.Second, 2*time.Second, 10*time.Millisecond
	})
	r.expectOrder("a:ready", "b:ready", "c:ready")
	old := r.expectNew(ca, "a")
	close(servers["a"].mute)
	if got, err := old.ask(); err == nil {
		t.Errorf("a hung server answers %q", got)
	}
	r.expectNew(ca, "b")
}

func TestAServerThatIsNotReadyKeepsItsConnections(t *testing.T) {
	ca, servers, list := three(t)
	list[0].OwnHost, list[1].OwnSite = true, true
	r := start(t, list, nil)
	r.expectOrder("a:ready", "b:ready", "c:ready")
	old := r.expectNew(ca, "a")
	servers["a"].code.Store(http.StatusInternalServerError)
	r.expectOrder("b:ready", "c:ready", "a:live")
	r.expectNew(ca, "b")
	old.expect("a")
	// Without anonymous access nothing but 401 or 403 can be had.
	servers["a"].code.Store(http.StatusForbidden)
	r.expectOrder("a:ready", "b:ready", "c:ready")
	servers["a"].code.Store(http.StatusUnauthorized)
	servers["b"].code.Store(http.StatusNotFound)
	r.expectOrder("a:ready", "c:ready", "b:live")
	// One that is not ready is better than none.
	for _, s := range servers {
		s.code.Store(http.StatusInternalServerError)
	}
	r.expectOrder("a:live", "b:live", "c:live")
	r.expectNew(ca, "a")
}

func TestServersOfAnotherAuthorityAreNotTrusted(t *testing.T) {
	ca, foreign := newAuthority(t), newAuthority(t)
	a := newAPIServer(t, foreign, "a", "127.0.9.11")
	b := newAPIServer(t, ca, "b", "127.0.9.12")
	var file string
	r := start(t, []Upstream{{Address: a.address, Name: "a", OwnHost: true}, {Address: b.address, Name: "b"}}, func(_ *proxy, c *Config) { file = c.CA })
	r.expectOrder("a:ready", "b:ready") // nothing is known of an authority yet
	if r.status().CA {
		t.Error("an authority is known without a file")
	}
	write(t, file, []byte("no certificate"))
	write(t, file, ca.pem)
	r.expectOrder("b:ready", "a:silent")
	if s := r.status(); !s.CA || !strings.Contains(s.Upstreams[1].Error, "unknown authority") {
		t.Errorf("status %+v", s)
	}
	r.expectNew(ca, "b")
	write(t, file, foreign.pem) // a cluster that was built anew
	r.expectOrder("a:ready", "b:silent")
}

func TestNobodyThere(t *testing.T) {
	ca := newAuthority(t)
	r := start(t, []Upstream{{Address: freePort(t), Name: "a"}, {Address: freePort(t), Name: "b"}}, nil)
	for range 20 {
		if _, err := r.connect(ca); err == nil {
			t.Fatal("connected to nobody")
		}
	}
	if s := r.status(); s.Failed != 20 || s.Accepted != 20 || s.Upstreams[0].Failed != 20 {
		t.Errorf("status %+v", s)
	}
}

// pipe is a plain TCP server that hands its connections out.
func newPipe(t testing.TB) (netip.AddrPort, <-chan *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.9.40:0")
	if err != nil {
		t.Fatal(err)
	}
	conns := make(chan *net.TCPConn, 100)
	go func() {
		defer close(conns)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns <- c.(*net.TCPConn)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		for c := range conns {
			c.Close()
		}
	})
	return netip.MustParseAddrPort(l.Addr().String()), conns
}

// through returns both ends of a connection through a proxy. Questions are the
// same kind of connection to such a server, so the client says a word first.
func through(t testing.TB, r *running, conns <-chan *net.TCPConn) (near, far *net.TCPConn) {
	t.Helper()
	c, err := net.Dial("tcp", r.listen.String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if _, err := c.Write([]byte{'!'}); err != nil {
		t.Fatal(err)
	}
	for s := range conns {
		first := make([]byte, 1)
		if _, err := io.ReadFull(s, first); err == nil && first[0] == '!' {
			t.Cleanup(func() { s.Close() })
			return c.(*net.TCPConn), s
		}
		s.Close() // a question
	}
	t.Fatal("no connection")
	return nil, nil
}

func TestEitherEndMayFinishFirst(t *testing.T) {
	address, conns := newPipe(t)
	r := start(t, []Upstream{{Address: address}}, nil)
	for _, clientFirst := range []bool{true, false} {
		one, other := through(t, r, conns)
		if !clientFirst {
			one, other = other, one
		}
		_, _ = io.WriteString(one, "all of it")
		_ = one.CloseWrite()
		if b, err := io.ReadAll(other); err != nil || string(b) != "all of it" {
			t.Fatalf("%q, %v", b, err)
		}
		_, _ = io.WriteString(other, "and the answer")
		_ = other.CloseWrite()
		if b, err := io.ReadAll(one); err != nil || string(b) != "and the answer" {
			t.Fatalf("%q, %v", b, err)
		}
	}
	eventually(t, "connections are forgotten", func() (string, bool) {
		s := r.status()
		return "", s.Connections == 0 && s.Upstreams[0].Connections == 0
	})
}

func TestAnEndThatNeverComesIsNotWaitedFor(t *testing.T) {
	address, conns := newPipe(t)
	r := start(t, []Upstream{{Address: address}}, func(p *proxy, _ *Config) { p.timing.half = 20 * time.Millisecond })
	near, far := through(t, r, conns)
	_ = near.CloseWrite()
	if b, err := io.ReadAll(far); len(b) != 0 {
		t.Errorf("%q, %v", b, err)
	}
	eventually(t, "the other half ends", func() (string, bool) { return "", r.status().Connections == 0 })
}

func TestAResetReachesTheOtherEnd(t *testing.T) {
	address, conns := newPipe(t)
	r := start(t, []Upstream{{Address: address}}, nil)
	near, far := through(t, r, conns)
	reset(near)
	if _, err := io.ReadAll(far); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	near, far = through(t, r, conns)
	reset(far)
	if _, err := io.ReadAll(near); err != nil && !strings.Contains(err.Error(), "reset") {
		t.Error(err)
	}
	eventually(t, "connections are forgotten", func() (string, bool) { return "", r.status().Connections == 0 })
}

func TestTooManyConnectionsAreRefused(t *testing.T) {
	ca, _, list := three(t)
	r := start(t, list, func(_ *proxy, c *Config) { c.MaxConnections = 3 })
	var held []*client
	for range 3 {
		c := r.mustConnect(ca)
		if _, err := c.ask(); err != nil {
			t.Fatal(err)
		}
		held = append(held, c)
	}
	if _, err := r.connect(ca); err == nil {
		t.Error("a fourth of three connections")
	}
	if got := r.status().Refused; got != 1 {
		t.Errorf("%d refused", got)
	}
	held[0].conn.Close()
	eventually(t, "there is room again", func() (string, bool) {
		c, err := r.connect(ca)
		if err != nil {
			return err.Error(), false
		}
		_, err = c.ask()
		return "", err == nil
	})
}

func TestASourceHasAShare(t *testing.T) {
	p := newProxy("", nil)
	p.config.MaxConnections, p.config.MaxPerSource = 100, 2
	from := func(source string) *session {
		return &session{client: &net.TCPConn{}, source: netip.MustParseAddr(source)}
	}
	var first *session
	for i, tt := range []struct {
		source string
		want   bool
	}{{"10.0.0.1", true}, {"10.0.0.1", true}, {"10.0.0.1", false}, {"10.0.0.2", true}, {"127.0.0.1", true}, {"127.0.0.1", true}, {"127.0.0.1", true}} {
		s := from(tt.source)
		if got := p.admit(t.Context(), s); got != tt.want {
			t.Errorf("connection %d from %s: %v", i, tt.source, got)
		}
		if i == 0 {
			first = s
		}
	}
	p.release(first)
	if !p.admit(t.Context(), from("10.0.0.1")) {
		t.Error("no room after one has gone")
	}
}

func TestFilesAreReadAgain(t *testing.T) {
	ca, servers, list := three(t)
	var learned string
	list[0].OwnSite, list[2].OwnHost = true, true
	r := start(t, list[:1], func(_ *proxy, c *Config) { learned = c.Learned })
	r.expectOrder("a:ready")
	c := r.config

	// Learned servers are used, the inventory's word for the same counts.
	write(t, learned, Learned{[]Upstream{{Address: list[0].Address, Name: "other name"}, list[1]}}.JSON())
	r.expectOrder("a:ready", "b:ready")
	write(t, learned, []byte(`{"upstreams": [{"address": "nowhere"}]}`))
	r.expectOrder("a:ready")
	write(t, learned, Learned{[]Upstream{list[1]}}.JSON())
	r.expectOrder("a:ready", "b:ready")

	// Connections of a server that is in no list any more are closed.
	old := r.expectNew(ca, "a")
	c.Upstreams = list[2:]
	write(t, r.path, c.JSON())
	r.expectOrder("c:ready", "b:ready")
	if got, err := old.ask(); err == nil {
		t.Errorf("a removed server answers %q", got)
	}

	// A bad file changes nothing, but can be seen.
	write(t, r.path, []byte("{}"))
	eventually(t, "the fault is shown", func() (string, bool) {
		s, err := ReadStatus(t.Context(), c.Status)
		if err != nil {
			return err.Error(), false
		}
		return strings.Join(s.Faults, "\n"), len(s.Faults) == 1 && strings.Contains(s.Faults[0], "listen")
	})
	r.expectNew(ca, "c")

	// Listeners come and go; connections through them stay.
	stays := r.expectNew(ca, "c")
	before, taken := r.listen, servers["a"].address
	r.listen = freePort(t)
	c.Listen = []netip.AddrPort{r.listen, taken}
	write(t, r.path, c.JSON())
	eventually(t, "an address that is taken is shown", func() (string, bool) {
		s := r.status()
		return strings.Join(s.Faults, "\n"), len(s.Faults) == 1 && strings.Contains(s.Faults[0], "in use") && len(s.Listen) == 1
	})
	r.expectNew(ca, "c")
	stays.expect("c")
	if conn, err := net.Dial("tcp", before.String()); err == nil {
		conn.Close()
		t.Errorf("%s is still listened on", before)
	}
	servers["a"].kill() // and the address is free
	eventually(t, "both are listened on", func() (string, bool) {
		s := r.status()
		return strings.Join(s.Faults, "\n"), len(s.Faults) == 0 && len(s.Listen) == 2
	})
}

func TestStatusSaysWhatIs(t *testing.T) {
	ca, _, list := three(t)
	list[0].OwnHost, list[1].OwnSite = true, true
	var socket string
	r := start(t, list, func(_ *proxy, c *Config) {
		socket = c.Status
		l, err := net.Listen("unix", socket) // left by one that was killed
		if err != nil {
			t.Fatal(err)
		}
		l.(*net.UnixListener).SetUnlinkOnClose(false)
		l.Close()
	})
	r.expectOrder("a:ready", "b:ready", "c:ready")
	r.expectNew(ca, "a")
	s, err := ReadStatus(t.Context(), socket)
	if err != nil {
		t.Fatal(err)
	}
	first := s.Upstreams[0]
	if s.Connections != 1 || s.Accepted != 1 || len(s.Listen) != 1 || s.Listen[0] != r.listen || !first.OwnHost || first.State != Ready ||
		first.Connections != 1 || first.Total != 1 || first.RTTMicros < 0 || first.Since.IsZero() {
		t.Errorf("status %+v", s)
	}
	if info, err := os.Stat(socket); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v", info.Mode(), err)
	}
	r.stop()
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket stays: %v", err)
	}
	if _, err := ReadStatus(t.Context(), socket); err == nil {
		t.Error("a status of nobody")
	}
}

func TestRunRefusesToBegin(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "c.json")
	taken := newFullListener(t)
	for name, content := range map[string]string{
		"nothing":                  "",
		"no upstream":              `{"listen": ["127.0.0.1:7443"]}`,
		"taken":                    `{"listen": ["` + taken.String() + `"], "upstreams": [{"address": "127.0.0.1:1"}]}`,
		"status":                   `{"listen": ["` + freePort(t).String() + `"], "upstreams": [{"address": "127.0.0.1:1"}], "status": "/nonexistent/x"}`,
		"a file that is no socket": `{"listen": ["` + freePort(t).String() + `"], "upstreams": [{"address": "127.0.0.1:1"}], "status": "` + path + `"}`,
	} {
		write(t, path, []byte(content))
		if err := Run(t.Context(), path, nil); err == nil {
			t.Errorf("%s: runs", name)
		}
	}
	if err := Run(t.Context(), path+"x", nil); !os.IsNotExist(err) && !strings.Contains(err.Error(), "no such file") {
		t.Errorf("no file: %v", err)
	}
}

func TestOneAddressIsEnoughToBegin(t *testing.T) {
	ca, _, list := three(t)
	taken := newFullListener(t)
	r := start(t, list, func(_ *proxy, c *Config) { c.Listen = append(c.Listen, taken) })
	if s := r.status(); len(s.Listen) != 1 || len(s.Faults) != 1 || !strings.Contains(s.Faults[0], taken.String()) {
		t.Errorf("status %+v", s)
	}
	if _, err := r.mustConnect(ca).ask(); err != nil {
		t.Error(err)
	}
}

func TestStopEndsWhatIsUnderWay(t *testing.T) {
	ca, servers, list := three(t)
	list[0].OwnHost, list[1].OwnSite = true, true
	r := start(t, list, nil)
	r.expectOrder("a:ready", "b:ready", "c:ready")
	r.expectNew(ca, "a")
	r.slow(map[netip.AddrPort]time.Duration{servers["a"].address: time.Hour, servers["b"].address: time.Hour, servers["c"].address: time.Hour})
	waiting, err := net.Dial("tcp", r.listen.String()) // is being dialled for
	if err != nil {
		t.Fatal(err)
	}
	defer waiting.Close()
	eventually(t, "both are there", func() (string, bool) { return "", r.status().Connections == 2 })
	r.stop()
	if _, err := waiting.Read(make([]byte, 1)); err == nil {
		t.Error("a connection outlives the proxy")
	}
	if c, err := net.Dial("tcp", r.listen.String()); err == nil {
		c.Close()
		t.Error("a stopped proxy listens")
	}
}

func TestStopLetsRequestsEnd(t *testing.T) {
	address, conns := newPipe(t)
	r := start(t, []Upstream{{Address: address}}, func(p *proxy, _ *Config) { p.timing.drain = time.Minute })
	near, far := through(t, r, conns)
	r.cancel()
	eventually(t, "listeners are closed", func() (string, bool) { return "", len(r.status().Listen) == 0 })
	_, _ = io.WriteString(far, "the end")
	far.Close()
	_ = near.CloseWrite()
	if b, err := io.ReadAll(near); err != nil || string(b) != "the end" {
		t.Errorf("%q, %v", b, err)
	}
	r.stop()
}
