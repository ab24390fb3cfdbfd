package preflight

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/etcdtune"
	"github.com/planetmesh/planetmesh/kubeinit/internal/inventory"
)

// What a host needs. Control planes: what kubeadm checks itself. Workers: what
// kubelet, containerd and the system need before the first pod.
const (
	minControlPlaneMemory = 1700 << 20
	minWorkerMemory       = 700 << 20
	minControlPlaneCPUs   = 2
	minDisk               = 5 << 30 // images of a control plane take 1.5 GiB, and kubelet evicts at 15 % free
)

// hostJudge judges one host.
type hostJudge struct {
	*judge
	h    *inventory.Host
	f    *Facts
	a    *AgentReport
	name string
}

func (j *judge) host(h *inventory.Host) {
	r := j.reports[h.Name]
	if r.Error != "" {
		j.add("host-unreachable", SeverityFault, []string{h.Name}, fmt.Sprintf("%s cannot be worked on: %s", h.Name, r.Error),
			fmt.Sprintf("ssh %s true", sshTarget(h)))
		if r.Facts == nil {
			return
		}
	}
	if r.FactsError != "" {
		j.add("facts-unreadable", SeverityWarning, []string{h.Name}, fmt.Sprintf("%s says things that are not understood: %s", h.Name, r.FactsError),
			"install iproute2, nftables and coreutils on "+h.Name+", then check again")
	}
	if r.Facts == nil {
		return
	}
	k := &hostJudge{judge: j, h: h, f: r.Facts, a: r.Agent, name: h.Name}
	if k.address() && r.AgentError != "" { // without its address, the agent cannot come up
		k.say("agent-failed", SeverityFault, "/var/lib/kubeinit/bin/kubeinit-* agent probe < /dev/null; echo $?   # then: kubeinit check",
			"could not measure: %s", r.AgentError)
	}
	k.forwarding()
	if !h.IsNode() && !h.Is(inventory.LoadBalancer) {
		return
	}
	k.system()
	k.ports()
	if h.IsNode() {
		k.kernel()
		k.resources()
		k.packages()
		k.names()
		k.leftovers()
	}
}

func sshTarget(h *inventory.Host) string {
	target := h.SSH.Address
	if target == "" {
		target = h.NodeIP.String()
	}
	if h.SSH.User != "" {
		target = h.SSH.User + "@" + target
	}
	if h.SSH.Port != 0 && h.SSH.Port != 22 {
		target = fmt.Sprintf("-p %d %s", h.SSH.Port, target)
	}
	return target
}

// say notes a fault of the host. The cure is to be typed there.
func (k *hostJudge) say(id string, s Severity, cure, format string, args ...any) {
	k.add(id, s, []string{k.name}, k.name+" "+fmt.Sprintf(format, args...), "on "+k.name+": "+cure)
}

// address says whether the host has its address.
func (k *hostJudge) address() (found bool) {
	if k.a != nil && len(k.a.Duplicates) > 0 {
		k.say("address-duplicate", SeverityFault, "ip neigh show "+k.h.NodeIP.String()+"   # then find the machine with "+k.a.Duplicates[0]+" and give it another address",
			"shares its address %s with another machine on its LAN, %s", k.h.NodeIP, list(k.a.Duplicates))
	}
	for _, a := range k.f.Addresses {
		if a.Prefix.Addr().WithZone("") != k.h.NodeIP {
			continue
		}
		found = true
		if a.Refused {
			k.say("address-duplicate", SeverityFault, "ip address show dev "+a.Interface,
				"shares its address %s with another machine: the kernel refused it on %s", k.h.NodeIP, a.Interface)
		}
	}
	if !found {
		k.say("address-missing", SeverityFault, "ip -brief address   # then correct nodeIP in the inventory, or the host",
			"has no interface with its nodeIP %s", k.h.NodeIP)
	}
	if k.h.IsNode() && !k.hasDefaultRoute() {
		family := "-4"
		if k.h.NodeIP.Is6() {
			family = "-6"
		}
		k.say("route-default-missing", SeverityFault, "ip "+family+" route add default via ROUTER   # and in the network configuration",
			"has no default route: kubelet and the API server choose addresses by it, and services have none to leave by")
	}
	return found
}

func (k *hostJudge) hasDefaultRoute() bool {
	return slices.ContainsFunc(k.f.Routes, func(r HostRoute) bool {
		return r.Prefix.Bits() == 0 && r.Prefix.Addr().Is4() == k.h.NodeIP.Is4()
	})
}

// forwarding judges what stands in the way of packets for pods and for other sites.
func (k *hostJudge) forwarding() {
	for _, c := range k.f.ForwardDrops {
		if c.Table == "" || c.Chain == "" {
			k.say("firewall-forward-drop", SeverityFault, "nft list chains", "drops what it shall forward: a chain with an unusual name has the policy drop")
			continue
		}
		source := k.inv.Cluster.PodSupernet
		rule := fmt.Sprintf("nft insert rule %s %s %s", c.Family, c.Table, c.Chain)
		k.say("firewall-forward-drop", SeverityFault, fmt.Sprintf("%s ip saddr %s accept && %s ip daddr %s accept", rule, source, rule, source),
			"drops what it shall forward: chain %s of table %s %s has the policy drop", c.Chain, c.Family, c.Table)
	}
	for _, name := range k.f.Firewalls {
		k.say("firewall-active", SeverityWarning, "kubeinit check --firewall nft   # shows what has to be open; or: systemctl disable --now "+name,
			"runs %s, which changes rules on its own", name)
	}
}

func (k *hostJudge) system() {
	if k.f.PID1 != "systemd" {
		k.say("systemd-missing", SeverityFault, "ps -p 1   # boot the host with systemd: kubeinit makes units",
			"runs %s as its first process and not systemd", quoteEmpty(k.f.PID1))
	}
	if !slices.ContainsFunc([]string{"systemd-timesyncd", "chrony", "chronyd", "ntp", "ntpd", "ntpsec", "openntpd"}, func(u string) bool {
		return k.f.Units[u].Active == "active"
	}) {
		k.say("time-sync-missing", SeverityNote, "apt-get install systemd-timesyncd && timedatectl set-ntp true",
			"has no service that keeps its clock right")
	}
	if k.a != nil && k.a.ClockError != "" {
		k.say("clock-unknown", SeverityWarning, "date +%s.%N", "does not say what time it is: %s", k.a.ClockError)
	}
}

func quoteEmpty(s string) string {
	if s == "" {
		return "something unknown"
	}
	return s
}

// ports judges who holds the ports that the host will serve.
func (k *hostJudge) ports() {
	var told []uint16
	for _, s := range services() {
		if !s.serves(k.inv, k.h) {
			continue
		}
		for _, l := range k.f.Listening {
			own := k.f.Ours && (l.Process == "" || s.mayHold(l.Process))
			if l.Port != s.port || own || slices.Contains(told, s.port) {
				continue
			}
			told = append(told, s.port)
			k.say("port-in-use", SeverityFault, fmt.Sprintf("ss -Htlnp sport = :%d   # then stop that service", s.port),
				"has port %d, which the %s needs, in use by %s", s.port, s.name, quoteEmpty(l.Process))
		}
		if k.a != nil && slices.Contains(k.a.Busy, s.port) && !k.f.Ours && !slices.Contains(told, s.port) {
			told = append(told, s.port)
			k.say("port-in-use", SeverityFault, fmt.Sprintf("ss -Htlnp sport = :%d   # then stop that service", s.port),
				"has port %d, which the %s needs, in use by a process that it does not show", s.port, s.name)
		}
	}
}

func (k *hostJudge) kernel() {
	if len(k.f.Swap) > 0 {
		k.say("swap-on", SeverityFault, "swapoff -a && sed -i '/\\sswap\\s/s/^/#/' /etc/fstab",
			"swaps to %s, and kubelet does not start with swap", list(k.f.Swap))
	}
	switch {
	case k.f.CgroupVersion == 2:
	case k.inv.Cluster.AllowCgroupV1:
		k.say("cgroup-v1", SeverityNote, "stat -fc %T /sys/fs/cgroup   # cgroup2fs is what Kubernetes wants",
			"has cgroup v1, which allowCgroupV1 accepts")
	default:
		k.say("cgroup-v1", SeverityFault, "boot with systemd.unified_cgroup_hierarchy=1, or set allowCgroupV1: true in the inventory",
			"has cgroup v1, which Kubernetes gives up")
	}
	for _, c := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !slices.Contains(k.f.Controllers, c) {
			k.say("cgroup-controller-missing", SeverityFault, "cat /sys/fs/cgroup/cgroup.controllers   # boot without cgroup_disable="+c,
				"has no cgroup controller %s", c)
		}
	}
	for _, m := range k.modules() {
		if s := k.f.Modules[m]; s != "present" && s != "loadable" {
			k.say("module-missing", SeverityFault, "modprobe "+m+"   # from a kernel that has it",
				"has a kernel without the module %s", m)
		}
	}
}

func (k *hostJudge) modules() []string {
	modules := []string{"overlay", "br_netfilter", "nf_conntrack"}
	if k.inv.Cluster.KubeProxy.Mode != inventory.KubeProxyIPTables {
		modules = append(modules, "nf_tables")
	}
	return modules
}

func (k *hostJudge) resources() {
	memory := int64(minWorkerMemory)
	if isControlPlane(k.h) {
		memory = minControlPlaneMemory
		if k.f.CPUs < minControlPlaneCPUs {
			k.say("cpu-few", SeverityFault, "nproc   # give it another processor, or another role",
				"has %d processor, and a control plane needs %d", k.f.CPUs, minControlPlaneCPUs)
		}
	}
	if k.f.Memory < memory {
		k.say("memory-small", SeverityFault, "free -m   # give it more memory, or another role",
			"has %d MiB of memory, and its roles need %d", k.f.Memory>>20, memory>>20)
	}
	if k.f.DiskFree < minDisk {
		k.say("disk-full", SeverityFault, "df -h /var/lib && du -xsh /var/lib/*",
			"has %.1f GiB free in /var/lib, and %d are needed", float64(k.f.DiskFree)/(1<<30), minDisk>>30)
	}
	if isControlPlane(k.h) && k.a != nil && k.a.Fsync > etcdtune.MaxFsync {
		k.say("fsync-slow", SeverityWarning, "fio --rw=write --ioengine=sync --fdatasync=1 --directory=/var/lib --size=22m --bs=2300 --name=etcd   # and put /var/lib/etcd on a faster disk",
			"takes %s for an fsync in one of a hundred cases, and etcd wants at most %s", round(k.a.Fsync), etcdtune.MaxFsync)
	}
}

// packages judges the programs, as far as they are to be there already.
func (k *hostJudge) packages() {
	if c := k.f.Versions["containerd"]; strings.HasPrefix(c, "1.") && k.inv.MinorVersion() >= 36 &&
		(k.inv.Cluster.Source == inventory.SourcePreinstalled || k.inv.Cluster.Containerd.Mode == inventory.ContainerdExisting) {
		k.say("containerd-old", SeverityFault, "install containerd 2, or set version: \"1.35\" in the inventory",
			"has containerd %s, and Kubernetes %s needs version 2", c, k.inv.Cluster.Version)
	}
	if s := k.inv.Cluster.Source; s != inventory.SourcePreinstalled && s != "" {
		return
	}
	for _, p := range []string{"containerd", "runc", "kubelet", "kubeadm", "conntrack"} {
		if _, ok := k.f.Versions[p]; !ok {
			k.say("package-missing", SeverityFault, "apt-get install "+p+"   # or set source: apt or bundle in the inventory", "has no %s", p)
		}
	}
	if _, ok := k.f.Versions["ethtool"]; !ok {
		k.say("package-missing", SeverityWarning, "apt-get install ethtool", "has no ethtool, which kubeadm asks for")
	}
	for _, p := range []string{"kubelet", "kubeadm"} {
		if v, ok := k.f.Versions[p]; ok && !k.wants(v) {
			k.say("package-version", SeverityFault, fmt.Sprintf("apt-get install %s=%s.*   # or correct version: in the inventory", p, k.inv.Cluster.Version),
				"has %s %s, and the inventory says %s", p, v, k.inv.Cluster.Version)
		}
	}
}

// wants says whether a version is the one of the inventory.
func (k *hostJudge) wants(v string) bool {
	want := k.inv.Cluster.Version
	return v == want || strings.HasPrefix(v, want+".") || strings.HasPrefix(v, want+"-") || strings.HasPrefix(v, want+"+")
}

// names judges resolv.conf.
func (k *hostJudge) names() {
	if len(k.f.Nameservers) == 0 {
		k.say("resolv-empty", SeverityFault, "echo nameserver ADDRESS >> /etc/resolv.conf",
			"names no name server in /etc/resolv.conf, and CoreDNS does not start without one")
		return
	}
	if allLoopback(k.f.Nameservers) && (len(k.f.Upstreams) == 0 || allLoopback(k.f.Upstreams)) {
		k.say("resolv-loopback", SeverityFault, "resolvectl status   # or write a name server that pods reach into /etc/resolv.conf",
			"names only %s in /etc/resolv.conf, where CoreDNS would ask itself", list(k.f.Nameservers))
	}
}

func allLoopback(servers []string) bool {
	return !slices.ContainsFunc(servers, func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err == nil && !a.IsLoopback()
	})
}

func (k *hostJudge) leftovers() {
	if len(k.f.Leftovers) > 0 && !k.f.Ours {
		k.say("leftovers", SeverityFault, "kubeadm reset -f && rm -rf /etc/cni/net.d/* /etc/kubernetes /var/lib/etcd   # if nobody needs them",
			"has files of another cluster: %s", list(k.f.Leftovers))
	}
}
