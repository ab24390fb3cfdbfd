package steps

import (
	"fmt"
	"slices"
	"strings"

	"github.com/planetmesh/planetmesh/kubeinit/internal/host"
)

// madeDirs are directories that kubeadm, the kubelet, containerd and the plug-ins
// make, the innermost first.
const madeDirs = "/etc/kubernetes /var/lib/kubelet /var/lib/etcd /var/lib/cni /etc/cni/net.d /etc/cni /opt/cni" +
	" /run/containerd/runc/k8s.io /run/containerd/runc /run/containerd/s /run/netns /run/kubernetes /run/systemd/transient"

// observeScript prints what cleanScript must not remove or has to restore:
// tables of nftables, network links, directories, and kernel parameters that
// kubelet and kube-proxy set. A line is a kind and a value.
const observeScript = `
nft list tables 2>/dev/null | sed 's/^/nft /'
ls /sys/class/net | sed 's/^/link /'
for d in ` + madeDirs + `; do [ -e $d ] && echo "dir $d"; done
for f in net/netfilter/nf_conntrack_max net/netfilter/nf_conntrack_tcp_timeout_established net/netfilter/nf_conntrack_tcp_timeout_close_wait net/ipv4/conf/all/route_localnet net/netfilter/nf_conntrack_tcp_be_liberal vm/overcommit_memory vm/panic_on_oom kernel/panic kernel/panic_on_oops kernel/keys/root_maxkeys kernel/keys/root_maxbytes; do
	[ -r /proc/sys/$f ] && echo "sys $f=$(cat /proc/sys/$f)"
done
[ -e /run/xtables.lock ] && echo "dir /run/xtables.lock"
systemctl is-active --quiet kubelet && echo "active kubelet"
true
`

// cleanScript undoes kubeadm's work on a host of which observeScript printed
// seen before that. It may run after half of that work, and twice.
func cleanScript(seen string) string {
	kept := map[string][]string{}
	for line := range strings.Lines(seen) {
		kind, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if ok {
			kept[kind] = append(kept[kind], value)
		}
	}
	var b strings.Builder
	b.WriteString(`if command -v kubeadm >/dev/null && { [ -e /etc/kubernetes/kubelet.conf ] || [ -e /etc/kubernetes/manifests ] || [ -e /var/lib/etcd/member ]; }; then
	kubeadm reset --force --cleanup-tmp-dir >/dev/null 2>&1
fi
`)
	if len(kept["active"]) == 0 {
		b.WriteString("systemctl stop kubelet 2>/dev/null; systemctl reset-failed kubelet 2>/dev/null\n")
	}
	b.WriteString(`for m in $(awk '$2 ~ "^/var/lib/kubelet/|^/run/netns/cni-|^/var/run/netns/cni-" {print $2}' /proc/mounts | sort -r); do umount "$m" 2>/dev/null || umount -l "$m"; done
for n in /run/netns/cni-*; do [ -e "$n" ] && ip netns delete "${n##*/}" 2>/dev/null; done
`)
	fmt.Fprintf(&b, "for l in cni0 pmpods0 kube-bridge kube-ipvs0 nodelocaldns flannel.1 $(cd /sys/class/net && ls -d veth* 2>/dev/null); do case ' %s ' in *\" $l \"*) ;; *) ip link delete \"$l\" 2>/dev/null;; esac; done\n",
		strings.Join(kept["link"], " "))
	b.WriteString("nft list tables 2>/dev/null | while read -r t; do case \"$t\" in\n")
	for _, t := range kept["nft"] {
		fmt.Fprintf(&b, "%s) ;;\n", host.Quote(t))
	}
	b.WriteString("'table inet kubeinit-podnet') ;;\n*) nft delete $t;;\nesac; done\n")
	// The kubelet's slices are transient units: they go when they stop. What it
	// made in hierarchies of cgroup v1 that systemd does not use stays.
	b.WriteString(`systemctl stop kubepods.slice 2>/dev/null
for g in /sys/fs/cgroup/kubepods.slice /sys/fs/cgroup/*/kubepods.slice; do [ ! -d "$g" ] || find "$g" -depth -type d -exec rmdir {} + 2>/dev/null; done
`)
	b.WriteString("rm -rf /etc/kubernetes/manifests /etc/kubernetes/pki /etc/kubernetes/tmp /etc/kubernetes/*.conf /var/lib/kubelet/* /var/lib/kubelet/.[!.]* /var/lib/etcd/* /var/lib/cni/* /run/kubernetes /run/kubeinit/kubeadm-*.yaml\n")
	if !slices.Contains(kept["dir"], "/run/xtables.lock") {
		b.WriteString("rm -f /run/xtables.lock\n")
	}
	for d := range strings.FieldsSeq(madeDirs) {
		if !slices.Contains(kept["dir"], d) {
			fmt.Fprintf(&b, "[ ! -e %s ] || rmdir %s 2>/dev/null\n", d, d)
		}
	}
	for _, s := range kept["sys"] {
		file, value, ok := strings.Cut(s, "=")
		if ok {
			fmt.Fprintf(&b, "[ \"$(cat /proc/sys/%s)\" = %s ] || echo %s > /proc/sys/%s\n", file, host.Quote(value), host.Quote(value), file)
		}
	}
	b.WriteString("[ ! -e /etc/kubernetes/kubelet.conf ]\n")
	return b.String()
}
