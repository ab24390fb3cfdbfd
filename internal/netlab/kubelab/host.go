//go:build linux

package kubelab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/planetmesh/planetmesh/internal/netlab"
)

// Host is a machine with a root file system of its own: one of those on the LANs, with systemd, or a router, where process 1 is
// sshd. It is safe for concurrent use, except for switching it off and on.
type Host struct {
	box     *box
	root    string // what its root begins as
	store   string // of containerd; empty means none
	meshd   string // program to be put on it
	systemd bool
	daemon  *netlab.Process // meshd on a router, once it was started
}

// Name is the host's name.
func (h *Host) Name() string { return h.box.net.Name() }

// Addr is its address on the LAN, of routers too.
func (h *Host) Addr() netip.Addr {
	interfaces := h.box.net.Spec().Interfaces
	return interfaces[len(interfaces)-1].Addrs[0].Addr() // routers have the underlay before it
}

// Net is the host's place in the network. Programs that are started there are in the host's network, but have the machine's
// files and processes around them.
func (h *Host) Net() *netlab.Host { return h.box.net }

// Command prepares a program on the host, as root in the host's namespaces; it is not the way of people, who have
// [Operator.SSH]. The program is searched for on the host. Its environment has KUBECONFIG for the host's administrator;
// Env and Dir of the command mean nothing.
func (h *Host) Command(ctx context.Context, args ...string) *netlab.Cmd {
	return h.box.command(ctx, args...)
}

// Exec runs a program on the host to its end and returns its standard output. The error is a [*netlab.CommandError].
func (h *Host) Exec(ctx context.Context, args ...string) (string, error) {
	return h.box.run(ctx, args...)
}

// Start starts a program on the host that runs until it ends, is stopped, ctx is done or the host loses its power.
func (h *Host) Start(ctx context.Context, args ...string) (*netlab.Process, error) {
	return h.box.net.StartCommand(h.box.command(ctx, args...))
}

// WriteFile writes a file on the host and makes the directories above it.
func (h *Host) WriteFile(ctx context.Context, name string, data []byte, mode uint32) error {
	c := h.Command(ctx, "sh", "-c", `mkdir -p "$(dirname "$1")" && cat > "$1" && chmod "$2" "$1"`, "sh", name, fmt.Sprintf("%o", mode))
	c.Stdin = strings.NewReader(string(data))
	if out, err := c.CombinedOutput(); err != nil {
		return fmt.Errorf("host %s: write %s: %w: %s", h.Name(), name, err, tail(string(out)))
	}
	return nil
}

// On reports whether the host has power.
func (h *Host) On() bool { return h.box.on() }

// PowerOff takes the host's power and its cable away: nothing on it ends in order, and nothing answers any more, not even
// with a refusal. What it wrote is still there for [Host.PowerOn].
func (h *Host) PowerOff(ctx context.Context) error {
	if err := h.setCable(ctx, netlab.Cut); err != nil {
		return err
	}
	return h.box.powerOff(ctx)
}

// PowerOn boots the host again, with what it had on its disk and none of the network settings that programs had made.
func (h *Host) PowerOn(ctx context.Context) error {
	if h.On() {
		return nil
	}
	if err := h.box.resetNetwork(ctx); err != nil {
		return err
	}
	if err := h.setCable(ctx, netlab.Link{}); err != nil {
		return err
	}
	return h.boot(ctx)
}

func (h *Host) setCable(ctx context.Context, l netlab.Link) error {
	for _, i := range h.box.net.Spec().Interfaces {
		if err := h.box.net.SetLink(ctx, i.Name, l, l); err != nil {
			return err
		}
	}
	return nil
}

// install puts the host's files in place before it boots for the first time.
func (h *Host) install(keys *keys) error {
	if err := h.box.create(h.root, h.store); err != nil {
		return err
	}
	upper := h.box.spec.Upper
	router := h.box.net.Spec().Interfaces[0].Addrs[0].Addr()
	if len(h.box.net.Spec().Gateways) > 0 {
		router = h.box.net.Spec().Gateways[0]
	}
	files := map[string]string{
		"etc/hostname":    h.Name() + "\n",
		"etc/hosts":       fmt.Sprintf("127.0.0.1 localhost\n%s %s\n", h.Addr(), h.Name()),
		"etc/resolv.conf": fmt.Sprintf("nameserver %s\n", router), // nobody answers, but CoreDNS wants one
		"etc/machine-id":  hash("machine", h.Name()) + hash("id", h.Name()) + "\n",
	}
	for name, content := range files {
		if err := writeFile(filepath.Join(upper, name), content, 0o644); err != nil {
			return err
		}
	}
	if h.meshd != "" {
		if err := clone(h.meshd, filepath.Join(upper, "usr/local/bin/meshd")); err != nil {
			return err
		}
	}
	return keys.install(upper, h.Name())
}

// boot boots the host and waits until its services have been started, whether or not all of them work.
func (h *Host) boot(ctx context.Context) error {
	if h.systemd {
		cgroups, err := makeCgroups(h.Name())
		if err != nil {
			return fmt.Errorf("host %s: %w", h.Name(), err)
		}
		h.box.spec.Cgroups = cgroups
	}
	if err := h.box.boot(ctx); err != nil {
		return err
	}
	if h.systemd {
		return h.box.await(ctx, "sh", "-c", "state=$(systemctl is-system-running); [ $state = running ] || [ $state = degraded ]")
	}
	return h.box.await(ctx, "test", "-e", "/run/sshd.pid")
}

// Reset of the network of a host that lost its power: what the kernel would have forgotten, because the namespace it is in
// outlives the machine.
const networkReset = `
nft flush ruleset
for link in $(ls /sys/class/net); do
	case " lo $1 " in *" $link "*) ;; *) ip link delete "$link" 2>/dev/null || true ;; esac
done
ip route flush scope global || true
`

func (b *box) resetNetwork(ctx context.Context) error {
	var names []string
	for _, i := range b.net.Spec().Interfaces {
		names = append(names, i.Name)
	}
	if _, err := b.net.Run(ctx, "sh", "-ec", networkReset, "sh", strings.Join(names, " ")); err != nil {
		return err
	}
	var errs []error
	for _, g := range b.net.Spec().Gateways {
		_, err := b.net.Run(ctx, "ip", "route", "replace", "default", "via", g.String())
		errs = append(errs, err)
	}
	for _, r := range b.net.Spec().Routes {
		_, err := b.net.Run(ctx, "ip", "route", "replace", r.Dst.String(), "via", r.Via.String())
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}
