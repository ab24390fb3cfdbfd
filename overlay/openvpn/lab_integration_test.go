//go:build openvpn || openvpnversions

package openvpn

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
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
	if os.Getenv(labEnv) == "" {
		os.Exit(enterLab())
	}
	if err := exec.Command("ip", "link", "set", "lo", "up").Run(); err != nil {
		fmt.Fprintln(os.Stderr, "set lo up:", err)
		os.Exit(1)
	}
	code := m.Run()
	if path := os.Getenv(tableEnv); path != "" && code == 0 {
		if err := theTable.save(path); err != nil {
			fmt.Fprintln(os.Stderr, "save table:", err)
			code = 1
		}
	}
	os.Exit(code)
}

// enterLab runs this program again where the network is empty.
func enterLab() int {
	// The tests mostly wait, so all run at once.
	args := append(append([]string{"--net", os.Args[0]}, os.Args[1:]...), "-test.parallel="+strconv.Itoa(maxLabs))
	env, err := beforeLab()
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	cmd := exec.Command("unshare", args...)
	cmd.Env = append(append(os.Environ(), labEnv+"=in"), env...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "integration tests need root and unshare:", err)
		return 1
	}
	return 0
}

var labCount atomic.Int32

// maxLabs bounds the labs that are there at once.
const maxLabs = 100

// program is an openvpn to test against.
type program struct {
	version string   // as it says
	command []string // before the options
	env     []string // besides ours
}

// distribution is the openvpn of this system.
var distribution = sync.OnceValues(func() (program, error) {
	return newProgram([]string{"openvpn"}, nil)
})

// newProgram asks an openvpn for its version.
func newProgram(command, env []string) (program, error) {
	cmd := exec.Command(command[0], append(slices.Clone(command[1:]), "--version")...)
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.Output()
	fields := strings.Fields(string(out))
	if len(fields) < 2 || fields[0] != "OpenVPN" { // --version of 2.5 is no success
		return program{}, fmt.Errorf("%s --version: %w: %q", command[0], err, out)
	}
	return program{fields[1], command, env}, nil
}

// lab is one veth pair with a namespace behind it.
type lab struct {
	t    testing.TB
	n    int
	pid  int // of the process that holds the peer's namespace
	dir  string
	bin  program
	line *tableLine // what the table says of this test, nil: nothing

	ended int64 // Unix time of the end of the last real peer
}

func newLab(t testing.TB) *lab {
	t.Helper()
	bin, err := distribution()
	if err != nil {
		t.Fatal(err)
	}
	n := int(labCount.Add(1))
	l := &lab{t: t, n: n, dir: t.TempDir(), bin: bin}
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
	everybody := func() {
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 0"), 0); err != nil {
			t.Error(err)
		}
	}
	everybody()
	l.inside(everybody)
	l.run("ip", "link", "set", va, "up")
	for _, name := range []string{"all", va} { // strangers send from addresses that are nowhere
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/"+name+"/rp_filter", []byte("0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	l.runThere("ip", "link", "set", "lo", "up")
	l.runThere("ip", "addr", "add", l.outer(2).String()+"/24", "dev", "vb")
	l.runThere("ip", "addr", "add", l.outer6(2).String()+"/64", "dev", "vb", "nodad")
	l.runThere("ip", "link", "set", "vb", "up")
	return l
}

func (l *lab) outer(side byte) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 200 + byte(l.n>>8), byte(l.n), side})
}

func (l *lab) outer6(side byte) netip.Addr {
	return netip.MustParseAddr(fmt.Sprintf("fd00:200:%x::%d", l.n, side))
}

func (l *lab) inner(side byte) netip.Addr {
	return netip.AddrFrom4([4]byte{10, 9 + byte(l.n>>8), byte(l.n), side})
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
	all := []string{
		"--dev", "tun0", "--dev-type", "tun", "--persist-tun", "--persist-key", "--verb", "3",
		"--ifconfig", l.inner(2).String(), l.inner(1).String(),
	}
	if l.bin.version > "2.6" {
		all = append(all, "--disable-dco")
	}
	if !slices.Contains(args, "--ping") {
		all = append(all, "--ping", "10", "--ping-restart", "60")
	}
	return l.exec(append(all, args...)...)
}

// exec starts the real peer with these options only.
func (l *lab) exec(args ...string) *realPeer {
	l.t.Helper()
	// A static key's packets of a start within the same second are replays, to us as
	// to real peers.
	for time.Now().Unix() <= l.ended {
		time.Sleep(10 * time.Millisecond)
	}
	p := &realPeer{l: l, done: make(chan struct{})}
	p.cmd = l.there(l.bin.command[0], append(slices.Clone(l.bin.command[1:]), args...)...)
	p.cmd.Env = append(os.Environ(), l.bin.env...)
	p.cmd.Dir = l.dir
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

// says waits for a text in the log.
func (p *realPeer) says(text string) {
	p.l.t.Helper()
	eventuallyLab(p.l.t, fmt.Sprintf("the peer says %q", text), func() bool { return strings.Contains(p.log.String(), text) })
}

// stop sends a signal and waits for the end.
func (p *realPeer) stop(sig syscall.Signal) {
	_ = p.cmd.Process.Signal(sig)
	<-p.done
	p.l.ended = time.Now().Unix()
}

// labDevice is a TUN of the kernel. Close only wakes its reader, so that the next
// endpoint can take it over; it ends with the test.
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
	d := &labDevice{os.NewFile(uintptr(fd), "/dev/net/tun")}
	l.t.Cleanup(func() { _ = d.f.Close() })
	return d
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

func (d *labDevice) Close() error { return d.f.SetReadDeadline(time.Unix(1, 0)) }

// reuse makes the device ready for the next endpoint.
func (d *labDevice) reuse() { _ = d.f.SetReadDeadline(time.Time{}) }

// labPatience is far beyond what anything takes on an idle machine.
const labPatience = 90 * time.Second

// eventuallyLab polls until ok or the deadline.
func eventuallyLab(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(labPatience)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("not in time: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}
