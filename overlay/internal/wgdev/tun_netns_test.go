//go:build integration && linux

package wgdev

import (
	"bytes"
	"encoding/base64"
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
	"time"

	"golang.org/x/sys/unix"
	"golang.zx2c4.com/wireguard/conn"

	"github.com/planetmesh/planetmesh/overlay/internal/trust"
)

// Every test runs in a process of its own, in fresh network and mount
// namespaces with a private /run. Where it needs a peer, that is a network stack
// in the same process:
//
//	  kernel of the namespace              this process
//	┌──────────────────────────┐   ┌─────────────────────────┐
//	│ 10.1.0.1, fd00::1 on pm0 ├───┤ device 1 ── hub ── device 2: 10.2.0.1, fd00::2
//	└──────────────────────────┘   └─────────────────────────┘

const (
	insideVariable = "WGDEV_TEST_INSIDE" // name of the test that runs here
	weakVariable   = "WGDEV_TEST_WEAK"   // set without CAP_NET_ADMIN
)

// isolated returns true inside the namespaces. Outside it runs the test there
// and returns false.
func isolated(t *testing.T) bool {
	t.Helper()
	if os.Getenv(weakVariable) != "" {
		return true
	}
	if os.Getenv(insideVariable) == t.Name() {
		mountPrivate(t, "tmpfs", "/run", "tmpfs")
		if target, err := os.Readlink("/var/run"); err != nil || (target != "/run" && target != "../run") {
			mountPrivate(t, "tmpfs", "/var/run", "tmpfs")
		}
		return true
	}
	args := []string{"-test.run", "^" + t.Name() + "$", "-test.count", "1", "-test.timeout", "2m"}
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

func mountPrivate(t *testing.T, source, target, kind string) {
	t.Helper()
	if err := unix.Mount(source, target, kind, unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		t.Fatalf("mount %s: %v", target, err)
	}
}

// run runs a command and returns what it prints.
func run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

func ip(t testing.TB, line string) string {
	t.Helper()
	return run(t, "ip", strings.Fields(line)...)
}

func tunConfig(bind conn.Bind) Config {
	return Config{
		Kind: TUN, Name: "pm0", Bind: bind, PrivateKey: testKey(1), EndpointText: endpointText, ControlSocket: true,
	}
}

func openTUNDevice(t *testing.T, c Config) Device {
	t.Helper()
	d, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeDevice(t, d) })
	return d
}

// links names the interfaces of the namespace.
func links(t testing.TB) string {
	t.Helper()
	var names []string
	interfaces, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range interfaces {
		names = append(names, i.Name)
	}
	return strings.Join(names, " ")
}

func TestTUNKeepsTheContract(t *testing.T) {
	if !isolated(t) {
		return
	}
	before := links(t)
	contract(t, func(t *testing.T) Device { return openTUNDevice(t, tunConfig(newHub().bind(testID(1)))) })
	contractUp(t)
	if after := links(t); after != before {
		t.Errorf("interfaces before %q, after %q", before, after)
	}
	if left, err := filepath.Glob(controlDir + "/*"); err != nil || len(left) != 0 {
		t.Errorf("left over: %v, %v", left, err)
	}
}

// contractUp is the contract with an interface that is up.
func contractUp(t *testing.T) {
	t.Run("up", func(t *testing.T) {
		contract(t, func(t *testing.T) Device {
			d := openTUNDevice(t, tunConfig(newHub().bind(testID(1))))
			ip(t, "link set pm0 up")
			return d
		})
	})
}

// newTUNPair returns a device with an interface that is configured and up, and
// a network stack behind it.
func newTUNPair(t *testing.T, mtu int) (here, there Device) {
	t.Helper()
	h := newHub()
	c := tunConfig(h.bind(testID(1)))
	c.MTU = mtu
	here, there = openTUNDevice(t, c), newStackDevice(t, h, 2)
	mustApply(t, here, addPeer(2, "fd00::2/128", "10.2.0.0/16"))
	mustApply(t, there, addPeer(1, "fd00::1/128", "10.1.0.0/16"))
	ip(t, "addr add 10.1.0.1/32 dev pm0")
	ip(t, "addr add fd00::1/128 dev pm0 nodad")
	ip(t, "link set pm0 up")
	ip(t, "route add 10.2.0.0/16 dev pm0 src 10.1.0.1")
	ip(t, "route add fd00::2/128 dev pm0 src fd00::1")
	return here, there
}

func TestTUNCarriesPacketsOfTheKernel(t *testing.T) {
	if !isolated(t) {
		return
	}
	noGoroutinesLeft(t)
	here, there := newTUNPair(t, 1400)
	if got := ip(t, "link show pm0"); here.Name() != "pm0" || here.MTU() != 1400 || !strings.Contains(got, "mtu 1400") {
		t.Errorf("name %s, mtu %d, kernel:\n%s", here.Name(), here.MTU(), got)
	}
	for _, address := range []string{"10.2.0.1", "fd00::2"} {
		run(t, "ping", "-c", "2", "-i", "0.2", "-W", "5", address)
	}
	message := bytes.Repeat([]byte("planetmesh"), 1_000_000)
	l := mustListen(t, there, "tcp", ":80")
	var served sync.WaitGroup
	served.Go(func() { echo(l) })
	for _, address := range []string{"10.2.0.1:80", "[fd00::2]:80"} {
		conn, err := net.DialTimeout("tcp", address, 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		var wrote sync.WaitGroup
		wrote.Go(func() {
			if _, err := conn.Write(message); err != nil {
				t.Error(err)
			}
			if err := conn.(*net.TCPConn).CloseWrite(); err != nil {
				t.Error(err)
			}
		})
		got, err := io.ReadAll(conn)
		wrote.Wait()
		if err != nil || !bytes.Equal(got, message) {
			t.Errorf("%s: %d bytes, %v, want %d", address, len(got), err, len(message))
		}
		_ = conn.Close()
	}
	_ = l.Close()
	served.Wait()
	closeDevice(t, here)
	if got := links(t); got != "lo" {
		t.Errorf("interfaces %q, want lo alone", got)
	}
}

func TestWgShowsAndDoesNotSet(t *testing.T) {
	if !isolated(t) {
		return
	}
	here, _ := newTUNPair(t, 0)
	run(t, "ping", "-c", "1", "-W", "5", "10.2.0.1")
	encode := func(k trust.ExchangeKey) string { return base64.StdEncoding.EncodeToString(k[:]) }

	got := run(t, "wg", "show", "pm0")
	for _, want := range []string{
		"interface: pm0\n", "public key: " + encode(publicKey(1)) + "\n", "private key: (hidden)\n", "listening port: 51820\n",
		"peer: " + encode(publicKey(2)) + "\n", "endpoint: 192.0.2.2:51820\n", "fd00::2/128", "10.2.0.0/16",
		"latest handshake: ", "transfer: ",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("wg show without %q:\n%s", want, got)
		}
	}
	if got := run(t, "wg", "show", "interfaces"); got != "pm0\n" {
		t.Errorf("wg show interfaces: %q", got)
	}
	if got := strings.Count(run(t, "wg", "show", "all", "dump"), "\n"); got != 2 {
		t.Errorf("wg show all dump: %d lines, want one of the device and one of the peer", got)
	}

	before := here.Peers()
	for _, args := range [][]string{
		{"set", "pm0", "peer", encode(publicKey(2)), "remove"},
		{"set", "pm0", "peer", encode(publicKey(3)), "allowed-ips", "10.3.0.0/16"},
		{"set", "pm0", "listen-port", "1234"},
		{"setconf", "pm0", "/dev/null"},
	} {
		out, err := exec.CommandContext(t.Context(), "wg", args...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), "Operation not permitted") {
			t.Errorf("wg %s: %v, %q, want it to be refused", strings.Join(args, " "), err, out)
		}
	}
	if after := here.Peers(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("peers before %v, after %v", before, after)
	}
	run(t, "ping", "-c", "1", "-W", "5", "10.2.0.1")

	var users sync.WaitGroup
	for range 8 {
		users.Go(func() {
			for range 5 {
				if out, err := exec.CommandContext(t.Context(), "wg", "show", "pm0", "dump").CombinedOutput(); err != nil {
					t.Errorf("%v: %s", err, out)
				}
			}
		})
	}
	users.Wait()
	if info, err := os.Stat(controlDir + "/pm0.sock"); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("socket %v, %v, want mode 0600", info, err)
	}
	closeDevice(t, here)
	if _, err := os.Stat(controlDir + "/pm0.sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket after close: %v", err)
	}
}

func TestWgIsNoObstacleToClose(t *testing.T) {
	if !isolated(t) {
		return
	}
	for range 5 {
		noGoroutinesLeft(t)
		d := openTUNDevice(t, tunConfig(newHub().bind(testID(1))))
		ip(t, "link set pm0 up")
		mustApply(t, d, addPeer(2, "10.2.0.0/16"))
		stop := make(chan struct{})
		var users sync.WaitGroup
		for range 4 {
			users.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
					}
					_ = askSocketOnce(controlDir + "/pm0.sock") // fails while it closes
				}
			})
		}
		if err := askSocketOnce(controlDir + "/pm0.sock"); err != nil {
			t.Fatal(err)
		}
		closeDevice(t, d)
		close(stop)
		within(t, "users", users.Wait)
	}
}

func askSocketOnce(path string) error {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := io.WriteString(conn, "get=1\n\n"); err != nil {
		return err
	}
	_, err = conn.Read(make([]byte, 1))
	return err
}

func TestControlSocketThatCannotBeMadeIsNoObstacle(t *testing.T) {
	if !isolated(t) {
		return
	}
	if err := os.WriteFile(controlDir, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	here, _ := newTUNPair(t, 0)
	run(t, "ping", "-c", "1", "-W", "5", "10.2.0.1")
	closeDevice(t, here)
}

func TestInterfaceInUseIsRefusedAndLeftAlone(t *testing.T) {
	if !isolated(t) {
		return
	}
	for _, line := range []string{"link add pm0 type bridge", "tuntap add pm0 mode tun"} {
		t.Run(line, func(t *testing.T) {
			noGoroutinesLeft(t)
			ip(t, line)
			before := ip(t, "-d link show pm0")
			_, err := Open(tunConfig(newHub().bind(testID(1))))
			if !errors.Is(err, os.ErrExist) || !strings.Contains(err.Error(), "open interface pm0: ") {
				t.Errorf("got %v, want %v and the name", err, os.ErrExist)
			}
			if after := ip(t, "-d link show pm0"); after != before {
				t.Errorf("before:\n%s\nafter:\n%s", before, after)
			}
			ip(t, "link del pm0")
		})
	}
	d := openTUNDevice(t, tunConfig(newHub().bind(testID(1))))
	if _, err := Open(tunConfig(newHub().bind(testID(1)))); !errors.Is(err, os.ErrExist) {
		t.Errorf("second device: got %v, want %v", err, os.ErrExist)
	}
	closeDevice(t, d)
}

func TestMissingCloneDeviceIsNamed(t *testing.T) {
	if !isolated(t) {
		return
	}
	mountPrivate(t, "tmpfs", "/dev/net", "tmpfs")
	_, err := Open(tunConfig(newHub().bind(testID(1))))
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "/dev/net/tun") || !strings.Contains(err.Error(), "modprobe tun") {
		t.Errorf("got %v, want %v, the device and what to do", err, os.ErrNotExist)
	}
	// A node whose driver is not there.
	if err := unix.Mknod("/dev/net/tun", unix.S_IFCHR|0o666, int(unix.Mkdev(240, 77))); err != nil {
		t.Fatal(err)
	}
	// tmpfs was mounted without devices; allow them.
	if err := unix.Mount("", "/dev/net", "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	if _, err = Open(tunConfig(newHub().bind(testID(1)))); !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "modprobe tun") {
		t.Errorf("without a driver: got %v, want %v and what to do", err, os.ErrNotExist)
	}
}

func TestMissingCapabilityIsNamed(t *testing.T) {
	if !isolated(t) {
		return
	}
	if os.Getenv(weakVariable) == "" {
		// Again, as root without the capability (setpriv is in util-linux).
		cmd := exec.CommandContext(t.Context(), "setpriv", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin",
			fmt.Sprintf("/proc/%d/exe", os.Getpid()), "-test.run", "^"+t.Name()+"$")
		cmd.Env = append(os.Environ(), weakVariable+"=1")
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	noGoroutinesLeft(t)
	_, err := Open(tunConfig(newHub().bind(testID(1))))
	if !errors.Is(err, os.ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
		t.Errorf("got %v, want %v and the capability", err, os.ErrPermission)
	}
}

func TestInterfaceThatIsDeletedEndsTheDevice(t *testing.T) {
	if !isolated(t) {
		return
	}
	noGoroutinesLeft(t)
	here, _ := newTUNPair(t, 0)
	ip(t, "link del pm0")
	within(t, "the end of the device", func() { <-here.Done() })
	if err := here.Err(); err == nil || !strings.Contains(err.Error(), "pm0") {
		t.Errorf("got %v, want the name", err)
	}
	if _, err := os.Stat(controlDir + "/pm0.sock"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket: %v", err)
	}
}

func TestInterfaceMayGoDownAndUp(t *testing.T) {
	if !isolated(t) {
		return
	}
	newTUNPair(t, 0)
	run(t, "ping", "-c", "1", "-W", "5", "10.2.0.1")
	ip(t, "link set pm0 down")
	ip(t, "link set pm0 up")
	ip(t, "route add 10.2.0.0/16 dev pm0 src 10.1.0.1") // went with the link
	run(t, "ping", "-c", "1", "-W", "10", "10.2.0.1")
}

// The real socket of the library, as a peer that is not in this process would
// see it.
func TestTUNWorksWithTheBindOfTheLibrary(t *testing.T) {
	if !isolated(t) {
		return
	}
	ip(t, "link set lo up")
	ports := map[trust.GatewayID]uint16{testID(1): 5001, testID(2): 5002}
	text := func(id trust.GatewayID) string { return fmt.Sprintf("127.0.0.1:%d", ports[id]) }
	c := tunConfig(fixedPort{conn.NewDefaultBind(), 5001})
	c.EndpointText = text
	here := openTUNDevice(t, c)
	overlay, v4, _ := stackAddresses(2)
	there, err := Open(Config{
		Kind: InProcess, Addresses: []netip.Addr{overlay, v4},
		Bind: fixedPort{conn.NewDefaultBind(), 5002}, PrivateKey: testKey(2), EndpointText: text,
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { closeDevice(t, there) })
	mustApply(t, here, addPeer(2, "10.2.0.0/16"))
	mustApply(t, there, addPeer(1, "10.1.0.0/16"))
	ip(t, "addr add 10.1.0.1/32 dev pm0")
	ip(t, "link set pm0 up")
	ip(t, "route add 10.2.0.0/16 dev pm0 src 10.1.0.1")
	run(t, "ping", "-c", "2", "-i", "0.2", "-W", "5", "10.2.0.1")
}

// fixedPort opens a bind on one port.
type fixedPort struct {
	conn.Bind
	port uint16
}

func (f fixedPort) Open(uint16) ([]conn.ReceiveFunc, uint16, error) { return f.Bind.Open(f.port) }
