//go:build integration && linux

package hostnet

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"
)

// Every test runs in a process of its own, in fresh network and mount
// namespaces. Other hosts are namespaces held by further processes:
//
//	 peer A            this process: the host          peer B
//	┌──────┐   ┌─────────────────────────────────┐   ┌──────┐
//	│   e0 ├───┤ lan0      pm0 (TUN)        wan0 ├───┤ e0   │
//	└──────┘   └─────────────────────────────────┘   └──────┘

const (
	insideVariable = "HOSTNET_TEST_INSIDE" // name of the test that runs here
	roleVariable   = "HOSTNET_TEST_ROLE"   // what else a process is for
)

func TestMain(m *testing.M) {
	switch role := os.Getenv(roleVariable); role {
	case "":
		os.Exit(m.Run())
	case "peer":
		if err := withoutDAD(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("ready")
		_, _ = io.Copy(io.Discard, os.Stdin) // until the test ends
	default:
		victim(role)
	}
}

// isolated returns true inside the namespaces. Outside it runs the test there
// and returns false.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(insideVariable) == t.Name() {
		run(t, "ip", "link", "set", "lo", "up")
		if err := withoutDAD(); err != nil {
			t.Fatal(err)
		}
		return true
	}
	t.Parallel()
	args := []string{"-test.run", "^" + t.Name() + "$", "-test.count", "1"}
	if testing.Verbose() {
		args = append(args, "-test.v")
	}
	cmd := exec.CommandContext(t.Context(), "/proc/self/exe", args...)
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

// withoutDAD makes addresses usable at once in this namespace.
func withoutDAD() error {
	return errors.Join(
		sysctls{}.write("net/ipv6/conf/all/accept_dad", "0"),
		sysctls{}.write("net/ipv6/conf/default/accept_dad", "0"))
}

// run runs a command and returns what it prints.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// ip runs the ip command with the words of a line.
func ip(t testing.TB, line string) string {
	t.Helper()
	return run(t, "ip", strings.Fields(line)...)
}

// tun makes a TUN interface that is up and has a carrier.
func tun(t *testing.T, name string) {
	t.Helper()
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR|unix.O_NONBLOCK, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	req, err := unix.NewIfreq(name)
	if err != nil {
		t.Fatal(err)
	}
	req.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(int(f.Fd()), unix.TUNSETIFF, req); err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	ip(t, "link set "+name+" mtu 1420 up")
}

// peer is another host.
type peer struct{ pid int }

// newPeer makes a host that is linked to an interface of this one by a cable.
func newPeer(t *testing.T, link string) *peer {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=peer")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, cmd)
	t.Cleanup(func() { _ = stdin.Close(); _ = cmd.Wait() })
	p := &peer{pid: cmd.Process.Pid}
	ip(t, fmt.Sprintf("link add %s type veth peer name e0 netns %d", link, p.pid))
	p.ip(t, "link set lo up")
	p.ip(t, "link set e0 up")
	ip(t, "link set "+link+" up")
	return p
}

func (p *peer) ip(t testing.TB, line string) {
	t.Helper()
	run(t, "nsenter", append([]string{"-t", strconv.Itoa(p.pid), "-n", "ip"}, strings.Fields(line)...)...)
}

// do runs f on a thread in the peer's namespace; sockets that it opens stay
// there.
func (p *peer) do(t testing.TB, f func() error) {
	t.Helper()
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
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// start starts a process of this binary and waits until it says "ready".
func start(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	// The death signal goes out when the starting thread ends.
	runtime.LockOSThread()
	t.Cleanup(runtime.UnlockOSThread)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("process said %q, %v", line, err)
	}
}

// lifetimes are the numbers in the output of ip that count down.
var lifetimes = regexp.MustCompile(`(valid_lft|preferred_lft|expires|age) \d+sec`)

// snapshot is all network state of this namespace.
func snapshot(t testing.TB) map[string]string {
	t.Helper()
	s := make(map[string]string)
	for _, line := range []string{
		"ip -o -d link", "ip -o addr", "ip -4 route show table all", "ip -6 route show table all",
		"ip -4 rule", "ip -6 rule", "ip -o maddr", "nft list ruleset",
	} {
		words := strings.Fields(line)
		lines := strings.Split(lifetimes.ReplaceAllString(run(t, words[0], words[1:]...), "$1 some"), "\n")
		if !strings.Contains(line, "rule") {
			slices.Sort(lines)
		}
		s[line] = strings.Join(lines, "\n")
	}
	delete(s, "ip -o maddr") // multicast groups come and go with forwarding and timers
	err := filepath.WalkDir("/proc/sys/net", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		if b, err := os.ReadFile(path); err == nil {
			s[path] = strings.TrimSpace(string(b))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// mustNotLeak remembers goroutines and open files, and returns a check that
// they are back.
func mustNotLeak(t testing.TB) func() {
	t.Helper()
	count := func() (goroutines, files int) {
		names, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Fatal(err)
		}
		return runtime.NumGoroutine(), len(names)
	}
	count() // the poller opens files of its own the first time
	goroutines, files := count()
	return func() {
		t.Helper()
		eventually(t, func() error {
			if g, f := count(); g > goroutines || f > files {
				return fmt.Errorf("%d goroutines and %d files, before %d and %d", g, f, goroutines, files)
			}
			return nil
		})
	}
}

// mustEqual fails if the host is not as before.
func mustEqual(t testing.TB, before map[string]string) {
	t.Helper()
	if diff := cmp.Diff(before, snapshot(t)); diff != "" {
		t.Errorf("host is not as before (-before +now):\n%s", diff)
	}
}

// eventually waits until check returns nil.
func eventually(t testing.TB, check func() error) {
	t.Helper()
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("never: %v", err)
		}
		time.Sleep(20 * time.Millisecond) // poll
	}
}

// settled waits until no address is tentative and nothing changes any more,
// then takes a snapshot.
func settled(t testing.TB) map[string]string {
	t.Helper()
	last := snapshot(t)
	eventually(t, func() error {
		now := snapshot(t)
		diff := cmp.Diff(last, now)
		last = now
		if strings.Contains(now["ip -o addr"], "tentative") {
			return errors.New("tentative addresses")
		}
		if diff != "" {
			return errors.New(diff)
		}
		return nil
	})
	return last
}

func sysctlIs(t testing.TB, key, want string) {
	t.Helper()
	if got, err := (sysctls{}).read(setting(key)); err != nil || got != want {
		t.Errorf("%s = %q, %v, want %q", key, got, err, want)
	}
}

func setSysctl(t testing.TB, key, value string) {
	t.Helper()
	if err := (sysctls{}).write(setting(key), value); err != nil {
		t.Fatal(err)
	}
}

// stateDirectory is a directory for the journal that only we can write.
func stateDirectory(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "state")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	return dir
}

func mustOpen(t testing.TB, cfg Config, sys sysctls) *Host {
	t.Helper()
	h, err := open(cfg, sys)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = h.Close() })
	return h
}

func mustApply(t testing.TB, h *Host, d Desired) {
	t.Helper()
	if err := h.Apply(t.Context(), d); err != nil {
		t.Fatal(err)
	}
}

func mustClose(t testing.TB, h *Host) {
	t.Helper()
	if err := h.Close(); err != nil {
		t.Fatal(err)
	}
}

// victim is a process that applies a desired state and is killed.
func victim(role string) {
	mode, journal, _ := strings.Cut(role, ":")
	h, err := open(Config{Link: "pm0", Journal: journal}, sysctls{withoutForce: strings.Contains(mode, "all")})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	if strings.Contains(mode, "loop") {
		fmt.Println("ready")
	}
	for {
		if err := h.Apply(context.Background(), fullDesired()); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		if !strings.Contains(mode, "loop") {
			fmt.Println("ready")
			select {}
		}
		if err := h.Apply(context.Background(), Desired{}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
	}
}

// echo sends a datagram from one peer to a socket in another, and expects the
// same back.
func echo(t testing.TB, from, to *peer, address string) error {
	t.Helper()
	var server, client net.PacketConn
	to.do(t, func() (err error) { server, err = net.ListenPacket("udp", address); return err })
	defer func() { _ = server.Close() }()
	from.do(t, func() (err error) { client, err = net.ListenPacket("udp", ":0"); return err })
	defer func() { _ = client.Close() }()
	if _, err := client.WriteTo([]byte("there and back"), server.LocalAddr()); err != nil {
		return err
	}
	buf := make([]byte, 64)
	for _, c := range []net.PacketConn{server, client} {
		if err := c.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			return err
		}
		n, source, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		if c == server {
			_, err = c.WriteTo(buf[:n], source)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// lockForEver keeps the goroutine on its thread; both end together.
func lockForEver() { runtime.LockOSThread() }

// dropNetAdmin takes CAP_NET_ADMIN from the calling thread.
func dropNetAdmin() error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Effective &^= 1 << unix.CAP_NET_ADMIN
	return unix.Capset(&header, &data[0])
}
