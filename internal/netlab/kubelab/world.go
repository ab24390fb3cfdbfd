//go:build linux

package kubelab

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/planetmesh/planetmesh/internal/netlab"
	"github.com/planetmesh/planetmesh/internal/netlab/kubelab/boxspec"
)

// World is a running laboratory. It is safe for concurrent use.
type World struct {
	options  Options
	assets   *Assets
	lock     *lock
	net      *netlab.World
	hosts    map[string]*Host
	routers  map[string]*Host
	operator *Operator

	closeOnce sync.Once
	closeErr  error
}

// Options say what a world is like. The zero value is the reference deployment with eight machines, ready for kubeadm 1.34,
// whose routers forward nothing yet.
type Options struct {
	// Hosts are the names of the machines on the LANs that there are, out of [netlab.ReferenceHosts]; nil means all eight.
	Hosts []string
	// Version is the minor version of Kubernetes, such as "1.34"; empty means that of KUBE_VERSION, and 1.34 without it.
	Version string
	// Containerd is how the container runtime is found on the machines.
	Containerd ContainerdState
	// Bare leaves the programs of Kubernetes and the kubelet's unit off the machines: whatever is tested brings them.
	Bare bool
	// Routed makes the routers forward between the LANs as if there was no distance and no mesh. Otherwise each
	// machine reaches its own LAN alone until something like [World.StartMesh] makes a mesh.
	Routed bool
	// Meshd is a meshd program that the routers get as /usr/local/bin/meshd; empty means none.
	Meshd string
	// Logf is told about steps that take long; nil means nobody is.
	Logf func(format string, args ...any)
}

// ContainerdState is how containerd is found on the machines that are to be nodes. It is installed and runs in each state.
type ContainerdState int

const (
	// ContainerdConfigured is set up for kubelets: systemd's cgroups, the pause image of the release, plug-ins in /opt/cni/bin.
	ContainerdConfigured ContainerdState = iota
	// ContainerdStock has the configuration that the distribution's package installs.
	ContainerdStock
)

// String is "configured" or "stock".
func (s ContainerdState) String() string {
	if s == ContainerdStock {
		return "stock"
	}
	return "configured"
}

// loadBalancer is the machine of the reference deployment that is not to be a node: it has HAProxy and no container runtime.
const loadBalancer = "lb"

// Start prepares what is missing of the assets, which takes some twenty minutes the first time on a small machine, builds
// the world and returns when systemd is up on all machines. ctx bounds Start alone. The error says what the machine lacks,
// which other laboratory runs on it, or what did not work; nothing but the cache is left then.
func Start(ctx context.Context, o Options) (*World, error) {
	if o.Logf == nil {
		o.Logf = func(string, ...any) {}
	}
	if o.Hosts == nil {
		o.Hosts = netlab.ReferenceHosts()
	}
	for _, name := range o.Hosts {
		if !slices.Contains(netlab.ReferenceHosts(), name) {
			return nil, fmt.Errorf("start laboratory: no host %q in the reference deployment", name)
		}
	}
	w := &World{options: o, hosts: make(map[string]*Host), routers: make(map[string]*Host)}
	if err := w.start(ctx); err != nil {
		return nil, errors.Join(fmt.Errorf("start laboratory: %w", err), w.Close())
	}
	return w, nil
}

func (w *World) start(ctx context.Context) error {
	r, err := findRelease(w.options.Version)
	if err != nil {
		return err
	}
	dir, err := cacheFolder()
	if err != nil {
		return err
	}
	c := cache{dir: dir, logf: w.options.Logf}
	if err := check(c, len(w.options.Hosts)); err != nil {
		return err
	}
	if w.lock, err = takeLock(dir); err != nil {
		return err
	}
	// What a run left that was killed: its processes died with it.
	if err := errors.Join(removeCgroups(), os.RemoveAll(w.runFolder(c)), c.prune(time.Now())); err != nil {
		return err
	}
	if w.assets, err = prepare(ctx, c, r); err != nil {
		return err
	}
	return w.build(ctx)
}

// runFolder is where the machines of the running laboratory write, on the same file system as what they share.
func (w *World) runFolder(c cache) string { return filepath.Join(c.dir, "run") }

// bootTimeout bounds the boot of a machine, which is 3 s for all eight on two processors.
const bootTimeout = 2 * time.Minute

func (w *World) build(ctx context.Context) error {
	topology := w.topology()
	var err error
	if w.net, err = netlab.Start(ctx, topology); err != nil {
		return err
	}
	keys, err := newKeys(topology)
	if err != nil {
		return err
	}
	if w.operator, err = newOperator(ctx, w.net.Host(operatorName), keys); err != nil {
		return err
	}
	layer, err := w.assets.cache.layer(w.assets, w.options.Bare, w.options.Containerd)
	if err != nil {
		return err
	}
	for _, spec := range topology.Hosts {
		switch {
		case spec.Name == operatorName:
		case slices.Contains(topology.Routers(), spec.Name):
			w.routers[spec.Name] = w.newRouter(spec.Name)
		default:
			w.hosts[spec.Name] = w.newHost(spec.Name, layer)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, bootTimeout)
	defer cancel()
	return w.each(func(h *Host) error {
		if err := h.install(keys); err != nil {
			return fmt.Errorf("host %s: %w", h.Name(), err)
		}
		return h.boot(ctx)
	})
}

// each runs a step on all machines and routers at once.
func (w *World) each(step func(*Host) error) error {
	all := append(w.Hosts(), w.Routers()...)
	errs := make([]error, len(all))
	var wg sync.WaitGroup
	for i, h := range all {
		wg.Go(func() { errs[i] = step(h) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

const (
	operatorName = "operator"
	operatorLAN  = "lan10"
)

var operatorAddr = netip.MustParsePrefix("192.168.10.250/24")

// topology is the reference deployment with the machines that the options name, and the operator.
func (w *World) topology() netlab.Topology {
	t := netlab.Reference()
	leaves := t.Leaves()
	t.Hosts = slices.DeleteFunc(t.Hosts, func(h netlab.HostSpec) bool {
		return slices.Contains(leaves, h.Name) && !slices.Contains(w.options.Hosts, h.Name)
	})
	if w.options.Routed {
		routeDirectly(&t)
	}
	t.Hosts = append(t.Hosts, netlab.HostSpec{
		Name:       operatorName,
		Interfaces: []netlab.Iface{{Net: operatorLAN, Name: "eth0", Addrs: []netip.Prefix{operatorAddr}}},
		Gateways:   []netip.Addr{netip.MustParseAddr("192.168.10.1")},
	})
	return t
}

// routeDirectly makes the routers forward, each with routes to the LANs of the others.
func routeDirectly(t *netlab.Topology) {
	for _, name := range t.Routers() {
		router := t.Host(name)
		router.Forward = true
		for _, other := range t.Routers() {
			if other == name {
				continue
			}
			wan, lan := t.Host(other).Interfaces[0], t.Host(other).Interfaces[1]
			router.Routes = append(router.Routes, netlab.Route{Dst: lan.Addrs[0].Masked(), Via: wan.Addrs[0].Addr()})
		}
	}
}

func (w *World) newHost(name, layer string) *Host {
	h := w.newBox(name)
	h.box.spec.Lower = []string{layer, w.assets.root}
	h.store = w.assets.store
	if name == loadBalancer {
		h.box.spec.Lower, h.store = []string{w.assets.root}, ""
	}
	// The options after the program's are of the kernel's command line, where systemd looks for them outside of containers.
	h.box.spec.Init = []string{"/lib/systemd/systemd", "--system", "--show-status=no", "--log-target=journal", "systemd.unified_cgroup_hierarchy=0"}
	h.box.spec.Readable = kubeletSettings
	h.systemd = true
	return h
}

// newRouter is a machine that runs nothing but sshd, and whatever is started on it.
func (w *World) newRouter(name string) *Host {
	h := w.newBox(name)
	h.box.spec.Lower = []string{w.assets.root}
	h.box.spec.Init = []string{"/bin/sh", "-c", "mkdir -p /run/sshd && exec /usr/sbin/sshd -D -e"}
	h.meshd = w.options.Meshd
	return h
}

func (w *World) newBox(name string) *Host {
	dir := filepath.Join(w.runFolder(w.assets.cache), name)
	return &Host{root: w.assets.root, box: &box{
		net: w.net.Host(name), labinit: filepath.Join(w.assets.own, "labinit"), dir: dir, spec: boxspec.Box{Env: boxEnv},
	}}
}

// kubeletSettings are what kubelets want to read from the machine's settings, and would write otherwise.
var kubeletSettings = map[string]string{
	"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1",
	"kernel/keys/root_maxkeys": "1000000", "kernel/keys/root_maxbytes": "25000000",
}

// Assets are what the world was made from.
func (w *World) Assets() *Assets { return w.assets }

// Net is the world of networks that the machines are in, for cutting and slowing links.
func (w *World) Net() *netlab.World { return w.net }

// Operator is where people sit: an ordinary machine on site 10 with an SSH key and the host keys of all others.
func (w *World) Operator() *Operator { return w.operator }

// Host returns the machine or the router of that name. It panics if the world has none, which is a mistake in the program.
func (w *World) Host(name string) *Host {
	if h, ok := w.hosts[name]; ok {
		return h
	}
	if h, ok := w.routers[name]; ok {
		return h
	}
	panic("kubelab: no host " + name)
}

// Hosts are the machines on the LANs, in the order of the reference deployment.
func (w *World) Hosts() []*Host { return inOrder(w.hosts) }

// Routers are the routers, in the order of the reference deployment.
func (w *World) Routers() []*Host { return inOrder(w.routers) }

func inOrder(hosts map[string]*Host) []*Host {
	var list []*Host
	for _, spec := range netlab.Reference().Hosts {
		if h, ok := hosts[spec.Name]; ok {
			list = append(list, h)
		}
	}
	return list
}

// Close ends the world: every process, with them all namespaces and mounts, then the cgroups and what the machines wrote.
// The error says what is left, as [World.Leftovers] does. Further calls return the same.
func (w *World) Close() error {
	w.closeOnce.Do(func() { w.closeErr = w.close() })
	return w.closeErr
}

func (w *World) close() error {
	if w.lock == nil {
		return nil // nothing was done yet
	}
	var errs []error
	if w.net != nil {
		errs = append(errs, w.net.Close())
	}
	errs = append(errs, removeCgroups())
	if w.assets != nil {
		errs = append(errs, os.RemoveAll(w.runFolder(w.assets.cache)))
		if left := w.Leftovers(); len(left) > 0 {
			errs = append(errs, fmt.Errorf("close laboratory: left over: %s", strings.Join(left, "; ")))
		}
	}
	return errors.Join(append(errs, w.lock.release())...)
}
