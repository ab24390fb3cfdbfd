package host

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"
	"golang.org/x/crypto/ssh/knownhosts"

	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

func TestSSHKeepsTheContract(t *testing.T) {
	contract(t, func(t *testing.T) (Host, string) { return open(t, newSite(t).config()), t.TempDir() + "/own" })
}

func TestUnknownHostKeyIsRefusedWithTheCure(t *testing.T) {
	s := newSite(t)
	c := s.config()
	c.KnownHosts = filepath.Join(s.dir, "none")
	err := open(t, c).Connect(t.Context())
	key, ok := errors.AsType[*KeyError](err)
	if !ok || key.Changed() {
		t.Fatalf("error %v, want an unknown host key", err)
	}
	for _, want := range []string{"h1: ", "not known", ssh.FingerprintSHA256(s.hostKey.PublicKey()), fmt.Sprintf("ssh-keyscan -p %d 127.0.0.1 >> %s", c.Port, c.KnownHosts)} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

func TestChangedHostKeyIsRefusedWithTheCure(t *testing.T) {
	s := newSite(t)
	other, _ := newKey(t)
	mustWrite(t, s.knownHosts, "# comment\n"+knownhosts.Line([]string{s.server.address.String()}, other.PublicKey())+"\n", 0o600)
	err := open(t, s.config()).Connect(t.Context())
	key, ok := errors.AsType[*KeyError](err)
	if !ok || !key.Changed() || key.Known != s.knownHosts+":2" {
		t.Fatalf("error %v, want a changed host key", err)
	}
	for _, want := range []string{"has changed", "in between", "ssh-keygen -f " + s.knownHosts + " -R '[127.0.0.1]:" + fmt.Sprint(s.server.address.Port()) + "'", "ssh-keyscan"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

func TestRevokedHostKeyIsRefused(t *testing.T) {
	s := newSite(t)
	line := knownhosts.Line([]string{s.server.address.String()}, s.hostKey.PublicKey())
	mustWrite(t, s.knownHosts, line+"\n@revoked "+line+"\n", 0o600)
	err := open(t, s.config()).Connect(t.Context())
	if key, ok := errors.AsType[*KeyError](err); !ok || !key.Revoked {
		t.Errorf("error %v, want a revoked host key", err)
	}
}

// The server has two keys, and would show the one that is not known.
func TestKnownKeyIsAskedFor(t *testing.T) {
	s := newSite(t)
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	second, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	s.server.locked(func() { s.server.config.AddHostKey(second) })
	for _, key := range []ssh.Signer{s.hostKey, second} {
		mustWrite(t, s.knownHosts, knownhosts.Line([]string{s.server.address.String()}, key.PublicKey())+"\n", 0o600)
		if err := open(t, s.config()).Connect(t.Context()); err != nil {
			t.Errorf("with only the %s key known: %v", key.PublicKey().Type(), err)
		}
	}
}

func TestHostCertificateOfAKnownAuthorityIsTaken(t *testing.T) {
	s := newSite(t)
	authority, _ := newKey(t)
	cert := &ssh.Certificate{Key: s.hostKey.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"127.0.0.1"}, ValidBefore: ssh.CertTimeInfinity}
	if err := cert.SignCert(&zeroes{}, authority); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, s.hostKey)
	if err != nil {
		t.Fatal(err)
	}
	s.server.locked(func() { s.server.config.AddHostKey(signer) })
	mustWrite(t, s.knownHosts, "@cert-authority "+knownhosts.Line([]string{s.server.address.String()}, authority.PublicKey())+"\n", 0o600)
	if err := open(t, s.config()).Connect(t.Context()); err != nil {
		t.Error(err)
	}
}

// zeroes is a source of the nonce of a certificate, which need not be random here.
type zeroes struct{}

func (zeroes) Read(p []byte) (int, error) { clear(p); return len(p), nil }

// withAgent runs an agent that holds keys, and returns its socket.
func withAgent(t *testing.T, keys ...ed25519.PrivateKey) string {
	t.Helper()
	ring := agent.NewKeyring()
	for _, k := range keys {
		if err := ring.Add(agent.AddedKey{PrivateKey: k}); err != nil {
			t.Fatal(err)
		}
	}
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer conn.Close()
				_ = agent.ServeAgent(ring, conn) // until the client goes
			})
		}
	})
	t.Cleanup(func() {
		l.Close()
		wg.Wait()
	})
	return socket
}

func TestKeysOfAgentAndFilesAreOffered(t *testing.T) {
	s := newSite(t)
	_, stranger := newKey(t)
	usual := t.TempDir()
	mustWriteKey(t, filepath.Join(usual, ".ssh/id_ed25519"), s.clientKey, "")
	locked := filepath.Join(s.dir, "locked")
	mustWriteKey(t, locked, s.clientKey, "passphrase")
	mustWriteKey(t, filepath.Join(s.dir, ".ssh/id_ed25519"), s.clientKey, "passphrase")
	empty := t.TempDir()
	socket := withAgent(t, stranger, s.clientKey)
	tests := []struct {
		name   string
		change func(*Config)
		want   string // in the error; empty: none
	}{
		{"key file", func(*Config) {}, ""},
		{"key file below home", func(c *Config) { c.Key = "~/key" }, ""},
		{"usual file", func(c *Config) { c.Key, c.Home = "", usual }, ""},
		{"agent", func(c *Config) { c.Key, c.Home, c.AgentSocket = "", empty, socket }, ""},
		{"locked key that the agent holds", func(c *Config) { c.Key, c.AgentSocket = locked, socket }, ""},
		{"locked key", func(c *Config) { c.Key = locked }, "has a passphrase, and the SSH agent does not hold it; type: ssh-add " + locked},
		{"locked key that the agent does not hold", func(c *Config) { c.Key, c.AgentSocket = locked, withAgent(t, stranger) }, "type: ssh-add"},
		{"only a locked usual key", func(c *Config) { c.Key = "" }, "id_ed25519 has a passphrase"},
		{"key file that is not there", func(c *Config) { c.Key = "/nowhere/key" }, "no such file"},
		{"no key file", func(c *Config) { c.Key = s.knownHosts }, "SSH key " + s.knownHosts},
		{"no keys", func(c *Config) { c.Key, c.Home = "", empty }, "no SSH key: the agent has none"},
		{"agent that is gone", func(c *Config) { c.Key, c.Home, c.AgentSocket = "", empty, "/nowhere/agent" }, "the SSH agent does not answer"},
		{"keys that are not taken", func(c *Config) { c.Key, c.Home, c.AgentSocket = "", empty, withAgent(t, stranger) }, "takes none of our keys"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c := s.config()
			tt.change(&c)
			err := open(t, c).Connect(t.Context())
			switch {
			case tt.want == "" && err != nil:
				t.Error(err)
			case tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)):
				t.Errorf("error %v, want one with %q", err, tt.want)
			}
		})
	}
}

func TestUnreachableHostIsNamed(t *testing.T) {
	s := newSite(t)
	c := s.config()
	c.Port = freePort(t)
	err := open(t, c).Connect(t.Context())
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("h1: connect to 127.0.0.1:%d", c.Port)) {
		t.Errorf("error %v, want host and address", err)
	}
}

func freePort(t *testing.T) uint16 {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return uint16(l.Addr().(*net.TCPAddr).Port)
}

// A listener that accepts and says nothing must not hold anybody.
func TestSilentServerIsLeftWhenTheContextEnds(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	s := newSite(t)
	c := s.config()
	c.Port = uint16(l.Addr().(*net.TCPAddr).Port)
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("enough")
	go func() {
		conn, err := l.Accept()
		if err == nil {
			defer conn.Close()
			cancel(why)
			_, _ = conn.Read(make([]byte, 1000))
		}
	}()
	if err := open(t, c).Connect(ctx); !errors.Is(err, why) {
		t.Errorf("error %v, want the cause", err)
	}
}

func TestJumpHostsAreChained(t *testing.T) {
	a, b, c := newSite(t), newSite(t), newSite(t)
	first := a.config()
	first.Name = "gw1"
	second := b.config()
	second.Name, second.Via = "gw2", open(t, first)
	last := c.config()
	last.Name, last.Via = "h1", open(t, second)
	h := open(t, last)
	if out, err := h.Run(t.Context(), Command{Args: []string{"echo", "through"}}); err != nil || out.Stdout != "through\n" {
		t.Fatalf("%q, %v", out.Stdout, err)
	}
	for _, jump := range []*site{a, b} {
		jump.server.locked(func() {
			if len(jump.server.commands) > 0 {
				t.Error("commands ran on a jump host")
			}
		})
	}

	// One link of the chain breaks; the next call makes it anew.
	a.server.drop()
	if out, err := h.Run(t.Context(), Command{Args: []string{"echo", "again"}}); err != nil || out.Stdout != "again\n" {
		t.Errorf("after a jump host's connection broke: %q, %v", out.Stdout, err)
	}

	mustWrite(t, c.knownHosts, "", 0o600)
	err := open(t, last).Connect(t.Context())
	if want := "ssh -o 'UserKnownHostsFile="; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "-J 'root@127.0.0.1:") && !strings.Contains(err.Error(), "-J root@127.0.0.1:") {
		t.Errorf("error %v, want a cure that goes through the jump host", err)
	}
	mustWrite(t, a.knownHosts, "", 0o600)
	first.Name = "gw1"
	second.Via = open(t, first)
	err = open(t, second).Connect(t.Context())
	if err == nil || !strings.Contains(err.Error(), "gw1: host key") {
		t.Errorf("error %v, want that of the jump host", err)
	}
}

func TestInventoryBecomesHosts(t *testing.T) {
	a, b := newSite(t), newSite(t)
	lines, err := os.ReadFile(a.knownHosts)
	if err != nil {
		t.Fatal(err)
	}
	more, err := os.ReadFile(b.knownHosts)
	if err != nil {
		t.Fatal(err)
	}
	home := t.TempDir()
	mustWrite(t, home+"/.ssh/known_hosts", string(lines)+string(more), 0o600)
	text := fmt.Sprintf(`cluster: {name: lab}
sites: [{name: a, prefixes: [192.168.10.0/24]}]
hosts:
- {name: m1, site: a, nodeIP: 192.168.10.1, roles: [control-plane], ssh: {address: 127.0.0.1, port: %d, key: %s/key}}
- {name: n1, site: a, nodeIP: 192.168.10.2, roles: [worker], ssh: {address: 127.0.0.1, port: %d, key: %s/key, jump: m1}}
- {name: n2, site: a, nodeIP: 192.168.10.3, roles: [worker], ssh: {address: localhost, port: %d, key: %s/key, jump: "root@127.0.0.1:%d"}}
`, a.server.address.Port(), a.dir, b.server.address.Port(), b.dir, b.server.address.Port(), b.dir, b.server.address.Port())
	inv, err := inventory.Parse("f", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	hosts, closeAll, err := FromInventory(inv, UserOf([]string{"A=b", "HOME=" + home}))
	if err != nil {
		t.Fatal(err)
	}
	if len(hosts) != 3 {
		t.Errorf("%d hosts, want 3 without the jump host that is none", len(hosts))
	}
	for _, name := range []string{"m1", "n1"} {
		if out, err := hosts[name].Run(t.Context(), Command{Args: []string{"echo", name}}); err != nil || out.Stdout != name+"\n" {
			t.Errorf("%s: %q, %v", name, out.Stdout, err)
		}
	}
	_, err = hosts["n2"].Run(t.Context(), Command{Args: []string{"true"}}) // the key of "localhost" is not known
	if key, ok := errors.AsType[*KeyError](err); !ok || !strings.Contains(key.Address, "localhost") {
		t.Errorf("n2: %v, want the last link's host key unknown", err)
	}
	if err := closeAll(); err != nil {
		t.Error(err)
	}
	if err := closeAll(); err != nil {
		t.Error(err)
	}
}

func TestStartUpFilesDoNotDisturb(t *testing.T) {
	s := newSite(t)
	h := open(t, s.config())
	s.server.locked(func() { s.server.greeting = "echo hello; echo 'careful!' >&2; printf 'no line end'; " })
	name := t.TempDir() + "/f"
	if err := h.WriteFile(t.Context(), name, []byte("text"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := h.ReadFile(t.Context(), name); err != nil || string(got) != "text" {
		t.Errorf("read %q, %v", got, err)
	}
	_, err := h.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo why >&2; exit 4"}})
	if exit, ok := errors.AsType[*ExitError](err); !ok || len(exit.Tail) != 1 || exit.Tail[0] != "why" {
		t.Errorf("error %v, want only the command's own output", err)
	}
}

func TestLoginShellThatRunsNothingIsExplained(t *testing.T) {
	s := newSite(t)
	s.server.locked(func() { s.server.greeting = "echo 'This account is currently not available.'; exit 1; " })
	_, err := open(t, s.config()).Run(t.Context(), Command{Args: []string{"true"}})
	if want := "h1: the login shell of user root runs no commands: This account is currently not available."; err == nil || err.Error() != want {
		t.Errorf("error %v, want %s", err, want)
	}
}

func TestSudoRunsEverything(t *testing.T) {
	dir := fakeProgram(t, "sudo", `[ "$1 $2" = "-n --" ] || exit 9
shift 2
exec env -i PATH=/usr/bin:/bin SUDO=yes "$@"
`)
	s := newSite(t, withPath(dir))
	c := s.config()
	c.Sudo, c.User = true, "admin"
	h := open(t, c)
	out, err := h.Run(t.Context(), Command{Args: []string{"sh", "-c", `echo "$SUDO $V $LC_ALL"; cat`}, Env: []string{"V=1"}, Stdin: strings.NewReader("in")})
	if err != nil || out.Stdout != "yes 1 C\nin" {
		t.Errorf("%q, %v", out.Stdout, err)
	}
	if err := h.WriteFile(t.Context(), t.TempDir()+"/f", []byte("x"), 0o600); err != nil {
		t.Error(err)
	}
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	for _, c := range s.server.commands {
		if !strings.HasPrefix(c, "exec sudo -n -- sh -c ") {
			t.Errorf("command %.60q does not begin with sudo", c)
		}
	}
}

func TestSudoThatWantsAPasswordIsExplained(t *testing.T) {
	dir := fakeProgram(t, "sudo", "echo 'sudo: a password is required' >&2; exit 1\n")
	s := newSite(t, withPath(dir))
	c := s.config()
	c.Sudo, c.User = true, "admin"
	_, err := open(t, c).Run(t.Context(), Command{Args: []string{"true"}})
	if err == nil || !strings.Contains(err.Error(), "admin ALL=(ALL) NOPASSWD: ALL") {
		t.Errorf("error %v, want the line for sudoers", err)
	}
}

// A command that ignores SIGTERM is killed with what it started.
func TestCancelEndsTheCommandOnTheHost(t *testing.T) {
	for name, text := range map[string]string{
		"obedient": `echo "$$"; sleep 300 & echo $!; echo begun; wait`,
		"stubborn": `trap '' TERM; echo "$$"; sleep 300 & echo $!; echo begun; while :; do sleep 1; done`,
	} {
		t.Run(name, func(t *testing.T) {
			h := open(t, newSite(t).config())
			ctx, cancel := context.WithCancel(t.Context())
			out, err := h.Run(ctx, Command{Args: []string{"sh", "-c", text}, Output: func(line string) {
				if line == "begun" {
					cancel()
				}
			}})
			if !errors.Is(err, context.Canceled) {
				t.Fatalf("error %v, want context.Canceled", err)
			}
			pids := strings.Fields(out.Stdout)
			if len(pids) != 3 {
				t.Fatalf("output %q", out.Stdout)
			}
			for _, pid := range pids[:2] {
				if b, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") {
					t.Errorf("process %s still runs: %s", pid, b)
				}
			}
		})
	}
}

func TestAtMostEightSessionsAtATime(t *testing.T) {
	s := newSite(t)
	h := open(t, s.config())
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if _, err := h.Run(t.Context(), Command{Args: []string{"true"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	if s.server.most > 8 || len(s.server.commands) != 40 {
		t.Errorf("%d sessions at a time for %d commands, want at most 8 for 40", s.server.most, len(s.server.commands))
	}
	if len(s.server.conns) != 1 {
		t.Errorf("%d connections, want one", len(s.server.conns))
	}
}

func TestWaitingForASessionEndsWithTheContext(t *testing.T) {
	h := open(t, newSite(t).config())
	running := make(chan struct{}, maxSessions)
	stop, cancelAll := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range maxSessions {
		wg.Go(func() {
			_, _ = h.Run(stop, Command{Args: []string{"sh", "-c", waitScript}, Output: func(string) { running <- struct{}{} }})
		})
	}
	for range maxSessions {
		<-running
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := h.Run(ctx, Command{Args: []string{"true"}}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want context.Canceled", err)
	}
	cancelAll()
	wg.Wait()
}

func TestBrokenConnectionIsLostAndMadeAnew(t *testing.T) {
	s := newSite(t)
	h := open(t, s.config())
	_, err := h.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo begun; exec sleep 5"}, Output: func(string) { s.server.drop() }})
	if !errors.Is(err, ErrLost) {
		t.Errorf("error %v, want ErrLost", err)
	}
	if out, err := h.Run(t.Context(), Command{Args: []string{"echo", "back"}}); err != nil || out.Stdout != "back\n" {
		t.Errorf("the next call: %q, %v", out.Stdout, err)
	}
	s.server.drop() // and while nothing ran
	if out, err := h.Run(t.Context(), Command{Args: []string{"echo", "back"}}); err != nil || out.Stdout != "back\n" {
		t.Errorf("the call after that: %q, %v", out.Stdout, err)
	}
}

func TestUploadOverABreakingConnectionReplacesNothing(t *testing.T) {
	s := newSite(t)
	h := open(t, s.config())
	name := t.TempDir() + "/f"
	if err := h.WriteFile(t.Context(), name, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := &breaking{left: 1 << 20, at: 1 << 19, broke: s.server.drop}
	if err := h.Upload(t.Context(), name, r, 1<<20, 0o600); !errors.Is(err, ErrLost) {
		t.Errorf("error %v, want ErrLost", err)
	}
	if got, err := h.ReadFile(t.Context(), name); err != nil || string(got) != "before" {
		t.Errorf("%d bytes, %v; want the file as it was", len(got), err)
	}
}

// breaking gives zeroes, and calls broke on the way.
type breaking struct {
	left, at int
	broke    func()
}

func (b *breaking) Read(p []byte) (int, error) {
	if b.left <= b.at && b.broke != nil {
		b.broke()
		b.broke = nil
	}
	n := min(len(p), b.left, 32<<10)
	b.left -= n
	if n == 0 {
		return 0, io.EOF
	}
	return n, nil
}

func TestServerWithoutSignsOfLifeIsLost(t *testing.T) {
	s := newSite(t)
	c := s.config()
	c.KeepAlive = 10 * time.Millisecond
	h := open(t, c)
	if err := h.Connect(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.server.locked(func() { s.server.deaf = true })
	if _, err := h.Run(t.Context(), Command{Args: []string{"sleep", "300"}}); !errors.Is(err, ErrLost) {
		t.Errorf("error %v, want ErrLost", err)
	}
	s.server.locked(func() { s.server.deaf = false })
	c.KeepAlive = 0
	if _, err := open(t, c).Run(t.Context(), Command{Args: []string{"true"}}); err != nil {
		t.Error(err)
	}
}

func TestCloseEndsWhatRuns(t *testing.T) {
	s := newSite(t)
	h := open(t, s.config())
	_, err := h.Run(t.Context(), Command{Args: []string{"sh", "-c", "echo begun; exec sleep 5"}, Output: func(string) { h.Close() }})
	if !errors.Is(err, ErrLost) {
		t.Errorf("error %v, want ErrLost", err)
	}
	if err := h.Connect(t.Context()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("connect after Close: %v, want net.ErrClosed", err)
	}
}

func TestLongCommandIsRefused(t *testing.T) {
	h := open(t, newSite(t).config())
	if _, err := h.Run(t.Context(), Command{Args: []string{"true", strings.Repeat("x", maxCommand)}}); err == nil || !strings.Contains(err.Error(), "standard input") {
		t.Errorf("error %v, want a word about standard input", err)
	}
	long := strings.Repeat("y", maxCommand/2)
	if out, err := h.Run(t.Context(), Command{Args: []string{"echo", long}}); err != nil || out.Stdout != long+"\n" {
		t.Errorf("a command of half the size: %v", err)
	}
}

func TestSecretOfStandardInputIsInNoArgument(t *testing.T) {
	s := newSite(t)
	h := open(t, s.config())
	const secret = "topsecret-4711"
	if _, err := h.Run(t.Context(), Command{Args: []string{"cat"}, Stdin: strings.NewReader(secret)}); err != nil {
		t.Fatal(err)
	}
	if err := h.WriteFile(t.Context(), t.TempDir()+"/f", []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	s.server.mu.Lock()
	defer s.server.mu.Unlock()
	for _, c := range s.server.commands {
		if strings.Contains(c, secret) {
			t.Errorf("command %q has the secret", c)
		}
	}
}

func TestNoGoroutineIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("work", func(t *testing.T) {
		s := newSite(t)
		h := open(t, s.config())
		for range 3 {
			if _, err := h.Run(t.Context(), Command{Args: []string{"true"}}); err != nil {
				t.Error(err)
			}
			s.server.drop()
		}
		ctx, cancel := context.WithCancel(t.Context())
		_, _ = h.Run(ctx, Command{Args: []string{"sh", "-c", waitScript}, Output: func(string) { cancel() }})
	})
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for runtime.NumGoroutine() > before {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<16)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, buf[:runtime.Stack(buf, true)])
		}
		<-tick.C
	}
}
