//go:build openvpn

package openvpn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The laboratory: the test program runs itself again in a network namespace of
// its own; every test adds one more namespace for the real peer.
//
//	test namespace (us)                      peer namespace (real openvpn)
//	  TUN tuN 10.9.N.1 ── Endpoint             openvpn ── tun0 10.9.N.2
//	  vaN 10.200.N.1/24 ───────── veth ────── vb 10.200.N.2/24
const labEnv = "OPENVPN_LAB"

func TestMain(m *testing.M) {
	switch mode := os.Getenv(labEnv); {
	case mode == "":
		os.Exit(enterLab())
	case strings.HasPrefix(mode, "echo "):
		echoServer(strings.TrimPrefix(mode, "echo "))
	}
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
		fmt.Fprintln(os.Stderr, "set lo up:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// enterLab runs this program again where the network is empty.
func enterLab() int {
	// The tests mostly wait, so many run at once.
	args := append(append([]string{"--net", os.Args[0]}, os.Args[1:]...), "-test.parallel=24")
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(os.Environ(), labEnv+"=in")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration tests need root and unshare:", err)
		return 1
	}
	return 0
}

// echoServer answers one TCP connection after the other until it is killed.
func echoServer(addr string) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		_, _ = io.Copy(c, c)
		_ = c.Close()
	}
}

var labCount atomic.Int32

// lab is one veth pair with a namespace behind it.
type lab struct {
	t   testing.TB
	n   int
	pid int // of the process that holds the peer's namespace
	dir string
}

func newLab(t testing.TB) *lab {
	t.Helper()
	n := int(labCount.Add(1))
	l := &lab{t: t, n: n, dir: t.TempDir()}
	holder := exec.Command("unshare", "--net", "sleep", "1000")
	holder.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := holder.Start(); err != nil {
		t.Fatal(err)
	}
	l.pid = holder.Process.Pid
	t.Cleanup(func() {
		_ = holder.Process.Kill()
		_ = holder.Wait()
	})
	self, _ := os.Readlink("/proc/self/ns/net")
	eventuallyLab(t, "namespace of the peer", func() bool {
		other, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", l.pid))
		return err == nil && other != self
	})
	va := fmt.Sprintf("va%d", n)
	l.run("ip", "link", "add", va, "type", "veth", "peer", "name", "vb", "netns", strconv.Itoa(l.pid))
	t.Cleanup(func() { _ = exec.Command("ip", "link", "del", va).Run() })
	l.run("ip", "addr", "add", l.outer(1).String()+"/24", "dev", va)
	l.run("ip", "addr", "add", l.outer6(1).String()+"/64", "dev", va, "nodad")
	l.run("ip", "link", "set", va, "up")
	l.runThere("ip", "link", "set", "lo", "up")
	l.runThere("ip", "addr", "add", l.outer(2).String()+"/24", "dev", "vb")
	l.runThere("ip", "addr", "add", l.outer6(2).String()+"/64", "dev", "vb", "nodad")
	l.runThere("ip", "link", "set", "vb", "up")
	return l
}

func (l *lab) outer(side byte) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 200, byte(l.n), side})
}

func (l *lab) outer6(side byte) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:200:%x::%d", l.n, side))
}

func (l *lab) inner(side byte) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 9, byte(l.n), side})
}

func (l *lab) inner6(side byte) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:9:%x::%d", l.n, side))
}

func (l *lab) run(name string, args ...string) {
	l.t.Helper()
	if out, err := exec.Command(name, args...).CombinedOutput(); err != nil {
		l.t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// there is a command in the peer's namespace.
func (l *lab) there(name string, args ...string) *exec.Cmd {
	all := append([]string{"-t", strconv.Itoa(l.pid), "-n", name}, args...)
	cmd := exec.Command("nsenter", all...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	return cmd
}

func (l *lab) runThere(name string, args ...string) {
	l.t.Helper()
	if out, err := l.there(name, args...).CombinedOutput(); err != nil {
		l.t.Fatalf("peer: %s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
}

// file writes a file for the real peer and returns its path.
func (l *lab) file(name string, content []byte) string {
	l.t.Helper()
	p := filepath.Join(l.dir, name)
	if err := os.WriteFile(p, content, 0o600); err != nil {
		l.t.Fatal(err)
	}
	return p
}

// realPeer is a running openvpn.
type realPeer struct {
	l    *lab
	cmd  *exec.Cmd
	log  syncBuffer
	done chan struct{}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// openvpn starts the real peer with the common options and these.
func (l *lab) openvpn(args ...string) *realPeer {
	l.t.Helper()
	p := &realPeer{l: l, done: make(chan struct{})}
	all := append([]string{
		"--dev", "tun0", "--dev-type", "tun", "--disable-dco", "--persist-tun", "--persist-key", "--verb", "3",
		"--ifconfig", l.inner(2).String(), l.inner(1).String(),
	}, args...)
	if !strings.Contains(strings.Join(args, " "), "--ping ") {
		all = append(all, "--ping", "10", "--ping-restart", "60")
	}
	p.cmd = l.there("openvpn", all...)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	go func() { // ends with the process
		_ = p.cmd.Wait()
		close(p.done)
	}()
	l.t.Cleanup(func() {
		p.stop(syscall.SIGKILL)
		if l.t.Failed() {
			l.t.Logf("log of the real peer:\n%s", &p.log)
		}
	})
	return p
}

// stop sends a signal and waits for the end.
func (p *realPeer) stop(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig)
	<-p.done
}

// labDevice is a TUN of the kernel.
type labDevice struct{ f *os.File }

// newTUN makes the TUN of our side.
func (l *lab) newTUN() *labDevice {
	l.t.Helper()
	name := fmt.Sprintf("tu%d", l.n)
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		l.t.Fatal(err)
	}
	req, err := unix.NewIfreq(name)
	if err != nil {
		l.t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(fd, unix.TUNSETIFF, req); err != nil {
		l.t.Fatal(err)
	}
	l.run("ip", "addr", "add", l.inner(1).String(), "peer", l.inner(2).String(), "dev", name)
	l.run("ip", "-6", "addr", "add", l.inner6(1).String()+"/64", "dev", name, "nodad")
	l.run("ip", "link", "set", name, "mtu", "1500", "up")
	return &labDevice{os.NewFile(uintptr(fd), "/dev/net/tun")}
}

// ReadPackets waits for one packet and takes those that are there as well.
func (d *labDevice) ReadPackets(bufs [][]byte, sizes []int) (int, error) {
	n, err := d.f.Read(bufs[0])
	if err != nil {
		return 0, err
	}
	sizes[0] = n
	count := 1
	raw, err := d.f.SyscallConn()
	if err != nil {
		return count, nil
	}
	err = raw.Read(func(fd uintptr) bool {
		for count < len(bufs) {
			n, err := unix.Read(int(fd), bufs[count])
			if err != nil {
				break
			}
			sizes[count] = n
			count++
		}
		return true
	})
	return count, err
}

func (d *labDevice) WritePackets(packets [][]byte) error {
	for _, p := range packets {
		_, _ = d.f.Write(p) // what the kernel refuses is lost, as at a real peer
	}
	return nil
}

func (d *labDevice) Close() error { return d.f.Close() }

// eventuallyLab polls until ok or the deadline.
func eventuallyLab(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// pingUntil pings the peer's inner address until it answers.
func (l *lab) pingUntil(within time.Duration) {
	l.t.Helper()
	deadline := time.Now().Add(within)
	for {
		if exec.Command("ping", "-c", "1", "-W", "1", l.inner(2).String()).Run() == nil {
			return
		}
		if time.Now().After(deadline) {
			l.t.Fatalf("no ping came back within %v", within)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// checkTraffic pings both ways, small and large, and moves bytes over TCP.
func (l *lab) checkTraffic() {
	l.t.Helper()
	l.pingUntil(15 * time.Second)
	ping := []string{"-c", "5", "-i", "0.05", "-W", "2", "-q"}
	l.run("ping", append(ping, "-s", "1472", "-M", "do", l.inner(2).String())...)
	l.runThere("ping", append(ping, l.inner(1).String())...)
	l.runThere("ping", append(ping, "-s", "1472", "-M", "do", l.inner(1).String())...)
	l.checkTCP(1 << 20)
}

// checkTCP sends bytes to an echo server behind the peer and compares.
func (l *lab) checkTCP(size int) {
	l.t.Helper()
	addr := net.JoinHostPort(l.inner(2).String(), "7007")
	echo := l.there(os.Args[0])
	echo.Env = append(os.Environ(), labEnv+"=echo "+addr)
	if err := echo.Start(); err != nil {
		l.t.Fatal(err)
	}
	defer func() {
		_ = echo.Process.Kill()
		_ = echo.Wait()
	}()
	var conn net.Conn
	eventuallyLab(l.t, "connection to the echo server", func() bool {
		ctx, cancel := context.WithTimeout(l.t.Context(), 2*time.Second)
		defer cancel()
		var d net.Dialer
		c, err := d.DialContext(ctx, "tcp", addr)
		conn = c
		return err == nil
	})
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
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
