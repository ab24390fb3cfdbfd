//go:build integration

package host

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/knownhosts"
)

// newSSHD starts the distribution's sshd on loopback, with a configuration and a
// host key of its own, and returns how it is reached. It ends with the test.
func newSSHD(t *testing.T, more string) Config {
	t.Helper()
	sshd := "/usr/sbin/sshd"
	if _, err := os.Stat(sshd); err != nil {
		t.Fatalf("this test needs the package openssh-server: %v", err)
	}
	// The directory that sshd wants for its unprivileged part is not the test's
	// to remove: another sshd may use it.
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	hostKey, hostPrivate := newKey(t)
	client, clientPrivate := newKey(t)
	mustWriteKey(t, dir+"/host_key", hostPrivate, "")
	mustWriteKey(t, dir+"/key", clientPrivate, "")
	mustWrite(t, dir+"/authorized_keys", string(ssh.MarshalAuthorizedKey(client.PublicKey())), 0o600)
	port := freePort(t)
	mustWrite(t, dir+"/sshd_config", fmt.Sprintf(`ListenAddress 127.0.0.1
Port %d
HostKey %s/host_key
AuthorizedKeysFile %s/authorized_keys
PidFile none
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
PrintMotd no
%s`, port, dir, dir, more), 0o600)
	address := fmt.Sprintf("127.0.0.1:%d", port)
	mustWrite(t, dir+"/known_hosts", knownhosts.Line([]string{address}, hostKey.PublicKey())+"\n", 0o600)
	var log bytes.Buffer
	cmd := exec.Command(sshd, "-D", "-e", "-f", dir+"/sshd_config")
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // no error that matters: it ends in any case
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("sshd:\n%s", log.String())
		}
	})
	waitFor(t, address)
	return Config{Name: "h1", Address: "127.0.0.1", Port: port, User: "root", Key: dir + "/key", KnownHosts: dir + "/known_hosts", Home: dir}
}

// waitFor waits until somebody listens.
func waitFor(t *testing.T, address string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for ; ; <-tick.C {
		conn, err := net.Dial("tcp", address)
		if err == nil {
			conn.Close()
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("sshd does not listen: %v", err)
		}
	}
}

func TestRealServerKeepsTheContract(t *testing.T) {
	contract(t, func(t *testing.T) (Host, string) { return open(t, newSSHD(t, "")), t.TempDir() + "/own" })
}

func TestRealServerEndsCancelledCommands(t *testing.T) {
	h := open(t, newSSHD(t, ""))
	ctx, cancel := context.WithCancel(t.Context())
	out, err := h.Run(ctx, Command{Args: []string{"sh", "-c", `trap '' TERM; echo "$$"; sleep 300 & echo $!; echo begun; while :; do sleep 1; done`}, Output: func(line string) {
		if line == "begun" {
			cancel()
		}
	}})
	if !errors.Is(err, context.Canceled) {
		t.Fatalf("error %v, want context.Canceled", err)
	}
	for _, pid := range strings.Fields(out.Stdout)[:2] {
		if b, err := os.ReadFile("/proc/" + pid + "/stat"); err == nil && !strings.Contains(string(b), ") Z ") {
			t.Errorf("process %s still runs: %s", pid, b)
		}
	}
}

func TestRealServersSessionLimitIsKept(t *testing.T) {
	h := open(t, newSSHD(t, "MaxSessions 10\n"))
	var wg sync.WaitGroup
	for range 40 {
		wg.Go(func() {
			if _, err := h.Run(t.Context(), Command{Args: []string{"sleep", "0.05"}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	full := open(t, newSSHD(t, "MaxSessions 0\n"))
	if _, err := full.Run(t.Context(), Command{Args: []string{"true"}}); err == nil || !strings.Contains(err.Error(), "MaxSessions") {
		t.Errorf("error %v, want a word about MaxSessions", err)
	}
}

func TestRealServerAsJumpHost(t *testing.T) {
	first, second := newSSHD(t, ""), newSSHD(t, "")
	first.Name = "gw"
	second.Via = open(t, first)
	h := open(t, second)
	blob := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // 4 MiB
	name := t.TempDir() + "/blob"
	if err := h.WriteFile(t.Context(), name, blob, 0o600); err != nil {
		t.Fatal(err)
	}
	if got, err := h.ReadFile(t.Context(), name); err != nil || !bytes.Equal(got, blob) {
		t.Errorf("%d bytes, %v; want %d", len(got), err, len(blob))
	}
	closed := newSSHD(t, "AllowTcpForwarding no\n")
	closed.Name = "gw"
	second.Via = open(t, closed)
	if err := open(t, second).Connect(t.Context()); err == nil || !strings.Contains(err.Error(), "through gw") {
		t.Errorf("error %v, want that the jump host is the cause", err)
	}
}

func TestRealServersKeyIsChecked(t *testing.T) {
	c := newSSHD(t, "")
	other, _ := newKey(t)
	mustWrite(t, c.KnownHosts, knownhosts.Line([]string{fmt.Sprintf("127.0.0.1:%d", c.Port)}, other.PublicKey())+"\n", 0o600)
	err := open(t, c).Connect(t.Context())
	key, ok := errors.AsType[*KeyError](err)
	if !ok || !key.Changed() {
		t.Fatalf("error %v, want a changed host key", err)
	}
	// The cure is a command that works.
	if out, err := exec.Command("sh", "-c", key.Cure).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", key.Cure, err, out)
	}
	if err := open(t, c).Connect(t.Context()); err != nil {
		t.Errorf("after %s: %v", key.Cure, err)
	}
	c.KnownHosts = filepath.Join(t.TempDir(), "new")
	err = open(t, c).Connect(t.Context())
	if key, ok = errors.AsType[*KeyError](err); !ok || key.Changed() {
		t.Fatalf("error %v, want an unknown host key", err)
	}
	if out, err := exec.Command("sh", "-c", key.Cure).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v: %s", key.Cure, err, out)
	}
	if err := open(t, c).Connect(t.Context()); err != nil {
		t.Errorf("after %s: %v", key.Cure, err)
	}
}
