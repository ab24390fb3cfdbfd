//go:build integration

package haproxy

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

func TestHAProxyAcceptsConfigurations(t *testing.T) {
	for name, c := range map[string]Config{"reference": reference(), "everything": everything()} {
		cfg, err := Render(c)
		if err != nil {
			t.Fatal(err)
		}
		out, err := exec.CommandContext(t.Context(), "haproxy", "-c", "-f", write(t, cfg)).CombinedOutput()
		if err != nil || strings.Contains(string(out), "WARNING") {
			t.Errorf("%s: %v\n%s", name, err, out)
		}
	}
}

func write(t *testing.T, cfg []byte) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, cfg, 0o644); err != nil {
		t.Fatal(err)
	}
	return file
}

// apiServer is a TLS server that says who it is, and that it is ready or not.
type apiServer struct {
	*httptest.Server
	ready atomic.Bool
}

func newAPIServer(t *testing.T, name, address string) *apiServer {
	t.Helper()
	l, err := net.Listen("tcp", address+":0")
	if err != nil {
		t.Fatal(err)
	}
	s := &apiServer{}
	s.ready.Store(true)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/readyz" && !s.ready.Load() {
			w.WriteHeader(http.StatusInternalServerError)
		}
		_, _ = w.Write([]byte(name))
	}))
	s.Listener.Close()
	s.Listener = l
	s.StartTLS()
	t.Cleanup(s.Close)
	return s
}

func (s *apiServer) port() uint16 {
	return netip.MustParseAddrPort(s.Listener.Addr().String()).Port()
}

func TestHAProxyTakesTurnsAndLeavesOutWhoIsNotReady(t *testing.T) {
	c := Config{Listen: []netip.Addr{addr("127.0.7.1")}, Port: 16443}
	servers := map[string]*apiServer{}
	for name, address := range map[string]string{"a": "127.0.7.11", "b": "127.0.7.12", "c": "127.0.7.13"} {
		s := newAPIServer(t, name, address)
		servers[name] = s
		c.Servers = append(c.Servers, Server{name, addr(address), s.port()})
	}
	cfg, err := Render(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var log strings.Builder
	cmd := exec.CommandContext(ctx, "haproxy", "-db", "-f", write(t, cfg))
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()

	expect := func(want string) {
		t.Helper()
		var last string
		for deadline := time.Now().Add(30 * time.Second); time.Now().Before(deadline); {
			if last = answers(ctx, 6); last == want {
				return
			}
		}
		t.Fatalf("answers %q, want %q", last, want)
	}
	expect("abc")
	servers["b"].ready.Store(false)
	expect("ac")
	servers["a"].CloseClientConnections()
	servers["a"].Close()
	expect("c")
	servers["b"].ready.Store(true)
	expect("bc")
}

// answers asks n times, with a new connection each, and returns who answered,
// in the order of the alphabet. A request that fails is a "?".
func answers(ctx context.Context, n int) string {
	client := &http.Client{
		Timeout:   5 * time.Second,
		Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}},
	}
	seen := map[byte]bool{}
	for range n {
		seen[ask(ctx, client)] = true
	}
	var out strings.Builder
	for _, who := range []byte("?abc") {
		if seen[who] {
			out.WriteByte(who)
		}
	}
	return out.String()
}

func ask(ctx context.Context, client *http.Client) byte {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://127.0.7.1:16443/", nil)
	if err != nil {
		return '?'
	}
	res, err := client.Do(req)
	if err != nil {
		return '?'
	}
	defer res.Body.Close()
	who := make([]byte, 1)
	if _, err := res.Body.Read(who); who[0] == 0 && err != nil {
		return '?'
	}
	return who[0]
}
