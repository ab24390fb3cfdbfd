//go:build integration && linux

package fw

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Every test runs in a process of its own, in fresh network and mount
// namespaces. That is a gateway; further processes hold a host on its LAN and
// one at another site. A cable stands for the overlay: it carries 1420 bytes on
// the gateway's side, and the host at the other end does not know.
//
//	 lan                 gateway                  far
//	┌────────────┐   ┌────────────────┐   ┌──────────────────┐
//	│ e0     .10.2├───┤ lan0       pm0 ├───┤ e0          .20.2 │
//	│ mtu 1500   │   │ .10.1  mtu 1420│   │ mtu 1500         │
//	└────────────┘   └────────────────┘   └──────────────────┘

const (
	insideVariable = "FW_TEST_INSIDE" // name of the test that runs here
	peerVariable   = "FW_TEST_PEER"   // set in processes that hold a namespace
)

func TestMain(m *testing.M) {
	if os.Getenv(peerVariable) == "" {
		os.Exit(m.Run())
	}
	if err := withoutDAD(); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
}

// isolated returns true inside the namespaces. Outside it runs the test there
// and returns false.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVariable) == t.Name() {
		if err := withoutDAD(); err != nil {
			t.Fatal(err)
		}
		sh(t, "ip link set lo up")
		return true
	}
	t.Parallel()
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", "-test.run", "^"+t.Name()+"$", "-test.count", "1", "-test.v")
	cmd.Env = append(os.Environ(), insideVariable+"="+t.Name())
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWNET,
		Unshareflags: syscall.CLONE_NEWNS, // makes all mounts private
		Pdeathsig:    syscall.SIGKILL,
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("in its namespaces: %v\n%s", err, out)
	} else if testing.Verbose() {
		t.Logf("%s", out)
	}
	return false
}

func withoutDAD() error {
	var errs []error
	for _, l := range []string{"all", "default"} {
		errs = append(errs, os.WriteFile("/proc/sys/net/ipv6/conf/"+l+"/accept_dad", []byte("0"), 0))
	}
	return errors.Join(errs...)
}

// sh runs shell commands and returns what they print.
func sh(t testing.TB, script string) string {
	t.Helper()
	out, err := exec.Command("sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return string(out)
}

// peer is another host.
type peer struct{ pid int }

// newWorld builds the drawing.
func newWorld(t *testing.T) (lan, far *peer) {
	t.Helper()
	lan, far = newPeer(t, "lan0"), newPeer(t, "pm0")
	sh(t, `ip addr add 192.168.10.1/24 dev lan0; ip addr add fd10::1/64 dev lan0
		ip addr add 192.168.20.1/24 dev pm0; ip addr add fd20::1/64 dev pm0
		ip link set pm0 mtu 1420
		for l in lan0 pm0; do echo 1 > /proc/sys/net/ipv4/conf/$l/forwarding; done
		echo 1 > /proc/sys/net/ipv6/conf/all/forwarding`)
	lan.sh(t, `ip addr add 192.168.10.2/24 dev e0; ip addr add fd10::2/64 dev e0
		ip route add default via 192.168.10.1; ip route add default via fd10::1`)
	far.sh(t, `ip addr add 192.168.20.2/24 dev e0; ip addr add fd20::2/64 dev e0
		ip route add default via 192.168.20.1; ip route add default via fd20::1`)
	return lan, far
}

func newPeer(t *testing.T, link string) *peer {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), peerVariable+"=yes")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	cmd.Stderr = os.Stderr
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	// The death signal goes out when the starting thread ends.
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("peer said %q, %v", line, err)
	}
	p := &peer{pid: cmd.Process.Pid}
	sh(t, fmt.Sprintf("ip link add %s type veth peer name e0 netns %d; ip link set %s up", link, p.pid, link))
	p.sh(t, "ip link set lo up; ip link set e0 up")
	return p
}

func (p *peer) sh(t testing.TB, script string) {
	t.Helper()
	out, err := exec.Command("nsenter", "-t", strconv.Itoa(p.pid), "-n", "sh", "-ec", script).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// do runs f on a thread in the peer's namespace; sockets that it opens stay
// there.
func (p *peer) do(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with the goroutine
		fd, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", p.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err == nil {
			err = errors.Join(unix.Setns(fd, unix.CLONE_NEWNET), unix.Close(fd))
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// connect makes a TCP connection between peers, sends a lot in both directions,
// and returns the segment sizes that the two ends send.
func connect(t testing.TB, from, to *peer, address string) (fromSize, toSize int, err error) {
	t.Helper()
	var listener net.Listener
	if err := to.do(func() (err error) { listener, err = net.Listen("tcp", address); return err }); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	var client net.Conn
	if err := from.do(func() (err error) {
		client, err = net.DialTimeout("tcp", listener.Addr().String(), 300*time.Millisecond)
		return err
	}); err != nil {
		return 0, 0, err
	}
	defer func() { _ = client.Close() }()
	server, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	fromSize, toSize = segmentSize(t, client), segmentSize(t, server)
	for _, c := range [][2]net.Conn{{client, server}, {server, client}} {
		deadline := time.Now().Add(3 * time.Second)
		if err := errors.Join(c[0].SetDeadline(deadline), c[1].SetDeadline(deadline)); err != nil {
			return 0, 0, err
		}
		const amount = 64 << 10
		sent := make(chan error)
		go func() { _, err := c[0].Write(make([]byte, amount)); sent <- err }()
		_, err := io.ReadFull(c[1], make([]byte, amount))
		if err := errors.Join(err, <-sent); err != nil {
			return 0, 0, err
		}
	}
	return fromSize, toSize, nil
}

// segmentSize is what the kernel sends at most in one segment, with 12 bytes
// for the timestamp option.
func segmentSize(t testing.TB, c net.Conn) int {
	t.Helper()
	raw, err := c.(*net.TCPConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var size int
	err = errors.Join(raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			size = int(info.Snd_mss)
		}
	}), err)
	if err != nil {
		t.Fatal(err)
	}
	return size + 12
}

// reachable reports in which directions the hosts can talk: "to" the far site,
// "from" it.
func reachable(t testing.TB, lan, far *peer, family int) string {
	t.Helper()
	addresses := [2]string{"192.168.20.2:0", "192.168.10.2:0"}
	if family == 6 {
		addresses = [2]string{"[fd20::2]:0", "[fd10::2]:0"}
	}
	var ways []string
	if _, _, err := connect(t, lan, far, addresses[0]); err == nil {
		ways = append(ways, "to")
	}
	if _, _, err := connect(t, far, lan, addresses[1]); err == nil {
		ways = append(ways, "from")
	}
	return strings.Join(ways, " ")
}
