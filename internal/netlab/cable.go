//go:build linux

package netlab

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// cable is the link between an interface of a host and the bridge of its network:
//
//	plain     host ══ h ─ net
//	dropping  host ══ h ─ f ─ x ══ b ─ net
//	shaping   host ══ h ─ f ─ x ══ y ⇄ a ══ b ─ net
//
// h is the port that every interface has; f and net are bridges, ══ is a veth pair, ⇄ is a forwarder in each direction.
// x and b have no offloads, so that the kernel cuts what hosts send into single packets with checksums before
// anything is dropped or delayed, while the hosts' own interfaces stay as they are. nftables drops what comes in by b
// (from the host) and by x (to the host).
type cable struct {
	iface     Iface
	port      string // h
	net       string // name of the network's bridge
	out, in   Link
	stage     stage
	fromHost  *forwarder
	towardsIt *forwarder
}

// stage is how much stands between the two ends of a cable.
type stage int

const (
	plain stage = iota
	dropping
	shaping
)

// device is the name of a part of the cable: of f, x, y, a or b.
func (c *cable) device(letter string) string { return letter + strings.TrimPrefix(c.port, "h") }

// SetLink sets what the link between an interface of the host and its network does to packets that leave the host (out)
// and that come in (in). Both may be changed at any time. What is under way keeps its delay; only where a first
// fault is set on an untouched link, or the last one goes, packets that are under way may be lost. ctx bounds the
// change; after an error that comes from the kernel the link may be in a state between.
func (h *Host) SetLink(ctx context.Context, iface string, out, in Link) error {
	done, err := h.world.begin()
	if err != nil {
		return err
	}
	defer done()
	if err := h.setLink(ctx, iface, out, in); err != nil {
		return fmt.Errorf("host %s interface %s: set link: %w", h.spec.Name, iface, err)
	}
	return nil
}

func (h *Host) setLink(ctx context.Context, iface string, out, in Link) error {
	var errs []error
	for _, f := range append(out.faults(), in.faults()...) {
		errs = append(errs, errors.New(f))
	}
	c, ok := h.cables[iface]
	if !ok {
		errs = append(errs, errors.New("no such interface"))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	h.world.linkMu.Lock()
	defer h.world.linkMu.Unlock()
	c.out, c.in = out, in
	if err := c.rebuild(h.world.base); err != nil {
		return err
	}
	return h.world.dropLocked(ctx)
}

// Link returns what was set last for an interface: see [Host.SetLink]. Before that it is what the topology says.
func (h *Host) Link(iface string) (out, in Link) {
	h.world.linkMu.Lock()
	defer h.world.linkMu.Unlock()
	if c, ok := h.cables[iface]; ok {
		return c.out, c.in
	}
	return Link{}, Link{}
}

// rebuild brings the cable to the stage that its links need. A forwarder that is there stays until the cable is plain again,
// so that a test that changes values does not lose packets by it.
func (c *cable) rebuild(base namespaces) error {
	want := plain
	switch {
	case c.out == Link{} && c.in == Link{}:
	case c.out.shaped() || c.in.shaped():
		want = shaping
	default:
		want = max(dropping, c.stage)
	}
	if want == c.stage {
		c.pass()
		return nil
	}
	return onThread(func() error {
		if err := base.enterNet(); err != nil {
			return err
		}
		if err := c.straighten(); err != nil {
			return err
		}
		if want == plain {
			return nil
		}
		if err := c.splice(want); err != nil {
			return errors.Join(err, c.straighten())
		}
		return nil
	})
}

// pass tells the forwarders, if there are any, their links.
func (c *cable) pass() {
	if c.stage == shaping {
		c.fromHost.set(c.out)
		c.towardsIt.set(c.in)
	}
}

// straighten makes the cable plain.
func (c *cable) straighten() error {
	c.stop()
	c.stage = plain
	if err := enslave(c.port, c.net); err != nil {
		return err
	}
	var errs []error
	for _, letter := range []string{"x", "b", "f"} { // y and a go with their other ends
		link, err := netlink.LinkByName(c.device(letter))
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			continue
		}
		if err == nil {
			err = netlink.LinkDel(link)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// stop ends the forwarders.
func (c *cable) stop() {
	for _, f := range []*forwarder{c.fromHost, c.towardsIt} {
		if f != nil {
			f.stop()
		}
	}
	c.fromHost, c.towardsIt = nil, nil
}

// splice puts between port and network what the stage needs.
func (c *cable) splice(want stage) error {
	if _, err := addBridge(c.device("f")); err != nil {
		return err
	}
	pairs := [][2]string{{"x", "b"}}
	if want == shaping {
		pairs = [][2]string{{"x", "y"}, {"b", "a"}}
	}
	for _, p := range pairs {
		if err := addPatch(c.device(p[0]), c.device(p[1]), c.iface.mtu()); err != nil {
			return err
		}
	}
	for _, name := range []string{"x", "b"} {
		if err := clearOffloads(c.device(name)); err != nil {
			return err
		}
	}
	if want == shaping {
		if err := c.forward(); err != nil {
			return err
		}
	}
	for _, m := range [][2]string{{c.device("x"), c.device("f")}, {c.device("b"), c.net}, {c.port, c.device("f")}} {
		if err := enslave(m[0], m[1]); err != nil {
			return err
		}
	}
	c.stage = want
	return nil
}

// forward starts the forwarders.
func (c *cable) forward() error {
	y, err := netlink.LinkByName(c.device("y"))
	if err != nil {
		return err
	}
	a, err := netlink.LinkByName(c.device("a"))
	if err != nil {
		return err
	}
	if c.fromHost, err = startForwarder(y.Attrs().Index, a.Attrs().Index, c.iface.mtu(), c.out); err != nil {
		return err
	}
	c.towardsIt, err = startForwarder(a.Attrs().Index, y.Attrs().Index, c.iface.mtu(), c.in)
	return err
}

// addPatch makes a veth pair whose ends both stay in this namespace.
func addPatch(name, peer string, mtu int) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU = name, mtu
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: attrs, PeerName: peer, PeerMTU: uint32(mtu)}); err != nil {
		return fmt.Errorf("add veth %s: %w", name, err)
	}
	for _, n := range []string{name, peer} {
		link, err := netlink.LinkByName(n)
		if err == nil {
			err = netlink.LinkSetUp(link)
		}
		if err != nil {
			return fmt.Errorf("set up veth %s: %w", n, err)
		}
	}
	return nil
}

// enslave makes a device a port of a bridge and of no other one.
func enslave(name, bridge string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	master, err := netlink.LinkByName(bridge)
	if err != nil {
		return fmt.Errorf("find bridge %s: %w", bridge, err)
	}
	if err := netlink.LinkSetMaster(link, master); err != nil {
		return fmt.Errorf("plug %s into bridge %s: %w", name, bridge, err)
	}
	return nil
}

// clearOffloads makes the kernel send only single packets with complete checksums by an interface.
func clearOffloads(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetGSOMaxSegs(link, 1); err != nil {
		return fmt.Errorf("limit segments of %s: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	off := struct{ cmd, value uint32 }{cmd: unix.ETHTOOL_STXCSUM} // struct ethtool_value of linux/ethtool.h
	request := struct {                                           // struct ifreq of linux/if.h
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&off)}
	copy(request.name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("clear offloads of %s: %w", name, errno)
	}
	return nil
}

// dropLocked makes nftables drop what the links of all cables lose. It replaces the table in one step.
func (w *World) dropLocked(ctx context.Context) error {
	rules := dropRules(w.cables)
	if rules == w.drops {
		return nil
	}
	var stderr strings.Builder
	err := onThread(func() error {
		if err := w.base.enter(); err != nil {
			return err
		}
		c := exec.CommandContext(ctx, "nft", "-f", "-")
		c.Stdin, c.Stderr = strings.NewReader("table bridge netlab\ndelete table bridge netlab\n"+rules), &stderr
		return c.Run()
	})
	if err != nil {
		return fmt.Errorf("nft: %w: %s", err, strings.TrimSpace(stderr.String()))
	}
	w.drops = rules
	return nil
}

// dropRules is the nftables text of the table, empty if nothing is dropped.
func dropRules(cables []*cable) string {
	var b strings.Builder
	for _, c := range cables {
		for _, side := range []struct {
			device string
			link   Link
		}{{c.device("b"), c.out}, {c.device("x"), c.in}} {
			for _, rule := range side.link.rules() {
				fmt.Fprintf(&b, "\t\tiifname %q %s\n", side.device, rule)
			}
		}
	}
	if b.Len() == 0 {
		return ""
	}
	return "table bridge netlab {\n\tchain forward {\n\t\ttype filter hook forward priority 0; policy accept;\n" + b.String() + "\t}\n}\n"
}
