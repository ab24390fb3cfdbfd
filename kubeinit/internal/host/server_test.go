package host

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// server is an SSH server in this process. It runs commands with this machine's
// shell, as sshd does: each in a session of its own.
type server struct {
	t       testing.TB
	address netip.AddrPort
	env     []string

	mu       sync.Mutex // guards what follows
	config   ssh.ServerConfig
	greeting string // what the start-up files of the login shell do
	deaf     bool   // does not answer signs of life
	conns    []net.Conn
	sessions int // now
	most     int // of sessions
	commands []string
	running  map[int]*os.Process // with a process group of its own
}

// site is what a client needs in order to reach a server.
type site struct {
	server     *server
	dir        string // with key and known_hosts
	hostKey    ssh.Signer
	clientKey  ed25519.PrivateKey
	knownHosts string
}

func newKey(t testing.TB) (ssh.Signer, ed25519.PrivateKey) {
	t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	s, err := ssh.NewSignerFromKey(private)
	if err != nil {
		t.Fatal(err)
	}
	return s, private
}

func mustWriteKey(t testing.TB, name string, key ed25519.PrivateKey, passphrase string) {
	t.Helper()
	var block *pem.Block
	var err error
	if passphrase == "" {
		block, err = ssh.MarshalPrivateKey(key, "test")
	} else {
		block, err = ssh.MarshalPrivateKeyWithPassphrase(key, "test", []byte(passphrase))
	}
	if err != nil {
		t.Fatal(err)
	}
	mustWrite(t, name, string(pem.EncodeToMemory(block)), 0o600)
}

func mustWrite(t testing.TB, name, text string, mode os.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
}

// newSite starts a server that ends with the test.
func newSite(t testing.TB, env ...string) *site {
	t.Helper()
	s := &site{dir: t.TempDir()}
	s.hostKey, _ = newKey(t)
	client, private := newKey(t)
	s.clientKey = private
	mustWriteKey(t, filepath.Join(s.dir, "key"), private, "")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s.server = &server{t: t, address: netip.MustParseAddrPort(l.Addr().String()), env: append(os.Environ(), env...), running: map[int]*os.Process{}}
	s.server.config = ssh.ServerConfig{PublicKeyCallback: func(_ ssh.ConnMetadata, key ssh.PublicKey) (*ssh.Permissions, error) {
		if string(key.Marshal()) == string(client.PublicKey().Marshal()) {
			return nil, nil
		}
		return nil, errors.New("unknown key")
	}}
	s.server.config.AddHostKey(s.hostKey)
	s.knownHosts = filepath.Join(s.dir, "known_hosts")
	mustWrite(t, s.knownHosts, knownhosts.Line([]string{l.Addr().String()}, s.hostKey.PublicKey())+"\n", 0o600)
	var wg sync.WaitGroup
	wg.Go(func() { s.server.serve(l, &wg) })
	t.Cleanup(func() {
		l.Close()
		s.server.drop()
		s.server.end()
		wg.Wait()
	})
	return s
}

// config is how the server is reached.
func (s *site) config() Config {
	return Config{
		Name: "h1", Address: s.server.address.Addr().String(), Port: s.server.address.Port(), User: "root",
		Key: filepath.Join(s.dir, "key"), KnownHosts: s.knownHosts, Home: s.dir,
	}
}

// open connects nothing yet, and closes at the end of the test.
func open(t testing.TB, c Config) *SSH {
	h := NewSSH(c)
	t.Cleanup(func() {
		if err := h.Close(); err != nil {
			t.Error(err)
		}
	})
	return h
}

// drop breaks all connections.
func (s *server) drop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

// locked changes or reads what s.mu guards.
func (s *server) locked(do func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	do()
}

func (s *server) serve(l net.Listener, wg *sync.WaitGroup) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns = append(s.conns, conn)
		s.mu.Unlock()
		wg.Go(func() { s.connection(conn, wg) })
	}
}

func (s *server) connection(conn net.Conn, wg *sync.WaitGroup) {
	defer conn.Close()
	s.mu.Lock()
	config := s.config
	s.mu.Unlock()
	_, channels, requests, err := ssh.NewServerConn(conn, &config)
	if err != nil {
		return
	}
	wg.Go(func() {
		for r := range requests {
			s.mu.Lock()
			deaf := s.deaf
			s.mu.Unlock()
			if r.WantReply && !deaf {
				_ = r.Reply(false, nil)
			}
		}
	})
	for c := range channels {
		switch c.ChannelType() {
		case "session":
			wg.Go(func() { s.session(c) })
		case "direct-tcpip":
			wg.Go(func() { forward(c) })
		default:
			_ = c.Reject(ssh.UnknownChannelType, "unknown")
		}
	}
}

// session allows ten at a time, as sshd does.
func (s *server) session(c ssh.NewChannel) {
	s.mu.Lock()
	s.sessions++
	s.most = max(s.most, s.sessions)
	full := s.sessions > 10
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.sessions--
		s.mu.Unlock()
	}()
	if full {
		_ = c.Reject(ssh.Prohibited, "open failed")
		return
	}
	channel, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	for r := range requests {
		if r.Type != "exec" {
			_ = r.Reply(false, nil)
			continue
		}
		var payload struct{ Command string }
		if err := ssh.Unmarshal(r.Payload, &payload); err != nil {
			return
		}
		s.mu.Lock()
		s.commands = append(s.commands, payload.Command)
		s.mu.Unlock()
		_ = r.Reply(true, nil)
		go ssh.DiscardRequests(requests)
		s.exec(channel, payload.Command)
		return
	}
}

func (s *server) exec(channel ssh.Channel, command string) {
	s.mu.Lock()
	greeting := s.greeting
	s.mu.Unlock()
	cmd := exec.Command("sh", "-c", greeting+command)
	cmd.Env = s.env
	cmd.Dir = os.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.Stdout, cmd.Stderr = channel, channel.Stderr()
	stdin, err := cmd.StdinPipe()
	if err != nil {
		s.t.Error(err)
		return
	}
	if err := cmd.Start(); err != nil {
		s.t.Error(err)
		return
	}
	s.mark(cmd.Process, true)
	defer s.mark(cmd.Process, false)
	go func() {
		_, _ = io.Copy(stdin, channel)
		stdin.Close()
	}()
	_ = cmd.Wait()
	status := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		name := map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGKILL: "KILL"}[status.Signal()]
		_, _ = channel.SendRequest("exit-signal", false, ssh.Marshal(struct {
			Name      string
			Core      bool
			Text, Tag string
		}{Name: name}))
		return
	}
	_, _ = channel.SendRequest("exit-status", false, ssh.Marshal(struct{ Status uint32 }{uint32(status.ExitStatus())}))
}

func (s *server) mark(p *os.Process, runs bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if runs {
		s.running[p.Pid] = p
	} else {
		delete(s.running, p.Pid)
	}
}

// end kills what commands left over.
func (s *server) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for pid := range s.running {
		_ = syscall.Kill(-pid, syscall.SIGKILL) // gone already if it fails
	}
}

func forward(c ssh.NewChannel) {
	var to struct {
		Host       string
		Port       uint32
		Origin     string
		OriginPort uint32
	}
	if err := ssh.Unmarshal(c.ExtraData(), &to); err != nil {
		_ = c.Reject(ssh.ConnectionFailed, "bad address")
		return
	}
	conn, err := net.Dial("tcp", net.JoinHostPort(to.Host, fmt.Sprint(to.Port)))
	if err != nil {
		_ = c.Reject(ssh.ConnectionFailed, err.Error())
		return
	}
	defer conn.Close()
	channel, requests, err := c.Accept()
	if err != nil {
		return
	}
	defer channel.Close()
	go ssh.DiscardRequests(requests)
	done := make(chan struct{}, 2)
	for _, pair := range [][2]io.ReadWriter{{conn, channel}, {channel, conn}} {
		go func() {
			_, _ = io.Copy(pair[0], pair[1])
			done <- struct{}{}
		}()
	}
	<-done
}

// fakeProgram puts a shell script into a directory and returns the directory.
func fakeProgram(t testing.TB, name, script string) string {
	t.Helper()
	dir := t.TempDir()
	mustWrite(t, filepath.Join(dir, name), "#!/bin/sh\n"+script, 0o755)
	return dir
}

func withPath(dirs ...string) string {
	return "PATH=" + strings.Join(append(dirs, os.Getenv("PATH")), ":")
}
