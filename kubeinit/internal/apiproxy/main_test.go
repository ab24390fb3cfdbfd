package apiproxy

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// patient looks often, and waits long for what must not depend on the speed of
// the machine.
var patient = timing{
	poll: 10 * time.Millisecond, busy: 10 * time.Millisecond, idle: 20 * time.Millisecond,
	kept: 20 * time.Second, fresh: 20 * time.Second, dial: 20 * time.Second, total: 40 * time.Second,
	stagger: 50 * time.Millisecond, hung: time.Hour, half: 20 * time.Second, drain: 50 * time.Millisecond,
}

// authority issues certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{}
	der := a.issue(t, &x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der.Certificate[0]})
	a.cert, a.key = der.Leaf, der.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

// issue signs with the authority, or itself if it has no key yet.
func (a *authority) issue(t testing.TB, tmpl *x509.Certificate) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl.SerialNumber, tmpl.NotBefore, tmpl.NotAfter = big.NewInt(1), time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := tmpl, key
	if a.key != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

// apiServer answers /readyz with a status that tests set, and says its name on
// every other path.
type apiServer struct {
	*httptest.Server
	address netip.AddrPort
	code    atomic.Int64
	mute    chan struct{} // closed by hang: no answers from then on
	gone    chan struct{} // closed at the end
}

func newAPIServer(t testing.TB, a *authority, name, address string) *apiServer {
	t.Helper()
	if !strings.Contains(address, ":") {
		address += ":0"
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := &apiServer{mute: make(chan struct{}), gone: make(chan struct{})}
	s.address = netip.MustParseAddrPort(l.Addr().String())
	s.code.Store(http.StatusOK)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-s.mute:
			<-s.gone
		default:
		}
		if r.URL.Path == "/readyz" {
			w.WriteHeader(int(s.code.Load()))
		}
		_, _ = io.WriteString(w, name)
	}))
	s.Listener.Close()
	s.Listener = l
	s.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, 0)
	s.TLS = &tls.Config{Certificates: []tls.Certificate{a.issue(t, &x509.Certificate{DNSNames: []string{"api.test"}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})}}
	s.StartTLS()
	t.Cleanup(s.kill)
	return s
}

// kill ends the server and its connections, as kill -9 would.
func (s *apiServer) kill() {
	select {
	case <-s.gone:
		return
	default:
	}
	close(s.gone)
	s.CloseClientConnections()
	s.Close()
}

// running is a proxy that runs in a test.
type running struct {
	*proxy
	t      testing.TB
	listen netip.AddrPort
	cancel context.CancelFunc
	ended  chan error
	lost   atomic.Pointer[map[netip.AddrPort]time.Duration] // dials to these wait so long
}

// start runs a proxy with patient timing in front of upstreams; change may be
// nil. At the end of the test nothing of it may be left.
func start(t testing.TB, upstreams []Upstream, change func(*proxy, *Config)) *running {
	t.Helper()
	before := runtime.NumGoroutine()
	dir := t.TempDir()
	r := &running{t: t, ended: make(chan error, 1)}
	r.proxy = newProxy(filepath.Join(dir, "config.json"), slog.New(slog.NewTextHandler(t.Output(), nil)))
	r.timing = patient
	r.slow(nil)
	dial := r.dial
	r.dial = func(ctx context.Context, network, address string) (net.Conn, error) {
		pause(ctx, (*r.lost.Load())[netip.MustParseAddrPort(address)])
		return dial(ctx, network, address)
	}
	r.listen = freePort(t)
	c := Config{
		Listen: []netip.AddrPort{r.listen}, Upstreams: upstreams,
		Status: filepath.Join(dir, "status.sock"), CA: filepath.Join(dir, "ca.crt"), Learned: filepath.Join(dir, "learned.json"),
	}
	if change != nil {
		change(r.proxy, &c)
	}
	write(t, r.path, c.JSON())
	ctx, cancel := context.WithCancel(context.Background())
	r.cancel = cancel
	ready := make(chan struct{})
	go func() { r.ended <- r.run(ctx, func() { close(ready) }) }()
	select {
	case <-ready:
	case err := <-r.ended:
		t.Fatal(err)
	}
	t.Cleanup(func() {
		r.stop()
		noMoreGoroutines(t, before)
	})
	return r
}

// stop ends the proxy and checks that it ended well.
func (r *running) stop() {
	r.t.Helper()
	r.cancel()
	select {
	case err, ok := <-r.ended:
		if ok && err != nil {
			r.t.Error(err)
		}
		if ok {
			close(r.ended)
		}
	case <-time.After(time.Minute):
		buf := make([]byte, 1<<20)
		r.t.Fatalf("the proxy does not end\n%s", buf[:runtime.Stack(buf, true)])
	}
}

// slow makes dials to these addresses wait.
func (r *running) slow(m map[netip.AddrPort]time.Duration) { r.lost.Store(&m) }

func noMoreGoroutines(t testing.TB, before int) {
	t.Helper()
	eventually(t, "goroutines end", func() (string, bool) {
		buf := make([]byte, 1<<20)
		buf = buf[:runtime.Stack(buf, true)]
		n := strings.Count(string(buf), "apiproxy.(*p") // of proxy and probe
		return fmt.Sprintf("%d, before %d\n%s", runtime.NumGoroutine(), before, buf), n == 0
	})
}

// eventually polls until ok, and shows the last state if it never is.
func eventually(t testing.TB, what string, state func() (string, bool)) {
	t.Helper()
	limit := time.Now().Add(time.Minute)
	for {
		last, ok := state()
		if ok {
			return
		}
		if time.Now().After(limit) {
			t.Fatalf("%s: never; at last %s", what, last)
		}
		pause(context.Background(), 5*time.Millisecond)
	}
}

// expectOrder waits until the proxy would try the servers in this order.
func (r *running) expectOrder(want ...string) {
	r.t.Helper()
	eventually(r.t, "order "+strings.Join(want, " "), func() (string, bool) {
		var got []string
		for _, u := range r.status().Upstreams {
			got = append(got, fmt.Sprintf("%s:%s", u.Name, u.State))
		}
		return strings.Join(got, " "), slices.Equal(got, want)
	})
}

// client is a connection through the proxy that lives for many requests.
type client struct {
	t    testing.TB
	conn *tls.Conn
	in   *bufio.Reader
}

func (r *running) connect(a *authority) (*client, error) {
	d := tls.Dialer{Config: &tls.Config{RootCAs: roots(a), ServerName: "api.test"}, NetDialer: &net.Dialer{Timeout: time.Minute}}
	c, err := d.Dial("tcp", r.listen.String())
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { c.Close() })
	return &client{r.t, c.(*tls.Conn), bufio.NewReader(c)}, nil
}

func (r *running) mustConnect(a *authority) *client {
	r.t.Helper()
	c, err := r.connect(a)
	if err != nil {
		r.t.Fatal(err)
	}
	return c
}

func (c *client) ask() (string, error) {
	if _, err := io.WriteString(c.conn, "GET /name HTTP/1.1\r\nHost: api.test\r\n\r\n"); err != nil {
		return "", err
	}
	res, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return string(b), err
}

// expect asks on this connection and on no other.
func (c *client) expect(name string) {
	c.t.Helper()
	if got, err := c.ask(); err != nil || got != name {
		c.t.Fatalf("answer %q, %v, want %q", got, err, name)
	}
}

// expectNew connects and expects this server.
func (r *running) expectNew(a *authority, name string) *client {
	r.t.Helper()
	c := r.mustConnect(a)
	c.expect(name)
	return c
}

func roots(a *authority) *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

func write(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// ports are handed out below the range from which the kernel takes ports of
// outgoing connections.
var ports atomic.Uint32

// freePort returns an address that nobody listens on.
func freePort(t testing.TB) netip.AddrPort {
	t.Helper()
	for range 1000 {
		a := netip.AddrPortFrom(netip.MustParseAddr("127.0.9.1"), uint16(20000+(uint32(os.Getpid())*31+ports.Add(1))%10000))
		if l, err := net.Listen("tcp", a.String()); err == nil {
			l.Close()
			return a
		}
	}
	t.Fatal("no free port")
	return netip.AddrPort{}
}

func testContext(t testing.TB) (context.Context, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	t.Cleanup(cancel)
	return ctx, cancel
}
